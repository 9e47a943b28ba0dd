"""Running a study: what is chosen and how, going on after every kind of stop, failures, several runs at a time."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import yaml
from rich.console import Console

from conftest import with_soak
from covering import grid
from several_processes import Started
from zofo.errors import DataError, Interrupted, RunError, ZofoError
from zofo.methods import METHODS, MeZO
from zofo.signals import Signals
from zofo.studies import plan_study, process_pool, read_study, report_study, run_study
from zofo.studies.config import COLUMNS
from zofo.studies.problems import PROBLEMS, LeastSquares
from zofo.studies.store import Store
from zofo.training import RunFolder, evaluate_run, read_config, train
from zofo.trees import merge_trees

SGD = {"name": "first-order", "parameters": "all", "optimizer": "sgd", "batch_size": 8}
MEZO = {"name": "mezo", "noise": "gaussian", "batch_size": 8}
TOY = {
    "defaults": {"problem": {"name": "least-squares", "examples": 40, "dimensions": 4}},
    "budget": {"queries": 160},
    "seeds": [0, 1],
    "num_evals": 2,
    "methods": {
        "mezo": {"method": MEZO, "trials": [{"method.rule.lr": 1e-3}, {"method.rule.lr": 1e-2}]},
        "sgd": {"method": SGD, "trials": [{"method.lr": 1e-1}, {"method.lr": 1e-2}]},
    },
    "search": {"budget": {"queries": 80}},
    "zero_shot": True,
    "baseline": "sgd",
}
RUNS = 10  # 4 trials, 4 final runs, 2 of the untrained model
TIMES = ["seconds", "evaluation_seconds"]  # the only columns that differ between two makings of the same run
MEASURED = [*TIMES, "peak_bytes"]


@pytest.fixture
def study(tmp_path):
    """Write and read a study; every call writes the same file."""

    def make(content=TOY, name="toy"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return read_study(path)

    return make


@pytest.fixture
def made(monkeypatch):
    """The runs that are made, by the names of their folders."""
    found, perform = [], process_pool.perform

    def watched(tree, folder, remote_code):
        perform(tree, folder, remote_code)
        found.append(os.path.basename(folder))

    monkeypatch.setattr(process_pool, "perform", watched)
    return found


@pytest.fixture
def problem(monkeypatch):
    """Enter a problem for one test."""

    def enter(name, kind):
        monkeypatch.setitem(PROBLEMS._parts, name, kind)

    return enter


def results(folder, without=TIMES):
    return pd.read_csv(folder / "results.csv").drop(columns=without)


# what is found


def test_a_study_leaves_tidy_tables_curves_and_a_report(study, tmp_path):
    result = run_study(study(), tmp_path / "out")
    assert (result.done, result.failed, result.missing) == (RUNS, 0, 0)
    frame = pd.read_csv(result.folder / "results.csv")
    pd.testing.assert_frame_equal(frame, pd.read_parquet(result.folder / "results.parquet").replace("", None), **LOOSE)
    assert list(frame.columns[:5]) == ["method", "model", "task", "seed", "trial"]
    assert frame.groupby(["method", "trial"]).size().to_dict() == {
        ("mezo", True): 2,
        ("mezo", False): 2,
        ("sgd", True): 2,
        ("sgd", False): 2,
        ("zero-shot", False): 2,
    }
    final = frame[~frame.trial].set_index(["method", "seed"])
    assert final.queries.to_dict() == {
        (m, s): q for m, q in (("zero-shot", 0), ("mezo", 160), ("sgd", 160)) for s in (0, 1)
    }
    assert final.steps.loc["mezo"].tolist() == [10, 10]
    assert final.backwards.loc["sgd"].tolist() == [20, 20]
    assert final.score.equals(final.test_loss)
    assert all((result.folder / "runs" / run).is_dir() for run in frame.run)
    curves = pd.read_csv(result.folder / "curves.csv")
    assert {*frame.columns, *curves.columns} == COLUMNS  # so that no axis can take the place of one
    one = curves[(curves.method == "mezo") & ~curves.trial & (curves.seed == 1) & (curves.split == "validation")]
    assert one[["steps", "queries"]].to_numpy().tolist() == [[0, 0], [5, 80], [10, 160]]
    assert (
        one.loss.iloc[-1] == frame[~frame.trial & (frame.method == "mezo") & (frame.seed == 1)].validation_loss.item()
    )


LOOSE = {"check_dtype": False}


def test_a_final_run_is_the_method_itself(study, ended):
    """The numbers of a run are those of the same steps made by hand."""
    problem = LeastSquares(40, 4)
    from zofo.methods import METHODS

    method = METHODS["mezo"](
        METHODS["mezo"].Config.model_validate({**MEZO, "rule": {"lr": 1e-2}}), problem.training_context(1)
    )
    for number in range(10):
        method.step(number)
    with method.using("model"):
        wanted = problem.evaluate(method.model, "test")["loss"]
    frame = results(ended)
    row = frame[(frame.method == "mezo") & ~frame.trial & (frame.seed == 1)]
    assert row.setting.item() == "method.rule.lr=0.01"
    assert row.score.item() == wanted


class Trap(LeastSquares):
    """The test split likes best what validation likes least."""

    def evaluate(self, model, split):
        found = super().evaluate(model, split)
        return {"loss": 1 / found["loss"]} if split == "test" else found


def test_settings_are_chosen_on_validation_and_never_on_test(study, tmp_path, problem):
    problem("trap", Trap)
    asked = []
    evaluate = Trap.evaluate
    Trap.evaluate = lambda self, model, split: (asked.append(split), evaluate(self, model, split))[1]
    try:
        run_study(
            study({**TOY, "defaults": {"problem": {"name": "trap", "examples": 40, "dimensions": 4}}}), tmp_path / "out"
        )
    finally:
        Trap.evaluate = evaluate
    frame = results(tmp_path / "out")
    trials = frame[frame.trial]
    best = trials.loc[trials.groupby("method").validation_loss.idxmin()]
    assert best.chosen.all()
    assert trials.chosen.sum() == 2
    assert trials.test_score.isna().all()
    chosen = best.set_index("method").setting
    assert (frame[~frame.trial & (frame.method != "zero-shot")].setting.unique() == chosen.loc[["mezo", "sgd"]]).all()
    assert asked.count("test") == 6  # once for each final run


class Accurate(LeastSquares):
    """Its score goes up with its loss."""

    metric = "accuracy"
    higher_is_better = True
    majority = 0.25

    def evaluate(self, model, split):
        loss = super().evaluate(model, split)["loss"]
        return {"loss": loss, "accuracy": min(1.0, loss / 100)}


@pytest.mark.parametrize(("by", "best"), [("loss", "min"), ("score", "max")])
def test_the_search_is_by_loss_or_by_score(study, tmp_path, problem, by, best):
    problem("accurate", Accurate)
    base = {"problem": {"name": "accurate", "examples": 40, "dimensions": 4}}
    run_study(study({**TOY, "defaults": base, "search": {**TOY["search"], "metric": by}}), tmp_path / "out")
    frame = results(tmp_path / "out")
    trials = frame[frame.trial]
    for _, own in trials.groupby("method"):
        chosen = own[own.chosen]
        assert chosen.validation_loss.item() == getattr(own.validation_loss, best)()
    assert (frame[~frame.trial].majority == 0.25).all()


class Tied(Accurate):
    """Its score is the same, whatever its loss."""

    def evaluate(self, model, split):
        return {**super().evaluate(model, split), "accuracy": 0.5}


def test_of_settings_with_the_same_score_the_one_with_the_lowest_loss_is_chosen(study, tmp_path, problem):
    problem("tied", Tied)
    base = {"problem": {"name": "tied", "examples": 40, "dimensions": 4}}
    run_study(study({**TOY, "defaults": base, "search": {**TOY["search"], "metric": "score"}}), tmp_path / "out")
    trials = results(tmp_path / "out").query("trial")
    numbers = []
    for _, own in trials.groupby("method"):
        assert own[own.chosen].validation_loss.item() == own.validation_loss.min() < own.validation_loss.max()
        numbers.append(own.reset_index().chosen.idxmax())
    assert any(numbers)  # not always the first


def test_of_several_seeds_the_mean_decides(study, tmp_path):
    run_study(study({**TOY, "search": {"budget": {"queries": 80}, "seeds": [3, 4, 5]}}), tmp_path / "out")
    frame = results(tmp_path / "out")
    means = frame[frame.trial].groupby(["method", "setting"]).validation_loss.mean()
    for method in ("mezo", "sgd"):
        chosen = frame[frame.trial & frame.chosen & (frame.method == method)].setting.unique()
        assert chosen == [means.loc[method].idxmin()]


# going on


def test_a_second_time_nothing_is_made_and_the_results_are_the_same(study, ended, made):
    before, report = results(ended), (ended / "report.md").read_bytes()
    run_study(study(), ended)
    assert made == []
    pd.testing.assert_frame_equal(results(ended), before)
    assert (ended / "report.md").read_bytes() == report


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a study that nobody stopped, which tests only read."""
    folder = tmp_path_factory.mktemp("whole")
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(TOY, sort_keys=False), encoding="utf-8")
    run_study(read_study(path), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def uninterrupted(whole):
    return results(whole)


@pytest.fixture
def ended(whole, tmp_path):
    """A copy of the folder of that study, with which a test may do more."""
    return shutil.copytree(whole, tmp_path / "out")


@pytest.mark.parametrize("boundary", with_soak(range(RUNS), [0, 3, 4, RUNS - 1]))
def test_a_study_that_is_stopped_between_two_runs_goes_on(study, tmp_path, made, monkeypatch, uninterrupted, boundary):
    perform = process_pool.perform
    shown = Console(record=True, quiet=False, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115

    def stopped(*given):
        if len(made) == boundary:
            raise KeyboardInterrupt
        perform(*given)

    with monkeypatch.context() as patch:
        patch.setattr(process_pool, "perform", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_study(study(), tmp_path / "out", shown)
    assert f"{boundary} of {RUNS} runs are done and kept" in shown.export_text().replace("\n", " ")
    shown.file.close()
    result = run_study(study(), tmp_path / "out")
    assert (result.done, result.missing) == (RUNS, 0)
    assert len(made) == len(set(made)) == RUNS  # each was made once
    pd.testing.assert_frame_equal(results(tmp_path / "out"), uninterrupted)


@pytest.mark.parametrize(("number", "inside"), grid([signal.SIGTERM, signal.SIGINT], [True, False], strength=1))
def test_a_signal_at_the_end_of_a_run_stops_the_study_and_keeps_the_run(
    study, tmp_path, made, monkeypatch, uninterrupted, number, inside
):
    perform = process_pool.perform

    def asked(*given):
        perform(*given)
        if len(made) == 3:
            with Signals().defer_signals() if inside else nullcontext():  # as a run, until its outcome is written
                signal.raise_signal(number)

    def handler(*_):
        raise AssertionError

    before = signal.signal(number, handler)  # a shell in the background ignores SIGINT
    try:
        with monkeypatch.context() as patch:
            patch.setattr(process_pool, "perform", asked)
            with pytest.raises(Interrupted) as stopped:
                run_study(study(), tmp_path / "out")
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert stopped.value.exit_code == 128 + number
    run_study(study(), tmp_path / "out")
    assert len(made) == len(set(made)) == RUNS  # each was made once
    pd.testing.assert_frame_equal(results(tmp_path / "out"), uninterrupted)


@pytest.mark.parametrize("looks", with_soak([1, 4, 25, 40], [4, 40]))
def test_a_study_that_is_stopped_inside_a_run_makes_that_run_again(
    study, tmp_path, made, monkeypatch, uninterrupted, looks
):
    evaluate, left = LeastSquares.evaluate, [looks]

    def stopped(self, model, split):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return evaluate(self, model, split)

    with monkeypatch.context() as patch:
        patch.setattr(LeastSquares, "evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_study(study(), tmp_path / "out")
    folders = list((tmp_path / "out" / "runs").iterdir())
    assert len(folders) == len(made) + 1  # one has no outcome
    assert sum((folder / "outcome.json").is_file() for folder in folders) == len(made)
    run_study(study(), tmp_path / "out")
    assert len(made) == len(set(made)) == RUNS
    pd.testing.assert_frame_equal(results(tmp_path / "out"), uninterrupted)


def test_an_outcome_that_was_being_written_is_none(study, ended, made):
    first = min((ended / "runs").glob("*-trial*"))
    (first / "outcome.json").rename(first / "outcome.json.part")
    run_study(study(), ended)
    assert made == [first.name]


def test_an_edited_file_makes_again_what_changed_and_only_that(study, ended, made):
    shown = Console(record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    trials = [{"method.rule.lr": 1e-3}, {"method.rule.lr": 2e-3}]
    run_study(
        study({**TOY, "methods": {**TOY["methods"], "mezo": {"method": MEZO, "trials": trials}}}),
        ended,
        shown,
    )
    assert "the study has changed" in shown.export_text()
    shown.file.close()
    assert {name.split("-seed")[0] for name in made} == {"mezo-least-squares-trial2", "mezo-least-squares"}
    assert len(made) == 3
    made.clear()
    run_study(study({**TOY, "seeds": [0, 1, 2]}), ended)
    assert len(made) == 3  # the third seed of two methods and the untrained model; the first setting is chosen again
    made.clear()
    names = {"another name": TOY["methods"]["mezo"], "sgd": TOY["methods"]["sgd"]}
    run_study(study({**TOY, "methods": names}), ended)
    assert made == []
    assert set(results(ended).method) == {"another name", "sgd", "zero-shot"}


def test_a_report_can_be_had_before_the_end(study, tmp_path, monkeypatch, made):
    perform = process_pool.perform

    def stopped(*given):
        if len(made) == 7:
            raise KeyboardInterrupt
        perform(*given)

    with monkeypatch.context() as patch:
        patch.setattr(process_pool, "perform", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_study(study(), tmp_path / "out")
    result = report_study(study(), tmp_path / "out")
    assert (result.done, result.missing) == (7, RUNS - 7)
    assert "Not all runs are done" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    with pytest.raises(RunError, match="holds no study"):
        report_study(study(), tmp_path / "nothing")


# failures


def test_a_trial_that_diverges_loses_and_the_study_goes_on(study, tmp_path, made):
    trials = [{"method.rule.lr": 1e30}, {"method.rule.lr": 1e-3}]
    content = {**TOY, "methods": {**TOY["methods"], "mezo": {"method": MEZO, "trials": trials}}}
    result = run_study(study(content), tmp_path / "out")
    assert (result.done, result.failed) == (RUNS, 1)
    frame = results(tmp_path / "out")
    failed = frame[frame.failed.notna()]
    assert (failed.method.item(), failed.trial.item(), failed.chosen.item()) == ("mezo", True, False)
    assert "non-finite" in failed.failed.item()
    assert not frame.score[frame.trial].notna().any()
    assert (frame[~frame.trial & (frame.method == "mezo")].setting == "method.rule.lr=0.001").all()
    made.clear()
    run_study(study(content), tmp_path / "out")
    assert made == []  # it would diverge again


def test_a_final_run_that_diverges_is_marked_and_left_out_of_the_mean(study, tmp_path):
    methods = {"bad": {"method": {**MEZO, "rule": {"lr": 1e30}}}, "sgd": {"method": {**SGD, "lr": 0.1}}}
    result = run_study(study({**TOY, "methods": methods, "search": None}), tmp_path / "out")
    assert result.failed == 2
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert any(line.startswith("| bad ") and "- (0 of 2, 2 diverged)" in line for line in text.splitlines())
    assert "## What failed" in text
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert (curves.method == "bad").sum() > 0  # what it was before


def test_a_method_of_which_every_trial_failed_has_no_final_run(study, tmp_path):
    trials = [{"method.rule.lr": 1e30}, {"method.rule.lr": 1e32}]
    content = {**TOY, "methods": {**TOY["methods"], "mezo": {"method": MEZO, "trials": trials}}}
    result = run_study(study(content), tmp_path / "out")
    assert (result.done, result.failed, result.missing) == (RUNS - 2, 2, 0)
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "every trial diverged: no final run" in text
    assert any(line.startswith("| mezo ") and "| every trial diverged |" in line for line in text.splitlines())


def test_a_control_is_made_with_the_setting_that_is_chosen_for_its_method(study, tmp_path, made):
    """Once it is known, and it is not searched for anew. A control that differs in nothing is made of the same runs."""
    batches = {"method": {**MEZO, "batch_size": 4}, "tuned_by": "mezo"}
    methods = {**TOY["methods"], "smaller": batches, "equal": {"method": MEZO, "tuned_by": "mezo"}}
    content = {**TOY, "methods": methods}
    result = run_study(study(content), tmp_path / "out")
    assert (result.done, result.failed, result.missing) == (RUNS + 2, 0, 0)
    final = results(result.folder).query("not trial").set_index("method")
    assert set(final.loc["smaller"].setting) == set(final.loc["mezo"].setting)
    assert final.loc["equal"].run.tolist() == final.loc["mezo"].run.tolist()
    assert final.loc["smaller"].steps.tolist() == [20, 20]
    assert run_study(study(content), tmp_path / "out").done == RUNS + 2
    assert len(made) == RUNS + 2
    shutil.rmtree(next((tmp_path / "out" / "runs").glob("mezo*trial*")))
    waiting = report_study(study(content), tmp_path / "out")
    assert (waiting.done, waiting.missing) == (RUNS - 2 - 1, 1 + 3 * 2)


def test_runs_that_blow_up_are_counted_alike_whether_a_number_overflows_or_not(study, tmp_path):
    """On least squares the loss grows by a factor a step: few steps of it are finite, many are not."""
    wild = {**MEZO, "rule": {"lr": 10.0}}
    methods = {
        "wild": {"method": wild, "budget": {"queries": 64}},
        "wilder": {"method": {**MEZO, "rule": {"lr": 1e30}}},
        "sgd": {"method": {**SGD, "lr": 0.1}},
    }
    result = run_study(study({**TOY, "methods": methods, "search": None}), tmp_path / "out")
    assert result.failed == 2  # an overflow ends a run, and a large loss does not
    frame = results(tmp_path / "out")
    assert (frame[frame.method == "wild"].validation_loss > 1e3).all()
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for name in ("wild", "wilder"):
        assert any(line.startswith(f"| {name} ") and "- (0 of 2, 2 diverged)" in line for line in text.splitlines())


class Moody(LeastSquares):
    broken = True

    def evaluate(self, model, split):
        if Moody.broken and split == "test":
            raise DataError("the disk is full")
        return super().evaluate(model, split)


def test_a_failure_that_may_have_been_mended_is_tried_again(study, tmp_path, problem, made):
    problem("moody", Moody)
    content = {**TOY, "defaults": {"problem": {"name": "moody", "examples": 40, "dimensions": 4}}}
    assert run_study(study(content), tmp_path / "out").failed == 6
    Moody.broken = False
    try:
        made.clear()
        assert run_study(study(content), tmp_path / "out").failed == 0
        assert len(made) == 6
    finally:
        Moody.broken = True


def test_a_study_of_which_every_run_failed_says_why(study, tmp_path, problem):
    problem("moody", Moody)
    methods = {"sgd": {"method": SGD}}
    base = {"problem": {"name": "moody", "examples": 40, "dimensions": 4}}
    with pytest.raises(RunError, match="all 2 runs failed, the first with: the disk is full"):
        run_study(
            study({**TOY, "defaults": base, "methods": methods, "search": None, "zero_shot": False}), tmp_path / "out"
        )


def test_a_budget_that_does_not_pay_for_a_step_is_refused_before_anything_runs(study, tmp_path, made):
    with pytest.raises(ZofoError, match="training.max_queries is 10, but one step of 'mezo' takes 16"):
        run_study(study({**TOY, "search": {"budget": {"queries": 10}}}), tmp_path / "out")
    assert made == []
    assert not (tmp_path / "out").exists()


# the folder


def test_a_folder_of_another_study_or_of_something_else_is_refused(study, ended, tmp_path):
    with pytest.raises(RunError, match="holds the study 'toy', not 'other'"):
        run_study(study(name="other"), ended)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(RunError, match="exists and holds no study"):
        run_study(study(), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(RunError, match="cannot use"):
        run_study(study(), tmp_path / "toy.yaml")


def test_a_full_disk_is_said_with_what_to_do_and_leaves_nothing_half_written(study, tmp_path, monkeypatch):
    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="cannot write the study .*No space left on device") as refused:
        run_study(study(), tmp_path / "out")
    assert refused.value.hint.startswith("make room on that disk")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["runs", "study.lock"]


def test_two_processes_in_one_folder_are_one_too_many(study, tmp_path):
    store = Store(tmp_path / "out")
    with store.locked(), pytest.raises(RunError, match="another process is running a study"):
        run_study(study(), tmp_path / "out")
    run_study(study(), tmp_path / "out")


def test_a_lock_file_that_is_left_is_no_lock(study, tmp_path):
    """As of a process that was killed: the system has freed it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.lock").write_text("4711", encoding="utf-8")
    run_study(study(), tmp_path / "out")


def test_an_outcome_of_any_other_content_is_damaged(study, ended):
    config = '{"config": {"a": 1}, '
    contents = ["{", "{}", f'{config}"scores": {{}}}}', f'{config}"failed": "x"}}', "[]", '{"steps": "many"}']
    for content in [*contents, f'{config}"scores": {{"test": {{"score": 1}}}}}}', f'{config}"scores": 3}}']:
        (min((ended / "runs").glob("*-trial*")) / "outcome.json").write_text(content, encoding="utf-8")
        with pytest.raises(RunError, match="outcome.json' is damaged"):
            run_study(study(), ended)


def test_a_report_is_of_the_study_whose_folder_it_is(study, ended):
    before = (ended / "results.csv").read_bytes()
    with pytest.raises(RunError, match="holds the study 'toy', not 'other'"):
        report_study(study(name="other"), ended)
    assert (ended / "results.csv").read_bytes() == before


def test_an_error_that_nobody_foresaw_fails_one_run_and_not_the_study(study, tmp_path, monkeypatch, uninterrupted):
    """It is tried again the next time, and only then is there a choice among as many trials as other methods have."""
    step, broken = METHODS["mezo"].step, [True]

    def failing(self, number):
        if broken[0] and self._zo.rule.lr == 1e-2:
            raise MemoryError("no room")
        return step(self, number)

    monkeypatch.setattr(METHODS["mezo"], "step", failing)
    shown = Console(record=True, width=300, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    result = run_study(study(), tmp_path / "out", shown)
    said = shown.export_text()
    shown.file.close()
    assert (result.done, result.failed, result.missing) == (RUNS - 2, 1, 2)
    assert "mezo least-squares: its final runs wait for a trial that failed by accident (MemoryError: no room)" in said
    frame = results(tmp_path / "out")
    assert not len(frame[~frame.trial & (frame.method == "mezo")])
    assert not frame[frame.trial & (frame.method == "mezo")].chosen.any()
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "- **mezo least-squares: no final runs yet.** A trial failed: MemoryError: no room" in report
    broken[0] = False
    result = run_study(study(), tmp_path / "out")
    assert (result.done, result.failed, result.missing) == (RUNS, 0, 0)
    pd.testing.assert_frame_equal(results(tmp_path / "out"), uninterrupted)  # as if it had never happened


def test_an_option_that_is_new_makes_no_run_again(study, ended, made):
    """Outcomes that were written before it existed lack it."""
    for path in (ended / "runs").glob("*/outcome.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        del content["config"]["training"]["eval_batch_size"]
        path.write_text(json.dumps(content), encoding="utf-8")
    run_study(study(), ended)
    assert made == []
    for path in (ended / "runs").glob("*/outcome.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["config"]["training"]["eval_batch_size"] = 4
        path.write_text(json.dumps(content), encoding="utf-8")
    run_study(study(), ended)
    assert len(made) == RUNS  # the default was another then


def test_a_damaged_outcome_is_named(study, ended):
    (min((ended / "runs").glob("*-trial*")) / "outcome.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="outcome.json' is damaged") as refused:
        run_study(study(), ended)
    assert "remove the folder" in refused.value.hint


# plans


def test_a_plan_counts_runs_and_queries_and_writes_nothing(study, tmp_path, made):
    plan = plan_study(study(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (plan.runs, plan.done) == (RUNS, 0)
    assert plan.queries == 4 * 80 + 4 * 160
    assert {(row.method, row.trials, row.finals) for row in plan.rows} == {
        ("mezo", 2, 2),
        ("sgd", 2, 2),
        ("zero-shot", 0, 2),
    }
    assert all(row.timed and row.seconds > 0 for row in plan.rows)
    run_study(study(), tmp_path / "out")
    plan = plan_study(study(), tmp_path / "out")
    assert (plan.runs, plan.done, plan.seconds) == (RUNS, RUNS, 0)


def test_a_plan_that_has_no_time_for_a_place_takes_that_of_another(study, tmp_path, monkeypatch):
    axes = {"batch": {"8": {}, "16": {"method.batch_size": 16}}}
    plan = plan_study(study({**TOY, "axes": axes}), tmp_path / "out", limit=0)
    assert all(row.seconds is None for row in plan.rows)
    assert "not known" in plan.lines()[-1]
    clock = iter([0.0, *[1.0] * 2, *[99.0] * 99])
    monkeypatch.setattr("zofo.studies.plan.time.perf_counter", lambda: next(clock))
    from zofo.studies.problem_executor import ProblemRuns
    from zofo.studies.trial import CostEstimate

    monkeypatch.setattr(
        ProblemRuns, "costs", lambda self, configs, remote_code: [CostEstimate(160, 2.0), CostEstimate(80, 1.0)]
    )
    plan = plan_study(study({**TOY, "axes": axes}), tmp_path / "out", limit=50)
    timed = {(row.method, row.cell): (row.timed, row.seconds) for row in plan.rows}
    assert timed["mezo", "least-squares 8"][0]
    assert not timed["mezo", "least-squares 16"][0]
    assert timed["mezo", "least-squares 16"][1] == timed["mezo", "least-squares 8"][1]


def test_a_plan_counts_a_control_and_names_the_trial_that_does_not_suit_it(study, tmp_path):
    control = {"method": {**MEZO, "batch_size": 4}, "tuned_by": "mezo", "seeds": [0]}
    plan = plan_study(study({**TOY, "methods": {**TOY["methods"], "control": control}}), tmp_path / "out")
    assert [(row.trials, row.finals) for row in plan.rows if row.method == "control"] == [(0, 1)]
    trials = [{"method.batch_size": 8}, {"method.batch_size": 40}]
    methods = {**TOY["methods"], "mezo": {"method": MEZO, "trials": trials}}
    small = {"method": {"name": "mezo", "noise": "gaussian"}, "tuned_by": "mezo", "budget": {"queries": 40}}
    with pytest.raises(ZofoError, match="methods.control, trial 2 of mezo, least-squares: training.max_queries is 40"):
        plan_study(study({**TOY, "methods": {**methods, "control": small}}), tmp_path / "out")


def test_a_plan_says_what_cannot_run_before_it_times_anything(study, tmp_path):
    told = []
    with pytest.raises(ZofoError, match="methods.mezo, least-squares: .*one step of 'mezo' takes 16"):
        plan_study(study({**TOY, "budget": {"queries": 10}}), tmp_path / "out", on_progress=told.append)
    assert told == []


# tasks


@pytest.mark.parametrize("keeps", [False, True])
def test_weights_go_when_they_are_scored_unless_they_are_to_stay(study, tmp_path, model_folder, data_dir, keeps):
    """In half precision also those of zeroth-order steps; adapters, trajectories and logs stay in any case."""
    whole = {"method": {"name": "first-order", "parameters": "all", "lr": 1e-3}}
    methods = {"mezo": {"method": {"name": "mezo"}}, "all": whole, "lora": {"method": {"name": "first-order"}}}
    model = {"name": str(model_folder), "dtype": "bfloat16"}
    content = task_study(model_folder, data_dir, methods=methods, search=None, zero_shot=False, seeds=[0])
    content["defaults"]["model"] = model
    out = tmp_path / "out"
    assert run_study(study({**content, "keep_weights": keeps}), out).failed == 0
    run = {folder.name.split("-")[0]: RunFolder.open(folder) for folder in (out / "runs").iterdir()}
    assert (run["mezo"].path / "trajectory.bin").is_file()
    run["lora"].load(best=True)
    for name in ("mezo", "all"):
        assert (run[name].path / "weights.safetensors").is_file() == keeps
        assert (run[name].path / "best" / "weights.safetensors").is_file() == keeps
        if keeps:
            run[name].load()
        else:
            with pytest.raises(RunError, match="weights.safetensors', a part of the trained model, is missing") as said:
                run[name].load()
            assert "--set keep_weights=true" in said.value.hint


def task_study(model_folder, data_dir, **changes):
    content = {
        "defaults": {
            "model": str(model_folder),
            "task": {"name": "sst2", "data_dir": str(data_dir)},
            "method": {"batch_size": 4},
        },
        "budget": {"queries": 32},
        "seeds": [0, 1],
        "num_evals": 2,
        "methods": {
            "mezo": {"method": {"name": "mezo"}, "trials": [{"method.rule.lr": 1e-3}, {"method.rule.lr": 1e-4}]},
            "lora": {"method": {"name": "first-order"}, "trials": [{"method.lr": 1e-2}, {"method.lr": 1e-3}]},
        },
        "search": {"budget": {"queries": 16}},
        "zero_shot": True,
        "baseline": "mezo",
    }
    return {**content, **changes}


def test_a_study_of_a_task_is_made_of_run_folders(study, tmp_path, model_folder, data_dir):
    result = run_study(study(task_study(model_folder, data_dir)), tmp_path / "out")
    assert (result.done, result.failed) == (RUNS, 0)
    frame = results(tmp_path / "out")
    assert set(frame.metric) == {"accuracy"}
    assert set(frame.model) == {"tiny-llama"}
    assert set(frame.task) == {"sst2"}
    for row in frame.itertuples():
        run = RunFolder.open(tmp_path / "out" / "runs" / row.run)
        assert run.config.method.name == {"mezo": "mezo", "lora": "first-order"}.get(row.method, row.method)
        assert run.config.task.split_seed == row.seed
        scored = evaluate_run(run.path, split="validation" if row.trial else "test")
        assert scored.score == (row.validation_score if row.trial else row.score)
        assert ("test" in run.summary) == (not row.trial)
    final = frame[~frame.trial].set_index("method")
    assert final.queries.to_dict() == {"zero-shot": 0, "mezo": 32, "lora": 32}
    assert final.majority.notna().all()
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    one = curves[(curves.method == "mezo") & ~curves.trial & (curves.seed == 1)]
    assert one[["steps", "queries"]].to_numpy().tolist() == [[2, 16], [4, 32]]


@pytest.mark.parametrize("changed", [False, True])
def test_a_run_of_a_task_that_was_stopped_goes_on_where_it_was_if_its_rows_are_as_they_were(
    study, tmp_path, model_folder, data_dir, monkeypatch, changed
):
    methods = {"mezo": {"method": {"name": "mezo"}}}
    changes = {"methods": methods, "search": None, "zero_shot": False, "seeds": [0]}
    content = study(task_study(model_folder, data_dir, **changes))
    steps, step = [], MeZO.step

    def stopped(self, number):
        steps.append(number)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, number)

    monkeypatch.setattr(MeZO, "step", stopped)
    with pytest.raises(Interrupted):
        run_study(content, tmp_path / "out")
    if changed:
        rows = (data_dir / "train.jsonl").read_text(encoding="utf-8").splitlines()
        (data_dir / "train.jsonl").write_text("\n".join(reversed(rows)) + "\n", encoding="utf-8")
    result = run_study(content, tmp_path / "out")
    assert (result.done, result.failed) == (1, 0)
    assert steps == ([0, 1, 0, 1, 2, 3] if changed else [0, 1, 2, 3])  # each was made once
    run_study(content, tmp_path / "whole")
    pd.testing.assert_frame_equal(results(tmp_path / "out", MEASURED), results(tmp_path / "whole", MEASURED))


@pytest.mark.parametrize("damaged", [[3], [2, 3]])
def test_a_run_whose_checkpoints_are_damaged_says_so_and_keeps_them(
    study, tmp_path, model_folder, data_dir, monkeypatch, damaged
):
    """As a single run does: the one before is used, or it fails, each time anew, until they are put back."""
    changes = {"methods": {"mezo": {"method": {"name": "mezo"}}}, "search": None, "zero_shot": False, "seeds": [0]}
    content = task_study(model_folder, data_dir, **changes)
    content = study({**content, "defaults": {**content["defaults"], "training.save_steps": 1}})
    steps, step = [], MeZO.step

    def stopped(self, number):
        steps.append(number)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, number)

    monkeypatch.setattr(MeZO, "step", stopped)
    with pytest.raises(Interrupted):
        run_study(content, tmp_path / "out")
    (checkpoints,) = (tmp_path / "out" / "runs").glob("*/checkpoints")
    kept, shown = shutil.copytree(checkpoints, tmp_path / "kept"), io.StringIO()
    files = [checkpoints / f"step-0000000{step}" / "state.json" for step in damaged]
    for file in files:
        file.write_text("{}", encoding="utf-8")
    console = Console(file=shown, width=10_000)
    if len(damaged) == 1:
        assert run_study(content, tmp_path / "out", console).failed == 0
        assert (
            f"warning: {str(files[0])!r} is damaged: its SHA-256 is not the one in the manifest: the checkpoint before"
            in shown.getvalue()
        )
        assert steps == [0, 1, 2, 2, 3]
    else:
        for _ in range(2):
            with pytest.raises(RunError, match="no checkpoint in .* can be used") as failed:
                run_study(content, tmp_path / "out", console)
            assert f"remove {str(checkpoints)!r} to begin the run again" in failed.value.hint
            assert all(file.is_file() for file in files)
        assert shown.getvalue().count("; hint: put back a copy of one, or remove") == 2
        shutil.copytree(kept, checkpoints, dirs_exist_ok=True)
        assert run_study(content, tmp_path / "out").failed == 0
        assert steps == [0, 1, 2, 3]
    run_study(content, tmp_path / "whole")
    pd.testing.assert_frame_equal(results(tmp_path / "out", MEASURED), results(tmp_path / "whole", MEASURED))


@pytest.mark.parametrize("file", ["config.yaml", "summary.json"])
def test_what_a_stopped_run_left_that_cannot_be_read_is_made_again(study, tmp_path, model_folder, data_dir, file):
    methods = {"mezo": {"method": {"name": "mezo"}}}
    changes = {"methods": methods, "search": None, "zero_shot": False, "seeds": [0]}
    content = study(task_study(model_folder, data_dir, **changes))
    run_study(content, tmp_path / "out")
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    before = results(tmp_path / "out", MEASURED)
    (folder / "outcome.json").unlink()
    (folder / file).write_text("{", encoding="utf-8")
    result = run_study(content, tmp_path / "out")
    assert (result.done, result.failed) == (1, 0)
    pd.testing.assert_frame_equal(results(tmp_path / "out", MEASURED), before)


MISTAKES = {
    "a task": ({"tasks": {"sst2": {}, "sst3": None}}, "tasks.sst3.task.name: unknown task 'sst3'. Did you mean 'sst2'"),
    "a metric": ({"tasks": {"sst2": {"task.metric": "accurracy"}}}, "tasks.sst2.task.metric: unknown metric"),
    "a prompt": ({"tasks": {"sst2": {"task.prompt": "nil"}}}, "tasks.sst2.task.prompt: unknown prompt"),
    "a folder": ({"defaults": {"task.data_dir": "nowhere"}}, "defaults.task.data_dir: there is no folder 'nowhere'"),
    "a model": ({"models": {"a": {"model": "/nowhere"}}}, "models.a.model.name: unknown model '/nowhere'"),
    "an objective": (
        {"methods": {"mezo": {"trials": [{}, {"training.objective": "answr"}]}}},
        "methods.mezo.trials.2.training.objective: unknown objective 'answr'. Did you mean 'answer'",
    ),
    "an objective of one method in one place": (
        {"axes": {"by": {"a": {}, "b": {"methods": {"lora": {"training.objective": "answr"}}}}}},
        "axes.by.b.methods.lora.training.objective: unknown objective",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
@pytest.mark.parametrize("begin", [run_study, plan_study])
def test_a_mistake_in_any_run_is_named_by_its_key_before_the_first_is_made(
    study, tmp_path, model_folder, data_dir, made, case, begin
):
    changes, message = MISTAKES[case]
    plain = {key: value for key, value in changes.items() if key not in ("defaults", "methods")}
    content = task_study(model_folder, data_dir, **plain)
    content["defaults"] = merge_trees(content["defaults"], changes.get("defaults", {}))
    for name, change in changes.get("methods", {}).items():
        content["methods"] = {**content["methods"], name: {**content["methods"][name], **change}}
    with pytest.raises(ZofoError, match=re.escape(message)):
        begin(study(content), tmp_path / "out")
    assert made == []
    assert not (tmp_path / "out").exists()


def test_all_mistakes_are_said_at_once(study, tmp_path, model_folder, data_dir):
    tasks = {"sst2": {"task.metric": "accurracy"}, "sst3": None}
    content = task_study(model_folder, data_dir, tasks=tasks, zero_shot=True)
    with pytest.raises(ZofoError) as refused:
        run_study(study(content), tmp_path / "out")
    assert [line.partition(": ")[0] for line in refused.value.message.splitlines()] == [
        "tasks.sst2.task.metric",
        "tasks.sst3.task.name",
    ]


def test_no_plan_is_made_of_trials_whose_budget_pays_for_no_step(study, tmp_path, model_folder, data_dir):
    with pytest.raises(ZofoError, match=r"methods\.mezo.*one step of 'mezo' takes 8"):
        plan_study(
            study(task_study(model_folder, data_dir, search={"budget": {"queries": 7}})), tmp_path / "out", limit=0
        )


def test_a_plan_of_a_task_times_it(study, tmp_path, model_folder, data_dir):
    plan = plan_study(study(task_study(model_folder, data_dir)), tmp_path / "out")
    assert (plan.runs, plan.queries) == (RUNS, 4 * 16 + 4 * 32)
    assert all(row.timed and row.seconds > 0 and row.fault is None for row in plan.rows)


def test_a_run_scores_the_test_split_once_if_it_is_asked_to(tmp_path, model_folder, data_dir):
    config = {"model": str(model_folder), "task": {"name": "sst2", "data_dir": str(data_dir)}}
    config["method"] = {"name": "bilevel", "batch_size": 4, "inner_steps": 1}
    training = {"steps": 5, "num_evals": 2}
    run = train(read_config(**config, training={**training, "eval_on_test": True}, output_dir=str(tmp_path / "one")))
    assert set(run.summary["test"]) == set(run.summary["variants"]) == {"adapter", "lower_adapter"}
    for variant, scores in run.summary["test"].items():
        assert evaluate_run(run.path, split="test", variant=variant).as_dict() == pytest.approx(scores, abs=1e-6)
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    assert [line["steps"] for line in lines if line["event"] == "evaluation"] == [3, 3, 5, 5]
    (data_dir / "test.jsonl").unlink()  # it is not even read
    other = train(read_config(**config, training=training, output_dir=str(tmp_path / "two")))
    assert "test" not in other.summary
    more = run.summary["evaluation"]["queries"] - other.summary["evaluation"]["queries"]
    assert more == 2 * 12  # both variants on the 12 rows of test, counted as evaluation
    assert run.summary["queries"] == other.summary["queries"]


# the command line, and processes


def test_the_command_runs_plans_and_reports(run_zofo, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study()
    code, out, _ = run_zofo("study", "toy.yaml", "--plan")
    assert code == 0
    assert f"{RUNS} runs, 0 of them done; 960 queries in all" in out
    assert not (tmp_path / "runs").exists()
    code, out, err = run_zofo("study", "toy.yaml", "--set", "seeds=[4]")
    assert code == 0
    assert "7 runs are done" in out
    assert "[7/7] sgd least-squares seed 4: loss " in err
    assert (tmp_path / "runs" / "toy" / "report.md").is_file()
    code, out, _ = run_zofo("study", "toy.yaml", "--report-only")
    assert code == 0
    assert "4 runs are done; 6 are not done" in out  # the trials are the same; the file's own seeds have no runs yet


def test_a_plan_of_runs_that_cannot_be_made_says_which_and_leaves_with_code_1(run_zofo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "defaults": {"model": "someone/not-here"},
        "tasks": {"movie-reviews": None},
        "methods": {"mezo": {"method": {"name": "mezo"}}},
        "budget": {"queries": 64},
        "seeds": [0],
    }
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    code, out, _ = run_zofo("study", "far.yaml", "--plan")
    assert code == 1
    assert "cannot run" in out
    assert "not-here" in out


def test_a_report_is_not_written_over_by_one_of_nothing(run_zofo, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study()
    assert run_zofo("study", "toy.yaml")[0] == 0
    report = (tmp_path / "runs" / "toy" / "report.md").read_bytes()
    code, _, err = run_zofo("study", "toy.yaml", "--report-only", "--set", "search.seeds=[77]", "--set", "seeds=[78]")
    assert code == 2
    assert f"holds {RUNS} results, and none of them is of the study as it is now" in err
    assert (tmp_path / "runs" / "toy" / "report.md").read_bytes() == report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "there is no study file"),
        (["digts"], "Did you mean 'digits'"),
        (["toy.yaml", "--set", "seeds"], "is not key=value"),
        (["toy.yaml", "--set", "seeds=[0,0]"], "seeds: 0 is given twice"),
        (["toy.yaml", "--out", "toy.yaml"], "cannot use 'toy.yaml'"),
        (["toy.yaml", "--set", "budget.queries=3"], "one step of"),
        (["toy.yaml", "--report-only"], "holds no study"),
        (["toy.yaml", "--plan", "--report-only"], "--plan shows runs and --report-only writes results"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(run_zofo, study, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    study()
    code, out, err = run_zofo("study", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_packaged_studies_are_listed(run_zofo):
    code, out, _ = run_zofo("list", "studies", "--json")
    assert code == 0
    assert {"movie-reviews"} <= set(json.loads(out)["studies"])


def children_of(process):
    return psutil.Process(process.pid).children(recursive=True)


def start(tmp_path, *arguments):
    command = [sys.executable, "-m", "zofo", "study", "toy.yaml", "--out", "out", *arguments]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


LONG = {**TOY, "budget": {"queries": 160_000}, "search": {"budget": {"queries": 320}}}


def test_several_runs_at_a_time_end_with_a_process_that_is_killed_and_the_study_goes_on(study, tmp_path):
    """As in the test below, in processes that are forked from this one, which has imported all that they need."""

    def work(rank):
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks and threads
        process_pool.worker_context = lambda _: multiprocessing.get_context("fork")
        run_study(study(LONG), tmp_path / "out", jobs=2)

    started, runs = Started(work, tmp_path, size=1), tmp_path / "out" / "runs"
    wait_for(lambda: len(list(runs.glob("*/outcome.json"))) >= 4)  # the trials; final runs take longer
    wait_for(lambda: any(not (one / "outcome.json").exists() for one in runs.iterdir()))
    children = psutil.Process(started.pids[0]).children(recursive=True)
    assert len(children) >= 2
    started.kill(0)
    assert started.results() == [None]
    assert not psutil.wait_procs(children, timeout=10)[1]
    goes_on(study, tmp_path)


def test_a_worker_that_is_asked_to_stop_takes_no_other_run(tmp_path):
    """Which waits for it in a queue of the pool: a study would wait for that run, too, before it says who died."""

    def stopped(*_):
        raise Interrupted("SIGTERM", 143, 1)

    def work(rank):
        warnings.simplefilter("ignore", DeprecationWarning)
        process_pool.perform = stopped
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
        waiting = [pool.submit(process_pool._perform, {}, "", False), pool.submit(os.getpid)]
        return [type(one.exception(20)).__name__ for one in waiting]

    assert Started(work, tmp_path, size=1).results(seconds=30) == [["BrokenProcessPool"] * 2]


def goes_on(study, tmp_path):
    runs = tmp_path / "out" / "runs"
    kept = {path.parent.name for path in runs.glob("*/outcome.json")}
    result = run_study(study({**LONG, "budget": {"queries": 160}}), tmp_path / "out")  # takes over the lock
    assert (result.done, result.failed) == (RUNS, 0)
    assert kept <= {path.parent.name for path in runs.glob("*/outcome.json")}


@pytest.mark.soak
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_several_runs_at_a_time_end_with_the_process_and_the_study_goes_on(study, tmp_path, how):
    study(LONG)
    process = start(tmp_path, "--jobs", "2")
    runs = tmp_path / "out" / "runs"
    wait_for(lambda: len(list(runs.glob("*/outcome.json"))) >= 4)
    wait_for(lambda: any(not (one / "outcome.json").exists() for one in runs.iterdir()))
    children = children_of(process)
    assert len(children) >= 2
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    assert not psutil.wait_procs(children, timeout=10)[1]
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "type the same command again to resume" in err
        assert "stopped by SIGINT before its end; what its runs have saved is kept" in err
        assert "Traceback" not in err
    goes_on(study, tmp_path)


@pytest.mark.parametrize(
    ("codes", "at", "said"),
    [
        ([-15, -9], {2: "sgd-toy"}, "made the run sgd-toy was ended by SIGKILL, most likely since memory ran out"),
        ([-11, None], {1: "mezo-toy", 2: "sgd-toy"}, "made the run mezo-toy was ended by SIGSEGV"),
        ([0, 3], {}, "made a run was ended by exit code 3"),
        ([-15, -15], {1: "mezo-toy"}, "made a run was ended by SIGTERM"),
    ],
)
def test_a_worker_that_dies_is_named_by_its_run_and_what_ended_it(codes, at, said):
    children = [SimpleNamespace(pid=number, exitcode=code) for number, code in enumerate(codes, start=1)]
    assert process_pool._who_died(children, at) == f"the process that {said}"


@pytest.mark.soak  # that several runs at a time can be made is in the test above
def test_runs_at_a_time_give_the_same_results(study, tmp_path, uninterrupted):
    run_study(study(), tmp_path / "out", jobs=2)
    pd.testing.assert_frame_equal(results(tmp_path / "out"), uninterrupted)


def test_what_is_dropped_after_results_were_seen_is_marked(study, tmp_path):
    out = tmp_path / "out"
    run_study(study(), out)
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "no part of the study any more" not in report
    fewer = {name: {**one, "trials": one["trials"][:1]} for name, one in TOY["methods"].items()}
    run_study(study({**TOY, "methods": fewer}), out)
    report = (out / "report.md").read_text(encoding="utf-8")
    section = report.split("## What is no part of the study any more")[1].split("\n## ")[0]
    dropped = re.findall(r"`(.+?)`", section)
    second = {one.id for one in study().grid.trials if one.setting == 1}
    assert second <= set(dropped)
    kept = {one.id for one in study({**TOY, "methods": fewer}).grid.trials}
    assert not kept & set(dropped)


def test_what_waits_for_a_choice_is_not_named_as_dropped(study, tmp_path):
    """With a trial that is not made yet, no setting is chosen, and every final run may be one of the study's."""
    out, more = tmp_path / "out", {}
    run_study(study(), out)
    for name, key in (("mezo", "method.rule.lr"), ("sgd", "method.lr")):
        more[name] = {**TOY["methods"][name], "trials": [*TOY["methods"][name]["trials"], {key: 1e-4}]}

    def dropped(**changes):
        report_study(study({**TOY, "methods": more, **changes}), out)
        report = (out / "report.md").read_text(encoding="utf-8")
        return re.findall(r"- `(.+?)`", report.partition("## What is no part of the study any more")[2])

    finals = {path.name for path in (out / "runs").iterdir()} - {run.id for run in study().grid.trials}
    assert len(finals) == 6
    assert dropped() == []
    gone = dropped(seeds=[0])
    assert set(gone) <= finals
    assert len(gone) == 3
    assert all("-seed1-" in name for name in gone)
    gone = dropped(methods={"mezo": more["mezo"]}, baseline=None)
    assert len(gone) == 4  # two trials and two final runs
    assert all(name.startswith("sgd-") for name in gone)
