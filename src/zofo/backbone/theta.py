"""theta: the tensors that move, where they stand, what waits to be written, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from zofo.backbone.backbone import Backbone
from zofo.backbone.update import Update
from zofo.displacement import Displacement, Key
from zofo.noise import DirectionSampler, FactoredNoise
from zofo.state_dict import StateDict, of_displacement, to_displacement
from zofo.temporary import temporarily

_MOST_PENDING = 8  # columns of the factors that wait; with more, carrying them costs more than writing them


class UpdateLog:
    """Told of each call of `Theta` before anything is written. This one forgets it."""

    def on_move(self, point: Displacement) -> None:
        """The weights go to theta + `point`, from wherever they are."""

    def on_update(self, update: Update) -> None:
        """Theta is updated, and the weights are home."""

    def on_flush(self) -> None:
        """Updates that wait are written."""


class Theta:
    """The owner of theta: nobody else writes into the backbone.

    The weights are theta + `at` - `pending`: away from theta while an evaluator looks at another point, and behind it
    while updates wait. The same calls of `apply`, `flush` and `move_to` on the same weights leave the same bits, so a
    log of them is enough to train again without a loss.

    Args:
        backbone: the tensors.
        flush_every: updates that are written together; 1 writes each at once. Those with a decay, and those that no
            displacement can express, never wait.

    Attributes:
        backbone, flush_every: as given.
        log: is told of each call before anything is written.
        at: where the weights are, seen from theta.
        pending: what theta is ahead of the weights.
        drawn: gives the directions of some keys where they have been drawn already, else None.
    """

    def __init__(self, backbone: Backbone, flush_every: int = 1) -> None:
        self.backbone = backbone
        self.log = UpdateLog()
        self.at = Displacement()
        self.pending = Displacement()
        self._moved: list[Displacement] = []  # whose sum `from_start` is
        self.drawn: Callable[[Sequence[Key]], DirectionSampler | None] = lambda keys: None
        self.flush_every = flush_every
        self._waiting = 0  # updates in `pending`

    def apply(self, update: Update) -> None:
        """theta <- (1 - decay) theta + displacement: at once, in the sweep back, or later with others.

        What theta has moved decays first, in a sweep of its own that draws all its directions again.

        Raises:
            NonFiniteError: a coefficient that is not finite; nothing was updated.
            ModelError: an earlier sweep was interrupted in the middle.
        """
        update.check_finite()
        self.log.on_update(update)
        decay = update.displacement_decay
        self._apply(update, Displacement() if not decay else -decay * self.from_start)
        if decay:  # now that it is written
            self._moved = [(1 - decay) * self.from_start]
        if decay is not None:
            self._moved.append(update.displacement)

    @property
    def from_start(self) -> Displacement:
        """What theta is ahead of where it began, as far as updates say that it decays."""
        if len(self._moved) != 1:  # added up when it is asked for: a long run would add it up in each step
            self._moved = [Displacement.sum(self._moved)]
        return self._moved[0]

    def _apply(self, update: Update, back: Displacement) -> None:
        """Write both, or let them wait."""
        if self.flush_every > 1 and update.dense_update_fn is None and not update.decay_factor and not len(back):
            self.pending = self.pending + update.displacement
            self._waiting += 1
            if self._waiting >= self.flush_every or len(self.pending) * self._rank > _MOST_PENDING:
                self._write_pending()
            return
        if self._waiting:
            self._write_pending()
        if len(back):
            self.backbone.apply_(Update(back))
        self._write(update)

    def flush(self) -> None:
        """Write the updates that wait, so that the weights are theta for whoever looks at them next."""
        if self._waiting:
            self.log.on_flush()
            self._write_pending()

    def move_to(self, point: Displacement) -> None:
        """Take the weights to theta + `point`; an empty point is home."""
        if point != self.at:
            self.log.on_move(point)
            self.backbone.apply_(point - self.at)
            self.at = point

    def log_paused(self) -> AbstractContextManager[None]:
        """While it is open the weights are not theta, and nothing is told of them."""
        return temporarily(self, log=UpdateLog())

    def state_dict(self) -> StateDict:
        """What it keeps beside the weights, between two steps: the updates that wait, and how far it has moved."""
        waiting = {"pending": of_displacement(self.pending), "updates": self._waiting}
        moved = self.from_start
        return StateDict({**waiting, "from_start": of_displacement(moved)} if moved else waiting)

    def load_state_dict(self, state: StateDict) -> None:
        """Take back what `state_dict` gave; the weights are as they were then."""
        if "pending" in state.values:
            self.pending, self._waiting = to_displacement(state.values["pending"]), state.values["updates"]
        if "from_start" in state.values:
            self._moved = [to_displacement(state.values["from_start"])]

    @property
    def _rank(self) -> int:
        noise = self.backbone.noise
        return noise.rank if isinstance(noise, FactoredNoise) else 1

    def _write_pending(self) -> None:
        update = Update(self.pending)
        self.pending, self._waiting = Displacement(), 0
        self._write(update)

    def _write(self, update: Update) -> None:
        leaving = self.at if len(self.at) else None
        self.backbone.apply_(update, leaving=leaving, directions=self.drawn(list(update.displacement)))
        self.at = Displacement()
