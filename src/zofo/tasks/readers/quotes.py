"""Quotes in CSV and TSV: around a value, or characters of it. Two readings that differ are refused, not guessed."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from zofo.errors import DataError, truncate_repr


class Record(NamedTuple):
    """Values of a row.

    Args:
        start: the line in which it begins, from 1.
        end: the line in which it ends.
        values: one for each column.
    """

    start: int
    end: int
    values: list[str]


def plain_records(lines: Sequence[str], delimiter: str) -> list[Record]:
    """A record of each line that is not empty, with quotes as characters."""
    texts = ((number, line.rstrip("\r\n")) for number, line in enumerate(lines, start=1))
    return [Record(number, number, text.split(delimiter)) for number, text in texts if text]


def quoted_records(lines: Sequence[str], delimiter: str) -> list[Record] | None:
    """The records with quotes around values, as in RFC 4180; None where quotes do not fit."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    records, start = [], 1
    try:
        for values in reader:
            if values:
                records.append(Record(start, reader.line_num, values))
            start = reader.line_num + 1
    except csv.Error:
        return None
    return records


def quotes_are_characters(path: Path, lines: Sequence[str]) -> bool:
    """Whether the quotes of a TSV file are characters, as in GLUE, because every line is a row by itself.

    Args:
        path: for messages.
        lines: of the file, each with its end.

    Raises:
        DataError: they may as well stand around values, which are other ones then.
    """
    plain, quoted = plain_records(lines, "\t"), quoted_records(lines, "\t")
    count = len(plain[0].values) if plain else 0
    if count < 2 or any(len(record.values) != count for record in plain):
        return False
    if quoted is None or any(len(record.values) != count for record in quoted):
        return True
    by_line = {record.start: record.values for record in plain}
    pairs = [
        (record.start, column, one, other)
        for record in quoted
        if record.start == record.end
        for column, (one, other) in enumerate(zip(by_line[record.start], record.values, strict=True))
        if one != other
    ]
    around = any(line == plain[0].start or '"' in other for line, _, _, other in pairs)  # as a program writes them
    several = next((record for record in quoted if record.end > record.start), None)
    if several is not None and around:
        raise _one_row_or_several(path, several, lines)
    if several is None and pairs and not around:
        line, column, one, other = pairs[0]
        raise DataError(
            f"{path}:{line}: column {plain[0].values[column].strip()!r} is {truncate_repr(one)} with its quotes, or "
            f"{truncate_repr(other)} if they stand around a value",
            'for quotes that belong to a text write """Wow"""; for quotes around values, put them around the names in '
            "the first line, too",
        )
    return several is not None


def refuse_two_readings(path: Path, lines: Sequence[str], delimiter: str) -> None:
    """Refuse quotes that were read as standing around values, where they may be characters.

    Raises:
        DataError: a text over several lines each of which is a row by itself; a quote after a space or a backslash.
    """
    records = quoted_records(lines, delimiter) or []
    known = _repeated(records[1:])
    for record in records[1:]:
        if record.end > record.start and _are_rows(record, lines, delimiter, known):
            raise _one_row_or_several(path, record, lines)
        if delimiter == ",":
            _refuse_stray_quote(path, record, "".join(lines[record.start - 1 : record.end]))


def _repeated(records: Sequence[Record]) -> list[Collection[str]]:
    """The distinct values of each column in rows of one line; empty where no value repeats, as in a text column."""
    columns = zip(*(record.values for record in records if record.start == record.end), strict=True)
    return [distinct if len(distinct := set(column)) < len(column) else () for column in columns]


def _are_rows(record: Record, lines: Sequence[str], delimiter: str, known: Sequence[Collection[str]]) -> bool:
    """Whether each line of a record could be a row: it has all columns, and in one of them a value of other rows.

    Where no value comes back in any column, it must not be running text, which has a space after a comma.
    """
    count = len(record.values)
    alone = [one.values for one in plain_records(lines[record.start - 1 : record.end], delimiter)]
    if any(len(values) != count for values in alone) or count == 1 and delimiter == ",":
        return False
    if not any(known):
        return all(value and not value[0].isspace() for values in alone for value in values)
    alike = [any(value in held for value, held in zip(values, known, strict=True)) for values in alone]
    return sum(alike) > 1  # the first or the last line has the values beside the text in either reading


def _one_row_or_several(path: Path, record: Record, lines: Sequence[str]) -> DataError:
    count = sum(1 for line in lines[record.start - 1 : record.end] if line.strip())
    return DataError(
        f"{path}:{record.start}: a quote that opens here closes in line {record.end}: one row with the text "
        f"{truncate_repr(max(record.values, key=len))}, or {count} rows with quotes as characters",
        'for a quote that is a character, put quotes around the value and write it twice: """Wow"", he said"; a row '
        "whose text has such lines is read from JSONL",
    )


def _refuse_stray_quote(path: Path, record: Record, raw: str) -> None:
    """Raises DataError for a quote that opens after a space, or follows a backslash, and was read as a character."""
    values = record.values
    for number, value in enumerate(values):
        closed = any(later.rstrip().endswith('"') for later in values[number:])
        if value != value.lstrip() and value.lstrip().startswith('"') and closed and len(value.strip()) > 1:
            raise DataError(
                f"{path}:{record.start}: a quote after a space: the value is {truncate_repr(value)}, or the quotes "
                "stand around it",
                'remove the space before the quote, or write a quote that is a character as in """Wow"""',
            )
    escaped = sum(value.count('\\"') for value in values) > raw.count('\\""')
    if escaped or any(
        value.endswith("\\") and values[n + 1 :] and '"' in values[n + 1] for n, value in enumerate(values)
    ):
        raise DataError(
            f"{path}:{record.start}: a quote after a backslash, which is a character, or stands for the quote alone",
            'write a quote inside of a quoted text twice, with no backslash: "he said ""no"""; with one if it belongs '
            'to the text: "\\""no\\"""',
        )
