"""What an evaluator asks of a batch: its examples, its rows, parts of it, and copies for several points; and of points.

A batch class answers by itself, with `len(batch)`, `batch.row_examples`, `batch.part(start, stop)` and
`batch.repeated(times)`, as `zofo.tasks.Batch` does; `batch.micro_batch` says how many examples one forward takes.
Tensors whose first axis is the examples, and tuples, lists and dicts of such tensors, are answered for here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils._pytree import tree_leaves, tree_map

from zofo.displacement import Displacement
from zofo.errors import EvaluatorError
from zofo.evaluators.base import Point


@runtime_checkable
class Repeatable(Protocol):
    """A batch that can be asked at several points at once."""

    def __len__(self) -> int:
        """How many examples."""

    @property
    def row_examples(self) -> torch.Tensor:
        """Which example each row of the model's input belongs to: int64, shape [rows], not decreasing, on the CPU."""

    def part(self, start: int, stop: int) -> Any:
        """The batch of examples `start` to `stop`."""

    def repeated(self, times: int) -> Any:
        """The batch `times` over: all its rows, then all of them again."""


@runtime_checkable
class MicroBatched(Repeatable, Protocol):
    """A batch whose examples do not all go through the model at once; the losses and gradients are those of all."""

    @property
    def micro_batch(self) -> int:
        """The most examples of one forward, at a point."""


def micro_batches(batch: Any, most: int | None = None) -> list[Any]:
    """The parts of a batch that go through the model one after the other, of `most` examples or of as many as the batch
    says; the batch itself where that is all of it."""
    limits = [one for one in (most, batch.micro_batch if isinstance(batch, MicroBatched) else None) if one]
    if not limits or (whole := size(batch)) <= min(limits):
        return [batch]
    return [part(batch, first, min(first + min(limits), whole)) for first in range(0, whole, min(limits))]


def size(batch: Any) -> int:
    """How many examples.

    Raises:
        EvaluatorError: no batch class, and no tensors that agree on it.
    """
    if isinstance(batch, Repeatable):
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


def own_points(point: Point) -> bool:
    """Whether each example has a displacement of its own."""
    return not isinstance(point, Displacement)


def displacements(point: Point) -> Sequence[Displacement]:
    """The displacement of all examples, alone, or those of each."""
    return [point] if isinstance(point, Displacement) else point


def points_of_part(points: Sequence[Point], start: int, stop: int) -> list[Point]:
    """The same points for examples `start` to `stop`."""
    return [point if isinstance(point, Displacement) else point[start:stop] for point in points]


def _each(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The batch with every tensor changed; what is no tensor stays."""
    size(batch)
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf, batch)
