"""The memory and work of a method's step, from the model's shape alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from zofo.adapters import PeftAdapters
from zofo.backbone import check_plain_weights, selected
from zofo.errors import ConfigError
from zofo.estimate.ledger import Trace, Work, trace
from zofo.estimate.machine import Machine
from zofo.estimate.memory import (
    Held,
    Moment,
    Term,
    at_peak,
    bytes_moved,
    of_check,
    of_pass,
    of_update,
    shares_kept,
)
from zofo.evaluators import run_again, sharing_on_meta
from zofo.methods import METHODS, MethodConfig, Pass, TrainingContext
from zofo.models import LoadedModel, is_offloaded, packed_numbers, weight_bytes
from zofo.tasks import batches

_UPDATE = 8  # reads and writes per parameter by an optimizer
_OPERATIONS = 12  # that it takes for each tensor


@dataclass(frozen=True)
class StepEstimate:
    """The estimated cost of a step.

    Args:
        terms: terms of the memory at its peak.
        held_bytes: the part of the memory that is always held.
        seconds: time of a step; None if the machine's constants were not measured.
        evaluation: time to score an example; None likewise.
    """

    terms: tuple[Term, ...]
    moment: str
    held_bytes: int
    work: Work
    seconds: float | None
    evaluation: float | None = None

    @property
    def peak_bytes(self) -> int:
        """The peak memory."""
        return sum(term.size for term in self.terms)


@dataclass(frozen=True)
class Rows:
    """The examples for an estimate of a step.

    Args:
        memory: the examples that need the most memory, from `heaviest`.
        time: examples as long as the longest of a typical batch, to which all are padded; used for the time.
        training: number of training examples.
        evaluated: as `memory`, with their last answers only; empty for the same.
        scored: examples of mean length, used for the time of an evaluation, whose batches have similar lengths; empty
            for `evaluated`.
    """

    memory: Sequence[Any]
    time: Sequence[Any]
    training: int
    evaluated: Sequence[Any] = ()
    scored: Sequence[Any] = ()


def heaviest(examples: Sequence[Any], size: int) -> list[Any]:
    """This many of the longest examples, the second of them the one with the most logits, if that is not the first.

    A batch is padded to its longest example, and computes logits at as many positions as the example that needs the
    most.
    """
    longest = sorted(examples, key=lambda one: (-one.length, -one.logits_to_keep))
    most = max(longest, key=lambda one: one.logits_to_keep)
    first = longest[:1] if most.logits_to_keep == longest[0].logits_to_keep else [longest[0], most]
    used = {id(one) for one in first}
    return [*first, *(one for one in longest if id(one) not in used)][: max(size, len(first))]


def fillings(heavy: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Batches of this many examples that may need the most memory.

    Args:
        heavy: the result of `heaviest`. A batch of one has the longest, or the one with the most logits.
    """
    both = len(heavy) > 1 and heavy[1].logits_to_keep > heavy[0].logits_to_keep
    return [heavy[:1], heavy[1:2]] if both and size == 1 else [heavy]


def estimate_step(
    config: MethodConfig | None,
    loaded: LoadedModel,
    context: TrainingContext,
    rows: Rows,
    machine: Machine,
    batch_size: int,
    evaluated: int = 0,
    device: str = "cpu",
    kl: bool = False,
) -> StepEstimate:
    """Trace the passes of a step on the meta device, and add up their memory and work.

    Args:
        config: configuration of the method; None for one forward of a batch.
        loaded: the model on the meta device; adapters are attached to it in place.
        context: its objective and batches.
        rows: the examples of the batches.
        batch_size: batch size of that one forward.
        evaluated: examples per batch in evaluation; 0 omits evaluation.
        kl: whether to include two more forwards of all points, for the KL of answers from the base model.

    Raises:
        ConfigError: an adapter does not fit the model, or the method's passes are not known. ModelError: the weights
            are offloaded, and the method would move them.
    """
    model: Any = loaded.model
    packed, own = packed_numbers(model), weight_bytes(model)
    passes = [Pass(batch_size)] if config is None else known_passes(config, rows.training, kl)
    weights, before = _weights(model, passes), _movable(config, model, passes)
    gradient = next((one for one in passes if one.gradient is not None), None)
    adapters = _attached(config, model, gradient)
    trained = _trained(model, gradient, adapters)
    theta = _theta(passes, before, adapters)
    traced = functools.partial(_traced, model, context, trained, {id(one) for one in theta}, packed)
    shares = shares_kept(machine, device, bool(packed))
    moments, work = _of_passes(passes, traced, rows, shares, theta)
    if gradient is not None:
        moments.append(of_update(trained, gradient.moments))
        work = work + _of_optimiser(trained)
    if any(one.carries for one in passes) and theta[0].dtype == torch.float32:
        moments.append(of_check(model, machine.check_kept if device == "cpu" else 0.0))
    each: Work | None = None
    if evaluated:
        longest = rows.evaluated or [one.last_only() for one in rows.memory]
        found = [traced(Pass(evaluated), some) for some in fillings(longest, evaluated)]
        moments += [of_pass("evaluation", one, False, shares) for one in found]
        usual = traced(Pass(evaluated), rows.scored) if rows.scored else found[0]
        each = usual.work * (1 / evaluated)
    copies = max(one.copies for one in passes) * sum(one.numel() * 4 for one in theta)
    sets = 1 if adapters is None else len(adapters.names)
    kept = 0 if gradient is None else sets * gradient.moments * sum(map(bytes_moved, trained))
    process = 0 if device != "cpu" else machine.process_bytes + (machine.adapter_bytes if adapters or packed else 0)
    held = Held(process, weights, weight_bytes(model) - own, kept, copies, is_offloaded(model))
    largest, terms = at_peak(held, moments)
    always = sum(term.size for term in terms) - largest.size
    if device != "cpu":
        return StepEstimate(terms, largest.name, always, work, None)
    scored = None if each is None else machine.seconds(each, _dtype(loaded))
    return StepEstimate(terms, largest.name, always, work, machine.seconds(work, _dtype(loaded)), scored)


def known_passes(config: MethodConfig, rows: int, kl: bool = False) -> Sequence[Pass]:
    """The passes of a step for a number of training rows, including those of a `kl` to the base model.

    Raises ConfigError for a method that does not define them.
    """
    if passes := config.passes(rows):
        asked = [replace(one, times=2 * one.times, sweeps=0.0) for one in passes if one.gradient is None]
        return [*passes, *(asked if kl else [])]
    raise ConfigError(f"an estimate knows no steps of method={config.name}", "estimate method=mezo or first-order")


def _weights(model: nn.Module, passes: Sequence[Pass]) -> int:
    """The size of the weights in memory: all of them, or the largest one if they are offloaded.

    Raises:
        ModelError: offloaded weights would be moved.
    """
    if not is_offloaded(model):
        return weight_bytes(model)
    if any(one.gradient == "all" or (one.gradient is None and one.theta == "weights") for one in passes):
        check_plain_weights(model)
    return max(map(_bytes, model.parameters()))


def _movable(config: MethodConfig | None, model: nn.Module, passes: Sequence[Pass]) -> Sequence[nn.Parameter]:
    """The model's own weights that zeroth-order steps may move, by `method.trainable`."""
    patterns = getattr(config, "trainable", None) if any(one.theta == "weights" for one in passes) else None
    return list(selected(model, patterns, "method.trainable").values())


def _theta(
    passes: Sequence[Pass], weights: Sequence[nn.Parameter], adapters: PeftAdapters | None
) -> Sequence[nn.Parameter]:
    """The tensors that zeroth-order steps move."""
    own = adapters is None or any(one.theta == "weights" for one in passes)
    return weights if own or adapters is None else adapters.parameters(adapters.names[0])


def _of_passes(
    passes: Sequence[Pass],
    traced: Callable[[Pass, Sequence[Any]], Trace],
    rows: Rows,
    shares: tuple[float, float],
    theta: Sequence[nn.Parameter],
) -> tuple[list[Moment], Work]:
    """The moments of each pass, for the rows that need the most memory; and the total work, for rows of typical
    length."""
    moments, work = list[Moment](), Work()
    for one in passes:
        found = [traced(one, some) for some in fillings(rows.memory, one.examples)]
        name = "forward and backward" if one.gradient else "forward"
        moments += [of_pass(name, each, one.gradient is not None, shares) for each in found]
        usual = found[0] if rows.time is rows.memory else traced(one, rows.time)
        work = work + usual.work * one.times + _of_sweeps(one, theta) * (one.sweeps * one.times)
    return moments, work


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _dtype(loaded: LoadedModel) -> str:
    return str(loaded.model.get_input_embeddings().weight.dtype).removeprefix("torch.")


def _of_optimiser(trained: Sequence[nn.Parameter]) -> Work:
    """The work of reading and writing everything with a gradient."""
    return Work(moved_bytes=_UPDATE * sum(map(_bytes, trained)), operations=_OPERATIONS * len(trained))


def _of_sweeps(one: Pass, theta: Sequence[torch.Tensor]) -> Work:
    """The work of a sweep over theta, along a direction that is drawn unless the forward had its factors."""
    drawn = 0 if one.carries else sum(tensor.numel() for tensor in theta)
    return Work(moved_bytes=2 * sum(map(_bytes, theta)), operations=2 * len(theta), drawn=drawn)


def _attached(config: MethodConfig | None, model: Any, gradient: Pass | None) -> PeftAdapters | None:
    """Attach the adapters of a method on the meta device; the last one counts as the one that moves."""
    configs = [] if config is None else config.adapter_configs
    if not configs or config is None or (gradient is not None and gradient.gradient != "adapter"):
        return None
    variants = METHODS[config.name].variants
    names = variants if gradient is not None and len(variants) > 1 else ("adapter",)
    first: Any = getattr(config, "adapter", None) or configs[0]
    below = [one for one in configs if one is not first]
    attached: list[PeftAdapters] = []
    with nullcontext() if not below else below[0].build(model, ("backbone",), 0).carrying_others():
        attached.append(first.build(model, names, 0))
    model.to("meta")
    return attached[-1]


def _trained(model: nn.Module, gradient: Pass | None, adapters: PeftAdapters | None) -> list[nn.Parameter]:
    """The parameters with a gradient."""
    if gradient is None:
        return []
    if adapters is not None:
        return adapters.parameters(adapters.names[0])
    found = list(model.parameters())
    if gradient.gradient == "head":
        output = getattr(model, "get_output_embeddings", lambda: None)()
        body = f"{getattr(model, 'base_model_prefix', '')}."
        own = [p for name, p in model.named_parameters() if not name.startswith(body)]
        found = list(output.parameters()) if output is not None else own
    for parameter in found:
        parameter.requires_grad_(True)
    return found


def _traced(
    model: Any,
    context: TrainingContext,
    trained: Sequence[nn.Parameter],
    moved: Collection[int],
    packed: int,
    one: Pass,
    rows: Sequence[Any],
) -> Trace:
    """The trace of one pass for some examples, which are repeated if there are too few."""
    chosen = [rows[number % len(rows)] for number in range(one.examples)]
    batch = batches.repeated(context.collate(chosen), one.points)
    objective = context.check_objective or context.objective
    vocabulary = model.config.get_text_config().vocab_size
    again = one.again and one.gradient is not None
    differentiated = trained if one.gradient is not None else ()
    carried = moved if one.carries else ()
    with run_again(model) if again else sharing_on_meta(model, moved, one.points):
        return trace(lambda: objective(model, batch), differentiated, vocabulary, carried, packed, float(again))
