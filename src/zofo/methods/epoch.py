"""A pass over the training rows, as a method draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Epoch:
    """What is drawn in a pass over the training rows.

    Args:
        rows: number of rows to draw from.
        batch_size: rows per batch.
        batches: batches per step.
    """

    rows: int
    batch_size: int
    batches: int = 1

    def steps(self, epochs: float) -> int:
        """The number of steps that draw `epochs` times as many rows as there are, rounded up.

        `epochs` counts as the decimal number that was written.
        """
        return math.ceil(Fraction(str(epochs)) * self.rows / (self.batch_size * self.batches))

    def unseen(self, steps: int) -> float:
        """How many rows so many steps never draw, on average.

        Each shuffled order leaves out a remainder smaller than a batch, independently of earlier orders: if the e-th
        order draws d_e of n rows, n prod_e (1 - d_e / n) are never drawn.
        """
        whole, left = divmod(steps * self.batches, self.rows // self.batch_size)
        remainder = self.rows % self.batch_size
        return (remainder / self.rows) ** whole * (self.rows - left * self.batch_size)
