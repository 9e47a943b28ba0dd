"""Folders that others load: written whole beside their place, then moved into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from zofo.errors import RunError

_OF_MODELS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter_config.json", "adapter_model*")


@contextmanager
def new_folder(path: Path, force: bool, apart_from: Iterable[Path] = ()) -> Iterator[Path]:
    """A folder to write into while it is open; what was written stands at `path` afterwards, or nothing does.

    Args:
        path: where it will be.
        force: write into a folder that holds something: files of the same name, and weights of another model, go.
        apart_from: folders that it may not be, nor lie in, nor hold.

    Raises:
        RunError: there is something and `force` is not set, or it cannot be written.
    """
    refuse_taken(path, force, apart_from)
    path = path.resolve()
    part = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if not path.exists():
            os.rename(part, path)
            return
        for pattern in _OF_MODELS:
            for old in path.glob(pattern):
                old.unlink()
        for new in sorted(part.iterdir()):
            place = path / new.name
            if place.is_dir():
                shutil.rmtree(place)
            os.replace(new, place)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write {str(path)!r}: {reason}", "make room, or choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_taken(path: Path, force: bool, apart_from: Iterable[Path] = ()) -> None:
    """Raises RunError for a place that may not be written; see `new_folder`."""
    own = path.resolve()
    for other in apart_from:
        if own == other.resolve() or other.resolve() in own.parents or own in other.resolve().parents:
            raise RunError(
                f"{str(path)!r} is, holds or lies in {str(other)!r}, which is only read", "choose another folder"
            )
    try:
        taken = path.is_dir() and any(path.iterdir())
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror}", "choose another folder") from error
    if not own.name:
        raise RunError(f"{str(path)!r} is the root of all files", "choose another folder")
    if taken and not force:
        raise RunError(f"the folder {str(path)!r} is not empty", "choose another one, or write into it with --force")
    if path.exists() and not path.is_dir():
        raise RunError(f"{str(path)!r} is a file, not a folder", "choose another name")


def refuse_taken_file(path: Path, force: bool, apart_from: Iterable[Path] = ()) -> None:
    """The same for a file that will be written."""
    for other in apart_from:
        if other.resolve() in path.resolve().parents:
            raise RunError(f"{str(path)!r} lies in {str(other)!r}, which is only read", "choose another place")
    if path.is_dir() or (path.exists() and not force):
        raise RunError(f"{str(path)!r} exists", "choose another name, or write over it with --force")


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole, or not at all.

    Raises:
        RunError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
