"""Candidate likelihoods, and the classification loss on them. Everything is per example and float32."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zofo.tasks import Batch


def candidate_scores(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean log-likelihood of the tokens of each candidate after its prompt.

    score[e, c] = (1 / n) sum over the n tokens of candidate c of log p(token | prompt, tokens before it). Logits are
    asked for only where a token is scored: at one position when every candidate is one token.

    Args:
        model: a causal language model of transformers, with or without adapters.
        batch: E examples with up to C candidates.

    Returns:
        float32, shape [E, C]; -inf where an example has fewer candidates.
    """
    keep = 1 if batch.single else batch.targets.shape[1] + 1
    logits = _logits(model, batch, keep)
    if batch.single:
        scores = logits[:, -1].log_softmax(dim=-1).gather(1, batch.targets)
        return scores.masked_fill(batch.target_mask == 0, -torch.inf)
    likelihoods = logits[:, :-1].log_softmax(dim=-1).gather(2, batch.targets.unsqueeze(2)).squeeze(2)
    rows = (likelihoods * batch.target_mask).sum(1) / batch.target_mask.sum(1)
    table = rows.new_full((len(batch) * batch.candidates,), -torch.inf)
    return table.index_put((batch.cells,), rows).view(len(batch), batch.candidates)


def classification_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the right candidate among an example's candidates: -score[gold] + logsumexp over c of score[c].

    Returns:
        float32, shape [E].

    Source: the classification training of MeZO (Malladi et al. 2023), with scores normalised by length.
    """
    return F.cross_entropy(candidate_scores(model, batch), batch.gold, reduction="none")


def _logits(model: nn.Module, batch: Batch, keep: int) -> torch.Tensor:
    """Logits at the last `keep` positions, float32, [R, keep, vocabulary]."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    known = _parameters_of(type(_unwrapped(model)).forward)
    if "position_ids" in known:
        inputs["position_ids"] = batch.position_ids
    if "logits_to_keep" in known:
        inputs["logits_to_keep"] = keep
    logits: torch.Tensor = model(**inputs).logits
    return logits[:, -keep:].float()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers of torch.compile, data parallelism and peft, which pass arguments on."""
    for wrapper in ("_orig_mod", "module"):
        model = getattr(model, wrapper, model)
    base = getattr(model, "get_base_model", None)
    return model if base is None else base()


@functools.cache
def _parameters_of(forward: Callable[..., Any]) -> frozenset[str]:
    """Names that the forward of a class of models takes."""
    return frozenset(inspect.signature(forward).parameters)
