"""Distributions of directions, each a pure function of (key, tensor name, position)."""

from zofo.noise.base import NOISES, Block, DirectionSampler, Noise, NoiseConfig, Shape
from zofo.noise.counter_rng import STREAM_VERSION, permutation, random_words
from zofo.noise.dense import Gaussian, Rademacher
from zofo.noise.low_rank import FactorBatch, FactoredNoise, FactorLayout, LowRank
from zofo.noise.magnitude_mask import Magnitude
from zofo.noise.masks import MASKS, BlockRotation, Mask, MaskConfig, Masked, MaskedLowRank, RandomMask, masked

__all__ = [
    "MASKS",
    "NOISES",
    "STREAM_VERSION",
    "Block",
    "DirectionSampler",
    "FactoredNoise",
    "FactorLayout",
    "FactorBatch",
    "Gaussian",
    "LowRank",
    "Magnitude",
    "Mask",
    "MaskConfig",
    "Masked",
    "MaskedLowRank",
    "Noise",
    "NoiseConfig",
    "Rademacher",
    "RandomMask",
    "BlockRotation",
    "Shape",
    "masked",
    "permutation",
    "random_words",
]
