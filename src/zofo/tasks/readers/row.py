"""A row of data, and errors about rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zofo.errors import DataError, truncate

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
    text = json.dumps({key: _short(value) for key, value in row.fields.items()}, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a character cannot be printed
    text = truncate(text, _SHORT)
    return f"{'line' if place[1] == ':' else 'row'} {place[2]}: {text}" if place else text


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return truncate(value, _SHORTER)
    if isinstance(value, list):
        return [_short(entry) for entry in value]
    return {key: _short(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def all_rows(items: Iterator[tuple[str, Any]], parse: Callable[[str, Any], Mapping[str, Any]]) -> list[Row]:
    """Every item as a row. The error for the first bad one shows a good one.

    Args:
        items: place and content of each item; it may end with a DataError.
        parse: (place, content) -> the values by column.

    Raises:
        DataError: the first mistake.
    """
    rows: list[Row] = []
    mistakes: list[DataError] = []
    try:
        for where, item in items:
            try:
                rows.append(Row(where, parse(where, item)))
            except DataError as error:
                mistakes.append(error)
    except DataError as error:
        mistakes.append(error)
    if mistakes:
        raise with_valid_example(mistakes[0], len(mistakes), rows[0] if rows else None)
    return rows


def with_valid_example(mistake: DataError, count: int, good: Row | None) -> DataError:
    """An error of one row, whose hint has the number of bad rows and shows a good one."""
    parts = [mistake.hint or "mend or remove the row"]
    if count > 1:
        parts.append(f"{count} rows are wrong")
    if good is not None:
        parts.append(f"a good row: {shown_row(good)}")
    return DataError(mistake.message, "; ".join(parts))


def decoded(line: bytes, where: str) -> str:
    """A line as text.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text: {error.reason} at byte {error.start + 1} of the line",
            "save the file as UTF-8: iconv -f LATIN1 -t UTF-8 OLD > NEW",
        ) from error


def decoded_file(path: Path, data: bytes) -> str:
    """A whole file as text.

    Raises:
        DataError: a line is not UTF-8.
    """
    for number, line in enumerate(data.splitlines(), start=1):
        decoded(line, f"{path}:{number}")
    return data.decode("utf-8-sig")
