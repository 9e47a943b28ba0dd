"""The contract of estimators: say where to ask, then turn the answers into a gradient. Pure functions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from zofo.config import Positive
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, NonFiniteError
from zofo.evaluators import Point
from zofo.registry import Registry


@dataclass(frozen=True)
class Estimate:
    """What an estimator makes of the losses it asked for.

    Args:
        loss: mean of the losses at the points that were asked for: an estimate of the loss at theta.
        gradient: estimate of the gradient of the mean loss, one term for each direction.
        projected_gradients: for each key, the slope of the mean loss along its direction, before any average over
            directions.
        queries: forward passes of one example that the losses took.
    """

    loss: float
    gradient: Displacement
    projected_gradients: Mapping[Key, float]
    queries: int

    @classmethod
    def of(cls, gradient: Displacement) -> Estimate:
        """A gradient that was read from a log; the losses behind it are not known."""
        return cls(math.nan, gradient, {}, 0)

    def with_gradient(self, gradient: Displacement) -> Estimate:
        """The same estimate with another gradient, for sums of several losses."""
        return replace(self, gradient=gradient)


class Estimator(ABC):
    """A zeroth-order estimator of the gradient of the mean loss over the examples of a batch.

    Args:
        epsilon: how far from theta the losses are asked for, > 0.
    """

    per_example = False
    """Whether it wants one key for each example instead of one for each direction."""

    def __init__(self, epsilon: Positive = 1e-3) -> None:
        if not 0 < epsilon < math.inf:
            raise ConfigError(f"estimator.epsilon is {epsilon}, but must be a finite number above 0")
        self.epsilon = epsilon

    @abstractmethod
    def ask(self, keys: Sequence[Key]) -> Sequence[Point]:
        """The points at which `tell` needs losses, in its order."""

    def tell(self, keys: Sequence[Key], losses: torch.Tensor) -> Estimate:
        """Turn losses into an estimate.

        Args:
            keys: the directions, as given to `ask`.
            losses: one for each point and example, shape [points, examples]. Differences are taken for each example and
                in float64, before any average.

        Raises:
            NonFiniteError: a loss is not a finite number; it is named with its point and key.
        """
        self._refuse_non_finite(keys, losses)
        exact = losses.cpu().double()  # few numbers; not every device has float64
        gradient, projected_gradients = self.differences(keys, exact)
        return Estimate(exact.mean().item(), gradient, projected_gradients, losses.numel())

    @abstractmethod
    def differences(self, keys: Sequence[Key], losses: torch.Tensor) -> tuple[Displacement, Mapping[Key, float]]:
        """The gradient estimate and the projected gradient of each key, from finite float64 losses."""

    def _refuse_non_finite(self, keys: Sequence[Key], losses: torch.Tensor) -> None:
        bad = (~torch.isfinite(losses)).nonzero()
        if not len(bad):
            return
        point, example = (int(i) for i in bad[0])
        asked = self.ask(keys)[point]
        where = asked if isinstance(asked, Displacement) else asked[example]
        terms = " + ".join(f"{c:+g} * {k}" for k, c in where.items()) or "theta itself"
        step = keys[0].step if keys else None
        raise NonFiniteError(f"loss {losses[point, example].item()} of example {example} at {terms}", step)


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator")
