"""A population of displaced models whose scores are compared with each other: evolution strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from zofo.config import Positive
from zofo.estimators.base import ESTIMATORS, Direction, Estimator, along
from zofo.evaluators import Point

Shape = Literal["z-score", "rank", "plain"]


@ESTIMATORS.register("population")
class Population(Estimator):
    """Members theta + e z_i, each with the mean loss l_i of the batch; the estimate is the mean over them of u_i z_i.

    u_i is what `scores` makes of l_i: `z-score`, (l_i - mean) / standard deviation over the members; `rank`, the rank
    of l_i, from -1/2 for the lowest to 1/2 for the highest, ties in the middle; `plain`, which is unbiased,
    (l_i - mean of the others) / e. The first two do not follow the scale of the loss, nor e: a learning rate is a
    length. Where all l_i are equal, they are 0.

    Mirrored, each direction gives two members, +e z and -e z, whose u are subtracted: of `plain` scores that is the
    mean of `two-sided` estimates, to the bit.

    N queries an example for N members, which is n directions, or 2 n mirrored ones.

    Args:
        epsilon: sigma, how far the members are from theta, > 0.
        mirrored: each direction has a member on both of its sides.
        scores: what is made of the losses.

    Source: Salimans et al. (2017), "Evolution Strategies as a Scalable Alternative to Reinforcement Learning" (ranks,
    mirrored); Qiu et al. (2025), "Evolution Strategies at Scale" (z-scores, one-sided).
    """

    compares_members = True

    def __init__(self, epsilon: Positive = 1e-3, mirrored: bool = True, scores: Shape = "z-score") -> None:
        super().__init__(epsilon)
        self.mirrored, self._scores = mirrored, scores
        self.linear = scores == "plain"

    def ask(self, directions: Sequence[Direction]) -> Sequence[Point]:
        """+e z for each direction, and where they are mirrored -e z after it."""
        signs = (1.0, -1.0) if self.mirrored else (1.0,)
        return [along(direction, sign * self.epsilon) for direction in directions for sign in signs]

    def slopes(self, losses: torch.Tensor) -> torch.Tensor:
        """u of each direction, the same for all examples; of `plain` scores, the slope of each example."""
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
