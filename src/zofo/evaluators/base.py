"""The contract of evaluators: losses at points, and the weights as they were when it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from zofo.backbone import Backbone, Update
from zofo.backbone.update_log import UpdateLog
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


class Probe(ABC):
    """The inside of `Evaluator.probe`: the losses that were found, and one chance to update on the way home.

    Attributes:
        losses: float32, or float64 of a float64 model; shape [points, examples].
    """

    losses: torch.Tensor

    @abstractmethod
    def update(self, update: Update) -> None:
        """Fold `update` into the backbone, in the same sweep that goes home where there is one."""


class Evaluator(ABC):
    """The only code that looks at a model at other points than where it stands.

    Attributes:
        per_example: whether it can visit a point of its own for each example of a batch.
        backbone: what it moves.
        counts: forwards and queries made so far by this evaluator.
        journal: is told of everything that is written.
    """

    per_example = False
    backbone: Backbone
    counts: Counts
    journal = UpdateLog()

    @abstractmethod
    def probe(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> AbstractContextManager[Probe]:
        """Ask for the losses at `points`; the weights may be away from home only inside the `with` block.

        When the block ends, by itself or by an exception, the weights are home: updated if `Probe.update` was called in
        it, as before otherwise. Only an interrupt in the middle of a sweep cannot be undone; it marks the backbone as
        torn, and every later use of it is refused.

        Args:
            asks: objectives, each with its batch; their losses stand side by side, in this order.
            points: where to look.

        Raises:
            EvaluatorError: a point this evaluator cannot visit.
        """

    @abstractmethod
    def take(self, update: Update) -> None:
        """Update theta without asking for a loss.

        Raises:
            NonFiniteError: a coefficient that is not finite; nothing was updated.
        """

    def losses(self, objective: Objective, batch: Any, points: Sequence[Point]) -> torch.Tensor:
        """Objective at `points`, as `Probe.losses`; the weights are as before when it returns."""
        with self.probe([(objective, batch)], points) as visit:
            return visit.losses

    def check(self, asks: Sequence[LossRequest]) -> None:  # noqa: B027  # most evaluators can ask any model
        """Find out, before anything is trained, whether the model can be asked at all; what it takes is not counted.

        Raises:
            EvaluatorError: it cannot; says where, and what to use instead.
        """

    def move(self, point: Displacement) -> None:  # noqa: B027  # most evaluators never leave home
        """Go to theta + `point`, for evaluators whose weights move."""

    def flush(self) -> None:  # noqa: B027  # most evaluators owe nothing
        """Write updates that are still pending, so that the weights are theta for whoever looks at them next."""

    def state_dict(self) -> StateDict:
        """What it keeps beside the weights, between two steps."""
        return StateDict()

    def load_state_dict(self, remembered: StateDict) -> None:  # noqa: B027  # most keep nothing
        """Take back what `remember` gave; the weights are as they were then."""

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """While it is open the weights are not theta, and nothing is told of them."""
        journal, self.journal = self.journal, UpdateLog()
        try:
            yield
        finally:
            self.journal = journal


EVALUATORS: Registry[type[Evaluator]] = Registry("evaluator")
