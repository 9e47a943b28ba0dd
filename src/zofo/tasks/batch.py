"""Batches: padded on the left with explicit masks and positions, drawn by number in a seeded order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise import permutation
from zofo.tasks.encoding import Encoded

T = TypeVar("T")
B = TypeVar("B")

_WINDOW = 8  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class Batch:
    """Examples as tensors. R rows, L positions, E examples, C candidates (the most any example has).

    Args:
        input_ids: [R, L], padded on the left.
        attention_mask: [R, L], 1 where there is a token.
        position_ids: [R, L], counted from the first token; 0 on padding.
        targets: [R, K] token ids that are scored at the last K positions; in a `single` batch, [E, C] candidate tokens.
        target_mask: float32, 1 where `targets` holds a scored token.
        cells: [R] where a row's score goes in the [E, C] table, read as one row; unused when `single`.
        gold: [E] index of the right candidate.
        candidates: C.
        single: one row an example, all candidates scored at its last position.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    target_mask: torch.Tensor
    cells: torch.Tensor
    gold: torch.Tensor
    candidates: int
    single: bool

    def __len__(self) -> int:
        return len(self.gold)


def collate(examples: Sequence[Encoded], pad: int, device: torch.device) -> Batch:
    """Put examples into one batch; one row an example if every one of them allows it.

    Args:
        examples: one or more.
        pad: id of the padding token; which one does not matter, since it is masked.
        device: where the tensors go.
    """
    single = all(example.single for example in examples)
    width = max(len(example.rows) for example in examples)
    rows, targets, cells = [], [], []
    for number, example in enumerate(examples):
        if single:
            rows.append(example.rows[0][:-1])
            targets.append([row[-1] for row in example.rows])
            continue
        for candidate, (row, scored) in enumerate(zip(example.rows, example.scored, strict=True)):
            rows.append(row)
            targets.append(list(row[-scored:]))
            cells.append(number * width + candidate)
    input_ids, mask = _padded(rows, pad)
    target_ids, target_mask = _padded(targets, 0, left=not single)
    positions = (mask.cumsum(1) - 1).clamp_(min=0)
    gold = torch.tensor([example.gold for example in examples])
    return Batch(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        targets=target_ids.to(device),
        target_mask=target_mask.float().to(device),
        cells=torch.tensor(cells, dtype=torch.int64, device=device),
        gold=gold.to(device),
        candidates=width,
        single=single,
    )


def _padded(rows: Sequence[Sequence[int]], pad: int, left: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one tensor, and where it holds them."""
    longest = max(map(len, rows))
    ids, mask = torch.full((2, len(rows), longest), pad).unbind(0)
    mask.zero_()
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return ids, mask


class Batches(Generic[T, B]):
    """An endless sequence of batches, addressed by number: a pure function of (seed, name, number).

    Each epoch visits the examples in an order of its own; with `length`, examples of similar length share a batch, by
    sorting within windows of 8 batches of that order and drawing the batches in a random order again. A remainder
    smaller than a batch waits for the next epoch's order. Nothing has to be saved to go on after a stop but the
    number.

    Args:
        examples: what is drawn from.
        size: examples a batch.
        make: turns a list of examples into a batch.
        seed: of the run.
        name: tells apart several sequences of one run.
        length: of an example, to group by; None does not group.

    Raises:
        ConfigError: fewer examples than one batch takes.
    """

    def __init__(
        self,
        examples: Sequence[T],
        size: int,
        make: Callable[[Sequence[T]], B],
        seed: int,
        name: str,
        length: Callable[[T], int] | None = None,
    ) -> None:
        if len(examples) < size:
            raise ConfigError(
                f"a batch of {size} examples cannot be drawn from the {len(examples)} of {name!r}",
                f"lower batch_size to {len(examples)} or less, or give more data",
            )
        self.examples = examples
        self.size = size
        self.per_epoch = len(examples) // size
        self._make = make
        self._seed = seed
        self._name = name
        self._length = length
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def __getitem__(self, number: int) -> B:
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._draw(epoch))
        return self._make([self.examples[i] for i in self._epoch[1][place]])

    def _draw(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, as indices of examples."""
        key = Key(self._seed, epoch)
        order = permutation(key, f"batches/{self._name}", len(self.examples))[: self.per_epoch * self.size]
        if self._length is None:
            return _cut(order, self.size)
        lengths = {i: self._length(self.examples[i]) for i in order}
        windows = [sorted(window, key=lengths.__getitem__) for window in _cut(order, _WINDOW * self.size)]
        batches = [batch for window in windows for batch in _cut(window, self.size)]
        return [batches[i] for i in permutation(key, f"grouped/{self._name}", len(batches))]


def _cut(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
