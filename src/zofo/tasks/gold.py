"""The right label or choice of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zofo.errors import DataError, listed
from zofo.tasks.prompt_templates import columns_of, fill
from zofo.tasks.readers.choices import gold_choice, hidden_hint, same_key
from zofo.tasks.readers.look_alikes import first_repeated, look_alike_key, told_apart
from zofo.tasks.readers.row import NamedLabel
from zofo.tasks.task import ChoicesFromColumn, Task


def missing_column(name: str, column: str, fields: Mapping[str, Any], where: str) -> DataError:
    """The error for a row that lacks a column of the task."""
    has = listed(fields) or "nothing"
    return DataError(
        f"{where}: the column {column!r}, which the task {name!r} needs, is missing; the row has {has}",
        "rename the column in the file, or name yours in a copy of the task file",
    )


def label_columns(label: str) -> list[str]:
    """The columns in a label expression; a label that is no expression is a column itself."""
    try:
        return columns_of(label, expression=True) or [label]
    except ValueError:  # a name with a blank in it
        return [label]


def label_of(label: str, fields: Mapping[str, Any], where: str, name: str) -> Any:
    """The label of a row: the column of that name, or the value of an expression where there is no such column.

    Raises:
        DataError: a column is missing, or the expression has no value in this row.
    """
    if label in fields:
        return fields[label]
    for column in label_columns(label):
        if column not in fields:
            raise missing_column(name, column, fields, where)
    return _plain(fill(label, fields, where, expression=True))


def _plain(value: Any) -> Any:
    """The value of an expression, with an iterator made a list."""
    return list(value) if hasattr(value, "__next__") else value


def label_index(task: Task, label: Any, where: str) -> int:
    """Index of a row's label among the verbalizers; false and true count as 0 and 1, as on the Hub.

    A named class may be given by number or by name.

    Raises:
        DataError: no verbalizer fits, or two do.
    """
    text = label.name if isinstance(label, NamedLabel) else label
    places = [
        index
        for index, known in enumerate(task.label_names)
        if label == known or (isinstance(text, str) and text.strip() == str(known))
    ]
    if len(places) > 1 and isinstance(label, NamedLabel):
        names = listed(task.label_names[place] for place in places)
        raise DataError(
            f"{where}: column {task.label!r} is class {int(label)} with the name {text!r}, so that both of {names} fit",
            "give the verbalizers by the names of the classes, or by other numbers than these names",
        )
    if places:
        return places[0]
    hint = (
        f"the verbalizers have the labels {listed(task.label_names)}; mend the row, or add the label to the task file"
    )
    hint = hidden_hint(label) or hint
    text = repr(label)
    if isinstance(label, str | int | float):
        like = next((known for known in task.label_names if look_alike_key(known) == look_alike_key(label)), None)
        if like is not None:
            text, other = told_apart(label, like)
            hint = f"it looks like {other}, but is written in another way; {hint}"
    problem = f"{text}, which no verbalizer of {task.name!r} stands for"
    raise DataError(f"{where}: column {task.label!r} is {problem}", hint)


def gold_choices(
    task: Task, fields: Mapping[str, Any], values: Sequence[str], each: ChoicesFromColumn | None, where: str
) -> tuple[int, ...]:
    """Indices of the right choices, from a label that is a number, a text, a letter, a key, or a list of them.

    Args:
        task: the task.
        fields: the row.
        values: texts of the choices, stripped.
        each: the list in the row that holds them, if there is one.
        where: place of the row, for messages.

    Raises:
        DataError: the label is none of the choices, or can be read as two of them.
    """
    assert task.label is not None
    label = label_of(task.label, fields, where, task.name)
    keys = values if task.labels is None else _keys(task, fields, values, where)
    if isinstance(label, list | tuple):
        found = [n for n, key in enumerate(keys) if any(str(one).strip() == str(key).strip() for one in label)]
        if found:
            return tuple(found)
        raise DataError(
            f"{where}: none of the right answers in column {task.label!r} ({listed(label)}) is among the choices",
            "mend or remove the row",
        )
    if task.labels is None:
        return (gold_choice(task.label, values, label, each.each if each is not None else None, where),)
    place = next((n for n, key in enumerate(keys) if not isinstance(label, bool) and same_key(label, key)), None)
    if place is None:
        must = f"column {task.label!r} is {label!r}, but must be one of {listed(keys)}"
        raise DataError(f"{where}: {must}", hidden_hint(label) or "mend the row")
    return (place,)


def _keys(task: Task, fields: Mapping[str, Any], values: Sequence[str], where: str) -> Sequence[Any]:
    """The label of each choice of a row: `labels`, or the list in the row that it names."""
    if isinstance(task.labels, list):
        return task.labels[: len(values)]
    assert task.labels is not None
    for column in columns_of(task.labels, expression=True):
        if column not in fields:
            raise missing_column(task.name, column, fields, where)
    keys = _plain(fill(task.labels, fields, where, expression=True))
    if not isinstance(keys, list | tuple) or len(keys) != len(values):
        what = f"{len(keys)} labels" if isinstance(keys, list | tuple) else repr(keys)
        raise DataError(
            f"{where}: labels: {task.labels!r} is {what}, but there are {len(values)} choices", "mend the row"
        )
    twice = first_repeated(keys, same_key)
    if twice is not None:
        raise DataError(f"{where}: labels: {task.labels!r} holds {twice!r} twice", "mend the row")
    return keys
