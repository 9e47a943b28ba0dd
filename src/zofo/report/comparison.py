"""Compare runs example by example: is one better, and is that more than noise?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zofo.errors import ConfigError
from zofo.report.groups import PairedGroups, compare_groups, groups_of, mean_row, verdict_on
from zofo.report.runs import ReportedRun, Settings, differing_settings, read_runs
from zofo.tasks import METRICS
from zofo.tasks.metrics import Answer
from zofo.training.run_logs import ScoredExample

RESAMPLES = 1000
"""Bootstrap samples of the examples."""
_LEVEL = (2.5, 97.5)  # percentiles of the 95 % interval
_SHOWN = 50  # maximum characters of a prompt
_OF_SHARES = (
    "is a vote: its losses, that of everyday sentences too, are of shares of votes and not of a model's probabilities; "
    "compare scores"
)
_POWER = 2.8  # standard errors: a difference of 1.96 + 0.84 of them is found with 80 % probability


@dataclass(frozen=True)
class Difference:
    """A number of one run minus that of another, over the same examples.

    Args:
        low: lower end of its 95 % interval, by a paired bootstrap over examples (or over groups of rows).
        detectable: the smallest true difference that this number of examples would probably show.
    """

    value: float
    low: float
    high: float
    detectable: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class PairedRuns:
    """One run compared with the first one, over the examples that both were scored on.

    Args:
        against: name of the first one.
        loss: difference of the mean loss; None if unknown, or if one of them is a vote.
        only_first: number of examples that only the first has right; None for generations, which are not right or
            wrong.
        only_second: number of examples that only the other has right.
        mcnemar: p of the two-sided exact McNemar test of these two numbers, about accuracy, whatever the score is.
        otherwise: a note for the reader if the runs used different prompts for the rows; else empty.
    """

    name: str
    against: str
    split: str
    metric: str
    examples: int
    score: Difference
    loss: Difference | None
    only_first: int | None
    only_second: int | None
    mcnemar: float | None
    otherwise: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether the score differs by more than noise, according to the interval.

        For accuracy the exact test must agree, which is valid for few examples, too.
        """
        return self.score.is_clear and (self.metric != "accuracy" or self.mcnemar is None or self.mcnemar < 0.05)

    @property
    def verdict(self) -> str:
        """Which is better, in words."""
        return verdict_on(self, astuple(self.score), self.is_clear, f"{self.examples} examples")


@dataclass(frozen=True)
class RunComparison:
    """The comparison of several runs.

    Args:
        settings: keys in which they differ, and the value of each run; None if it has none.
        options: the same, for parts that not all of them have.
        pairs: each further run compared with the first one, if both kept their answers to the same examples; of runs
            that differ only in their seed, those with the first one's seed.
        groups: the same over seeds, for runs that differ only in these.
        means: the cells of a table with the mean of each of these groups.
        notes: notes for the reader.
    """

    runs: list[ReportedRun]
    split: str
    settings: Settings
    options: Settings
    pairs: list[PairedRuns]
    groups: list[PairedGroups]
    means: list[dict[str, str]]
    notes: list[str]


def compare_runs(paths: Sequence[Path | str] | Sequence[ReportedRun], split: str | None = None) -> RunComparison:
    """Compare runs by their main models.

    Args:
        paths: paths of two or more runs or studies; or runs that are already loaded.
        split: validation or test; by default test if all were scored on it.

    Raises:
        RunError: see `read_runs`.
        ConfigError: there are fewer than two runs, or another split is given.
    """
    runs = [one for one in paths if isinstance(one, ReportedRun)]
    runs = runs or read_runs([one for one in paths if not isinstance(one, ReportedRun)])
    if len(runs) < 2:
        raise ConfigError("a comparison needs two runs or more", "name them: zofo compare RUN_A RUN_B")
    if split not in (None, "validation", "test"):
        raise ConfigError(f"a run is scored on validation and test, not on {split!r}", "choose --split validation")
    chosen = split or ("test" if all(run.scores("test") for run in runs) else "validation")
    notes, pairs = [f"{run.name} {run.state}" for run in runs if run.state], []
    notes += [f"{run.name}: {sentence}" for run in runs for sentence in run.conclusions]
    notes += [f"{run.name} {_OF_SHARES}" for run in runs if run.folder.is_vote]
    groups = compare_groups(runs, chosen)
    for other in runs[1:]:
        if groups and other.seed != runs[0].seed:
            continue
        found = _pair(runs[0], other, chosen)
        said = found if isinstance(found, str) else found.otherwise
        pairs += [found] if isinstance(found, PairedRuns) else []
        notes += [said] if said else []
    if pairs:
        notes.append("The intervals are over examples: another seed of the same configuration may differ by more.")
    means = [mean_row(name, own, chosen) for name, own in groups_of(runs).items()]
    return RunComparison(runs, chosen, *differing_settings(runs), pairs, groups, means, notes)


def _pair(first: ReportedRun, other: ReportedRun, split: str) -> PairedRuns | str:
    """The comparison, or why there is none."""
    for run in (first, other):
        if not run.answered(split):
            why = "it was not scored there, is of an older version, or answers.jsonl was removed"
            if not run.summary:
                why = "they are read once it has ended"
            return f"{run.name} has no answers on {split}: {why}"
    if first.score_name != other.score_name:
        return (
            f"{first.name} is scored by {first.score_name} and {other.name} by {other.score_name}: no test between them"
        )
    both, told = _matched(first, other, split)
    if not both:
        return told
    mine, others = [one for one, _ in both], [one for _, one in both]
    said = [one.predicted[first.variant] for one in mine], [one.predicted[other.variant] for one in others]
    only_first, only_second, p = _mcnemar(mine, *said)
    lost = [one.losses[first.variant] for one in mine], [one.losses[other.variant] for one in others]
    loss = None
    shares = first.folder.is_vote or other.folder.is_vote
    if not shares and None not in (*lost[0], *lost[1]):
        apart = np.subtract(np.array(lost[1], float), np.array(lost[0], float))
        loss = _bootstrap(mine, lambda chosen: float(apart[chosen].mean()))
    sign = 1 if first.metric != "loss" else -1
    score, whole = METRICS[first.metric].score, [one.example for one in mine]

    def difference(chosen: Any) -> float:
        examples = [whole[i] for i in chosen]
        one, two = ([answers[i] for i in chosen] for answers in said)
        return sign * (score(examples, two) - score(examples, one))

    found = _bootstrap(mine, difference)
    counted = (len(both), found, loss, only_first, only_second, p, told)
    return PairedRuns(other.name, first.name, split, first.metric, *counted)


_Pairs = list[tuple[ScoredExample, ScoredExample]]


def _matched(first: ReportedRun, other: ReportedRun, split: str) -> tuple[_Pairs, str]:
    """The examples that both answered, with a note for the reader, or why there are none.

    If no prompts are equal, as with another prompt or chat template, examples are matched by file and line, if all of
    them have the same right answers.
    """
    mine, others = first.answered(split), other.answered(split)
    theirs = {_place(one): one for one in others}
    both = [(one, theirs[_place(one)]) for one in mine if _place(one) in theirs]
    if both:
        return both, ""
    rows = {_row(one): one for one in others}
    both = [(one, rows[_row(one)]) for one in mine if _row(one) in rows]
    counts, between = f"{len(mine)} and {len(others)}", f"{first.name} and {other.name}"
    if not both or len({_row(one) for one in mine}) < len(mine) or len(rows) < len(others):
        where = f"{first.name} begins with {mine[0].where}, {other.name} with {others[0].where}"
        return [], f"{between} were scored on other examples: none of their {counts} is the same; {where}"
    changed = next((one.where for one, two in both if (one.golds, one.answers) != (two.golds, two.answers)), None)
    if changed is not None:
        return [], f"{between} were scored on other examples: {changed} has another right answer in each"
    asked = " and ".join(repr(f"...{text[-_SHOWN:]}" if len(text) > _SHOWN else text) for text in _asked(both[0]))
    return both, f"{between} were asked about the same {len(both)} rows by other prompts, such as {asked}"


def _asked(pair: tuple[ScoredExample, ScoredExample]) -> list[str]:
    return [" ".join(one.text.split()) for one in pair]


def _row(example: ScoredExample) -> tuple[str, str]:
    """The row of an example, independent of the prompt."""
    return example.task, example.where


def _place(example: ScoredExample) -> tuple[str, str, tuple[str, ...], str]:
    """What identifies an example: folders of rows may have moved."""
    return example.task, example.text, example.candidates, example.where.rsplit("/", 1)[-1]


def _mcnemar(
    examples: Sequence[ScoredExample], first: Sequence[Answer], second: Sequence[Answer]
) -> tuple[int | None, int | None, float | None]:
    """The numbers of examples that only the first, and only the second, has right, and the p of McNemar's exact
    test."""
    if any(one.answers for one in examples):
        return None, None, None
    from scipy import stats

    right = [(a in one.golds, b in one.golds) for one, a, b in zip(examples, first, second, strict=True)]
    one, two = sum(a and not b for a, b in right), sum(b and not a for a, b in right)
    return one, two, float(stats.binomtest(one, one + two).pvalue) if one + two else 1.0


def _bootstrap(examples: Sequence[ScoredExample], statistic: Callable[[Any], float]) -> Difference:
    """A statistic over chosen examples with its percentile interval; examples of a group are drawn together."""
    units: dict[str, list[int]] = {}
    for place, one in enumerate(examples):
        units.setdefault(one.group or f"\0{place}", []).append(place)
    groups, random = [np.array(unit) for unit in units.values()], np.random.default_rng(0)
    drawn = (random.integers(len(groups), size=len(groups)) for _ in range(RESAMPLES))
    single = len(groups) == len(examples)
    found = [statistic(chosen if single else np.concatenate([groups[i] for i in chosen])) for chosen in drawn]
    low, high = np.percentile(found, _LEVEL)
    return Difference(statistic(np.arange(len(examples))), float(low), float(high), _POWER * float(np.std(found)))
