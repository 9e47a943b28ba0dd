"""A tiny forward that finds out whether a causal language model can be asked for scores of padded rows."""

from __future__ import annotations

from typing import Any

import torch

from zofo.backbone.heads import takes
from zofo.errors import ModelError

_LENGTH, _MORE, _ATTEMPTS = 5, 3, 3
_TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 3e-2}  # of the relative difference; for other types:
_TOLERANCE = 3e-4
_HINT = "choose a causal language model that takes positions, such as OPT, GPT-2, Llama, Qwen or SmolLM2"


@torch.no_grad()
def refuse_unfit_for_scoring(model: Any, pad: int, name: str) -> None:
    """Refuse a model whose logits of a token depend on the tokens after it, or on padding on the left.

    In one forward, five tokens stand before three more, and again behind three of padding, which is masked; positions
    are those of the tokens, if the model takes any. The logits of the fifth must agree. Rounding may tip a router of
    experts over, so a model is only refused when several choices of tokens show the same.

    Args:
        model: a causal language model, in evaluation mode, on its device.
        pad: id of the padding token.
        name: as the model was asked for.

    Raises:
        ModelError: the model is unfit, or cannot be run; names the architecture.
    """
    shown = f"{name!r} is a {type(model).__name__}"
    try:
        with torch.random.fork_rng(devices=[]):  # some models hash at random
            if _agrees(model, pad, padding=_MORE):
                return
            ahead = not _agrees(model, pad, padding=0)
    except Exception as error:  # a forward fails in as many ways as there are models
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{shown}, which cannot score a padded row: {reason}", _HINT) from error
    if ahead:
        raise ModelError(
            f"{shown}, whose tokens see those after them: it is no causal language model",
            "set model.head=masked-lm or model.head=classification",
        )
    raise ModelError(f"{shown}, whose scores change when a row is padded on the left", _HINT)


def _agrees(model: Any, pad: int, padding: int) -> bool:
    """Whether a row scores the same before some tokens as behind padding, or, without any, as before other tokens."""
    size, tokens = model.config.get_text_config().vocab_size, _LENGTH + 2 * _MORE
    spread = [(2 * i + 1) * size // (2 * tokens * _ATTEMPTS + 2) for i in range(tokens * _ATTEMPTS + 1)]
    ids = [token for token in spread if token != pad]  # from all over the vocabulary: its ends are often special
    ids += ids  # a tiny vocabulary may have given the padding token several times
    for attempt in range(_ATTEMPTS):
        mine = ids[attempt::_ATTEMPTS]
        row, more, others = mine[:_LENGTH], mine[_LENGTH : _LENGTH + _MORE], mine[_LENGTH + _MORE :][:_MORE]
        second = [pad] * padding + row if padding else row + others
        if _difference(model, torch.tensor([row + more, second]), padding) <= _TOLERANCES.get(model.dtype, _TOLERANCE):
            return True
    return False


def _difference(model: Any, input_ids: torch.Tensor, padding: int) -> float:
    """How far the logits of the row's last token are apart, relative to their spread over the vocabulary."""
    mask = torch.ones_like(input_ids)
    mask[1, :padding] = 0
    inputs = {"input_ids": input_ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=-1) - 1).clamp(min=0)}
    device = next(model.parameters()).device
    logits = model(**{key: value.to(device) for key, value in inputs.items() if takes(model, key)}).logits.float()
    first, second = logits[0, _LENGTH - 1], logits[1, _LENGTH - 1 + padding]
    if not first.isfinite().all():  # a forward that overflows says so itself, where a loss is asked for
        return 0.0
    # what is equal for all tokens is taken off, since no probability depends on it
    difference, centred = second - first - (second - first).mean(), first - first.mean()
    return float((difference.norm() / centred.norm().clamp(min=1e-30)).nan_to_num(nan=torch.inf))
