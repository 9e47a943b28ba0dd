"""Checks that a model can run with low-rank terms: several points in one forward must give the losses of each alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from zofo.backbone import Theta, at_least_float32
from zofo.displacement import Displacement, Key
from zofo.errors import EvaluatorError
from zofo.evaluators.base import Objective, Point
from zofo.evaluators.carried_tensors import unanswered
from zofo.evaluators.layers_below import LayersBelow
from zofo.evaluators.model_check import (
    AGREES_TF32,
    IN_PLACE,
    agreement,
    displaced,
    explaining,
    number_types,
    one_of_each_kind,
)
from zofo.evaluators.parameter_use import ParameterTracker, uncompiled, without_trace
from zofo.evaluators.per_point import PerPointModules
from zofo.evaluators.row_layout import Layout, RowsElsewhere, Use
from zofo.models import trim_memory
from zofo.tasks import batches

_CHECK_SEED = (1 << 64) - 1  # of the directions of a check
_CHECK_SIZE = 3e-3  # coefficient of these; SmolLM2's losses have 5e-6 of rounding there, and 6e-5 at 0.05
_CHECK_SIZE_HALF = 0.02  # further away, a half precision forward of another number of rows gives quite other losses
_NEAR, _FAR = 1e-3, 1.0
_ROUNDINGS, _MOST = 8, 10  # more is rounding up to so many times what a nudge does, and so many times that tolerance
_APART = 0.3  # of what a row holds in a layer, relative to its length, at most; SmolLM2: 4e-5, and 0.07 in bfloat16
_LEAST = 0.1  # of mean losses: a smaller one is a difference of larger numbers, and has their rounding


class CarriedLosses(Protocol):
    """Computes the losses of a batch in one forward that applies the points."""

    def __call__(self, objective: Objective, batch: Any, points: Sequence[Point], held: bool) -> torch.Tensor:
        """The losses; with `held`, the cache keeps the keys of the last points."""


class ForwardCheck:
    """Compares the losses of several points in one forward with those of each point alone.

    Args:
        model: the model to check.
        theta: the tensors that move.
        parameters: the parameters with terms, each with its name.
        layout: learns where the rows of a batch are in each tensor.
        ways: learn which modules must run once per point, and whether all points can share the layers below the first
            moving tensor.
        ask: computes losses with terms.

    Attributes:
        only: names of the tensors that have terms at the moment; None for all.
    """

    def __init__(
        self,
        model: nn.Module,
        theta: Theta,
        parameters: Sequence[tuple[nn.Parameter, str]],
        layout: Layout,
        ways: tuple[PerPointModules, LayersBelow],
        ask: CarriedLosses,
    ) -> None:
        self.only: frozenset[str] | None = None
        self._model, self._theta, self._parameters = model, theta, parameters
        self._layout, self._ask = layout, ask
        self._per_point, self._below = ways
        layout.place = lambda: self._per_point.running

    def find_a_way(self, objective: Objective, batch: Any) -> None:
        """Compare. If points cannot share a module, run it once per point and compare again, for as few modules as
        possible.

        Raises:
            EvaluatorError: the losses still differ.
        """
        half = bool(self._theta.backbone.dtypes & {torch.float16, torch.bfloat16})
        size = _CHECK_SIZE_HALF if half else _CHECK_SIZE
        shares = self._below.on
        while True:
            self.only = None
            try:
                self._compare(objective, batch, size)
                self._compare(objective, batch, _FAR)
                if self._per_point.names:
                    self._compare(objective, batch, size, shared=True)
                self._compare_moved(objective, batches.part(batch, 0, 1))
                self._below.learn()
                return
            except EvaluatorError as error:
                if self._below.on is not False and self._below.shared:  # may be that
                    self._below.on = False
                elif self._widen(error):
                    self._below.on = shares
                else:
                    raise
            self._layout.forget()

    def _widen(self, error: EvaluatorError) -> bool:
        """Whether the error came from a module that can be run once per point instead."""
        place = error.place if isinstance(error, RowsElsewhere) else None
        return self._per_point.widen(self._model, self._per_point.running if place is None else place)

    def _check_bypass(self, name: str, operation: str, written: bool) -> None:
        """Refuse a selected tensor that the model reads without `PerturbedForward` noticing.

        This happens with a view or a copy that the model holds, scripted code, or a function that torch does not
        dispatch.
        """
        parameter: Any = next(parameter for parameter, own in self._parameters if own == name)
        carrier = vars(parameter).get("carrier")
        if carrier is not None and not carrier.answering:
            raise unanswered(parameter, operation, name)

    def _compare(self, objective: Objective, batch: Any, size: float, shared: bool = False) -> None:
        """Each example at its own point, far from theta, must have the same loss as alone; with `shared`, all at the
        same points.

        With the size `_FAR` only the places of rows are compared: routers may choose other experts, and rounding grows.
        """
        far = size == _FAR
        examples, number = batches.row_examples(batch), batches.size(batch)
        keys = [[Key(_CHECK_SEED, i, 0 if shared else e) for e in range(number)] for i in range(1 if far else 2)]
        own = [[Displacement({key: size}) for key in each] for each in keys]
        points: list[Point] = [each[0] for each in own] if shared else [*own]
        # rows in another order would differ elsewhere
        places = [(i, e) for i in range(len(points)) for e in range(number) if far or i != e]
        alone = {}
        self._layout.alone = ()
        for i, e in places:
            with explaining("the model cannot be asked for one example at a time because "):
                alone[i, e] = self._logged(objective, batches.part(batch, e, e + 1), [[own[i][e]]])
        self._layout.alone = alone[places[0]][1]
        watching = ParameterTracker([(name, p) for p, name in self._parameters], self._check_bypass)
        with explaining("the model cannot run with carried terms because "), nullcontext() if far else watching:
            together, seen = self._logged(objective, batch, points)
        if not together.isfinite().all() and size not in (_FAR, _NEAR):  # a narrow dtype may overflow
            self._compare(objective, batch, _NEAR, shared)
            return
        for (i, e), (losses, few) in alone.items():
            rows = [i * len(examples) + int(row) for row in (examples == e).nonzero()]
            rounding = agreement([*seen, *few], number_types(self._model))
            self._layout.compare(seen, few, rows, float("inf") if far else min(rounding * 100, _APART))
            apart = float((together[i, e] - losses[0, 0]).abs())  # nan where not finite, which a step names
            if not far and not self._only_rounding(apart, rounding, objective, batch, points, together):
                raise EvaluatorError(
                    "the model's losses depend on which rows share a batch, so points cannot share a forward",
                    IN_PLACE,
                )
        self._layout.learn(seen)

    def _compare_moved(self, objective: Objective, batch: Any) -> None:
        """Terms must have the same effect as moving the weights, for one tensor of each kind.

        Not in half precision, which rounds most of such a small move away.
        """
        point = Displacement({Key(_CHECK_SEED, 2): _CHECK_SIZE})
        self.only = one_of_each_kind(self._theta.backbone)
        carried, uses = self._logged(objective, batch, [point])
        if agreement(uses, self._theta.backbone.dtypes) >= AGREES_TF32:
            return
        rounding = agreement(uses, number_types(self._model))
        moved = displaced(self._theta.backbone, self.only, point + self._theta.pending)
        with without_trace(self._model), uncompiled(), moved:
            apart = float((carried[0] - at_least_float32(objective(self._model, batch))).abs().max())
        trim_memory(self._model)
        if not self._only_rounding(apart, rounding, objective, batch, [point], carried):
            raise EvaluatorError(
                "the model's losses with carried terms are others than those with moved weights: it uses selected "
                "tensors in a way that cannot be seen",
                IN_PLACE,
            )

    def _logged(self, objective: Objective, batch: Any, points: Sequence[Point]) -> tuple[torch.Tensor, list[Use]]:
        """The losses at some points, and what the selected tensors were used with."""
        uses: list[Use] = []
        self._layout.uses = uses
        with without_trace(self._model):
            losses = self._ask(objective, batch, points, held=False)
        trim_memory(self._model)
        return losses, uses

    def _only_rounding(
        self, apart: float, rounding: float, objective: Objective, batch: Any, at: Sequence[Point], losses: torch.Tensor
    ) -> bool:
        def again(points: Sequence[Point]) -> torch.Tensor:
            with without_trace(self._model):
                return self._ask(objective, batch, points, held=True)

        return only_rounding(apart, rounding, at, losses, again)


def only_rounding(
    apart: float,
    rounding: float,
    points: Sequence[Point],
    losses: torch.Tensor,
    again: Callable[[Sequence[Point]], torch.Tensor],
) -> bool:
    """Whether losses differ by rounding only. For a model with large rounding errors, a small change of the points
    shows how large."""
    least = rounding * max(float(losses.abs().mean()), _LEAST)
    if apart > least * _MOST or not apart > least:
        return not apart > least
    nudge = 1 + 100 * torch.finfo(losses.dtype).eps
    nudged = [at * nudge if isinstance(at, Displacement) else [each * nudge for each in at] for at in points]
    return apart <= _ROUNDINGS * float((again(nudged) - losses).abs().max())
