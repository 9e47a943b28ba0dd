"""Insert virtual tokens into a forward pass: the model sees a prefix or a prompt before the given tokens.

peft's own forward drops position ids, which left padding needs, and does not accept a mask of pairs of positions. So a
pre-hook of the transformers model inserts the virtual tokens itself.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from zofo.adapters.switched_off import are_off
from zofo.errors import ConfigError
from zofo.models.heads import is_classifier

Inputs = dict[str, Any]


class VirtualTokens:
    """A pre-hook that inserts the active prefix or prompt of a peft model before the tokens of each row.

    A prefix is passed as cached keys and values. A prompt is passed as embeddings before those of the row, so logits
    have that many extra positions at the start. Both only while the cache is empty; masks and positions account for the
    virtual tokens in every call.
    """

    def __init__(self, model: Any, peft_model: Any) -> None:
        self._peft = peft_model
        self._arguments = tuple(inspect.signature(type(model).forward).parameters)[1:]

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: Inputs) -> tuple[tuple[()], Inputs]:
        """The inputs of a forward including the virtual tokens, all by keyword."""
        inputs = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
        if are_off():
            return (), inputs
        shape = self._peft.active_peft_config
        given = inputs.get("input_ids")
        given = inputs["inputs_embeds"] if given is None else given
        rows, length = given.shape[:2]
        cache = inputs.get("past_key_values")
        begins = cache is None or not cache.get_seq_length()
        count = int(shape.num_virtual_tokens)
        if "position_ids" in self._arguments:
            _count_in_positions(inputs, length, count)
        if shape.peft_type == "PREFIX_TUNING":
            _count_in_mask(inputs, count)
            if begins:
                inputs["past_key_values"] = self._peft.get_prompt(rows)
        elif begins:
            self._prompt(model, inputs, rows, count)
        else:
            _count_in_mask(inputs, count)
        _check_row_lengths(model, inputs, length, count)
        return (), inputs

    def _prompt(self, model: Any, inputs: Inputs, rows: int, count: int) -> None:
        """Prepend the embeddings of the prompt to those of the tokens."""
        ids = inputs.pop("input_ids", None)
        inputs.pop("token_type_ids", None)  # for the given tokens; virtual tokens have none
        embeddings: torch.Tensor = inputs["inputs_embeds"] if ids is None else model.get_input_embeddings()(ids)
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        if is_classifier(model) and mask is not None:
            # without token ids, such a model reads the last position, so that padding may not stand there
            embeddings, inputs["attention_mask"], positions = _padded_left(embeddings, mask, positions)
        # not by peft's get_prompt, which looks up one row and repeats it: rows may carry directions of their own
        own = torch.arange(count, device=embeddings.device).expand(rows, count)
        prompt = self._peft.prompt_encoder[self._peft.active_adapter](own).to(embeddings.dtype)
        inputs["inputs_embeds"] = torch.cat([prompt, embeddings], dim=1)
        if positions is not None:
            inputs["position_ids"] = torch.cat([own[: len(positions)], positions], dim=1)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            inputs["attention_mask"] = _pairs_with_prompt(mask, count)
        else:
            _count_in_mask(inputs, count)


def inject(model: Any, peft_model: Any) -> None:
    """Let every forward of `model` begin with the active virtual tokens of `peft_model`."""
    model.register_forward_pre_hook(VirtualTokens(model, peft_model), with_kwargs=True)


def _count_in_positions(inputs: Inputs, length: int, count: int) -> None:
    """Shift the positions of the tokens past the virtual ones; if none are given, derive them from a mask of rows."""
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if positions is None and mask is not None and mask.dim() == 2:
        positions = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]
    if positions is not None:
        inputs["position_ids"] = positions + count


def _count_in_mask(inputs: Inputs, count: int) -> None:
    """Let every token see the virtual ones: prepend columns to a mask of rows or of pairs."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return
    seen = True if mask.dtype == torch.bool else int(mask.dim() == 2)  # an additive mask of 0: visible
    inputs["attention_mask"] = torch.cat([mask.new_full((*mask.shape[:-1], count), seen), mask], dim=-1)


def _pairs_with_prompt(mask: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of pairs, [R, 1, L, L], with a prompt before the tokens: it is causal, and all tokens see it."""
    seen, unseen = (True, False) if mask.dtype == torch.bool else (0.0, torch.finfo(mask.dtype).min)
    rows, heads, length, _ = mask.shape
    out = mask.new_full((rows, heads, count + length, count + length), unseen)
    out[:, :, count:, count:] = mask
    out[:, :, count:, :count] = seen
    places = torch.arange(count, device=mask.device)
    out[:, :, :count, :count].masked_fill_(places.unsqueeze(1) >= places, seen)
    return out


def _padded_left(
    embeddings: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rows rotated so that their padding, wherever it was, is on the left."""
    length = mask.shape[1]
    places = torch.arange(length, device=mask.device)
    last = torch.where(mask.bool(), places, 0).amax(dim=1, keepdim=True)
    source = (places - (length - 1 - last)) % length
    moved = embeddings.gather(1, source.unsqueeze(2).expand_as(embeddings))
    return moved, mask.gather(1, source), None if positions is None else positions.gather(1, source)


def _check_row_lengths(model: Any, inputs: Inputs, length: int, count: int) -> None:
    """Raise ConfigError if rows leave no room for the virtual tokens."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    longest = length + count if mask is None else mask.shape[-1]
    if limit is None or longest <= limit:
        return
    if positions is not None:  # only now, since looking at a value waits for the device
        longest = int(positions.max()) + 1
    if longest > limit:
        raise ConfigError(
            f"the model has {limit} positions, but a row with its {count} virtual tokens takes {longest}",
            f"set task.max_length={limit - count}, with task.truncate=left, or lower method.adapter.num_virtual_tokens",
        )
