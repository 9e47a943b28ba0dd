"""Rows that ask the same, in one split or in several."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Mapping, Sequence

from zofo.tasks.example import Example
from zofo.tasks.task import SPLITS, Split


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
