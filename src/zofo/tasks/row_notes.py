"""Notes on the rows of a task that a user should read before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zofo.tasks.config import TaskConfig
from zofo.tasks.duplicates import repeat_notes
from zofo.tasks.example import Example
from zofo.tasks.readers.look_alikes import label_notes
from zofo.tasks.readers.sources import has_split
from zofo.tasks.task import SPLITS, Split, Task

_FEW = 2  # rows of a label
_ENOUGH = 20  # rows in which the first choice is not missing by chance


def row_notes(task: Task, examples: Mapping[Split, Sequence[Example]]) -> list[str]:
    """Notes on labels that look like mistakes, repeated rows, and labels that are missing or rare.

    Args:
        examples: examples of each split, without demonstrations.
    """
    notes = _likely_mistakes(task, examples) + repeat_notes(examples, task.kind == "generation")
    lost = [one.where for rows in examples.values() for one in rows if any("\ufffd" in text for text in one.own)]
    if lost:
        notes.append(f"U+FFFD stands in {len(lost)} rows in place of letters that were lost; the first is {lost[0]}")
    if task.kind != "classification":
        return notes
    names = [str(label) for label in task.label_names]
    for split, rows in examples.items():
        counts = Counter(gold for one in rows for gold in one.golds)
        if split == "train" and counts:
            lacks = [repr(name) for gold, name in enumerate(names) if gold not in counts]
            few = [f"{name!r} ({counts[gold]})" for gold, name in enumerate(names) if 0 < counts[gold] <= _FEW]
            notes += [f"no row of train has the label {', '.join(lacks)}"] * bool(lacks)
            notes += [f"train has few rows of the label {', '.join(few)}"] * bool(few and len(rows) > _FEW * len(names))
        elif len(counts) == 1:
            label = names[next(iter(counts))]
            notes.append(f"all {len(rows)} rows of {split} have the label {label!r}: saying it always scores 100 %")
    return notes


def _likely_mistakes(task: Task, examples: Mapping[Split, Sequence[Example]]) -> list[str]:
    """Labels that look like mistakes but may be intended, a line each."""
    rows = [one for split in examples.values() for one in split]
    counts = Counter(gold for one in rows for gold in one.golds)
    if task.kind == "classification":
        return label_notes({label: counts[place] for place, label in enumerate(task.label_names) if counts[place]})
    if task.kind != "multiple-choice" or task.labels is not None:
        return []
    notes: list[str] = []
    for name, some in {"": rows, **{f" of {split}": ones for split, ones in examples.items()}}.items():
        known = [gold for one in some for gold in one.golds]
        if len(some) >= _ENOUGH and known and 0 not in known and not notes:
            start = "if its numbers count from 1, say so: labels: [1, 2, ...]"
            notes.append(f"the first choice is right in none of {len(some)} rows{name}; {start}")
    return notes


def unwritten_notes(tokenizer: Any, encoded: Sequence[Any]) -> list[str]:
    """Content of rows that the model does not see: the chat template drops it, or the tokenizer does not know it.

    Returns:
        A line for each kind, with the first such row.
    """
    rows: dict[str, list[str]] = {}
    others = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    unknown = None if tokenizer.unk_token_id in others else tokenizer.unk_token_id
    for one in encoded:
        lost = [f"have what the chat template does not write: {what}" for what in getattr(one, "unwritten", ())]
        if unknown is not None and any(unknown in row for row in getattr(one, "rows", None) or (one.tokens,)):
            lost.append(f"hold characters that the tokenizer does not know, and reads as {tokenizer.unk_token}")
        for what in lost:
            rows.setdefault(what, []).append(one.example.where if one.example is not None else "")
    return [f"{len(places)} of {len(encoded)} rows {what}; the first is {places[0]}" for what, places in rows.items()]


def readable_splits(task: Task, config: TaskConfig) -> list[Split]:
    """The splits that can be read without a new download once train and validation are read."""
    if config.several:
        return list(SPLITS[:2])
    known = {task.splits[split].origin for split in SPLITS[:2]}
    if config.data_dir is not None:
        folder = config.data_dir
        return [split for split in SPLITS if has_split(folder, task.splits[split].origin)]
    local = Path(config.data).exists() if config.data is not None else bool(task.source and task.source.embedded)
    return [split for split in SPLITS if local or task.splits[split].origin in known]
