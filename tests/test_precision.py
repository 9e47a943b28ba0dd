"""Half precision: what one step is too small to change arrives in expectation, and what stands still keeps its bits."""

import copy

import pytest
import torch
from torch import nn

from conftest import build_model
from zofo.adapters import AdapterConfig
from zofo.backbone import Backbone, Update
from zofo.backbone.stochastic_rounding import rounding_bits, stochastically_rounded
from zofo.displacement import Displacement, Key
from zofo.errors import RunError
from zofo.estimators import TwoSided
from zofo.evaluators import InForward
from zofo.methods import METHODS
from zofo.methods.first_order_step import FirstOrderStep, FirstOrderStepConfig
from zofo.noise import STREAM_VERSION, Gaussian, LowRank
from zofo.rules import SGD
from zofo.state_dict import StateDict
from zofo.trajectory import Trajectory, replay

HALF = (torch.bfloat16, torch.float16)
every_half = pytest.mark.parametrize("dtype", HALF, ids=str)
CPU = torch.device("cpu")
ALL_BITS = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Entries(nn.Module):
    """A matrix and a vector, used in the plainest way."""

    def __init__(self, matrix, vector):
        super().__init__()
        self.matrix, self.vector = nn.Parameter(matrix), nn.Parameter(vector)

    def forward(self, x):
        return x @ self.matrix + self.vector


def entries(dtype, rows=20, columns=30, size=1.0, seed=0):
    """Numbers of size 1 to 2 times `size`, of either sign."""
    values = torch.rand(rows * columns + columns, generator=generator(seed)) + 1
    values *= size * torch.where(torch.rand(len(values), generator=generator(seed + 1)) < 0.5, -1, 1)
    return Entries(values[columns:].view(rows, columns).to(dtype), values[:columns].to(dtype))


def bits(module):
    return torch.cat([value.detach().flatten().view(torch.int16) for value in module.parameters()]).clone()


def mean_square(model, x):
    return model(x).float().square().mean(-1)


# rounding


@every_half
def test_each_number_that_half_precision_holds_stays_what_it_is_to_the_last_bit(dtype):
    """All 65,536 of them: zeros of both signs, subnormals, the largest, infinities; with every kind of random bits."""
    exact = ALL_BITS.view(dtype)
    exact = exact[~exact.isnan()]
    for seed in range(64):
        drawn = torch.randint(-(1 << 15), 1 << 15, exact.shape, generator=generator(seed)).to(torch.int16)
        rounded = stochastically_rounded(exact.float(), dtype, drawn)
        assert torch.equal(rounded.to(dtype).view(torch.int16), exact.view(torch.int16))
    for same in (0, 1, -1, -2, 4095, 8191, 32767, -32768):
        rounded = stochastically_rounded(exact.float(), dtype, torch.full_like(exact, same, dtype=torch.int16))
        assert torch.equal(rounded.to(dtype).view(torch.int16), exact.view(torch.int16))


def between(dtype):
    """float32 numbers between those of `dtype`: of many sizes and both signs, float16's subnormals among them."""
    spread = torch.randn(150, generator=generator()) * torch.logspace(-8, 4, 150)
    near = torch.tensor([1.0, -3.0, 0.1, 2.0**-14]).to(dtype).float()
    tiny = (torch.logspace(0, 10, 100, 2).floor() + torch.rand(100, generator=generator(1))) * 2.0**-24
    return torch.cat([spread, near * (1 + 1e-6), near * (1 - 1e-6), tiny, -tiny, tiny / 64])


@every_half
def test_the_mean_over_all_random_bits_is_the_number_itself(dtype):
    """Not a sample: each of the 65,536 values of the bits once. Steps below float16's normal numbers: 2**-24."""
    for value in between(dtype):
        rounded = stochastically_rounded(value.expand(len(ALL_BITS)), dtype, ALL_BITS).to(dtype).double()
        below, above = rounded.min(), rounded.max()
        step = (above - below).item()
        small = dtype is torch.float16 and abs(value) < 2.0**-14
        if below == above:  # so near to a number of `dtype` that 16 bits do not tell
            assert abs(below - value.double()) <= (2.0**-40 if small else 0)
        else:
            assert below < value < above
            assert step <= max(abs(value) * (2.0**-7 if dtype is torch.bfloat16 else 2.0**-10), 2.0**-24)
            assert abs(rounded.mean() - value.double()) <= (2.0**-40 if small else 1e-12 * step)


@every_half
def test_what_is_not_finite_stays(dtype):
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan])
    for drawn in (0, -1, 4095):
        rounded = stochastically_rounded(odd, dtype, torch.full((3,), drawn, dtype=torch.int16)).to(dtype)
        assert rounded.tolist()[:2] == [torch.inf, -torch.inf]
        assert rounded[2].isnan()


def test_the_bits_that_round_depend_on_key_tensor_and_position_only():
    key, whole = Key(5, 6, 7), rounding_bits(Key(5, 6, 7), "w", (0, 101), CPU)
    for start, stop in ((0, 1), (3, 4), (4, 9), (5, 101), (17, 17), (99, 101)):
        assert torch.equal(rounding_bits(key, "w", (start, stop), CPU), whole[start:stop])
    for other in ((Key(5, 6, 8), "w"), (Key(5, 7, 7), "w"), (key, "v")):
        assert (rounding_bits(*other, (0, 101), CPU) == whole).sum() < 4


def test_the_bits_that_round_are_uniform_within_4_standard_errors():
    drawn = rounding_bits(Key(1, 2), "w", (0, 1 << 18), CPU).int() & 0xFFFF
    for bit in range(16):
        ones = ((drawn >> bit) & 1).double().mean().item()
        assert abs(ones - 0.5) < 4 * 0.5 / (1 << 9)
    shares = drawn.double() / 65536
    assert abs(shares.mean() - 0.5) < 4 * (1 / 12) ** 0.5 / (1 << 9)
    assert abs((shares[1:] * shares[:-1]).mean() - 0.25) < 4 * 0.22 / (1 << 9)


# folding


@every_half
@pytest.mark.parametrize("noise", [Gaussian(), LowRank()], ids=["gaussian", "low-rank"])
def test_an_update_gives_the_same_bits_for_any_block(dtype, noise):
    results = []
    for block in (None, 1, 7, 64, 10_000):
        module = entries(dtype, 5, 12)
        for step in range(3):
            update = Update(Displacement({Key(0, step): 1e-2, Key(0, step, 1): -2e-2}))
            Backbone(module, noise, block=block).apply_(update)
        results.append(bits(module))
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert (results[0] != bits(entries(dtype, 5, 12))).double().mean() > 0.5


@every_half
def test_an_update_is_rounded_by_its_newest_key_alone(dtype):
    """So that a replay gives the same bits, and the next update others."""
    one, two, three = (entries(dtype) for _ in range(3))
    for module, newest in ((one, 4), (two, 4), (three, 5)):
        Backbone(module, Gaussian()).apply_(Update(Displacement({Key(0, 1): 3e-4, Key(0, newest): 1e-30})))
    assert torch.equal(bits(one), bits(two))
    assert not torch.equal(bits(one), bits(three))


def stand_still(dtype, steps):
    module, x = entries(dtype), torch.randn(4, 20, generator=generator()).to(dtype)
    with torch.no_grad():
        module.vector[:4] = torch.tensor([torch.inf, -torch.inf, 3e-7, -1e-5]).to(dtype)
    before, backbone = bits(module), Backbone(module, LowRank())
    for step in range(steps):
        backbone.apply_(Update(Displacement({Key(0, step): 0.0})))
        backbone.apply_(Update(Displacement()))
        backbone.apply_(Update(Displacement({Key(0, step): 1e-44})))  # less than any of the numbers can tell
    assert backbone.sweeps == steps
    assert torch.equal(bits(module), before)
    module = entries(dtype)
    before, rule, estimator = bits(module), SGD(0.0), TwoSided(1e-3)
    for flush_every in (1, 8):
        evaluator = InForward(module, Backbone(module, LowRank()), flush_every=flush_every)
        for step in range(steps):
            keys = [Key(0, step)]
            with evaluator.probe([(mean_square, x)], estimator.ask(keys)) as probe:
                probe.update(rule.update(estimator.tell(keys, probe.losses), rule.init())[0])
        evaluator.theta.flush()
    assert torch.equal(bits(module), before)


@pytest.mark.promise(2)
@every_half
def test_200_steps_of_learning_rate_0_change_0_bits(dtype):
    stand_still(dtype, 200)


@pytest.mark.promise(2)
@pytest.mark.soak
@every_half
def test_1000_steps_of_learning_rate_0_change_0_bits(dtype):
    stand_still(dtype, 1000)


def arrived(dtype, rows, columns, steps, size, coefficient, through=None):
    """How much of a direction has arrived after many equal updates along it, as a share of what was sent.

    Each step also has a key of its own, as real updates do, with next to no coefficient; it names the rounding.
    """
    module = entries(dtype, rows, columns, size)
    before = [value.detach().double().clone() for value in module.parameters()]
    backbone = Backbone(module, LowRank(1, "rademacher") if through else Gaussian())
    evaluator = InForward(module, backbone, flush_every=through) if through else None
    for step in range(steps):
        update = Update(Displacement({Key(9, 0): coefficient, Key(9, 1 + step): coefficient * 1e-9}))
        evaluator.theta.apply(update) if evaluator else backbone.apply_(update)
    if evaluator:
        evaluator.theta.flush()
    z = list(backbone.values(Displacement({Key(9, 0): 1.0})).values())
    moved = sum(((now.double() - was) * d).sum() for now, was, d in zip(module.parameters(), before, z, strict=True))
    return (moved / sum(d.double().square().sum() for d in z) / (steps * coefficient)).item()


# One rounding of w + u in steps of s has variance at most s u, if u is the smaller. So the mean of M, as a share of u,
# has the standard error (s / u / M) ** 0.5: for u = 1e-6, with s = 2**-7 of bfloat16 and s = 2**-10 of float16 in
# 1 <= w < 2, that is 1 % for M = 8e7 and M = 1e7.
@pytest.mark.parametrize(("dtype", "steps"), [(torch.bfloat16, 400), (torch.float16, 50)], ids=str)
def test_updates_of_a_millionth_of_a_weight_arrive_in_expectation(dtype, steps):
    assert arrived(dtype, 400, 500, steps, 1.0, 1e-6) == pytest.approx(1, abs=0.05)


@every_half
@pytest.mark.parametrize("flush_every", [1, 8])
def test_pending_updates_arrive_in_expectation(dtype, flush_every):
    assert arrived(dtype, 200, 250, 160, 1.0, 3e-5, flush_every) == pytest.approx(1, abs=0.05)


def test_updates_of_subnormal_weights_arrive_in_expectation():
    """float16 below 2**-14: steps of 2**-24 = 6e-8, and updates of a twentieth of one."""
    assert arrived(torch.float16, 100, 200, 100, 1e-5, 3e-9) == pytest.approx(1, abs=0.05)


@every_half
def test_rounding_to_nearest_would_lose_these_updates(dtype):
    """Why the rounding is stochastic; a plain displacement, which is no update, still is rounded to nearest."""
    module = entries(dtype)
    before, backbone = bits(module), Backbone(module, Gaussian())
    for step in range(50):
        backbone.apply_(Displacement({Key(9, 0): 1e-5, Key(9, 1 + step): 1e-14}))
    assert torch.equal(bits(module), before)


@pytest.mark.parametrize("steps", [{}, {"rounding": "stochastic"}, {"rounding": "nearest"}], ids=str)
def test_a_trajectory_says_how_updates_were_rounded(steps, tmp_path):
    parts = {"noise": {"name": "gaussian"}, "rule": {"name": "sgd"}, "evaluator": {"name": "in-place"}}
    header = {"stream": STREAM_VERSION, "trainable": None, **parts, **steps}
    updates = tuple(Update(Displacement({Key(9, step): 1e-5})) for step in range(50))
    replayed, trained = entries(torch.bfloat16), entries(torch.bfloat16)
    before = bits(trained)
    backbone = Backbone(trained, Gaussian(), **steps)
    for update in updates:
        backbone.apply_(update)
    replay(replayed, Trajectory(header, updates, 50))
    assert torch.equal(bits(replayed), bits(trained))
    assert torch.equal(bits(trained), before) == (steps.get("rounding") == "nearest")
    with pytest.raises(RunError, match="'rounding' of the trajectory's header must be one of stochastic, nearest"):
        replay(replayed, Trajectory({**header, "rounding": "up"}, updates, 50))


# first-order steps


def moved_by(dtype, optimizer, steps=200, stop=None, **options):
    """How far first-order steps have moved a matrix along fixed gradients, and the module; state is carried over at
    `stop`."""
    module = entries(dtype, size=0.02)
    before = module.matrix.detach().float().clone()
    lr = 1e-5 if optimizer != "sgd" else 1e-3
    config = METHODS["first-order"].Config.model_validate({"parameters": "all", "optimizer": optimizer, **options})
    slopes = [torch.randn(p.shape, generator=generator(5)) * 0.01 for p in module.parameters()]

    def begin():
        return FirstOrderStep(module, list(module.parameters()), config, lr, 3)

    step = begin()
    for number in range(steps):
        if number == stop:
            saved = copy.deepcopy(step.state_in(StateDict(), "trained", "optimizer"))
            step = begin()
            step.load_state_of(saved, "trained", "optimizer")
        for parameter, slope in zip(module.parameters(), slopes, strict=True):
            parameter.grad = slope.to(dtype)
        step.step(number)
        assert all(parameter.grad is None for parameter in module.parameters())
    return (module.matrix.detach().float() - before) * -slopes[0].sign(), module


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_first_order_steps_in_bfloat16_move_as_far_as_in_float32(optimizer):
    """Steps of 1e-5 from weights of 0.02 to 0.04, which are 1.2e-4 to 2.4e-4 apart: rounded to nearest none arrives."""
    wide, half, nearest = (
        moved_by(dtype, optimizer, **options)[0].mean().item()
        for dtype, options in ((torch.float32, {}), (torch.bfloat16, {}), (torch.bfloat16, {"rounding": "nearest"}))
    )
    assert half == pytest.approx(wide, rel=0.1)
    assert abs(nearest) < 0.1 * wide


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_first_order_steps_in_bfloat16_go_on_to_the_same_bits_and_round_by_seed_and_step(optimizer):
    whole = bits(moved_by(torch.bfloat16, optimizer, steps=40)[1])
    assert torch.equal(bits(moved_by(torch.bfloat16, optimizer, steps=40, stop=17)[1]), whole)
    assert not torch.equal(bits(moved_by(torch.bfloat16, optimizer, steps=41)[1]), whole)


def test_first_order_steps_to_nearest_are_those_of_torch_on_the_parameters_themselves():
    module, theirs = moved_by(torch.bfloat16, "adam", 5, rounding="nearest")[1], entries(torch.bfloat16, size=0.02)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-5)
    for _ in range(5):
        for parameter in theirs.parameters():
            parameter.grad = (torch.randn(parameter.shape, generator=generator(5)) * 0.01).bfloat16()
        adam.step()
    assert torch.equal(bits(module), bits(theirs))


def test_between_first_order_steps_no_weight_has_a_copy_and_moments_are_in_float32():
    module = entries(torch.bfloat16)
    config = METHODS["first-order"].Config.model_validate({"parameters": "all"})
    step = FirstOrderStep(module, list(module.parameters()), config, 1e-5)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    step.step(0)
    held = [p for group in step._optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in held) == 0
    moments = [step._optimizer.state[p][name] for p in held for name in ("exp_avg", "exp_avg_sq")]
    assert {m.dtype for m in moments} == {torch.float32}
    assert sum(m.numel() for m in moments) == 2 * sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_float32_tensors_beside_half_precision_move_once(optimizer):
    """As a head in float32 on a model in bfloat16: the others of the step are moved after it, one by one."""
    moved = {}
    for others in (torch.float32, torch.bfloat16):
        model = nn.ParameterList([nn.Parameter(torch.ones(4, dtype=one)) for one in (torch.float32, others, others)])
        step = FirstOrderStep(model, list(model), FirstOrderStepConfig(optimizer=optimizer), 0.25)
        for number in range(3):
            for parameter in model:
                parameter.grad = torch.full_like(parameter, 1.0 + number)
            step.step(number)
        moved[others] = model[0].detach()
    assert torch.equal(moved[torch.float32], moved[torch.bfloat16])


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3", "prefix", "prompt", "subspace"])
def test_adapters_of_a_model_in_half_precision_are_in_float32(adapter):
    adapters = AdapterConfig.model_validate({"name": adapter}).build(build_model("qwen2").bfloat16(), ("adapter",), 0)
    assert {parameter.dtype for parameter in adapters.parameters("adapter")} == {torch.float32}


# updates that wait in the in-forward evaluator


def run_steps(dtype, flush_every, steps=12, kind=None):
    """Losses at two points after each of some updates, and the evaluator."""
    model = build_model(kind).to(dtype) if kind else entries(dtype, size=0.1)
    x = torch.randn(5, 20, generator=generator()).to(dtype)
    evaluator = InForward(model, Backbone(model, LowRank()), flush_every=flush_every)
    losses = []
    for step in range(steps):
        points = [Displacement({Key(1, step): 1e-2}), [Displacement({Key(2, step, i): 1e-2}) for i in range(5)]]
        with evaluator.probe([(mean_square, x)], points) as probe:
            losses.append(probe.losses)
            probe.update(Update(Displacement({Key(1, step): 2e-2})))
    return torch.stack(losses), evaluator


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_losses_are_the_same_however_long_updates_wait(dtype):
    exact, _ = run_steps(torch.float32, 1)
    assert ((exact[0, 0] - exact[-1, 0]) / exact[0, 0]).abs().max() > 0.1  # the updates show
    rtol = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.005}[dtype]
    for flush_every in (1, 8, 10_000):
        losses, _ = run_steps(dtype, flush_every)
        torch.testing.assert_close(losses, exact, rtol=rtol, atol=0)


def test_updates_wait_until_there_are_enough_of_them_or_of_their_columns():
    seen = ((1, 5, 5, 0), (8, 7, 0, 7), (8, 8, 1, 0), (8, 20, 2, 4), (999, 20, 2, 2))
    for flush_every, steps, sweeps, waiting in seen:
        _, evaluator = run_steps(torch.float32, flush_every, steps)
        assert (evaluator.backbone.sweeps, len(evaluator.theta.pending)) == (sweeps, waiting)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_settling_writes_what_is_pending_and_the_losses_stay(dtype):
    x = torch.randn(5, 20, generator=generator()).to(dtype)
    _, evaluator = run_steps(dtype, 999, 7)
    pending, before = evaluator.theta.pending, [tensor.clone() for tensor in evaluator.backbone.tensors.values()]
    losses = evaluator.losses(mean_square, x, [Displacement()])
    moves = evaluator.backbone.values(pending)
    evaluator.theta.flush()
    assert len(pending) == 7
    assert len(evaluator.theta.pending) == 0
    assert evaluator.backbone.sweeps == 1
    step = {torch.float32: 1e-7, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    for (name, tensor), was in zip(evaluator.backbone.tensors.items(), before, strict=True):
        expected = was.float() + moves[name]
        assert ((tensor.float() - expected).abs() <= 2 * step * expected.abs() + 1e-7).all()
    rtol = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}[dtype]
    torch.testing.assert_close(evaluator.losses(mean_square, x, [Displacement()]), losses, rtol=rtol, atol=0)
    torch.testing.assert_close(mean_square(evaluator.model, x), losses[0], rtol=rtol, atol=0)
    evaluator.theta.flush()
    assert evaluator.backbone.sweeps == 1


def test_an_update_that_is_no_displacement_is_written_after_what_was_pending():
    module = entries(torch.float32)
    evaluator = InForward(module, Backbone(module, LowRank()))
    start, (one, two) = {n: t.clone() for n, t in evaluator.backbone.tensors.items()}, (Key(1, 1), Key(1, 2))
    evaluator.theta.apply(Update(Displacement({one: 0.1})))
    evaluator.theta.apply(Update(Displacement({two: 0.2}), decay_factor=0.25))
    first, second = (evaluator.backbone.values(Displacement({key: 1.0})) for key in (one, two))
    assert len(evaluator.theta.pending) == 0
    assert evaluator.backbone.decays == {"matrix", "vector"}
    for name, tensor in evaluator.backbone.tensors.items():
        expected = 0.75 * (start[name] + 0.1 * first[name]) + 0.2 * second[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)


@every_half
def test_two_runs_in_half_precision_end_in_the_same_bits(dtype):
    ends = []
    for _ in range(2):
        _, evaluator = run_steps(dtype, 4, 10)
        evaluator.theta.flush()
        ends.append(bits(evaluator.model))
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], bits(entries(dtype, size=0.1)))
