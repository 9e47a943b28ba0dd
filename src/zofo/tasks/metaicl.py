"""MetaICL's rows, `{"task", "input", "output", "options"}`, as tasks of their own, with no prompt of ours.

Min, Lewis, Zettlemoyer, Hajishirzi (2022), "MetaICL: Learning to Learn In Context": the input, a line break and the
output; three line breaks between demonstrations; macro-F1 for classifications and accuracy for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from zofo.config import read_json_object
from zofo.errors import DataError, RunError
from zofo.tasks.readers import Row, check_labels, files_of

COLUMNS = ("task", "input", "output", "options")
"""Columns of a row."""

Type = Literal["classification", "multiple-choice"]

_ABOUT = "tasks.json"  # beside the folders: which type each task is of, `{"boolq": {"type": "qa"}}`


_ASKED: dict[str, Any] = {"prompts": {"default": "{{ input }}\n"}, "separator": "\n\n\n", "disjoint": True}


def choice_content() -> dict[str, Any]:
    """The part of a task file for rows with options of their own."""
    options = "options | unique(case_sensitive=true) | list"
    choices = {"each": options, "text": "{{ choice }}"}
    answer = {"label": "output", "labels": options}  # an output is the text of an option, also where it is a number
    return {"kind": "multiple-choice", "metric": "accuracy", "choices": choices, **answer, **_ASKED}


def metaicl_content(rows: Sequence[Row], kind: Type | None, free_words: bool = False) -> dict[str, Any]:
    """The part of a task file for MetaICL's rows.

    Args:
        rows: rows of train, each checked separately.
        kind: kind of the task; by default a classification if all rows have the same options.
        free_words: whether rows without options are allowed; their outputs are free texts, only for training.

    Raises:
        DataError: the rows of a classification differ in their options or all have the same output; or rows lack
            options although others have some, or free texts are not allowed.
    """
    free = [row for row in rows if not row.fields["options"]]
    if free and not (free_words and len(free) == len(rows)):
        others = ", but other rows have options" if len(free) < len(rows) else ", which cannot be scored by likelihood"
        raise DataError(
            f"{free[0].where}: column 'options' is empty: an output in free words{others}; {len(free)} such rows",
            "mend or remove the rows"
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
            f"mend the row, or give the task another type than classification in {_ABOUT}",
        )
    check_labels("output", rows)
    verbalizers = {str(option): str(option) for option in dict.fromkeys(first)}
    shape = {"kind": "classification", "metric": "macro-f1", "extra_metrics": ["accuracy"], "verbalizers": verbalizers}
    return {**shape, "label": "output", **_ASKED}


def type_of(folder: Path) -> Type | None:
    """The kind of a task in `tasks.json` beside its folder; None where it is not given.

    Raises:
        DataError: the file is no JSON object.
    """
    path = folder.parent / _ABOUT
    if not path.is_file():
        return None
    entry = read_object(path).get(folder.name)
    kind = entry.get("type") if isinstance(entry, dict) else None
    return None if kind is None else "classification" if kind == "classification" else "multiple-choice"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: it cannot be read, or holds something else; names the file and the line.
    """
    try:
        return read_json_object(path)
    except RunError as error:
        raise DataError(error.message, 'give a file in UTF-8 with one JSON object, {"key": ...}') from error


def has_metaicl_rows(folder: Path) -> bool:
    """Whether the first row of a folder's train.jsonl has MetaICL's columns."""
    return _first_row(folder) is not None


def in_free_words(folder: Path) -> bool:
    """Whether a folder has MetaICL's rows and the first has no options."""
    row = _first_row(folder)
    return row is not None and not row["options"]


def _first_row(folder: Path) -> dict[str, Any] | None:
    """The first row of a folder's train.jsonl; None where it is not MetaICL's."""
    path = next(iter(files_of(folder, "train")), None)
    if path is None or path.suffix != ".jsonl":
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            row = json.loads(file.readline())
        except (ValueError, RecursionError):
            return None
    return row if isinstance(row, dict) and set(COLUMNS) <= set(row) else None
