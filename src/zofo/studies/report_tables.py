"""The tables of a report: scores of every method on every task, and their differences from those of one method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from zofo.significance import Interval, holm, interval, paired
from zofo.studies.config import MAJORITY, ZERO_SHOT
from zofo.studies.frames import as_p, as_time, is_share, markdown, row_name
from zofo.studies.grid import Grid
from zofo.studies.result import Outcome
from zofo.studies.selection import Choices, Outcomes
from zofo.studies.trial import Cell, StudyRun
from zofo.training.evaluation import as_score
from zofo.trees import get_by_path

_WORK = ("queries", "forwards", "backwards")
_COSTS = len(_WORK) + 2  # with seconds and memory
_GRADIENT = ("gradient_squared", "spread_squared")
"""Of a treatment, as it was at both ends of a run."""


_UNSTABLE = "every trial diverged"


class Finals(NamedTuple):
    """The final runs of one method in one cell.

    Args:
        scores: scores by seed, of the runs that neither failed nor diverged.
        state: number of these runs and how the others ended; empty if all have a score.
        ended: whether a finished run has no score.
    """

    scores: dict[int, float]
    state: str
    ended: bool


class Scores:
    """The scores of final runs by method, cell and seed.

    Args:
        choices: the chosen settings. A method whose trials all diverged has no final run; one with a trial to be made
            again has none yet.
    """

    def __init__(self, grid: Grid, finals: Sequence[StudyRun], outcomes: Outcomes, choices: Choices) -> None:
        self._config, self._grid, self._choices = grid.config, grid, choices
        self.methods = [*([ZERO_SHOT] if self._config.zero_shot else []), *self._config.methods]
        self._done: dict[tuple[str, Cell], dict[int, Outcome]] = {}
        for run in finals:
            if run.digest in outcomes:
                self._done.setdefault((run.method, run.cell), {})[run.seed] = outcomes[run.digest]

    def groups(self) -> Iterator[tuple[str, list[Cell]]]:
        """The cells of each table, one a task, with its title."""
        groups: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
        for cell in self._grid.cells:
            groups.setdefault((cell.model, cell.axes), []).append(cell)
        for (model, values), cells in groups.items():
            axes = [f"{axis} {value}" for axis, value in zip(self._config.axes, values, strict=True)]
            yield ", ".join(([model] if model else []) + axes), cells

    def contrasts(self, axis: str) -> Iterator[tuple[Cell, Cell, str, str]]:
        """Pairs of cells, at the first value of an axis and at another one; the values they share; and the other
        value."""
        place, (first, *others) = list(self._config.axes).index(axis), self._config.axes[axis]
        for cell in self._grid.cells:
            before, after = cell.axes[:place], cell.axes[place + 1 :]
            if cell.axes[place] == first:
                for value in others:
                    shared = str(cell._replace(axes=(*before, *after)))
                    yield cell, cell._replace(axes=(*before, value, *after)), shared, value

    def first_value(self, axis: str) -> str:
        """The first value of an axis."""
        return next(iter(self._config.axes[axis]))

    @property
    def usual_runs(self) -> int:
        """Number of runs in a mean, for cells without a number."""
        return len(self._config.seeds)

    def outcomes(self, method: str, cell: Cell) -> dict[int, Outcome]:
        """The finished outcomes by seed."""
        return self._done.get((method, cell), {})

    def variants(self, method: str, cells: Sequence[Cell]) -> list[str]:
        """The further models of a method's runs, such as its lower adapter."""
        done = (one for cell in cells for one in self.outcomes(method, cell).values())
        return list(dict.fromkeys(variant for one in done for variant in one.variants))

    def finals(self, method: str, cell: Cell, variant: str | None = None, endpoint: str = "score") -> Finals:
        """The final runs of a method, with the scores, or losses, of their first model or a further one."""
        done, split = self.outcomes(method, cell), self._config.split
        diverged = {seed for seed, one in done.items() if one.diverged(self._loss_before(cell, seed, one))}
        scored = {seed: one for seed, one in done.items() if split in one.scores and seed not in diverged}
        of = {s: one.scores if variant is None else one.variants.get(variant, {}) for s, one in scored.items()}
        scores = {seed: found[split][endpoint] for seed, found in of.items() if split in found}
        choice = self._choices.get((self._config.searched(method), cell))
        if choice is not None and choice.done and choice.chosen is None:
            return Finals(scores, _UNSTABLE, True)
        runs = len(self._grid.seeds(method) if method in self._config.methods else self._config.seeds)
        failed = sum(not one.is_final for one in done.values())
        missing = runs - len(scored) - len(diverged) - failed
        others = ((len(diverged), "diverged"), (failed, "failed"), (missing, "not done"))
        parts = [f"{count} {what}" for count, what in others if count]
        state = ", ".join([f"{len(scored)} of {runs}", *parts]) if parts else ""
        return Finals(scores, state, bool(diverged or failed))

    def _loss_before(self, cell: Cell, seed: int, run: Outcome) -> float | None:
        """Loss on validation before training: the first point of the run, or that of the untrained model."""
        untrained = self.outcomes(ZERO_SHOT, cell).get(seed)
        if run.loss_before is not None or untrained is None:
            return run.loss_before
        return untrained.scores.get("validation", {}).get("loss")

    def any_ended(self, cells: Sequence[Cell]) -> bool:
        """Whether a finished run of the table has no score."""
        return any(self.finals(method, cell).ended for method in self.methods for cell in cells)

    def majority(self, cell: Cell) -> float | None:
        """The mean score of the most frequent label, since a seed may draw the split; None if unknown."""
        found = {}
        for method in self.methods:
            for seed, one in self.outcomes(method, cell).items():
                if "majority" in one.scores.get(self._config.split, {}):
                    found[seed] = one.scores[self._config.split]["majority"]
        return mean(found.values()) if found else None

    def metric(self, cell: Cell) -> tuple[str, int]:
        """Name of the score, the same for all methods on a task; and 1 if higher is better, else -1."""
        found = (one for method in self.methods for one in self.outcomes(method, cell).values() if one.metric)
        first = next(found, Outcome())
        return first.metric, 1 if first.higher_is_better else -1

    def score_title(self, cell: Cell) -> str:
        """Name of the score, with its label if it is for a single one; ? if nothing is done."""
        done = [one for method in self.methods for one in self.outcomes(method, cell).values() if one.metric]
        return max((one.score_title for one in done), key=len, default="?")

    def endpoints(self, cells: Sequence[Cell], reference: str) -> list[str]:
        """The endpoints of differences from a method: the score, and the loss if that is another number.

        The loss must be the same quantity as for another method.
        """
        others = [method for method in self.methods if method != reference]
        alike = any(self.same_loss(method, reference, cell) for method in others for cell in cells)
        shares = any(is_share(self.metric(cell)[0]) for cell in cells)
        return ["score", "loss"] if shares and alike else ["score"]

    def same_loss(self, method: str, reference: str, cell: Cell) -> bool:
        """Whether losses of two methods are the same quantity: of answers or, with `channel`, of prompts."""
        runs = [run for name in (method, reference) for run in self.outcomes(name, cell).values() if not run.failed]
        return len({get_by_path(run.config, "task.scoring") for run in runs}) < 2

    def losses_differ(self, cells: Sequence[Cell], reference: str) -> bool:
        """Whether some losses cannot be compared with those of a method, since they are another quantity."""
        places = [(method, cell) for method in self.methods for cell in cells]
        return not all(self.same_loss(method, reference, cell) for method, cell in places)

    def comparable(self, cells: Sequence[Cell]) -> bool:
        """Whether an average over these tasks is meaningful."""
        return len(cells) > 1 and all(is_share(self.metric(cell)[0]) for cell in cells)


def score_table(scores: Scores, cells: Sequence[Cell]) -> str:
    """A row for each method and each further model, a column for each task, and the cost of one run."""
    metrics = [scores.metric(cell)[0] for cell in cells]
    average = ["average"] if scores.comparable(cells) else []
    tasks = [f"{cell.task} ({scores.score_title(cell)})" for cell in cells]
    rows = []
    majority = [scores.majority(cell) for cell in cells]
    known = [one for one in majority if one is not None]
    if known:
        texts = [as_score(one, metric) for one, metric in zip(majority, metrics, strict=True)]
        whole = as_score(mean(known), "share") if len(known) == len(cells) else "-"
        rows.append([MAJORITY, *texts, *([whole] * len(average)), *[""] * _COSTS])
    for method in scores.methods:
        for variant in (None, *scores.variants(method, cells)):
            found = [scores.finals(method, cell, variant) for cell in cells]
            texts = [_score(one, metric, scores.usual_runs) for one, metric in zip(found, metrics, strict=True)]
            texts += [_average([one.scores for one in found], scores.usual_runs)] if average else []
            took = _took(scores, method, cells) if variant is None else [""] * _COSTS  # the same run
            rows.append([row_name(method, variant), *texts, *took])
    return markdown(["", *tasks, *average, *_WORK, "seconds", "peak GiB"], rows)


def _score(found: Finals, metric: str, usual: int) -> str:
    n = len(found.scores)
    if not n:
        if not found.ended:  # no run is done, or takes part
            return "-"
        return found.state if found.state == _UNSTABLE else f"- ({found.state})"
    note = found.state or (f"n = {n}" if n != usual else "")
    return _with_interval(interval(list(found.scores.values())), metric) + (f" ({note})" if note else "")


def _with_interval(one: Interval, metric: str, signed: bool = False) -> str:
    text = as_score(one.mean, metric)
    plus = "+" if signed and one.mean >= 0 else ""
    return plus + text + ("" if one.half is None else f" ± {as_score(one.half, metric)}")


def _average(found: Sequence[Mapping[int, float]], usual: int) -> str:
    """The mean over tasks for each seed, then over seeds; none if a run is missing."""
    seeds = sorted(found[0])
    if not seeds or any(sorted(one) != seeds for one in found):
        return "-"
    n = f" (n = {len(seeds)})" if len(seeds) != usual else ""
    return _with_interval(interval([mean(one[seed] for one in found) for seed in seeds]), "share") + n


def _took(scores: Scores, method: str, cells: Sequence[Cell]) -> list[str]:
    """Queries, forwards, backwards, seconds and peak memory of a run: the mean of those that did not fail."""
    done = [one for cell in cells for one in scores.outcomes(method, cell).values() if not one.failed]
    if not done:
        return ["-"] * _COSTS
    counts = [f"{mean(one.counts[name] for one in done):,.0f}" for name in _WORK]
    peaks = [one.peak_bytes for one in done if one.peak_bytes]
    memory = f"{mean(peaks) / 2**30:.2f}" if peaks else "-"
    return [*counts, as_time(mean(one.seconds for one in done)), memory]


def treatment_table(scores: Scores, cells: Sequence[Cell]) -> str:
    """The strength of the treatment of theta, by method and task, if it was measured.

    Means over the runs that measured it and, where known, of their standard errors.
    """
    rows = []
    for method in scores.methods:
        for cell in cells:
            found = [one.treatment for one in scores.outcomes(method, cell).values() if one.treatment]
            if found:
                first, last = ([_with_error(found, name, at) for name in _GRADIENT] for at in (0, -1))
                rows.append(
                    [
                        *(method, cell.task, str(len(found))),
                        *(f"{begin} to {end}" for begin, end in zip(first, last, strict=True)),
                        _with_error(found, "predicted_descent"),
                        _short(_mean_of(found, "backbone_distance")),
                    ]
                )
    header = ["method", "task", "runs", "|g|^2", "s^2", "predicted descent", "backbone distance"]
    return markdown(header, rows, texts=2) if rows else ""


def _with_error(found: Sequence[Mapping[str, Any]], name: str, at: int | None = None) -> str:
    value, error = (_mean_of(found, key, at) for key in (name, f"{name}_error"))
    return _short(value) if value is None or error is None else f"{_short(value)} ± {error:.2g}"


def _mean_of(found: Sequence[Mapping[str, Any]], name: str, at: int | None = None) -> float | None:
    """The mean over runs of a value, or of one end of it; None if a run lacks it."""
    values: list[Any] = [one.get(name) for one in found]
    if at is not None:
        values = [None if ends is None else ends[at] for ends in values]
    return None if None in values else mean(values)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


Pairs = list[tuple[float, float]]


def _pairs(first: Mapping[int, float], second: Mapping[int, float], sign: int = 1) -> Pairs:
    """Scores of the same seed, multiplied by the sign."""
    return [(sign * first[seed], sign * second[seed]) for seed in sorted(first.keys() & second.keys())]


def difference_tables(
    scores: Scores, cells: Sequence[Cell], reference: str, margins: Mapping[str, float | None] | None = None
) -> tuple[dict[str, str], int]:
    """How every method differs from one of them, on each task and on all tasks together: one table per endpoint.

    Also returns the number of tests. The t-tests of single tasks are corrected for their number in all tables together.

    Args:
        margins: for each endpoint, differences within which methods count as equal.
    """
    found = {
        endpoint: list(_differences(scores, cells, reference, (margins or {}).get(endpoint), endpoint))
        for endpoint in scores.endpoints(cells, reference)
    }
    corrected = iter(holm([p for rows in found.values() for _, p, _ in rows]))
    header = ["method", "task", "pairs", "difference", "verdict", "detectable", "better / worse"]
    header += ["p (t-test)", "p (Holm)", "p (Wilcoxon)"]
    tables = {
        endpoint: markdown(header, [[*row[:-1], as_p(next(corrected)), row[-1]] for row, _, _ in rows], texts=2)
        for endpoint, rows in found.items()
    }
    return tables, sum(tested for rows in found.values() for *_, tested in rows)


def _differences(
    scores: Scores, cells: Sequence[Cell], reference: str, margin: float | None, endpoint: str
) -> Iterator[tuple[list[str], float | None, bool]]:
    """The rows of a table; for each, p of its t-test if it is one to correct, and whether there is a test.

    Args:
        endpoint: score or loss; the sign of a loss is flipped, so that + is better for both.
    """
    pooled = len(cells) > 1
    metrics = [scores.metric(cell) if endpoint == "score" else ("loss", -1) for cell in cells]
    whole = pooled and (all(is_share(metric) for metric, _ in metrics) or len({metric for metric, _ in metrics}) == 1)
    for method in scores.methods:
        if method == reference:
            continue
        every: Pairs = []
        for cell, (metric, sign) in zip(cells, metrics, strict=True):
            one, other = (scores.finals(name, cell, endpoint=endpoint).scores for name in (method, reference))
            alike = endpoint == "score" or scores.same_loss(method, reference, cell)
            pairs = _pairs(one, other, sign) if alike else []
            every += pairs
            p = paired(*zip(*pairs, strict=True)).t_test if pairs else None
            yield [method, cell.task, *_difference(pairs, metric, margin), "-"], p, len(pairs) > 1
        if whole and every:
            wilcoxon = as_p(paired(*zip(*every, strict=True)).wilcoxon)
            n, difference, _, _, counted, as_text = _difference(every, metrics[0][0])
            # no p to correct: as for the verdict, its pairs would have to be independent
            yield [method, "all tasks", n, difference, "-", "-", counted, as_text, wilcoxon], None, True


def _difference(pairs: Pairs, metric: str, margin: float | None = None) -> list[str]:
    """Pairs, difference, verdict, detectable difference, pairs that are better and worse, and p of the t-test."""
    if not pairs:
        return ["0", "-", "-", "-", "-", "-"]
    found = paired(*zip(*pairs, strict=True))
    difference = _with_interval(found.difference, metric, signed=True)
    smallest = as_score(found.detectable, metric)
    told = [found.verdict(margin), smallest, f"{found.wins} / {found.losses}"]
    return [str(len(pairs)), difference, *told, as_p(found.t_test)]


def contrast_table(scores: Scores, axis: str, reference: str | None = None) -> tuple[str, int]:
    """How each method's scores differ between the first value of an axis and the others; and the number of tests.

    Args:
        reference: a method whose difference is compared with that of each other method: the interaction.
    """
    rows, tests = [], 0
    for method in scores.methods:
        for first, other, where, value in scores.contrasts(axis):
            pairs = _pairs(scores.finals(method, first).scores, scores.finals(method, other).scores)
            if pairs:
                tests += len(pairs) > 1
                metric, _ = scores.metric(first)
                means = [as_score(mean(side), metric) for side in zip(*pairs, strict=True)]
                n, difference, *_, p = _difference(pairs, metric)
                row = [method, where, value, *means, difference, n, p]
                if reference is not None:
                    own, theirs = (_effects(scores, one, first, other) for one in (method, reference))
                    both = _pairs(own, theirs) if method != reference else []
                    tests += len(both) > 1
                    _, apart, _, detectable, _, p_apart = _difference(both, metric)
                    row += [apart, detectable, p_apart]
                rows.append(row)
    header = ["method", "where", axis, scores.first_value(axis), "that", "difference", "pairs", "p (t-test)"]
    if reference is not None:
        header += [f"less that of {reference}", "detectable", "p (interaction)"]
    return markdown(header, rows, texts=3), tests


def _effects(scores: Scores, method: str, first: Cell, other: Cell) -> dict[int, float]:
    """The score of each seed in a cell minus that in another one."""
    one, two = (scores.finals(method, cell).scores for cell in (first, other))
    return {seed: one[seed] - two[seed] for seed in one.keys() & two.keys()}
