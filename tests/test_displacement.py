"""Displacements are vectors: exact laws on random terms, and a byte form of 24 bytes a term."""

import random

import pytest

from zofo.displacement import Displacement, Key

LARGEST = Key(2**64 - 1, 2**32 - 1, 2**32 - 1)


def random_displacement(draw: random.Random, largest: int = 6) -> Displacement:
    """Few keys, so that terms meet; coefficients are small multiples of 1/16, so that sums and products are exact."""
    keys = [Key(seed, step, index) for seed in (0, 7) for step in (0, 1) for index in (0, 1)]
    return Displacement({key: draw.randint(-99, 99) / 16 for key in draw.sample(keys, draw.randint(0, largest))})


@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 200, 50)], ids=str)
def test_displacements_obey_the_laws_of_a_vector_space(seeds):
    for seed in seeds:
        obeys_the_laws(seed)


def obeys_the_laws(seed):
    draw = random.Random(seed)
    u, v, w = (random_displacement(draw) for _ in range(3))
    a, b = (draw.randint(-40, 40) / 8 for _ in range(2))
    zero = Displacement()
    assert u + v == v + u
    assert (u + v) + w == u + (v + w)
    assert u + zero == zero + u == u
    assert u + -u == u - u == zero
    assert u - v == u + -1 * v
    assert a * (u + v) == a * u + a * v
    assert (a + b) * u == a * u + b * u
    assert a * (b * u) == (a * b) * u
    assert 1 * u == u * 1.0 == u
    assert 0 * u == zero
    assert u / 4 == 0.25 * u


def test_every_coefficient_of_a_sum_is_the_sum_of_the_coefficients():
    for seed in range(50):
        draw = random.Random(seed)
        u, v = random_displacement(draw), random_displacement(draw)
        total = 3 * u - v / 2
        for key in {*u, *v, LARGEST}:
            assert total[key] == 3 * u[key] - v[key] / 2, seed


def test_a_term_that_becomes_exactly_zero_is_dropped():
    key, other = Key(0, 1), Key(0, 2)
    difference = Displacement({key: 0.5, other: 1.0}) - 2 * Displacement({key: 0.25})
    assert list(difference.items()) == [(other, 1.0)]
    assert len(Displacement({key: 0.0, other: -0.0})) == 0


def test_arithmetic_leaves_its_operands_and_their_source_as_they_were():
    source = {Key(0, 1): 1.0}
    u = Displacement(source)
    source[Key(0, 1)] = 5.0
    _ = u + u, u * 3, u - Displacement({Key(0, 1): 1.0}), -u, u.pruned(2.0)
    assert list(u.items()) == [(Key(0, 1), 1.0)]


def test_equal_displacements_hash_equally_in_any_order_of_their_terms():
    one, two = Key(0, 1), Key(0, 2)
    u, v = Displacement({one: 1.0, two: 2.0}), Displacement({two: 2.0, one: 1.0})
    assert u == v
    assert hash(u) == hash(v)
    assert u != Displacement({one: 1.0, two: 2.5})
    assert u != {one: 1.0, two: 2.0}


def test_adding_anything_but_a_displacement_is_a_type_error():
    with pytest.raises(TypeError):
        Displacement() + 1  # noqa: B018


def test_without_small_drops_what_is_below_the_tolerance_and_keeps_what_is_at_it():
    u = Displacement({Key(0, i): c for i, c in enumerate((0.5, -0.25, 0.2499, -2.0))})
    assert list(u.pruned(0.25).items()) == [(Key(0, 0), 0.5), (Key(0, 1), -0.25), (Key(0, 3), -2.0)]


def test_the_sum_of_many_is_what_adding_them_one_by_one_gives():
    parts = [Displacement({Key(0, step): step / 7, Key(0, 0): 1.0}) for step in range(50)]
    one_by_one = Displacement()
    for part in parts:
        one_by_one = one_by_one + part
    assert Displacement.sum(parts) == one_by_one
    assert Displacement.sum([]) == Displacement()
