"""Whether weights, rows, tokenizer and task of a kept result are still the same, by content."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zofo.errors import RunError, ZofoError
from zofo.models import LoadedModel, ModelConfig, load_model
from zofo.studies.result import Outcome
from zofo.studies.trial import StudyRun
from zofo.training import RunFolder
from zofo.training.identity import Identity, changes, model_identity, said


class Content:
    """The present content of a study's models and tasks, each read once.

    Args:
        runs: the folder of all runs.
        remote_code: allow the model's repository to run its own code.
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
            self._model = None
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

    Args:
        runs: of the study.
        outcomes: of those that are done, by digest.

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
