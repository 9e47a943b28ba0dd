"""Two-stage: a first-order adapter, then a zeroth-order backbone, each as its own method makes it."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from conftest import build_model, build_tokenizer
from zofo import FirstOrder, FirstOrderConfig, RunFolder, TrainingContext, evaluate_run, read_config, train
from zofo.errors import ConfigError
from zofo.methods import METHODS, TwoStage, TwoStageConfig
from zofo.objectives import candidate_scores, classification_loss
from zofo.tasks import Example, collate, encode
from zofo.trajectory.format import Trajectory

FIRST, SIZE = 3, 4
SHORT = {"batch_size": SIZE, "adapter_steps": FIRST}


@pytest.fixture(scope="module")
def context():
    tokenizer = build_tokenizer()
    texts = ("a joy", "it drags on and on", "warm and funny")
    examples = [
        Example(f"{texts[i % 3]} film number {i} . It was", (" terrible", " great"), (i % 2,)) for i in range(24)
    ]
    encoded = encode(tokenizer, examples)
    base = build_model("llama", len(tokenizer))

    def fresh():
        make = lambda chosen: collate(chosen, 0, torch.device("cpu"))  # noqa: E731
        return TrainingContext(copy.deepcopy(base), classification_loss, encoded, make, seed=3)

    return fresh


def theta_of(model):
    return {
        name.replace(".base_layer", ""): p.detach().clone()
        for name, p in model.named_parameters()
        if not any(part in name for part in ("lora_", "ia3_", "prompt_encoder"))
    }


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3", "prefix", "prompt"])
def test_the_first_stage_is_first_order_and_the_second_leaves_the_adapter_alone(context, adapter):
    one, two = context(), context()
    start = theta_of(one.model)
    method = TwoStage(TwoStageConfig(**SHORT, adapter=adapter, rule={"lr": 1e-3}), one)
    alone = FirstOrder(FirstOrderConfig(batch_size=SIZE, adapter=adapter), two)
    method.check()
    for number in range(FIRST):
        log, expected = method.step(number), alone.step(number)
        assert (log.loss, log.counts, log.update) == (expected.loss, expected.counts, None)
    adapters = [tensor.detach().clone() for tensor in method._p]
    assert all(torch.equal(a, b) for a, b in zip(adapters, alone.trained, strict=True))
    with method.using("adapter"):
        assert all(torch.equal(tensor, start[name]) for name, tensor in theta_of(one.model).items())
    for number in range(FIRST, FIRST + 2):
        log = method.step(number)
        assert log.counts.backwards == 0
        assert log.counts.queries == 2 * SIZE
        assert {key.step for key in log.update.displacement} == {number}
        assert set(log.coefficients) == {"projected_gradient_0"}
    with method.using("adapter"):
        now = theta_of(one.model)
    assert all(torch.equal(a, b) for a, b in zip(adapters, method._p, strict=True))
    assert any(not torch.equal(tensor, start[name]) for name, tensor in now.items())


def test_the_second_stage_descends_the_loss_with_the_adapter(context):
    """What a zeroth-order step asks for is the loss with the adapter, at theta plus and minus epsilon z."""
    one = context()
    config = TwoStageConfig(
        **SHORT, noise="gaussian", evaluator="in-place", estimator={"epsilon": 1e-2}, lr_adapter=0.1
    )
    method = TwoStage(config, one)
    for number in range(FIRST):
        method.step(number)
    batch, point = method._batches[FIRST], method._zo.estimator.ask(method._zo.directions(FIRST))[0]
    losses = []
    with torch.no_grad():
        for sign in (1, -1):
            method.backbone.apply_(point * sign)
            losses.append(classification_loss(one.model, batch).mean().item())
            method.backbone.apply_(point * -sign)
    slope = (losses[0] - losses[1]) / 2e-2
    assert method.step(FIRST).coefficients["projected_gradient_0"] == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_a_budget_pays_for_both_stages(context):
    method = TwoStage(TwoStageConfig(**SHORT, num_directions=2), context())
    dear = 4 * SIZE
    for budget, steps in (
        (SIZE - 1, 0),
        (SIZE, 1),
        (FIRST * SIZE, FIRST),
        (FIRST * SIZE + dear - 1, FIRST),
        (FIRST * SIZE + 2 * dear, FIRST + 2),
    ):
        assert method.steps_within(budget) == steps
        assert sum(method.step(number).counts.queries for number in range(steps)) <= budget


@pytest.mark.parametrize("estimator", ["two-sided", "one-sided"])
def test_steps_that_end_in_the_first_stage_are_refused_with_what_to_type(context, estimator):
    config = TwoStageConfig(**SHORT, num_directions=3, estimator=estimator)
    method = TwoStage(config, context())
    method.check_steps(FIRST + 1)
    with pytest.raises(ConfigError, match=f"takes {FIRST} steps on its adapter, .* none of {FIRST} ") as refused:
        method.check_steps(FIRST)
    assert f"training.steps={2 * FIRST}, or training.max_queries=" in refused.value.hint
    enough = int(refused.value.hint.split("training.max_queries=")[1].split()[0])
    assert method.steps_within(enough) == 2 * FIRST
    assert method.steps_within(enough - 1) == 2 * FIRST - 1


# whole runs


@pytest.fixture
def configured(model_folder, data_dir, tmp_path):
    def configure(name="run", method=(), **training):
        return read_config(
            model=str(model_folder),
            task={"data_dir": str(data_dir)},
            method={"name": "two-stage", **SHORT, "rule": {"lr": 1e-2}, **dict(method)},
            training={"steps": 6, "eval_steps": 1, "eval_batch_size": 8, **training},
            output_dir=str(tmp_path / name),
        )

    return configure


def lines_of(run, event):
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize("adapter", ["lora", "prefix", "prompt"])
def test_a_run_replays_its_second_stage(configured, adapter):
    assert METHODS["two-stage"] is TwoStage
    run = train(configured(method={"adapter": adapter}))
    trajectory = Trajectory.read(run.trajectory)
    assert trajectory.steps == FIRST + 3
    assert "adapter" not in trajectory.header
    assert len(trajectory.updates) == 3
    assert set(run.summary["variants"]) == {"adapter"}
    assert evaluate_run(run.path).loss == pytest.approx(run.summary["loss"], abs=1e-5)
    assert RunFolder.open(run.path).config.method.adapter.name == adapter


@pytest.mark.parametrize("seed", range(4))
def test_the_best_model_has_the_updates_that_it_had(configured, seed):
    run = train(configured(seed=seed, method={"rule": {"lr": 0.05}, "lr_adapter": 1e-2}))
    best = run.summary["best"]
    (then,) = [line for line in lines_of(run, "evaluation") if line["steps"] == best["step"]]
    assert evaluate_run(run.path, best=True).loss == pytest.approx(then["loss"], abs=1e-5)


def test_a_budget_of_queries_that_pays_for_no_step_is_refused(configured):
    run = train(configured(max_queries=FIRST * SIZE + 2 * SIZE * 2))
    assert run.summary["queries"] == FIRST * SIZE + 2 * SIZE * 2
    assert len(lines_of(run, "step")) == FIRST + 2
    with pytest.raises(ConfigError, match=f"one step of 'two-stage' takes {SIZE}"):
        train(configured("none", max_queries=SIZE - 1))


def test_a_run_that_would_not_get_to_its_second_stage_is_refused(configured, tmp_path):
    for queries, steps in ((FIRST * SIZE, FIRST), (FIRST * SIZE + 2 * SIZE - 1, FIRST), (SIZE, 1)):
        with pytest.raises(
            ConfigError, match=f"method=two-stage takes {FIRST} steps on its adapter, .*none of {steps} "
        ):
            train(configured("short", max_queries=queries))
        assert not (tmp_path / "short").exists()
    with pytest.raises(ConfigError, match=f"none of {FIRST} for the backbone"):  # before a model is loaded
        configured("short", steps=FIRST)


def test_the_saved_parts_give_the_trained_model(context, tmp_path):
    from zofo.adapters import load_adapter

    one = context()
    method = TwoStage(TwoStageConfig(**SHORT, rule={"lr": 1e-3}), one)
    for number in range(FIRST + 2):
        method.step(number)
    with method.using("adapter"):
        method.save(tmp_path)
        fresh = context()
        batch = one.collate(one.examples[:4])
        with torch.no_grad():
            for name, parameter in fresh.model.named_parameters():
                parameter.copy_(theta_of(one.model)[name])
            load_adapter(fresh.model, tmp_path / "adapter")
            torch.testing.assert_close(candidate_scores(fresh.model, batch), candidate_scores(one.model, batch))
