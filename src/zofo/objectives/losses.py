"""Losses that have a gradient, one for each example."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zofo.objectives.scoring import scores


def classification_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Cross-entropy of the right candidate among an example's candidates: -score[gold] + logsumexp over c of score[c].

    Returns:
        float32, shape [E].

    Source: the classification training of MeZO (Malladi et al. 2023), with scores normalised by length; with a
    classification head, the cross-entropy of its logits.
    """
    return F.cross_entropy(scores(model, batch), batch.gold, reduction="none")


def token_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Mean negative log-likelihood of the scored tokens of the gold candidate: -score[gold].

    On examples as `TokenizedChoices.gold_only` makes them, that is the language-model loss on the answer; as
    `TokenizedChoices.whole` makes them, that on the whole text.

    Returns:
        float32, shape [E].
    """
    return -scores(model, batch).gather(1, batch.gold.unsqueeze(1)).squeeze(1)
