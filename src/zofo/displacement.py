"""Keys and displacements: a point in weight space is the base weights plus a short list of (key, coefficient).

A direction z(key) is never stored, so a vector with a billion entries fits in a line of text. Displacements add,
subtract and scale like the vectors they stand for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple


class Key(NamedTuple):
    """The name of one random direction, forever.

    Attributes:
        seed: seed of the run, 0 <= seed < 2**64.
        step: the step that draws the direction, 0 <= step < 2**32.
        index: which direction of this step (which probe, which example), 0 <= index < 2**32.
    """

    seed: int
    step: int
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a key


class Displacement:
    """A vector in weight space, sum of coefficient * z(key), held as a mapping from key to coefficient.

    Terms keep the order in which they were added; a term whose coefficient is exactly zero is dropped. Instances are
    immutable.

    Args:
        terms: the coefficient of each key.

    Example:
        >>> k = Key(seed=0, step=1)
        >>> d = Displacement({k: 0.5}) - 2 * Displacement({k: 0.25, Key(0, 2): 1.0})
        >>> d
        Displacement({Key(seed=0, step=2, index=0): -2.0})
    """

    __slots__ = ("_terms",)

    def __init__(self, terms: Mapping[Key, float] | None = None) -> None:
        self._terms: dict[Key, float] = {key: float(c) for key, c in (terms or {}).items() if c != 0}

    def __add__(self, other: Displacement) -> Displacement:
        if not isinstance(other, Displacement):
            return NotImplemented
        return Displacement.sum((self, other))

    def __mul__(self, factor: float) -> Displacement:
        return Displacement({key: coefficient * factor for key, coefficient in self._terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Displacement:
        return self * (1.0 / divisor)

    def __neg__(self) -> Displacement:
        return self * -1.0

    def __sub__(self, other: Displacement) -> Displacement:
        return self + -other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Displacement) and self._terms == other._terms

    def __hash__(self) -> int:
        return hash(frozenset(self._terms.items()))

    def __len__(self) -> int:
        return len(self._terms)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._terms)

    def __getitem__(self, key: Key) -> float:
        """The coefficient of `key`; zero if there is no such term."""
        return self._terms.get(key, 0.0)

    def items(self) -> Iterator[tuple[Key, float]]:
        """The terms as (key, coefficient) pairs."""
        return iter(self._terms.items())

    @classmethod
    def sum(cls, displacements: Iterable[Displacement]) -> Displacement:
        """The sum of many displacements, in time proportional to the total number of terms."""
        terms: dict[Key, float] = {}
        for displacement in displacements:
            for key, coefficient in displacement.items():
                terms[key] = terms.get(key, 0.0) + coefficient
        return cls(terms)

    def pruned(self, tolerance: float) -> Displacement:
        """The same vector without the terms of |coefficient| < `tolerance`."""
        return Displacement({k: c for k, c in self._terms.items() if abs(c) >= tolerance})

    def __repr__(self) -> str:
        return f"Displacement({self._terms!r})"
