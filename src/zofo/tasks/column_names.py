"""What the columns of a task are called in a user's rows."""

from __future__ import annotations

from collections.abc import Mapping

from zofo.errors import UnknownNameError
from zofo.tasks.prompt_templates import columns_of
from zofo.tasks.task import Task


def columns_in_file(task: Task, columns: Mapping[str, str] | None) -> dict[str, str]:
    """The names of a task's columns in the rows, of those that have another name there.

    Args:
        task: whose columns are meant.
        columns: a column of the task, or `text` for its only text and `label` for its label -> the name in the rows.

    Raises:
        UnknownNameError: the task has no such column.
    """
    if not columns:
        return {}
    asked = list(dict.fromkeys(name for prompt in task.prompts for name in task.columns(prompt)))
    asked += [name for text in task.texts or () for name in columns_of(text) if name not in asked]
    needed = [name for name in asked if name not in task.optional_columns]
    right = _named_by(task.label or task.answers or "")
    known = dict.fromkeys([*asked, *task.optional_columns, *right, *task.group])
    meant = {name: name for name in known}
    if len(needed) == 1:
        meant.setdefault("text", needed[0])
    if len(right) == 1:
        meant.setdefault("label", right[0])
    for name in columns:
        if name not in meant:
            raise UnknownNameError(f"column of the task {task.name!r}", name, known)
    return {meant[name]: own for name, own in columns.items()}


def _named_by(expression: str) -> list[str]:
    """The columns of an expression; the text itself where it is a name that is none."""
    try:
        return columns_of(expression, expression=True) if expression else []
    except ValueError:  # a name with a blank in it
        return [expression]
