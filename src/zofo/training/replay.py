"""From the base model and a trajectory to the trained weights."""

from __future__ import annotations

from typing import Any

from zofo.backbone import Backbone
from zofo.displacement import Displacement
from zofo.errors import RunError
from zofo.estimators import Estimate
from zofo.methods.zeroth_order import NoiseConfig, RuleConfig
from zofo.noise import STREAM_VERSION
from zofo.rules import Rule
from zofo.training.trajectory import Trajectory


def replay(model: Any, trajectory: Trajectory, steps: int | None = None) -> None:
    """Apply a trajectory to its base model.

    Updates that are displacements add up to one, which is folded in by a single sweep; the weights agree with those of
    training up to float32 rounding. Other rules are run again, update by update.

    Args:
        model: the base model.
        trajectory: from the run.
        steps: how many updates; all by default.
    """
    header = trajectory.header
    if header.get("stream") != STREAM_VERSION:
        raise RunError("the trajectory was written with another noise stream, which this version cannot draw")
    missing = [part for part in ("noise", "rule", "select") if part not in header]
    if missing:
        raise RunError(f"the header of the trajectory lacks {missing[0]!r}")
    backbone = Backbone(model, NoiseConfig.model_validate(header["noise"]).build(), header["select"])
    rule: Rule = RuleConfig.model_validate(header["rule"]).build()
    updates = trajectory.updates[:steps]
    if rule.linear and not any(update.shrink for update in updates):
        backbone.fold(Displacement.sum(update.displacement for update in updates))
        return
    state = rule.init()
    for update in updates:
        if not rule.linear:
            update, state = rule.update(Estimate.of(update.displacement), state, update.lr)
        backbone.fold(update)
