"""Files and folders on a disk that may be full: written atomically, locked, and identified by content."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from zofo.errors import RunError, advice


def check_not_special(path: Path) -> None:
    """Raise OSError for a pipe, a socket or a device, which may block or never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))


def real(path: Path) -> Path:
    """A path without links; unlike `Path.resolve`, circular links are kept instead of raising."""
    return Path(os.path.realpath(path))


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt" and path.is_dir():  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush every file in a folder, and all entries, to disk."""
    inside = sorted(folder.rglob("*"))
    for path in [*(p for p in inside if p.is_file()), *(p for p in inside if p.is_dir()), folder]:
        fsync(path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces, as `sha256:` and hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


_NUMBER = re.compile(r"(?:os error |Errno )(\d+)")
_OF_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OF_WRITING = {*_OF_ROOM, errno.EROFS}  # which only a write raises
_OF_OPEN_FILES = {errno.EIO, errno.ESTALE}  # where a write or a sync names no file


@contextmanager
def writing(
    what: str, path: Path, hint: str, kind: type[RunError] = RunError, within: Path | None = None
) -> Iterator[None]:
    """Context that explains a failed write: the path, the system's reason, and what to do.

    Other system errors, such as another missing file, pass through.

    Args:
        what: what is written, for messages: "the checkpoint".
        hint: what to type after fixing the cause.
        within: folder in which every error is one of writing; by default `path`.

    Raises:
        RunError: (or the given subclass) for an OSError of writing, or such an error of safetensors, which is not an
            OSError.
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
    """The error for a failed write: the path, the system's reason, free bytes of a full disk, and what to do.

    Args:
        what: what was written, for messages.
        then: what to type after fixing the cause.
    """
    number = _number(error)
    free = f" ({_free(path)} bytes free)" if number in _OF_ROOM else ""
    hint = "; then ".join(part for part in (advice(number), then) if part)
    return kind(f"cannot write {f'{what} ' if what else ''}{str(path)!r}: {_reason(error)}{free}", hint or None)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file atomically: afterwards it has either its new or its old content, also on disk."""
    _write_whole(path, text.encode())


def _write_whole(path: Path, data: bytes) -> None:
    part = temp_path(path)
    try:
        part.write_bytes(data)
        fsync(part)
        os.replace(part, path)
    except BaseException:  # partly written files take space that may be needed
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def temp_path(path: Path) -> Path:
    """The temporary path of a file before it is renamed; a killed process may leave it."""
    return path.with_name(f".{path.name}")


def _of_writing(error: OSError | SafetensorError, folder: Path) -> bool:
    """Whether an error comes from a write, judging by its number and its file."""
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
    """The system's error number; safetensors and shutil have it inside a text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else None


def _reason(error: OSError | SafetensorError) -> str:
    """The system's error message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = _number(error)
    return str(error) if number is None else os.strerror(number)


def _free(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    return f"{shutil.disk_usage(path).free:,}"


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Context in which no other process may take the same lock. The system releases it when the process ends.

    Args:
        path: path of the lock file, which is not deleted; its folder is created if necessary.
        what: what is done under the lock, for messages: "running a study in".

    Raises:
        RunError: another process has the lock, or the folder cannot be written.
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


_OF_MODELS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter_config.json", "adapter_model*")


@contextmanager
def atomic_folder(path: Path, force: bool, apart_from: Iterable[Path] = ()) -> Iterator[Path]:
    """Context that yields a folder to write to; on exit it appears at `path`, or `path` is unchanged.

    A non-empty folder is replaced by one with the written files, and those old files that they do not replace. It stays
    in place until the new one is complete beside it; then they are swapped.

    Args:
        force: allow a non-empty folder: files of the same name, and weights of another model, are deleted.
        apart_from: folders that it may not be, be inside of, or contain.

    Raises:
        RunError: the folder is not empty and `force` is not set, or it cannot be written. Then nothing has changed.
    """
    check_not_taken(path, force, apart_from)
    given, path = path, real(path)
    part = path.with_name(f".{path.name}.part")
    try:
        _put_back(path)
        check_not_taken(given, force, apart_from)
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
    """Put old files that are not replaced into the new folder; large files are only linked."""
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
    """Swap in the new folder; the old one is restored if that fails."""
    old = _old(path)
    os.rename(path, old)
    try:
        os.rename(part, path)
    except BaseException:
        os.rename(old, path)
        raise
    os.rename(old, _gone(path))  # a name that marks it as unneeded, in case this process is killed now
    shutil.rmtree(_gone(path), ignore_errors=True)


def _put_back(path: Path) -> None:
    """Undo an interrupted swap of a process that was killed."""
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


def check_not_taken(path: Path, force: bool, apart_from: Iterable[Path] = ()) -> None:
    """Raise RunError for a place that may not be written; see `atomic_folder`."""
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


def check_file_not_taken(path: Path, force: bool, apart_from: Iterable[Path] = ()) -> None:
    """Raise RunError for a file that may not be written."""
    for other in apart_from:
        if real(other) in real(path).parents:
            raise RunError(f"{str(path)!r} lies in {str(other)!r}, which is only read", "choose another place")
    if path.exists() and not path.is_file():
        raise RunError(f"{str(path)!r} is a folder, a pipe or a device, and no file", "choose another name")
    if path.exists() and not force:
        raise RunError(f"{str(path)!r} exists", "choose another name, or write over it with --force")


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        RunError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, data)
    except OSError as error:
        raise cannot_write(path, error) from error
