"""A run is a folder: what was asked, what happened, and what came out of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from zofo.adapters import load_adapter
from zofo.backbone import Backbone
from zofo.config import is_name, read_json_object
from zofo.errors import RunError
from zofo.filesystem import atomic_write_text, fsync_tree, locked, real, sha256_of, temp_path
from zofo.methods.linear_probe import PROBE, load_probe
from zofo.models import LoadedModel, load_model
from zofo.tasks import Task, TaskConfig, refuse_trained_on
from zofo.training.config import ENVIRONMENT, RunConfig
from zofo.training.evaluation import TaskEvaluator
from zofo.training.identity import Identity, content_hash, refuse_changes
from zofo.training.provenance import config_as_begun, read_identity, refuse_other_model, task_as_begun
from zofo.training.replay_cache import ReplayCache
from zofo.training.restore import load_weights, refuse_strange_adapter, weights_cover_trajectory
from zofo.training.versions import device_fingerprint
from zofo.trajectory.format import Trajectory
from zofo.trajectory.replay import replay, uses_builtin_parts_only

LOCK, CONFIG, TASK = "run.lock", "config.yaml", "task.yaml"
SUMMARY, REPLAYED = "summary.json", "replayed"
WEIGHTS = "weights.safetensors"
_RECORD = {LOCK, CONFIG, TASK, ENVIRONMENT, SUMMARY, "metrics.jsonl"}  # files that hold no part of the model


class RunFolder:
    """The paths inside a run, and what they hold.

    `config.yaml` is the resolved configuration, `task.yaml` the task, `environment.json` versions and hashes,
    `metrics.jsonl` a line a step and an evaluation, `trajectory.bin` the updates of the backbone, `adapter/` a peft
    adapter (`lower_adapter/` the second one of `bilevel`), `weights.safetensors` weights trained by first-order steps,
    `best/` the same as of the best evaluation, `summary.json` the outcome, `replayed/` what replays led to, see
    `keep_replays`.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def locked(self) -> AbstractContextManager[None]:
        """While it is open, no other process may train in the folder.

        Raises:
            RunError: another one does.
        """
        return locked(self.path / LOCK, "training in")

    def refuse_ended(self) -> None:
        """Raises RunError if another process ended the run before this one had the lock."""
        if self.ended:
            raise RunError(f"another process has just ended the run {str(self.path)!r}", "look at what it made")

    def clear_logs(self) -> None:
        """Remove the logs of a run that begins again, since it was stopped before its first checkpoint."""
        for path in (self.metrics, self.trajectory):
            path.unlink(missing_ok=True)

    def forget_outcome(self) -> None:
        """Remove the outcome of a run that goes on: it is of an earlier stop."""
        for path in (self.path / SUMMARY, temp_path(self.path / SUMMARY)):
            path.unlink(missing_ok=True)

    @property
    def ended(self) -> bool:
        """Whether the run has made all of its steps.

        Raises:
            RunError: its summary cannot be read; a run that has ended would begin again.
        """
        return (self.path / SUMMARY).exists() and self.summary.get("stopped", "") is None

    def clear_leftovers(self) -> None:
        """Remove the checkpoints of a run that has ended, where its process was killed before it could."""
        if not self.checkpoints.is_dir():
            return
        with suppress(RunError):  # another process is at it, or the run is only to be read
            if self.ended:
                with self.locked():
                    shutil.rmtree(self.checkpoints, ignore_errors=True)

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run.

        Raises:
            RunError: no run there.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise RunError(
                f"{str(path)!r} is not a run folder (it has no config.yaml)", "runs are written by `zofo train`"
            )
        run = cls(path)
        run.clear_leftovers()
        return run

    @property
    def trajectory(self) -> Path:
        """Where the updates of the backbone are."""
        return self.path / "trajectory.bin"

    @property
    def metrics(self) -> Path:
        """Where the lines of steps and evaluations are."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where a run that has not ended keeps what it needs to go on."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Where adapters and weights as of the best evaluation are."""
        return self.path / "best"

    @cached_property
    def config(self) -> RunConfig:
        """The configuration the run was made with; one that was changed since is refused."""
        return config_as_begun(self.path / CONFIG, self.identity)

    @property
    def summary(self) -> dict[str, Any]:
        """The outcome.

        Raises:
            RunError: the run has not ended.
        """
        path = self.path / SUMMARY
        if not path.is_file():
            raise RunError(f"{str(self.path)!r} has no summary.json: the run has not ended, or was stopped")
        content = read_json_object(path)
        missing = [key for key in ("variants", "best", "parts") if not isinstance(content.get(key), dict)]
        if missing:
            raise RunError(f"{str(path)!r} lacks {missing[0]!r}: the run is damaged")
        return content

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that holds a part of the trained model, by its path inside the run."""
        left_out = {self.checkpoints, self.path / REPLAYED}
        return {
            path.relative_to(self.path).as_posix(): sha256_of(path)
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and path.name not in _RECORD and left_out.isdisjoint(path.parents)
        }

    def verify(self) -> None:
        """Check every part of the trained model against the SHA-256 in `summary.json`.

        Raises:
            RunError: a part is missing, or not as the run wrote it; names the file.
        """
        for name, digest in self.summary["parts"].items():
            path = self.path / name
            if not path.is_relative_to(self.path) or ".." in path.parts or "\0" in name:
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
                raise RunError(f"{str(path)!r} is damaged: its SHA-256 is not the one that the run wrote down")

    @property
    def task_file(self) -> Path:
        """The task as it was when the run was made."""
        return self.path / TASK

    @property
    def task(self) -> Task:
        """The same, read; one that was changed since is refused."""
        return task_as_begun(self.task_file, self.identity)

    def write_outcome(self, outcome: dict[str, Any]) -> None:
        """Write `summary.json`, which says that the run has ended: whole, and after all that it names is on the disk.

        Args:
            outcome: its content but for `parts`.
        """
        fsync_tree(self.path)
        atomic_write_text(self.path / SUMMARY, json.dumps({**outcome, "parts": self.digests()}, indent=2) + "\n")

    def on_own_task(self, config: RunConfig) -> RunConfig:
        """A configuration of this run with the task as it was then: rows of a user's own are not recognised again."""
        task = config.task
        if task.name is not None or task.several or not self.task_file.is_file():
            return config
        return config.model_copy(update={"task": task.model_copy(update={"name": str(self.task_file)})})

    def load(
        self,
        variant: str | None = None,
        best: bool = False,
        model: str | None = None,
        remote_code: bool = False,
        attach: Callable[[Any, Path], object] = load_adapter,
    ) -> LoadedModel:
        """The trained model, with its tokenizer.

        Args:
            variant: for runs that leave several models behind, which; by default the one reported first.
            best: as of the best evaluation instead of the last step.
            model: where the base model is now, if it has moved.
            remote_code: allow the model's repository to run its own code.
            attach: as in `restore`.

        Raises:
            RunError: as `restore`.
        """
        self._known_variant(variant)
        loaded = self.load_base(model, remote_code)
        self.restore(loaded, variant, best, attach)
        return loaded

    def load_base(self, model: str | None = None, remote_code: bool = False) -> LoadedModel:
        """The base model as it is loaded, with its tokenizer.

        Args:
            model: where it is now, if it has moved.
            remote_code: allow the model's repository to run its own code.
        """
        wanted = self.config.model
        labels = len(self.task.label_names) or None
        wanted = wanted if model is None else wanted.model_copy(update={"name": model})
        return load_model(wanted, remote_code, labels)

    def _known_variant(self, variant: str | None) -> str:
        variants = list(self.summary["variants"])
        chosen = (variants or [""])[0] if variant is None else variant
        if chosen not in variants or not is_name(chosen):
            raise RunError(f"the run has no model {chosen!r}", f"it has: {', '.join(variants)}")
        return chosen

    def restore(
        self,
        loaded: LoadedModel,
        variant: str | None = None,
        best: bool = False,
        attach: Callable[[Any, Path], object] = load_adapter,
    ) -> None:
        """Turn the freshly loaded base model into the trained one: replay, or take the weights that say all that a
        replay would; then attach adapters.

        Args:
            loaded: the run's base model, as loaded, without the run that this one may have started from.
            variant: for runs that leave several models behind, which; by default the one reported first.
            best: as of the best evaluation instead of the last step.
            attach: what is done with the model and the folder of its adapter, where there is one.

        Raises:
            RunError: the base model is not the run's, or a part is missing or damaged.
        """
        self._known_variant(variant)
        self.verify()
        self.begin(loaded)
        folder, last = self.kept(best)
        adapter = self.adapter_of(variant, best)
        if adapter is not None:
            refuse_strange_adapter(adapter, self.config.method)
        weights = folder / WEIGHTS
        if self.trajectory.is_file():
            trajectory = Trajectory.read(self.trajectory)
            # one of an adapter moved its tensors, which are saved as they were
            if not trajectory.of_adapter and not weights_cover_trajectory(weights, loaded.model, trajectory.header):
                self._replay(loaded, trajectory, last)
        if weights.is_file():
            load_weights(loaded.model, weights)
        if adapter is not None:
            attach(loaded.model, adapter)

    def _replay(self, loaded: LoadedModel, trajectory: Trajectory, steps: int | None) -> None:
        """Bring the base model to the end of a trajectory, or take what an earlier replay has kept."""

        def again() -> Backbone:
            return replay(loaded.model, trajectory, steps, folded=not trajectory.cheap)

        if not (self.path / REPLAYED).is_dir() or not uses_builtin_parts_only(trajectory.header):
            again()
            return
        hashes = {"base": self.base_hash, "trajectory": sha256_of(self.trajectory)}
        origin = {**device_fingerprint(loaded.device), **hashes}
        ReplayCache(self.path / REPLAYED, steps, origin).load_or_replay(loaded.model, again)

    def keep_replays(self) -> None:
        """From now on, keep the weights that a replay leads to, in `replayed/`: for a run that many others start from.

        A run without a trajectory has nothing to replay, and keeps nothing.

        Raises:
            OSError: the folder cannot be made.
        """
        if self.trajectory.is_file():
            (self.path / REPLAYED).mkdir(exist_ok=True)

    def begin(self, loaded: LoadedModel) -> None:
        """Bring the freshly loaded base model to where the run began: to the end of the run it started from, if any.

        Raises:
            RunError: the base model is not the run's.
        """
        *before, _ = self.chain()
        if before:
            start = before[-1]
            start.restore(loaded)
            now = Identity(start=start.trained_hash)
            refuse_changes(self.identity, now, repr(str(self.path)), {"": f"put back {str(start.path)!r} as it was"})
        refuse_other_model(self.identity, loaded, self.path)

    def refuse_trained_on(self, asked: TaskConfig, scored: bool = False) -> None:
        """Refuse to test on what this run, or one that it started from, was trained on as one of several tasks.

        Args:
            asked: the task of a run that starts from it, or that it is scored with.
            scored: whether several tasks are all scored, and not trained on again.

        Raises:
            ConfigError: see `zofo.tasks.refuse_trained_on`.
            RunError: a run that this one started from is gone.
        """
        for run in reversed(self.chain()):
            refuse_trained_on(run.config.task, asked, str(run.path), scored)

    def chain(self) -> list[RunFolder]:
        """The runs that led to this one, each started from the one before it; this one is the last.

        Raises:
            RunError: one of them is gone, or they start from each other without end.
        """
        runs, seen = [self], {real(self.path)}
        while (start := runs[0].start) is not None:
            runs.insert(0, start)
            if real(start.path) in seen:
                raise RunError(
                    f"{str(self.path / CONFIG)!r}: start: leads back to {str(start.path)!r}: "
                    "no run can start from itself",
                    "the configuration was edited: put back a copy of the run",
                )
            seen.add(real(runs[0].path))
        return runs

    @property
    def base_hash(self) -> str:
        """SHA-256 of all weights that the run began with."""
        return str(self.identity.model_hash)

    @property
    def trained_hash(self) -> str:
        """SHA-256 of the trained model: of every part of it."""
        return content_hash(self.summary["parts"])

    @cached_property
    def identity(self) -> Identity:
        """What the run was made from, by content; parts that an older version did not write down are None."""
        return read_identity(self.path / ENVIRONMENT)

    @property
    def start(self) -> RunFolder | None:
        """The run that this one started from, if any; see `opened_start`."""
        return opened_start(self.config.model_copy(update={"run": self.path}))

    @property
    def environment(self) -> dict[str, Any]:
        """Versions of what the run was made with, and hashes of the weights and the rows that it began with."""
        return read_json_object(self.path / ENVIRONMENT)

    def kept(self, best: bool = False) -> tuple[Path, int | None]:
        """Where adapters and weights lie, and after how many steps they are so; None for all.

        Raises:
            RunError: it kept no best model.
        """
        if not best:
            return self.path, None
        if not self.best.is_dir():
            raise RunError(f"{str(self.path)!r} kept no best model", "train with training.eval_every=10")
        return self.best, int(self.summary["best"]["step"])

    def adapter_of(self, variant: str | None = None, best: bool = False) -> Path | None:
        """The folder of a variant's adapter; None for a variant without one.

        Raises:
            RunError: no such variant, or it has an adapter for each of the run's tasks.
        """
        variant, (folder, _) = self._known_variant(variant), self.kept(best)
        if not (folder / variant).is_dir():
            return None
        if not (folder / variant / "adapter_config.json").is_file():
            raise RunError(
                f"{str(self.path)!r} has an adapter for each of its tasks, and none is called {variant!r}",
                f"take --variant {next(iter(self.summary['variants']))}, or load one of {folder / variant}/* with peft",
            )
        return folder / variant

    def scorer(self, scorer: TaskEvaluator) -> TaskEvaluator:
        """How this run scores candidates, where its method brings its own way."""
        return replace(scorer, score=load_probe(self.path)) if (self.path / PROBE).is_file() else scorer


def opened_start(config: RunConfig) -> RunFolder | None:
    """The run that a run starts from, if any: where it was, or beside the run where both were moved.

    Raises:
        RunError: it is at neither place.
    """
    start = config.start
    if start is None:
        return None
    beside = None if config.run is None else config.run.absolute().parent / start.name
    moved = not (start / CONFIG).is_file() and beside is not None and (beside / CONFIG).is_file()
    return RunFolder.open(beside if moved and beside is not None else start)
