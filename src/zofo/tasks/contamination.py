"""Checks that no test data was trained on: tasks by their names, and rows by what they ask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from zofo.errors import ConfigError, DataError
from zofo.tasks.example import Example
from zofo.tasks.metaicl import has_metaicl_rows
from zofo.tasks.readers import has_split, read_folder
from zofo.tasks.task import SPLITS, Split, Task

_SHOWN = 3  # pairs of tasks in a message
_COLLECTIONS = re.compile(r"^(glue|super_?glue|kilt|unifiedqa)[-_:]")


def canonical_task_name(name: str) -> str:
    """What tasks have in common that are the same by other names: `glue-sst2`, `SST-2` and `sst2`."""
    return re.sub(r"[^a-z0-9]", "", _COLLECTIONS.sub("", name.lower()))


def overlapping_tasks(trained: Sequence[str], tested: Sequence[str]) -> str:
    """The tasks that are trained on and tested, also under another name, as a message names them; "" for none."""
    known = {canonical_task_name(name): name for name in trained}
    pairs = [(known[canonical_task_name(name)], name) for name in tested if canonical_task_name(name) in known]
    texts = [repr(one) if one == other else f"{one!r} (tested as {other!r})" for one, other in pairs[:_SHOWN]]
    return ", ".join(texts) + (f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else "")


def check_no_overlapping_tasks(trained: Sequence[str], unseen: Sequence[str]) -> None:
    """Raises ConfigError for a task that is both trained on and kept for the test, under any of its names."""
    if same := overlapping_tasks(trained, unseen):
        raise ConfigError(
            f"tasks that are kept for the test are trained on: {same}",
            "take them out of one of the lists, or allow it with task.allow_overlap=true",
        )


def inputs_in(folder: Path, split: Split) -> dict[str, str]:
    """The inputs of MetaICL's rows in a folder by place; empty where it has no such rows."""
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
        name: name of the training task.
        trained: inputs of its training rows by place.
        held: for each task that is kept for the test, the inputs of its test rows by place.
        of: the run that trains on it, for the message.
        instead: what to do instead, for the hint.

    Raises:
        ConfigError: rows are shared; names the first.
    """
    for other, rows in held.items():
        places = {text: where for where, text in rows.items()}
        shared = [(where, places[text]) for where, text in trained.items() if text in places]
        if shared:
            where, held_where = shared[0]
            raise ConfigError(
                f"{len(shared)} training rows of {name!r}{of} are test rows of {other!r}, which is kept for the test: "
                f"{where} is {held_where}",
                f"{instead}, or allow it with task.allow_overlap=true",
            )


def check_test_rows(task: Task, examples: Mapping[Split, Sequence[Example]]) -> None:
    """Raises DataError for a row of test that is in train or validation, where the task forbids it."""
    if not task.disjoint or "test" not in examples:
        return
    with_options = task.kind != "generation"

    def asked(one: Example) -> tuple[object, ...]:
        return one.prompt, one.texts, one.messages, one.candidates if with_options else ()

    seen = {asked(one): one for split in SPLITS[:2] for one in examples.get(split, ())}
    same = [(one, seen[key]) for one in examples["test"] if (key := asked(one)) in seen]
    if same:
        row, known = same[0]
        raise DataError(
            f"{row.where}: the same input{' and options' if with_options else ''} as {known.where}, so that the test "
            f"is known from training; {len(same)} such rows in {task.name!r}",
            "remove them from one of the files, or allow them with task.allow_overlap=true",
        )
