"""Weights that stay in the files of the checkpoint: mapped into memory, read as a forward needs them, never written."""

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
    """Whether the weights of a model stay in their files, so that they may only be read."""
    return bool(getattr(model, _MARK, False))


def checkpoint_dtype(content: Mapping[str, Any]) -> str | None:
    """The number type that a config.json says of the weights of its checkpoint, such as `bfloat16`."""
    parts = (content, content.get("text_config") or {})
    own = next((part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), None)
    return None if own is None else str(own).removeprefix("torch.")


def check_can_be_offloaded(content: Mapping[str, Any], quantization: str | None, dtype: str, device: Any) -> None:
    """Find out whether the weights of a checkpoint can stay in their files, before any of them is read.

    Args:
        quantization: how weights are packed as they are loaded, if they are.

    Raises:
        ModelError: they would be copied into memory; says why.
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
    """Mark a model whose weights are read from the files they were loaded from.

    Raises:
        ModelError: transformers has copied a part of them into memory; names it.
    """
    copied = [key for key, tensor in model.named_parameters() if not _is_mapped(tensor)]
    sizes = {key: tensor.nbytes for key, tensor in model.named_parameters()}
    share = sum(sizes[key] for key in copied) / max(1, sum(sizes.values()))
    if share > _SMALL:
        raise ModelError(
            f"model.offload=disk leaves the weights in their files, but {100 * share:.0f} % of {name!r} were copied "
            f"into memory as they were loaded, such as {copied[0]!r}",
            "save the model once more with save_pretrained, in the number type of model.dtype, or leave out "
            "model.offload",
        )
    mark_offloaded(model)


def mark_offloaded(model: nn.Module) -> None:
    """Make known that the weights of a model stay in their files, or would if it had any."""
    setattr(model, _MARK, True)


def offload_note(model: nn.Module) -> str:
    """How much of an offloaded model is read from its files."""
    size = sum(tensor.nbytes for tensor in model.parameters() if _is_mapped(tensor))
    return f"weights of {size / 2**30:.2f} GiB are read from their files, which other processes can share"


def _is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is that of a file: torch did not allocate it, and cannot resize it."""
    return not tensor.untyped_storage().resizable()
