"""The command line."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake gives one message and an exit code, never a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # warnings about kernels of other machines
        logging.getLogger(name).setLevel(logging.ERROR)
    with _terminating() as terminated:
        try:
            from zofo.cli.terminal import guarded_streams

            with guarded_streams():
                code = _flushed(_run(arguments, terminated))
        except KeyboardInterrupt:  # before anything can be said, or again while it is
            code = _code_of(terminated)
    sys.exit(code)


def _run(arguments: Sequence[str] | None, terminated: Sequence[int]) -> int:
    """Run a command, and print errors; returns the exit code."""
    from zofo.cli.terminal import is_heard, linger
    from zofo.errors import Interrupted, ZofoError, of_system

    try:
        _check_working_folder()
        from zofo.cli.app import command  # takes seconds, in which there may be Ctrl-C or no memory

        command(arguments)
    except BrokenPipeError:  # nobody reads any more, as with `| head`
        return 1
    except (ZofoError, OSError, MemoryError, RuntimeError) as problem:
        error = problem if isinstance(problem, ZofoError) else of_system(problem)
        if error is None:
            raise
        if problem is not error or is_heard(error.quiet):
            _say("error: ", "bold red", error.message)
            if error.hint:
                _say("hint: ", "bold", error.hint)
        else:
            linger()
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted(terminated)
    except SystemExit as end:
        unsaid = end.code == _INTERRUPTED and not isinstance(end.__cause__, Interrupted)
        return _interrupted(terminated) if unsaid else int(end.code or 0)
    return 0


@contextmanager
def _terminating() -> Iterator[Sequence[int]]:
    """Context in which SIGTERM works like Ctrl-C, unless there is a better handler.

    Partly written files are deleted, and one sentence is printed. Yields a list, which receives the exit code.
    """
    codes: list[int] = []

    def terminate(number: int, _frame: object) -> None:
        codes.append(128 + number)
        raise KeyboardInterrupt

    alone = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if alone:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield codes
    finally:
        if alone:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_working_folder() -> None:
    """Raise ZofoError if the working folder has been deleted: libraries fail in it, some silently."""
    from zofo.errors import ZofoError

    try:
        os.getcwd()
    except OSError as error:
        raise ZofoError("the folder that this was typed in is gone", "go into another one: cd") from error


def _say(kind: str, style: str, text: str) -> None:
    from zofo.cli.options import err

    first, *more = text.split("\n")
    rank = os.environ.get("RANK", "0")
    err.say(*([f"process {rank}: "] if rank not in ("", "0") else []), (kind, style), first)
    for line in more:  # of a library, or of a file that would pass for another message
        err.say("  ", line)


def _interrupted(terminated: Sequence[int]) -> int:
    from zofo.cli.options import err
    from zofo.cli.terminal import is_heard, linger

    if is_heard(None):
        err.say("interrupted; type the same command again, and it begins again, or goes on from what was saved")
    elif not terminated:  # else the launcher is stopping all of them already
        linger()
    return _code_of(terminated)


def _code_of(terminated: Sequence[int]) -> int:
    return terminated[-1] if terminated else _INTERRUPTED


def _flushed(code: int) -> int:
    """The exit code, after flushing all output; 1 if that failed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:  # otherwise the interpreter would try again at exit, and report it
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            code = code or 1
    return code
