"""MeZO: zeroth-order SGD in the memory of inference, on all weights or on an adapter.

Malladi, Gao, Nichani, Damian, Lee, Chen, Arora (2023), "Fine-Tuning Language Models with Just Forward Passes",
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import model_validator
from torch import nn

from zofo.adapters import AdapterConfig, Adapters, without_adapters
from zofo.backbone import Backbone, BaseCopy, movable
from zofo.errors import ConfigError
from zofo.estimators import Estimate
from zofo.methods.adapter_start import attach_adapters, remember_adapters, restore_adapters
from zofo.methods.base import METHODS, Method, MethodConfig, Pass, StepLog, TrainingContext
from zofo.methods.zeroth_order_step import ZerothOrder, ZerothOrderConfig
from zofo.objectives import AsBase
from zofo.state_dict import StateDict

_Made = TypeVar("_Made", bound="ForwardOnly")


class ForwardOnlyConfig(MethodConfig, ZerothOrderConfig):
    """Configuration of a method that makes zeroth-order steps only."""

    lr_means = ("rule.lr",)
    moved_adapter = "adapter"
    one_rate: ClassVar[bool] = True
    """Whether `rule.lr` is the rate of every step, so that `zofo tune lr` can find it."""

    adapter: AdapterConfig | None = None
    """The adapter whose tensors move instead of the model's. It sets the defaults of epsilon, the learning rate and the
    evaluator."""

    keep_base: bool = False
    """Keep a copy of the model's own weights that move, as the run began with them, for `training.kl_beta` to ask: it
    takes their memory once more."""

    @model_validator(mode="after")
    def _base_is_of_weights(self) -> ForwardOnlyConfig:
        if self.keep_base and self.moved is not None:
            raise ConfigError(
                "method.keep_base is of the model's own weights, and with method.adapter the model without its adapter "
                "is what the run began with",
                "leave method.keep_base out",
            )
        return self

    @property
    def base_of(self) -> Callable[[nn.Module], AsBase] | None:
        if self.moved is not None:
            return lambda model: without_adapters
        return (lambda model: BaseCopy(movable(model, self.trainable)[0].values())) if self.keep_base else None

    @property
    def copies_base(self) -> bool:
        return self.keep_base

    @property
    def least_queries(self) -> int:
        return self.points * self.batch_size

    def passes(self, rows: int) -> Sequence[Pass]:
        asked = self.forwards(self.batch_size)
        return [replace(asked, copies=asked.copies + self.keep_base)]


class ForwardOnly(Method):
    """A method whose steps move theta by zeroth-order estimates of one loss; theta may be an adapter.

    What such methods do alike: they are built, checked, evaluated, replayed and saved. A step asks for the losses of
    one batch along the step's directions, and moves along their estimate by the rule; a method may have another.
    """

    needs_gradient = False
    shares_examples = True
    backbone: Backbone

    def __new__(cls: type[_Made], *args: Any, **kwargs: Any) -> _Made:
        """Raises ConfigError without a context, as for a model or parameters, which an optimizer of torch takes."""
        given = (*args, *kwargs.values())
        if given and not any(isinstance(one, TrainingContext) for one in given):
            raise ConfigError(
                f"zofo.methods.{cls.__name__} is a method, built from a configuration and a TrainingContext, and was "
                f"given {type(given[0]).__name__}",
                "for an optimizer of torch write zofo.optim.MeZO(model, lr=1e-3), or "
                "zofo.optim.SVRG(model, anchor_closure, lr=1e-3)",
            )
        return object.__new__(cls)

    def __init__(self, config: Any, context: TrainingContext) -> None:
        self._config = config
        self.model = context.model
        self._objective = context.objective
        self._check_objective = context.check_objective or context.objective
        self._log_ties = context.log_ties
        self._batches = context.batches(config.batch_size, "train")
        self._two = context.collate(context.examples[:2])
        self._adapters: Adapters | None = None
        among = None
        if config.moved is not None:
            among = self._attach(config.moved, context)
        unused = context.unused_by(self._two)
        self._zo = ZerothOrder(config, context.model, context.seed, config.batch_size, among, unused, context.processes)
        self.backbone, self.rule, self.evaluator = self._zo.backbone, self._zo.rule, self._zo.evaluator
        self.trained_names = tuple(self.backbone.tensors)
        self.counts = self._zo.evaluator.counts
        self.counts.include(self.adapter_start.counts)
        self.queries_per_step = self._zo.points * config.batch_size

    def _attach(self, adapter: AdapterConfig, context: TrainingContext) -> list[nn.Parameter]:
        """Attach the adapter that the method has beside or in place of the model's weights; its tensors that move."""
        self.variants, size = ("adapter",), self._config.batch_size
        self._adapters, self.adapter_start = attach_adapters(adapter, context, self.variants, size)
        return self._adapters.parameters(self.variants[0])

    def step(self, number: int) -> StepLog:
        before = self.counts.copy()
        factor = self.lr_factor(number)
        estimate, update = self._zo.step(number, [(self._objective, self._batches[number])], self._zo.rate(factor))
        rate = self._zo.sgd_rate(factor)
        return StepLog(estimate.loss, self.counts - before, self._coefficients(estimate), update, rate)

    def _coefficients(self, estimate: Estimate, of: str = "") -> dict[str, float]:
        """The slopes of an estimate as a log has them, and how many directions told nothing where that is likely."""
        what = "projected_gradient" if self._zo.estimator.linear else "shaped_score"
        return estimate.slopes(f"{what}{of}") | ({f"ties{of}": estimate.ties} if self._log_ties else {})

    def check(self) -> None:
        self._zo.evaluator.check([(self._check_objective, self._two)])
        self.trained_names = tuple(self.backbone.tensors)
        if self._check_objective is not self._objective:  # a user's function that fails costs no step
            with torch.no_grad():
                self._objective(self.model, self._two)

    def notes(self) -> list[str]:
        """Which tensors stay, and what a copy of the others takes."""
        size = sum(tensor.nbytes for tensor in self.backbone.tensors.values()) / 2**30
        kept = f"a copy of the weights that move, {size:.3g} GiB, is kept for training.kl_beta to ask"
        return [*self._zo.notes, *([kept] if self._config.copies_base else [])]

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """While it is open, `model` is at theta, with the adapter where there is one."""
        self._zo.theta.flush()
        yield

    def replay_header(self) -> dict[str, Any]:
        """An adapter is named, since its trajectory does not move the base model."""
        header, moved = self._zo.replay_header(self._config.replay_header()), self._config.moved
        return header if moved is None else {**header, "adapter": moved.model_dump(mode="json")}

    def state_dict(self, weights: bool) -> StateDict:
        return remember_adapters(self._adapters, StateDict().put("zo", self._zo.state_dict(weights)))

    def load_state_dict(self, state: StateDict) -> None:
        self._zo.load_state_dict(state.part("zo"))
        restore_adapters(self._adapters, state)

    def save(self, folder: Path) -> None:
        """The adapter as a peft folder `adapter`. Without one: nothing in float32, where the trajectory is the model,
        and the tensors that moved in half precision."""
        if self._adapters is None:
            self._zo.save(folder)
        elif not self.backbone.is_corrupt:  # an interrupt inside a sweep: what the tensors hold is worth nothing
            self._zo.theta.flush()
            self._adapters.save(self.variants[0], folder / self.variants[0])


class MeZOConfig(ForwardOnlyConfig):
    """Configuration of `mezo`."""

    name: Literal["mezo"] = "mezo"
    """Which method."""


@METHODS.register("mezo")
class MeZO(ForwardOnly):
    """pg = mean over the batch of [L(theta + e z) - L(theta - e z)] / 2e; theta <- theta - lr (pg z + wd theta).

    Both losses are on the same batch, with dropout off. In the forward they are one forward of 2 B rows and the weights
    are not written; in place a step is three sweeps over the weights, since going home and updating is one. With an
    adapter, theta is its tensors, and the model is frozen.
    """

    Config = MeZOConfig
    paper = "Malladi et al. 2023, Fine-Tuning Language Models with Just Forward Passes"
