"""Distributions of directions, each a pure function of (key, tensor name, position)."""

from zofo.noise.base import NOISES, Block, Noise, Shape
from zofo.noise.dense import Gaussian, Rademacher
from zofo.noise.low_rank import LowRank
from zofo.noise.stream import STREAM_VERSION, permutation, words

__all__ = [
    "NOISES",
    "STREAM_VERSION",
    "Block",
    "Gaussian",
    "LowRank",
    "Noise",
    "Rademacher",
    "Shape",
    "permutation",
    "words",
]
