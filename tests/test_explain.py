"""`zofo config`: every key, with where its value comes from."""

from __future__ import annotations

import json

import pytest

from zofo.errors import ConfigError
from zofo.overrides import flat
from zofo.training import explain_config, read_config


def found(*overrides, file=None):
    return {one.key: one for one in explain_config(file, overrides)}


def test_every_key_of_the_resolved_tree_is_there_with_its_value():
    overrides = ["method=mezo", "method.adapter=lora", "training.steps=7"]
    resolved = dict(flat(read_config(None, overrides).model_dump(mode="json")))
    assert {key: one.value for key, one in found(*overrides).items()} == resolved


def test_what_was_typed_what_stands_in_a_file_and_what_is_a_default_are_told_apart(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("method: {name: mezo, batch_size: 4}\ntraining: {steps: 7}\n", encoding="utf-8")
    one = found("training.seed=3", "method.batch_size=8", file=str(file))
    assert one["training.seed"].source == one["method.batch_size"].source == "command line"
    assert one["training.steps"].source == one["method.name"].source == str(file)
    assert one["training.eval_batch_size"].source == "default"


@pytest.mark.parametrize(
    ("deciding", "key"),
    [
        ("method.adapter=lora", "method.rule.lr"),
        ("method.adapter=lora", "method.estimator.epsilon"),
        ("method.noise=gaussian", "method.evaluator.name"),
        ("method.num_directions=4", "method.rule.lr"),
        ("model.dtype=bfloat16", "method.estimator.epsilon"),
        ("method=in-context", "task.demonstrations"),
    ],
)
def test_a_default_that_another_key_decides_names_that_key(deciding, key):
    given = [deciding] if deciding.startswith("method=") else ["method=mezo", deciding]
    assert found(*given)[key].source == f"default for {deciding}"


def test_a_part_that_was_named_has_its_options_by_default():
    one = found("method=mezo", "method.rule=sign")
    assert one["method.rule.name"].source == "command line"
    assert one["method.rule.lr"].source.startswith("default")


def test_keys_have_a_sentence():
    silent = [key for key, one in found("method=mezo").items() if not one.about]
    assert silent == []
    assert found()["training.seed"].about.endswith("depend on it alone.")


def test_the_verb(run_zofo):
    code, out, _ = run_zofo("config", "training.steps=7", "--json")
    assert code == 0
    (steps,) = [one for one in json.loads(out) if one["key"] == "training.steps"]
    assert (steps["value"], steps["source"]) == (7, "command line")
    code, out, _ = run_zofo("config", "method=mezo")
    assert code == 0
    assert "method.rule.lr" in out
    code, _, err = run_zofo("config", "training.stpes=7")
    assert (code, "did you mean 'steps'?" in err) == (2, True)


def test_a_configuration_that_is_wrong_is_refused():
    with pytest.raises(ConfigError, match="unknown key"):
        explain_config(None, ["nothing=1"])


@pytest.mark.parametrize(("key", "value"), [("epochs", 2.5), ("queries", 900)])
def test_steps_that_another_key_takes_the_place_of_say_so(key, value):
    one = found(f"training.{key}={value}")
    assert (one[f"training.{key}"].value, one[f"training.{key}"].source) == (value, "command line")
    assert one["training.steps"].source == f"default, without effect: training.{key} says how long"
    assert found()["training.steps"].source == "default"
