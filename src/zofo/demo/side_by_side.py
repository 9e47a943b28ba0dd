"""Runs of the demo, each in a process of its own, two at a time; what they say is shown one after the other."""

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
_LOOKED = 0.2  # seconds between two looks at what runs have said


@dataclass(frozen=True)
class Share:
    """How many runs go at a time, and how many of the processor's threads each of them has."""

    runs: int
    threads: int

    @classmethod
    def here(cls) -> Share:
        """Two runs, or one where there is one processor or little memory: two threads of one run gain less."""
        threads, room = torch.get_num_threads(), psutil.virtual_memory().available >= _ROOM
        runs = 2 if room and threads >= 2 else 1
        return cls(runs, threads // runs)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"two runs at a time on {threads} each" if self.runs > 1 else f"one run at a time on {threads}"


def train_each(
    folder: Path, contenders: Sequence[DemoRun], queries: int | None, share: Share, console: Console
) -> Generator[RunFolder | None, None, None]:
    """Train them in child processes, so that the memory of each is its own, and give each back in this order.

    What a run says goes to standard error, once those before it have ended. Whoever leaves the iterator early ends the
    processes.

    Args:
        folder: of the demo; each run has a folder in it, by its name.
        queries: the most that a run may spend; None for what it says itself.

    Yields:
        A run that has ended; None for one that failed, as has been said.
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
    """A process that trains, and the files beside its run: its configuration, and what it says."""

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
        """With which it ended; None while it goes on."""
        return self.process.exitcode

    def news(self, over: bool) -> str:
        """What it has said since the last time, as far as its last whole line unless it is over."""
        with self.log.open("rb") as file:
            file.seek(self.seen)
            said = file.read()
        told = said if over else said[: said.rfind(b"\n") + 1]
        self.seen += len(told)
        return told.decode(errors="replace")

    def end(self) -> None:
        """End it where it goes on, and remove the files beside its run."""
        self.process.kill()
        self.process.join()
        for path in (self.file, self.log):
            path.unlink(missing_ok=True)


def _train(folder: Path, arguments: Sequence[str], log: Path, threads: int) -> None:
    """What such a process does: `zofo train`, in the folder of the demo."""
    with log.open("ab") as told:
        for stream in (1, 2):
            os.dup2(told.fileno(), stream)
    os.chdir(folder)
    begin_worker(threads)
    sys.argv[1:] = arguments
    runpy.run_module("zofo", run_name="__main__")
