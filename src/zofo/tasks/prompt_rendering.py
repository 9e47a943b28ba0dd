"""From a row to an example: filling templates, and finding what is right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zofo.errors import DataError
from zofo.tasks.chats import REASONING, texts_of
from zofo.tasks.example import Example, Message
from zofo.tasks.gold import gold_choices, label_index, label_of, missing_column
from zofo.tasks.prompt_templates import CHOICE, checked_fields, columns_of, fill
from zofo.tasks.readers.look_alikes import first_repeated
from zofo.tasks.readers.row_checks import answer_problem, turns_problem
from zofo.tasks.task import Choices, ChoicesFromColumn, Prompt, Task

TOOLS = "tools"
"""The column beside a chat that holds what its model may call."""
NOTHING = "N/A"
"""What stands in the columns of a prompt without content (Zhao et al. 2021, "Calibrate Before Use")."""


def render(
    task: Task, fields: Mapping[str, Any], where: str, prompt: str | None = None, head: bool = False, right: bool = True
) -> Example:
    """One row as an example.

    Args:
        task: how rows are asked about.
        fields: the row.
        where: file and line, or source and row.
        prompt: name of the prompt; by default the task's first.
        head: for a classification head, which sees the row's texts unless a prompt is named.
        right: whether the row must hold its label or answer; without, it is not read.

    Raises:
        DataError: a missing column, an empty text, an unknown label; names the place.
    """
    if task.messages is not None:
        return _chat(task, task.messages, fields, where, right)
    asked = task.prompt(prompt)
    plain_head = head and prompt is None and task.texts is not None
    known = _fields(task, fields, task.columns(prompt, plain_head), where)
    own: list[str] = []
    text = "" if plain_head else fill(asked.template, known, where, own=own)
    common: dict[str, Any] = {"where": where, "group": _group(task, fields, where) if right else ""}
    if head:
        common["texts"] = tuple(fill(one, known, where, own=own) for one in task.texts or ()) if plain_head else (text,)
    if task.kind == "generation":
        answers = _answers(task, fields, where) if right else ()
        follows = _continuation(text, answers[0], task.stop) if answers else ""
        own += answers[:1]
        answers = tuple(dict.fromkeys(answer.strip() for answer in answers))
        return Example(text, (follows,), (0,) if answers else (), answers, ends=not task.stop, own=tuple(own), **common)
    if not plain_head:
        common["ending"] = fill(asked.ending, known, where, own=own)
        common["content_free"] = _content_free(task, asked, known, where)
    if task.kind == "classification":
        gold = (label_index(task, label_of(task.label or "", fields, where, task.name), where),) if right else ()
        return Example(text, tuple(task.verbalizers_of(prompt).values()), gold, own=tuple(own), **common)
    choices = task.choices_of(prompt)
    candidates, values = _choices(choices, known, where, own)
    golds = (
        gold_choices(task, fields, values, choices if isinstance(choices, ChoicesFromColumn) else None, where)
        if right
        else ()
    )
    return Example(text, candidates, golds, own=tuple(own), **common)


def _fields(task: Task, fields: Mapping[str, Any], columns: Sequence[str], where: str) -> dict[str, Any]:
    return checked_fields(
        fields, columns, task.optional, lambda column: missing_column(task.name, column, fields, where), where
    )


def _content_free(task: Task, prompt: Prompt, fields: Mapping[str, Any], where: str) -> str:
    if prompt.content_free is not None:
        known = _fields(task, fields, columns_of(prompt.content_free), where)
        return str(fill(prompt.content_free, known, where))
    try:
        return str(
            fill(prompt.template, {**fields, **{k: NOTHING for k, v in fields.items() if isinstance(v, str)}}, where)
        )
    except DataError:  # a template that takes its columns apart; its task has no calibrated scores
        return ""


def _group(task: Task, fields: Mapping[str, Any], where: str) -> str:
    for column in task.group:
        if column not in fields:
            raise missing_column(task.name, column, fields, where)
    return "\x1f".join(str(fields[column]) for column in task.group)


def _choices(
    choices: Choices, fields: Mapping[str, Any], where: str, own: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of the choices, and what they are made of; what the row wrote is added to `own`."""
    if isinstance(choices, ChoicesFromColumn):
        values = fill(choices.each, fields, where, expression=True)
        if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
            raise DataError(f"{where}: {choices.each!r} is {values!r}, not a list of choices", "mend the row")
        entries = list(values)
        bad = next((one for one in entries if not isinstance(one, str) or not one.strip()), None)
        if bad is not None:
            raise DataError(f"{where}: {choices.each!r} holds the choice {bad!r}, not a text", "mend the row")
        texts = tuple(str(fill(choices.text, {**fields, CHOICE: entry}, where, own=own)) for entry in entries)
    else:
        texts = tuple(str(fill(text, fields, where, own=own)) for text in choices)
        entries = list(texts)
    if len(texts) < 2:
        raise DataError(f"{where}: {len(texts)} choices, but two or more are needed", "mend or remove the row")
    twice = first_repeated(texts)
    if twice is not None:
        raise DataError(f"{where}: the choice {twice!r} is there twice", "mend or remove the row")
    return texts, tuple(entry.strip() for entry in entries)


def _answers(task: Task, fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The accepted answers of a generation as the row writes them, each once, in order."""
    assert task.answers is not None
    columns = columns_of(task.answers, expression=True)
    for column in columns:
        if column not in fields:
            raise missing_column(task.name, column, fields, where)
    found = fill(task.answers, {column: fields[column] for column in columns}, where, expression=True)
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: {task.answers!r} is {found!r}, not a text or a list of texts", "mend the row")
    kept = tuple(dict.fromkeys(text for text in texts if text.strip()))
    if not kept:
        raise DataError(f"{where}: {task.answers!r} holds no answer", "mend or remove the row")
    return kept


def _continuation(prompt: str, answer: str, stop: Sequence[str]) -> str:
    """An answer as it follows the prompt, with what ends it: a model learns to end only if it is shown how.

    The answer's own white space is kept: before its first word, and after its last one where no stop text ends it.
    """
    space = "" if prompt[-1:].isspace() or answer[:1].isspace() else " "
    return f"{space}{answer.rstrip()}{stop[0]}" if stop else f"{space}{answer}"


def _chat(task: Task, column: str, fields: Mapping[str, Any], where: str, right: bool) -> Example:
    """A chat: all turns up to the last one of the assistant are asked, and that one is the answer."""
    if column not in fields:
        raise missing_column(task.name, column, fields, where)
    turns = fields[column]
    problem = turns_problem(column, turns) or (answer_problem(column, turns) if right else None)
    if problem is not None:
        raise DataError(f"{where}: {problem.message}", problem.hint)
    messages = [_message(turn) for turn in turns]
    common: dict[str, Any] = {"where": where, "tools": _tools(fields, where)}
    if not right:
        return Example("", ("",), messages=tuple(messages), own=tuple(texts_of(turns)), **common)
    content, reply = messages[-1][1], "".join(messages[-1][2:])
    thinks = bool(set(REASONING) & set(json.loads(reply))) if reply else False
    return Example(
        "",
        (content,),
        (0,),
        (content.strip(),),
        messages=tuple(messages[:-1]),
        reply=reply,
        thinks=thinks,
        own=tuple(texts_of(turns)),
        **common,
    )


def _message(turn: Mapping[str, Any]) -> Message:
    """A turn, with all of its keys that hold something."""
    more = {key: value for key, value in turn.items() if key not in ("role", "content") and value not in (None, [], "")}
    content = turn.get("content") or ""
    return (turn["role"], content, json.dumps(more)) if more else (turn["role"], content)


def _tools(fields: Mapping[str, Any], where: str) -> str:
    """What may be called, as JSON; "" for nothing. Data sets write it as a list, or as that list in a text."""
    given = next((value for name, value in fields.items() if name.lower() == TOOLS), None)
    try:
        tools = json.loads(given) if isinstance(given, str) and given.strip() else given or None
    except ValueError:
        tools = given
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"{where}: column {TOOLS!r} is no list of tools, and no JSON of one", "mend or remove the row")
    return json.dumps(tools) if tools else ""
