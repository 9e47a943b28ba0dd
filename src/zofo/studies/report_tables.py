"""The tables of a report: scores of every method on every task, and how they differ from those of one method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import NamedTuple

from zofo.studies.config import MAJORITY, ZERO_SHOT, StudyConfig
from zofo.studies.frames import as_p, as_score, as_time, is_share, markdown, row_name
from zofo.studies.grid import Grid
from zofo.studies.result import Outcome
from zofo.studies.selection import Outcomes, Selection
from zofo.studies.statistics import Interval, interval, paired
from zofo.studies.trial import Cell, Run

_WORK = ("queries", "forwards", "backwards")


class State(NamedTuple):
    """How many runs of a method in a cell ended in which way.

    Args:
        runs: all, one for each seed.
        scored: runs in the mean.
        diverged: runs that diverged.
        failed: runs that another error ended.
        unstable: whether every trial diverged, so that there are no runs.
    """

    runs: int
    scored: int
    diverged: int
    failed: int
    unstable: bool

    @property
    def text(self) -> str:
        """How many runs are in the mean, and how the others ended; empty where all have a score."""
        if self.unstable:
            return "every trial diverged"
        missing = self.runs - self.scored - self.diverged - self.failed
        others = ((self.diverged, "diverged"), (self.failed, "failed"), (missing, "not done"))
        parts = [f"{count} {what}" for count, what in others if count]
        return ", ".join([f"{self.scored} of {self.runs}", *parts]) if parts else ""


class Scores:
    """The scores of final runs by method, cell and seed.

    Args:
        config: the study.
        grid: its runs.
        finals: the final runs.
        outcomes: of those that are done.
        choices: of settings; a method of which every trial diverged has no final run, and one of which a trial has to
            be made again has none yet.
    """

    def __init__(
        self,
        config: StudyConfig,
        grid: Grid,
        finals: Sequence[Run],
        outcomes: Outcomes,
        choices: Mapping[tuple[str, Cell], Selection],
    ) -> None:
        self._config, self._cells = config, list(grid.cells)
        self._choices, self._grid = choices, grid
        self.methods = [*([ZERO_SHOT] if config.zero_shot else []), *config.methods]
        self._done: dict[tuple[str, Cell], dict[int, Outcome]] = {}
        for run in finals:
            if run.digest in outcomes:
                self._done.setdefault((run.method, run.cell), {})[run.seed] = outcomes[run.digest]

    def groups(self) -> Iterator[tuple[str, list[Cell]]]:
        """The cells of each table, one a task, with its title."""
        groups: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
        for cell in self._cells:
            groups.setdefault((cell.model, cell.axes), []).append(cell)
        for (model, values), cells in groups.items():
            axes = [f"{axis} {value}" for axis, value in zip(self._config.axes, values, strict=True)]
            yield ", ".join(([model] if model else []) + axes), cells

    def first_value(self, axis: str) -> str:
        """The first value of an axis."""
        return next(iter(self._config.axes[axis]))

    def contrasts(self, axis: str) -> Iterator[tuple[Cell, Cell, str, str]]:
        """Pairs of cells, at the first value of an axis and at another one; what both share; and the other value."""
        place = list(self._config.axes).index(axis)
        first = self.first_value(axis)
        for cell in self._cells:
            if cell.axes[place] == first:
                rest = cell._replace(axes=(*cell.axes[:place], *cell.axes[place + 1 :]))
                for value in list(self._config.axes[axis])[1:]:
                    axes = (*cell.axes[:place], value, *cell.axes[place + 1 :])
                    yield cell, cell._replace(axes=axes), str(rest), value

    @property
    def usual_runs(self) -> int:
        """Runs in a mean whose cell gives no number."""
        return len(self._config.seeds)

    def outcomes(self, method: str, cell: Cell) -> dict[int, Outcome]:
        """The outcomes that are done, by seed."""
        return self._done.get((method, cell), {})

    def variants(self, method: str, cells: Sequence[Cell]) -> list[str]:
        """The further models that a method's runs leave, such as its lower adapter."""
        done = (one for cell in cells for one in self.outcomes(method, cell).values())
        return list(dict.fromkeys(variant for one in done for variant in one.variants))

    def of(self, method: str, cell: Cell, variant: str | None = None) -> dict[int, float]:
        """The scores by seed, of the first model that a run leaves or of a further one; without runs that failed or
        diverged."""
        split, diverged = self._config.measure, self.diverged(method, cell)
        done = self.outcomes(method, cell).items()
        found = {seed: one.scores if variant is None else one.variants.get(variant, {}) for seed, one in done}
        return {seed: one[split]["score"] for seed, one in found.items() if split in one and seed not in diverged}

    def any_missing(self, cells: Sequence[Cell]) -> bool:
        """Whether a cell of the table says that not all of its runs have a score."""
        states = (self.state(method, cell) for method in self.methods for cell in cells)
        return any(state.diverged or state.failed or state.unstable for state in states)

    def diverged(self, method: str, cell: Cell) -> list[int]:
        """The seeds of the runs that diverged, whether or not their loss was finite at the end."""
        found = self.outcomes(method, cell).items()
        return [seed for seed, one in found if one.diverged(self._loss_before(cell, seed, one))]

    def _loss_before(self, cell: Cell, seed: int, run: Outcome) -> float | None:
        """Loss on validation before training: the first point of the run, or else that of the untrained model."""
        untrained = self.outcomes(ZERO_SHOT, cell).get(seed)
        if run.loss_before is not None or untrained is None:
            return run.loss_before
        return untrained.scores.get("validation", {}).get("loss")

    def state(self, method: str, cell: Cell) -> State:
        """How the runs of one method in one cell ended."""
        found = self.outcomes(method, cell).values()
        choice = self._choices.get((self._config.searched(method), cell))
        runs = len(self._grid.seeds(method) if method in self._config.methods else self._config.seeds)
        return State(
            runs=runs,
            scored=len(self.of(method, cell)),
            diverged=len(self.diverged(method, cell)),
            failed=sum(not one.final for one in found),
            unstable=choice is not None and choice.done and choice.chosen is None,
        )

    def majority(self, cell: Cell) -> dict[int, float]:
        """The score of the most frequent label by seed, since a seed may draw the split; any run there holds it."""
        split, found = self._config.measure, {}
        for method in self.methods:
            for seed, one in self.outcomes(method, cell).items():
                if "majority" in one.scores.get(split, {}):
                    found[seed] = one.scores[split]["majority"]
        return found

    def metric(self, cell: Cell) -> str:
        """Name of the score; the same for all methods on a task."""
        found = (one.metric for method in self.methods for one in self.outcomes(method, cell).values() if one.metric)
        return next(found, "")

    def sign(self, cell: Cell) -> int:
        """1 where a higher score is better, else -1."""
        done = (one for method in self.methods for one in self.outcomes(method, cell).values() if one.metric)
        return next((1 if one.higher_is_better else -1 for one in done), 1)

    def comparable(self, cells: Sequence[Cell]) -> bool:
        """Whether an average over these tasks has a meaning."""
        return len(cells) > 1 and all(is_share(self.metric(cell)) for cell in cells)


def score_table(scores: Scores, cells: Sequence[Cell]) -> str:
    """A row for each method and each further model that it leaves, a column for each task, and what one run took.

    Args:
        scores: of all final runs.
        cells: of one model and one value of each axis.
    """
    average = ["average"] if scores.comparable(cells) else []
    header = ["", *(f"{cell.task} ({scores.metric(cell) or '?'})" for cell in cells), *average, *_WORK, "seconds"]
    rows = []
    majority = [scores.majority(cell) for cell in cells]
    if any(majority):
        means = [mean(found.values()) if found else None for found in majority]
        texts = ["-" if one is None else as_score(one, scores.metric(c)) for c, one in zip(cells, means, strict=True)]
        known = [one for one in means if one is not None]
        whole = as_score(mean(known), "share") if len(known) == len(cells) else "-"
        rows.append([MAJORITY, *texts, *([whole] * len(average)), *[""] * (len(_WORK) + 1)])
    for method in scores.methods:
        for variant in (None, *scores.variants(method, cells)):
            texts = [_score(scores, method, cell, variant) for cell in cells]
            texts += [_average(scores, method, cells, variant)] if average else []
            took = _took(scores, method, cells) if variant is None else [""] * (len(_WORK) + 1)  # the same run
            rows.append([row_name(method, variant), *texts, *took])
    return markdown(header, rows)


def _score(scores: Scores, method: str, cell: Cell, variant: str | None) -> str:
    found, state = scores.of(method, cell, variant), scores.state(method, cell)
    if not found:
        nothing = not (state.unstable or state.diverged or state.failed)  # where no run is done, or takes part
        return "-" if nothing else state.text if state.unstable else f"- ({state.text})"
    n = f"n = {len(found)}" if len(found) != scores.usual_runs else ""
    note = state.text or n
    return _with_interval(interval(list(found.values())), scores.metric(cell)) + (f" ({note})" if note else "")


def _with_interval(one: Interval, metric: str, signed: bool = False) -> str:
    text = as_score(one.mean, metric)
    plus = "+" if signed and one.mean >= 0 else ""
    return plus + text + ("" if one.half is None else f" ± {as_score(one.half, metric)}")


def _average(scores: Scores, method: str, cells: Sequence[Cell], variant: str | None) -> str:
    """The mean over tasks of each seed, then over seeds; none where a run is missing."""
    found = [scores.of(method, cell, variant) for cell in cells]
    seeds = set(found[0]).intersection(*found[1:])
    if not seeds or any(set(one) != seeds for one in found):
        return "-"
    n = f" (n = {len(seeds)})" if len(seeds) != scores.usual_runs else ""
    return _with_interval(interval([mean(one[seed] for one in found) for seed in sorted(seeds)]), "share") + n


def _took(scores: Scores, method: str, cells: Sequence[Cell]) -> list[str]:
    """Queries, forwards, backwards and seconds of a run: the mean of those that did not fail."""
    done = [one for cell in cells for one in scores.outcomes(method, cell).values() if not one.failed]
    if not done:
        return ["-"] * (len(_WORK) + 1)
    counts = [f"{mean(one.counts[name] for one in done):,.0f}" for name in _WORK]
    return [*counts, as_time(mean(one.seconds for one in done))]


def difference_table(scores: Scores, cells: Sequence[Cell], reference: str) -> tuple[str, str]:
    """How every method differs from one of them, on each task and on all of them together; and how to read it.

    Args:
        scores: of all final runs.
        cells: of one model and one value of each axis.
        reference: the method that the others are compared with.
    """
    rows, tests = [], 0
    pooled = len(cells) > 1
    for method in scores.methods:
        if method == reference:
            continue
        every: list[tuple[float, float]] = []
        for cell in cells:
            pairs = _pairs(scores, method, reference, cell)
            every += pairs
            rows.append(_difference_row(method, cell.task, pairs, scores.metric(cell)))
            tests += len(pairs) > 1
        if pooled and every and (scores.comparable(cells) or len({scores.metric(cell) for cell in cells}) == 1):
            rows.append(_difference_row(method, "all tasks", every, scores.metric(cells[0]), True))
            tests += 1
    header = ["method", "task", "pairs", "difference", "better / worse", "p (t-test)", "p (Wilcoxon)"]
    notes = (
        f"Differences are means over the pairs ± half of the 95 % interval. p: paired t-test"
        f"{', and over all tasks also the signed-rank test of Wilcoxon' if pooled else ''}, two-sided. {tests} such "
        "rows were tested and no p is corrected for that."
    )
    if pooled:
        notes += (
            " Pairs of the same task are not independent, so that p over all tasks is too small where tasks differ."
        )
    return markdown(header, rows, texts=2), notes


def contrast_table(scores: Scores, axis: str) -> tuple[str, str]:
    """How the scores of each method differ between the first value of an axis and its others; and how to read it.

    Args:
        scores: of all final runs.
        axis: its name.
    """
    rows, tests = [], 0
    for method in scores.methods:
        for first, other, where, value in scores.contrasts(axis):
            one, two = scores.of(method, first), scores.of(method, other)
            pairs = [(one[seed], two[seed]) for seed in sorted(one.keys() & two.keys())]
            if not pairs:
                continue
            tests += len(pairs) > 1
            metric, sides = scores.metric(first), list(zip(*pairs, strict=True))
            means, found = [as_score(mean(side), metric) for side in sides], paired(*sides)
            difference = _with_interval(found.difference, metric, signed=True)
            rows.append([method, where, value, *means, difference, str(len(pairs)), as_p(found.t_test)])
    first_value = scores.first_value(axis)
    header = ["method", "where", axis, first_value, "that", "difference", "pairs", "p (t-test)"]
    notes = (
        f"difference: the score at {first_value} less the one at the other value, the mean over pairs of the same seed "
        f"± half of its 95 % interval. {tests} such rows were tested and no p is corrected for that."
    )
    return markdown(header, rows, texts=3), notes


def _pairs(scores: Scores, method: str, reference: str, cell: Cell) -> list[tuple[float, float]]:
    """Scores of both with the same seed, turned so that more is better."""
    one, other, sign = scores.of(method, cell), scores.of(reference, cell), scores.sign(cell)
    return [(sign * one[seed], sign * other[seed]) for seed in sorted(one.keys() & other.keys())]


def _difference_row(
    method: str, task: str, pairs: Sequence[tuple[float, float]], metric: str, pooled: bool = False
) -> list[str]:
    if not pairs:
        return [method, task, "0", "-", "-", "-", "-"]
    found = paired(*zip(*pairs, strict=True))
    difference = _with_interval(found.difference, metric, signed=True)
    wilcoxon = as_p(found.wilcoxon) if pooled else "-"
    return [method, task, str(len(pairs)), difference, f"{found.wins} / {found.losses}", as_p(found.t_test), wilcoxon]
