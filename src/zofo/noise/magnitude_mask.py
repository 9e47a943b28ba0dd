"""The magnitude mask: the smallest (or largest) entries or rows, ranked by integers so that all devices agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from zofo.displacement import Key
from zofo.noise.base import Block
from zofo.noise.masks import MASKS, Counts, Mask, MaskSelection, Share, check_density, unit_count

_AT_ONCE = 1 << 18  # entries looked at together, a multiple of 8: what finding them takes in memory
_HALVES = 1 << 16
_FINEST = 20  # bits of a weight, relative to the largest, whose square is summed to a row's norm


@MASKS.register("magnitude")
class Magnitude(Mask):
    """Keeps a fixed share of every tensor: where the base weights are smallest, or largest.

    Of n entries, max(1, round(density n)) are kept. Ties keep the first entry (the last, with `keep="largest"`). With
    low-rank noise whole rows of a matrix are kept (output units of a linear layer, tokens of an embedding), ranked by
    norm. Norms are computed in integers, in units of 2**-20 of the largest weight, so that all devices rank rows alike.

    The selection is made once, from the base weights, and stored: one bit per entry (1/32 of float32 weights), or a
    byte per row. A threshold per tensor would need no memory, but weights cross it during training, so that z(key)
    would differ between theta, an anchor and a replay.

    Args:
        density: the share of units to keep, 0 < density <= 1.
        keep: which weights to keep.

    Raises:
        ConfigError: a share that is none.

    Source: Sparse MeZO (Liu et al. 2024), which keeps the smallest weights, below a threshold that they can cross.
    """

    def __init__(self, density: Share = 0.25, keep: Literal["smallest", "largest"] = "smallest") -> None:
        check_density(density)
        self.density = density
        self.keep = keep

    def select(self, tensors: Mapping[str, torch.Tensor], by_rows: bool) -> MaskSelection:
        ranked = smallest_rows if by_rows else smallest_entries
        bits, counts = {}, {}
        for name, tensor in tensors.items():
            units = unit_count(tuple(tensor.shape), by_rows)
            count = min(units, max(1, round(self.density * units)))
            largest = self.keep == "largest"
            kept = ranked(tensor.detach(), units - count if largest else count)
            bits[name] = kept.inverted() if largest else kept
            counts[name] = count
        return _Fixed(bits, counts)


class _Fixed(MaskSelection):
    """The same units for every key."""

    def __init__(self, bits: Mapping[str, PackedBits], counts: Counts) -> None:
        self._bits = bits
        self._counts = counts

    def units(self, key: Key, name: str, block: Block, device: torch.device) -> torch.Tensor:
        return self._bits[name].read(block, device)

    def expected_count(self, key: Key, name: str, count: int) -> float:
        return float(self._counts[name])

    def batched(self, counts: Counts, device: torch.device) -> Callable[[Sequence[Key]], torch.Tensor]:
        row = torch.cat([self._bits[name].read((0, count), device) for name, count in counts.items()])
        return lambda keys: row.expand(len(keys), -1)


class PackedBits:
    """A boolean per unit, packed eight to a byte.

    Args:
        packed: uint8, the first unit in the lowest bit of the first byte.
    """

    def __init__(self, packed: torch.Tensor) -> None:
        self.packed = packed

    @classmethod
    def of(cls, units: torch.Tensor) -> PackedBits:
        """Pack a bool tensor [units]."""
        padded = F.pad(units, (0, -len(units) % 8)).view(-1, 8)
        places = 1 << torch.arange(8, dtype=torch.uint8, device=units.device)
        return cls((padded * places).sum(1, dtype=torch.uint8))

    def inverted(self) -> PackedBits:
        """The negation."""
        return PackedBits(self.packed ^ 255)

    def read(self, block: Block, device: torch.device) -> torch.Tensor:
        """Units start <= i < stop: bool, [stop - start]."""
        first = block[0] // 8
        some = self.packed[first : -(-block[1] // 8)].to(device)
        places = torch.arange(8, dtype=torch.uint8, device=device)
        units = ((some.unsqueeze(1) >> places) & 1).bool().view(-1)
        return units[block[0] - first * 8 : block[1] - first * 8]


def smallest_entries(tensor: torch.Tensor, count: int) -> PackedBits:
    """Select the `count` entries of smallest absolute value in float32; ties go to the first.

    The bit pattern of a non-negative float increases with its value, so two histograms, of the upper and the lower 16
    bits, give the value of the `count`-th entry without a sorted copy.
    """
    if not count:
        return PackedBits.of(torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device))
    upper = sum(torch.bincount(raw >> 16, minlength=_HALVES) for raw in _magnitudes(tensor))
    high, below = _reaching(upper, count)
    lower = sum(
        torch.bincount(raw[raw >> 16 == high] & (_HALVES - 1), minlength=_HALVES) for raw in _magnitudes(tensor)
    )
    low, below_low = _reaching(lower, count - below)
    limit, ties = high << 16 | low, count - below - below_low
    packed = torch.empty(-(-tensor.numel() // 8), dtype=torch.uint8, device=tensor.device)
    for raw, found in zip(_magnitudes(tensor), torch.split(packed, _AT_ONCE // 8), strict=True):
        equal = raw == limit
        found.copy_(PackedBits.of((raw < limit) | (equal & (equal.cumsum(0) <= ties))).packed)
        ties -= min(ties, int(equal.sum()))
    return PackedBits(packed)


def _magnitudes(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The bits of the absolute values, a block at a time: int32."""
    flat = tensor.reshape(-1)  # a copy only of a tensor that is not contiguous
    for start in range(0, len(flat), _AT_ONCE):
        yield flat[start : start + _AT_ONCE].to(torch.float32).abs().view(torch.int32)


def _reaching(histogram: torch.Tensor | int, count: int) -> tuple[int, int]:
    """The bin that contains the `count`-th number, and how many numbers are in lower bins."""
    sums = torch.as_tensor(histogram).cumsum(0).cpu()
    place = int(torch.searchsorted(sums, count))
    return place, int(sums[place - 1]) if place else 0


def smallest_rows(tensor: torch.Tensor, count: int) -> PackedBits:
    """Select the `count` rows of smallest Euclidean norm; ties go to the first.

    Weights are rounded to 2**-20 of the largest one, so that squares and sums are exact in 64-bit integers.
    """
    rows = tensor.shape[0] if tensor.dim() else 1
    norms = torch.zeros(rows, dtype=torch.int64)
    if tensor.numel():
        parts = torch.split(tensor.reshape(rows, -1), max(1, _AT_ONCE * rows // tensor.numel()))
        largest = max(float(part.abs().amax()) for part in parts)
        fine = min(_FINEST, (62 - (tensor.numel() // rows).bit_length()) // 2)
        scale = 2.0 ** (fine - max(-100, math.frexp(largest)[1]))
        for part, found in zip(parts, torch.split(norms, len(parts[0])), strict=True):
            found.copy_(_squared_norms(part, scale))
    chosen = torch.zeros(rows, dtype=torch.bool)
    chosen[norms.argsort(stable=True)[:count]] = True
    return PackedBits.of(chosen.to(tensor.device))


def _squared_norms(rows: torch.Tensor, scale: float) -> torch.Tensor:
    """Squared norms of the rows times `scale`, rounded to integers: int64."""
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32)) * scale
    return exact.round_().to(torch.int64).square_().sum(1)
