"""Two-stage fine-tuning: a first-order adapter first, then a zeroth-order backbone under it.

The baseline of Shirkavand, Yu, He, Huang (2025), "Bilevel ZOFO: Bridging Parameter-Efficient and Zeroth-Order
Techniques for Efficient LLM Fine-Tuning and Meta-Training", appendix B.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from zofo.adapters import PeftAdapters
from zofo.config import NonNegative
from zofo.errors import ConfigError
from zofo.evaluators import Gradient
from zofo.methods.base import METHODS, MethodConfig, Pass, StepLog, TrainingContext
from zofo.methods.first_order_step import FirstOrderStep, FirstOrderStepConfig
from zofo.methods.mezo import ForwardOnly
from zofo.methods.zeroth_order_step import ZerothOrderConfig
from zofo.state_dict import StateDict


class TwoStageConfig(MethodConfig, ZerothOrderConfig, FirstOrderStepConfig):
    """Configuration of `two-stage`. A plain `lr` is the rate of the adapter; `rule.lr` is the backbone's."""

    lr_means = adapter_rates = ("lr_adapter",)

    name: Literal["two-stage"] = "two-stage"
    """Which method."""
    adapter_steps: int = Field(50, ge=1)
    """Number of first-order steps on the adapter; all later steps are zeroth-order steps on the backbone."""
    lr_adapter: NonNegative = PeftAdapters.lr
    """Learning rate of the adapter; by default 1e-3, 1e-2 for a prefix or prompt, 3e-4 for `subspace`."""

    def passes(self, rows: int) -> Sequence[Pass]:
        """The passes of a run with stages of equal length."""
        return [self.backward(self.batch_size, 0.5), self.forwards(self.batch_size, 0.5)]

    def check_steps(self, steps: int) -> None:
        """Check that there are steps left for the second stage."""
        first = self.adapter_steps
        if steps > first:
            return
        raise ConfigError(
            f"method=two-stage takes {first} steps on its adapter, which leaves none of {steps} for the backbone",
            f"set training.steps={2 * first}, or training.max_queries={first * (1 + self.points) * self.batch_size} "
            "for as many, or a smaller method.adapter_steps",
        )


@METHODS.register("two-stage")
class TwoStage(ForwardOnly):
    """p* = the adapter after `adapter_steps` first-order steps on F(theta_0, p); then zeroth-order steps on
    F(theta, p*), from theta_0, with the adapter as it is.

    Both stages use all training examples. To compare with a bilevel run of N outer steps with T inner ones, set
    `adapter_steps` to N T and make N T + N steps.
    """

    Config = TwoStageConfig
    paper = "Shirkavand et al. 2025, Bilevel ZOFO, appendix B.4"
    needs_gradient = True
    needs_all_steps = True
    variants = ("adapter",)

    def __init__(self, config: TwoStageConfig, context: TrainingContext) -> None:
        self._config: TwoStageConfig
        super().__init__(config, context)  # before peft, so that names stay the model's
        self._p = self._attach(config.adapter, context)
        self._first = FirstOrderStep(self.model, self._p, config, config.lr_adapter, context.seed)
        self.counts.include(self.adapter_start.counts)
        self._gradient = Gradient(self.model, self.counts, config.gradient_checkpointing, context.processes)
        self.queries_per_step = config.batch_size

    def step(self, number: int) -> StepLog:
        if number >= self._config.adapter_steps:
            return super().step(number)
        before = self.counts.copy()
        losses = self._gradient.accumulate(self._p, self._objective, self._batches[number])
        self._first.step(number, self.lr_factor(number))
        return StepLog(losses.mean().item(), self.counts - before)

    def steps_within(self, queries: int) -> int:
        first = min(queries // self.queries_per_step, self._config.adapter_steps)
        left = queries - first * self.queries_per_step
        return first + left // (self._zo.points * self._config.batch_size)

    def check(self) -> None:
        super().check()
        self.trained_names = ()  # theta's are not all: the adapter's move before them

    def check_steps(self, steps: int) -> None:
        """Check that there are steps left for the second stage."""
        self._config.check_steps(steps)

    def state_dict(self, weights: bool) -> StateDict:
        return self._first.state_in(super().state_dict(weights), "adapter", "optimizer")

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        self._first.load_state_of(state, "adapter", "optimizer")

    def save(self, folder: Path) -> None:
        """Save the adapter as the peft folder `adapter`."""
        self._zo.save(folder)
        super().save(folder)
