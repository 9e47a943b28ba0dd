"""Folders that others load: written whole beside their place, then moved into it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from zofo.errors import RunError, advice
from zofo.filesystem import fsync, fsync_tree, real
from zofo.training.disk import cannot_write

_OF_MODELS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter_config.json", "adapter_model*")


@contextmanager
def new_folder(path: Path, force: bool, apart_from: Iterable[Path] = ()) -> Iterator[Path]:
    """A folder to write into while it is open; what was written stands at `path` afterwards, or what was there before.

    A folder that holds something is replaced by one that holds what was written, and what nothing of that took the
    place of. It stays where it is until the new one is complete, beside it; then they change places.

    Args:
        path: where it will be.
        force: write into a folder that holds something: files of the same name, and weights of another model, go.
        apart_from: folders that it may not be, nor lie in, nor hold.

    Raises:
        RunError: there is something and `force` is not set, or it cannot be written; then all is as it was.
    """
    refuse_taken(path, force, apart_from)
    given, path = path, real(path)
    part = path.with_name(f".{path.name}.part")
    try:
        _put_back(path)
        refuse_taken(given, force, apart_from)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        fsync_tree(part)
        if path.exists():
            _keep(path, part)
            _exchange(path, part)
        else:
            os.rename(part, path)
        fsync(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _keep(path: Path, part: Path) -> None:
    """Put into the new folder what the old one holds and nothing takes the place of; large files are only linked."""
    gone = {old.name for pattern in _OF_MODELS for old in path.glob(pattern)}
    for old in path.iterdir():
        new = part / old.name
        if old.name in gone or new.exists():
            continue
        if old.is_dir() and not old.is_symlink():
            shutil.copytree(old, new, symlinks=True, copy_function=_linked)
        else:
            _linked(old, new)
    shutil.copymode(path, part)


def _linked(old: str | Path, new: str | Path) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(old, new, follow_symlinks=False)


def _exchange(path: Path, part: Path) -> None:
    """Let the new folder take the place of the old one, which comes back if it cannot."""
    old = _old(path)
    os.rename(path, old)
    try:
        os.rename(part, path)
    except BaseException:
        os.rename(old, path)
        raise
    os.rename(old, _gone(path))  # a name that says that nobody needs it, in case this process is killed now
    shutil.rmtree(_gone(path), ignore_errors=True)


def _put_back(path: Path) -> None:
    """Undo what a process left that was killed while the old folder and the new one changed places."""
    old = _old(path)
    if not _gone(path).is_symlink():
        shutil.rmtree(_gone(path), ignore_errors=True)
    if not old.is_dir() or old.is_symlink():
        return
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise RunError(
            f"{str(old)!r} holds what {str(path)!r} held when a process was killed that wrote there",
            "look at it, and remove it, or give it another name",
        )
    if path.exists():
        path.rmdir()
    os.rename(old, path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.zofo-old")


def _gone(path: Path) -> Path:
    return path.with_name(f".{path.name}.zofo-gone")


def refuse_taken(path: Path, force: bool, apart_from: Iterable[Path] = ()) -> None:
    """Raises RunError for a place that may not be written; see `new_folder`."""
    own = real(path)
    if own.is_symlink():
        raise RunError(f"the links of {str(path)!r} lead in a circle", advice(errno.ELOOP))
    if str(own) != os.fsencode(own).decode("utf-8", "replace"):  # where tokenizers cannot write
        raise RunError(f"{str(path)!r} has a name that is no text in UTF-8", "choose another name")
    for other in apart_from:
        if own == real(other) or real(other) in own.parents or own in real(other).parents:
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
        if real(other) in real(path).parents:
            raise RunError(f"{str(path)!r} lies in {str(other)!r}, which is only read", "choose another place")
    if path.exists() and not path.is_file():
        raise RunError(f"{str(path)!r} is a folder, a pipe or a device, and no file", "choose another name")
    if path.exists() and not force:
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
        fsync(part)
        os.replace(part, path)
        fsync(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
