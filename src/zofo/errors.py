"""All errors that a user can cause, each with what is wrong, where, and what to type next.

The command line prints `message` and `hint` and exits with `exit_code`; a traceback is always a bug of zofo.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class ZofoError(Exception):
    """Base class of all errors that a user can cause.

    Args:
        message: what is wrong and where (file, row, column, key).
        hint: what to type or change next.
    """

    exit_code = 2
    quiet: bool | None = None
    """Whether another process of the same run says it; None where that is not known."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


_REWORDING: ContextVar[bool] = ContextVar("_REWORDING", default=False)


@contextmanager
def reworded(change: Callable[[str], str]) -> Iterator[None]:
    """Context that applies `change` to the message and hint of errors; of nested ones, only the outermost."""
    if _REWORDING.get():
        yield
        return
    token = _REWORDING.set(True)
    try:
        yield
    except ZofoError as error:
        error.message = change(error.message)
        error.hint = error.hint and change(error.hint)
        error.args = (error.message,)
        raise
    finally:
        _REWORDING.reset(token)


class ConfigError(ZofoError):
    """An invalid configuration: an unknown key, a value of the wrong type, incompatible parts."""


class UnknownNameError(ConfigError):
    """A name that no registry has; the hint suggests the nearest one."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str | None = None) -> None:
        self.known = sorted(known)
        near = nearest(name, self.known)
        guess = f" Did you mean {near!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}.{guess}", hint or f"known: {', '.join(self.known)}")


class DataError(ZofoError):
    """Data that a task cannot use; the message names file, line and column."""


class ModelError(ZofoError):
    """A model that cannot be found, loaded, or used for this purpose."""


class DownloadError(ZofoError):
    """A file that could not be downloaded, or whose bytes are not the expected ones."""


class RunError(ZofoError):
    """A run folder that cannot be written or read."""


class DamagedRunError(RunError):
    """A file of a run that is not as zofo wrote it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "put back a copy of the file, or train again with another output_dir")


class CheckpointError(RunError):
    """A checkpoint that cannot be written, or does not belong to the run."""


class PatchError(RunError):
    """A patch that is damaged, belongs to another base model or version, or cannot have been written by zofo."""


class ProcessError(ZofoError):
    """Another process of the same run failed, or has ended."""

    exit_code = 1


class Interrupted(KeyboardInterrupt):
    """Work that stopped on Ctrl-C or SIGTERM; a run first saves its step or evaluation.

    Args:
        signal: name of the signal.
        exit_code: 128 plus the signal's number.
        steps: number of saved steps; None if there was nothing to save.
        kept: when it was stopped and what is kept, if that is not steps; ends with `kept` if anything is.

    Attributes:
        again: what the same command would do next.
    """

    quiet: bool | None = None

    def __init__(self, signal: str, exit_code: int, steps: int | None, kept: str | None = None) -> None:
        self.again = "begin again" if steps is None and not (kept or "").endswith("kept") else "go on"
        if kept is None:
            at = "before its end; what it was at is not saved"
            kept = at if steps is None else f"after {steps} steps, which are saved"
        super().__init__(f"stopped by {signal} {kept}")
        self.message = str(self)
        self.hint = f"to {self.again}, type the same command again"
        self.exit_code = exit_code
        self.steps = steps


class EvaluatorError(ZofoError):
    """Points that an evaluator does not support, or a model that it cannot move."""


class NonFiniteError(ZofoError):
    """A loss or score that is not finite. No update was made with it.

    Args:
        what: which loss it was, with the key of its direction.
        step: the step, if known.
        consequence: what was done about it.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        step: int | None = None,
        consequence: str = "the step was abandoned and the weights were not updated",
    ) -> None:
        where = f"step {step}: " if step is not None else ""
        super().__init__(
            f"{where}non-finite {what}; {consequence}",
            "lower the learning rate or epsilon",
        )
        self.what = what
        self.step = step


class OutOfMemoryError(ZofoError):
    """The memory of the processor or the accelerator ran out."""

    exit_code = 1


_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "not enough memory",
    "alloc_failed",
    "storage size calculation overflowed",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. CUDA has an error class for it; other devices and libraries have only texts."""
    if isinstance(error, MemoryError | OutOfMemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(text in str(error).lower() for text in _OF_MEMORY)


def raise_if_out_of_memory(error: BaseException) -> None:
    """Raise OutOfMemoryError for an error that means it, instead of blaming what was being read or run."""
    if out_of_memory(error):
        raise OutOfMemoryError(
            f"memory ran out: {first_line(error)}",
            "lower method.batch_size or training.eval_batch_size, shorten the examples with task.max_length, "
            "or set model.dtype=bfloat16",
        ) from error


_ADVICE = {
    errno.ENOSPC: "make room on that disk, or choose another folder",
    errno.EDQUOT: "make room in your quota, or choose another folder",
    errno.EFBIG: "the file system or a limit (ulimit -f) allows no larger file: choose another folder or raise it",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.EACCES: "see who may read and write it (ls -ld), or choose another folder",
    errno.EPERM: "see who may read and write it (ls -ld), or choose another folder",
    errno.EMFILE: "this process has too many open files: raise the limit (ulimit -n 4096)",
    errno.ENFILE: "the whole system has too many open files: close some, or wait",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk or the network behind it may be failing: see the system's log (dmesg)",
    errno.ESTALE: "the network disk has gone or has changed: see whether it is mounted",
    errno.ELOOP: "its links lead in a circle: see where they go (ls -l)",
    errno.ENOTDIR: "a part of the path is a file: see where it leads (ls -l)",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENOENT: "see whether it is still there, and the folder that this was typed in (pwd)",
    errno.EEXIST: "choose another name",
}


def advice(number: int | None) -> str | None:
    """Advice for a system error by its number (`errno`); None if there is none."""
    return None if number is None else _ADVICE.get(number)


def of_system(error: BaseException) -> ZofoError | None:
    """The message for a system error or a lack of memory; None for any other error."""
    try:
        raise_if_out_of_memory(error)
    except OutOfMemoryError as found:
        return found
    if not isinstance(error, OSError) or error.errno is None:
        return None
    names = " -> ".join(repr(name) for name in (error.filename, error.filename2) if name is not None)
    return ZofoError(
        f"{names}: {error.strerror}" if names else f"the system said: {error.strerror}", advice(error.errno)
    )


def reordered(name: str, known: Iterable[str]) -> str | None:
    """The known name with the same words as `name` in another order: `lr_adapter` for `adapter_lr`."""
    words = sorted(name.split("_"))
    return next((one for one in known if sorted(one.split("_")) == words), None)


def nearest(name: str, known: Iterable[str], alike: float = 0.5) -> str | None:
    """The known name nearest to `name`, or None when nothing is near."""
    matches = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=alike)
    return matches[0] if matches else None


def first_line(error: BaseException) -> str:
    """The first line of a library's error, truncated; its type if it has no text."""
    return truncate((str(error).strip() or type(error).__name__).splitlines()[0], 300)


def listed(values: Iterable[Any]) -> str:
    """The reprs of values, separated by commas."""
    return ", ".join(map(repr, values))


def truncate(text: str, longest: int = 80) -> str:
    """A text for a message; the middle of a long one is left out."""
    half = (longest - len(_CUT)) // 2
    return text if len(text) <= longest else f"{text[:half]}{_CUT}{text[-half:]}"


_CUT = " [...] "


def truncate_repr(value: Any) -> str:
    """The repr of a value, truncated."""
    return truncate(repr(value))


def as_ascii(value: Any) -> str:
    """The ASCII repr of a value of unknown origin, truncated and safe for a terminal."""
    return truncate(ascii(value))


def printable(text: str, longest: int = 200) -> str:
    """A text of unknown origin, truncated, with control characters escaped."""
    return truncate("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: 2 * longest]), longest)


@contextmanager
def error_context(file: str, kind: type[ZofoError] = ConfigError) -> Iterator[None]:
    """Context that prefixes errors of this kind with the name of the file."""
    try:
        yield
    except kind as error:
        error.message = f"{file}: {error.message}"
        raise
