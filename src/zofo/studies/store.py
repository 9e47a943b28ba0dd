"""The folder of a study: whose it is, who works in it, and which runs are done."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from zofo.errors import RunError, advice
from zofo.studies.outcome import Outcome
from zofo.studies.run import Run
from zofo.training.disk import write_whole
from zofo.training.lock import locked
from zofo.training.run import WEIGHTS

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
                self._refuse_foreign()
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
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"cannot use {str(self.folder)!r} for a study: {error}") from error
        return bool(before != content)

    def _refuse_foreign(self) -> None:
        """Raises RunError for a folder in which there is something, and no study."""
        if not self.folder.is_dir() or (self.folder / _STUDY).is_file():
            return
        if any(entry.name != _LOCK for entry in self.folder.iterdir()):
            raise RunError(f"{str(self.folder)!r} exists and holds no study", "choose another folder with --out")

    def outcome(self, run: Run) -> Outcome | None:
        """What came of a run; None where it has not been made.

        A run is known by its whole configuration, whatever the study calls it now.
        """
        for folder in sorted(self.runs.glob(f"*-{run.digest}")):
            found = Outcome.read(folder)
            if found is not None and run.was_made_with(found.config):
                return found
        return None

    def room_for(self, run: Run) -> Path:
        """A folder for a run that does not exist; what was left of an earlier attempt is removed."""
        try:
            for folder in self.runs.glob(f"*-{run.digest}"):
                shutil.rmtree(folder)
            self.runs.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write into {str(self.runs)!r}: {error}") from error
        return self.runs / run.id

    def drop_weights(self, run: Run) -> None:
        """Remove the trained weights of a run, of its last step and of its best; what they scored is known."""
        for folder in self.runs.glob(f"*-{run.digest}"):
            for place in (folder, folder / "best"):
                with suppress(OSError):  # they take room, and nothing else
                    (place / WEIGHTS).unlink(missing_ok=True)

    def refuse_others(self, name: str) -> None:
        """Raises RunError for a folder that holds no study, or another."""
        try:
            content = json.loads((self.folder / _STUDY).read_text(encoding="utf-8"))
            found = content["study"]
        except FileNotFoundError:
            raise RunError(f"{str(self.folder)!r} holds no study", "run it first, without --report") from None
        except OSError as error:
            raise RunError(
                f"cannot read {str(self.folder / _STUDY)!r}: {error.strerror}", advice(error.errno)
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{str(self.folder / _STUDY)!r} is damaged: {error}") from error
        if found != name:
            raise RunError(f"{str(self.folder)!r} holds the study {found!r}, not {name!r}", "say where with --out")

    def locked(self) -> AbstractContextManager[None]:
        """While it is open, no other process may run a study in the folder.

        Raises:
            RunError: another one does, or the folder cannot be written.
        """
        self._refuse_foreign()
        return locked(self.folder / _LOCK, "running a study in")
