"""Writing to a disk that may be full or read-only, and bringing what was written to it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from zofo.errors import RunError, advice
from zofo.filesystem import fsync as fsync
from zofo.filesystem import fsync_tree as fsync_tree
from zofo.filesystem import sha256_of as sha256_of

_NUMBER = re.compile(r"(?:os error |Errno )(\d+)")
_OF_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OF_WRITING = {*_OF_ROOM, errno.EROFS}  # which nothing but a write ends with
_OF_OPEN_FILES = {errno.EIO, errno.ESTALE}  # where a write or a sync names no file


@contextmanager
def writing(
    what: str, path: Path, hint: str, kind: type[RunError] = RunError, within: Path | None = None
) -> Iterator[None]:
    """While it is open, a failed write is said to be one, with the path, the system's reason and what to do about it.

    Other errors of the system, such as a file of somebody else that is missing, stay what they are.

    Args:
        what: is written, for messages: "the checkpoint".
        path: of it.
        hint: what to type once that is done.
        kind: of error that is raised.
        within: the folder in which every error is one of writing; by default `path`.

    Raises:
        RunError: of that kind, for an OSError of writing, and for such errors of safetensors, which are none.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _of_writing(error, within or path):
            raise
        raise cannot_write(path, error, what, hint, kind) from error


def cannot_write(
    path: Path, error: OSError | SafetensorError, what: str = "", then: str = "", kind: type[RunError] = RunError
) -> RunError:
    """A failed write as a message: the path, what the system said, for a full disk its free bytes, and what to do.

    Args:
        path: of what was written.
        error: how it failed.
        what: was written, for messages.
        then: what to type next, once the reason is mended.
        kind: of the message.
    """
    number = _number(error)
    free = f" ({_free(path)} bytes free)" if number in _OF_ROOM else ""
    hint = "; then ".join(part for part in (advice(number), then) if part)
    return kind(f"cannot write {f'{what} ' if what else ''}{str(path)!r}: {_reason(error)}{free}", hint or None)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file that is there with all that it holds, on the disk, or as it was before."""
    part = temp_path(path)
    part.write_text(text, encoding="utf-8")
    fsync(part)
    os.replace(part, path)
    fsync(path.parent)


def temp_path(path: Path) -> Path:
    """Where `atomic_write_text` writes a file before it takes its name; a killed process may leave it."""
    return path.with_name(f".{path.name}")


def _of_writing(error: OSError | SafetensorError, folder: Path) -> bool:
    """Whether an error is that of a write, as far as its number and its file tell.

    Args:
        error: to tell.
        folder: that is written.
    """
    number = _number(error)
    if number is None or number in _OF_WRITING:
        return number is not None
    if isinstance(error, SafetensorError | shutil.Error):
        return True
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    inside = Path(os.path.abspath(folder))
    return any(Path(os.path.abspath(name)).is_relative_to(inside) for name in names) or (
        not names and number in _OF_OPEN_FILES
    )


def _number(error: OSError | SafetensorError) -> int | None:
    """The number that the system gave; safetensors and shutil have it inside a text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else None


def _reason(error: OSError | SafetensorError) -> str:
    """What the system said."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = _number(error)
    return str(error) if number is None else os.strerror(number)


def _free(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    return f"{shutil.disk_usage(path).free:,}"
