"""Write float32 values into half precision so that what one step loses to rounding arrives in expectation."""

from __future__ import annotations

import torch

from zofo.displacement import Key
from zofo.noise import Block, random_words

_SMALLEST_NORMAL_FLOAT16 = 2.0**-14
_STEPS_BELOW = 2.0**24  # float16 numbers below the smallest normal one are 2**-24 apart
_BLOCK = 1 << 20  # entries per block


def stochastically_rounded(values: torch.Tensor, dtype: torch.dtype, bits: torch.Tensor) -> torch.Tensor:
    """Round each value to one of its two neighbours in `dtype`, the nearer one more often, so that the mean is exact.

    A value that `dtype` can represent does not change. The result is still float32; the caller casts it.

    Args:
        values: float32.
        dtype: bfloat16 or float16.
        bits: random int16 numbers, one per value.
    """
    dropped = 16 if dtype is torch.bfloat16 else 13  # of float32's mantissa bits
    raw = bits.to(torch.int32).bitwise_and_((1 << dropped) - 1).add_(values.view(torch.int32))
    rounded = raw.bitwise_and_(-(1 << dropped)).view(torch.float32)  # infinity stays infinity
    if dtype is torch.float16 and len(few := (values.abs() < _SMALLEST_NORMAL_FLOAT16).nonzero()[:, 0]):
        share = ((bits[few].to(torch.int32) & 0xFFFF).to(torch.float32) + 0.5) / 65536
        steps = values[few] * _STEPS_BELOW
        below = steps.floor()  # compared, not added: a sum would have too few digits for all bits of the share
        rounded[few] = torch.where(share < steps - below, below + 1, below) / _STEPS_BELOW
    if not values.sum().isfinite():  # one pass, where a look at each number takes several
        rounded = torch.where(values.isfinite(), rounded, values)
    return rounded


def rounding_bits(key: Key, name: str, block: Block, device: torch.device) -> torch.Tensor:
    """The random bits (int16) for positions `block` of a tensor when the update named by `key` is written."""
    first = block[0] // 4  # four to a word
    drawn = random_words(key, name + "/rounding", first, -(-block[1] // 4), device).view(torch.int16)
    return drawn[block[0] - first * 4 : block[1] - first * 4]


@torch.no_grad()
def write_rounded_(tensor: torch.Tensor, values: torch.Tensor, key: Key, name: str) -> None:
    """Write float32 values into a half-precision tensor of the same shape, rounded stochastically.

    Args:
        values: contiguous; overwritten with the rounded values.
        key: determines the rounding bits, together with `name`.
    """
    flat = values.view(-1)
    for start in range(0, flat.numel(), _BLOCK):
        block = start, min(start + _BLOCK, flat.numel())
        piece = flat[slice(*block)]
        piece.copy_(stochastically_rounded(piece, tensor.dtype, rounding_bits(key, name, block, tensor.device)))
    tensor.copy_(values)


def at_least_float32(numbers: torch.Tensor) -> torch.Tensor:
    """The values in float32; float64 values stay float64."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()
