"""The files of a run: its configuration, its logs, and its results."""

from __future__ import annotations

import json
import shlex
import shutil
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from zofo.config import is_name, parse_model, read_json_object
from zofo.errors import DamagedRunError, RunError, error_context
from zofo.filesystem import atomic_write_text, fsync_tree, locked, sha256_of, temp_path
from zofo.hub import near_path
from zofo.models import ModelConfig
from zofo.retired_keys import task_as_now
from zofo.tasks import Task, parse_task, task_content
from zofo.training.config import ENVIRONMENT, RunConfig, as_recorded, naming_lost_plugins
from zofo.training.identity import Identity, content_hash, differences, task_hash
from zofo.trajectory.format import Trajectory
from zofo.trees import read_yaml

LOCK, CONFIG, TASK = "run.lock", "config.yaml", "task.yaml"
SUMMARY, REPLAYED = "summary.json", "replayed"
WEIGHTS = "weights.safetensors"
ANSWERS, SAMPLES, TRACKING = "answers.jsonl", "samples.jsonl", "tracking"
_RECORD = {LOCK, CONFIG, TASK, ENVIRONMENT, SUMMARY, ANSWERS, SAMPLES, "metrics.jsonl"}  # no part of the model


R = TypeVar("R", bound="RunRecord")


class RunRecord:
    """The paths inside a run, and their contents.

    `config.yaml` is the resolved configuration, `task.yaml` the task, `environment.json` versions and hashes,
    `metrics.jsonl` a line per step and evaluation, `trajectory.bin` the updates of the backbone, `adapter/` a peft
    adapter (`lower_adapter/` the second one of `bilevel`), `weights.safetensors` weights trained by first-order steps,
    `best/` the same after the best evaluation, `summary.json` the outcome, `samples.jsonl` answers before and after
    training with a reward, `replayed/` a cache of replays (see `enable_replay_cache`), `tracking/` the files of
    trackers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trajectory, self.metrics = path / "trajectory.bin", path / "metrics.jsonl"
        self.checkpoints, self.best, self.task_file = path / "checkpoints", path / "best", path / TASK

    def locked(self) -> AbstractContextManager[None]:
        """Context in which no other process may train in the folder; raises RunError if one does."""
        return locked(self.path / LOCK, "training in")

    def check_not_ended(self) -> None:
        """Raise RunError if another process finished the run before this one got the lock."""
        if self.ended:
            raise RunError(f"another process has just ended the run {str(self.path)!r}", "look at what it made")

    def clear_logs(self) -> None:
        """Delete the logs of a run that starts again, since it was stopped before its first checkpoint."""
        self.metrics.unlink(missing_ok=True)
        self.trajectory.unlink(missing_ok=True)

    def forget_outcome(self) -> None:
        """Delete the outcome of an earlier stop when a run is resumed."""
        (self.path / SUMMARY).unlink(missing_ok=True)
        temp_path(self.path / SUMMARY).unlink(missing_ok=True)

    @property
    def ended(self) -> bool:
        """Whether the run has made all of its steps.

        An unreadable summary raises RunError, since the run would otherwise start again.
        """
        return (self.path / SUMMARY).exists() and self.summary.get("stopped", "") is None

    def clear_leftovers(self) -> None:
        """Delete the checkpoints of a finished run whose process was killed before it could."""
        if not self.checkpoints.is_dir():
            return
        with suppress(RunError):  # another process is at it, or the run is only to be read
            if self.ended:
                with self.locked():
                    shutil.rmtree(self.checkpoints, ignore_errors=True)

    @classmethod
    def open(cls: type[R], path: Path | str) -> R:
        """Open an existing run.

        Raises:
            RunError: no run there.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise RunError(f"{str(path)!r} is not a run folder (it has no config.yaml)", _run_near(path))
        run = cls(path)
        run.clear_leftovers()
        return run

    @property
    def backbone_trajectory(self) -> Trajectory | None:
        """The trajectory; None for a run whose backbone did not move."""
        found = Trajectory.read(self.trajectory) if self.trajectory.is_file() else None
        return None if found is None or found.of_adapter else found

    @cached_property
    def config(self) -> RunConfig:
        """The recorded configuration.

        Raises RunError if config.yaml has been changed since; the message names the first key.
        """
        file, began = self.path / CONFIG, self.identity.configuration
        content = read_yaml(file)
        if not content:
            raise DamagedRunError(f"{str(file)!r} is empty")
        with error_context(str(file)), naming_lost_plugins(self.path):
            found = parse_model(RunConfig, as_recorded(content))
        # with what later versions added
        known = found if began is None else parse_model(RunConfig, as_recorded(dict(began)))
        now, was = (one.model_dump(mode="json", exclude={"output_dir"}) for one in (found, known))
        for key, (new, old) in differences(now, was):
            raise RunError(
                f"{str(file)!r} was changed since the run began: {key} was {old!r}, and is {new!r}",
                f"set {key} back there; zofo eval {shlex.quote(str(self.path))} {key}=... scores it otherwise, zofo "
                "predict, chat and export take options (--help), and zofo train "
                f"{shlex.quote(str(file))} output_dir=NEW trains anew",
            )
        return found

    def as_begun(self, config: RunConfig) -> RunConfig:
        """A configuration to resume this run with, including settings from before there was a key for them.

        Then only the last answer of a conversation was trained.
        """
        begun = self.config.task.trained_turns  # which finds a damaged record
        if config.task.trained_turns != "auto" or "trained_turns" in (read_yaml(self.path / CONFIG).get("task") or {}):
            return config
        task = config.task.model_copy(update={"trained_turns": begun})
        return config.model_copy(update={"task": task})

    @property
    def summary(self) -> dict[str, Any]:
        """The outcome; raises RunError for an unfinished run."""
        path = self.path / SUMMARY
        if not path.is_file():
            raise RunError(
                f"{str(self.path)!r} has no summary.json: the run has not ended, or was stopped",
                f"to go on: zofo train {shlex.quote(str(self.path / CONFIG))}",
            )
        content = read_json_object(path)
        missing = [key for key in ("variants", "best", "parts") if not isinstance(content.get(key), dict)]
        if missing:
            raise DamagedRunError(f"{str(path)!r} lacks {missing[0]!r}")
        return content

    def base_config(self, model: str | None = None) -> ModelConfig:
        """The configuration of the base model; `model` is its new location, if it has moved."""
        return self.config.model if model is None else self.config.model.model_copy(update={"name": model})

    def sources(self, model: str | None = None) -> list[Path]:
        """The folders that the run only reads: its own, and that of its base model, if it is one."""
        base = Path(self.base_config(model).name)
        return [self.path, base] if base.is_dir() else [self.path]

    def artifact_hashes(self) -> dict[str, str]:
        """SHA-256 of every file of the trained model, by relative path."""
        left_out = {self.checkpoints, self.path / REPLAYED, self.path / TRACKING}
        return {
            path.relative_to(self.path).as_posix(): sha256_of(path)
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and path.name not in _RECORD and left_out.isdisjoint(path.parents)
        }

    def verify(self) -> None:
        """Raise RunError if a file of the trained model is missing, or does not match the SHA-256 in `summary.json`."""
        for name, digest in self.summary["parts"].items():
            path = self.path / name
            if not path.is_relative_to(self.path) or ".." in Path(name).parts or "\0" in name:
                raise RunError(f"{name!r} is no part of a run: it lies elsewhere")
            if not path.is_file():
                dropped = path.name == WEIGHTS and (self.path / "outcome.json").is_file()
                raise RunError(
                    f"{str(path)!r}, a part of the trained model, is missing",
                    "a study removes weights once they are scored; to keep them, run it with --set keep_weights=true"
                    if dropped
                    else None,
                )
            if sha256_of(path) != digest:
                raise DamagedRunError(f"{str(path)!r} is damaged: its SHA-256 is not the one that the run wrote down")

    @cached_property
    def task(self) -> Task:
        """The recorded task; raises RunError if it has been changed since the run began."""
        with naming_lost_plugins(self.path):
            found = parse_task(task_as_now(task_content(str(self.task_file))), str(self.task_file))
        if self.identity.task not in (None, task_hash(found)):
            raise RunError(
                f"{str(self.task_file)!r} was changed since the run began: it is not the task that was trained on",
                f"put it back; to score another task type zofo eval {shlex.quote(str(self.path))} task=FILE",
            )
        return found

    @property
    def only_task(self) -> Task | None:
        """The task; None for a run on several."""
        return None if self.config.task.several else self.task

    def write_outcome(self, outcome: dict[str, Any]) -> None:
        """Write `summary.json` and all parts of the model, atomically, after everything it refers to is on disk."""
        fsync_tree(self.path)
        atomic_write_text(
            self.path / SUMMARY, json.dumps({**outcome, "parts": self.artifact_hashes()}, indent=2) + "\n"
        )

    def _known_variant(self, variant: str | None) -> str:
        variants = list(self.summary["variants"])
        chosen = (variants or [""])[0] if variant is None else variant
        if chosen not in variants or not is_name(chosen):
            raise RunError(f"the run has no model {chosen!r}", f"it has: {', '.join(variants)}")
        return chosen

    @property
    def base_hash(self) -> str:
        """SHA-256 of the initial weights of the run."""
        return str(self.identity.model_hash)

    @property
    def trained_hash(self) -> str:
        """SHA-256 of all parts of the trained model."""
        return content_hash(self.summary["parts"])

    @cached_property
    def identity(self) -> Identity:
        """What the run was made from, by content; parts that an older version did not record are None."""
        return Identity.load(self.path / ENVIRONMENT)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions of the run's software, and hashes of its initial weights and its rows."""
        return read_json_object(self.path / ENVIRONMENT)

    def artifact_folder(self, best: bool = False) -> tuple[Path, int | None]:
        """The folder of adapters and weights, and after how many steps they were saved; None for all."""
        if not best:
            return self.path, None
        if not self.best.is_dir():
            raise RunError(f"{str(self.path)!r} kept no best model", "train with training.eval_steps=10")
        return self.best, int(self.summary["best"]["step"])

    def adapter_of(self, variant: str | None = None, best: bool = False) -> Path | None:
        """The folder of a variant's adapter; None for a variant without one.

        Raises RunError for a variant with one adapter per task.
        """
        variant, (folder, _) = self._known_variant(variant), self.artifact_folder(best)
        if not (folder / variant).is_dir():
            return None
        if not (folder / variant / "adapter_config.json").is_file():
            raise RunError(
                f"{str(self.path)!r} has an adapter for each of its tasks, and none is called {variant!r}",
                f"take --variant {next(iter(self.summary['variants']))}, or load one of {folder / variant}/* with peft",
            )
        return folder / variant


def _run_near(path: Path) -> str:
    """A hint for a path where there is no run."""
    if path.is_file():
        return f"of a patch: zofo apply {shlex.quote(str(path))} --base MODEL --out DIR, and then take that"
    if (within := min(path.glob(f"*/{CONFIG}"), default=None)) is not None:
        return f"name a run that lies in it, such as {str(within.parent)!r}"
    if (path.parent / CONFIG).is_file():
        return f"did you mean {str(path.parent)!r}?"
    if (path / "adapter_config.json").is_file():
        return "it is an adapter: merge it into its model with peft's merge_and_unload, and name that as the model"
    near = None if path.exists() else near_path(str(path))
    return "runs are written by `zofo train`" if near is None else f"did you mean {near!r}?"
