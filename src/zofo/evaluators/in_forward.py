"""The in-forward evaluator: adds low-rank terms to activations. All points share one forward; no weight is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from zofo.adapters import FusedLora
from zofo.backbone import Backbone, Theta, at_least_float32
from zofo.errors import EvaluatorError, out_of_memory
from zofo.evaluators.base import (
    EVALUATORS,
    Evaluator,
    LossRequest,
    Objective,
    Point,
    Probe,
    displacements,
    points_of_part,
)
from zofo.evaluators.carried_tensors import Uncarried
from zofo.evaluators.counts import Counts, counting_forwards
from zofo.evaluators.factor_cache import FactorCache
from zofo.evaluators.forward_check import ForwardCheck, only_rounding
from zofo.evaluators.layers_below import LayersBelow
from zofo.evaluators.low_rank_forward import PerturbedForward
from zofo.evaluators.low_rank_terms import NARROW, Block, LowRankTerms, SharedInputGroups, coefficients_of
from zofo.evaluators.model_check import (
    IN_PLACE,
    agreement,
    check_by_itself,
    displaced,
    number_types,
    selected_parameters,
)
from zofo.evaluators.parameter_use import uncompiled, without_trace
from zofo.evaluators.per_point import PerPointModules, replaced_forwards
from zofo.evaluators.row_layout import Layout, NotSeen
from zofo.models import trim_memory
from zofo.noise import FactoredNoise
from zofo.objectives import aside, generation_rows
from zofo.state_dict import StateDict, of_numbers, to_numbers
from zofo.tasks import batches

_SKIPPED = 0.02  # of all numbers that may move, at least: too many to stay

Count = Annotated[int, Field(ge=1)]
OfUncarried = Literal["skip", "refuse", "in-place"]


@EVALUATORS.register("in-forward")
class InForward(Evaluator):
    """Computes the losses at all points in one forward, of a batch that contains its rows once per point.

    Each row gets the terms of its own point as thin products beside the model's large ones. So each example can have
    its own directions, and the weights are only read while losses are computed.

    Updates that are displacements stay pending as terms of every row, and are written together every `flush_every`
    steps (or sooner, if they have many keys): one product per tensor, instead of a sweep per step. `Theta.flush` writes
    them. In half precision they are rounded stochastically when written.

    If a module uses a tensor in a way that rows of several points cannot share (experts that sort tokens, a scan, a
    convolution), it is run once per point, on the rows of that point and with the moved tensor itself. Layers below the
    first tensor that moves are run once for all points.

    Call `check` first: it finds out whether this works for the model. If a later batch uses the model in a new way,
    that is checked on the batch before its losses are returned.

    Args:
        model: the model that the objective runs, in evaluation mode to turn dropout off.
        backbone: the tensors that move; their noise must be low-rank.
        flush_every: number of updates that are written together.
        micro_batch: examples per forward, each at all of its points; by default the whole batch.
        uncarried: what to do with a tensor that terms cannot be applied to, such as one that a compiled function reads.
            `skip`: do not move it, if all such tensors hold under 2 % of the entries; otherwise an error. `refuse`: an
            error. `in-place`: write its terms into the weights during a separate forward per point.

    Attributes:
        per_point: the modules that are run once per point, as `check` found.
        below: the layers that all points share, below the first tensor that moves.
        left_out: names of tensors that do not move because terms cannot be applied to them.
        written: names of tensors that are written during a forward.

    Raises:
        EvaluatorError: the noise is not low-rank; or, when losses are computed, the model uses a selected tensor in an
            unsupported way, or the batch does not fit into memory.

    Source: the factored forward of EGGROLL (Sarkar et al. 2025); a direction for each example as in GRZO (2026);
    updates kept as factors as in LOZO (Chen et al. 2024).
    """

    per_example = True
    repeats_batch = True

    def __init__(
        self,
        model: nn.Module,
        backbone: Backbone,
        flush_every: Count = 8,
        micro_batch: Count | None = None,
        uncarried: OfUncarried = "skip",
    ) -> None:
        if not isinstance(backbone.noise, FactoredNoise):
            raise EvaluatorError(
                f"a forward pass cannot carry {type(backbone.noise).__name__} directions, which have no factors",
                "set method.noise=low-rank, or method.evaluator=in-place",
            )
        self.model = model
        self.theta = Theta(backbone, flush_every)
        self.theta.drawn = lambda keys: (
            self._factor_cache.directions(keys) if all(key in self._factor_cache for key in keys) else None
        )
        self.counts = Counts()
        self._micro_batch = micro_batch
        self._noise = backbone.noise
        self._uncarried = uncarried
        self._checked_now: ForwardCheck | None = None
        self._checked: list[Objective] = []
        self._tried: int | None = None  # the largest number of rows compared with single rows; None before a check
        self._layout = Layout()
        self.per_point, self.below = PerPointModules(), LayersBelow()
        self._fused = FusedLora(model)
        self._siblings: SharedInputGroups = {}
        self._drawn: FactorCache | None = None
        self.left_out: frozenset[str] = frozenset()
        self.written: frozenset[str] = frozenset()
        self._left_size, self._whole_size = 0, backbone.size
        self._parameters = self._carried_parameters()

    def _carried_parameters(self) -> list[tuple[nn.Parameter, str]]:
        while True:
            try:
                return selected_parameters(self.model, self.backbone, self.written)
            except Uncarried as error:
                self._leave(error)

    @property
    def _checking(self) -> bool:
        return self._checked_now is not None

    @property
    def _factor_cache(self) -> FactorCache:
        """The factors of the keys of this step, and of pending updates."""
        device = self.backbone.device  # a model may be moved between two steps
        if self._drawn is None or self._drawn.layout.device != device:
            self._drawn = FactorCache(self._noise.layout(self.backbone.shapes, device))
        return self._drawn

    @contextmanager
    def probe(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> Iterator[Probe]:
        with counting_forwards(self.model, self.counts):
            losses = self._ask(asks, points)
        self.counts.queries += losses.numel()
        yield Probe(losses, self.theta.apply)

    @torch.no_grad()
    def _ask(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> torch.Tensor:
        of_all = points if self.whole is None or self._checking else self.whole
        asked = dict.fromkeys(key for point in of_all for at in displacements(point) for key in at)
        if (
            len(self.theta.pending)
            and not self._checking
            and len({*asked, *self.theta.pending}) * self._noise.rank > NARROW
        ):
            self.theta.flush()  # terms of all rows would be in the factors of every block
        self._factor_cache.hold([*self.theta.pending, *asked])
        columns, start = [], 0
        for objective, batch in asks:
            size = batches.size(batch)
            together = [batch] if self._checking else batches.micro_batches(batch, self._micro_batch)
            for part in together:  # a check compares rows together
                stop = start + batches.size(part)
                own_points = points_of_part(points, start, stop)
                columns.append(self._forward(objective, part, own_points, size))
                start = stop
        return torch.cat(columns, dim=1)

    def _forward(self, objective: Objective, batch: Any, points: Sequence[Point], whole: int) -> torch.Tensor:
        """The losses of one part of a batch at all points: float32, [points, examples]."""
        try:
            return self._losses(objective, batch, points)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        raise self._too_large(objective, batch, points, whole)  # outside, so that the failed forward is freed

    def _losses(self, objective: Objective, batch: Any, points: Sequence[Point]) -> torch.Tensor:
        forwards = self.counts.forwards
        try:
            losses = self._carried(objective, batch, points)
        except NotSeen:  # rows in a form that no check has seen
            losses = self._checked_again(objective, batch, points)
            self.counts.forwards = forwards + 1
        if not self._checking and self._tried is not None and losses.numel() > self._tried:
            forwards, self._tried = self.counts.forwards, losses.numel()
            with aside(), without_trace(self.model):
                self._try_alone(objective, batch, points, losses)
            self.counts.forwards = forwards
        return losses

    def _checked_again(self, objective: Objective, batch: Any, points: Sequence[Point]) -> torch.Tensor:
        """The losses after checking this batch too; modules that need it are then run once per point."""
        while True:
            with aside():
                self._check_all([(objective, batch)])
            try:
                return self._carried(objective, batch, points)
            except NotSeen as error:
                if not self.per_point.widen(self.model, error.owner):
                    raise

    def _try_alone(self, objective: Objective, batch: Any, points: Sequence[Point], losses: torch.Tensor) -> None:
        """Check that the first and last rows of a larger batch than before have their losses alone: capacity can run
        out.

        Uses the objective of the check, since a reward can differ by more than rounding if two tokens are equally
        likely.

        Raises:
            EvaluatorError: they do not.
        """
        if self._checked and objective not in self._checked:
            objective = self._checked[0]
            losses = self._carried(objective, batch, points)
        for place, example in ((0, 0), (len(points) - 1, batches.size(batch) - 1)):
            point = points_of_part([points[place]], example, example + 1)
            alone = self._carried(objective, batches.part(batch, example, example + 1), point)
            apart, limit = float((losses[place, example] - alone[0, 0]).abs()), agreement((), number_types(self.model))
            if not only_rounding(apart, limit, points, losses, lambda at: self._again(objective, batch, at, True)):
                raise EvaluatorError(
                    f"the model's losses depend on which rows share a batch: among {losses.numel()}, one is another "
                    "than alone, so points cannot share a forward",
                    IN_PLACE,
                )

    def _carried(self, objective: Objective, batch: Any, points: Sequence[Point]) -> torch.Tensor:
        dtype = torch.float64 if torch.float64 in self.backbone.dtypes else torch.float32
        coefficients = coefficients_of(
            points, batches.row_examples(batch), self._factor_cache, self.theta.pending, dtype
        )
        terms = LowRankTerms(self._factor_cache, coefficients, self._siblings, wary=self._checking)
        rows = coefficients.shape[0] * coefficients.shape[1]
        modules, moved = self.per_point.modules(self.model), self._moved()
        perturbed = PerturbedForward(moved, terms, self._layout, rows, modules, self._writing)
        rows_leave = generation_rows(None if self._checking or modules else perturbed.keep_rows)
        sharing, fused = self.below.sharing(self.model, moved, len(points), rows, perturbed), self._fused.forwards()
        quick = replaced_forwards(fused)
        self._layout.new_call()
        hooked = self.model.register_forward_pre_hook
        with uncompiled(), hooked(self._layout.new_call), self._watching(), quick, perturbed, sharing, rows_leave:
            losses = at_least_float32(objective(self.model, batches.repeated(batch, len(points))))
        if losses.shape != (len(points) * batches.size(batch),):
            raise EvaluatorError(
                f"the objective gave losses of shape {list(losses.shape)} for {len(points)} points of "
                f"{batches.size(batch)} examples, all in one batch",
                "let it return one loss for each example of the batch it is given, in their order",
            )
        return losses.view(len(points), -1)

    def _watching(self) -> AbstractContextManager[None]:
        return self.per_point.watching(self.model) if self._checking else nullcontext()

    def _writing(self, block: Block) -> AbstractContextManager[None]:
        """Context in which tensors that terms cannot be applied to are moved to the point of the current block."""
        only = self._checked_now.only if self._checked_now is not None else None
        names = self.written if only is None else self.written & only
        return displaced(self.backbone, names, block.terms.displacement()) if names else nullcontext()

    def _moved(self) -> list[tuple[nn.Parameter, str]]:
        """The parameters that some key moves; all of them during a check. Others need no terms."""
        steps, moves = {key._replace(index=0) for key in self._factor_cache}, self.backbone.is_active
        only = self._checked_now.only if self._checked_now is not None else None
        chosen = [each for each in self._parameters if only is None or each[1] in only]
        return [(p, name) for p, name in chosen if self._checking or any(moves(key, name) for key in steps)]

    def _too_large(self, objective: Objective, batch: Any, points: Sequence[Point], whole: int) -> EvaluatorError:
        """The error for a batch that did not fit into memory, after finding out how much of it does."""
        size = batches.size(batch)
        fits = size // 2
        while fits:
            try:
                self._losses(objective, batches.part(batch, 0, fits), points_of_part(points, 0, fits))
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

    def state_dict(self) -> StateDict:
        """The order in which a forward sums its terms."""
        state = StateDict({"slots": of_numbers({key: float(slot) for key, slot in self._factor_cache.slots.items()})})
        if self.per_point.names:  # a batch may have shown more than the first examples do
            state.values["per_point"] = list(self.per_point.names)
        if self.below.on:
            state.values["shares_layers"] = True
        return state

    def load_state_dict(self, state: StateDict) -> None:
        self._factor_cache.restore({key: int(slot) for key, slot in to_numbers(state.values["slots"]).items()})
        if names := state.values.get("per_point"):
            self.per_point.restore(names)
        self.below.on = "shares_layers" in state.values

    def check(self, asks: Sequence[LossRequest]) -> None:
        """Compare the losses of two examples at their own points, together and one by one: a model that mixes rows
        differs.

        Modules that points cannot share are found, and run once per point from then on. For a tensor that terms cannot
        be applied to at all, see `uncarried`.

        Raises:
            EvaluatorError: a selected tensor is used in an unsupported way, or the losses differ.
        """
        self._checked = [objective for objective, _ in asks]
        self._check_all(asks)

    def _check_all(self, asks: Sequence[LossRequest]) -> None:
        for objective, batch in asks:
            part = batches.part(batch, 0, min(2, batches.size(batch)))
            while True:
                try:
                    self._check(objective, part)
                    break
                except Uncarried as error:
                    self._leave(error)
                    self._parameters = [each for each in self._parameters if each[1] not in error.names]

    def _check(self, objective: Objective, batch: Any) -> None:
        """The check of one or two examples, without side effects."""
        check_by_itself(self.model, objective, batch, list(self.backbone.parameters.items()))
        trim_memory(self.model)
        kept = self.counts, self._drawn, self.theta.pending
        self.counts, self._drawn = Counts(), None
        ways = self.per_point, self.below
        check = ForwardCheck(self.model, self.theta, self._parameters, self._layout, ways, self._again)
        self._checked_now = check
        try:
            with torch.no_grad():
                check.find_a_way(objective, batch)
        finally:
            self.counts, self._drawn, self.theta.pending = kept
            self._checked_now = None
            self._layout.look_away()
        self._tried = self._tried or 0

    def _again(self, objective: Objective, batch: Any, points: Sequence[Point], held: bool) -> torch.Tensor:
        """The losses for a check; with `held`, of points whose keys are mostly in the cache."""
        if not held:
            return self._ask([(objective, batch)], points)
        own = (key for at in points for each in displacements(at) for key in each)
        self._factor_cache.hold([*self._factor_cache, *own])
        return self._carried(objective, batch, points)

    def _leave(self, error: Uncarried) -> None:
        """Remove the tensors that terms cannot be applied to, or write their terms, as `uncarried` says.

        Raises:
            EvaluatorError: `uncarried` says so.
        """
        like = re.sub(r"\d+", "*", error.name)
        error.names = [name for name in self.backbone.tensors if re.sub(r"\d+", "*", name) == like]
        if self._uncarried == "in-place" and not self.written.issuperset(error.names):
            self.written |= frozenset(error.names)
            self.per_point.widen(self.model, "")
            return
        left = {*self.left_out, *error.names}
        sizes = {name: tensor.numel() for name, tensor in self.backbone.tensors.items() if name in left}
        share = (self._left_size + sum(sizes.values())) / self._whole_size
        if self._uncarried != "skip" or share >= _SKIPPED:
            raise error
        self._left_size += sum(sizes.values())
        self.left_out |= frozenset(left)
        self.backbone.leave_out(error.names)
        self._drawn = None
        self._layout.forget()
        self.notes = (
            f"{len(self.left_out)} tensors that no forward can carry ({share:.2%} of the numbers) stay as they are: "
            f"{', '.join(sorted(self.left_out))}; to move them, set method.evaluator.uncarried=in-place",
        )
