"""Weights that stay in the files of the checkpoint: memory-mapped, read as a forward needs them, never written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from zofo.errors import ModelError

Offload = Literal["disk"]
"""Where weights lie that a forward does not read at the moment."""

_MARK = "offloaded"  # of a model
_SMALL = 0.02  # share of the weights that may be in memory: a new head, a tensor that is put together on loading


def is_offloaded(model: Any) -> bool:
    """Whether a model's weights stay in their files, so that they are read-only."""
    return bool(getattr(model, _MARK, False))


def checkpoint_dtype(content: Mapping[str, Any]) -> str | None:
    """The dtype of a checkpoint's weights according to its config.json, such as `bfloat16`."""
    parts = (content, content.get("text_config") or {})
    own = next((part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), None)
    return None if own is None else str(own).removeprefix("torch.")


def check_can_be_offloaded(content: Mapping[str, Any], quantization: str | None, dtype: str, device: Any) -> None:
    """Check that the weights of a checkpoint can stay in their files, before any of them is read.

    Args:
        quantization: how weights are packed during loading, if they are.

    Raises:
        ModelError: they would be copied into memory; the message says why.
    """
    own = checkpoint_dtype(content) or dtype
    for wrong, why, instead in (
        (
            quantization is not None,
            f"model.quantization={quantization} packs weights into memory of their own",
            "leave out one of the two: packed weights take less memory, and weights on the disk hardly any",
        ),
        (torch.device(device).type != "cpu", f"{str(device)!r} cannot read them there", "set model.device=cpu"),
        (
            own != dtype,
            f"the checkpoint holds {own}, of which model.dtype={dtype} makes a copy in memory",
            f"set model.dtype={own}",
        ),
    ):
        if wrong:
            raise ModelError(f"model.offload=disk leaves the weights in their files, but {why}", instead)


def leave_in_files(model: nn.Module, name: str) -> None:
    """Mark a model as offloaded: its weights are read from the files they were loaded from.

    Raises:
        ModelError: transformers has copied a part of them into memory; the message names it.
    """
    copied = [key for key, tensor in model.named_parameters() if not _is_mapped(tensor)]
    sizes = {key: tensor.nbytes for key, tensor in model.named_parameters()}
    share = sum(sizes[key] for key in copied) / max(1, sum(sizes.values()))
    if share > _SMALL:
        raise ModelError(
            f"model.offload=disk leaves the weights in their files, but {100 * share:.0f} % of {name!r} were copied "
            f"into memory as they were loaded, such as {copied[0]!r}",
            "save the model once more with save_pretrained, in the dtype of model.dtype, or leave out model.offload",
        )
    mark_offloaded(model)


def mark_offloaded(model: nn.Module) -> None:
    """Mark a model as offloaded, also one on the meta device."""
    setattr(model, _MARK, True)


def offload_note(model: nn.Module) -> str:
    """A message that says how much of an offloaded model is read from its files."""
    size = sum(tensor.nbytes for tensor in model.parameters() if _is_mapped(tensor))
    return f"weights of {size / 2**30:.2f} GiB are read from their files, which other processes can share"


def _is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor is memory-mapped from a file: torch did not allocate it, and cannot resize it."""
    return not tensor.untyped_storage().resizable()
