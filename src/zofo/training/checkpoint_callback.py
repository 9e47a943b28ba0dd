"""When a run that goes on later is saved: by steps or by time, and before it stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from zofo.errors import CheckpointError
from zofo.training.callbacks import Callback
from zofo.training.checkpoint import Checkpoints
from zofo.training.signals import Signals
from zofo.training.training_config import TrainingConfig

_AT_LEAST, _SHARE = 60.0, 50.0  # seconds between two checkpoints, and how many times as long as one of them took


class CheckpointCallback(Callback):
    """Writes checkpoints, by steps or by time, and one before the run stops because it was asked to.

    By time: a minute after the last one, and 50 times as long as that one took, so that they take
    less than 2 % of a run.

    Args:
        checkpoints: where to; None for a method that only reads, which begins again.
        write: writes everything of the run after some steps into a folder.
        signals: that ask the run to stop.
        training: says how many steps there are from one to the next, and whether the run goes on without one that
            could not be written. One that is written because the run was asked to stop is never skipped.
        warn: told of one that was skipped.
        first: how many steps have been made already.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        write: Callable[[int, Path], None],
        signals: Signals,
        training: TrainingConfig,
        warn: Callable[[str], None],
        first: int = 0,
    ) -> None:
        self._checkpoints, self._write, self._signals, self._every = checkpoints, write, signals, training.save_steps
        self._skipped = warn if training.on_save_error == "skip" else None
        self._last, self._took = time.perf_counter(), 0.0
        self._waits_for(first)

    def _waits_for(self, steps: int) -> None:
        """A signal waits for the step after `steps` from now on."""
        self._signals.doing = f"step {steps + 1}, saving" if self._checkpoints is not None else "what is left"

    def before_evaluation(self, steps: int) -> None:
        """An evaluation may take longer than one who asks a process to stop waits."""
        self.stop_if_asked(steps)
        saving = ", saving" if self._checkpoints is not None else ""
        self._signals.doing = f"the evaluation after step {steps}{saving}"

    def between_steps(self, steps: int) -> None:
        self.stop_if_asked(steps)
        self._waits_for(steps)
        if self._every is not None:
            due = steps % self._every == 0
        else:
            due = time.perf_counter() - self._last >= max(_AT_LEAST, _SHARE * self._took)
        if due:
            try:
                self._save(steps)
            except CheckpointError as error:
                if self._skipped is None:
                    raise
                self._skipped(error.message)
            self.stop_if_asked(steps)

    def stop_if_asked(self, steps: int) -> None:
        """Save and raise Interrupted, if the process was asked to stop; `steps` have been made."""
        if self._signals.received is None:
            return
        if self._checkpoints is not None:
            self._save(steps)
        self._signals.check(None if self._checkpoints is None else steps)

    def _save(self, steps: int) -> None:
        if self._checkpoints is None:
            return
        start = time.perf_counter()
        try:
            self._checkpoints.save(steps, lambda folder: self._write(steps, folder))
        finally:
            self._last = time.perf_counter()
            self._took = self._last - start
