"""`zofo config`: every key, with where its value comes from."""

from __future__ import annotations

import json

import pytest

from zofo.errors import ConfigError
from zofo.training import explain_config, read_config
from zofo.trees import flatten


def found(*overrides, file=None):
    return {one.key: one for one in explain_config(file, overrides)}


def test_every_key_of_the_resolved_tree_is_there_with_its_value():
    overrides = ["method=mezo", "method.adapter=lora", "training.steps=7"]
    resolved = dict(flatten(read_config(None, overrides).model_dump(mode="json")))
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
        ("method=in-context", "task.num_fewshot"),
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


@pytest.mark.parametrize(("key", "value"), [("epochs", 2.5), ("max_queries", 900)])
def test_steps_that_another_key_takes_the_place_of_say_so(key, value):
    one = found(f"training.{key}={value}")
    assert (one[f"training.{key}"].value, one[f"training.{key}"].source) == (value, "command line")
    assert one["training.steps"].source == f"default, without effect: training.{key} says how long"
    assert found()["training.steps"].source == "default"


FILE = "method: {name: mezo, batch_size: 4, rule: {name: sgd, lr: 0.5}}\n"


@pytest.mark.parametrize(
    ("text", "overrides", "sources"),
    [
        ("", ["method=mezo", "method.rule={name: sgd, lr: 1}"], {"method.rule.lr": "command line"}),
        ("", ["method={name: mezo, batch_size: 4}"], {"method.batch_size": "command line"}),
        ("", ["method=mezo", "method.lr=1e-3"], {"method.rule.lr": "command line"}),
        ("method: {name: mezo, lr: 0.001}\n", [], {"method.rule.lr": "FILE"}),
        ("", ["task.verbalizers={0: bad, 1: good}"], {"task.verbalizers.0": "command line"}),
        (FILE, ["method=bilevel"], {"method.batch_size": "default", "method.rule.lr": "default"}),
        (FILE, ["method.rule=sign"], {"method.batch_size": "FILE", "method.rule.lr": "default for method.rule=sign"}),
        ("method: {name: mezo, adapter: lora}\n", [], {"method.estimator.epsilon": "default for method.adapter=lora"}),
        (FILE, ["method.lr=1e-3"], {"method.rule.lr": "command line", "method.batch_size": "FILE"}),
    ],
)
def test_each_key_is_credited_to_what_gave_it(tmp_path, text, overrides, sources):
    file = tmp_path / "given.yaml"
    file.write_text(text or "{}\n", encoding="utf-8")
    one = found(*overrides, file=str(file))
    assert {key: one[key].source.replace(str(file), "FILE") for key in sources} == sources


def test_a_plain_lr_wins_over_what_a_file_or_a_recipe_says_of_the_rule(tmp_path):
    file = tmp_path / "given.yaml"
    file.write_text(FILE, encoding="utf-8")
    assert read_config(file, ["method.lr=0.25"]).method.rule.options["lr"] == 0.25
    recipe = read_config("opt-1.3b-mezo", ["method.lr=0.25", "task=sst2"])
    assert recipe.method.rule.options["lr"] == 0.25
