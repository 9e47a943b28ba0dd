"""Rows of a task: from a local folder, an embedded data set or the Hub; checked, split and rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zofo.displacement import Key
from zofo.embedded import EMBEDDED_DATA
from zofo.errors import DataError, UnknownNameError
from zofo.noise import permutation
from zofo.tasks.task import SPLITS, Split, Task, TaskConfig, label_index, template_fields


@dataclass(frozen=True)
class Example:
    """A prompt and the candidates that may follow it.

    Args:
        prompt: text before the candidate.
        candidates: one text for each label, in the order of the task's labels.
        gold: index of the right candidate.
        where: file and line, or source and row, for messages.
    """

    prompt: str
    candidates: tuple[str, ...]
    gold: int
    where: str = ""


@dataclass(frozen=True)
class _Row:
    where: str
    fields: Mapping[str, Any]


def load_examples(task: Task, config: TaskConfig, splits: Sequence[Split] = SPLITS) -> dict[Split, list[Example]]:
    """Read, check, split and render all rows of a task.

    Returns:
        The examples of each split. Splits drawn from the same origin share no row; when the origin is too small, train
        keeps two thirds of it.

    Raises:
        DataError: a missing file or column, a label outside the verbalizers, an empty text, too few rows; with file,
            line and column.
    """
    examples: dict[Split, list[Example]] = {}
    for origin in dict.fromkeys(task.splits[split].origin for split in splits):
        rows = _read(task, config, origin)
        for split, chosen in _divide(task, origin, rows, config.split_seed).items():
            if split in splits:
                examples[split] = [render(task, row.fields, row.where) for row in chosen]
    return examples


def render(task: Task, fields: Mapping[str, Any], where: str) -> Example:
    """One row as an example.

    Raises:
        DataError: a missing column, an empty text or an unknown label; names the place.
    """
    if task.label not in fields:
        raise _missing(task, task.label, fields, where)
    gold = label_index(task, fields[task.label], where)
    return Example(render_prompt(task, fields, where), tuple(task.verbalizers.values()), gold, where)


def render_prompt(task: Task, fields: Mapping[str, Any], where: str) -> str:
    """The prompt of one row; its label is not read.

    Raises:
        DataError: a missing column, or a text that is empty, not a text, or not Unicode.
    """
    texts = {}
    for column in template_fields(task.template):
        if column not in fields:
            raise _missing(task, column, fields, where)
        text = fields[column]
        if not isinstance(text, str) or not text.strip():
            problem = "empty" if text is None or isinstance(text, str) else f"{text!r}, not a text"
            raise DataError(f"{where}: column {column!r} is {problem}", "mend or remove the row")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"{where}: column {column!r} holds half of a character (a lone surrogate)", "mend the row")
        texts[column] = text.strip()
    return task.template.format_map(texts)


def _missing(task: Task, column: str, fields: Mapping[str, Any], where: str) -> DataError:
    has = ", ".join(map(repr, fields)) or "nothing"
    return DataError(
        f"{where}: the column {column!r}, which the task {task.name!r} needs, is missing; the row has {has}",
        "rename the column in the file, or name yours in a copy of the task file",
    )


def _read(task: Task, config: TaskConfig, origin: str) -> list[_Row]:
    if config.data_dir is not None:
        return _read_folder(config.data_dir, origin)
    if task.source.embedded is not None:
        if task.source.embedded not in EMBEDDED_DATA:
            raise UnknownNameError("embedded data set", task.source.embedded, EMBEDDED_DATA)
        return _read_folder(EMBEDDED_DATA[task.source.embedded](), origin)
    return _read_hub(task, origin)


def _read_folder(folder: Path, origin: str) -> list[_Row]:
    path = folder / f"{origin}.jsonl"
    if not folder.is_dir():
        raise DataError(f"the data folder {str(folder)!r} does not exist", "give an existing folder to --data-dir")
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("*.jsonl"))) or "no .jsonl file"
        raise DataError(
            f"the data folder {str(folder)!r} has no {path.name}; it holds {found}",
            f"put the rows of the split {origin!r} there, one JSON object a line",
        )
    rows = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_Row(f"{path}:{number}", _parse_line(line, f"{path}:{number}")))
    if not rows:
        raise DataError(f"{path}: no rows", "one JSON object a line is expected")
    return rows


def _parse_line(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text: {error.reason} at byte {error.start} of the line") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: column {error.colno}: not JSON: {error.msg}", "one JSON object a line") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise DataError(f"{where}: not JSON that can be read: {error}", "one JSON object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__}, not an object with named columns", "one JSON object a line")
    return row


def _read_hub(task: Task, origin: str) -> list[_Row]:
    import datasets

    source = task.source
    datasets.utils.logging.set_verbosity_error()
    try:
        table = datasets.load_dataset(source.hub, source.config, split=origin)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"cannot load {source.hub!r} from the Hub or its cache: {first}",
            f"give a folder of JSONL with --data-dir, or use task=movie-reviews ({task.name} needs the Hub once)",
        ) from error
    return [_Row(f"{source.hub}/{origin} row {number}", row) for number, row in enumerate(table)]


def _divide(task: Task, origin: str, rows: Sequence[_Row], seed: int) -> dict[Split, Sequence[_Row]]:
    """The rows of every split that comes from `origin`, in the order train, validation, test; no row twice."""
    wanted = [split for split in SPLITS if task.splits[split].origin == origin]
    if len(wanted) == 1 and task.splits[wanted[0]].size is None:
        return {wanted[0]: rows}
    order = permutation(Key(seed, 0), f"splits/{task.name}/{origin}", len(rows))
    sizes = {split: task.splits[split].size or len(rows) for split in wanted}
    if sum(sizes.values()) > len(rows) and len(wanted) > 1:
        for split in wanted[1:]:
            sizes[split] = min(sizes[split], len(rows) // 3 // (len(wanted) - 1))
        sizes[wanted[0]] = min(sizes[wanted[0]], len(rows) - sum(sizes[split] for split in wanted[1:]))
    divided: dict[Split, Sequence[_Row]] = {}
    start = 0
    for split in wanted:
        divided[split] = [rows[i] for i in order[start : start + sizes[split]]]
        start += sizes[split]
    if not all(divided.values()):
        raise DataError(
            f"{rows[0].where}: {len(rows)} rows in all, too few to draw {' and '.join(wanted)} from", "give more rows"
        )
    return divided
