"""Bilevel-ZOFO: a first-order adapter below, a zeroth-order backbone above.

Shirkavand, Yu, He, Huang (2025), "Bilevel ZOFO: Bridging Parameter-Efficient and Zeroth-Order Techniques for Efficient
LLM Fine-Tuning and Meta-Training", algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from zofo.adapters import Adapters
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.methods.adapter_start import BACKBONE, attach_adapters, attach_stacked, remember_adapters, restore_adapters
from zofo.methods.base import (
    METHODS,
    AdapterStart,
    Method,
    StepLog,
    TrainingContext,
)
from zofo.methods.bilevel.adapter_pair import VARIANTS, AdapterPair
from zofo.methods.bilevel.backbone_step import BackboneStep
from zofo.methods.bilevel.config import BilevelConfig, split_sizes
from zofo.methods.bilevel.control_variate import FirstOrderControlVariate
from zofo.methods.bilevel.penalty_schedule import largest, penalty_at
from zofo.noise import permutation
from zofo.state_dict import StateDict
from zofo.tasks import EpochSampler


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

    3 and 4 both use the old theta and p. Losses are float32, and the two losses of each example are subtracted before
    any average, and before the penalty multiplies them.

    With `upper_objective`, F on D_f is another function than F on D_p, such as accuracy or a reward. If it has no
    gradient, its term is omitted from 3, or replaced by F there (`upper_surrogate`), so that it moves theta alone: the
    part of the problem that a first-order step cannot do.

    Two control experiments differ in 4 only: `frozen` omits it, with its forwards; `random` moves theta along other
    directions, by the same amount.

    Args:
        adapters: p and s, called `adapter` and `lower_adapter`; by default as configured, on the context's model.

    Raises:
        ConfigError: steps are normalised by the spread of the losses, or there are too few examples for a batch of D_f.
    """

    Config = BilevelConfig
    paper = "Shirkavand et al. 2025, Bilevel ZOFO"
    variants = VARIANTS
    shares_examples = True

    def __init__(self, config: BilevelConfig, context: TrainingContext, adapters: Adapters | None = None) -> None:
        self._config, self._context = config, context
        self.model = context.model
        self._upper = _upper(config, context)
        size = config.batch_size
        d_f, d_p = split(context, size)
        self._batches_f = EpochSampler(d_f, size, list, context.seed, "D_f", context.length)
        self._batches_p = context.batches(size, "D_p", d_p)
        self._batches_inner = context.batches(size, "D_p, inner", d_p)

        among, below = None, None
        if config.moved is not None:
            theirs = config.moved, config.adapter
            adapters, below, self.adapter_start = attach_stacked(*theirs, context, self.variants, size)
            among = below.parameters(BACKBONE)
        # before peft, where it moves the model's own weights: see there
        theta = self._theta = BackboneStep(config, context, self._upper.log_ties, among)
        self.backbone, self.rule, self.evaluator = theta.backbone, theta.rule, theta.evaluator
        self.counts = theta.counts
        self.backbone_is_theta = config.control_variate is None
        if config.control_variate is not None:
            self._check_gradient_above()
        if adapters is None or config.control_variate is not None:
            adapters, self.adapter_start = attach_pair(config, context, theta)
        self._adapters: Adapters = adapters
        self.counts.include(self.adapter_start.counts)
        self._pair = AdapterPair(self._adapters, config, context, self.counts)
        firsts = config.inner_steps + (1 if self._follows is None else 2) + (theta.control is not None)
        self.queries_per_step = (firsts + 3 * theta.points) * size

    def _check_gradient_above(self) -> None:
        if self._upper.log_ties:
            raise ConfigError(
                "method.control_variate needs the gradient of all three losses, and the objective on D_f has none",
                "set method.control_variate=null",
            )

    @property
    def adapters(self) -> Adapters:
        """p and s, under the names of `variants`."""
        return self._adapters

    @property
    def _follows(self) -> TrainingContext | None:
        """The objective on D_f that the step on p follows; None for none."""
        if not self._upper.log_ties:
            return self._upper
        return self._context if self._config.upper_surrogate else None

    def step(self, number: int) -> StepLog:
        with self._pair.transaction():
            return self._step(number)

    def _step(self, number: int) -> StepLog:
        pair, penalty, inner_steps = self._pair, penalty_at(self._config.penalty, number), self._config.inner_steps
        before, rate = self.counts.copy(), self.lr_factor(number)
        self._theta.begin()

        steps = range(number * inner_steps, (number + 1) * inner_steps)
        inner = [pair.inner_step(step, self._batches_inner[step], rate) for step in steps]

        examples, b_p, upper, follows = self._batches_f[number], self._batches_p[number], self._upper, self._follows
        b_f = upper.collate(examples)
        followed = None if follows is None else b_f if follows is upper else follows.collate(examples)
        objective = None if follows is None else follows.objective
        f_upper, f_lower = pair.differentiate(followed, b_p, penalty, objective, self._theta.along)
        self._theta.add_grad()
        above = {} if f_upper is None else {"loss_upper" if follows is upper else "loss_surrogate": f_upper}
        coefficients = {"penalty": penalty, **above, "loss_lower": f_lower}
        if inner:
            coefficients["loss_inner"] = math.fsum(inner) / len(inner)

        asks = pair.asks(b_f, b_p, upper.objective)
        found, update = self._theta.step(number, asks, self._config.batch_size, rate)
        pair.step_adapter(number, rate)
        coefficients |= found
        loss = coefficients.get("loss_upper", f_lower)  # without any step on it, it is not known
        if upper.log_ties and "loss_upper" in coefficients:
            coefficients[f"upper_{upper.called}"] = 0.0 - coefficients.pop("loss_upper")
        return StepLog(loss, self.counts - before, coefficients, update, self._theta.sgd_rate(rate))

    def check(self) -> None:
        two, upper = self._context.examples[:2], self._upper
        asks = [(self._pair.objective(variant), self._context.collate(two)) for variant in self.variants]
        if upper is not self._context:
            asked = self._pair.objective(self.variants[0], upper.check_objective or upper.objective)
            asks.append((asked, upper.collate(two)))
            with torch.no_grad():  # a user's function that fails costs no step
                upper.objective(self.model, upper.collate(two))
        self._theta.check(asks)

    def notes(self) -> list[str]:
        still = self._follows is None and not largest(self._config.penalty)
        note = (
            "p stays as it starts: its step would follow the penalty's term alone, and the penalty is 0; to let it "
            "follow training.objective, set method.upper_surrogate=true"
        )
        return [*self._theta.notes(), *inner_notes(self._config), *([note] if still else [])]

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """Context in which `model` has the given adapter."""
        self._theta.flush()
        with self._adapters.using(variant):
            yield

    def replay_header(self) -> dict[str, Any]:
        header, theta = self._theta.replay_header(), self._config.moved
        return header if theta is None else {**header, "adapter": theta.model_dump(mode="json")}

    def state_dict(self, weights: bool) -> StateDict:
        whole = remember_adapters(self._adapters, StateDict().put("pair", self._pair.state_dict()))
        return self._theta.remember_in(whole, weights)

    def load_state_dict(self, state: StateDict) -> None:
        self._pair.load_state_dict(state.part("pair"))
        restore_adapters(self._adapters, state)
        self._theta.load_state_dict(state)

    def save(self, folder: Path) -> None:
        """Save both adapters, as the peft folders `adapter` (p) and `lower_adapter` (s)."""
        if self._config.moved is None:  # else theta is in both
            self._theta.save(folder)
        for name in self.variants:
            self._adapters.save(name, folder / name)


def _upper(config: BilevelConfig, context: TrainingContext) -> TrainingContext:
    """The context with the objective on D_f.

    Raises:
        ConfigError: the objective does not suit the task, or a surrogate has nothing to replace.
    """
    upper = context
    if config.upper_objective is not None:
        if context.by_objective is None:
            raise ConfigError(
                "this training context has one objective, and method.upper_objective names another",
                "give it `by_objective`, or set method.upper_objective=null",
            )
        upper = context.by_objective(config.upper_objective)
    if config.upper_surrogate and not upper.log_ties:
        raise ConfigError(
            "method.upper_surrogate stands for an objective without a gradient, and the one on D_f has a gradient",
            "set method.upper_surrogate=false, or method.upper_objective=accuracy",
        )
    return upper


def attach_pair(config: BilevelConfig, context: TrainingContext, theta: BackboneStep) -> tuple[Adapters, AdapterStart]:
    """p and s, for one task or reused for several; and beneath them the control variate of theta's step, if there is
    one."""
    if config.control_variate is None:
        return attach_adapters(config.adapter, context, VARIANTS, config.batch_size)
    assert theta.backbone is not None  # or the configuration is refused
    theirs = config.control_variate, config.adapter
    adapters, below, start = attach_stacked(*theirs, context, VARIANTS, config.batch_size)
    theta.control = FirstOrderControlVariate(below, theta.backbone)
    return adapters, start


def inner_notes(config: BilevelConfig) -> list[str]:
    """A message about steps that do not change the inner problem."""
    if config.inner_steps:
        return []
    return ["method.inner_steps is 0: s stays as it starts, and the penalty holds p to that, and to no solution below"]


def split_indices(seed: int, rows: int) -> tuple[list[int], list[int]]:
    """The row numbers of D_f (a third, drawn by seed) and of D_p (the rest)."""
    order = permutation(Key(seed, 0), "bilevel/split", rows)
    third, _ = split_sizes(rows)
    return order[:third], order[third:]


def split(context: TrainingContext, batch_size: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """D_f and D_p: the two sets of the context, or a third of its training examples, drawn by seed, and the rest.

    Raises:
        ConfigError: D_f, the smaller set, has fewer examples than a batch.
    """
    if context.lower_examples is not None:
        return context.examples, context.lower_examples
    count = len(context.examples)
    third, rest = split_sizes(count)
    if third < batch_size:
        lower = f"set method.batch_size={third} or lower, or " if third else ""
        raise ConfigError(
            f"D_f is a third of the {count} training examples, {third}, and D_p the other {rest}, but a batch "
            f"takes {batch_size} of each",
            f"{lower}give at least {3 * batch_size} training examples, with task.split_sizes.train or more rows",
        )
    d_f, d_p = ([context.examples[i] for i in part] for part in split_indices(context.seed, count))
    return d_f, d_p
