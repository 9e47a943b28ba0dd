"""What theta tells of all that is written into it, so that it can be done again to the same bits."""

from __future__ import annotations

from zofo.backbone.backbone import Update
from zofo.displacement import Displacement


class UpdateLog:
    """Told of each call of `Theta` before anything is written. This one forgets it."""

    def on_move(self, point: Displacement) -> None:
        """The weights go to theta + `point`, from wherever they are."""

    def on_update(self, update: Update) -> None:
        """Theta is updated, and the weights are home."""

    def on_flush(self) -> None:
        """Updates that wait are written."""
