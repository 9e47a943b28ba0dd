"""Restore trained weights from the base model and a trajectory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from zofo.backbone import Backbone, Rounding, Theta, Update, selected
from zofo.config import PartConfig
from zofo.displacement import Displacement
from zofo.errors import RunError, first_line
from zofo.estimators import Estimate
from zofo.evaluators import Evaluator, EvaluatorConfig
from zofo.noise import STREAM_VERSION, MaskConfig, NoiseConfig
from zofo.rules import Rule, RuleConfig
from zofo.trajectory.format import Flushed, Moved, Record, Trajectory


def replay(model: Any, trajectory: Trajectory, steps: int | None = None, summed: bool = False) -> Backbone:
    """Apply a trajectory to its base model.

    Everything that training wrote is written again record by record, in the same order and with the same operations, so
    the weights have the same bits on the same device. With `summed`, updates that are displacements are added up and
    written at once, and the weights agree up to rounding.

    Args:
        model: the base model.
        trajectory: the trajectory of the run.
        steps: number of steps; all by default.
        summed: whether to add updates up; those that are not displacements are always written record by record.

    Returns:
        The tensors that the trajectory moves, with their new values.

    Raises:
        RunError: the trajectory has another noise stream, lacks what a replay needs, or has fewer steps.
    """
    header, parts = trajectory.header, parts_of(trajectory.header)
    backbone = backbone_of(model, header)
    rule: Rule = parts["rule"].build()
    records = trajectory.records if steps is None else trajectory.first(steps)
    if summed and rule.linear and not any(isinstance(record, Update) and record.decay_factor for record in records):
        backbone.apply_(_total(records))
        return backbone
    theta = Theta(backbone, int(header.get("flush_every", parts["evaluator"].options.get("flush_every", 1))))
    replay_records(records, rule, theta)
    theta.flush()
    return backbone


def backbone_of(model: Any, header: Mapping[str, Any]) -> Backbone:
    """The backbone that the header of a trajectory describes, with its noise and mask.

    Raises:
        RunError: as `parts_of`.
        ConfigError: the model does not have its tensors.
    """
    parts = parts_of(header)
    with _naming("trainable"):
        return Backbone(
            model,
            parts["noise"].build(),
            list(selected(model, header["trainable"])),  # exactly, whatever requires a gradient
            mask=parts["mask"].build() if "mask" in parts else None,
            rounding=header.get("rounding", "stochastic"),
        )


def evaluator_of(model: Any, header: Mapping[str, Any]) -> Evaluator:
    """The evaluator of a trajectory's run; raises as `backbone_of`."""
    evaluator: Evaluator = parts_of(header)["evaluator"].build(model, backbone_of(model, header))
    return evaluator


_PARTS: dict[str, type[PartConfig]] = {
    "noise": NoiseConfig,
    "rule": RuleConfig,
    "evaluator": EvaluatorConfig,
    "mask": MaskConfig,
}


def parts_of(header: Mapping[str, Any]) -> dict[str, PartConfig]:
    """The parts in the header of a trajectory, by kind; a mask is optional.

    A trajectory that cannot be replayed is refused, as far as that can be seen without the model.

    Raises:
        RunError: another noise stream, or a part is missing or invalid; the message names it.
        ConfigError: an unknown part, or an unknown option.
    """
    if header.get("stream") != STREAM_VERSION:
        raise RunError("the trajectory was written with another noise stream, which this version cannot draw")
    missing = [part for part in ("noise", "rule", "trainable", "evaluator") if part not in header]
    if missing:
        raise RunError(f"the header of the trajectory lacks {missing[0]!r}")
    names = header["trainable"]
    if names is not None and not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
        raise RunError("'trainable' of the trajectory's header must be null, or a list of names that is not empty")
    if header.get("rounding", "stochastic") not in get_args(Rounding):
        raise RunError(f"'rounding' of the trajectory's header must be one of {', '.join(get_args(Rounding))}")
    parts: dict[str, PartConfig] = {}
    for name, kind in _PARTS.items():
        if name != "mask" or header.get(name) is not None:
            with _naming(name):
                parts[name] = kind.model_validate(header[name])
                if name != "evaluator":  # which a replay does without
                    parts[name].build()
    return parts


def uses_builtin_parts_only(header: Mapping[str, Any]) -> bool:
    """Whether a replay uses only zofo's own parts, whose behaviour is fixed by the version."""
    parts = parts_of(header).values()
    return all(part.registry[part.name].__module__.partition(".")[0] == "zofo" for part in parts)


def sum_of_updates(trajectory: Trajectory, steps: int | None = None) -> Displacement:
    """All updates of a trajectory, or of its first steps, as one displacement; raises RunError if there is none."""
    records = trajectory.records if steps is None else trajectory.first(steps)
    rule: Rule = parts_of(trajectory.header)["rule"].build()
    shrinks = any(isinstance(record, Update) and record.decay_factor for record in records)
    if not rule.linear or shrinks:
        why = "weight decay shrinks the weights" if shrinks else f"{type(rule).__name__} works entry by entry"
        raise RunError(f"the updates of this run do not add up to one displacement: {why}", "leave out --summed")
    return _total(records)


def replay_records(records: tuple[Record, ...], rule: Rule, theta: Theta) -> None:
    """Apply records again; updates may be pending on return."""
    state = rule.init()
    with theta.backbone.deferred_writes():  # nothing reads the weights until everything is written
        for record in records:
            if isinstance(record, Moved):
                theta.move_to(record.point)
            elif isinstance(record, Flushed):
                theta.flush()
            elif isinstance(record, Update):
                update = record
                if not rule.linear:
                    update, state = rule.update(Estimate.from_gradient(record.displacement), state, record.lr)
                theta.apply(update)


def _total(records: tuple[Record, ...]) -> Displacement:
    """The sum of all terms, each multiplied by what later displacement decays leave of it."""
    updates, kept, terms = [record for record in records if isinstance(record, Update)], 1.0, []
    for update in reversed(updates):
        terms.append(kept * update.displacement)
        kept *= 1 - (update.displacement_decay or 0.0)
    return Displacement.sum(reversed(terms))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Context that attributes errors in a part of the header to the trajectory."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise RunError(f"the trajectory's header holds no {name!r} that can be used: {first_line(error)}") from error
