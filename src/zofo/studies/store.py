"""The folder of a study: whose it is, who works in it, and which runs are done."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from zofo.errors import RunError
from zofo.studies.grid import Run
from zofo.studies.outcome import Outcome

_STUDY, _LOCK = "study.json", "study.lock"


class Store:
    """The folder of a study: `study.json` says which, `runs/` holds a folder for each run.

    Args:
        folder: made by `claim` where it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"

    def claim(self, name: str, config: Any) -> bool:
        """Take the folder for a study.

        Args:
            name: of the study.
            config: the study, as plain data.

        Returns:
            Whether the study was another one when it was last run here.

        Raises:
            RunError: the folder is another study's or something else, or cannot be written.
        """
        path = self.folder / _STUDY
        content = json.loads(json.dumps({"study": name, "config": config}))  # as it will be read: keys are text
        try:
            if not path.is_file():
                if self.folder.exists() and any(entry.name != _LOCK for entry in self.folder.iterdir()):
                    raise RunError(
                        f"{str(self.folder)!r} exists and holds no study", "choose another folder with --out"
                    )
                self.runs.mkdir(parents=True, exist_ok=True)
                before: Any = content
            else:
                before = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(before, dict) or before.get("study") != name:
                    other = before.get("study") if isinstance(before, dict) else None
                    raise RunError(
                        f"{str(self.folder)!r} holds the study {other!r}, not {name!r}",
                        "choose another folder with --out",
                    )
            write_whole(path, json.dumps(content, indent=1) + "\n")
        except (OSError, ValueError) as error:
            raise RunError(f"cannot use {str(self.folder)!r} for a study: {error}") from error
        return bool(before != content)

    def outcome(self, run: Run) -> Outcome | None:
        """What came of a run; None where it has not been made.

        A run is known by its whole configuration, whatever the study calls it now.
        """
        for folder in sorted(self.runs.glob(f"*-{run.digest}")):
            found = Outcome.read(folder)
            if found is not None and found.config == run.tree:
                return found
        return None

    def room_for(self, run: Run) -> Path:
        """A folder for a run that does not exist; what was left of an earlier attempt is removed."""
        for folder in self.runs.glob(f"*-{run.digest}"):
            shutil.rmtree(folder)
        self.runs.mkdir(exist_ok=True)
        return self.runs / run.id

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While it is open, no other process may run a study in the folder.

        Raises:
            RunError: another one does, or the folder cannot be written.
        """
        path = self.folder / _LOCK
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _take(path)
        except OSError as error:
            raise RunError(f"cannot use {str(self.folder)!r} for a study: {error}") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _take(path: Path) -> None:
    """Make the lock file; one whose process is gone is taken over."""
    own = psutil.Process()
    content = {"pid": own.pid, "started": own.create_time(), "host": socket.gethostname()}
    for _ in range(2):
        try:
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "w", encoding="utf-8") as file:
                file.write(json.dumps(content))
            return
        except FileExistsError:
            if (holder := _holder(path)) is not None:
                raise RunError(
                    f"{holder} is running a study in {str(path.parent)!r}",
                    f"wait for it or stop it; if it is gone, remove {path}",
                ) from None
            path.unlink(missing_ok=True)
    raise RunError(f"another process has just begun a study in {str(path.parent)!r}", "wait for it or stop it")


def _holder(path: Path) -> str | None:
    """Who holds a lock file; None where the process is gone."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pid, started, host = int(content["pid"]), float(content["started"]), str(content["host"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return "another process"  # which is just writing it
    if host != socket.gethostname():
        return f"a process on {host}"
    try:
        alive = abs(psutil.Process(pid).create_time() - started) < 1  # or its number has been given to another one
    except psutil.NoSuchProcess:
        return None
    return f"process {pid}" if alive else None
