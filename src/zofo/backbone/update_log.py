"""What an evaluator tells of all that it writes into the weights, so that it can be done again to the same bits."""

from __future__ import annotations

from zofo.backbone import Update
from zofo.displacement import Displacement


class UpdateLog:
    """Told of each thing before it happens. This one forgets it.

    The same calls of `Evaluator.move`, `take` and `settle` on the same weights leave the same bits.
    """

    def moved(self, point: Displacement) -> None:
        """The weights go to theta + `point`, from wherever they are."""

    def updated(self, update: Update) -> None:
        """Theta is updated, and the weights are home."""

    def settled(self) -> None:
        """Updates that wait are written."""
