"""Rows of a split: from the files of a folder, from `save_to_disk`, or from the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from zofo.errors import DataError, first_line
from zofo.hub import asking_cache, near_path, unreachable
from zofo.tasks.readers.arrow_tables import table_rows
from zofo.tasks.readers.files import PACKED, PLAIN, SUFFIXES, listed, read_file, unpacking
from zofo.tasks.readers.row import Row
from zofo.temporary import temporarily


def read_folder(folder: Path, origin: str) -> list[Row]:
    """All rows of the file of a split in a folder, or of its shards.

    Args:
        folder: a folder with, for example, train.jsonl, validation.csv and test.parquet, or shards of these named as on
            the Hub, train-00000-of-00002.parquet; or one written by `save_to_disk`. The files may also be in its
            subfolder `data`.
        origin: name of the split, and of the file; validation may also be named val or dev, and is used for
            validation_matched if there is no such file. If there is no such name, FOLDER_ROWS_SEED_train.jsonl is
            train, as MetaICL's scripts write it, and likewise dev and test: if there are several, the one with the most
            rows, and seed 100.

    Raises:
        DataError: there is no such file, or more than one; a shard is missing; or it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"the data folder {str(folder)!r} does not exist", "give an existing folder to --data-dir")
    if is_saved(folder):
        return read_saved(folder, origin)
    files = files_of(folder, origin)
    if not files:
        found = names_of(folder) or f"no .jsonl file, and none of {listed(PLAIN[1:])}"
        raise DataError(
            f"the data folder {str(folder)!r} has no {origin}.jsonl; it holds {found}",
            f"put the rows of the split {origin!r} there, one JSON object a line, or as .csv, .tsv or .parquet",
        )
    return [row for path in files for row in read_file(path)]


def read_hub(hub: str, config: str | None, revision: str | None, origin: str, name: str) -> list[Row]:
    """All rows of a split of a Hub data set, from the Hub or its cache.

    Args:
        config: which of its configurations; None if it has only one.
        revision: branch, tag or commit; None for the newest.

    Raises:
        DataError: the data set cannot be loaded.
    """
    import datasets

    table = _from_hub(hub, name, lambda: datasets.load_dataset(hub, config, revision=revision, split=origin))
    return dataset_rows(table, f"{hub}/{origin}")


def hub_origins(hub: str) -> set[str]:
    """The splits of a Hub data set. Raises DataError if it cannot be found."""
    import datasets

    return set(_from_hub(hub, hub, lambda: datasets.get_dataset_split_names(hub)))


def _from_hub(hub: str, name: str, load: Callable[[], Any]) -> Any:
    import datasets

    datasets.utils.logging.set_verbosity_error()
    if (near := near_path(hub)) is not None:
        raise DataError(f"there is no file or folder {hub!r}. Did you mean {near!r}?", "name a file, or a Hub id")
    lost = unreachable()
    asked = datasets.config.HF_HUB_OFFLINE or lost is not None
    try:
        with nullcontext() if lost is None else asking_cache(), temporarily(datasets.config, HF_HUB_OFFLINE=asked):
            return load()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        why = first_line(error) if lost is None else f"the Hub cannot be reached ({lost})"
        raise DataError(
            f"cannot load {hub!r} from the Hub or its cache: {why}",
            f"give a folder of JSONL with --data-dir, or use task=movie-reviews ({name} needs the Hub once)",
        ) from error


_ALIASES = {"validation": ("validation", "val", "dev")}
_METAICL = re.compile(r"(?P<task>.+)_(?P<rows>\d+)_(?P<seed>\d+)_(?P<split>train|dev|test)")
_ITS_SEED = 100  # of the training rows that MetaICL meta-trains on
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})")


def folder_origins(folder: Path) -> set[str] | None:
    """The splits for which a folder has a file; `val` and `dev` are validation; None for one saved Dataset.

    Raises:
        DataError: a compressed file of rows, or a saved data set that cannot be loaded.
    """
    known = {alias: origin for origin, aliases in _ALIASES.items() for alias in aliases}
    if is_saved(folder):
        saved = _load_saved(folder)
        return {known.get(str(split), str(split)) for split in saved} if isinstance(saved, dict) else None
    files = _files(folder)
    metaicl: dict[str, str] = {
        path.stem: split for split in ("train", "validation", "test") for path in _by_metaicl(files, split)
    }
    splits = {path: _split_of(path) for path in files}
    return {metaicl.get(path.stem, known.get(split, split)) for path, split in splits.items()}


def has_split(folder: Path, origin: str) -> bool:
    """Whether a folder has rows of a split, in any number of files."""
    if not folder.is_dir():
        return False
    if not is_saved(folder):
        return bool(_fitting(_files(folder), origin))
    saved = _load_saved(folder)
    return isinstance(saved, dict) and any(alias in saved for alias in _ALIASES.get(origin, (origin,)))


def files_of(folder: Path, origin: str) -> list[Path]:
    """The files of a split, shards in order; empty if there are none.

    Raises:
        DataError: several files that are not shards of one, or a missing or duplicate shard.
    """
    fitting = _fitting(_files(folder), origin) if folder.is_dir() else []
    shards = [_SHARD.fullmatch(path.stem) for path in fitting]
    totals = {
        (shard["split"], shard["total"], path.suffix) for shard, path in zip(shards, fitting, strict=True) if shard
    }
    if len(fitting) == 1 and not totals:
        return fitting
    if len(totals) > 1 or fitting and not all(shards):
        raise DataError(
            f"the data folder {str(folder)!r} has {len(fitting)} files for the split {origin!r}: "
            + ", ".join(path.name for path in fitting),
            "keep one of them there",
        )
    numbered = [(int(shard["number"]), path) for shard, path in zip(shards, fitting, strict=True) if shard]
    for name, total, suffix in totals:
        wanted = [f"{name}-{number:05d}-of-{total}{suffix}" for number in range(int(total))]
        lost = [one for one in wanted if one not in {path.name for path in fitting}]
        if lost or len(numbered) > len(wanted):
            what = f"{lost[0]} is missing" if lost else f"there are {len(numbered)} shards of {int(total)}"
            raise DataError(f"the data folder {str(folder)!r}: {what}", f"fetch all {int(total)} shards of {origin!r}")
    return [path for _, path in sorted(numbered)]


def _split_of(path: Path) -> str:
    shard = _SHARD.fullmatch(path.stem)
    return str(shard["split"]) if shard else path.stem


def _files(folder: Path) -> list[Path]:
    """The files with rows in a folder, or in its subfolder `data`, as in a Hub repository."""
    held = sorted(path for path in folder.iterdir() if path.is_file())
    files = [path for path in held if path.suffix.lower() in SUFFIXES]
    names = {path.name for path in files}
    for path in held:
        if path.suffix.lower() in PACKED and Path(path.stem).suffix.lower() in SUFFIXES and path.stem not in names:
            raise DataError(f"{path}: the file is compressed, and is not read", f"unpack it first: {unpacking(path)}")
    return files or (_files(folder / "data") if (folder / "data").is_dir() else [])


def _fitting(files: Sequence[Path], origin: str) -> list[Path]:
    """The files of a split."""
    fitting = [path for path in files if _split_of(path) in _ALIASES.get(origin, (origin,))]
    if not fitting and origin.startswith("validation_"):  # MNLI's validation_matched, where there is only one
        fitting = [path for path in files if _split_of(path) in _ALIASES["validation"]]
    return fitting or _by_metaicl(files, origin)[:1]


def _by_metaicl(files: Sequence[Path], origin: str) -> list[Path]:
    """The files of MetaICL's scripts, FOLDER_ROWS_SEED_SPLIT.jsonl: most rows first, then its usual seed."""
    found = []
    for path in files:
        parts = _METAICL.fullmatch(path.stem)
        if parts is None or path.suffix != ".jsonl" or file_name(parts["task"]) != file_name(path.parent.name):
            continue
        if parts["split"] in _ALIASES.get(origin, (origin,)):
            rows, seed = int(parts["rows"]), int(parts["seed"])
            found.append(((-rows, seed != _ITS_SEED, seed), path))
    return [path for _, path in sorted(found)]


def file_name(task: str) -> str:
    """The name of a task's file or folder on any system: `unifiedqa_squad2` for `unifiedqa:squad2`."""
    return task.replace(":", "_")


def names_of(folder: Path) -> str:
    """The names of the files with rows in a folder, for a message; "" for none."""
    return ", ".join(path.name for path in _files(folder))


def folders_with_rows(folder: Path) -> list[str]:
    """The subfolders with files of rows, such as the configurations of a Hub repository."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    return [str(path) for path in inner if any(one.suffix.lower() in SUFFIXES for one in path.iterdir())]


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote a folder."""
    one = all((folder / name).is_file() for name in ("dataset_info.json", "state.json"))
    return one or (folder / "dataset_dict.json").is_file()


def read_saved(folder: Path, origin: str) -> list[Row]:
    """The rows of a split of a folder that `save_to_disk` wrote; all rows of a Dataset if the origin is `data`.

    Raises:
        DataError: it cannot be loaded, or has no such split.
    """
    saved = _load_saved(folder)
    splits = saved if isinstance(saved, dict) else {"data": saved, str(saved.split): saved}
    fitting = [split for split in _ALIASES.get(origin, (origin,)) if split in splits]
    if len(fitting) != 1:
        found = f"has {len(fitting)} splits for" if fitting else "has no split"
        held = ", ".join(splits) if isinstance(saved, dict) else "one Dataset, in no splits"
        raise DataError(
            f"the data set that was saved in {str(folder)!r} {found} {origin!r}; it has {held}",
            "save a DatasetDict with this split, or give a single Dataset to --data",
        )
    source = f"{folder}/{fitting[0]}" if isinstance(saved, dict) else str(folder)
    return dataset_rows(splits[fitting[0]], source)


def dataset_rows(dataset: Any, source: str) -> list[Row]:
    """The rows of a `datasets.Dataset`; images and sounds stay as stored."""
    return table_rows(dataset.with_format("arrow")[:], source, dataset.features.to_dict())


def _load_saved(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load the data set that was saved in {str(folder)!r}: {first_line(error)}",
            "save it again with save_to_disk",
        ) from error
