"""Tokens without an embedding, as after adding tokens without resizing the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from zofo.errors import DataError
from zofo.tasks.tokenization import TokenizedChoices
from zofo.tasks.tokenization_encoder import TokenizedCloze, TokenizedText


def refuse_unknown_tokens(
    examples: Sequence[TokenizedChoices | TokenizedCloze | TokenizedText], tokenizer: Any, embeddings: int
) -> None:
    """Check that the model has an embedding for every token.

    Args:
        examples: tokenised examples.
        tokenizer: their tokenizer.
        embeddings: number of embeddings of the model.

    Raises:
        DataError: a token has none; names the row, the token and the number of such rows.
    """
    beyond = [(one, max(ids)) for one in examples if max(ids := list(_ids(one)), default=0) >= embeddings]
    if not beyond:
        return
    first, token = beyond[0]
    assert first.example is not None
    raise DataError(
        f"{first.example.where}: the text holds the token {tokenizer.convert_ids_to_tokens(token)!r} ({token}), and "
        f"the model has {embeddings} embeddings; {len(beyond)} of {len(examples)} rows hold such tokens",
        "resize the model with resize_token_embeddings and save it, or remove the token from rows or tokenizer",
    )


def _ids(example: TokenizedChoices | TokenizedCloze | TokenizedText) -> Iterable[int]:
    if isinstance(example, TokenizedChoices):
        return (token for row in example.rows for token in row)
    return (*example.tokens, *example.targets) if isinstance(example, TokenizedCloze) else example.tokens
