"""What is wrong with the runs of a study, all of it, before the first is made."""

from __future__ import annotations

from zofo.errors import ZofoError
from zofo.studies.grid import Grid

_SHOWN = 8  # faults of one message


def check_runs(grid: Grid) -> None:
    """Find out what takes no time to find out, of every method, setting and cell at once.

    Args:
        grid: of the study.

    Raises:
        ZofoError: names each key of the study's file that is at fault, or the run where no single one is.
    """
    found: dict[str, ZofoError] = {}
    for run in grid.one_of_each:
        for key, error in run.execution.faults(run.config):
            found.setdefault(f"{grid.where(run, key)}: {error.message}", error)
    if found:
        messages, first = list(found), next(iter(found.values()))
        more = [f"and {len(messages) - _SHOWN} more"] if len(messages) > _SHOWN else []
        first.message = "\n".join([*messages[:_SHOWN], *more])
        raise first
