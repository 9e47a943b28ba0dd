"""From text to tokens, and where the candidate begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zofo.errors import DataError
from zofo.tasks.data import Example


@dataclass(frozen=True)
class Encoded:
    """An example in tokens.

    Args:
        rows: for each candidate, the tokens of prompt and candidate together.
        scored: for each candidate, how many tokens at the end of its row belong to it.
        gold: index of the right candidate.
    """

    rows: tuple[tuple[int, ...], ...]
    scored: tuple[int, ...]
    gold: int

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))


def encode(
    tokenizer: Any, examples: Sequence[Example], limit: int | None = None, truncate: bool = False
) -> list[Encoded]:
    """Tokenise examples.

    The text of prompt and candidate is tokenised together. Its candidate tokens are those from the first whose span
    ends after the prompt, found by character offsets: a token merged across the boundary belongs to the candidate, and
    lengths are never subtracted.

    Args:
        tokenizer: a fast tokenizer.
        examples: what to tokenise.
        limit: the longest row in tokens; None for no limit.
        truncate: drop the oldest tokens of a longer prompt, keeping a leading special token, instead of refusing it.

    Raises:
        DataError: a text longer than `limit`, candidates of one example that have the same tokens, or a candidate that
            has no token, or none before it to be predicted from.
    """
    texts = [example.prompt + candidate for example in examples for candidate in example.candidates]
    if not texts:
        return []
    coded = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    special = set(tokenizer.all_special_ids)
    pairs = iter(zip(coded["input_ids"], coded["offset_mapping"], strict=True))
    encoded = []
    for example in examples:
        rows: list[tuple[int, ...]] = []
        starts: list[int] = []
        for _ in example.candidates:
            ids, spans = _without_closing(*next(pairs), special)
            start = next((i for i, span in enumerate(spans) if span[1] > len(example.prompt)), len(spans))
            _refuse_unscorable(example, len(rows), start, len(spans))
            rows.append(tuple(ids))
            starts.append(start)
        scored = [len(row) - start for row, start in zip(rows, starts, strict=True)]
        rows = _fitted(rows, min(starts), limit, truncate, special, example)
        _refuse_clash(example, rows)
        encoded.append(Encoded(tuple(rows), tuple(scored), example.gold))
    return encoded


def _without_closing(
    ids: list[int], spans: list[tuple[int, int]], special: set[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Without the special tokens that some tokenizers append."""
    end = len(ids)
    while end > 1 and ids[end - 1] in special and spans[end - 1][0] == spans[end - 1][1]:
        end -= 1
    return ids[:end], spans[:end]


def _fitted(
    rows: list[tuple[int, ...]], prompt: int, limit: int | None, truncate: bool, special: set[int], example: Example
) -> list[tuple[int, ...]]:
    """Rows within the limit; the same tokens are dropped for every candidate, so that all follow the same prompt."""
    longest = max(map(len, rows))
    if limit is None or longest <= limit:
        return rows
    head = 1 if rows[0][0] in special else 0
    excess = longest - limit
    if truncate and head + excess < prompt:
        return [row[:head] + row[head + excess :] for row in rows]
    raise DataError(
        f"{example.where or repr(example.prompt[:40])}: the text has {longest} tokens with its candidate, "
        f"but the limit is {limit}",
        "shorten the row, or drop the oldest tokens of long prompts with task.truncate=left",
    )


def _refuse_unscorable(example: Example, candidate: int, start: int, end: int) -> None:
    if 0 < start < end:
        return
    problem = "has no token of its own" if start == end else "has no token before it to be predicted from"
    raise DataError(
        f"{example.where or repr(example.prompt[:40])}: the candidate {example.candidates[candidate]!r} {problem}",
        "let the template begin with a word, and the verbalizer be a word after a space",
    )


def _refuse_clash(example: Example, rows: Sequence[tuple[int, ...]]) -> None:
    first: dict[tuple[int, ...], int] = {}
    for index, row in enumerate(rows):
        if row in first:
            one, two = example.candidates[first[row]], example.candidates[index]
            raise DataError(
                f"{example.where}: the candidates {one!r} and {two!r} have the same tokens and the same score",
                "choose other verbalizers in a copy of the task file",
            )
        first[row] = index
