"""The packaged studies: each is read and planned, and those of Bilevel-ZOFO run, on tiny models and made-up rows."""

import copy
import fnmatch
import functools
import json
import math
import re
import statistics
from importlib.resources import files

import pandas as pd
import pytest
import transformers
import yaml

from conftest import build_model, build_tokenizer, review_rows, tiny_config, with_soak, write_rows
from zofo import studies
from zofo.adapters.subspace import linear_layers
from zofo.errors import ConfigError, UnknownNameError
from zofo.studies import plan_study, read_study, run_study, study_names
from zofo.studies.grid import SEEDED

FILES = files(studies) / "files"
BILEVEL = ("bilevel", "bilevel-adapters", "bilevel-ablations", "bilevel-stages", "prompt-sensitivity")
ON_PROBLEMS = ("digits", "least-squares", "svrg-ablations")
OF_METAICL = ("meta-training",)  # whose rows are of another form; see test_meta_study.py
SIZES = {"train": 24, "validation": 6, "test": 8}


def content_of(name):
    """What a packaged study's file holds, to change as one likes."""
    return copy.deepcopy(_read(name))


@functools.cache
def _read(name):
    return yaml.safe_load((FILES / f"{name}.yaml").read_text(encoding="utf-8"))


@functools.cache
def packaged(name, *changes, size=None):
    """A packaged study, read once."""
    return read_study(name, list(changes), size=size)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny causal model, and a tiny encoder with as many layers as minilm, since a study names some of them."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer()
    config = tiny_config("bert", len(tokenizer), 128)
    config.num_hidden_layers = 6
    models = {
        "causal": build_model("llama", len(tokenizer), positions=128),
        "encoder": transformers.AutoModel.from_config(config),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in models}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of made-up rows for each task, as --data takes it."""
    folder = tmp_path_factory.mktemp("data")
    for task in ("movie-reviews", "sst2", "cola"):
        for split, count, start in (("train", 40, 0), ("validation", 12, 40), ("test", 12, 60)):
            write_rows(folder / task / f"{split}.jsonl", review_rows(count, start))
    for split, count in (("train", 40), ("validation", 12), ("validation_matched", 12)):
        pairs = [{"premise": f"film {i}", "hypothesis": f"it drags {i % 3}", "label": i % 2} for i in range(count)]
        for task in ("rte", "mnli"):
            write_rows(folder / task / f"{split}.jsonl", pairs)
        choices = {"choice1": "It drags.", "choice2": "It was a joy."}
        copa = [{"premise": f"Film {i}.", **choices, "question": "cause", "label": i % 2} for i in range(count)]
        write_rows(folder / "copa" / f"{split}.jsonl", copa)
    return folder


def tiny(name, folders):
    """A packaged study with tiny models and few rows; all else is as in the file."""
    content = content_of(name)
    base = content["defaults"]
    model = base["model"] if isinstance(base["model"], dict) else {"name": base["model"]}
    kind = "encoder" if model["name"] == "minilm" else "causal"
    task = base.get("task", {})
    task = {"name": task} if isinstance(task, str) else task
    task = {key: value for key, value in task.items() if key != "label"}  # an expression of columns of the real rows
    base |= {"model": {**model, "name": str(folders[kind])}, "task": {**task, "split_sizes": SIZES}}
    for level in [*(content.get("tasks") or {}).values(), *(content.get("pretraining") or {}).values()]:
        ((level or {}).get("task") or {}).pop("split_sizes", None)
    for start in (content.get("pretraining") or {}).values():
        start["method"]["batch_size"] = 4
    for contender in content["methods"].values():
        contender["method"].pop("batch_size", None)
        if "gate_examples" in contender["method"]:
            contender["method"]["gate_examples"] = 8
        if "rank" in (adapter := contender["method"].get("adapter", {})):
            adapter["rank"] = min(adapter["rank"], 8)  # of 16 inputs
    base["method"] = {**base.get("method", {}), "batch_size": 4}
    return content


def written(content, path, name="tiny"):
    file = path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


# reading and planning


def test_studies_are_packaged():
    assert set(study_names()) >= {"movie-reviews", *BILEVEL, *ON_PROBLEMS, *OF_METAICL}


@pytest.mark.parametrize("name", study_names())
def test_every_packaged_study_can_be_read_and_says_what_it_asks(name):
    study = packaged(name)
    assert study.name == name
    assert study.config.about.strip().endswith("?") or name == "svrg-minilm"
    assert study.grid.final_runs
    trials = {len(one.trials) for one in study.config.methods.values() if one.trials}
    assert len(trials) <= 1


OF_A_FAIR_TRIAL = (
    *("mechanism", "bilevel-contrast", "control-variate", "prompt-sensitivity", "reward-upstairs"),
    *("svrg-late", "meta-training", "controls"),
)


@pytest.mark.parametrize("name", study_names())
def test_every_size_of_a_packaged_study_can_be_read_and_says_what_it_is(name):
    sizes = content_of(name).get("sizes", {})
    assert set(sizes) == {"two-cores", "gpu"} or (not sizes and name not in OF_A_FAIR_TRIAL)
    for size in sizes:
        study = packaged(name, size=size)
        assert study.name == f"{name}-{size}"
        assert study.notes[0].startswith(f"size {size}: ")
        if name not in OF_METAICL:  # whose tasks are known by their rows alone
            study.grid.check()
        bigger = {run.tree["model"].get("dtype") for run in study.grid.final_runs} == {"bfloat16"}
        assert bigger == (size == "gpu") or name == "as-released", size
        assert ("not run yet" in study.notes[0]) == (size == "gpu")
    if sizes:
        assert "two-cores, gpu" in study_names()[name]


def test_the_size_for_a_gpu_of_the_prompts_has_the_papers_budget_and_tests_the_interaction():
    config = packaged("prompt-sensitivity", size="gpu").config
    assert set(config.methods) == {"mezo", "fo-lora", "frozen", "bilevel"}
    assert set(config.axes["prompt"]) == {"with", "without"}
    assert config.budget.queries >= 20_000
    assert len(config.seeds) == 5
    assert (config.contrast_axis, config.baseline) == ("prompt", "fo-lora")


def test_rows_of_a_start_on_one_task_are_found_where_those_of_the_tasks_are(data):
    study = read_study("svrg-late", data=data)
    (start,) = study.grid.starts
    folders = {str(run.config.task.data_dir) for run in (start, *study.grid.final_runs)}
    assert folders == {str(data / "sst2")}


def test_methods_of_the_late_encoder_have_the_same_rates_and_both_starts():
    study = packaged("svrg-late")
    tried = {
        name: [trial.tree["method"]["rule"]["lr"] for trial in one.trials]
        for name, one in study.config.methods.items()
        if name != "zero-shot"
    }
    assert len({tuple(rates) for rates in tried.values()}) == 1
    for trial in study.config.methods["svrg"].trials:
        assert trial.tree["method"]["lr_full"] == trial.tree["method"]["rule"]["lr"]
    (start,) = study.grid.starts
    for run in study.grid.final_runs:
        warmed = run.cell.axes == ("warmed",)
        assert run.tree.get("init_from") == (start.id if warmed else None)
        assert run.tree["model"]["head_seed"] == (start.tree["model"]["head_seed"] if warmed else run.seed)


def test_runs_of_two_seeds_start_from_an_encoder_whose_new_head_was_trained(folders, data, tmp_path):
    content = tiny("svrg-late", folders)
    content["pretraining"]["warmed"]["budget"] = {"steps": 2}
    del content["axes"]["start"]["pretrained"], content["search"], content["contrast_axis"]
    content["methods"] = {name: content["methods"][name] for name in ("mezo", "zero-shot")}
    content["methods"]["mezo"] = {"method": content["methods"]["mezo"]["method"]}
    content |= {"budget": {"steps": 2}, "seeds": [0, 1], "num_evals": 1}
    found = run_study(read_study(written(content, tmp_path), data=data), tmp_path / "out")
    assert (found.done, found.failed, found.missing) == (5, 0, 0)
    rows = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(rows[rows["method"] == "zero-shot"]["queries"]) == {0}


ON_PURPOSE = {  # as many steps as bilevel, whose steps cost more with more inner ones; see the test of these below
    ("bilevel", "gpu", "frozen, same steps"),
    ("bilevel-adapters", "gpu", "frozen, same steps"),
}


@pytest.mark.parametrize("name", study_names())
def test_a_methods_own_budget_is_the_same_share_of_the_studys_in_every_size(name):
    def shares(size=None):
        config = (packaged(name) if size is None else packaged(name, size=size)).config
        pairs = {one: (own.budget, config.budget) for one, own in config.methods.items() if own.budget is not None}
        return {
            one: own.queries / whole.queries if own.queries else own.steps / whole.steps
            for one, (own, whole) in pairs.items()
            if (own.queries is None) == (whole.queries is None)
        }

    for size in content_of(name).get("sizes", {}):
        for method, share in shares(size).items():
            if (name, size, method) in ON_PURPOSE:
                config = packaged(name, size=size).config
                assert config.methods[method].budget.queries // 96 == config.budget.queries // 144
            else:
                assert share == shares()[method], (size, method)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("subspace", "full"), ("control-variate", "bilevel"), ("control-variate", "control variate")),
        *(("bilevel-contrast", "control variate"), ("bilevel-contrast", "bilevel, same layers")),
    ],
)
def test_the_layers_of_opt_that_move_are_those_beside_which_the_subspace_adapter_stands(name, method):
    patterns = packaged(name, size="gpu").config.methods[method].tree["method"]["trainable"]
    model = build_model("opt")
    moved = {one for one, _ in model.named_parameters() if any(fnmatch.fnmatchcase(one, glob) for glob in patterns)}
    assert moved == {f"{layer}.weight" for layer in linear_layers(model)}


def test_texts_of_meta_training_are_cut_alike_in_all_runs_for_a_gpu():
    grid = packaged("meta-training", size="gpu").grid
    for run in [*grid.starts, *grid.final_runs]:
        task = run.tree["task"]
        assert task["max_length"] == (1024 if task["num_fewshot"] else 256), run


def test_every_method_of_the_reward_above_is_searched_in_the_same_share_of_its_own_budget():
    for size in (None, "gpu"):
        grid = packaged("reward-upstairs", size=size).grid
        own = {name: one.budget or grid.config.budget for name, one in grid.config.methods.items()}
        shares = {grid.trial_budget(name).queries / budget.queries for name, budget in own.items()}
        assert shares == {0.25 if size else 0.5}


OF_TASKS = [n for n in study_names() if n not in (*ON_PROBLEMS, *OF_METAICL)]


@pytest.mark.parametrize("name", with_soak(OF_TASKS, {"movie-reviews"}))
def test_every_study_of_tasks_can_be_planned_and_its_runs_can_be_made(name, folders, data, tmp_path):
    content = tiny(name, folders)
    if content.get("tasks"):  # the last one, and the last values of each axis: enough of everything that differs
        content["tasks"] = dict(list(content["tasks"].items())[-1:])
    for axis, values in content.get("axes", {}).items():
        content["axes"][axis] = dict(list(values.items())[-2:])
    study = read_study(written(content, tmp_path), data=data)
    plan = plan_study(study, tmp_path / "out", limit=math.inf)
    assert [row.fault for row in plan.rows if row.fault] == []
    assert all(row.timed for row in plan.rows)
    grid = study.grid
    assert plan.runs == len({run.digest for run in [*grid.starts, *grid.trials, *grid.final_runs]})


@pytest.mark.parametrize("name", BILEVEL)
def test_the_studies_of_bilevel_compare_fairly(name):
    config = packaged(name).config
    assert config.seeds == [0, 1, 2]
    assert config.zero_shot
    assert config.split == "test"
    if config.search is not None:
        assert not set(config.search.seeds) & set(config.seeds)
        searched = [one for one in config.methods.values() if one.tuned_by is None]
        assert len({len(one.trials) for one in searched}) == 1
        assert config.search.budget.queries < config.budget.queries


@pytest.mark.parametrize("name", ["bilevel", "bilevel-adapters"])
def test_the_control_of_as_many_steps_has_as_many(name):
    """Steps that the budgets pay for, from what a step of each costs: 80 queries, or 32 with a frozen backbone."""
    config = packaged(name).config
    method = config.methods["bilevel"].tree["method"]
    assert method["batch_size"] * (method["inner_steps"] + 2 + 3 * 2) == 80
    assert method["batch_size"] * (method["inner_steps"] + 2) == 32
    assert config.methods["frozen, same steps"].budget.queries // 32 == config.budget.queries // 80
    frozen, same = config.methods["frozen"], config.methods["frozen, same steps"]
    assert (frozen.tree, frozen.budget, same.tuned_by) == (same.tree, None, "bilevel")
    assert frozen.tree["method"] == {**method, "backbone_update": "frozen"}


@pytest.mark.parametrize("name", ["bilevel", "bilevel-adapters"])
def test_no_control_is_offered_adapter_rates_beyond_those_of_bilevel(name):
    """Else a control could win by its rate alone."""
    methods = packaged(name).config.methods
    rates = {
        one: [trial.tree["method"]["lr_adapter"] for trial in methods[one].trials] for one in ("bilevel", "frozen")
    }
    assert (min(rates["bilevel"]), max(rates["bilevel"])) == (min(rates["frozen"]), max(rates["frozen"]))
    assert set(rates["bilevel"]) < set(rates["frozen"])


def test_the_ablations_change_one_thing_at_a_time_and_have_figure_2s_values():
    grid = packaged("bilevel-ablations", "seeds=[0]").grid
    found = {run.cell.axes[0]: run.tree["method"] for run in grid.final_runs if run.method == "bilevel"}
    penalties = {method["penalty"] for name, method in found.items() if name.startswith("penalty")}
    assert penalties == {0, 1, 10, 100, 1e3, 1e4}
    inner = {method["inner_steps"] for name, method in found.items() if name.startswith("T")}
    assert inner | {found["penalty 100"]["inner_steps"]} == {1, 5, 10, 20}
    usual = found["penalty 100"]
    for name, method in found.items():
        changed = {key for key in usual if usual[key] != method[key]} - {"rule"}
        assert len(changed) == (name != "penalty 100"), name
    assert found["random backbone"] == {**usual, "backbone_update": "random"}
    controls = {run.cell.axes[0] for run in grid.final_runs if run.method == "frozen"}
    assert controls == set(found) - {"random backbone"}


def test_the_ablations_scale_the_backbones_rate_with_the_penalty_and_have_one_setting_for_both_methods():
    study = packaged("bilevel-ablations", "seeds=[0]")
    runs = [run for run in [*study.grid.trials, *study.grid.final_runs] if run.method == "bilevel"]
    for run in runs:
        method = run.tree["method"]
        whole = method["rule"]["lr"] * (1 + method["penalty"])
        assert whole == pytest.approx(4e-5, rel=0.02), run  # of which a quarter of the largest stable one is 5e-5
    methods = study.config.methods
    assert methods["frozen"].tuned_by == "bilevel"
    assert methods["frozen"].tree["method"] == {**methods["bilevel"].tree["method"], "backbone_update": "frozen"}
    tried = {}
    for run in study.grid.trials:
        tried.setdefault((run.method, run.cell), []).append(run.tree["method"]["lr_adapter"])
    assert all(rates == [2.5e-3, 1e-3] for rates in tried.values())


@pytest.mark.parametrize("name", ["bilevel", "bilevel-adapters"])
def test_the_controls_that_move_the_backbone_are_bilevel_but_for_one_key(name):
    """One of them with bilevel's setting, and the one with another objective with a search of its own, as wide."""
    methods = packaged(name).config.methods
    method = methods["bilevel"].tree["method"]
    for control, change in (("random backbone", {"backbone_update": "random"}), ("penalty 0", {"penalty": 0})):
        assert methods[control].tree["method"] == {**method, **change}
        assert methods[control].budget is None
    assert methods["random backbone"].tuned_by == "bilevel"
    assert methods["penalty 0"].trials == methods["bilevel"].trials


def test_the_frozen_control_of_the_prompts_is_bilevel_without_its_backbones_step():
    methods = packaged("prompt-sensitivity").config.methods
    assert methods["frozen"].tree["method"] == {**methods["bilevel"].tree["method"], "backbone_update": "frozen"}
    assert methods["frozen"].tuned_by == "bilevel"


def test_the_stages_make_as_many_steps_of_each_kind_as_bilevel():
    config = packaged("bilevel-stages").config
    steps = {name: (one.budget or config.budget).steps for name, one in config.methods.items()}
    inner = config.methods["bilevel"].tree["method"]["inner_steps"] * steps["bilevel"]
    two = config.methods["two-stage"].tree["method"]
    assert inner == steps["stage 1"] == two["adapter_steps"]
    assert steps["two-stage"] == inner + steps["bilevel"]
    grid = packaged("bilevel-stages", "seeds=[0]").grid
    first = {run.digest for run in grid.final_runs if run.method == "stage 1"}
    assert len(first) == len(grid.config.tasks)  # made once, whatever the rate of a backbone that it has not
    rates = {run.tree["method"]["rule"]["lr"] for run in grid.final_runs if run.method == "two-stage"}
    assert rates == {1e-3, 1e-4, 1e-5, 1e-6}


def test_tasks_whose_rows_are_missing_can_be_left_out(data, tmp_path):
    (tmp_path / "sst2").mkdir()
    study = read_study("bilevel", data=tmp_path, skip_missing=True)
    assert set(study.config.tasks) == {"movie-reviews", "sst2"}
    assert len(study.notes) == 2


def test_a_list_keeps_some_tasks_methods_and_values_of_an_axis():
    chosen = ["tasks=[copa]", "methods=[fo-lora, mezo]", "axes.prompt=[without, with]"]
    config = read_study("prompt-sensitivity", chosen).config
    assert list(config.tasks) == ["copa"]
    assert list(config.methods) == ["fo-lora", "mezo"]
    assert list(config.axes["prompt"]) == ["without", "with"]
    assert config.tasks["copa"].tree["task"]["split_sizes"]["train"] == 300
    with pytest.raises(UnknownNameError, match=r"unknown name in tasks 'cop'\. Did you mean 'copa'"):
        read_study("bilevel", ["tasks=[cop]"])
    with pytest.raises(UnknownNameError, match=r"unknown name in axes\.promt 'with'"):
        read_study("prompt-sensitivity", ["axes.promt=[with]"])
    with pytest.raises(UnknownNameError, match="unknown method of baseline 'bilevel'"):
        read_study("bilevel", ["methods=[mezo]"])


def test_some_methods_of_a_study_can_be_kept_where_an_axis_speaks_of_the_others():
    kept = read_study("least-squares", ["methods=[mezo,svrg]", "seeds=[0]"])
    assert {run.method for run in kept.grid.final_runs} == {"mezo", "svrg"}
    with pytest.raises(UnknownNameError, match="'none-such'"):
        read_study("least-squares", ["axes.eta2.1e-4.methods={none-such: null}", "methods=[mezo,svrg]"])


# what the reports of them say


def shortened(name, folders, path, methods, **changes):
    """A packaged study with some of its methods, two steps each, without a search."""
    content = tiny(name, folders)
    content["methods"] = {one: {"method": content["methods"][one]["method"]} for one in methods}
    content |= {"budget": {"steps": 2}, "seeds": [0, 1], "search": None, "tasks": {"movie-reviews": None}, **changes}
    if content.get("baseline") not in methods:
        content["baseline"] = None
    return written(content, path, name)


@pytest.fixture(scope="module")
def sensitivity(folders, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("sensitivity")
    file = shortened("prompt-sensitivity", folders, path, ["mezo", "bilevel"], baseline="mezo")
    found = run_study(read_study(file, data=data), path / "out")
    assert (found.failed, found.missing) == (0, 0)
    return path / "out"


def test_what_the_prompt_changes_is_told_for_each_method_in_pairs_of_the_same_seed(sensitivity):
    report = (sensitivity / "report.md").read_text(encoding="utf-8")
    section = report.split("## What prompt changes")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    header, rows = [cell.strip() for cell in lines[0]], [[cell.strip() for cell in line] for line in lines[2:]]
    assert header[:8] == ["method", "where", "prompt", "with", "that", "difference", "pairs", "p (t-test)"]
    assert header[8:] == ["less that of mezo", "detectable", "p (interaction)"]
    results = pd.read_csv(sensitivity / "results.csv")
    keys = [(method, task) for method in ("zero-shot", "mezo", "bilevel") for task in ("movie-reviews",)]
    assert [(row[0], row[1].split()[-1]) for row in rows] == keys
    for row, (method, task) in zip(rows, keys, strict=True):
        own = results[(results["method"] == method) & (results["task"] == task)]
        with_, without = (own[own["prompt"] == value].set_index("seed")["score"] for value in ("with", "without"))
        differences = [100 * (with_[seed] - without[seed]) for seed in (0, 1)]
        mean, half = statistics.mean(differences), 12.7062 * abs(differences[0] - differences[1]) / 2
        assert row[2:5] == ["without", f"{100 * with_.mean():.1f}", f"{100 * without.mean():.1f}"]
        number, found = (float(text) for text in re.fullmatch(r"([+-][\d.]+) ± ([\d.]+)", row[5]).groups())
        assert (number, found) == (pytest.approx(mean, abs=0.051), pytest.approx(half, abs=0.06))
        assert row[6] == "2"
    assert f"Tests: {len(rows) + len(rows) - 1}, none corrected." in section
    assert "the score at with less the one at the other value" in section


def test_how_much_more_a_method_loses_than_the_baseline_is_tested_in_pairs_of_the_same_seed(sensitivity):
    report = (sensitivity / "report.md").read_text(encoding="utf-8")
    section = report.split("## What prompt changes")[1].split("\n## ")[0]
    told = {line.split("|")[1].strip(): line.strip("|").split("|") for line in section.splitlines() if "|" in line}
    results = pd.read_csv(sensitivity / "results.csv").set_index(["method", "prompt", "seed"])["score"]
    lost = {
        method: [100 * (results[method, "with", seed] - results[method, "without", seed]) for seed in (0, 1)]
        for method in ("mezo", "bilevel")
    }
    apart = [own - other for own, other in zip(lost["bilevel"], lost["mezo"], strict=True)]
    assert float(told["bilevel"][8].split("±")[0]) == pytest.approx(statistics.mean(apart), abs=0.051)
    assert [cell.strip() for cell in told["mezo"][8:]] == ["-", "-", "-"]


def test_without_a_prompt_the_bare_text_is_asked_about(sensitivity):
    prompts = {}
    for folder in (sensitivity / "runs").iterdir():
        config = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))["config"]
        prompts.setdefault("without" in folder.name, set()).add(config["task"]["prompt"])
    assert prompts == {False: {None}, True: {"none"}}


def test_the_loss_of_the_inner_problem_has_a_curve_and_a_figure(sensitivity):
    curves = pd.read_csv(sensitivity / "curves.csv")
    inner = curves[curves["split"] == "inner"]
    assert set(inner["method"]) == {"bilevel"}
    assert inner["score"].isna().all()
    for _, own in inner.groupby(["task", "prompt", "seed"]):
        assert list(own["steps"]) == [1, 2]
        assert list(own["queries"]) == [40, 80]  # batches of 4: two inner steps, two backwards, six forwards
    one = next(
        f for f in (sensitivity / "runs").iterdir() if f.name.startswith("bilevel") and "movie-reviews-with-" in f.name
    )
    logged = [json.loads(line) for line in (one / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    told = json.loads((one / "outcome.json").read_text(encoding="utf-8"))["curve"]
    wanted = [line["loss_inner"] for line in logged if line["event"] == "step"]
    assert [point["loss"] for point in told if point["split"] == "inner"] == wanted
    drawn = {path.name.partition("-causal")[0] for path in sensitivity.glob("*.svg")}
    assert drawn == {"loss", "score", "inner-loss"}
    text = next(sensitivity.glob("inner-loss*.svg")).read_text(encoding="utf-8")
    assert "inner loss" in text
    assert ">bilevel<" in text
    assert ">mezo<" not in text
    assert "inner-loss-causal.svg" in (sensitivity / "report.md").read_text(encoding="utf-8")


def test_a_long_inner_curve_is_thinned_to_means_of_blocks(tmp_path):
    from zofo.studies.task_executor import _curve

    steps = [{"event": "step", "step": i, "loss_inner": float(i), "queries": 10 * (i + 1)} for i in range(120)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps), encoding="utf-8")
    points = _curve(tmp_path / "metrics.jsonl", "adapter", "accuracy")
    assert len(points) == 40  # blocks of three
    assert points[0] == {"steps": 3, "queries": 30, "loss": 1.0, "split": "inner", "score": None}
    assert points[-1]["steps"] == 120


@pytest.mark.parametrize(
    ("name", "methods", "axes"),
    [
        ("bilevel", ["mezo", "bilevel", "frozen", "frozen, same steps", "random backbone", "penalty 0"], None),
        pytest.param(
            "bilevel-stages",
            ["stage 1", "two-stage", "bilevel"],
            ("backbone lr", ["1e-3", "1e-6"]),
            marks=pytest.mark.soak,
        ),
    ],
)
def test_the_studies_of_bilevel_run(name, methods, axes, folders, data, tmp_path):
    content = tiny(name, folders)
    kept = {}
    if axes is not None:
        kept["axes"] = {axes[0]: {str(value): content["axes"][axes[0]][value] for value in axes[1]}}
    file = shortened(name, folders, tmp_path, methods, seeds=[0], **kept)
    text = file.read_text(encoding="utf-8").replace("adapter_steps: 400", "adapter_steps: 1")
    file.write_text(text, encoding="utf-8")
    found = run_study(read_study(file, data=data), tmp_path / "out")
    assert (found.failed, found.missing) == (0, 0)
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    lower = {f"{one}, lower adapter" for one in methods if content["methods"][one]["method"]["name"] == "bilevel"}
    assert set(results["method"]) == {*methods, "zero-shot", *lower}
    queries = results.groupby("method")["queries"].max()
    if name == "bilevel":
        assert queries["frozen"] == 2 * 4 * 4  # two inner steps and two backward passes, of batches of 4, twice
        assert queries["bilevel"] == 2 * 4 * 10


# the contrast of an axis


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrast_axis": "promt"}, "unknown axis of contrast_axis 'promt'. Did you mean 'prompt'?"),
        (
            {"contrast_axis": "prompt", "axes": {"prompt": {"with": {}}}},
            "contrast_axis: the axis 'prompt' has one value only",
        ),
    ],
)
def test_a_contrast_that_cannot_be_made_is_refused(tmp_path, changes, message):
    content = {**content_of("prompt-sensitivity"), **changes}
    with pytest.raises((ConfigError, UnknownNameError)) as refused:
        read_study(written(content, tmp_path))
    assert message in refused.value.message


def test_the_seeds_of_a_study_set_what_is_drawn():
    grid = packaged("bilevel").grid
    run = next(run for run in grid.final_runs if run.method == "bilevel" and run.seed == 2)
    assert [run.tree[key.split(".")[0]][key.split(".")[1]] for key in SEEDED] == [2, 2, 2]
