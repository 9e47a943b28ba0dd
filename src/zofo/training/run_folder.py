"""A run is a folder from which its trained model can be restored."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from zofo.adapters import load_adapter, merge_adapter
from zofo.errors import ConfigError, RunError
from zofo.filesystem import real, sha256_of
from zofo.methods import METHODS, MethodConfig
from zofo.methods.linear_probe import PROBE, load_probe
from zofo.methods.vote import VOTE, Vote, read_members
from zofo.models import LoadedModel, head_of, load_model
from zofo.tasks import TaskConfig, check_not_trained_on
from zofo.training.config import RunConfig
from zofo.training.evaluation import TaskEvaluator
from zofo.training.identity import Identity, check_unchanged, model_identity
from zofo.training.restore import ReplayCache, check_run_adapter, restore_weights
from zofo.training.run_record import CONFIG, REPLAYED, WEIGHTS, RunRecord
from zofo.training.versions import device_fingerprint
from zofo.trajectory import Trajectory
from zofo.trajectory.replay import evaluator_of, uses_builtin_parts_only

_BY_MODEL = "by --model DIR, of zofo train and zofo eval by model.name=DIR"


class RunFolder(RunRecord):
    """A run, and the one way from a freshly loaded base model to its trained model."""

    def on_own_task(self, config: RunConfig) -> RunConfig:
        """A configuration of this run with the recorded task; the format of a user's own rows is not detected again."""
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
        """The trained model with its tokenizer; for a probe or a vote the base model, which `scorer` uses.

        Args:
            variant: which model, for a run with several; by default the main one.
            best: the model of the best evaluation instead of the last step.
            model: the base model's new location, if it has moved.
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
        """The base model with its tokenizer; `model` is its new location, if it has moved."""
        return load_model(self.base_config(model), remote_code, len(self.task.label_names) or None)

    def restore(
        self,
        loaded: LoadedModel,
        variant: str | None = None,
        best: bool = False,
        attach: Callable[[Any, Path], object] = load_adapter,
    ) -> None:
        """Turn the freshly loaded base model into the trained one: replay, or load the weights that a replay would
        give; then attach adapters.

        Args:
            loaded: the run's base model, freshly loaded, without the run that this one may have started from.
            variant: which model, for a run with several; by default the main one.
            best: the model of the best evaluation instead of the last step.
            attach: called with the model and the folder of its adapter, if there is one.

        Raises:
            RunError: the base model is not the run's, or a part is missing or damaged.
        """
        self._known_variant(variant)
        self.verify()
        self.load_start_weights(loaded)
        folder, last = self.artifact_folder(best)
        adapter = self.adapter_of(variant, best)
        if adapter is not None:
            check_run_adapter(adapter, self.config.method)
        trajectory, cache = self.backbone_trajectory, None
        if trajectory is not None and (self.path / REPLAYED).is_dir() and uses_builtin_parts_only(trajectory.header):
            hashes = {"base": self.base_hash, "trajectory": sha256_of(self.trajectory)}
            cache = ReplayCache(self.path / REPLAYED, last, {**device_fingerprint(loaded.device), **hashes})
        summed = trajectory is not None and not trajectory.cheap
        restore_weights(loaded, trajectory, folder / WEIGHTS, last, summed=summed, cache=cache)
        if adapter is not None:
            attach(loaded.model, adapter)

    def restore_as_start(self, loaded: LoadedModel, method: MethodConfig) -> None:
        """As `restore`, for a run of a method that starts from this one.

        An adapter that is a part of theta is merged; one that the method continues with is left to it, see
        `adapter_for`.
        """
        if self.is_vote:
            raise RunError(
                f"{str(self.path)!r} is a vote of several models, which is no beginning of one",
                "start from a run of method=select without method.vote",
            )
        head = head_of(self.config.model.model_copy(update={"name": loaded.name}))
        if head != loaded.head:
            raise ConfigError(
                f"init_from={self.path} was trained with model.head={head}, and this run has model.head={loaded.head}",
                f"set model.head={head}",
            )
        labels = len(self.task.label_names)
        if loaded.head == "classification" and not loaded.outputs and labels != loaded.model.config.num_labels:
            raise ConfigError(
                f"init_from={self.path} has a head for {labels} labels, and this task has "
                f"{loaded.model.config.num_labels}",
                "give a task with as many labels, or train without init_from",
            )
        merged = METHODS[self.config.method.name].adapter_is_theta
        left = self.adapter_for(method) is not None
        self.restore(loaded, attach=(lambda *_: None) if left else merge_adapter if merged else load_adapter)

    def adapter_for(self, method: MethodConfig) -> Path | None:
        """The folder of this run's adapter, if a method that starts from the run continues with it.

        None if the method attaches no adapter, or this run has none. Raises ConfigError if the method would attach
        another one.
        """
        own, asked = self.config.method, method.adapter_configs
        if not asked or METHODS[own.name].adapter_is_theta or (adapter := self.adapter_of()) is None:
            return None
        theirs = own.adapter_configs
        if len(asked) == 1 and asked == theirs:
            return adapter
        place, merged = shlex.quote(str(self.path)), shlex.quote(f"{self.path}-merged")
        same = ""
        if len(asked) == len(theirs) == 1:
            key = next(key for key, one in method if one is asked[0])
            ours, options = asked[0].model_dump(mode="json"), theirs[0].model_dump(mode="json")
            wanted = [f"method.{key}.{name}={json.dumps(v)}" for name, v in options.items() if v != ours.get(name)]
            same = f"to go on with it, give {' '.join(map(shlex.quote, wanted))}; to have a new one, "
        raise ConfigError(
            f"init_from={self.path} brings its adapter into the model, and method={method.name} would attach "
            "another one",
            f"{same}merge it first: zofo export {place} --merged {merged}, then train with model={merged} and without "
            "init_from",
        )

    def enable_replay_cache(self) -> None:
        """From now on, keep the weights after a replay in `replayed/`, for a run that many others start from.

        Does nothing for a run without a trajectory.
        """
        if self.trajectory.is_file():
            (self.path / REPLAYED).mkdir(exist_ok=True)

    def load_start_weights(self, loaded: LoadedModel) -> None:
        """Change the freshly loaded base model to the start of the run: the end of the run it started from, if any.

        Raises RunError if the base model is not the run's.
        """
        *before, _ = self.chain()
        if before:
            start = before[-1]
            start.restore_as_start(loaded, self.config.method)
            now = Identity(start=start.trained_hash)
            check_unchanged(self.identity, now, repr(str(self.path)), {"": f"put back {str(start.path)!r} as it was"})
        now, hint = model_identity(loaded), f"name that model, with its files as they were: {_BY_MODEL}"
        check_unchanged(
            self.identity, now, repr(str(self.path)), {"": hint}, model=loaded.name, verb="was trained from"
        )

    def check_not_trained_on(self, asked: TaskConfig, scored: bool = False) -> None:
        """Raise ConfigError if this run, or one that it started from, was trained on a task to be tested, as one of
        several.

        `scored`: several tasks are only scored, and not trained on again.
        """
        for run in reversed(self.chain()):
            check_not_trained_on(run.config.task, asked, str(run.path), scored)

    def chain(self) -> list[RunFolder]:
        """The runs that led to this one, each started from the previous one; this one is the last.

        Raises:
            RunError: one of them is missing, or they form a cycle.
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
    def is_vote(self) -> bool:
        """Whether it has several models that vote."""
        return (self.path / VOTE).is_file()

    @property
    def start(self) -> RunFolder | None:
        """The run that this one started from, if any; see `opened_start`."""
        return opened_start(self.config.model_copy(update={"output_dir": self.path}))

    def scorer(self, scorer: TaskEvaluator, best: bool = False) -> TaskEvaluator:
        """How this run scores candidates and generates texts, if its method has its own way."""
        file = self.artifact_folder(best)[0] / VOTE
        if file.is_file():
            members, header = read_members(file), Trajectory.read(self.trajectory).header
            vote = Vote(members, lambda model: evaluator_of(model, header))
            return replace(scorer, score=vote.score, write=vote.write, members=len(vote.members))
        return replace(scorer, score=load_probe(self.path)) if (self.path / PROBE).is_file() else scorer


def opened_start(config: RunConfig) -> RunFolder | None:
    """The run that a run starts from, if any.

    It is looked for at its recorded path, or beside the run if both were moved; otherwise raises RunError.
    """
    start = config.init_from
    if start is None:
        return None
    beside = None if config.output_dir is None else config.output_dir.absolute().parent / start.name
    moved = not (start / CONFIG).is_file() and beside is not None and (beside / CONFIG).is_file()
    return RunFolder.open(beside if moved and beside is not None else start)
