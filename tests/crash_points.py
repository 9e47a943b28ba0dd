"""Runs in forks of this process, which fail or are killed at a chosen point of a save.

A fork starts with everything imported, so that a run takes a fraction of a second. Points are counted within one save,
or in what a run writes at its end: before and after every fsync, rename, new folder and removal, and before, in the
middle of and after every write of a file.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pathlib
import posix
import resource
import shutil
import signal
import time
import traceback
import warnings
from pathlib import Path

REMOVALS = ("os.unlink", "os.rmdir")


class Points:
    """What happens in one save of a run, or at its "end", and what is done at one point of it."""

    def __init__(self, save, point, act):
        self.save, self.point, self.act = save, point, act
        self.saves, self.inside, self.names = 0, False, []

    def reach(self, name):
        if self.inside:
            self.names.append(name)
            if self.point is not None and len(self.names) > self.point:
                self.act(name)


def watch(points):
    """Let every call that changes a disk say so."""
    from zofo.training import RunFolder, run_state
    from zofo.training.checkpoint import Checkpoints

    save, write_outcome = Checkpoints.save, RunFolder.write_outcome

    def counted(self, *arguments):
        points.saves += 1
        points.inside = points.saves == points.save
        try:
            return save(self, *arguments)
        finally:
            points.inside = False

    def ending(self, *arguments):
        points.inside = points.save == "end"
        return write_outcome(self, *arguments)

    Checkpoints.save, RunFolder.write_outcome = counted, ending

    def around(owner, name):
        call = getattr(owner, name)

        def wrapped(*arguments, **options):
            points.reach(f"before {owner.__name__}.{name}")
            result = call(*arguments, **options)
            points.reach(f"after {owner.__name__}.{name}")
            return result

        setattr(owner, name, wrapped)

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        around(os, name)

    def in_halves(owner, name, place):
        call = getattr(owner, name)

        def wrapped(*arguments, **options):
            path = Path(arguments[place])
            points.reach(f"before {name} {path.name}")
            result = call(*arguments, **options)
            if points.inside:
                data = path.read_bytes()
                os.truncate(path, len(data) // 2)
                points.reach(f"halfway {name} {path.name}")
                with path.open("wb") as file:  # and not by `write_bytes`, which is watched
                    file.write(data)
            points.reach(f"after {name} {path.name}")
            return result

        setattr(owner, name, wrapped)

    in_halves(pathlib.Path, "write_text", 0)
    in_halves(pathlib.Path, "write_bytes", 0)
    in_halves(run_state, "save_file", 1)
    in_halves(shutil, "copyfile", 1)


def killing(_name):
    os.kill(os.getpid(), signal.SIGKILL)


def failing(code):
    """From the point on, every write fails as on a full or a read-only disk."""
    from safetensors import SafetensorError

    def fail(name):
        if not name.startswith("before") or any(removal in name for removal in REMOVALS):
            return
        if "save_file" in name:
            text = f"{os.strerror(code)} (os error {code})"
            raise SafetensorError(f"Error while serializing: I/O error: {text}")
        raise OSError(code, os.strerror(code))

    return fail


class Asking(io.StringIO):
    """A console that sends the process a signal, so many times, when it is told of a step."""

    def __init__(self, number, times, step):
        super().__init__()
        self.number, self.times, self.step = number, times, step

    def write(self, text):
        if f"step {self.step}/" in text:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return super().write(text)


def run(request):
    """Train; gives what the fork has to say about it."""
    from rich.console import Console

    from zofo.errors import Interrupted, ZofoError
    from zofo.training import read_config, train

    how = request.get("how", "kill")
    points = Points(
        request.get("save"), request.get("point"), killing if how == "kill" else failing(errno.__dict__[how])
    )
    shown = io.StringIO()
    if "signal" in request:
        shown = Asking(request["signal"], request["times"], request["step"])
    if request.get("save"):
        watch(points)
    said = {}
    try:
        if "largest_file" in request:  # in bytes; the next byte is refused by the system, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], resource.RLIM_INFINITY))
        train(read_config(request["config"], request.get("overrides", [])), Console(file=shown))
    except (ZofoError, Interrupted) as error:
        said = {"error": type(error).__name__, "message": error.message, "hint": error.hint, "code": error.exit_code}
    except BaseException:  # noqa: BLE001  # a traceback is what no test expects
        said = {"error": "traceback", "message": traceback.format_exc()}
    return {**said, "points": points.names, "shown": shown.getvalue()}


def forked(config, *overrides, **request):
    """Train in a fork; gives its exit status (minus the signal's number) and what it said.

    Args:
        request: `kill_after`, seconds; the others are those of `run`.
    """
    request |= {"config": str(config), "overrides": list(overrides)}
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which a run does not use
        child = os.fork()
    if child == 0:
        os.close(reading)
        os.fsync = posix.fsync  # which tests leave out
        said = run(request)
        with os.fdopen(writing, "w") as out:
            out.write(json.dumps(said))
        os._exit(said.get("code", 0))
    os.close(writing)
    if "kill_after" in request:
        time.sleep(request["kill_after"])
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as answer:
        text = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, **(json.loads(text) if text else {})}
