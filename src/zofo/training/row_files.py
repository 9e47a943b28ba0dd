"""Write rows to a file in the format of its extension: JSON lines, CSV, TSV or parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zofo.errors import DataError, first_line

Rows = Sequence[Mapping[str, Any]]


def row_bytes(path: Path, rows: Rows, places: Sequence[str]) -> bytes:
    """Rows as the bytes of a file. Lists and objects in a CSV or TSV file are written as JSON.

    Args:
        path: ends in one of `WRITTEN`.
        rows: at least one; missing columns are empty.
        places: origin of each row, for messages.

    Raises:
        DataError: this format cannot hold a value; the message has its row and column.
    """
    return WRITTEN[path.suffix.lower()](rows, places)


def _json_lines(rows: Rows, places: Sequence[str]) -> bytes:
    return "".join(_json(row, place) + "\n" for row, place in zip(rows, places, strict=True)).encode()


def _json(value: Any, place: str) -> str:
    try:
        text = _WITH_LETTERS.encode(value)
        return text if _is_text(text) else _ASCII.encode(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{place}: JSON cannot hold the row: {first_line(error)}", _OTHER) from error


def _plain(value: Any) -> Any:
    """Dates, times and decimals of parquet files as text, since JSON lacks them."""
    if isinstance(value, bytes):
        raise TypeError("it has bytes, which are no text")
    return str(value)


_WITH_LETTERS = json.JSONEncoder(ensure_ascii=False, default=_plain, allow_nan=False)
_ASCII = json.JSONEncoder(default=_plain, allow_nan=False)


def _is_text(text: str) -> bool:
    """Whether it is valid Unicode, without lone surrogates."""
    return text.isascii() or text.encode("utf-8", "replace").decode() == text


def _table(delimiter: str) -> Callable[[Rows, Sequence[str]], bytes]:
    def write(rows: Rows, places: Sequence[str]) -> bytes:
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")  # else a lone \\r would not be quoted
        writer.writerow(names)
        for row, place in zip(rows, places, strict=True):
            cells = {name: _cell(value, place, name) for name, value in row.items()}
            writer.writerow([cells.get(name, "") for name in names])
        return text.getvalue().encode()

    return write


def _cell(value: Any, place: str, column: str) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else _json(value, f"{place}: column {column!r}")
    if not isinstance(value, str) and text.startswith('"'):  # a date
        text = json.loads(text)
    if not _is_text(text):
        raise DataError(f"{place}: column {column!r} holds a lone surrogate (half of a character)", _OTHER)
    return text


def _parquet(rows: Rows, places: Sequence[str]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowException, OverflowError, ValueError) as error:
            what = f"{places[0].rpartition(':')[0] or places[0]}: parquet cannot hold the column {name!r}"
            raise DataError(f"{what}: {first_line(error)}", _OTHER) from error
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


_OTHER = "write another kind of file, such as .jsonl, or leave that column out of the rows"
WRITTEN: dict[str, Callable[[Rows, Sequence[str]], bytes]] = {
    ".jsonl": _json_lines,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
}
"""How each kind of file is written, by the end of its name."""
