"""What a checkpoint of a run holds, and how all of it is taken back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zofo.errors import CheckpointError, refuse_out_of_memory
from zofo.methods import Method
from zofo.state_dict import StateDict
from zofo.training.callbacks import BestCheckpoint, EvaluationCallback, MetricsLogger
from zofo.training.checkpoint import Checkpoint
from zofo.training.config import ENVIRONMENT
from zofo.training.loop import NonFiniteSkipCounter
from zofo.training.progress_checks import (
    ResumePoint,
    check_json_schema,
    done_of,
    refuse_other_header,
    refuse_other_log,
    refuse_other_record,
    shapes_of,
    written,
)
from zofo.trajectory.format import Trajectory, TrajectoryWriter
from zofo.trajectory.replay import replay_records

_PROGRESS, _STATE, _TENSORS = "progress.json", "state.json", "state.safetensors"


def should_checkpoint_weights(method: Method, wanted: bool | None) -> bool:
    """Whether a checkpoint holds theta itself, and not only the trajectory that leads to it.

    Args:
        method: what is trained.
        wanted: what is configured; None leaves it where a replay is cheap, which it is in the forward for rules whose
            updates are displacements.
    """
    if method.evaluator is None or wanted is not None:
        return bool(wanted)
    return not (not method.evaluator.writes_points and method.rule is not None and method.rule.linear)


class Progress:
    """Everything of a run that a checkpoint holds.

    Args:
        method: what is trained.
        best: which evaluation was the best.
        evaluating: the scores so far.
        weights: whether theta itself is saved.
        skips: steps without a finite loss, as counted so far.
        began: SHA-256 of what the run began with, which a checkpoint keeps; None for what is not known.
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
        """Write it into the folder of a checkpoint.

        Args:
            steps: that have been made.
            folder: of the checkpoint.
            metrics: the log, of which the checkpoint keeps the length and the SHA-256.
            trajectory: of which it keeps the length, where there is one; its records have checksums.
            seconds: that the run has taken.
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
            "tensors": shapes_of(state.tensors),
        }
        if self._began is not None:
            content["began"] = self._began
        if state.files:
            content["files"] = list(state.files)
        (folder / _PROGRESS).write_text(json.dumps(content) + "\n", encoding="utf-8")
        (folder / _STATE).write_text(json.dumps(state.values) + "\n", encoding="utf-8")
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
        save_file(tensors, folder / _TENSORS)
        for number, path in enumerate(state.files.values()):  # one by one: together they may not fit into memory
            shutil.copyfile(path, folder / _part(number))

    def restore(
        self, checkpoint: Checkpoint, metrics: Path, trajectory: Path, header: Mapping[str, Any] | None = None
    ) -> ResumePoint:
        """Take it back, in a method that stands at the base weights.

        Args:
            checkpoint: of the same run.
            metrics: the log of the run.
            trajectory: of the run, which leads to theta where the checkpoint does not hold it.
            header: of the trajectory, as this version would begin it; by default any will do.

        Raises:
            CheckpointError: the checkpoint lacks something or does not fit, or a log or the record of what the run
                began with is not what it was then.
            RunError: the trajectory is damaged, or was begun with another header.
        """
        progress, method = checkpoint.json(_PROGRESS), self._method
        refuse_other_record(metrics.parent / ENVIRONMENT, progress, self._began)
        try:
            done = done_of(progress, checkpoint, method.evaluator is not None, self._weights)
            refuse_other_log(metrics, done.metrics, done.metrics_sha256)
            if method.evaluator is not None:
                refuse_other_log(trajectory, done.trajectory)
                recorded = Trajectory.read(trajectory, done.trajectory)
                if header is not None:
                    refuse_other_header(trajectory, recorded.header, header)
                if not progress["weights"]:
                    assert method.rule is not None
                    replay_records(recorded.records, method.rule, method.evaluator.theta)
            tensors = load_file(checkpoint.path / _TENSORS)
            if shapes_of(tensors) != progress["tensors"]:
                raise ValueError(f"{_TENSORS} does not hold the tensors that were saved")
            state, scores = checkpoint.json(_STATE), progress["evaluating"]
            if scores["last"] and scores["last"].keys() != set(method.variants):
                raise ValueError("evaluating lacks the score of a variant")
            check_json_schema(state, written(method.state_dict(self._weights).values), _STATE)
            check_json_schema(scores, written(self._evaluating.state_dict()), "evaluating")
            method.load_state_dict(StateDict(state, tensors, _parts(progress.get("files", []), checkpoint)))
            self._evaluating.load_state_dict(scores)
            if (written(method.state_dict(self._weights).values), written(self._evaluating.state_dict())) != (
                state,
                scores,
            ):
                raise ValueError("something is missing")
            self._skips.in_a_row = progress.get("skipped", 0)
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            refuse_out_of_memory(error)
            reason = str(error) if isinstance(error, ValueError) else repr(error)
            raise CheckpointError(
                f"the checkpoint {str(checkpoint.path)!r} does not fit this run: {reason}",
                "it may be of another version of zofo; start again with another run=",
            ) from error
        self._best.load_state_dict(
            progress["best"], checkpoint.path
        )  # writes: a full disk is not the checkpoint's fault
        return done


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
