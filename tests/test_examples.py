"""The scripts and notebooks of examples/: what they say of themselves, and that they run as they stand."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import build_model

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
RUNS = {  # what a script is given beside a tiny model, and the last line that it prints
    "own_csv.py": ([], "open .*report.html in a browser"),
    "chat.py": ([], "talk to it: zofo chat "),
    "reward.py": ([], r"\d+ queries, no gradient"),
    "big_model.py": (["--quantization", "none"], "the adapter as a peft folder"),
    "trainer.py": ([], "is what from_pretrained loads"),
    "trainer.py --bilevel": (["--bilevel"], "is what from_pretrained loads"),
}


def code_of(notebook):
    cells = json.loads((EXAMPLES / notebook).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_are_five_scripts_and_two_notebooks():
    assert sorted({name.split()[0] for name in RUNS}) == SCRIPTS
    assert len(NOTEBOOKS) == 2
    links = [(EXAMPLES / "README.md").read_text(encoding="utf-8"), (ROOT / "README.md").read_text(encoding="utf-8")]
    assert all(f"]({name})" in links[0] for name in [*SCRIPTS, *NOTEBOOKS])
    assert "](examples/README.md)" in links[1]


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_script_says_what_it_shows_and_can_be_imported(name):
    made = runpy.run_path(str(EXAMPLES / name), run_name="example")
    assert re.search(r"\nShows: .*\nTakes: .*\n\n    python examples/", made["__doc__"], re.DOTALL)
    assert callable(made["main"])
    assert '"--model", default="' in (EXAMPLES / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name):
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    whole = json.loads(text)
    assert (whole["nbformat"], len({cell["id"] for cell in whole["cells"]})) == (4, len(whole["cells"]))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in whole["cells"])
    for cell in code_of(name):
        ast.parse(cell)
        assert all(len(line) <= 120 for line in cell.splitlines())


def run(arguments, folder):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()


def model_of(tmp_path, tokenizer):
    folder = tmp_path / "tiny"
    build_model("llama", len(tokenizer), positions=2048).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.mark.soak
@pytest.mark.parametrize("name", RUNS)
def test_a_script_runs_with_a_tiny_model(name, tokenizer, tmp_path):
    """Also at the lowest versions: see test_floors.py."""
    given, last = RUNS[name]
    model = model_of(tmp_path, tokenizer)
    shown = run([EXAMPLES / name.split()[0], "--model", model, "--steps", "2", *given], tmp_path)
    assert re.search(last, shown[-1])


@pytest.mark.soak
@pytest.mark.parametrize("name", RUNS)
def test_a_script_runs_as_it_stands(name, tmp_path):
    given, last = (["--bilevel"], RUNS[name][1]) if name.endswith("--bilevel") else ([], RUNS[name][1])
    shown = run([EXAMPLES / name.split()[0], *given], tmp_path)
    assert re.search(last, shown[-1])
    if name.startswith("trainer"):
        before, after = re.search(r"rows: ([\d.]+) before, ([\d.]+) after", "\n".join(shown)).groups()
        assert float(after) < float(before)
    if name == "reward.py":
        first, after = re.search(r"answer: ([\d.]+) at first, ([\d.]+) at last", "\n".join(shown)).groups()
        assert float(after) < float(first)


@pytest.mark.soak
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path):
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples")
    (folder / "cells.py").write_text("import matplotlib\nmatplotlib.use('agg')\n" + "\n".join(code_of(name)))
    run(["cells.py"], folder)
