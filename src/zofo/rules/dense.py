"""Rules that need the gradient estimate written out entry by entry: sign, momentum in a buffer, and Adam."""

from __future__ import annotations

from typing import Literal

import torch

from zofo.backbone import Elementwise, Update
from zofo.config import NonNegative, Positive, Share
from zofo.estimators import Estimate
from zofo.noise import Block
from zofo.rules.base import RULES, Rule, State


@RULES.register("sign")
class Sign(Rule):
    """theta <- theta - lr sign(gradient), entry by entry; the gradient is drawn again block by block, never stored.

    Args:
        lr: the step size.
    """

    linear = False

    def __init__(self, lr: NonNegative = 1e-6) -> None:
        self.lr = lr

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        rate = self.lr if lr is None else lr

        def step(_name: str, _size: int, _block: Block, gradient: torch.Tensor) -> torch.Tensor:
            return gradient.sign_().mul_(-rate)

        return Update(estimate.gradient, dense_update_fn=step, lr=lr), State(state.steps + 1)


@RULES.register("dense-momentum")
class DenseMomentum(Rule):
    """m <- beta m + gradient; theta <- theta - lr m, with m one parameter-sized float32 buffer; any noise.

    Args:
        lr: the step size.
        beta: how much of m is kept a step, as `momentum` of `torch.optim.SGD`.
    """

    linear = False
    dense_buffers = 1

    def __init__(self, lr: NonNegative = 1e-4, beta: Share = 0.9) -> None:
        self.lr = lr
        self.beta = beta

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        """Momentum; the buffer is written while the update is written."""
        buffers, rate = state.buffers or {"m": {}}, self.lr if lr is None else lr

        def step(name: str, size: int, block: Block, gradient: torch.Tensor) -> torch.Tensor:
            m = _buffer(buffers["m"], name, size, gradient)[slice(*block)]
            return m.mul_(self.beta).add_(gradient).mul(-rate)

        return Update(estimate.gradient, dense_update_fn=step, lr=lr), State(state.steps + 1, buffers=buffers)


@RULES.register("dense-adam")
class DenseAdam(Rule):
    """Adam on the written-out estimate, as `torch.optim.Adam`; keeps two parameter-sized buffers.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g**2;
    theta <- theta - lr m / (1 - b1**t) / (sqrt(v / (1 - b2**t)) + eps).

    Args:
        lr: the step size.
        betas: b1 and b2, how much of each average is kept a step.
        eps: added to the denominator.
        state_dtype: number type of the estimate and of m and v. `bfloat16` is what `torch.optim.Adam` has for a model
            in bfloat16: half the memory, and a v that stands still, since 1 - b2 of it is less than half the distance
            of two numbers.

    Source: Kingma & Ba (2015), on zeroth-order estimates as in Zhang et al. (2024, ZO-Bench).
    """

    linear = False
    dense_buffers = 2

    def __init__(
        self,
        lr: NonNegative = 1e-4,
        betas: tuple[Share, Share] = (0.9, 0.999),
        eps: Positive = 1e-8,
        state_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self._dtype: torch.dtype = getattr(torch, state_dtype)
        self.buffer_bytes = self._dtype.itemsize

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        """Adam; the buffers are written while the update is written."""
        buffers = state.buffers or {"m": {}, "v": {}}
        steps = state.steps + 1
        step = self._step(buffers, steps, self.lr if lr is None else lr)
        return Update(estimate.gradient, dense_update_fn=step, lr=lr), State(steps, buffers=buffers)

    def _step(self, buffers: dict[str, dict[str, torch.Tensor]], steps: int, lr: float) -> Elementwise:
        (b1, b2), eps = self.betas, self.eps
        correct_m, correct_v = 1 - b1**steps, 1 - b2**steps

        def step(name: str, size: int, block: Block, gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.to(self._dtype)
            m = _buffer(buffers["m"], name, size, gradient)[slice(*block)]
            v = _buffer(buffers["v"], name, size, gradient)[slice(*block)]
            m.lerp_(gradient, 1 - b1)
            v.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            return m.float().div(v.float().div(correct_v).sqrt_().add_(eps)).mul_(-lr / correct_m)

        return step


def _buffer(buffers: dict[str, torch.Tensor], name: str, size: int, like: torch.Tensor) -> torch.Tensor:
    """The flat buffer of a tensor, zero when it is first asked for."""
    if name not in buffers:
        buffers[name] = like.new_zeros(size)
    return buffers[name]
