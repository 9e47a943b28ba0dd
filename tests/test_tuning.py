"""The largest stable learning rate, found by trials; and the defaults that measurements led to."""

import json

import pytest
import torch

from conftest import review_rows, with_soak, write_rows
from zofo import read_config
from zofo.errors import ConfigError
from zofo.training import prepare_run, tune_lr


@pytest.fixture(scope="module")
def config(model_folder, tmp_path_factory):
    rows = tmp_path_factory.mktemp("rows")
    write_rows(rows / "train.jsonl", review_rows(60))
    write_rows(rows / "validation.jsonl", review_rows(12, 60))

    def build(lr=1e-3, **method):
        method = {"name": "mezo", "batch_size": 8, "rule": {"lr": lr}, **method}
        return read_config(model=str(model_folder), task={"name": "sst2", "data_dir": str(rows)}, method=method)

    return build


@pytest.fixture(scope="module")
def searches(config):
    """What was found from below and from far above, each with what was told meanwhile."""
    made = []
    for lr in (4e-3, 10.0):
        told = []
        made.append((tune_lr(config(lr), steps=4, on_progress=told.append), told))
    return made


def test_the_search_ends_between_a_stable_and_an_unstable_rate(searches):
    for found, _ in searches:
        tried = {trial.lr: trial.stable for trial in found.trials}
        assert tried[found.largest]
        assert not tried[2 * found.largest]
        assert found.lr == found.largest / 4
        ratios = [b.lr / a.lr for a, b in zip(found.trials, found.trials[1:], strict=False)]
        assert set(ratios) == {2.0 if found.trials[0].stable else 0.5}
    assert [found.trials[0].stable for found, _ in searches] == [True, False]


def test_a_trial_is_stable_if_its_loss_rose_by_no_more_than_a_fiftieth_and_the_weights_stayed_near(searches):
    for found, _ in searches:
        assert all(trial.stable == (trial.loss <= 1.02 * found.loss and trial.distance < 0.5) for trial in found.trials)


def test_weights_that_went_far_away_are_unstable_however_low_their_loss(searches):
    far = [trial for trial in searches[1][0].trials if trial.lr >= 5]
    assert len(far) == 2
    assert all(trial.distance >= 0.5 for trial in far)


def test_what_is_told_is_what_was_tried_and_all_work_is_counted(searches):
    assert all(tuple(told) == found.trials for found, told in searches)
    found, told = searches[0]
    assert all(trial.loss < float("inf") for trial in told)  # so that no trial ended early
    judged = 40  # all of the training split, once before the trials and once after each
    assert found.counts.queries == judged * (1 + len(told)) + 4 * 16 * len(told)


@pytest.mark.parametrize("rule", ["sgd", "sign", "dense-adam"])
def test_the_weights_are_as_before_to_the_bit(config, rule):
    given = config(rule={"name": rule, "lr": 1e-2})
    prepared = prepare_run(given, splits=("train",))
    before = {name: tensor.clone() for name, tensor in prepared.loaded.model.state_dict().items()}
    tune_lr(given, steps=3, prepared=prepared)
    assert all(torch.equal(tensor, before[name]) for name, tensor in prepared.loaded.model.state_dict().items())


@pytest.mark.parametrize("adapter", with_soak(["lora", "prefix"], ["lora"]))
def test_every_trial_of_an_adapter_starts_from_its_start(config, adapter):
    """A model carries an adapter only once, so that each trial has a model of its own."""
    found = tune_lr(config(1e-2, adapter=adapter), steps=3)
    assert len(found.trials) >= 2
    again = tune_lr(config(found.trials[1].lr, adapter=adapter), steps=3)
    assert again.trials[0] == found.trials[1]
    assert again.loss == found.loss


def test_rates_that_are_all_stable_are_said_to_be(config):
    with pytest.raises(ConfigError, match="every learning rate from 1.0e-30 to .* was stable") as caught:
        tune_lr(config(1e-30), steps=1)
    assert "begin higher" in caught.value.hint


def test_a_method_without_zeroth_order_steps_of_its_own_is_refused(config):
    for name in ("bilevel", "first-order"):
        with pytest.raises(ConfigError, match=f"not that of '{name}'") as caught:
            tune_lr(read_config(method=name))
        assert "method=mezo" in caught.value.hint


def test_the_command_prints_what_it_tried_and_what_to_type(run_zofo, model_folder, data_dir):
    given = [f"model={model_folder}", "task=sst2", "--data-dir", data_dir, "method=mezo", "method.batch_size=8"]
    given += ["method.rule.lr=0.02"]
    code, out, err = run_zofo("tune", "lr", *given, "--steps", "3")
    assert code == 0
    assert "method.rule.lr=" in out
    assert "after 3 steps, unstable" in err
    code, out, _ = run_zofo("tune", "lr", *given, "--steps", "3", "--json")
    assert code == 0
    assert json.loads(out)["lr"] == json.loads(out)["largest"] / 4


def test_defaults_follow_the_directions():
    def lr(**method):
        return read_config(method={"name": "mezo", **method}).method.rule.options["lr"]

    assert lr() == lr(num_directions=2) == lr(noise="gaussian") == 5e-5
    assert lr(num_directions=3) == lr(directions="per-example") == 1e-4
    assert lr(normalize_by_std=True) == 6e-3
    assert lr(rule={"lr": 1e-6}, normalize_by_std=True) == 1e-6
    assert lr(rule="sign") == 1e-6


def test_defaults_follow_the_noise_and_the_number_type():
    def method(dtype, **parts):
        return read_config(model={"dtype": dtype}, method={"name": "mezo", **parts}).method

    assert method("float32").estimator.options["epsilon"] == 1e-3
    assert method("bfloat16").estimator.options["epsilon"] == 3e-3
    assert method("float16", estimator="one-sided").estimator.options["epsilon"] == 3e-3
    assert method("bfloat16", estimator={"epsilon": 1e-2}).estimator.options["epsilon"] == 1e-2
    assert method("float32").evaluator.name == "in-forward"
    assert method("float32", noise="rademacher").evaluator.name == "in-place"
    assert method("float32", evaluator="in-place").evaluator.name == "in-place"


@pytest.mark.parametrize(("method", "hint"), [("first-order", "add method=mezo"), ("bilevel", "and the same noise")])
def test_a_method_whose_rate_it_does_not_find_is_told_what_to_type(method, hint):
    with pytest.raises(ConfigError, match=f"not that of '{method}'") as refused:
        tune_lr(read_config(overrides=[f"method={method}"]))
    assert hint in refused.value.hint
