"""The cost of a study: its runs, their queries, and hours estimated from a few steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.table import Table

from zofo.errors import ZofoError
from zofo.studies.frames import as_time
from zofo.studies.load import Study
from zofo.studies.runner import content_of, known_runs
from zofo.studies.store import Store
from zofo.studies.trial import CostEstimate, StudyRun

Place = tuple[str, str, str]
"""Method, model and cell."""

Costs = dict[tuple[str, str, str, bool], CostEstimate]
"""Of a run in a place, and of whether it is a trial."""

_SECONDS = 50.0
"""How long steps are timed; what is left is estimated from what was timed."""


@dataclass(frozen=True)
class PlanRow:
    """A method in a cell.

    Args:
        done: how many of both are done.
        trial_queries: queries of a trial; None if unknown.
        final_queries: queries of a final run; None if unknown.
        seconds: time of the remaining runs; None if nothing similar could be timed.
    """

    method: str
    cell: str
    trials: int
    finals: int
    done: int
    trial_queries: int | None
    final_queries: int | None
    seconds: float | None
    timed: bool
    fault: str | None


@dataclass(frozen=True)
class Plan:
    """The runs of a study."""

    rows: tuple[PlanRow, ...]
    jobs: int

    @property
    def runs(self) -> int:
        """Number of all runs."""
        return sum(row.trials + row.finals for row in self.rows)

    @property
    def done(self) -> int:
        """Number of runs that are done."""
        return sum(row.done for row in self.rows)

    @property
    def queries(self) -> int:
        """Queries of all runs, done or not, as far as they are known."""
        return sum(row.trials * (row.trial_queries or 0) + row.finals * (row.final_queries or 0) for row in self.rows)

    @property
    def seconds(self) -> float:
        """Estimated time of the remaining runs."""
        return sum(row.seconds or 0.0 for row in self.rows) / self.jobs

    def table(self) -> Table:
        """The plan as a table."""
        shown = Table(box=None, pad_edge=False)
        for name in ("method", "where"):
            shown.add_column(name, overflow="fold")
        for name in ("trials", "queries", "runs", "queries", "done", "left"):
            shown.add_column(name, justify="right")
        for row in self.rows:
            left = "" if row.seconds is None else as_time(row.seconds)
            texts = [str(row.trials), _number(row.trial_queries) if row.trials else "", str(row.finals)]
            texts += [_number(row.final_queries), str(row.done), left if row.timed or not left else f"~ {left}"]
            shown.add_row(row.method, row.cell, *(texts if row.fault is None else [*texts[:-1], "cannot run"]))
        return shown

    def lines(self) -> list[str]:
        """The lines below the table."""
        faults = {row.fault: f"{row.method} {row.cell}: {row.fault}" for row in self.rows if row.fault}
        at_a_time = f", {self.jobs} at a time if that is no slower" if self.jobs > 1 else ""
        total = f"{self.runs} runs, {self.done} of them done; {self.queries:,} queries in all"
        guessed = any(not row.timed and row.seconds is not None for row in self.rows)
        unknown = sum(row.seconds is None and row.done < row.trials + row.finals for row in self.rows)
        known = any(row.seconds for row in self.rows) or not unknown
        lines = [*faults.values(), total, *([f"about {as_time(self.seconds)} left{at_a_time}"] if known else [])]
        if guessed:
            lines.append("~: estimated from the same method in other places")
        if unknown:
            lines.append(f"of {unknown} rows the time is not known" + (" and not counted" if known else ""))
        return lines


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def plan_study(
    study: Study,
    folder: Path,
    jobs: int = 1,
    remote_code: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
    limit: float = _SECONDS,
) -> Plan:
    """The runs of a study and the cost of the remaining ones. Nothing is written.

    Each method is built in each cell and makes a few steps, which give seconds per query; a run takes its queries times
    that, plus its evaluations. After the time limit, the seconds per query of a method are taken from cells in which it
    was timed, preferably with the same model.

    Args:
        folder: folder of the study, whose finished runs are excluded.
        limit: time limit in seconds for timing.

    Raises:
        ZofoError: mistakes in the study; none of its runs is timed.
    """
    study.grid.check()
    store, deadline = Store(folder, content_of(study, folder, remote_code)), time.perf_counter() + limit
    runs, outcomes = known_runs(study.grid, store)
    groups: dict[Place, list[StudyRun]] = {}
    for run in runs.values():
        groups.setdefault((run.method, run.cell.model, str(run.cell)), []).append(run)
    left = {
        place: [run for run in own if run.digest not in outcomes or not outcomes[run.digest].is_final]
        for place, own in groups.items()
    }
    costs: Costs = {}
    faults: dict[Place, str] = {}
    for place in _each_model_early(list(groups)):
        if not left[place] or time.perf_counter() > deadline:
            continue
        on_progress(f"timing {place[0]} {place[2]}")
        chosen = {run.trial is not None: run for run in reversed(left[place])}
        try:
            first = next(iter(chosen.values()))
            found = first.execution.costs([run.config for run in chosen.values()], remote_code)
        except ZofoError as error:
            faults[place] = error.message
        else:
            costs |= {(*place, trial): cost for trial, cost in zip(chosen, found, strict=True)}
    rows = [_row(place, own, left[place], costs, faults.get(place)) for place, own in groups.items()]
    return Plan(tuple(rows), jobs)


def _each_model_early(places: list[Place]) -> list[Place]:
    """An order of the places in which each method is timed with each model early."""
    alike = {place[:2]: [other for other in places if other[:2] == place[:2]] for place in places}
    return sorted(places, key=lambda place: alike[place[:2]].index(place))


def _cost(costs: Costs, place: Place, trial: bool) -> CostEstimate | None:
    """The cost in this cell; otherwise the mean over cells of the same method, preferably with the same model."""
    for shared in (3, 2, 1):
        near = [cost for (*key, of), cost in costs.items() if of == trial and tuple(key[:shared]) == place[:shared]]
        if near:
            return CostEstimate(round(mean(cost.queries for cost in near)), mean(cost.seconds for cost in near))
    return None


def _row(place: Place, runs: list[StudyRun], left: list[StudyRun], costs: Costs, fault: str | None) -> PlanRow:
    estimates = {trial: _cost(costs, place, trial) for trial in (True, False)}
    needed = [estimates[run.trial is not None] for run in left]
    known = [cost.seconds for cost in needed if cost is not None]
    trials = sum(run.trial is not None for run in runs)
    return PlanRow(
        method=place[0],
        cell=place[2],
        trials=trials,
        finals=len(runs) - trials,
        done=len(runs) - len(left),
        trial_queries=_queries(runs, True, estimates[True]),
        final_queries=_queries(runs, False, estimates[False]),
        seconds=None if fault or len(known) < len(needed) else sum(known),
        timed=not left or any((*place, trial) in costs for trial in estimates),
        fault=fault,
    )


def _queries(runs: list[StudyRun], trial: bool, cost: CostEstimate | None) -> int | None:
    """Queries of a run: counted, or its budget, which whole steps may not use up."""
    if cost is not None:
        return cost.queries
    return next((run.tree["training"]["max_queries"] for run in runs if (run.trial is not None) == trial), None)
