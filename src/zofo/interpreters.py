"""Python interpreters that zofo starts: none imports anything from the folder that it is called in.

A `json.py` or `torch.py` that lies there, as in somebody's archive of data, would otherwise be taken for the library.
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
    """The command of a Python interpreter that runs some code."""
    if _HAS_SAFE_PATH:
        return [sys.executable, "-P", "-c", code, *arguments]
    return [sys.executable, "-c", f"import sys; sys.path.pop(0); {code}", *arguments]


@contextmanager
def safe_path() -> Iterator[None]:
    """While it is open, the same holds for every interpreter that is started, from Python 3.11 on."""
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
    """How processes that make runs are started: from one that has imported what they need, once for all of them.

    That process only imports, so it has no threads that a fork would lose but those of OpenBLAS, which starts them
    again. Some libraries ask an accelerator what it is while they are imported, and a fork could not use it then: where
    there is one, elsewhere than on Linux, and before Python 3.11, which has no safe path, every process begins anew.

    Args:
        imports: names of modules; the first call that names any decides for this process.
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
    """While it is open, Ctrl-C means nothing, and to processes that are started in it never will."""
    if threading.current_thread() is not threading.main_thread():  # which alone may change that
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def begin_worker(threads: int) -> None:
    """What such a process does first: it leaves Ctrl-C to its parent, and does not outlive it.

    Args:
        threads: of its computations, where OMP_NUM_THREADS does not say how many.
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
