"""Rows of Arrow tables: of parquet and .arrow files, and of `datasets`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zofo.errors import DataError, first_line
from zofo.tasks.readers.row import NamedLabel, Row, RowError, all_rows


def read_arrow_file(path: Path) -> list[Row]:
    """All rows of a .parquet or .arrow file; raises DataError for an invalid one, or an unreadable column."""
    import pyarrow
    import pyarrow.parquet

    parquet = path.suffix.lower() == ".parquet"
    try:
        table = pyarrow.parquet.ParquetFile(path).read() if parquet else _read_arrow(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not {'a parquet' if parquet else 'an Arrow'} file: {first_line(error)}",
            "name the file by what it holds, or write it again",
        ) from error
    return table_rows(table, str(path))


def _read_arrow(path: Path) -> Any:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        try:
            return pyarrow.ipc.open_stream(file).read_all()  # as `datasets` writes it
        except pyarrow.ArrowInvalid:
            file.seek(0)
            return pyarrow.ipc.open_file(file).read_all()


def table_rows(table: Any, source: str, features: Mapping[str, Any] | None = None) -> list[Row]:
    """The rows of a table; numbers of classes with names become `NamedLabel`.

    Args:
        table: a `pyarrow.Table`; its schema may have the features of `datasets`.
        features: features of a `datasets.Dataset`; by default those in the schema.

    Raises:
        DataError: two columns have the same name, Python cannot hold a value, or a number has no class.
    """
    import pyarrow

    _check_distinct_columns(table.schema, source)
    try:
        for column in table.columns:
            if column.type == pyarrow.time64("ns"):
                column.cast(pyarrow.time64("us"))  # refused where to_pylist would drop nanoseconds
        items = [(f"{source} row {number}", fields) for number, fields in enumerate(table.to_pylist())]
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{source}: {first_line(error)}", "write such a column as text, or leave it out") from error
    if features is None:
        features = _features(table.schema.metadata or {}, source)
    classes = {column: one for column, one in features.items() if isinstance(one, Mapping)}
    named = {column: one["names"] for column, one in classes.items() if one.get("_type") == "ClassLabel"}
    if not named:
        return [Row(where, fields) for where, fields in items]
    return all_rows(
        items, lambda fields: {column: _named(value, column, named.get(column)) for column, value in fields.items()}
    )


def _check_distinct_columns(fields: Any, place: str) -> None:
    """Raise DataError for two columns of the same name, at any depth: a row would keep only one."""
    import pyarrow

    twice = [name for name, count in Counter(field.name for field in fields).items() if count > 1]
    if twice:
        raise DataError(f"{place}: there are two columns {twice[0]!r}", "rename one of them")
    for field in fields:
        inner = field.type
        while pyarrow.types.is_list(inner) or pyarrow.types.is_large_list(inner):
            inner = inner.value_type
        if pyarrow.types.is_struct(inner):
            _check_distinct_columns(
                [inner.field(i) for i in range(inner.num_fields)], f"{place}: column {field.name!r}"
            )


def _features(metadata: Mapping[bytes, bytes], source: str) -> Mapping[str, Any]:
    """The features of the columns that `datasets` writes into a schema."""
    if b"huggingface" not in metadata:
        return {}
    try:
        return dict(json.loads(metadata[b"huggingface"])["info"]["features"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{source}: what the schema says of its columns under 'huggingface' cannot be read",
            "write the file again with a newer version of datasets, or without that entry",
        ) from error


def _named(value: Any, column: str, names: Sequence[str] | None) -> Any:
    """A class number with the name of its class; -1 means no label."""
    if names is None or not isinstance(value, int) or value == -1:
        return value
    if not 0 <= value < len(names):
        raise RowError(
            f"column {column!r} is {value}, but its classes are {', '.join(names[:10])}",
            f"write a number from 0 to {len(names) - 1}, or -1 for no label",
        )
    return NamedLabel(value, names[value])
