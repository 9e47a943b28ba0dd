"""The folder of a study: whose it is, who works in it, and which runs are done."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from zofo.config import read_json_object
from zofo.errors import RunError
from zofo.filesystem import atomic_write_text, locked
from zofo.studies.content import Content
from zofo.studies.result import FILE, Outcome
from zofo.studies.trial import StudyRun
from zofo.training.run_record import WEIGHTS

_STUDY, _LOCK, _WHY = "study.json", "study.lock", "what-changed.txt"


class Store:
    """The folder of a study: `study.json` says which, `runs/` holds a folder for each run.

    Args:
        folder: made by `claim` where it does not exist.
        content: what runs would be made from now; a result of something else is none. None takes all as they are.
    """

    def __init__(self, folder: Path, content: Content | None = None) -> None:
        self.folder, self._content = folder, content
        self.runs, self._outdated = folder / "runs", folder / "outdated"
        self.changed: dict[str, str] = {}
        """What has changed since a kept result was made, by digest."""

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
        content = json.loads(json.dumps({"study": name, "config": config}))  # as it will be read: keys are text
        try:
            if (self.folder / _STUDY).is_file():
                before = self.check_study(name)
            else:
                self._check_no_foreign_files()
                self.runs.mkdir(parents=True, exist_ok=True)
                before = content
            atomic_write_text(self.folder / _STUDY, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise RunError(f"cannot use {str(self.folder)!r} for a study: {error}") from error
        return bool(before != content)

    def check_study(self, name: str) -> dict[str, Any]:
        """What is known of the study in the folder; raises RunError where it holds none, or another."""
        if not (self.folder / _STUDY).is_file():
            raise RunError(f"{str(self.folder)!r} holds no study", "run it first, without --report-only")
        content = read_json_object(self.folder / _STUDY)
        if content.get("study") != name:
            message = f"{str(self.folder)!r} holds the study {content.get('study')!r}, not {name!r}"
            raise RunError(message, "choose another folder with --out")
        return content

    def _check_no_foreign_files(self) -> None:
        """Raises RunError for a folder in which there is something, and no study."""
        if not self.folder.is_dir() or (self.folder / _STUDY).is_file():
            return
        if any(entry.name != _LOCK for entry in self.folder.iterdir()):
            raise RunError(f"{str(self.folder)!r} exists and holds no study", "choose another folder with --out")

    def outcome(self, run: StudyRun, compared: bool = True) -> Outcome | None:
        """What came of a run; None where it has not been made, or was made from something else than there is now.

        A run is known by its whole configuration, whatever the study calls it now, and by the content of what it names.

        Args:
            run: which one.
            compared: whether its content is looked at; not of one that was made just now.
        """
        for folder in sorted(self.runs.glob(f"*-{run.digest}")):
            found = Outcome.read(folder)
            if found is None or not run.was_made_with(found.config):
                continue
            looked_at = self._content if compared and found.is_final else None
            what = "" if looked_at is None else looked_at.changed(run, found)
            if not what:
                return found
            self.changed[run.digest] = what
        return None

    @property
    def count(self) -> int:
        """How many results there are, of this study or of what it was before."""
        return sum(1 for _ in self.runs.glob(f"*/{FILE}"))

    def outcomes(self, runs: Sequence[StudyRun]) -> dict[str, Outcome]:
        """The outcomes of those runs that are done, by digest."""
        found = {run.digest: self.outcome(run) for run in runs}
        if self._content is not None:
            self._content.release()
        return {digest: outcome for digest, outcome in found.items() if outcome is not None}

    def room_for(self, run: StudyRun) -> Path:
        """A folder for a run that does not exist; what was left of an earlier attempt is removed.

        A result of something else than there is now is not: it is put into `outdated/`, with what has changed.
        """
        try:
            for folder in self.runs.glob(f"*-{run.digest}"):
                if run.digest in self.changed:
                    self._put_aside(folder, self.changed[run.digest])
                else:
                    shutil.rmtree(folder)
            self.runs.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write into {str(self.runs)!r}: {error}") from error
        return self.runs / run.id

    def _put_aside(self, folder: Path, what: str) -> None:
        self._outdated.mkdir(exist_ok=True)
        names = (folder.name + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        place = next(self._outdated / name for name in names if not (self._outdated / name).exists())
        folder.rename(place)
        atomic_write_text(place / _WHY, what + "\n")

    def outdated(self) -> dict[str, str]:
        """Results that were made again, since what they were made from has changed: by folder, what has."""
        return {
            file.parent.name: file.read_text(encoding="utf-8").strip()
            for file in sorted(self._outdated.glob(f"*/{_WHY}"))
        }

    def drop_weights(self, run: StudyRun) -> None:
        """Remove the trained weights of a run, of its last step and of its best; what they scored is known."""
        for folder in self.runs.glob(f"*-{run.digest}"):
            for place in (folder, folder / "best"):
                with suppress(OSError):  # they take room, and nothing else
                    (place / WEIGHTS).unlink(missing_ok=True)

    def locked(self) -> AbstractContextManager[None]:
        """While it is open, no other process may run a study in the folder.

        Raises:
            RunError: another one does, or the folder cannot be written.
        """
        self._check_no_foreign_files()
        return locked(self.folder / _LOCK, "running a study in")
