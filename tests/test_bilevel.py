"""Bilevel-ZOFO against a problem whose solution is known, and against its own parts."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from conftest import build_model, build_tokenizer
from zofo import Backbone, Bilevel, BilevelConfig, Displacement, Gaussian, InPlace, Key, Setting, TwoSided
from zofo.adapters import Adapters
from zofo.noise import permutation
from zofo.tasks import Example, collate, encode

D, LATENT, RHO, N = 32, 6, 1.0, 12
IN_PLACE = {"noise": "gaussian", "evaluator": "in-place"}  # which moves a model whose losses have no rows, too


class Quadratic(nn.Module):
    """F(theta, w; f) = 1/2 |w - a|^2 + rho/2 |theta - b|^2 and F(theta, w; p) = 1/2 |w - M theta - m|^2."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.theta = nn.Parameter(torch.randn(D, generator=draw, dtype=torch.float64), requires_grad=False)
        self.w = {name: nn.Parameter(torch.zeros(LATENT, dtype=torch.float64)) for name in ("adapter", "lower_adapter")}
        self.active = "adapter"
        self.M = torch.randn(LATENT, D, generator=draw, dtype=torch.float64) / D**0.5
        self.m, self.a = torch.randn(2, LATENT, generator=draw, dtype=torch.float64)
        self.b = torch.randn(D, generator=draw, dtype=torch.float64)

    def forward(self, roles: list[str]) -> torch.Tensor:
        w = self.w[self.active]
        upper = 0.5 * (w - self.a).square().sum() + RHO / 2 * (self.theta - self.b).square().sum()
        lower = 0.5 * (w - self.M @ self.theta - self.m).square().sum()
        return torch.stack([upper if role == "f" else lower for role in roles])

    def lower_solution(self, theta: torch.Tensor) -> torch.Tensor:
        return self.M @ theta + self.m

    def hypergradient(self, theta: torch.Tensor) -> torch.Tensor:
        """Of the true bilevel objective F(theta, w*(theta); f)."""
        return self.M.T @ (self.lower_solution(theta) - self.a) + RHO * (theta - self.b)

    def solution(self, penalty: float) -> torch.Tensor:
        """Of the penalised problem, w eliminated: penalty / (1 + penalty) on the lower solution's distance to a."""
        share = penalty / (1 + penalty)
        left = share * self.M.T @ self.M + RHO * torch.eye(D, dtype=torch.float64)
        return torch.linalg.solve(left, share * self.M.T @ (self.a - self.m) + RHO * self.b)


class Vectors(Adapters):
    names = ("adapter", "lower_adapter")

    def __init__(self, model: Quadratic) -> None:
        self.model = model

    def parameters(self, adapter):
        return [self.model.w[adapter]]

    @property
    def active(self):
        return self.model.active

    def use(self, adapter):
        self.model.active = adapter

    def save(self, adapter, folder):
        raise NotImplementedError


def quadratic_setting(model: Quadratic, seed: int = 0) -> Setting:
    """Examples are roles, placed so that the method's own split gives D_f the upper and D_p the lower losses."""
    upper = set(permutation(Key(seed, 0), "bilevel/split", N)[: N // 3])
    roles = ["f" if i in upper else "p" for i in range(N)]
    return Setting(model, lambda m, batch: m(batch).to(torch.float64), roles, list, seed)


@pytest.mark.parametrize(
    ("penalty", "directions", "lr", "bias"),
    [(10.0, 4, 0.012, 0.1), pytest.param(100.0, 64, 0.003, 0.01, marks=pytest.mark.soak)],
)
def test_converges_to_the_closed_form_within_2000_steps(penalty, directions, lr, bias):
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
        rule={"lr": lr},
        **IN_PLACE,
    )
    method = Bilevel(config, quadratic_setting(model), Vectors(model))
    for step in range(2000):
        method.step(step)
    expected = model.solution(penalty)
    assert (model.theta - expected).norm() / expected.norm() < 1e-2
    exact = model.solution(1e12)  # the bilevel problem itself, which the penalty reaches up to order 1 / penalty
    assert (model.theta - exact).norm() / exact.norm() < bias
    assert (model.w["lower_adapter"] - model.lower_solution(model.theta)).norm() < 1e-2


def test_mean_upper_direction_is_the_hypergradient():
    model, penalty = Quadratic(), 100.0
    with torch.no_grad():
        lower = model.lower_solution(model.theta)
        model.w["lower_adapter"].copy_(lower)
        model.w["adapter"].copy_((model.a + penalty * lower) / (1 + penalty))
    exact = model.hypergradient(model.theta)
    config = BilevelConfig(
        batch_size=1,
        inner_steps=1,
        penalty=penalty,
        optimizer="sgd",
        lr_lower=0.0,
        lr_adapter=0.0,
        estimator={"epsilon": 0.05},
        num_directions=4096,
        rule={"lr": 1.0},
        **IN_PLACE,
    )
    before = model.theta.clone()
    Bilevel(config, quadratic_setting(model), Vectors(model)).step(0)
    moved = before - model.theta
    assert torch.cosine_similarity(moved, exact, dim=0) > 0.95
    assert abs(moved.norm() / exact.norm() - 1) < 0.15


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
    method = Bilevel(config, quadratic_setting(model), Vectors(model))
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


@pytest.fixture
def language_setting():
    tokenizer = build_tokenizer()
    model = build_model("llama", len(tokenizer))
    examples = [Example(f"a joy film number {i} . It was", (" terrible", " great"), (i % 2,)) for i in range(24)]
    from zofo.objectives import classification_loss

    def make(chosen):
        return collate(chosen, 0, torch.device("cpu"))

    return Setting(model, classification_loss, encode(tokenizer, examples), make, seed=3)


@pytest.mark.parametrize(
    ("parts", "forwards", "sweeps"),
    [(IN_PLACE, 6, 3), ({"evaluator": "in-place"}, 6, 3), ({}, 3, 0), ({"directions": "per-example"}, 3, 0)],
    ids=["in place", "in place, low rank", "in the forward", "per-example"],
)
def test_counts_of_an_outer_step(language_setting, parts, forwards, sweeps):
    config = BilevelConfig(batch_size=4, inner_steps=5, penalty=10.0, **parts)
    method = Bilevel(config, language_setting)
    log = method.step(0)
    assert log.counts.as_dict() == {"forwards": 5 + 2 + forwards, "backwards": 5 + 2, "queries": (5 + 2 + 6) * 4}
    assert method.queries_per_step == log.counts.queries
    assert method.backbone.sweeps == sweeps
    with method.using("adapter"):  # whoever looks at the weights finds theta
        assert method.backbone.sweeps == max(sweeps, 1)


def outer_steps(setting, parts, steps=3):
    setting = dataclasses.replace(setting, model=copy.deepcopy(setting.model))
    config = {"batch_size": 4, "inner_steps": 2, "penalty": 10.0, "estimator": {"epsilon": 0.01}, "rule": {"lr": 1e-4}}
    method = Bilevel(BilevelConfig(**{**config, **parts}), setting)
    logs = [method.step(step) for step in range(steps)]
    with method.using("adapter"):
        return logs, {name: tensor.clone() for name, tensor in method.backbone.tensors.items()}


def test_steps_in_the_forward_are_those_in_place(language_setting):
    start = {name: p.detach().clone() for name, p in language_setting.model.named_parameters()}
    (one, theta), (two, same) = (outer_steps(language_setting, {"evaluator": e}) for e in ("in-forward", "in-place"))
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
def test_both_losses_of_b_p_have_the_same_directions_and_the_update_sums_all_three(
    language_setting, directions, upper, lower
):
    logs, _ = outer_steps(language_setting, {"directions": directions, "rule": {"lr": 0.5}}, steps=1)
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
        BilevelConfig(batch_size=2), Setting(build_model("gpt2", len(tokenizer)), None, list(range(12)), list, 0)
    )
    assert list(method.backbone.tensors) == names


def test_losses_of_the_same_point_are_those_of_the_in_place_evaluator():
    """The probe of the outer step is one visit to two points, three losses each."""
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
