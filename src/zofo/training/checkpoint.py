"""The checkpoints of a run: folders that are either complete or absent; and when to write one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zofo.config import read_json_object
from zofo.errors import CheckpointError, ZofoError, advice
from zofo.filesystem import atomic_write_text, fsync, fsync_tree, sha256_of, writing
from zofo.processes import ALONE, Processes
from zofo.signals import Signals
from zofo.training.callbacks import Callback
from zofo.training.training_config import TrainingConfig

_MANIFEST, _MARKER, _VERSION = "manifest.json", "complete", 1
_PREFIX, _SAVING = "step-", ".saving-"
_NOT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM}  # which may be complete
_GOES_ON = "type the same command again: the run goes on from the checkpoint before"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint and its number of steps: every file has the hash in its manifest."""

    path: Path
    step: int

    def json(self, name: str) -> dict[str, Any]:
        """Read one of its JSON files. Raises CheckpointError if it contains something else."""
        return read_json_object(self.path / name, CheckpointError, finite=True)


class Checkpoints:
    """Saves and finds the checkpoints of a run.

    A checkpoint is written to a temporary folder, and every file is synced. A manifest contains their SHA-256. Then the
    folder is renamed, and a marker with the manifest's SHA-256 is written last. If the process is killed at any point,
    `latest` finds either the new checkpoint or the previous one, complete.

    Args:
        folder: folder of the checkpoints; created when the first one is saved.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._folder = folder
        self._keep = keep
        self._damaged: list[Path] = []

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint, then delete the oldest ones beyond the limit.

        Raises:
            CheckpointError: the disk is full or cannot be written. Earlier checkpoints are unchanged.
        """
        final, part = self._folder / f"{_PREFIX}{step:08d}", self._folder / f"{_SAVING}{step:08d}"
        try:
            with writing("the checkpoint", final, _GOES_ON, CheckpointError, within=self._folder):
                if damage_of(final) is None:  # the same step of the same run
                    return final
                _remove(final)
                _remove(part)
                part.mkdir(parents=True)
                write(part)
                _write_manifest(part, step)
                fsync_tree(part)
                os.rename(part, final)
                fsync(self._folder)
                atomic_write_text(final / _MARKER, sha256_of(final / _MANIFEST) + "\n")
        except CheckpointError:
            self.sweep()
            raise
        self._prune(step)
        return final

    def _prune(self, newest: int) -> None:
        """Delete those beyond the limit, and those of later steps, which will be made again."""
        folders = self._folders()
        kept = [path for path in folders if _step(path) <= newest and path not in self._damaged][: self._keep]
        for path in folders:
            if path not in kept:
                _remove(path)

    def latest(self, warn: Callable[[str], None] = lambda _text: None) -> Checkpoint | None:
        """The newest complete checkpoint; None if there is none.

        Args:
            warn: called for each newer one that is damaged, with the file.

        Raises:
            CheckpointError: all checkpoints are damaged.
        """
        found: list[str] = []
        self._damaged = []
        for path in self._folders():
            damage = damage_of(path)
            if damage is None:
                for text in found:
                    warn(f"{text}: the checkpoint before it is used")
                return Checkpoint(path, _step(path))
            found.append(damage)
            self._damaged.append(path)  # which do not replace a complete one
        if found:
            raise CheckpointError(
                f"no checkpoint in {str(self._folder)!r} can be used: {'; '.join(found)}",
                f"put back a copy of one, or remove {str(self._folder)!r} to begin the run again",
            )
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint after this number of steps, which another process has found. Raises CheckpointError if it is
        damaged."""
        path = self._folder / f"{_PREFIX}{step:08d}"
        if (damage := damage_of(path)) is not None:
            raise CheckpointError(damage, "let all processes see the same disk, and type the same command again")
        return Checkpoint(path, step)

    def sweep(self) -> None:
        """Delete what a killed process left: checkpoints that are partly written, unmarked, or partly deleted."""
        unmarked = [path for path in self._folders() if not os.path.lexists(path / _MARKER)]
        for path in [*self._folder.glob(f"{_SAVING}*"), *unmarked]:
            _remove(path)

    def clear(self) -> None:
        """Delete all checkpoints: the run has ended, and its folder has the results."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """All checkpoints, complete or not, newest first."""
        found = [path for path in self._folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
        return sorted(found, key=_step, reverse=True)


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, and in which file; None if it is complete."""
    marker, manifest = path / _MARKER, path / _MANIFEST
    try:
        for each in (path, *sorted(path.rglob("*"))):
            if each.is_symlink():
                return f"{str(each)!r} is a link, which no checkpoint holds"
        if not marker.is_file():
            return f"{str(path)!r} was not finished"
        if not manifest.is_file():
            return f"{str(manifest)!r} is missing"
        if marker.read_bytes().strip() != sha256_of(manifest).encode():
            return f"{str(manifest)!r} is damaged, or {str(marker)!r} is"
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            return f"{str(manifest)!r} is of version {content['version']}, which this version of zofo cannot read"
        if content["step"] != _step(path):
            return f"{str(manifest)!r} is of step {content['step']}"
        return _differing(path, content["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in _NOT_OF_FILES:
            raise CheckpointError(f"cannot read {str(path)!r}: {error.strerror}", advice(error.errno)) from error
        return f"{str(manifest)!r} cannot be read ({error!r})"


def _differing(path: Path, digests: dict[str, str]) -> str | None:
    """The first file that is missing, not in the manifest, or different; only files inside the folder are read."""
    there = {file.relative_to(path).as_posix(): file for file in _files(path)} | {_MARKER: None, _MANIFEST: None}
    for name in digests.keys() - there.keys():
        return f"{str(path / name)!r} is missing"
    for name, file in there.items():
        if file is not None and name not in digests:
            return f"{str(file)!r} is not in the manifest"
        if file is not None and sha256_of(file) != digests[name]:
            return f"{str(file)!r} is damaged: its SHA-256 is not the one in the manifest"
    return None


def _write_manifest(folder: Path, step: int) -> None:
    files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in _files(folder)}
    content = {"version": _VERSION, "step": step, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    """Delete a checkpoint, marker first, so that `sweep` recognises the rest if the process is killed."""
    if path.is_symlink() or not path.is_dir():  # a pipe would block
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(OSError):
        (path / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


_AT_LEAST, _SHARE = 60.0, 50.0  # seconds between two checkpoints, and how many times as long as one of them took


class CheckpointCallback(Callback):
    """Writes checkpoints, by steps or by time, and one when the run is asked to stop.

    By time: at least a minute after the last one, and at least 50 times as long as that one took, so that they take
    less than 2 % of a run.

    Args:
        checkpoints: destination; None for a method that only reads, and starts again instead.
        training: `save_steps`, and whether to continue after one that could not be written. A checkpoint before a
            requested stop is never skipped.
        first: number of steps already made.
        processes: processes of the run, which all stop after the same step.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        write: Callable[[int, Path], None],
        signals: Signals,
        training: TrainingConfig,
        warn: Callable[[str], None],
        first: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        self._processes = processes
        self._checkpoints, self._write, self._signals, self._every = checkpoints, write, signals, training.save_steps
        self._skipped = warn if training.on_save_error == "skip" else None
        self._last, self._took = time.perf_counter(), 0.0
        self._waits_for(first)

    def _waits_for(self, steps: int) -> None:
        """A signal is pending for the step after `steps`."""
        self._signals.doing = f"step {steps + 1}, saving" if self._checkpoints is not None else "what is left"

    def before_evaluation(self, steps: int) -> None:
        """Stop before an evaluation if asked to: it may take longer than a scheduler waits after SIGTERM."""
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
            if self._processes.alone:  # the others do not save, and ask between steps
                self.stop_if_asked(steps)

    def stop_if_asked(self, steps: int) -> None:
        """Save and raise Interrupted if the process was asked to stop; `steps` have been made."""
        if not self._processes.alone:  # known to all, even if another process got the signal
            if not self._processes.asked:
                return
            self._signals.received = self._processes.asked
        if self._signals.received is None:
            return
        if self._checkpoints is not None:
            self._save(steps)
        if not self._processes.alone:
            with contextlib.suppress(ZofoError):
                self._processes.gather_json(None)  # when the first has saved: a launcher stops it when another ends
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
