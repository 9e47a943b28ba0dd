"""Checks of what else a checkpoint contains: an adapter, other weights, or tensors that the model does not have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from zofo.config import read_json_object
from zofo.errors import ModelError, ZofoError

ADAPTER, WHOLE, SHARDS = "adapter_config.json", "model.safetensors", "model.safetensors.index.json"
_GENERATION = "generation_config.json"


def check_model_folder(folder: Path, name: str) -> None:
    """Refuse a folder that transformers reads differently than its owner may expect, judging by its file names.

    Raises ModelError for an adapter, which transformers would attach silently; for two sets of weights, of which it
    would read one; and for an unreadable `generation_config.json`, which it would ignore.
    """
    if (folder / ADAPTER).is_file():
        check_no_adapter(folder / ADAPTER, name, alone=not (folder / "config.json").is_file())
    if (folder / WHOLE).is_file() and (folder / SHARDS).is_file():
        raise ModelError(
            f"{name!r} holds two sets of weights: {WHOLE}, and the files that {SHARDS} names",
            f"remove the one that is not meant: {WHOLE}, or {SHARDS} and its files",
        )
    if (folder / SHARDS).is_file():
        shards = read_json_object(folder / SHARDS).get("weight_map")
        for shard in set(shards.values()) if isinstance(shards, dict) else ():
            if Path(str(shard)).name != shard:
                raise ModelError(
                    f"{SHARDS} of {name!r} names {str(shard)[:80]!r}, which lies in another folder",
                    "fetch the model again, from a source that you trust",
                )
    if (folder / _GENERATION).is_file():
        try:
            read_json_object(folder / _GENERATION)
        except ZofoError as error:
            raise ModelError(error.message, "fix or remove it: it says which tokens end a generated text") from error


def check_no_adapter(file: Path, name: str, alone: bool) -> None:
    """Refuse an adapter beside a model, or instead of one.

    Args:
        file: the `adapter_config.json` that was found.
        alone: whether there is no model beside it.

    Raises:
        ModelError: always; the message names the base model of the adapter.
    """
    try:
        content = read_json_object(file)
    except ZofoError:
        content = {}
    adapter = f"a {content.get('peft_type', 'peft')} adapter of {content.get('base_model_name_or_path')!r}"
    merge = (
        "merge it into its model first, with peft: "
        f"AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload().save_pretrained('merged')"
    )
    if alone:
        raise ModelError(f"{name!r} is no model but {adapter}", merge)
    raise ModelError(
        f"{name!r} holds {adapter} beside the model: the model alone may be meant, or the model with its adapter",
        f"for the model alone, move {ADAPTER} out of it; for both, {merge}",
    )


def check_checkpoint_tensors(model: nn.Module, found: Mapping[str, Iterable[Any]], name: str) -> None:
    """Refuse a checkpoint whose tensors belong to another model than its config.json describes.

    Tensors of another head, or of a part that the model does not have at all, are ignored. A tensor of one of the
    model's layers, or of an additional layer, would be lost silently.

    Args:
        found: transformers' report: `mismatched_keys` and `unexpected_keys`.

    Raises:
        ModelError: there is one; the message names it.
    """
    hint = "config.json describes another model than the weights: take both from one checkpoint"
    for key, *shapes in sorted(found["mismatched_keys"]):
        there, here = (" x ".join(map(str, shape)) for shape in shapes)
        raise ModelError(f"the checkpoint of {name!r} holds {key!r} as {there}, but its config.json means {here}", hint)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    repeated = {_any_layer(part): part for part, _ in model.named_modules() if _NUMBER.search(part)}
    repeated |= {name.removeprefix(prefix): part for name, part in repeated.items()}
    without = [key for key in sorted(found["unexpected_keys"]) if _is_missed(key, repeated, model)]
    if without:
        raise ModelError(
            f"the checkpoint of {name!r} holds {len(without)} tensors that the model has no place for, such as "
            f"{without[0]!r}",
            hint,
        )


_NUMBER = re.compile(r"\b\d+\b")


def _any_layer(name: str) -> str:
    """A name without layer numbers."""
    return _NUMBER.sub("*", name)


def _is_missed(key: str, repeated: Mapping[str, str], model: nn.Module) -> bool:
    """Whether a tensor belongs to a repeated layer of a model, and is not a mask that older versions saved."""
    above, last = _any_layer(key).rpartition(".")[::2]
    if last in _MASKS or (
        last == "bias" and above in repeated and any(model.get_submodule(repeated[above]).children())
    ):
        return False
    parts = above.split(".")
    return any(".".join(parts[:end]) in repeated for end in range(1, len(parts) + 1))


_MASKS = ("masked_bias", "causal_mask", "position_ids", "inv_freq")
