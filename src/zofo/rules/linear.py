"""Rules whose update is itself a displacement: SGD and momentum."""

from __future__ import annotations

from zofo.backbone import Update
from zofo.config import NonNegative, Share
from zofo.estimators import Estimate
from zofo.rules.base import RULES, Rule, State


@RULES.register("sgd")
class SGD(Rule):
    """theta <- theta - lr (gradient + weight_decay theta); no decay on biases and norms.

    Args:
        lr: the step size.
        weight_decay: as in `torch.optim.SGD`, for tensors that decay.
    """

    plain = True

    def __init__(self, lr: NonNegative = 1e-4, weight_decay: NonNegative = 0.0) -> None:
        self.lr = lr
        self.weight_decay = weight_decay

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        lr = self.lr if lr is None else lr
        return Update(-lr * estimate.gradient, lr * self.weight_decay), State(state.steps + 1)


@RULES.register("momentum")
class Momentum(Rule):
    """m <- beta m + gradient; theta <- theta - lr m, with m a displacement: no parameter-sized buffer.

    Every term of m costs one draw of its direction a step, so use it with noises that are cheap to draw (low rank), and
    see `tolerance`.

    Args:
        lr: the step size.
        beta: how much of m is kept a step, 0 <= beta < 1.
        tolerance: a term is dropped once its coefficient has decayed below this share of the largest.
    """

    def __init__(self, lr: NonNegative = 1e-4, beta: Share = 0.9, tolerance: Share = 1e-3) -> None:
        self.lr = lr
        self.beta = beta
        self.tolerance = tolerance

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        momentum = self.beta * state.momentum + estimate.gradient
        largest = max((abs(c) for _, c in momentum.items()), default=0.0)
        momentum = momentum.pruned(self.tolerance * largest)
        return Update(-(self.lr if lr is None else lr) * momentum), State(state.steps + 1, momentum)
