"""Follow a run from another terminal, through the files that it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from zofo.errors import RunError
from zofo.report.runs import ReportedRun, read_runs
from zofo.training.run_logs import told_of_step

INTERVAL = 2.0
"""Seconds between two looks."""


def watch_run(path: Path, sleep: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Yield a line whenever something has happened in a run, until it ends, is stopped, or its process is gone.

    Raises:
        RunError: there is no run, or more than one.
    """
    shown = ""
    while True:
        runs = read_runs([path])
        if len(runs) > 1:
            raise RunError(f"{str(path)!r} is a study of {len(runs)} runs", "name one of its runs, in its folder runs/")
        run = runs[0]
        line = _status(run)
        if line != shown:
            shown = line
            yield line
        if run.summary:
            yield f"the run {run.state}" if run.state else "the run has ended"
            return
        if not _is_worked_on(run):
            if read_runs([path])[0].summary:  # it ended in between
                continue
            yield "no process is at the run, and it has not ended: type its command again, and it goes on"
            return
        sleep(INTERVAL)


def _status(run: ReportedRun) -> str:
    """The progress of a run on one line."""
    steps, training = run.steps, run.settings
    if not steps:
        return "no step is made yet"
    last, of = steps[-1], training.get("training.steps")
    name, value = told_of_step(last)
    counted = training.get("training.max_queries") is None and training.get("training.epochs") is None
    parts = [f"step {last['step'] + 1}" + (f" of {of}" if counted and of else ""), f"{name} {value:.4g}"]
    if scored := run.scores("validation"):
        score = scored[run.metric]
        parts.append(f"{run.metric} {score:.4g}" if run.metric == "loss" else f"{run.score_name} {100 * score:.1f} %")
    parts += [f"{last['queries']:,} queries", f"{last['seconds']:,.0f} s"]
    return ", ".join(parts)


def _is_worked_on(run: ReportedRun) -> bool:
    """Whether a process is training in the folder."""
    try:
        with run.folder.locked():
            return False
    except RunError:
        return True
