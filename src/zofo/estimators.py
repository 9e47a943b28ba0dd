"""Zeroth-order gradient estimators: choose the points, then turn the losses there into a gradient. Pure functions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from zofo.config import PartConfig, Positive
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, NonFiniteError
from zofo.evaluators import Point
from zofo.registry import Registry

Direction = Key | Sequence[Key]
"""One key for the whole batch, or one for each example; examples with the same key share a direction."""


@dataclass(frozen=True)
class Estimate:
    """The result of an estimator.

    Args:
        loss: mean of the losses at all points: an estimate of the loss at theta.
        gradient: estimated gradient of the mean loss, one term per key.
        projected_gradients: for each key, the slope of the mean loss along its direction, over the examples that use
            it, before any average over directions.
        queries: number of forward passes of a single example.
        spread: sample standard deviation (n - 1) of the slopes of all examples along all directions; 0 if they differ
            by rounding only, nan if there is only one.
    """

    loss: float
    gradient: Displacement
    projected_gradients: Mapping[Key, float]
    queries: int
    spread: float = math.nan

    @classmethod
    def from_gradient(cls, gradient: Displacement) -> Estimate:
        """An estimate with a gradient read from a log; its losses are not known."""
        return cls(math.nan, gradient, {}, 0)

    def with_gradient(self, gradient: Displacement) -> Estimate:
        """A copy with another gradient, for sums of several losses."""
        return replace(self, gradient=gradient)

    def slopes(self, what: str = "projected_gradient") -> dict[str, float]:
        """The slope along each key under the name that logs use: `what` and the key's index."""
        return {f"{what}_{key.index}": slope for key, slope in self.projected_gradients.items()}

    @property
    def ties(self) -> float:
        """The share of keys along which the loss does not change."""
        return sum(slope == 0 for slope in self.projected_gradients.values()) / len(self.projected_gradients)

    def normalized_by_std(self) -> Estimate:
        """The same estimate with gradient / spread, so that the step length does not depend on the scale of the losses.

        If all slopes are equal, their scale is unknown, and the gradient is 0.

        Source: FZOO (Dang et al. 2025), which divides by the standard deviation of the losses along several
        directions; GRZO (2026), which does so with a direction for each example.
        """
        return self.with_gradient(self.gradient / self.spread if self.spread > 0 else Displacement())


class Estimator(ABC):
    """A zeroth-order estimator of the gradient of the mean loss over the examples of a batch.

    With n directions the estimate is the mean over them. A direction shared by the whole batch is multiplied by the
    slope of the mean loss; one that only some examples use, by the slope of their share of it. Both are unbiased.

    Args:
        epsilon: distance of the points from theta, in units of a direction, > 0.

    Attributes:
        linear: whether the estimate is linear in the losses, so that it scales with them and estimates of several
            losses can be added.
    """

    linear: bool = True
    compares_members: ClassVar[bool] = False
    """Whether its points are members of a population, of which each has one score."""

    def __init__(self, epsilon: Positive = 1e-3) -> None:
        if not 0 < epsilon < math.inf:
            raise ConfigError(
                f"method.estimator.epsilon is {epsilon}, but must be a finite number above 0",
                "set method.estimator.epsilon=1e-3",
            )
        self.epsilon = epsilon

    @abstractmethod
    def ask(self, directions: Sequence[Direction]) -> Sequence[Point]:
        """The points at which `tell` needs losses, in the order in which it expects them."""

    @abstractmethod
    def slopes(self, losses: torch.Tensor) -> torch.Tensor:
        """The slope of each example along each of n directions, from losses [points, examples]: [n, examples]."""

    def shaped(self, losses: torch.Tensor) -> torch.Tensor:
        """The score u of each member of a population from its mean loss (lower is better), for estimators that compare
        members.

        Args:
            losses: float64, shape [members].

        Returns:
            float64, shape [members].
        """
        raise NotImplementedError(f"{type(self).__name__} does not compare members")

    def tell(self, directions: Sequence[Direction], losses: torch.Tensor) -> Estimate:
        """Turn losses into an estimate.

        Args:
            directions: as given to `ask`.
            losses: shape [points, examples]. Differences are taken per example and in float64, before any average.

        Raises:
            NonFiniteError: a loss is not finite; the message names its point and key.
        """
        self.check_finite(directions, losses)
        exact = losses.cpu().double()  # few numbers; not every device has float64
        slopes = self.slopes(exact)
        examples = exact.shape[1]
        gradient: dict[Key, float] = {}
        projected_gradients: dict[Key, float] = {}
        for direction, row in zip(directions, slopes, strict=True):
            sums: dict[Key, list[float]] = {}
            if isinstance(direction, Key):
                sums[direction] = row.tolist()
            else:
                for key, slope in zip(direction, row.tolist(), strict=True):
                    sums.setdefault(key, []).append(slope)
            for key, own in sums.items():
                projected_gradients[key] = math.fsum(own) / len(own)
                share = math.fsum(own) / examples / len(directions)
                gradient[key] = gradient.get(key, 0.0) + share
        return Estimate(
            loss=exact.mean().item(),
            gradient=Displacement(gradient),
            projected_gradients=projected_gradients,
            queries=losses.numel(),
            spread=self._spread(slopes, exact),
        )

    def _spread(self, slopes: torch.Tensor, losses: torch.Tensor) -> float:
        """The sample standard deviation; 0 if it is no larger than the rounding of the losses explains."""
        if slopes.numel() < 2:
            return math.nan
        spread = slopes.std().item()
        rounding = torch.finfo(torch.float32).eps * losses.abs().max().item() / self.epsilon
        return spread if spread > rounding else 0.0

    def check_finite(self, directions: Sequence[Direction], losses: torch.Tensor) -> None:
        """Raise NonFiniteError if a loss at the points of `ask` is not finite."""
        bad = (~torch.isfinite(losses)).nonzero()
        if not len(bad):
            return
        point, example = (int(i) for i in bad[0])
        asked = self.ask(directions)[point]
        where = asked if isinstance(asked, Displacement) else asked[example]
        terms = " + ".join(f"{c:+g} * {k}" for k, c in where.items()) or "theta itself"
        first = directions[0] if directions else None
        key = first if isinstance(first, Key) or not first else first[0]
        step = key.step if isinstance(key, Key) else None
        raise NonFiniteError(f"loss {losses[point, example].item()} of example {example} at {terms}", step)


def along(direction: Direction, coefficient: float) -> Point:
    """The point at theta + coefficient * direction; per example if they have their own directions."""
    if isinstance(direction, Key):
        return Displacement({direction: coefficient})
    return [Displacement({key: coefficient}) for key in direction]


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator")


class EstimatorConfig(PartConfig):
    """How losses become a gradient estimate."""

    registry = ESTIMATORS
    default = "two-sided"


@ESTIMATORS.register("two-sided")
class TwoSided(Estimator):
    """SPSA: the slope of a loss along z is [L(theta + e z) - L(theta - e z)] / 2e; the gradient is its mean times z.

    Takes 2 n queries per example for n directions. The bias is O(e**2).

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

    Takes n + 1 queries per example for n directions, since all share L(theta). The bias is O(e).
    """

    def ask(self, directions: Sequence[Direction]) -> Sequence[Point]:
        """Theta itself, then +e z for each direction: n + 1 points."""
        return [Displacement(), *(along(direction, self.epsilon) for direction in directions)]

    def slopes(self, losses: torch.Tensor) -> torch.Tensor:
        return (losses[1:] - losses[0]) / self.epsilon


Shape = Literal["z-score", "rank", "plain"]


@ESTIMATORS.register("population")
class Population(Estimator):
    """A population of members theta + e z_i with mean batch losses l_i; the estimate is the mean of u_i z_i.

    `scores` says how u_i follows from l_i: `z-score` is (l_i - mean) / standard deviation over the members; `rank` is
    the rank of l_i, from -1/2 for the lowest to 1/2 for the highest, with ties averaged; `plain`, which is unbiased, is
    (l_i - mean of the others) / e. The first two do not depend on e or on the scale of the loss, so the learning rate
    is a length. If all l_i are equal, they are 0.

    With `mirrored`, each direction has two members, +e z and -e z, whose scores are subtracted. With `plain` scores
    this equals the mean of `two-sided` estimates bit for bit.

    Takes N queries per example for N members: N directions, or N / 2 mirrored ones.

    Args:
        epsilon: sigma, the distance of the members from theta, > 0.
        mirrored: evaluate each direction on both sides.
        scores: how losses become scores.

    Source: Salimans et al. (2017), "Evolution Strategies as a Scalable Alternative to Reinforcement Learning" (ranks,
    mirrored); Qiu et al. (2025), "Evolution Strategies at Scale" (z-scores, one-sided).
    """

    compares_members = True

    def __init__(self, epsilon: Positive = 1e-3, mirrored: bool = True, scores: Shape = "z-score") -> None:
        super().__init__(epsilon)
        self.mirrored, self._scores = mirrored, scores
        self.linear = scores == "plain"

    def ask(self, directions: Sequence[Direction]) -> Sequence[Point]:
        """+e z for each direction, followed by -e z if mirrored."""
        signs = (1.0, -1.0) if self.mirrored else (1.0,)
        return [along(direction, sign * self.epsilon) for direction in directions for sign in signs]

    def slopes(self, losses: torch.Tensor) -> torch.Tensor:
        """The score u of each direction, the same for all examples; for `plain` scores, the slope of each example."""
        members = losses if self._scores == "plain" else self.shaped(losses.mean(dim=1))[:, None].expand_as(losses)
        unit = 2 * self.epsilon if self._scores == "plain" else 2.0
        if self.mirrored:
            return (members[0::2] - members[1::2]) / unit
        if self._scores != "plain":
            return members
        others = len(members) - 1
        return (members - (members.sum(dim=0) - members) / others) / self.epsilon if others else members / self.epsilon

    def shaped(self, losses: torch.Tensor) -> torch.Tensor:
        if self._scores == "plain":
            return (losses - losses.mean()) / self.epsilon
        rounding = torch.finfo(torch.float32).eps * losses.abs().max()
        if losses.max() - losses.min() <= rounding:
            return torch.zeros_like(losses)
        if self._scores == "z-score":
            return (losses - losses.mean()) / losses.std(correction=0)
        below = (losses[:, None] > losses[None, :]).sum(dim=1).double()
        ties = (losses[:, None] == losses[None, :]).sum(dim=1).double()
        return (below + (ties - 1) / 2) / (len(losses) - 1) - 0.5
