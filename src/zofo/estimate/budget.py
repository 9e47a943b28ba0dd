"""How many steps and scored rows a time limit pays for, after loading the model and encoding the rows."""

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
_KEPT = 64  # training rows at least, of a run that leaves most of them out
_ENCODED = 0.05  # of the time: where more of it would go into rows as tokens, those that no step draws are left out
_READ, _READ_IN_PART = 1.5, 0.75  # times what reading took here: a run looks through other splits, too; or renders less


@dataclass(frozen=True)
class Costs:
    """What the parts of a run take, in seconds.

    Args:
        start: from the command to the first row, and with the weights.
        reading: all rows, as text.
        encoding: a row, as tokens.
        step: one.
        scoring: a row that is scored.
    """

    start: float
    reading: float
    encoding: float
    step: float
    scoring: float


@dataclass(frozen=True)
class Wanted:
    """What a run would do if it had the time.

    Args:
        steps: that are enough.
        batch: training rows of a step.
        rows: to train on.
        scored: validation rows, at most.
        fewest: of these, below which a score tells nothing.
        cuts: whether training rows may be left out.
        tests: test sets that are scored: none, one, or one for each evaluation.
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
    """What a run does in its time.

    Args:
        scored: validation rows of each evaluation, and as many test rows.
        passes: over rows that are scored: the evaluations, and those of test.
        kept: training rows, where most are left out; else None.
        seconds: it takes; None where that is not known.
        enough: seconds in which it could draw `FEW_ROWS`, or make all steps, and score the fewest rows.
    """

    steps: int
    evaluations: int
    scored: int
    passes: float
    kept: int | None = None
    seconds: float | None = None
    enough: float = 0.0


def share_out(wanted: Wanted, costs: Costs | None, seconds: float | None) -> Plan:
    """As many rows that are scored and as many steps as some seconds pay for.

    Args:
        costs: None where they are not known.
        seconds: None for as many as it takes.

    Returns:
        The plan; one of 0 steps where the time pays for none.
    """
    few, evaluations, scored = min(wanted.fewest, wanted.scored), EVALUATIONS, wanted.scored
    if costs is None or seconds is None:
        plan = _made(wanted, wanted.steps, evaluations, scored)
        return plan if costs is None else replace(plan, seconds=_whole(wanted, costs, plan))
    paid = SHARE * seconds / max(costs.scoring, 1e-9)  # rows that are scored, in all
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
    """Steps that draw `FEW_ROWS`."""
    return -(-FEW_ROWS // wanted.batch)


def smaller_batch(plan: Plan, wanted: Wanted) -> int:
    """Rows a batch, where the time pays for few steps of those that are wanted: 4 or 2 in place of more."""
    if plan.steps >= min(FEW_STEPS, wanted.steps):
        return wanted.batch
    return min(wanted.batch, 4 if plan.steps * wanted.batch >= 4 * FEW_STEPS else 2)


def about_few(plan: Plan, wanted: Wanted, lengths: Sequence[int]) -> str | None:
    """Says so where little can be learned in the time."""
    if plan.steps >= min(_few(wanted), wanted.steps):
        return None
    return f"{plan.steps * wanted.batch} rows are too few to learn much from: {remedies(plan, lengths)}"


def _passes(wanted: Wanted, evaluations: int) -> float:
    return evaluations + min(wanted.tests, evaluations)


def _made(wanted: Wanted, steps: int, evaluations: int, scored: int, kept: int | None = None) -> Plan:
    evaluations = max(1, min(evaluations, steps))
    return Plan(steps, evaluations, scored, _passes(wanted, evaluations), kept)


def _whole(wanted: Wanted, costs: Costs, plan: Plan) -> float:
    """Seconds of a plan."""
    rows = 0 if plan.kept is None else plan.kept * costs.encoding
    scoring = plan.passes * plan.scored * costs.scoring
    return _before(wanted, costs, plan.kept is not None) + rows + plan.steps * costs.step + scoring


def _before(wanted: Wanted, costs: Costs, cut: bool) -> float:
    """Seconds before the first step."""
    if cut:
        return costs.start + _READ_IN_PART * costs.reading
    return costs.start + _READ * costs.reading + wanted.rows * costs.encoding


def clock() -> Callable[[], float]:
    """Starts to measure; what it gives tells the seconds since then, less what the processor did for others."""
    begun = time.perf_counter(), time.process_time()
    return lambda: min(time.perf_counter() - begun[0], time.process_time() - begun[1])


def about_scored(plan: Plan, wanted: Wanted, costs: Costs | None, seconds: float | None, there: int, why: str) -> str:
    """The sentence that says how many validation rows are scored, and why.

    Args:
        why: no more than `wanted.scored` are, where time is not the reason.
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
    """A time that is enough, as `--time` takes it."""
    return f"{math.ceil(seconds / 60)}m" if seconds < 7200 else f"{math.ceil(seconds / 3600)}h"


def check_enough(plan: Plan, costs: Costs, seconds: float, model: str, lengths: Sequence[int]) -> None:
    """Raises ConfigError where the time pays for no step; `lengths` as `remedies` has them."""
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
    """What to give instead of a time that is too short.

    Args:
        lengths: of rows in tokens, in order.
    """
    half = lengths[-1] // 2
    shorter = f", or task.max_length={half} task.truncate=left" if half >= 32 else ""
    return f"give --time {in_minutes(plan.enough)}, a smaller --model{shorter}"
