"""Notes on the rows of a task that a user should read before training; and which rows ask the same."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zofo.errors import DataError
from zofo.tasks.config import TaskConfig
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


def normalized(text: str) -> str:
    """A text in normalised form: NFKC, case folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def question_of(example: Example, with_candidates: bool) -> Hashable:
    """What an example asks, normalised: its prompt or turns, its texts, and the candidates in any order.

    Args:
        example: without demonstrations.
        with_candidates: whether candidates belong to the question; those of a generation hold its answer.
    """
    turns = tuple((role, normalized(content), *others) for role, content, *others in example.messages)
    texts = tuple(normalized(text) for text in example.texts)
    candidates = tuple(sorted(normalized(text) for text in example.candidates)) if with_candidates else ()
    return normalized(example.prompt), turns, texts, candidates


def repeat_notes(examples: Mapping[Split, Sequence[Example]], generation: bool) -> list[str]:
    """Notes on rows that ask what an earlier row of their split asks, and on rows of validation and test in train.

    Args:
        examples: of each split, without demonstrations.
        generation: whether they are free answers.
    """
    notes: list[str] = []
    trained: dict[Hashable, Example] = {}
    for split in (split for split in SPLITS if split in examples):
        first: dict[Hashable, Example] = {}
        repeated: list[tuple[Example, Example]] = []
        known: list[tuple[Example, Example]] = []
        for one in examples[split]:
            question = question_of(one, not generation)
            earlier = first.setdefault(question, one)
            if earlier is not one:
                repeated.append((one, earlier))
            if question in trained:
                known.append((one, trained[question]))
        trained = first if split == "train" else trained
        contradicting = [(one, earlier) for one, earlier in repeated if _right(one) != _right(earlier)]
        others = f", {len(contradicting)} of them with another answer" if contradicting else ""
        rows = f"of {len(examples[split])} rows of {split}"
        if repeated:
            shown = _pair(*(contradicting or repeated)[0])
            notes.append(f"{len(repeated)} {rows} ask what an earlier row asks{others} ({shown})")
        if known:
            notes.append(f"{len(known)} {rows} are in train, too ({_pair(*known[0])})")
    return notes


def _pair(one: Example, other: Example) -> str:
    return f"for example {one.where}, as {other.where}"


def _right(example: Example) -> Hashable:
    """What is right, as texts, whatever order the candidates stand in."""
    if example.answers:
        return frozenset(text.strip() for text in example.answers)
    return frozenset(example.candidates[gold].strip() for gold in example.golds)


def check_test_rows(task: Task, examples: Mapping[Split, Sequence[Example]]) -> None:
    """Raises DataError for a row of test that is in train or validation, where the task forbids it."""
    if not task.disjoint or "test" not in examples:
        return
    with_options = task.kind != "generation"

    def asked(one: Example) -> tuple[object, ...]:
        return one.prompt, one.texts, one.messages, one.candidates if with_options else ()

    seen = {asked(one): one for split in SPLITS[:2] for one in examples.get(split, ())}
    same = [(one, seen[key]) for one in examples["test"] if (key := asked(one)) in seen]
    if same:
        row, known = same[0]
        raise DataError(
            f"{row.where}: the same input{' and options' if with_options else ''} as {known.where}, so that the test "
            f"is known from training; {len(same)} such rows in {task.name!r}",
            "remove them from one of the files, or allow them with task.allow_overlap=true",
        )
