"""How many steps and scored rows fit into a time limit, after loading the model and encoding the rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from zofo.errors import ConfigError

SHARE = 0.25
"""The share of the time limit that scoring may take; the fewest rows allowed (`Wanted.fewest`) may take more."""
EVALUATIONS = 4
"""Of a run; one alone, where they would take more than that share."""
FEW_ROWS = 160
"""Training rows that are drawn in all, below which little is learned."""
FEW_STEPS = 20
"""Below which smaller batches make more of them."""
_KEPT = 64  # minimum training rows of a run that leaves most of them out
_ENCODED = 0.05  # of the time: where more of it would go into rows as tokens, those that no step draws are left out
_READ, _READ_IN_PART = 1.5, 0.75  # times what reading took here: a run looks through other splits, too; or renders less


@dataclass(frozen=True)
class Costs:
    """The time of each part of a run, in seconds.

    Args:
        start: from the command to the first row, including the weights.
        reading: reading all rows.
        encoding: encoding a row.
        step: one step.
        scoring: scoring a row.
    """

    start: float
    reading: float
    encoding: float
    step: float
    scoring: float


@dataclass(frozen=True)
class Wanted:
    """What a run would do without a time limit.

    Args:
        steps: sufficient number of steps.
        batch: training rows per step.
        rows: number of training rows.
        scored: maximum number of validation rows.
        fewest: the minimum, below which a score is useless.
        cuts: whether training rows may be left out.
        tests: number of scored test sets: none, one, or one per evaluation.
    """

    steps: int
    batch: int
    rows: int
    scored: int
    fewest: int
    cuts: bool = True
    tests: float = 0


@dataclass(frozen=True)
class Plan:
    """What a run does within its time.

    Args:
        scored: validation rows per evaluation, and as many test rows.
        passes: number of passes over scored rows, on validation and test.
        kept: number of training rows, if most are left out; else None.
        seconds: its time; None if unknown.
        enough: time in which it could draw `FEW_ROWS`, or make all steps, and score the fewest rows.
    """

    steps: int
    evaluations: int
    scored: int
    passes: float
    kept: int | None = None
    seconds: float | None = None
    enough: float = 0.0


def share_out(wanted: Wanted, costs: Costs | None, seconds: float | None) -> Plan:
    """The number of scored rows and of steps within a time limit.

    Args:
        costs: the costs; None if unknown.
        seconds: the time limit; None for no limit.

    Returns:
        The plan; with 0 steps if the time is too short for any.
    """
    few, evaluations, scored = min(wanted.fewest, wanted.scored), EVALUATIONS, wanted.scored
    if costs is None or seconds is None:
        plan = _made(wanted, wanted.steps, evaluations, scored)
        return plan if costs is None else replace(plan, seconds=_whole(wanted, costs, plan))
    paid = SHARE * seconds / max(costs.scoring, 1e-9)  # total number of scored rows
    if _passes(wanted, evaluations) * scored > paid:
        evaluations = 1
        scored = max(few, min(scored, int(paid / _passes(wanted, 1))))
    cut = wanted.cuts and wanted.rows * costs.encoding > _ENCODED * seconds
    step = costs.step + (wanted.batch * costs.encoding if cut else 0.0)
    before = _before(wanted, costs, cut)
    left = seconds - before - _passes(wanted, evaluations) * scored * costs.scoring
    steps = max(0, min(wanted.steps, int(left / step)))
    kept = max(_KEPT, steps * wanted.batch)
    plan = _made(wanted, steps, evaluations, scored, kept if cut and kept < wanted.rows else None)
    work = before + min(_few(wanted), wanted.steps) * step
    enough = max(work + _passes(wanted, 1) * few * costs.scoring, work / (1 - SHARE))
    return replace(plan, seconds=_whole(wanted, costs, plan), enough=enough)


def _few(wanted: Wanted) -> int:
    """The number of steps that draw `FEW_ROWS`."""
    return -(-FEW_ROWS // wanted.batch)


def smaller_batch(plan: Plan, wanted: Wanted) -> int:
    """Rows per batch if the time allows only few of the wanted steps: 4 or 2 instead of more."""
    if plan.steps >= min(FEW_STEPS, wanted.steps):
        return wanted.batch
    return min(wanted.batch, 4 if plan.steps * wanted.batch >= 4 * FEW_STEPS else 2)


def about_few(plan: Plan, wanted: Wanted, lengths: Sequence[int]) -> str | None:
    """A sentence if little can be learned in the time."""
    if plan.steps >= min(_few(wanted), wanted.steps):
        return None
    return f"{plan.steps * wanted.batch} rows are too few to learn much from: {remedies(plan, lengths)}"


def _passes(wanted: Wanted, evaluations: int) -> float:
    return evaluations + min(wanted.tests, evaluations)


def _made(wanted: Wanted, steps: int, evaluations: int, scored: int, kept: int | None = None) -> Plan:
    evaluations = max(1, min(evaluations, steps))
    return Plan(steps, evaluations, scored, _passes(wanted, evaluations), kept)


def _whole(wanted: Wanted, costs: Costs, plan: Plan) -> float:
    """Time of a plan in seconds."""
    rows = 0 if plan.kept is None else plan.kept * costs.encoding
    scoring = plan.passes * plan.scored * costs.scoring
    return _before(wanted, costs, plan.kept is not None) + rows + plan.steps * costs.step + scoring


def _before(wanted: Wanted, costs: Costs, cut: bool) -> float:
    """Time before the first step in seconds."""
    if cut:
        return costs.start + _READ_IN_PART * costs.reading
    return costs.start + _READ * costs.reading + wanted.rows * costs.encoding


def clock() -> Callable[[], float]:
    """Start measuring; the returned function gives the seconds since then, minus those the processor worked for
    others."""
    begun = time.perf_counter(), time.process_time()
    return lambda: min(time.perf_counter() - begun[0], time.process_time() - begun[1])


def about_scored(plan: Plan, wanted: Wanted, costs: Costs | None, seconds: float | None, there: int, why: str) -> str:
    """A sentence about how many validation rows are scored, and why.

    Args:
        why: reason for the limit `wanted.scored`, if it is not time.
    """
    times = "once" if plan.evaluations == 1 else f"{plan.evaluations} times"
    times += ", and as many test rows" if plan.passes > plan.evaluations else ""
    if plan.scored == there:
        return f"all {there} validation rows are scored, {times}"
    said = f"{plan.scored} of {there:,} validation rows are scored, {times}"
    if plan.scored == wanted.scored or costs is None or seconds is None:
        return f"{said}: {why}"
    takes = plan.passes * plan.scored * costs.scoring
    if plan.scored > wanted.fewest:
        return f"{said}: at {costs.scoring:.2g} s each, they take {takes:.0f} s, a quarter of the time"
    return f"{said}: fewer would tell nothing; they take {takes:.0f} of {seconds:.0f} s"


def in_minutes(seconds: float) -> str:
    """A sufficient time, as `--time` takes it."""
    return f"{math.ceil(seconds / 60)}m" if seconds < 7200 else f"{math.ceil(seconds / 3600)}h"


def check_enough(plan: Plan, costs: Costs, seconds: float, model: str, lengths: Sequence[int]) -> None:
    """Raise ConfigError if the time is too short for a step; `lengths` as for `remedies`."""
    if plan.steps:
        return
    takes = plan.passes * plan.scored * costs.scoring
    before = (plan.seconds or takes) - takes
    raise ConfigError(
        f"{seconds:.0f} s are too short for {model} on these rows: {before:.0f} s go by before the first "
        f"step, {plan.scored} validation rows that are scored take {takes:.0f} s, and a step {costs.step:.2g}",
        remedies(plan, lengths),
    )


def remedies(plan: Plan, lengths: Sequence[int]) -> str:
    """What to change if the time is too short.

    Args:
        lengths: lengths of rows in tokens, sorted.
    """
    half = lengths[-1] // 2
    shorter = f", or task.max_length={half} task.truncate=left" if half >= 32 else ""
    return f"give --time {in_minutes(plan.enough)}, a smaller --model{shorter}"
