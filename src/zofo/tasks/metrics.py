"""Scores of predictions, through scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zofo.registry import Registry

Metric = Callable[[Sequence[int], Sequence[int]], float]
"""(right candidates, predicted candidates) -> a score from 0 to 1, higher is better."""

METRICS: Registry[Metric] = Registry("metric")


@METRICS.register("accuracy")
def accuracy(gold: Sequence[int], predicted: Sequence[int]) -> float:
    """The share of examples whose predicted candidate is the right one."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(gold, predicted))
