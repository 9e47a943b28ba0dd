"""Work in several processes as a launcher starts them, forked from this one with all that it has imported."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path


class Started:
    """Processes that are at work; each leaves a file with what it found.

    Args:
        work: rank -> JSON; what it raises is found as `error`, `message` and `quiet`.
        folder: for the files.
        size: how many processes.
    """

    def __init__(self, work, folder, size=2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._files = [Path(folder) / f"found-{port}-{rank}.json" for rank in range(size)]
        self.pids = []
        for rank, file in enumerate(self._files):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the work does not use
                pid = os.fork()
            if pid == 0:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
                place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in place.items()})
                file.write_text(json.dumps(_found(work, rank)))
                os._exit(0)
            self.pids.append(pid)

    def kill(self, rank):
        os.kill(self.pids[rank], signal.SIGKILL)

    def results(self, seconds=60):
        """What each found; None of one that was killed. One that does not end in time is a failure."""
        deadline, waiting = time.monotonic() + seconds, dict(enumerate(self.pids))
        while waiting and time.monotonic() < deadline:
            for rank, pid in list(waiting.items()):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del waiting[rank]
            time.sleep(0.01)
        for pid in waiting.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert not waiting, f"processes {list(waiting)} did not end in {seconds} s"
        return [json.loads(file.read_text()) if file.is_file() else None for file in self._files]


def together(work, folder, size=2):
    """What each of some processes found."""
    return Started(work, folder, size).results()


def _found(work, rank):
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from zofo.errors import Interrupted, ZofoError

    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    try:
        return work(rank)
    except (ZofoError, Interrupted) as error:
        return {"error": type(error).__name__, "message": error.message, "quiet": error.quiet}
    except BaseException:  # noqa: BLE001  # a traceback is what no test expects
        return {"error": "traceback", "message": traceback.format_exc()}


def say_and_end(folder, arguments, log, threads):
    """In place of a run of the demo, by its name: one ends at once, one soon, and one never."""
    name = Path(arguments[1]).stem
    log.write_text(f"{name} says\n")
    time.sleep({"a": 0.5, "c": 60}.get(name, 0))
