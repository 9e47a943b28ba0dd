"""How strong the treatment is: against gradients that are known, and against the logs of runs."""

import json
import math

import pytest
import torch

from least_squares import LeastSquares, build, theta_of, training_context
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.methods import METHODS
from zofo.training import read_config, train
from zofo.training.treatment import measure, measure_along

PLAIN = {"kind": METHODS["mezo"], "lr_full": None, "anchor_interval": None}


def test_the_gradient_and_its_spread_are_those_of_the_closed_form():
    model = LeastSquares()
    method = build(model, **PLAIN)
    found = measure(method.backbone, training_context(model), range(len(model.x)))
    each = model.gradients(model.theta())
    n, mean = len(each), each.mean(0)
    spread = ((each - mean) ** 2).sum().item() / (n - 1)
    assert found.spread_squared == pytest.approx(spread, rel=1e-9)
    assert found.gradient_squared == pytest.approx((mean**2).sum().item() - spread / n, rel=1e-9)
    assert found.counts.as_dict() == {"forwards": 2 * n, "backwards": 2 * n, "queries": 2 * n}
    assert math.isnan(found.update_slope)
    assert not model.W.requires_grad


def test_the_squared_gradient_of_a_few_examples_has_no_bias():
    """Its mean over all pairs of examples is that of the population: |mean of all|^2, less what pairs share."""
    model = LeastSquares()
    method = build(model, **PLAIN)
    n = len(model.x)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    found = [measure(method.backbone, training_context(model), pair).gradient_squared for pair in pairs]
    each = model.gradients(model.theta())
    products = [(each[i] @ each[j]).item() for i, j in pairs]  # whose expectation is |g|^2 for two independent examples
    assert sum(found) / len(found) == pytest.approx(sum(products) / len(products), rel=1e-9)


def test_its_error_is_that_of_leaving_each_example_out():
    """And it is how much |g|^2 scatters over draws of examples."""
    model = LeastSquares(examples=400)
    method = build(model, **PLAIN)

    def of(rows):
        return measure(method.backbone, training_context(model), rows)

    found = of(range(8))
    without = torch.tensor([of([j for j in range(8) if j != i]).gradient_squared for i in range(8)])
    assert found.error == pytest.approx(((without - without.mean()) ** 2).sum().mul(7 / 8).sqrt().item(), rel=1e-5)
    draws = [of(range(start, start + 8)) for start in range(0, 400, 8)]
    scatter = torch.tensor([draw.gradient_squared for draw in draws]).std().item()
    assert (sum(draw.error**2 for draw in draws) / 50) ** 0.5 == pytest.approx(scatter, rel=0.35)
    assert math.isnan(of(range(2)).error)


def test_along_directions_it_is_the_same_within_the_error_that_is_said():
    model = LeastSquares()
    method = build(model, **PLAIN)
    context, rows = training_context(model), range(len(model.x))
    exact = measure(method.backbone, context, rows)
    keys = [Key(5, 0, number) for number in range(600)]
    found = measure_along(method.evaluator, context, rows, keys, 1e-3)
    assert abs(found.gradient_squared - exact.gradient_squared) < 4 * found.error < exact.gradient_squared
    assert found.spread_squared == pytest.approx(exact.spread_squared, rel=0.1)
    assert found.counts.queries == 2 * len(keys) * len(rows)
    assert method.counts.queries == 0
    assert math.isnan(found.update_slope)


def test_the_slope_of_an_update_is_the_change_of_the_loss():
    model = LeastSquares()
    method = build(model, **PLAIN, rule={"lr": 1e-6})
    examples = range(len(model.x))
    before = model.losses_at(model.theta().expand(len(model.x), -1), slice(None)).mean().item()
    log = method.step(0)
    theta_of(method)
    found = measure(method.backbone, training_context(model), examples, log.update)
    after = model.losses_at(model.theta().expand(len(model.x), -1), slice(None)).mean().item()
    assert found.update_slope == pytest.approx(after - before, rel=1e-4)


def configuring(model_folder, data_dir, folder):
    """Makes configurations of short runs on the tiny model, each in a folder of its own."""

    def make(name, method, **training):
        task = {"name": "sst2", "data_dir": str(data_dir), "split_sizes": {"train": 24, "validation": 4}}
        given = {"steps": 6, "treatment_steps": 2, "treatment_examples": 4, "before_after_examples": 0, **training}
        whole = {"batch_size": 4, **method}
        return read_config(
            model=str(model_folder), task=task, method=whole, training=given, output_dir=str(folder / name)
        )

    return make


@pytest.fixture
def configured(model_folder, data_dir, tmp_path):
    return configuring(model_folder, data_dir, tmp_path)


def lines_of(run, event):
    return [line for line in map(json.loads, run.metrics.read_text().splitlines()) if line["event"] == event]


def test_a_run_logs_its_treatment_apart_from_its_work(configured):
    method = {"name": "mezo", "rule": {"lr": 1e-4}}
    run = train(configured("run", method, lr_scheduler_type="linear"))
    lines = lines_of(run, "treatment")
    assert [line["steps"] for line in lines] == [0, 2, 4, 6]
    assert all(line["measured_queries"] == line["measured_backwards"] == 8 for line in lines)
    assert run.summary["backwards"] == 0
    factors = [line["lr_factor"] for line in lines_of(run, "step")]
    assert (lines[0]["predicted_descent"], lines[0]["backbone_distance"]) == (0.0, 0.0)
    told, first, last = run.summary["treatment"], lines[0], lines[-1]
    assert told["gradient_squared"] == [first["gradient_squared"], last["gradient_squared"]]
    assert (told["predicted_descent"], told["backbone_distance"]) == (
        last["predicted_descent"],
        last["backbone_distance"],
    )
    predicted, error = 0.0, 0.0
    assert lines[0]["predicted_descent_error"] == 0.0
    for number, line in enumerate(lines[1:]):
        rate = 1e-4 * sum(factors[2 * number : 2 * number + 2])
        error += rate * (lines[number]["gradient_squared_error"] + line["gradient_squared_error"]) / 2
        assert line["predicted_descent_error"] == pytest.approx(error)
        predicted += rate * (lines[number]["gradient_squared"] + line["gradient_squared"]) / 2
        assert line["predicted_descent"] == pytest.approx(predicted)


def test_rewards_that_a_measurement_asks_for_are_no_part_of_the_steps(configured):
    method = {"name": "mezo", "rule": {"lr": 0.0}, "estimator": {"epsilon": 1e-9}}
    runs = [
        train(
            configured(name, method, steps=2, treatment_steps=each),
            reward=lambda example, prediction: len(example.prompt),
        )
        for name, each in (("run", 1), ("bare", None))
    ]
    told = [
        [{k: v for k, v in line.items() if k.startswith("reward")} for line in lines_of(run, "step")] for run in runs
    ]
    assert told[0] == told[1]
    assert told[0][0]


@pytest.mark.parametrize("evaluator", ["in-forward", "in-place"])
def test_an_objective_without_a_gradient_is_measured_along_directions(configured, evaluator):
    method = {"name": "mezo", "estimator": {"epsilon": 0.1}, "rule": {"lr": 1e-4}, "evaluator": evaluator}
    made = {"objective": "accuracy", "treatment_directions": 3, "steps": 2}
    run = train(configured("run", method, **made))
    first, last = lines_of(run, "treatment")
    assert (first["measured_queries"], first["measured_backwards"]) == (2 * 3 * 4, 0)
    assert first["gradient_squared_error"] >= 0
    assert last["predicted_descent"] == pytest.approx(1e-4 * (first["gradient_squared"] + last["gradient_squared"]))
    bare = train(configured("bare", method, objective="accuracy", steps=2, treatment_steps=None))
    assert run.trajectory.read_bytes() == bare.trajectory.read_bytes()
    assert run.summary["parts"] == bare.summary["parts"]
    assert run.summary["queries"] == bare.summary["queries"] == 2 * 2 * 4


@pytest.mark.parametrize(
    "method",
    [
        {"name": "mezo", "mask": {"name": "random", "density": 0.5}},
        {"name": "mezo", "normalize_by_std": True},
        {"name": "mezo", "rule": {"displacement_decay": 0.1}},
        {"name": "mezo", "rule": "sign"},
        {"name": "bilevel", "inner_steps": 1, "backbone_update": "random"},
    ],
)
def test_no_descent_is_predicted_of_steps_that_are_not_sgds(configured, method):
    lines = lines_of(train(configured("run", method, steps=2)), "treatment")
    assert [line["predicted_descent"] for line in lines] == [0.0, None]


def test_steps_that_do_not_move_theta_descend_nothing(configured):
    method = {"name": "two-stage", "adapter_steps": 2, "rule": {"lr": 1e-4}}
    lines = lines_of(train(configured("run", method, steps=4)), "treatment")
    assert lines[1]["predicted_descent"] == lines[1]["backbone_distance"] == 0.0
    squared = [line["gradient_squared"] for line in lines]
    assert lines[2]["predicted_descent"] == pytest.approx(1e-4 * (squared[1] + squared[2]))
    assert lines[2]["backbone_distance"] > 0


@pytest.mark.parametrize(
    ("method", "moves"),
    [
        ({"name": "first-order"}, False),
        ({"name": "first-order", "parameters": "all", "lr": 1e-3}, True),
        ({"name": "bilevel", "backbone_update": "frozen", "inner_steps": 1}, False),
    ],
)
def test_without_zeroth_order_steps_the_gradient_in_the_models_own_weights_is_measured(configured, method, moves):
    """What is left there beside a trained adapter, and how far first-order steps have moved them."""
    run = train(configured("run", method, steps=2))
    before = train(configured("mezo", {"name": "mezo"}, steps=2))
    first, last = lines_of(run, "treatment")
    assert first["gradient_squared"] == pytest.approx(lines_of(before, "treatment")[0]["gradient_squared"], rel=1e-4)
    assert first["predicted_descent"] is last["predicted_descent"] is None
    assert (last["backbone_distance"] > 0) == moves


def test_the_distance_is_that_of_bilevels_own_log(configured):
    run = train(configured("run", {"name": "bilevel", "inner_steps": 1, "rule": {"lr": 1e-3}}, steps=2))
    own = lines_of(run, "step")[-1]["backbone_distance"]
    assert lines_of(run, "treatment")[-1]["backbone_distance"] == pytest.approx(own, rel=0.05)


def test_a_run_that_goes_on_counts_on(configured):
    """As one that was killed after its second checkpoint."""
    import shutil

    method = {"name": "bilevel", "inner_steps": 1}
    whole = train(configured("whole", method, save_steps=3, treatment_steps=2))
    config = configured("run", method, save_steps=3, treatment_steps=2)

    from zofo.training.checkpoint import Checkpoints

    kept = []
    inner = Checkpoints.clear
    try:
        Checkpoints.clear = lambda self: kept.append(self)  # the run is as it was before its end
        run = train(config)
    finally:
        Checkpoints.clear = inner
    for path in sorted((run.path / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-00000003"]  # it goes on from there
    (run.path / "summary.json").unlink()
    again = train(config)
    drop = ("seconds", "measured_seconds")
    first, second = (
        [{k: v for k, v in line.items() if k not in drop} for line in lines_of(one, "treatment")]
        for one in (whole, again)
    )
    assert first == second


@pytest.mark.parametrize(
    ("method", "training", "message"),
    [
        ({"name": "zero-shot"}, {}, "this method makes none"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(configured, method, training, message):
    config = configured("run", method, **training)
    with pytest.raises(ConfigError, match=message):
        train(config)
    assert not config.output_dir.exists()


def test_half_precision_is_measured_in_float32():
    model = LeastSquares(dtype=torch.bfloat16)
    exact = LeastSquares()
    found = measure(
        build(model, **PLAIN, evaluator="in-forward", noise="low-rank").backbone, training_context(model), range(12)
    )
    there = measure(build(exact, **PLAIN).backbone, training_context(exact), range(12))
    assert found.gradient_squared == pytest.approx(there.gradient_squared, rel=0.05)
