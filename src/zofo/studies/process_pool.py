"""Make the runs of a study, one after the other or several at a time."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from zofo.errors import Interrupted, NonFiniteError, RunError, ZofoError
from zofo.filesystem import cannot_write
from zofo.interpreters import begin_worker, safe_path, worker_context
from zofo.signals import Signals
from zofo.studies.grid import execution_of
from zofo.studies.result import Outcome, made_from
from zofo.studies.store import Store
from zofo.studies.trial import StudyRun

_KEPT = "before its end; what its runs have saved is kept"
_tell: list[Callable[[tuple[int, str]], None]] = []  # in a worker: gets its process id and the run that it begins


def _begin(threads: int, begun: Any) -> None:
    begin_worker(threads)
    _tell.append(begun.put)


def perform(tree: dict[str, Any], folder: str, remote_code: bool) -> None:
    """Make one run and write its outcome; a run that raises an error has failed."""
    path, execution = Path(folder), execution_of(tree)
    for tell in _tell:
        tell((os.getpid(), path.name))
    try:
        outcome = replace(
            execution.execute(execution.config(tree), path, remote_code), config=tree, identity=made_from(path)
        )
    except ZofoError as error:
        curve = execution.curve(path) if isinstance(error, NonFiniteError) else []
        failed = {"error": type(error).__name__, "message": error.message, "hint": error.hint or ""}
        outcome = Outcome(config=tree, curve=curve, failed=failed, identity=made_from(path))
    except Exception as error:  # noqa: BLE001  # such as memory that ran out: the other runs go on, and the report says so
        message = f"{type(error).__name__}: {error}"
        outcome = Outcome(config=tree, failed={"error": type(error).__name__, "message": message})
    try:
        path.mkdir(parents=True, exist_ok=True)
        outcome.write(path)
    except OSError as error:
        raise cannot_write(path, error, "what came of a run into") from error


def _perform(tree: dict[str, Any], folder: str, remote_code: bool) -> None:
    """The same in a worker process. SIGTERM ends it once the run is saved; otherwise it would take the next run."""
    try:
        perform(tree, folder, remote_code)
    except Interrupted:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)


class Workers:
    """Makes runs, one after the other in this process, or several at a time in worker processes.

    A context manager: when it exits by an error or an interrupt, running runs are stopped. Inside, SIGTERM and Ctrl-C
    raise Interrupted; a run that is just finishing is saved first.
    """

    def __init__(self, jobs: int, remote_code: bool) -> None:
        self._jobs, self._remote_code = jobs, remote_code
        self.ready = 0.0  # by `time.perf_counter`, when the first process could begin a run
        self._before = set(multiprocessing.active_children())
        self._pool: ProcessPoolExecutor | None = None
        self._begun: Any = None  # the queue of processes and runs that they began
        self._signals, self._opened = Signals(), ExitStack()

    def __enter__(self) -> Workers:
        self._opened.enter_context(self._signals.raise_on_signal(lambda: _KEPT))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._opened.close()
        if self._pool is None:
            return
        if kind is not None:
            for child in set(multiprocessing.active_children()) - self._before:
                child.terminate()
        self._pool.shutdown(cancel_futures=True)

    def make(self, runs: Sequence[StudyRun], store: Store) -> Iterator[StudyRun]:
        """Make runs, and yield each when it is finished.

        Args:
            runs: runs that are not done yet.

        Raises:
            RunError: a process died.
            Interrupted: the process was asked to stop.
        """
        if not runs:
            return
        given = [(run.tree, str(store.room_for(run)), self._remote_code) for run in runs]
        if self._jobs == 1:
            for run, what in zip(runs, given, strict=True):
                perform(*what)
                yield run
                self._signals.check(None)
            return
        if self._pool is None:
            self._opened.enter_context(safe_path())
            threads = max(1, (os.cpu_count() or 1) // self._jobs)
            imports = {name for run in runs for name in run.execution.libraries}
            with _starting():
                context = worker_context(sorted(imports))
                self._begun = context.SimpleQueue()
                begin = functools.partial(_begin, threads, self._begun)
                self._pool = ProcessPoolExecutor(self._jobs, context, initializer=begin)
                self._pool.submit(os.getpid).result()
            self.ready = time.perf_counter()
        with _starting():
            waiting = {self._pool.submit(_perform, *what): run for run, what in zip(runs, given, strict=True)}
            self._pool.submit(os.getpid)  # a pool watches the last process that it began only once it is given more
        children, at = set(multiprocessing.active_children()) - self._before, dict[int | None, str]()
        for done in as_completed(waiting):
            while not self._begun.empty():
                at.update([self._begun.get()])
            try:
                done.result()
            except BrokenProcessPool as error:
                self._pool.shutdown()  # once all have ended, it is known with what
                raise RunError(
                    f"{_who_died(children, at)}; the runs that are over are kept",
                    "type the same command again to resume, with a smaller --jobs where memory ran out",
                ) from error
            yield waiting[done]


def _who_died(children: Iterable[BaseProcess], at: Mapping[int | None, str]) -> str:
    """Which run's process ended by itself, and how; the pool ends the others with SIGTERM."""
    died = ((child.pid, child.exitcode) for child in children if child.exitcode not in (None, 0, -signal.SIGTERM))
    process, code = next(died, (None, -signal.SIGTERM))
    by = signal.Signals(-code).name if code is not None and -code in list(signal.Signals) else f"exit code {code}"
    why = ", most likely since memory ran out" if code == -signal.SIGKILL else ""
    run = at.get(process)
    return f"the process that made {f'the run {run}' if run else 'a run'} was ended by {by}{why}"


@contextmanager
def _starting() -> Iterator[None]:
    """Context that explains why processes cannot be started; their locks are in shared memory, which may be missing."""
    try:
        yield
    except (OSError, ImportError, EOFError) as error:
        raise RunError(
            f"cannot start processes for several runs at a time: {error} (see also whether /dev/shm can be written)",
            "leave out --jobs: runs are then made one after the other, in this process",
        ) from error
