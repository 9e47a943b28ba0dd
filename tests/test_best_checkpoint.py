"""The test split at the best evaluation on validation, beside that after the last step."""

import signal

import pytest
from rich.console import Console

from zofo.errors import ConfigError, Interrupted
from zofo.studies import read_study, run_study
from zofo.training import read_config, train
from zofo.training.callbacks import BestCheckpoint
from zofo.training.inference import evaluate_run

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


def test_a_study_scores_the_best_checkpoint_and_keeps_the_last(study, tmp_path):
    import pandas

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
