"""The file of a study: what it means, and what is said to mistakes in it; nothing is run here."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from zofo.errors import ConfigError, DataError, UnknownNameError
from zofo.studies import read_study
from zofo.training import TrainingConfig
from zofo.trees import get_by_path, merge_trees

TOY = {
    "about": "Which is better?",
    "defaults": {"problem": {"name": "least-squares", "examples": 40, "dimensions": 4}},
    "budget": {"queries": 800},
    "seeds": [0, 1],
    "methods": {
        "mezo": {
            "method": {"name": "mezo", "noise": "gaussian", "batch_size": 8},
            "trials": [{"method.rule.lr": 1e-2}, {"method.rule.lr": 1e-3}],
        },
        "sgd": {
            "method": {"name": "first-order", "parameters": "all", "optimizer": "sgd", "batch_size": 8},
            "trials": [{"method.lr": 1e-1}, {"method.lr": 1e-2}],
        },
    },
    "search": {"budget": {"queries": 160}},
}


@pytest.fixture
def read(tmp_path):
    def make(content, *overrides, **options):
        path = tmp_path / "toy.yaml"
        path.write_text(
            content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8"
        )
        return read_study(path, overrides, **options)

    return make


def toy(**changes):
    return {**TOY, **changes}


def task_study(tmp_path, **changes):
    (tmp_path / "data" / "sst2").mkdir(parents=True, exist_ok=True)
    content = {
        "defaults": {"model": "somewhere/tiny"},
        "tasks": {"sst2": {"task": {"name": "sst2", "data_dir": str(tmp_path / "data" / "sst2")}}},
        "budget": {"queries": 100},
        "seeds": [0],
        "methods": {"mezo": {"method": {"name": "mezo"}}},
    }
    return {**content, **changes}


# trees


def test_trees_are_laid_over_one_another_key_by_key():
    one = {"method": {"name": "mezo", "rule": {"lr": 1.0}}, "training": {"seed": 3}}
    assert merge_trees(one, {"method.rule.lr": 2.0, "training": {"objective": "answer"}}) == {
        "method": {"name": "mezo", "rule": {"lr": 2.0}},
        "training": {"seed": 3, "objective": "answer"},
    }
    assert one["method"]["rule"] == {"lr": 1.0}  # what was given is as before


def test_a_name_joins_a_group_without_one_and_replaces_a_group_with_another():
    assert merge_trees({"method": {"batch_size": 3}}, {"method": {"name": "mezo"}})["method"] == {
        "batch_size": 3,
        "name": "mezo",
    }
    assert merge_trees({"method": {"name": "mezo", "batch_size": 3}}, {"method": {"lr": 1, "name": "first-order"}}) == {
        "method": {"name": "first-order", "lr": 1}
    }


def test_keys_that_are_no_text_are_values():
    tree = merge_trees({"task": {"name": "sst2", "verbalizers": {0: " bad", 1: " good"}}})
    assert get_by_path(tree, "task.verbalizers") == {0: " bad", 1: " good"}


# runs


def test_every_run_is_there_once_with_its_seed_setting_and_budget(read):
    grid = read(TOY).grid
    assert [(run.method, run.trial, run.seed) for run in grid.trials] == [
        ("mezo", 0, 1000),
        ("mezo", 1, 1000),
        ("sgd", 0, 1000),
        ("sgd", 1, 1000),
    ]
    assert [run.tree["training"]["max_queries"] for run in grid.trials] == [160] * 4
    assert [run.tree["method"]["rule"]["lr"] for run in grid.trials[:2]] == [1e-2, 1e-3]
    (cell,) = grid.cells
    finals = grid.finals("sgd", cell, 1)
    assert [(run.seed, run.tree["training"]["seed"]) for run in finals] == [(0, 0), (1, 1)]
    assert {(run.tree["method"]["lr"], run.tree["training"]["max_queries"]) for run in finals} == {(1e-2, 800)}


def test_a_trial_is_no_longer_than_the_budget_of_its_method(read):
    """A method that needs fewer queries is not searched with more."""
    short = {**TOY["methods"]["sgd"], "budget": {"queries": 40}}
    grid = read(toy(methods={**TOY["methods"], "sgd": short})).grid
    assert [run.tree["training"]["max_queries"] for run in grid.trials] == [160, 160, 40, 40]
    assert {run.tree["training"]["max_queries"] for run in grid.final_runs if run.method == "sgd"} == {40}


def test_only_final_runs_read_the_test_split(read):
    grid = read(TOY).grid
    assert not any(run.tree["training"]["eval_on_test"] for run in grid.trials)
    assert all(run.tree["training"]["eval_on_test"] for run in grid.final_runs)
    assert not any(run.tree["training"]["eval_on_test"] for run in read(toy(split="validation")).grid.final_runs)


def test_two_runs_have_the_same_id_only_if_their_whole_configuration_is_the_same(read):
    """A setting at the default of its method is as much a part of it as another: mezo and sgd are not one run here."""
    content = toy(
        methods={
            "mezo": {"method": {"name": "mezo", "batch_size": 16}, "trials": [{"method.rule.lr": 1e-4}]},
            "lora": {"method": {"name": "first-order", "batch_size": 16}, "trials": [{"method.lr": 1e-3}]},
            "zero": {"method": {"name": "zero-shot", "batch_size": 16}},
        },
        axes={"size": {"16": {}, "17": {"method.batch_size": 17}}},
    )
    grid = read(content).grid
    runs = [*grid.trials, *grid.final_runs]
    for one, other in itertools.combinations(runs, 2):
        assert (one.digest == other.digest) == (one.tree == other.tree), f"{one} and {other}"
    assert len({run.digest for run in grid.trials}) == len(grid.trials)


def test_the_id_does_not_depend_on_names_and_order_but_on_every_option(read):
    digests = [run.digest for run in read(TOY).grid.trials]
    renamed = dict(zip(("b", "a"), reversed(TOY["methods"].values()), strict=True))
    assert sorted(run.digest for run in read(toy(methods=renamed)).grid.trials) == sorted(digests)
    changed = read(TOY, "defaults.problem.label_noise=0.2").grid.trials
    assert not set(digests) & {run.digest for run in changed}


def test_axes_stand_over_the_methods_and_may_say_something_else_for_one(read):
    axes = {"rate": {"low": {"method.rule.lr": 1e-5, "methods": {"sgd": {"method.lr": 1e-6}}}, "none": {}}}
    methods = {name: {"method": entry["method"]} for name, entry in TOY["methods"].items()}
    grid = read(toy(axes=axes, methods=methods, search=None)).grid
    low = {run.method: run.tree["method"] for run in grid.final_runs if run.cell.axes == ("low",)}
    assert low["mezo"]["rule"]["lr"] == 1e-5
    assert low["sgd"]["lr"] == 1e-6


def test_a_method_can_be_left_out_of_a_place(read):
    axes = {"rate": {"low": {"methods": {"sgd": None}}, "high": {}}}
    entries = read(toy(axes=axes)).grid.entries
    assert [(name, cell.axes[0]) for name, cell in entries] == [("mezo", "low"), ("mezo", "high"), ("sgd", "high")]


def test_the_untrained_model_is_one_run_wherever_it_stands(read):
    axes = {"batch": {8: {"method.batch_size": 8}, 16: {"method.batch_size": 16}}}
    zero = read(toy(axes=axes, zero_shot=True)).grid.zero_shots
    assert len(zero) == 4
    assert len({run.digest for run in zero}) == 2  # a seed each


def test_a_name_alone_stands_for_the_task_of_that_name(tmp_path, read):
    grid = read(task_study(tmp_path, tasks={"sst2": None, "rte": {"task": {"name": "rte", "max_rows": 3}}})).grid
    assert [run.tree["task"]["name"] for run in grid.final_runs] == ["sst2", "rte"]


def test_seeds_set_the_split_and_the_head_too_unless_told_otherwise(tmp_path, read):
    (run,) = read(task_study(tmp_path, seeds=[5])).grid.final_runs
    keys = ("training.seed", "task.split_seed", "model.head_seed")
    assert [get_by_path(run.tree, key) for key in keys] == [5, 5, 5]
    (run,) = read(task_study(tmp_path, seeds=[5], seed_keys=["training.seed"])).grid.final_runs
    assert [get_by_path(run.tree, key) for key in keys] == [5, 0, 0]


@pytest.mark.parametrize(
    ("steps", "given", "wanted"),
    [
        (10, {"num_evals": 4}, {3, 5, 8, 10}),
        (3, {"num_evals": 8}, {1, 2, 3}),
        (8, {"num_evals": 1}, {8}),
        (7, {"eval_steps": 3}, {3, 6, 7}),
        (7, {}, {7}),
        (0, {"num_evals": 3}, {0}),
        (0, {}, {0}),
    ],
)
def test_evaluations_are_evenly_spaced_and_the_last_step_is_one_of_them(steps, given, wanted):
    assert TrainingConfig(**given).evaluated_after(steps) == wanted


def test_there_is_one_way_to_say_when_to_evaluate():
    with pytest.raises(ConfigError, match="training.num_evals and training.eval_steps"):
        TrainingConfig(num_evals=3, eval_steps=2)


# files, folders and overrides


def test_the_example_of_the_documentation_can_be_read(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "docs" / "studies.md").read_text(encoding="utf-8")
    (tmp_path / "doc.yaml").write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    study = read_study(tmp_path / "doc.yaml")
    assert len(study.grid.cells) == 4
    assert len(study.grid.trials) == 2 * (3 + 2) * 2


def test_the_example_of_a_control_can_be_read(read):
    text = (Path(__file__).parent.parent / "docs" / "studies.md").read_text(encoding="utf-8")
    example = yaml.safe_load(text.split("### Controls of a method")[1].split("```yaml\n")[1].split("```")[0])
    base = {"defaults": {"model": "somewhere/tiny", "task": "movie-reviews"}, "seeds": [0], "budget": {"queries": 160}}
    grid = read({**base, **example, "search": {"budget": {"queries": 80}}}).grid
    assert [run.method for run in grid.trials] == ["bilevel", "bilevel", "frozen", "frozen"]


def test_overrides_reach_every_part_of_the_file(tmp_path, read):
    content = toy(tasks=None, axes={"size": {"a": {"method.batch_size": 4}}})
    study = read(content, "seeds=[7]", "axes.size.a.method.batch_size=5", "methods.mezo.method.rule.weight_decay=0.5")
    assert study.config.seeds == [7]
    for run in study.grid.trials:
        assert run.tree["method"]["batch_size"] == 5
    assert {run.tree["method"]["rule"]["weight_decay"] for run in study.grid.trials[:2]} == {0.5}
    named = read(task_study(tmp_path, tasks={"sst2": None}), f"tasks.sst2.task.data_dir={tmp_path}")
    assert named.grid.final_runs[0].tree["task"] == {
        **named.grid.final_runs[0].tree["task"],
        "name": "sst2",
        "data_dir": str(tmp_path),
    }


def test_an_override_counts_over_dotted_keys_and_changes_one_of_two_that_share_an_anchor(read):
    """Names that YAML reads as booleans or numbers are names."""
    text = yaml.safe_dump({k: v for k, v in TOY.items() if k not in ("methods", "search")})
    text += "methods:\n  a: &a {method: {name: mezo}, method.rule.lr: 1.0}\n  b: *a\naxes: {size: {yes: {}, 8: {}}}\n"
    runs = read(text, "methods.a.method.rule.lr=2.0", "axes.size.8.method.batch_size=4").grid.final_runs
    found = {(run.method, *run.cell.axes): run.tree["method"] for run in runs}
    assert {place: (one["rule"]["lr"], one["batch_size"]) for place, one in found.items()} == {
        ("a", "True"): (2.0, 16),
        ("b", "True"): (1.0, 16),
        ("a", "8"): (2.0, 4),
        ("b", "8"): (1.0, 4),
    }


def test_a_template_may_stand_in_an_override_as_it_is(tmp_path, read):
    template = "tasks.sst2.task.template={{ sentence }} It was"
    study = read(task_study(tmp_path), template, "defaults.training.objective=null")
    assert study.grid.final_runs[0].tree["task"]["template"] == "{{ sentence }} It was"
    with pytest.raises(ConfigError, match="the value is not YAML"):
        read(task_study(tmp_path), "seeds=[0")
    with pytest.raises(ConfigError, match=r"'budget=\{steps: 1, steps: 2\}': steps: given twice, in line 1,"):
        read(task_study(tmp_path), "budget={steps: 1, steps: 2}")


def test_paths_are_relative_to_the_file_or_else_to_the_working_folder(tmp_path, read, monkeypatch):
    for place in ("beside", "elsewhere/here"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    tasks = {"a": {"task": {"name": "sst2", "data_dir": "beside"}}, "b": {"task": {"name": "rte", "data_dir": "here"}}}
    found = [run.tree["task"]["data_dir"] for run in read(task_study(tmp_path, tasks=tasks)).grid.final_runs]
    assert found == [str(tmp_path / "beside"), str(tmp_path / "elsewhere" / "here")]


def test_data_is_a_folder_with_a_folder_for_each_task(tmp_path, read):
    for name in ("sst2", "mine"):
        (tmp_path / "all" / name).mkdir(parents=True)
    tasks = {"sst2": None, "mine": {"task": {"name": "rte"}}, "movie-reviews": None}
    runs = read(task_study(tmp_path, tasks=tasks), data=tmp_path / "all").grid.final_runs
    assert [run.tree["task"]["data_dir"] for run in runs] == [
        str(tmp_path / "all" / "sst2"),
        str(tmp_path / "all" / "mine"),
        None,  # it brings its own rows
    ]


def test_a_task_whose_folder_is_missing_is_left_out_only_when_that_is_allowed(tmp_path, read):
    content = task_study(tmp_path, tasks={"sst2": None, "rte": None})
    with pytest.raises(DataError, match="tasks.rte: there is no folder") as refused:
        read(content, data=tmp_path / "data")
    assert "--skip-missing" in refused.value.hint
    study = read(content, data=tmp_path / "data", skip_missing=True)
    assert list(study.config.tasks) == ["sst2"]
    assert "rte is left out" in study.notes[0]
    with pytest.raises(DataError, match="no task is left"):
        read(content, data=tmp_path / "nothing", skip_missing=True)


# mistakes

METHODS = TOY["methods"]
ONE_MORE = {**METHODS["sgd"], "trials": [*METHODS["sgd"]["trials"], {"method.lr": 1.0}]}
LRS = [trial["method.rule.lr"] for trial in METHODS["mezo"]["trials"]]
WRONG_KEY = {**METHODS["mezo"], "trials": [{"method.rule.lr": 1}, {"method.rule.lrr": 1}]}


def control(of="mezo", method=METHODS["mezo"]["method"], **keys):
    """The study with a control of one of its methods."""
    return toy(methods={**METHODS, "control": {"method": method, "tuned_by": of, **keys}})


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (toy(methods={**METHODS, "sgd": ONE_MORE}), "methods.sgd has 3 trials, but methods.mezo has 2", "same number"),
        (toy(methods={**METHODS, "mezo": WRONG_KEY}), "methods.mezo, trial 2.*lrr: not an option", "did you mean 'lr'"),
        (toy(methods={"mezo": {**METHODS["mezo"], "trails": []}}), "methods.mezo.trails: unknown key", "'trials'"),
        (toy(methods={"m": {"method": {"name": "mezzo"}}}), "unknown method 'mezzo'. Did you mean 'mezo'", ""),
        (toy(methods={"m": {"training": {"objective": "answer"}}}), "no method is named", "method: {name: mezo}"),
        (toy(methods={}), "methods", ""),
        (toy(seeds=[]), "seeds", ""),
        (toy(seeds=[0, 1, 0]), "seeds: 0 is given twice.*give each seed once", ""),
        (toy(seeds=[True, False]), "seeds: True is no whole number; write for example seeds: .0, 1, 2.", ""),
        (toy(seeds=[0, "1"]), "seeds: '1' is no whole number; write for example seeds: .0, 1, 2.", ""),
        (
            toy(search={"budget": {"queries": 9}, "seeds": [True]}),
            "search.seeds: True is no whole number; .* seeds:",
            "",
        ),
        (
            toy(methods={"mezo": {**METHODS["mezo"], "seeds": [True]}}),
            "methods.mezo.seeds: True is no whole.* seeds:",
            "",
        ),
        (toy(methods={"mezo": {**METHODS["mezo"], "seeds": [4, 4]}}), "methods.mezo.seeds: 4 is given twice.*once", ""),
        (
            toy(methods={"mezo": {**METHODS["mezo"], "trials": {}}}),
            "methods.mezo.trials: expected a list.*trials: .",
            "",
        ),
        (
            toy(methods={"mezo": {**METHODS["mezo"], "trials": [{}, {"method.rule.lr": 5.0e-5}]}}),
            "methods.mezo.trials: 1 and 2 are the same setting in least-squares",
            "default",
        ),
        (
            toy(methods={"mezo": {**METHODS["mezo"], "trials": [{"method.rule.lr": 1}, {"method": {"rule.lr": 1.0}}]}}),
            "methods.mezo.trials: 1 and 2 are the same setting",
            "give each setting once",
        ),
        ("budget: {steps: 1}\nseeds: [0]\nseeds: [1]\n", "seeds: given twice, in lines 2 and 3", "keep one"),
        (
            "methods:\n  a:\n    method:\n      name: mezo\n      rule: {lr: 1}\n      rule: {lr: 2}\n",
            "methods.a.method.rule: given twice, in lines 5 and 6",
            "keep one",
        ),
        ("methods:\n  a: {trials: [{b: 1, b: 2}]}\n", "methods.a.trials.1.b: given twice", "keep one"),
        (toy(search={"budget": {"queries": 9}, "seeds": [2, 2]}), "search.seeds: 2 is given twice", ""),
        (toy(search=None), "methods.mezo has trials, but the study says not how they are judged", "search:"),
        (toy(search={"budget": {"queries": 160}, "metric": "luck"}), "search.metric", ""),
        (toy(budget={}), "a budget is a number of queries or of steps", ""),
        (toy(budget={"queries": 5, "steps": 5}), "a budget is a number of queries or of steps", ""),
        (
            toy(defaults=TOY["defaults"] | {"training": {"seed": 3}}),
            "defaults.training.seed: each of the seeds sets this",
            "seed_keys",
        ),
        (toy(budgets={}), "budgets: unknown key", "did you mean 'budget'"),
        (toy(baseline="meso"), "unknown method of baseline 'meso'. Did you mean 'mezo'", ""),
        (toy(defaults={"problm": "digits"}), "defaults.problm: unknown key", "did you mean 'problem'"),
        (toy(defaults={"problem": "digit"}), "unknown problem 'digit'. Did you mean 'digits'", ""),
        (toy(defaults={"problem": {"name": "digits", "rowz": 3}}), "problem.rowz: not an option", "'rows'"),
        (
            toy(defaults=TOY["defaults"] | {"training": {"steps": 9}}),
            "defaults.training.steps: how long a run is",
            "budget",
        ),
        (
            toy(defaults=TOY["defaults"] | {"training": {"epochs": 9}}),
            "defaults.training.epochs: how long a run is",
            "budget",
        ),
        (
            toy(defaults=TOY["defaults"] | {"training": {"objective": "answer"}}),
            "objective has no meaning for a problem",
            "",
        ),
        (toy(axes={"seed": {"a": {}}}), "axes.seed: a column of that name", ""),
        (toy(axes={"setting": {"a": {}}}), "axes.setting: a column of that name", ""),
        (toy(axes={"size": {}}), "an axis without a value", ""),
        (toy(axes={"size": {"a": {"methods": {"meso": {}}}}}), "unknown method 'meso'", ""),
        (toy(axes={"size": {"a": {"methods": {"mezo": None}}}}), "methods.mezo is left out of every cell", ""),
        (toy(methods={**METHODS, "majority": METHODS["sgd"]}), "methods.majority: a row of that name", ""),
        (toy(figure={"bands": "range"}), "figure.bands: unknown key", "did you mean 'band'"),
        (toy(figure={"x": "time"}), "figure.x: .*got 'time'", ""),
        (control(of="meso"), "unknown method of methods.control.tuned_by 'meso'. Did you mean 'mezo'", ""),
        (
            toy(methods={"control": {"method": {"name": "mezo"}, "tuned_by": "mezo"}}),
            "unknown method of methods.control.tuned_by 'mezo'",
            "of a part of a study, keep 'mezo', too",
        ),
        (control(of="control"), "methods.control.tuned_by: control has no trials", "a method that has trials"),
        (control(trials=[{"method.rule.lr": 1.0}] * 2), "methods.control has trials of its own, and tuned_by", ""),
        (control(tuned_bye="mezo"), "methods.control.tuned_bye: unknown key", "did you mean 'tuned_by'"),
        (control(of=3), "methods.control.tuned_by", ""),
        (
            control(method={"name": "mezo", "rule.lr": 5}),
            "methods.control.method.rule.lr: trial 1 of mezo sets this, so that it would have no effect",
            "leave it out, or give control trials",
        ),
        (
            {**control(), "axes": {"size": {"a": {}, "b": {"methods": {"control": {"method.rule.lr": 5}}}}}},
            "axes.size.b.methods.control.method.rule.lr: trial 1 of mezo sets this",
            "leave it out",
        ),
        (
            {**control(), "axes": {"size": {"a": {}, "b": {"methods": {"mezo": None}}}}},
            "methods.control.tuned_by: mezo is left out of least-squares b, so that no setting",
            "leave control out of it, too",
        ),
        (
            control(method={"name": "first-order", "parameters": "all", "batch_size": 8}),
            "methods.control, trial 1 of mezo, least-squares: method.rule",
            "",
        ),
        (toy(num_evals=0), "num_evals", ""),
        ("seeds: [0\n", "not YAML", ""),
        ("just a text", "a study is a mapping", ""),
        (toy(axes={"size": 3}), "axes.size: expected keys with values", ""),
    ],
)
def test_a_mistake_is_found_before_anything_runs(read, content, message, hint):
    with pytest.raises(ConfigError, match=message) as refused:
        read(content)
    assert hint in (refused.value.hint or "")
    assert refused.value.message.startswith(("unknown", str(Path("/")))) or "toy.yaml" in refused.value.message


def test_a_key_that_another_one_brings_along_is_no_repetition(read):
    """An anchor stands for its content wherever it is used, a merge lets a group's own keys win."""
    text = yaml.safe_dump({k: v for k, v in TOY.items() if k not in ("methods", "search")})
    text += "methods:\n  a: &a {method: &m {name: mezo, batch_size: 8}}\n  b: {method: {<<: *m, batch_size: 4}}\n"
    runs = read(text).grid.final_runs
    assert {(run.method, run.tree["method"]["batch_size"]) for run in runs} == {("a", 8), ("b", 4)}


def test_final_runs_of_every_setting_are_configured_at_once(read):
    """Not only those of the first, which are made when it is chosen: a budget may suit one setting and not another."""
    two_stage = {"name": "two-stage", "batch_size": 2}
    trials = [{"method.adapter_steps": 2}, {"method.adapter_steps": 50}]
    content = {
        "defaults": {"model": "somewhere/tiny", "task": "sst2"},
        "budget": {"steps": 20},
        "seeds": [0],
        "methods": {"two": {"method": two_stage, "trials": trials}},
        "search": {"budget": {"steps": 60}},
    }
    with pytest.raises(ConfigError, match="methods.two, trial 2, tiny sst2: method=two-stage takes 50 steps"):
        read(content)


def test_a_control_has_the_setting_that_was_chosen_for_another_method(read):
    """Its own keys stay, those of the trial are laid over them, and it has no trials."""
    grid = read(control(method={"name": "mezo", "noise": "rademacher", "batch_size": 4})).grid
    (cell,) = grid.cells
    assert [run.method for run in grid.trials] == ["mezo", "mezo", "sgd", "sgd"]
    methods = [run.tree["method"] for number in (0, 1) for run in grid.finals("control", cell, number)]
    assert [one["rule"]["lr"] for one in methods] == [LRS[0], LRS[0], LRS[1], LRS[1]]
    assert {one["noise"]["name"] for one in methods} == {"rademacher"}
    for number in (0, 1):
        run = grid.finals("control", cell, number)[0]
        assert grid.where(run, "method.rule.lr") == f"methods.mezo.trials.{number + 1}.method.rule.lr"
        assert grid.where(run, "") == f"methods.control, trial {number + 1} of mezo, least-squares"


def test_a_control_is_left_out_with_its_method(read):
    nowhere = {"methods": {"mezo": None, "control": None}}
    grid = read({**control(), "axes": {"size": {"a": {}, "b": nowhere}}}).grid
    assert {run.cell.axes for run in grid.final_runs if run.method == "control"} == {("a",)}


def test_a_start_that_no_method_uses_is_checked_too(read, tmp_path):
    start = {"method": {"name": "mezzo"}, "budget": {"steps": 1}}
    with pytest.raises(UnknownNameError, match="pretraining.one: unknown method 'mezzo'"):
        read(task_study(tmp_path, pretraining={"one": start}))


def test_an_override_that_is_none_is_refused(read):
    with pytest.raises(ConfigError, match="'seeds' is not key=value"):
        read(TOY, "seeds")


def test_a_study_that_is_not_there_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown study 'movie-revews'. Did you mean 'movie-reviews'"):
        read_study("movie-revews")
    with pytest.raises(ConfigError, match="there is no study file") as refused:
        read_study(tmp_path / "none.yaml")
    assert "packaged studies: " in refused.value.hint


# sizes

SIZED = {
    "sizes": {
        "small": None,
        "gpu": {"about": "on a GPU", "budget.queries": 8000, "seeds": [0, 1, 2], "methods": ["sgd"], "baseline": "sgd"},
    }
}


def test_a_size_changes_keys_of_the_file_and_the_command_line_changes_them_again(read):
    assert read(toy(**SIZED)).config.budget.queries == 800
    assert read(toy(**SIZED), size="small").grid.final_runs == read(toy()).grid.final_runs
    study = read(toy(**SIZED), "seeds=[7]", size="gpu")
    assert (study.name, study.notes) == ("toy-gpu", ("size gpu: on a GPU",))
    assert (study.config.budget.queries, study.config.seeds) == (8000, [7])
    assert list(study.config.methods) == ["sgd"]


def test_a_name_with_a_dot_in_it_can_be_changed(read):
    methods = {"mezo": TOY["methods"]["mezo"], "sgd": TOY["methods"]["sgd"], "lr 0.1": TOY["methods"]["sgd"]}
    methods["lr 0"] = TOY["methods"]["mezo"]
    axes = {"eps 1.5": {"0.1": {}, "0": {"method.batch_size": 2}}}
    keys = {"methods.lr 0.1.method.batch_size": 3, "methods.lr 0.1.seeds": [5], "axes.eps 1.5.0.1.method.batch_size": 4}
    study = read(toy(methods=methods, axes=axes, sizes={"gpu": keys}), "methods.lr 0.method.batch_size=7", size="gpu")
    found = {name: one.tree["method"]["batch_size"] for name, one in study.config.methods.items()}
    assert found == {"mezo": 8, "sgd": 8, "lr 0.1": 3, "lr 0": 7}
    assert study.config.methods["lr 0.1"].seeds == [5]
    assert study.config.axes["eps 1.5"]["0.1"].tree == {"method": {"batch_size": 4}}
    assert list(read(toy(axes=axes), "axes.eps 1.5=[0.1]").config.axes["eps 1.5"]) == ["0.1"]


def test_trials_are_as_long_as_the_search_says_or_the_same_share_of_a_methods_own_budget(read):
    methods = {**TOY["methods"], "sgd": {**TOY["methods"]["sgd"], "budget": {"queries": 400}}}
    for same, wanted in ((False, {160}), (True, {80})):
        grid = read(toy(methods=methods, search={"budget": {"queries": 160}, "same_share": same})).grid
        of = {
            name: {run.tree["training"]["max_queries"] for run in grid.trials if run.method == name} for name in methods
        }
        assert of == {"mezo": {160}, "sgd": wanted}


def test_a_size_that_is_not_there_is_refused(read):
    with pytest.raises(UnknownNameError, match=r"unknown size 'gpy'\. Did you mean 'gpu'"):
        read(toy(**SIZED), size="gpy")
    with pytest.raises(UnknownNameError, match="unknown size 'gpu'") as found:
        read(toy(), size="gpu")
    assert "--set" in found.value.hint
    with pytest.raises(ConfigError, match=r"sizes\.gpu"):
        read(toy(sizes={"gpu": 3}))
    with pytest.raises(ConfigError, match="budgett"):
        read(toy(sizes={"gpu": {"budgett": 3}}), size="gpu")


def test_methods_without_the_baseline_are_told_what_to_type(read):
    with pytest.raises(UnknownNameError, match="unknown method of baseline 'mezo'") as found:
        read(toy(baseline="mezo"), "methods=[sgd]")
    assert "baseline=sgd" in found.value.hint
    assert "baseline=null" in found.value.hint
    assert read(toy(baseline="mezo"), "methods=[sgd]", "baseline=sgd").config.baseline == "sgd"
