"""The checkpoints of a run: folders that are whole, or are not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zofo.errors import CheckpointError

_MANIFEST, _MARKER, _VERSION = "manifest.json", "complete", 1
_PREFIX, _SAVING = "step-", ".saving-"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, every file of which has the hash that its manifest gives.

    Args:
        path: its folder.
        step: how many steps had been made.
    """

    path: Path
    step: int

    def json(self, name: str) -> dict[str, Any]:
        """One of its JSON files.

        Raises:
            CheckpointError: it holds something else.
        """
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"cannot read {str(self.path / name)!r}: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{str(self.path / name)!r} holds no JSON object")
        return content


class Checkpoints:
    """Saves and finds the checkpoints of a run.

    One is written into a temporary folder, every file of it synced; a manifest holds their SHA-256; the folder is
    renamed, and a marker with the manifest's SHA-256 is written last. A process may be killed at any point of this:
    what `latest` finds is the new one or the one before, whole.

    Args:
        folder: where they are; made when the first one is saved.
        keep: how many are kept, the newest ones.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint, then remove those that are too many.

        Args:
            step: how many steps have been made.
            write: writes its files into the folder that it is given.

        Raises:
            CheckpointError: the disk is full or cannot be written; the checkpoints before are as they were.
        """
        final, part = self._folder / f"{_PREFIX}{step:08d}", self._folder / f"{_SAVING}{step:08d}"
        try:
            shutil.rmtree(part, ignore_errors=True)
            if final.is_dir():
                if damage_of(final) is None:  # the same step of the same run
                    return final
                shutil.rmtree(final)
            part.mkdir(parents=True)
            write(part)
            files = {path.relative_to(part).as_posix(): _digest(path) for path in _files(part)}
            content = {"version": _VERSION, "step": step, "files": files}
            (part / _MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            for path in [*_files(part), *(path for path in part.rglob("*") if path.is_dir()), part]:
                _sync(path)
            os.rename(part, final)
            _sync(self._folder)
            marker = final / _MARKER
            marker.write_text(_digest(final / _MANIFEST) + "\n", encoding="utf-8")
            _sync(marker)
            _sync(final)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise CheckpointError(
                f"cannot write the checkpoint {str(final)!r}: {error.strerror or error} ({_free(self._folder)} free)",
                "make room or choose another folder, and type the same command again: the run goes on from the "
                "checkpoint before",
            ) from error
        for old in self._folders()[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def latest(self, warn: Callable[[str], None] = lambda _text: None) -> Checkpoint | None:
        """The newest whole checkpoint; None where there is none.

        Args:
            warn: told of each newer one that is damaged, with the file.
        """
        for path in self._folders():
            damage = damage_of(path)
            if damage is None:
                return Checkpoint(path, int(path.name.removeprefix(_PREFIX)))
            warn(f"{damage}: the checkpoint before it is used")
        return None

    def sweep(self) -> None:
        """Remove what a killed process left half-written, and what can never be used."""
        for path in self._folder.glob(f"{_SAVING}*"):
            shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> None:
        """Remove all of them: the run has ended, and its folder holds what came of it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """Of all checkpoints, whole or not, the newest first."""
        found = [path for path in self._folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
        return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)), reverse=True)


def damage_of(path: Path) -> str | None:
    """What is wrong with the folder of a checkpoint, and with which file; None where it is whole."""
    marker, manifest = path / _MARKER, path / _MANIFEST
    try:
        if not marker.is_file():
            return f"{str(path)!r} was not finished"
        if not manifest.is_file():
            return f"{str(manifest)!r} is missing"
        if marker.read_bytes().strip() != _digest(manifest).encode():
            return f"{str(manifest)!r} is damaged, or {str(marker)!r} is"
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            return f"{str(manifest)!r} is of version {content['version']}, which this version of zofo cannot read"
        for name, digest in content["files"].items():
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            if not inside or not (path / name).is_file():
                return f"{str(path / name)!r} is missing"
            if _digest(path / name) != digest:
                return f"{str(path / name)!r} is damaged: its SHA-256 is not the one in the manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{str(manifest)!r} cannot be read ({error})"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"
