"""Writing to a disk that may be full or read-only, and bringing what was written to it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from zofo.errors import RunError

_NUMBER = re.compile(r"(?:os error |Errno )(\d+)")


@contextmanager
def writing(what: str, path: Path, hint: str, kind: type[RunError] = RunError) -> Iterator[None]:
    """While it is open, a failed write is said to be one, with the path and the free bytes of its disk.

    Args:
        what: is written, for messages: "the checkpoint".
        path: of it.
        hint: what to type next.
        kind: of error that is raised.

    Raises:
        RunError: of that kind, for every OSError, and for the errors of safetensors, which are none.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise kind(f"cannot write {what} {str(path)!r}: {_reason(error)} ({_free(path)} bytes free)", hint) from error


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring every file in a folder, and all names, to the disk."""
    inside = sorted(folder.rglob("*"))
    for path in [*(p for p in inside if p.is_file()), *(p for p in inside if p.is_dir()), folder]:
        sync(path)


def _reason(error: Exception) -> str:
    """What the system said; safetensors and shutil have it inside a text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = _NUMBER.search(str(error))
    return os.strerror(int(found[1])) if found else str(error)


def _free(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    return f"{shutil.disk_usage(path).free:,}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read piece by piece, as `sha256:` and its digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"
