"""What a study would cost: its runs, their queries, and hours estimated from a few steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.table import Table

from zofo.errors import ZofoError
from zofo.studies.executor import CostEstimate
from zofo.studies.frames import as_time
from zofo.studies.load import Study
from zofo.studies.preflight import check_runs
from zofo.studies.runner import content_of, known_runs
from zofo.studies.store import Store
from zofo.studies.trial import Run

Place = tuple[str, str, str]
"""Method, model and cell."""

_SECONDS = 50.0
"""How long steps are timed; what is left is estimated from what was timed."""


@dataclass(frozen=True)
class PlanRow:
    """A method in a cell.

    Args:
        method: its name.
        cell: its model, task and axes.
        trials: number of trials.
        finals: number of final runs.
        done: how many of both are done.
        trial_queries: queries of a trial; None where unknown.
        final_queries: queries of a final run; None where unknown.
        seconds: time of the runs that are not done; None where nothing similar could be timed.
        timed: whether this cell was timed itself.
        fault: why it cannot run, or None.
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
    """The runs of a study.

    Args:
        rows: a method in a cell each.
        jobs: runs at a time.
    """

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
        """Estimated time of the runs that are not done."""
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
        lines = [*faults.values(), total, f"about {as_time(self.seconds)} left{at_a_time}"]
        if guessed:
            lines.append("~: estimated from the same method in other places")
        if unknown:
            lines.append(f"of {unknown} rows the time is not known and not counted")
        return lines


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def plan_study(
    study: Study,
    folder: Path,
    jobs: int = 1,
    remote_code: bool = False,
    told: Callable[[str], None] = lambda text: None,
    limit: float = _SECONDS,
) -> Plan:
    """The runs of a study and what those that are not done would take. Nothing is written.

    Each method is built in each cell and makes a few steps, which give seconds a query; a run takes its queries times
    that, and its evaluations. When the time for this is over, the seconds a query of a method are those of the cells in
    which it was timed, preferably of the same model.

    Args:
        study: as it was read.
        folder: of the study, whose finished runs are counted out.
        jobs: runs at a time.
        remote_code: allow the model's repository to run its own code.
        told: called with what is being timed.
        limit: seconds after which nothing more is timed.

    Raises:
        ZofoError: mistakes in the study; none of its runs is timed.
    """
    check_runs(study.grid)
    groups: dict[Place, list[Run]] = {}
    seen: set[str] = set()
    store, deadline = Store(folder, content_of(study, folder, remote_code)), time.perf_counter() + limit
    for run in known_runs(study.grid, store):
        if run.digest not in seen:  # the same run may stand in several places
            seen.add(run.digest)
            groups.setdefault((run.method, run.cell.model, str(run.cell)), []).append(run)
    timing = _Timing(remote_code, deadline, told)
    left = {place: [run for run in runs if not _done(store, run)] for place, runs in groups.items()}
    for place in _each_model_early(list(groups)):
        if left[place]:
            timing.time(place, left[place])
    rows = [_row(place, groups[place], left[place], timing) for place in groups]
    return Plan(tuple(rows), jobs)


def _done(store: Store, run: Run) -> bool:
    outcome = store.outcome(run)
    return outcome is not None and outcome.final


def _each_model_early(places: list[Place]) -> list[Place]:
    """The places, ordered so that each pair of method and model comes once before any comes twice."""
    earlier: Counter[tuple[str, str]] = Counter()
    rounds = {}
    for place in places:
        rounds[place] = earlier[place[:2]]
        earlier[place[:2]] += 1
    return sorted(places, key=rounds.__getitem__)


class _Timing:
    """Costs of one trial and one final run of each method and cell that could be timed."""

    def __init__(self, remote_code: bool, deadline: float, told: Callable[[str], None]) -> None:
        self._remote_code, self._deadline, self._told = remote_code, deadline, told
        self.costs: dict[Place, dict[bool, CostEstimate]] = {}
        self.faults: dict[Place, str] = {}

    def time(self, place: Place, runs: list[Run]) -> None:
        """Time one method in one cell, unless the time is over."""
        if time.perf_counter() > self._deadline:
            return
        chosen = {run.trial is not None: run for run in reversed(runs)}
        first = next(iter(chosen.values()))
        self._told(f"timing {place[0]} {place[2]}")
        try:
            found = first.execution.costs([run.config for run in chosen.values()], self._remote_code)
        except ZofoError as error:
            self.faults[place] = error.message
        else:
            self.costs[place] = dict(zip(chosen, found, strict=True))

    def cost(self, place: Place, trial: bool) -> CostEstimate | None:
        """The cost in this cell; else the mean over cells of the same method, if possible with the same model."""
        if trial in self.costs.get(place, {}):
            return self.costs[place][trial]
        method, model, _ = place
        same = [k for k, costs in self.costs.items() if k[0] == method and trial in costs]
        near = [self.costs[k][trial] for k in same if k[1] == model] or [self.costs[k][trial] for k in same]
        if not near:
            return None
        return CostEstimate(round(mean(cost.queries for cost in near)), mean(cost.seconds for cost in near))


def _row(place: Place, runs: list[Run], left: list[Run], timing: _Timing) -> PlanRow:
    trials = [run for run in runs if run.trial is not None]
    costs = {trial: timing.cost(place, trial) for trial in (True, False)}
    needed = [costs[run.trial is not None] for run in left]
    fault = timing.faults.get(place)
    known = [cost.seconds for cost in needed if cost is not None]
    seconds = None if fault or len(known) < len(needed) else sum(known)
    queries = {trial: _queries(runs, trial, costs[trial]) for trial in (True, False)}
    return PlanRow(
        method=place[0],
        cell=place[2],
        trials=len(trials),
        finals=len(runs) - len(trials),
        done=len(runs) - len(left),
        trial_queries=queries[True],
        final_queries=queries[False],
        seconds=seconds,
        timed=not left or place in timing.costs,
        fault=fault,
    )


def _queries(runs: list[Run], trial: bool, cost: CostEstimate | None) -> int | None:
    """Queries of a run: counted, or else its budget, of which whole steps may leave a rest."""
    if cost is not None:
        return cost.queries
    run = next((run for run in runs if (run.trial is not None) == trial), None)
    budget = run.tree["training"]["queries"] if run is not None else None
    return int(budget) if budget is not None else None
