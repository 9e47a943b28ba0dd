"""The scores of an export: those of exactly its step, or none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zofo.errors import RunError
from zofo.training import RunFolder
from zofo.training.run_logs import metrics_lines

EVALUATED = "evaluated_after"
"""Key of the step of the last evaluation, where the exported step is another."""


def metrics_of(run: RunFolder, variant: str | None = None, best: bool = False) -> dict[str, Any]:
    """Scores on validation, steps and queries of a run's exported model.

    A run that was stopped may have made steps after its last evaluation. Then there are no scores, and `EVALUATED` is
    the step of the last ones.
    """
    summary = run.summary
    metric, first = summary["metric"], next(iter(summary["variants"]))
    variant = variant or first
    if best:
        steps = summary["best"]["step"]
        logged = next((line for line in evaluations(run) if (line["steps"], line["variant"]) == (steps, variant)), {})
        scores = logged or ({metric: summary["best"]["score"]} if variant == first else {})
        scores = {name: value for name, value in scores.items() if name not in ("steps", "seconds")}
        return {"metric": metric, **_finite(scores), "steps": steps}
    steps, evaluated = summary["steps"], summary.get(EVALUATED, summary["steps"])
    made = {"steps": steps, "queries": summary["queries"]}
    if evaluated != steps:
        return {"metric": metric, **made, EVALUATED: evaluated}
    return {"metric": metric, **_finite(summary["variants"][variant]), **made}


def unscored(metrics: Mapping[str, Any]) -> str | None:
    """A note for a model without scores; None for one with scores."""
    if metrics.get(str(metrics.get("metric"))) is not None:
        return None
    last = f": the last evaluation was after {metrics[EVALUATED]}" if metrics.get(EVALUATED) else ""
    return f"it was not evaluated as it is here, after {metrics.get('steps')} steps{last}"


def evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """The logged evaluations of a run, as far as its log is readable: steps, variant and scores."""
    try:
        lines = metrics_lines(run.metrics)
    except RunError:
        return []
    return [line for line in lines if line["event"] == "evaluation" and {"steps", "variant"} <= line.keys()]


def _finite(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers among the scores, with None for non-finite ones."""
    numbers = {name: value for name, value in scores.items() if isinstance(value, float | int)}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
