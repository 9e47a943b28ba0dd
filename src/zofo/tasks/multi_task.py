"""Several tasks at once, for meta-training: MetaICL's rows and setting files, and checks that no test data is trained
on.

A row is `{"task", "input", "output", "options"}`, and has no prompt of its own: the input, a line break and the output;
three line breaks between demonstrations; macro-F1 for classifications and accuracy for the rest. A setting file is
`{"train": ["glue-mrpc", ...], "test": ["glue-rte", ...]}`.

Source: Min, Lewis, Zettlemoyer, Hajishirzi (2022), "MetaICL: Learning to Learn In Context".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from zofo.config import is_name, read_json_object
from zofo.errors import ConfigError, DataError, RunError, UnknownNameError
from zofo.tasks.config import OF_ONE, TaskConfig
from zofo.tasks.readers.formats import check_labels
from zofo.tasks.readers.row import Row
from zofo.tasks.readers.sources import file_name, files_of, has_split, read_folder
from zofo.tasks.task import SPLITS, Split, Task, parse_task, task_names

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
    """The names of the tasks, and of those reserved for testing.

    Raises:
        ConfigError: there is no task, a duplicate, or an invalid name. DataError: the setting file cannot be read, or
            contains something else.
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
    """The folder of a task in the data folder, by its name or its `file_name`; None if no data folder is given."""
    root = config.data or config.data_dir
    if root is None:
        return None
    exact = Path(root) / name
    return exact if exact.is_dir() else Path(root) / file_name(name)


def task_inputs(config: TaskConfig, name: str, split: Split) -> dict[str, str]:
    """The inputs of a task's rows by place; empty if they are not MetaICL's, or not in the data folder."""
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
    """Raise ConfigError for a task reserved for testing without options to score."""
    for name in unseen:
        folder = _folder(config, name)
        if folder is not None and in_free_words(folder):
            raise ConfigError(
                f"{name!r} is reserved for testing, but its rows have no options: an output in free text cannot be "
                "scored by likelihood",
                "take it out of task.held_out_tasks, or out of the setting file's test",
            )


COLUMNS = ("task", "input", "output", "options")
"""Columns of a row."""

Type = Literal["classification", "multiple-choice"]

_ABOUT = "tasks.json"  # beside the folders: which type each task is of, `{"boolq": {"type": "qa"}}`


_ASKED: dict[str, Any] = {"prompts": {"default": "{{ input }}\n"}, "separator": "\n\n\n", "disjoint": True}


def choice_content() -> dict[str, Any]:
    """The content of a task file for rows with their own options."""
    options = "options | unique(case_sensitive=true) | list"
    choices = {"each": options, "text": "{{ choice }}"}
    answer = {"label": "output", "labels": options}  # an output is the text of an option, also where it is a number
    return {"kind": "multiple-choice", "metric": "accuracy", "choices": choices, **answer, **_ASKED}


def metaicl_content(rows: Sequence[Row], kind: Type | None, free_words: bool = False) -> dict[str, Any]:
    """The content of a task file for MetaICL's rows.

    Args:
        rows: training rows, each already checked.
        kind: kind of the task; by default a classification if all rows have the same options.
        free_words: whether rows without options are allowed; their outputs are free texts, for training only.

    Raises:
        DataError: the rows of a classification differ in their options or all have the same output; or some rows lack
            options, or all do and free texts are not allowed.
    """
    free = [row for row in rows if not row.fields["options"]]
    if free and not (free_words and len(free) == len(rows)):
        others = ", but other rows have options" if len(free) < len(rows) else ", which cannot be scored by likelihood"
        raise DataError(
            f"{free[0].where}: column 'options' is empty: an output in free text{others}; {len(free)} such rows",
            "fix or remove the rows"
            if len(free) < len(rows)
            else "train on such a task as one of task.tasks, and test on others",
        )
    if free:
        return {"kind": "generation", "metric": "token-f1", "answers": "output", "stop": [], **_ASKED}
    first = rows[0].fields["options"]
    odd = next((row for row in rows if set(row.fields["options"]) != set(first)), None)
    if kind == "multiple-choice" or kind is None and odd is not None:
        return choice_content()
    if odd is not None:
        raise DataError(
            f"{odd.where}: a classification, whose rows all have the same options, but this one has "
            f"{', '.join(map(repr, odd.fields['options']))}",
            f"fix the row, or give the task another type than classification in {_ABOUT}",
        )
    check_labels("output", rows)
    verbalizers = {str(option): str(option) for option in dict.fromkeys(first)}
    shape = {"kind": "classification", "metric": "macro-f1", "extra_metrics": ["accuracy"], "verbalizers": verbalizers}
    return {**shape, "label": "output", **_ASKED}


def type_of(folder: Path) -> Type | None:
    """The kind of a task in `tasks.json` beside its folder; None if it is not listed.

    Raises:
        DataError: the file is not a JSON object.
    """
    path = folder.parent / _ABOUT
    if not path.is_file():
        return None
    entry = read_object(path).get(folder.name)
    kind = entry.get("type") if isinstance(entry, dict) else None
    return None if kind is None else "classification" if kind == "classification" else "multiple-choice"


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        DataError: it cannot be read, or contains something else; the message names the file and the line.
    """
    try:
        return read_json_object(path)
    except RunError as error:
        raise DataError(error.message, 'give a file in UTF-8 with one JSON object, {"key": ...}') from error


def has_metaicl_rows(folder: Path) -> bool:
    """Whether the first row of a folder's train.jsonl has MetaICL's columns."""
    return _first_row(folder) is not None


def in_free_words(folder: Path) -> bool:
    """Whether a folder has MetaICL's rows, and the first has no options."""
    row = _first_row(folder)
    return row is not None and not row["options"]


def _first_row(folder: Path) -> dict[str, Any] | None:
    """The first row of a folder's train.jsonl; None if it is not MetaICL's."""
    path = next(iter(files_of(folder, "train")), None)
    if path is None or path.suffix != ".jsonl":
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            row = json.loads(file.readline())
        except (ValueError, RecursionError):
            return None
    return row if isinstance(row, dict) and set(COLUMNS) <= set(row) else None


_SHOWN = 3  # pairs of tasks in a message
_COLLECTIONS = re.compile(r"^(glue|super_?glue|kilt|unifiedqa)[-_:]")


def canonical_task_name(name: str) -> str:
    """A name that is the same for different spellings of a task: `glue-sst2`, `SST-2` and `sst2`."""
    return re.sub(r"[^a-z0-9]", "", _COLLECTIONS.sub("", name.lower()))


def overlapping_tasks(trained: Sequence[str], tested: Sequence[str]) -> str:
    """The tasks that are both trained on and tested, possibly under another name, for a message; "" for none."""
    known = {canonical_task_name(name): name for name in trained}
    pairs = [(known[canonical_task_name(name)], name) for name in tested if canonical_task_name(name) in known]
    texts = [repr(one) if one == other else f"{one!r} (tested as {other!r})" for one, other in pairs[:_SHOWN]]
    return ", ".join(texts) + (f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else "")


def check_no_overlapping_tasks(trained: Sequence[str], unseen: Sequence[str]) -> None:
    """Raise ConfigError for a task that is both trained on and reserved for testing, under any of its names."""
    if same := overlapping_tasks(trained, unseen):
        raise ConfigError(
            f"tasks that are reserved for testing are trained on: {same}",
            "take them out of one of the lists, or allow it with task.allow_overlap=true",
        )


def inputs_in(folder: Path, split: Split) -> dict[str, str]:
    """The inputs of MetaICL's rows in a folder by place; empty if it has no such rows."""
    rows = read_folder(folder, split) if has_metaicl_rows(folder) and has_split(folder, split) else []
    return {row.where: str(row.fields.get("input", "")).strip() for row in rows}


def check_no_shared_rows(
    name: str,
    trained: Mapping[str, str],
    held: Mapping[str, Mapping[str, str]],
    of: str = "",
    instead: str = "take one of the tasks out",
) -> None:
    """Refuse training rows that are test rows of another task.

    Args:
        trained: inputs of the training rows by place.
        held: inputs of the test rows by place, for each task reserved for testing.

    Raises:
        ConfigError: rows are shared; the message names the first.
    """
    for other, rows in held.items():
        places = {text: where for where, text in rows.items()}
        shared = [(where, places[text]) for where, text in trained.items() if text in places]
        if shared:
            where, held_where = shared[0]
            raise ConfigError(
                f"{len(shared)} training rows of {name!r}{of} are test rows of {other!r}, which is reserved for "
                f"testing: {where} is {held_where}",
                f"{instead}, or allow it with task.allow_overlap=true",
            )
