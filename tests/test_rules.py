"""Rules against `torch.optim` on the same estimates written out, and against their definitions."""

import math

import pytest
import torch
from torch import nn

from zofo.backbone import Backbone, Theta
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError
from zofo.estimators import Estimate
from zofo.noise import NOISES, Gaussian, LowRank
from zofo.rules import RULES, SGD, DenseAdam, DenseMomentum, Momentum, RmsSGD, Rule, Sign, State

STEPS = 50
every_rule = pytest.mark.parametrize("name", RULES)


def make_module():
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 4))


def estimates(count, directions=2):
    """Estimates with coefficients that change in size and sign, as training gives them."""
    for step in range(count):
        terms = {Key(3, step, i): math.sin(1.7 * step + i + 1) * (1 + step % 5) for i in range(directions)}
        yield Estimate.from_gradient(Displacement(terms))


def values(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def train(rule, noise, sequence, block=None):
    """The weights after folding in the update of each estimate, and the last state."""
    module = make_module()
    backbone, state = Backbone(module, noise, block=block), rule.init()
    for estimate in sequence:
        update, state = rule.update(estimate, state)
        backbone.apply_(update)
    return values(module), state


def train_with_torch(build, noise, sequence, dtype=torch.float32):
    """The same with an optimizer of torch, whose gradient is the estimate written out."""
    module = make_module().to(dtype)
    backbone = Backbone(module, noise)
    named = dict(module.named_parameters())
    optimizer = build(named, backbone.decays)
    for estimate in sequence:
        for name, gradient in backbone.values(estimate.gradient).items():
            named[name].grad = gradient.to(dtype)
        optimizer.step()
    return values(module)


def assert_equal_to(result, reference, tolerance=1e-6):
    """To 1e-6 of the largest weight, which is far below what the steps moved."""
    start = values(make_module())
    for name, value in result.items():
        scale = reference[name].abs().max().item()
        torch.testing.assert_close(value, reference[name], rtol=0, atol=tolerance * scale)
        assert (reference[name] - start[name]).abs().max() > 0.05 * scale


AGAINST_TORCH = {
    "sgd": (SGD(lr=0.01), lambda named, _: torch.optim.SGD(named.values(), lr=0.01)),
    "momentum": (
        Momentum(lr=0.003, beta=0.9, tolerance=0),
        lambda named, _: torch.optim.SGD(named.values(), lr=0.003, momentum=0.9),
    ),
    "dense-momentum": (
        DenseMomentum(lr=0.003, beta=0.9),
        lambda named, _: torch.optim.SGD(named.values(), lr=0.003, momentum=0.9),
    ),
    "dense-adam": (
        DenseAdam(lr=0.02, betas=(0.8, 0.99), eps=1e-6),
        lambda named, _: torch.optim.Adam(named.values(), lr=0.02, betas=(0.8, 0.99), eps=1e-6),
    ),
    "sgd with weight decay": (
        SGD(lr=0.01, weight_decay=0.3),
        lambda named, decays: torch.optim.SGD(
            [
                {"params": [p for name, p in named.items() if name in decays], "weight_decay": 0.3},
                {"params": [p for name, p in named.items() if name not in decays], "weight_decay": 0.0},
            ],
            lr=0.01,
        ),
    ),
}


@pytest.mark.promise(4)
@pytest.mark.parametrize("noise", [NOISES[name]() for name in NOISES], ids=list(NOISES))
@pytest.mark.parametrize("case", AGAINST_TORCH)
def test_50_steps_equal_those_of_torch_on_the_same_estimates_to_1e_minus_6(case, noise):
    rule, build = AGAINST_TORCH[case]
    result, _ = train(rule, noise, estimates(STEPS))
    # momentum has up to 100 terms a step, which low-rank noise adds to the weights by one product in float32
    tolerance = 3e-6 if isinstance(noise, LowRank) and case == "momentum" else 1e-6
    assert_equal_to(result, train_with_torch(build, noise, estimates(STEPS)), tolerance)


def test_adam_in_bfloat16_to_nearest_is_that_of_torch_on_a_model_in_bfloat16():
    noise = NOISES["gaussian"]()
    module = make_module().to(torch.bfloat16)
    backbone, rule = Backbone(module, noise, rounding="nearest"), DenseAdam(lr=0.02, state_dtype="bfloat16")
    state = rule.init()
    for estimate in estimates(STEPS):
        update, state = rule.update(estimate, state)
        backbone.apply_(update)
    kept = {}

    def adam(named, _):
        kept["optimizer"] = torch.optim.Adam(named.values(), lr=0.02, foreach=False)
        return kept["optimizer"]

    reference = train_with_torch(adam, noise, estimates(STEPS), torch.bfloat16)
    theirs = dict(zip(reference, kept["optimizer"].state.values(), strict=True))
    for name, moved in values(module).items():
        for ours, theirs_name in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            assert torch.equal(state.buffers[ours][name], theirs[name][theirs_name].flatten())
        # torch divides in bfloat16, too, so that a step is off by some of its roundings
        torch.testing.assert_close(moved, reference[name], rtol=0.02, atol=0.01)
    assert rule.buffer_bytes == 2


@pytest.mark.promise(4)
def test_every_registered_rule_has_a_reference():
    assert set(RULES) <= {*AGAINST_TORCH, "sign", "rms-sgd"}  # these two are held to their definitions below


def test_weight_decay_reaches_matrices_only():
    rule = SGD(lr=0.1, weight_decay=0.5)
    start = values(make_module())
    decayed, _ = train(rule, Gaussian(), [Estimate.from_gradient(Displacement())] * 3)
    for name, value in decayed.items():
        matrix = name in ("0.weight", "3.weight")
        torch.testing.assert_close(value, start[name] * (0.95**3 if matrix else 1.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("rule", [SGD, Momentum, RmsSGD])
def test_what_theta_has_moved_decays_towards_where_it_began(rule, interval):
    """theta_0 + (theta - theta_0) (1 - d), by a copy of theta_0: with updates that wait, and beside the rule alone."""
    options = {"lr": 0.05}
    decaying, alone = rule(**options, displacement_decay=0.2, decay_interval=interval), rule(**options)
    module = make_module()
    theta, state, state_alone = Theta(Backbone(module, LowRank()), flush_every=2), decaying.init(), alone.init()
    start, expected = values(make_module()), Displacement()
    for number, estimate in enumerate(estimates(12), start=1):
        update, state = decaying.update(estimate, state)
        theta.apply(update)
        same, state_alone = alone.update(estimate, state_alone)
        kept = 1.0 if number % interval else 0.8**interval
        expected = kept * expected + same.displacement
        assert update.displacement == same.displacement
        assert dict(theta.from_start.items()) == pytest.approx(dict(expected.items()))
    theta.flush()
    written = theta.backbone.values(expected)
    for name, value in values(module).items():
        torch.testing.assert_close(value, start[name] + written[name], rtol=1e-5, atol=1e-5)
        assert written[name].abs().max() > 0.01


def test_theta_does_not_decay_towards_two_places():
    with pytest.raises(ConfigError, match="displacement_decay draws theta back to where it began"):
        SGD(weight_decay=0.1, displacement_decay=0.1)


@pytest.mark.promise(4)
def test_sign_moves_every_entry_by_exactly_lr_against_the_sign_of_the_estimate():
    module = make_module()
    backbone, rule = Backbone(module, Gaussian()), Sign(lr=0.125)
    for estimate in estimates(10, directions=3):
        before, gradient = values(module), backbone.values(estimate.gradient)
        backbone.apply_(rule.update(estimate, rule.init())[0])
        for name, value in values(module).items():
            assert torch.equal(value, before[name] - 0.125 * gradient[name].sign())


def test_sign_leaves_entries_where_the_estimate_is_zero():
    module, key = make_module(), Key(0, 0)
    backbone = Backbone(module, LowRank(rank=2, factor_distribution="rademacher"))  # half of its entries are zero
    before, gradient = values(module), backbone.values(Displacement({key: 1.0}))
    update, _ = Sign(lr=0.5).update(Estimate.from_gradient(Displacement({key: 1.0})), State())
    backbone.apply_(update)
    zero = gradient["0.weight"] == 0
    assert 0 < zero.sum() < zero.numel()
    assert torch.equal(module[0].weight[zero], before["0.weight"][zero])
    assert ((module[0].weight - before["0.weight"]).abs()[~zero] > 0.49).all()


@pytest.mark.promise(4)
def test_momentum_is_the_decaying_sum_of_gradients_as_a_displacement():
    rule, state, expected = Momentum(lr=0.5, beta=0.75, tolerance=0), State(), Displacement()
    for estimate in estimates(20):
        update, state = rule.update(estimate, state)
        expected = 0.75 * expected + estimate.gradient
        assert state.momentum == expected
        assert update.displacement == -0.5 * expected
    assert len(state.momentum) == 40


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_momentum_drops_a_term_once_it_is_below_a_share_of_the_largest_and_keeps_the_others(scale):
    tolerance, beta = 0.01, 0.5
    rule, whole = Momentum(lr=1.0, beta=beta, tolerance=tolerance), Momentum(lr=1.0, beta=beta, tolerance=0)
    state, state_whole = rule.init(), whole.init()
    for step in range(40):
        estimate = Estimate.from_gradient(Displacement({Key(0, step): scale}))
        _, state = rule.update(estimate, state)
        _, state_whole = whole.update(estimate, state_whole)
        largest = max(abs(c) for _, c in state.momentum.items())
        assert all(abs(c) >= tolerance * largest for _, c in state.momentum.items())
    assert len(state_whole.momentum) == 40
    assert [key.step for key in state.momentum] == list(range(33, 40))  # 0.5**6 = 0.0156 is kept, 0.5**7 = 0.0078 not
    assert all(state.momentum[key] == state_whole.momentum[key] for key in state.momentum)


# what every registered rule must do


@every_rule
def test_a_rule_says_whether_it_is_linear_and_what_it_keeps(name):
    rule = RULES[name]()
    assert isinstance(rule, Rule)
    module = make_module()
    backbone, state = Backbone(module, Gaussian()), rule.init()
    assert (state.steps, len(state.momentum), state.buffers) == (0, 0, {})
    for number, estimate in enumerate(estimates(3), start=1):
        update, state = rule.update(estimate, state)
        backbone.apply_(update)
        assert state.steps == number
        assert (update.dense_update_fn is None) == rule.linear
    sizes = {tensor: value.numel() for tensor, value in values(module).items()}
    assert len(state.buffers) == rule.dense_buffers
    for buffer in state.buffers.values():
        assert {tensor: value.numel() for tensor, value in buffer.items()} == sizes
        assert all(value.dtype == torch.float32 for value in buffer.values())
    if rule.linear:
        assert rule.dense_buffers == 0


@every_rule
def test_a_rule_leaves_the_state_and_the_estimate_it_was_given_as_they_were(name):
    rule, (first, second) = RULES[name](), estimates(2)
    _, state = rule.update(first, rule.init())
    steps, momentum, gradient = state.steps, dict(state.momentum.items()), dict(second.gradient.items())
    rule.update(second, state)
    assert (state.steps, dict(state.momentum.items()), dict(second.gradient.items())) == (steps, momentum, gradient)


@every_rule
def test_the_same_estimates_give_the_same_bits_in_any_blocks(name):
    rule = RULES[name]
    results = [train(rule(lr=0.01), Gaussian(), estimates(10), block)[0] for block in (None, None, 7)]
    for other in results[1:]:
        assert all(torch.equal(results[0][tensor], other[tensor]) for tensor in other)


@every_rule
def test_an_update_goes_against_the_estimate(name):
    start = values(make_module())
    (estimate,) = estimates(1)
    moved, _ = train(RULES[name](lr=0.01), Gaussian(), [estimate])
    gradient = Backbone(make_module(), Gaussian()).values(estimate.gradient)
    along = sum(((moved[tensor] - start[tensor]) * gradient[tensor]).sum().item() for tensor in moved)
    assert along < -0.01


@every_rule
def test_an_estimate_of_zero_moves_the_weights_as_torch_would(name):
    """What momentum and Adam remember goes on; SGD, rms-sgd and sign stand still."""
    zero, rule = Estimate.from_gradient(Displacement()), RULES[name](lr=0.01)
    before, _ = train(rule, Gaussian(), estimates(5))
    after, state = train(RULES[name](lr=0.01), Gaussian(), [*estimates(5), zero, zero])
    assert state.steps == 7
    remembers = name not in ("sgd", "sign", "rms-sgd")
    assert all(torch.equal(before[tensor], after[tensor]) != remembers for tensor in after)
    if name == "dense-adam":
        build = lambda named, _: torch.optim.Adam(named.values(), lr=0.01)  # noqa: E731
    else:
        build = lambda named, _: torch.optim.SGD(named.values(), lr=0.01, momentum=0.9 * remembers)  # noqa: E731
    if name not in ("sign", "rms-sgd"):
        reference = train_with_torch(build, Gaussian(), [*estimates(5), zero, zero])
        for tensor, value in after.items():
            torch.testing.assert_close(value, reference[tensor], rtol=1e-5, atol=1e-6)


@every_rule
def test_the_step_size_scales_the_first_update(name):
    start = values(make_module())
    (estimate,) = estimates(1)
    one, two = (train(RULES[name](lr=lr), Gaussian(), [estimate])[0] for lr in (0.01, 0.02))
    for tensor in start:
        torch.testing.assert_close(two[tensor] - start[tensor], 2 * (one[tensor] - start[tensor]), rtol=1e-4, atol=3e-7)


# steps of a length that the scale of the loss does not change


def with_coefficients(coefficients, scale=1.0):
    return [Estimate.from_gradient(Displacement({Key(3, step, 0): scale * c})) for step, c in enumerate(coefficients)]


def test_one_average_for_all_entries_is_adams_of_the_coefficient():
    """`torch.optim.Adam` without momentum, on a single number whose gradient is the coefficient."""
    coefficients = [math.sin(1.7 * step + 1) * (1 + step % 5) for step in range(STEPS)]
    rule, state, number = RmsSGD(lr=0.02, beta=0.9), State(), nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adam = torch.optim.Adam([number], lr=0.02, betas=(0.0, 0.9), eps=0.0)
    for estimate, coefficient in zip(with_coefficients(coefficients), coefficients, strict=True):
        update, state = rule.update(estimate, state)
        before = number.item()
        number.grad = torch.tensor([coefficient], dtype=torch.float64)
        adam.step()
        ((_, moved),) = update.displacement.items()
        assert moved == pytest.approx(number.item() - before, rel=1e-12)


def test_a_loss_of_another_scale_gives_the_same_steps():
    coefficients = [0.3, -2.0, 0.0, 5.0]
    found = []
    for scale in (1.0, 1e4, 1e-6):
        rule, state, steps = RmsSGD(lr=0.1), State(), []
        for estimate in with_coefficients(coefficients, scale):
            update, state = rule.update(estimate, state)
            steps.append([c for _, c in update.displacement.items()])
        found.append(steps)
    assert found[0][0] == [pytest.approx(-0.1)]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one == pytest.approx(two, rel=1e-9)


def test_nothing_moves_before_a_scale_is_known():
    update, state = RmsSGD(weight_decay=0.5, lr=0.1).update(Estimate.from_gradient(Displacement()), State())
    assert len(update.displacement) == 0
    assert update.decay_factor == pytest.approx(0.05)
    assert state.steps == 1
