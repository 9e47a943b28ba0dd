"""Bilevel-ZOFO on many tasks at once: one backbone, and a pair of adapters per task.

Shirkavand, Yu, He, Huang (2025), "Bilevel ZOFO: Bridging Parameter-Efficient and Zeroth-Order Techniques for Efficient
LLM Fine-Tuning and Meta-Training", section 4.2 and appendix B.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from zofo.adapters import ADAPTERS
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.evaluators import LossRequest, Objective
from zofo.methods.adapter_start import (
    BACKBONE,
    remember_adapters,
    restore_adapters,
)
from zofo.methods.base import METHODS, Method, Pass, StepLog, TrainingContext
from zofo.methods.bilevel.adapter_pair import VARIANTS, AdapterPair
from zofo.methods.bilevel.adapter_store import AdapterStore, Where
from zofo.methods.bilevel.backbone_step import BackboneStep
from zofo.methods.bilevel.bilevel import attach_pair, inner_notes, split
from zofo.methods.bilevel.config import BilevelConfig, split_sizes
from zofo.methods.bilevel.penalty_schedule import penalty_at
from zofo.methods.epoch import Epoch
from zofo.noise import permutation
from zofo.objectives import scores
from zofo.state_dict import StateDict
from zofo.tasks import EpochSampler, file_name
from zofo.temporary import temporarily


class MetaBilevelConfig(BilevelConfig):
    """Configuration of `meta-bilevel`."""

    name: Literal["meta-bilevel"] = "meta-bilevel"  # type: ignore[assignment]  # a value of its own
    """Which method."""
    batch_size: int = Field(4, ge=1)
    """Number of examples of a task per batch."""
    tasks_per_step: int = Field(5, ge=1)
    """Number of tasks drawn for each outer step, by seed; at most all of them."""
    adapter_offload: Where = "cpu"
    """Where to keep the adapters and optimizers of tasks that a step does not draw: `cpu` or `disk`."""

    def passes(self, rows: int) -> Sequence[Pass]:
        """The passes of `bilevel`, for each of the tasks."""
        return [replace(one, times=one.times * self.tasks_per_step) for one in super().passes(rows)]

    def epoch(self, rows: Sequence[int]) -> Epoch:
        """A pass over the D_p of all tasks, on average; a step draws a batch for each of its tasks."""
        drawn = min(self.tasks_per_step, len(rows))
        return Epoch(sum(split_sizes(number)[1] for number in rows), self.batch_size, drawn)


@dataclass(frozen=True)
class _TaskBatches:
    """The batches of one task."""

    name: str
    batches_f: EpochSampler[Any, Any]
    batches_p: EpochSampler[Any, Any]
    batches_inner: EpochSampler[Any, Any]


@dataclass(frozen=True)
class _TaskStep:
    """A task within a step, after its first-order steps: inputs of the zeroth-order step, and what is stored
    afterwards.

    Args:
        pair: the old p and the new s, by variant.
        b_f: a batch of D_f.
        b_p: a batch of D_p.
        after: the new p, the new s, and their optimizer states.
    """

    pair: dict[str, list[torch.Tensor]]
    b_f: Any
    b_p: Any
    after: StateDict


@METHODS.register("meta-bilevel")
class MetaBilevel(Method):
    """min over theta, p_i, max over s_i of the mean over tasks i of
    F_i(theta, p_i; D_f,i) + penalty (F_i(theta, p_i; D_p,i) - F_i(theta, s_i; D_p,i)).

    Each task's examples are split D_f : D_p = 1 : 2 by seed; all p_i and s_i start equal. One outer step:

    1. draw `tasks_per_step` = n of the tasks, a pure function of seed and step;
    2. for each of them, steps 1 to 3 of `bilevel` on its own pair: `inner_steps` on s_i, and one on p_i;
    3. one zeroth-order step on theta, with the old p_i and the new s_i, for the mean over the n tasks of
       F_i(theta, p_i; B_f,i) + penalty (F_i(theta, p_i; B_p,i) - F_i(theta, s_i; B_p,i)). That is one function of
       theta, and one z is used for all of its terms: two points for all tasks, each visited once. With `directions:
       per-example` or `per-group(n)` each task has its own directions.

    With `control_variate`, a gradient of the mean in 3 reduces the variance of its estimate. That part of theta is one
    adapter, shared by all tasks.

    The variant `backbone` is theta with the initial adapter of a new task.

    A step with a non-finite loss changes nothing, in any task.

    Raises:
        ConfigError: there is only one task, or too few examples of a task for a batch; or an adapter changes the model
            before it is trained.
    """

    Config = MetaBilevelConfig
    paper = "Shirkavand et al. 2025, Bilevel ZOFO, section 4.2"
    variants = (BACKBONE, *VARIANTS)
    adapter_is_theta = True
    shares_examples = True

    def __init__(self, config: MetaBilevelConfig, context: TrainingContext) -> None:
        _refuse(config, context)
        self._config = config
        self._seed = context.seed
        self.model = context.model
        self._tasks = _tasks(context, config.batch_size)
        self._two = context.collate(context.examples[:2])
        self._number = min(config.tasks_per_step, len(self._tasks))

        theta = self._theta = BackboneStep(config, context)  # before peft: see there
        self.backbone, self.rule, self.evaluator = theta.backbone, theta.rule, theta.evaluator
        self.counts = theta.counts
        self.backbone_is_theta = config.control_variate is None
        self._adapters, self.adapter_start = attach_pair(config, context, theta)
        self.counts.include(self.adapter_start.counts)
        self._pair = AdapterPair(self._adapters, config, context, self.counts)
        self._store = AdapterStore(config.adapter_offload)
        self._fresh = _copied(self._pair.state_dict())
        self._variant = BACKBONE
        self.score = self._score
        firsts = config.inner_steps + 2 + (theta.control is not None)
        self.queries_per_step = self._number * (firsts + 3 * theta.points) * config.batch_size

    def step(self, number: int) -> StepLog:
        config, before = self._config, self.counts.copy()
        penalty = penalty_at(config.penalty, number)
        self._theta.begin()
        order = permutation(Key(self._seed, number), "meta/tasks", len(self._tasks))
        coefficients: dict[str, float] = {"penalty": penalty}
        tuned: dict[str, _TaskStep] = {}
        for task in (self._tasks[i] for i in order[: self._number]):
            tuned[task.name], found_of_each = self._first_order_steps(task, number, penalty)
            coefficients |= {f"{name}/{task.name}": loss for name, loss in found_of_each.items()}

        examples = len(tuned) * config.batch_size
        asks, rate = self._asks(list(tuned.values())), self.lr_factor(number)
        found, update = self._theta.step(number, asks, examples, rate)
        coefficients |= found
        for name, one in tuned.items():
            self._store.put(name, one.after)
        for loss in found_of_each:  # their means over the tasks
            coefficients[loss] = math.fsum(coefficients[f"{loss}/{name}"] for name in tuned) / len(tuned)
        taken = self.counts - before
        return StepLog(coefficients["loss_upper"], taken, coefficients, update, self._theta.sgd_rate(rate))

    def _first_order_steps(self, task: _TaskBatches, number: int, penalty: float) -> tuple[_TaskStep, dict[str, float]]:
        """The steps on s and p of one task, not stored yet; also returns its losses."""
        pair, inner_steps = self._pair, self._config.inner_steps
        self._load(task.name)
        b_f, b_p = task.batches_f[number], task.batches_p[number]
        with pair.transaction():
            steps = range(number * inner_steps, (number + 1) * inner_steps)
            inner = [pair.inner_step(step, task.batches_inner[step], self.lr_factor(number)) for step in steps]
            f_upper, f_lower = pair.differentiate(b_f, b_p, penalty, theta=self._theta.along)
            assert f_upper is not None
            self._theta.add_grad(1 / self._number)
            old = {name: [t.detach().clone() for t in self._adapters.parameters(name)] for name in VARIANTS}
            pair.step_adapter(number, self.lr_factor(number))
        found = {"loss_upper": f_upper, "loss_lower": f_lower}
        if inner:
            found["loss_inner"] = math.fsum(inner) / len(inner)
        return _TaskStep(old, b_f, b_p, _copied(pair.state_dict())), found

    def _asks(self, tuned: list[_TaskStep]) -> list[LossRequest]:
        """The asks of `BackboneStep`: all F(p; B_f), all F(p; B_p), all F(s; B_p)."""
        p, s = VARIANTS
        asks: list[LossRequest] = [(self._with(one, p), one.b_f) for one in tuned]
        asks += [(self._with(one, p), one.b_p) for one in tuned]
        return asks + [(self._with(one, s), one.b_p) for one in tuned]

    def _with(self, tuned: _TaskStep, variant: str) -> Objective:
        """The objective of the model with p or s of a task."""
        carried = self._pair.objective(variant)

        def losses(model: nn.Module, batch: Any) -> torch.Tensor:
            with torch.no_grad():
                for parameter, value in zip(self._adapters.parameters(variant), tuned.pair[variant], strict=True):
                    parameter.copy_(value)
            return carried(model, batch)

        return losses

    def _load(self, task: str) -> None:
        """Load a task's pair into the model, or a new one."""
        self._pair.load_state_dict(self._store.get(task) or self._fresh)

    def _score(self, model: nn.Module, batch: Any, by: str) -> torch.Tensor:
        """Score with the adapter of the batch's task. The variant in use names a task's own adapter."""
        if self._variant != BACKBONE:
            self._load(batch.examples[0].example.task)
        return scores(model, batch, by)

    def check(self) -> None:
        self._theta.check([(self._pair.objective(variant), self._two) for variant in VARIANTS])

    def notes(self) -> list[str]:
        return [*self._theta.notes(), *inner_notes(self._config)]

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """While it is open, `model` is theta with a fresh adapter; or with a task's own, for who scores by `score`."""
        self._theta.flush()
        self._pair.load_state_dict(self._fresh)
        adapter = VARIANTS[0] if variant == BACKBONE else variant
        with temporarily(self, _variant=variant), self._adapters.using(adapter):
            yield

    def replay_header(self) -> dict[str, Any]:
        return self._theta.replay_header()

    def state_dict(self, weights: bool) -> StateDict:
        """The pairs of all tasks that have been in a step."""
        whole = self._theta.remember_in(StateDict({"tasks": self._store.names}), weights)
        remember_adapters(self._adapters, whole)
        for name in self._store.names:
            self._store.remember_in(whole, f"task {name}", name)
        return whole

    def load_state_dict(self, state: StateDict) -> None:
        self._theta.load_state_dict(state)
        restore_adapters(self._adapters, state)
        for name in state.values["tasks"]:
            self._pair.load_state_dict(state.part(f"task {name}"))  # refuses what is of another model
            self._store.put(name, self._pair.state_dict())

    def save(self, folder: Path) -> None:
        """Save p and s of each task that has been in a step, as the peft folders `adapter/TASK` and
        `lower_adapter/TASK`.

        Also `backbone`, if a control variate has made an adapter a part of theta.
        """
        self._theta.save(folder)
        if self._theta.control is not None:
            self._pair.load_state_dict(self._fresh)
            self._adapters.save(VARIANTS[0], folder / BACKBONE)
        for name in self._store.names:
            self._load(name)
            for variant in VARIANTS:
                self._adapters.save(variant, folder / variant / file_name(name))


def _refuse(config: MetaBilevelConfig, context: TrainingContext) -> None:
    if config.upper_objective is not None or config.upper_surrogate:
        raise ConfigError(
            "method=meta-bilevel has one objective for both levels of all tasks",
            "set method.upper_objective=null and method.upper_surrogate=false, or choose method=bilevel",
        )
    if config.backbone_adapter is not None:
        raise ConfigError(
            "method.backbone_adapter is saved with the adapters of one task, and method=meta-bilevel has many",
            "set method.backbone_adapter=null, or choose method=bilevel",
        )
    if not config.adapter.kind.starts_neutral:
        neutral = [name for name in ADAPTERS if ADAPTERS[name].starts_neutral]
        raise ConfigError(
            f"method.adapter={config.adapter.name} changes what the model does before it is trained, so that a new "
            "task would not begin with the model as it is",
            f"choose one of {', '.join(neutral)}",
        )
    if context.start_adapter is not None:
        raise ConfigError(
            "the adapters of method=meta-bilevel start from the model as it is, not from the adapter of init_from",
            "merge it first: zofo export RUN --merged DIR, then train with model=DIR and without init_from",
        )


def _tasks(context: TrainingContext, batch_size: int) -> list[_TaskBatches]:
    """The batches of every task, in the order in which the tasks first appear.

    Raises:
        ConfigError: there are fewer than two tasks, or a task has too few examples for a batch.
    """
    each: dict[str, list[Any]] = {}
    for one in context.examples:
        each.setdefault(one.example.task, []).append(one)
    if len(each) < 2:
        raise ConfigError(
            f"method=meta-bilevel trains on several tasks, but there is {'one' if each else 'none'}",
            "name some with task.tasks=[sst2,rte] or task.metaicl_setting=FILE, or choose method=bilevel",
        )
    tasks = []
    for name, examples in each.items():
        own = replace(context, examples=examples)
        try:
            d_f, d_p = split(own, batch_size)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.message}", error.hint) from error
        parts = (("D_f", d_f), ("D_p", d_p), ("D_p, inner", d_p))
        tasks.append(_TaskBatches(name, *(own.batches(batch_size, f"{name}, {part}", some) for part, some in parts)))
    return tasks


def _copied(state: StateDict) -> StateDict:
    """A copy of the state with its own tensors, on the CPU."""
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.tensors.items()}
    return StateDict(state.values, tensors)
