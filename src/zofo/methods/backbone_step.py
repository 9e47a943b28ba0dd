"""The zeroth-order step of a bilevel problem on theta, of one task or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from zofo.backbone import Update
from zofo.displacement import Displacement, Key
from zofo.estimators import Direction
from zofo.evaluators import Ask
from zofo.methods.moved import Moved
from zofo.methods.zeroth_order import ZerothOrder
from zofo.noise import words

BackboneMove = Literal["zeroth-order", "frozen", "random"]
"""The method, and two controls: theta as it is, or moved elsewhere as far."""


class BackboneStep:
    """theta <- theta - lr [pg F(p; B_f) + penalty (pg F(p; B_p) - pg F(s; B_p))] z, by whatever rule.

    With several tasks each F is the mean over them, each with its own p and s: one z for all, or one for each example.

    Args:
        zo: its parts.
        random: move theta along other directions by as much, as a control.

    Attributes:
        moved: how far theta has come.
    """

    def __init__(self, zo: ZerothOrder, random: bool) -> None:
        self._zo, self._random = zo, random
        self.moved = Moved(zo.backbone)

    def __call__(
        self, number: int, penalty: float, asks: Sequence[Ask], examples: int
    ) -> tuple[dict[str, float], Update]:
        """Make step `number`.

        Args:
            number: of the outer step.
            penalty: of this step.
            asks: F(theta, p; B_f) of every task, then all F(theta, p; B_p), then all F(theta, s; B_p).
            examples: in all B_f together, and in all B_p together.

        Returns:
            What a log holds of it, and what happened to theta.
        """
        zo = self._zo
        along_f = zo.directions(number, examples=examples)
        along_p = zo.directions(number, first=examples, examples=examples)
        with zo.evaluator.visit(asks, zo.estimator.ask(_side_by_side(along_f, along_p, along_p))) as visit:
            parts = visit.losses.chunk(3, dim=1)
            told = zip((along_f, along_p, along_p), parts, strict=True)
            upper, lower_p, lower_s = (zo.estimator.tell(along, losses) for along, losses in told)
            gradient = upper.gradient + penalty * (lower_p.gradient - lower_s.gradient)
            if self._random:
                other_f = zo.directions(number, after=1, examples=examples)
                other_p = zo.directions(number, first=examples, after=1, examples=examples)
                gradient = _elsewhere(gradient, dict(_pairs(along_f, other_f) + _pairs(along_p, other_p)))
            update, state = zo.rule.update(upper.with_gradient(gradient), zo.state)
            visit.update(update)
        zo.state = state
        self.moved.add(update)

        coefficients = {"penalty_gap": lower_p.loss - lower_s.loss}
        if (moved := self.moved.relative) is not None:
            coefficients["backbone_moved"] = moved
        for part, estimate in (("upper", upper), ("lower_p", lower_p), ("lower_s", lower_s)):
            for key, projected_gradient in estimate.projected_gradients.items():
                coefficients[f"projected_gradient_{part}_{key.index}"] = projected_gradient
        return coefficients, update


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
