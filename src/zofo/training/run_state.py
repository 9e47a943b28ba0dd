"""The content of a checkpoint, and how it is restored."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zofo.errors import CheckpointError, RunError, raise_if_out_of_memory
from zofo.methods import Method
from zofo.state_dict import StateDict
from zofo.training.callbacks import BestCheckpoint, EvaluationCallback, MetricsLogger
from zofo.training.checkpoint import Checkpoint
from zofo.training.config import ENVIRONMENT
from zofo.training.loop import NonFiniteSkipCounter
from zofo.trajectory.format import Trajectory, TrajectoryWriter
from zofo.trajectory.replay import replay_records

_PROGRESS, _STATE, _TENSORS = "progress.json", "state.json", "state.safetensors"


def should_checkpoint_weights(method: Method, wanted: bool | None) -> bool:
    """Whether a checkpoint contains theta itself, in addition to the trajectory.

    As configured; by default if a replay is expensive: in place, for rules whose updates are not displacements, and
    with a displacement decay.
    """
    if method.evaluator is None or wanted is not None:
        return bool(wanted)
    rule = method.rule
    return method.evaluator.writes_points or rule is None or not rule.linear or bool(rule.displacement_decay)


class ResumePoint(NamedTuple):
    """The progress at a checkpoint: steps, seconds, and the sizes of the two logs.

    By default nothing; a log with size None starts again.
    """

    steps: int = 0
    seconds: float = 0.0
    metrics: int | None = None
    trajectory: int | None = None


class _Part(BaseModel):
    """A part of `progress.json`, with exactly these types."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class _Log(_Part):
    bytes: NonNegativeInt
    sha256: str  # empty where an older version did not keep it


class _Best(_Part):
    score: float | None
    step: NonNegativeInt
    test: dict[str, Any] | None = None


class _SavedState(_Part):
    """The file `progress.json`."""

    steps: int
    seconds: NonNegativeFloat
    metrics: _Log
    trajectory: NonNegativeInt | None
    weights: bool
    skipped: NonNegativeInt
    best: _Best
    evaluating: dict[str, Any]
    tensors: dict[str, list[Any]]
    files: list[str] = []
    began: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_version(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Convert the format of an older version, which kept only the log's length, and counted no skips."""
        if isinstance(given.get("metrics"), dict):
            return given
        return {"skipped": 0, **given, "metrics": {"bytes": given.get("metrics"), "sha256": ""}}


class RunState:
    """Everything of a run that a checkpoint contains.

    Args:
        weights: whether theta itself is saved.
        skips: counter of steps with a non-finite loss.
        began: SHA-256 of what the run began with, stored in a checkpoint; None if unknown.
    """

    def __init__(
        self,
        method: Method,
        best: BestCheckpoint,
        evaluating: EvaluationCallback,
        weights: bool,
        skips: NonFiniteSkipCounter | None = None,
        began: str | None = None,
    ) -> None:
        self._method, self._best, self._evaluating, self._weights = method, best, evaluating, weights
        self._skips, self._began = skips or NonFiniteSkipCounter(), began

    def save(
        self, steps: int, folder: Path, metrics: MetricsLogger, trajectory: TrajectoryWriter | None, seconds: float
    ) -> None:
        """Write the state to the folder of a checkpoint, with length and SHA-256 of the metrics.

        Of the trajectory only the length is written, since its records have checksums.
        """
        state = self._method.state_dict(self._weights)
        content: dict[str, Any] = {
            "steps": steps,
            "seconds": seconds,
            "metrics": {"bytes": metrics.size, "sha256": metrics.sha256},
            "trajectory": None if trajectory is None else trajectory.size,
            "weights": self._weights,
            "skipped": self._skips.in_a_row,
            "best": self._best.state_dict(folder),
            "evaluating": self._evaluating.state_dict(),
            "tensors": _shapes_of(state.tensors),
        }
        if self._began is not None:
            content["began"] = self._began
        if state.files:
            content["files"] = list(state.files)
        (folder / _PROGRESS).write_text(json.dumps(content) + "\n", encoding="utf-8")
        (folder / _STATE).write_text(json.dumps(state.values) + "\n", encoding="utf-8")
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
        save_file(tensors, folder / _TENSORS)
        for number, path in enumerate(state.files.values()):  # one at a time: together they may not fit into memory
            shutil.copyfile(path, folder / _part(number))

    def restore(
        self, checkpoint: Checkpoint, metrics: Path, trajectory: Path, header: Mapping[str, Any] | None = None
    ) -> ResumePoint:
        """Restore the state into a method that is at the base weights.

        Args:
            trajectory: trajectory of the run, which restores theta if the checkpoint does not contain it.
            header: header that this version would write; by default it is not compared.

        Raises:
            CheckpointError: the checkpoint is incomplete or does not match, or a log or the record of the run's start
                has changed since. RunError: the trajectory is damaged, or has another header.
        """
        content = checkpoint.json(_PROGRESS)
        try:
            progress = _SavedState.model_validate(content)
            self._check_run(progress, checkpoint)
            if self._began is not None and progress.began not in ("", self._began):
                record = str(metrics.parent / ENVIRONMENT)
                raise CheckpointError(f"{record!r} was changed since the checkpoint was written", _COPY_OR_AGAIN)
            _check_log(metrics, progress.metrics.bytes, progress.metrics.sha256)
            if progress.trajectory is not None:
                _check_log(trajectory, progress.trajectory)
                self._replay(trajectory, progress.trajectory, header)
            self._load(progress, checkpoint)
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            raise_if_out_of_memory(error)
            raise CheckpointError(
                f"the checkpoint {str(checkpoint.path)!r} does not fit this run: {_reason(error)}",
                "it may be of another version of zofo; start again with another output_dir=",
            ) from error
        self._best.load_files(checkpoint.path)  # a full disk is not the checkpoint's fault
        return ResumePoint(progress.steps, progress.seconds, progress.metrics.bytes, progress.trajectory)

    def _check_run(self, progress: _SavedState, checkpoint: Checkpoint) -> None:
        """Raise ValueError for values that cannot belong to this run and this checkpoint."""
        scored = progress.evaluating["last"]
        for key, fits in {
            "steps": progress.steps == checkpoint.step,
            "trajectory": (progress.trajectory is None) == (self._method.evaluator is None),
            "weights": progress.weights == self._weights,
            "best": (progress.best.score is None) == (not scored)
            and self._best.tests == (progress.best.test is not None),
            "evaluating": not scored or scored.keys() == set(self._method.variants),
        }.items():
            if not fits:
                raise ValueError(f"{key} cannot be {getattr(progress, key)!r}")

    def _replay(self, path: Path, size: int, header: Mapping[str, Any] | None) -> None:
        """Restore theta from the trajectory, unless the checkpoint contains it.

        Raises RunError for a trajectory that is damaged, or whose further records would have another meaning.
        """
        recorded, method = Trajectory.read(path, size), self._method
        stored, now = recorded.header, _as_read(header or recorded.header)
        key = next((key for key in sorted({*stored, *now}) if stored.get(key) != now.get(key)), None)
        if key is not None:
            raise RunError(
                f"{path}: the run began with {key}={stored.get(key)!r}, and would go on with {now.get(key)!r}",
                "go on with the version of zofo that began it (see environment.json), or begin again in a new folder",
            )
        if not self._weights:
            assert method.rule is not None
            assert method.evaluator is not None
            replay_records(recorded.records, method.rule, method.evaluator.theta)

    def _load(self, progress: _SavedState, checkpoint: Checkpoint) -> None:
        """Load the state of the method and the scores; ValueError if it is incomplete."""
        method, state, scores = self._method, checkpoint.json(_STATE), progress.evaluating
        tensors = load_file(checkpoint.path / _TENSORS)
        if _shapes_of(tensors) != progress.tensors:
            raise ValueError(f"{_TENSORS} does not hold the tensors that were saved")
        files = {name: checkpoint.path / _part(number) for number, name in enumerate(progress.files)}
        if set(checkpoint.path.glob(_part("*"))) != set(files.values()):
            raise ValueError("files does not name those that were saved")
        _check_like(state, _as_read(method.state_dict(self._weights).values), _STATE)
        method.load_state_dict(StateDict(state, tensors, files))
        self._evaluating.load_state_dict(scores)
        self._best.load_state_dict(progress.best.model_dump(exclude_none=True) | {"score": progress.best.score})
        if _as_read([method.state_dict(self._weights).values, self._evaluating.state_dict()]) != [state, scores]:
            raise ValueError("something is missing")
        self._skips.in_a_row = progress.skipped


_COPY_OR_AGAIN = "put back a copy of it, or start again with another output_dir="


def _reason(error: Exception) -> str:
    """Why a checkpoint does not match, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error) if isinstance(error, ValueError) else repr(error)


def _shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
    """Dtype and shape of each tensor, as JSON."""
    return {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}


def _as_read(values: Any) -> Any:
    """Values after a round trip through JSON."""
    return json.loads(json.dumps(values))


def _check_like(found: Any, like: Any, at: str) -> None:
    """Raise ValueError for JSON values that lack a key of a new run's state, or have another type."""
    if like is None:  # nothing yet
        return
    kinds: Any = (float, int) if isinstance(like, float) else type(like)
    if not isinstance(found, kinds) or isinstance(found, bool) != isinstance(like, bool):
        raise ValueError(f"{at} cannot be {found!r}")
    for key, value in like.items() if isinstance(like, dict) else ():
        if key not in found:
            raise ValueError(f"{at} lacks {key!r}")
        _check_like(found[key], value, f"{at}: {key}")


def _check_log(path: Path, size: int, sha256: str = "") -> None:
    """Raise CheckpointError for a log that does not begin with its content at the time of the checkpoint."""
    found = path.stat().st_size if path.is_file() else 0
    if found < size:
        raise CheckpointError(
            f"{str(path)!r} has {found} bytes, and had {size} when the checkpoint was written", _COPY_OR_AGAIN
        )
    if sha256:
        with path.open("rb") as file:
            if f"sha256:{hashlib.sha256(file.read(size)).hexdigest()}" != sha256:
                raise CheckpointError(
                    f"the first {size} bytes of {str(path)!r} are not those that it had when the checkpoint was "
                    "written",
                    _COPY_OR_AGAIN,
                )


def _part(number: int | str) -> str:
    """The file of a part that the method keeps in separate files."""
    return f"state-{number}.safetensors"
