"""Noise is a pure function of (key, tensor name, position), with mean 0 and identity covariance.

Run as a script it is the other process: it prints the hash of all draws, made in another order.
"""

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise import NOISES, Gaussian, LowRank, Rademacher, permutation, random_words
from zofo.noise.counter_rng import _mixed_by_numpy, _mixed_by_torch
from zofo.noise.dense import _gaussian_values

CPU = torch.device("cpu")
SHAPES = {"embed.weight": (7, 5), "norm.weight": (33,), "conv.weight": (4, 3, 2)}
VARIANTS = {
    **{name: NOISES[name]() for name in NOISES},
    "low-rank 2": LowRank(rank=2),
    "low-rank 2 of rademacher": LowRank(rank=2, factor_distribution="rademacher"),
}
every_noise = pytest.mark.parametrize("noise", VARIANTS.values(), ids=VARIANTS.keys())


def random_keys(count, seed=0):
    draw = random.Random(seed)
    return [Key(draw.getrandbits(64), draw.getrandbits(32), draw.getrandbits(32)) for _ in range(count)]


def draw_in_blocks(noise, key, name, blocks):
    size = torch.Size(SHAPES[name]).numel()
    cuts = [0, *blocks, size]
    pieces = [noise.draw(key, name, SHAPES[name], block, CPU) for block in itertools.pairwise(cuts)]
    assert all(piece.dtype == torch.float32 and piece.dim() == 1 for piece in pieces)
    return torch.cat(pieces)


def mismatching_bits(one, two):
    different = (one.view(torch.int32) ^ two.view(torch.int32)).numpy().view(np.uint8)
    return int(np.unpackbits(different).sum())


def hash_of_all_draws(count, backwards):
    """For each noise, SHA-256 over whole draws of `count` keys; `backwards` makes them last to first, by blocks."""
    keys, names = random_keys(count), list(SHAPES)
    hashes = {}
    for label, noise in VARIANTS.items():
        drawn = {}
        for key in reversed(keys) if backwards else keys:
            for name in reversed(names) if backwards else names:
                drawn[key, name] = draw_in_blocks(noise, key, name, (3, 4, 17) if backwards else ())
        digest = hashlib.sha256()
        for key, name in itertools.product(keys, names):
            digest.update(drawn[key, name].numpy().tobytes())
        hashes[label] = digest.hexdigest()
    return hashes


def check_purity(count):
    keys, names = random_keys(count), list(SHAPES)
    orders = [names, names[::-1], [names[1], names[2], names[0]]]
    blockings = [(), (1, 2, 11, 23)]
    for noise in VARIANTS.values():
        for key in keys:
            first = {name: noise.whole(key, name, SHAPES[name]).flatten() for name in names}
            for order, blocks in itertools.product(orders, blockings):
                for name in order:
                    assert mismatching_bits(draw_in_blocks(noise, key, name, blocks), first[name]) == 0
    command = [sys.executable, __file__, str(count)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == hash_of_all_draws(count, backwards=False)


@pytest.mark.promise(1)
def test_draws_are_the_same_bits_for_10_keys_in_any_order_blocks_and_process(tries):
    check_purity(10)
    tries(10 * len(VARIANTS))


@pytest.mark.promise(1)
@pytest.mark.soak
def test_draws_are_the_same_bits_for_1000_keys_in_any_order_blocks_and_process(tries):
    check_purity(1000)
    tries(1000 * len(VARIANTS))


@pytest.mark.promise(1)
@every_noise
def test_every_block_of_a_tensor_holds_the_bits_of_the_whole(noise, tries):
    key, (name, shape) = Key(3, 1, 4), ("conv.weight", (4, 3, 2))
    whole = noise.whole(key, name, shape)
    assert whole.shape == shape
    for start in range(24):
        for stop in tries(range(start + 1, 25)):
            block = noise.draw(key, name, shape, (start, stop), CPU)
            assert mismatching_bits(block, whole.flatten()[start:stop].contiguous()) == 0


@pytest.mark.promise(1)
@every_noise
def test_draws_leave_every_global_generator_as_it_was_and_do_not_depend_on_it(noise, tries):
    changed = 0
    for number, key in enumerate(random_keys(50)):
        torch.manual_seed(number)
        before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()  # noqa: NPY002
        first = noise.whole(key, "embed.weight", (7, 5))
        after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()  # noqa: NPY002
        changed += not (torch.equal(before[0], after[0]) and before[1:] == after[1:])
        torch.manual_seed(number + 1000)
        assert mismatching_bits(noise.whole(key, "embed.weight", (7, 5)), first) == 0
    assert changed == 0
    tries(50)


@every_noise
def test_add_to_adds_each_coefficient_times_its_direction_in_the_type_of_the_target(noise):
    one, two, block = Key(1, 2), Key(1, 3), (5, 29)
    directions = noise.directions([one, two], {"norm.weight": (33,)}, CPU)
    for dtype in (torch.float32, torch.float64):
        target = torch.linspace(-1, 1, 24, dtype=dtype)
        z = [noise.draw(key, "norm.weight", (33,), block, CPU).to(dtype) for key in (one, two)]
        expected = target + 0.5 * z[0] - 0.25 * z[1]
        directions.add_to(target, [(one, 0.5), (two, -0.25)], "norm.weight", block)
        assert target.dtype == dtype
        torch.testing.assert_close(target, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-15)


@pytest.mark.promise(1)
@every_noise
def test_mean_is_0_and_variance_is_1_within_4_standard_errors_at_a_million_entries(noise):
    draws = torch.stack([noise.whole(key, "w", (10, 100)).flatten() for key in random_keys(1000)]).double()
    for moment, expected, widest in ((draws, 0.0, 0.002), (draws.square(), 1.0, 0.03)):
        of_each_key = moment.mean(dim=1)  # entries of one key may depend on each other, keys do not
        error = (of_each_key.std() / len(draws) ** 0.5).item()
        assert error < widest
        assert abs(of_each_key.mean().item() - expected) <= 4 * error + 1e-12


def test_gaussian_moments_up_to_the_fourth_are_those_of_the_normal_distribution():
    n = 1_000_000
    z = Gaussian().whole(Key(0, 0), "w", (n,)).double()
    assert abs(z.mean().item()) < 4 / n**0.5
    assert abs(z.square().mean().item() - 1) < 4 * (2 / n) ** 0.5
    assert abs(z.pow(3).mean().item()) < 4 * (15 / n) ** 0.5
    assert abs(z.pow(4).mean().item() - 3) < 4 * (96 / n) ** 0.5


def test_gaussian_draws_pass_kolmogorov_smirnov_against_the_normal_distribution():
    from scipy import stats  # which the other process need not import

    z = Gaussian().whole(Key(5, 6, 7), "w", (1_000_000,)).numpy()
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert stats.kstest(1.01 * z, "norm").pvalue < 0.01  # one percent too wide would be seen


def test_the_gaussian_table_is_as_near_to_the_normal_distribution_as_its_docstring_says():
    from scipy import stats

    values = _gaussian_values().double().numpy()
    steps = np.arange(65537) / 65536
    normal = stats.norm.cdf(values)
    assert max(abs(normal - steps[:-1]).max(), abs(normal - steps[1:]).max()) < 1e-5
    assert (np.diff(values) > 0).all()
    assert (values == -values[::-1]).all()
    assert abs(np.square(values).mean() - 1) < 1e-8
    assert round(values.max(), 2) == 4.39
    assert values.dtype == np.float64


def test_rademacher_is_plus_or_minus_one_with_equal_probability():
    n = 1_000_000
    z = Rademacher().whole(Key(0, 0), "w", (n,))
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert abs(z.mean().item()) < 4 / n**0.5


@pytest.mark.promise(1)
@every_noise
@pytest.mark.parametrize("count", [2000, pytest.param(4000, marks=pytest.mark.soak)])
def test_entries_of_one_direction_have_identity_covariance_within_4_standard_errors(noise, count):
    """All pairs of entries of a matrix and of a vector beside it, over many keys."""
    keys = [Key(9, step) for step in range(count)]
    z = torch.stack(
        [torch.cat([noise.whole(k, "w", (3, 2)).flatten(), noise.whole(k, "b", (2,))]) for k in keys]
    ).double()
    products = z.unsqueeze(1) * z.unsqueeze(2)
    error = products.std(dim=0) / len(keys) ** 0.5
    assert error.max() < 0.1
    assert ((products.mean(dim=0) - torch.eye(8)).abs() <= 4 * error + 1e-12).all()


@pytest.mark.promise(1)
@pytest.mark.parametrize("name", NOISES)
def test_distinct_keys_and_distinct_names_give_uncorrelated_directions(name):
    n, noise = 100_000, NOISES[name]()
    key = Key(0, 0, 0)
    neighbours = [(Key(seed, step, index), "w") for seed in (0, 1) for step in (0, 1) for index in (0, 1)]
    namesakes = [(key, other) for other in ("v", "w.", "w/left", "model.layers.0.w", "")]
    far = [(Key(2**64 - 1, 2**32 - 1, 2**32 - 1), "w"), (Key(1 << 32, 0, 0), "w"), (Key(0, 0, 1 << 31), "w")]
    drawn = [noise.whole(k, tensor, (n,)).double() for k, tensor in (*neighbours, *namesakes, *far)]
    correlation = np.corrcoef(torch.stack(drawn).numpy())
    off_diagonal = correlation[~np.eye(len(drawn), dtype=bool)]
    assert abs(off_diagonal).max() < 4 / n**0.5


@pytest.mark.parametrize("name", NOISES)
def test_positions_of_one_direction_are_uncorrelated_at_every_short_distance(name):
    n = 100_000
    z = NOISES[name]().whole(Key(1, 2, 3), "w", (n,)).double()
    for distance in (*range(1, 17), 64, 256, 65536):
        correlation = (z[:-distance] * z[distance:]).mean().item()
        assert abs(correlation) < 4 / (n - distance) ** 0.5


@every_noise
def test_the_squared_length_is_exact_for_low_rank_noise_and_else_the_mean(noise):
    lengths = []
    for key in random_keys(40):
        found = noise.squared_length(key, SHAPES, CPU)
        lengths.append(sum(noise.whole(key, name, shape).square().sum().item() for name, shape in SHAPES.items()))
        if isinstance(noise, LowRank):
            assert found == pytest.approx(lengths[-1], rel=1e-5)
    if not isinstance(noise, LowRank):
        assert found == 7 * 5 + 33 + 4 * 3 * 2 == pytest.approx(np.mean(lengths), rel=0.1)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 2), (3, 30), (3, 3)])
def test_low_rank_draws_are_the_product_of_their_factors(rank, shape):
    noise, key = LowRank(rank=rank), Key(0, 1)
    left, right = noise.factors(key, "w", shape)
    z = noise.whole(key, "w", shape)
    assert left.shape == (shape[0], rank)
    assert right.shape == (torch.Size(shape[1:]).numel(), rank)
    product = (left.double() @ right.double().T / rank**0.5).view(shape)
    torch.testing.assert_close(z.double(), product, rtol=1e-6, atol=1e-6)
    assert torch.linalg.matrix_rank(z.view(shape[0], -1).double(), atol=1e-4) == rank


def test_low_rank_draws_a_vector_entry_by_entry():
    key = Key(4, 2)
    expected = Gaussian().whole(key, "norm.weight", (33,))
    assert torch.equal(LowRank(rank=5).whole(key, "norm.weight", (33,)), expected)


@pytest.mark.parametrize("shape", [(2, 9), (9, 2), (9, 1, 2)])
def test_a_rank_above_the_smaller_side_is_refused_by_naming_the_tensor_and_what_fits(shape):
    with pytest.raises(ConfigError, match=r"noise.rank is 3, but 'layers.0.weight' is") as caught:
        LowRank(rank=3).whole(Key(0, 0), "layers.0.weight", shape)
    assert "noise.rank to 2 or less" in caught.value.hint


def test_a_rank_below_one_and_unknown_factors_are_refused():
    with pytest.raises(ConfigError, match="noise.rank is 0"):
        LowRank(rank=0)
    with pytest.raises(ConfigError, match="Did you mean 'gaussian'"):
        LowRank(factor_distribution="gausian")


def splitmix64(key, name, position):
    """Word `position` of the stream, in Python's unbounded integers: the definition, written a second time."""
    text = b"\x01" + key.seed.to_bytes(8, "little") + key.step.to_bytes(4, "little") + key.index.to_bytes(4, "little")
    digest = hashlib.blake2b(text, digest_size=16).digest()
    origin, increment = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1
    offset = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    state = (origin + (offset + position) * increment) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


@pytest.mark.parametrize("start", [0, 1, 1000, 2**31 - 5, 2**40])
def test_the_integer_stream_is_splitmix64_addressed_by_counter(start):
    for key, name in ((Key(0, 0), "w"), (Key(2**64 - 1, 2**32 - 1, 2**32 - 1), "modèle.poids")):
        drawn = [word % 2**64 for word in random_words(key, name, start, start + 200, CPU).tolist()]
        assert drawn == [splitmix64(key, name, position) for position in range(start, start + 200)]


def test_every_bit_of_the_stream_is_fair_and_independent_of_every_other():
    n = 20_000
    drawn = random_words(Key(0, 0), "w", 0, n, CPU)
    bits = (drawn.unsqueeze(1).bitwise_right_shift(torch.arange(64)) & 1).double() * 2 - 1
    assert bits.mean(dim=0).abs().max() < 4.5 / n**0.5  # the largest of 64, and below of 2,016
    products = (bits.T @ bits / n).fill_diagonal_(0)
    assert products.abs().max() < 5 / n**0.5


GOLDEN_KEY, GOLDEN_NAME, GOLDEN_SHAPE = Key(42, 7, 3), "model.layers.0.weight", (3, 4)
GOLDEN = {
    "gaussian": (
        "3dde3b80 3fb17150 bfb91a08 3f0e7a10 be25e800 3e7b95c0 3f1b5380 bd2c9e00 bf6d3c80 3ef53380 3f507f80 bf25d420"
    ),
    "rademacher": (
        "3f800000 3f800000 3f800000 3f800000 bf800000 bf800000 bf800000 bf800000 3f800000 3f800000 bf800000 3f800000"
    ),
    "low-rank": (
        "3ba5e2ec 3c52fc9e bc84f803 3c3f3877 3ed15598 3f851fa2 bfa7cb8f 3f714dca bee500e0 bf91a1c2 3fb78fab bf83fd08"
    ),
    "low-rank 2 of rademacher": (
        "3fb504f3 00000000 3fb504f3 00000000 00000000 bfb504f3 00000000 3fb504f3 bfb504f3 00000000 bfb504f3 00000000"
    ),
}


@pytest.mark.promise(1)
@pytest.mark.parametrize("label", GOLDEN)
def test_the_bits_of_every_noise_are_those_of_stream_version_1(label):
    z = VARIANTS[label].whole(GOLDEN_KEY, GOLDEN_NAME, GOLDEN_SHAPE).flatten()
    assert " ".join(f"{bits:08x}" for bits in z.numpy().view(np.uint32)) == GOLDEN[label]


@pytest.mark.promise(1)
def test_every_registered_noise_has_frozen_bits():
    assert set(NOISES) <= set(GOLDEN)


def test_the_words_the_gaussian_table_and_permutations_are_those_of_stream_version_1():
    first = [word % 2**64 for word in random_words(Key(0, 0, 0), "w", 0, 4, CPU).tolist()]
    assert first == [0x68F1A81FB7EC74A5, 0x98F938B87E87302D, 0x6DA0C197BF4651F0, 0x3888135F6D678CC7]
    last = [
        word % 2**64 for word in random_words(Key(2**64 - 1, 2**32 - 1, 2**32 - 1), "ü", 2**40, 2**40 + 2, CPU).tolist()
    ]
    assert last == [0xDECB9EC270DA912B, 0xE433E988D7A21016]
    table = hashlib.sha256(_gaussian_values().numpy().tobytes()).hexdigest()
    assert table == "6c3b526c92038c0e66c0a97e8ad20358721b8e54ea869310a5a7f9a02093e8ea"
    assert permutation(Key(0, 0), "p", 10) == [5, 0, 8, 7, 1, 4, 3, 6, 2, 9]


@pytest.mark.promise(1)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_noise
def test_a_million_entries_have_the_same_bits_on_cpu_and_on_the_device(noise):
    key, device = Key(1, 2, 3), torch.device("cuda")
    one, two = (noise.whole(key, "w", (1000, 1000), where).cpu().flatten() for where in (CPU, device))
    assert mismatching_bits(one, two) == 0
    assert torch.equal(random_words(key, "w", 0, 1_000_000, CPU), random_words(key, "w", 0, 1_000_000, device).cpu())


@pytest.mark.parametrize("progressions", [[], [(0, 1)], [(2**64 - 1, 2**63 + 1), (2**63, 3), (7, 2**64 - 1)]])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_other_devices_draw_the_words_of_the_cpu(progressions, count):
    places = torch.arange(count) - count // 2
    words = _mixed_by_numpy(places, progressions)
    assert words.shape == (len(progressions), count)
    assert torch.equal(words, _mixed_by_torch(places, progressions))


if __name__ == "__main__":
    torch.manual_seed(999)
    torch.set_num_threads(1)
    print(json.dumps(hash_of_all_draws(int(sys.argv[1]), backwards=True)))
