"""The interface of a direction distribution: any block of z(key) for any named tensor, always with the same bits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch

from zofo.config import PartConfig
from zofo.displacement import Key
from zofo.registry import Registry

Shape = tuple[int, ...]
Block = tuple[int, int]
"""Positions start <= i < stop of a tensor read as one row, first index slowest."""


class Noise(ABC):
    """A distribution of directions z with mean 0 and identity covariance.

    A draw is a pure function of (key, tensor name, position): it does not depend on the order of the tensors, the block
    size, the process or any global generator. It uses only integer arithmetic and table look-ups, so it should not
    depend on the device either; this is tested on CPUs only. Instances are immutable and hold no state.

    Attributes:
        keys_at_once: the largest number of keys to pass to `directions` at once, if it keeps data for each key; None
            for no limit.
    """

    keys_at_once: int | None = None

    def is_active(self, key: Key, name: str) -> bool:
        """Whether z(key) can be non-zero in the tensor `name`. The answer is the same for all keys of a step."""
        return True

    @abstractmethod
    def draw(self, key: Key, name: str, shape: Shape, block: Block, device: torch.device) -> torch.Tensor:
        """Positions `block` of z(key) for the tensor `name`: float32, shape [stop - start], possibly empty.

        Raises:
            ConfigError: this noise has no z for tensors of this shape.
        """

    def whole(self, key: Key, name: str, shape: Shape, device: torch.device | None = None) -> torch.Tensor:
        """z(key) for the whole tensor `name`, in its shape, float32."""
        block = (0, math.prod(shape))
        return self.draw(key, name, shape, block, device or torch.device("cpu")).view(shape)

    def squared_length(self, key: Key, shapes: Mapping[str, Shape], device: torch.device) -> float:
        """|z(key)|^2 over some tensors, without drawing them: here its mean, the number d of entries.

        For independent entries the relative error is about sqrt(2 / d). A noise with dependent entries overrides this.

        Args:
            key: the key of the direction.
            shapes: of the tensors, by name.
            device: where they are.
        """
        return float(sum(math.prod(shape) for shape in shapes.values()))

    def directions(self, keys: Iterable[Key], shapes: Mapping[str, Shape], device: torch.device) -> DirectionSampler:
        """z(key) for each of `keys` and all the given tensors, ready to be added to them.

        Args:
            keys: which directions.
            shapes: of the tensors, by name.
            device: where they are.
        """
        return DirectionSampler(self, shapes)


class DirectionSampler:
    """Directions for some tensors, in the form in which a sweep adds them. This class draws every block on demand.

    Args:
        noise: that gives a key its direction.
        shapes: of the tensors, by name.

    Attributes:
        whole: whether a whole tensor can be added to at once, without extra memory of its size.
    """

    whole = False

    def __init__(self, noise: Noise, shapes: Mapping[str, Shape]) -> None:
        self.noise = noise
        self.shapes = shapes

    def add_to(self, target: torch.Tensor, terms: Iterable[tuple[Key, float]], name: str, block: Block) -> None:
        """`target += sum of coefficient * z(key)[block]`, in place; `target` is the flat block, float32 or float64.

        The terms are summed first, so `target` is rounded only once.
        """
        terms = list(terms)
        total = target if len(terms) < 2 else torch.zeros_like(target)
        for key, coefficient in terms:
            z = self.noise.draw(key, name, self.shapes[name], block, target.device)
            total.add_(z.to(target.dtype), alpha=coefficient)
        if total is not target:
            target.add_(total)

    def add_sequentially(
        self, target: torch.Tensor, sums: Sequence[Sequence[tuple[Key, float]]], name: str, block: Block
    ) -> None:
        """Add several sums of terms one after the other, bit-identical to calling `add_to` for each."""
        for terms in sums:
            self.add_to(target, terms, name, block)


NOISES: Registry[type[Noise]] = Registry("noise")


class NoiseConfig(PartConfig):
    """The distribution of directions."""

    registry = NOISES
    default = "low-rank"
