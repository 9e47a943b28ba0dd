"""The interface of evaluators: losses at points, with the weights restored on return."""

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
    """Whether each example has its own displacement."""
    return not isinstance(point, Displacement)


def displacements(point: Point) -> Sequence[Displacement]:
    """The displacement shared by all examples, or the one of each example."""
    return [point] if isinstance(point, Displacement) else point


def points_of_part(points: Sequence[Point], start: int, stop: int) -> list[Point]:
    """The points of examples `start` to `stop`."""
    return [point if isinstance(point, Displacement) else point[start:stop] for point in points]


@dataclass
class Probe:
    """What `Evaluator.probe` yields: the losses, and one chance to update on the way back to theta.

    Args:
        losses: float32, or float64 of a float64 model; shape [points, examples].
        update: applies an update to theta, in the sweep that restores the weights if there is one.
    """

    losses: torch.Tensor
    update: Callable[[Update], None]


class Evaluator(ABC):
    """The only code that runs a model at points other than its current weights.

    Attributes:
        per_example: whether each example of a batch can have its own point.
        writes_points: whether it writes each point into the weights, which a replay must then repeat.
        repeats_batch: whether it asks for all points in one call of the objective, with the batch repeated.
        copies: number of copies of theta that it keeps.
        theta: the weights around which it computes losses.
        counts: forwards and queries made so far by this evaluator.
        whole: the points of all examples while it computes the losses of some of them, else None. Decisions for the
            whole batch, such as when to write updates, depend on these.
        left_out: names of tensors that a check removed from theta because it cannot move them.
        notes: messages to the user about these.
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
        """Compute the losses at `points`. The weights may be away from theta inside the `with` block only.

        When the block ends, normally or by an exception, the weights are back at theta, updated if `Probe.update` was
        called. Only an interrupt in the middle of a sweep cannot be undone: it sets `is_corrupt` of the backbone, which
        then refuses every further use.

        Args:
            asks: pairs of objective and batch; their losses are concatenated in this order.
            points: displacements from theta.

        Raises:
            EvaluatorError: this evaluator cannot evaluate a point.
        """

    def losses(self, objective: Objective, batch: Any, points: Sequence[Point]) -> torch.Tensor:
        """The losses at `points`, as in `Probe.losses`. The weights do not change."""
        with self.probe([(objective, batch)], points) as probe:
            return probe.losses

    def check(self, asks: Sequence[LossRequest]) -> None:  # noqa: B027  # most evaluators can ask any model
        """Check, before training, that this evaluator works for the model. The work is not counted.

        Raises:
            EvaluatorError: it does not; the message says where, and what to use instead.
        """

    def state_dict(self) -> StateDict:
        """The state beside theta, between two steps."""
        return StateDict()

    def load_state_dict(self, state: StateDict) -> None:  # noqa: B027  # most keep nothing
        """Load the state that `state_dict` returned."""


EVALUATORS: Registry[type[Evaluator]] = Registry("evaluator")


class EvaluatorConfig(PartConfig):
    """How losses at points are computed."""

    registry = EVALUATORS
    default = "in-forward"
