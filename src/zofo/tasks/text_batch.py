"""Batches for classification heads: one text or pair a row, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from zofo.tasks.collation import padded, repeated_tensors, tensors_of
from zofo.tasks.tokenization_encoder import TokenizedText


@dataclass(frozen=True)
class TextBatch:
    """Texts as tensors: E rows, one an example, of L positions.

    Args:
        input_ids: [E, L], padded on the right.
        attention_mask: [E, L], 1 where there is a token.
        token_type_ids: [E, L], which text of a pair a token belongs to; None where the tokenizer gives none.
        gold: [E] index of the label that is trained on.
        members: the E examples in tokens.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None
    gold: torch.Tensor
    members: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def row_examples(self) -> torch.Tensor:
        """[E] which example each row belongs to, on the CPU."""
        return torch.arange(len(self))

    def part(self, start: int, stop: int) -> TextBatch:
        """The examples from `start` to `stop`, with the same padding."""
        parts = {name: tensor[start:stop] for name, tensor in tensors_of(self, _TENSORS).items()}
        return replace(self, **parts, members=self.members[start:stop])

    def repeated(self, times: int) -> TextBatch:
        """The batch repeated `times` times."""
        return replace(self, **repeated_tensors(self, _TENSORS, times), members=self.members * times)


_TENSORS = ("input_ids", "attention_mask", "token_type_ids", "gold")


def collate_texts(examples: Sequence[TokenizedText], pad: int, device: torch.device) -> TextBatch:
    """Put texts into one batch.

    Args:
        examples: one or more.
        pad: id of the padding token, which heads of causal models know the end of a text by.
        device: where the tensors go.
    """
    input_ids, mask = padded([example.tokens for example in examples], pad, "right")
    types = None
    if all(example.types for example in examples):
        types = padded([example.types for example in examples], 0, "right")[0].to(device)
    gold = torch.tensor([example.gold for example in examples], device=device)
    return TextBatch(input_ids.to(device), mask.to(device), types, gold, tuple(examples))
