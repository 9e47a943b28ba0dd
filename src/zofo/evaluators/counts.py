"""Counts of the work done on a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from torch import nn


@dataclass
class Counts:
    """Work done on a model.

    Args:
        forwards: calls of the model's forward.
        backwards: backward passes.
        queries: forward passes of single examples, of zeroth-order and first-order steps alike.
    """

    forwards: int = 0
    backwards: int = 0
    queries: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.forwards + other.forwards, self.backwards + other.backwards, self.queries + other.queries)

    def __sub__(self, other: Counts) -> Counts:
        return self + Counts(-other.forwards, -other.backwards, -other.queries)

    def include(self, other: Counts) -> None:
        """Add other counts to these, in place."""
        self.forwards += other.forwards
        self.backwards += other.backwards
        self.queries += other.queries

    def become(self, other: Counts) -> None:
        """Take over the values of other counts, such as those of a checkpoint."""
        self.forwards, self.backwards, self.queries = other.forwards, other.backwards, other.queries

    def copy(self) -> Counts:
        """A copy of the current values."""
        return replace(self)

    def as_dict(self) -> dict[str, int]:
        """The three numbers by name."""
        return asdict(self)


@contextmanager
def counting_forwards(model: nn.Module, counts: Counts) -> Iterator[None]:
    """Context in which every call of `model` adds one to `counts.forwards`."""

    def count(*_: object) -> None:
        counts.forwards += 1

    with model.register_forward_hook(count):
        yield
