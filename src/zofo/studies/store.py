"""The folder of a study: its owner, its lock, its finished runs, and whether these are up to date."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from zofo.config import read_json_object
from zofo.errors import RunError, ZofoError
from zofo.filesystem import atomic_write_text, cannot_write, locked
from zofo.models import LoadedModel, ModelConfig, load_model
from zofo.studies.result import FILE, Outcome, made_from
from zofo.studies.trial import StudyRun
from zofo.training import RunFolder
from zofo.training.identity import Identity, changes, model_identity, said
from zofo.training.run_record import WEIGHTS

_STUDY, _LOCK, _WHY = "study.json", "study.lock", "what-changed.txt"


class Store:
    """The folder of a study: `study.json` identifies it, `runs/` has a folder for each run.

    Args:
        folder: the folder; `claim` creates it if necessary.
        content: what runs would be made from now; results of anything else do not count. None accepts all.
        warn: called for damaged files of a stopped run, which are not used.
    """

    def __init__(
        self, folder: Path, content: Content | None = None, warn: Callable[[str], None] = lambda _text: None
    ) -> None:
        self.folder, self._content, self._warn = folder, content, warn
        self.runs, self._outdated = folder / "runs", folder / "outdated"
        self.changed: dict[str, str] = {}
        """What has changed since a kept result was made, by digest."""

    def claim(self, name: str, config: Any) -> bool:
        """Claim the folder for a study.

        Returns:
            Whether the study has changed since it was last run here.

        Raises:
            RunError: the folder belongs to another study or is something else, or cannot be written.
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
            raise cannot_write(self.folder, error, "the study") from error
        return bool(before != content)

    def check_study(self, name: str) -> dict[str, Any]:
        """The record of the study in the folder; raises RunError if there is none, or another one."""
        if not (self.folder / _STUDY).is_file():
            raise RunError(f"{str(self.folder)!r} holds no study", "run it first, without --report-only")
        content = read_json_object(self.folder / _STUDY)
        if content.get("study") != name:
            message = f"{str(self.folder)!r} holds the study {content.get('study')!r}, not {name!r}"
            raise RunError(message, "choose another folder with --out")
        return content

    def _check_no_foreign_files(self) -> None:
        """Raise RunError for a non-empty folder without a study."""
        if not self.folder.is_dir() or (self.folder / _STUDY).is_file():
            return
        if any(entry.name != _LOCK for entry in self.folder.iterdir()):
            raise RunError(f"{str(self.folder)!r} exists and holds no study", "choose another folder with --out")

    def outcome(self, run: StudyRun, compared: bool = True) -> Outcome | None:
        """The outcome of a run; None if it has not been made, or was made from something else than there is now.

        A run is identified by its complete configuration, whatever its name in the study, and by the content it refers
        to.

        Args:
            compared: whether to compare its content; not for a run that was just made.
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
        """The number of results, of this version of the study or an earlier one."""
        return sum(1 for _ in self.runs.glob(f"*/{FILE}"))

    def dropped(self, runs: Sequence[StudyRun]) -> list[str]:
        """The results in the folder of runs that are no longer in the study, by folder.

        Args:
            runs: all runs of the study, including possible ones if a setting is still to be chosen.
        """
        known = {run.digest for run in runs}
        made = sorted(file.parent.name for file in self.runs.glob(f"*/{FILE}"))
        return [name for name in made if name.rpartition("-")[2] not in known]

    def outcomes(self, runs: Sequence[StudyRun]) -> dict[str, Outcome]:
        """The finished outcomes of these runs, by digest."""
        found = {run.digest: self.outcome(run) for run in runs}
        if self._content is not None:
            self._content.release()
        return {digest: outcome for digest, outcome in found.items() if outcome is not None}

    def room_for(self, run: StudyRun) -> Path:
        """The folder for a run: that of a stopped or failed attempt that can be resumed, or a new one.

        The rest of another attempt is deleted. A result of something else than there is now is moved to `outdated/`,
        with a note of what has changed.
        """
        try:
            for folder in self.runs.glob(f"*-{run.digest}"):
                if run.digest in self.changed:
                    self._put_aside(folder, self.changed[run.digest])
                elif self._goes_on(run, folder):
                    (folder / FILE).unlink(missing_ok=True)
                    return folder
                else:
                    shutil.rmtree(folder)
            self.runs.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.runs, error, "a run") from error
        return self.runs / run.id

    def _goes_on(self, run: StudyRun, folder: Path) -> bool:
        """Whether a stopped or failed attempt is resumed: it can be, and it began with what there is now."""
        if not run.execution.goes_on(run.config, folder, self._warn):
            return False
        if self._content is None:
            return True
        with suppress(RunError):  # a damaged record
            began = Outcome(identity=made_from(folder))
            changed = self._content.changed(run, began)
            self._content.release()
            return not changed
        return False

    def _put_aside(self, folder: Path, what: str) -> None:
        self._outdated.mkdir(exist_ok=True)
        names = (folder.name + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        place = next(self._outdated / name for name in names if not (self._outdated / name).exists())
        folder.rename(place)
        atomic_write_text(place / _WHY, what + "\n")

    def outdated(self) -> dict[str, str]:
        """Results that were made again, because what they were made from has changed: by folder, what has changed."""
        return {
            file.parent.name: file.read_text(encoding="utf-8").strip()
            for file in sorted(self._outdated.glob(f"*/{_WHY}"))
        }

    def drop_weights(self, run: StudyRun) -> None:
        """Delete the trained weights of a run, last and best, whose scores are known."""
        for folder in self.runs.glob(f"*-{run.digest}"):
            for place in (folder, folder / "best"):
                with suppress(OSError):  # they only take space
                    (place / WEIGHTS).unlink(missing_ok=True)

    def locked(self) -> AbstractContextManager[None]:
        """Context in which no other process may run a study in the folder.

        Raises:
            RunError: another one does, or the folder cannot be written.
        """
        self._check_no_foreign_files()
        return locked(self.folder / _LOCK, "running a study in")


class Content:
    """The current content of a study's models and tasks, each read once.

    Args:
        test: whether any run scores test rows.
    """

    def __init__(self, runs: Path, remote_code: bool, test: bool) -> None:
        self._runs, self._remote_code, self._test = runs, remote_code, test
        self._known: dict[str, Identity] = {}
        self._model: tuple[str, LoadedModel, Identity] | None = None
        self.unread: dict[str, str] = {}
        """Runs whose content could not be read, and why."""

    def changed(self, run: StudyRun, outcome: Outcome) -> str:
        """What has changed since a kept result was made, as a sentence; empty for nothing."""
        now = self._now(run)
        found = changes(outcome.made_from, now)
        return said(found, "it", str(run.tree.get("model", {}).get("name")), run.cell.task, "was made with")

    def release(self) -> None:
        """Free the last model that was read."""
        if self._model is not None:
            model = weakref.ref(self._model[1].model)
            self._model = None
            if model() is not None:  # it is in a reference cycle, and garbage collection is slow
                gc.collect()

    def _now(self, run: StudyRun) -> Identity:
        tree = run.tree
        key = json.dumps([tree.get("model"), tree.get("task"), tree["method"].get("adapter")])
        if key not in self._known:
            try:
                self._known[key] = run.execution.identity(run.config, self._remote_code, self._test, self._load)
            except ZofoError as error:
                self._known[key] = Identity()
                self.unread[str(run)] = error.message
        start = tree.get("init_from")
        if start is None:
            return self._known[key]
        path = Path(start)
        return replace(  # the weights that it began with are those that the start ended with
            self._known[key],
            model_hash=None,
            buffers=None,
            start=_trained(path if path.is_absolute() else self._runs / path),
        )

    def _load(self, model: ModelConfig, remote_code: bool, labels: int | None) -> tuple[LoadedModel, Identity]:
        key = json.dumps([model.model_dump(mode="json"), labels])
        if self._model is None or self._model[0] != key:
            self.release()
            loaded = load_model(model, remote_code, labels)
            self._model = key, loaded, model_identity(loaded)
        return self._model[1:]


def _trained(start: Path) -> str | None:
    """Hash of a run's trained model; None if the run is not made yet."""
    try:
        return RunFolder.open(start).trained_hash
    except RunError:
        return None


def check_same_content(runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome]) -> None:
    """Refuse to compare results that use one name for different content.

    Raises:
        RunError: two results do; the message names the runs, and what differs.
    """
    first: dict[str, tuple[StudyRun, Identity]] = {}
    for run in runs:
        outcome = outcomes.get(run.digest)
        if outcome is None or not outcome.is_final or "model" not in run.tree:
            continue
        model, task, made = run.tree["model"], run.tree["task"], outcome.made_from
        of_model = (
            made.of_model
            if run.tree.get("init_from") is None
            else replace(made.of_model, model_hash=None, buffers=None)
        )
        rows = Identity(rows=made.rows, task=made.task, stream=made.stream)
        for key, part in ((json.dumps(model), of_model), (json.dumps([task, model["head"]]), rows)):
            other, known = first.setdefault(key, (run, part))
            if found := changes(known, part):
                raise RunError(
                    f"the runs {str(other)!r} and {str(run)!r} cannot be compared: "
                    + said(found, f"{str(other)!r}", str(model["name"]), run.cell.task, "was made with"),
                    "type the study's command again, without --report-only: what no longer matches is made again",
                )
