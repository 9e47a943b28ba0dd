"""From a row to an example: fill templates, and find the right answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from zofo.errors import listed
from zofo.tasks.prompt_templates import CHOICE, columns_of, fill
from zofo.tasks.readers.chat_rows import chat_example
from zofo.tasks.readers.choices import gold_choice, hidden_hint, same_key
from zofo.tasks.readers.row import (
    Example,
    NamedLabel,
    RowError,
    at_row,
    check_columns,
    check_text,
    first_repeated,
    has_half,
    look_alike_key,
    told_apart,
)
from zofo.tasks.task import Choices, ChoicesFromColumn, Prompt, Task

NOTHING = "N/A"
"""What stands in the columns of a prompt without content (Zhao et al. 2021, "Calibrate Before Use")."""


def render(
    task: Task,
    fields: Mapping[str, Any],
    where: str,
    prompt: str | None = None,
    head: bool = False,
    right: bool = True,
    columns: Sequence[str] = (),
) -> Example:
    """One row as an example.

    Args:
        where: file and line, or source and row.
        prompt: name of the prompt; by default the task's first.
        head: for a classification head, which sees the row's texts unless a prompt is named.
        right: whether the row must have its label or answer; otherwise it is not read.
        columns: columns to keep for rewards.

    Raises:
        DataError: a missing column, an empty text, or an unknown label; the message names the place.
    """
    with at_row(where):
        common: dict[str, Any] = {"where": where, "columns": _kept(task.name, columns, fields)}
        if task.messages is not None:
            return replace(chat_example(task.name, task.messages, fields, right), **common)
        return _example(task, fields, prompt, head, right, common)


def _kept(name: str, columns: Sequence[str], fields: Mapping[str, Any]) -> str:
    """The columns for rewards, as JSON; "" for none."""
    if not columns:
        return ""
    check_columns(name, columns, fields)
    try:
        return json.dumps({column: fields[column] for column in columns}, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise RowError(
            f"task.reward_columns={list(columns)} holds what JSON cannot: {error}", "leave it out"
        ) from error


def _example(
    task: Task, fields: Mapping[str, Any], prompt: str | None, head: bool, right: bool, common: dict[str, Any]
) -> Example:
    """A row of a task without chats as an example, with the values in `common`."""
    asked = task.prompt(prompt)
    plain_head = head and prompt is None and task.texts is not None
    known = _fields(task, fields, task.columns(prompt, plain_head))
    own: list[str] = []
    text = "" if plain_head else fill(asked.template, known, own=own)
    if right:
        check_columns(task.name, task.group, fields)
        common["group"] = "\x1f".join(str(fields[column]) for column in task.group)
    if head:
        common["texts"] = tuple(fill(one, known, own=own) for one in task.texts or ()) if plain_head else (text,)
    if task.kind == "generation":
        answers = _answers(task.name, task.answers or "", fields) if right else ()
        follows = _continuation(text, answers[0], task.stop) if answers else ""
        own += answers[:1]
        answers = tuple(dict.fromkeys(answer.strip() for answer in answers))
        return Example(text, (follows,), (0,) if answers else (), answers, ends=not task.stop, own=tuple(own), **common)
    if not plain_head:
        common["ending"] = fill(asked.ending, known, own=own)
        common["content_free"] = _content_free(task, asked, known)
    if task.kind == "classification":
        right_one = (label_index(task, label_of(task.label or "", fields, task.name)),) if right else ()
        candidates = tuple(task.verbalizers_of(prompt).values())
        return Example(text, candidates, right_one, own=tuple(own), positive=task.positive, **common)
    choices = task.choices_of(prompt)
    candidates, values = _choices(choices, known, own)
    each = choices if isinstance(choices, ChoicesFromColumn) else None
    golds = gold_choices(task, fields, values, each) if right else ()
    return Example(text, candidates, golds, own=tuple(own), **common)


def _fields(task: Task, fields: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """The needed columns, checked and stripped of surrounding white space; a missing one is empty."""
    check_columns(task.name, (column for column in columns if column not in task.optional_columns), fields)
    return {column: _checked(fields.get(column), column, column in task.optional_columns) for column in columns}


def _checked(value: Any, column: str, optional: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _checked(part, f"{column}.{key}", True) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(part, column, True) for part in value]
    if optional and not isinstance(value, str):
        return "" if value is None else value
    if not isinstance(value, str) or has_half(value) or not (optional or value.strip()):
        check_text(column, value)
    return value.strip()


def _content_free(task: Task, prompt: Prompt, fields: Mapping[str, Any]) -> str:
    if prompt.content_free is not None:
        return str(fill(prompt.content_free, _fields(task, fields, columns_of(prompt.content_free))))
    try:
        nothing = {column: NOTHING for column, value in fields.items() if isinstance(value, str)}
        return str(fill(prompt.template, {**fields, **nothing}))
    except RowError:  # a template that splits its columns; its task has no calibrated scores
        return ""


def _choices(choices: Choices, fields: Mapping[str, Any], own: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of the choices, and what they are made of; the row's own texts are added to `own`."""
    if isinstance(choices, ChoicesFromColumn):
        values = fill(choices.each, fields, expression=True)
        if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
            raise RowError(f"{choices.each!r} is {values!r}, not a list of choices", "fix the row")
        entries = list(values)
        bad = next((one for one in entries if not isinstance(one, str) or not one.strip()), None)
        if bad is not None:
            raise RowError(f"{choices.each!r} holds the choice {bad!r}, not a text", "fix the row")
        texts = tuple(str(fill(choices.text, {**fields, CHOICE: entry}, own=own)) for entry in entries)
    else:
        texts = tuple(str(fill(text, fields, own=own)) for text in choices)
        entries = list(texts)
    if len(texts) < 2:
        raise RowError(f"{len(texts)} choices, but two or more are needed")
    twice = first_repeated(texts)
    if twice is not None:
        raise RowError(f"the choice {twice!r} is there twice")
    return texts, tuple(entry.strip() for entry in entries)


def _answers(name: str, expression: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The accepted answers of a generation as the row has them, each once, in order."""
    columns = columns_of(expression, expression=True)
    check_columns(name, columns, fields)
    found = fill(expression, {column: fields[column] for column in columns}, expression=True)
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise RowError(f"{expression!r} is {found!r}, not a text or a list of texts", "fix the row")
    kept = tuple(dict.fromkeys(text for text in texts if text.strip()))
    if not kept:
        raise RowError(f"{expression!r} holds no answer")
    return kept


def _continuation(prompt: str, answer: str, stop: Sequence[str]) -> str:
    """An answer as it follows the prompt, with what ends it, so that a model learns to end.

    White space in the answer is kept: before its first word, and after its last one if no stop text ends it.
    """
    space = "" if prompt[-1:].isspace() or answer[:1].isspace() else " "
    return f"{space}{answer.rstrip()}{stop[0]}" if stop else f"{space}{answer}"


def label_of(label: str, fields: Mapping[str, Any], name: str) -> Any:
    """The label of a row: the column of that name, or the value of an expression if there is no such column."""
    if label in fields:
        return fields[label]
    try:
        columns = columns_of(label, expression=True) or [label]
    except ValueError:  # a name with a space
        columns = [label]
    check_columns(name, columns, fields)
    return fill(label, fields, expression=True)


def label_index(task: Task, label: Any) -> int:
    """Index of a row's label among the verbalizers; false and true count as 0 and 1, as on the Hub.

    A named class may be given by number or by name. A label that matches no verbalizer, or two, is refused.
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
    hint = f"the verbalizers have the labels {listed(task.label_names)}; fix the row, or add the label to the task"
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
        values: texts of the choices, stripped.
        each: the list in the row that has them, if there is one.

    Raises:
        RowError: the label matches none of the choices, or two of them.
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
        raise RowError(must, hidden_hint(label) or "fix the row")
    return (place,)


def _keys(task: Task, labels: list[Any] | str, fields: Mapping[str, Any], choices: int) -> Sequence[Any]:
    """The label of each choice of a row: `labels`, or the list in the row that it names."""
    if isinstance(labels, list):
        return labels[:choices]
    check_columns(task.name, columns_of(labels, expression=True), fields)
    keys = fill(labels, fields, expression=True)
    if not isinstance(keys, list | tuple) or len(keys) != choices:
        what = f"{len(keys)} labels" if isinstance(keys, list | tuple) else repr(keys)
        raise RowError(f"labels: {labels!r} is {what}, but there are {choices} choices", "fix the row")
    twice = first_repeated(keys, same_key)
    if twice is not None:
        raise RowError(f"labels: {labels!r} holds {twice!r} twice", "fix the row")
    return keys
