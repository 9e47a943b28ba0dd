"""Bilevel-ZOFO against a problem whose solution is known, and against its own parts."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from bilevel_problems import IN_PLACE, LATENT, RHO, D, Quadratic, Vectors, language_context, quadratic_context
from conftest import build_model, build_tokenizer
from test_anchor import Live
from zofo import Backbone, Bilevel, BilevelConfig, Displacement, Gaussian, InPlace, Key, TrainingContext, TwoSided
from zofo.methods.bilevel.backbone_step import BackboneStep

MOMENTUM = {"name": "momentum", "lr": 0.0012, "beta": 0.9}


@pytest.mark.promise(5)
@pytest.mark.parametrize(
    ("penalty", "directions", "rule", "bias", "steps"),
    [
        (10.0, 4, {"lr": 0.04}, 0.1, 200),
        pytest.param(10.0, 4, MOMENTUM, 0.1, 1200, marks=pytest.mark.soak),
        pytest.param(100.0, 64, {"lr": 0.003}, 0.01, 2000, marks=pytest.mark.soak),
    ],
    ids=["penalty 10", "penalty 10, momentum", "penalty 100"],
)
def test_converges_to_the_closed_form_within_2000_steps(penalty, directions, rule, bias, steps):
    # theta and p move at once, so theta feels a curvature of penalty |M|**2 while p follows: lr falls with the penalty
    model = Quadratic()
    config = BilevelConfig(
        batch_size=1,
        inner_steps=2,
        penalty=penalty,
        optimizer="sgd",
        lr_lower=0.8,
        lr_adapter=1 / (1 + penalty),
        estimator={"epsilon": 0.05},
        num_directions=directions,
        rule=rule,
        **IN_PLACE,
    )
    method = Bilevel(config, quadratic_context(model), Vectors(model))
    for step in range(steps):
        method.step(step)
    expected = model.solution(penalty)
    assert (model.theta - expected).norm() / expected.norm() < 1e-2
    exact = model.solution(1e12)  # the bilevel problem itself, which the penalty reaches up to order 1 / penalty
    assert (model.theta - exact).norm() / exact.norm() < bias
    assert (model.w["lower_adapter"] - model.lower_solution(model.theta)).norm() < 1e-2


def mean_step(model, penalty, directions):
    """How far theta moves in a step whose directions are very many, from where it is."""
    config = BilevelConfig(
        batch_size=1,
        inner_steps=1,
        penalty=penalty,
        optimizer="sgd",
        lr_lower=0.0,
        lr_adapter=0.0,
        estimator={"epsilon": 0.05},
        num_directions=directions,
        rule={"lr": 1.0},
        **IN_PLACE,
    )
    before = model.theta.clone()
    Bilevel(config, quadratic_context(model), Vectors(model)).step(0)
    return before - model.theta


@pytest.mark.promise(5)
@pytest.mark.parametrize(
    ("penalty", "directions"), [(0.5, 512), (100.0, 512), pytest.param(100.0, 4096, marks=pytest.mark.soak)]
)
def test_mean_step_is_the_gradient_of_the_penalised_problem_and_the_hypergradient(penalty, directions):
    model = Quadratic()
    with torch.no_grad():  # p and s solve their problems, so that the gradient of the whole is that with them fixed
        model.w["lower_adapter"].copy_(model.lower_solution(model.theta))
        model.w["adapter"].copy_(model.upper_solution(model.theta, penalty))
    theta = model.theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.penalised(theta, penalty), theta)
    hypergradient = model.hypergradient(model.theta)
    near = torch.cosine_similarity(gradient, hypergradient, dim=0)
    assert (near > 0.999) == (penalty > 10)  # a small penalty has another problem
    moved = mean_step(model, penalty, directions)
    assert torch.cosine_similarity(moved, gradient, dim=0) > 0.95
    assert abs(moved.norm() / gradient.norm() - 1) < 0.15
    if penalty > 10:
        assert torch.cosine_similarity(moved, hypergradient, dim=0) > 0.95


WIDE = 512


class Deep(nn.Module):
    """Matrices of one size one after the other, and a p and an s that are added to what comes out."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(WIDE, WIDE, bias=False) for _ in range(3)))
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(WIDE, WIDE, generator=draw) / WIDE**0.5)
        self.w = {name: nn.Parameter(torch.zeros(WIDE)) for name in Vectors.names}
        self.active = "adapter"

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.layers(rows) + self.w[self.active]).square().mean(-1)


@pytest.mark.promise(5)
@pytest.mark.parametrize(
    "parts",
    [IN_PLACE, {"evaluator": "in-place"}, {}, {"directions": "per-example"}],
    ids=["in place", "in place, low rank", "in the forward", "per-example"],
)
def test_the_step_on_theta_takes_no_more_memory_than_the_largest_tensor(monkeypatch, parts):
    """Of tensors, activations among them. Blocks of a sweep are as much smaller than a tensor as in large models."""
    for block in ("_CPU_BLOCK", "_DEVICE_BLOCK"):
        monkeypatch.setattr(f"zofo.backbone.backbone.{block}", 1 << 13)
    model = Deep()
    rows = list(torch.randn(12, WIDE, generator=torch.Generator().manual_seed(1)))
    context = TrainingContext(model, lambda m, batch: m(batch), rows, torch.stack)
    method = Bilevel(BilevelConfig(batch_size=4, inner_steps=1, rule={"lr": 1e-5}, **parts), context, Vectors(model))
    method.step(0)  # tables that are made once in a process
    taken = []

    def watched(work):
        def watching(*given):
            before = live.peak = live.now
            done = work(*given)
            taken.append(live.peak - before)
            return done

        return watching

    for part in ("step", "flush"):  # what is pending is written by the latter
        monkeypatch.setattr(BackboneStep, part, watched(getattr(BackboneStep, part)))
    gc.collect()  # what earlier tests left would be taken for what is let go here
    with Live([*model.parameters(), *model.w.values(), *rows]) as live:
        for number in range(1, 4):
            method.step(number)
    assert len(taken) == 2 * 3
    assert 0 < max(taken) <= WIDE * WIDE * 4


def test_one_z_serves_all_three_terms_and_the_log_holds_each():
    model = Quadratic()
    with torch.no_grad():
        model.w["adapter"].fill_(0.3)
        model.w["lower_adapter"].fill_(-0.2)
    theta, z = model.theta.clone(), None
    config = BilevelConfig(
        batch_size=1,
        inner_steps=1,
        penalty=7.0,
        optimizer="sgd",
        lr_lower=0,
        lr_adapter=0.1,
        rule={"lr": 0.5},
        **IN_PLACE,
    )
    method = Bilevel(config, quadratic_context(model), Vectors(model))
    log = method.step(3)
    z = method.backbone.noise.whole(Key(0, 3, 0), "theta", (D,)).double()
    upper = RHO * (theta - model.b) @ z
    slopes = {
        name: -(w - model.M @ theta - model.m) @ model.M @ z
        for name, w in (("p", torch.full((LATENT,), 0.3).double()), ("s", torch.full((LATENT,), -0.2).double()))
    }
    assert log.coefficients["projected_gradient_upper_0"] == pytest.approx(upper.item(), rel=2e-3)
    assert log.coefficients["projected_gradient_lower_p_0"] == pytest.approx(slopes["p"].item(), rel=2e-3)
    assert log.coefficients["projected_gradient_lower_s_0"] == pytest.approx(slopes["s"].item(), rel=2e-3)
    # the backbone moved along the old p, though p moved in the same step
    expected = upper + 7.0 * (slopes["p"] - slopes["s"])
    assert log.update.displacement[Key(0, 3, 0)] == pytest.approx(-0.5 * expected.item(), rel=2e-3)
    w = torch.full((LATENT,), 0.3).double()
    gradient = (w - model.a) + 7.0 * (w - model.M @ theta - model.m)
    torch.testing.assert_close(model.w["adapter"].detach(), w - 0.1 * gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "forwards", "sweeps"),
    [(IN_PLACE, 6, 3), ({"evaluator": "in-place"}, 6, 3), ({}, 3, 0), ({"directions": "per-example"}, 3, 0)],
    ids=["in place", "in place, low rank", "in the forward", "per-example"],
)
def test_counts_of_an_outer_step(parts, forwards, sweeps):
    config = BilevelConfig(batch_size=4, inner_steps=5, penalty=10.0, **parts)
    method = Bilevel(config, language_context())
    log = method.step(0)
    assert log.counts.as_dict() == {"forwards": 5 + 2 + forwards, "backwards": 5 + 2, "queries": (5 + 2 + 6) * 4}
    assert method.queries_per_step == log.counts.queries
    assert method.backbone.sweeps == sweeps
    with method.using("adapter"):  # whoever looks at the weights finds theta
        assert method.backbone.sweeps == max(sweeps, 1)


def outer_steps(parts, steps=3):
    context = language_context()
    config = {"batch_size": 4, "inner_steps": 2, "penalty": 10.0, "estimator": {"epsilon": 0.01}, "rule": {"lr": 1e-4}}
    method = Bilevel(BilevelConfig(**{**config, **parts}), context)
    logs = [method.step(step) for step in range(steps)]
    with method.using("adapter"):
        return logs, {name: tensor.clone() for name, tensor in method.backbone.tensors.items()}


def test_steps_in_the_forward_are_those_in_place():
    start = {name: p.detach().clone() for name, p in language_context().model.named_parameters()}
    (one, theta), (two, same) = (outer_steps({"evaluator": e}) for e in ("in-forward", "in-place"))
    for a, b in zip(one, two, strict=True):
        assert list(a.coefficients) == list(b.coefficients)
        assert a.coefficients == pytest.approx(b.coefficients, rel=2e-3, abs=1e-4)
        assert list(a.update.displacement) == list(b.update.displacement)
    for name, tensor in theta.items():
        assert (tensor - same[name]).norm() <= 2e-3 * (tensor - start[name]).norm() + 1e-6
    assert max((tensor - start[name]).abs().max() for name, tensor in theta.items()) > 1e-4


@pytest.mark.parametrize(
    ("directions", "upper", "lower"),
    [
        ("shared", [0], [0]),
        ("per-example", [0, 1, 2, 3], [4, 5, 6, 7]),
        ("per-group(3)", [0, 1], [1, 2]),  # examples 3, 4 and 5 are the last of B_f and the first two of B_p
    ],
)
def test_both_losses_of_b_p_have_the_same_directions_and_the_update_sums_all_three(directions, upper, lower):
    logs, _ = outer_steps({"directions": directions, "rule": {"lr": 0.5}}, steps=1)
    coefficients, displacement = logs[0].coefficients, logs[0].update.displacement
    slopes = {
        part: {key: coefficients[f"projected_gradient_{part}_{key}"] for key in keys}
        for part, keys in (("upper", upper), ("lower_p", lower), ("lower_s", lower))
    }
    assert sum("projected_gradient" in name for name in coefficients) == len(upper) + 2 * len(lower)
    assert sorted(key.index for key in displacement) == sorted({*upper, *lower})
    share = {"shared": {0: 1.0}, "per-example": dict.fromkeys(range(8), 0.25)}.get(directions)
    shares_f, shares_p = (share, share) if share else ({0: 0.75, 1: 0.25}, {1: 0.5, 2: 0.5})
    for key, coefficient in displacement.items():
        i = key.index
        gradient = slopes["upper"].get(i, 0) * shares_f.get(i, 0)
        gap = slopes["lower_p"].get(i, 0) - slopes["lower_s"].get(i, 0)
        expected = -0.5 * (gradient + 10.0 * gap * shares_p.get(i, 0))
        assert coefficient == pytest.approx(expected, rel=1e-9)


def test_names_and_directions_do_not_depend_on_the_adapters():
    tokenizer = build_tokenizer()
    plain = build_model("gpt2", len(tokenizer))
    names = list(Backbone(plain, Gaussian()).tensors)
    method = Bilevel(
        BilevelConfig(batch_size=2),
        TrainingContext(build_model("gpt2", len(tokenizer)), None, list(range(12)), list, 0),
    )
    assert list(method.backbone.tensors) == names


def test_losses_of_the_same_point_are_those_of_the_in_place_evaluator():
    """The probe of the outer step is one probe of two points, three losses each."""
    model = Quadratic()
    backbone = Backbone(model, Gaussian(), ["theta"])
    points = TwoSided(0.1).ask([Key(0, 0)])
    losses = InPlace(model, backbone).losses(lambda m, batch: m(batch), ["f", "p"], points)
    for point, row in zip(points, losses, strict=True):
        moved = Quadratic()
        with torch.no_grad():
            moved.theta += backbone.values(point)["theta"].double()
        torch.testing.assert_close(row.double(), moved(["f", "p"]), rtol=1e-6, atol=1e-6)
    assert Displacement() != points[0]


def test_momentum_on_the_backbone_is_that_of_torch():
    """m <- beta m + g; theta <- theta - lr m, of the estimates that the log holds."""
    model = Quadratic()
    theta = torch.nn.Parameter(model.theta.clone())
    reference = torch.optim.SGD([theta], lr=1e-3, momentum=0.9)
    method = in_place_method(model, {"name": "momentum", "lr": 1e-3, "beta": 0.9, "tolerance": 0.0})
    for step in range(5):
        theta.grad = estimate_of(method, method.step(step), step)
        reference.step()
    torch.testing.assert_close(model.theta.detach(), theta.detach(), rtol=1e-6, atol=1e-7)


def test_adam_on_the_backbone_is_that_of_torch():
    model = Quadratic()
    theta = torch.nn.Parameter(model.theta.clone())
    reference = torch.optim.Adam([theta], lr=1e-2)
    method = in_place_method(model, {"name": "dense-adam", "lr": 1e-2})
    assert method.rule.dense_buffers == 2
    for step in range(5):
        theta.grad = estimate_of(method, method.step(step), step)
        reference.step()
    torch.testing.assert_close(model.theta.detach(), theta.detach(), rtol=1e-5, atol=1e-6)


def in_place_method(model, rule):
    config = {"batch_size": 1, "inner_steps": 1, "penalty": 3.0, "optimizer": "sgd", "rule": rule, **IN_PLACE}
    return Bilevel(BilevelConfig(**config), quadratic_context(model), Vectors(model))


def estimate_of(method, log, step):
    """The estimated gradient of a step, written out from what the log says of it."""
    slope = {part: log.coefficients[f"projected_gradient_{part}_0"] for part in ("upper", "lower_p", "lower_s")}
    z = method.backbone.noise.whole(Key(0, step, 0), "theta", (D,)).double()
    return (slope["upper"] + log.coefficients["penalty"] * (slope["lower_p"] - slope["lower_s"])) * z
