"""Rows of a trainer's step that are collated a few at a time, when the model needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from zofo.tasks import batches


class RowBatch:
    """The rows of all accumulated batches and all processes; rows that this process does not need are never collated.

    Each part is collated once, so that a random collator gives the same at all points, and with both adapters.

    Args:
        rows: rows of the batch.
        collate: turns rows into a model's inputs, on its device.
        micro_batch: maximum rows per forward.
        times: how often the whole batch is repeated.
    """

    def __init__(
        self, rows: Sequence[Any], collate: Callable[[Sequence[Any]], dict[str, Any]], micro_batch: int, times: int = 1
    ) -> None:
        self.micro_batch = micro_batch
        self._rows, self._collate, self._times = rows, collate, times
        self._parts: dict[tuple[int, int], RowBatch] = {}

    def __len__(self) -> int:
        return len(self._rows) * self._times

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """The collated rows."""
        return self._collate(self._rows)

    @property
    def row_examples(self) -> torch.Tensor:
        """The example of each row."""
        return torch.arange(len(self))

    def part(self, start: int, stop: int) -> RowBatch:
        """The rows from `start` to `stop`, always the same object; rows that are already collated keep their
        padding."""
        assert self._times == 1  # evaluators repeat what they have cut
        if (start, stop) == (0, len(self)):
            return self
        if (start, stop) not in self._parts:
            found = RowBatch(self._rows[start:stop], self._collate, self.micro_batch)
            if "inputs" in vars(self):
                vars(found)["inputs"] = batches.part(self.inputs, start, stop)
            self._parts[start, stop] = found
        return self._parts[start, stop]

    def repeated(self, times: int) -> RowBatch:
        """The collated rows `times` over."""
        found = RowBatch(self._rows, self._collate, self.micro_batch, times)
        vars(found)["inputs"] = batches.repeated(self.inputs, times)
        return found


class Rows(Sequence[Any]):
    """The rows of a torch or datasets data set, one by one."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self._rows[i] for i in range(*number.indices(len(self)))]
        return self._rows[number]
