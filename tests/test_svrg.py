"""MeZO-SVRG against its algorithm in explicit vectors, and against the mean and the variance that theory gives."""

from __future__ import annotations

import importlib
import importlib.util
import math
import random
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import with_soak
from covering import grid
from least_squares import (
    BATCH,
    IN_FORWARD,
    IN_PLACE,
    LR,
    LR_FULL,
    SEED,
    LeastSquares,
    N,
    build,
    theta_of,
    training_context,
    written_out,
)
from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError
from zofo.methods import METHODS, SVRG, ZOSVRG, SVRGConfig, ZOSVRGConfig
from zofo.methods.svrg.svrg import Annealing
from zofo.models import load_model
from zofo.noise import STREAM_VERSION, Gaussian
from zofo.studies.problems import LeastSquares as LeastSquaresProblem
from zofo.training import read_config, train
from zofo.training.inference import evaluate_run, evaluate_zero_shot
from zofo.trajectory import Trajectory, TrajectoryWriter
from zofo.trajectory.replay import replay

EPSILON = 1e-3
EACH = 1 << 16  # keys of one direction of a step
STILL = 2.0**-50  # a learning rate at which theta stands still
PAIRS = ("same", "independent", "full-batch", "as-released", "none")


# Algorithm 1 in explicit vectors


class Reference:
    """Algorithm 1 with a copy of the anchor and every z a vector: the mean over examples of slope_i z_i."""

    def __init__(self, model, method, config, lr=LR, lr_full=LR_FULL):
        self.model, self.backbone, self.config = model, method.backbone, config
        self.theta, self.q = model.theta(), config.anchor_interval
        self.lr, self.lr_full = lr, lr_full
        self.batches = iter(training_context(model).batches(BATCH, "train")[i] for i in range(1000))
        rule = {"sgd": self.sgd, "momentum": self.momentum, "dense-momentum": self.momentum}
        self.rule = {**rule, "sign": self.sign, "dense-adam": self.adam}[config.rule.name]
        self.m = torch.zeros_like(self.theta)
        self.adam_of = torch.optim.Adam([nn.Parameter(self.theta)], lr=lr)

    def sgd(self, v, lr):
        self.theta = self.theta - lr * (v + self.config.rule.options.get("weight_decay", 0) * self.theta)

    def momentum(self, v, lr):
        self.m = 0.9 * self.m + v
        self.theta = self.theta - lr * self.m

    def sign(self, v, lr):
        self.theta = self.theta - lr * v.sign()

    def adam(self, v, lr):
        group = self.adam_of.param_groups[0]
        group["lr"], group["params"][0].grad = lr, v.clone()
        self.adam_of.step()
        self.theta = group["params"][0].detach().clone()

    def keys(self, step, examples, sharing, after=0):
        """For each direction, the key of each example."""
        of = self.config.num_directions
        numbers = range(after * of, (after + 1) * of)
        if sharing == "shared":
            return [[Key(SEED, step, n)] * examples for n in numbers]
        group = 1 if sharing == "per-example" else int(sharing[len("per-group(") : -1])
        return [[Key(SEED, step, n * EACH + e // group) for e in range(examples)] for n in numbers]

    def estimate(self, theta, ids, keys):
        total = torch.zeros_like(theta)
        for each in keys:
            z = torch.stack([written_out(self.backbone, Displacement({key: 1.0})) for key in each])
            ahead = self.model.losses_at(theta + EPSILON * z, ids)
            one_sided = self.config.estimator.name == "one-sided"
            back = self.model.losses_at((theta if one_sided else theta - EPSILON * z).expand_as(z), ids)
            total += ((ahead - back).unsqueeze(1) * z).mean(0) / (EPSILON if one_sided else 2 * EPSILON)
        return total / len(keys)

    def step(self, t):
        config, pair = self.config, self.config.control_variate
        if t % self.q == 0:
            self.anchor, self.set_at = self.theta.clone(), t
            sharing = config.anchor_directions or config.directions
            self.g = self.estimate(self.theta, torch.arange(N), self.keys(t, N, sharing))
            return self.rule(self.g, self.lr_full)
        if pair == "none":
            return self.rule(self.g, self.lr)
        ids = next(self.batches)
        here = self.keys(self.set_at if pair == "full-batch" else t, BATCH, config.directions)
        there = self.keys(t, BATCH, config.directions, after=1) if pair in ("independent", "as-released") else here
        if pair == "as-released":
            self.rule(self.estimate(self.theta, ids, here), self.lr)
            self.rule(-self.estimate(self.theta, ids, there), self.lr)
            return self.rule(self.g, self.lr)
        difference = self.estimate(self.theta, ids, here) - self.estimate(self.anchor, ids, there)
        return self.rule(difference + self.g, self.lr)


COPIED = {"anchor": "copy"}
WRITTEN_OUT = {
    **{pair: {"control_variate": pair} for pair in PAIRS},
    **{f"{pair} in the forward": {"control_variate": pair, **IN_FORWARD} for pair in PAIRS},
    **{f"{pair}, copy": {"control_variate": pair, **COPIED} for pair in ("same", "independent", "full-batch")},
    "offload": {"anchor": "offload"},
    "copy in the forward": {**COPIED, **IN_FORWARD},
    "low rank in place": {"noise": "low-rank", "evaluator": "in-place"},
    "q = 1": {"anchor_interval": 1},
    "q = 2": {"anchor_interval": 2, **IN_FORWARD},
    "q = 10": {"anchor_interval": 10, **IN_FORWARD},
    "two directions": {"num_directions": 2},
    "two directions, independent": {"num_directions": 2, "control_variate": "independent", **IN_FORWARD},
    "two directions, as released": {"num_directions": 2, "control_variate": "as-released"},
    "one-sided": {"estimator": "one-sided", "num_directions": 2},
    "one-sided in the forward": {"estimator": "one-sided", **IN_FORWARD},
    "per-example": {"directions": "per-example", **IN_FORWARD},
    "per-example, copy": {"directions": "per-example", **COPIED, **IN_FORWARD},
    "per-example, independent": {
        "directions": "per-example",
        "control_variate": "independent",
        "num_directions": 2,
        **IN_FORWARD,
    },
    "per-example, as released": {"directions": "per-example", "control_variate": "as-released", **IN_FORWARD},
    "per-group": {"directions": "per-group(3)", **IN_FORWARD},
    "per-example for g alone": {"directions": "shared", "anchor_directions": "per-example", **IN_FORWARD},
    "per-group for g, per-example between": {"anchor_directions": "per-group(5)", "directions": "per-example"}
    | IN_FORWARD,
    "momentum": {"rule": {"name": "momentum", "lr": LR, "tolerance": 0.0}},
    "momentum in the forward": {"rule": {"name": "momentum", "lr": LR, "tolerance": 0.0}, **IN_FORWARD},
    "momentum, copy": {"rule": {"name": "momentum", "lr": LR, "tolerance": 0.0}, **COPIED},
    "weight decay, copy": {"rule": {"lr": LR, "weight_decay": 0.5}, **COPIED},
    "weight decay, copy in the forward": {"rule": {"lr": LR, "weight_decay": 0.5}, **COPIED, **IN_FORWARD},
    "weight decay, no anchor": {"rule": {"lr": LR, "weight_decay": 0.5}, "anchor_interval": 1},
    "sign, copy": {"rule": {"name": "sign", "lr": LR}, **COPIED},
    "dense momentum, copy": {"rule": {"name": "dense-momentum", "lr": LR}, **COPIED},
    "dense Adam, copy": {"rule": {"name": "dense-adam", "lr": LR}, **COPIED},
    "dense Adam, copy in the forward": {"rule": {"name": "dense-adam", "lr": LR}, **COPIED, **IN_FORWARD},
}


@pytest.mark.parametrize("case", WRITTEN_OUT)
def test_steps_are_those_of_the_algorithm_in_explicit_vectors(case):
    model = LeastSquares()
    method = build(model, **WRITTEN_OUT[case])
    reference = Reference(LeastSquares(), method, method._config)
    start = model.theta()
    for step in range(12):
        method.step(step)
        reference.step(step)
    moved = (reference.theta - start).norm()
    assert moved > 0.1
    in_float64 = method.rule.linear and method._config.noise.name == "gaussian"  # other rules, and products, in float32
    assert (theta_of(method) - reference.theta).norm() < (1e-9 if in_float64 else 1e-5) * moved


def test_twenty_steps_of_float32_are_the_same_up_to_its_rounding():
    model = LeastSquares(dtype=torch.float32)
    method = build(model)
    reference = Reference(LeastSquares(dtype=torch.float32), method, method._config)
    for step in range(20):
        method.step(step)
        reference.step(step)
    assert (theta_of(method) - reference.theta).norm() < 1e-2 * (reference.theta - LeastSquares().theta()).norm()


def test_the_log_holds_losses_and_slopes_of_both_places():
    model = LeastSquares()
    method = build(model, **COPIED)
    anchor, batches = model.theta(), training_context(model).batches(BATCH, "train")
    for step in range(5):
        theta = theta_of(method)
        log = method.step(step)
        z = written_out(method.backbone, Displacement({Key(SEED, step): 1.0}))
        ids = batches[step - 1] if step else torch.arange(N)
        slopes = {"": theta, "_anchor": anchor} if step else {"_full": theta}
        for of, place in slopes.items():
            slope = (model.gradients(place, ids).mean(0) @ z).item()
            assert log.coefficients[f"projected_gradient{of}_0"] == pytest.approx(slope, rel=1e-8)
        assert log.coefficients["lr"] == (LR if step else LR_FULL)
        assert set(log.coefficients) == {"lr", *(f"projected_gradient{of}_0" for of in slopes)}
        mean = model.losses_at(theta.expand(len(ids), -1), ids).mean().item()
        assert log.loss == pytest.approx(mean, rel=1e-4)  # of the points around theta: off by epsilon**2 z.H z / 2


def test_zo_svrg_is_svrg_with_a_direction_for_each_example():
    options = {"rule": {"lr": LR}, "lr_full": None, **IN_FORWARD}
    one = build(LeastSquares(), kind=ZOSVRG, **options)
    other = build(LeastSquares(), directions="per-example", **options)
    for step in range(12):
        assert one.step(step) == other.step(step)
    assert torch.equal(theta_of(one), theta_of(other))
    assert ZOSVRGConfig().directions == "per-example"
    assert ZOSVRGConfig().rule == SVRGConfig(directions="per-example").rule


# mean and variance


def samples_of(method, steps, first=1):
    """v of steps at which theta stands still, theta <- theta - lr v: a row for each."""
    updates = [method.step(step).update.displacement for step in range(first, first + steps)]
    return torch.stack([written_out(method.backbone, update / -STILL) for update in updates])


def held_still(model, lr_full, **options):
    """A method that is far from its anchor and stays there; with its anchor, its g, and where it stands."""
    anchor = model.theta()
    method = build(model, anchor_interval=10**6, rule={"lr": STILL}, lr_full=lr_full, **COPIED, **options)
    g = written_out(method.backbone, method.step(0).update.displacement / -lr_full)
    theta = anchor.clone()
    theta[-method.backbone.size :] = theta_of(method)
    return method, anchor, g, theta


SEVERAL = {"num_directions": 4}
LAW = {
    "same": {"control_variate": "same"},
    "same in the forward": {"control_variate": "same", **IN_FORWARD, **SEVERAL},
    "same, per-example": {"control_variate": "same", "directions": "per-example", **IN_FORWARD},
    "independent": {"control_variate": "independent"},
    "independent in the forward": {"control_variate": "independent", **IN_FORWARD, **SEVERAL},
    "independent, per-example": {"control_variate": "independent", "directions": "per-example", **IN_FORWARD},
    "as released": {"control_variate": "as-released", **IN_FORWARD, **SEVERAL},
}


@pytest.mark.parametrize("case", with_soak(LAW, list(LAW)[::3]))
def test_the_mean_estimate_is_unbiased_within_4_standard_errors(case):
    """Lemma 5.1: given theta, the anchor and g, the mean of v is grad F(theta) - grad F(anchor) + g, entry by entry.

    The released code has no anchor, and the mean of its v is g. An epoch sees each example once, so epochs are the
    independent samples.
    """
    epochs, model = 40, LeastSquares()
    method, anchor, g, theta = held_still(model, 0.2, **LAW[case])
    v = samples_of(method, epochs * (N // BATCH)).view(epochs, N // BATCH, -1).mean(1)
    difference = model.gradients(theta).mean(0) - model.gradients(anchor).mean(0)
    right, wrong = (g, difference + g) if case == "as released" else (difference + g, g)
    assert ((v.mean(0) - right).abs() < 4 * v.std(0) / math.sqrt(epochs)).all()
    for mean, is_right in ((right, True), (wrong, False)):  # and there are enough samples to tell them apart
        along = (v - mean) @ difference
        assert (along.mean().abs() < 4 * along.std() / math.sqrt(epochs)) == is_right


def test_a_pair_along_the_direction_of_g_is_biased():
    """Given its z, the mean over an epoch is (z . (grad F(theta) - grad F(anchor))) z + g, however many there are."""
    model = LeastSquares()
    method, anchor, g, theta = held_still(model, 0.2, control_variate="full-batch")
    z = written_out(method.backbone, Displacement({Key(SEED, 0): 1.0}))
    difference = model.gradients(theta).mean(0) - model.gradients(anchor).mean(0)
    torch.testing.assert_close(samples_of(method, 3).mean(0), (z @ difference) * z + g, rtol=1e-6, atol=1e-6)


def variance(gradients, directions, d):
    """Of the estimate along Gaussian z, all its entries together: u, what one z multiplies, gives (d + 1) |u|**2.

    That is E |(u . z) z - u|**2. With D the mean of the b gradients and s**2 the mean of |gradient_i - D|**2: if the
    examples share z, u = D; if each has its own, the sum over gradient_i / b is (d + 1) / b (|D|**2 + s**2).
    """
    D = gradients.mean(0)
    s2 = (gradients - D).square().sum(1).mean()
    return (d + 1) * (D.square().sum() if directions == "shared" else (D.square().sum() + s2) / len(gradients))


def squared_distance(v, mean):
    """The mean of that of v from its expectation, and its standard error."""
    squares = (v - mean).square().sum(1)
    return squares.mean(), squares.std() / math.sqrt(len(squares))


def steps_of(quick):
    """How many draws: as few as tell the formulas apart, and many in `make soak`."""
    return pytest.mark.parametrize("steps", [quick, pytest.param(4000, marks=pytest.mark.soak)])


A_VECTOR = {**IN_FORWARD, "trainable": ["v"]}  # whose low-rank noise is Gaussian


@steps_of(100)
@pytest.mark.parametrize(
    ("kind", "pair"), grid(["shared in place", "shared", "per-example"], ["same", "independent"], strength=1)
)
def test_the_variance_given_the_minibatch_is_the_formula_within_4_standard_errors(pair, kind, steps):
    """The gradients are Delta_i = grad f_i(theta) - grad f_i(anchor) if both places share z; if not, those at theta and
    those at the anchor, whose variances add up. The batch is all the data, so that it is the same in every step."""
    options = {"shared in place": IN_PLACE, "shared": {**A_VECTOR, **SEVERAL}, "per-example": A_VECTOR}[kind]
    directions, model = kind.partition(" ")[0], LeastSquares(examples=8)
    method, anchor, g, theta = held_still(
        model, 0.02, batch_size=8, control_variate=pair, directions=directions, **options
    )
    d, several = method.backbone.size, options.get("num_directions", 1)
    here, there = (model.gradients(at)[:, -d:] for at in (theta, anchor))
    found, error = squared_distance(samples_of(method, steps), (here - there).mean(0) + g)
    formulas = {}
    for kind in ("shared", "per-example") if options is not IN_PLACE else ("shared",):
        formulas["same", kind] = variance(here - there, kind, d) / several
        formulas["independent", kind] = (variance(here, kind, d) + variance(there, kind, d)) / several
    near = [which for which, formula in formulas.items() if abs(found - formula) < 4 * error]
    assert near == [(pair, directions)]


@steps_of(200)
@pytest.mark.parametrize("directions", ["shared", "per-example"])
def test_mean_and_variance_of_the_anchors_gradient_are_those_of_the_formula(directions, steps):
    model = LeastSquares()
    several = 10 if directions == "shared" else 1
    options = {**A_VECTOR, "num_directions": several, "anchor_directions": directions}
    method = build(model, anchor_interval=1, lr_full=STILL, **options)
    d = method.backbone.size
    gradients = model.gradients(model.theta())[:, -d:]
    mean = gradients.mean(0)
    v = samples_of(method, steps, first=0)
    assert ((v.mean(0) - mean).abs() < 4 * v.std(0) / math.sqrt(steps)).all()
    found, error = squared_distance(v, mean)
    formulas = {kind: variance(gradients, kind, d) / several for kind in ("shared", "per-example")}
    assert [kind for kind, formula in formulas.items() if abs(found - formula) < 4 * error] == [directions]


# what it costs


@pytest.mark.parametrize(
    ("q", "pair", "estimator", "evaluator"),
    grid([1, 2, 5], PAIRS, ["two-sided", "one-sided"], [IN_PLACE, IN_FORWARD]),
)
def test_every_query_is_counted_and_a_budget_pays_for_whole_steps(q, pair, estimator, evaluator):
    points = {"two-sided": 2, "one-sided": 3}[estimator]
    directions = 1 if estimator == "two-sided" else 2
    parts = {"estimator": estimator, "num_directions": directions, **evaluator}
    method = build(
        LeastSquares(), anchor_interval=q, control_variate=pair, anchor_batch_size=10, anchor_chunk=3, **parts
    )
    visits = 1 if evaluator is IN_FORWARD else points
    costs = []
    for step in range(11):
        before = method.counts.copy()
        log = method.step(step)
        queries = points * 10 if step % q == 0 else 0 if pair == "none" else 2 * points * BATCH
        forwards = visits * (4 if step % q == 0 else 0 if pair == "none" else 2)
        assert log.counts.as_dict() == {"forwards": forwards, "backwards": 0, "queries": queries}
        assert method.counts - before == log.counts
        costs.append(queries)
    assert method.queries_per_step == costs[0]
    costs = [costs[step % q] if step % q < len(costs) else costs[1] for step in range(200)]
    for budget in range(0, 4 * sum(costs[:q]) + 1):
        made, left = 0, budget
        while made < len(costs) and costs[made] <= left:
            left -= costs[made]
            made += 1
        assert method.steps_within(budget) == made


# annealing


@pytest.mark.parametrize(("per_epoch", "above", "by"), [(1, 1.05, 5.0), (3, 1.0, 2.0), (4, 1.1, 5.0)])
def test_annealing_is_algorithm_4(per_epoch, above, by):
    draw = random.Random(0)
    annealing, losses, factor, changes = Annealing(per_epoch, above, by), [], 1.0, 0
    for count in range(1, 200):
        losses.append(draw.uniform(0.5, 1.5))
        annealing.observe(losses[-1])
        if count % per_epoch == 0 and count >= 2 * per_epoch:
            m1, m2 = statistics.fmean(losses[-per_epoch:]), statistics.fmean(losses[-2 * per_epoch : -per_epoch])
            if m1 / m2 > above:
                factor, changes = factor / by, changes + 1
        assert annealing.factor == pytest.approx(factor, rel=1e-12)
    assert 2 < changes < 150


def test_when_losses_rise_both_learning_rates_fall_and_only_then():
    scale = [1.0]
    method = build(LeastSquares(), lambda: scale[0], anchor_interval=2, anneal=True, rule={"lr": 1e-6}, lr_full=1e-5)
    rates = []
    for step in range(40):
        epoch = (step - step // 2 - 1) // 3 if step % 2 else None  # 3 minibatches each, every second step
        scale[0] = {1: 2.0, 2: 2.0, 3: 2.08, 4: 1.0, 5: 1.2}.get(epoch, scale[0]) if step % 2 else scale[0]
        log = method.step(step)
        rates.append(log.coefficients["lr"])
        if step % 2 == 0:
            slope = log.coefficients["projected_gradient_full_0"]
            assert log.update.displacement[Key(SEED, step)] == pytest.approx(-rates[-1] * slope, rel=1e-9)
    # 1 -> 2 is a rise, 2 -> 2.08 is within 5 %, 2.08 -> 1 a fall, 1 -> 1.2 a rise; an epoch ends with steps 5, 11, ...
    factors = [1.0] * 12 + [1 / 5] * 24 + [1 / 25] * 4
    expected = [factor * (1e-6 if step % 2 else 1e-5) for step, factor in enumerate(factors)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_annealing_needs_two_epochs_of_minibatch_steps():
    method = build(LeastSquares(), anchor_interval=2, anneal=True)  # 3 minibatches an epoch
    method.check_steps(14)
    with pytest.raises(ConfigError, match="method.anneal compares .* 12 steps make 6 minibatch steps") as refused:
        method.check_steps(12)  # the rates would change after the last step
    assert "method.anneal=false" in refused.value.hint
    build(LeastSquares(), anchor_interval=2).check_steps(1)
    with pytest.raises(ConfigError, match="make 0 minibatch steps"):
        build(LeastSquares(), anchor_interval=1, anneal=True).check_steps(1000)


def test_annealing_refuses_an_objective_that_is_minus_a_score():
    """Its losses are below 0, where to grow by a factor is to fall."""
    config = SVRGConfig(batch_size=BATCH, anneal=True, **IN_PLACE)
    scored = replace(training_context(LeastSquares()), log_ties=True, objective_name="accuracy")
    with pytest.raises(ConfigError, match="method.anneal .* that of 'accuracy' is minus a score") as refused:
        SVRG(config, scored)
    assert "method.anneal=false" in refused.value.hint
    SVRG(config.model_copy(update={"anneal": False}), scored)
    SVRG(config, training_context(LeastSquares()))
    rising = Annealing(1, 1.05, 5.0)
    for loss in (-0.9, -0.2):
        rising.observe(loss)
    assert rising.factor == 1.0  # and where it is asked all the same, such losses change no rate


def test_a_run_that_anneals_on_accuracy_is_refused(configured):
    config = configured(anneal=True, steps=60)
    scored = config.model_copy(update={"training": config.training.model_copy(update={"objective": "accuracy"})})
    with pytest.raises(ConfigError, match="that of 'accuracy' is minus a score"):
        train(scored)


@pytest.mark.parametrize("option", ["directions", "anchor_directions"])
def test_directions_that_are_none_are_refused_by_the_name_of_their_option(option):
    with pytest.raises(ConfigError, match=f"method.{option} is 'foo', but must be shared") as refused:
        SVRGConfig.model_validate({option: "foo"})
    assert f"'method.{option}=per-group(4)'" in refused.value.hint


# the paper's least squares, beside a simulation that shares no code with it


@pytest.fixture(scope="module")
def simulation():
    path = Path(__file__).parent.parent / "benchmarks" / "least_squares.py"
    spec = importlib.util.spec_from_file_location("simulated_least_squares", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class AsZofoDraws:
    """The directions and minibatches of zofo's runs, by seed, for the simulation."""

    def __init__(self, seeds, size):
        self._seeds = seeds
        self._batches = [
            replace(LeastSquaresProblem().training_context(s), collate=list).batches(size, "train") for s in seeds
        ]

    def direction(self, step, number):
        draw = Gaussian()
        return np.stack([draw.whole(Key(seed, step, number), "w", (100,)).double().numpy() for seed in self._seeds])

    def batch(self, number):
        return np.array([batches[number] for batches in self._batches])


@pytest.mark.parametrize(
    ("looks", "close"),
    [((60,), 1e-3), pytest.param((1000, 6000), 1e-2, marks=pytest.mark.soak)],
    ids=["the first steps", "as in the paper"],
)
@pytest.mark.parametrize("way", ["mezo", "same", "as-released"])
def test_least_squares_is_as_in_a_simulation_along_the_same_directions(simulation, way, looks, close):
    seeds = (0,) if looks == (60,) else (0, 1, 2)
    chance = AsZofoDraws(seeds, simulation.BATCH)
    wanted = simulation.simulate(way, simulation.zofo_data(), chance, len(seeds), looks)
    found = np.stack([simulation.by_zofo(way, seed, looks) for seed in seeds], axis=1)
    assert np.abs(found / wanted - 1).max() < close


# runs and their trajectories


@pytest.fixture
def configured(model_folder, data_dir, tmp_path):
    def configure(steps=7, **options):
        return read_config(
            model=str(model_folder),
            task={"data_dir": str(data_dir)},
            method={"name": "svrg", "batch_size": BATCH, "anchor_batch_size": 10, "rule": {"lr": 1e-3}, **options},
            training={"steps": steps},
            output_dir=str(tmp_path / "run"),
        )

    return configure


ADAM = {"name": "dense-adam", "lr": 1e-3}
RUNS = {
    "same": {"anchor_interval": 3},
    "as released": {"control_variate": "as-released", "anchor_interval": 3},
    "in place": {"anchor_interval": 3, **IN_PLACE},
    "none": {"control_variate": "none", "anchor_interval": 4, "lr_full": 2e-3},
    "zo-svrg": {"name": "zo-svrg", "anchor_interval": 3},
    "annealing": {
        "batch_size": 20,
        "anneal": True,
        "anneal_threshold": 0.1,
        "steps": 14,
    },  # a fall by 80 % is a rise, too
    "weight decay, copy": {"rule": {"lr": 1e-3, "weight_decay": 5.0}, "lr_full": 4e-3, "anchor": "copy"},
    "dense Adam, copy": {"rule": ADAM, "lr_full": 4e-3, "anchor": "copy", "anchor_interval": 3},
    "dense Adam, copy, annealing": {"rule": ADAM, "lr_full": 4e-3, "anchor": "copy", "batch_size": 20, "anneal": True}
    | {"anneal_threshold": 0.1, "steps": 14},
}


@pytest.mark.parametrize("case", with_soak(RUNS, list(RUNS)[::3]))
def test_a_run_replays_to_the_weights_of_training(configured, monkeypatch, case):
    methods, module = [], importlib.import_module("zofo.training.session")
    loop = module.run_loop
    monkeypatch.setattr(module, "run_loop", lambda method, *rest: methods.append(method) or loop(method, *rest))
    config = configured(**RUNS[case])
    run = train(config)
    with methods[0].using("model"):
        weights = {name: tensor.clone() for name, tensor in methods[0].backbone.tensors.items()}
    trajectory = Trajectory.read(run.trajectory)
    assert trajectory.steps == config.training.steps
    assert len(trajectory.updates) == (11 if case == "as released" else config.training.steps)  # two in a step between
    assert all((update.lr is not None) == ("Adam" in case) for update in trajectory.updates)
    if "annealing" in case:  # 3 minibatches of 20 an epoch, every second step: twice 3 end with step 11
        factors = {
            update.lr / (4e-3 if i % 2 == 0 else 1e-3) for i, update in enumerate(trajectory.updates) if update.lr
        }
        assert factors in ({1.0, 0.2}, set())
        lines = [line for line in run.metrics.read_text(encoding="utf-8").splitlines() if '"step"' in line]
        assert '"lr": 0.0002,' in lines[13]
    loaded = load_model(config.model).model
    for exact in (True, False):
        moved = dict(zip(weights, Backbone(loaded, methods[0].backbone.noise).tensors.values(), strict=True))
        base = {name: tensor.clone() for name, tensor in moved.items()}
        replay(loaded, trajectory, summed=not exact)
        for name, tensor in weights.items():
            if exact:
                assert torch.equal(moved[name], tensor)
            torch.testing.assert_close(moved[name], tensor, rtol=1e-5, atol=2e-6)
            moved[name].copy_(base[name])
    assert evaluate_zero_shot(config).loss != pytest.approx(run.summary["loss"], abs=2e-5)
    assert evaluate_run(run.path).loss == pytest.approx(run.summary["loss"], abs=1e-6)


@pytest.mark.parametrize("case", with_soak(WRITTEN_OUT, list(WRITTEN_OUT)[::4]))
def test_the_trajectory_of_the_toy_replays_in_float64_to_the_last_digits(tmp_path, case):
    method = build(LeastSquares(), **WRITTEN_OUT[case])
    path = tmp_path / "trajectory"
    writer = TrajectoryWriter(path, SEED, {"stream": STREAM_VERSION, **method.replay_header()})
    method.evaluator.theta.log = writer
    for step in range(11):
        method.step(step)
        writer.stepped(step)
    theta = theta_of(method)
    writer.close()
    for exact in (True, False):
        again = LeastSquares()
        replay(again, Trajectory.read(path), summed=not exact)
        if exact:
            assert torch.equal(again.theta(), theta)
        torch.testing.assert_close(again.theta(), theta, rtol=1e-9, atol=1e-9)


def test_annealing_too_short_is_refused_before_the_run_folder_is_made(configured):
    config = configured(anneal=True, steps=20)
    with pytest.raises(ConfigError, match="20 steps make 10 minibatch steps, and an epoch has 15"):
        train(config)
    assert not config.output_dir.exists()


def test_a_large_data_set_is_no_full_batch_unless_that_is_said():
    def of(examples, **options):
        config = SVRGConfig(batch_size=BATCH, **IN_PLACE, **options)
        return SVRG(config, replace(training_context(LeastSquares()), examples=range(examples)))

    with pytest.raises(ConfigError, match="all 4,097 training examples takes 8,194 queries every 2 steps") as refused:
        of(4097)
    assert "method.anchor_batch_size=512" in refused.value.hint
    assert "method.anchor_batch_size=4097" in refused.value.hint
    with pytest.raises(ConfigError, match="12,291 queries every step"):
        of(4097, estimator="one-sided", num_directions=2, anchor_interval=1)
    assert of(4096).queries_per_step == 8192
    assert of(4097, anchor_batch_size=512).queries_per_step == 1024
    assert of(4097, anchor_batch_size=4097).queries_per_step == 8194


def test_both_methods_are_registered():
    assert METHODS["svrg"] is SVRG
    assert METHODS["zo-svrg"] is ZOSVRG
