"""The anchor of SVRG: weights of some steps ago, where losses are asked for beside those at theta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from zofo.backbone import Backbone, Update
from zofo.displacement import Displacement
from zofo.errors import CheckpointError
from zofo.evaluators import Evaluator, LossRequest, Point
from zofo.state_dict import StateDict, load_tensors_state, of_displacement, tensors_to_state, to_displacement


class Anchor(ABC):
    """Where the anchor is, seen from theta."""

    @abstractmethod
    def set(self) -> None:
        """The anchor becomes theta, whose updates must all have been written."""

    @abstractmethod
    def on_update(self, update: Update) -> None:
        """Theta was updated, and the anchor was not."""

    @abstractmethod
    def state_dict(self) -> StateDict:
        """Where it is, for a run that goes on later."""

    @abstractmethod
    def load_state_dict(self, state: StateDict) -> None:
        """Take back what `state_dict` gave."""

    @abstractmethod
    def losses(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> torch.Tensor:
        """Losses at points relative to the anchor, [points, examples]; theta is as before when it returns."""


class DisplacedAnchor(Anchor):
    """The anchor is theta minus the updates since: a few terms and no copy, so it is one more point to look from.

    The updates must be displacements. In float32 the anchor is found to about 1e-7 of a weight's size; where updates
    wait as terms beside the weights (in the forward), they cancel exactly. With directions per example they never wait,
    so that in half precision the anchor is then theta rounded anew.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.since = Displacement()  # updates of theta

    def set(self) -> None:
        self.since = Displacement()

    def on_update(self, update: Update) -> None:
        self.since = self.since + update.displacement

    def state_dict(self) -> StateDict:
        return StateDict({"since": of_displacement(self.since)})

    def load_state_dict(self, state: StateDict) -> None:
        self.since = to_displacement(state.values["since"])

    def losses(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> torch.Tensor:
        with self._evaluator.probe(asks, [_shifted(point, -self.since) for point in points]) as probe:
            return probe.losses


class CopiedAnchor(Anchor):
    """The anchor is a copy of the tensors that move; its values and theta's are swapped while it is visited.

    Twice the memory of inference, or as much again on the CPU: the reference that `DisplacedAnchor` is tested against,
    and what updates need that are no displacements.

    Args:
        evaluator: of theta.
        backbone: whose tensors are copied.
        device: where the copy is; None for where each tensor is.
    """

    def __init__(self, evaluator: Evaluator, backbone: Backbone, device: torch.device | None = None) -> None:
        self._evaluator = evaluator
        self._backbone = backbone
        self._device = device
        self._stored: dict[str, torch.Tensor] = {}

    def set(self) -> None:
        for name, tensor in self._backbone.tensors.items():
            if name not in self._stored:
                self._stored[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device or tensor.device)
            self._stored[name].copy_(tensor)

    def on_update(self, update: Update) -> None:
        """The copy stays what it is."""

    def state_dict(self) -> StateDict:
        return StateDict({}, dict(self._stored))

    def load_state_dict(self, state: StateDict) -> None:
        if state.tensors:
            self.set()
            if unknown := state.tensors.keys() - self._stored.keys():
                raise CheckpointError(f"the copy of the anchor holds {min(unknown)!r}, which does not move here")
            # those that it lacks are no part of any forward, and stay as they are
            own = [self._stored[name] for name in state.tensors]
            load_tensors_state(own, tensors_to_state(list(state.tensors.values())))

    def losses(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> torch.Tensor:
        """The copy's values are in the model meanwhile."""
        with self._in_the_model(), self._evaluator.probe(asks, points) as probe:
            return probe.losses

    @contextmanager
    def _in_the_model(self) -> Iterator[None]:
        self._evaluator.theta.flush()  # what waits belongs to theta
        self._backbone.swap_(self._stored)
        try:
            with self._evaluator.theta.log_paused():
                yield
        finally:
            if not self._backbone.is_corrupt:  # an interrupt inside a sweep: the next use of the weights says so
                self._backbone.swap_(self._stored)


def _shifted(point: Point, by: Displacement) -> Point:
    """The point as seen from elsewhere."""
    return point + by if isinstance(point, Displacement) else [each + by for each in point]
