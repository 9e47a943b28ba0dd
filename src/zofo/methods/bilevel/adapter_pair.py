"""p and s: the two adapters of a bilevel problem, and their first-order steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zofo.adapters import Adapters
from zofo.evaluators import Counts, Gradient, LossRequest, Objective
from zofo.methods.base import TrainingContext
from zofo.methods.bilevel.config import BilevelConfig
from zofo.methods.first_order_step import FirstOrderStep
from zofo.state_dict import StateDict

VARIANTS = ("adapter", "lower_adapter")
"""What p and s are called."""


class AdapterPair:
    """p and s, each with its own optimizer."""

    def __init__(self, adapters: Adapters, config: BilevelConfig, context: TrainingContext, counts: Counts) -> None:
        self.adapters = adapters
        self._objective = context.objective
        self._gradient = Gradient(context.model, counts, config.gradient_checkpointing, context.processes)
        self._p, self._s = (adapters.parameters(name) for name in VARIANTS)
        self._step_p = FirstOrderStep(context.model, self._p, config, config.lr_adapter, context.seed, "p")
        self._step_s = FirstOrderStep(context.model, self._s, config, config.lr_lower, context.seed, "s")

    def inner_step(self, number: int, batch: Any, lr_factor: float = 1.0) -> float:
        """Make step `number` on s for F(theta, s; batch); returns the loss before the step."""
        with self.adapters.using(VARIANTS[1]):
            losses = self._gradient.accumulate(self._s, self._objective, batch)
        self._step_s.step(number, lr_factor)
        return losses.mean().item()

    def differentiate(
        self,
        b_f: Any,
        b_p: Any,
        penalty: float,
        upper: Objective | None = None,
        theta: Sequence[nn.Parameter] = (),
    ) -> tuple[float | None, float]:
        """p.grad <- grad F(theta, p; b_f) + penalty grad F(theta, p; b_p), one graph after the other.

        The gradient is multiplied, in p's dtype, not the loss, so that a large penalty does not pass through a
        half-precision backward.

        Args:
            b_f: a batch of D_f; None omits its term.
            b_p: a batch of D_p.
            penalty: the penalty of this step.
            upper: the objective on D_f; by default F.
            theta: tensors that p and s have in common. Their `.grad`, which must be None, becomes that of F(theta, p;
                b_f) + penalty (F(theta, p; b_p) - F(theta, s; b_p)), at the cost of one more backward pass.

        Returns:
            F(theta, p; b_f), or None if omitted, and F(theta, p; b_p).
        """
        self._step_p.zero_grad()
        with self.adapters.using(VARIANTS[0]):
            lower = self._gradient.accumulate([*self._p, *theta], self._objective, b_p).mean().item()
        if theta:
            with self.adapters.using(VARIANTS[1]):
                self._gradient.accumulate(theta, self._objective, b_p, -1.0)
        with self.adapters.using(VARIANTS[0]):
            for parameter in (*self._p, *theta):
                if parameter.grad is not None:
                    parameter.grad.mul_(penalty)
            if b_f is None:
                return None, lower
            found = self._gradient.accumulate([*self._p, *theta], upper or self._objective, b_f)
        return found.mean().item(), lower

    def step_adapter(self, number: int, lr_factor: float = 1.0) -> None:
        """Make step `number` on p with the gradient that `differentiate` computed."""
        self._step_p.step(number, lr_factor)

    def asks(self, b_f: Any, b_p: Any, upper: Objective | None = None) -> list[LossRequest]:
        """The asks of an evaluator for F(theta, p; b_f), F(theta, p; b_p) and F(theta, s; b_p).

        The first one uses the objective `upper`, if it is given.
        """
        p, s = (self.objective(name) for name in VARIANTS)
        return [(self.objective(VARIANTS[0], upper), b_f), (p, b_p), (s, b_p)]

    def objective(self, adapter: str, other: Objective | None = None) -> Objective:
        """The objective, or the given one, of the model with one of the adapters."""

        def losses(model: nn.Module, batch: Any) -> torch.Tensor:
            with self.adapters.using(adapter):
                return (other or self._objective)(model, batch)

        return losses

    def state_dict(self) -> StateDict:
        """The state of both adapters and their optimizers."""
        return self._step_s.state_in(self._step_p.state_in(StateDict(), "p", "optimizer_p"), "s", "optimizer_s")

    def load_state_dict(self, state: StateDict) -> None:
        """Load the state that `state_dict` returned."""
        self._step_p.load_state_of(state, "p", "optimizer_p")
        self._step_s.load_state_of(state, "s", "optimizer_s")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Context of an outer step: if it is abandoned, its steps on s are undone, too."""
        try:
            with self._step_s.undone_by_non_finite():
                yield
        finally:
            self._step_p.zero_grad()
            self._step_s.zero_grad()
