"""First-order gradients: the backward pass, counted."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zofo.backbone import at_least_float32
from zofo.errors import ConfigError, NonFiniteError
from zofo.evaluators.base import Objective
from zofo.evaluators.counts import Counts, counting_forwards


class Gradient:
    """Adds the gradient of the mean loss to the `.grad` of some parameters, by one forward and one backward.

    Args:
        model: run by the objective.
        counts: where the work is counted.
        checkpointing: run each layer a second time in the backward pass, in place of keeping what is between. Such a
            run is not counted: it belongs to the backward pass.

    Raises:
        ConfigError: `checkpointing` of a model whose layers transformers does not mark.
    """

    def __init__(self, model: nn.Module, counts: Counts, checkpointing: bool = False) -> None:
        self.model = model
        self.counts = counts
        self._layers = _layers(model) if checkpointing else []

    def accumulate(
        self, parameters: Sequence[nn.Parameter], objective: Objective, batch: Any, weight: float = 1.0
    ) -> torch.Tensor:
        """`parameter.grad += weight * gradient of mean(losses)` for each parameter; no other gradient is computed.

        Args:
            parameters: what is differentiated; each must require a gradient.
            objective: turns (model, batch) into one loss for each example.
            batch: whatever the objective understands.
            weight: factor of this loss, for sums of several losses with one graph alive at a time.

        Returns:
            The losses, float32 or float64, shape [examples], detached.

        Raises:
            NonFiniteError: a loss or a gradient is not finite; no `.grad` was touched.
        """
        with _checkpointed(self._layers) if self._layers else nullcontext():
            with torch.enable_grad(), counting_forwards(self.model, self.counts):
                losses = at_least_float32(objective(self.model, batch))
            self.counts.queries += losses.numel()
            finite = losses.detach()
            if not torch.isfinite(finite).all():
                where = int((~torch.isfinite(finite)).nonzero()[0, 0])
                raise NonFiniteError(f"loss {finite[where].item()} of example {where} of the batch")
            gradients = torch.autograd.grad(losses.mean() * weight, list(parameters), allow_unused=True)
        self.counts.backwards += 1
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None):
            raise NonFiniteError("gradient of a finite loss")
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return finite


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers that can be run again by themselves."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"method.gradient_checkpointing needs layers that transformers marks, and {type(model).__name__} has none",
            "set method.gradient_checkpointing=false, or a smaller method.batch_size",
        )
    return layers


@contextmanager
def _checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While it is open, the layers keep their inputs only, in whichever mode they are."""
    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        vars(layer)["forward"] = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = forward
