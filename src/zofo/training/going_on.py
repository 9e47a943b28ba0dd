"""A run that goes on: what a checkpoint of it holds, when one is written, and how all of it is taken back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zofo.errors import CheckpointError
from zofo.evaluators import InForward
from zofo.methods import Method
from zofo.remembered import Remembered
from zofo.training.callbacks import Best, Callback, Evaluating, MetricsLog
from zofo.training.checkpoints import Checkpoint, Checkpoints
from zofo.training.replay import redo
from zofo.training.signals import Signals
from zofo.training.trajectory import Trajectory, TrajectoryWriter

_AT_LEAST, _SHARE = 60.0, 50.0  # seconds between two checkpoints, and how many times as long as one of them took

_PROGRESS, _STATE, _TENSORS = "progress.json", "state.json", "state.safetensors"


def needs_weights(method: Method, wanted: bool | None) -> bool:
    """Whether a checkpoint holds theta itself, and not only the trajectory that leads to it.

    Args:
        method: what is trained.
        wanted: what is configured; None leaves it where a replay is cheap, which it is in the forward for rules whose
            updates are displacements.
    """
    if method.evaluator is None or wanted is not None:
        return bool(wanted)
    return not (isinstance(method.evaluator, InForward) and method.rule is not None and method.rule.linear)


class Checkpointing(Callback):
    """Writes checkpoints, by steps or by time, and one before the run stops because it was asked to.

    By time: a minute after the last one, and 50 times as long as that one took, so that they take less than 2 % of a
    run.

    Args:
        checkpoints: where to.
        write: writes everything of the run after some steps into a folder.
        signals: that ask the run to stop.
        every: steps from one to the next; None for by time.
    """

    def __init__(
        self, checkpoints: Checkpoints, write: Callable[[int, Path], None], signals: Signals, every: int | None
    ) -> None:
        self._checkpoints, self._write, self._signals, self._every = checkpoints, write, signals, every
        self._last, self._took = time.perf_counter(), 0.0

    def between_steps(self, steps: int) -> None:
        """See `Callback`."""
        if self._every is not None:
            due = steps % self._every == 0
        else:
            due = time.perf_counter() - self._last >= max(_AT_LEAST, _SHARE * self._took)
        if due or self._signals.received is not None:
            start = time.perf_counter()
            self._checkpoints.save(steps, lambda folder: self._write(steps, folder))
            self._last = time.perf_counter()
            self._took = self._last - start
        self._signals.check(steps)


@dataclass(frozen=True)
class Done:
    """What a run had done when a checkpoint of it was written; by default nothing.

    Args:
        steps: that were made.
        seconds: that it had taken.
        metrics: bytes of its log; None for a new one.
        trajectory: bytes of its trajectory; None for a new one.
    """

    steps: int = 0
    seconds: float = 0.0
    metrics: int | None = None
    trajectory: int | None = None


class Progress:
    """Everything of a run that a checkpoint holds.

    Args:
        method: what is trained.
        best: which evaluation was the best.
        evaluating: the scores so far.
        weights: whether theta itself is saved.
    """

    def __init__(self, method: Method, best: Best, evaluating: Evaluating, weights: bool) -> None:
        self._method, self._best, self._evaluating, self._weights = method, best, evaluating, weights

    def save(
        self, steps: int, folder: Path, metrics: MetricsLog, trajectory: TrajectoryWriter | None, seconds: float
    ) -> None:
        """Write it into the folder of a checkpoint.

        Args:
            steps: that have been made.
            folder: of the checkpoint.
            metrics: the log, of which the checkpoint keeps the length.
            trajectory: the same, where there is one.
            seconds: that the run has taken.
        """
        remembered = self._method.remember(self._weights)
        content = {
            "steps": steps,
            "seconds": seconds,
            "metrics": metrics.size,
            "trajectory": None if trajectory is None else trajectory.size,
            "weights": self._weights,
            "best": self._best.remember(folder),
            "evaluating": self._evaluating.remember(),
        }
        (folder / _PROGRESS).write_text(json.dumps(content) + "\n", encoding="utf-8")
        (folder / _STATE).write_text(json.dumps(remembered.values) + "\n", encoding="utf-8")
        tensors = {name: tensor.detach().contiguous() for name, tensor in remembered.tensors.items()}
        save_file(tensors, folder / _TENSORS)

    def restore(self, checkpoint: Checkpoint, trajectory: Path) -> Done:
        """Take it back, in a method that stands at the base weights.

        Args:
            checkpoint: of the same run.
            trajectory: of the run, which leads to theta where the checkpoint does not hold it.

        Raises:
            RunError: the checkpoint does not fit, or the trajectory is damaged.
        """
        progress, method = checkpoint.json(_PROGRESS), self._method
        try:
            if method.evaluator is not None and not progress["weights"]:
                assert method.rule is not None
                records = Trajectory.read(trajectory, progress["trajectory"]).records
                redo(records, method.rule, method.evaluator)
            tensors = load_file(checkpoint.path / _TENSORS)
            method.recall(Remembered(checkpoint.json(_STATE), tensors))
            self._best.recall(progress["best"], checkpoint.path)
            self._evaluating.recall(progress["evaluating"])
            return Done(progress["steps"], progress["seconds"], progress["metrics"], progress["trajectory"])
        except (KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"the checkpoint {str(checkpoint.path)!r} does not fit this run: {error!r}",
                "it may be of another version of zofo; start again with another run=",
            ) from error
