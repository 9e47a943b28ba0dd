"""Scoring a model on a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zofo.errors import NonFiniteError
from zofo.evaluators import Counts, counting_forwards
from zofo.objectives import candidate_scores
from zofo.tasks import METRICS, Batch, Encoded


@dataclass(frozen=True)
class Evaluation:
    """The score of a model on some examples.

    Args:
        metric: name of the score.
        score: its value, from 0 to 1.
        loss: mean classification loss.
        majority: what always answering the most frequent label would get in accuracy.
        predictions: index of the predicted candidate of each example, in the order given.
    """

    metric: str
    score: float
    loss: float
    majority: float
    predictions: tuple[int, ...]

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, the score under the name of its metric."""
        return {self.metric: self.score, "loss": self.loss, "majority": self.majority}


def evaluate(
    model: nn.Module,
    examples: Sequence[Encoded],
    make: Callable[[Sequence[Encoded]], Batch],
    metric: str,
    batch_size: int,
    counts: Counts,
) -> Evaluation:
    """Score a model. Examples of similar length share a batch; the numbers do not depend on that.

    Args:
        model: in evaluation mode.
        examples: at least one.
        make: turns examples into a batch.
        metric: name of the score.
        batch_size: examples a batch.
        counts: where the forwards and queries are counted.
    """
    scores = score_candidates(model, examples, make, batch_size, counts)
    gold = [example.gold for example in examples]
    predictions = scores.argmax(dim=1).tolist()
    return Evaluation(
        metric=metric,
        score=METRICS[metric](gold, predictions),
        loss=F.cross_entropy(scores, torch.tensor(gold)).item(),
        majority=Counter(gold).most_common(1)[0][1] / len(gold),
        predictions=tuple(predictions),
    )


@torch.no_grad()
def score_candidates(
    model: nn.Module,
    examples: Sequence[Encoded],
    make: Callable[[Sequence[Encoded]], Batch],
    batch_size: int,
    counts: Counts,
) -> torch.Tensor:
    """Candidate scores of every example, in the order given: float32 on the CPU, [examples, candidates].

    Raises:
        NonFiniteError: the model gives scores that are not numbers.
    """
    order = sorted(range(len(examples)), key=lambda i: examples[i].length)
    width = max(len(example.rows) for example in examples)
    table = torch.full((len(examples), width), -torch.inf)
    with counting_forwards(model, counts):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            scores = candidate_scores(model, make([examples[i] for i in chosen]))
            table[chosen, : scores.shape[1]] = scores.cpu()
            counts.queries += len(chosen)
    unusable = int((table.isnan() | table.isposinf()).any(dim=1).sum())
    if unusable:
        raise NonFiniteError(f"scores of {unusable} of {len(examples)} examples", consequence="they were not used")
    return table


def as_percent(value: Any) -> str:
    """A share as people read it: 0.785 -> '78.5 %'."""
    return f"{100 * float(value):.1f} %"
