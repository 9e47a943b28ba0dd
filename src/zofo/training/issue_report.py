"""Information for an issue: versions, machine, and a run's configuration and outcome, without secrets."""

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
    """The information for an issue, as Markdown.

    Without keys, passwords and user names: only a few environment variables that change results are listed, paths in
    the home folder begin with `~`, and anything that looks like a token is replaced. It contains no rows of data.

    Args:
        run: a run folder, finished or not, to add its configuration, last metrics and outcome.

    Raises:
        RunError: there is no run.
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
    """The text of a file, or why it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        return f"{file.name}: {error.strerror or first_line(error)}"


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def without_secrets(text: str) -> str:
    """A text without tokens, passwords, the home folder, and the user's name."""
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
