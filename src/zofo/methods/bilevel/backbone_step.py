"""The zeroth-order step on theta of a bilevel problem, for one task or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zofo.backbone import Backbone, BackboneDistance, Update
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError
from zofo.estimators import Direction
from zofo.evaluators import Counts, Evaluator, EvaluatorConfig, LossRequest
from zofo.methods.base import TrainingContext
from zofo.methods.bilevel.config import BilevelConfig
from zofo.methods.bilevel.control_variate import FirstOrderControlVariate
from zofo.methods.bilevel.penalty_schedule import penalty_at, rate_note, rounding_note
from zofo.methods.zeroth_order_defaults import LR_OF_ONE
from zofo.methods.zeroth_order_step import ZerothOrder
from zofo.noise import random_words
from zofo.rules import Rule
from zofo.state_dict import StateDict


class BackboneStep:
    """The step on theta in a bilevel problem, for one task or several: zeroth-order, or a control experiment.

    theta <- theta - lr [pg F(p; B_f) + penalty (pg F(p; B_p) - pg F(s; B_p))] z, with any rule. With several tasks each
    F is the mean over them, each with its own p and s: one z for all, or one per example.

    Build it before peft attaches adapters, which rename the model's tensors.

    Args:
        config: configuration of the method. Of the controls, `frozen` keeps theta, without a forward; `random` moves it
            along other directions, by the same amount.
        context: has the model and the seed.
        log_ties: the upper objective has no gradient: log its mean, and how often a direction did not change it.
        among: the tensors that move; None for the model's own.

    Attributes:
        backbone: the tensors that move; None for `frozen`, as are the next two.
        rule: the update rule.
        evaluator: computes the losses.
        control: the control variate, if the method has set one; it is a part of theta.
        counts: the work of the whole method.
        points: number of points of each of the three losses; 0 for `frozen`.

    Raises:
        ConfigError: loss-spread steps.
    """

    def __init__(
        self,
        config: BilevelConfig,
        context: TrainingContext,
        log_ties: bool = False,
        among: Sequence[nn.Parameter] | None = None,
    ) -> None:
        self._log_ties = log_ties
        if config.normalize_by_std:
            raise ConfigError(
                f"method.normalize_by_std divides by the spread of one loss, but {config.name} adds three",
                "set method.normalize_by_std=false",
            )
        self._config, self._penalty, self._random = config, config.penalty, config.backbone_update == "random"
        self._zo: ZerothOrder | None = None
        self.backbone: Backbone | None = None
        self.rule: Rule | None = None
        self.evaluator: Evaluator | None = None
        self.control: FirstOrderControlVariate | None = None
        self.counts, self.points = Counts(), 0
        if config.backbone_update != "frozen":
            unused = context.unused_by(context.collate(context.examples[:2]))
            zo = self._zo = ZerothOrder(
                config, context.model, context.seed, config.batch_size, among, unused, context.processes
            )
            self.backbone, self.rule, self.evaluator = zo.backbone, zo.rule, zo.evaluator
            zo.check_addable(config.name)
            self.counts, self.points = zo.evaluator.counts, zo.points
            decays = config.rule.options.get("weight_decay", 0.0) > 0
            self._moved = BackboneDistance(zo.backbone, copy=zo.rule.dense_buffers > 0, decays=decays)

    @property
    def along(self) -> Sequence[nn.Parameter]:
        """The tensors of theta whose gradient first-order steps find for `control`: see `AdapterPair.differentiate`."""
        return () if self.control is None else self.control.parameters

    def begin(self) -> None:
        """Prepare for first-order steps, which read the weights."""
        self.flush()
        if self.control is not None:
            self.control.zero_grad()

    def add_grad(self, weight: float = 1.0) -> None:
        """Collect the `.grad` that first-order steps left in these tensors, multiplied by `weight`."""
        if self.control is not None:
            self.control.add_grad(weight)

    def step(
        self, number: int, asks: Sequence[LossRequest], examples: int, lr_factor: float = 1.0
    ) -> tuple[dict[str, float], Update | None]:
        """Make step `number`.

        Args:
            number: number of the outer step.
            asks: F(theta, p; B_f) of every task, then all F(theta, p; B_p), then all F(theta, s; B_p).
            examples: number of examples in all B_f together, and in all B_p together.
            lr_factor: factor of the learning rate in this step.

        Returns:
            The entries of the log, and the update of theta; None if an adapter that is part of theta moved as well.
        """
        if self._zo is None:
            return {"backbone_distance": 0.0}, None
        zo, penalty, control = self._zo, penalty_at(self._penalty, number), self.control
        along_f = zo.directions(number, examples=examples)
        along_p = zo.directions(number, first=examples, examples=examples)
        with zo.evaluator.probe(asks, zo.estimator.ask(_side_by_side(along_f, along_p, along_p))) as probe:
            parts = probe.losses.chunk(3, dim=1)
            told = zip((along_f, along_p, along_p), parts, strict=True)
            upper, lower_p, lower_s = (zo.estimator.tell(along, losses) for along, losses in told)
            gradient = upper.gradient + penalty * (lower_p.gradient - lower_s.gradient)
            if self._random:
                other_f = zo.directions(number, after=1, examples=examples)
                other_p = zo.directions(number, first=examples, after=1, examples=examples)
                gradient = _elsewhere(gradient, dict(_pairs(along_f, other_f) + _pairs(along_p, other_p)))
            told_of: dict[str, float] = {}
            if control is not None:
                gradient, told_of = control.corrected(gradient, [key for key in along_f if isinstance(key, Key)])
            update, state = zo.rule.update(upper.with_gradient(gradient), zo.state, zo.rate(lr_factor))
            probe.update(update)
        zo.state = state
        self._moved.add(update)
        if control is not None:
            control.apply(zo.sgd_rate(lr_factor) or 0.0)

        coefficients = {"loss_upper": upper.loss, **told_of} if self._log_ties else told_of
        coefficients["penalty_gap"] = lower_p.loss - lower_s.loss
        if control is None and (moved := self._moved.relative) is not None:  # else not the whole update of theta
            coefficients["backbone_distance"] = moved
        for part, estimate in (("upper", upper), ("lower_p", lower_p), ("lower_s", lower_s)):
            coefficients |= estimate.slopes(f"projected_gradient_{part}")
        if self._log_ties:
            coefficients["ties_upper"] = upper.ties
        return coefficients, update if control is None else None

    def sgd_rate(self, lr_factor: float) -> float | None:
        """The learning rate, if the step moves theta by -rate times the estimate; otherwise None."""
        return None if self._zo is None or self._random else self._zo.sgd_rate(lr_factor)

    def flush(self) -> None:
        """Write pending updates, so that the weights can be read."""
        if self._zo is not None:
            self._zo.theta.flush()

    def check(self, asks: Sequence[LossRequest]) -> None:
        """Check that the evaluator can compute the losses of a step."""
        if self._zo is not None:
            self._zo.evaluator.check(asks)

    def notes(self) -> list[str]:
        """Warnings: the penalty amplifies rounding or makes the rate too high; `flush_every` has no effect; theta is
        copied."""
        zo, rule = self._zo, self._config.rule
        if zo is None:
            return []
        rate = rule.options.get("lr", 0.0) if zo.rule.plain else 0.0
        notes = [
            *zo.notes,
            rounding_note(self._penalty, zo.estimator, zo.backbone.dtypes),
            rate_note(self._penalty, rate, LR_OF_ONE),
            self._folding_note(),
        ]
        if copied := self._moved.copied:
            notes.append(f"backbone_distance is measured from a copy of the backbone: {copied / 2**30:.2f} GiB")
        if self.control is not None:
            notes.append(
                "the first-order part of theta's steps is a low-rank term, which is kept with the adapters: the "
                "trajectory alone is not all of theta"
            )
        return [note for note in notes if note]

    def _folding_note(self) -> str | None:
        """The message about a `flush_every` without effect; else None."""
        evaluator = self._config.evaluator
        usual = EvaluatorConfig.model_validate(evaluator.name).options.get("flush_every")
        if (asked := evaluator.options.get("flush_every")) in (usual, 1):
            return None
        return (
            f"method.evaluator.flush_every={asked} changes nothing: the first-order steps of an outer step look at the "
            "weights, so that each update is written before the next one"
        )

    def replay_header(self) -> dict[str, Any]:
        """What a replay of the steps on theta needs."""
        header = self._config.replay_header()
        return header if self._zo is None else self._zo.replay_header(header)

    def remember_in(self, whole: StateDict, weights: bool) -> StateDict:
        """Add its state to that of the method; see `Method.state_dict`."""
        if self._zo is None:
            return whole.put("counts", StateDict(dict(self.counts.as_dict())))
        if self.control is not None:
            whole.put("control_variate", self.control.state_dict())
        return whole.put("zo", self._zo.state_dict(weights)).put("moved", self._moved.state_dict())

    def load_state_dict(self, whole: StateDict) -> None:
        """Load the state that `remember_in` added."""
        if self._zo is None:
            self.counts.become(Counts(**whole.part("counts").values))
        else:
            self._zo.load_state_dict(whole.part("zo"))
            self._moved.load_state_dict(whole.part("moved"))
        if self.control is not None:
            self.control.load_state_dict(whole.part("control_variate"))

    def save(self, folder: Path) -> None:
        """Save the weights of theta, if the trajectory does not determine them."""
        if self._zo is not None:
            self._zo.save(folder)


def _side_by_side(*batches: Sequence[Direction]) -> list[Direction]:
    """The directions of concatenated batches: one that all share, or those of all their examples."""
    return [
        each[0] if isinstance(each[0], Key) else [key for direction in each for key in direction]
        for each in zip(*batches, strict=True)
    ]


def _pairs(some: Sequence[Direction], others: Sequence[Direction]) -> list[tuple[Key, Key]]:
    """The keys of some directions, each with its counterpart in the others."""
    flat = [[key for one in each for key in ([one] if isinstance(one, Key) else one)] for each in (some, others)]
    return list(zip(*flat, strict=True))


def _elsewhere(gradient: Displacement, others: Mapping[Key, Key]) -> Displacement:
    """A sum with the same number of terms and the same |coefficients| along other keys, with random signs."""

    def sign(key: Key) -> float:
        return -1.0 if int(random_words(key, "bilevel/sign", 0, 1, torch.device("cpu"))) < 0 else 1.0

    return Displacement({others[key]: abs(c) * sign(others[key]) for key, c in gradient.items()})
