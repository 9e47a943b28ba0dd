"""The in-place evaluator: losses at points by moving the weights, and the weights home again."""

import copy
import functools
import re
import warnings

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import ARCHITECTURES, build_model
from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.errors import EvaluatorError, ModelError, NonFiniteError
from zofo.estimators import ESTIMATORS, OneSided, TwoSided
from zofo.evaluators import EVALUATORS, InPlace
from zofo.noise import NOISES, Gaussian, Rademacher
from zofo.rules import SGD

KEY, OTHER = Key(11, 3), Key(11, 3, 1)
every_noise = pytest.mark.parametrize("noise", [NOISES[name]() for name in NOISES], ids=list(NOISES))


def token_loss(model, ids):
    """Cross-entropy of each next token, one mean for each row."""
    logits = model(ids).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(dim=1)


def square_loss(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().flatten(1).mean(dim=1)


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def token_ids():
    return torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(0))


def make_mlp(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 2)).to(dtype)


def make_conv():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 3, 2))


MLP_BATCH = (seeded(7, 5), seeded(7, 2, seed=1))
CONV_BATCH = (seeded(4, 2, 5, 5), seeded(4, 2, seed=1))
CASES = {
    "mlp": (make_mlp, square_loss, MLP_BATCH),
    "conv": (make_conv, square_loss, CONV_BATCH),
    **{kind: (lambda kind=kind: build_model(kind), token_loss, token_ids()) for kind in ARCHITECTURES},
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def build(module, select=None, noise=None, **options):
    return InPlace(module, Backbone(module, noise or Gaussian(), select), **options)


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def drift(module, before):
    """|now - before| / |before| over all parameters, as one vector."""
    moved = sum((parameter.detach() - before[name]).double().square().sum() for name, parameter in parameters(module))
    return (moved / sum(value.double().square().sum() for value in before.values())).sqrt().item()


def parameters(module):
    return list(module.named_parameters())


def reference_losses(module, objective, batch, points, noise, select=None):
    """The plain way: a copy of the model for each point, with the directions added to its weights in float64."""
    rows = []
    for point in points:
        twin = copy.deepcopy(module)
        chosen = Backbone(twin, noise, select).tensors
        for name, tensor in chosen.items():
            z = sum(c * noise.whole(key, name, tuple(tensor.shape)).double() for key, c in point.items())
            tensor.copy_(tensor.double() + z)
        with torch.no_grad():
            rows.append(objective(twin, batch).float())
    return torch.stack(rows)


POINTS = [
    Displacement({KEY: 0.05}),
    Displacement({KEY: -0.05}),
    Displacement(),
    Displacement({OTHER: 0.08, KEY: 0.01}),
]


def test_the_in_place_evaluator_is_registered():
    assert EVALUATORS["in-place"] is InPlace


@every_case
def test_losses_at_points_equal_those_of_a_copy_with_the_direction_added(case):
    make, objective, batch = case
    module = make()
    losses = build(module).losses(objective, batch, POINTS)
    expected = reference_losses(make(), objective, batch, POINTS, Gaussian())
    assert losses.shape == (len(POINTS), len(expected[0]))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    apart = (expected - expected[2]).abs().amax(dim=1)
    assert (apart[[0, 1, 3]] > 2e-3).all()  # hundreds of tolerances


def test_several_objectives_with_batches_of_their_own_stand_side_by_side_and_share_each_move():
    def absolute(model, batch):
        return (model(batch[0]) - batch[1]).abs().mean(dim=1)

    few, module = tuple(part[:2] for part in MLP_BATCH), make_mlp()
    evaluator = build(module)
    with evaluator.probe([(square_loss, MLP_BATCH), (absolute, few), (square_loss, few)], POINTS) as probe:
        losses = probe.losses
    alone = [(square_loss, MLP_BATCH), (absolute, few), (square_loss, few)]
    expected = [reference_losses(make_mlp(), *ask, POINTS, Gaussian()) for ask in alone]
    torch.testing.assert_close(losses, torch.cat(expected, dim=1), rtol=1e-5, atol=1e-5)
    assert losses.shape == (4, 7 + 2 + 2)
    assert (expected[1] - expected[2]).abs().min() > 1e-3  # so that their order shows
    assert evaluator.counts.as_dict() == {"forwards": 12, "backwards": 0, "queries": 4 * 11}
    assert evaluator.backbone.sweeps == 5  # theta itself is one of the points


@every_noise
def test_losses_follow_every_registered_noise(noise):
    module = make_mlp()
    losses = build(module, noise=noise).losses(square_loss, MLP_BATCH, POINTS)
    expected = reference_losses(make_mlp(), square_loss, MLP_BATCH, POINTS, noise)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert (losses[0] - losses[1]).abs().min() > 1e-4


@every_case
def test_weights_are_home_after_a_visit_to_within_rounding(case):
    make, objective, batch = case
    module = make()
    before = weights(module)
    build(module).losses(objective, batch, POINTS)
    assert drift(module, before) < 2e-7


@functools.cache
def drift_of_probes(kind, epsilon, count):
    """How far so many probes along directions of a class of noise have moved the weights."""
    module = make_mlp()
    before = weights(module)
    evaluator, estimator = build(module, noise=kind()), TwoSided(epsilon)
    for step in range(count):
        evaluator.losses(square_loss, MLP_BATCH, estimator.ask([Key(0, step)]))
    assert evaluator.counts.forwards == 2 * count
    return drift(module, before)


@pytest.mark.promise(2)
@pytest.mark.parametrize("count", [250, pytest.param(1000, marks=pytest.mark.soak)])
@every_noise
def test_weights_drift_less_than_1e_minus_8_a_probe(noise, count, tries):
    epsilon = 2**-10 if isinstance(noise, Rademacher) else 1e-3  # why: the test below
    assert drift_of_probes(type(noise), epsilon, count) < 1e-8 * count
    tries(count)


def test_moves_of_one_size_round_one_way_unless_epsilon_is_a_power_of_two():
    """Weights beside a power of two, such as norms at 1.0: half a last place a probe for +-1e-3, none for 2**-10."""
    assert 2e-8 < drift_of_probes(Rademacher, 1e-3, 250) / 250 < 1e-7
    assert drift_of_probes(Rademacher, 2**-10, 250) < 1e-7


@pytest.mark.promise(2)
@pytest.mark.soak
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_weights_of_a_model_drift_less_than_1e_minus_5_in_1000_probes(kind, tries):
    module = build_model(kind)
    before = weights(module)
    evaluator, estimator, ids = build(module), TwoSided(1e-3), token_ids()
    for step in range(1000):
        evaluator.losses(token_loss, ids, estimator.ask([Key(0, step)]))
    assert drift(module, before) < 1e-5
    tries(1000)


class Fuse(nn.Module):
    """A linear module that blows when its first weight passes a limit."""

    def __init__(self, limit):
        super().__init__()
        self.linear = make_mlp()[0]
        self.limit = limit

    def forward(self, inputs):
        if self.linear.weight[0, 0] > self.limit:
            raise FloatingPointError("the fuse has blown")
        return self.linear(inputs)[:, :2]


@pytest.mark.promise(2)
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["at the first point", "at the second point"])
def test_weights_go_home_when_the_forward_raises(sign):
    z = Gaussian().whole(KEY, "linear.weight", (16, 5))[0, 0].item()
    module = Fuse(limit=make_mlp()[0].weight[0, 0].item() + 0.05 * abs(z))
    before = weights(module)
    evaluator = build(module)
    first = sign if z > 0 else -sign
    points = [Displacement({KEY: 0.1 * first}), Displacement({KEY: -0.1 * first})]
    with pytest.raises(FloatingPointError, match="the fuse has blown"):
        evaluator.losses(square_loss, MLP_BATCH, points)
    assert drift(module, before) < 2e-7
    assert evaluator.counts.forwards == (0 if sign > 0 else 1)
    assert not module._forward_hooks
    sane = evaluator.losses(square_loss, MLP_BATCH, [Displacement()])
    assert torch.isfinite(sane).all()


@pytest.mark.promise(2)
@pytest.mark.parametrize("count", [250, pytest.param(1000, marks=pytest.mark.soak)])
def test_weights_drift_less_than_1e_minus_8_a_probe_whose_forward_raises(count, tries):
    module = make_mlp()
    before = weights(module)
    evaluator, wrong = build(module), (seeded(7, 6), seeded(7, 2))
    for step in range(count):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            evaluator.losses(square_loss, wrong, [Displacement({Key(0, step): 1e-3})])
    assert drift(module, before) < 1e-8 * count
    tries(count)


def test_weights_go_home_when_the_body_of_a_visit_raises():
    module = make_mlp()
    before = weights(module)
    with pytest.raises(KeyError), build(module).probe([(square_loss, MLP_BATCH)], POINTS):
        raise KeyError
    assert drift(module, before) < 2e-7


@pytest.mark.promise(2)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused_unless_it_is_allowed(dtype):
    module = make_mlp(dtype)
    with pytest.raises(EvaluatorError, match=str(dtype).removeprefix("torch.")) as caught:
        build(module)
    assert "evaluator.allow_half=true" in caught.value.hint
    assert "model.dtype=float32" in caught.value.hint
    batch = tuple(part.to(dtype) for part in MLP_BATCH)
    losses = build(module, allow_half=True).losses(square_loss, batch, POINTS)
    expected = reference_losses(make_mlp(), square_loss, MLP_BATCH, POINTS, Gaussian())
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.02)
    assert losses.dtype == torch.float32


@pytest.mark.promise(2)
def test_one_half_precision_tensor_among_many_is_refused_unless_it_is_left_out():
    module = make_mlp()
    module[3].half()
    with pytest.raises(EvaluatorError, match="float16"):
        build(module)
    assert build(module, ["0.*"]).backbone.dtypes == {torch.float32}


def step(evaluator, estimator, keys, objective=square_loss, batch=MLP_BATCH, lr=0.01):
    with evaluator.probe([(objective, batch)], estimator.ask(keys)) as probe:
        estimate = estimator.tell(keys, probe.losses)
        probe.update(SGD(lr).update(estimate, SGD(lr).init())[0])
    return estimate


@pytest.mark.parametrize(
    ("estimator", "directions", "sweeps"),
    [(TwoSided(0.1), 1, 3), (TwoSided(0.1), 4, 9), (OneSided(0.1), 1, 2), (OneSided(0.1), 4, 5)],
    ids=["two-sided", "two-sided x 4", "one-sided", "one-sided x 4"],
)
def test_a_step_takes_one_sweep_for_each_move_and_goes_home_with_the_update(estimator, directions, sweeps):
    module = make_mlp()
    start, evaluator = weights(module), build(module)
    keys = [Key(5, 0, index) for index in range(directions)]
    estimate = step(evaluator, estimator, keys)
    assert evaluator.backbone.sweeps == sweeps
    for name, parameter in parameters(module):
        expected = start[name] - 0.01 * evaluator.backbone.values(estimate.gradient)[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)
        assert (parameter.detach() - start[name]).abs().max() > 1e-4


def test_steps_descend_a_real_objective():
    module = make_mlp()
    evaluator = build(module)
    losses = [step(evaluator, TwoSided(1e-3), [Key(0, number)], lr=0.02).loss for number in range(200)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_a_visit_without_points_or_without_a_move_writes_nothing():
    module = make_mlp()
    evaluator = build(module)
    evaluator.losses(square_loss, MLP_BATCH, [Displacement(), Displacement()])
    assert evaluator.backbone.sweeps == 0
    evaluator.losses(square_loss, MLP_BATCH, [POINTS[0], POINTS[0]])
    assert evaluator.backbone.sweeps == 2


def test_forwards_and_queries_are_counted_where_they_happen():
    module = make_mlp()
    evaluator = build(module)
    step(evaluator, TwoSided(0.1), [KEY, OTHER])
    assert evaluator.counts.as_dict() == {"forwards": 4, "backwards": 0, "queries": 4 * 7}

    def asks_twice(model, batch):
        return square_loss(model, batch) + square_loss(model, batch)

    evaluator.losses(asks_twice, MLP_BATCH, [Displacement()])
    assert evaluator.counts.as_dict() == {"forwards": 6, "backwards": 0, "queries": 5 * 7}
    module(MLP_BATCH[0])
    assert evaluator.counts.forwards == 6  # not the evaluator's


@every_case
def test_frozen_parameters_move_as_trainable_ones_and_no_graph_is_kept(case):
    make, objective, batch = case
    frozen, trainable = make().requires_grad_(False), make().requires_grad_(True)
    results = [build(module).losses(objective, batch, POINTS) for module in (frozen, trainable)]
    assert torch.equal(*results)
    assert not any(losses.requires_grad for losses in results)
    assert all(p.grad is None and p.is_leaf for p in trainable.parameters())


def test_a_partial_selection_moves_alone_and_every_other_bit_stays():
    module, select = build_model("llama"), ["*.layers.1.*", "*norm*"]
    before = weights(module)
    evaluator = build(module, select)
    estimator = TwoSided(0.05)
    losses = evaluator.losses(token_loss, token_ids(), POINTS)
    expected = reference_losses(build_model("llama"), token_loss, token_ids(), POINTS, Gaussian(), select)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    step(evaluator, estimator, [KEY], token_loss, token_ids())
    moved = {name for name, parameter in parameters(module) if not torch.equal(parameter.detach(), before[name])}
    assert moved == set(evaluator.backbone.tensors)


def test_adapters_alone_can_be_moved_and_the_model_below_keeps_every_bit():
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        module = peft.get_peft_model(build_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    module.eval()
    before = weights(module)
    evaluator = build(module, ["*lora_*"])
    assert len(evaluator.backbone.tensors) == 8  # A and B of two projections in two layers
    losses = evaluator.losses(token_loss, token_ids(), POINTS)
    expected = reference_losses(module, token_loss, token_ids(), POINTS, Gaussian(), ["*lora_*"])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert (losses[0] - losses[2]).abs().max() > 1e-4
    step(evaluator, TwoSided(0.05), [KEY], token_loss, token_ids(), lr=0.1)
    moved = {name for name, parameter in parameters(module) if not torch.equal(parameter.detach(), before[name])}
    assert moved == set(evaluator.backbone.tensors)


@pytest.mark.parametrize("estimator", [TwoSided(0.1), OneSided(0.1)], ids=["two-sided", "one-sided"])
def test_a_point_for_each_example_is_refused_with_a_way_out_and_the_weights_stay(estimator):
    module = make_mlp()
    before = weights(module)
    keys = [Key(0, 0, index) for index in range(7)]
    with pytest.raises(EvaluatorError, match="one for each example") as caught:
        build(module).losses(square_loss, MLP_BATCH, estimator.ask([keys]))
    assert "method.directions=shared" in caught.value.hint
    assert all(torch.equal(value, dict(parameters(module))[name]) for name, value in before.items())


class Logarithm(nn.Module):
    """log(w x): not a number on one side of w = 0."""

    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([start]))

    def forward(self, inputs):
        return (self.w * inputs).log()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_non_finite_loss_names_step_key_and_example_and_the_weights_go_home(name):
    estimator, key = ESTIMATORS[name](epsilon=0.5), Key(7, 31, 2)
    z = Gaussian().whole(key, "w", (1,)).item()
    start = -0.1 * z
    module, inputs = Logarithm(start), torch.full((3, 1), -z)
    evaluator = build(module)  # log of -0.4 z**2 at the plus point; of something positive at theta and the minus point
    with pytest.raises(NonFiniteError, match="^step 31: non-finite loss nan of example 0") as caught:
        step(evaluator, estimator, [key], lambda model, batch: model(batch).flatten(), inputs)
    assert f"at +0.5 * {key}" in caught.value.message
    assert caught.value.step == 31
    assert abs(module.w.item() - start) < 1e-6


def test_an_infinite_loss_at_the_minus_point_alone_is_named_with_its_sign():
    key = Key(7, 31, 2)
    z = Gaussian().whole(key, "w", (1,)).item()
    module = Logarithm(0.25 * z)
    evaluator = build(module)
    inputs = torch.tensor([[z], [1 / z]])
    with pytest.raises(NonFiniteError) as caught:  # w - 0.25 z = 0, and log 0 = -inf
        step(evaluator, TwoSided(0.25), [key], lambda model, batch: model(batch).flatten(), inputs)
    assert re.search(re.escape(f"example 0 at -0.25 * {key}"), caught.value.message)
    assert evaluator.counts.forwards == 2
    assert abs(module.w.item() - 0.25 * z) < 1e-7


def test_an_interrupt_inside_a_sweep_is_never_silent():
    """Some tensors have moved and others have not: the next use says so instead of training on."""

    class Interrupting(Gaussian):
        armed = False

        def draw(self, key, name, shape, block, device):
            if self.armed and name == "2.weight":
                raise KeyboardInterrupt
            return super().draw(key, name, shape, block, device)

    model, noise = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)), Interrupting()
    backbone = Backbone(model, noise)
    evaluator = InPlace(model, backbone)

    def loss(m, batch):
        return m(batch).squeeze(1)

    points = TwoSided(1e-3).ask([Key(0, 0)])
    noise.armed = True
    with pytest.raises(KeyboardInterrupt):
        evaluator.losses(loss, torch.ones(2, 3), points)
    noise.armed = False
    assert backbone.is_corrupt
    with pytest.raises(ModelError, match="in the middle of a sweep"):
        evaluator.losses(loss, torch.ones(2, 3), points)
