"""Warnings during training about steps that break the model, or move nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from types import MappingProxyType
from typing import Any

import torch

from zofo.backbone import Backbone, Update
from zofo.config import parse_model
from zofo.errors import ConfigError
from zofo.methods import MethodConfig, StepLog
from zofo.training.callbacks import Callback
from zofo.training.run_logs import loss_of_step
from zofo.trees import get_by_path, without

WINDOW = 5
"""Steps whose median is compared: one batch that is hard says nothing."""
_TIMES, _LEAST = 4.0, 0.5  # number of first losses, and the minimum increase: losses near 0 can grow by large factors
_BROKEN = 3.0  # times the first loss: higher ones are not a measure of the start
_FAR = 0.5  # as a share of their length, that weights have moved when steps were certainly too large
_LESS = "lower what the steps are multiplied by"
_LOWER = 4.0  # what a rate that diverges is divided by: the advice of `zofo tune lr`
_ABSURD = 100.0  # times the default, from which on the default is advised
_RATES = ("rule.lr", "lr", "lr_full", "lr_lower", "lr_adapter")


class _Alarm(Callback):
    """Warns once, and repeats the message at the end, since it may have scrolled off the screen."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._said: list[str] = []

    def conclusions(self) -> list[str]:
        return self._said


def default_rates(method: MethodConfig) -> dict[str, Any]:
    """The options of a method with its default learning rates; None if it has no default."""
    given = method.model_dump(exclude_unset=True)
    for key in _RATES:
        given = without(given, key.split("."))
    try:
        return parse_model(type(method), given).model_dump()
    except ConfigError:
        return {}


class DivergenceWarning(_Alarm):
    """Warns once that training diverges, and names the learning rate to lower. Either of these triggers it:

    - The median loss of the last 5 steps is more than 4 times the initial loss, and above it by more than 0.5. The
      initial loss is the median of the first 5, but at most 3 times the first one, the only one before any update. An
      objective that can be below 0, such as minus a score, is not tested for the factor.
    - Zeroth-order steps have moved the model's weights by half of their length or more, according to the coefficients
      of the updates: norms and losses saturate, so weights that are far away need not have a higher loss. Not tested
      for masked directions, or updates along directions of earlier steps, such as momentum.

    Args:
        options: options of the method, with its learning rates.
        defaults: the same options with default rates, recommended if a rate is more than 100 times as high.
        tuned: the method, if `zofo tune lr` supports it.
        backbone: the weights that zeroth-order steps move, before the first step; None if they move an adapter or
            nothing, use a mask, or their updates are not displacements.
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        options: Mapping[str, Any],
        backbone: Backbone | None = None,
        defaults: Mapping[str, Any] = MappingProxyType({}),
        tuned: str | None = None,
    ) -> None:
        super().__init__(warn)
        self._options, self._defaults = options, defaults
        self._tune = "" if tuned is None else f"; zofo tune lr finds the largest stable rate of method={tuned}"
        self._first: list[float] = []
        self._last: list[float] = []
        self._moved, self._length, self._size = 0.0, 0.0, 0
        if backbone is not None:
            norms = (torch.linalg.vector_norm(t, dtype=torch.float32).item() for t in backbone.tensors.values())
            self._length, self._size = math.hypot(*norms), backbone.size

    def begin(
        self, lines: Iterable[Mapping[str, Any]], updates: Mapping[int, Sequence[Update]] = {}
    ) -> DivergenceWarning:
        """Continue with the logs of earlier steps: the line of each, and its updates from the trajectory."""
        for line in lines:
            if line["event"] == "step":
                for update in updates.get(line["step"], ()):
                    self._move(line["step"], update)
                self._see(line["step"], loss_of_step(line))
        return self

    def after_step(self, number: int, log: StepLog) -> None:
        if log.update is not None:
            self._move(number, log.update)
        self._see(number, log.loss)

    def _move(self, number: int, update: Update) -> None:
        terms = dict(update.displacement.items())
        if update.dense_update_fn is not None or any(key.step != number for key in terms):
            self._length = 0.0
        self._moved *= (1 - (update.displacement_decay or 0.0)) ** 2
        self._moved += self._size * math.fsum(c**2 for c in terms.values())  # |z|^2 is about the number of entries

    def _see(self, number: int, loss: float) -> None:
        if len(self._first) < WINDOW:
            self._first.append(loss)
        self._last = [*self._last[1 - WINDOW :], loss]
        if self._said:
            return None
        if self._length and math.sqrt(self._moved) > _FAR * self._length:
            share = f"{100 * math.sqrt(self._moved) / self._length:.0f} %"
            steps = f"{number + 1} step{'s' * (number > 0)}"
            return self._say(f"{steps} moved the weights by about {share} of their length")
        if len(self._last) < WINDOW or min(self._first) <= 0:
            return None
        start, now = min(median(self._first), _BROKEN * self._first[0]), median(self._last)
        if math.isfinite(now) and now > max(_TIMES * start, start + _LEAST):
            was = f"it was {self._first[0]:.3g} before the first step"
            self._say(f"{was}, and {now:.3g} over the last {WINDOW} of {number + 1}")
        return None

    def _say(self, what: str) -> None:
        lower = self._lower()
        stop = f"Stop it with Ctrl-C and try {lower}{self._tune}"
        self._warn(f"training diverges: {what}. {stop if lower else f'Stop it, and {_LESS}'}")
        again = f"try {lower}{self._tune}" if lower else _LESS
        self._said = [f"warning: training diverged: {what}; {again}"]

    def _lower(self) -> str:
        """What to type: each rate divided by four, or the default instead of an extreme one; "" if there is none."""
        rates = {key: get_by_path(self._options, key) for key in _RATES}
        known = {key: rate for key, rate in rates.items() if isinstance(rate, int | float) and rate > 0}
        usual = {key: get_by_path(self._defaults, key) or math.inf for key in known}
        lower = {key: usual[key] if rate > _ABSURD * usual[key] else rate / _LOWER for key, rate in known.items()}
        return " ".join(f"method.{key}={rate:.2g}" for key, rate in lower.items())


class TiesWarning(_Alarm):
    """Warns once if no direction has changed an objective without a gradient for many steps in a row."""

    STEPS = 10

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(warn)
        self._in_a_row = 0

    def begin(self, lines: Iterable[Mapping[str, Any]]) -> TiesWarning:
        """Continue with the log of earlier steps."""
        for line in lines:
            if line["event"] == "step":
                self._see(line["step"], line)
        return self

    def after_step(self, number: int, log: StepLog) -> None:
        self._see(number, log.coefficients)

    def _see(self, number: int, values: Mapping[str, Any]) -> None:
        ties = [value for name, value in values.items() if name.startswith("ties")]
        self._in_a_row = self._in_a_row + 1 if ties and all(value == 1 for value in ties) else 0
        if self._in_a_row == self.STEPS:
            advice = "is the reward constant? Else raise method.estimator.epsilon (1e-2) or method.batch_size"
            moved = "changed any score, so that none moved theta for it"
            said = f"no direction of {self.STEPS} steps up to step {number + 1} {moved}: {advice}"
            self._warn(said)
            self._said = [f"warning: {said}"]
