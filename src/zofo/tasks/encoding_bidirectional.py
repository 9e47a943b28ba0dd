"""From text to tokens for models that see both sides: a label word in the middle, or a head on top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zofo.errors import DataError
from zofo.tasks.encoding import too_long
from zofo.tasks.example import Example


@dataclass(frozen=True)
class EncodedMask:
    """An example for a masked language model: its label word is asked for in the middle of a text.

    Args:
        tokens: the whole text, with the mask in the label word's place.
        place: where the mask is.
        targets: the token of each candidate.
        gold: index of the candidate that is trained on.
        example: as text.
    """

    tokens: tuple[int, ...]
    place: int
    targets: tuple[int, ...]
    gold: int
    example: Example

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return len(self.tokens)


@dataclass(frozen=True)
class EncodedText:
    """An example for a classification head: one text or a pair.

    Args:
        tokens: the text, or both with what the tokenizer puts between them.
        types: which of the two each token belongs to, where the model asks for that; else empty.
        gold: index of the label that is trained on.
        example: as text.
    """

    tokens: tuple[int, ...]
    types: tuple[int, ...]
    gold: int
    example: Example

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return len(self.tokens)


def encode_masked(
    tokenizer: Any, examples: Sequence[Example], limit: int | None = None, truncate: bool = False
) -> list[EncodedMask]:
    """Tokenise examples for a masked language model: prompt, the mask in the candidate's place, ending.

    Each candidate is tokenised in its place, and must be one token there with the same tokens around it.

    Args:
        tokenizer: a fast tokenizer with a mask token.
        examples: what to tokenise.
        limit: the longest text in tokens; None for no limit.
        truncate: drop the oldest tokens of a longer prompt instead of refusing it.

    Raises:
        DataError: a text longer than `limit`, or a candidate that is not one token.

    Source: the label words of LM-BFF (Gao, Fisch, Chen 2021), as in MeZO's RoBERTa experiments.
    """
    texts = [one.prompt + candidate + one.ending for one in examples for candidate in one.candidates]
    if not texts:
        return []
    coded = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    pairs = iter(zip(coded["input_ids"], coded["offset_mapping"], strict=True))
    encoded = []
    for example in examples:
        around: tuple[int, ...] = ()
        place = 0
        targets: list[int] = []
        for candidate in example.candidates:
            ids, spans = next(pairs)
            start, end = len(example.prompt), len(example.prompt) + len(candidate)
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
        tokens = (*around[:place], tokenizer.mask_token_id, *around[place:])
        excess = len(tokens) - (limit or len(tokens))
        if excess > 0:
            head = 1 if tokens[0] in tokenizer.all_special_ids else 0
            if not truncate or head + excess > place:
                raise too_long(example, len(tokens), len(tokens) - excess)
            tokens, place = tokens[:head] + tokens[head + excess :], place - excess
        encoded.append(EncodedMask(tokens, place, tuple(targets), example.gold, example))
    return encoded


def encode_texts(
    tokenizer: Any, examples: Sequence[Example], limit: int | None = None, truncate: bool = False
) -> list[EncodedText]:
    """Tokenise examples for a classification head, a pair as the tokenizer joins pairs, or line by line if it has no
    token to put between.

    Args:
        tokenizer: a tokenizer.
        examples: what to tokenise.
        limit: the longest text in tokens; None for no limit.
        truncate: drop the oldest tokens of the longer text instead of refusing it.

    Raises:
        DataError: a text longer than `limit`.
    """
    if not examples:
        return []
    texts = [example.texts for example in examples]
    if tokenizer.sep_token_id is None:
        texts = [("\n".join(pair),) for pair in texts]
    seconds = [pair[1] for pair in texts] if len(texts[0]) == 2 else None
    with _cutting_on_the_left(tokenizer):
        coded = tokenizer(
            [pair[0] for pair in texts],
            seconds,
            truncation="longest_first" if truncate and limit else False,
            max_length=limit if truncate else None,
            verbose=False,
        )
    types = coded.get("token_type_ids") or [()] * len(examples)
    encoded = []
    for example, ids, kinds in zip(examples, coded["input_ids"], types, strict=True):
        if limit and len(ids) > limit:
            raise too_long(example, len(ids), limit)
        if not ids:
            raise DataError(f"{example.where}: the text has no token", "mend or remove the row")
        encoded.append(EncodedText(tuple(ids), tuple(kinds), example.gold, example))
    return encoded


@contextmanager
def _cutting_on_the_left(tokenizer: Any) -> Iterator[None]:
    before = tokenizer.truncation_side
    tokenizer.truncation_side = "left"
    try:
        yield
    finally:
        tokenizer.truncation_side = before
