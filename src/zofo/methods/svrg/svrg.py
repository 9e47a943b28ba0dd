"""MeZO-SVRG: variance-reduced zeroth-order steps between full-batch ones, by default without a copy of the weights.

Gautam, Park, Zhou, Raman, Ha (2024), "Variance-reduced Zeroth-Order Methods for Fine-Tuning Language Models",
algorithms 1 and 4.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator, model_validator

from zofo.backbone import Update
from zofo.config import NonNegative
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.evaluators import LossRequest
from zofo.methods.base import METHODS, Pass, StepLog, TrainingContext
from zofo.methods.mezo import ForwardOnly, ForwardOnlyConfig
from zofo.methods.svrg.anchored_step import AnchoredStep
from zofo.methods.zeroth_order_step import DirectionSharing
from zofo.noise import permutation
from zofo.rules import RULES
from zofo.state_dict import StateDict

LARGEST_FULL = 4096
"""Examples up to which an anchor's gradient is over all of them without being asked to."""

_MOST_LOGGED = 64  # slopes of a step in a line of the log; all are in the trajectory


class SVRGConfig(ForwardOnlyConfig):
    """Configuration of `svrg`. The rule holds the learning rate of minibatch steps."""

    one_rate = False

    name: Literal["svrg"] = "svrg"
    """Which method."""
    anchor_interval: int = 2
    """q: every q-th step is a full-batch step, which sets the anchor to where it began."""
    lr_full: NonNegative | None = None
    """Learning rate of full-batch steps; by default the rule's."""
    anchor: Literal["displacement", "copy", "offload"] = "displacement"
    """How the anchor is stored: as the updates since then (no memory), as a copy beside the weights, or as a copy on
    the CPU."""
    anchor_batch_size: int | None = Field(None, ge=1)
    """Number of examples in a full-batch step; by default all."""
    anchor_sample: Literal["fixed", "fresh"] = "fixed"
    """Whether a smaller anchor batch is the same for all anchors, or drawn anew for each."""
    anchor_chunk: int | None = Field(None, ge=1)
    """Examples of an anchor batch per forward, which does not change the result; by default `batch_size`."""
    anchor_directions: DirectionSharing | None = None
    """Which examples share a direction in a full-batch step; by default as `directions`."""
    control_variate: Literal["same", "independent", "full-batch", "as-released", "none"] = "same"
    """The directions of a minibatch's two estimates; the first is the method, the others are for comparison."""
    anneal: bool = False
    """Divide both learning rates by `anneal_factor` after an epoch whose mean loss is more than `anneal_threshold`
    times that of the previous one."""
    anneal_threshold: float = Field(1.05, gt=0, allow_inf_nan=False)
    """kappa of the annealing."""
    anneal_factor: float = Field(5.0, gt=1, allow_inf_nan=False)
    """alpha of the annealing."""

    @field_validator("anchor_interval")
    @classmethod
    def _at_least_one(cls, interval: int) -> int:
        if interval < 1:
            raise ConfigError(
                f"method.anchor_interval is {interval}, but an anchor is set every 1 or more steps",
                "set method.anchor_interval=2, as in the paper; 1 makes every step a full-batch step",
            )
        return interval

    @model_validator(mode="after")
    def _parts_fit(self) -> SVRGConfig:
        if self.normalize_by_std:
            raise ConfigError(
                f"method.normalize_by_std divides by the spread of one loss, but {self.name} adds three estimates",
                "set method.normalize_by_std=false",
            )
        own = [d for d in (self.directions, self.anchor_directions) if d not in (None, "shared")]
        if self.control_variate == "full-batch" and own:
            raise ConfigError(
                "method.control_variate=full-batch takes the one direction of the anchor's gradient, but there are "
                f"{own[0]} ones",
                "set method.directions=shared and method.anchor_directions=null, or method.control_variate=same",
            )
        if self.anneal and self.control_variate == "none":
            raise ConfigError(
                "method.anneal compares the losses of minibatch steps, and method.control_variate=none asks for none",
                "set method.anneal=false",
            )
        self._check_rule()
        return self

    def _check_rule(self) -> None:
        """Require updates that are displacements for an anchor without a copy, and for a step with two updates."""
        rule, (option, decay) = self.rule.name, self.rule.decay
        released, displaced = self.control_variate == "as-released", self.uses_anchor and self.anchor == "displacement"
        if not (released or displaced) or (RULES[rule].linear and not decay):
            return
        what = (
            f"{option.replace('_', ' ')} ({decay}) also shrinks theta"
            if decay
            else f"updates by {rule!r} are no displacements"
        )
        needs = (
            "method.control_variate=as-released adds two updates"
            if released
            else "method.anchor=displacement undoes updates"
        )
        other = (
            "method.control_variate=same" if released else "method.anchor=copy, which takes the weights' memory again,"
        )
        instead = f"method.rule.{option}=0" if decay else "method.rule=sgd"
        raise ConfigError(f"{needs}, but {what}", f"set {instead}, or {other}".rstrip(","))

    @property
    def least_queries(self) -> int:
        return self.points * (self.anchor_batch_size or 1)

    def passes(self, rows: int) -> Sequence[Pass]:
        """One of q steps evaluates all rows; the others a batch at theta, and then at the anchor."""
        each = 1 / self.anchor_interval
        pair = 0 if self.control_variate == "none" else 2
        full = self.forwards(self.anchor_chunk or self.batch_size)
        whole = min(self.anchor_batch_size or rows, rows)
        kept = self.keep_base + (1 if self.uses_anchor and self.anchor == "copy" else 0)
        made = [
            replace(
                full,
                copies=full.copies + kept,
                times=full.times * each * whole / (self.anchor_chunk or self.batch_size),
            )
        ]
        return [*made, *([self.forwards(self.batch_size, pair * (1 - each))] if pair and each < 1 else [])]

    @property
    def uses_anchor(self) -> bool:
        """Whether any step computes losses at the anchor."""
        return self.anchor_interval > 1 and self.control_variate not in ("as-released", "none")


class Annealing:
    """Algorithm 4: after each epoch, smaller learning rates if the mean loss rose by more than a factor of kappa.

    With L the losses of minibatch steps and w their number in an epoch: if mean(L[-w:]) > kappa mean(L[-2 w:-w]), both
    learning rates are divided by alpha. Losses must be above 0.

    Attributes:
        factor: factor of the learning rates, 1 at the start.
        losses: losses of the last epoch and of this one, oldest first.
    """

    def __init__(self, per_epoch: int, above: float, by: float) -> None:
        self._per_epoch, self._above, self._by = per_epoch, above, by
        self.factor = 1.0
        self.losses: list[float] = []

    def observe(self, loss: float) -> None:
        """Record the loss of one minibatch step."""
        self.losses.append(loss)
        if len(self.losses) < 2 * self._per_epoch:
            return
        before, last = self.losses[: self._per_epoch], self.losses[self._per_epoch :]
        if 0 < self._above * statistics.fmean(before) < statistics.fmean(last):
            self.factor /= self._by
        self.losses = last


@METHODS.register("svrg")
class SVRG(ForwardOnly):
    """Every q-th step: g <- estimate over the full batch, anchor <- theta, theta <- theta - lr_full g.

    Otherwise, on a minibatch I, with one direction z for both estimates:

    theta <- theta - lr (pg_I(theta) z - pg_I(anchor) z + g).

    Given z and g, the expectation over I of the first two terms is (z . (grad F(theta) - grad F(anchor))) z, and they
    cancel exactly at the anchor; docs/methods.md says what that is worth. g is one (key, coefficient), and the anchor
    is theta minus the updates since, so nothing as large as the weights is stored. A full-batch step takes 2 N queries,
    a minibatch step 4 b.

    `control_variate` selects variants: `independent` (another z at the anchor), `full-batch` (g's z for both),
    `as-released` (the paper's released code: no anchor, the second estimate after the first update, three different z),
    and `none` (theta <- theta - lr g, which takes no queries). With q = 1 every step is full-batch MeZO.

    Raises:
        ConfigError: the anchor batch is larger than the data, or the data is too large for a full batch by default.
    """

    Config = SVRGConfig
    paper = "Gautam et al. 2024, Variance-reduced Zeroth-Order Methods for Fine-Tuning Language Models"

    def __init__(self, config: SVRGConfig, context: TrainingContext) -> None:
        super().__init__(config, context)
        if config.anneal and context.log_ties:
            raise ConfigError(
                "method.anneal looks for a loss that grows by a factor, but that of "
                f"{context.objective_name!r} is minus a score",
                "set method.anneal=false, or another training.objective",
            )
        self._config: SVRGConfig = config
        zo = self._zo
        zo.check_addable(config.name)
        self._full_size = _anchor_size(config, len(context.examples), zo.points)
        zo.check_direction_sharing(
            "anchor_directions", config.anchor_directions or config.directions, config.evaluator.name
        )
        self._examples, self._make, self._length, self._seed = (
            context.examples,
            context.collate,
            context.length,
            context.seed,
        )
        self._lr, self._lr_full = self._rates()
        self._annealing = Annealing(self._batches.per_epoch, config.anneal_threshold, config.anneal_factor)
        self._anchored = AnchoredStep(zo, config)
        self.queries_per_step = zo.points * self._full_size

    def _rates(self) -> tuple[float, float]:
        lr = float(self._config.rule.options["lr"])
        return lr, lr if self._config.lr_full is None else self._config.lr_full

    def step(self, number: int) -> StepLog:
        """Make a step. A full-batch step with a non-finite loss is repeated in the next step."""
        q, before = self._config.anchor_interval, self.counts.copy()
        factor = self._annealing.factor * self.lr_factor(number)
        full = number % q == 0 or self._anchored.full is None
        lr = (self._lr_full if full else self._lr) * factor
        loss, coefficients, update = self._full_step(number, lr) if full else self._mini_step(number, lr)
        plain = self._zo.rule.plain and self._config.control_variate != "as-released"
        return StepLog(loss, self.counts - before, {"lr": lr, **coefficients}, update, lr if plain else None)

    def _full_step(self, number: int, lr: float) -> tuple[float, dict[str, float], Update]:
        full, update = self._anchored.full_step(number, self._full_batch(number), lr, self._full_size)
        few = len(full.projected_gradients) <= _MOST_LOGGED
        return full.loss, self._coefficients(full, "_full") if few else {}, update

    def _full_batch(self, number: int) -> list[LossRequest]:
        """The anchor batch in chunks of similar length."""
        chosen: Sequence[int] = range(len(self._examples))
        if self._full_size < len(self._examples):
            drawn = number if self._config.anchor_sample == "fresh" else 0
            chosen = permutation(Key(self._seed, drawn), "svrg/anchor", len(self._examples))[: self._full_size]
        examples = [self._examples[i] for i in chosen]
        if self._length is not None:
            examples.sort(key=self._length)
        chunk = self._config.anchor_chunk or self._config.batch_size
        pieces = [examples[start : start + chunk] for start in range(0, len(examples), chunk)]
        return [(self._objective, self._make(piece)) for piece in pieces]

    def _mini_step(self, number: int, lr: float) -> tuple[float, dict[str, float], Update]:
        """A minibatch step; the class describes each kind of pair."""
        asks: list[LossRequest] = []
        if self._config.control_variate != "none":
            asks = [(self._objective, self._batches[number - number // self._config.anchor_interval - 1])]
        here, there, update = self._anchored.mini_step(number, asks, lr)
        coefficients = {} if there is None else self._coefficients(here) | self._coefficients(there, "_anchor")
        if self._config.anneal:
            self._annealing.observe(here.loss)
        return here.loss, coefficients, update

    def state_dict(self, weights: bool) -> StateDict:
        """The state: g, the anchor, and the annealing."""
        annealing = StateDict({"factor": self._annealing.factor, "losses": self._annealing.losses})
        return self._anchored.put_state(super().state_dict(weights)).put("annealing", annealing)

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        self._anchored.load_state(state)
        annealing = state.part("annealing").values
        self._annealing.factor, self._annealing.losses = annealing["factor"], list(map(float, annealing["losses"]))

    def steps_within(self, queries: int) -> int:
        full, rest = self.queries_per_step, self._config.anchor_interval - 1
        mini = 0 if self._config.control_variate == "none" else 2 * self._zo.points * self._config.batch_size
        rounds, left = divmod(queries, full + rest * mini)
        if left < full:
            return rounds * (rest + 1)
        return rounds * (rest + 1) + 1 + (rest if not mini else min(rest, (left - full) // mini))

    def check_steps(self, steps: int) -> None:
        """Check that there are enough steps: annealing compares two epochs."""
        config, per_epoch = self._config, self._batches.per_epoch
        minibatches = steps - -(-steps // config.anchor_interval)
        if config.anneal and minibatches <= 2 * per_epoch:
            raise ConfigError(
                f"method.anneal compares the mean losses of two epochs, but {steps} steps make {minibatches} minibatch "
                f"steps, and an epoch has {per_epoch}",
                "train longer, or set method.anneal=false",
            )


def _anchor_size(config: SVRGConfig, examples: int, points: int) -> int:
    """The number of examples in a full-batch step.

    Raises:
        ConfigError: more than there are, or very many by default.
    """
    size, q = config.anchor_batch_size, config.anchor_interval
    if size is not None and size > examples:
        raise ConfigError(
            f"method.anchor_batch_size is {size}, but there are {examples} training examples",
            "leave it out, for all of them, or lower it",
        )
    if size is None and examples > LARGEST_FULL:
        often = "every step" if q == 1 else f"every {q} steps"
        raise ConfigError(
            f"an anchor over all {examples:,} training examples takes {points * examples:,} queries {often}",
            f"set method.anchor_batch_size=512, or method.anchor_batch_size={examples} if that is meant",
        )
    return size or examples
