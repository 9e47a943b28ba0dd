"""Masks: z' = mask * z for every mask and noise, the same at every point, in every evaluator and in a replay."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from bilevel_problems import language_context
from conftest import build_model, with_soak
from covering import grid
from least_squares import LeastSquares
from zofo.backbone import Backbone, Update
from zofo.config import parse_model
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, EvaluatorError
from zofo.estimators import TwoSided
from zofo.evaluators import InForward, InPlace, in_forward
from zofo.methods import METHODS, MeZOConfig, SVRGConfig
from zofo.noise import (
    MASKS,
    NOISES,
    STREAM_VERSION,
    BlockRotation,
    Gaussian,
    LowRank,
    Magnitude,
    RandomMask,
    magnitude_mask,
    masked,
)
from zofo.noise.masks import unit_count
from zofo.training import evaluate_run, read_config, train
from zofo.training.run_folder import RunFolder
from zofo.trajectory import Trajectory, TrajectoryWriter, replay

CPU = torch.device("cpu")
SHAPES = {"embed.weight": (17, 6), "norm.weight": (33,), "conv.weight": (4, 3, 2), "scale": (), "head.weight": (9, 5)}
KINDS = {
    "magnitude": Magnitude(density=0.4),
    "magnitude, largest": Magnitude(density=0.4, keep="largest"),
    "random": RandomMask(density=0.4),
    "random, every 3": RandomMask(density=0.4, refresh_every=3),
    "rotation": BlockRotation(num_blocks=3),
    "rotation, cyclic": BlockRotation(num_blocks=3, order="cyclic"),
}
CONFIGS = {
    "magnitude": {"name": "magnitude", "density": 0.4},
    "random": {"name": "random", "density": 0.4},
    "rotation": {"name": "rotation", "num_blocks": 3},
}
NOISE = {**{name: NOISES[name]() for name in NOISES}, "low-rank 2": LowRank(rank=2)}
every_mask = pytest.mark.parametrize("mask", KINDS.values(), ids=KINDS.keys())
every_noise = pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
KEYS = [Key(seed, step, index) for seed, step, index in itertools.product((5, 2**64 - 1), (0, 1, 4, 2**32 - 1), (0, 7))]


def base_weights():
    draw = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def same_bits(one, two):
    return torch.equal(one.contiguous().view(torch.int32), two.contiguous().view(torch.int32))


def kept_entries(noise, key, name):
    """Which entries of a tensor a masked noise keeps, by its own account."""
    shape, by_rows = SHAPES[name], isinstance(noise.of, LowRank)
    count = unit_count(shape, by_rows)
    units = noise.selection.units(key, name, (0, count), CPU)
    return units.repeat_interleave(math.prod(shape) // count).view(shape)


def test_every_registered_mask_is_tested():
    assert set(CONFIGS) == set(MASKS) == {name.split(",")[0] for name in KINDS}


# what a masked direction is


@every_noise
@every_mask
def test_a_masked_direction_has_the_noise_s_own_bits_where_it_is_kept_and_zeros_elsewhere(mask, noise):
    part = masked(noise, mask, base_weights())
    seen = set()
    for key, name in itertools.product(KEYS, SHAPES):
        z, plain = part.whole(key, name, SHAPES[name]), noise.whole(key, name, SHAPES[name])
        keep = kept_entries(part, key, name)
        assert same_bits(z, torch.where(keep, plain, torch.zeros(())))
        assert part.selection.is_active(key, name) or not keep.any()
        seen |= set(keep.flatten().tolist())
    assert seen == {True, False}


@pytest.mark.parametrize(("mask", "noise"), grid(KINDS.values(), NOISE.values(), strength=1))
def test_every_block_of_a_tensor_holds_the_bits_of_the_whole(mask, noise):
    part = masked(noise, mask, base_weights())
    for key, name in itertools.product(KEYS[:3], ("norm.weight", "conv.weight", "head.weight")):
        whole = part.whole(key, name, SHAPES[name]).flatten()
        for start, stop in itertools.combinations(range(len(whole) + 1), 2):
            if (start * 7 + stop) % 7 == 0:
                assert same_bits(part.draw(key, name, SHAPES[name], (start, stop), CPU), whole[start:stop])
        assert len(part.draw(key, name, SHAPES[name], (0, 0), CPU)) == 0


@every_mask
def test_a_mask_of_many_keys_and_tensors_at_once_is_that_of_each(mask):
    for by_rows in (False, True):
        kept = mask.select(base_weights(), by_rows)
        for names in (list(SHAPES), list(SHAPES)[::-1], ["scale"]):
            counts = {name: unit_count(SHAPES[name], by_rows) for name in names}
            alone = [torch.cat([kept.units(key, n, (0, c), CPU) for n, c in counts.items()]) for key in KEYS]
            assert torch.equal(kept.batched(counts, CPU)(KEYS), torch.stack(alone))


@pytest.mark.parametrize(("mask", "noise"), grid(KINDS.values(), NOISE.values(), strength=1))
def test_the_squared_length_counts_what_is_kept_without_a_draw_of_dense_noise(mask, noise, monkeypatch):
    of = masked(noise, mask, base_weights())
    exact = isinstance(noise, LowRank)
    lengths = {
        key: sum(of.whole(key, name, shape).square().sum().item() for name, shape in SHAPES.items()) for key in KEYS
    }
    kept = {key: sum(kept_entries(of, key, name).sum().item() for name in SHAPES) for key in KEYS}
    if not exact:
        monkeypatch.setattr(type(noise), "draw", None)
    found = {key: of.squared_length(key, SHAPES, CPU) for key in KEYS}
    for key in KEYS:
        if exact:
            assert found[key] == pytest.approx(lengths[key], rel=1e-5, abs=1e-6)
        elif isinstance(mask, RandomMask):
            assert found[key] == pytest.approx(0.4 * sum(math.prod(shape) for shape in SHAPES.values()))
            assert abs(found[key] - kept[key]) < 4 * math.sqrt(0.24 * sum(math.prod(s) for s in SHAPES.values()))
        else:
            assert found[key] == kept[key]


@pytest.mark.parametrize("rank", [1, 3])
@every_mask
def test_a_masked_low_rank_direction_is_the_product_of_its_factors_and_has_their_rank(mask, rank):
    part = masked(LowRank(rank), mask, base_weights())
    shapes = {name: shape for name, shape in SHAPES.items() if name != "conv.weight"}
    layout = part.layout(shapes, CPU)
    assert layout is part.layout(shapes, CPU)
    numbers = layout.draw(KEYS)
    for row, key in enumerate(KEYS):
        for name in ("embed.weight", "head.weight"):
            left, right = part.factors(key, name, SHAPES[name])
            from_layout = layout.matrix(numbers, name)
            assert same_bits(left, from_layout[0][row])
            assert same_bits(right, from_layout[1][row])
            z = part.whole(key, name, SHAPES[name])
            torch.testing.assert_close(z, left @ right.T / rank**0.5, rtol=1e-6, atol=1e-6)
            rows = kept_entries(part, key, name)[:, 0]
            assert torch.equal((z != 0).any(1), rows)
            assert torch.linalg.matrix_rank(z, atol=1e-5) == min(rank, int(rows.sum()))
        for name in ("norm.weight", "scale"):
            assert same_bits(layout.vector(numbers, name)[row].view(SHAPES[name]), part.whole(key, name, SHAPES[name]))


@every_mask
def test_a_rank_that_does_not_fit_is_still_refused_before_anything_moves(mask):
    with pytest.raises(ConfigError, match="noise.rank is 3, but 'layer.weight' is 2 x 2"):
        Backbone(nn.ModuleDict({"layer": nn.Linear(2, 2)}), LowRank(3), mask=mask)


GOLDEN = {  # units 0 to 32 of "norm.weight", of key (5, 4, 0)
    "random": "110010000101111000010000010011010",
    "random, every 3": "011111001011000100000100000010101",
}


@pytest.mark.parametrize("label", GOLDEN)
def test_random_masks_are_those_of_stream_version_1(label):
    units = KINDS[label].select({}, by_rows=False).units(Key(5, 4), "norm.weight", (0, 33), CPU)
    assert "".join("01"[unit] for unit in units.tolist()) == GOLDEN[label]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_mask
def test_masks_are_the_same_on_cpu_and_on_the_device(mask):
    device, weights = torch.device("cuda"), base_weights() | {"large.weight": torch.randn(3000, 400)}
    there = {name: tensor.to(device) for name, tensor in weights.items()}
    for by_rows, key in itertools.product((False, True), KEYS[:3]):
        for name, tensor in weights.items():
            block = (0, unit_count(tuple(tensor.shape), by_rows))
            one = mask.select(weights, by_rows).units(key, name, block, CPU)
            assert torch.equal(one, mask.select(there, by_rows).units(key, name, block, device).cpu())


def test_the_order_of_blocks_is_that_of_stream_version_1():
    tensors = {str(i): torch.zeros(1) for i in range(8)}
    assert "".join(name for (name,) in turns(BlockRotation(8), range(16), tensors)) == "5206473162751340"


# by magnitude


def in_order(tensor):
    return torch.from_numpy(tensor.detach().double().abs().flatten().numpy().argsort(kind="stable").copy())


CASES = {
    "normal": torch.randn(1013, generator=torch.Generator().manual_seed(0)),
    "many ties": torch.randint(-3, 4, (40, 25), generator=torch.Generator().manual_seed(1)).float(),
    "zeros": torch.zeros(77),
    "bfloat16": torch.randn(31, 33, generator=torch.Generator().manual_seed(2)).bfloat16(),
    "float16, tiny": (torch.randn(500, generator=torch.Generator().manual_seed(3)) * 1e-6).half(),
    "turned": torch.randn(29, 13, generator=torch.Generator().manual_seed(4)).t(),
    "far apart": torch.logspace(-44, 38, 400).flip(0),
    "a number": torch.tensor(2.0),
}


@pytest.mark.parametrize("at_once", [16, 1 << 18])
@pytest.mark.parametrize("case", CASES)
def test_the_smallest_entries_are_those_that_a_stable_sort_puts_first(case, at_once, monkeypatch):
    monkeypatch.setattr(magnitude_mask, "_AT_ONCE", at_once)
    tensor = CASES[case]
    n, order = tensor.numel(), in_order(tensor)
    for count in sorted({0, 1, n // 3, n - 1, n} & set(range(n + 1))):
        units = magnitude_mask.smallest_entries(tensor, count).read((0, n), CPU)
        assert set(units.nonzero().flatten().tolist()) == set(order[:count].tolist())


@pytest.mark.parametrize("at_once", [16, 1 << 18])
@pytest.mark.parametrize("case", [case for case in CASES if CASES[case].dim() == 2])
def test_the_smallest_rows_are_those_of_smallest_norm(case, at_once, monkeypatch):
    monkeypatch.setattr(magnitude_mask, "_AT_ONCE", at_once)
    tensor = CASES[case]
    order = in_order(tensor.double().square().sum(1))
    for count in (0, 1, len(tensor) // 3, len(tensor)):
        units = magnitude_mask.smallest_rows(tensor, count).read((0, len(tensor)), CPU)
        assert set(units.nonzero().flatten().tolist()) == set(order[:count].tolist())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_rows_are_ranked_at_any_scale_of_the_weights(scale):
    matrix = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    plain, scaled = (magnitude_mask.smallest_rows(tensor, 20).packed for tensor in (matrix, matrix * scale))
    assert torch.equal(plain, scaled)


def test_empty_tensors_and_all_of_a_tensor():
    for by_rows in (False, True):
        for share in (1e-9, 1.0):
            kept = Magnitude(share).select({"none": torch.zeros(0, 4), "all": torch.ones(12, 2)}, by_rows)
            assert kept.units(Key(0, 0), "none", (0, 0), CPU).numel() == 0
            n = 12 if by_rows else 24
            assert kept.units(Key(0, 0), "all", (0, n), CPU).sum() == (n if share == 1 else 1)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_the_share_of_every_tensor_is_exact_and_the_two_halves_of_a_tensor_complement_each_other(share):
    weights = {"w": CASES["many ties"], "v": CASES["normal"]}
    for by_rows, (name, tensor) in itertools.product((False, True), weights.items()):
        n = unit_count(tuple(tensor.shape), by_rows)
        small = Magnitude(share).select(weights, by_rows).units(Key(0, 0), name, (0, n), CPU)
        assert small.sum() == max(1, round(share * n))
        large = Magnitude((n - int(small.sum())) / n or 1.0, "largest").select(weights, by_rows)
        if share < 1:
            assert torch.equal(large.units(Key(0, 0), name, (0, n), CPU), ~small)


def test_a_mask_of_entries_takes_a_bit_an_entry_and_one_of_rows_a_bit_a_row():
    module = build_model("llama")
    for noise, units in ((NOISE["gaussian"], torch.Tensor.numel), (LowRank(), len)):
        backbone = Backbone(module, noise, mask=Magnitude(0.25))
        expected = sum(-(-units(tensor) // 8) for tensor in backbone.tensors.values())
        assert sum(bits.packed.nbytes for bits in backbone.noise.selection._bits.values()) == expected


def test_the_mask_stays_what_it_was_when_the_weights_move():
    module = build_model("llama")
    backbone = Backbone(module, NOISE["gaussian"], mask=Magnitude(0.25))
    before = backbone.values(Displacement({Key(0, 0): 1.0}))
    for step in range(3):
        backbone.apply_(Displacement({Key(0, step): 1.0}))
    after = backbone.values(Displacement({Key(0, 0): 1.0}))
    assert all(torch.equal(before[name], after[name]) for name in before)
    anew = Backbone(module, NOISE["gaussian"], mask=Magnitude(0.25)).values(Displacement({Key(0, 0): 1.0}))
    assert any(not torch.equal(before[name], anew[name]) for name in before)


# at random


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 1.0])
def test_random_masks_keep_the_share_they_are_asked_for(share):
    """Not Phi(share), as a comparison of normal numbers with it does: 0.54 for 0.1, 0.82 for 0.9."""
    n = 1_000_001
    units = RandomMask(share).select({}, False).units(Key(3, 1), "w", (0, n), CPU)
    assert abs(units.double().mean().item() - share) <= 4 * (share * (1 - share) / n) ** 0.5


def test_units_of_a_random_mask_and_masks_of_other_keys_and_tensors_are_independent():
    n, share = 100_000, 0.3
    kept = RandomMask(share).select({}, False)
    keys = [Key(0, 0), Key(0, 0, 1), Key(0, 1), Key(1, 0)]
    rows = [kept.units(key, name, (0, n), CPU) for key in keys for name in ("w", "v", "w/mask")]
    row = rows[0].double() - share
    others = [other.double() - share for other in rows[1:]] + [row.roll(distance) for distance in (1, 2, 64, 1024)]
    assert all(abs((row * other).mean()) < 4 * share * (1 - share) / n**0.5 for other in others)
    z = (NOISE["gaussian"].whole(keys[0], "w", (n,)) > 0).double() - 0.5  # nor does the mask know the direction
    assert abs((row * z).mean()) < 4 * 0.5 * (share * (1 - share)) ** 0.5 / n**0.5


def test_steps_of_one_window_share_a_random_mask():
    kept = RandomMask(0.5, refresh_every=3).select({}, False)
    masks = [[kept.units(Key(9, step, i), "w", (0, 64), CPU).tolist() for i in (0, 5)] for step in range(7)]
    assert all(one == two for one, two in masks)
    assert masks[0] == masks[1] == masks[2] != masks[3] == masks[4] == masks[5] != masks[6]
    each = RandomMask(0.5).select({}, False)
    assert each.units(Key(9, 0, 0), "w", (0, 64), CPU).tolist() != each.units(Key(9, 0, 1), "w", (0, 64), CPU).tolist()


# by rotation


def turns(mask, steps, tensors=None, seed=4, index=0):
    """For each step the names that move."""
    tensors = tensors or base_weights()
    kept = mask.select(tensors, False)
    return [tuple(name for name in tensors if kept.is_active(Key(seed, step, index), name)) for step in steps]


@pytest.mark.parametrize("order", ["shuffled", "cyclic"])
def test_each_round_visits_every_block_once_and_all_directions_of_a_step_share_it(order):
    tensors = {f"layers.{i}": torch.zeros(10) for i in range(24)}
    mask = BlockRotation(num_blocks=6, order=order)
    visited = turns(mask, range(60), tensors)
    names = list(tensors)
    blocks = [tuple(names[start : start + 4]) for start in range(0, 24, 4)]
    rounds = [visited[start : start + 6] for start in range(0, 60, 6)]
    assert all(sorted(each) == sorted(blocks) for each in rounds)
    assert visited == turns(mask, range(60), tensors, index=123)
    if order == "cyclic":
        assert all(each == blocks for each in rounds)
    else:
        assert len({tuple(each) for each in rounds}) > 5
        assert visited != turns(mask, range(60), tensors, seed=5)


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 12])
@pytest.mark.parametrize(
    "sizes", [[1] * 12, [1000, *[10] * 11], [*[10] * 11, 1000], [5, 0, 7, 0, 3, 9, 100, 2, 2, 2, 0, 0]], ids=str
)
def test_blocks_are_contiguous_none_is_empty_and_none_could_be_much_smaller(blocks, sizes):
    tensors = {str(i): torch.zeros(size) for i, size in enumerate(sizes)}
    visited = turns(BlockRotation(blocks, "cyclic"), range(blocks), tensors)
    assert all(visited)
    assert [name for names in visited for name in names] == list(tensors)
    largest = max(sum(sizes[int(name)] for name in names) for names in visited)
    assert largest <= sum(sizes) / blocks + max(sizes)
    if sizes == [1] * 12 and 12 % blocks == 0:
        assert largest == 12 // blocks


def test_what_recurs_every_few_steps_meets_every_block_unless_the_order_is_cyclic():
    """The full-batch steps of SVRG are every second or fourth one; with cyclic blocks some would never have a g."""
    for q in (2, 4):
        full = range(0, 400, q)
        assert len(set(turns(BlockRotation(4), full))) == 4
        assert len(set(turns(BlockRotation(4, "cyclic"), full))) == 4 // q


def test_in_place_only_tensors_of_the_block_are_drawn_for_and_written(monkeypatch):
    module, seen = build_model("llama"), set()

    class Seen(Gaussian):
        def draw(self, key, name, shape, block, device):
            seen.add(name)
            return super().draw(key, name, shape, block, device)

    backbone = Backbone(module, Seen(), mask=BlockRotation(num_blocks=4))
    jobs, written = backbone._jobs, set()

    def noted(name, *others):
        own = jobs(name, *others)
        written.update([name] if own else [])
        return own

    monkeypatch.setattr(backbone, "_jobs", noted)
    evaluator = InPlace(module, backbone)
    for step in range(4):
        key = Key(0, step)
        own = {name for name in backbone.tensors if backbone.is_active(key, name)}
        seen.clear()
        written.clear()
        evaluator.losses(token_loss, IDS, TwoSided().ask([key]))
        assert seen == written == own
        assert 0 < len(own) < len(backbone.tensors)


# estimates


@pytest.mark.parametrize(
    ("label", "noise"), grid(["magnitude", "random, every 3", "rotation"], ["gaussian", "low-rank"], strength=1)
)
def test_estimates_are_unbiased_for_the_masked_gradient_within_4_standard_errors(label, noise):
    """The gradient of the mean loss of a quadratic is known, and a two-sided slope of it is exact."""
    model = LeastSquares()
    gradient = model.gradients(model.theta()).mean(0)
    backbone = Backbone(model, NOISE[noise], mask=BlockRotation(2) if label == "rotation" else KINDS[label])
    evaluator, estimator, ids = InPlace(model, backbone), TwoSided(0.1), torch.arange(len(model.x))
    units = {n: backbone.noise.selection.units(Key(8, 1), n, (0, _units(backbone, n)), CPU) for n in backbone.tensors}
    kept = [u.repeat_interleave(backbone.tensors[n].numel() // len(u)) for n, u in units.items()]
    mask, estimates = torch.cat(kept), []
    for index in range(150):
        key = Key(8, 1, index)
        told = estimator.tell([key], evaluator.losses(lambda m, x: m(x), ids, estimator.ask([key])))
        estimates.append(torch.cat([t.flatten() for t in backbone.values(told.gradient).values()]).double())
    each = torch.stack(estimates)
    error = each.std(0) / len(each) ** 0.5
    assert 0 < mask.sum() < len(gradient)
    assert ((each.mean(0) - gradient * mask).abs() <= 4 * error).all()
    assert (each[:, ~mask] == 0).all()
    assert (gradient[mask].abs() > 4 * error[mask]).any()  # or zeros would pass


def _units(backbone, name):
    return unit_count(backbone.shapes[name], isinstance(backbone.noise.of, LowRank))


@pytest.mark.parametrize(
    ("label", "noise"),
    grid(["magnitude", "random", "random, every 3", "rotation"], ["gaussian", "low-rank 2"], strength=1),
)
def test_the_covariance_is_the_mask_on_the_diagonal_within_4_standard_errors(label, noise):
    shapes = {"w": (4, 2), "b": (3,)}
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    part = masked(NOISE[noise], BlockRotation(2) if label == "rotation" else KINDS[label], tensors)
    keys = [Key(9, 0, index) for index in range(600)]
    z = torch.stack([torch.cat([part.whole(k, n, s).flatten() for n, s in shapes.items()]) for k in keys]).double()
    # the share for masks of their own, else the mask itself
    expected = torch.full((11,), 0.4) if label == "random" else (z != 0).any(0).double()
    assert 0 < expected.sum() < 11
    products = z.unsqueeze(1) * z.unsqueeze(2)
    error = products.std(0) / len(keys) ** 0.5
    assert ((products.mean(0) - torch.diag(expected)).abs() <= 4 * error + 1e-12).all()


# both evaluators


def token_loss(model, ids):
    logits = model(ids).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(dim=1)


IDS = torch.randint(3, 300, (4, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("label", "kind"), grid(KINDS, ["llama", "gpt2"], strength=1))
def test_losses_in_the_forward_equal_those_in_place(label, kind):
    mask, rank = KINDS[label], {"llama": 1, "gpt2": 3}[kind]
    model = build_model(kind)
    evaluator = InForward(model, Backbone(model, LowRank(rank), mask=mask))
    evaluator.check([(token_loss, IDS)])
    evaluator.theta.pending = Displacement({Key(2, 7): 0.03, Key(2, 8): -0.02})
    own = [Displacement({Key(1, 3, example): 0.05}) for example in range(4)]
    points = [Displacement({Key(1, 3): 0.1}), own, Displacement(), Displacement({Key(1, 4): 0.1, Key(1, 5): 0.1})]
    losses = evaluator.losses(token_loss, IDS, points)
    beside, backbone = copy.deepcopy((model, evaluator.backbone))
    in_place = InPlace(beside, backbone)
    for row, point in zip(losses, points, strict=True):
        each = [(point, IDS)] if isinstance(point, Displacement) else zip(point, IDS.split(1), strict=True)
        there = [in_place.losses(token_loss, ids, [at + evaluator.theta.pending])[0] for at, ids in each]
        torch.testing.assert_close(row, torch.cat(there), rtol=1e-5, atol=1e-6)
    assert (losses[0] - losses[2]).abs().max() > 1e-3


def test_in_the_forward_tensors_of_other_blocks_run_as_they_are(monkeypatch):
    carried = []

    class Recording(in_forward.PerturbedForward):
        def __init__(self, parameters, *rest):
            carried.append({name for _, name in parameters})
            super().__init__(parameters, *rest)

    monkeypatch.setattr(in_forward, "PerturbedForward", Recording)
    model = build_model("llama")
    backbone = Backbone(model, LowRank(), mask=BlockRotation(num_blocks=4))
    evaluator = InForward(model, backbone)
    evaluator.check([(token_loss, IDS)])
    assert carried[0] == set(backbone.tensors)  # a check looks at every tensor
    carried.clear()
    for step in range(4):
        own = {name for name in backbone.tensors if backbone.is_active(Key(0, step), name)}
        evaluator.losses(token_loss, IDS, [Displacement({Key(0, step, i): 0.1}) for i in range(2)])
        assert carried.pop() == own
    evaluator.theta.apply(Update(Displacement({Key(0, 0): 0.1})))
    evaluator.losses(token_loss, IDS, TwoSided().ask([Key(0, 1)]))
    assert carried.pop() == {
        n for n in backbone.tensors if backbone.is_active(Key(0, 0), n) or backbone.is_active(Key(0, 1), n)
    }


def test_a_check_finds_what_points_cannot_share_in_a_block_of_a_later_step():
    class Twisted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(6)])

        def forward(self, x):
            for layer in self.layers[:-1]:
                x = layer(x)
            return x @ self.layers[-1].weight.cumsum(0)

    def loss(model, x):
        return model(x).sum(1)

    model, batch = Twisted(), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    backbone = Backbone(model, LowRank(), mask=BlockRotation(6, "cyclic"))
    evaluator = InForward(model, backbone)
    evaluator.check([(loss, batch)])
    step = next(step for step in range(6) if backbone.is_active(Key(0, step), "layers.5.weight"))
    points = TwoSided(0.1).ask([Key(0, step)])
    in_place = InPlace(*copy.deepcopy((model, backbone)))
    found, expected = (one.losses(loss, batch, points) for one in (evaluator, in_place))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found[0] - found[1]).abs().max() > 1e-3


# in every method, and replayed


METHOD = {
    "mezo": {"name": "mezo", "batch_size": 4, "rule": {"lr": 1e-3}},
    "mezo, bfloat16": {"name": "mezo", "batch_size": 4, "rule": {"lr": 0.05}},
    "mezo, per example": {"name": "mezo", "batch_size": 4, "directions": "per-example", "rule": {"lr": 1e-3}},
    "mezo, in place": {"name": "mezo", "batch_size": 4, "noise": "gaussian", "rule": {"lr": 1e-3}},
    "mezo, in place, low rank": {"name": "mezo", "batch_size": 4, "evaluator": "in-place", "rule": {"lr": 1e-3}},
    "mezo, dense adam": {"name": "mezo", "batch_size": 4, "rule": {"name": "dense-adam", "lr": 1e-4}},
    "svrg": {"name": "svrg", "batch_size": 4, "anchor_interval": 3, "rule": {"lr": 1e-3}},
    "svrg, in place": {"name": "svrg", "batch_size": 4, "noise": "rademacher", "rule": {"lr": 1e-3}},
    "zo-svrg": {"name": "zo-svrg", "batch_size": 4, "anchor_interval": 3, "rule": {"lr": 1e-3}},
    "bilevel": {"name": "bilevel", "batch_size": 2, "inner_steps": 1, "rule": {"lr": 1e-4}},
    "two-stage": {"name": "two-stage", "batch_size": 4, "adapter_steps": 2, "rule": {"lr": 1e-3}},
}
BASE = language_context()


def context(dtype):
    made = copy.copy(BASE)
    object.__setattr__(made, "model", copy.deepcopy(BASE.model).to(dtype))
    return made


@pytest.mark.parametrize(("case", "mask"), grid(METHOD, CONFIGS, strength=1))
def test_every_method_moves_what_the_mask_keeps_only_and_a_replay_has_its_bits(tmp_path, case, mask):
    options = parse_model(METHODS[METHOD[case]["name"]].Config, {**METHOD[case], "mask": CONFIGS[mask]}, "method")
    expected = "in-place" if "noise" in METHOD[case] or "in place" in case else "in-forward"
    assert options.evaluator.name == expected
    dtype = torch.bfloat16 if "bfloat16" in case else torch.float32
    given = context(dtype)
    before = {name: tensor.detach().clone() for name, tensor in given.model.named_parameters()}
    method = METHODS[METHOD[case]["name"]](options, given)
    writer = TrajectoryWriter(tmp_path / "t", given.seed, {"stream": STREAM_VERSION, **method.replay_header()})
    method.evaluator.theta.log = writer
    steps, seen = 6, []
    for number in range(steps):
        update = method.step(number).update
        seen += [] if update is None else update.displacement
        writer.stepped(number)
    method.evaluator.theta.flush()
    writer.close()
    theta = {name: tensor.clone() for name, tensor in method.backbone.tensors.items()}
    for name, tensor in theta.items():
        kept = method.backbone.noise.selection
        keep = torch.zeros(tensor.shape, dtype=torch.bool)
        for key in seen:
            units = kept.units(key, name, (0, _units(method.backbone, name)), CPU)
            keep |= units.repeat_interleave(tensor.numel() // len(units)).view(tensor.shape)
        changed = tensor != before[name]
        assert not (changed & ~keep).any()
    assert any((tensor != before[name]).any() for name, tensor in theta.items())
    again = context(dtype).model
    replay(again, Trajectory.read(tmp_path / "t"))
    assert all(torch.equal(dict(again.named_parameters())[name], tensor) for name, tensor in theta.items())


@pytest.mark.parametrize("mask", with_soak(CONFIGS, ["magnitude"]))
def test_a_run_with_a_mask_is_what_it_was_when_it_is_loaded_again(mask, model_folder, data_dir, tmp_path):
    config = read_config(
        model=str(model_folder),
        task={"data_dir": str(data_dir)},
        method={"name": "mezo", "batch_size": 4, "mask": CONFIGS[mask], "rule": {"lr": 1e-3}},
        training={"steps": 5},
        output_dir=str(tmp_path / "run"),
    )
    run = train(config)
    assert Trajectory.read(run.trajectory).header["mask"]["name"] == mask
    assert RunFolder.open(run.path).config.method.mask.name == mask
    assert evaluate_run(run.path).loss == pytest.approx(run.summary["loss"], abs=1e-6)


# configuration


def test_a_mask_changes_no_other_default():
    masked_one, plain = MeZOConfig(mask="rotation"), MeZOConfig()
    assert masked_one.mask.options == {"num_blocks": 4, "order": "shuffled"}
    assert {**masked_one.model_dump(), "mask": None} == plain.model_dump()
    assert plain.mask is None
    config = read_config(overrides=["method=svrg", "method.mask=rotation", "method.mask.num_blocks=2"])
    assert config.method.mask.options["num_blocks"] == 2
    assert read_config(overrides=["method=mezo", "method.mask.density=0.5"]).method.mask.name == "magnitude"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"density": 0}, "method.mask.density: Input should be greater than 0, got 0"),
        ({"density": 1.5}, "method.mask.density: Input should be less than or equal to 1, got 1.5"),
        ({"density": float("nan")}, "method.mask.density: Input should be .*, got nan"),
        ({"name": "random", "density": -0.1}, "method.mask.density: Input should be greater than 0"),
        (
            {"name": "random", "refresh_every": 0},
            "method.mask.refresh_every: Input should be greater than or equal to 1",
        ),
        ({"name": "rotation", "num_blocks": 0}, "method.mask.num_blocks: Input should be greater than or equal to 1"),
        ({"name": "rotation", "order": "sideways"}, "method.mask.order: Input should be 'shuffled' or 'cyclic'"),
        ({"keep": "middle"}, "method.mask.keep: Input should be 'smallest' or 'largest'"),
        ({"name": "rotation", "density": 0.1}, "method.mask.density: not an option of the mask 'rotation'"),
        ("magnitud", "unknown mask 'magnitud'. Did you mean 'magnitude'"),
    ],
    ids=str,
)
def test_a_mask_that_cannot_be_meant_names_the_key(given, message):
    with pytest.raises(ConfigError, match=message):
        parse_model(MeZOConfig, {"name": "mezo", "mask": given}, "method")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Magnitude(0.0), "method.mask.density is 0.0"),
        (lambda: RandomMask(1.01), "method.mask.density is 1.01"),
        (lambda: RandomMask(refresh_every=0), "method.mask.refresh_every is 0"),
        (lambda: BlockRotation(0), "method.mask.num_blocks is 0"),
        (
            lambda: BlockRotation(6).select(base_weights(), False),
            "method.mask.num_blocks is 6, but only 5 tensors move",
        ),
    ],
    ids=["none", "too much", "never", "no block", "too many blocks"],
)
def test_a_mask_that_is_none_is_refused_where_it_is_made(make, message):
    with pytest.raises(ConfigError, match=message) as refused:
        make()
    assert "set method.mask." in refused.value.hint


def test_weight_decay_would_move_what_a_mask_keeps_still():
    decays = {"mask": "random", "rule": {"weight_decay": 0.1}}
    for kind, given in ((MeZOConfig, {"name": "mezo"}), (SVRGConfig, {"name": "svrg", "anchor": "copy"})):
        with pytest.raises(ConfigError, match="weight_decay shrinks all weights") as refused:
            parse_model(kind, given | decays, "method")
        assert "method.mask=null" in refused.value.hint


def test_a_forward_cannot_carry_a_masked_dense_noise():
    model = LeastSquares()
    with pytest.raises(EvaluatorError, match="cannot carry Masked directions") as refused:
        InForward(model, Backbone(model, NOISE["gaussian"], mask=Magnitude()))
    assert "method.noise=low-rank" in refused.value.hint
