"""The test split at the best evaluation on validation, beside that after the last step."""

import io
import re
import signal
from contextlib import suppress
from types import SimpleNamespace

import pandas
import pytest
from rich.console import Console

from zofo.errors import ConfigError, Interrupted
from zofo.studies import read_study, run_study
from zofo.training import RunFolder, read_config, train
from zofo.training.callbacks import BestCheckpoint
from zofo.training.early_stopping import EarlyStopping
from zofo.training.evaluation import Evaluation
from zofo.training.inference import evaluate_run
from zofo.training.training_config import TrainingConfig

WILD = {"name": "mezo", "batch_size": 4, "rule": {"lr": 0.05}}  # the best evaluation is seldom the last one


@pytest.fixture
def configured(model_folder, data_dir, tmp_path):
    def make(name, **training):
        task = {"name": "sst2", "data_dir": str(data_dir), "split_sizes": {"train": 24, "validation": 6, "test": 10}}
        given = {"steps": 6, "eval_steps": 2, "eval_on_test": "best", **training}
        return read_config(
            model=str(model_folder), task=task, method=WILD, training=given, output_dir=str(tmp_path / name)
        )

    return make


@pytest.fixture
def falling(monkeypatch):
    """Makes the first evaluation the best one."""
    inner = BestCheckpoint.after_evaluation

    def first_alone(self, steps, scores):
        if self.score is None:
            inner(self, steps, scores)

    monkeypatch.setattr(BestCheckpoint, "after_evaluation", first_alone)


def test_the_best_checkpoint_is_tested_where_it_is_found(configured, falling):
    run = train(configured("run"))
    best = run.summary["best"]
    assert best["step"] == 2
    there = evaluate_run(run.path, split="test", best=True)
    assert best["test"]["model"]["loss"] == pytest.approx(there.loss, rel=1e-6)
    last = evaluate_run(run.path, split="test")
    assert run.summary["test"]["model"]["loss"] == pytest.approx(last.loss, rel=1e-6)
    assert best["test"] != run.summary["test"]
    rows = 3 * 6 + 2 * 10  # evaluations of validation, and of test at the best and after the last step
    assert run.summary["evaluation"]["queries"] == rows


@pytest.mark.parametrize("eval_steps", [None, 6])
def test_a_last_evaluation_that_is_the_best_is_tested_once(configured, eval_steps):
    run = train(configured("run", eval_steps=eval_steps))
    assert run.summary["best"]["step"] == 6
    assert run.summary["best"]["test"] == run.summary["test"]
    assert run.summary["test"]["model"]["loss"] == pytest.approx(evaluate_run(run.path, split="test").loss, rel=1e-6)
    assert run.summary["evaluation"]["queries"] == 6 + 10
    answers = (run.path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len([line for line in answers if '"test"' in line]) == 10


def test_a_run_that_is_stopped_has_the_same_in_the_end(configured, falling):
    whole = train(configured("whole")).summary
    config = configured("run")

    class Stopping:
        """Asks the process to stop when the fourth step is shown."""

        def write(self, text):
            if "step 4/6" in text:
                signal.raise_signal(signal.SIGTERM)

        def flush(self):
            pass

    with pytest.raises(Interrupted):
        train(config, Console(file=Stopping()))
    again = train(config).summary
    assert again["best"] == whole["best"]
    for key in ("forwards", "queries"):
        assert again["evaluation"][key] == whole["evaluation"][key]


def test_a_run_ends_after_as_many_evaluations_without_a_better_one(configured, falling):
    shown = io.StringIO()
    config = configured("run", steps=20, early_stopping_patience=3)
    run = train(config, Console(file=shown, width=300))
    assert (run.summary["steps"], run.summary["evaluated_after"], run.summary["best"]["step"]) == (8, 8, 2)
    assert run.summary["early_stopping"] == {"patience": 3, "planned_steps": 20}
    assert run.summary["stopped"] is None
    said = "stopped after 8 of 20 steps: 3 evaluations in a row were no better than that after 2"
    assert said in shown.getvalue()
    assert any(said in line for line in run.summary["conclusions"])
    short = train(configured("short", steps=8)).summary  # the same steps, without a patience
    assert {key: run.summary[key] for key in ("loss", "backbone", "test")} == {
        key: short[key] for key in ("loss", "backbone", "test")
    }
    assert "early_stopping" not in short


@pytest.mark.parametrize(("rows", "lost", "said"), [(200, 0.09, False), (200, 0.11, True), (10, 0.4, False)])
def test_a_last_score_that_is_clearly_below_the_best_one_is_said(rows, lost, said):
    """By more than two standard errors of the difference of two shares of so many rows: .1 of 200."""
    last = Evaluation("accuracy", 0.8 - lost, 0.5, 0.5, (0,) * rows)
    evaluating = SimpleNamespace(last={"model": last}, steps_made=9, steps_evaluated=9)
    ended = EarlyStopping(TrainingConfig(steps=9), 9, SimpleNamespace(score=0.8, step=3), evaluating)
    told = [line for line in ended.conclusions() if "accuracy on validation was 80.0 % after 3 steps, and is" in line]
    assert len(told) == len(ended.conclusions()) == said


def test_without_a_patience_or_with_better_scores_all_steps_are_made(configured, monkeypatch):
    def rising(self, steps, scores):
        self.score, self.step = steps, steps

    monkeypatch.setattr(BestCheckpoint, "after_evaluation", rising)
    summary = train(configured("run", early_stopping_patience=1, eval_on_test=False)).summary
    assert summary["steps"] == 6
    assert "early_stopping" not in summary


@pytest.mark.parametrize("at", [3, 4, 7, 8])
def test_a_run_that_goes_on_ends_early_at_the_same_step(configured, falling, at):
    whole = train(configured("whole", steps=20, early_stopping_patience=3, save_steps=1)).summary
    config = configured("run", steps=20, early_stopping_patience=3, save_steps=1)

    class Stopping(io.StringIO):
        """Asks the process to stop when a step is shown."""

        def write(self, text):
            if f"step {at}/20" in text or f"after {at} steps" in text:
                signal.raise_signal(signal.SIGTERM)
            return len(text)

    with suppress(Interrupted):
        train(config, Console(file=Stopping()))
    again = RunFolder(config.output_dir).summary if RunFolder(config.output_dir).ended else train(config).summary
    kept = ("steps", "best", "loss", "backbone", "early_stopping", "conclusions", "test", "queries")
    assert {key: again[key] for key in kept} == {key: whole[key] for key in kept}


@pytest.mark.parametrize(
    ("method", "training", "message"),
    [
        (WILD, {"eval_steps": None}, "early_stopping_patience=3 ends no run that is scored 1 time$"),
        (WILD, {}, "early_stopping_patience=3 ends no run that is scored 3 times"),
        (WILD, {"steps": 3, "eval_steps": 1}, "a run of 3 steps is too short for it"),
        (
            {"name": "select", "batch_size": 4, "population": 2, "gate_examples": 0},
            {"eval_steps": 1},
            "method=select needs the last of",
        ),
        ({"name": "two-stage", "batch_size": 4, "adapter_steps": 2}, {"eval_steps": 1}, "method=two-stage needs the"),
    ],
)
def test_a_patience_that_cannot_end_a_run_is_refused(configured, tmp_path, method, training, message):
    config = configured("run", early_stopping_patience=3, **training)
    chosen = read_config(None, [], **{**config.model_dump(mode="json"), "method": method})
    with pytest.raises(ConfigError) as refused:
        train(chosen)
    assert re.search(message, f"{refused.value.message}\n{refused.value.hint}", re.MULTILINE)
    assert not (tmp_path / "run").exists()


STUDY = {
    "defaults": {"problem": {"name": "digits"}},
    "budget": {"steps": 6},
    "seeds": [0, 1],
    "num_evals": 3,
    "methods": {"mezo": {"method": {"name": "mezo", "batch_size": 4, "rule": {"lr": 0.05}}}},
}


@pytest.fixture
def study(tmp_path):
    import yaml

    def make(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
        return read_study(path)

    return make


def test_runs_of_a_study_have_one_budget_and_do_not_end_early(study):
    with pytest.raises(ConfigError, match="defaults.training.early_stopping_patience: how long a run is") as refused:
        study(defaults={"model": "tiny", "task": "sst2", "training": {"early_stopping_patience": 2}})
    assert "use budget" in refused.value.hint


def test_a_study_scores_the_best_checkpoint_and_keeps_the_last(study, tmp_path):
    frames = {}
    for checkpoint in ("last", "best"):
        run_study(study(checkpoint=checkpoint), tmp_path / checkpoint)
        frames[checkpoint] = pandas.read_csv(tmp_path / checkpoint / "results.csv")
    assert list(frames["best"]["test_last_score"]) == list(frames["last"]["test_score"])
    assert frames["last"]["test_last_score"].isna().all()
    assert list(frames["best"]["score"]) == list(frames["best"]["test_score"])
    said = (tmp_path / "best" / "report.md").read_text()
    assert "the evaluation of a run that was the best on validation" in said


def test_the_best_on_validation_is_not_scored_there(study):
    with pytest.raises(ConfigError, match="says too much"):
        study(checkpoint="best", split="validation")
