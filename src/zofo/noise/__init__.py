"""Distributions of directions, each a pure function of (key, tensor name, position)."""

from zofo.noise.base import NOISES, Block, Directions, Noise, Shape
from zofo.noise.dense import Gaussian, Rademacher
from zofo.noise.low_rank import FactorLayout, Factors, LowRank
from zofo.noise.magnitude import Magnitude
from zofo.noise.masked import MASKS, Mask, Masked, MaskedLowRank, RandomMask, Rotation, masked
from zofo.noise.stream import STREAM_VERSION, permutation, words

__all__ = [
    "MASKS",
    "NOISES",
    "STREAM_VERSION",
    "Block",
    "Directions",
    "FactorLayout",
    "Factors",
    "Gaussian",
    "LowRank",
    "Magnitude",
    "Mask",
    "Masked",
    "MaskedLowRank",
    "Noise",
    "Rademacher",
    "RandomMask",
    "Rotation",
    "Shape",
    "masked",
    "permutation",
    "words",
]
