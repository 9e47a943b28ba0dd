"""The lowest versions that pyproject.toml allows are installed together, and tests run there; torch stays as it is.

An environment of its own is made from the package index, which takes minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = (
    *("test_model_card.py", "test_embedded.py", "test_config.py", "test_adapters.py", "test_formats.py"),
    *("test_bilevel_trainer.py", "test_documented_commands.py"),
)


def floors():
    """Name and lowest version of every dependency but torch's, whose old builds for CUDA take several GB."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    own, extra = text.split("dependencies = [")[1].split("]")[0], re.search(r"demo = \[(.*)\]", text)[1]
    found = dict(re.findall(r'"([a-z-]+)>=([\d.]+)"', own + extra))
    assert found.pop("torch")
    assert len(found) > 15
    return found


def call(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)


@pytest.mark.soak
def test_what_is_allowed_works(tmp_path):
    assert call(sys.executable, "-m", "venv", tmp_path / "venv").returncode == 0
    python, lowest = tmp_path / "venv" / "bin" / "python", floors()
    torch = re.search(r"^torch==\S+", (ROOT / "constraints-cpu.txt").read_text(), re.MULTILINE)[0]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    probe = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp_path / "probe", "packaging"]
    if call(*probe).returncode:
        pytest.skip("there is no package index")
    done = call(*pip, f"pip=={lowest['pip']}")  # a floor that the index lacks is a fault, and no reason to skip
    assert done.returncode == 0, done.stderr[-2000:]
    done = call(*pip, torch)
    assert done.returncode == 0, done.stderr[-2000:]
    done = call(*pip, *(f"{name}=={version}" for name, version in lowest.items()), "pytest")
    assert done.returncode == 0, done.stderr[-2000:]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    tests = [str(ROOT / "tests" / name) for name in TESTS]
    options = ["-q", "-m", "not soak", "-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning"]  # of matplotlib
    done = call(python, "-m", "pytest", *options, *tests, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-4000:]
    options[2] = "soak"
    examples = [str(ROOT / "tests" / "test_examples.py"), "-k", "tiny_model"]
    done = call(python, "-m", "pytest", *options, *examples, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-4000:]
