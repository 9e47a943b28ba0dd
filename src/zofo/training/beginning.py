"""How a run begins: its folder, what is written down at its start, and that what goes on is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from zofo.config import is_device
from zofo.errors import RunError
from zofo.objectives import Reward
from zofo.tasks import Example, Task
from zofo.training.chat_form import chat_form
from zofo.training.config import ENVIRONMENT, RunConfig
from zofo.training.disk import part_of, sync, write_whole
from zofo.training.inventory import surroundings
from zofo.training.material import Material
from zofo.training.run import CONFIG, LOCK, TASK, RunFolder

_BEGUN = {LOCK, part_of(Path(CONFIG)).name, TASK, ENVIRONMENT}  # all that a process killed at its start leaves
_OF_BITS = ("zofo", "torch", "transformers", "peft", "device", "threads")  # other ones may sum in another order
_NOT_COMPARED = ("where", "own")  # of an example: its place is for messages, and its own texts are in the others


def new_folder(config: RunConfig) -> RunFolder:
    """A new folder for a run: the configured one, or a new one under `runs`.

    Raises:
        RunError: it exists, or cannot be written.
    """
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    path = config.run or _unused(Path("runs") / f"{config.task.title}-{config.method.name}-{stamp}")
    for part in path.parts[1:] if path.is_absolute() else path.parts:
        if is_device(part) or not part.isprintable():
            raise RunError(
                f"cannot make the run folder {str(path)!r}: not every system has the name {part!r}",
                "choose another with run=",
            )
    try:
        path.mkdir(parents=True, exist_ok=path.is_dir() and _is_free(path))
    except FileExistsError as error:
        if (path / LOCK).is_file():
            with RunFolder(path).locked():  # says so where another process is training there
                pass
        raise RunError(
            f"the run folder {str(path)!r} exists, and a run never overwrites another",
            f"choose another with run={path}-2",
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(f"cannot make the run folder {str(path)!r}: {error}") from error
    return RunFolder(path)


def unfinished(config: RunConfig) -> RunFolder | None:
    """The run that this configuration began and did not finish; None where its folder does not exist.

    Raises:
        RunError: the folder holds something else: a run that has ended, or that was configured otherwise.
    """
    path = config.run
    if path is None or not path.exists():
        return None
    run = RunFolder(path)
    run.clear_leftovers()
    if not (path / CONFIG).is_file() or run.ended:
        new_folder(config)  # refuses what has ended, or is no run
        return None  # its process was killed before anything had begun
    given, saved = (c.model_dump(mode="json") for c in (config.anchored(), run.config))
    for key, (new, old) in differences(given, saved):
        raise RunError(
            f"the run in {str(path)!r} has {key} = {old!r}, not {new!r}, and goes on only as it was begun",
            f"choose another folder with run={path}-2, or set {key} back",
        )
    return run


def start_of(material: Material, base_hash: str, objective: str, reward: Reward | None) -> dict[str, Any]:
    """What a run writes down of what it is made from, beside its configuration and task; as JSON.

    Args:
        material: what the configuration names.
        base_hash: SHA-256 of the base weights.
        objective: its name.
        reward: the function that takes its place, of which the module and the name are written down.
    """
    return {
        **surroundings(material.loaded.device),
        "model_hash": base_hash,
        "rows": {split: _sha256_of(rows) for split, rows in material.examples.items()},
        "objective": objective if reward is None else _name_of(reward),
        **chat_form(material.examples["train"]),
    }


def write_start(run: RunFolder, config: RunConfig, task: Task, start: Mapping[str, Any]) -> None:
    """Write what is known before the first step.

    Args:
        run: its folder.
        config: the whole configuration.
        task: as it was read.
        start: as `start_of` gives it.
    """
    content = task.model_dump(by_alias=True, exclude_none=True)
    run.task_file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (run.path / ENVIRONMENT).write_text(json.dumps(start, indent=2) + "\n", encoding="utf-8")
    for path in (run.task_file, run.path / ENVIRONMENT):
        sync(path)
    write_whole(run.path / CONFIG, config.to_yaml())  # last and whole: without it nothing has begun
    sync(run.path.parent)


def refuse_other_start(
    run: RunFolder, material: Material, start: Mapping[str, Any], warn: Callable[[str], None]
) -> None:
    """Refuse to go on with a run that began with something else than what there is now.

    What an older version did not write down is not compared.

    Args:
        run: that was begun.
        material: what its configuration names now.
        start: as `start_of` gives it now.
        warn: told where the bits may differ: of other versions, or another device.

    Raises:
        RunError: another base model, task, objective, or other rows; says which.
    """
    began, where = run.environment, f"choose another folder with run={run.path}-2"
    if began.get("model_hash") != start["model_hash"]:
        raise RunError(
            f"the model {material.loaded.name!r} is not the one that {str(run.path)!r} began with",
            f"give it back its model, or {where}",
        )
    task = material.task.name
    for key, (new, old) in differences(material.task.model_dump(mode="json"), run.task.model_dump(mode="json")):
        raise RunError(
            f"the task {task!r} is not the one that {str(run.path)!r} began with: {key} was {old!r}, and is {new!r}",
            f"set it back as {str(run.task_file)!r} has it, or {where}",
        )
    rows = began.get("rows", start["rows"])
    for split, digest in start["rows"].items():
        if not isinstance(rows, dict) or rows.get(split) != digest:
            raise RunError(
                f"the {split} rows of the task {task!r} are not those that {str(run.path)!r} began with",
                f"put back the rows as they were, in their order, or {where}",
            )
    objective = began.get("objective", start["objective"])
    if objective != start["objective"]:
        raise RunError(
            f"the objective is {start['objective']!r}, and {str(run.path)!r} began with {objective!r}",
            f"give train(reward=...) and training.objective as they were, or {where}",
        )
    others = [
        f"{key} was {began[key]} and is {start[key]}"
        for key in _OF_BITS
        if key in began and key in start and began[key] != start[key]
    ]
    if others:
        warn(f"since the run began, {', '.join(others)}: it may not end with the bits of one that was never stopped")


def differences(given: Any, saved: Any, at: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The dotted keys under which two configurations differ, with both values."""
    if isinstance(given, dict) and isinstance(saved, dict):
        for key in dict.fromkeys([*given, *saved]):
            yield from differences(given.get(key), saved.get(key), f"{at}.{key}" if at else str(key))
    elif given != saved:
        yield at, (given, saved)


def _sha256_of(rows: Sequence[Example]) -> str:
    """SHA-256 of the content of rows and of their order; what a later version adds to a row does not change it."""
    digest = hashlib.sha256()
    known = [(field.name, field.default) for field in fields(Example) if field.name not in _NOT_COMPARED]
    for row in rows:
        values = ((name, getattr(row, name), default) for name, default in known)
        content = {name: value for name, value, default in values if value != default}
        digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def _name_of(function: Reward) -> str:
    """Module and name of a function, or of the class of another thing that can be called."""
    named: Any = function if isinstance(getattr(function, "__qualname__", None), str) else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, or what a process left that was killed at its start: the lock is the first of it."""
    names = {each.name for each in folder.iterdir()}
    return not names or (LOCK in names and names <= _BEGUN)


def _unused(path: Path) -> Path:
    """The path, with a number after it where runs of the same second have taken it."""
    number, free = 2, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free
