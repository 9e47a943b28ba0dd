"""Batches drawn by number, in an order that is a pure function of the seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise import permutation

T = TypeVar("T")
B = TypeVar("B")

_WINDOW = 8  # batches whose examples are sorted by length together


class EpochSampler(Generic[T, B]):
    """An endless sequence of batches, addressed by number: a pure function of (seed, name, number).

    Each epoch visits the examples in an order of its own; with `length`, examples of similar length share a batch, by
    sorting within windows of 8 batches of that order and drawing the batches in a random order again. A remainder
    smaller than a batch waits for the next epoch's order. Nothing has to be saved to go on after a stop but the
    number.

    Args:
        collate: turns a list of examples into a batch.
        name: tells apart several sequences of one run.
        length: of an example, to group by; None does not group.

    Raises:
        ConfigError: fewer examples than one batch takes.
    """

    def __init__(
        self,
        examples: Sequence[T],
        size: int,
        collate: Callable[[Sequence[T]], B],
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
        self._collate = collate
        self._seed = seed
        self._name = name
        self._length = length
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def __getitem__(self, number: int) -> B:
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._draw(epoch))
        return self._collate([self.examples[i] for i in self._epoch[1][place]])

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
