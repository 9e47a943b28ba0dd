"""The first-order control variate of bilevel's step on theta: its mean, its variance, its run, and what refuses it."""

from __future__ import annotations

import math

import pytest
import torch

from conftest import build_model, build_tokenizer
from test_adapters import training_context
from test_meta_bilevel import NAMES, drawn, new_context
from zofo import Bilevel, BilevelConfig
from zofo.adapters.subspace import linear_layers
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError
from zofo.methods import MetaBilevel, MetaBilevelConfig
from zofo.objectives import classification_loss
from zofo.testing import check_method

PENALTY = 2.0
OPTIONS = {"batch_size": 4, "inner_steps": 1, "penalty": PENALTY, "adapter": {"name": "lora", "rank": 2}}
SUBSPACE = {"name": "subspace", "rank": 6}


@pytest.fixture(scope="module")
def words():
    return build_tokenizer()


def built(words, **options):
    context = training_context(build_model("llama", len(words)), words)
    given = {"control_variate": SUBSPACE, "trainable": ["model.layers.*_proj.weight", "model.norm.weight"]}
    return Bilevel(BilevelConfig(**OPTIONS, **{**given, **options}), context), context


def differentiated(method):
    """One inner step, so that p and s differ, and the gradients of a step; gives its batches."""
    method._pair.inner_step(0, method._batches_inner[0], 50.0)
    b_f, b_p = method._upper.collate(method._batches_f[0]), method._batches_p[0]
    method._pair.differentiate(b_f, b_p, PENALTY, None, method._theta.control.parameters)
    method._theta.control.add_grad()
    return b_f, b_p


def gradient_of(method, b_f, b_p):
    """G of the whole objective of theta, by back-propagation into its own weights."""
    tensors = method.backbone.parameters
    total = {name: torch.zeros_like(p) for name, p in tensors.items()}
    for variant, batch, factor in (("adapter", b_f, 1), ("adapter", b_p, PENALTY), ("lower_adapter", b_p, -PENALTY)):
        with method._adapters.using(variant):
            for p in tensors.values():
                p.requires_grad_(True)
            loss = classification_loss(method.model, batch).mean() * factor
            for (name, _), found in zip(
                tensors.items(), torch.autograd.grad(loss, list(tensors.values())), strict=True
            ):
                total[name] += found
    return total


def written(method, control):
    """g_hat, as tensors of theta."""
    found = {name: torch.zeros_like(p) for name, p in method.backbone.parameters.items()}
    for (name, layer), gradient in zip(control._layers.items(), control._gradients, strict=True):
        found[name] = gradient @ layer.lora_A["backbone"].weight
    return found


def dot(one, other):
    return math.fsum(float((one[name].double() * other[name].double()).sum()) for name in one)


def test_g_hat_is_the_projection_of_the_gradient_of_all_three_terms(words):
    method, _ = built(words)
    batches = differentiated(method)
    found, exact = written(method, method._theta.control), gradient_of(method, *batches)
    for name, layer in method._theta.control._layers.items():
        rows = layer.lora_A["backbone"].weight
        torch.testing.assert_close(found[name], exact[name] @ rows.T @ rows, rtol=1e-3, atol=1e-6)
    assert len(method._theta.control._layers) == len(linear_layers(build_model("llama", len(words))))
    assert dot(found, found) == pytest.approx(dot(found, exact), rel=1e-3)


def test_the_estimate_is_unbiased_with_the_variance_of_theory(words):
    """With Gaussian directions and exact slopes: mean G within 4 standard errors, E|estimate - G|^2 = (d + 1) (1 - rho)
    |G|^2 within 10 %, and rho is what it is."""
    method, _ = built(words, noise="gaussian")
    control, backbone = method._theta.control, method.backbone
    exact, known = gradient_of(method, *differentiated(method)), written(method, control)

    def one_row(tensors):
        return torch.cat([tensors[name].double().flatten() for name in exact])

    whole = one_row(exact)
    rest, squared, along = whole - one_row(known), [], []
    for number in range(700):
        key = Key(7, number, 0)
        z = one_row(backbone.values(Displacement({key: 1.0})))
        found, log = control.corrected(Displacement({key: float(z @ whole)}), [key])
        assert list(found) == [key]
        error = found[key] * z - rest  # the estimate is g_hat + found
        squared.append(float(error @ error))
        along.append(float(error @ rest))
    rho = dot(known, known) / dot(exact, exact)
    assert 0.2 < rho < 0.95
    variance = math.fsum(squared) / len(squared)
    assert variance == pytest.approx((backbone.size + 1) * (1 - rho) * dot(exact, exact), rel=0.1)
    of_mean = torch.tensor(along)  # along what the estimate is left to find
    assert abs(of_mean.mean()) < 4 * of_mean.std() / math.sqrt(len(along))
    assert log["rho"] == pytest.approx(rho, abs=0.1)
    assert log["control_variate_squared"] == pytest.approx(dot(known, known), rel=1e-3)


def test_a_step_moves_theta_by_g_hat_and_by_what_is_left_of_the_slope(words):
    method, _ = built(words, rule={"lr": 1e-2}, num_directions=2)
    control = method._theta.control
    b_f, b_p = differentiated(method)
    exact, known = gradient_of(method, b_f, b_p), written(method, control)
    rest = {name: exact[name] - known[name] for name in exact}
    updates = []
    method.evaluator.theta.log.on_update = updates.append
    log, told = method._theta.step(0, method._pair.asks(b_f, b_p), 4, 0.5)
    assert told is None  # the update is not all that theta does
    for key, coefficient in updates[0].displacement.items():
        slope = dot(method.backbone.values(Displacement({key: 1.0})), rest)
        assert coefficient == pytest.approx(-5e-3 * slope / 2, rel=0.02, abs=1e-5)
        assert log[f"control_variate_slope_{key.index}"] != 0
    for (name, layer), b in zip(control._layers.items(), control.parameters, strict=True):
        torch.testing.assert_close(b @ layer.lora_A["backbone"].weight, -5e-3 * known[name], rtol=1e-4, atol=1e-8)
        assert b.grad is None
    assert "backbone_distance" not in log


def test_a_run_repeats_itself_goes_on_and_comes_back(tmp_path):
    run = check_method(
        "bilevel",
        tmp_path,
        batch_size=2,
        inner_steps=1,
        adapter="lora",
        control_variate={"name": "subspace", "rank": 4},
    )
    assert run.summary["queries"] == 8 + 4 * (1 + 2 + 1 + 6) * 2
    assert run.backbone_trajectory is not None
    assert '"rho"' in run.metrics.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"control_variate": "lora"}, "no projection"),
        ({"adapter": "prefix"}, "prefix is no low-rank term"),
        ({"backbone_adapter": "subspace"}, "nothing outside an adapter"),
        ({"backbone_update": "random"}, "no zeroth-order steps"),
        ({"directions": "per-example"}, "slope of its own"),
        ({"mask": "random"}, "method.mask"),
        ({"rule": "momentum"}, "momentum is no plain step"),
        ({"rule": {"weight_decay": 0.1}}, "with a decay is no plain step"),
    ],
)
def test_where_there_is_no_projection_or_no_plain_step_it_is_refused(options, said):
    with pytest.raises(ConfigError, match=said) as refused:
        BilevelConfig(**{"control_variate": "subspace", **options})
    assert "null" in refused.value.hint


def test_a_selection_without_linear_layers_leaves_it_nothing(words):
    with pytest.raises(ConfigError, match="moves none of them"):
        built(words, trainable=["model.norm.weight"])


# on many tasks

MANY = {
    "batch_size": 2,
    "inner_steps": 1,
    "tasks_per_step": 2,
    "penalty": PENALTY,
    "control_variate": SUBSPACE,
    "trainable": ["model.layers.*_proj.weight"],
    "rule": {"lr": 0.05},
}


def on_many(**options):
    given = new_context()
    return MetaBilevel(MetaBilevelConfig(**{**MANY, **options}), given), given


def test_of_many_tasks_g_hat_is_the_projection_of_the_gradient_of_their_mean():
    meta, _ = on_many(rule={"lr": 0.0}, num_directions=1)
    log = meta.step(0)
    tensors, total = meta.backbone.parameters, {}
    for p in tensors.values():
        p.requires_grad_(True)
    tuned = [meta._store.get(name) for name in drawn(log)]
    assert len(tuned) == 2
    asks = meta._asks([meta._first_order_steps(task, 0, PENALTY)[0] for task in again(meta, log)])
    for (objective, batch), factor in zip(asks, (1, 1, PENALTY, PENALTY, -PENALTY, -PENALTY), strict=True):
        loss = objective(meta.model, batch).mean() * factor / 2
        for name, found in zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True):
            total[name] = total.get(name, 0) + found
    known = written(meta, meta._theta.control)
    for name, layer in meta._theta.control._layers.items():
        rows = layer.lora_A["backbone"].weight
        torch.testing.assert_close(known[name], total[name] @ rows.T @ rows, rtol=1e-3, atol=1e-6)
    assert log.update is None


def again(meta, log):
    """The tasks of a step, each with a fresh pair, as before it."""
    for name in drawn(log):
        meta._store.put(name, meta._fresh)
    meta._theta.control.zero_grad()
    return [task for name in drawn(log) for task in meta._tasks if task.name == name]


def test_of_many_tasks_it_goes_on_from_what_it_remembers_bit_by_bit():
    whole, first, second = (on_many()[0] for _ in range(3))
    for one in (whole, first, second):
        one.check()  # as a run does; a first forward sums in another order
    logs = [whole.step(number) for number in range(3)]
    first.step(0)
    second.load_state_dict(first.state_dict(weights=True))
    assert [second.step(number).coefficients for number in (1, 2)] == [log.coefficients for log in logs[1:]]
    one, other = (m.state_dict(weights=True).tensors for m in (whole, second))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(b.any() for b in whole._theta.control.parameters)
    assert set(NAMES) >= set(whole._store.names)
