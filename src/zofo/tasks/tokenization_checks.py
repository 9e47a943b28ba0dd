"""Checks of encoded rows: errors for rows that cannot be scored, or are too long."""

from __future__ import annotations

from collections.abc import Sequence

from zofo.errors import DataError
from zofo.tasks.control_tokens import Asked
from zofo.tasks.readers.row import Example


def check_reasoning_prompts(asked: Sequence[Asked]) -> None:
    """Raise DataError for chats with and without reasoning, if the template gives them different prompts."""
    with_block = [one.example for one in asked if one.block]
    first = {example.thinks: example for example in reversed(with_block)}
    if len(first) > 1:
        raise DataError(
            f"{first[True].where}: the answer holds what was thought before it, and that of {first[False].where} does "
            "not; the model's chat template asks for them in different words, so that the prompt would tell",
            "give all answers their reasoning_content, or none",
        )


def check_scorable(example: Example, candidate: int, start: int, end: int) -> None:
    """Raise DataError for a candidate without a token, or without one before it to be predicted from."""
    if 0 < start < end:
        return
    problem = "has no token of its own" if start == end else "has no token before it to be predicted from"
    raise DataError(
        f"{example.where or repr(example.prompt[:40])}: the candidate {example.candidates[candidate]!r} {problem}",
        "let the template begin with a word, and the verbalizer be a word after a space",
    )


def check_distinct(example: Example, rows: Sequence[tuple[int, ...]]) -> None:
    """Raise DataError for two candidates with the same tokens."""
    first: dict[tuple[int, ...], int] = {}
    for index, row in enumerate(rows):
        if row in first:
            one, two = example.candidates[first[row]], example.candidates[index]
            raise DataError(
                f"{example.where}: the candidates {one!r} and {two!r} have the same tokens and the same score",
                "choose other verbalizers in a copy of the task file",
            )
        first[row] = index


def too_long(example: Example, tokens: int, limit: int) -> DataError:
    """The error for a text that is too long."""
    return DataError(
        f"{example.where or repr(example.prompt[:40])}: the text has {tokens} tokens with its candidate, "
        f"but the limit is {limit}",
        "shorten the row, or drop the oldest tokens of long prompts with task.truncate=left",
    )
