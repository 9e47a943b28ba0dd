"""The in-forward evaluator: adds low-rank terms to activations. All points share one batch; no weight is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from zofo.backbone import Backbone, Theta, Update, at_least_float32
from zofo.displacement import Displacement, Key
from zofo.errors import EvaluatorError, out_of_memory
from zofo.evaluators import batch_protocol
from zofo.evaluators.base import EVALUATORS, Evaluator, LossRequest, Objective, Point, Probe
from zofo.evaluators.counts import Counts, counting_forwards
from zofo.evaluators.factor_cache import FactorCache
from zofo.evaluators.low_rank_forward import PerturbedForward, unanswered
from zofo.evaluators.low_rank_terms import NARROW, LowRankTerms, SharedInputGroups, coefficients_of
from zofo.evaluators.model_check import (
    AGREES_TF32,
    IN_PLACE,
    agreement,
    check_by_itself,
    displaced,
    explaining,
    number_types,
    one_of_each_kind,
    selected_parameters,
)
from zofo.evaluators.parameter_use import ParameterTracker, uncompiled, without_trace
from zofo.evaluators.row_layout import Layout, NotSeen, Use
from zofo.noise import FactoredNoise
from zofo.objectives import aside
from zofo.state_dict import StateDict, of_numbers, to_numbers

_CHECK_SEED = (1 << 64) - 1  # of the directions that `check` looks along
_CHECK_SIZE = 3e-3  # coefficient of these; SmolLM2's losses have 5e-6 of rounding there, and 6e-5 at 0.05
_CHECK_SIZE_HALF = 0.02  # further away, a half precision forward of another number of rows gives quite other losses
_NEAR, _FAR = 1e-3, 1.0
_ROUNDINGS, _MOST = 8, 10  # more is rounding up to so many times what a nudge does, and so many times that tolerance
_APART = 0.3  # of what a row holds in a layer, relative to its length, at most; SmolLM2: 4e-5, and 0.07 in bfloat16
_LEAST = 0.1  # of mean losses: a smaller one is a difference of larger numbers, and has their rounding

Count = Annotated[int, Field(ge=1)]


@EVALUATORS.register("in-forward")
class InForward(Evaluator):
    """Asks for the losses at all points in one forward of a batch that holds its rows once for each point.

    Each row carries the terms of its own point as thin products beside the model's large ones, so an example may have
    directions of its own, and nothing has to be brought home: the weights are only read while losses are asked for.

    Updates that are displacements wait as terms that every row carries, and are written together after `flush_every` of
    them (or sooner, when they have become many): one product a tensor, instead of a sweep a step. `Theta.flush` writes
    what waits. In half precision they are rounded stochastically when they are written.

    Call `check` first: it finds out whether the model can be asked in this way. What a later batch shows that no check
    has seen is checked on that batch, before its losses are given.

    Args:
        model: run by the objective; in evaluation mode if dropout is to be off.
        backbone: the tensors that move; their noise must be low-rank.
        flush_every: updates that are written together.
        micro_batch: examples in one forward, with all their points; None takes the whole batch.

    Raises:
        EvaluatorError: a noise that is not low-rank; or, when losses are asked for, a model that uses a selected tensor
            in a way that cannot carry a term, or a batch that does not fit into memory.

    Source: the factored forward of EGGROLL (Sarkar et al. 2025); a direction for each example as in GRZO (2026);
    updates kept as factors as in LOZO (Chen et al. 2024).
    """

    per_example = True
    repeats_batch = True

    def __init__(
        self, model: nn.Module, backbone: Backbone, flush_every: Count = 8, micro_batch: Count | None = None
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
        self._parameters = selected_parameters(model, backbone)
        self._checking = False
        self._only: frozenset[str] | None = None  # the tensors that carry terms, if not all
        self._tried: int | None = None  # the most rows that were compared with some alone; None before a check
        self._layout = Layout()
        self._siblings: SharedInputGroups = {}
        self._drawn: FactorCache | None = None

    @property
    def _factor_cache(self) -> FactorCache:
        """The factors of this step's keys, and of those that are pending."""
        device = self.backbone.device  # a model may be moved between two steps
        if self._drawn is None or self._drawn.layout.device != device:
            self._drawn = FactorCache(self._noise.layout(self.backbone.shapes, device))
        return self._drawn

    @contextmanager
    def probe(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> Iterator[Probe]:
        probe = _InForwardProbe(self)
        with counting_forwards(self.model, self.counts):
            probe.losses = self._ask(asks, points)
        self.counts.queries += probe.losses.numel()
        yield probe

    @torch.no_grad()
    def _ask(self, asks: Sequence[LossRequest], points: Sequence[Point]) -> torch.Tensor:
        of_all = points if self.whole is None or self._checking else self.whole
        asked = dict.fromkeys(key for point in of_all for at in batch_protocol.displacements(point) for key in at)
        if (
            len(self.theta.pending)
            and not self._checking
            and len({*asked, *self.theta.pending}) * self._noise.rank > NARROW
        ):
            self.theta.flush()  # what all rows carry would stand in the factors of every block of rows
        self._factor_cache.hold([*self.theta.pending, *asked])
        columns, start = [], 0
        for objective, batch in asks:
            size = batch_protocol.size(batch)
            chunk = size if self._checking else min(self._micro_batch or size, size)  # a check compares rows together
            for first in range(0, size, chunk):
                last = min(first + chunk, size)
                part = batch_protocol.part(batch, first, last) if chunk < size else batch
                columns.append(
                    self._forward(
                        objective, part, batch_protocol.points_of_part(points, start + first, start + last), size
                    )
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
        forwards = self.counts.forwards
        try:
            losses = self._carried(objective, batch, points)
        except NotSeen:  # rows of another form than a check has seen
            with aside():
                self.check([(objective, batch)])
            self.counts.forwards = forwards
            losses = self._carried(objective, batch, points)
        if not self._checking and self._tried is not None and losses.numel() > self._tried:
            forwards, self._tried = self.counts.forwards, losses.numel()
            with aside():
                self._try_alone(objective, batch, points, losses)
            self.counts.forwards = forwards
        return losses

    def _try_alone(self, objective: Objective, batch: Any, points: Sequence[Point], losses: torch.Tensor) -> None:
        """The first and the last of more rows than were tried before must be as alone: room for rows may end.

        Raises:
            EvaluatorError: they are not.
        """
        for place, example in ((0, 0), (len(points) - 1, batch_protocol.size(batch) - 1)):
            point = batch_protocol.points_of_part([points[place]], example, example + 1)
            with without_trace(self.model):
                alone = self._carried(objective, batch_protocol.part(batch, example, example + 1), point)
            apart, limit = float((losses[place, example] - alone[0, 0]).abs()), agreement((), number_types(self.model))
            if not self._only_rounding(apart, limit, objective, batch, points, losses):
                raise EvaluatorError(
                    f"the model's losses depend on which rows share a batch: among {losses.numel()}, one is another "
                    "than alone, so points cannot share a forward",
                    IN_PLACE,
                )

    def _carried(self, objective: Objective, batch: Any, points: Sequence[Point]) -> torch.Tensor:
        dtype = torch.float64 if torch.float64 in self.backbone.dtypes else torch.float32
        coefficients = coefficients_of(
            points, batch_protocol.row_examples(batch), self._factor_cache, self.theta.pending, dtype
        )
        terms = LowRankTerms(self._factor_cache, coefficients, self._siblings, wary=self._checking)
        with uncompiled(), self._each_call(), PerturbedForward(self._moved(), terms, self._layout):
            losses = at_least_float32(objective(self.model, batch_protocol.repeated(batch, len(points))))
        if losses.shape != (len(points) * batch_protocol.size(batch),):
            raise EvaluatorError(
                f"the objective gave losses of shape {list(losses.shape)} for {len(points)} points of "
                f"{batch_protocol.size(batch)} examples, all in one batch",
                "let it return one loss for each example of the batch it is given, in their order",
            )
        return losses.view(len(points), -1)

    @contextmanager
    def _each_call(self) -> Iterator[None]:
        """While it is open, the layout is told of each call of the model."""
        self._layout.new_call()
        handle = self.model.register_forward_pre_hook(self._layout.new_call)
        try:
            yield
        finally:
            handle.remove()

    def _moved(self) -> list[tuple[nn.Parameter, str]]:
        """The parameters that some key moves; those that a mask keeps still need no terms. A check looks at all."""
        steps, moves = {key._replace(index=0) for key in self._factor_cache}, self.backbone.is_active
        chosen = [each for each in self._parameters if self._only is None or each[1] in self._only]
        return [(p, name) for p, name in chosen if self._checking or any(moves(key, name) for key in steps)]

    def _too_large(self, objective: Objective, batch: Any, points: Sequence[Point], whole: int) -> EvaluatorError:
        """What to say of a batch that did not fit, after trying how much of it does."""
        size = batch_protocol.size(batch)
        fits = size // 2
        while fits:
            try:
                self._losses(
                    objective, batch_protocol.part(batch, 0, fits), batch_protocol.points_of_part(points, 0, fits)
                )
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
        return StateDict({"slots": of_numbers({key: float(slot) for key, slot in self._factor_cache.slots.items()})})

    def load_state_dict(self, state: StateDict) -> None:
        self._factor_cache.restore({key: int(slot) for key, slot in to_numbers(state.values["slots"]).items()})

    def check(self, asks: Sequence[LossRequest]) -> None:
        """Ask two examples at points of their own, together and one by one: a model that mixes rows differs.

        Raises:
            EvaluatorError: a selected tensor is used in a way that cannot carry a term, or the losses differ.
        """
        for objective, batch in asks:
            self._check(objective, batch_protocol.part(batch, 0, min(2, batch_protocol.size(batch))))

    def _check(self, objective: Objective, batch: Any) -> None:
        """The check of one or two examples; it leaves no trace."""
        check_by_itself(self.model, objective, batch, [(name, parameter) for parameter, name in self._parameters])
        half = bool(self.backbone.dtypes & {torch.float16, torch.bfloat16})
        kept = self.counts, self._drawn, self.theta.pending
        self.counts, self._drawn, self._checking = Counts(), None, True
        try:
            with torch.no_grad():
                self._compare(objective, batch, _CHECK_SIZE_HALF if half else _CHECK_SIZE)
                self._compare(objective, batch, _FAR)
                self._compare_moved(objective, batch_protocol.part(batch, 0, 1))
        finally:
            self.counts, self._drawn, self.theta.pending = kept
            self._checking, self._layout.uses, self._only = False, None, None
        self._tried = self._tried or 0

    def _check_bypass(self, name: str, operation: str, written: bool) -> None:
        """A selected tensor that the model reads past `PerturbedForward` is an error: a view or a copy that it holds,
        scripted code, a function that torch does not hand on.
        """
        parameter: Any = next(parameter for parameter, own in self._parameters if own == name)
        carrier = vars(parameter).get("carrier")
        if carrier is not None and not carrier.answering:
            raise unanswered(parameter, operation, name)

    def _compare(self, objective: Objective, batch: Any, size: float) -> None:
        """Each example at points of its own, so far from theta, must be as alone.

        Where `size` is `_FAR`, only where its rows stand: another router's choice would show, and rounding grows.
        """
        far = size == _FAR
        examples = batch_protocol.row_examples(batch)
        keys = [[Key(_CHECK_SEED, i, e) for e in range(batch_protocol.size(batch))] for i in range(1 if far else 2)]
        points = [[Displacement({key: size}) for key in each] for each in keys]
        watching = ParameterTracker([(name, p) for p, name in self._parameters], self._check_bypass)
        with explaining("run with carried terms"), nullcontext() if far else watching:
            together, seen = self._logged(objective, batch, points)
        if not together.isfinite().all() and size not in (_FAR, _NEAR):  # a narrow number type may overflow
            self._compare(objective, batch, _NEAR)
            return
        for i, point in enumerate(points):
            for example, displacement in enumerate(point):
                if i == example and not far:  # rows in another order would show elsewhere
                    continue
                part = batch_protocol.part(batch, example, example + 1)
                with explaining("be asked for one example at a time"):
                    alone, few = self._logged(objective, part, [[displacement]])
                own = [i * len(examples) + int(row) for row in (examples == example).nonzero()]
                rounding = agreement([*seen, *few], number_types(self.model))
                self._layout.compare(seen, few, own, float("inf") if far else min(rounding * 100, _APART))
                apart = float((together[i, example] - alone[0, 0]).abs())  # nan where not finite, which a step names
                if not far and not self._only_rounding(apart, rounding, objective, batch, points, together):
                    raise EvaluatorError(
                        "the model's losses depend on which rows share a batch, so points cannot share a forward",
                        IN_PLACE,
                    )
        self._layout.learn(seen)

    def _compare_moved(self, objective: Objective, batch: Any) -> None:
        """What terms do must be what moving does, for one tensor of each kind, whatever the model does with it.

        Half precision loses most of so small a move, so that it tells nothing there.
        """
        point = Displacement({Key(_CHECK_SEED, 2): _CHECK_SIZE})
        self._only = one_of_each_kind(self.backbone)
        carried, uses = self._logged(objective, batch, [point])
        if agreement(uses, self.backbone.dtypes) >= AGREES_TF32:
            return
        rounding = agreement(uses, number_types(self.model))
        with without_trace(self.model), uncompiled(), displaced(self.backbone, self._only, point + self.theta.pending):
            apart = float((carried[0] - at_least_float32(objective(self.model, batch))).abs().max())
        if not self._only_rounding(apart, rounding, objective, batch, [point], carried):
            raise EvaluatorError(
                "the model's losses with carried terms are others than those with moved weights: it uses selected "
                "tensors in a way that cannot be seen",
                IN_PLACE,
            )

    def _only_rounding(
        self,
        apart: float,
        rounding: float,
        objective: Objective,
        batch: Any,
        points: Sequence[Point],
        losses: torch.Tensor,
    ) -> bool:
        """Whether losses so far apart are the same. Where a model rounds much, a nudge of its points shows how much."""
        least = rounding * max(float(losses.abs().mean()), _LEAST)
        if apart > least * _MOST or not apart > least:
            return not apart > least
        nudge = 1 + 100 * torch.finfo(losses.dtype).eps
        nudged = [at * nudge if isinstance(at, Displacement) else [each * nudge for each in at] for at in points]
        self._factor_cache.hold(
            [*self._factor_cache, *(key for at in points for each in batch_protocol.displacements(at) for key in each)]
        )
        with without_trace(self.model):
            again = self._carried(objective, batch, nudged)
        return apart <= _ROUNDINGS * float((again - losses).abs().max())

    def _logged(self, objective: Objective, batch: Any, points: Sequence[Point]) -> tuple[torch.Tensor, list[Use]]:
        """Losses at some points, and what the selected tensors met."""
        uses: list[Use] = []
        self._layout.uses = uses
        with without_trace(self.model):
            return self._ask([(objective, batch)], points), uses


class _InForwardProbe(Probe):
    def __init__(self, evaluator: InForward) -> None:
        self._evaluator = evaluator

    def update(self, update: Update) -> None:
        self._evaluator.theta.apply(update)
