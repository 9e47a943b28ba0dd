"""p and s: the two adapters of a bilevel problem, and their first-order steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zofo.adapters import Adapters
from zofo.errors import NonFiniteError
from zofo.evaluators import Gradient, LossRequest, Objective
from zofo.methods.optimizers import OptimizerName, build_optimizer
from zofo.state_dict import StateDict, load_optimizer_state, load_tensors_state, optimizer_to_state, tensors_to_state

VARIANTS = ("adapter", "lower_adapter")
"""What p and s are called."""


class AdapterPair:
    """p and s, each with an optimiser of its own.

    Args:
        adapters: of the model; they hold p and s under the names in `VARIANTS`.
        objective: F, one loss for each example.
        gradient: of the model.
        optimizer: of both.
        lr_adapter: learning rate of p.
        lr_lower: learning rate of s.
    """

    def __init__(
        self,
        adapters: Adapters,
        objective: Objective,
        gradient: Gradient,
        optimizer: OptimizerName,
        lr_adapter: float,
        lr_lower: float,
    ) -> None:
        self.adapters = adapters
        self._objective = objective
        self._gradient = gradient
        self._p, self._s = (adapters.parameters(name) for name in VARIANTS)
        self._optimizer_p = build_optimizer(optimizer, self._p, lr_adapter)
        self._optimizer_s = build_optimizer(optimizer, self._s, lr_lower)

    def inner_step(self, batch: Any) -> float:
        """One step on s for F(theta, s; batch); gives the loss before it."""
        with self.adapters.using(VARIANTS[1]):
            losses = self._gradient.accumulate(self._s, self._objective, batch)
        self._optimizer_s.step()
        self._optimizer_s.zero_grad()
        return losses.mean().item()

    def differentiate(self, b_f: Any, b_p: Any, penalty: float) -> tuple[float, float]:
        """p.grad <- grad F(theta, p; b_f) + penalty grad F(theta, p; b_p), one graph after the other.

        The gradient is multiplied, in p's own number type, and not the loss: a large penalty does not go through the
        backward pass of a model in half precision.

        Returns:
            F(theta, p; b_f) and F(theta, p; b_p).
        """
        self._optimizer_p.zero_grad()
        with self.adapters.using(VARIANTS[0]):
            lower = self._gradient.accumulate(self._p, self._objective, b_p).mean().item()
            for parameter in self._p:
                if parameter.grad is not None:
                    parameter.grad.mul_(penalty)
            upper = self._gradient.accumulate(self._p, self._objective, b_f).mean().item()
        return upper, lower

    def step_adapter(self) -> None:
        """The step on p along what `differentiate` found."""
        self._optimizer_p.step()

    def asks(self, b_f: Any, b_p: Any) -> list[LossRequest]:
        """F(theta, p; b_f), F(theta, p; b_p) and F(theta, s; b_p), as an evaluator is asked for them."""
        p, s = (self.objective(name) for name in VARIANTS)
        return [(p, b_f), (p, b_p), (s, b_p)]

    def objective(self, adapter: str) -> Objective:
        """The objective of the model that carries one of the adapters."""

        def losses(model: nn.Module, batch: Any) -> torch.Tensor:
            with self.adapters.using(adapter):
                return self._objective(model, batch)

        return losses

    def state_dict(self) -> StateDict:
        """Both adapters and optimisers."""
        whole = StateDict().put("p", tensors_to_state(self._p)).put("s", tensors_to_state(self._s))
        return whole.put("optimizer_p", optimizer_to_state(self._optimizer_p)).put(
            "optimizer_s", optimizer_to_state(self._optimizer_s)
        )

    def load_state_dict(self, state: StateDict) -> None:
        """Take back what `state_dict` gave."""
        load_tensors_state(self._p, state.part("p"))
        load_tensors_state(self._s, state.part("s"))
        load_optimizer_state(self._optimizer_p, state.part("optimizer_p"))
        load_optimizer_state(self._optimizer_s, state.part("optimizer_s"))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """While it is open an outer step is made: one that is abandoned takes its steps on s back, too."""
        s_before = [tensor.detach().clone() for tensor in self._s]
        optimizer_before = copy.deepcopy(self._optimizer_s.state_dict())
        try:
            yield
        except NonFiniteError:
            with torch.no_grad():
                for tensor, old in zip(self._s, s_before, strict=True):
                    tensor.copy_(old)
            self._optimizer_s.load_state_dict(optimizer_before)
            raise
        finally:
            self._optimizer_p.zero_grad()
            self._optimizer_s.zero_grad()
