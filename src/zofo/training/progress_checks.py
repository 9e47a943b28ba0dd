"""Whether the JSON of a checkpoint and the logs of its run are what they were when it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zofo.errors import CheckpointError, RunError
from zofo.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class ResumePoint:
    """What a run had done when a checkpoint of it was written; by default nothing.

    Args:
        steps: that were made.
        seconds: that it had taken.
        metrics: bytes of its log; None for a new one.
        trajectory: bytes of its trajectory; None for a new one.
        metrics_sha256: of those bytes of its log; None where an older version did not keep it.
    """

    steps: int = 0
    seconds: float = 0.0
    metrics: int | None = None
    trajectory: int | None = None
    metrics_sha256: str | None = None


def done_of(progress: Mapping[str, Any], checkpoint: Checkpoint, moves: bool, weights: bool) -> ResumePoint:
    """What the run had done; ValueError for numbers that cannot be.

    Args:
        progress: as it was saved.
        checkpoint: that it is of.
        moves: whether the run has a trajectory.
        weights: whether its checkpoints hold theta.
    """
    steps, seconds, metrics, trajectory = (progress[key] for key in ("steps", "seconds", "metrics", "trajectory"))
    older = not isinstance(metrics, dict)  # a version that kept the length of the log alone, and counted no skips
    size, sha256 = (metrics, None) if older else (metrics["bytes"], metrics["sha256"])
    skipped = progress.get("skipped", 0) if older else progress["skipped"]
    wrong = [
        key
        for key, fine in (
            ("steps", steps == checkpoint.step and not isinstance(steps, bool)),
            ("seconds", isinstance(seconds, float | int) and seconds >= 0),
            ("metrics", _is_size(size) and (older or isinstance(sha256, str))),
            ("trajectory", _is_size(trajectory) if moves else trajectory is None),
            ("weights", progress["weights"] is weights),
            ("skipped", _is_size(skipped)),
            ("best", _is_best(progress["best"], bool(progress["evaluating"]["last"]))),
        )
        if not fine
    ]
    if wrong:
        raise ValueError(f"{wrong[0]} cannot be {progress[wrong[0]]!r}")
    return ResumePoint(steps, seconds, size, trajectory, sha256)


def refuse_other_header(path: Path, stored: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Raises RunError for a trajectory whose further records would mean something else than those that it has."""
    now = json.loads(json.dumps(header))
    key = next((key for key in sorted({*stored, *now}) if stored.get(key) != now.get(key)), None)
    if key is not None:
        raise RunError(
            f"{path}: the run began with {key}={stored.get(key)!r}, and would go on with {now.get(key)!r}",
            "go on with the version of zofo that began it (see environment.json), or begin again in a new folder",
        )


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
    """Number type and shape of each tensor, as JSON."""
    return {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_best(value: Any, scored: bool) -> bool:
    score = value["score"]
    fine = isinstance(score, float | int) and not isinstance(score, bool) if scored else score is None
    return fine and _is_size(value["step"])


def written(values: Mapping[str, Any]) -> Any:
    """As they are after they were written and read."""
    return json.loads(json.dumps(values))


def check_json_schema(found: Any, like: Any, at: str) -> None:
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
        check_json_schema(found[key], value, f"{at}: {key}")


def refuse_other_log(path: Path, size: int | None, sha256: str | None = None) -> None:
    """Raises CheckpointError for a log that does not begin with what it held when the checkpoint was written.

    Args:
        path: of the log.
        size: how many bytes it had; None for a new one.
        sha256: of these; None where that is not known.
    """
    found = path.stat().st_size if path.is_file() else 0
    if size is not None and found < size:
        raise CheckpointError(
            f"{str(path)!r} has {found} bytes, and had {size} when the checkpoint was written", _COPY_OR_AGAIN
        )
    if size is None or sha256 is None:
        return
    with path.open("rb") as file:
        if f"sha256:{hashlib.sha256(file.read(size)).hexdigest()}" != sha256:
            raise CheckpointError(
                f"the first {size} bytes of {str(path)!r} are not those that it had when the checkpoint was written",
                _COPY_OR_AGAIN,
            )


def refuse_other_record(path: Path, progress: Mapping[str, Any], began: str | None) -> None:
    """Raises CheckpointError for a record of what the run began with that is not the one of the checkpoint.

    Args:
        path: of the record.
        progress: of the checkpoint; an older version did not keep the hash.
        began: hash of the record as it is now; None where it is not known.
    """
    if began is not None and progress.get("began", began) != began:
        raise CheckpointError(f"{str(path)!r} was changed since the checkpoint was written", _COPY_OR_AGAIN)


_COPY_OR_AGAIN = "put back a copy of it, or start again with another run="
