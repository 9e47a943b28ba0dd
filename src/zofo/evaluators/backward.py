"""First-order gradients: the backward pass, counted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zofo.backbone import at_least_float32
from zofo.errors import ConfigError, NonFiniteError
from zofo.evaluators.base import Objective
from zofo.evaluators.counts import Counts, counting_forwards
from zofo.evaluators.per_point import replaced_forwards
from zofo.processes import ALONE, Attempt, Processes
from zofo.tasks import batches


class Gradient:
    """Adds the gradient of the mean loss to the `.grad` of given parameters, with one forward and one backward.

    Args:
        model: the model that the objective runs.
        counts: counts the work.
        checkpointing: recompute each layer in the backward pass instead of storing its activations. The recomputation
            is not counted separately: it is part of the backward pass.
        processes: the processes that share the examples of each batch; their gradients are summed, so that each has the
            full gradient.

    Raises:
        ConfigError: `checkpointing` for a model that transformers does not support it for.
    """

    def __init__(
        self, model: nn.Module, counts: Counts, checkpointing: bool = False, processes: Processes = ALONE
    ) -> None:
        self.model, self._processes = model, processes
        self.counts = counts
        self._layers = _layers(model) if checkpointing else []

    def accumulate(
        self, parameters: Sequence[nn.Parameter], objective: Objective, batch: Any, weight: float = 1.0
    ) -> torch.Tensor:
        """`parameter.grad += weight * gradient of mean(losses)` for each given parameter, and for no other.

        Args:
            parameters: the parameters to differentiate by; each must require a gradient.
            objective: turns (model, batch) into one loss per example.
            batch: passed to the objective.
            weight: factor of this loss, to sum several losses with one graph alive at a time.

        Returns:
            The losses, float32 or float64, shape [examples], detached.

        Raises:
            NonFiniteError: a loss or a gradient is not finite. No `.grad` was changed.
        """
        losses, gradients = (self._own if self._processes.alone else self._of_all)(parameters, objective, batch, weight)
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None):
            raise NonFiniteError("gradient of a finite loss")
        taken: set[int] = set()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.add_(gradient)
            elif gradient is not None:
                parameter.grad = gradient.clone() if _is_shared(gradient, taken) else gradient
                taken.add(parameter.grad.data_ptr())
        return losses

    def _own(self, parameters: Sequence[nn.Parameter], objective: Objective, batch: Any, weight: float) -> _Found:
        """The losses of this process, and the gradient of their mean."""
        parts = batches.micro_batches(batch)
        size = batches.size(batch) if len(parts) > 1 else None

        def weighted_mean(losses: torch.Tensor, first: int) -> torch.Tensor:
            _check_finite(losses.detach(), first)  # before the work of a backward pass
            return losses.mean() * (weight if size is None else weight * losses.numel() / size)

        return self._differentiated(parameters, objective, parts, weighted_mean)

    def _differentiated(
        self,
        parameters: Sequence[nn.Parameter],
        objective: Objective,
        parts: Sequence[Any],
        scalar: Callable[[torch.Tensor, int], torch.Tensor],
    ) -> _Found:
        """The losses of a batch, and the gradient of the sum of `scalar` over its parts.

        Args:
            parameters: what is differentiated.
            objective: gives the losses of the examples.
            parts: the parts of the batch; one graph is alive at a time.
            scalar: turns the losses of a part, and the number of examples before it, into the value to differentiate.
        """
        each: list[torch.Tensor] = []
        total: list[torch.Tensor | None] = [None] * len(parameters)
        for part in parts:
            with _checkpointed(self._layers) if self._layers else nullcontext():
                with torch.enable_grad(), counting_forwards(self.model, self.counts):
                    losses = at_least_float32(objective(self.model, part))
                self.counts.queries += losses.numel()
                found = scalar(losses, sum(one.numel() for one in each))
                gradients: list[torch.Tensor | None] = list(
                    torch.autograd.grad(found, list(parameters), allow_unused=True)
                )
            self.counts.backwards += 1
            each.append(losses.detach())
            _take(total, gradients)
        return (torch.cat(each) if len(each) > 1 else each[0]), total

    def _of_all(self, parameters: Sequence[nn.Parameter], objective: Objective, batch: Any, weight: float) -> _Found:
        """The losses of a batch that several processes share, and the sum of their gradients.

        Each process differentiates weight * sum(its losses) / (total number), so the sum is the gradient of the mean. A
        tensor without a gradient in every process stays without one.
        """
        processes, size = self._processes, batches.size(batch)
        shares = [stop - start for start, stop in (processes.share(size, rank) for rank in range(processes.size))]
        dtype = torch.promote_types(torch.float32, parameters[0].dtype)
        own: torch.Tensor | None = None
        found: Sequence[torch.Tensor | None] = [None] * len(parameters)
        with Attempt() as made:
            if shares[processes.rank]:
                part = batches.part(batch, *processes.share(size))
                own, found = self._differentiated(
                    parameters,
                    objective,
                    batches.micro_batches(part),
                    lambda losses, _: losses.sum() * (weight / size),
                )
        rows = processes.gather(own, max(shares), dtype, made.failure)
        losses = torch.cat([row[:number] for row, number in zip(rows, shares, strict=True)])
        self.counts.queries += size - shares[processes.rank]
        _check_finite(losses)
        known = torch.tensor([gradient is not None for gradient in found], dtype=dtype, device=parameters[0].device)
        flat = [
            (torch.zeros_like(parameter) if gradient is None else gradient).reshape(-1).to(dtype)
            for parameter, gradient in zip(parameters, found, strict=True)
        ]
        total = processes.add(torch.cat([known, *flat]))
        parts = torch.split(total[len(known) :], [parameter.numel() for parameter in parameters])
        return losses, [
            part.view_as(parameter).to(parameter.dtype) if count else None
            for parameter, part, count in zip(parameters, parts, total[: len(known)].tolist(), strict=True)
        ]


_Found = tuple[torch.Tensor, Sequence[torch.Tensor | None]]


def _take(total: list[torch.Tensor | None], gradients: list[torch.Tensor | None]) -> None:
    """Sum gradients, freeing each one before the next, so that there are never three of all parameters.

    Not in place, since parameters may share one tensor as their gradient.
    """
    for i in range(len(total)):
        now, gradients[i] = gradients[i], None
        before, total[i] = total[i], None
        total[i] = now if before is None else before if now is None else before + now


def _is_shared(gradient: torch.Tensor, taken: Container[int]) -> bool:
    """Whether a gradient overlaps itself or another one in memory, so that nothing may be added in place."""
    expanded = any(step == 0 and size > 1 for size, step in zip(gradient.shape, gradient.stride(), strict=True))
    return expanded or (gradient.numel() > 0 and gradient.data_ptr() in taken)


def _check_finite(losses: torch.Tensor, first: int = 0) -> None:
    if not torch.isfinite(losses).all():
        where = int((~torch.isfinite(losses)).nonzero()[0, 0])
        raise NonFiniteError(f"loss {losses[where].item()} of example {first + where} of the batch")


def run_again(model: nn.Module) -> AbstractContextManager[None]:
    """Context in which a backward pass recomputes each layer of a model instead of storing its activations.

    Raises:
        ConfigError: the model has no layers that transformers can checkpoint.
    """
    return _checkpointed(_layers(model))


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers that can be recomputed independently."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"method.gradient_checkpointing needs layers that transformers marks, and {type(model).__name__} has none",
            "set method.gradient_checkpointing=false, or a smaller method.batch_size",
        )
    return layers


def _checkpointed(layers: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Context in which layers store only their inputs, in training and evaluation mode alike."""
    own = ((layer, functools.partial(checkpoint, layer.forward, use_reentrant=False)) for layer in layers)
    return replaced_forwards(own)
