"""Theta: the tensors that move, their current offset, updates not yet written, and a log of every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from zofo.backbone.backbone import Backbone
from zofo.backbone.update import Update
from zofo.displacement import Displacement, Key
from zofo.noise import DirectionSampler, FactoredNoise
from zofo.state_dict import StateDict, of_displacement, to_displacement
from zofo.temporary import temporarily

_MOST_PENDING = 8  # columns of pending factors; beyond that, applying them costs more than writing them


class UpdateLog:
    """Receives every call of `Theta` before anything is written. This base class ignores them."""

    def on_move(self, point: Displacement) -> None:
        """The weights are about to move to theta + `point`."""

    def on_update(self, update: Update) -> None:
        """Theta is about to be updated; afterwards the weights are at theta."""

    def on_flush(self) -> None:
        """Pending updates are about to be written."""


class Theta:
    """The owner of theta: nothing else writes into the backbone.

    The weights are theta + `at` - `pending`: off theta while an evaluator computes losses at another point, and behind
    it while updates are pending. The same calls of `apply`, `flush` and `move_to` on the same weights give the same
    bits, so a log of these calls is enough to repeat the training without computing a loss.

    Args:
        backbone: the tensors.
        flush_every: how many updates are written together; 1 writes each immediately. Updates with a decay, and those
            that are not displacements, are always written immediately.

    Attributes:
        backbone, flush_every: as given.
        log: receives each call before anything is written.
        at: the current offset of the weights from theta.
        pending: the sum of the updates that are not written yet.
        drawn: returns the directions of some keys if they have already been drawn, else None.
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
        """theta <- (1 - decay) theta + displacement: written now, on the way back to theta, or later with others.

        A displacement decay is applied first, in a separate sweep that draws all previous directions again.

        Raises:
            NonFiniteError: a coefficient is not finite. Nothing was updated.
            ModelError: an earlier sweep was interrupted.
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
        """The displacement of theta from its start, for updates that report their decay."""
        if len(self._moved) != 1:  # summed on demand, not in each step of a long run
            self._moved = [Displacement.sum(self._moved)]
        return self._moved[0]

    def _apply(self, update: Update, back: Displacement) -> None:
        """Write both now, or keep them pending."""
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
        """Write all pending updates, so that the weights equal theta."""
        if self._waiting:
            self.log.on_flush()
            self._write_pending()

    def move_to(self, point: Displacement) -> None:
        """Move the weights to theta + `point`; an empty point returns to theta."""
        if point != self.at:
            self.log.on_move(point)
            self.backbone.apply_(point - self.at)
            self.at = point

    def log_paused(self) -> AbstractContextManager[None]:
        """Context in which calls are not logged and the weights need not be theta."""
        return temporarily(self, log=UpdateLog())

    def state_dict(self) -> StateDict:
        """The state beside the weights, between two steps: pending updates, and how far theta has moved."""
        waiting = {"pending": of_displacement(self.pending), "updates": self._waiting}
        moved = self.from_start
        return StateDict({**waiting, "from_start": of_displacement(moved)} if moved else waiting)

    def load_state_dict(self, state: StateDict) -> None:
        """Load the state that `state_dict` returned, for the same weights."""
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
