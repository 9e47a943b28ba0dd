"""The folder of a study: whose it is, who works in it, which runs are done, and whether they would end the same now."""

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
    """The folder of a study: `study.json` says which, `runs/` holds a folder for each run.

    Args:
        folder: made by `claim` where it does not exist.
        content: what runs would be made from now; a result of something else is none. None takes all as they are.
        warn: told of what a stopped run has left that is damaged and is not used.
    """

    def __init__(
        self, folder: Path, content: Content | None = None, warn: Callable[[str], None] = lambda _text: None
    ) -> None:
        self.folder, self._content, self._warn = folder, content, warn
        self.runs, self._outdated = folder / "runs", folder / "outdated"
        self.changed: dict[str, str] = {}
        """What has changed since a kept result was made, by digest."""

    def claim(self, name: str, config: Any) -> bool:
        """Take the folder for a study.

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
            raise cannot_write(self.folder, error, "the study") from error
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

    def dropped(self, runs: Sequence[StudyRun]) -> list[str]:
        """The results in the folder of runs that are none of these, by folder: the study had them once.

        Args:
            runs: all that the study has or, where a setting is still to be chosen, may have.
        """
        known = {run.digest for run in runs}
        made = sorted(file.parent.name for file in self.runs.glob(f"*/{FILE}"))
        return [name for name in made if name.rpartition("-")[2] not in known]

    def outcomes(self, runs: Sequence[StudyRun]) -> dict[str, Outcome]:
        """The outcomes of those runs that are done, by digest."""
        found = {run.digest: self.outcome(run) for run in runs}
        if self._content is not None:
            self._content.release()
        return {digest: outcome for digest, outcome in found.items() if outcome is not None}

    def room_for(self, run: StudyRun) -> Path:
        """The folder for a run: that of an attempt which was stopped or failed, and goes on, or a new one.

        What another attempt left is removed. A result of something else than there is now is not: it is put into
        `outdated/`, with what has changed.
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
        """Whether an attempt that was stopped, or failed, goes on: it can, and what it began with is what there is."""
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


class Content:
    """The present content of a study's models and tasks, each read once.

    Args:
        test: whether rows of test are scored by any run.
    """

    def __init__(self, runs: Path, remote_code: bool, test: bool) -> None:
        self._runs, self._remote_code, self._test = runs, remote_code, test
        self._known: dict[str, Identity] = {}
        self._model: tuple[str, LoadedModel, Identity] | None = None
        self.unread: dict[str, str] = {}
        """Runs whose content could not be read, and why."""

    def changed(self, run: StudyRun, outcome: Outcome) -> str:
        """What has changed since a kept result was made, in a sentence; empty for nothing."""
        now = self._now(run)
        found = changes(outcome.made_from, now)
        return said(found, "it", str(run.tree.get("model", {}).get("name")), run.cell.task, "was made with")

    def release(self) -> None:
        """Free the model that was read last."""
        if self._model is not None:
            model = weakref.ref(self._model[1].model)
            self._model = None
            if model() is not None:  # it stands in a circle; to look for one goes through all that is alive
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
    """Hash of a run's trained model; None where the run is not made yet."""
    try:
        return RunFolder.open(start).trained_hash
    except RunError:
        return None


def check_same_content(runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome]) -> None:
    """Refuse to compare results that use one name for different content.

    Raises:
        RunError: names two runs, and what differs.
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
