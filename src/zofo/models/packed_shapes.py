"""Stand-ins for quantised layers on the meta device, to estimate memory and work."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zofo.errors import ModelError

_BLOCK, _OUTER = 64, 256  # weights per scale; scales per second-level scale
_TABLES = 4 * (16 + 256) + 170  # bytes of the values that 4 bits and those of a scale stand for, and of a description
BYTES_OF_WEIGHT: Mapping[str, float] = {
    "nf4": 0.5 + 1 / _BLOCK + 4 / (_BLOCK * _OUTER),
    "int8": 1.0,
    "int8-weight-only": 1.0,
    "int4-weight-only": 0.5 + 4 / _BLOCK,
}
"""Bytes that a weight takes, with what it is unpacked by, where that grows with the weights."""


class _Unpacked(torch.autograd.Function):
    """y = x W^T, with W unpacked for the product and again for the gradient of x, as in bitsandbytes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, torch.empty_like(weight), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0] @ torch.empty_like(ctx.saved_tensors[0]), None, None


class PackedShape(nn.Linear):
    """A quantised linear layer on the meta device.

    Attributes:
        packed_bytes: bytes of its weights, including the quantisation constants.
    """

    packed_bytes: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _Unpacked.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


def pack_shapes(model: nn.Module, by: str, dtype: torch.dtype, kept: Collection[str]) -> None:
    """Replace the layers that would be packed by stand-ins.

    Args:
        by: the format, a key of `BYTES_OF_WEIGHT`.
        kept: names of layers that are not packed.

    Raises:
        ModelError: the model has no layers that can be packed.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    found = 0
    for name, parent in list(model.named_modules()):
        for own, layer in list(parent.named_children()):
            whole = f"{name}.{own}" if name else own
            transposed = type(layer).__name__ == "Conv1D" and by == "nf4"
            if layer is output or whole.split(".")[0] in kept or not (isinstance(layer, nn.Linear) or transposed):
                continue
            outputs, inputs = layer.weight.shape[::-1] if transposed else layer.weight.shape
            packed = PackedShape(inputs, outputs, layer.bias is not None, device="meta", dtype=dtype)
            packed.packed_bytes = round(inputs * outputs * BYTES_OF_WEIGHT[by]) + (
                _TABLES if by == "nf4" else 4 * outputs
            )
            setattr(parent, own, packed.requires_grad_(False))
            found += 1
    if not found:
        raise ModelError(f"model.quantization={by} packs linear layers, of which the model has none", "leave it out")


def weight_bytes(model: nn.Module) -> int:
    """The bytes of a model's weights, as packed."""
    packed = {id(part.weight): part.packed_bytes for part in model.modules() if isinstance(part, PackedShape)}
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(packed.get(key, one.nbytes) for key, one in tensors.items())


def packed_numbers(model: nn.Module) -> int:
    """The number of packed weights."""
    return sum(part.weight.numel() for part in model.modules() if isinstance(part, PackedShape))
