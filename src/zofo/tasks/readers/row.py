"""A row of data, and errors about rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zofo.errors import DataError, truncate

MEND = "mend or remove the row"
"""The default hint."""
_SHORT, _SHORTER = 160, 40  # characters of a row, and of a value in it, in a message


@dataclass(frozen=True)
class Row:
    """A row of data.

    Args:
        where: file and line, or source and row, for messages.
        fields: its values by column.
    """

    where: str
    fields: Mapping[str, Any]


class NamedLabel(int):
    """A label that is the number of a class, and whose class has a name, as in `datasets.ClassLabel`.

    Args:
        number: of the class.
        name: of the class.
    """

    name: str

    def __new__(cls, number: int, name: str) -> NamedLabel:
        """The number, with a name."""
        label = super().__new__(cls, number)
        label.name = name
        return label


def shown_row(row: Row) -> str:
    """A row for a message: its line, and its truncated values."""
    place = re.search(r"( row |:)(\d+)(:\d+)?$", row.where)
    text = json.dumps({key: _shortened(value) for key, value in row.fields.items()}, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a character cannot be printed
    text = truncate(text, _SHORT)
    return f"{'line' if place[1] == ':' else 'row'} {place[2]}: {text}" if place else text


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return truncate(value, _SHORTER)
    if isinstance(value, list):
        return [_shortened(entry) for entry in value]
    return {key: _shortened(entry) for key, entry in value.items()} if isinstance(value, dict) else value


class RowError(DataError):
    """A mistake in a row. It is raised without the row's place, which `at_row` puts before the message.

    Args:
        message: what is wrong, with its column.
        hint: what to do about it.
        kind: the same for rows that are wrong in the same way.
    """

    def __init__(self, message: str, hint: str = MEND, kind: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


@contextmanager
def at_row(where: str) -> Iterator[None]:
    """While it is open, the place of a row is put before what is wrong with it."""
    try:
        yield
    except RowError as error:
        error.message = f"{where}: {error.message}"
        raise


def all_rows(items: Iterable[tuple[str, Any]], parse: Callable[[Any], Mapping[str, Any]]) -> list[Row]:
    """Every item as a row. The error for the first bad one counts those of its kind, and shows a good one.

    Args:
        items: place and content of each item; it may end with a DataError.
        parse: content -> the values by column.

    Raises:
        DataError: the first mistake.
    """
    rows: list[Row] = []
    mistakes: list[DataError] = []
    try:
        for where, item in items:
            try:
                with at_row(where):
                    rows.append(Row(where, parse(item)))
            except RowError as error:
                mistakes.append(error)
    except DataError as error:
        mistakes.append(error)
    if mistakes:
        kinds = [getattr(error, "kind", "") for error in mistakes]
        raise with_valid_example(mistakes[0], kinds.count(kinds[0]), rows[0] if rows else None)
    return rows


def with_valid_example(mistake: DataError, count: int, good: Row | None) -> DataError:
    """An error of one row, whose hint has the number of bad rows and shows a good one."""
    parts = [mistake.hint or MEND]
    if count > 1:
        parts.append(f"{count} rows are wrong")
    if good is not None:
        parts.append(f"a good row: {shown_row(good)}")
    return DataError(mistake.message, "; ".join(parts))


def decoded(line: bytes) -> str:
    """A line as text; raises RowError where it is not UTF-8."""
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(
            f"not UTF-8 text: {error.reason} at byte {error.start + 1} of the line",
            "save the file as UTF-8: iconv -f LATIN1 -t UTF-8 OLD > NEW",
        ) from error


def decoded_file(path: Path, data: bytes) -> str:
    """A whole file as text; raises RowError for the first line that is not UTF-8."""
    for number, line in enumerate(data.splitlines(), start=1):
        with at_row(f"{path}:{number}"):
            decoded(line)
    return data.decode("utf-8-sig")
