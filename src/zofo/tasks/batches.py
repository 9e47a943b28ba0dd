"""Batches: splitting and repeating them, whatever they consist of; and batches of encoded examples as tensors.

A batch class brings `len(batch)`, `batch.row_examples`, `batch.part(start, stop)` and `batch.repeated(times)`, as
`Batch` does; `batch.micro_batch` limits the examples per forward. The functions here also support tensors whose first
axis is the examples, and tuples, lists and dicts of such tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves, tree_map

from zofo.errors import EvaluatorError
from zofo.tasks.tokenization import TokenizedChoices
from zofo.tasks.tokenization_encoder import TokenizedCloze, TokenizedText

Side = Literal["left", "right"]


def _is_batch(batch: Any) -> bool:
    """Whether it is an object of a batch class."""
    return hasattr(type(batch), "repeated")


def micro_batches(batch: Any, most: int | None = None) -> list[Any]:
    """The parts of a batch that go through the model one after the other.

    Each has at most `most` examples, or as many as the batch says; if that is all, the batch itself is the only part.
    """
    limits = [one for one in (most, getattr(batch, "micro_batch", None)) if one]
    if not limits or (whole := size(batch)) <= min(limits):
        return [batch]
    return [part(batch, first, min(first + min(limits), whole)) for first in range(0, whole, min(limits))]


def size(batch: Any) -> int:
    """The number of examples.

    Raises:
        EvaluatorError: neither a batch class, nor tensors of one length.
    """
    if _is_batch(batch):
        return len(batch)
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in tensors}
    if len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors) or "none"
        raise EvaluatorError(
            f"a batch of type {type(batch).__name__} cannot be repeated for several points in one forward: its tensors "
            f"do not all have the examples as their first axis (shapes: {shapes})",
            "make it of such tensors, or set method.evaluator=in-place",
        )
    return sizes.pop()


def row_examples(batch: Any) -> torch.Tensor:
    """The example that each row belongs to: int64, shape [rows]."""
    return batch.row_examples if _is_batch(batch) else torch.arange(size(batch))


def part(batch: Any, start: int, stop: int) -> Any:
    """The batch of examples `start` to `stop`."""
    return batch.part(start, stop) if _is_batch(batch) else _each(batch, lambda tensor: tensor[start:stop])


def repeated(batch: Any, times: int) -> Any:
    """The batch `times` over: all rows, then all of them again."""
    if times == 1:
        return batch
    if _is_batch(batch):
        return batch.repeated(times)
    return _each(batch, lambda tensor: tensor.repeat(times, *[1] * (tensor.dim() - 1)))


def _each(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The batch with every tensor mapped; other values are unchanged."""
    size(batch)
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf, batch)


@dataclass(frozen=True)
class Batch:
    """Examples as tensors: R rows, L positions, E examples, at most C candidates and T scored tokens.

    The rows of an example are adjacent. A row has a prompt followed by a *branch* for each of its candidates: the
    candidate's tokens except the last, which predicts nothing. So single-token candidates have empty branches, and
    share the prompt's last position. In each branch, positions continue from the prompt.

    Args:
        input_ids: [R, L], padded on the left.
        attention_mask: [R, L], 1 for tokens.
        position_ids: [R, L], counted from the first token of the prompt; 0 for padding. None lets the model count.
        branch_ids: [R, L], 0 in a prompt and for padding, n in the n-th branch of a row.
        packed: whether a row has several branches with tokens, so that the model needs `visible` as its mask.
        row_examples: [R] the example of each row, on the CPU.
        logits_to_keep: number of positions at the end of the rows that predict all scored tokens.
        targets: [E, C, T] ids of the scored tokens of each candidate.
        gather_index: [E, C, T] where each is predicted: its row times `logits_to_keep`, plus the index among the last
            positions.
        target_mask: bool, [E, C, T], where `targets` has a token.
        gold: [E] index of the candidate to train on.
        examples: the E encoded examples.
        copies: how many times the batch is repeated, once per point.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor | None
    branch_ids: torch.Tensor
    packed: bool
    row_examples: torch.Tensor
    logits_to_keep: int
    targets: torch.Tensor
    gather_index: torch.Tensor
    target_mask: torch.Tensor
    gold: torch.Tensor
    examples: tuple[Any, ...] = ()
    copies: int = 1

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def visible(self) -> torch.Tensor:
        """The attention mask: bool, [R, 1, L, L], queries before keys.

        A token attends to the prompt and its own branch up to itself; padding attends to itself only.
        """
        places = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        own = self.branch_ids.unsqueeze(2) == self.branch_ids.unsqueeze(1)
        seen = (own | (self.branch_ids.unsqueeze(1) == 0)) & self.attention_mask.bool().unsqueeze(1)
        seen = seen & (places.unsqueeze(1) >= places) | (places.unsqueeze(1) == places)
        return seen.unsqueeze(1)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; `row_examples` stays on the CPU."""
        moved = _mapped(self, (*_BY_ROW, *_BY_EXAMPLE), lambda tensor: tensor.to(device))
        return replace(self, **{**moved, "row_examples": self.row_examples})

    def part(self, start: int, stop: int) -> Batch:
        """The examples from `start` to `stop`, with the same padding."""
        first, last = torch.searchsorted(self.row_examples, torch.tensor([start, stop])).tolist()
        parts = _mapped(self, _BY_ROW, lambda tensor: tensor[first:last])
        parts |= _mapped(self, _BY_EXAMPLE, lambda tensor: tensor[start:stop])
        parts["row_examples"] = parts["row_examples"] - start
        parts["gather_index"] = parts["gather_index"] - first * self.logits_to_keep
        return replace(self, **parts, examples=self.examples[start:stop], copies=1)

    def repeated(self, times: int) -> Batch:
        """The batch repeated `times` times, all E examples each time."""
        parts = _mapped(self, (*_BY_ROW, *_BY_EXAMPLE), lambda tensor: torch.cat([tensor] * times))
        copies = torch.arange(times)
        rows = len(self.input_ids)
        parts["row_examples"] += copies.repeat_interleave(rows) * len(self)
        shift = copies.repeat_interleave(len(self)) * rows * self.logits_to_keep
        parts["gather_index"] += shift.to(self.gather_index.device).view(-1, 1, 1)
        return replace(self, **parts, examples=self.examples * times, copies=self.copies * times)


@dataclass(frozen=True)
class TextBatch:
    """Texts as tensors: E rows of L positions, one per example.

    Args:
        input_ids: [E, L], padded on the right.
        attention_mask: [E, L], 1 for tokens.
        token_type_ids: [E, L], which text of a pair a token belongs to; None if the tokenizer has none.
        gold: [E] index of the label to train on.
        examples: the E encoded examples.
        copies: how many times the batch is repeated.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None
    gold: torch.Tensor
    examples: tuple[Any, ...] = ()
    copies: int = 1

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def row_examples(self) -> torch.Tensor:
        """[E] the example of each row, on the CPU."""
        return torch.arange(len(self))

    def part(self, start: int, stop: int) -> TextBatch:
        """The examples from `start` to `stop`, with the same padding."""
        parts = _mapped(self, _OF_TEXTS, lambda tensor: tensor[start:stop])
        return replace(self, **parts, examples=self.examples[start:stop], copies=1)

    def repeated(self, times: int) -> TextBatch:
        """The batch repeated `times` times."""
        parts = _mapped(self, _OF_TEXTS, lambda tensor: torch.cat([tensor] * times))
        return replace(self, **parts, examples=self.examples * times, copies=self.copies * times)


def _mapped(
    batch: Batch | TextBatch, names: Sequence[str], change: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """Tensors of a batch by name, mapped; without those that are None."""
    return {name: change(tensor) for name in names if (tensor := getattr(batch, name)) is not None}


_BY_ROW = ("input_ids", "attention_mask", "position_ids", "branch_ids", "row_examples")  # of a Batch
_BY_EXAMPLE = ("targets", "gather_index", "target_mask", "gold")
_OF_TEXTS = ("input_ids", "attention_mask", "token_type_ids", "gold")  # of a TextBatch


def collate(
    examples: Sequence[TokenizedChoices],
    pad: int,
    device: torch.device,
    pack_limit: int | None = None,
    side: Side = "left",
) -> Batch:
    """Collate examples into one batch, with as few tokens as their scores need.

    An example is one row if that needs no special mask, that is, if at most one of its candidates has more than one
    token after the shared prompt; otherwise one row per candidate. If an example then has several rows, and one row per
    example would save at least a fifth of the batch's tokens, including padding, every example is *packed* into one
    row, and the batch is `packed`.

    Args:
        pad: id of the padding token; any will do, since it is masked.
        pack_limit: maximum length of a packed row in tokens; None for no limit, 0 for a model that does not support
            packing.
        side: the side of the padding; with left padding, the scored positions are together at the end.
    """
    table = [_rows_of(example, packed=False) for example in examples]
    packed = [_rows_of(example, packed=True) for example in examples] if pack_limit != 0 else table
    pays = _worth_packing(table, packed, pack_limit)
    batch = _batch(examples, packed if pays else table, pad, side, pays)
    return batch.to(device)


def collate_masked(examples: Sequence[TokenizedCloze], pad: int, device: torch.device) -> Batch:
    """Collate examples for a masked language model into one batch: one row each, padded on the right."""
    table = []
    for one in examples:
        none = [0] * len(one.tokens)
        sources = {number: [one.place] for number in range(len(one.targets))}
        targets = {number: [target] for number, target in enumerate(one.targets)}
        table.append([_Row(list(one.tokens), none, none, sources, targets)])
    return replace(_batch(examples, table, pad, "right", packed=False), position_ids=None).to(device)


def collate_texts(examples: Sequence[TokenizedText], pad: int, device: torch.device) -> TextBatch:
    """Collate texts into one batch.

    Args:
        pad: id of the padding token, by which heads of causal models find the end of a text.
    """
    input_ids, mask = padded([example.tokens for example in examples], pad, "right")
    types = None
    if all(example.types for example in examples):
        types = padded([example.types for example in examples], 0, "right")[0].to(device)
    gold = torch.tensor([example.gold for example in examples], device=device)
    return TextBatch(input_ids.to(device), mask.to(device), types, gold, tuple(examples))


_WORTH_PACKING = 5  # packing must save one token in this many: its mask excludes the fastest attention kernels


@dataclass(frozen=True)
class _Row:
    """A row before padding: for each of its candidates, where its tokens are predicted, and the tokens."""

    tokens: list[int]
    positions: list[int]
    branches: list[int]
    sources: dict[int, list[int]]
    targets: dict[int, list[int]]

    def first_source(self, length: int, side: Side) -> int:
        """The first position that predicts a scored token, in a batch with rows of `length`."""
        return min(min(places) for places in self.sources.values()) + self.shift(length, side)

    def shift(self, length: int, side: Side) -> int:
        """By how many positions padding shifts the tokens."""
        return length - len(self.tokens) if side == "left" else 0


def _batch(examples: Sequence[Any], table: Sequence[Sequence[_Row]], pad: int, side: Side, packed: bool) -> Batch:
    """A batch from the rows of each example; padding of a source index stays within its example."""
    rows = [row for own in table for row in own]
    input_ids, attention_mask = padded([row.tokens for row in rows], pad, side)
    length = input_ids.shape[1]
    keep = length - min(row.first_source(length, side) for row in rows)
    candidates = max(sum(len(row.sources) for row in own) for own in table)
    shape = len(table), candidates, max(len(places) for row in rows for places in row.sources.values())
    targets, sources = torch.zeros((2, *shape), dtype=torch.int64).unbind(0)
    mask = torch.zeros(shape, dtype=torch.bool)
    end = 0  # of a row, where its places come to lie among the kept ones of all rows
    for number, own in enumerate(table):
        sources[number] = end
        for row in own:
            end += keep
            for candidate, places in row.sources.items():
                at = number, candidate, slice(len(places))
                targets[at] = torch.tensor(row.targets[candidate])
                sources[at] = torch.tensor(places) + (end - length + row.shift(length, side))
                mask[at] = True
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=padded([row.positions for row in rows], 0, side)[0],
        branch_ids=padded([row.branches for row in rows], 0, side)[0],
        packed=packed,
        row_examples=torch.tensor([number for number, own in enumerate(table) for _ in own]),
        logits_to_keep=keep,
        targets=targets,
        gather_index=sources,
        target_mask=mask,
        gold=torch.tensor([example.gold for example in examples]),
        examples=tuple(examples),
    )


def _rows_of(example: TokenizedChoices, packed: bool) -> list[_Row]:
    """The rows of an example: one if it is packed or needs no special mask, otherwise one per candidate."""
    start = min(len(row) - scored for row, scored in zip(example.rows, example.scored, strict=True))
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*example.rows, strict=False))
    prompt = sum(1 for _ in itertools.islice(columns, start))
    candidates = range(len(example.rows))
    if packed or sum(len(row) - 1 > prompt for row in example.rows) < 2:
        return [_row(example, prompt, candidates)]
    return [_row(example, prompt, [candidate]) for candidate in candidates]


def _row(example: TokenizedChoices, prompt: int, candidates: Sequence[int]) -> _Row:
    """One row for some candidates of an example, which share its first `prompt` tokens."""
    row = _Row(list(example.rows[candidates[0]][:prompt]), list(range(prompt)), [0] * prompt, {}, {})
    for number, candidate in enumerate(candidates, start=1):
        branch = example.rows[candidate][prompt:-1]
        path = [*range(prompt), *range(len(row.tokens), len(row.tokens) + len(branch))]
        places = example.places(candidate)
        row.sources[candidate] = [path[place - 1] for place in places]
        row.targets[candidate] = [example.rows[candidate][place] for place in places]
        row.tokens.extend(branch)
        row.positions.extend(range(prompt, prompt + len(branch)))
        row.branches.extend([number] * len(branch))
    return row


def _worth_packing(table: Sequence[Sequence[_Row]], packed: Sequence[Sequence[_Row]], limit: int | None) -> bool:
    before, after = _padded_tokens(table), _padded_tokens(packed)
    fits = limit is None or after <= limit * len(packed)
    return table != packed and fits and (before - after) * _WORTH_PACKING >= before


def _padded_tokens(table: Sequence[Sequence[_Row]]) -> int:
    return sum(map(len, table)) * max(len(row.tokens) for rows in table for row in rows)


def padded(rows: Sequence[Sequence[int]], pad: int, side: Side) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one tensor, and its mask: int64, [rows, longest]."""
    lengths = [*map(len, rows)]
    fill = [[pad] * (max(lengths) - length) for length in lengths]
    whole = [[*one, *row] if side == "left" else [*row, *one] for row, one in zip(rows, fill, strict=True)]
    place = torch.arange(max(lengths)) if side == "right" else torch.arange(max(lengths) - 1, -1, -1)
    mask = (place < torch.tensor(lengths).unsqueeze(1)).to(torch.int64)
    return torch.tensor(whole, dtype=torch.int64), mask
