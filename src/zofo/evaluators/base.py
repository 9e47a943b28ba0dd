"""The contract of evaluators: losses at points, and the weights as they were when it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zofo.backbone import Backbone, Theta, Update
from zofo.config import PartConfig
from zofo.displacement import Displacement
from zofo.evaluators.counts import Counts
from zofo.registry import Registry
from zofo.state_dict import StateDict

Objective = Callable[[nn.Module, Any], torch.Tensor]
"""An objective: (model, batch) -> one loss for each example, float32, or float64 of a float64 model."""

LossRequest = tuple[Objective, Any]
"""What is asked for at each point: an objective, and the batch it is given."""

Point = Displacement | Sequence[Displacement]
"""Where losses are asked for: one displacement for the whole batch, or one for each example."""


def own_points(point: Point) -> bool:
    """Whether each example has a displacement of its own."""
    return not isinstance(point, Displacement)


def displacements(point: Point) -> Sequence[Displacement]:
    """The displacement of all examples, alone, or those of each."""
    return [point] if isinstance(point, Displacement) else point


def points_of_part(points: Sequence[Point], start: int, stop: int) -> list[Point]:
    """The same points for examples `start` to `stop`."""
    return [point if isinstance(point, Displacement) else point[start:stop] for point in points]


@dataclass
class Probe:
    """The inside of `Evaluator.probe`: the losses that were found, and one chance to update on the way home.

    Args:
        losses: float32, or float64 of a float64 model; shape [points, examples].
        update: applies an update to theta, in the same sweep back where there is one.
    """

    losses: torch.Tensor
    update: Callable[[Update], None]


class Evaluator(ABC):
    """The only code that looks at a model at other points than where it stands.

    Attributes:
        per_example: whether it can visit a point of its own for each example of a batch.
        writes_points: whether it writes each point into the weights, so that a replay has to do so, too.
        repeats_batch: whether it asks for all points in one call of the objective, with the batch repeated.
        copies: of theta, that it keeps beside it.
        theta: what it looks around.
        counts: forwards and queries made so far by this evaluator.
        whole: the points of all examples, while it is asked for the losses of some of them only; else None. What is
            decided for all examples, such as when updates are written, is decided by these.
        left_out: the names of tensors that a check took out of theta, because it cannot move them.
        notes: what a user should know of that.
    """

    per_example = False
    writes_points = False
    repeats_batch = False
    whole: Sequence[Point] | None = None
    copies = 0
    theta: Theta
    counts: Counts
    left_out: frozenset[str] = frozenset()
    notes: Sequence[str] = ()

    @property
    def backbone(self) -> Backbone:
        """The tensors of theta."""
        return self.theta.backbone

    @abstractmethod
    def probe(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> AbstractContextManager[Probe]:
        """Ask for the losses at `points`; the weights may be away from home only inside the `with` block.

        When the block ends, by itself or by an exception, the weights are home: updated if `Probe.update` was called in
        it, as before otherwise. Only an interrupt in the middle of a sweep cannot be undone; it sets
        `is_corrupt` of the backbone, and every later use of it is refused.

        Args:
            asks: objectives, each with its batch; their losses stand side by side, in this order.
            points: where to look.

        Raises:
            EvaluatorError: a point this evaluator cannot evaluate.
        """

    def losses(self, objective: Objective, batch: Any, points: Sequence[Point]) -> torch.Tensor:
        """Objective at `points`, as `Probe.losses`; the weights are as before when it returns."""
        with self.probe([(objective, batch)], points) as probe:
            return probe.losses

    def check(self, asks: Sequence[LossRequest]) -> None:  # noqa: B027  # most evaluators can ask any model
        """Find out, before anything is trained, whether the model can be asked at all; what it takes is not counted.

        Raises:
            EvaluatorError: it cannot; says where, and what to use instead.
        """

    def state_dict(self) -> StateDict:
        """What it keeps beside theta, between two steps."""
        return StateDict()

    def load_state_dict(self, state: StateDict) -> None:  # noqa: B027  # most keep nothing
        """Take back what `state_dict` gave."""


EVALUATORS: Registry[type[Evaluator]] = Registry("evaluator")


class EvaluatorConfig(PartConfig):
    """How losses at points are found."""

    registry = EVALUATORS
    default = "in-forward"
