"""From the base model and a trajectory to the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from zofo.backbone import Backbone, Theta, Update, selected
from zofo.config import PartConfig
from zofo.displacement import Displacement
from zofo.errors import RunError, first_line
from zofo.estimators import Estimate
from zofo.methods.zeroth_order_step import EvaluatorConfig, MaskConfig, NoiseConfig, RuleConfig
from zofo.noise import STREAM_VERSION
from zofo.rules import Rule
from zofo.trajectory.format import Moved, Record, Settled, Trajectory


def replay(model: Any, trajectory: Trajectory, steps: int | None = None, folded: bool = False) -> Backbone:
    """Apply a trajectory to its base model.

    Record by record, everything that training wrote is written again, in the same order and by the same operations, so
    that the weights have the same bits on the same device; updates that training wrote together are one product a
    tensor. Folded, the updates are added up and written at once, where they are displacements, and the weights agree
    up to rounding.

    Args:
        model: the base model.
        trajectory: from the run.
        steps: how many steps; all by default.
        folded: whether to add them up; updates that are no displacements are written record by record all the same.

    Returns:
        The tensors that the trajectory moves, as they are now.

    Raises:
        RunError: a trajectory of another noise stream, without what a replay needs, or with fewer steps.
    """
    header = trajectory.header
    check_replayable(header)
    mask = header.get("mask")
    with _naming("select"):
        backbone = Backbone(
            model,
            _built(NoiseConfig, header, "noise"),
            list(selected(model, header["select"])),  # to the letter, whatever requires a gradient
            mask=None if mask is None else _built(MaskConfig, header, "mask"),
        )
    rule: Rule = _built(RuleConfig, header, "rule")
    records = trajectory.records if steps is None else trajectory.first(steps)
    if folded and rule.linear and not any(isinstance(record, Update) and record.decay_factor for record in records):
        backbone.apply_(_total(records))
        return backbone
    theta = Theta(backbone, _flush_every(header))
    replay_records(records, rule, theta)
    theta.flush()
    return backbone


def check_replayable(header: Mapping[str, Any]) -> None:
    """Refuse the header of a trajectory that cannot be replayed, as far as that can be told without the model.

    Raises:
        RunError: another noise stream, or a part that is missing or wrong; names it.
        ConfigError: an unknown part, or an option that it does not have.
    """
    if header.get("stream") != STREAM_VERSION:
        raise RunError("the trajectory was written with another noise stream, which this version cannot draw")
    missing = [part for part in ("noise", "rule", "select", "evaluator") if part not in header]
    if missing:
        raise RunError(f"the header of the trajectory lacks {missing[0]!r}")
    select = header["select"]
    if select is not None and not (isinstance(select, list) and select and all(isinstance(n, str) for n in select)):
        raise RunError("the trajectory's header holds no 'select' that can be used: it is no list of names")
    _built(NoiseConfig, header, "noise")
    _built(RuleConfig, header, "rule")
    if header.get("mask") is not None:
        _built(MaskConfig, header, "mask")
    with _naming("evaluator"):
        EvaluatorConfig.model_validate(header["evaluator"])


def uses_builtin_parts_only(header: Mapping[str, Any]) -> bool:
    """Whether a replay is made of zofo's own parts alone, of which the version says what they do.

    Raises:
        RunError: it cannot be replayed, as `check_replayable`.
    """
    check_replayable(header)
    kinds: list[tuple[type[PartConfig], str]] = [(NoiseConfig, "noise"), (RuleConfig, "rule"), (MaskConfig, "mask")]
    parts = [kind.model_validate(header[name]) for kind, name in kinds if header.get(name) is not None]
    parts.append(EvaluatorConfig.model_validate(header["evaluator"]))
    return all(part.registry[part.name].__module__.partition(".")[0] == "zofo" for part in parts)


def sum_of_updates(trajectory: Trajectory, steps: int | None = None) -> Displacement:
    """All updates of a trajectory as one displacement.

    Args:
        trajectory: from the run.
        steps: how many steps; all by default.

    Raises:
        RunError: its updates are no displacements, which a sum could stand for; says why.
    """
    records = trajectory.records if steps is None else trajectory.first(steps)
    rule: Rule = _built(RuleConfig, trajectory.header, "rule")
    shrinks = any(isinstance(record, Update) and record.decay_factor for record in records)
    if not rule.linear or shrinks:
        why = "weight decay shrinks the weights" if shrinks else f"{type(rule).__name__} works entry by entry"
        raise RunError(f"the updates of this run do not add up to one displacement: {why}", "leave out --folded")
    return _total(records)


def replay_records(records: tuple[Record, ...], rule: Rule, theta: Theta) -> None:
    """Write again what the records tell of; updates may be pending when it returns."""
    state = rule.init()
    with theta.backbone.deferred_writes():  # nobody looks at the weights until all is written
        for record in records:
            if isinstance(record, Moved):
                theta.move_to(record.point)
            elif isinstance(record, Settled):
                theta.flush()
            elif isinstance(record, Update):
                update = record
                if not rule.linear:
                    update, state = rule.update(Estimate.of(record.displacement), state, record.lr)
                theta.apply(update)


def _flush_every(header: Mapping[str, Any]) -> int:
    """How many updates training wrote together, by the header of its trajectory."""
    usual = EvaluatorConfig.model_validate(header["evaluator"]).options.get("fold_every", 1)
    return int(header.get("flush_every", usual))


def _total(records: tuple[Record, ...]) -> Displacement:
    return Displacement.sum(record.displacement for record in records if isinstance(record, Update))


def _built(kind: type[PartConfig], header: Mapping[str, Any], name: str, *parts: Any) -> Any:
    with _naming(name):
        return kind.model_validate(header[name]).build(*parts)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """What is wrong with a part of the header is said of the trajectory."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise RunError(f"the trajectory's header holds no {name!r} that can be used: {first_line(error)}") from error
