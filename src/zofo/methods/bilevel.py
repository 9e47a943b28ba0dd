"""Bilevel-ZOFO: a first-order adapter below, a zeroth-order backbone above.

Shirkavand, Yu, He, Huang (2025), "Bilevel ZOFO: Bridging Parameter-Efficient and Zeroth-Order Techniques for Efficient
LLM Fine-Tuning and Meta-Training", algorithm 2.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from zofo.adapters import AdapterConfig, Adapters
from zofo.config import NonNegative
from zofo.displacement import Key
from zofo.errors import ConfigError, NonFiniteError
from zofo.estimators import Direction
from zofo.evaluators import Gradient, Objective
from zofo.methods.base import METHODS, Method, MethodConfig, Setting, StepLog
from zofo.methods.optimizers import OptimizerName, build_optimizer
from zofo.methods.zeroth_order import ZerothOrder, ZerothOrderConfig, beside_adapter
from zofo.noise import permutation


class BilevelConfig(MethodConfig, ZerothOrderConfig):
    """Configuration of `bilevel`."""

    name: Literal["bilevel"] = "bilevel"
    """Which method."""
    inner_steps: int = Field(10, ge=1)
    """T: first-order steps on the lower adapter in each outer step."""
    penalty: NonNegative = 100.0
    """lambda: how strongly the adapter is held to the solution of the inner problem."""
    optimizer: OptimizerName = "adam"
    """Optimiser of both adapters."""
    lr_lower: NonNegative = 1e-3
    """Learning rate of the lower adapter s; by default 1e-3, and 1e-2 for a prefix or prompt."""
    lr_adapter: NonNegative = 1e-3
    """Learning rate of the adapter p; by default as of s."""
    adapter: AdapterConfig = Field(default_factory=lambda: AdapterConfig.model_validate({}))
    """The shape of both adapters."""

    @model_validator(mode="before")
    @classmethod
    def _suited_to_the_adapter(cls, given: Any) -> Any:
        return beside_adapter(given, ("lr_lower", "lr_adapter"))


@METHODS.register("bilevel")
class Bilevel(Method):
    """min over theta, p, max over s of  F(theta, p; D_f) + penalty (F(theta, p; D_p) - F(theta, s; D_p)).

    The training examples are split D_f : D_p = 1 : 2 by seed; p and s start equal. One outer step:

    1. `inner_steps` first-order steps on s for F(theta, s; D_p);
    2. one batch B_f of D_f and one B_p of D_p;
    3. a first-order step on p for F(theta, p; B_f) + penalty F(theta, p; B_p), by two backward passes one after the
       other, so that one graph is alive at a time;
    4. a zeroth-order step on theta for F(theta, p; B_f) + penalty (F(theta, p; B_p) - F(theta, s; B_p)), one z for all
       three, or one for each example, which has the same z with p and with s.

    3 and 4 both read the old theta and p. The losses are float32 and each example's two are subtracted before anything
    is averaged or multiplied by the penalty.

    Args:
        config: its parts and sizes.
        setting: model, objective and examples.
        adapters: p and s, called `adapter` and `lower_adapter`; by default as configured, on the setting's model.

    Raises:
        ConfigError: loss-spread steps, or too few examples for a batch of D_f.
    """

    Config = BilevelConfig
    paper = "Shirkavand et al. 2025, Bilevel ZOFO"
    variants = ("adapter", "lower_adapter")

    def __init__(self, config: BilevelConfig, setting: Setting, adapters: Adapters | None = None) -> None:
        self._config = config
        self._objective = setting.objective
        size = config.batch_size
        order = permutation(Key(setting.seed, 0), "bilevel/split", len(setting.examples))
        third = len(order) // 3
        upper, lower = ([setting.examples[i] for i in part] for part in (order[:third], order[third:]))
        self._upper = setting.batches(size, "D_f", upper)
        self._lower = setting.batches(size, "D_p", lower)
        self._inner = setting.batches(size, "D_p, inner", lower)

        self._two = setting.make(setting.examples[:2])
        self._zo = ZerothOrder(config, setting.model, setting.seed, size)  # before peft, so that names stay the model's
        if config.loss_spread:
            raise ConfigError(
                "method.loss_spread divides by the spread of one loss, but bilevel adds three",
                "set method.loss_spread=false",
            )
        self.backbone, self.rule, self.evaluator = self._zo.backbone, self._zo.rule, self._zo.evaluator
        self._adapters: Adapters = adapters or config.adapter.build(setting.model, self.variants, setting.seed)
        self.model = setting.model
        self._p, self._s = (self._adapters.parameters(name) for name in self.variants)
        self._optimizer_p = build_optimizer(config.optimizer, self._p, config.lr_adapter)
        self._optimizer_s = build_optimizer(config.optimizer, self._s, config.lr_lower)
        self.counts = self._zo.evaluator.counts
        self._gradient = Gradient(self.model, self.counts)
        self.queries_per_step = (config.inner_steps + 2 + 3 * self._zo.points) * size

    def step(self, number: int) -> StepLog:
        """See `Method.step`."""
        s_before = [tensor.detach().clone() for tensor in self._s]
        optimizer_before = copy.deepcopy(self._optimizer_s.state_dict())
        try:
            return self._step(number)
        except NonFiniteError:  # an abandoned step takes its inner steps back too
            with torch.no_grad():
                for tensor, old in zip(self._s, s_before, strict=True):
                    tensor.copy_(old)
            self._optimizer_s.load_state_dict(optimizer_before)
            raise
        finally:
            self._optimizer_p.zero_grad()
            self._optimizer_s.zero_grad()

    def _step(self, number: int) -> StepLog:
        penalty, before = self._config.penalty, self.counts.copy()
        self._zo.evaluator.settle()  # first-order steps look at the weights
        p, s = self.variants

        inner = []
        for t in range(self._config.inner_steps):
            with self._adapters.using(s):
                batch = self._inner[number * self._config.inner_steps + t]
                inner.append(self._gradient.accumulate(self._s, self._objective, batch).mean().item())
            self._optimizer_s.step()
            self._optimizer_s.zero_grad()

        b_f, b_p = self._upper[number], self._lower[number]
        with self._adapters.using(p):
            f_upper = self._gradient.accumulate(self._p, self._objective, b_f).mean().item()
            f_lower = self._gradient.accumulate(self._p, self._objective, b_p, penalty).mean().item()

        zo = self._zo
        along_f, along_p = zo.directions(number), zo.directions(number, first=self._config.batch_size)
        asks = [(self._with(p), b_f), (self._with(p), b_p), (self._with(s), b_p)]
        with zo.evaluator.visit(asks, zo.estimator.ask(_side_by_side(along_f, along_p, along_p))) as visit:
            parts = visit.losses.chunk(3, dim=1)
            told = zip((along_f, along_p, along_p), parts, strict=True)
            upper, lower_p, lower_s = (zo.estimator.tell(along, losses) for along, losses in told)
            gradient = upper.gradient + penalty * (lower_p.gradient - lower_s.gradient)
            update, state = zo.rule.update(upper.with_gradient(gradient), zo.state)
            visit.update(update)
        zo.state = state
        self._optimizer_p.step()

        coefficients = {
            "penalty": penalty,
            "loss_upper": f_upper,
            "loss_lower": f_lower,
            "loss_inner": sum(inner) / len(inner),
            "penalty_gap": lower_p.loss - lower_s.loss,
        }
        for part, estimate in (("upper", upper), ("lower_p", lower_p), ("lower_s", lower_s)):
            for key, projected_gradient in estimate.projected_gradients.items():
                coefficients[f"projected_gradient_{part}_{key.index}"] = projected_gradient
        return StepLog(f_upper, self.counts - before, coefficients, update)

    def _with(self, adapter: str) -> Objective:
        """The objective of the model that carries one of the adapters."""

        def losses(model: nn.Module, batch: Any) -> torch.Tensor:
            with self._adapters.using(adapter):
                return self._objective(model, batch)

        return losses

    def check(self) -> None:
        """See `Method.check`."""
        self._zo.evaluator.check([(self._with(variant), self._two) for variant in self.variants])

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """While it is open, `model` carries the given adapter."""
        self._zo.evaluator.settle()
        with self._adapters.using(variant):
            yield

    def replay_header(self) -> dict[str, Any]:
        """See `Method.replay_header`."""
        return self._config.replay_header()

    def save(self, folder: Path) -> None:
        """Both adapters, as the peft folders `adapter` (p) and `lower_adapter` (s)."""
        self._zo.save(folder)
        for name in self.variants:
            self._adapters.save(name, folder / name)


def _side_by_side(*batches: Sequence[Direction]) -> list[Direction]:
    """The directions of batches that are asked together: one that all share, or those of all their examples."""
    return [
        each[0] if isinstance(each[0], Key) else [key for direction in each for key in direction]
        for each in zip(*batches, strict=True)
    ]
