"""The random integer stream behind every direction: a pure function of (key, tensor name, position).

Word i is `mix(origin + (offset + i) * increment)` in 64-bit integers, the SplitMix64 generator of Steele, Lea and Flood
(OOPSLA 2014) addressed by counter. Origin and increment come from a BLAKE2 hash of the key, and the offset from a hash
of the tensor's name, so that the words of many tensors can be drawn by one operation. Integer addition, multiplication,
shift and xor are exact: the words have the same bits on every device, in any order and any block. No global generator
is read or written.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from zofo.displacement import Key

STREAM_VERSION = 1
"""Raised when the bits of any draw change, so that an old trajectory is never replayed with other noise."""


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))


@functools.lru_cache(maxsize=4096)
def _origin_and_increment(key: Key) -> tuple[int, int]:
    digest = hashlib.blake2b(struct.pack("<BQII", STREAM_VERSION, *key), digest_size=16).digest()
    origin, increment = struct.unpack("<QQ", digest)
    return origin, increment | 1  # an odd increment visits all 2**64 states


@functools.lru_cache(maxsize=4096)
def _offset(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _counter(length: int, device: torch.device) -> torch.Tensor:
    """0, 1, ... length - 1, cached in power-of-two sizes so that few are kept."""
    return _long_counter(1 << (length - 1).bit_length(), device)[:length] if length else _long_counter(0, device)


@functools.lru_cache(maxsize=32)
def _long_counter(length: int, device: torch.device) -> torch.Tensor:
    return torch.arange(length, dtype=torch.int64, device=device)


def random_words(key: Key, name: str, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """Words `start` to `stop` of the stream of (key, name): int64, shape [stop - start], uniform over 64 bits."""
    origin, increment = _origin_and_increment(key)
    first = origin + (_offset(name) + start) * increment
    return _mixed(_counter(stop - start, device), [(first % (1 << 64), increment)])[0]


def stream_offsets(streams: Iterable[tuple[str, int]], device: torch.device) -> torch.Tensor:
    """The offsets of several streams' words, concatenated, for `random_words_at`: int64.

    Args:
        streams: name and number of words of each stream.
        device: device of the result.
    """
    parts = [torch.arange(count, dtype=torch.int64) + _signed(_offset(name)) for name, count in streams]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *parts]).to(device)


def random_words_at(keys: Sequence[Key], places: torch.Tensor) -> torch.Tensor:
    """The words at `places` for each key: int64, [keys, places]. Same bits as `random_words`, in one operation."""
    return _mixed(places, list(map(_origin_and_increment, keys)))


def _mixed(places: torch.Tensor, progressions: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The finaliser of SplitMix64 at first + place * increment, for each progression (first, increment)."""
    return (_mixed_by_numpy if places.device.type == "cpu" else _mixed_by_torch)(places, progressions)


def _mixed_by_torch(places: torch.Tensor, progressions: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The finaliser in torch, on any device."""
    pairs = [tuple(map(_signed, each)) for each in progressions]
    firsts, increments = torch.tensor(pairs, dtype=torch.int64, device=places.device).reshape(-1, 2, 1).unbind(1)
    state = places * increments
    state += firsts
    shifted = torch.empty_like(state)
    for shift, factor in _ROUNDS:
        torch.bitwise_right_shift(state, shift, out=shifted)  # arithmetic: the sign is cut off by the mask below
        shifted &= (1 << (64 - shift)) - 1
        state ^= shifted
        if factor is not None:
            state *= _signed(factor)
    return state


def _mixed_by_numpy(places: torch.Tensor, progressions: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The finaliser on the CPU in numpy, which has a logical shift and takes a third of torch's time."""
    firsts, increments = np.array(progressions, dtype=np.uint64).reshape(-1, 2, 1).swapaxes(0, 1)
    drawn = torch.empty(len(progressions), len(places), dtype=torch.int64)
    state = drawn.numpy().view(np.uint64)
    np.multiply(places.numpy().view(np.uint64), increments, out=state)
    state += firsts
    shifted = np.empty_like(state)
    for shift, factor in _ROUNDS:
        np.right_shift(state, np.uint64(shift), out=shifted)
        state ^= shifted
        if factor is not None:
            state *= np.uint64(factor)
    return drawn


def permutation(key: Key, name: str, length: int) -> list[int]:
    """A random permutation of range(length), int64: the order of the first `length` words of a stream."""
    order = random_words(key, name, 0, length, torch.device("cpu")).argsort(stable=True)
    return [int(i) for i in order]
