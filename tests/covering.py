"""Grids of which `make test` runs a covering set, and `make soak` the rest.

A set covers pairs if any two values of two axes stand together in some row of it. Most faults of a combination are
faults of two of its values (Kuhn, Wallace and Gallo 2004), and there are far fewer such rows than combinations.
"""

from __future__ import annotations

import itertools
import math

import pytest


def shares(row, strength):
    """What a row covers: each choice of so many axes, with its values there, as numbers."""
    return set(itertools.combinations(enumerate(row), strength))


def covering(*sizes, strength=2, possible=None):
    """Rows that cover every combination of values of so many axes.

    Args:
        sizes: how many values each axis has.
        strength: how many axes; 1 has each value once, 2 each pair of values.
        possible: which rows there may be; all by default.

    Returns:
        Rows of numbers of values, one for each axis; the same ones in every process. Each is the one that covers most
        of what the rows before left, and of those that cover as much the first.
    """
    shared = {row: shares(row, strength) for row in filter(possible, itertools.product(*map(range, sizes)))}
    left, chosen = set().union(*shared.values()), []
    while left:
        best = max(shared, key=lambda row: (len(left & shared[row]), -_turn(row, len(chosen), sizes)))
        left -= shared[best]
        chosen.append(best)
    return chosen


def _turn(row, number, sizes):
    """How far a row is from the diagonal, on which each axis takes its values in turn."""
    return sum((value - number) % size for value, size in zip(row, sizes, strict=True))


def grid(*axes, strength=2):
    """All combinations of the values of some axes, as parameters of a test; those beyond a covering set are soak.

    Args:
        axes: the values of each.
        strength: see `covering`.
    """
    axes = [list(axis) for axis in axes]
    quick = set(covering(*map(len, axes), strength=strength))
    made = []
    for row in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[at] for axis, at in zip(axes, row, strict=True)]
        made.append(pytest.param(*values, marks=[] if row in quick else [pytest.mark.soak]))
    return made


def least(*sizes, strength=2):
    """No covering set can have fewer rows: the values of its largest axes stand together in as many."""
    return math.prod(sorted(sizes)[-strength:])
