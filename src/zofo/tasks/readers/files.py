"""Read the rows of a file. CSV and TSV are parsed here, JSON and Arrow in other modules; errors name line and
column."""

from __future__ import annotations

import csv
import functools
import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zofo.errors import DataError, truncate_repr
from zofo.hub import near_path
from zofo.tasks.readers.arrow_tables import read_arrow_file
from zofo.tasks.readers.json import ONE_A_LINE, read_json
from zofo.tasks.readers.row import Row, RowError, all_rows, at_row, decoded_file, look_alike_key

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Suffixes of files with rows."""
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes of compressed files."""
PLAIN = SUFFIXES[:-1]
"""Those that a user may write; .arrow is what programs keep for themselves."""
_LONGEST_NAME = 100  # of a column
_FOREIGN = (  # how files begin that are no text in UTF-8, what they are, and what to do
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first: gunzip FILE.gz"),
    (b"PK\x03\x04", "a zip archive or an Excel sheet", "unpack it, or save the sheet as CSV in UTF-8"),
    (b"PAR1", "a parquet file by its content", "give it a name that ends in .parquet"),
    (b"version https://git-lfs", "a pointer of Git LFS instead of the data", "fetch the data: git lfs pull"),
)


def read_file(path: Path) -> list[Row]:
    """All rows of a file: JSON lines or a JSON array, CSV, TSV, or parquet, by its extension.

    Args:
        path: ends in one of `SUFFIXES`.

    Returns:
        At least one row. Values of CSV and TSV are text.

    Raises:
        DataError: the file or one of its rows cannot be read; the message names file, line and column, and shows a
            valid row.
    """
    if not path.is_file():
        near = None if path.is_dir() else near_path(str(path), SUFFIXES)
        raise DataError(
            f"{str(path)!r} is a folder" if path.is_dir() else f"there is no file {str(path)!r}",
            f"did you mean {near!r}?" if near else f"give a file that ends in {listed(PLAIN)}",
        )
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        what = f"files that end in {suffix} are not read" if suffix else "its name does not end in what it holds"
        hint = f"unpack it first: {unpacking(path)}" if suffix in PACKED else f"rows are read from {listed(PLAIN)}"
        raise DataError(f"{path}: {what}", hint)
    rows = read_arrow_file(path) if suffix in (".parquet", ".arrow") else _read_text(path, suffix)
    if not rows:
        expected = "a line of column names and one row a line are" if suffix in (".csv", ".tsv") else f"{ONE_A_LINE} is"
        raise DataError(f"{path}: no rows", f"{expected} expected")
    same_key = functools.cache(look_alike_key)  # of the columns' names, which every row has
    header = next((row for row in rows if _is_header(row.fields, same_key)), None)
    if header is not None:
        hint = "remove the line, as of a file that was put behind another; check that the columns have the same order"
        raise DataError(f"{header.where}: the row holds the names of the columns", hint)
    return rows


def _read_text(path: Path, suffix: str) -> list[Row]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}", "give a file that you may read") from error
    for start, what, hint in _FOREIGN:
        if data.startswith(start):
            raise DataError(f"{path}: the file is {what}", hint)
    if (zero := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, zero) + 1
        column = zero - data.rfind(b"\n", 0, zero)
        raise DataError(f"{path}:{line}: column {column}: a NUL byte, which is no text", "save the file as UTF-8 text")
    if suffix in (".csv", ".tsv"):
        return read_table(path, data, "," if suffix == ".csv" else "\t")
    return read_json(path, data)


def _is_header(fields: Mapping[str, Any], same_key: Callable[[str], str]) -> bool:
    """Whether the values of a row are the names of its columns, in any order, compared by `same_key`."""
    if not fields or not all(isinstance(value, str) and len(value) < _LONGEST_NAME for value in fields.values()):
        return False
    names = sorted(map(same_key, fields))
    return all(look_alike_key(value) in names for value in fields.values()) and names == sorted(
        map(look_alike_key, fields.values())
    )


def unpacking(path: Path) -> str:
    """The command that unpacks a file, by its extension."""
    tool = {".gz": "gunzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}.get(path.suffix.lower(), "unzip")
    return f"{tool} {path.name}"


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence: `.jsonl, .json or .csv`."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def read_table(path: Path, data: bytes, delimiter: str) -> list[Row]:
    """The rows below a header; all values are text.

    Raises:
        DataError: an invalid header or row, or ambiguous quotes; the message names the line in the file and the column.
    """
    text = decoded_file(path, data)
    lines = io.StringIO(text, newline="").readlines()
    characters = '"' in text and delimiter == "\t" and _quotes_are_characters(path, lines)
    records = iter(_plain_records(lines, delimiter)) if characters else _quoted_records(path, lines, delimiter)
    header = next(records, None)
    names = [name.strip() for name in header.values] if header is not None else []
    if header is not None:
        with at_row(f"{path}:{header.start}"):
            _check_header(names, delimiter)
    rows = all_rows(((f"{path}:{one.start}", one.values) for one in records), lambda values: _fields(names, values))
    if '"' in text and not characters:
        _check_one_reading(path, lines, delimiter)
    return rows


def _check_header(names: Sequence[str], delimiter: str) -> None:
    if names[0][:1] in ("{", "["):
        raise RowError("the file is JSON by its content", "give it a name that ends in .jsonl or .json")
    other = next((sign for sign in ";\t|," if sign != delimiter and sign in names[0]), None)
    if len(names) == 1 and other:
        hint = {"\t": "name the file .tsv", ",": "name the file .csv"}.get(other, "save the table with commas")
        raise RowError(f"one column, {truncate_repr(names[0])}: columns are divided by {other!r} here", hint)
    for number, name in enumerate(names, start=1):
        if re.fullmatch(r"[-+]?\d+(\.\d+)?", name):
            raise RowError(
                f"column {number}: {name!r} is a value: the first line does not name the columns",
                "put a line of column names above the rows, such as text,label",
            )
        if not name:
            raise RowError(
                f"column {number} has no name",
                "name it, or write the table without its index: to_csv(..., index=False)",
            )
        if name in names[: number - 1]:
            raise RowError(f"column {number}: there are two columns {name!r}", "rename one of them")


def _fields(names: Sequence[str], values: Sequence[str]) -> Mapping[str, Any]:
    if len(values) > len(names):
        raise RowError(
            f"after column {names[-1]!r}: {len(values)} values for {len(names)} columns; "
            f"the first too many is {truncate_repr(values[len(names)])}",
            "put quotes around a text that holds the sign between columns",
        )
    if len(values) < len(names):
        raise RowError(
            f"column {names[len(values)]!r} is missing: {len(values)} values for {len(names)} columns",
            "add the value, or put quotes around a text over several lines",
        )
    return dict(zip(names, values, strict=True))


# quotes around a value, or as characters of it: two readings that differ are refused, not guessed


class _Record(NamedTuple):
    """Values of a row, one per column, and its first and last line, counted from 1."""

    start: int
    end: int
    values: list[str]


def _plain_records(lines: Sequence[str], delimiter: str) -> list[_Record]:
    """A record for each non-empty line, with quotes as ordinary characters."""
    texts = ((number, line.rstrip("\r\n")) for number, line in enumerate(lines, start=1))
    return [_Record(number, number, text.split(delimiter)) for number, text in texts if text]


def _quoted_records(path: Path, lines: Sequence[str], delimiter: str) -> Iterator[_Record]:
    """The records with quoted values, as in RFC 4180; raises DataError for an unclosed quote."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            broken = _broken_column("".join(lines[start - 1 :]), delimiter)
            column = f"column {header[broken].strip()!r}: " if broken is not None and broken < len(header) else ""
            what, hint = _quote_mistake(str(error))
            raise DataError(f"{path}:{start}: {column}{what}", hint) from error
        if values:
            header = header or values
            yield _Record(start, reader.line_num, values)


def _quote_mistake(reason: str) -> tuple[str, str]:
    """The error for an unclosed quote, from the reason that `csv` gives."""
    hint = 'close the quote, and write one inside of a quoted text twice: "he said ""no"""'
    if "expected after" in reason:
        return "a quote stands inside of a quoted text, or an earlier one is never closed", hint
    if "field limit" in reason:
        what = f"a text of more than {csv.field_size_limit()} characters, or a quote that is never closed"
        return what, f"{hint}; longer texts are read from JSONL"
    return "a quote is opened and never closed", hint


def _broken_column(text: str, delimiter: str) -> int | None:
    """The number of the first value of a record that is neither plain nor properly quoted."""
    value = re.compile(rf'(?:"[^"]*(?:""[^"]*)*"|[^"{delimiter}\r\n][^{delimiter}\r\n]*|)(?=[{delimiter}\r\n]|\Z)')
    number, position = 0, 0
    while found := value.match(text, position):
        if text[found.end() : found.end() + 1] != delimiter:
            return None
        number, position = number + 1, found.end() + 1
    return number


def _quotes_are_characters(path: Path, lines: Sequence[str]) -> bool:
    """Whether the quotes of a TSV file are ordinary characters, as in GLUE, because every line is a row by itself.

    Raises DataError if they may also enclose values that would then differ.
    """
    plain = _plain_records(lines, "\t")
    count = len(plain[0].values) if plain else 0
    if count < 2 or any(len(record.values) != count for record in plain):
        return False
    try:
        quoted = list(_quoted_records(path, lines, "\t"))
    except DataError:
        return True
    if any(len(record.values) != count for record in quoted):
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


def _check_one_reading(path: Path, lines: Sequence[str], delimiter: str) -> None:
    """Raise DataError for quotes that may be ordinary characters.

    In a text over several lines each of which could be a row, after a space, or after a backslash.
    """
    records = list(_quoted_records(path, lines, delimiter))[1:]
    known = _repeated(records)
    for record in records:
        if record.end > record.start and _are_rows(record, lines, delimiter, known):
            raise _one_row_or_several(path, record, lines)
        if delimiter == ",":
            _check_quotes(path, record, "".join(lines[record.start - 1 : record.end]))


def _repeated(records: Sequence[_Record]) -> list[Collection[str]]:
    """The distinct values of each column in single-line rows; empty if no value repeats, as in a text column."""
    columns = zip(*(record.values for record in records if record.start == record.end), strict=True)
    return [distinct if len(distinct := set(column)) < len(column) else () for column in columns]


def _are_rows(record: _Record, lines: Sequence[str], delimiter: str, known: Sequence[Collection[str]]) -> bool:
    """Whether each line of a record could be a row: it has all columns, and one of its values occurs in other rows.

    If no value repeats in any column, it must not be running text, which has spaces after commas.
    """
    count = len(record.values)
    alone = [one.values for one in _plain_records(lines[record.start - 1 : record.end], delimiter)]
    if any(len(values) != count for values in alone) or count == 1 and delimiter == ",":
        return False
    if not any(known):
        return all(value and not value[0].isspace() for values in alone for value in values)
    alike = [any(value in held for value, held in zip(values, known, strict=True)) for values in alone]
    return sum(alike) > 1  # the first or the last line has the values beside the text in either reading


def _one_row_or_several(path: Path, record: _Record, lines: Sequence[str]) -> DataError:
    count = sum(1 for line in lines[record.start - 1 : record.end] if line.strip())
    return DataError(
        f"{path}:{record.start}: a quote that opens here closes in line {record.end}: one row with the text "
        f"{truncate_repr(max(record.values, key=len))}, or {count} rows with quotes as characters",
        'for a quote that is a character, put quotes around the value and write it twice: """Wow"", he said"; a row '
        "whose text has such lines is read from JSONL",
    )


def _check_quotes(path: Path, record: _Record, raw: str) -> None:
    """Raise DataError for a quote after a space or a backslash that was read as an ordinary character."""
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
