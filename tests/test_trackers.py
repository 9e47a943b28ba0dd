"""Trackers: what their own readers see is what the log holds, also of a run that went on."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from accelerate.tracking import TensorBoardTracker
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import zofo
from zofo.errors import ConfigError, UnknownNameError
from zofo.methods import METHODS
from zofo.training import read_config
from zofo.training.run_logs import metrics_lines
from zofo.training.run_record import TRACKING


@pytest.fixture
def configured(model_folder, data_dir, tmp_path):
    def configure(trackers, method="bilevel", **training):
        return read_config(
            model=str(model_folder),
            task={"name": "movie-reviews", "data_dir": str(data_dir)},
            method={"name": method, "batch_size": 4},
            training={"steps": 5, "eval_steps": 2, "save_steps": 2, "report_to": trackers, **training},
            output_dir=tmp_path / "run",
        )

    return configure


@pytest.fixture
def stop_in_step(monkeypatch):
    """Let a bilevel run fail in a step, once."""

    def let_fail(number):
        kind = METHODS["bilevel"]
        step, left = kind.step, [number]

        def failing(self, at):
            if at in left:
                left.clear()
                raise RuntimeError("the machine went away")
            return step(self, at)

        monkeypatch.setattr(kind, "step", failing)

    return let_fail


def expected(run):
    """The numbers of the log by name, at the number of steps that were made."""
    found: dict[str, dict[int, float]] = {}
    for line in metrics_lines(run.metrics):
        made = line["step"] + 1 if line["event"] == "step" else line.get("steps")
        if made is None:
            continue
        name = {"step": "", "evaluation": "evaluation/"}[line["event"]]
        name += "lower_adapter/" if line.get("variant") == "lower_adapter" else ""
        for key, value in line.items():
            if key not in ("event", "step", "steps", "variant"):
                found.setdefault(f"{name}{key}", {})[made] = value
    return found


def in_tensorboard(run):
    reader = EventAccumulator(str(run.path / TRACKING / "tensorboard"))
    reader.Reload()
    return {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def check_same(seen, run):
    """Each step once, in order, with the value of the log; a tracker may hold float32."""
    wanted = expected(run)
    assert set(seen) == set(wanted)
    assert {"loss", "queries", "evaluation/accuracy", "evaluation/lower_adapter/loss"} <= set(seen)
    for name, values in seen.items():
        assert [step for step, _ in values] == sorted(wanted[name])
        assert [value for _, value in values] == pytest.approx([wanted[name][step] for step, _ in values], rel=1e-6)


def test_tensorboard_sees_what_the_log_holds(configured):
    run = zofo.train(configured("tensorboard"))
    check_same(in_tensorboard(run), run)
    shutil.rmtree(run.path / TRACKING)  # no part of the model
    assert zofo.evaluate_run(run.path).score == run.summary["accuracy"]


def test_a_run_that_goes_on_is_seen_as_one(configured, stop_in_step):
    """It fails after step 3 was sent, and goes on from the checkpoint after step 2."""
    config = configured(["tensorboard"])
    stop_in_step(3)
    with pytest.raises(RuntimeError, match="went away"):
        zofo.train(config)
    run = zofo.train(config)
    assert len(list((run.path / TRACKING / "tensorboard").glob("events.*"))) == 2
    check_same(in_tensorboard(run), run)


def test_a_tracker_that_fails_costs_no_step(configured, monkeypatch):
    log = TensorBoardTracker.log

    def failing(self, values, step=None):
        if step == 3:
            raise OSError("no route to host")
        return log(self, values, step)

    monkeypatch.setattr(TensorBoardTracker, "log", failing)
    console = Console(record=True, width=400, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    run = zofo.train(configured("tensorboard"), console)
    console.file.close()
    said = [line for line in console.export_text().splitlines() if "tensorboard" in line]
    assert said == ["warning: tensorboard fails and gets nothing more: no route to host; metrics.jsonl goes on"]
    assert run.summary["steps"] == 5
    assert [step for step, _ in in_tensorboard(run)["loss"]] == [1, 2]
    assert sorted(expected(run)["loss"]) == [1, 2, 3, 4, 5]


def test_what_cannot_be_reported_to_is_refused_before_the_run(configured, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["zofo.training.train"], "prepare_run", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UnknownNameError, match="Did you mean 'tensorboard'"):
        zofo.train(configured("tensorbord"))
    monkeypatch.setattr("zofo.training.trackers.find_spec", lambda _: None)
    for name, package in (("mlflow", "mlflow"), ("comet_ml", "comet-ml")):
        with pytest.raises(ConfigError, match=f"{name!r}, whose package is not installed") as refused:
            zofo.train(configured([name]))
        assert refused.value.hint.startswith(f"pip install {package}")
    assert not (tmp_path / "run").exists()
    assert configured("none").training.report_to == configured(None).training.report_to == []


@pytest.mark.soak
def test_trackio_sees_what_the_log_holds_also_of_a_run_that_went_on(configured, stop_in_step, tmp_path, monkeypatch):
    """Steps that were made again may be there twice, with the same values."""
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    for module in ("trackio.utils", "trackio.sqlite_storage"):
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    config = configured("trackio")
    stop_in_step(3)
    with pytest.raises(RuntimeError, match="went away"):
        zofo.train(config)
    run = zofo.train(config)
    name = json.loads((run.path / TRACKING / "runs.json").read_text())["trackio"]
    assert [one.name for one in trackio.Api().runs("zofo")] == [name]
    wanted, seen = expected(run), {}
    for line in SQLiteStorage.get_logs("zofo", name):
        for key, value in line.items():
            if key in wanted and key != "seconds":
                seen.setdefault(key, {}).setdefault(line["step"], set()).add(value)
    assert set(seen) == set(wanted) - {"seconds"}
    for key, values in seen.items():
        assert {step: one for step, (one,) in sorted(values.items())} == wanted[key]
