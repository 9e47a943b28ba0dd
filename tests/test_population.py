"""Populations: the estimator against gradients that are known, and evolution strategies against MeZO."""

from __future__ import annotations

import json
import math
import signal
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from test_conformance import AtStep
from test_treatment import configured, lines_of  # noqa: F401  # a fixture
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, Interrupted
from zofo.estimators import Population, TwoSided
from zofo.export import apply_patch, export_run, replay_run
from zofo.training import evaluate_run, train
from zofo.trajectory import Trajectory

D, MEMBERS, EXAMPLES = 8, 4000, 3
SLOPE = torch.linspace(-1, 1, D, dtype=torch.float64)


def asked(estimator, members, seed, loss=lambda x: x @ SLOPE):
    """Directions, as rows of a matrix, and the losses of each member and example: example e has e more."""
    count = members // 2 if estimator.mirrored else members
    z = torch.randn(count, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    keys = [Key(0, 0, i) for i in range(count)]
    at = dict(zip(keys, z, strict=True))
    points = torch.stack([sum(c * at[key] for key, c in point.items()) for point in estimator.ask(keys)])
    return keys, z, loss(points)[:, None] + torch.arange(EXAMPLES, dtype=torch.float64)


def estimated(estimator, members, seed=0, loss=lambda x: x @ SLOPE):
    """The estimate as a vector."""
    keys, z, losses = asked(estimator, members, seed, loss)
    gradient = dict(estimator.tell(keys, losses).gradient.items())
    return sum(gradient.get(key, 0.0) * row for key, row in zip(keys, z, strict=True))


@pytest.mark.parametrize("mirrored", [True, False])
def test_plain_scores_are_unbiased(mirrored):
    """The mean of estimates of two members each is the gradient, within 4 standard errors."""
    found = torch.stack([estimated(Population(0.1, mirrored, "plain"), 2, seed) for seed in range(3000)])
    error = found.std(dim=0) / math.sqrt(len(found))
    assert ((found.mean(dim=0) - SLOPE).abs() < 4 * error).all()


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("epsilon", [1e-3, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_z_scores_give_the_direction_of_the_gradient_whatever_its_scale(mirrored, epsilon, scale):
    """E u z = g / |g| for a linear loss: (g . z) / std(g . z) is a standard normal number along g."""
    found = estimated(Population(epsilon, mirrored), MEMBERS, loss=lambda x: scale * (x @ SLOPE))
    pairs = MEMBERS // 2 if mirrored else MEMBERS
    error = math.sqrt(2 / pairs)  # of an entry: at most the variance of (u z_j), which is below 2
    assert ((found - SLOPE / SLOPE.norm()).abs() < 4 * error).all()


@pytest.mark.parametrize("mirrored", [True, False])
def test_ranks_follow_the_order_alone(mirrored):
    """A monotone change of the losses changes nothing, and for a linear loss E u z = g / |g| / (2 sqrt(pi))."""
    plain = estimated(Population(1.0, mirrored, "rank"), MEMBERS)
    bent = estimated(Population(1.0, mirrored, "rank"), MEMBERS, loss=lambda x: torch.exp(x @ SLOPE))
    if mirrored:
        assert (plain - bent).norm() < 0.2 * plain.norm()
    else:
        keys, z, losses = asked(Population(1.0, False, "rank"), 40, 1)
        one, two = (Population(1.0, False, "rank").tell(keys, each).gradient for each in (losses, losses.exp()))
        assert dict(one.items()) == pytest.approx(dict(two.items()))
    error = math.sqrt(2 / 12 / (MEMBERS // 2))
    assert ((plain - SLOPE / SLOPE.norm() / (2 * math.sqrt(math.pi))).abs() < 4 * error).all()


@pytest.mark.parametrize("scores", ["z-score", "rank"])
@pytest.mark.parametrize("mirrored", [True, False])
def test_scores_that_are_all_equal_say_nothing(scores, mirrored):
    estimator = Population(1e-3, mirrored, scores)
    keys, _, losses = asked(estimator, 6, 0, lambda x: torch.full((len(x),), 0.7, dtype=torch.float64))
    assert {c for _, c in estimator.tell(keys, losses).gradient.items()} <= {0.0}


def test_mirrored_plain_scores_are_two_sided_estimates_to_the_bit():
    keys, _, losses = asked(TwoSidedPairs := Population(0.1, True, "plain"), 10, 3)
    one, two = TwoSidedPairs.tell(keys, losses), TwoSided(0.1).tell(keys, losses)
    assert one.gradient == two.gradient
    assert one.projected_gradients == two.projected_gradients


def test_two_mirrored_members_with_plain_scores_are_mezo_to_the_bit(configured):  # noqa: F811
    es = {"name": "es", "population": 2, "estimator": {"scores": "plain"}, "rule": {"lr": 1e-3}}
    one = train(configured("es", es, treatment_steps=None))
    two = train(configured("mezo", {"name": "mezo", "rule": {"lr": 1e-3}}, treatment_steps=None))
    assert one.summary["backbone"] == two.summary["backbone"]
    drop = ("seconds",)
    lines = [[{k: v for k, v in line.items() if k not in drop} for line in lines_of(run, "step")] for run in (one, two)]
    assert lines[0] == lines[1]


def test_an_update_is_a_key_and_a_number_a_member(configured):  # noqa: F811
    """16 bytes a member at most, however large the model is."""
    sizes = []
    for members in (4, 40):
        es = {"name": "es", "population": members, "estimator": {"mirrored": False}}
        run = train(configured(f"es{members}", es, steps=1, treatment_steps=None))
        sizes.append((run.path / "trajectory.bin").stat().st_size)
        update = Trajectory.read(run.path / "trajectory.bin").records[0]
        assert len(update.displacement) == members
        assert lines_of(run, "step")[0]["queries"] == 4 * members
        assert sum(name.startswith("shaped_score_") for name in lines_of(run, "step")[0]) == members
    assert sizes[1] - sizes[0] <= 16 * 36


def test_a_decay_towards_the_base_is_one_number_an_update(configured, model_folder, tmp_path, monkeypatch):  # noqa: F811
    """It is stopped, goes on, is replayed and shipped to the same bits; summed, it is the decayed sum of the log."""
    rule = {"lr": 0.02, "displacement_decay": 0.25}
    es = {"name": "es", "population": 4, "estimator": {"epsilon": 0.05}, "rule": rule}
    run = train(configured("whole", es, treatment_steps=None))
    updates, expected = Trajectory.read(run.trajectory).updates, Displacement()
    for update in updates:
        assert (update.displacement_decay, len(update.displacement)) == (0.25, 2)
        expected = 0.75 * expected + update.displacement
    other = configured("stopped", es, treatment_steps=None)
    with pytest.raises(Interrupted):
        train(other, Console(file=AtStep(3, lambda: signal.raise_signal(signal.SIGTERM)), width=200))
    with monkeypatch.context() as patched:  # which would draw all directions again in each update
        patched.setattr("zofo.training.run_state.replay_records", lambda *_: pytest.fail("replayed"))
        again = train(other, Console(file=StringIO()))
    assert again.trajectory.read_bytes() == run.trajectory.read_bytes()
    assert again.summary["backbone"] == run.summary["backbone"]
    assert replay_run(run.path).verdict == "same bits"
    export_run(run.path, "patch", tmp_path / "exact.zofo")
    assert apply_patch(tmp_path / "exact.zofo", str(model_folder), tmp_path / "out").same_bits
    export_run(run.path, "patch", tmp_path / "sum.zofo", summed=True)
    apply_patch(tmp_path / "sum.zofo", str(model_folder), tmp_path / "summed")
    exact, summed = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "summed"))
    base = load_file(model_folder / "model.safetensors")
    for name, tensor in exact.items():
        torch.testing.assert_close(summed[name], tensor, rtol=0, atol=1e-6)
        assert not torch.equal(tensor, base[name])
    assert evaluate_run(run.path).loss == pytest.approx(run.summary["loss"], rel=1e-5)


def test_the_rate_is_half_of_sigma_and_directions_follow_from_the_population(configured):  # noqa: F811
    config = configured("run", {"name": "es", "estimator": {"epsilon": 0.02}}).method
    assert (config.rule.options["lr"], config.num_directions, config.population) == (0.01, 15, 30)
    for typed in ({"epsilon": "2e-2"}, {"epsilon": 0.02, "mirrored": "true"}):
        same = configured("run", {"name": "es", "population": "30", "estimator": typed}).method
        assert same == config
    apart = configured("run", {"name": "es", "population": 8.0, "estimator": {"mirrored": "no"}}).method
    assert (apart.population, apart.num_directions) == (8, 8)
    again = type(config).model_validate(json.loads(config.model_dump_json()))
    assert again == config


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "es", "population": 5}, "come in pairs"),
        ({"name": "es", "num_directions": 3}, "has 15 directions"),
        ({"name": "es", "directions": "per-example"}, "has one score, of the whole batch"),
        ({"name": "es", "normalize_by_std": True}, "nothing is divided"),
        ({"name": "es", "estimator": "two-sided"}, "compares the members of a population"),
        ({"name": "bilevel", "inner_steps": 1, "estimator": "population"}, "adds the estimates of several losses"),
        ({"name": "svrg", "estimator": "population"}, "adds the estimates of several losses"),
        ({"name": "mezo", "estimator": "population", "directions": "per-example"}, "has one score, of the whole batch"),
        ({"name": "mezo", "estimator": "population", "normalize_by_std": True}, "has one score, of the whole batch"),
    ],
)
def test_what_has_no_meaning_is_refused(configured, method, message):  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        train(configured("run", method, treatment_steps=None))
