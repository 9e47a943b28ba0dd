"""Runs in several processes: checks that they start alike, and the work of processes that write nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from zofo.backbone import fingerprint
from zofo.errors import ConfigError, RunError
from zofo.methods import METHODS, Method, TrainingContext
from zofo.processes import Processes
from zofo.signals import Signals
from zofo.tasks import batches
from zofo.training.callbacks import Callback, RewardMeans
from zofo.training.checkpoint import Checkpoint, CheckpointCallback
from zofo.training.config import RunConfig
from zofo.training.data_module import ROWS, PreparedRun
from zofo.training.evaluation import Evaluation
from zofo.training.identity import Identity, changes, content_hash, differences, said
from zofo.training.progress import EvaluationProgress
from zofo.training.resume import OF_BITS, are_places, find_resumable_run
from zofo.training.run_folder import RunFolder
from zofo.training.run_record import CONFIG
from zofo.training.run_state import ResumePoint
from zofo.training.session import LoopParts, Session, loop_parts, rewards_of, run_parts, trajectory_header
from zofo.training.versions import device_fingerprint


def check_shareable(config: RunConfig, processes: Processes) -> None:
    """Raise ConfigError for features that several processes do not support."""
    if processes.alone:
        return
    name = config.method.name
    if not METHODS[name].shares_examples:
        raise ConfigError(f"method={name} cannot share out its examples over {processes.size} processes", _IN_ONE)
    if (config.model.device or "").rpartition(":")[2].isdecimal():
        raise ConfigError(
            f"model.device={config.model.device} puts the models of all {processes.size} processes on one device",
            "leave model.device out: each process takes the device that its launcher has given it",
        )
    if config.training.treatment_steps is not None:
        raise ConfigError(
            "training.treatment_steps measures example by example, which several processes do not share out",
            f"set training.treatment_steps=null, or {_IN_ONE}",
        )


@torch.no_grad()
def check_reward(context: TrainingContext) -> None:
    """Raise ConfigError if a row has another reward alone than among others, unless rewards vary anyway.

    Not in half precision, where the answer itself can depend on the other rows.
    """
    half = {torch.bfloat16, torch.float16}
    if context.processes.alone or any(parameter.dtype in half for parameter in context.model.parameters()):
        return
    batch = context.collate(context.examples[:ROWS])
    found, again = ((-context.objective(context.model, batch)).tolist() for _ in range(2))
    for row, value in enumerate(found if found == again else ()):
        alone = (-context.objective(context.model, batches.part(batch, row, row + 1))).item()
        if alone != value:
            raise ConfigError(
                f"the reward of row {row + 1} is {value:.6g} among others and {alone:.6g} alone, and several processes "
                "each ask for their own rows",
                "let it judge each answer by itself, or train in one process",
            )


_IN_ONE = "train in one process: type the command without its launcher"


def begun_run(config: RunConfig, processes: Processes) -> RunFolder | None:
    """The unfinished run of this configuration, as the first process finds it."""

    def found() -> str | None:
        run = find_resumable_run(config)
        return None if run is None else str(run.path)

    path = processes.first(found)
    return None if path is None else RunFolder(Path(path))


def check_same(processes: Processes, identity: Identity, prepared: PreparedRun) -> None:
    """Raise RunError if a process has other weights, rows, seeds or versions than the first."""
    if processes.alone:
        return
    versions = device_fingerprint(prepared.loaded.device)
    versions = {
        key: versions.get(key, "") for key in (*OF_BITS, *(key for key in versions if key.startswith("plugin ")))
    }
    first, *others = processes.gather_json([identity.as_dict(), versions])
    for rank, other in enumerate(others, start=1):
        found = _difference(first, other, rank, prepared)
        if found:
            raise processes.differs(
                RunError, found, "give every process the same command, files, packages and number of threads"
            )


def _difference(first: Any, other: Any, rank: int, prepared: PreparedRun) -> str | None:
    """The difference between two processes, in words."""
    (identity, versions), (own, own_versions) = first, other
    for ours, theirs in ((identity.get("configuration"), own.get("configuration")), (versions, own_versions)):
        for key, (new, old) in differences(theirs, ours):
            if not are_places(new, old):
                return f"{key} is {new!r} in process {rank}, and {old!r} in process 0"
    known = (replace(Identity.read(one), configuration=None) for one in (identity, own))
    found = said(changes(*known), "process 0", prepared.loaded.name, prepared.task.name, "has")
    return f"process {rank}: {found}" if found else None


def resumed(
    folder: RunFolder, trained: Session, parts: LoopParts, header: Mapping[str, Any], warn: Callable[[str], None]
) -> ResumePoint:
    """Restore the newest checkpoint of the run, or its beginning, in every process.

    Deletes the outcome of an earlier stop.
    """
    processes, saved = trained.context.processes, dict[int, Checkpoint]()

    def latest_step() -> int | None:
        parts.checkpoints.sweep()
        found = parts.checkpoints.latest(warn)
        if found is None:
            folder.clear_logs()
            return None
        saved[found.step] = found
        return found.step

    step = processes.first(latest_step)
    if step is None:
        return ResumePoint()
    # none writes before all have read
    with processes.alike(), Signals().raise_on_signal(lambda: "before it went on: what was saved is kept"):
        checkpoint = saved.get(step) or parts.checkpoints.at(step)
        return parts.state.restore(checkpoint, folder.metrics, folder.trajectory, header)


def accompany(folder: RunFolder, config: RunConfig, trained: Session, console: Console) -> None:
    """The work of a process other than the first: its share of all losses, and all updates."""
    if not (folder.path / CONFIG).is_file():
        raise RunError(
            f"process {trained.context.processes.rank} does not find the run folder {str(folder.path)!r}",
            "choose an output_dir on a disk that all machines share",
        )
    parts = loop_parts(folder, config, trained, EvaluationProgress(console))
    processes, unheard = trained.context.processes, lambda *_: None  # the first process prints and writes it
    done = resumed(folder, trained, parts, trajectory_header(config, trained), unheard)
    stopping = CheckpointCallback(None, unheard, parts.signals, config.training, unheard, done.steps, processes)
    means = RewardMeans(rewards_of(trained, config), processes)
    callbacks = [means, parts.best, parts.scorings[0], SameState(trained), stopping]
    with parts.signals.defer_signals():
        run_parts(config, trained, parts, callbacks, stopping, done.steps)


class SameState(Callback):
    """Checks at each evaluation that all processes have the same weights and state."""

    def __init__(self, trained: Session) -> None:
        self._method, self._processes = trained.method, trained.context.processes

    def after_evaluation(self, steps: int, scores: Mapping[str, Evaluation]) -> None:
        """Raise RunError if they differ."""
        if self._processes.alone:
            return
        states = self._processes.gather_json(state_hash(self._method))
        for rank, state in enumerate(states):
            if state != states[0]:
                raise self._processes.differs(
                    RunError,
                    f"after {steps} steps process {rank} has other weights than process 0, to the bit",
                    "use devices and libraries that compute alike; go on from a checkpoint before, or begin again",
                )


def state_hash(method: Method) -> str:
    """SHA-256 of a method's state including its weights, but not the counts, which differ by process."""
    state = method.state_dict(weights=True)
    values = {name: value for name, value in state.values.items() if not name.endswith("counts")}
    return content_hash([_without_counts(values), fingerprint(state.tensors)])


def _without_counts(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_counts(inner) for key, inner in value.items() if key != "counts"}
