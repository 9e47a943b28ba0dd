"""Runs of the demo, each in its own process, two at a time; their output is shown in order."""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.text import Text

from zofo.demo.scenes import DemoRun
from zofo.interpreters import LIBRARIES, begin_worker, safe_path, worker_context
from zofo.training import RunFolder
from zofo.trees import format_yaml

_ROOM = 4 << 30  # bytes of free memory, for two runs at a time
_LOOKED = 0.2  # seconds between reading the output of runs


@dataclass(frozen=True)
class Share:
    """The number of runs at a time, and of threads for each."""

    runs: int
    threads: int

    @classmethod
    def here(cls) -> Share:
        """Two runs at a time, or one if there is one core or little memory: a second thread for one run gains less."""
        threads, room = torch.get_num_threads(), psutil.virtual_memory().available >= _ROOM
        runs = 2 if room and threads >= 2 else 1
        return cls(runs, threads // runs)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"two runs at a time on {threads} each" if self.runs > 1 else f"one run at a time on {threads}"


def train_each(
    folder: Path, contenders: Sequence[DemoRun], queries: int | None, share: Share, console: Console
) -> Generator[RunFolder | None, None, None]:
    """Train runs in child processes, so that each has its own memory, and yield each in this order.

    The output of a run goes to standard error after the runs before it have ended. Closing the iterator early stops the
    processes.

    Args:
        folder: folder of the demo; each run has a subfolder with its name.
        queries: maximum queries of a run; None for its own setting.

    Yields:
        A finished run; None for one that failed, after its message was shown.
    """
    waiting, going = deque(contenders), dict[str, _Child]()
    try:
        for shown in contenders:
            console.print(Text.assemble("\n", (shown.name, "bold")))
            over = False
            while not over:
                while waiting and sum(child.code is None for child in going.values()) < share.runs:
                    one = waiting.popleft()
                    going[one.name] = _Child.start(folder, one, queries, share.threads)
                over = going[shown.name].code is not None
                print(going[shown.name].news(over), end="", file=sys.stderr, flush=True)
                time.sleep(0 if over else _LOOKED)
            code = going[shown.name].code
            going.pop(shown.name).end()
            if code:
                console.print(f"{shown.name} failed: its process ended with {code}", markup=False)
            yield None if code else RunFolder.open(folder / shown.name)
    finally:  # also where this process is asked to stop
        for child in going.values():
            child.end()


@dataclass
class _Child:
    """A training process, and the files beside its run: its configuration and its output."""

    process: BaseProcess
    file: Path
    log: Path
    seen: int = 0

    @classmethod
    def start(cls, folder: Path, contender: DemoRun, queries: int | None, threads: int) -> _Child:
        tree = {**contender.tree, "output_dir": str(folder / contender.name)}
        training = tree.get("training", {})
        if queries is not None and "max_queries" in training:
            tree["training"] = {**training, "max_queries": min(queries, training["max_queries"])}
        file, log = (folder / f"{contender.name}.{kind}" for kind in ("yaml", "log"))
        file.write_text(format_yaml(tree), encoding="utf-8")
        options = [option for reward in contender.rewards for option in ("--reward", reward)]
        log.touch()
        given = (folder, ["train", str(file), *options], log, threads)
        process = worker_context(LIBRARIES).Process(target=_train, args=given)
        with safe_path():
            process.start()
        return cls(process, file, log)

    @property
    def code(self) -> int | None:
        """Its exit code; None while it is running."""
        return self.process.exitcode

    def news(self, over: bool) -> str:
        """New output since the last call, up to the last complete line unless it has ended."""
        with self.log.open("rb") as file:
            file.seek(self.seen)
            said = file.read()
        told = said if over else said[: said.rfind(b"\n") + 1]
        self.seen += len(told)
        return told.decode(errors="replace")

    def end(self) -> None:
        """Stop it if it is running, and delete the files beside its run."""
        self.process.kill()
        self.process.join()
        for path in (self.file, self.log):
            path.unlink(missing_ok=True)


def _train(folder: Path, arguments: Sequence[str], log: Path, threads: int) -> None:
    """The main function of such a process: `zofo train`, in the folder of the demo."""
    with log.open("ab") as told:
        for stream in (1, 2):
            os.dup2(told.fileno(), stream)
    os.chdir(folder)
    begin_worker(threads)
    sys.argv[1:] = arguments
    runpy.run_module("zofo", run_name="__main__")
