"""Adapters written into the weights of their model."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zofo.adapters.base import quiet_peft
from zofo.adapters.checkpoint import load_adapter
from zofo.config import read_json_object
from zofo.errors import RunError
from zofo.models import quantized_as

_VIRTUAL = ("PREFIX_TUNING", "PROMPT_TUNING")


def can_merge(folder: Path) -> bool:
    """Whether a saved adapter can become a part of its model's weights: virtual tokens cannot."""
    return adapter_content(folder).get("peft_type") not in _VIRTUAL


def merge_adapter(model: Any, folder: Path) -> None:
    """Write a saved adapter into the weights of the model, which is then of its own class again.

    For LoRA, W <- W + (alpha / rank) B A in the number type of W, so that outputs agree up to its rounding.

    Args:
        model: the transformers model that it was trained with, without adapters.
        folder: as `Adapters.save` or peft writes it.

    Raises:
        RunError: it does not fit the model; or it has virtual tokens, or sits on weights that the model uses in a
            second place, so that it cannot be merged.
    """
    if not can_merge(folder):
        kind = str(adapter_content(folder).get("peft_type")).replace("_", " ").lower()
        raise RunError(
            f"an adapter of {kind} puts tokens before each row and changes no weight, so it cannot be merged",
            "write the adapter itself with --adapter DIR",
        )
    merge_attached(model, load_adapter(model, folder))


def merge_attached(model: Any, peft_model: Any) -> None:
    """The same for an adapter that is attached already.

    Args:
        model: the transformers model that carries it.
        peft_model: what `load_adapter` gave.

    Raises:
        RunError: as `merge_adapter`.
    """
    check_can_take_up(quantized_as(model))
    uses = Counter(p.data_ptr() for _, p in model.named_parameters(remove_duplicate=False))
    for name, part in peft_model.named_modules():
        layer: Any = part
        if not hasattr(layer, "lora_A") and not hasattr(layer, "ia3_l"):
            continue
        if uses[layer.get_base_layer().weight.data_ptr()] > 1:
            raise RunError(
                f"the adapter sits on {name.removeprefix('base_model.model.')!r}, whose weights the model uses in a "
                "second place, so it cannot be merged",
                "write the adapter itself with --adapter DIR",
            )
    with quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        peft_model.merge_and_unload()
    for left in ("peft_config", "_hf_peft_config_loaded"):
        vars(model).pop(left, None)
    model.requires_grad_(False).eval()


def check_can_take_up(method: str | None) -> None:
    """Raises RunError for a base model whose weights are quantised by a method: packing them again would round what is
    added to them away."""
    if method is not None:
        raise RunError(
            f"the weights of the base model are quantised ({method}), and what was trained cannot be written into them",
            "write the adapter itself with --adapter DIR, which stands beside the quantised model",
        )


def adapter_content(folder: Path) -> Mapping[str, Any]:
    """What the configuration of a saved adapter holds.

    Raises:
        RunError: it cannot be read.
    """
    return read_json_object(folder / "adapter_config.json")
