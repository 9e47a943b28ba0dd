"""From the base model and a trajectory to the trained weights."""

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

    Record by record, everything that training wrote is written again, in the same order and by the same operations, so
    that the weights have the same bits on the same device; updates that training wrote together are one product a
    tensor. Folded, the updates are added up and written at once, where they are displacements, and the weights agree
    up to rounding.

    Args:
        model: the base model.
        trajectory: from the run.
        steps: how many steps; all by default.
        summed: whether to add them up; updates that are no displacements are written record by record all the same.

    Returns:
        The tensors that the trajectory moves, as they are now.

    Raises:
        RunError: a trajectory of another noise stream, without what a replay needs, or with fewer steps.
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
    """The tensors that the header of a trajectory names, with its noise and mask.

    Raises:
        RunError: as `parts_of`.
        ConfigError: the model does not have them.
    """
    parts = parts_of(header)
    with _naming("trainable"):
        return Backbone(
            model,
            parts["noise"].build(),
            list(selected(model, header["trainable"])),  # to the letter, whatever requires a gradient
            mask=parts["mask"].build() if "mask" in parts else None,
            rounding=header.get("rounding", "stochastic"),
        )


def evaluator_of(model: Any, header: Mapping[str, Any]) -> Evaluator:
    """What asks a model as the run of a trajectory did; raises as `backbone_of`."""
    evaluator: Evaluator = parts_of(header)["evaluator"].build(model, backbone_of(model, header))
    return evaluator


_PARTS: dict[str, type[PartConfig]] = {
    "noise": NoiseConfig,
    "rule": RuleConfig,
    "evaluator": EvaluatorConfig,
    "mask": MaskConfig,
}


def parts_of(header: Mapping[str, Any]) -> dict[str, PartConfig]:
    """The parts that the header of a trajectory names, by kind; there need not be a mask.

    What cannot be replayed is refused, as far as that can be told without the model.

    Raises:
        RunError: another noise stream, or a part that is missing or wrong; names it.
        ConfigError: an unknown part, or an option that it does not have.
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
    """Whether a replay is made of zofo's own parts alone, of which the version says what they do."""
    parts = parts_of(header).values()
    return all(part.registry[part.name].__module__.partition(".")[0] == "zofo" for part in parts)


def sum_of_updates(trajectory: Trajectory, steps: int | None = None) -> Displacement:
    """All updates of a trajectory, or of its first steps, as one displacement; raises RunError where they are none, and
    says why."""
    records = trajectory.records if steps is None else trajectory.first(steps)
    rule: Rule = parts_of(trajectory.header)["rule"].build()
    shrinks = any(isinstance(record, Update) and record.decay_factor for record in records)
    if not rule.linear or shrinks:
        why = "weight decay shrinks the weights" if shrinks else f"{type(rule).__name__} works entry by entry"
        raise RunError(f"the updates of this run do not add up to one displacement: {why}", "leave out --summed")
    return _total(records)


def replay_records(records: tuple[Record, ...], rule: Rule, theta: Theta) -> None:
    """Write again what the records tell of; updates may be pending when it returns."""
    state = rule.init()
    with theta.backbone.deferred_writes():  # nobody looks at the weights until all is written
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
    """The last term is whole; each before it is left what later updates have not taken off what theta had moved."""
    updates, kept, terms = [record for record in records if isinstance(record, Update)], 1.0, []
    for update in reversed(updates):
        terms.append(kept * update.displacement)
        kept *= 1 - (update.displacement_decay or 0.0)
    return Displacement.sum(reversed(terms))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """What is wrong with a part of the header is said of the trajectory."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise RunError(f"the trajectory's header holds no {name!r} that can be used: {first_line(error)}") from error
