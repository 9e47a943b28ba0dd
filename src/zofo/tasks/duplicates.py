"""Rows that ask the same, in one split or in several."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Repeats:
    """How many rows of a split are there again.

    Args:
        repeated: rows that ask what an earlier row of the split asks.
        contradicting: those of them for which something else is right.
        in_train: rows of validation or test that ask what a row of train asks.
        examples: for each of the three that is not 0, the places of a first pair.
    """

    repeated: int = 0
    contradicting: int = 0
    in_train: int = 0
    examples: Mapping[str, tuple[str, str]] | None = None

    def notes(self, split: Split, rows: int) -> list[str]:
        """What is said of them, a line each; none where no row is there again."""

        def pair(of: str) -> str:
            one, other = (self.examples or {})[of]
            return f"for example {one}, as {other}"

        said = []
        if self.repeated:
            others = f", {self.contradicting} of them with another answer" if self.contradicting else ""
            shown = pair("contradicting" if self.contradicting else "repeated")
            said.append(f"{self.repeated} of {rows} rows of {split} ask what an earlier row asks{others} ({shown})")
        if self.in_train:
            said.append(f"{self.in_train} of {rows} rows of {split} are in train, too ({pair('in_train')})")
        return said


def repeats_of(examples: Mapping[Split, Sequence[Example]], generation: bool) -> dict[Split, Repeats]:
    """The rows of each split that are there again, by what they ask.

    Args:
        examples: of each split, without demonstrations.
        generation: whether they are free answers.
    """
    found: dict[Split, Repeats] = {}
    trained: dict[Hashable, str] = {}
    for split in (split for split in SPLITS if split in examples):
        first: dict[Hashable, Example] = {}
        counts = dict.fromkeys(("repeated", "contradicting", "in_train"), 0)
        pairs: dict[str, tuple[str, str]] = {}
        for one in examples[split]:
            question = question_of(one, not generation)
            earlier = first.setdefault(question, one)
            seen = {"repeated": earlier.where if earlier is not one else None, "in_train": trained.get(question)}
            seen["contradicting"] = earlier.where if _right(earlier) != _right(one) else None
            for name, place in seen.items():
                if place is not None:
                    counts[name] += 1
                    pairs.setdefault(name, (one.where, place))
        if split == "train":
            trained = {question: one.where for question, one in first.items()}
        found[split] = Repeats(**counts, examples=pairs)
    return found


def _right(example: Example) -> Hashable:
    """What is right, as texts, whatever order the candidates stand in."""
    if example.answers:
        return frozenset(text.strip() for text in example.answers)
    return frozenset(example.candidates[gold].strip() for gold in example.golds)
