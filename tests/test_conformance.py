"""What holds of every run, whatever its method, noise, evaluator, rule, adapter, estimator, head and dtype.

Each row is a configuration, of which three runs are made: one that nobody stops, one that is stopped and goes on, and
one that meets a loss that is not finite. The rows hold every pair of parts that may stand together (see covering.py);
the third run is made of rows that hold every part, and of all of them in `make soak`, which runs full grids as well:
test_resume.py, test_replay.py, test_training.py.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import random
import signal
import sys

import numpy
import pytest
import torch
import transformers
from rich.console import Console
from safetensors.torch import load

from conftest import build_model, review_rows, write_rows
from covering import covering
from metaicl_rows import write_tasks
from zofo.errors import Interrupted, NonFiniteError
from zofo.export import replay_run
from zofo.training import RunFolder, evaluate_run, read_config, train
from zofo.trajectory import Trajectory

STEPS, STOP, ROWS = 3, 2, 6
OPTIONS = {  # an anchor lives over the stop
    "mezo": {"batch_size": 4},
    "es": {"batch_size": 4, "population": 4},
    "select": {"batch_size": 4, "population": 4, "gate_examples": 4},
    "svrg": {"batch_size": 4, "anchor_interval": 3, "anchor_batch_size": 8},
    "zo-svrg": {"batch_size": 4, "anchor_interval": 3, "anchor_batch_size": 8},
    "bilevel": {"batch_size": 2, "inner_steps": 1},
    "two-stage": {"batch_size": 4, "adapter_steps": 1},
    "first-order": {"batch_size": 4},
    "meta-bilevel": {"batch_size": 2, "inner_steps": 1, "tasks_per_step": 2},
}
WAYS = [("in-forward", "low-rank"), ("in-place", "low-rank"), ("in-place", "gaussian"), ("in-place", "rademacher")]
RULES = {"sgd": 1e-3, "momentum": 1e-3, "sign": 1e-4, "dense-adam": 1e-4}
ADAPTERS = (None, "lora", "prefix")
ESTIMATORS = ("two-sided", "one-sided")
HEADS = ("causal-lm", "classification")
DTYPES = ("float32", "bfloat16")
META = [(WAYS[0], "sgd"), (WAYS[2], "dense-adam")]  # it moves its backbone as bilevel does
AXES = [list(OPTIONS), WAYS, list(RULES), ADAPTERS, ESTIMATORS, HEADS, DTYPES]


def possible(method, way, rule, adapter, estimator, head, dtype):
    """Whether parts may stand together; of first-order steps, which have fewer, only the first values of those axes."""
    return not (
        (method == "first-order" and (way, rule, estimator) != (WAYS[0], "sgd", "two-sided"))
        or (method in ("es", "select") and estimator != "two-sided")
        or (method == "select" and rule not in ("sgd", "momentum"))
        or (method == "zo-svrg" and (way != WAYS[0] or rule not in ("sgd", "momentum")))
        or (method == "meta-bilevel" and (head != "causal-lm" or adapter == "prefix" or (way, rule) not in META))
    )


def rows():
    """Covering rows, each named by its values, and whether it is among those that hold every value."""

    def values(row):
        return [axis[at] for axis, at in zip(AXES, row, strict=True)]

    chosen = covering(*map(len, AXES), possible=lambda row: possible(*values(row)))
    few = covering(*map(len, AXES), strength=1, possible=set(chosen).__contains__)
    return [
        pytest.param(*values(row), row in few, id="-".join(map(str, values(row))).replace("', '", " "))
        for row in chosen
    ]


def options_of(method, way, rule, adapter, estimator, head, dtype):
    """The configuration of a method with these parts."""
    options = {"name": method, **OPTIONS[method]} | ({"adapter": adapter} if adapter else {})
    if method == "first-order":
        return options
    evaluator, noise = way
    parts = {"evaluator": {"name": evaluator}, "noise": noise}
    if method not in ("es", "select"):  # which have an estimator of their own
        parts["estimator"] = estimator
    parts["rule"] = {"name": rule, "lr": RULES[rule]}
    if evaluator == "in-place":
        parts["evaluator"]["allow_half"] = dtype != "float32"
    if method == "svrg" and rule not in ("sgd", "momentum"):
        parts["anchor"] = "copy"
    return options | parts


@pytest.fixture(scope="module")
def models(model_folder, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("headed") / "classification"
    build_model("llama", len(tokenizer), head=transformers.AutoModelForSequenceClassification).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"causal-lm": model_folder, "classification": folder}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """What a task is, by whether there are several."""
    folder = tmp_path_factory.mktemp("tasks")
    for split, count, start in (("train", 24, 0), ("validation", ROWS, 60), ("test", 4, 80)):
        write_rows(folder / "one" / f"{split}.jsonl", review_rows(count, start))
    names = ["mood", "tone", "pick"]
    several = {"data_dir": str(write_tasks(folder / "several", names)), "tasks": names}
    return {
        False: {"data_dir": str(folder / "one")},
        True: several | {"split_sizes": {"validation": ROWS // 3}},
    }


class AtStep(io.StringIO):
    """Where progress is written: does something when it is told of a step."""

    def __init__(self, step, do):
        super().__init__()
        self.step, self.do = step, do

    def write(self, text):
        if f"step {self.step}/" in text:
            self.do()
        return super().write(text)


def logged(run, *events):
    """Lines of a run's log, but for their seconds."""
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["event"] in events]


def learned(run):
    """The bytes of what a run has learned: tensors and trajectory, but for its best evaluation."""
    files = [*run.path.rglob("*.safetensors"), *run.path.rglob("*.bin")]
    kept = (run.best, run.checkpoints)
    return {p.relative_to(run.path).as_posix(): p.read_bytes() for p in files if not set(kept) & set(p.parents)}


def agrees(name, data, other, rounding):
    """Whether two files have the same bytes; of tensors that were moved there and back, whether they are close."""
    if name.endswith(".bin"):  # which also tells of moves there and back
        return True
    if not rounding:
        return data == other
    one, two = load(data), load(other)
    eps = {key: torch.finfo(tensor.dtype).eps for key, tensor in one.items()}
    return all(torch.allclose(one[key], two[key], rtol=8 * e, atol=max(1e-6, e / 50)) for key, e in eps.items())


def generators():
    return [*torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()]  # noqa: NPY002


def is_whole(run, config):
    """The folder of a run that has ended: what it holds, and that it says the same everywhere."""
    summary, variants, steps = run.summary, list(run.summary["variants"]), logged(run, "step")
    assert RunFolder.open(run.path).config == config
    assert [line["step"] for line in steps] == list(range(STEPS))
    assert {"stopped", "seconds", "peak_bytes", "trained", "metric", "accuracy", "loss"} <= set(summary)
    assert len(summary["trained"]["patterns"]) <= summary["trained"]["tensors"]
    assert (summary["stopped"], summary["steps"], summary["method"]) == (None, STEPS, config.method.name)
    for key in ("forwards", "backwards", "queries"):
        counts = [line[key] for line in steps]
        assert counts == sorted(counts)
        assert counts[-1] == summary[key]
    assert summary["queries"] > 0
    scores = logged(run, "evaluation")
    assert [(line["steps"], line["variant"]) for line in scores] == [(n, v) for n in (2, STEPS) for v in variants]
    for line in scores[len(variants) :]:
        assert summary["variants"][line["variant"]] == {k: line[k] for k in ("accuracy", "loss", "majority")}
    assert summary["evaluation"]["queries"] >= ROWS * len(scores)
    assert set(run.artifact_hashes()) == set(summary["parts"])
    environment = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    assert environment["model_hash"].startswith("sha256:")
    assert environment["torch"] == torch.__version__


def comes_back(run):
    """The trained model is restored, replayed to the bits where the run moves its backbone."""
    for variant, trained in run.summary["variants"].items():
        if (run.path / variant).is_dir() and not (run.path / variant / "adapter_config.json").is_file():
            continue  # an adapter for each task
        restored = evaluate_run(run.path, variant=variant)
        assert restored.loss == pytest.approx(trained["loss"], rel=1e-5)
        assert restored.score == trained["accuracy"]
    if run.backbone_trajectory is not None:
        assert replay_run(run.path).verdict == "same bits"


POISONED = []
"""Whether the first loss of each batch is not a number."""


@functools.cache
def with_poison(objective):
    """An objective as it is, until it is poisoned."""

    def losses(model, batch):
        found = objective(model, batch)
        return torch.where(torch.arange(len(found)) == 0, torch.nan, found) if POISONED else found

    return losses


@pytest.fixture
def poisoned(monkeypatch):
    """Objectives that can be poisoned; gives what poisons them."""
    module = sys.modules["zofo.training.train"]
    context_of = module.training_context

    def training_context(*arguments):
        context = context_of(*arguments)
        return dataclasses.replace(context, objective=with_poison(context.objective), check_objective=None)

    monkeypatch.setattr(module, "training_context", training_context)
    yield lambda: POISONED.append(True)
    POISONED.clear()


@pytest.mark.promise(6, 9, 17)
@pytest.mark.parametrize(("method", "way", "rule", "adapter", "estimator", "head", "dtype", "fails"), rows())
def test_a_run(models, tasks, tmp_path, poisoned, request, method, way, rule, adapter, estimator, head, dtype, fails):
    options = options_of(method, way, rule, adapter, estimator, head, dtype)
    in_place = method != "first-order" and way[0] == "in-place"
    often = {"eval_steps": 2} if way[0] == "in-forward" else {}  # it writes what waits where somebody looks

    def configured(name, **training):
        return read_config(
            model={"name": str(models[head]), "dtype": dtype},
            task=tasks[method == "meta-bilevel"],
            method=options,
            training={"steps": STEPS, **training},
            output_dir=str(tmp_path / name),
        )

    config, before = configured("whole", eval_steps=2), generators()
    whole = train(config)
    assert generators() == before
    is_whole(whole, config)
    comes_back(whole)

    # stopped and gone on with, not evaluated in between if in place, with other global generators: the same bits
    torch.manual_seed(len(before))
    random.seed(len(before))
    config = configured("stopped", **often)
    with pytest.raises(Interrupted, match=f"after {STOP} steps"):
        train(config, Console(file=AtStep(STOP, lambda: signal.raise_signal(signal.SIGTERM))))
    stopped = learned(RunFolder(config.output_dir))
    again = train(config)
    assert logged(again, "step") == logged(whole, "step")
    there = learned(whole)
    assert [name for name, data in learned(again).items() if data != there.pop(name)] == []
    assert not there

    if method == "select":  # which leaves out a member without a finite loss, see test_select.py
        return
    if not fails and not request.config.getoption("promises"):
        return
    # a loss that is not finite: an error that says where, and what was learned until then is as if stopped there
    config = configured("failed", **often)
    with pytest.raises(NonFiniteError, match=f"step {STOP}: non-finite loss nan of example 0") as failed:
        train(config, Console(file=AtStep(STOP, poisoned)))
    run = RunFolder(config.output_dir)
    assert logged(run, "step") == logged(whole, "step")[:STOP]
    (line,) = logged(run, "stopped")
    assert failed.value.message in line["message"]
    assert failed.value.message in run.summary["stopped"]
    assert learned(run).keys() == stopped.keys()
    assert [name for name, data in learned(run).items() if not agrees(name, data, stopped[name], in_place)] == []
    if run.trajectory.is_file():
        updates = Trajectory.read(run.trajectory).updates
        assert updates == Trajectory.read(whole.trajectory).updates[: len(updates)]
