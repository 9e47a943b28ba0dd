"""How a run begins: its folder, the records at its start, and the checks of a resumed run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from zofo.backbone import selected
from zofo.config import is_device
from zofo.errors import RunError, ZofoError, advice
from zofo.filesystem import atomic_write_text, fsync, temp_path
from zofo.models import quantized_as
from zofo.noise import STREAM_VERSION
from zofo.objectives import as_rewards
from zofo.training.config import ENVIRONMENT, RunConfig
from zofo.training.data_module import PreparedRun
from zofo.training.identity import (
    Identity,
    check_unchanged,
    differences,
    model_identity,
    split_identity,
    task_hash,
    task_text,
)
from zofo.training.predictor import chat_form
from zofo.training.run_folder import RunFolder, opened_start
from zofo.training.run_record import CONFIG, LOCK, TASK
from zofo.training.versions import OF_QUANTIZED, device_fingerprint

_BEGUN = {LOCK, temp_path(Path(CONFIG)).name, TASK, ENVIRONMENT}  # all that a process killed at its start leaves
_PROCESSES = "processes"  # where there are several
OF_BITS = ("zofo", "torch", "transformers", "peft", "device", "threads")  # other ones may sum in another order


def create_run_folder(config: RunConfig) -> RunFolder:
    """Create a folder for a run: the configured one, or a new one under `runs`. Raises RunError if that fails."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    path = config.output_dir or Path("runs") / f"{config.task.title}-{config.method.name}-{stamp}"
    for part in path.parts[1:] if path.is_absolute() else path.parts:
        if is_device(part) or not part.isprintable():
            raise RunError(
                f"cannot make the run folder {str(path)!r}: not every system has the name {part!r}",
                "choose another with output_dir=",
            )
    try:
        if config.output_dir is None:
            return RunFolder(_numbered(path))
        path.mkdir(parents=True, exist_ok=path.is_dir() and _is_free(path))
    except FileExistsError as error:
        if (path / LOCK).is_file():
            with RunFolder(path).locked():  # says so where another process is training there
                pass
        has_ended = (path / CONFIG).is_file() and RunFolder(path).ended
        ended = f"its run has ended, and answers to zofo eval {path}; " if has_ended else ""
        raise RunError(
            f"the run folder {str(path)!r} exists, and a run never overwrites another",
            f"{ended}choose another with output_dir={path}-2" if path.name else "name a new one: output_dir=runs/mine",
        ) from error
    except (OSError, ValueError) as error:
        hint = advice(getattr(error, "errno", None))
        raise RunError(f"cannot make the run folder {str(path)!r}: {error}", hint) from error
    return RunFolder(path)


def find_resumable_run(config: RunConfig) -> RunFolder | None:
    """The unfinished run of this configuration; None if its folder does not exist.

    Raises RunError if the folder has something else: a run that has ended, or with another configuration.
    """
    path = config.output_dir
    if path is None or not path.exists():
        return None
    run = RunFolder(path)
    run.clear_leftovers()
    if not (path / CONFIG).is_file() or run.ended:
        create_run_folder(config)  # refuses what has ended, or is no run
        return None  # its process was killed before anything had begun
    given, saved = (
        one.model_dump(mode="json", exclude={"output_dir"})
        for one in (run.as_begun(config).with_absolute_paths(), run.config)
    )
    for key, (new, old) in differences(given, saved):
        if are_places(new, old):
            continue  # identified by its content
        raise RunError(
            f"the run in {str(path)!r} has {key} = {old!r}, not {new!r}, and goes on only as it was begun",
            f"choose another folder with output_dir={path}-2, or set {key} back",
        )
    return run


def identity_of(config: RunConfig, prepared: PreparedRun, objective: str | None = None) -> Identity:
    """Everything that determines the result of a run, by content; `objective` comes from `objective_name`."""
    start = opened_start(config)
    return replace(
        prepared_identity(prepared, model_identity(prepared.loaded, prepared.task.kind == "generation")),
        objective=objective,
        start=None if start is None else start.trained_hash,
        configuration=config.with_absolute_paths().model_dump(mode="json", exclude={"output_dir"}),
    )


def prepared_identity(prepared: PreparedRun, model: Identity) -> Identity:
    """The identity of a loaded configuration, including that of its model."""
    splits = split_identity(prepared.examples, prepared.encoded)
    return replace(model, task=task_hash(prepared.task), rows=splits.rows, tokens=splits.tokens, stream=STREAM_VERSION)


def objective_name(objective: str, reward: Any | None) -> str:
    """The recorded name of a run's objective, or the names of the reward functions that replace it."""
    return objective if reward is None else as_rewards(reward).name


def write_provenance(
    run: RunFolder, config: RunConfig, prepared: PreparedRun, identity: Identity, processes: int = 1
) -> None:
    """Write what is known before the first step: the task, versions and hashes, and last the configuration."""
    run.task_file.write_text(task_text(prepared.task), encoding="utf-8")
    device, rows = prepared.loaded.device, prepared.examples["train"]
    begun = {**device_fingerprint(device), **identity.as_dict(), **chat_form(rows)}
    if processes > 1:
        begun[_PROCESSES] = str(processes)
    (run.path / ENVIRONMENT).write_text(json.dumps(begun, indent=2) + "\n", encoding="utf-8")
    for path in (run.task_file, run.path / ENVIRONMENT):
        fsync(path)
    atomic_write_text(run.path / CONFIG, config.to_yaml())  # last, and atomic: without it the run has not begun
    fsync(run.path.parent)


def check_provenance(run: RunFolder, prepared: PreparedRun, now: Identity, processes: int = 1) -> list[str]:
    """Refuse to resume a run that began with another base model, task, objective, start or rows.

    Returns notes for the user: what an older version did not record, and why bits may differ, such as other versions or
    another device.
    """
    where = f"choose another folder with output_dir={run.path}-2"
    task, began = prepared.task.name, run.identity
    for key, (new, old) in differences(prepared.task.model_dump(mode="json"), run.task.model_dump(mode="json")):
        raise RunError(
            f"the task {task!r} is not the one that {str(run.path)!r} began with: {key} was {old!r}, and is {new!r}",
            f"set it back as {str(run.task_file)!r} has it, or {where}",
        )
    began = replace(began, task=None, configuration=None)  # compared key by key, here and before
    hints = {
        "model": f"give it back its model, or {where}",
        "rows": f"put back the rows as they were, in their order, or {where}",
        "objective": f"give train(reward=...) and training.objective as they were, or {where}",
        "": f"put back what it began with, or {where}",
    }
    check_unchanged(began, now, repr(str(run.path)), hints, model=prepared.loaded.name, task=task)
    notes = [run.identity.note] if run.identity.note else []
    packed = OF_QUANTIZED if quantized_as(prepared.loaded.model) else ()
    others = [
        f"{key} was {was} and is {is_now}"
        for key, is_now in device_fingerprint(prepared.loaded.device).items()
        if (key in (*OF_BITS, *packed) or key.startswith("plugin "))
        and (was := run.environment.get(key, is_now)) != is_now
    ]
    if (were := run.environment.get(_PROCESSES, "1")) != str(processes):
        others.append(f"the number of processes was {were} and is {processes}")
    if others:
        bits = "it may not end with the bits of one that was never stopped"
        notes.append(f"warning: since the run began, {', '.join(others)}: {bits}")
    return notes


def are_places(*values: Any) -> bool:
    """Whether values are paths, whose content is compared elsewhere."""
    return all(isinstance(value, str) and Path(value).is_absolute() for value in values)


def begun_header(run: RunFolder | None) -> Mapping[str, Any] | None:
    """The header of a resumed run's trajectory, if it has one that names the moved weights."""
    try:
        trajectory = None if run is None else run.backbone_trajectory
    except RunError:  # what reads it to go on says what is wrong
        return None
    return None if trajectory is None else trajectory.header


def begun_selection(header: Mapping[str, Any] | None, model: Any) -> dict[str, Any]:
    """The options of a method that select the tensors that its run began with, according to its trajectory.

    Another version of zofo may judge differently which tensors are used.
    """
    if header is None or "trainable" not in header:
        return {}
    try:
        return {"trainable": list(selected(model, header["trainable"]))}
    except ZofoError:  # another model, or an invalid header: reported where they are compared
        return {}


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, or has only the lock that a process killed at its start left."""
    names = {each.name for each in folder.iterdir()}
    return not names or (LOCK in names and names <= _BEGUN)


def _numbered(path: Path) -> Path:
    """Create a new folder, with a number appended if runs of the same second have taken the name."""
    number, free = 2, path
    while True:
        try:
            free.mkdir(parents=True)
            return free
        except FileExistsError:  # of two processes, one makes it
            number, free = number + 1, path.with_name(f"{path.name}-{number}")
