"""The steps of MeZO-SVRG themselves, for whoever brings the batches: the estimate at the anchor, and the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import torch

from zofo.backbone import Update
from zofo.errors import NonFiniteError
from zofo.estimators import Direction, Estimate
from zofo.evaluators import LossRequest, Probe
from zofo.methods.svrg.anchor import Anchor, CopiedAnchor, DisplacedAnchor
from zofo.methods.zeroth_order_step import DirectionSharing, ZerothOrder
from zofo.state_dict import StateDict, of_displacement, to_displacement


class AnchorOptions(Protocol):
    """What of a configuration decides how a step is made; see `SVRGConfig`."""

    @property
    def uses_anchor(self) -> bool:
        """Whether any step asks for losses at the anchor."""

    @property
    def anchor(self) -> Literal["displacement", "copy", "offload"]:
        """What the anchor is."""

    @property
    def anchor_directions(self) -> DirectionSharing | None:
        """Who shares a direction in a full-batch step."""

    @property
    def control_variate(self) -> Literal["same", "independent", "full-batch", "as-released", "none"]:
        """Which directions a minibatch's two estimates have."""


class AnchoredStep:
    """g <- estimate over the full batch, anchor <- theta; and pairs of estimates of a minibatch, at theta and there.

    Args:
        zo: the parts of a zeroth-order step.
        options: how the steps are made.

    Attributes:
        full: g, once it is known.
    """

    def __init__(self, zo: ZerothOrder, options: AnchorOptions) -> None:
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
        """g <- estimate over all that is asked, anchor <- theta, theta <- theta - lr g.

        Args:
            number: of the step.
            asks: the objective, and the batches of the anchor.
            lr: the learning rate.
            examples: in the batches, for directions of their own.
        """
        zo = self._zo
        self.full = None  # until all of it is known
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
        """Theta <- theta - lr (the pair of estimates of a minibatch, and g).

        Args:
            number: of the step.
            asks: the objective, and the minibatch; nothing for steps along g alone.
            lr: the learning rate.
            examples: in the minibatch, where they are not of the configured size.

        Returns:
            The estimate at theta (or g), that at the anchor, and the update.
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
        """The directions at theta, and at the anchor."""
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
        """Move theta by what the rule makes of an estimate, on the way home from a probe if there is one."""
        update, state = self._zo.rule.update(estimate, self._zo.state, lr)
        (probe.update if probe is not None else self._zo.theta.apply)(update)
        self._zo.state = state
        return update

    def put_state(self, whole: StateDict) -> StateDict:
        """Add g and the anchor to what a method keeps."""
        whole.put("anchor", self._anchor.state_dict())
        if self.full is None:
            whole.values["g"] = None
            return whole
        g = {"loss": self.full.loss, "gradient": of_displacement(self.full.gradient), "step": self._anchored}
        return whole.put("g", StateDict(g))

    def load_state(self, whole: StateDict) -> None:
        """Take back what `put_state` added."""
        self._anchor.load_state_dict(whole.part("anchor"))
        if whole.values["g"] is not None:
            g = whole.part("g").values
            self.full = replace(Estimate.from_gradient(to_displacement(g["gradient"])), loss=float(g["loss"]))
            self._anchored = int(g["step"])
