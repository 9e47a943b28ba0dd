"""Masked noise: z' = mask * z for any noise, where a mask is a pure function of (key, tensor name, position).

A mask keeps or drops *units*: entries of a tensor, or whole rows if the noise is low-rank. A low-rank matrix with some
entries dropped has full rank; with some rows dropped it is still left @ right.T.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from zofo.config import PartConfig
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise.base import Block, Noise, Shape
from zofo.noise.counter_rng import permutation, random_words, random_words_at, stream_offsets
from zofo.noise.low_rank import FactoredNoise, FactorLayout
from zofo.registry import Registry

_LAYOUTS = 4  # cache size: a backbone needs one, and two more if theta decays

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Counts = Mapping[str, int]
"""How many units each tensor has, by its name."""


class MaskSelection(ABC):
    """What a mask keeps of the tensors it was built for."""

    def is_active(self, key: Key, name: str) -> bool:
        """Whether z(key) can be non-zero anywhere in a tensor. The answer is the same for all keys of a step."""
        return True

    @abstractmethod
    def units(self, key: Key, name: str, block: Block, device: torch.device) -> torch.Tensor:
        """Which of the units start <= i < stop of a tensor are kept in z(key): bool, [stop - start]."""

    @abstractmethod
    def expected_count(self, key: Key, name: str, count: int) -> float:
        """How many of a tensor's `count` units z(key) keeps; the mean, if units are drawn per key."""

    @abstractmethod
    def batched(self, counts: Counts, device: torch.device) -> Callable[[Sequence[Key]], torch.Tensor]:
        """A function for many keys at once, over all units of several tensors.

        Args:
            counts: units of each tensor.
            device: device of the result.

        Returns:
            A function of keys: bool, [keys, units], with the tensors concatenated.
        """


class Mask(ABC):
    """A rule for which part of every direction is kept: z' = mask * z, whose covariance is diag(mask).

    Kept entries are not rescaled, so a gradient estimate along z' is unbiased for mask * gradient.
    """

    @abstractmethod
    def select(self, tensors: Mapping[str, torch.Tensor], by_rows: bool) -> MaskSelection:
        """Decide from the current values of the tensors, the base weights, so that a replay decides the same.

        Args:
            tensors: all tensors that move, by name, in the model's order.
            by_rows: whether a unit is a row (low-rank noise), or an entry.

        Raises:
            ConfigError: the mask does not fit these tensors.
        """


MASKS: Registry[type[Mask]] = Registry("mask")


class MaskConfig(PartConfig):
    """Which part of every direction is kept."""

    registry = MASKS
    default = "magnitude"


def unit_count(shape: Shape, by_rows: bool) -> int:
    """The number of rows, or of entries; the same for a tensor with fewer than two axes."""
    return math.prod(shape[:1] if by_rows else shape)


class Masked(Noise):
    """z' = mask * z: entries outside the mask are 0, so the covariance is diag(mask), not the identity.

    Args:
        of: the noise.
        kept: what the mask keeps.
    """

    def __init__(self, of: Noise, kept: MaskSelection) -> None:
        self.of = of
        self.selection = kept
        self.keys_at_once = of.keys_at_once

    def is_active(self, key: Key, name: str) -> bool:
        """Whether the mask keeps anything of the tensor."""
        return self.selection.is_active(key, name)

    def draw(self, key: Key, name: str, shape: Shape, block: Block, device: torch.device) -> torch.Tensor:
        """Positions `block` of z'. Kept entries have the same bits as those of the unmasked noise."""
        return _drawn(self.of, self.selection, 1, key, name, shape, block, device)

    def squared_length(self, key: Key, shapes: Mapping[str, Shape], device: torch.device) -> float:
        """The mean: the number of kept entries."""
        return math.fsum(self.selection.expected_count(key, name, math.prod(shape)) for name, shape in shapes.items())


class MaskedLowRank(FactoredNoise):
    """z' = (mask * left) @ right.T / sqrt(rank): whole rows are kept or 0, so z' is low-rank and exact everywhere.

    Args:
        of: the low-rank noise.
        kept: which rows the mask keeps; which entries, for a tensor with fewer than two axes.
    """

    def __init__(self, of: FactoredNoise, kept: MaskSelection) -> None:
        self.of = of
        self.selection = kept
        self.rank, self.scale, self.entries = of.rank, of.scale, of.entries
        self.keys_at_once = of.keys_at_once
        self._layouts: dict[object, FactorLayout] = {}

    def is_active(self, key: Key, name: str) -> bool:
        """Whether the mask keeps anything of the tensor."""
        return self.selection.is_active(key, name)

    def draw(self, key: Key, name: str, shape: Shape, block: Block, device: torch.device) -> torch.Tensor:
        """Positions `block` of z'. Kept entries have the same bits as those of the unmasked noise."""
        return _drawn(self.of, self.selection, math.prod(shape[1:]), key, name, shape, block, device)

    def factors(
        self, key: Key, name: str, shape: Shape, device: torch.device | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors, with rows of left outside the mask set to 0."""
        left, right = self.of.factors(key, name, shape, device)
        return left.masked_fill_(~self.selection.units(key, name, (0, len(left)), left.device).unsqueeze(1), 0.0), right

    def layout(self, shapes: Mapping[str, Shape], device: torch.device) -> FactorLayout:
        wanted = tuple(shapes.items()), device
        if wanted not in self._layouts:
            kept = self._layouts if len(self._layouts) < _LAYOUTS else {}
            self._layouts = {**kept, wanted: MaskedLayout(self.of, self.selection, shapes, device)}
        return self._layouts[wanted]


class MaskedLayout(FactorLayout):
    """A layout that draws 0 for the rows of left, and the entries of vectors, that a mask drops.

    Args:
        noise: the noise of the factors.
        kept: what the mask keeps.
        shapes: shapes of the tensors by name.
        device: device that draws them.
    """

    def __init__(
        self, noise: FactoredNoise, kept: MaskSelection, shapes: Mapping[str, Shape], device: torch.device
    ) -> None:
        super().__init__(noise, shapes, device)
        counts = {name: unit_count(shape, by_rows=True) for name, shape in shapes.items()}
        self._kept = kept.batched(counts, device)
        every = sum(counts.values())  # the unit after the last one, which is always kept, is that of all other numbers
        unit, start = torch.full((1, self.size), every), 0
        for name, count in counts.items():
            rows = torch.arange(start, start + count)
            if len(shapes[name]) > 1:
                self.matrix(unit, name)[0][0] = rows.unsqueeze(1)
            else:
                self.vector(unit, name)[0] = rows
            start += count
        self._unit = unit[0].to(device)

    def draw(self, keys: Sequence[Key]) -> torch.Tensor:
        """The same bits as `MaskedLowRank.factors`."""
        numbers = super().draw(keys)
        if keys:
            numbers.masked_fill_(~F.pad(self._kept(keys), (0, 1), value=True)[:, self._unit], 0.0)
        return numbers


def masked(noise: Noise, mask: Mask, tensors: Mapping[str, torch.Tensor]) -> Masked | MaskedLowRank:
    """Apply a mask to a noise, decided from the base weights.

    Args:
        noise: any.
        mask: selects rows of a low-rank noise, or entries of any other noise.
        tensors: all tensors that move, by name, before anything has moved them.

    Raises:
        ConfigError: as `Mask.select`.
    """
    if isinstance(noise, FactoredNoise):
        return MaskedLowRank(noise, mask.select(tensors, by_rows=True))
    return Masked(noise, mask.select(tensors, by_rows=False))


def _drawn(
    noise: Noise,
    kept: MaskSelection,
    columns: int,
    key: Key,
    name: str,
    shape: Shape,
    block: Block,
    device: torch.device,
) -> torch.Tensor:
    """Positions `block` of z' if a unit is `columns` entries."""
    if not kept.is_active(key, name):
        return torch.zeros(block[1] - block[0], device=device)
    z = noise.draw(key, name, shape, block, device)
    first = block[0] // columns
    units = kept.units(key, name, (first, -(-block[1] // columns)), device)
    if columns > 1:
        units = units.repeat_interleave(columns)[block[0] - first * columns : block[1] - first * columns]
    return z.masked_fill_(~units, 0.0)


def check_density(density: float) -> None:
    """Raise ConfigError for a density outside (0, 1]."""
    if not 0 < density <= 1:
        raise ConfigError(
            f"method.mask.density is {density}, but a share that is kept is above 0 and at most 1",
            "set method.mask.density=0.25",
        )


@MASKS.register("random")
class RandomMask(Mask):
    """Keeps each entry (with low-rank noise, each row) with probability `density`, drawn anew for each direction.

    32 random bits per unit are compared with density * 2**32, so the probability is `density` within 2**-32, units are
    independent, and any block can be drawn alone. The number of kept units is binomial.

    Args:
        density: the share of units to keep on average, 0 < density <= 1.
        refresh_every: draw a new mask every so many steps, from step 0; by default each direction has its own mask.

    Raises:
        ConfigError: a density outside (0, 1], or `refresh_every` below 1.

    Source: the random masks of ZO-Bench (Zhang et al. 2024), whose code does not keep the share it is asked for.
    """

    def __init__(self, density: Share = 0.25, refresh_every: Count | None = None) -> None:
        check_density(density)
        if refresh_every is not None and refresh_every < 1:
            raise ConfigError(
                f"method.mask.refresh_every is {refresh_every}, but must be 1 or more",
                "set method.mask.refresh_every=1",
            )
        self.density = density
        self.refresh_every = refresh_every

    def select(self, tensors: Mapping[str, torch.Tensor], by_rows: bool) -> MaskSelection:
        return _Drawn(self.density, self.refresh_every)


class _Drawn(MaskSelection):
    """Units drawn from the stream of (key, name + "/mask"), two per word."""

    def __init__(self, share: float, every: int | None) -> None:
        self._limit = max(1, round(share * 2**32)) - 1 - 2**31  # of a signed number of 32 bits, itself kept
        self._every = every

    def _key(self, key: Key) -> Key:
        return key if self._every is None else Key(key.seed, key.step // self._every, 0)

    def units(self, key: Key, name: str, block: Block, device: torch.device) -> torch.Tensor:
        first = block[0] // 2
        drawn = random_words(self._key(key), name + "/mask", first, -(-block[1] // 2), device).view(torch.int32)
        return drawn[block[0] - first * 2 : block[1] - first * 2] <= self._limit

    def expected_count(self, key: Key, name: str, count: int) -> float:
        """The mean; the actual number differs by a relative error of about 1 / sqrt(count)."""
        return count * (self._limit + 1 + 2**31) / 2**32

    def batched(self, counts: Counts, device: torch.device) -> Callable[[Sequence[Key]], torch.Tensor]:
        where = stream_offsets([(name + "/mask", -(-count // 2)) for name, count in counts.items()], device)
        starts = itertools.accumulate((-(-count // 2) * 2 for count in counts.values()), initial=0)
        used = torch.cat([torch.arange(s, s + count) for s, count in zip(starts, counts.values(), strict=False)])
        used = used.to(device)

        def kept(keys: Sequence[Key]) -> torch.Tensor:
            drawn = random_words_at([self._key(key) for key in keys], where).view(torch.int32)
            return drawn[:, used] <= self._limit

        return kept


@MASKS.register("rotation")
class BlockRotation(Mask):
    """Moves one block of tensors per step: `num_blocks` contiguous blocks of about equal size take turns.

    The block depends only on the seed and the step of a key, so all directions of a step share it, and the directions
    of an anchor keep theirs. Tensors of other blocks are neither perturbed nor written.

    With `order="shuffled"`, each round of `num_blocks` steps visits every block once, in a new order. With `cyclic`,
    step n moves block n mod `num_blocks`. Anything periodic in steps then meets the same blocks again: SVRG's
    full-batch steps, one in q, would see only some blocks if q and `num_blocks` share a factor.

    Args:
        num_blocks: number of blocks, at most one per tensor.
        order: a new random order in each round (`shuffled`), or always the same (`cyclic`).

    Raises:
        ConfigError: `num_blocks` is below 1 or, when it is applied, above the number of tensors.
    """

    def __init__(self, num_blocks: Count = 4, order: Literal["shuffled", "cyclic"] = "shuffled") -> None:
        if num_blocks < 1:
            raise ConfigError(
                f"method.mask.num_blocks is {num_blocks}, but must be 1 or more", "set method.mask.num_blocks=4"
            )
        self.num_blocks = num_blocks
        self.order = order

    def select(self, tensors: Mapping[str, torch.Tensor], by_rows: bool) -> MaskSelection:
        if self.num_blocks > len(tensors):
            raise ConfigError(
                f"method.mask.num_blocks is {self.num_blocks}, but only {len(tensors)} tensors move",
                f"set method.mask.num_blocks={len(tensors)} or less",
            )
        numbers = _even_blocks([tensor.numel() for tensor in tensors.values()], self.num_blocks)
        return _Turns(dict(zip(tensors, numbers, strict=True)), self.num_blocks, self.order == "shuffled")


class _Turns(MaskSelection):
    """The tensors of one block, kept whole."""

    def __init__(self, block_of: Mapping[str, int], blocks: int, shuffled: bool) -> None:
        self._block_of = block_of
        self._blocks = blocks
        self._shuffled = shuffled

    def _turn(self, key: Key) -> int:
        """The block of a key's step."""
        turn, place = divmod(key.step, self._blocks)
        return _order(key.seed, turn, self._blocks)[place] if self._shuffled else place

    def is_active(self, key: Key, name: str) -> bool:
        return self._block_of[name] == self._turn(key)

    def units(self, key: Key, name: str, block: Block, device: torch.device) -> torch.Tensor:
        return torch.full((block[1] - block[0],), self.is_active(key, name), device=device)

    def expected_count(self, key: Key, name: str, count: int) -> float:
        return float(count * self.is_active(key, name))

    def batched(self, counts: Counts, device: torch.device) -> Callable[[Sequence[Key]], torch.Tensor]:
        numbers = torch.tensor([self._block_of[name] for name in counts])
        blocks = numbers.repeat_interleave(torch.tensor([*counts.values()])).to(device)
        return lambda keys: blocks == torch.tensor([[self._turn(key)] for key in keys], device=device)


@functools.lru_cache(maxsize=1024)
def _order(seed: int, turn: int, blocks: int) -> list[int]:
    return permutation(Key(seed, turn), "mask/rotation", blocks)


def _even_blocks(sizes: Sequence[int], blocks: int) -> list[int]:
    """The block of each tensor: contiguous, non-empty, each filled to about an equal part of the remainder."""
    numbers: list[int] = []
    for block in range(blocks):
        after = blocks - block - 1  # blocks, which need a tensor each
        target, held = sum(sizes[len(numbers) :]) / (after + 1), 0.0
        for size in sizes[len(numbers) : len(sizes) - after]:
            if after and held and held + size / 2 > target:
                break
            held += size or 1e-9  # an empty tensor fills a place, too
            numbers.append(block)
    return numbers
