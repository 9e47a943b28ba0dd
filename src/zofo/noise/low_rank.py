"""Low-rank noise: z = left @ right.T / sqrt(rank), which a forward pass can apply as two thin products."""

from __future__ import annotations

import functools
import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch

from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise.base import NOISES, Block, DirectionSampler, Noise, Shape
from zofo.noise.counter_rng import random_words_at, stream_offsets
from zofo.noise.dense import DenseNoise


class FactoredNoise(Noise):
    """A noise whose z of a matrix is `scale` left @ right.T, which a forward pass can apply as two thin products.

    Tensors with more than two axes are treated as matrices with their first axis as rows.

    Attributes:
        rank: number of columns of each factor, >= 1.
        scale: factor of the product.
        entries: the noise that the factors, and tensors with fewer than two axes, are drawn from.
    """

    keys_at_once = 64
    rank: int
    scale: float
    entries: DenseNoise

    @abstractmethod
    def factors(
        self, key: Key, name: str, shape: Shape, device: torch.device | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """left [rows, rank] and right [columns, rank], float32, the same bits on every device.

        Raises:
            ConfigError: the rank is larger than the smaller side of the matrix.
        """

    @abstractmethod
    def layout(self, shapes: Mapping[str, Shape], device: torch.device) -> FactorLayout:
        """A plan to draw the factors of some tensors in one operation; cached."""

    def sides(self, name: str, shape: Shape) -> tuple[int, int]:
        """Rows and columns of the matrix.

        Raises:
            ConfigError: the rank is larger than the smaller side.
        """
        rows, columns = shape[0], math.prod(shape[1:])
        if self.rank > min(rows, columns):
            raise ConfigError(
                f"method.noise.rank is {self.rank}, but {name!r} is {rows} x {columns}",
                f"set method.noise.rank to {min(rows, columns)} or less, or leave this tensor out of the selection",
            )
        return rows, columns

    def squared_length(self, key: Key, shapes: Mapping[str, Shape], device: torch.device) -> float:
        """|z(key)|^2 over some tensors, exact up to rounding."""
        return self.layout(shapes, device).squared_length(key)

    def directions(self, keys: Iterable[Key], shapes: Mapping[str, Shape], device: torch.device) -> FactorBatch:
        """The factors of each key for all the given tensors, ready to be added to them."""
        return FactorBatch(self.layout(shapes, device), tuple(keys))


@NOISES.register("low-rank")
class LowRank(FactoredNoise):
    """z = left @ right.T / sqrt(rank) for a matrix of shape [rows, columns]; dense for a vector.

    With independent factors of mean 0 and variance 1, z has mean 0 and identity covariance. Tensors with more than two
    axes are treated as matrices with their first axis as rows. Products are computed per entry and summed over the rank
    in a fixed order, so z has the same bits for any block size and on any device.

    Args:
        rank: number of columns of each factor, >= 1.
        factor_distribution: name of the noise that factors and vectors are drawn from.

    Attributes:
        scale: 1 / sqrt(rank), the factor of left @ right.T.

    Raises:
        ConfigError: the rank is below 1, or (when drawing) above the smaller side of a matrix; or
            `factor_distribution` names a noise whose entries are not independent.

    Source: the factored form of LOZO (Chen et al. 2024) and EGGROLL (Sarkar et al. 2025).
    """

    def __init__(self, rank: int = 1, factor_distribution: str = "gaussian") -> None:
        if rank < 1:
            raise ConfigError(f"method.noise.rank is {rank}, but must be 1 or more", "set method.noise.rank=1")
        entries = NOISES[factor_distribution]
        if not issubclass(entries, DenseNoise):
            raise ConfigError(
                f"method.noise.factor_distribution is {factor_distribution!r}, whose entries are not independent",
                "set method.noise.factor_distribution=gaussian or rademacher",
            )
        self.rank = rank
        self.entries = entries()
        self.scale = 1.0 / math.sqrt(rank)

    def factors(
        self, key: Key, name: str, shape: Shape, device: torch.device | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two factors, each from its own stream."""
        rows, columns = self.sides(name, shape)
        left = self.entries.whole(key, name + "/left", (rows, self.rank), device)
        right = self.entries.whole(key, name + "/right", (columns, self.rank), device)
        return left, right

    def draw(self, key: Key, name: str, shape: Shape, block: Block, device: torch.device) -> torch.Tensor:
        """Positions `block` of z(key): float32, shape [stop - start]."""
        if len(shape) < 2:
            return self.entries.draw(key, name, shape, block, device)
        columns, rank = self.sides(name, shape)[1], self.rank
        first, last = block[0] // columns, -(-block[1] // columns)
        rows = (first * rank, last * rank)
        left = self.entries.draw(key, name + "/left", (shape[0], rank), rows, device).view(-1, rank)
        right = self.entries.whole(key, name + "/right", (columns, rank), device)
        z = left[:, 0:1] * right[:, 0]
        for k in range(1, rank):
            z += left[:, k : k + 1] * right[:, k]
        if rank > 1:
            z *= self.scale
        return z.view(-1)[block[0] - first * columns : block[1] - first * columns]

    def layout(self, shapes: Mapping[str, Shape], device: torch.device) -> FactorLayout:
        """A plan to draw the factors of some tensors in one operation; cached."""
        return _layout(self, tuple(shapes.items()), device)


class FactorLayout:
    """Where the factors of some tensors are in one row of numbers, so that one operation draws all factors of a key.

    Args:
        noise: the noise of the factors.
        shapes: shapes of the tensors by name.
        device: device that draws them.

    Attributes:
        size: how many numbers a key takes.
    """

    def __init__(self, noise: FactoredNoise, shapes: Mapping[str, Shape], device: torch.device) -> None:
        self.noise = noise
        self.shapes = dict(shapes)
        self.device = device
        self._at: dict[str, tuple[int, int]] = {}
        per_word = noise.entries.per_word
        streams: list[tuple[str, int]] = []
        self.size = self._vectors_from = 0
        matrices_first = sorted(self.shapes.items(), key=lambda item: len(item[1]) < 2)
        for name, shape in matrices_first:
            for stream, entries in self._streams(name, shape):
                count = -(-entries // per_word)
                self._at[stream] = (self.size, self.size + entries)
                streams.append((stream, count))
                self.size += count * per_word
            if len(shape) > 1:
                self._vectors_from = self.size
        self._places = stream_offsets(streams, device)

    def _streams(self, name: str, shape: Shape) -> list[tuple[str, int]]:
        """The streams of one tensor and their number of entries, named as in `LowRank.factors` and `LowRank.draw`."""
        if len(shape) < 2:
            return [(name, math.prod(shape))]
        rows, columns = self.noise.sides(name, shape)
        return [(name + "/left", rows * self.noise.rank), (name + "/right", columns * self.noise.rank)]

    def draw(self, keys: Sequence[Key]) -> torch.Tensor:
        """The numbers of each key: float32, shape [keys, size]; the same bits as `LowRank.factors`."""
        numbers = torch.empty(len(keys), self.size, device=self.device)
        at_a_time = len(keys) if self.device.type != "cpu" else 1  # one key's words stay in a core's cache
        for first in range(0, len(keys), at_a_time or 1):
            some = slice(first, first + at_a_time)
            numbers[some] = self.noise.entries.values(random_words_at(keys[some], self._places))
        return numbers

    def matrix(self, numbers: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """left [keys, rows, rank] and right [keys, columns, rank] of a matrix, as views of `numbers` from `draw`."""
        shape = (len(numbers), -1, self.noise.rank)
        left, right = (numbers[:, slice(*self._at[name + side])].view(shape) for side in ("/left", "/right"))
        return left, right

    def place(self, name: str, side: int) -> slice:
        """Where left (side 0) or right (1) of a matrix is in a row of numbers."""
        return slice(*self._at[name + ("/left", "/right")[side]])

    def vectors(self, numbers: torch.Tensor) -> tuple[torch.Tensor, dict[str, slice]]:
        """z of all tensors with fewer than two axes, as a view of `numbers`, and where each tensor is in it."""
        start = self._vectors_from
        names = [name for name, shape in self.shapes.items() if len(shape) < 2]
        return numbers[:, start:], {name: slice(*(place - start for place in self._at[name])) for name in names}

    def vector(self, numbers: torch.Tensor, name: str) -> torch.Tensor:
        """z [keys, entries] of a tensor with fewer than two axes, as a view of `numbers` from `draw`."""
        return numbers[:, slice(*self._at[name])]

    def squared_length(self, key: Key) -> float:
        """|z(key)|^2; for a matrix the sum over columns a, b of (left_a . left_b) (right_a . right_b) / rank."""
        numbers = self.draw([key])
        total = torch.zeros((), device=numbers.device)
        for name, shape in self.shapes.items():
            if len(shape) < 2:
                total += self.vector(numbers, name).square().sum()
            else:
                left, right = (factor[0] for factor in self.matrix(numbers, name))
                total += ((left.T @ left) * (right.T @ right)).sum() / self.noise.rank
        return float(total)


@functools.lru_cache(maxsize=8)
def _layout(noise: LowRank, shapes: tuple[tuple[str, Shape], ...], device: torch.device) -> FactorLayout:
    return FactorLayout(noise, dict(shapes), device)


class FactorBatch(DirectionSampler):
    """The factors of some keys, drawn together: one product adds many keys to a matrix.

    Args:
        layout: layout of the factors.
        keys: keys of the directions.
        numbers: the result of `layout.draw(keys)`; drawn if omitted.
    """

    whole = True

    def __init__(self, layout: FactorLayout, keys: Sequence[Key], numbers: torch.Tensor | None = None) -> None:
        super().__init__(layout.noise, layout.shapes)
        self._layout = layout
        self._row = {key: row for row, key in enumerate(keys)}
        self._numbers = layout.draw(keys) if numbers is None else numbers

    def add_to(self, target: torch.Tensor, terms: Iterable[tuple[Key, float]], name: str, block: Block) -> None:
        """For whole rows of a matrix: target += (left * coefficients) @ right.T, in one product.

        The product is accumulated into the target in float32, without a temporary of the matrix's size. The price is
        about one rounding per key instead of one in total.
        """
        self.add_sequentially(target, [list(terms)], name, block)

    def add_sequentially(
        self, target: torch.Tensor, sums: Sequence[Sequence[tuple[Key, float]]], name: str, block: Block
    ) -> None:
        """Add several sums of terms one after the other, with the factors of all terms prepared at once."""
        terms = [term for terms in sums for term in terms]
        if not terms:
            return
        rows = [self._row[key] for key, _ in terms]
        chosen = (
            slice(rows[0], rows[-1] + 1) if rows == [*range(rows[0], rows[-1] + 1)] else rows
        )  # a view, if it can be
        coefficients = torch.tensor([c for _, c in terms], dtype=target.dtype, device=target.device)
        ends = [*itertools.accumulate(map(len, sums))]
        parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start]
        shape = self.shapes[name]
        if len(shape) < 2:
            z = self._layout.vector(self._numbers, name)[chosen, slice(*block)].to(target.dtype)
            for part in parts:
                target += coefficients[part] @ z[part]
            return
        columns = math.prod(shape[1:])
        first, last = block[0] // columns, -(-block[1] // columns)
        left, right = (factor[chosen].to(target.dtype) for factor in self._layout.matrix(self._numbers, name))
        scaled = left[:, first:last] * (coefficients * self._layout.noise.scale).view(-1, 1, 1)
        whole_rows = (first * columns, last * columns) == tuple(block)
        for part in parts:  # the inner axis of the product: keys * rank
            thin = scaled[part].transpose(0, 1).flatten(1), right[part].transpose(0, 1).flatten(1).T
            if whole_rows:
                target.view(-1, columns).addmm_(*thin)
            else:
                target += (thin[0] @ thin[1]).view(-1)[block[0] - first * columns : block[1] - first * columns]
