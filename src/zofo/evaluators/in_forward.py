"""The in-forward evaluator: adds low-rank terms to activations. All points share one batch; no weight is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from zofo.backbone import Backbone, Update, at_least_float32
from zofo.displacement import Displacement, Key
from zofo.errors import EvaluatorError, out_of_memory
from zofo.evaluators import rows
from zofo.evaluators.bank import FactorBank
from zofo.evaluators.base import EVALUATORS, Ask, Evaluator, Objective, Point, Visit
from zofo.evaluators.carrying import HINT, Carrying, Watching, uncompiled
from zofo.evaluators.counts import Counts, counting_forwards
from zofo.evaluators.terms import NARROW, Siblings, Terms
from zofo.noise import LowRank, MaskedLowRank
from zofo.remembered import Remembered, of_displacement, of_numbers, to_displacement, to_numbers

_MOST_PENDING = 8  # columns of the pending factors; with more, carrying them costs more than folding them
_CHECK_SEED = (1 << 64) - 1  # of the directions that `check` looks along
_CHECK_SIZE = 0.05  # coefficient of these
_CHECK_SIZE_HALF = 0.02  # further away, a half precision forward of another number of rows gives quite other losses
_AGREES = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative to the mean loss
_AGREES_HALF = 0.1  # SmolLM2's bfloat16 losses are 0.04 apart there

Count = Annotated[int, Field(ge=1)]


@EVALUATORS.register("in-forward")
class InForward(Evaluator):
    """Asks for the losses at all points in one forward of a batch that holds its rows once for each point.

    Each row carries the terms of its own point as thin products beside the model's large ones, so an example may have
    directions of its own, and nothing has to be brought home: the weights are only read while losses are asked for.

    Updates that are displacements wait as terms that every row carries, and are written together after `fold_every` of
    them (or sooner, when they have become many): one product a tensor, instead of a sweep a step. `settle` writes what
    is pending. In half precision they are rounded stochastically when they are written.

    Args:
        model: run by the objective; in evaluation mode if dropout is to be off.
        backbone: the tensors that move; their noise must be low-rank.
        fold_every: updates that are written together.
        micro_batch: examples in one forward, with all their points; None takes the whole batch.

    Attributes:
        pending: what theta is ahead of the weights.

    Raises:
        EvaluatorError: a noise that is not low-rank; or, when losses are asked for, a model that uses a selected tensor
            in a way that cannot carry a term, or a batch that does not fit into memory.

    Source: the factored forward of EGGROLL (Sarkar et al. 2025); a direction for each example as in GRZO (2026);
    updates kept as factors as in LOZO (Chen et al. 2024).
    """

    per_example = True

    def __init__(
        self, model: nn.Module, backbone: Backbone, fold_every: Count = 8, micro_batch: Count | None = None
    ) -> None:
        if not isinstance(backbone.noise, LowRank | MaskedLowRank):
            raise EvaluatorError(
                f"a forward pass cannot carry {type(backbone.noise).__name__} directions, which have no factors",
                "set method.noise=low-rank, or method.evaluator=in-place",
            )
        self.model = model
        self.backbone = backbone
        self.counts = Counts()
        self.pending = Displacement()
        self._fold_every = fold_every
        self._micro_batch = micro_batch
        self._updates = 0  # pending
        self._noise = backbone.noise
        self._parameters = _selected_parameters(model, backbone)
        self._checking = False
        self._siblings: Siblings = {}
        self._drawn: FactorBank | None = None

    @property
    def _bank(self) -> FactorBank:
        """The factors of this step's keys, and of those that are pending."""
        device = self.backbone.device  # a model may be moved between two steps
        if self._drawn is None or self._drawn.layout.device != device:
            self._drawn = FactorBank(self._noise.layout(self.backbone.shapes, device))
        return self._drawn

    @contextmanager
    def visit(self, asks: Sequence[Ask], points: Sequence[Point]) -> Iterator[Visit]:
        """See `Evaluator.visit`."""
        visit = _InForwardVisit(self)
        with counting_forwards(self.model, self.counts):
            visit.losses = self._ask(asks, points)
        self.counts.queries += visit.losses.numel()
        yield visit

    @torch.no_grad()
    def _ask(self, asks: Sequence[Ask], points: Sequence[Point]) -> torch.Tensor:
        asked = dict.fromkeys(key for point in points for at in _displacements(point) for key in at)
        if len(self.pending) and len({*asked, *self.pending}) * self._noise.rank > NARROW:
            self.settle()  # what all rows carry would stand in the factors of every block of rows
        self._bank.hold([*self.pending, *asked])
        columns, start = [], 0
        for objective, batch in asks:
            size = rows.size(batch)
            chunk = min(self._micro_batch or size, size)
            for first in range(0, size, chunk):
                last = min(first + chunk, size)
                part = rows.part(batch, first, last) if chunk < size else batch
                columns.append(
                    self._forward(objective, part, _points_of_part(points, start + first, start + last), size)
                )
            start += size
        return torch.cat(columns, dim=1)

    def _forward(self, objective: Objective, batch: Any, points: Sequence[Point], whole: int) -> torch.Tensor:
        """Losses of one part of a batch at all points: float32, [points, examples]."""
        try:
            return self._losses(objective, batch, points)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        raise self._too_large(objective, batch, points, whole)  # outside, so that the failed forward is let go

    def _losses(self, objective: Objective, batch: Any, points: Sequence[Point]) -> torch.Tensor:
        terms = Terms(self._bank, self._coefficients(points, rows.row_examples(batch)), self._siblings)
        with uncompiled(), Carrying(self._moved(), terms):
            losses = at_least_float32(objective(self.model, rows.repeated(batch, len(points))))
        if losses.shape != (len(points) * rows.size(batch),):
            raise EvaluatorError(
                f"the objective gave losses of shape {list(losses.shape)} for {len(points)} points of "
                f"{rows.size(batch)} examples, all in one batch",
                "let it return one loss for each example of the batch it is given, in their order",
            )
        return losses.view(len(points), -1)

    def _moved(self) -> list[tuple[nn.Parameter, str]]:
        """The parameters that some key moves; those that a mask keeps still need no terms. A check looks at all."""
        steps, moves = {key._replace(index=0) for key in self._bank}, self.backbone.moves
        return [(p, name) for p, name in self._parameters if self._checking or any(moves(key, name) for key in steps)]

    def _coefficients(self, points: Sequence[Point], row_examples: torch.Tensor) -> torch.Tensor:
        """The coefficient of each key of the bank for each row at each point: [points, rows, keys], float32, or float64
        for a float64 model."""
        examples = int(row_examples.max()) + 1
        table = torch.zeros(len(points), examples, len(self._bank.numbers), dtype=torch.float64)
        for place, point in enumerate(points):
            for displacement, where in zip(
                _displacements(point), table[place] if _own(point) else [table[place]], strict=True
            ):
                for key, coefficient in displacement.items():
                    where[..., self._bank.slot(key)] += coefficient
        for key, coefficient in self.pending.items():
            table[..., self._bank.slot(key)] += coefficient
        return table[:, row_examples].to(torch.float64 if torch.float64 in self.backbone.dtypes else torch.float32)

    def _too_large(self, objective: Objective, batch: Any, points: Sequence[Point], whole: int) -> EvaluatorError:
        """What to say of a batch that did not fit, after trying how much of it does."""
        size = rows.size(batch)
        fits = size // 2
        while fits:
            try:
                self._losses(objective, rows.part(batch, 0, fits), _points_of_part(points, 0, fits))
                break
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            fits //= 2
        hint = (
            f"set method.evaluator.micro_batch={fits}, which fits and changes no result"
            if fits
            else "set method.evaluator=in-place, which asks for one point at a time, or shorten the examples"
        )
        forward = f"{size} of the {whole} examples" if size < whole else f"{size} examples"
        return EvaluatorError(f"{forward} at {len(points)} points do not fit into memory in one forward", hint)

    def take(self, update: Update) -> None:
        """See `Evaluator.take`: keep it pending, or write it with all that are."""
        update.refuse_non_finite()
        self.journal.updated(update)
        waits = update.elementwise is None and not update.shrink
        if waits:
            self.pending = self.pending + update.displacement
            self._updates += 1
            if self._updates < self._fold_every and len(self.pending) * self._noise.rank <= _MOST_PENDING:
                return
            update = Update(Displacement())
        self._write(update)

    def settle(self) -> None:
        """See `Evaluator.settle`."""
        if self._updates:
            self.journal.settled()
            self._write(Update(Displacement()))

    def remember(self) -> Remembered:
        """See `Evaluator.remember`: the updates that wait, and the order in which a forward sums its terms."""
        slots = of_numbers({key: float(slot) for key, slot in self._bank.slots.items()})
        return Remembered({"pending": of_displacement(self.pending), "updates": self._updates, "slots": slots})

    def recall(self, remembered: Remembered) -> None:
        """See `Evaluator.recall`."""
        self.pending, self._updates = to_displacement(remembered.values["pending"]), remembered.values["updates"]
        self._bank.restore({key: int(slot) for key, slot in to_numbers(remembered.values["slots"]).items()})

    def _write(self, update: Update) -> None:
        """Write what is pending; together with `update`, where one sweep can do both."""
        apart = update.elementwise is not None or update.shrink
        self._fold(Update(self.pending) if apart else Update(self.pending + update.displacement))
        self.pending, self._updates = Displacement(), 0
        if apart:
            self._fold(update)

    def _fold(self, update: Update) -> None:
        keys = list(update.displacement)
        drawn = all(key in self._bank for key in keys)
        self.backbone.fold(update, directions=self._bank.directions(keys) if drawn else None)

    def check(self, asks: Sequence[Ask]) -> None:
        """Ask two examples at two points of their own, together and one by one: a model that mixes rows differs.

        Raises:
            EvaluatorError: a selected tensor is used in a way that cannot carry a term, or the losses differ.
        """
        tolerance = max(_AGREES.get(dtype, _AGREES_HALF) for dtype in self.backbone.dtypes)
        far = _CHECK_SIZE_HALF if tolerance == _AGREES_HALF else _CHECK_SIZE
        counts, self.counts, self._checking = self.counts, Counts(), True
        try:
            for objective, batch in asks:
                together, alone = self._both_ways(objective, batch, far)
                if not together.isfinite().all():  # so far from theta a narrow number type may overflow
                    together, alone = self._both_ways(objective, batch, far / 50)
                apart = (together - alone).abs().mean()  # nan where a loss is not finite, which the first step names
                if apart > tolerance * alone.abs().mean():
                    raise EvaluatorError(
                        "the model's losses depend on which rows share a batch, so points cannot share a forward",
                        "set method.evaluator=in-place",
                    )
        finally:
            self.counts, self._checking = counts, False

    def _both_ways(self, objective: Objective, batch: Any, size: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of up to two examples at two points of their own, so far from theta: together, and one by one."""
        keys = [[Key(_CHECK_SEED, i, e) for e in range(min(2, rows.size(batch)))] for i in range(2)]
        points = [[Displacement({key: size}) for key in each] for each in keys]
        with Watching(self._parameters):
            together = self._ask([(objective, rows.part(batch, 0, 2))], points)
            return together, self._one_by_one(objective, batch, points).view(together.shape)

    def _one_by_one(self, objective: Objective, batch: Any, points: Sequence[Sequence[Displacement]]) -> torch.Tensor:
        """Losses of each example at its own displacement of each point, in forwards of their own."""
        try:
            return torch.cat(
                [
                    self._ask([(objective, rows.part(batch, example, example + 1))], [[displacement]])
                    for point in points
                    for example, displacement in enumerate(point)
                ]
            )
        except ValueError as error:  # what batch normalisation says in training
            raise EvaluatorError(
                f"the model cannot be asked for one example at a time: {error}", "set method.evaluator=in-place"
            ) from error


class _InForwardVisit(Visit):
    def __init__(self, evaluator: InForward) -> None:
        self._evaluator = evaluator

    def update(self, update: Update) -> None:
        self._evaluator.take(update)


def _own(point: Point) -> bool:
    """Whether each example has a displacement of its own."""
    return not isinstance(point, Displacement)


def _displacements(point: Point) -> Sequence[Displacement]:
    """The displacement of all examples, alone, or those of each."""
    return [point] if isinstance(point, Displacement) else point


def _points_of_part(points: Sequence[Point], start: int, stop: int) -> list[Point]:
    """The same points for examples `start` to `stop`."""
    return [point if isinstance(point, Displacement) else point[start:stop] for point in points]


def _selected_parameters(model: nn.Module, backbone: Backbone) -> list[tuple[nn.Parameter, str]]:
    """Every parameter that stands for a selected tensor, with the name of the tensor; tied ones share a name."""

    def place(tensor: torch.Tensor) -> tuple[object, ...]:
        return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.device)

    names = {place(tensor): name for name, tensor in backbone.tensors.items()}
    found = {id(p): (p, names[place(p)]) for p in model.parameters() if place(p) in names}
    for parameter, name in found.values():
        if type(parameter) is not nn.Parameter:
            raise EvaluatorError(
                f"{name!r} is a {type(parameter).__name__}, whose operations cannot carry a direction",
                HINT,
            )
    scripted = [part for part in model.modules() if isinstance(part, torch.jit.ScriptModule)]
    for tensor in (p for part in scripted for p in part.parameters() if place(p) in names):
        raise EvaluatorError(f"{names[place(tensor)]!r} belongs to a scripted module, which carries no direction", HINT)
    return list(found.values())
