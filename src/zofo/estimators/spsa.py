"""Finite differences along random directions: two-sided, one-sided, and one direction for each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from zofo.displacement import Displacement, Key
from zofo.estimators.base import ESTIMATORS, Estimator
from zofo.evaluators import Point


@ESTIMATORS.register("two-sided")
class TwoSided(Estimator):
    """SPSA: pg_i = mean over examples of [L(theta + e z_i) - L(theta - e z_i)] / 2e; gradient = mean_i pg_i z_i.

    2 n queries an example for n directions. Its bias falls as e**2.

    Source: Spall (1992); MeZO (Malladi et al. 2023), definition 1.
    """

    def ask(self, keys: Sequence[Key]) -> Sequence[Point]:
        """+e z and -e z for each key in turn: 2 n points."""
        return [Displacement({key: sign * self.epsilon}) for key in keys for sign in (1.0, -1.0)]

    def differences(self, keys: Sequence[Key], losses: torch.Tensor) -> tuple[Displacement, Mapping[Key, float]]:
        """See `Estimator.differences`."""
        projected_gradients = ((losses[0::2] - losses[1::2]).mean(dim=1) / (2 * self.epsilon)).tolist()
        return _mean_of_directions(keys, projected_gradients)


@ESTIMATORS.register("one-sided")
class OneSided(Estimator):
    """Forward differences: pg_i = mean over examples of [L(theta + e z_i) - L(theta)] / e; gradient = mean_i pg_i z_i.

    n + 1 queries an example for n directions, since all share L(theta). Its bias falls as e.
    """

    def ask(self, keys: Sequence[Key]) -> Sequence[Point]:
        """Theta itself, then +e z for each key: n + 1 points."""
        return [Displacement(), *(Displacement({key: self.epsilon}) for key in keys)]

    def differences(self, keys: Sequence[Key], losses: torch.Tensor) -> tuple[Displacement, Mapping[Key, float]]:
        """See `Estimator.differences`."""
        projected_gradients = ((losses[1:] - losses[0]).mean(dim=1) / self.epsilon).tolist()
        return _mean_of_directions(keys, projected_gradients)


@ESTIMATORS.register("per-example")
class PerExample(Estimator):
    """Two-sided differences with a direction of its own for each of the B examples: gradient = mean_b pg_b z_b.

    pg_b = [l_b(theta + e z_b) - l_b(theta - e z_b)] / 2e uses example b alone, so one batch averages B directions for
    the forwards of one. Needs an evaluator that can visit one point for each example.
    """

    per_example = True

    def ask(self, keys: Sequence[Key]) -> Sequence[Point]:
        """Two points, each a displacement for every example; `keys` holds one key an example."""
        return [[Displacement({key: sign * self.epsilon}) for key in keys] for sign in (1.0, -1.0)]

    def differences(self, keys: Sequence[Key], losses: torch.Tensor) -> tuple[Displacement, Mapping[Key, float]]:
        """See `Estimator.differences`."""
        projected_gradients = ((losses[0] - losses[1]) / (2 * self.epsilon)).tolist()
        return _mean_of_directions(keys, projected_gradients)


def _mean_of_directions(
    keys: Sequence[Key], projected_gradients: Sequence[float]
) -> tuple[Displacement, Mapping[Key, float]]:
    by_key = dict(zip(keys, projected_gradients, strict=True))
    return Displacement(by_key) / len(keys), by_key
