"""From the base model and a trajectory to the trained weights."""

from __future__ import annotations

from typing import Any

from zofo.backbone import Backbone, Update
from zofo.displacement import Displacement
from zofo.errors import RunError
from zofo.estimators import Estimate
from zofo.evaluators import Evaluator
from zofo.methods.zeroth_order import EvaluatorConfig, MaskConfig, NoiseConfig, RuleConfig
from zofo.noise import STREAM_VERSION
from zofo.rules import Rule
from zofo.training.trajectory import Moved, Record, Settled, Trajectory


def replay(model: Any, trajectory: Trajectory, steps: int | None = None, exact: bool = True) -> None:
    """Apply a trajectory to its base model.

    Exactly, everything that training wrote is written again, in the same order and by the same operations, so that the
    weights have the same bits on the same device; updates that training wrote together are one product a tensor.
    Otherwise the updates are added up and written at once, where they are displacements, and the weights agree up to
    rounding.

    Args:
        model: the base model.
        trajectory: from the run.
        steps: how many steps; all by default.
        exact: whether for the same bits.

    Raises:
        RunError: a trajectory of another noise stream, without what a replay needs, or with fewer steps.
    """
    header = trajectory.header
    if header.get("stream") != STREAM_VERSION:
        raise RunError("the trajectory was written with another noise stream, which this version cannot draw")
    missing = [part for part in ("noise", "rule", "select", "evaluator") if part not in header]
    if missing:
        raise RunError(f"the header of the trajectory lacks {missing[0]!r}")
    mask = header.get("mask")
    backbone = Backbone(
        model,
        NoiseConfig.model_validate(header["noise"]).build(),
        header["select"],
        mask=None if mask is None else MaskConfig.model_validate(mask).build(),
    )
    rule: Rule = RuleConfig.model_validate(header["rule"]).build()
    records = trajectory.records if steps is None else trajectory.first(steps)
    if not exact and rule.linear and not any(isinstance(record, Update) and record.shrink for record in records):
        updates = (record.displacement for record in records if isinstance(record, Update))
        backbone.fold(Displacement.sum(updates))
        return
    evaluator: Evaluator = EvaluatorConfig.model_validate(header["evaluator"]).build(model, backbone)
    redo(records, rule, evaluator)
    evaluator.settle()


def redo(records: tuple[Record, ...], rule: Rule, evaluator: Evaluator) -> None:
    """Write again what the records tell of; updates may be pending when it returns."""
    state = rule.init()
    for record in records:
        if isinstance(record, Moved):
            evaluator.move(record.point)
        elif isinstance(record, Settled):
            evaluator.settle()
        elif isinstance(record, Update):
            update = record
            if not rule.linear:
                update, state = rule.update(Estimate.of(record.displacement), state, record.lr)
            evaluator.take(update)
