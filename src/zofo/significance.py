"""Means with confidence intervals, and paired tests of differences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

LEVEL, POWER = 0.95, 0.8


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Args:
        mean: mean of the values; NaN for none.
        half: half the width of the 95 % interval; None for fewer than two values.
        n: number of values.
    """

    mean: float
    half: float | None
    n: int


def interval(values: Sequence[float]) -> Interval:
    """mean +- t(0.975, n - 1) s / sqrt(n), with s the standard deviation of the sample.

    Args:
        values: independent values, such as the scores of several seeds.
    """
    n = len(values)
    if n < 2:
        return Interval(values[0] if n else math.nan, None, n)
    return Interval(mean(values), t_quantile(n) * stdev(values) / math.sqrt(n), n)


def t_quantile(n: int) -> float:
    """Half of the 95 % interval of the mean of n values, in standard errors: t(0.975, n - 1)."""
    from scipy import stats  # takes most of a second

    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1))


def detectable(values: Sequence[float]) -> float | None:
    """The smallest true mean that a two-sided t-test of these values finds with 80 % probability.

    (t(0.975, n - 1) + t(0.8, n - 1)) s / sqrt(n), for as many values with their standard deviation; None for fewer than
    two.

    Source: the usual approximation of the power of a t-test by a shifted t distribution.
    """
    from scipy import stats

    n = len(values)
    if n < 2:
        return None
    return (t_quantile(n) + float(stats.t.ppf(POWER, n - 1))) * stdev(values) / math.sqrt(n)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for multiple testing: the probability that any is so small if no difference is real.

    Sorted p(1) <= ... <= p(m), the k-th becomes max over j <= k of min(1, (m - j + 1) p(j)); None stays None.

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    found: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        found[place] = largest
    return found


@dataclass(frozen=True)
class Paired:
    """The paired difference of two methods.

    Args:
        difference: mean of the differences, with its interval.
        t_test: p of the paired t-test; None if it is undefined: fewer than two pairs, or equal differences.
        wilcoxon: p of Wilcoxon's signed-rank test; None for fewer than two pairs, or if no pair differs.
        wins: number of pairs in which the first is higher.
        losses: number of pairs in which it is lower.
        detectable: the smallest true difference that this number of pairs would probably show, see `detectable`.
    """

    difference: Interval
    t_test: float | None
    wilcoxon: float | None
    wins: int
    losses: int
    detectable: float | None = None

    def verdict(self, margin: float | None) -> str:
        """The conclusion from the 95 % interval: `better`, `worse`, or `open`.

        With a margin, `equal` if the whole interval lies within it.
        """
        middle, half = self.difference.mean, self.difference.half
        if half is None:
            return "open"
        if margin is not None and abs(middle) + half < margin:
            return "equal"
        return "open" if abs(middle) <= half else "better" if middle > 0 else "worse"


_ROUNDING = 1e-12  # of differences that would be equal in exact arithmetic, as a share of the scores


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Both two-sided tests of the differences first - second; values with the same index are a pair."""
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
    return Paired(interval(differences), t_test, wilcoxon, wins, losses, detectable(differences))
