"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from zofo.errors import RunError, advice


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """While it is open, no other process may take the same lock. The system frees it when its process ends in any way.

    Args:
        path: of the lock file, which is left there; its folder is made where there is none.
        what: is done under it, for messages: "running a study in".

    Raises:
        RunError: another process has it, or the folder cannot be written.
    """
    lock = FileLock(path, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"another process is {what} {str(path.parent)!r}", "wait for it or stop it, or choose another folder"
        ) from None
    except OSError as error:
        raise RunError(f"cannot use {str(path.parent)!r}: {error}", advice(error.errno)) from error
    try:
        yield
    finally:
        lock.release()
