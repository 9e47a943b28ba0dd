"""Finite differences along random directions: two-sided and one-sided."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zofo.displacement import Displacement
from zofo.estimators.base import ESTIMATORS, Direction, Estimator, along
from zofo.evaluators import Point


@ESTIMATORS.register("two-sided")
class TwoSided(Estimator):
    """SPSA: the slope of a loss along z is [L(theta + e z) - L(theta - e z)] / 2e; the gradient is its mean times z.

    2 n queries an example for n directions. Its bias falls as e**2.

    Source: Spall (1992); MeZO (Malladi et al. 2023), definition 1.
    """

    def ask(self, directions: Sequence[Direction]) -> Sequence[Point]:
        """+e z and -e z for each direction in turn: 2 n points."""
        return [along(direction, sign * self.epsilon) for direction in directions for sign in (1.0, -1.0)]

    def slopes(self, losses: torch.Tensor) -> torch.Tensor:
        return (losses[0::2] - losses[1::2]) / (2 * self.epsilon)


@ESTIMATORS.register("one-sided")
class OneSided(Estimator):
    """Forward differences: the slope of a loss along z is [L(theta + e z) - L(theta)] / e.

    n + 1 queries an example for n directions, since all share L(theta). Its bias falls as e.
    """

    def ask(self, directions: Sequence[Direction]) -> Sequence[Point]:
        """Theta itself, then +e z for each direction: n + 1 points."""
        return [Displacement(), *(along(direction, self.epsilon) for direction in directions)]

    def slopes(self, losses: torch.Tensor) -> torch.Tensor:
        return (losses[1:] - losses[0]) / self.epsilon
