"""Rows from files, folders and the Hub; every row that cannot be read is named by file, line and column."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zofo.errors import DataError
from zofo.tasks.reading.csv_files import read_table
from zofo.tasks.reading.json_files import ONE_A_LINE, read_json_array, read_json_lines
from zofo.tasks.reading.look_alikes import look_alike_key
from zofo.tasks.reading.rows import Row

__all__ = ["SUFFIXES", "Row", "file_of", "folder_origins", "hub_origins", "read_file", "read_folder", "read_hub"]

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Ends of the names of files that hold rows."""

_ALIASES = {"validation": ("validation", "val", "dev")}
_METAICL = re.compile(r"(?P<task>.+)_(?P<rows>\d+)_(?P<seed>\d+)_(?P<split>train|dev|test)")
_LONGEST_NAME = 100  # of a column
_ITS_SEED = 100  # of the training rows that MetaICL meta-trains on
_FOREIGN = (  # how files begin that are no text in UTF-8, what they are, and what to do
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first: gunzip FILE.gz"),
    (b"PK\x03\x04", "a zip archive or an Excel sheet", "unpack it, or save the sheet as CSV in UTF-8"),
    (b"PAR1", "a parquet file by its content", "give it a name that ends in .parquet"),
    (b"version https://git-lfs", "a pointer of Git LFS in place of the data", "fetch the data: git lfs pull"),
)


def read_file(path: Path) -> list[Row]:
    """All rows of a file: JSON lines or a JSON array, CSV, TSV, or parquet, by the end of its name.

    Args:
        path: ends in one of `SUFFIXES`.

    Returns:
        At least one row. Values of CSV and TSV are text.

    Raises:
        DataError: the file or one of its rows cannot be read; names file, line and column, and shows a row that can.
    """
    if not path.is_file():
        raise DataError(
            f"{str(path)!r} is a folder" if path.is_dir() else f"there is no file {str(path)!r}",
            f"give a file that ends in {_listed(SUFFIXES)}",
        )
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        what = f"files that end in {suffix} are not read" if suffix else "its name does not end in what it holds"
        hint = "unpack it first: gunzip FILE.gz" if suffix == ".gz" else f"rows are read from {_listed(SUFFIXES)}"
        raise DataError(f"{path}: {what}", hint)
    rows = _read_parquet(path) if suffix == ".parquet" else _read_text(path, suffix)
    if not rows:
        expected = "a line of column names and one row a line are" if suffix in (".csv", ".tsv") else f"{ONE_A_LINE} is"
        raise DataError(f"{path}: no rows", f"{expected} expected")
    header = next((row for row in rows if _is_header(row.fields)), None)
    if header is not None:
        hint = "remove the line, as of a file that was put behind another; check that the columns have the same order"
        raise DataError(f"{header.where}: the row holds the names of the columns", hint)
    return rows


def _is_header(fields: Mapping[str, Any]) -> bool:
    """Whether the values of a row are the names of its columns, in any order."""
    if not fields or not all(isinstance(value, str) and len(value) < _LONGEST_NAME for value in fields.values()):
        return False
    return sorted(map(look_alike_key, fields)) == sorted(map(look_alike_key, fields.values()))


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


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
    if suffix == ".json" and data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return read_json_array(path, data)
    return read_json_lines(path, data)


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: not a parquet file: {reason}", "name the file by what it holds, or write it again"
        ) from error
    return [Row(f"{path} row {number}", fields) for number, fields in enumerate(table.to_pylist())]


def folder_origins(folder: Path) -> set[str]:
    """The splits that a folder has a file of; `val` and `dev` are validation."""
    files = _files(folder)
    known = {alias: origin for origin, aliases in _ALIASES.items() for alias in aliases}
    metaicl = {path.stem: split for split in ("train", "validation", "test") for path in _by_metaicl(files, split)}
    return {metaicl.get(path.stem) or known.get(path.stem, path.stem) for path in files}


def file_of(folder: Path, origin: str) -> Path | None:
    """The file that `read_folder` reads for a split; None where there is none, or more than one."""
    fitting = _fitting(_files(folder), origin) if folder.is_dir() else []
    return fitting[0] if len(fitting) == 1 else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)


def _fitting(files: Sequence[Path], origin: str) -> list[Path]:
    """The files of a split."""
    fitting = [path for path in files if path.stem in _ALIASES.get(origin, (origin,))]
    if not fitting and origin.startswith("validation_"):  # MNLI's validation_matched, where there is only one
        fitting = [path for path in files if path.stem in _ALIASES["validation"]]
    return fitting or _by_metaicl(files, origin)[:1]


def _by_metaicl(files: Sequence[Path], origin: str) -> list[Path]:
    """Those that are named as MetaICL's scripts do it, FOLDER_ROWS_SEED_SPLIT.jsonl: most rows first, then its seed."""
    found = []
    for path in files:
        parts = _METAICL.fullmatch(path.stem)
        if parts is None or path.suffix != ".jsonl" or _plain(parts["task"]) != _plain(path.parent.name):
            continue
        if parts["split"] in _ALIASES.get(origin, (origin,)):
            rows, seed = int(parts["rows"]), int(parts["seed"])
            found.append(((-rows, seed != _ITS_SEED, seed), path))
    return [path for _, path in sorted(found)]


def _plain(name: str) -> str:
    """A task's name as any file system takes it."""
    return name.replace(":", "_")


def read_folder(folder: Path, origin: str) -> list[Row]:
    """All rows of the file of a folder that is named for a split.

    Args:
        folder: holds, for example, train.jsonl, validation.csv and test.parquet.
        origin: name of the split, and of the file; validation may be named val or dev as well, and stands for
            validation_matched where there is no such file. Where there is no such name, FOLDER_ROWS_SEED_train.jsonl
            is train, as MetaICL's scripts write it, with dev and test alike: of several the one of most rows, and of
            seed 100.

    Raises:
        DataError: there is no such file, or more than one, or it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"the data folder {str(folder)!r} does not exist", "give an existing folder to --data-dir")
    files = _files(folder)
    fitting = _fitting(files, origin)
    if not fitting:
        found = ", ".join(path.name for path in files) or f"no .jsonl file, and none of {_listed(SUFFIXES[1:])}"
        raise DataError(
            f"the data folder {str(folder)!r} has no {origin}.jsonl; it holds {found}",
            f"put the rows of the split {origin!r} there, one JSON object a line, or as .csv, .tsv or .parquet",
        )
    if len(fitting) > 1:
        raise DataError(
            f"the data folder {str(folder)!r} has {len(fitting)} files for the split {origin!r}: "
            + ", ".join(path.name for path in fitting),
            "keep one of them there",
        )
    return read_file(fitting[0])


def read_hub(hub: str, config: str | None, revision: str | None, origin: str, name: str) -> list[Row]:
    """All rows of a split of a Hub data set, from the Hub or its cache.

    Args:
        hub: id of the data set.
        config: which of its configurations; None where it has one.
        revision: branch, tag or commit; None for the newest.
        origin: name of the split.
        name: of the task, for messages.

    Raises:
        DataError: the data set cannot be loaded.
    """
    import datasets

    table = _from_hub(hub, name, lambda: datasets.load_dataset(hub, config, revision=revision, split=origin))
    return [Row(f"{hub}/{origin} row {number}", row) for number, row in enumerate(table)]


def hub_origins(hub: str) -> set[str]:
    """The splits of a Hub data set.

    Raises:
        DataError: it cannot be found.
    """
    import datasets

    return set(_from_hub(hub, hub, lambda: datasets.get_dataset_split_names(hub)))


def _from_hub(hub: str, name: str, load: Callable[[], Any]) -> Any:
    import datasets

    datasets.utils.logging.set_verbosity_error()
    try:
        return load()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"cannot load {hub!r} from the Hub or its cache: {first}",
            f"give a folder of JSONL with --data-dir, or use task=movie-reviews ({name} needs the Hub once)",
        ) from error
