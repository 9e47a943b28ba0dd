"""The steps of MeZO-SVRG, for callers that bring their own batches: the estimate at the anchor, and pairs of estimates.

The anchor is the weights of an earlier step, where losses are computed in addition to those at theta.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from zofo.backbone import Backbone, Update
from zofo.displacement import Displacement
from zofo.errors import CheckpointError, NonFiniteError
from zofo.estimators import Direction, Estimate
from zofo.evaluators import Evaluator, LossRequest, Point, Probe
from zofo.methods.zeroth_order_step import ZerothOrder
from zofo.state_dict import StateDict, load_tensors_state, of_displacement, tensors_to_state, to_displacement

if TYPE_CHECKING:
    from zofo.methods.svrg.svrg import SVRGConfig


class Anchor(ABC):
    """The anchor, relative to theta."""

    @abstractmethod
    def set(self) -> None:
        """Set the anchor to theta, which must have no pending updates."""

    @abstractmethod
    def on_update(self, update: Update) -> None:
        """Theta was updated; the anchor stays."""

    @abstractmethod
    def state_dict(self) -> StateDict:
        """Its position, to resume a run."""

    @abstractmethod
    def load_state_dict(self, state: StateDict) -> None:
        """Load the state that `state_dict` returned."""

    @abstractmethod
    def losses(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> torch.Tensor:
        """The losses at points relative to the anchor, [points, examples]. Theta does not change."""


class DisplacedAnchor(Anchor):
    """An anchor as theta minus the updates since then: a few terms and no copy, so it is just another point.

    The updates must be displacements. In float32 the anchor is exact to about 1e-7 of a weight's size; pending updates
    of the evaluator `in-forward` cancel exactly. With directions per example updates are never pending, so in half
    precision the anchor is then rounded anew.
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
    """An anchor as a copy of the tensors that move; its values are swapped with theta's during a visit.

    It doubles the memory of the weights, or takes as much on the CPU. It is the reference for tests of
    `DisplacedAnchor`, and needed for updates that are not displacements.

    Args:
        evaluator: the evaluator of theta.
        backbone: the tensors to copy.
        device: device of the copy; None for that of each tensor.
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
        """Theta was updated; the copy stays."""

    def state_dict(self) -> StateDict:
        return StateDict({}, dict(self._stored))

    def load_state_dict(self, state: StateDict) -> None:
        if state.tensors:
            self.set()
            if unknown := state.tensors.keys() - self._stored.keys():
                raise CheckpointError(f"the copy of the anchor holds {min(unknown)!r}, which does not move here")
            # missing tensors are in no forward, and do not move
            own = [self._stored[name] for name in state.tensors]
            load_tensors_state(own, tensors_to_state(list(state.tensors.values())))

    def losses(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> torch.Tensor:
        """The losses, with the copy's values in the model meanwhile."""
        with self._in_the_model(), self._evaluator.probe(asks, points) as probe:
            return probe.losses

    @contextmanager
    def _in_the_model(self) -> Iterator[None]:
        self._evaluator.theta.flush()  # pending updates belong to theta
        self._backbone.swap_(self._stored)
        try:
            with self._evaluator.theta.log_paused():
                yield
        finally:
            if not self._backbone.is_corrupt:  # an interrupt inside a sweep: the next use of the weights says so
                self._backbone.swap_(self._stored)


def _shifted(point: Point, by: Displacement) -> Point:
    """The point relative to another origin."""
    return point + by if isinstance(point, Displacement) else [each + by for each in point]


class AnchoredStep:
    """The full-batch step that sets the anchor, and minibatch steps with pairs of estimates at theta and the anchor.

    Attributes:
        full: g, after the first full-batch step.
    """

    def __init__(self, zo: ZerothOrder, options: SVRGConfig) -> None:
        self._zo, self._options = zo, options
        self._anchor: Anchor = DisplacedAnchor(zo.evaluator)
        if options.uses_anchor and options.anchor != "displacement":
            device = torch.device("cpu") if options.anchor == "offload" else None
            self._anchor = CopiedAnchor(zo.evaluator, zo.backbone, device)
        self.full: Estimate | None = None  # over the full batch, at the anchor
        self._anchored = 0  # the step that set the anchor

    def full_step(
        self, number: int, asks: Sequence[LossRequest], lr: float, examples: int | None = None
    ) -> tuple[Estimate, Update]:
        """g <- estimate over all asks, anchor <- theta, theta <- theta - lr g."""
        zo = self._zo
        self.full = None  # until it is complete
        zo.theta.flush()  # the weights themselves are the anchor
        self._anchor.set()
        along = zo.directions(number, examples=examples, sharing=self._options.anchor_directions)
        with zo.evaluator.probe(asks, zo.estimator.ask(along)) as probe:
            full = zo.estimator.tell(along, probe.losses)
            update = self._update(full, lr, probe)
        self.full, self._anchored = full, number
        self._anchor.on_update(update)
        return full, update

    def mini_step(
        self, number: int, asks: Sequence[LossRequest], lr: float, examples: int | None = None
    ) -> tuple[Estimate, Estimate | None, Update]:
        """theta <- theta - lr (the pair of estimates on a minibatch, combined with g).

        Args:
            number: number of the step.
            asks: the objective, and the minibatch; empty for steps along g alone.
            lr: the learning rate.
            examples: size of the minibatch, if it is not the configured one.

        Returns:
            The estimate at theta (or g), the estimate at the anchor, and the update.
        """
        assert self.full is not None
        there: Estimate | None = None
        if self._options.control_variate == "none":
            here, update = self.full, self._update(self.full, lr)
        elif self._options.control_variate == "as-released":
            here, there, update = self._as_released(number, asks, lr, self.full)
        else:
            here, there, update = self._with_anchor(number, asks, lr, examples, self.full)
        self._anchor.on_update(update)
        return here, there, update

    def _with_anchor(
        self, number: int, asks: Sequence[LossRequest], lr: float, examples: int | None, full: Estimate
    ) -> tuple[Estimate, Estimate, Update]:
        zo, (along, along_anchor) = self._zo, self._along(number, examples)
        # apart from those at theta, which takes no more memory than a step of MeZO
        losses = self._anchor.losses(asks, zo.estimator.ask(along_anchor))
        there = zo.estimator.tell(along_anchor, losses)
        with zo.evaluator.probe(asks, zo.estimator.ask(along)) as probe:
            here = zo.estimator.tell(along, probe.losses)
            gradient = here.gradient - there.gradient + full.gradient
            update = self._update(here.with_gradient(gradient), lr, probe)
        return here, there, update

    def _along(self, number: int, examples: int | None) -> tuple[list[Direction], list[Direction]]:
        """The directions at theta and at the anchor."""
        zo, pair = self._zo, self._options.control_variate
        if pair == "full-batch":
            number = self._anchored
        after = 1 if pair == "independent" else 0
        return zo.directions(number, examples=examples), zo.directions(number, after=after, examples=examples)

    def _as_released(
        self, number: int, asks: Sequence[LossRequest], lr: float, full: Estimate
    ) -> tuple[Estimate, Estimate, Update]:
        """theta <- theta - lr pg_I(theta) z1;  theta <- theta + lr pg_I(theta) z2, at the new theta;  - lr g."""
        zo = self._zo
        first, second = zo.directions(number), zo.directions(number, after=1)
        state = zo.state
        with zo.evaluator.probe(asks, zo.estimator.ask(first)) as probe:
            here = zo.estimator.tell(first, probe.losses)
            forth = self._update(here, lr, probe)
        try:
            with zo.evaluator.probe(asks, zo.estimator.ask(second)) as probe:
                there = zo.estimator.tell(second, probe.losses)
                back = self._update(there.with_gradient(full.gradient - there.gradient), lr, probe)
        except NonFiniteError:  # an abandoned step takes its first move back, and what the rule remembers of it
            zo.theta.apply(Update(-forth.displacement))
            zo.state = state
            raise
        return here, there, Update(forth.displacement + back.displacement)

    def _update(self, estimate: Estimate, lr: float, probe: Probe | None = None) -> Update:
        """Update theta with the rule, on the way back from a probe if there is one."""
        update, state = self._zo.rule.update(estimate, self._zo.state, lr)
        (probe.update if probe is not None else self._zo.theta.apply)(update)
        self._zo.state = state
        return update

    def put_state(self, whole: StateDict) -> StateDict:
        """Add g and the anchor to the state of a method."""
        whole.put("anchor", self._anchor.state_dict())
        if self.full is None:
            whole.values["g"] = None
            return whole
        g = {"loss": self.full.loss, "gradient": of_displacement(self.full.gradient), "step": self._anchored}
        return whole.put("g", StateDict(g))

    def load_state(self, whole: StateDict) -> None:
        """Load the state that `put_state` added."""
        self._anchor.load_state_dict(whole.part("anchor"))
        if whole.values["g"] is not None:
            g = whole.part("g").values
            self.full = replace(Estimate.from_gradient(to_displacement(g["gradient"])), loss=float(g["loss"]))
            self._anchored = int(g["step"])
