"""Rows of JSON lines and of JSON arrays."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zofo.errors import DataError, truncate_repr
from zofo.tasks.readers.row import Row, RowError, all_rows, at_row, decoded, decoded_file

ONE_A_LINE = "one JSON object a line"
"""The form of JSON lines, for messages."""

_SPACE = " \t\r\n"


def read_json(path: Path, data: bytes) -> list[Row]:
    """The rows of a file with one JSON object a line, or, of a .json file, of an array of objects.

    Raises:
        DataError: a line or an entry is not a JSON object; the message names line and column.
    """
    if path.suffix.lower() == ".json" and data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return all_rows(_entries(path, decoded_file(path, data)), _checked_object)
    lines = enumerate(data.splitlines(), start=1)
    return all_rows(((f"{path}:{number}", line) for number, line in lines if line.strip()), _line)


@dataclass(frozen=True)
class _Unusable:
    """A number that is not finite."""

    literal: str


def _number(literal: str) -> Any:
    value = float(literal)
    return value if math.isfinite(value) else _Unusable(literal)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise RowError(f"the column {twice[0]!r} is there twice", "keep one of the two")
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_Unusable, parse_float=_number)


def _line(line: bytes) -> Mapping[str, Any]:
    text = decoded(line).rstrip()
    value, end = _value(text, len(text) - len(text.lstrip()))
    if end != len(text):
        after = text[end:].lstrip()
        hint = ONE_A_LINE
        if after.startswith("{"):
            hint += ": begin a new line before the second"
        elif after == ",":
            hint += ", without a comma after it"
        raise RowError(f"column {len(text) - len(after) + 1}: not JSON: more after the first value", hint)
    return _checked_object(value)


def _value(text: str, start: int) -> tuple[Any, int]:
    """The JSON value at a position of the text, and where it ends."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        column, message, hint = _syntax(error, text)
        raise RowError(f"column {column}: not JSON: {message}", hint) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise RowError(f"not JSON that can be read: {str(error).partition(';')[0]}", ONE_A_LINE) from error


def _syntax(error: json.JSONDecodeError, text: str) -> tuple[int, str, str]:
    """Column, message and hint of a syntax error, the same in all versions of Python."""
    before, after = text[: error.pos].rstrip(_SPACE), text[error.pos :].lstrip(_SPACE)
    if after[:1] == ",":  # newer versions point at the comma, older ones at what follows it
        before, after = before + ",", after[1:].lstrip(_SPACE)
    if before.endswith(",") and after[:1] in ("}", "]"):
        return len(before) - text.rfind("\n", 0, len(before)) - 1, f"a comma before {after[0]!r}", "remove the comma"
    if after[:1] == "'":
        return error.colno, "a single quote", 'JSON has double quotes only, as in {"text": "a joy"}'
    if not after:
        if text.lstrip().startswith("["):
            return error.colno, "it ends too early", "an array is read from a file that ends in .json"
        return error.colno, "it ends too early", f"{ONE_A_LINE}, and all of it"
    return error.colno, error.msg, ONE_A_LINE


def _checked_object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        hint = ONE_A_LINE
        if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            hint += "; an array of objects is read from a file that ends in .json"
        name = "number that is not finite" if isinstance(value, _Unusable) else type(value).__name__
        raise RowError(f"a {name}, not an object with named columns", hint)
    for column, held in value.items():
        literal = _unusable(held)
        if literal is not None:
            raise RowError(
                f"column {column!r} holds {truncate_repr(literal)[1:-1]}, not a finite number",
                "write null or the value that was meant, or remove the row",
            )
    return value


def _unusable(value: Any) -> str | None:
    if isinstance(value, _Unusable):
        return value.literal
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for entry in entries if (found := _unusable(entry)) is not None), None)


def _entries(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Place and value of every entry of an array; the place has a column if a line has several entries."""
    starts = [0, *(found.end() for found in re.finditer("\n", text))]

    def place(position: int) -> tuple[str, int]:
        line = bisect_right(starts, position)
        return f"{path}:{line}", position - starts[line - 1] + 1

    def mistake(position: int, what: str) -> DataError:
        where, column = place(position)
        what = what if position < len(text) else "the array has no end"
        return DataError(f"{where}: column {column}: not JSON: {what}", "an array is written [{...}, {...}]")

    position, last = _skip(text, text.index("[") + 1), ""
    while text[position : position + 1] != "]":
        where, column = place(position)
        try:
            value, end = _value(text, position)
        except RowError as error:  # a mistake of syntax has a place of its own
            with at_row(place(getattr(error.__cause__, "pos", position))[0]):
                raise
        yield where if where != last else f"{where}:{column}", value
        last, position = where, _skip(text, end)
        if text[position : position + 1] == ",":
            comma, position = position, _skip(text, position + 1)
            if text[position : position + 1] == "]":
                raise mistake(comma, "a comma before ']'")
        elif text[position : position + 1] != "]":
            raise mistake(position, "no comma between two entries")
    end = _skip(text, position + 1)
    if end != len(text):
        raise mistake(end, "more after the end of the array")


def _skip(text: str, position: int) -> int:
    """The next position that is not white space."""
    while text[position : position + 1] in tuple(_SPACE):
        position += 1
    return position
