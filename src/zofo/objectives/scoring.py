"""Scores of candidates by likelihood or by a classification head, and losses from them; per example, in float32."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zofo.backbone import at_least_float32
from zofo.models import bare_model, takes
from zofo.tasks import Batch, TextBatch


def candidate_scores(model: nn.Module, batch: Batch, by: str = "mean") -> torch.Tensor:
    """The mean log-likelihood of the tokens of each candidate after its prompt, or their sum.

    score[e, c] = (1 / n) sum over the n tokens of candidate c of log p(token | prompt, tokens before it). Logits are
    computed only at the last `batch.logits_to_keep` positions: one, if every candidate is a single token. In a masked
    language model a candidate is one token at the mask.

    Args:
        model: a language model of transformers, with or without adapters.
        batch: E examples with up to C candidates; a `packed` one only for a model with a `packing_limit` for it.
        by: `mean`, so that length does not count, or `sum`.

    Returns:
        float32, shape [E, C]; -inf beyond an example's own candidates.
    """
    likelihoods = _logits(model, batch).log_softmax(dim=-1).flatten(0, 1)
    tokens = likelihoods[batch.gather_index, batch.targets].masked_fill(~batch.target_mask, 0.0)
    counts = batch.target_mask.sum(dim=-1)
    sums = tokens.sum(dim=-1)
    return (sums / counts.clamp(min=1) if by == "mean" else sums).masked_fill(counts == 0, -torch.inf)


def target_log_likelihoods(model: nn.Module, batch: Batch) -> torch.Tensor:
    """log p of each scored token of the first candidate, after the tokens before it: float32, shape [E, T].

    Examples are normalised over the vocabulary one at a time, since a copy of all logits would be the largest of all
    tensors. Values beyond an example's own tokens are undefined.
    """
    logits = _logits(model, batch).flatten(0, 1)
    of_each = zip(batch.gather_index[:, 0], batch.targets[:, 0], strict=True)
    return torch.stack([-F.cross_entropy(logits[places], tokens, reduction="none") for places, tokens in of_each])


def scores(model: nn.Module, batch: Any, by: str = "mean") -> torch.Tensor:
    """The score of each candidate of each example, higher is better: float32, shape [E, C].

    Args:
        model: a language model for a `Batch`, a model with a classification head for a `TextBatch`.
        by: `mean` or `sum` over a candidate's tokens; a head gives its logits.
    """
    return head_scores(model, batch) if isinstance(batch, TextBatch) else candidate_scores(model, batch, by)


def head_scores(model: nn.Module, batch: TextBatch) -> torch.Tensor:
    """The logits of a classification head: float32, shape [E, labels]."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.token_type_ids is not None and takes(bare_model(model), "token_type_ids"):
        inputs["token_type_ids"] = batch.token_type_ids
    logits: torch.Tensor = model(**inputs).logits
    return at_least_float32(logits)


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

    For examples from `TokenizedChoices.gold_only` this is the language-model loss on the answer; for examples from
    `TokenizedChoices.full_sequence`, on the whole text.

    Returns:
        float32, shape [E].
    """
    return -scores(model, batch).gather(1, batch.gold.unsqueeze(1)).squeeze(1)


def whole(example: Any) -> Any:
    """The example unchanged: a loss that compares candidates needs all of them."""
    return example


def packing_limit(model: nn.Module) -> int | None:
    """The longest packed row, in tokens, of which a model scores each branch as it would alone.

    Returns:
        0 unless the model is causal, mixes positions by attention only, and accepts both a mask of pairs of positions
        and explicit positions. Then the smaller of its attention window and its largest position, or None if it has
        neither.
    """
    bare = bare_model(model)
    room = inspect.getmodule(type(bare))
    if not hasattr(room, "create_causal_mask"):  # the mask function of transformers that passes a mask of pairs through
        return 0
    config = bare.config.get_text_config()
    takes_both = (
        config._attn_implementation in ("eager", "sdpa")
        and takes(bare, "position_ids")
        and not getattr(config, "alibi", False)
    )
    decoder = getattr(config, "is_decoder", False) or not hasattr(room, "create_bidirectional_mask")
    causal = decoder and getattr(config, "is_causal", True)
    if not (takes_both and causal and only_attends(bare)):
        return 0
    limits = [limit for limit in (getattr(config, name, None) for name in _LIMITS) if limit]
    return min(limits, default=None)


def only_attends(model: Any) -> bool:
    """Whether a transformers model mixes positions by attention alone, with keys and values as its only state."""
    config = model.config.get_text_config()
    return not model._is_stateful and _ATTENDING.issuperset(getattr(config, "layer_types", None) or ())


_ATTENDING = frozenset({"full_attention", "sliding_attention", "chunked_attention"})  # of a configuration's layer types
_LIMITS = ("max_position_embeddings", "sliding_window", "attention_chunk_size", "window_size")  # of a configuration


def _logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits at the last `batch.logits_to_keep` positions, float32, [R, keep, vocabulary]."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": _attention_mask(model, batch)}
    bare = bare_model(model)
    if batch.position_ids is not None and takes(bare, "position_ids"):
        inputs["position_ids"] = batch.position_ids
    if takes(bare, "logits_to_keep"):  # positions and not their number: gathered, they make the head one matrix product
        inputs["logits_to_keep"] = torch.arange(-batch.logits_to_keep, 0, device=batch.input_ids.device)
    logits: torch.Tensor = model(**inputs).logits
    return at_least_float32(logits[:, -batch.logits_to_keep :])


def _attention_mask(model: nn.Module, batch: Batch) -> torch.Tensor:
    """[R, L], or an additive mask [R, 1, L, L]: 0 where a position is visible, else the lowest number."""
    if not batch.packed:
        return batch.attention_mask
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    visible = batch.visible
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
