"""What a run says of itself in the end."""

from __future__ import annotations

from typing import Any

from zofo.methods import Method
from zofo.training.callbacks import BestCheckpoint, EvaluationCallback
from zofo.training.config import RunConfig
from zofo.training.data_module import PreparedRun


def build_summary(
    config: RunConfig,
    material: PreparedRun,
    method: Method,
    evaluating: EvaluationCallback,
    testing: EvaluationCallback,
    best: BestCheckpoint,
) -> dict[str, Any]:
    """What a run says of itself in the end, but for its files, its time and its memory.

    Args:
        config: the whole configuration.
        material: what it names.
        method: as it stands.
        evaluating: the scores on validation, with what they took.
        testing: the same on test.
        best: which evaluation was the best.
    """
    scores = {variant: score.as_dict() for variant, score in evaluating.last.items()}
    tested = {variant: score.as_dict() for variant, score in testing.last.items()}
    backbone = method.backbone
    counts, seconds = evaluating.counts + testing.counts, evaluating.seconds + testing.seconds
    return {
        "method": config.method.name,
        "task": material.task.name,
        "task_version": material.task.version,
        "model": config.model.name,
        "split": "validation",
        "metric": material.task.metric,
        **next(iter(scores.values()), {}),
        "steps": evaluating.steps_made,
        "evaluated_after": evaluating.steps_evaluated,
        "variants": {variant: scores.get(variant, {}) for variant in method.variants},
        **({"test": tested} if tested else {}),
        "trained": list(method.trained_names),
        "best": {"step": best.step, "score": best.score},
        **method.counts.as_dict(),
        "evaluation": {**counts.as_dict(), "seconds": round(seconds, 3)},
        **(
            {} if backbone is None or backbone.is_corrupt else {"backbone": backbone.fingerprint()}
        ),  # compared with a replay
    }
