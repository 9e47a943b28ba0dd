"""What an evaluator asks of a batch: its examples, its rows, parts of it, and copies for several points.

A batch class answers by itself, with `len(batch)`, `batch.row_examples`, `batch.part(start, stop)` and
`batch.repeated(times)`, as `zofo.tasks.Batch` does. Tensors whose first axis is the examples, and tuples, lists and
dicts of such tensors, are answered for here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from zofo.errors import EvaluatorError


@runtime_checkable
class Repeatable(Protocol):
    """A batch that can be asked at several points at once."""

    def __len__(self) -> int:
        """How many examples."""

    @property
    def row_examples(self) -> torch.Tensor:
        """Which example each row of the model's input belongs to: int64, shape [rows], not decreasing."""

    def part(self, start: int, stop: int) -> Any:
        """The batch of examples `start` to `stop`."""

    def repeated(self, times: int) -> Any:
        """The batch `times` over: all its rows, then all of them again."""


def size(batch: Any) -> int:
    """How many examples."""
    return len(batch) if isinstance(batch, Repeatable) else len(_first(batch))


def row_examples(batch: Any) -> torch.Tensor:
    """Which example each row belongs to: int64, shape [rows]."""
    return batch.row_examples if isinstance(batch, Repeatable) else torch.arange(size(batch))


def part(batch: Any, start: int, stop: int) -> Any:
    """The batch of examples `start` to `stop`."""
    return batch.part(start, stop) if isinstance(batch, Repeatable) else _each(batch, lambda tensor: tensor[start:stop])


def repeated(batch: Any, times: int) -> Any:
    """The batch `times` over: all its rows, then all of them again."""
    if times == 1:
        return batch
    if isinstance(batch, Repeatable):
        return batch.repeated(times)
    return _each(batch, lambda tensor: tensor.repeat(times, *[1] * (tensor.dim() - 1)))


def _each(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, tuple | list):
        return type(batch)([_each(one, change) for one in batch])
    return {name: _each(one, change) for name, one in batch.items()}


def _first(batch: Any) -> torch.Tensor:
    """Any tensor of the batch."""
    one = batch
    while not isinstance(one, torch.Tensor):
        if isinstance(one, dict):
            one = list(one.values())
        if not isinstance(one, tuple | list) or not one:
            raise EvaluatorError(
                f"a batch of type {type(batch).__name__} cannot be repeated for several points in one forward",
                "make it of tensors with the examples first, or set method.evaluator=in-place",
            )
        one = one[0]
    return one
