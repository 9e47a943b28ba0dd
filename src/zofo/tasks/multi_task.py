"""Several tasks at once, for meta-training: whose rows they have, and that none of them is kept for the test.

Setting files are those of MetaICL (Min et al. 2022): `{"train": ["glue-mrpc", ...], "test": ["glue-rte", ...]}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zofo.config import is_name
from zofo.errors import ConfigError, DataError, UnknownNameError
from zofo.tasks.config import OF_ONE, TaskConfig
from zofo.tasks.contamination import check_no_overlapping_tasks, inputs_in
from zofo.tasks.metaicl import choice_content, has_metaicl_rows, in_free_words, read_object
from zofo.tasks.readers import file_name
from zofo.tasks.task import SPLITS, Split, Task
from zofo.tasks.task_files import parse_task, task_names

VALIDATION_ROWS = 16
"""Rows of each task that are drawn for validation, unless `sizes` says otherwise."""


def combined_task(config: TaskConfig) -> Task:
    """The task that several tasks form: each row has its own options, and the score is accuracy."""
    names, unseen = tasks_of(config)
    content = {
        "name": config.title,
        "version": 1,
        "about": f"{len(names)} tasks at once: {', '.join(names)}",
        "splits": {split: {"from": split} for split in SPLITS},
        **choice_content(),
    }
    if not config.allow_overlap:
        check_no_overlapping_tasks(names, unseen)
    return parse_task(content, "task.tasks")


def tasks_of(config: TaskConfig) -> tuple[list[str], list[str]]:
    """The names of the tasks, and of those that are kept for the test.

    Raises:
        ConfigError: no task, one that is given twice, or what is no name of one.
        DataError: the setting file cannot be read, or holds something else.
    """
    names, unseen = config.tasks, config.held_out_tasks
    if config.metaicl_setting is not None:
        content = read_object(config.metaicl_setting)
        for key in ("train", "test"):
            found = content.get(key)
            if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
                raise DataError(
                    f"{config.metaicl_setting}: {key!r} is no list of tasks",
                    'write {"train": ["glue-mrpc"], "test": ["anli"]}',
                )
        names, unseen = content["train"], unseen or content["test"]
    if not names:
        raise ConfigError("there is no task to train on", "name some with task.tasks or task.metaicl_setting")
    known: dict[str, str] = {}
    for name in names:
        if (other := known.setdefault(file_name(name), name)) != name or names.count(name) > 1:
            raise ConfigError(
                f"the task {name!r} is given twice" + (f", also as {other!r}" if other != name else ""),
                "give each task once",
            )
    for name in (*names, *unseen):
        if not is_name(file_name(name)):
            raise ConfigError(f"{name!r} is no name of a task", "letters, digits and ._-: make a name")
    return list(names), list(unseen)


def _folder(config: TaskConfig, name: str) -> Path | None:
    """The folder of a task in the data folder, by its name or its `file_name`; None where no data folder is given."""
    root = config.data or config.data_dir
    if root is None:
        return None
    exact = Path(root) / name
    return exact if exact.is_dir() else Path(root) / file_name(name)


def task_inputs(config: TaskConfig, name: str, split: Split) -> dict[str, str]:
    """The inputs of a task's rows by place; empty where they are not MetaICL's, or not in the data folder."""
    folder = _folder(config, name)
    return {} if folder is None else inputs_in(folder, split)


def subtask_config(config: TaskConfig, name: str) -> TaskConfig:
    """The configuration of one of several tasks.

    Raises:
        DataError: it has no folder in the data folder.
        UnknownNameError: without data, it is no packaged task.
    """
    own: dict[str, Any] = {"tasks": [], "metaicl_setting": None, "held_out_tasks": [], "data": None, "data_dir": None}
    own |= dict.fromkeys(OF_ONE)  # which may have been set after it was checked, as `zofo validate` does it
    own["split_sizes"] = config.split_sizes or {"validation": VALIDATION_ROWS}
    folder = _folder(config, name)
    if folder is not None and folder.is_dir():
        packaged = name in task_names() and not has_metaicl_rows(folder)
        own |= {"name": name, "data_dir": folder} if packaged else {"data": str(folder)}
    elif folder is not None:
        if not folder.parent.is_dir():
            raise DataError(
                f"there is no data folder {str(folder.parent)!r}", "give one with a folder for each task: task.data=DIR"
            )
        have = sorted(path.name for path in folder.parent.iterdir() if path.is_dir()) or ["no folders"]
        error = UnknownNameError("task", name, have)
        raise DataError(f"the data folder {str(folder.parent)!r} has no folder {name!r}", error.hint)
    elif name in task_names():
        own["name"] = name
    else:
        raise UnknownNameError("task", name, task_names())
    return config.model_copy(update=own)


def check_has_options(config: TaskConfig, unseen: Sequence[str]) -> None:
    """Raises ConfigError for a task that is kept for the test but has no options to score."""
    for name in unseen:
        folder = _folder(config, name)
        if folder is not None and in_free_words(folder):
            raise ConfigError(
                f"{name!r} is kept for the test, but its rows have no options: an output in free words cannot be "
                "scored by likelihood",
                "take it out of task.held_out_tasks, or out of the setting file's test",
            )
