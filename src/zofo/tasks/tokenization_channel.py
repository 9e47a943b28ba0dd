"""Tokenisation for channel scores: the likelihood of a prompt after each candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zofo.errors import DataError
from zofo.tasks.readers.row import Example
from zofo.tasks.tokenization import TokenizedChoices, encode, fitted, leading


def in_channel(example: Example) -> str:
    """A solved example with its candidate before its prompt."""
    return f"{_candidate(example, example.gold)}{example.prompt.strip()}"


def _candidate(example: Example, number: int) -> str:
    return f"{example.candidates[number].strip()}\n"


def encode_channel(
    tokenizer: Any, examples: Sequence[Example], limit: int | None = None, truncate: bool = False
) -> list[TokenizedChoices]:
    """Tokenise examples so that the score of a candidate is the likelihood of the prompt after it.

    score[c] = (1 / n) sum over the n tokens of the prompt of log p(token | demonstrations, c, tokens before it).

    Every candidate is followed by the same tokens, those of the prompt, so means and sums give the same ranking.

    Args:
        truncate: drop the oldest tokens of longer rows: of the demonstrations, then of the prompt.

    Raises:
        DataError: a text longer than `limit`, a chat, or an example without candidates to choose from.

    Source: Min, Lewis, Hajishirzi, Zettlemoyer (2022), "Noisy Channel Language Model Prompting for Few-Shot Text
    Classification".
    """
    if not examples:
        return []
    flat: list[Example] = []
    for example in examples:
        of_several = bool(example.task)  # which one may be in free text
        if example.messages or len(example.candidates) < 2 and not of_several:
            raise DataError(
                f"{example.where}: task.scoring=channel scores the prompt after each candidate, but there are no "
                "candidates to choose from",
                "set task.scoring=mean, or choose a classification or multiple-choice task",
            )
        prompt = example.prompt.strip()
        flat += [
            Example(example.before + _candidate(example, number), (prompt,), (0,), where=example.where, own=example.own)
            for number in range(len(example.candidates))
        ]
    before = [one.before for one in examples]
    alone = tokenizer(before, add_special_tokens=False, return_attention_mask=False, verbose=False)
    heads = iter([len(ids) for ids in alone["input_ids"]])
    flat_rows = iter(encode(tokenizer, flat))
    special = set(tokenizer.all_special_ids)
    encoded = []
    for example in examples:
        parts = [next(flat_rows) for _ in example.candidates]
        rows, scored = [part.rows[0] for part in parts], min(part.scored[0] for part in parts)
        demonstrations, longest = next(heads), max(map(len, rows))
        spare = [(leading(rows[0], special), demonstrations), (-scored, scored - 1)]  # of the prompt, its oldest tokens
        rows = fitted(rows, spare, limit, truncate, example)
        scored -= max(0, longest - max(map(len, rows)) - demonstrations)
        encoded.append(TokenizedChoices(tuple(rows), (scored,) * len(rows), example.gold, example))
    return encoded
