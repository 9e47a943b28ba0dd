"""Two-stage fine-tuning: a first-order adapter first, then a zeroth-order backbone under it.

The baseline of Shirkavand, Yu, He, Huang (2025), "Bilevel ZOFO: Bridging Parameter-Efficient and Zeroth-Order
Techniques for Efficient LLM Fine-Tuning and Meta-Training", appendix B.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from zofo.adapters import Adapters, PeftAdapters
from zofo.config import NonNegative
from zofo.errors import ConfigError
from zofo.evaluators import Gradient
from zofo.methods.adapter_start import attach_adapters, remember_adapters, restore_adapters
from zofo.methods.base import METHODS, Method, MethodConfig, Pass, StepLog, TrainingContext
from zofo.methods.first_order_step import FirstOrderStep, FirstOrderStepConfig
from zofo.methods.zeroth_order_step import ZerothOrder, ZerothOrderConfig
from zofo.state_dict import StateDict


class TwoStageConfig(MethodConfig, ZerothOrderConfig, FirstOrderStepConfig):
    """Configuration of `two-stage`. A plain `lr` is the rate of the adapter; `rule.lr` is the backbone's."""

    lr_means = adapter_rates = ("lr_adapter",)

    name: Literal["two-stage"] = "two-stage"
    """Which method."""
    adapter_steps: int = Field(50, ge=1)
    """First-order steps on the adapter; every later step of the run is a zeroth-order step on the backbone."""
    lr_adapter: NonNegative = PeftAdapters.lr
    """Learning rate of the adapter; by default 1e-3, 1e-2 for a prefix or prompt, 3e-4 for `subspace`."""

    def passes(self, rows: int) -> Sequence[Pass]:
        """Of a run whose stages have as many steps."""
        return [self.backward(self.batch_size, 0.5), self.forwards(self.batch_size, 0.5)]

    def check_steps(self, steps: int) -> None:
        """The second stage has a step."""
        first = self.adapter_steps
        if steps > first:
            return
        raise ConfigError(
            f"method=two-stage takes {first} steps on its adapter, which leaves none of {steps} for the backbone",
            f"set training.steps={2 * first}, or training.max_queries={first * (1 + self.points) * self.batch_size} "
            "for as many, or a smaller method.adapter_steps",
        )


@METHODS.register("two-stage")
class TwoStage(Method):
    """p* = the adapter after `adapter_steps` first-order steps on F(theta_0, p); then zeroth-order steps on
    F(theta, p*), from theta_0, with the adapter as it is.

    Both stages draw from all training examples. To stand beside a bilevel run of N outer steps with T inner ones, set
    `adapter_steps` to N T and make N T + N steps.
    """

    Config = TwoStageConfig
    paper = "Shirkavand et al. 2025, Bilevel ZOFO, appendix B.4"
    variants = ("adapter",)
    shares_examples = True

    def __init__(self, config: TwoStageConfig, context: TrainingContext) -> None:
        self._config = config
        self.model = context.model
        self._objective = context.objective
        self._batches = context.batches(config.batch_size, "train")
        self._two = context.collate(context.examples[:2])
        # before peft, so that names stay the model's
        unused = context.unused_by(self._two)
        self._zo = ZerothOrder(
            config, context.model, context.seed, config.batch_size, unused=unused, processes=context.processes
        )
        self.backbone, self.rule, self.evaluator = self._zo.backbone, self._zo.rule, self._zo.evaluator
        self._adapters: Adapters
        size = config.batch_size
        self._adapters, self.adapter_start = attach_adapters(config.adapter, context, self.variants, size)
        self._p = self._adapters.parameters(self.variants[0])
        self._first = FirstOrderStep(self.model, self._p, config, config.lr_adapter)
        self.counts = self._zo.evaluator.counts
        self.counts.include(self.adapter_start.counts)
        self._gradient = Gradient(self.model, self.counts, config.gradient_checkpointing, context.processes)
        self.queries_per_step = config.batch_size

    def step(self, number: int) -> StepLog:
        before, batch = self.counts.copy(), self._batches[number]
        if number < self._config.adapter_steps:
            losses = self._gradient.accumulate(self._p, self._objective, batch)
            self._first.step(self.lr_factor(number))
            return StepLog(losses.mean().item(), self.counts - before)
        estimate, update = self._zo.step(number, [(self._objective, batch)], self._zo.rate(self.lr_factor(number)))
        coefficients = {f"projected_gradient_{k.index}": pg for k, pg in estimate.projected_gradients.items()}
        rate = self._zo.sgd_rate(self.lr_factor(number))
        return StepLog(estimate.loss, self.counts - before, coefficients, update, rate)

    def steps_within(self, queries: int) -> int:
        first = min(queries // self.queries_per_step, self._config.adapter_steps)
        left = queries - first * self.queries_per_step
        return first + left // (self._zo.points * self._config.batch_size)

    def check_steps(self, steps: int) -> None:
        """The second stage has a step."""
        self._config.check_steps(steps)

    def check(self) -> None:
        self._zo.evaluator.check([(self._objective, self._two)])

    def notes(self) -> list[str]:
        """Which tensors stay."""
        return list(self._zo.notes)

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """While it is open, `model` is at theta, with the adapter."""
        self._zo.theta.flush()
        yield

    def replay_header(self) -> dict[str, Any]:
        return self._zo.replay_header(self._config.replay_header())

    def state_dict(self, weights: bool) -> StateDict:
        whole = StateDict().put("zo", self._zo.state_dict(weights))
        return remember_adapters(self._adapters, self._first.state_in(whole, "adapter", "optimizer"))

    def load_state_dict(self, state: StateDict) -> None:
        self._zo.load_state_dict(state.part("zo"))
        self._first.load_state_of(state, "adapter", "optimizer")
        restore_adapters(self._adapters, state)

    def save(self, folder: Path) -> None:
        """The adapter, as the peft folder `adapter`."""
        self._zo.save(folder)
        self._adapters.save(self.variants[0], folder / self.variants[0])
