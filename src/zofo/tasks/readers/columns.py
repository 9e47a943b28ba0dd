"""Columns of a file under the names that a task uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from zofo.errors import DataError, listed, nearest
from zofo.tasks.readers.row import Row


def renamed(rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """The same rows with columns under other names; a row that lacks a column keeps what it has.

    Args:
        rows: as a file has them.
        columns: the new name -> the name in the file. Another column that has the new name already is left out.
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


def check_present(rows: Sequence[Row], columns: Mapping[str, str], source: str) -> None:
    """Raises DataError for a column that no row has, under its own name or the one that it gets."""
    names = list(dict.fromkeys(name for row in rows for name in row.fields))
    for name, own in columns.items():
        if own not in names and name not in names:
            near = nearest(own, names)
            guess = f"did you mean {near!r}? " if near else ""
            raise DataError(
                f"{source}: no row has a column {own!r}, which was given for {name!r}",
                f"{guess}the columns are {listed(names)}",
            )


@contextmanager
def explaining(columns: Mapping[str, str]) -> Iterator[None]:
    """While it is open, an error that names a renamed column says what that is called in the file."""
    try:
        yield
    except DataError as error:
        named = [f"{name!r} is the column {own!r}" for name, own in columns.items() if f"column {name!r}" in str(error)]
        if named:
            error.hint = "; ".join([*([error.hint] if error.hint else []), *named])
        raise
