"""Low-rank noise: z = left @ right.T / sqrt(rank), so that a forward pass can carry it as two thin products."""

from __future__ import annotations

import math

import torch

from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise.base import NOISES, Block, Noise, Shape


@NOISES.register("low-rank")
class LowRank(Noise):
    """z = left @ right.T / sqrt(rank) for a matrix of shape [rows, columns]; dense for a vector.

    With independent factors of mean 0 and variance 1, z has mean 0 and identity covariance. Tensors with more than two
    axes are read as matrices with their first axis as rows. Products are taken entry by entry and summed over the rank
    in order, so z too has the same bits for any blocks and on any device.

    Args:
        rank: number of columns of each factor, >= 1.
        factors: name of the noise that the factors, and the vectors, are drawn from.

    Raises:
        ConfigError: the rank is below 1, or (when drawing) above the smaller side of a matrix.

    Source: the factored form of LOZO (Chen et al. 2024) and EGGROLL (Sarkar et al. 2025).
    """

    def __init__(self, rank: int = 1, factors: str = "gaussian") -> None:
        if rank < 1:
            raise ConfigError(f"method.noise.rank is {rank}, but must be 1 or more", "set method.noise.rank=1")
        self.rank = rank
        self.entries = NOISES[factors]()

    def factors(
        self, key: Key, name: str, shape: Shape, device: torch.device | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """left [rows, rank] and right [columns, rank], float32, the same bits on every device.

        Raises:
            ConfigError: the rank is larger than the smaller side of the matrix.
        """
        rows, columns = self._sides(name, shape)
        left = self.entries.whole(key, name + "/left", (rows, self.rank), device)
        right = self.entries.whole(key, name + "/right", (columns, self.rank), device)
        return left, right

    def _sides(self, name: str, shape: Shape) -> tuple[int, int]:
        """Rows and columns of the matrix, if the rank fits into them."""
        rows, columns = shape[0], math.prod(shape[1:])
        if self.rank > min(rows, columns):
            raise ConfigError(
                f"method.noise.rank is {self.rank}, but {name!r} is {rows} x {columns}",
                f"set method.noise.rank to {min(rows, columns)} or less, or leave this tensor out of the selection",
            )
        return rows, columns

    def draw(self, key: Key, name: str, shape: Shape, block: Block, device: torch.device) -> torch.Tensor:
        """Positions `block` of z(key): float32, shape [stop - start]."""
        if len(shape) < 2:
            return self.entries.draw(key, name, shape, block, device)
        columns, rank = self._sides(name, shape)[1], self.rank
        first, last = block[0] // columns, -(-block[1] // columns)
        rows = (first * rank, last * rank)
        left = self.entries.draw(key, name + "/left", (shape[0], rank), rows, device).view(-1, rank)
        right = self.entries.whole(key, name + "/right", (columns, rank), device)
        z = left[:, 0:1] * right[:, 0]
        for k in range(1, rank):
            z += left[:, k : k + 1] * right[:, k]
        if rank > 1:
            z *= 1.0 / math.sqrt(rank)
        return z.view(-1)[block[0] - first * columns : block[1] - first * columns]
