"""An evaluator over several processes: each computes the losses of its own examples, and all get the losses of all.

Only losses are exchanged: one number per example and point. Everything computed from them, including updates, is
bit-identical in every process.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from zofo.errors import EvaluatorError
from zofo.evaluators.base import Evaluator, LossRequest, Objective, Point, Probe, own_points, points_of_part
from zofo.evaluators.model_check import number_types, rows_are_independent
from zofo.objectives import aside
from zofo.processes import Attempt, Processes
from zofo.state_dict import StateDict
from zofo.tasks import batches


class _AmongProcesses(Evaluator):
    """Base class: one probe of another evaluator, whose losses become those of all processes."""

    def __init__(self, inner: Evaluator, model: nn.Module, processes: Processes) -> None:
        self._inner, self._model, self._processes = inner, model, processes
        self.theta, self.counts = inner.theta, inner.counts
        self.per_example, self.writes_points = inner.per_example, inner.writes_points
        self.repeats_batch = inner.repeats_batch

    @contextmanager
    def probe(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> Iterator[Probe]:
        with ExitStack() as stack:
            found: Probe | None = None
            with Attempt() as made:
                own, at = self._own(asks, points)
                self._inner.whole = points
                found = stack.enter_context(self._inner.probe(own, at))
            self._inner.whole = None
            losses = self._of_all(asks, len(points), None if found is None else found.losses, made.failure)
            assert found is not None  # or the failure was raised
            self.counts.queries += losses.numel() - found.losses.numel()
            found.losses = losses
            yield found

    @abstractmethod
    def _own(
        self, asks: Sequence[LossRequest], points: Sequence[Point]
    ) -> tuple[Sequence[LossRequest], Sequence[Point]]:
        """The asks and points of this process."""

    @abstractmethod
    def _of_all(
        self, asks: Sequence[LossRequest], points: int, own: torch.Tensor | None, failure: Exception | None
    ) -> torch.Tensor:
        """The losses of all processes, [points, examples]; raises if one of them failed."""

    def check(self, asks: Sequence[LossRequest]) -> None:
        self._inner.check(asks)
        self.left_out, self.notes = self._inner.left_out, self._inner.notes

    def state_dict(self) -> StateDict:
        return self._inner.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self._inner.load_state_dict(state)


class SharedExamples(_AmongProcesses):
    """Splits each batch, which every process has in full, among the processes.

    Counts the queries of all processes, and the forwards of this one.

    Raises:
        EvaluatorError: (from `check`) the losses depend on which examples share a batch.
    """

    def _own(
        self, asks: Sequence[LossRequest], points: Sequence[Point]
    ) -> tuple[Sequence[LossRequest], Sequence[Point]]:
        own: list[LossRequest] = []
        at: list[list[Any]] = [[] for _ in points]
        offset = 0
        for objective, batch in asks:
            size = batches.size(batch)
            start, stop = self._asked_for(size)
            counts = self._processes.share(size) == (start, stop)
            own.append((objective if counts else _aside(objective), batches.part(batch, start, stop)))
            for place, part in zip(at, points_of_part(points, offset + start, offset + stop), strict=True):
                place.append(part)
            offset += size
        joined: list[Point] = [
            [each for part in parts for each in part] if own_points(parts[0]) else parts[0] for parts in at
        ]
        return own, joined

    def _asked_for(self, size: int) -> tuple[int, int]:
        """The share of this process; if it is empty, an example whose losses are ignored."""
        start, stop = self._processes.share(size)
        return (start, stop) if start < stop else (min(start, size - 1), min(start, size - 1) + 1)

    def _of_all(
        self, asks: Sequence[LossRequest], points: int, own: torch.Tensor | None, failure: Exception | None
    ) -> torch.Tensor:
        processes = self._processes
        sizes = [batches.size(batch) for _, batch in asks]
        shares = [
            [stop - start for start, stop in (processes.share(n, rank) for n in sizes)]
            for rank in range(processes.size)
        ]
        if own is not None:
            asked = [stop - start for start, stop in map(self._asked_for, sizes)]
            kept = zip(torch.split(own, asked, dim=1), shares[processes.rank], strict=True)
            own = torch.cat([part[:, :number] for part, number in kept], dim=1)
        dtype = torch.float64 if torch.float64 in self.backbone.dtypes else torch.float32
        found = processes.gather(own, points * max(map(sum, shares)), dtype, failure)
        each = [
            torch.split(row[: points * sum(share)].view(points, -1), share, dim=1)
            for row, share in zip(found, shares, strict=True)
        ]
        return torch.cat([part for of_ask in zip(*each, strict=True) for part in of_ask], dim=1)

    def check(self, asks: Sequence[LossRequest]) -> None:
        super().check(asks)
        for objective, batch in asks:
            if not rows_are_independent(self._model, objective, batch, number_types(self._model)):
                raise EvaluatorError(
                    "the model's losses depend on which examples share a batch, so that several processes cannot share "
                    "them out",
                    "train in one process",
                )


def _aside(objective: Objective) -> Objective:
    """An objective whose losses are ignored, and do not enter the means of rewards."""

    def asked(model: nn.Module, batch: Any) -> torch.Tensor:
        with aside():
            return objective(model, batch)

    return asked


class OwnExamples(_AmongProcesses):
    """Every process brings its own examples, as a data loader has distributed them.

    Raises:
        EvaluatorError: examples have their own directions, which would have to be numbered across processes.
    """

    def _own(
        self, asks: Sequence[LossRequest], points: Sequence[Point]
    ) -> tuple[Sequence[LossRequest], Sequence[Point]]:
        if any(map(own_points, points)):
            raise EvaluatorError(
                "examples of several processes have no directions of their own",
                "set directions=shared, or train in one process",
            )
        return asks, points

    def _of_all(
        self, asks: Sequence[LossRequest], points: int, own: torch.Tensor | None, failure: Exception | None
    ) -> torch.Tensor:
        processes = self._processes
        number = torch.tensor([0 if own is None else own.shape[1]])
        numbers = [int(n) for n in processes.gather(number, 1, torch.float32, failure)[:, 0]]
        found = processes.gather(own, points * max(numbers), torch.float64)
        return torch.cat([row[: points * n].view(points, n) for row, n in zip(found, numbers, strict=True)], dim=1)
