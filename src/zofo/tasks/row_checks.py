"""Problems with a task's rows as a whole: errors, or notes for the user to read before training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zofo.errors import DataError
from zofo.tasks.config import TaskConfig
from zofo.tasks.prompt_rendering import label_of, render
from zofo.tasks.readers.formats import single_label_error
from zofo.tasks.readers.row import Example, Row, questions_of, rows_note, turns_asked
from zofo.tasks.readers.sources import has_split
from zofo.tasks.task import SPLITS, Split, Task
from zofo.tasks.tokenization import TokenizedChoices
from zofo.tasks.tokenization_encoder import TokenizedCloze, TokenizedText

_FEW = 2  # rows of a label
_ENOUGH = 20  # rows in which the first choice is not missing by chance


def row_notes(task: Task, examples: Mapping[Split, Sequence[Example]]) -> list[str]:
    """Notes about labels that look like mistakes, repeated rows, and labels that are missing or rare.

    Args:
        examples: examples of each split, without demonstrations.
    """
    notes = _likely_mistakes(task, examples) + repeat_notes(examples, task.kind == "generation")
    lost = [one.where for rows in examples.values() for one in rows if any("\ufffd" in text for text in one.own)]
    if lost:
        count = sum(map(len, examples.values()))
        notes.append(rows_note(lost, count, "hold U+FFFD instead of letters that were lost"))
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
    """Labels that look like mistakes but may be intended, one per line."""
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
    """Content of rows that the model does not see, or is not trained on.

    The chat template omits it or changes it, or the tokenizer does not know it.

    Returns:
        A line for each kind, with the first such row.
    """
    rows: dict[str, list[str]] = {}
    others = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    unknown = None if tokenizer.unk_token_id in others else tokenizer.unk_token_id
    for one in encoded:
        lost = [f"have what the chat template does not write: {what}" for what in getattr(one, "unwritten", ())]
        if unknown is not None and any(unknown in row for row in one.rows):
            lost.append(f"hold characters that the tokenizer does not know, and reads as {tokenizer.unk_token}")
        if one.example is not None and one.example.messages and one.example.messages[0][0] == "assistant":
            lost.append("begin with an answer, which is read and not trained, since nothing is asked before it")
        for what in lost:
            rows.setdefault(what, []).append(one.example.where if one.example is not None else "")
    notes = [rows_note(places, len(encoded), what) for what, places in rows.items()]
    several = [one for one in encoded if getattr(one, "earlier_spans", ()) or getattr(one, "untrained", "")]
    if untrained := [f"{one.example.where}, {one.untrained}" for one in several if one.untrained]:
        what = "of train with several answers have an earlier one that is not trained"
        notes.append(rows_note(untrained, len(several), what))
    return notes


def readable_splits(task: Task, config: TaskConfig) -> list[Split]:
    """The splits that can be read without another download once train and validation are read."""
    if config.several:
        return list(SPLITS[:2])
    known = {task.splits[split].origin for split in SPLITS[:2]}
    if config.data_dir is not None:
        folder = config.data_dir
        return [split for split in SPLITS if has_split(folder, task.splits[split].origin)]
    local = Path(config.data).exists() if config.data is not None else bool(task.source and task.source.embedded)
    return [split for split in SPLITS if local or task.splits[split].origin in known]


def repeat_notes(examples: Mapping[Split, Sequence[Example]], generation: bool) -> list[str]:
    """Notes about rows that repeat a question of their split, and validation and test rows whose question is in train.

    The question may also be that of an earlier answer of a training row.

    Args:
        examples: examples of each split, without demonstrations.
        generation: whether they are free answers.
    """
    notes: list[str] = []
    trained: dict[Hashable, Example] = {}
    within: dict[Hashable, Example] = {}  # of questions of earlier answers
    for split in (split for split in SPLITS if split in examples):
        first: dict[Hashable, Example] = {}
        repeated, known, inside = (list[tuple[Example, Example]]() for _ in range(3))
        for one in examples[split]:
            *others, question = questions_of(one, not generation)
            earlier = first.setdefault(question, one)
            if earlier is not one:
                repeated.append((one, earlier))
            if split == "train":
                within.update(dict.fromkeys(others, one))
            elif question in trained:
                known.append((one, trained[question]))
            elif question in within:
                inside.append((one, within[question]))
        trained = first if split == "train" else trained
        contradicting = [(one, earlier) for one, earlier in repeated if _right(one) != _right(earlier)]
        more = f", {len(contradicting)} of them with another answer" if contradicting else ""
        rows = f"of {len(examples[split])} rows of {split}"
        if repeated:
            shown = _pair(*(contradicting or repeated)[0])
            notes.append(f"{len(repeated)} {rows} ask what an earlier row asks{more} ({shown})")
        if known:
            notes.append(f"{len(known)} {rows} are in train, too ({_pair(*known[0])})")
        if inside:
            what = f"for an earlier answer of a longer row of train ({_pair(*inside[0])})"
            notes.append(f"{len(inside)} {rows} ask {what}; task.trained_turns=last trains none of these")
    return notes


def _pair(one: Example, other: Example) -> str:
    return f"for example {one.where}, as {other.where}"


def _right(example: Example) -> Hashable:
    """The right answers, as texts, independent of the order of candidates."""
    if example.answers:
        return frozenset(text.strip() for text in example.answers)
    return frozenset(example.candidates[gold].strip() for gold in example.golds)


def check_test_rows(task: Task, examples: Mapping[Split, Sequence[Example]]) -> None:
    """Raise DataError for a test row that is in train or validation, if the task forbids it."""
    if not task.disjoint or "test" not in examples:
        return
    with_options = task.kind != "generation"

    def asked(one: Example) -> list[tuple[object, ...]]:
        return [(one.prompt, one.texts, turns, one.candidates if with_options else ()) for turns in turns_asked(one)]

    seen = {key: one for split in SPLITS[:2] for one in examples.get(split, ()) for key in asked(one)}
    same = [(one, seen[key]) for one in examples["test"] if (key := asked(one)[-1]) in seen]
    if same:
        row, known = same[0]
        raise DataError(
            f"{row.where}: the same input{' and options' if with_options else ''} as {known.where}, so that the test "
            f"is known from training; {len(same)} such rows in {task.name!r}",
            "remove them from one of the files, or allow them with task.allow_overlap=true",
        )


_RARE = 20  # a label is rare if another is this many times as frequent


_SHORT = 4  # minimum length; in shorter words, one letter makes another word


_MISSING = {"n/a", "na", "nan", "<na>", "#n/a", "null", "none", "nil", "?", "-"}  # how programs write missing values


def label_notes(counts: Mapping[Any, int]) -> list[str]:
    """Notes about labels that can be used, but that a user should look at."""
    notes = []
    texts = sorted((label for label in counts if isinstance(label, str)), key=lambda label: (-counts[label], label))
    for number, rare in enumerate(texts):
        like = next((label for label in texts[:number] if _typo(rare, label, counts[rare], counts[label])), None)
        if like is not None:
            few, many = _rows(counts[rare]), _rows(counts[like])
            notes.append(f"label {rare!r} ({few}) looks like a typo of {like!r} ({many})")
    named = [label for label in counts if isinstance(label, str) and label.strip().casefold() in _MISSING]
    notes += [f"label {label!r} ({_rows(counts[label])}) is read as a label, not as a missing one" for label in named]
    return notes


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _typo(rare: str, frequent: str, few: int, many: int) -> bool:
    """Whether a label differs from another only in punctuation, or is rare and one edit away."""
    plain = [re.sub(r"[-_\s.,:;!?\"'()\[\]]+", "", label.casefold()) for label in (rare, frequent)]
    if plain[0] == plain[1] and re.search(r"[^\W\d]", plain[0]):
        return True
    if many < _RARE * few or max(map(len, plain)) < _SHORT or _letters(plain[0]) == _letters(plain[1]):
        return False
    return _one_edit_apart(plain[0], plain[1])


def _letters(text: str) -> str:
    return re.sub(r"\d", "", text)


def _one_edit_apart(one: str, other: str) -> bool:
    """Whether two texts differ by one inserted, deleted or replaced character, or two swapped neighbours."""
    short, long = sorted((one, other), key=len)
    start = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    rest_short, rest_long = short[start:], long[start:]
    if len(long) - len(short) == 1:
        return rest_short == rest_long[1:]
    swapped = rest_short[1:2] + rest_short[:1] == rest_long[:2] and rest_short[2:] == rest_long[2:]
    return len(long) == len(short) and (swapped or rest_short[1:] == rest_long[1:])


def check_several_labels(
    task: Task, rows: Sequence[Row], examples: Sequence[Example], prompt: str | None, head: bool
) -> None:
    """Raise DataError if all training rows have the same candidates and the same right ones among them.

    Rows that were not drawn are considered, too: a few drawn rows may have one label by chance.
    """
    if task.kind == "generation" or task.kind == "multiple-choice" and len(examples) < 2:
        return
    first = _choice(examples[0])
    if any(_choice(one) != first for one in examples):
        return
    if all(_choice(render(task, row.fields, row.where, prompt, head)) == first for row in rows):
        assert task.label is not None
        raise single_label_error(task.label, label_of(task.label, rows[0].fields, task.name), rows)


def _choice(example: Example) -> tuple[frozenset[str], frozenset[str]]:
    """The candidates, and the right ones among them."""
    return frozenset(example.candidates), frozenset(example.candidates[gold] for gold in example.golds)


def check_token_ids(
    examples: Sequence[TokenizedChoices | TokenizedCloze | TokenizedText], tokenizer: Any, embeddings: int
) -> None:
    """Check that the model has an embedding for every token.

    Raises:
        DataError: a token has none; names the row, the token and the number of such rows.
    """
    beyond = [(one, max(one.ids)) for one in examples if max(one.ids, default=0) >= embeddings]
    if not beyond:
        return
    first, token = beyond[0]
    assert first.example is not None
    raise DataError(
        f"{first.example.where}: the text holds the token {tokenizer.convert_ids_to_tokens(token)!r} ({token}), and "
        f"the model has {embeddings} embeddings; {len(beyond)} of {len(examples)} rows hold such tokens",
        "resize the model with resize_token_embeddings and save it, or remove the token from rows or tokenizer",
    )
