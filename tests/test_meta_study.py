"""The comparison of meta-training in one file: what is made first, for whom, once, and what is refused."""

from __future__ import annotations

import json
from importlib.resources import files

import pandas as pd
import pytest
import yaml

from conftest import build_model, write_rows
from metaicl_rows import choosing, labelled, write_tasks
from zofo import studies
from zofo.errors import ConfigError, UnknownNameError, ZofoError
from zofo.studies import plan_study, process_pool, read_study, report_study, run_study
from zofo.studies.result import Outcome
from zofo.training import RunFolder
from zofo.training import restore as restore_module

TRAINED = {"tasks": ["mood", "tone", "pick"], "split_sizes": {"validation": 3}, "max_rows": 12}
META = {"name": "meta-bilevel", "batch_size": 2, "inner_steps": 1, "tasks_per_step": 2, "penalty": 1}
ALL = {"name": "first-order", "parameters": "all", "lr": 1e-3, "batch_size": 2}
FEW = {"task.train_examples_per_label": 3}
STUDY = {
    "budget": {"steps": 2},
    "seeds": [100, 13],
    "num_evals": 1,
    "tasks": {"judge": None, "which": None},
    "pretraining": {
        "meta": {"method": META, "task": TRAINED, "budget": {"steps": 2}},
        "metaicl": {"method": ALL, "task": {**TRAINED, "num_fewshot": 2}, "budget": {"steps": 2}},
    },
    "methods": {
        "zero-shot": {"method": "zero-shot", "seeds": [100]},
        "adapted": {"method": {"name": "first-order", "batch_size": 3}, **FEW, "seeds": [100]},
        "meta": {"method": {"name": "first-order", "batch_size": 3}, **FEW, "init_from": "meta"},
        "meta-zero-shot": {"method": "zero-shot", "init_from": "meta", "seeds": [100]},
        "metaicl": {"method": "in-context", "task.num_fewshot": 2, "init_from": "metaicl", "seeds": [100]},
    },
    "baseline": "adapted",
}


@pytest.fixture
def study(tmp_path, tokenizer):
    folder = tmp_path / "model"
    build_model("llama", len(tokenizer), positions=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = write_tasks(tmp_path / "tasks")

    def make(**changes):
        shape = {"split_sizes": {"validation": 3}}
        content = {"defaults": {"model": str(folder), "task": shape}, **STUDY, **changes}
        path = tmp_path / "meta.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return read_study(path, data=data)

    return make


def test_starts_are_made_once_and_first_and_the_study_goes_on_from_where_it_was(study, tmp_path, monkeypatch):
    made, perform = [], process_pool.perform
    replays, replay = [], restore_module.replay
    monkeypatch.setattr(restore_module, "replay", lambda *given, **how: (replays.append(1), replay(*given, **how))[1])

    def performed(tree, folder, remote_code):
        made.append(folder.rsplit("/", 1)[1])
        if len(made) == 6:
            raise KeyboardInterrupt
        perform(tree, folder, remote_code)

    monkeypatch.setattr(process_pool, "perform", performed)
    asked, out = study(), tmp_path / "out"
    assert plan_study(asked, out).runs == 2 + 2 * (1 + 1 + 2 + 1 + 1)
    with pytest.raises(KeyboardInterrupt):
        run_study(asked, out)
    result = run_study(asked, out)
    assert (result.done, result.failed, result.missing) == (14, 0, 0)
    assert [name.split("-")[:2] for name in made[:2]] == [["start", "meta"], ["start", "metaicl"]]
    assert len(made) == 15  # the one that was interrupted twice
    assert len(replays) == 1  # six runs start from where the one trajectory leads, which is kept there
    assert run_study(asked, out).done == 14
    assert len(made) == 15

    frame = pd.read_csv(out / "results.csv")
    assert len(frame) == 12
    assert set(frame[frame["task"] == "judge"]["metric"]) == {"macro-f1"}
    assert set(frame[frame["task"] == "which"]["metric"]) == {"accuracy"}
    losses = frame[(frame["task"] == "judge") & (frame["seed"] == 100)].set_index("method")["test_loss"]
    assert losses["zero-shot"] != losses["meta-zero-shot"]
    starts = [run for run in (out / "runs").iterdir() if run.name in made[:2]]
    for run in starts:
        assert RunFolder.open(run).config.task.held_out_tasks == ["judge", "which"]
    used = {name: RunFolder.open(out / "runs" / name).config.init_from for name in frame["run"]}
    assert {path.name for path in used.values() if path is not None} == {run.name for run in starts}
    assert all((path is None) == name.startswith(("zero-shot", "adapted")) for name, path in used.items())

    report = (out / "report.md").read_text()
    assert "judge (macro-f1)" in report
    assert "average" in report
    assert "not done" not in report  # of methods with fewer seeds than the study has
    assert "## What methods start from" in report
    start = next(
        run
        for run in starts
        if json.loads((run / "outcome.json").read_text())["config"]["method"]["name"] == "meta-bilevel"
    )
    assert f"{Outcome.read(start).counts['queries']:,}" in report


def test_a_start_that_fails_fails_those_that_start_from_it_and_no_other(study, tmp_path):
    broken = {**STUDY["pretraining"]["meta"], "method": {**META, "rule": {"name": "sgd", "lr": 1e30}}}
    asked = study(pretraining={**STUDY["pretraining"], "meta": broken}, seeds=[100], tasks={"judge": None})
    result = run_study(asked, tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out" / "results.csv")
    failed = set(frame[frame["failed"].notna()]["method"])
    assert failed == {"meta", "meta-zero-shot"}
    assert frame[frame["method"] == "meta"]["failed"].str.contains("which this one starts from, failed").all()
    assert result.failed == 3  # and the start itself
    assert "| meta " in (tmp_path / "out" / "report.md").read_text()
    assert report_study(asked, tmp_path / "out").failed == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": {"meta": {**STUDY["methods"]["meta"], "init_from": "mate"}}, "baseline": None},
            "Did you mean 'meta'",
        ),
        (
            {
                "pretraining": {
                    **STUDY["pretraining"],
                    "meta": {**STUDY["pretraining"]["meta"], "task.held_out_tasks": ["judge"]},
                }
            },
            "pretraining.meta: 'which', a task of the study, is not among its task.held_out_tasks",
        ),
        (
            {"pretraining": {**STUDY["pretraining"], "meta": {"task": TRAINED, "budget": {"steps": 2}}}},
            "no method is named",
        ),
        (
            {
                "pretraining": {
                    **STUDY["pretraining"],
                    "meta": {**STUDY["pretraining"]["meta"], "training": {"steps": 3}},
                }
            },
            "how long a run is",
        ),
    ],
    ids=["unknown", "seen", "no method", "length"],
)
def test_mistakes_are_found_when_the_study_is_read(study, changes, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        study(**changes)


def test_a_task_that_is_trained_on_is_refused_before_anything_runs(study, tmp_path):
    for tasks in ({"judge": None, "pick": None}, {"glue-mood": {"task.data": str(tmp_path / "tasks" / "glue-mood")}}):
        write_tasks_again = tmp_path / "tasks" / "glue-mood"
        write_tasks_again.mkdir(exist_ok=True)
        for split, start in (("train", 100), ("test", 200)):
            rows = labelled("other", 30, start)
            (write_tasks_again / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(ZofoError, match="tasks that are reserved for testing are trained on: '(pick|mood)'"):
            run_study(study(tasks=tasks), tmp_path / "out")
        assert not list((tmp_path / "out").glob("runs/*"))


def test_a_start_is_part_of_what_a_run_is(study):
    grid, other = study().grid, study(seeds=[100]).grid
    longer = {**STUDY["pretraining"]["meta"], "budget": {"steps": 3}}
    changed = study(pretraining={**STUDY["pretraining"], "meta": longer}).grid
    digests = [
        {(run.method, run.cell, run.seed): run.digest for run in one.final_runs} for one in (grid, other, changed)
    ]
    assert all(digests[0][key] == digest for key, digest in digests[1].items())
    differ = {key[0] for key in digests[0] if digests[0][key] != digests[2][key]}
    assert differ == {"meta", "meta-zero-shot"}
    assert [run.seed for run in grid.final_runs if run.method == "zero-shot"] == [100, 100]
    assert grid.starts[0].tree["task"]["held_out_tasks"] == ["judge", "which"]
    assert study(methods={"adapted": STUDY["methods"]["adapted"]}).grid.starts == []  # made for nobody


def check_packaged(asked):
    assert asked.config.seeds == [100, 13, 21, 42, 87]
    for run in asked.grid.starts:
        assert len(run.tree["task"]["tasks"]) == 12
        assert set(run.tree["task"]["held_out_tasks"]) == set(asked.config.tasks)
    budgets = {run.method.removeprefix("start "): run.tree["training"]["max_queries"] for run in asked.grid.starts}
    longer = budgets.pop("longer-bilevel")
    assert budgets.pop("longer-variate-bilevel") == longer
    assert set(budgets) == {"bilevel", "variate-bilevel", "metaicl", "channel-metaicl"}
    assert set(budgets.values()) == {longer // 5}  # the same budget


def test_parts_of_the_packaged_study_start_from_the_same_runs():
    asked = read_study("meta-training")
    check_packaged(asked)
    part = read_study("meta-training", ["tasks=[emo]", "methods=[adapted,bilevel-adapted]", "seeds=[13]"])
    assert {run.digest for run in part.grid.starts} < {run.digest for run in asked.grid.starts}


@pytest.mark.soak
def test_the_packaged_study_can_be_planned_and_its_tasks_do_not_meet(tmp_path, tokenizer):
    content = yaml.safe_load((files(studies) / "files" / "meta-training.yaml").read_text(encoding="utf-8"))
    names = [*content["tasks"], *content["pretraining"]["bilevel"]["task"]["tasks"]]
    for name in names:
        for split, count, start in (("train", 30, 0), ("test", 4, 30)):
            rows = choosing(name, count, start) if name == "qasc" else labelled(name, count, start)
            write_rows(tmp_path / "tasks" / name / f"{split}.jsonl", rows)
    build_model("llama", len(tokenizer), positions=512).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    given = [f"defaults.model={tmp_path / 'model'}", "defaults.task.split_sizes={validation: 2, test: 4}"]
    asked = read_study("meta-training", given, tmp_path / "tasks")
    check_packaged(asked)
    plan = plan_study(asked, tmp_path / "out")
    assert [row.fault for row in plan.rows if row.fault] == []
    assert plan.runs == 6 + 4 * (5 * 1 + 9 * 5)
