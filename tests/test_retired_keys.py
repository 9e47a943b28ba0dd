"""Keys that were renamed: one that is typed is refused with its name of today, and one that was recorded is read."""

import json
import shutil

import pytest
import yaml

from zofo.config import parse_model
from zofo.errors import ConfigError
from zofo.objectives import objective_maker
from zofo.retired_keys import OF_RUNS, run_as_now
from zofo.studies.config import StudyConfig
from zofo.tasks import load_task
from zofo.training import read_config, train
from zofo.training.identity import task_hash
from zofo.training.inference import evaluate_run

PARTS = {  # what must be chosen for a key to be there
    "method.layers": ["method=first-order"],
    "method.pair": ["method=svrg"],
    "method.anneal_above": ["method=svrg"],
    "method.anneal_by": ["method=svrg"],
    "method.adapters": ["method=meta-bilevel"],
    "method.mask.every": ["method.mask=random"],
    "method.mask.blocks": ["method.mask=rotation"],
    "method.adapter.tokens": ["method.adapter=prefix"],
    "method.adapter.start": ["method.adapter=prefix"],
}


@pytest.mark.parametrize("key", OF_RUNS)
def test_a_retired_key_is_unknown_and_its_error_names_the_one_of_today(key):
    with pytest.raises(ConfigError) as refused:
        read_config(None, ["method=bilevel", *PARTS.get(key, []), f"{key}=1"])
    assert key in refused.value.message
    assert refused.value.hint == f"it is called {OF_RUNS[key].rpartition('.')[2]!r} now"


@pytest.mark.parametrize(("key", "now"), [("base", "defaults"), ("seeded", "seed_keys"), ("measure", "split")])
def test_so_is_one_of_a_study(key, now):
    with pytest.raises(ConfigError) as refused:
        parse_model(StudyConfig, {"methods": {"mezo": {}}, "budget": {"steps": 1}, "seeds": [0], key: "x"})
    assert refused.value.hint == f"it is called {now!r} now"


def old(tree):
    """A configuration with the keys that it would have had."""
    then = {now: key for key, now in OF_RUNS.items() if key != "method.layers"}

    def renamed(below, where):
        return {
            then.get(where + key, where + key).rpartition(".")[2]: renamed(value, f"{where}{key}.")
            if isinstance(value, dict)
            else value
            for key, value in below.items()
        }

    return renamed(tree, "")


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=svrg", "method.mask=random", "training.max_queries=9000", "task.num_fewshot=2"],
        ["method=mezo", "method.adapter=prefix", "method.mask=rotation", "training.num_evals=3"],
        ["method=meta-bilevel", "task.tasks=[sst2,rte]", "task.held_out_tasks=[cb]", "training.eval_steps=7"],
    ],
)
def test_a_recorded_configuration_is_read_with_either_name(overrides):
    tree = read_config(None, overrides).model_dump(mode="json")
    assert old(tree) != tree
    assert run_as_now(old(tree)) == run_as_now(tree) == tree


@pytest.mark.parametrize(
    "method",
    [
        {"name": "of-a-guest", "layers": ["a"], "pair": "b"},
        {"name": "mezo", "mask": {"name": "of-a-guest", "share": 0.5}, "adapter": {"name": "of-a-guest", "start": 1}},
    ],
)
def test_an_option_of_a_part_of_another_package_keeps_its_name(method):
    assert run_as_now({"method": method}) == {"method": method}


def test_partial_is_all_with_trainable():
    then = {"method": {"name": "first-order", "parameters": "partial", "layers": ["*.1.*"]}}
    assert run_as_now(then) == {"method": {"name": "first-order", "parameters": "all", "trainable": ["*.1.*"]}}


def test_the_objective_f1_is_token_f1_in_what_was_recorded_and_an_error_where_it_is_typed():
    then = {"training": {"objective": "f1", "steps": 3}, "method": {"name": "bilevel", "upper_objective": "f1"}}
    now = {
        "training": {"objective": "token-f1", "steps": 3},
        "method": {"name": "bilevel", "upper_objective": "token-f1"},
    }
    assert run_as_now(then) == run_as_now(now) == now
    with pytest.raises(ConfigError, match="the objective 'f1' is called 'token-f1', as the metric is") as refused:
        objective_maker("f1")
    assert refused.value.hint == "type token-f1 instead of f1"


HASHES = {  # as they were before two of their keys had other names
    "cb": "sha256:ff0a9a2168152863970d6ee68a96d41759f3e5ab7d827f5b37b29856fa229ad7",
    "squad": "sha256:2602bf36ebb93085fb6ac1e9edb0044cb2e1c11a8d6b85bdf004bc712ce3146b",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_task_keeps_its_hash(name):
    assert task_hash(load_task(name)) == HASHES[name]


def test_a_run_folder_of_old_keys_is_scored_and_goes_on(model_folder, data_dir, tmp_path):
    given = {
        "model": str(model_folder),
        "task": {"name": "sst2", "data_dir": str(data_dir), "split_sizes": {"train": 16, "validation": 4}},
        "method": {"name": "mezo", "batch_size": 4, "mask": {"name": "random", "density": 0.5}},
        "training": {"steps": 4, "save_steps": 2},
    }
    run = train(read_config(**given, output_dir=str(tmp_path / "now")))
    then = tmp_path / "then"
    shutil.copytree(run.path, then)
    config = yaml.safe_load((then / "config.yaml").read_text())
    (then / "config.yaml").write_text(yaml.safe_dump(old(config)))
    environment = json.loads((then / "environment.json").read_text())
    environment["configuration"] = old(environment["configuration"])
    (then / "environment.json").write_text(json.dumps(environment))
    assert "max_queries" not in (then / "config.yaml").read_text()
    first, second = evaluate_run(run.path), evaluate_run(then)
    assert first == second
    (then / "summary.json").unlink()  # as if it had been killed before its end
    again = train(read_config(then / "config.yaml"))
    assert again.summary["backbone"] == run.summary["backbone"]
