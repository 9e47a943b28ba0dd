"""Means with intervals, and tests of differences in pairs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and how well it is known.

    Args:
        mean: of the values; NaN where there is none.
        half: half the width of the 95 % interval; None for fewer than two values.
        n: how many values.
    """

    mean: float
    half: float | None
    n: int


def interval(values: Sequence[float]) -> Interval:
    """mean +- t(0.975, n - 1) s / sqrt(n), with s the standard deviation of the sample.

    Args:
        values: independent ones, such as the scores of several seeds.
    """
    n = len(values)
    if n < 2:
        return Interval(values[0] if n else math.nan, None, n)
    return Interval(mean(values), t_quantile(n) * stdev(values) / math.sqrt(n), n)


def t_quantile(n: int) -> float:
    """Half of a 95 % interval of the mean of n values, in standard errors: t(0.975, n - 1)."""
    from scipy import stats  # takes most of a second

    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1))


@dataclass(frozen=True)
class Paired:
    """How a method differs from another, in pairs.

    Args:
        difference: mean of the differences, with its interval.
        t_test: p of the paired t-test; None where it has no meaning: fewer than two pairs, or equal differences.
        wilcoxon: p of Wilcoxon's signed-rank test; None for fewer than two pairs, or when no pair differs.
        wins: pairs in which the first is the higher.
        losses: pairs in which it is the lower.
    """

    difference: Interval
    t_test: float | None
    wilcoxon: float | None
    wins: int
    losses: int


_ROUNDING = 1e-12  # of differences that would be equal in exact arithmetic, as a share of the scores


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Both tests of the differences first - second, two-sided; the same place of both is a pair.

    Args:
        first: scores of a method.
        second: scores of another, in the same order.
    """
    from scipy import stats

    size = max((abs(value) for value in (*first, *second)), default=0.0)
    exact = [a - b for a, b in zip(first, second, strict=True)]
    differences = [0.0 if abs(one) <= _ROUNDING * size else one for one in exact]
    t_test = wilcoxon = None
    with warnings.catch_warnings():  # of ties in small samples, and of differences that are nearly equal
        warnings.simplefilter("ignore")
        if len(exact) > 1 and max(differences) - min(differences) > _ROUNDING * size:  # else equal, but rounded
            t_test = float(stats.ttest_rel(first, second).pvalue)
        if len(exact) > 1 and any(differences):
            wilcoxon = float(stats.wilcoxon(differences).pvalue)
    wins, losses = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    return Paired(interval(differences), t_test, wilcoxon, wins, losses)
