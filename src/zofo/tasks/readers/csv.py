"""Rows of tables as text: CSV and TSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zofo.errors import DataError, truncate_repr
from zofo.tasks.readers.quotes import plain_records, quotes_are_characters, refuse_two_readings
from zofo.tasks.readers.row import Row, all_rows, decoded_file


def read_table(path: Path, data: bytes, delimiter: str) -> list[Row]:
    """The rows below a line of column names; all values are text.

    Args:
        path: for messages.
        data: the file.
        delimiter: the sign between two columns.

    Raises:
        DataError: a header or a row that is not one, or quotes that can be read in two ways; names the line in the file
            and the column.
    """
    text = decoded_file(path, data)
    lines = io.StringIO(text, newline="").readlines()
    characters = '"' in text and delimiter == "\t" and quotes_are_characters(path, lines)
    plain = ((f"{path}:{one.start}", one.values) for one in plain_records(lines, delimiter))
    records = plain if characters else _records(path, text, delimiter)
    where, header = next(records, ("", []))
    names = [name.strip() for name in header]
    if names:
        _check_header(where, names, delimiter)
    rows = all_rows(records, lambda where, values: _fields(where, names, values))
    if '"' in text and not characters:
        refuse_two_readings(path, lines, delimiter)
    return rows


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Place and values of every record; the place is the line in which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _quote_mistake(path, text, delimiter, start, str(error), header) from error
        if values:
            header = header or values
            yield f"{path}:{start}", values


def _quote_mistake(path: Path, text: str, delimiter: str, start: int, reason: str, header: Sequence[str]) -> DataError:
    """A quote that is not closed, with the place of its record and its column."""
    lines = io.StringIO(text, newline="").readlines()
    broken = _broken_column("".join(lines[start - 1 :]), delimiter)
    column = f"column {header[broken].strip()!r}: " if broken is not None and broken < len(header) else ""
    what = "a quote is opened and never closed"
    if "expected after" in reason:
        what = "a quote stands inside of a quoted text, or an earlier one is never closed"
    elif "field limit" in reason:
        what = f"a text of more than {csv.field_size_limit()} characters, or a quote that is never closed"
    hint = 'close the quote, and write one inside of a quoted text twice: "he said ""no"""'
    if "field limit" in reason:
        hint += "; longer texts are read from JSONL"
    return DataError(f"{path}:{start}: {column}{what}", hint)


def _broken_column(text: str, delimiter: str) -> int | None:
    """The number of the first value of a record that is neither plain nor properly quoted."""
    value = re.compile(rf'(?:"[^"]*(?:""[^"]*)*"|[^"{delimiter}\r\n][^{delimiter}\r\n]*|)(?=[{delimiter}\r\n]|\Z)')
    number, position = 0, 0
    while found := value.match(text, position):
        if text[found.end() : found.end() + 1] != delimiter:
            return None
        number, position = number + 1, found.end() + 1
    return number


def _check_header(where: str, names: Sequence[str], delimiter: str) -> None:
    if names[0][:1] in ("{", "["):
        raise DataError(f"{where}: the file is JSON by its content", "give it a name that ends in .jsonl or .json")
    other = next((sign for sign in ";\t|," if sign != delimiter and sign in names[0]), None)
    if len(names) == 1 and other:
        hint = {"\t": "name the file .tsv", ",": "name the file .csv"}.get(other, "save the table with commas")
        raise DataError(f"{where}: one column, {truncate_repr(names[0])}: columns are divided by {other!r} here", hint)
    for number, name in enumerate(names, start=1):
        if re.fullmatch(r"[-+]?\d+(\.\d+)?", name):
            raise DataError(
                f"{where}: column {number}: {name!r} is a value: the first line does not name the columns",
                "put a line of column names above the rows, such as text,label",
            )
        if not name:
            raise DataError(
                f"{where}: column {number} has no name",
                "name it, or write the table without its index: to_csv(..., index=False)",
            )
        if name in names[: number - 1]:
            raise DataError(f"{where}: column {number}: there are two columns {name!r}", "rename one of them")


def _fields(where: str, names: Sequence[str], values: Sequence[str]) -> Mapping[str, Any]:
    if len(values) > len(names):
        raise DataError(
            f"{where}: after column {names[-1]!r}: {len(values)} values for {len(names)} columns; "
            f"the first too many is {truncate_repr(values[len(names)])}",
            "put quotes around a text that holds the sign between columns",
        )
    if len(values) < len(names):
        raise DataError(
            f"{where}: column {names[len(values)]!r} is missing: {len(values)} values for {len(names)} columns",
            "add the value, or put quotes around a text over several lines",
        )
    return dict(zip(names, values, strict=True))
