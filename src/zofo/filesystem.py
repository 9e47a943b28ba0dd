"""Files as every room needs them: brought to the disk, and known by their content."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path


def refuse_special(path: Path) -> None:
    """Raises OSError for a pipe, a socket or a device, which may never begin or never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))


def real(path: Path) -> Path:
    """A path without links; unlike `Path.resolve`, also of links that lead in a circle, which stay as they are."""
    return Path(os.path.realpath(path))


def fsync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Bring every file in a folder, and all names, to the disk."""
    inside = sorted(folder.rglob("*"))
    for path in [*(p for p in inside if p.is_file()), *(p for p in inside if p.is_dir()), folder]:
        fsync(path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read piece by piece, as `sha256:` and its digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"
