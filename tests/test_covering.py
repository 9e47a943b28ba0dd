"""The covering sets of grids: every pair of values is in one, with few rows, and the same ones each time."""

from __future__ import annotations

import itertools

import pytest

from covering import covering, grid, least, shares


@pytest.mark.parametrize("strength", [1, 2])
@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (2, 3, 4), (3, 3, 3), (4, 4, 2, 2), (2, 2, 2, 2, 2), (1, 4, 6)])
def test_every_choice_of_values_is_covered_by_few_rows(sizes, strength):
    rows = covering(*sizes, strength=strength)
    everything = itertools.product(*map(range, sizes))
    assert set().union(*(shares(row, strength) for row in rows)) == set().union(
        *(shares(row, strength) for row in everything)
    )
    assert least(*sizes, strength=strength) <= len(rows) <= least(*sizes, strength=strength) + 4
    assert len(set(rows)) == len(rows)
    assert rows == covering(*sizes, strength=strength)


def test_with_strength_1_the_axes_take_their_values_in_turn():
    assert covering(5, 2, strength=1) == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]


def test_a_grid_has_every_combination_and_those_that_are_not_needed_are_soak():
    made = grid("abc", (1, 2, 3), (True, False))
    assert [param.values for param in made] == list(itertools.product("abc", (1, 2, 3), (True, False)))
    assert sum(not param.marks for param in made) == 9
    assert {mark.name for param in made for mark in param.marks} == {"soak"}
