"""Map a user's column names to those of a task, and rename the columns of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from zofo.errors import DataError, UnknownNameError, listed, nearest
from zofo.tasks.prompt_templates import columns_of
from zofo.tasks.readers.row import Row
from zofo.tasks.task import Task


def columns_in_file(task: Task, columns: Mapping[str, str] | None) -> dict[str, str]:
    """The names in the file for columns of a task that are called differently there.

    Args:
        columns: a column of the task, or `text` for its only text and `label` for its label -> the name in the rows.

    Raises:
        UnknownNameError: the task has no such column.
    """
    if not columns:
        return {}
    asked = task.asked_columns
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
    """The columns of an expression, or the text itself if it is a plain name."""
    try:
        return columns_of(expression, expression=True) if expression else []
    except ValueError:  # a name with a space
        return [expression]


def renamed(rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows with renamed columns; columns missing in a row are ignored.

    Args:
        columns: new name -> name in the file. Another column that already has the new name is dropped.
    """
    if not columns:
        return list(rows)
    old = set(columns.values()) - set(columns)

    def fields(row: Row) -> dict[str, object]:
        given = row.fields
        taken = {name: given[own] for name, own in columns.items() if own in given}
        kept = {name: value for name, value in given.items() if name not in old and name not in taken}
        return {**taken, **kept}

    return [Row(row.where, fields(row)) for row in rows]


def check_present(rows: Sequence[Row], columns: Mapping[str, str], source: str, typed: bool = False) -> None:
    """Raise DataError for a column that no row has, under either name.

    Args:
        typed: whether they were given for these rows, so that a column that already has the new name is another one.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.fields))
    for name, own in columns.items():
        if own not in names and (typed or name not in names):
            near = nearest(own, names)
            guess = f"did you mean {near!r}? " if near else ""
            raise DataError(
                f"{source}: no row has a column {own!r}, which was given for {name!r}",
                f"{guess}the columns are {listed(names)}",
            )


@contextmanager
def explaining(columns: Mapping[str, str]) -> Iterator[None]:
    """Context in which an error about a renamed column mentions its name in the file."""
    try:
        yield
    except DataError as error:
        named = [f"{name!r} is the column {own!r}" for name, own in columns.items() if f"column {name!r}" in str(error)]
        if named:
            error.hint = "; ".join([*([error.hint] if error.hint else []), *named])
        raise
