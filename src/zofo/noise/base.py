"""What a distribution of directions must give: any block of z(key) for any named tensor, the same bits every time."""

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

    A draw is a pure function of (key, tensor name, position): the same bits for any order of the tensors, any blocks
    and any process, whatever the global generators hold. It is made of integers and look-ups, so that a device has no
    say in it; that is tested on CPUs alone. Instances are immutable and hold no state.

    Attributes:
        keys_at_once: of how many keys `directions` should be asked for at a time, since it holds something for each;
            None where it does not.
    """

    keys_at_once: int | None = None

    def is_active(self, key: Key, name: str) -> bool:
        """Whether z(key) may be other than zero in the tensor called `name`; the same for all keys of a step."""
        return True

    @abstractmethod
    def draw(self, key: Key, name: str, shape: Shape, block: Block, device: torch.device) -> torch.Tensor:
        """Positions `block` of z(key) for the tensor called `name`: float32, shape [stop - start], which may be empty.

        Raises:
            ConfigError: no z can be drawn for this shape, whatever the block.
        """

    def whole(self, key: Key, name: str, shape: Shape, device: torch.device | None = None) -> torch.Tensor:
        """z(key) for the whole tensor called `name`, in its shape, float32."""
        block = (0, math.prod(shape))
        return self.draw(key, name, shape, block, device or torch.device("cpu")).view(shape)

    def squared_length(self, key: Key, shapes: Mapping[str, Shape], device: torch.device) -> float:
        """|z(key)|^2 over some tensors, by less than drawing them: here its mean, the number d of their entries.

        With independent entries it differs from that by a share of about sqrt(2 / d). A noise of which that is not so
        gives what it knows better.

        Args:
            key: of the direction.
            shapes: of the tensors, by name.
            device: where they are.
        """
        return float(sum(math.prod(shape) for shape in shapes.values()))

    def directions(self, keys: Iterable[Key], shapes: Mapping[str, Shape], device: torch.device) -> DirectionSampler:
        """z(key) for each of `keys` and all of some tensors, ready to be added to them.

        Args:
            keys: which directions.
            shapes: of the tensors, by name.
            device: where they are.
        """
        return DirectionSampler(self, shapes)


class DirectionSampler:
    """Some directions of some tensors: the form in which a sweep adds them. This one draws every block when asked.

    Args:
        noise: that gives a key its direction.
        shapes: of the tensors, by name.

    Attributes:
        whole: whether a whole tensor is added to at once without memory of its size.
    """

    whole = False

    def __init__(self, noise: Noise, shapes: Mapping[str, Shape]) -> None:
        self.noise = noise
        self.shapes = shapes

    def add_to(self, target: torch.Tensor, terms: Iterable[tuple[Key, float]], name: str, block: Block) -> None:
        """`target += sum of coefficient * z(key)[block]`, in place; `target` is the block, flat, float32 or float64.

        The sum is made first, so that however many terms there are, `target` is rounded once.
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
        """Each of some sums of terms as `add_to` adds it, one after the other, to the same bits."""
        for terms in sums:
            self.add_to(target, terms, name, block)


NOISES: Registry[type[Noise]] = Registry("noise")


class NoiseConfig(PartConfig):
    """The distribution of directions."""

    registry = NOISES
    default = "low-rank"
