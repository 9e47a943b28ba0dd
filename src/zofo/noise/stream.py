"""The integer stream under every direction: a pure function of (key, tensor name, position).

Word i of a stream is `mix(start + i * increment)` in 64-bit integers, the SplitMix64 generator of Steele, Lea and Flood
(OOPSLA 2014) addressed by counter; start and increment come from a BLAKE2 hash of the key and the name. Integer
addition, multiplication, shift and xor have one right answer, so the words are the same bits on every device, in any
order and any block; no global generator is read or written.
"""

from __future__ import annotations

import functools
import hashlib
import struct

import torch

from zofo.displacement import Key

STREAM_VERSION = 1
"""Raised when the bits of any draw change, so that an old trajectory is never replayed with other noise."""


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_MIX = tuple(map(_signed, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))
_ROUNDS = ((30, _MIX[0]), (27, _MIX[1]), (31, None))


@functools.lru_cache(maxsize=4096)
def _start_and_increment(key: Key, name: str) -> tuple[int, int]:
    text = struct.pack("<BQII", STREAM_VERSION, *key) + name.encode()
    start, increment = struct.unpack("<QQ", hashlib.blake2b(text, digest_size=16).digest())
    return start, increment | 1  # an odd increment visits all 2**64 states


@functools.lru_cache(maxsize=16)
def _counter(length: int, device: torch.device) -> torch.Tensor:
    return torch.arange(length, dtype=torch.int64, device=device)


def words(key: Key, name: str, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """Words `start` to `stop` of the stream of (key, name): int64, shape [stop - start], uniform over all 64 bits."""
    origin, increment = _start_and_increment(key, name)
    first = _signed((origin + start * increment) % (1 << 64))
    state = _counter(stop - start, device) * _signed(increment)
    state += first
    shifted = torch.empty_like(state)
    for shift, factor in _ROUNDS:
        torch.bitwise_right_shift(state, shift, out=shifted)  # arithmetic: the sign is cut off by the mask below
        shifted &= (1 << (64 - shift)) - 1
        state ^= shifted
        if factor is not None:
            state *= factor
    return state


def lanes(
    key: Key, name: str, start: int, stop: int, device: torch.device, dtype: torch.dtype, per_word: int
) -> torch.Tensor:
    """Lanes `start` to `stop` of the stream cut into `per_word` equal pieces of type `dtype` a word.

    Shape [stop - start]. Lane i is piece i % per_word, lowest first, of word i // per_word.
    """
    first = start // per_word
    cut = words(key, name, first, -(-stop // per_word), device).view(dtype)
    return cut[start - first * per_word : stop - first * per_word]


def permutation(key: Key, name: str, length: int) -> list[int]:
    """A random order of range(length): the positions of the first `length` words of a stream, sorted by their value."""
    order = words(key, name, 0, length, torch.device("cpu")).argsort(stable=True)
    return [int(i) for i in order]
