"""Runs that differ only in their seed: their means, and whether one group is better than another."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zofo.report.runs import ReportedRun
from zofo.significance import Paired, interval, paired
from zofo.training.evaluation import as_number, as_score


@dataclass(frozen=True)
class PairedGroups:
    """A group of runs compared with the first one, in pairs of the same seeds.

    Args:
        against: name of the first one.
        difference: paired difference of the score.
    """

    name: str
    against: str
    metric: str
    difference: Paired

    @property
    def verdict(self) -> str:
        """Which is better, in words."""
        found, n = self.difference, self.difference.difference.n
        middle, half = found.difference.mean, found.difference.half or 0.0
        numbers = (middle, middle - half, middle + half, found.detectable or 0.0)
        is_clear = found.verdict(None) != "open"
        return verdict_on(self, numbers, is_clear, f"{n} seeds", f" over {n} pairs of seeds")


def verdict_on(
    compared: Any, numbers: tuple[float, float, float, float], is_clear: bool, sample: str, over: str = ""
) -> str:
    """Which of two is better, in words.

    From the difference, both ends of its 95 % interval, and the smallest difference that the sample would show.
    """
    middle, low, high, least = ((1 if compared.metric == "loss" else 100) * number for number in numbers)
    if is_clear and middle < 0:  # said of the better one, so that its sign is the sentence's
        low, high = -high, -low
    interval = f"95 %{over}: {low:+.1f} to {high:+.1f}"
    if not is_clear:
        both = f"no difference between {compared.name} and {compared.against} that {sample} can show"
        if not (low or high or least):  # equal in each, which says nothing of how much others would differ
            return f"{both} (they are equal in each)"
        return f"{both} ({interval}; a true difference below {least:.1f} would hardly show)"
    names = (compared.name, compared.against)
    better, other = names if middle > 0 else names[::-1]
    return f"{better} is better than {other} by {abs(middle):.1f} points of {compared.metric} ({interval})"


def groups_of(runs: Sequence[ReportedRun]) -> dict[str, list[ReportedRun]]:
    """The groups with finished runs of two or more seeds, in the order of the runs.

    A group is named as in a study, by the common part of its runs' names, by their method, or by its first run.
    """
    found: dict[str, list[ReportedRun]] = {}
    for run in runs:
        if run.summary:
            own = found.setdefault(run.group, [])
            if run.seed not in {one.seed for one in own}:  # made again, it is no other sample
                own.append(run)
    several = {name: own for name, own in found.items() if len(own) > 1}
    for called in (_in_common, lambda own: str(own[0].settings.get("method.name", "")), lambda own: own[0].name):
        names = [called(own) if name == own[0].name else name for name, own in several.items()]
        if all(names) and max(Counter(names).values(), default=1) == 1:
            break
    of_study = [name != own[0].name for name, own in several.items()]
    shown = [
        name if known else f"{name} ({len(own)} seeds)"
        for name, own, known in zip(names, several.values(), of_study, strict=True)
    ]
    return dict(zip(shown, several.values(), strict=True))


_SEED = re.compile(r"([\s._-]+s|[\s._-]*seed)?[\s._=-]*\d*$", re.IGNORECASE)


def _in_common(runs: Sequence[ReportedRun]) -> str:
    """The common prefix of the runs' names, without words for a seed: `mezo` for `mezo-seed0` and `mezo-seed1`."""
    return _SEED.sub("", os.path.commonprefix([run.name for run in runs]))


def compare_groups(runs: Sequence[ReportedRun], split: str) -> list[PairedGroups]:
    """Each further group compared with the first one, if both have at least two seeds in common."""
    found: list[PairedGroups] = []
    (against, first), *others = list(groups_of(runs).items()) or [("", [])]
    for name, own in others:
        metric = first[0].metric
        mine, theirs = ({run.seed: run.scores(split).get(metric) for run in group} for group in (first, own))
        both = [(two, one) for seed, one in mine.items() if (two := theirs.get(seed)) is not None and one is not None]
        if len(both) > 1:
            sign = -1 if metric == "loss" else 1
            pairs = paired([sign * two for two, _ in both], [sign * one for _, one in both])
            found.append(PairedGroups(name, against, metric, pairs))
    return found


def mean_row(name: str, runs: Sequence[ReportedRun], split: str) -> dict[str, str]:
    """The cells of a group in a table of means, each with its 95 % interval over seeds if there is one."""
    metric = runs[0].metric

    def cell(of: Callable[[ReportedRun], float | None], write: Callable[[float], str]) -> str:
        known = [value for value in map(of, runs) if value is not None]
        if len(known) < len(runs):
            return "-"
        found = interval(known)
        return write(found.mean) + (f" ± {write(found.half)}" if found.half else "")

    return {
        "name": name,
        "runs": str(len(runs)),
        "score": cell(lambda run: run.scores(split).get(metric), lambda value: as_score(value, metric)),
        "majority": cell(lambda run: run.scores(split).get("majority"), lambda value: as_score(value, metric)),
        "loss": cell(lambda run: run.scores(split).get("loss"), as_number),
        "queries": cell(lambda run: run.steps[-1]["queries"] if run.steps else 0, as_number),
        "seconds": cell(lambda run: run.summary.get("seconds"), as_number),
    }
