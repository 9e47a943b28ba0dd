"""Attach adapters to a run's model, and calibrate them on training rows before the first step."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from zofo.adapters import AdapterConfig, Adapters, Forward, PeftAdapters
from zofo.errors import ConfigError
from zofo.evaluators import Counts, counting_forwards
from zofo.evaluators.parameter_use import uncompiled
from zofo.methods.base import AdapterStart, TrainingContext
from zofo.models.heads import is_classifier
from zofo.state_dict import StateDict
from zofo.tasks.batches import size

BACKBONE = "backbone"
"""What the adapter is called that stands for theta."""

_STATE = "adapters"


def attach_adapters(
    config: AdapterConfig, context: TrainingContext, names: Sequence[str], batch_size: int
) -> tuple[PeftAdapters, AdapterStart]:
    """Build the configured adapters, and calibrate those whose start depends on the model's activations.

    If the context has a start adapter, they start from its tensors, and nothing is calibrated. A calibration runs
    batches of training rows, drawn by the run's seed, without a gradient; each row at most once.

    Raises:
        ConfigError: they do not fit the model, or there are too few rows.
    """
    adapters: PeftAdapters = config.build(context.model, names, context.seed)
    if context.start_adapter is not None:
        adapters.start_from(context.start_adapter)
        told = f"the adapter goes on from that of {str(context.start_adapter.parent)!r}"
        return adapters, AdapterStart((*adapters.notes(), told), begun_from=context.start_adapter)
    wanted, counts, digest = adapters.calibration_batches, Counts(), hashlib.sha256()
    if not wanted:
        return adapters, AdapterStart(tuple(adapters.notes()))
    batches = context.batches(min(batch_size, len(context.examples)), "calibration")
    objective, examples = context.check_objective or context.objective, 0

    def forwards() -> Iterator[Forward]:
        nonlocal examples
        for number in range(min(wanted, batches.per_epoch)):
            batch = batches[number]
            ids, mask = _of(batch, "input_ids"), _of(batch, "attention_mask")
            for tensor in (ids, mask):
                digest.update(repr(None if tensor is None else tensor.tolist()).encode())
            yield functools.partial(objective, context.model, batch), mask
            examples += size(batch)

    with torch.no_grad(), uncompiled(), counting_forwards(context.model, counts):
        adapters.calibrate(forwards())
    counts.queries += examples
    rows = f"sha256:{digest.hexdigest()}"
    record = {"examples": examples, "rows": rows, "seed": context.seed, **counts.as_dict()}
    told = f"calibrated on {examples} training rows, which took {counts.queries} queries: {rows}"
    return adapters, AdapterStart((*adapters.notes(), told), counts, record)


def attach_stacked(
    below: AdapterConfig, above: AdapterConfig, context: TrainingContext, names: Sequence[str], batch_size: int
) -> tuple[PeftAdapters, PeftAdapters, AdapterStart]:
    """Build adapters on top of another one, which moves separately; returns that one, too.

    Raises:
        ConfigError: they do not fit the model or each other, or there are too few rows.
    """
    if is_classifier(context.model):
        raise ConfigError(
            "a model of several adapters at once, as method.backbone_adapter and method.control_variate have it, would "
            "have a classification head for each",
            "set model.head=causal-lm, or these to null",
        )
    theta, first = attach_adapters(below, context, (BACKBONE,), batch_size)
    with theta.carrying_others():
        pair, second = attach_adapters(above, context, names, batch_size)
    return pair, theta, first.and_then(second)


def remember_adapters(adapters: Adapters | None, whole: StateDict) -> StateDict:
    """Add the frozen tensors of adapters that no seed determines to a method's state."""
    kept = StateDict() if adapters is None else adapters.state_dict()
    return whole.put(_STATE, kept) if kept.tensors or kept.values else whole


def restore_adapters(adapters: Adapters | None, whole: StateDict) -> None:
    """Load what `remember_adapters` added."""
    if adapters is not None and _STATE in whole.values:
        adapters.load_state_dict(whole.part(_STATE))


def _of(batch: Any, name: str) -> torch.Tensor | None:
    """A tensor of a batch, which is an object or a mapping; None if it has no tensor of that name."""
    found = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
    return found if isinstance(found, torch.Tensor) else None
