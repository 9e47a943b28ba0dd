"""A run that goes on: what a checkpoint of it holds, when one is written, and how all of it is taken back."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zofo.errors import CheckpointError, RunError
from zofo.evaluators import InForward
from zofo.methods import Method
from zofo.remembered import Remembered
from zofo.training.callbacks import Best, Callback, Evaluating, MetricsLog
from zofo.training.checkpoints import Checkpoint, Checkpoints
from zofo.training.replay import redo
from zofo.training.signals import Signals
from zofo.training.trainer import Skips
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


def seconds_between(took: float) -> float:
    """How long after a checkpoint the next one is written by default, in seconds.

    Args:
        took: seconds that the last one took.
    """
    return max(_AT_LEAST, _SHARE * took)


class Checkpointing(Callback):
    """Writes checkpoints, by steps or by time, and one before the run stops because it was asked to.

    By time (`seconds_between`): a minute after the last one, and 50 times as long as that one took, so that they take
    less than 2 % of a run.

    Args:
        checkpoints: where to.
        write: writes everything of the run after some steps into a folder.
        signals: that ask the run to stop.
        every: steps from one to the next; None for by time.
        skipped: told of one that could not be written, where the run goes on without it; None to stop the run. One that
            is written because the run was asked to stop is never skipped.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        write: Callable[[int, Path], None],
        signals: Signals,
        every: int | None,
        skipped: Callable[[str], None] | None = None,
    ) -> None:
        self._checkpoints, self._write, self._signals, self._every = checkpoints, write, signals, every
        self._skipped = skipped
        self._last, self._took = time.perf_counter(), 0.0

    def between_steps(self, steps: int) -> None:
        """See `Callback`."""
        if self._every is not None:
            due = steps % self._every == 0
        else:
            due = time.perf_counter() - self._last >= seconds_between(self._took)
        if due or self._signals.received is not None:
            start = time.perf_counter()
            try:
                self._checkpoints.save(steps, lambda folder: self._write(steps, folder))
            except CheckpointError as error:
                if self._skipped is None or self._signals.received is not None:
                    raise
                self._skipped(error.message)
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
        skips: steps without a finite loss, as counted so far.
    """

    def __init__(
        self, method: Method, best: Best, evaluating: Evaluating, weights: bool, skips: Skips | None = None
    ) -> None:
        self._method, self._best, self._evaluating, self._weights = method, best, evaluating, weights
        self._skips = skips or Skips()

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
        content: dict[str, Any] = {
            "steps": steps,
            "seconds": seconds,
            "metrics": metrics.size,
            "trajectory": None if trajectory is None else trajectory.size,
            "weights": self._weights,
            "skipped": self._skips.in_a_row,
            "best": self._best.remember(folder),
            "evaluating": self._evaluating.remember(),
            "tensors": _shapes(remembered.tensors),
        }
        if remembered.files:
            content["files"] = list(remembered.files)
        (folder / _PROGRESS).write_text(json.dumps(content) + "\n", encoding="utf-8")
        (folder / _STATE).write_text(json.dumps(remembered.values) + "\n", encoding="utf-8")
        tensors = {name: tensor.detach().contiguous() for name, tensor in remembered.tensors.items()}
        save_file(tensors, folder / _TENSORS)
        for number, path in enumerate(remembered.files.values()):  # one by one: together they may not fit into memory
            shutil.copyfile(path, folder / _part(number))

    def restore(
        self, checkpoint: Checkpoint, metrics: Path, trajectory: Path, header: Mapping[str, Any] | None = None
    ) -> Done:
        """Take it back, in a method that stands at the base weights.

        Args:
            checkpoint: of the same run.
            metrics: the log of the run.
            trajectory: of the run, which leads to theta where the checkpoint does not hold it.
            header: of the trajectory, as this version would begin it; by default any will do.

        Raises:
            CheckpointError: the checkpoint lacks something or does not fit, or a log is shorter than it was then.
            RunError: the trajectory is damaged, or was begun with another header.
        """
        progress, method = checkpoint.json(_PROGRESS), self._method
        try:
            done = _done(progress, checkpoint, method.evaluator is not None, self._weights)
            _refuse_shorter(metrics, done.metrics)
            if method.evaluator is not None:
                _refuse_shorter(trajectory, done.trajectory)
                written = Trajectory.read(trajectory, done.trajectory)
                if header is not None:
                    _refuse_other_header(trajectory, written.header, header)
                if not progress["weights"]:
                    assert method.rule is not None
                    redo(written.records, method.rule, method.evaluator)
            tensors = load_file(checkpoint.path / _TENSORS)
            if _shapes(tensors) != progress["tensors"]:
                raise ValueError(f"{_TENSORS} does not hold the tensors that were saved")
            state, scores = checkpoint.json(_STATE), progress["evaluating"]
            if scores["last"] and scores["last"].keys() != set(method.variants):
                raise ValueError("evaluating lacks the score of a variant")
            _refuse_unlike(state, _written(method.remember(self._weights).values), _STATE)
            _refuse_unlike(scores, _written(self._evaluating.remember()), "evaluating")
            method.recall(Remembered(state, tensors, _parts(progress.get("files", []), checkpoint)))
            self._evaluating.recall(scores)
            if (_written(method.remember(self._weights).values), _written(self._evaluating.remember())) != (
                state,
                scores,
            ):
                raise ValueError("something is missing")
            self._best.recall(progress["best"], checkpoint.path)
            self._skips.in_a_row = progress.get("skipped", 0)
            return done
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise CheckpointError(
                f"the checkpoint {str(checkpoint.path)!r} does not fit this run: {reason}",
                "it may be of another version of zofo; start again with another run=",
            ) from error


def _part(number: int | str) -> str:
    """The file of a part that the method keeps in files of its own."""
    return f"state-{number}.safetensors"


def _parts(names: Any, checkpoint: Checkpoint) -> dict[str, Path]:
    """The files of parts by the names of these; ValueError for names that are none, or not as many as there are files.

    Args:
        names: as they were saved.
        checkpoint: that they are of.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"files cannot be {names!r}")
    files = {name: checkpoint.path / _part(number) for number, name in enumerate(names)}
    if set(checkpoint.path.glob(_part("*"))) != set(files.values()):
        raise ValueError("files does not name those that were saved")
    return files


def _done(progress: Mapping[str, Any], checkpoint: Checkpoint, moves: bool, weights: bool) -> Done:
    """What the run had done; ValueError for numbers that cannot be.

    Args:
        progress: as it was saved.
        checkpoint: that it is of.
        moves: whether the run has a trajectory.
        weights: whether its checkpoints hold theta.
    """
    steps, seconds, metrics, trajectory = (progress[key] for key in ("steps", "seconds", "metrics", "trajectory"))
    wrong = [
        key
        for key, fine in (
            ("steps", steps == checkpoint.step and not isinstance(steps, bool)),
            ("seconds", isinstance(seconds, float | int) and seconds >= 0),
            ("metrics", _is_size(metrics)),
            ("trajectory", _is_size(trajectory) if moves else trajectory is None),
            ("weights", progress["weights"] is weights),
            ("skipped", _is_size(progress.get("skipped", 0))),
            ("best", _is_best(progress["best"], bool(progress["evaluating"]["last"]))),
        )
        if not fine
    ]
    if wrong:
        raise ValueError(f"{wrong[0]} cannot be {progress[wrong[0]]!r}")
    return Done(steps, seconds, metrics, trajectory)


def _refuse_other_header(path: Path, stored: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Raises RunError for a trajectory whose further records would mean something else than those that it has."""
    now = json.loads(json.dumps(header))
    key = next((key for key in sorted({*stored, *now}) if stored.get(key) != now.get(key)), None)
    if key is not None:
        raise RunError(
            f"{path}: the run began with {key}={stored.get(key)!r}, and would go on with {now.get(key)!r}",
            "go on with the version of zofo that began it (see environment.json), or begin again in a new folder",
        )


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
    """Number type and shape of each tensor, as JSON."""
    return {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_best(value: Any, scored: bool) -> bool:
    score = value["score"]
    fine = isinstance(score, float | int) and not isinstance(score, bool) if scored else score is None
    return fine and _is_size(value["step"])


def _written(values: Mapping[str, Any]) -> Any:
    """As they are after they were written and read."""
    return json.loads(json.dumps(values))


def _refuse_unlike(found: Any, like: Any, at: str) -> None:
    """Raises ValueError for JSON values that lack a key of others, or hold something of another type there.

    Args:
        found: that are checked.
        like: those of a run that has just begun; what they hold grows.
        at: where they stand, for messages.
    """
    if like is None:  # nothing yet
        return
    kinds: Any = (float, int) if isinstance(like, float) else type(like)
    if not isinstance(found, kinds) or isinstance(found, bool) != isinstance(like, bool):
        raise ValueError(f"{at} cannot be {found!r}")
    for key, value in like.items() if isinstance(like, dict) else ():
        if key not in found:
            raise ValueError(f"{at} lacks {key!r}")
        _refuse_unlike(found[key], value, f"{at}: {key}")


def _refuse_shorter(path: Path, size: int | None) -> None:
    """Raises CheckpointError for a file that has lost bytes that it had when the checkpoint was written."""
    found = path.stat().st_size if path.is_file() else 0
    if size is not None and found < size:
        raise CheckpointError(
            f"{str(path)!r} has {found} bytes, and had {size} when the checkpoint was written",
            "put back a copy of it, or start again with another run=",
        )
