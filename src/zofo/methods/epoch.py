"""A pass over the training rows, as a method draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Epoch:
    """What is drawn in a pass over the training rows.

    Args:
        rows: that are drawn from.
        batch_size: rows of a batch.
        batches: that a step draws.
    """

    rows: int
    batch_size: int
    batches: int = 1

    def steps(self, epochs: float) -> int:
        """How many steps draw `epochs` times as many rows as there are, rounded up; `epochs` is the decimal number that
        was written."""
        return math.ceil(Fraction(str(epochs)) * self.rows / (self.batch_size * self.batches))

    def unseen(self, steps: int) -> float:
        """How many rows so many steps do not draw at all, on average.

        Each order of the rows leaves out a remainder smaller than a batch, others than the orders before it: with n
        rows, of which the e-th order draws d_e, these are n prod_e (1 - d_e / n).
        """
        whole, left = divmod(steps * self.batches, self.rows // self.batch_size)
        remainder = self.rows % self.batch_size
        return (remainder / self.rows) ** whole * (self.rows - left * self.batch_size)
