"""Noises that draw every entry of z: Gaussian and Rademacher."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from statistics import NormalDist

import torch

from zofo.displacement import Key
from zofo.noise.base import NOISES, Block, Noise, Shape
from zofo.noise.counter_rng import random_words


class DenseNoise(Noise):
    """A noise with independent entries. One random word gives `per_word` entries, lowest bits first.

    Attributes:
        per_word: number of entries per 64-bit word of the stream.
    """

    per_word: int

    @abstractmethod
    def values(self, words: torch.Tensor) -> torch.Tensor:
        """Convert random words to entries: float32; a last axis of W words becomes W * per_word entries."""

    def draw(self, key: Key, name: str, shape: Shape, block: Block, device: torch.device) -> torch.Tensor:
        """Positions `block` of z(key): float32, shape [stop - start]."""
        start, stop = block
        first = start // self.per_word
        entries = self.values(random_words(key, name, first, -(-stop // self.per_word), device))
        return entries[start - first * self.per_word : stop - first * self.per_word]


@functools.lru_cache(maxsize=1)
def _gaussian_values() -> torch.Tensor:
    """The mean of N(0, 1) in each of 65,536 equally likely bins, scaled to variance 1 and rounded to 2**-20; float32.

    Entry i is for the 16 bits that read as the signed number i - 32768. The values are symmetric, so their mean is 0.
    """
    normal, bins = NormalDist(), 65536
    edges = [normal.inv_cdf(i / bins) for i in range(bins // 2, bins)]
    values = []
    for low, high in zip(edges, [*edges[1:], math.inf], strict=True):
        # pdf(low) - pdf(high), without the cancellation of two nearly equal numbers
        values.append(bins * normal.pdf(low) * -math.expm1((low - high) * (low + high) / 2))
    upper = torch.tensor(values, dtype=torch.float64)
    upper /= upper.square().mean().sqrt()
    upper = (upper * 2**20).round() / 2**20  # so that another mathematics library cannot change a bit
    return torch.cat([-upper.flip(0), upper]).to(torch.float32)


@functools.lru_cache(maxsize=8)
def _gaussian_table(device: torch.device) -> torch.Tensor:
    return _gaussian_values().to(device)


@NOISES.register("gaussian")
class Gaussian(DenseNoise):
    """z ~ N(0, I), by table: 16 random bits choose one of 65,536 equally likely values.

    Each value is the mean of the normal distribution within its bin, rescaled to unit variance. So mean and variance
    are exact, the largest |z| is 4.39, and the cumulative distributions differ by less than 1e-5. A table look-up does
    not round, so every device gives the same bits; generators based on log and cos cannot guarantee that.

    Source: MeZO (Malladi et al. 2023) draws from N(0, I); the table is ours.
    """

    per_word = 4

    def values(self, words: torch.Tensor) -> torch.Tensor:
        index = words.view(torch.int16).to(torch.int32)
        index += 32768
        return _gaussian_table(words.device).index_select(0, index.view(-1)).view(index.shape)


@functools.lru_cache(maxsize=8)
def _sign_table(device: torch.device) -> torch.Tensor:
    bits = torch.arange(256).unsqueeze(1).bitwise_right_shift(torch.arange(8)).bitwise_and(1)
    return (bits * 2 - 1).to(torch.float32).to(device)


@NOISES.register("rademacher")
class Rademacher(DenseNoise):
    """z_i = +1 or -1 with equal probability: one random bit per entry, exact on every device."""

    per_word = 64

    def values(self, words: torch.Tensor) -> torch.Tensor:
        index = words.view(torch.uint8).to(torch.int32)
        return _sign_table(words.device).index_select(0, index.view(-1)).view(*words.shape[:-1], -1)
