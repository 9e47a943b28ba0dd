"""Tokenisation for bidirectional models: a label word in the middle, or a head on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zofo.errors import DataError
from zofo.tasks.control_tokens import Speller, Spelt
from zofo.tasks.readers.row import Example
from zofo.tasks.tokenization import coded, fitted, leading
from zofo.tasks.tokenization_checks import too_long
from zofo.temporary import temporarily


class _OneText:
    """An example of one text."""

    tokens: tuple[int, ...]

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """The text as its only row."""
        return (self.tokens,)

    @property
    def ids(self) -> set[int]:
        """All of its tokens."""
        return set(self.tokens)

    @property
    def length(self) -> int:
        """Number of tokens of the text."""
        return len(self.tokens)

    @property
    def logits_to_keep(self) -> int:
        """Number of positions whose logits are needed; 0 for a head on top."""
        return 0

    def last_only(self) -> Any:
        """The example itself: it has one answer."""
        return self


@dataclass(frozen=True)
class TokenizedCloze(_OneText):
    """An example for a masked language model, with a mask for its label word in the middle of a text.

    Args:
        tokens: the whole text, with the mask in the label word's place.
        place: position of the mask.
        targets: the token of each candidate.
        gold: index of the candidate to train on.
    """

    tokens: tuple[int, ...]
    place: int
    targets: tuple[int, ...]
    gold: int
    example: Example

    @property
    def ids(self) -> set[int]:
        """All of its tokens, including those of the candidates."""
        return {*self.tokens, *self.targets}

    @property
    def logits_to_keep(self) -> int:
        """Number of positions whose logits are needed: from the mask on."""
        return len(self.tokens) - self.place


@dataclass(frozen=True)
class TokenizedText(_OneText):
    """An example for a classification head: one text or a pair.

    Args:
        tokens: the text, or both with the tokenizer's separator.
        types: which of the two each token belongs to, if the model needs it; otherwise empty.
        gold: index of the label to train on.
    """

    tokens: tuple[int, ...]
    types: tuple[int, ...]
    gold: int
    example: Example


def encode_masked(
    tokenizer: Any, examples: Sequence[Example], limit: int | None = None, truncate: bool = False
) -> list[TokenizedCloze]:
    """Tokenise examples for a masked language model: prompt, the mask in the candidate's place, ending.

    Each candidate is tokenised in place, and must be a single token there with the same tokens around it.

    Args:
        truncate: drop the oldest tokens of a longer prompt instead of refusing it.

    Raises:
        DataError: a text longer than `limit`, or a candidate that is not a single token.

    Source: the label words of LM-BFF (Gao, Fisch, Chen 2021), as in MeZO's RoBERTa experiments.
    """
    if tokenizer.mask_token_id is None:
        raise DataError(
            "a masked language model fills a mask, and this tokenizer has no mask token",
            "set model.head=classification, or name one in the folder's tokenizer_config.json",
        )
    speller = Speller(tokenizer)
    marked = [speller.in_marks(one, (one.prompt, one.ending, *one.candidates)) for one in examples]
    spelt = [
        Spelt(prompt + text + ending, None, marks, one.where)
        for one, ((prompt, ending, *texts), marks) in zip(examples, marked, strict=True)
        for text in texts
    ]
    pairs = iter(coded(speller, spelt))
    encoded = []
    for example, ((prompt, _, *texts), _) in zip(examples, marked, strict=True):
        around: tuple[int, ...] = ()
        place = 0
        targets: list[int] = []
        for candidate, text in zip(example.candidates, texts, strict=True):
            ids, spans, _ = next(pairs)
            start, end = len(prompt), len(prompt) + len(text)
            inside = [i for i, span in enumerate(spans) if span[1] > start and span[0] < end and span[0] < span[1]]
            frame = tuple(ids[: inside[0]] + ids[inside[-1] + 1 :]) if inside else ()
            if len(inside) != 1 or (targets and frame != around):
                raise DataError(
                    f"{example.where}: the candidate {candidate!r} is {len(inside)} tokens of this model, not one",
                    "a masked language model is asked for one token: choose other verbalizers, each a common word "
                    "after a space",
                )
            around, place = frame, inside[0]
            targets.append(ids[place])
        if len(set(targets)) < len(targets):
            raise DataError(f"{example.where}: two candidates are the same token", "choose other verbalizers")
        whole = (*around[:place], tokenizer.mask_token_id, *around[place:])
        head = leading(whole, speller.special)
        tokens = fitted([whole], [(head, place - head)], limit, truncate, example)[0]
        place -= len(whole) - len(tokens)
        encoded.append(TokenizedCloze(tokens, place, tuple(targets), example.gold, example))
    return encoded


def encode_texts(
    tokenizer: Any, examples: Sequence[Example], limit: int | None = None, truncate: bool = False
) -> list[TokenizedText]:
    """Tokenise examples for a classification head.

    A pair is joined as the tokenizer joins pairs, or with a line break if it has no separator token.

    Args:
        truncate: drop the oldest tokens of the longer text instead of refusing it.

    Raises:
        DataError: a text longer than `limit`.
    """
    if not examples:
        return []
    texts = [example.texts for example in examples]
    if tokenizer.sep_token_id is None:
        texts = [("\n".join(pair),) for pair in texts]
    speller = Speller(tokenizer)
    spelt = []
    for example, pair in zip(examples, texts, strict=True):
        (first, *second), marked = speller.in_marks(example, pair)
        spelt.append(Spelt(first, second[0] if second else None, marked, example.where))
    with temporarily(tokenizer, truncation_side="left"):
        parts = coded(
            speller,
            spelt,
            spans=False,
            truncation="longest_first" if truncate and limit else False,
            max_length=limit if truncate else None,
        )
    encoded = []
    for example, (ids, _, kinds) in zip(examples, parts, strict=True):
        if limit and len(ids) > limit:
            raise too_long(example, len(ids), limit)
        if not ids:
            raise DataError(f"{example.where}: the text has no token", "fix or remove the row")
        encoded.append(TokenizedText(tuple(ids), tuple(kinds), example.gold, example))
    return encoded
