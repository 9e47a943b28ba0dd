"""First-order gradients: the backward pass, counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zofo.backbone import at_least_float32
from zofo.errors import NonFiniteError
from zofo.evaluators.base import Objective
from zofo.evaluators.counts import Counts, counting_forwards


class Gradient:
    """Adds the gradient of the mean loss to the `.grad` of some parameters, by one forward and one backward.

    Args:
        model: run by the objective.
        counts: where the work is counted.
    """

    def __init__(self, model: nn.Module, counts: Counts) -> None:
        self.model = model
        self.counts = counts

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
