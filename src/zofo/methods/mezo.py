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
    """Configuration of a method that makes only zeroth-order steps."""

    lr_means = ("rule.lr",)
    moved_adapter = "adapter"
    one_rate: ClassVar[bool] = True
    """Whether `rule.lr` is the rate of every step, so that `zofo tune lr` can find it."""

    adapter: AdapterConfig | None = None
    """The adapter whose tensors move instead of the model's. It sets the defaults of epsilon, the learning rate and the
    evaluator."""

    keep_base: bool = False
    """Keep a copy of the initial values of the model's own weights that move, for `training.kl_beta`. It doubles their
    memory."""

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
    """Base class of methods that move theta, or an adapter, by zeroth-order estimates of one loss.

    It has everything such methods share: build, check, evaluate, replay and save. The default step computes the losses
    of one batch along its directions, and updates theta with the rule; a method can override it.
    """

    needs_gradient = False
    shares_examples = True
    backbone: Backbone

    def __new__(cls: type[_Made], *args: Any, **kwargs: Any) -> _Made:
        """Raise ConfigError if called with a model or parameters, as one would a torch optimizer."""
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
        """Attach the configured adapter, and return its tensors that move."""
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
        """The slopes of an estimate for the log, and how many directions did not change the loss, if that is common."""
        what = "projected_gradient" if self._zo.estimator.linear else "shaped_score"
        return estimate.slopes(f"{what}{of}") | ({f"ties{of}": estimate.ties} if self._log_ties else {})

    def check(self) -> None:
        self._zo.evaluator.check([(self._check_objective, self._two)])
        self.trained_names = tuple(self.backbone.tensors)
        if self._check_objective is not self._objective:  # a user's function that fails costs no step
            with torch.no_grad():
                self._objective(self.model, self._two)

    def notes(self) -> list[str]:
        """Which tensors do not move, and the memory of a copy of the others."""
        size = sum(tensor.nbytes for tensor in self.backbone.tensors.values()) / 2**30
        kept = f"a copy of the weights that move, {size:.3g} GiB, is kept for training.kl_beta to ask"
        return [*self._zo.notes, *([kept] if self._config.copies_base else [])]

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """Context in which `model` is at theta, with the adapter if there is one."""
        self._zo.theta.flush()
        yield

    def replay_header(self) -> dict[str, Any]:
        """The header; it names the adapter, since then the trajectory does not move the base model."""
        header, moved = self._zo.replay_header(self._config.replay_header()), self._config.moved
        return header if moved is None else {**header, "adapter": moved.model_dump(mode="json")}

    def state_dict(self, weights: bool) -> StateDict:
        return remember_adapters(self._adapters, StateDict().put("zo", self._zo.state_dict(weights)))

    def load_state_dict(self, state: StateDict) -> None:
        self._zo.load_state_dict(state.part("zo"))
        restore_adapters(self._adapters, state)

    def save(self, folder: Path) -> None:
        """Save the adapter as a peft folder `adapter`, or the tensors that moved in half precision.

        Nothing in float32, where the trajectory determines the model.
        """
        if self._adapters is None:
            self._zo.save(folder)
        elif not self.backbone.is_corrupt:  # after an interrupt inside a sweep the tensors are invalid
            self._zo.theta.flush()
            self._adapters.save(self.variants[0], folder / self.variants[0])


class MeZOConfig(ForwardOnlyConfig):
    """Configuration of `mezo`."""

    name: Literal["mezo"] = "mezo"
    """Which method."""


@METHODS.register("mezo")
class MeZO(ForwardOnly):
    """pg = mean over the batch of [L(theta + e z) - L(theta - e z)] / 2e; theta <- theta - lr (pg z + wd theta).

    Both losses use the same batch, with dropout off. With the evaluator `in-forward` they are one forward of 2 B rows,
    and the weights are not written. With `in-place` a step takes three sweeps over the weights, since the move back and
    the update share one. With an adapter, theta is the adapter's tensors, and the model is frozen.
    """

    Config = MeZOConfig
    paper = "Malladi et al. 2023, Fine-Tuning Language Models with Just Forward Passes"
