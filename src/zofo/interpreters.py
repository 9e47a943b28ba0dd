"""Python interpreters that zofo starts: none imports anything from the working folder.

A `json.py` or `torch.py` there, as in somebody's archive of data, would otherwise be imported instead of the library.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

_HAS_SAFE_PATH = sys.version_info >= (3, 11)  # the option -P, and PYTHONSAFEPATH


def python_command(code: str, *arguments: str) -> list[str]:
    """The command of a Python interpreter that runs code."""
    if _HAS_SAFE_PATH:
        return [sys.executable, "-P", "-c", code, *arguments]
    return [sys.executable, "-c", f"import sys; sys.path.pop(0); {code}", *arguments]


@contextmanager
def safe_path() -> Iterator[None]:
    """Context in which started interpreters do not import from the working folder, from Python 3.11 on."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


LIBRARIES = ("zofo.training", "peft", "transformers.modeling_utils")
"""What a run of a language model imports, which takes six seconds of a processor."""


def worker_context(imports: Sequence[str]) -> ForkServerContext | SpawnContext:
    """The multiprocessing context of workers: a fork server that has imported the needed modules once.

    The server only imports, so a fork loses no threads except those of OpenBLAS, which restarts them. With an
    accelerator, which some libraries initialise on import so that a fork could not use it, and also outside Linux and
    before Python 3.11, which has no safe path, every process is spawned instead.

    Args:
        imports: names of modules; only the first call with any has an effect in this process.
    """
    import torch

    if sys.platform != "linux" or not _HAS_SAFE_PATH or torch.accelerator.is_available():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zofo.fork_server", *imports])
    with safe_path(), _interrupts_ignored():
        forkserver.ensure_running()
    return context


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Context in which Ctrl-C is ignored, also by processes that are started in it."""
    if threading.current_thread() is not threading.main_thread():  # which alone may change that
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def begin_worker(threads: int) -> None:
    """Set up a worker: it leaves Ctrl-C to its parent, and ends with it.

    Args:
        threads: number of threads, unless OMP_NUM_THREADS is set.
    """
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "OMP_NUM_THREADS" not in os.environ:  # which torch reads by itself
        torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
