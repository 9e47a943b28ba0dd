"""What an issue needs: versions, machine and, of a run, its configuration and how it ended; without secrets."""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path

import psutil
import torch

from zofo.errors import first_line
from zofo.training.run_folder import RunFolder
from zofo.training.versions import describe_environment

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "MALLOC_MMAP_THRESHOLD_")
_LAST = 3  # lines of the metrics
_SECRETS = (
    re.compile(r"\b(hf|sk|ghp|gho|github_pat|glpat|xox[abp])[_-][A-Za-z0-9_-]{8,}"),
    re.compile(r"(?i)((?:api[_-]?key|token|passwor[dt]|secret)[\"']?\s*[:=]\s*)[\"']?[^\s,\"'}]+"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
)


def issue_report(run: Path | None = None) -> str:
    """What an issue needs, as Markdown.

    Keys, passwords and names of the user are left out: of the environment only a few variables that change results are
    named, paths of the home folder begin with `~`, and what looks like a token is replaced. No row of data is in it.

    Args:
        run: a run folder, ended or not, whose configuration, last metrics and outcome are added.

    Raises:
        RunError: no run there.
    """
    memory = psutil.virtual_memory()
    facts = describe_environment() | {
        "cores": f"{psutil.cpu_count()} ({psutil.cpu_count(logical=False)} physical)",
        "memory": f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} free",
    }
    if torch.cuda.is_available():
        one = torch.cuda.get_device_properties(0)
        facts["gpu"] = f"{one.name}, {one.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}"
    facts |= {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    parts = ["### Environment", _block("\n".join(f"{name:14} {value}" for name, value in facts.items()))]
    if run is not None:
        parts += _of_run(RunFolder.open(run))
    return without_secrets("\n".join(parts))


def _of_run(run: RunFolder) -> list[str]:
    files = {"Configuration": run.path / "config.yaml", "Made with": run.path / "environment.json"}
    parts = []
    for title, file in {**files, "Outcome": run.path / "summary.json"}.items():
        parts += [f"### {title}", _block(_read(file))]
    lines = _read(run.metrics).splitlines()
    return [*parts, f"### Last of {len(lines)} lines of metrics", _block("\n".join(lines[-_LAST:]))]


def _read(file: Path) -> str:
    """A file's text, or why there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        return f"{file.name}: {error.strerror or first_line(error)}"


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def without_secrets(text: str) -> str:
    """A text without what looks like a token or a password, the home folder, and the name of the user."""
    text = _SECRETS[0].sub("***", text)
    text = _SECRETS[1].sub(r"\1***", text)
    text = _SECRETS[2].sub("***", text)
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(home, "~")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a process of nobody
        return text
    return re.sub(rf"(?<=/){re.escape(user)}(?=[/\s\"']|$)", "***", text)
