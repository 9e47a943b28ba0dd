"""Bilevel-ZOFO: a first-order adapter below, a zeroth-order backbone above.

Shirkavand, Yu, He, Huang (2025), "Bilevel ZOFO: Bridging Parameter-Efficient and Zeroth-Order Techniques for Efficient
LLM Fine-Tuning and Meta-Training", algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from zofo.adapters import AdapterConfig, Adapters
from zofo.backbone import Update
from zofo.config import NonNegative
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError
from zofo.estimators import Direction
from zofo.evaluators import Counts, Gradient
from zofo.methods.base import METHODS, Method, MethodConfig, Setting, StepLog
from zofo.methods.moved import Moved
from zofo.methods.optimizers import OptimizerName
from zofo.methods.pair import VARIANTS, Pair
from zofo.methods.penalty import Penalty, penalty_at, rounding_note
from zofo.methods.zeroth_order import ZerothOrder, ZerothOrderConfig, beside_adapter
from zofo.noise import permutation, words


class BilevelConfig(MethodConfig, ZerothOrderConfig):
    """Configuration of `bilevel`."""

    name: Literal["bilevel"] = "bilevel"
    """Which method."""
    inner_steps: int = Field(10, ge=0)
    """T: first-order steps on the lower adapter in each outer step; with 0 it stays as it starts."""
    penalty: Penalty = 100.0
    """lambda: how strongly the adapter is held to the solution of the inner problem; or a schedule of it."""
    backbone_step: Literal["zeroth-order", "frozen", "random"] = "zeroth-order"
    """How the backbone moves: the method, or a control that leaves it as it is or moves it elsewhere as far."""
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

    Two controls differ in 4 alone: `frozen` leaves it out, with its forwards; `random` moves theta along other
    directions, by as much.

    Args:
        config: its parts and sizes.
        setting: model, objective and examples.
        adapters: p and s, called `adapter` and `lower_adapter`; by default as configured, on the setting's model.

    Raises:
        ConfigError: loss-spread steps, or too few examples for a batch of D_f.
    """

    Config = BilevelConfig
    paper = "Shirkavand et al. 2025, Bilevel ZOFO"
    variants = VARIANTS

    def __init__(self, config: BilevelConfig, setting: Setting, adapters: Adapters | None = None) -> None:
        if config.loss_spread:
            raise ConfigError(
                "method.loss_spread divides by the spread of one loss, but bilevel adds three",
                "set method.loss_spread=false",
            )
        self._config = config
        self.model = setting.model
        size = config.batch_size
        upper, lower = split(setting, size)
        self._upper = setting.batches(size, "D_f", upper)
        self._lower = setting.batches(size, "D_p", lower)
        self._inner = setting.batches(size, "D_p, inner", lower)
        self._two = setting.make(setting.examples[:2])

        self._zo: ZerothOrder | None = None
        self.counts, points = Counts(), 0
        if config.backbone_step != "frozen":  # before peft, so that names stay the model's
            zo = self._zo = ZerothOrder(config, setting.model, setting.seed, size)
            self.backbone, self.rule, self.evaluator = zo.backbone, zo.rule, zo.evaluator
            self._moved = Moved(zo.backbone)
            self.counts, points = zo.evaluator.counts, zo.points
        self._adapters: Adapters = adapters or config.adapter.build(setting.model, self.variants, setting.seed)
        gradient = Gradient(self.model, self.counts)
        rates = config.lr_adapter, config.lr_lower
        self._pair = Pair(self._adapters, setting.objective, gradient, config.optimizer, *rates)
        self.queries_per_step = (config.inner_steps + 2 + 3 * points) * size

    def step(self, number: int) -> StepLog:
        """See `Method.step`."""
        with self._pair.one_step():
            return self._step(number)

    def _step(self, number: int) -> StepLog:
        pair, penalty, inner_steps = self._pair, penalty_at(self._config.penalty, number), self._config.inner_steps
        before = self.counts.copy()
        self._settle()  # first-order steps look at the weights

        inner = [pair.inner_step(self._inner[number * inner_steps + t]) for t in range(inner_steps)]

        b_f, b_p = self._upper[number], self._lower[number]
        f_upper, f_lower = pair.differentiate(b_f, b_p, penalty)
        coefficients = {"penalty": penalty, "loss_upper": f_upper, "loss_lower": f_lower}
        if inner:
            coefficients["loss_inner"] = math.fsum(inner) / len(inner)

        update = None
        if self._zo is not None:
            found, update = self._backbone_step(self._zo, number, penalty, b_f, b_p)
            coefficients |= found
        else:
            coefficients["backbone_moved"] = 0.0
        pair.step_adapter()
        return StepLog(f_upper, self.counts - before, coefficients, update)

    def _backbone_step(
        self, zo: ZerothOrder, number: int, penalty: float, b_f: Any, b_p: Any
    ) -> tuple[dict[str, float], Update]:
        """theta <- theta - lr [pg F(p; B_f) + penalty (pg F(p; B_p) - pg F(s; B_p))] z, by whatever rule."""
        size = self._config.batch_size
        along_f, along_p = zo.directions(number), zo.directions(number, first=size)
        points = zo.estimator.ask(_side_by_side(along_f, along_p, along_p))
        with zo.evaluator.visit(self._pair.asks(b_f, b_p), points) as visit:
            parts = visit.losses.chunk(3, dim=1)
            told = zip((along_f, along_p, along_p), parts, strict=True)
            upper, lower_p, lower_s = (zo.estimator.tell(along, losses) for along, losses in told)
            gradient = upper.gradient + penalty * (lower_p.gradient - lower_s.gradient)
            if self._config.backbone_step == "random":
                other_f, other_p = zo.directions(number, after=1), zo.directions(number, first=size, after=1)
                gradient = _elsewhere(gradient, dict(_pairs(along_f, other_f) + _pairs(along_p, other_p)))
            update, state = zo.rule.update(upper.with_gradient(gradient), zo.state)
            visit.update(update)
        zo.state = state
        self._moved.add(update)

        coefficients = {"penalty_gap": lower_p.loss - lower_s.loss}
        if (moved := self._moved.relative) is not None:
            coefficients["backbone_moved"] = moved
        for part, estimate in (("upper", upper), ("lower_p", lower_p), ("lower_s", lower_s)):
            for key, projected_gradient in estimate.projected_gradients.items():
                coefficients[f"projected_gradient_{part}_{key.index}"] = projected_gradient
        return coefficients, update

    def _settle(self) -> None:
        if self._zo is not None:
            self._zo.evaluator.settle()

    def check(self) -> None:
        """See `Method.check`."""
        if self._zo is not None:
            self._zo.evaluator.check([(self._pair.objective(variant), self._two) for variant in self.variants])

    def notes(self) -> list[str]:
        """See `Method.notes`: a penalty that multiplies rounding up to the size of a slope."""
        if self._zo is None:
            return []
        note = rounding_note(self._config.penalty, self._zo.estimator, self._zo.backbone.dtypes)
        return [note] if note else []

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """While it is open, `model` carries the given adapter."""
        self._settle()
        with self._adapters.using(variant):
            yield

    def replay_header(self) -> dict[str, Any]:
        """See `Method.replay_header`."""
        return self._config.replay_header()

    def save(self, folder: Path) -> None:
        """Both adapters, as the peft folders `adapter` (p) and `lower_adapter` (s)."""
        if self._zo is not None:
            self._zo.save(folder)
        for name in self.variants:
            self._adapters.save(name, folder / name)


def split(setting: Setting, batch_size: int) -> tuple[list[Any], list[Any]]:
    """D_f and D_p: a third of the training examples, drawn by seed, and the rest.

    Raises:
        ConfigError: D_f, the smaller one, has fewer than a batch takes.
    """
    count = len(setting.examples)
    third = count // 3
    if third < batch_size:
        lower = f"set method.batch_size={third} or lower, or " if third else ""
        raise ConfigError(
            f"D_f is a third of the {count} training examples, {third}, and D_p the other {count - third}, but a batch "
            f"takes {batch_size} of each",
            f"{lower}give at least {3 * batch_size} training examples, with task.sizes.train or more rows",
        )
    order = permutation(Key(setting.seed, 0), "bilevel/split", count)
    upper, lower_part = ([setting.examples[i] for i in part] for part in (order[:third], order[third:]))
    return upper, lower_part


def _side_by_side(*batches: Sequence[Direction]) -> list[Direction]:
    """The directions of batches that are asked together: one that all share, or those of all their examples."""
    return [
        each[0] if isinstance(each[0], Key) else [key for direction in each for key in direction]
        for each in zip(*batches, strict=True)
    ]


def _pairs(some: Sequence[Direction], others: Sequence[Direction]) -> list[tuple[Key, Key]]:
    """The keys of some directions, each with the one that stands in its place in the others."""
    flat = [[key for one in each for key in ([one] if isinstance(one, Key) else one)] for each in (some, others)]
    return list(zip(*flat, strict=True))


def _elsewhere(gradient: Displacement, others: Mapping[Key, Key]) -> Displacement:
    """A sum of as many terms, with the same |coefficients|, along other keys, whose streams give the signs."""

    def sign(key: Key) -> float:
        return -1.0 if int(words(key, "bilevel/sign", 0, 1, torch.device("cpu"))) < 0 else 1.0

    return Displacement({others[key]: abs(c) * sign(others[key]) for key, c in gradient.items()})
