"""The in-place evaluators: they move the weights to each point and back. For any noise and any torch module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from zofo.backbone import Backbone, Theta, at_least_float32
from zofo.displacement import Displacement
from zofo.errors import EvaluatorError, ModelError, out_of_memory
from zofo.evaluators.base import EVALUATORS, Evaluator, LossRequest, Point, Probe
from zofo.evaluators.counts import Counts, counting_forwards
from zofo.evaluators.model_check import check_by_itself
from zofo.tasks import batches


class _Moving(Evaluator):
    """Base class of evaluators that move the weights to each point."""

    def __init__(self, model: nn.Module, backbone: Backbone) -> None:
        self.model, self.theta, self.counts = model, Theta(backbone), Counts()

    def _losses(self, asks: Sequence[LossRequest]) -> torch.Tensor:
        """The losses of all asks at the current weights."""
        parts = [(objective, part) for objective, batch in asks for part in batches.micro_batches(batch)]
        losses = torch.cat([at_least_float32(objective(self.model, part)) for objective, part in parts])
        self.counts.queries += losses.numel()
        return losses

    def check(self, asks: Sequence[LossRequest]) -> None:
        """Run the model on the first batch of each ask, as it is.

        Raises:
            EvaluatorError: the model does not run, writes into a selected tensor, or caches a value derived from one.
        """
        for objective, batch in asks:
            check_by_itself(self.model, objective, batch, list(self.backbone.parameters.items()))


@EVALUATORS.register("in-place")
class InPlace(_Moving):
    """Adds each point to the weights, runs the model, and moves them back.

    Each move is one sweep over the weights. The move back and the update share a sweep, so a two-sided step takes three
    (the usual implementation takes four). No tensor is copied: extra memory is a few blocks of noise.

    In float32 each step leaves a rounding error of about 1e-7 of a weight's size. In half precision the error is far
    larger, so it is refused unless `allow_half` is set.

    Args:
        model: the model that the objective runs, in evaluation mode to turn dropout off.
        backbone: the tensors that move.
        allow_half: accept bfloat16 and float16 weights in spite of the drift.

    Raises:
        EvaluatorError: the weights are in half precision, and `allow_half` is not set.

    Source: MeZO (Malladi et al. 2023), with the restoring move fused into the update as in ZO2 (Wang et al. 2025).
    """

    writes_points = True

    def __init__(self, model: nn.Module, backbone: Backbone, allow_half: bool = False) -> None:
        half = backbone.dtypes & {torch.float16, torch.bfloat16}
        if half and not allow_half:
            kind = str(min(half, key=str)).removeprefix("torch.")
            raise EvaluatorError(
                f"moving {kind} weights in place loses most of each update and drifts by percents in 1,000 steps",
                "set method.evaluator=in-forward or method.evaluator=from-copy, load the model with "
                "model.dtype=float32, or accept the drift with method.evaluator.allow_half=true",
            )
        super().__init__(model, backbone)

    @contextmanager
    def probe(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> Iterator[Probe]:
        try:
            with torch.no_grad(), counting_forwards(self.model, self.counts):
                rows = []
                for point in points:
                    self.theta.move_to(_shared(point))
                    rows.append(self._losses(asks))
            yield Probe(torch.stack(rows), self.theta.apply)
        finally:
            if not self.backbone.is_corrupt:  # after an interrupt inside a sweep: theta cannot be restored
                self.theta.move_to(Displacement())


@EVALUATORS.register("from-copy")
class FromCopy(_Moving):
    """Moves the weights to each point from a copy of theta, and restores their bits from it.

    Every point is exactly theta plus its displacement, and theta is restored bit for bit, even after an error or an
    interrupt in the middle of a sweep. So half precision does not drift, and updates are rounded stochastically. The
    copy doubles the memory of the tensors that move, which is little for an adapter; `in-forward` is as exact without a
    copy.

    Args:
        model: the model that the objective runs, in evaluation mode to turn dropout off.
        backbone: the tensors that move.
    """

    copies = 1

    def __init__(self, model: nn.Module, backbone: Backbone) -> None:
        super().__init__(model, backbone)
        self._stored: dict[str, torch.Tensor] = {}

    @contextmanager
    def probe(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> Iterator[Probe]:
        backbone = self.backbone
        self._keep()
        try:
            with torch.no_grad(), counting_forwards(self.model, self.counts):
                rows = []
                for point in points:
                    backbone.apply_(_shared(point))
                    rows.append(self._losses(asks))
                    backbone.restore_(self._stored)
            yield Probe(torch.stack(rows), self.theta.apply)
        except BaseException:  # an interrupt, too
            backbone.restore_(self._stored)
            raise

    def _keep(self) -> None:
        """Copy theta; raise EvaluatorError if the copy does not fit into memory."""
        if self.backbone.is_corrupt:
            raise ModelError("the weights were left in the middle of a sweep", "load the model again")
        try:
            self.backbone.keep(self._stored)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            size = sum(tensor.nbytes for tensor in self.backbone.tensors.values())
            raise EvaluatorError(
                f"a copy of the tensors that move, of {size / 2**30:.1f} GiB, does not fit into memory",
                "set method.evaluator=in-place, which keeps none",
            ) from error


def _shared(point: Point) -> Displacement:
    if isinstance(point, Displacement):
        return point
    raise EvaluatorError(
        "moving weights in place gives a batch one direction, but the estimator asked for one for each example",
        "set method.directions=shared, or method.noise=low-rank and method.evaluator=in-forward",
    )
