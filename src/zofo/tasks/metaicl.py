"""MetaICL's rows, `{"task", "input", "output", "options"}`, as tasks of their own, with no prompt of ours.

Min, Lewis, Zettlemoyer, Hajishirzi (2022), "MetaICL: Learning to Learn In Context": the input, a line break and the
output; three line breaks between demonstrations; macro-F1 for classifications and accuracy for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from zofo.errors import DataError
from zofo.tasks.reading import Row, check_labels

COLUMNS = ("task", "input", "output", "options")
"""Of a row."""

Type = Literal["classification", "multiple-choice"]

_ABOUT = "tasks.json"  # beside the folders: which type each task is of, `{"boolq": {"type": "qa"}}`


def metaicl_content(rows: Sequence[Row], kind: Type | None) -> dict[str, Any]:
    """The part of a task file that says what MetaICL's rows ask for.

    Args:
        rows: of train, each checked by itself.
        kind: what the task is; by default a classification where all rows have the same options.

    Raises:
        DataError: a classification whose rows have other options than the first, or all the same output.
    """
    first = rows[0].fields["options"]
    odd = next((row for row in rows if set(row.fields["options"]) != set(first)), None)
    shape: dict[str, Any] = {
        "label": "output",
        "prompts": {"default": "{{ input }}\n"},
        "separator": "\n\n\n",
        "disjoint": True,
    }
    if kind == "multiple-choice" or kind is None and odd is not None:
        choices = {"each": "options | unique(case_sensitive=true) | list", "text": "{{ choice }}"}
        return {"kind": "multiple-choice", "metric": "accuracy", "choices": choices, **shape}
    if odd is not None:
        raise DataError(
            f"{odd.where}: a classification, whose rows all have the same options, but this one has "
            f"{', '.join(map(repr, odd.fields['options']))}",
            f"mend the row, or give the task another type than classification in {_ABOUT}",
        )
    check_labels("output", rows)
    verbalizers = {str(option): str(option) for option in dict.fromkeys(first)}
    return {"kind": "classification", "metric": "macro-f1", "also": ["accuracy"], "verbalizers": verbalizers, **shape}


def type_of(folder: Path) -> Type | None:
    """What `tasks.json` beside a task's folder says that the task is; None where there is no such file, or no word.

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
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}", "mend the line") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", "give a JSON file in UTF-8") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object", 'write {"key": ...}')
    return content


def has_metaicl_rows(folder: Path) -> bool:
    """Whether the first row of a folder's train.jsonl has MetaICL's columns."""
    path = folder / "train.jsonl"
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            row = json.loads(file.readline())
        except ValueError:
            return False
    return isinstance(row, dict) and set(COLUMNS) <= set(row)
