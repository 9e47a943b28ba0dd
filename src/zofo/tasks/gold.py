"""The right label or choice of a row. All raise a RowError, without the row's place, for a row that has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zofo.errors import listed
from zofo.tasks.prompt_templates import columns_of, fill
from zofo.tasks.readers.choices import gold_choice, hidden_hint, same_key
from zofo.tasks.readers.look_alikes import first_repeated, look_alike_key, told_apart
from zofo.tasks.readers.row import NamedLabel, RowError
from zofo.tasks.task import ChoicesFromColumn, Task


def check_columns(name: str, columns: Iterable[str], fields: Mapping[str, Any]) -> None:
    """Raises RowError for a row that lacks a column of the task of that name."""
    for column in columns:
        if column not in fields:
            raise RowError(
                f"the column {column!r}, which the task {name!r} needs, is missing; the row has "
                f"{listed(fields) or 'nothing'}",
                "rename the column in the file, or name yours in a copy of the task file",
            )


def label_of(label: str, fields: Mapping[str, Any], name: str) -> Any:
    """The label of a row: the column of that name, or the value of an expression where there is no such column."""
    if label in fields:
        return fields[label]
    try:
        columns = columns_of(label, expression=True) or [label]
    except ValueError:  # a name with a blank in it
        columns = [label]
    check_columns(name, columns, fields)
    return fill(label, fields, expression=True)


def label_index(task: Task, label: Any) -> int:
    """Index of a row's label among the verbalizers; false and true count as 0 and 1, as on the Hub.

    A named class may be given by number or by name. A label that no verbalizer fits, or two, is refused.
    """
    text = label.name if isinstance(label, NamedLabel) else label
    places = [
        index
        for index, known in enumerate(task.label_names)
        if label == known or (isinstance(text, str) and text.strip() == str(known))
    ]
    if len(places) > 1 and isinstance(label, NamedLabel):
        names = listed(task.label_names[place] for place in places)
        raise RowError(
            f"column {task.label!r} is class {int(label)} with the name {text!r}, so that both of {names} fit",
            "give the verbalizers by the names of the classes, or by other numbers than these names",
        )
    if places:
        return places[0]
    hint = f"the verbalizers have the labels {listed(task.label_names)}; mend the row, or add the label to the task"
    hint = hidden_hint(label) or f"{hint} file"
    text = repr(label)
    if isinstance(label, str | int | float):
        like = next((known for known in task.label_names if look_alike_key(known) == look_alike_key(label)), None)
        if like is not None:
            text, other = told_apart(label, like)
            hint = f"it looks like {other}, but is written in another way; {hint}"
    raise RowError(f"column {task.label!r} is {text}, which no verbalizer of {task.name!r} stands for", hint)


def gold_choices(
    task: Task, fields: Mapping[str, Any], values: Sequence[str], each: ChoicesFromColumn | None
) -> tuple[int, ...]:
    """Indices of the right choices, from a label that is a number, a text, a letter, a key, or a list of them.

    Args:
        task: the task.
        fields: the row.
        values: texts of the choices, stripped.
        each: the list in the row that holds them, if there is one.

    Raises:
        RowError: the label is none of the choices, or can be read as two of them.
    """
    assert task.label is not None
    label = label_of(task.label, fields, task.name)
    keys = values if task.labels is None else _keys(task, task.labels, fields, len(values))
    if isinstance(label, list | tuple):
        found = [n for n, key in enumerate(keys) if any(str(one).strip() == str(key).strip() for one in label)]
        if not found:
            what = f"none of the right answers in column {task.label!r} ({listed(label)}) is among the choices"
            raise RowError(what)
        return tuple(found)
    if task.labels is None:
        return (gold_choice(task.label, values, label, each.each if each is not None else None),)
    place = next((n for n, key in enumerate(keys) if not isinstance(label, bool) and same_key(label, key)), None)
    if place is None:
        must = f"column {task.label!r} is {label!r}, but must be one of {listed(keys)}"
        raise RowError(must, hidden_hint(label) or "mend the row")
    return (place,)


def _keys(task: Task, labels: list[Any] | str, fields: Mapping[str, Any], choices: int) -> Sequence[Any]:
    """The label of each choice of a row: `labels`, or the list in the row that it names."""
    if isinstance(labels, list):
        return labels[:choices]
    check_columns(task.name, columns_of(labels, expression=True), fields)
    keys = fill(labels, fields, expression=True)
    if not isinstance(keys, list | tuple) or len(keys) != choices:
        what = f"{len(keys)} labels" if isinstance(keys, list | tuple) else repr(keys)
        raise RowError(f"labels: {labels!r} is {what}, but there are {choices} choices", "mend the row")
    twice = first_repeated(keys, same_key)
    if twice is not None:
        raise RowError(f"labels: {labels!r} holds {twice!r} twice", "mend the row")
    return keys
