"""A run that was stopped goes on to the bits of one that was not."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from conftest import build_model, review_rows, with_soak, write_rows
from metaicl_rows import write_tasks
from zofo.cli.terminal import Terminal
from zofo.errors import CheckpointError, Interrupted, NonFiniteError, RunError
from zofo.methods import METHODS
from zofo.signals import Signals
from zofo.tasks import packaged_text
from zofo.training import RunFolder, TaskEvaluator, read_config, train
from zofo.training.checkpoint import Checkpoints, damage_of
from zofo.training.resume import find_resumable_run

STEPS = 12
LR = {"rule": {"lr": 1e-3}}
IN_PLACE = {"noise": "gaussian", "evaluator": "in-place"}
IN_HALF = {"noise": "gaussian", "evaluator": {"name": "in-place", "allow_half": True}}
META = {"name": "meta-bilevel", "batch_size": 2, "inner_steps": 1, "tasks_per_step": 2, "rule": {"lr": 1e-4}}
METHOD = {
    "mezo": {"name": "mezo", "batch_size": 4} | LR,
    "es": {"name": "es", "batch_size": 4, "population": 4} | LR,
    "select": {"name": "select", "batch_size": 4, "population": 4, "keep": 3, "gate_examples": 0},
    "mezo, momentum": {"name": "mezo", "batch_size": 4, "rule": {"name": "momentum", "lr": 1e-3}},
    "mezo, in place": {"name": "mezo", "batch_size": 4} | LR | IN_PLACE,
    "mezo, dense adam": {"name": "mezo", "batch_size": 4, "rule": {"name": "dense-adam", "lr": 1e-4}},
    "mezo, lora": {"name": "mezo", "batch_size": 4, "adapter": "lora"} | LR,
    "svrg": {"name": "svrg", "batch_size": 4, "anchor_interval": 3, "anchor_batch_size": 10} | LR,
    "svrg, copy": {"name": "svrg", "batch_size": 4, "anchor": "copy", "anchor_batch_size": 10} | LR | IN_PLACE,
    "svrg, annealing": {
        "name": "svrg",
        "batch_size": 30,
        "anneal": True,
        "anneal_threshold": 0.1,
        "anchor_batch_size": 10,
    }
    | LR,
    "zo-svrg": {"name": "zo-svrg", "batch_size": 4, "anchor_interval": 3, "anchor_batch_size": 10} | LR,
    "first-order": {"name": "first-order", "batch_size": 4},
    "first-order, all": {"name": "first-order", "batch_size": 4, "parameters": "all"},
    "first-order, all, bfloat16": {"name": "first-order", "batch_size": 4, "parameters": "all"},
    "bilevel": {"name": "bilevel", "batch_size": 2, "inner_steps": 2, "rule": {"lr": 1e-4}},
    "bilevel, frozen": {"name": "bilevel", "batch_size": 2, "inner_steps": 2, "backbone_update": "frozen"},
    "two-stage": {"name": "two-stage", "batch_size": 4, "adapter_steps": 4} | LR,
    "mezo, bfloat16": {"name": "mezo", "batch_size": 4} | LR,
    "mezo, float16": {"name": "mezo", "batch_size": 4} | LR,
    "mezo, in place, bfloat16": {"name": "mezo", "batch_size": 4} | LR | IN_HALF,
    "svrg, bfloat16": {"name": "svrg", "batch_size": 4, "anchor_interval": 3, "anchor_batch_size": 10} | LR,
    "mezo, random mask": {"name": "mezo", "batch_size": 4, "mask": {"name": "random", "density": 0.5}} | LR,
    "mezo, in place, magnitude": {"name": "mezo", "batch_size": 4, "mask": {"name": "magnitude", "density": 0.5}}
    | LR
    | IN_PLACE,
    "mezo, blocks in turn": {"name": "mezo", "batch_size": 4, "mask": {"name": "rotation", "num_blocks": 3}} | LR,
    "meta-bilevel": META,
    "meta-bilevel, on disk": META | {"adapter_offload": "disk", "evaluator": "in-place", "noise": "gaussian"},
}
QUICK = {"mezo, in place, magnitude", "svrg, annealing"}
"""Parts that are not in test_conformance.py, which has a row for every other one. Of adapters on disk: what a method
remembers is in test_meta_bilevel.py, and the files of their checkpoints in test_checkpoint_state.py."""

WHOLE = [(case, range(1, STEPS + 1)) for case in METHOD]


def dtype_of(case):
    """Of the weights: the last word of a case, where it is a dtype."""
    return case.rpartition(", ")[2] if case.endswith("float16") else "float32"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Reviews that no test changes."""
    folder = tmp_path_factory.mktemp("rows")
    for split, count, start in (("train", 60, 0), ("validation", 12, 60), ("test", 12, 80)):
        write_rows(folder / f"{split}.jsonl", review_rows(count, start))
    return folder


@pytest.fixture
def configured(model_folder, rows, tmp_path):
    def configure(case, name="run", method=None, data_dir=rows, **training):
        task = {"data_dir": str(data_dir)}
        if case.startswith("meta"):
            tasks = write_tasks(tmp_path / "tasks", ("mood", "tone", "pick"))
            task = {"data_dir": str(tasks), "tasks": ["mood", "tone", "pick"], "split_sizes": {"validation": 3}}
        return read_config(
            model={"name": str(model_folder), "dtype": dtype_of(case)},
            task=task,
            method=method or METHOD[case],
            training={"steps": STEPS, "eval_steps": 4, **training},
            output_dir=str(tmp_path / name),
        )

    return configure


class Stopping(io.StringIO):
    """A console that asks the process to stop, so many times, when it is told of a step."""

    def __init__(self, step, number=signal.SIGTERM, times=1):
        super().__init__()
        self.step, self.number, self.times = step, number, times

    def write(self, text):
        if f"step {self.step}/" in text:
            for _ in range(self.times):
                signal.raise_signal(self.number)
        return super().write(text)


def contents(run, without=("config.yaml", "environment.json")):
    """Every file of a run; of the logs, all but the seconds."""
    found = {}
    for path in sorted(run.rglob("*")):
        if not path.is_file() or path.name in without:
            continue
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in data.decode().splitlines()]
            data = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        elif path.name == "summary.json":
            data = {k: v for k, v in json.loads(data).items() if k not in ("seconds", "peak_bytes")}
            data["evaluation"].pop("seconds")
        elif path.name == "answers.jsonl":  # where each row is, without its folder
            data = [{**one, "where": Path(one["where"]).name} for one in map(json.loads, data.decode().splitlines())]
        elif path.name == "README.md":  # peft's, with the path of the base model
            continue
        found[path.relative_to(run).as_posix()] = data
    return found


def stopped_at(config, step, number=signal.SIGTERM):
    before, shown = signal.getsignal(number), Stopping(step, number)
    with pytest.raises(Interrupted) as stopped:
        train(config, Console(file=shown))
    assert signal.getsignal(number) is before
    said = rf"finishing (step {step}|the evaluation after step {step}), saving; Ctrl-C again to leave now"
    assert re.search(said, shown.getvalue())
    return stopped.value


@pytest.fixture
def whole_of(configured, kept_wholes):
    """What a run leaves that nobody stopped; each is made once."""

    def made(case, method=None, **training):
        key = repr((case, method, training))
        if key not in kept_wholes:
            kept_wholes[key] = contents(train(configured(case, "whole", method, **training)).path)
        assert "checkpoints" not in str(list(kept_wholes[key]))
        return kept_wholes[key]

    return made


@pytest.fixture(scope="module")
def kept_wholes():
    return {}


def check(configured, whole, case, stops):
    for step in stops:
        config = configured(case, f"stopped-{step}")
        stop = stopped_at(config, step)
        assert stop.exit_code == 143
        assert f"after {step} steps" in stop.message
        shown = io.StringIO()
        run = train(config, Console(file=shown))
        assert f"goes on after {step} of {STEPS} steps" in shown.getvalue()
        again = contents(run.path)
        assert again.keys() == whole.keys()
        differing = [name for name in whole if again[name] != whole[name]]
        assert not differing, (step, differing)


@pytest.mark.promise(6)
def test_a_mixture_of_experts_goes_on(configured, tokenizer, tmp_path):
    """Its experts, of two layers that are made alike, are run once for each point; a run that goes on knows which."""
    folder = tmp_path / "mixtral"
    build_model("mixtral", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def config(name):
        plain = configured("mezo", name, {"name": "mezo", "batch_size": 4} | LR, steps=3)
        return plain.model_copy(update={"model": plain.model.model_copy(update={"name": str(folder)})})

    whole = contents(train(config("whole")).path)
    stopped_at(config("stopped"), 2)
    assert contents(train(config("stopped")).path) == whole


@pytest.mark.promise(6)
@pytest.mark.parametrize("case", with_soak(METHOD, QUICK))
def test_a_run_that_was_stopped_ends_with_the_same_bits(configured, whole_of, case, tries):
    check(configured, whole_of(case), case, tries((1, 8)[list(METHOD).index(case) % 2 :][:1]))


@pytest.mark.promise(6)
@pytest.mark.soak
@pytest.mark.parametrize(("case", "stops"), WHOLE, ids=[case for case, _ in WHOLE])
def test_a_run_may_be_stopped_after_any_step(configured, whole_of, case, stops, tries):
    check(configured, whole_of(case), case, tries(stops))


@pytest.mark.promise(6)
def test_every_method_that_makes_steps_goes_on():
    tried = {options["name"] for options in METHOD.values()}
    assert tried >= {name for name in METHODS if METHODS[name].fixed_steps is None}


@pytest.mark.promise(6)
@pytest.mark.parametrize("case", with_soak(["mezo", "svrg"], {"mezo"}))
def test_a_run_may_be_stopped_again_and_again(configured, whole_of, case, tries):
    whole, config = whole_of(case), configured(case)
    for step in tries((2, 3, 7, 11)):
        stopped_at(config, step)
    assert contents(train(config).path) == whole


@pytest.mark.promise(6)
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("case", with_soak(["mezo", "mezo, in place", "svrg", "bilevel"], {"mezo"}))
def test_the_weights_come_from_the_trajectory_or_from_the_checkpoint(configured, whole_of, case, weights):
    """In both ways to the same bits, updates that wait in the forward among them."""
    whole = whole_of(case)
    config = configured(case, checkpoint_weights=weights)
    stopped_at(config, 7)
    (found,) = [c for c in [Checkpoints(RunFolder(config.output_dir).checkpoints).latest()] if c is not None]
    assert found.json("progress.json")["weights"] == weights
    assert contents(train(config).path) == whole


@pytest.mark.promise(6)
@pytest.mark.parametrize("case", with_soak(["mezo", "mezo, in place", "first-order"], {"mezo"}))
def test_a_run_stopped_in_its_last_step_goes_on_with_what_follows(configured, whole_of, case):
    """A signal in the last step does not wait for the evaluation after it, and is not swallowed."""
    check(configured, whole_of(case), case, [STEPS])


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal; a job in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.promise(10)
def test_what_answers_a_signal_has_spoken_before_the_work_is_left():
    """However slow it is; what comes next is said after it."""
    told, signals = [], Signals()
    signals.doing = "step 1"

    def answer(text):
        time.sleep(0.2)
        told.append(text)

    with signals.defer_signals(answer):
        signal.raise_signal(signal.SIGTERM)
        assert told == []
    assert told == ["finishing step 1; Ctrl-C again to leave now"]


@pytest.mark.promise(10)
def test_ctrl_c_leaves_with_130(configured, ctrl_c):
    assert stopped_at(configured("mezo"), 2, signal.SIGINT).exit_code == 130


@pytest.mark.promise(10)
def test_a_run_that_nobody_reads_saves_and_leaves_with_141(configured, whole_of):
    """As behind `| head`, which closes the pipe."""

    class Closed(io.StringIO):
        def write(self, text):
            if "step 3/" in text:
                raise BrokenPipeError
            return super().write(text)

    console = Terminal()
    console.file = Closed()
    with pytest.raises(Interrupted) as stopped:
        train(configured("mezo"), console)
    assert (stopped.value.exit_code, stopped.value.steps) == (141, 3)
    assert contents(train(configured("mezo")).path) == whole_of("mezo")
    with pytest.raises(BrokenPipeError):  # where no run is under way
        console.on_broken_pipe()


@pytest.mark.promise(10)
def test_a_second_ctrl_c_writes_nothing_more(configured, ctrl_c):
    config, console = configured("mezo, lora", save_steps=2), Stopping(3, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt) as left:
        train(config, Console(file=console))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not isinstance(left.value, Interrupted)
    assert Checkpoints(config.output_dir / "checkpoints").latest().step == 2
    assert not (config.output_dir / "summary.json").exists()
    assert not (config.output_dir / "adapter").exists()


# signals that come elsewhere than in a step


@pytest.fixture
def asked_in(monkeypatch):
    """Asks the process to stop inside a call of a method of a class, the first one by default."""

    def ask(owner, name, call=1):
        inner, calls = getattr(owner, name), []

        def asking(self, *arguments):
            calls.append(name)
            if len(calls) == call:
                signal.raise_signal(signal.SIGTERM)
            return inner(self, *arguments)

        monkeypatch.setattr(owner, name, asking)

    return ask


def scored_in(run):
    return [line["steps"] for line in lines_of(RunFolder(run), "evaluation")]


@pytest.mark.promise(10)
@pytest.mark.parametrize(("call", "steps"), [(1, 4), (3, STEPS)])
def test_a_signal_in_an_evaluation_lets_it_finish(configured, whole_of, asked_in, call, steps):
    """Also in the last one, where the test split is still to be scored."""
    whole = whole_of("mezo", eval_on_test=True)
    config = configured("mezo", eval_on_test=True)
    asked_in(TaskEvaluator, "evaluate", call)
    with pytest.raises(Interrupted) as stopped:
        train(config)
    assert (stopped.value.exit_code, stopped.value.steps) == (143, steps)
    assert scored_in(config.output_dir)[-1] == steps
    assert RunFolder(config.output_dir).summary["stopped"] == stopped.value.message
    assert contents(train(config).path) == whole


@pytest.mark.promise(10)
@pytest.mark.parametrize("test", [False, True])
def test_a_signal_with_which_nothing_is_left_to_do_is_said(configured, whole_of, asked_in, test):
    whole = whole_of("mezo", eval_on_test=test)
    asked_in(TaskEvaluator, "evaluate", 4 if test else 3)  # of 3 on validation and one on test
    shown = io.StringIO()
    run = train(configured("mezo", eval_on_test=test), Console(file=shown))
    assert "SIGTERM came when nothing was left to do: the run has ended" in shown.getvalue()
    assert run.ended
    assert contents(run.path) == whole


@pytest.mark.promise(10)
@pytest.mark.parametrize("method", ["zero-shot", "linear-probe"])
def test_methods_that_only_read_stop_and_begin_again(configured, asked_in, method):
    whole = contents(train(configured("", "whole", {"name": method}, eval_on_test=True)).path)
    config = configured("", "run", {"name": method}, eval_on_test=True)
    asked_in(*((METHODS[method], "step") if method == "linear-probe" else (TaskEvaluator, "evaluate")))
    with pytest.raises(Interrupted, match="what it was at is not saved") as stopped:
        train(config)
    assert stopped.value.exit_code == 143
    assert "to begin again: zofo train" in stopped.value.hint
    assert not (config.output_dir / "checkpoints").exists()
    assert contents(train(config).path) == whole


# what a run goes on with


def test_a_run_that_goes_on_must_be_the_same(configured, tmp_path):
    config = configured("mezo")
    stopped_at(config, 3)
    with pytest.raises(RunError, match=r"has training.steps = 12, not 13") as refused:
        train(configured("mezo", steps=13))
    assert "output_dir=" in refused.value.hint
    with pytest.raises(RunError, match=r"has method.name = 'mezo', not 'first-order'|has method"):
        train(configured("first-order"))
    train(config)
    with pytest.raises(RunError, match="never overwrites another"):
        train(config)


def test_a_run_whose_base_model_has_changed_does_not_go_on(configured, model_folder, tmp_path):
    moved = tmp_path / "model"
    shutil.copytree(model_folder, moved)
    config = configured("mezo")
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": str(moved)})})
    stopped_at(config, 3)
    from conftest import build_model, build_tokenizer

    build_model("llama", len(build_tokenizer()), seed=1).save_pretrained(moved)
    with pytest.raises(RunError, match="is not the one that .* began with"):
        train(config)


def rewrite_rows(data_dir, split, change):
    path = data_dir / f"{split}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(change(lines)), encoding="utf-8")
    return lambda: path.write_text("".join(lines), encoding="utf-8")


@pytest.mark.promise(6)
@pytest.mark.parametrize(
    ("split", "change"),
    [
        pytest.param("train", lambda lines: [lines[1], lines[0], *lines[2:]], id="another order"),
        pytest.param("train", lambda lines: [lines[0].replace("film", "movie"), *lines[1:]], id="another word"),
        pytest.param("validation", lambda lines: lines[:-1], id="one less"),
        pytest.param("test", lambda lines: [*lines, lines[0]], id="one more"),
    ],
)
def test_a_run_whose_rows_have_changed_does_not_go_on(configured, data_dir, split, change):
    config = configured("mezo", data_dir=data_dir, eval_on_test=True)
    stopped_at(config, 3)
    before, back = contents(config.output_dir), rewrite_rows(data_dir, split, change)
    with pytest.raises(RunError, match=f"the {split} rows of the task .* are not those that .* began with") as refused:
        train(config)
    assert "output_dir=" in refused.value.hint
    assert contents(config.output_dir) == before
    back()
    if split == "validation":
        train(config)


@pytest.mark.promise(6)
def test_a_run_whose_task_file_has_changed_does_not_go_on(configured, tmp_path):
    file = tmp_path / "mine.yaml"
    content = packaged_text("movie-reviews")
    file.write_text(content, encoding="utf-8")
    config = configured("mezo")
    config = config.model_copy(update={"task": config.task.model_copy(update={"name": str(file)})})
    stopped_at(config, 3)
    changed = yaml.safe_load(content) | {"metric": "macro-f1"}
    file.write_text(yaml.safe_dump(changed), encoding="utf-8")
    with pytest.raises(RunError, match=r"began with: metric was 'accuracy', and is 'macro-f1'") as refused:
        train(config)
    assert "task.yaml" in refused.value.hint
    file.write_text(content, encoding="utf-8")
    train(config)


def rewarded(example, answer):
    return float(answer == example.gold)


def rewarded_otherwise(example, answer):
    return float(answer != example.gold)


@pytest.mark.promise(6)
def test_a_run_does_not_go_on_with_another_reward(configured):
    config = configured("mezo")
    with pytest.raises(Interrupted) as stopped:
        train(config, Console(file=Stopping(3)), reward=rewarded)
    assert "the same reward" in stopped.value.hint
    for other, name in ((rewarded_otherwise, f"{__name__}.rewarded_otherwise"), (None, "classification")):
        with pytest.raises(RunError, match=f"the objective is '{name}', and .* began with '{__name__}.rewarded'"):
            train(config, reward=other)
    train(config, reward=rewarded)


def test_a_run_of_a_version_that_wrote_less_down_goes_on(configured, monkeypatch):
    config = configured("mezo")
    with monkeypatch.context() as older:
        older.setattr(sys.modules["zofo.training.session"], "content_hash", lambda _: None)
        stopped_at(config, 3)
    path, shown = config.output_dir / "environment.json", io.StringIO()
    content = json.loads(path.read_text(encoding="utf-8"))
    for key in ("rows", "objective", "device", "threads"):
        del content[key]
    path.write_text(json.dumps(content), encoding="utf-8")
    train(config, Console(file=shown))
    assert "warning" not in shown.getvalue()


@pytest.mark.promise(6)
def test_another_version_or_device_is_said_once(configured):
    config = configured("mezo")
    stopped_at(config, 3)
    path, shown = config.output_dir / "environment.json", io.StringIO()
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"torch": "2.0.0", "device": "cuda, a card"}), encoding="utf-8")
    train(config, Console(file=shown))
    (line,) = [line for line in shown.getvalue().splitlines() if "warning" in line]
    assert f"torch was 2.0.0 and is {content['torch']}, device was cuda, a card and is cpu" in line
    assert "may not end with the bits of one that was never stopped" in line


@pytest.mark.promise(8)
def test_a_log_that_was_edited_is_named(configured, whole_of):
    whole = whole_of("mezo")
    config = configured("mezo")
    stopped_at(config, 7)
    path = RunFolder(config.output_dir).metrics
    data = path.read_bytes()
    place = data.index(b'"loss": ') + len(b'"loss": ')
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(CheckpointError, match="are not those that it had") as refused:
        train(config)
    assert str(path) in refused.value.message
    path.write_bytes(data)
    assert contents(train(config).path) == whole


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(configured, whole_of):
    """As one that was killed: the folder is there, with a few lines, and no checkpoint."""
    whole = whole_of("svrg")
    config = configured("svrg")
    stopped_at(config, 3)
    run = RunFolder(config.output_dir)
    shutil.rmtree(run.checkpoints)
    (run.path / "summary.json").unlink()
    assert contents(train(config).path) == whole


class Looking(io.StringIO):
    """Where progress is written: looks whether a file is there when it is told of a step."""

    def __init__(self, step, path):
        super().__init__()
        self.step, self.path, self.found = step, path, []

    def write(self, text):
        if f"step {self.step}/" in text:
            self.found.append(self.path.exists())
        return super().write(text)


def test_the_outcome_of_an_earlier_stop_is_not_that_of_a_run_that_goes_on(configured):
    """A process that is killed then leaves no outcome, and not one of other weights."""
    config = configured("mezo")
    stopped_at(config, 7)
    outcome = config.output_dir / "summary.json"
    assert outcome.is_file()
    looking = Looking(9, outcome)
    train(config, Console(file=looking))
    assert looking.found
    assert not any(looking.found)
    assert outcome.is_file()


@pytest.mark.promise(8)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(configured, whole_of):
    whole = whole_of("mezo")
    config = configured("mezo", save_steps=2)
    stopped_at(config, 7)
    run = RunFolder(config.output_dir)
    newest = run.checkpoints / "step-00000007"
    data = bytearray((newest / "state.json").read_bytes())
    data[3] ^= 1
    (newest / "state.json").write_bytes(data)
    shown = io.StringIO()
    again = contents(train(config, Console(file=shown)).path)
    assert "state.json' is damaged" in shown.getvalue()
    assert "goes on after 6 of 12 steps" in shown.getvalue()
    assert again == whole


@pytest.mark.promise(8)
def test_a_trajectory_that_is_damaged_is_named(configured):
    config = configured("mezo")
    stopped_at(config, 7)
    path = RunFolder(config.output_dir).trajectory
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="trajectory.bin"):
        train(config)


@pytest.mark.promise(11)
def test_a_run_of_another_noise_stream_does_not_go_on(configured, monkeypatch):
    config = configured("mezo")
    stopped_at(config, 7)
    before = contents(config.output_dir)
    with monkeypatch.context() as another:
        another.setattr("zofo.training.session.STREAM_VERSION", "another")
        with pytest.raises(RunError, match="would go on with 'another'") as refused:
            train(config)
    assert "began with stream=" in refused.value.message
    assert "the version of zofo that began it" in refused.value.hint
    assert contents(config.output_dir) == before
    assert train(config).summary["steps"] == STEPS


@pytest.mark.promise(11)
def test_a_checkpoint_of_another_version_is_one_message(configured):
    config = configured("mezo")
    stopped_at(config, 7)
    checkpoints = Checkpoints(RunFolder(config.output_dir).checkpoints)
    path = checkpoints.latest().path
    shutil.copy(path / "progress.json", config.output_dir / "progress.json")
    shutil.rmtree(path)

    def write(folder):
        shutil.copy(config.output_dir / "progress.json", folder / "progress.json")
        (folder / "state.json").write_text("{}")
        from safetensors.torch import save_file

        save_file({}, folder / "state.safetensors")

    checkpoints.save(7, write)
    with pytest.raises(CheckpointError, match="lacks 'zo'"):
        train(config)


def test_two_processes_do_not_train_in_one_folder(configured):
    config = configured("mezo")
    stopped_at(config, 3)
    with RunFolder(config.output_dir).locked(), pytest.raises(RunError, match="is training in"):
        train(config)
    train(config)


# losses that are not finite


@pytest.fixture
def poisoned(monkeypatch):
    """Steps of MeZO whose loss is not finite."""

    def poison(*steps):
        step = METHODS["mezo"].step

        def failing(self, number):
            if number in steps:
                raise NonFiniteError("loss nan of example 0")
            return step(self, number)

        monkeypatch.setattr(METHODS["mezo"], "step", failing)

    return poison


def lines_of(run, event):
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.mark.promise(9)
def test_steps_without_a_finite_loss_can_be_skipped_and_are_in_the_log(configured, poisoned):
    poisoned(2, 5, 6, 7)
    run = train(configured("mezo", on_non_finite="skip"))
    assert [line["step"] for line in lines_of(run, "skipped")] == [2, 5, 6, 7]
    assert [line["step"] for line in lines_of(run, "step")] == [0, 1, 3, 4, 8, 9, 10, 11]
    assert run.summary["steps"] == 12


@pytest.mark.promise(9)
def test_too_many_in_a_row_stop_the_run(configured, poisoned):
    poisoned(5, 6, 7)
    with pytest.raises(NonFiniteError, match="step 7"):
        train(configured("mezo", on_non_finite="skip", max_consecutive_skips=2))


@pytest.mark.promise(9)
def test_typing_the_command_again_does_not_count_anew(configured, poisoned):
    poisoned(5, 6, 7)
    config = configured("mezo", on_non_finite="skip", max_consecutive_skips=2, save_steps=1)
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="step 7"):
            train(config)


def test_by_default_one_stops_it(configured, poisoned):
    poisoned(5)
    with pytest.raises(NonFiniteError, match="step 5"):
        train(configured("mezo"))


# real processes


def start(tmp_path, model_folder, name, steps=120):
    data = tmp_path / "data"
    if not data.exists():
        data.mkdir()
        for split, rows in (("train", review_rows(40)), ("validation", review_rows(10, 40))):
            (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": str(model_folder),
        "task": {"name": "movie-reviews", "data_dir": str(data)},
        "method": METHOD["mezo"],
        "training": {"steps": steps, "eval_steps": 20, "save_steps": 7},
        "output_dir": str(tmp_path / name),
    }
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def killed_when(path, log, lines, number):
    command = [sys.executable, "-m", "zofo", "train", str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_bytes().count(b"\n") >= lines) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if child.poll() is None:
        os.kill(child.pid, number)
    _, err = child.communicate(timeout=120)
    return child.returncode, err


def check_signal(tmp_path, model_folder, name, lines, number, code):
    path = start(tmp_path, model_folder, name)
    returned, err = killed_when(path, tmp_path / name / "metrics.jsonl", lines, number)
    assert returned == code, err  # far from its end
    if number == signal.SIGTERM:
        made = len(lines_of(RunFolder(tmp_path / name), "step"))
        assert Checkpoints(tmp_path / name / "checkpoints").latest().step == made
    train(read_config(path))
    return contents(tmp_path / name)


@pytest.mark.promise(10)
@pytest.mark.soak
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=["term", "kill"])
def test_a_process_may_be_stopped_at_any_time(tmp_path, model_folder, number, code, tries):
    train(read_config(start(tmp_path, model_folder, "whole")))
    whole = contents(tmp_path / "whole")
    for lines in tries(random.Random(0).sample(range(1, 100), 20)):
        assert check_signal(tmp_path, model_folder, f"stopped-{lines}", lines, number, code) == whole


@pytest.mark.parametrize(("turns", "goes_on"), [("auto", True), ("last", True), ("all", False)])
def test_a_run_that_was_begun_before_a_key_was_there_goes_on_by_the_same_command(configured, turns, goes_on):
    config = configured("first-order")
    stopped_at(config, 2)
    for name, read in (("config.yaml", yaml.safe_load), ("environment.json", json.loads)):
        content = read((config.output_dir / name).read_text(encoding="utf-8"))
        del content.get("configuration", content)["task"]["trained_turns"]
        (config.output_dir / name).write_text(json.dumps(content), encoding="utf-8")
    task = config.task.model_copy(update={"trained_turns": turns})
    given = config.model_copy(update={"task": task})
    if goes_on:
        assert find_resumable_run(given).as_begun(given).task.trained_turns == "last"
    else:
        with pytest.raises(RunError, match=r"has task.trained_turns = 'last', not 'all'"):
            find_resumable_run(given)


def test_checkpoints_of_a_finished_save_are_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (1, 2, 3):
        path = checkpoints.save(step, lambda folder: (folder / "a").write_text("x"))
        assert damage_of(path) is None
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step-00000002", "step-00000003"]
