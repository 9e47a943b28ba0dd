"""Runs: what a run folder holds, that it gives the trained model back, what was counted, and how a run may end."""

from __future__ import annotations

import io
import json
import math
import random
import re
import shutil
import signal
import statistics
import sys
import warnings

import numpy
import peft
import pytest
import torch
import transformers
from pydantic import field_serializer
from rich.console import Console
from safetensors.torch import load_file

import zofo
from bilevel_problems import language_context
from conftest import build_model, build_tokenizer, review_rows, with_soak, write_reviews, write_rows
from covering import grid
from zofo.config import Config, parse_model
from zofo.errors import ConfigError, DataError, Interrupted, NonFiniteError, RunError
from zofo.methods import (
    METHODS,
    Bilevel,
    BilevelConfig,
    FirstOrder,
    FirstOrderConfig,
    MeZO,
    MeZOConfig,
    TrainingContext,
)
from zofo.methods.epoch import Epoch
from zofo.tasks import EpochSampler
from zofo.training import RunFolder, read_config, train
from zofo.training.inference import evaluate_run, evaluate_zero_shot, predict
from zofo.trajectory import Trajectory

BATCH, T = 4, 2
SHORT = {
    "mezo": {"name": "mezo", "batch_size": BATCH, "rule": {"lr": 1e-3}},
    "es": {"name": "es", "batch_size": BATCH, "population": 2, "rule": {"lr": 1e-4}},
    "select": {"name": "select", "batch_size": BATCH, "population": 2, "gate_examples": 0},
    "bilevel": {"name": "bilevel", "batch_size": BATCH, "inner_steps": T, "lr_lower": 0.01, "lr_adapter": 0.02}
    | {"rule": {"lr": 1e-5}},
    "first-order": {"name": "first-order", "batch_size": BATCH, "lr": 0.02},
    "svrg": {"name": "svrg", "batch_size": BATCH, "anchor_batch_size": 2 * BATCH, "rule": {"lr": 1e-3}},
    "zo-svrg": {"name": "zo-svrg", "batch_size": BATCH, "anchor_batch_size": 2 * BATCH, "rule": {"lr": 1e-3}},
    "two-stage": {"name": "two-stage", "batch_size": BATCH, "adapter_steps": 1, "lr_adapter": 0.02}
    | {"rule": {"lr": 1e-3}},
    "zero-shot": {"name": "zero-shot"},
    "in-context": {"name": "in-context"},
    "linear-probe": {"name": "linear-probe", "batch_size": BATCH},
}
"""A method's configuration for a short run that changes a tiny model visibly."""

ON_SEVERAL_TASKS = {"meta-bilevel"}
"""Tests of these: test_meta_bilevel.py, test_meta_study.py and test_resume.py."""

TRAINING = [name for name in SHORT if METHODS[name].fixed_steps is None]
"""The methods that make steps; tests/test_baselines.py has the others."""

MEZO, BILEVEL, FIRST_ORDER = SHORT["mezo"], SHORT["bilevel"], SHORT["first-order"]
IN_PLACE = {"noise": "gaussian"}
RUINOUS = MEZO | {"rule": {"name": "dense-momentum", "lr": 3e38}}  # one step takes weights beyond float32
RESTORED = {
    "sgd": MEZO,
    "in place": MEZO | IN_PLACE,
    "in place, low rank": MEZO | {"evaluator": "in-place"},
    "per-example": MEZO | {"directions": "per-example", "num_directions": 2},
    "per-group, over the spread": MEZO | {"directions": "per-group(3)", "normalize_by_std": True, "rule": {"lr": 1e-2}},
    "sgd with decay": MEZO | {"rule": {"lr": 1e-3, "weight_decay": 20.0}},
    "momentum": MEZO | {"rule": {"name": "momentum", "lr": 1e-3, "tolerance": 0.0}},
    "momentum, terms dropped": MEZO | {"rule": {"name": "momentum", "lr": 1e-3, "beta": 0.1, "tolerance": 0.5}},
    "sign": MEZO | {"rule": {"name": "sign", "lr": 2e-3}},
    "dense momentum": MEZO | {"rule": {"name": "dense-momentum", "lr": 1e-3}},
    "dense Adam": MEZO | {"rule": {"name": "dense-adam", "lr": 2e-3}},
    "low rank": MEZO | {"noise": {"name": "low-rank", "rank": 2}},
    "rademacher, one-sided, 3 directions": MEZO
    | {"noise": "rademacher", "estimator": "one-sided", "num_directions": 3},
    "a few tensors": MEZO | {"trainable": ["*.layers.1.*"], "rule": {"lr": 1e-1}},
    "bilevel": BILEVEL,
    "bilevel in place": BILEVEL | IN_PLACE,
    "bilevel, per-example": BILEVEL | {"directions": "per-example"},
    "bilevel with SGD and Adam above": BILEVEL
    | {"optimizer": "sgd", "lr_lower": 1.0, "lr_adapter": 1.0, "rule": {"name": "dense-adam", "lr": 2e-3}},
    "two-stage": SHORT["two-stage"],
    "two-stage in place": SHORT["two-stage"] | IN_PLACE,
    "LoRA": FIRST_ORDER,
    "LoRA with SGD": FIRST_ORDER | {"optimizer": "sgd", "lr": 1.0, "adapter": {"rank": 2, "alpha": 8}},
    "all weights": FIRST_ORDER | {"parameters": "all", "lr": 1e-3},
    "all weights with SGD": FIRST_ORDER | {"parameters": "all", "optimizer": "sgd", "lr": 0.05},
    "named layers": FIRST_ORDER | {"parameters": "all", "trainable": ["*.layers.1.*"], "lr": 5e-3},
}


ON_PARTS_OF_THEIR_OWN = {"per-group, over the spread", "sgd with decay", "a few tensors", "all weights", "named layers"}
"""What is not in test_conformance.py."""


def configuring(model_folder, data_dir, folder):
    """Makes configurations of short runs on the tiny model, each in a folder of its own."""

    def configure(method, name="run", model=model_folder, **training):
        return read_config(
            model=str(model),
            task={"data_dir": str(data_dir)},
            method=method,
            training={"steps": 4, **training},
            output_dir=str(folder / name),
        )

    return configure


@pytest.fixture
def configured(model_folder, data_dir, tmp_path):
    return configuring(model_folder, data_dir, tmp_path)


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory):
    """The run of four steps of a method, made once: tests only read it."""
    folder, runs = tmp_path_factory.mktemp("trained"), {}
    configure = configuring(model_folder, write_reviews(folder / "data"), folder)

    def of(method):
        if str(method) not in runs:
            runs[str(method)] = train(configure(method, f"run-{len(runs)}"))
        return runs[str(method)]

    return of


def lines_of(run, event):
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def contents(folder, *ends):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name.endswith(ends)
    }


# the folder


def test_every_registered_method_has_a_short_run():
    assert set(SHORT) == set(METHODS) - ON_SEVERAL_TASKS


@pytest.mark.parametrize("name", with_soak(TRAINING, {"first-order", "two-stage"}))
def test_a_run_leaves_the_whole_folder(configured, name):
    config = configured(SHORT[name], eval_steps=2)
    run = train(config)
    assert run.path == config.output_dir
    assert RunFolder.open(run.path).config == config
    environment = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    assert environment["model_hash"].startswith("sha256:")
    assert environment["torch"] == torch.__version__
    steps = lines_of(run, "step")
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in steps)
    variants = tuple(run.summary["variants"])
    scores = lines_of(run, "evaluation")
    assert [(line["steps"], line["variant"]) for line in scores] == [(s, v) for s in (2, 4) for v in variants]
    for line in scores[-len(variants) :]:
        assert run.summary["variants"][line["variant"]] == {key: line[key] for key in ("accuracy", "loss", "majority")}
    assert run.summary["accuracy"] == scores[-len(variants)]["accuracy"]
    assert run.summary["stopped"] is None
    assert run.summary["peak_bytes"] > 2**20
    assert run.trajectory.is_file() == (name != "first-order")
    if run.trajectory.is_file():
        trajectory = Trajectory.read(run.trajectory)
        assert len(trajectory.updates) == (1 if name == "select" else 4 - SHORT[name].get("adapter_steps", 0))
        assert trajectory.whole
        assert trajectory.header["seed"] == config.training.seed
    assert set(run.artifact_hashes()) == set(run.summary["parts"])


def test_coefficients_of_each_step_are_logged(configured, trained):
    mezo = lines_of(train(configured(MEZO | {"num_directions": 2}, steps=1)), "step")
    assert all({"projected_gradient_0", "projected_gradient_1"} <= set(line) for line in mezo)
    bilevel = lines_of(trained(BILEVEL), "step")
    for line in bilevel:
        assert line["penalty"] == 1.0
        assert {f"projected_gradient_{part}_0" for part in ("upper", "lower_p", "lower_s")} <= set(line)


def test_the_trajectory_of_mezo_is_its_log(trained):
    run = trained(MEZO)
    for line, update in zip(lines_of(run, "step"), Trajectory.read(run.trajectory).updates, strict=True):
        (key, coefficient), *rest = update.displacement.items()
        assert not rest
        assert (key.seed, key.step, key.index) == (0, line["step"], 0)
        assert coefficient == pytest.approx(-1e-3 * line["projected_gradient_0"], rel=1e-12)


@pytest.mark.parametrize(
    ("directions", "indices"),
    [("per-example", [0, 1, 2, 3, 65536, 65537, 65538, 65539]), ("per-group(3)", [0, 1, 65536, 65537])],
)
def test_each_example_or_group_has_a_key_and_a_coefficient_of_its_own(configured, directions, indices):
    run = train(configured(MEZO | {"directions": directions, "num_directions": 2}))
    sizes = [1] * 4 if directions == "per-example" else [3, 1]
    for line, update in zip(lines_of(run, "step"), Trajectory.read(run.trajectory).updates, strict=True):
        assert [tuple(key) for key in update.displacement] == [(0, line["step"], index) for index in indices]
        for (key, coefficient), size in zip(update.displacement.items(), sizes * 2, strict=True):
            slope = line[f"projected_gradient_{key.index}"]
            assert coefficient == pytest.approx(-1e-3 * slope * size / BATCH / 2, rel=1e-12)


def test_a_step_over_the_spread_is_the_same_step_over_one_number(configured):
    def updates(**options):
        run = train(configured(MEZO | {"directions": "per-example"} | options, str(options), steps=1))
        return Trajectory.read(run.trajectory).updates[0].displacement, lines_of(run, "step")[0]

    (plain, line), (over, _) = updates(), updates(normalize_by_std=True)
    slopes = torch.tensor([line[f"projected_gradient_{key.index}"] for key in plain], dtype=torch.float64)
    assert list(over) == list(plain)
    for key in plain:
        assert over[key] == pytest.approx(plain[key] / slopes.std().item(), rel=1e-9)


# the trained model comes back


@pytest.mark.parametrize("case", with_soak(RESTORED, ON_PARTS_OF_THEIR_OWN))
def test_restoring_gives_the_model_of_the_end_of_training(trained, case):
    run = trained(RESTORED[case])
    untrained = evaluate_zero_shot(run.config)
    for variant, trained in run.summary["variants"].items():
        assert abs(trained["loss"] - untrained.loss) > 1e-3
        restored = evaluate_run(run.path, variant=variant)
        assert restored.loss == pytest.approx(trained["loss"], abs=1e-5)
        assert restored.score == trained["accuracy"]
    losses = [trained["loss"] for trained in run.summary["variants"].values()]
    assert len(losses) == len(set(losses))  # the two adapters of bilevel are two models
    assert evaluate_run(run.path).loss == pytest.approx(run.summary["loss"], abs=1e-5)


@pytest.mark.parametrize(
    "case",
    with_soak(["sgd", "dense Adam", "bilevel", "LoRA", "all weights", "named layers"], ["sgd", "bilevel", "LoRA"]),
)
def test_best_gives_the_model_of_the_best_evaluation(configured, case):
    method = {key: value for key, value in RESTORED[case].items() if key != "lr"}
    run = train(configured(method | ({"lr": 0.05} if method["name"] == "first-order" else {}), eval_steps=1, steps=6))
    first = next(iter(run.summary["variants"]))
    scores = [line for line in lines_of(run, "evaluation") if line["variant"] == first]
    best = max(scores, key=lambda line: (line["accuracy"], -line["steps"]))  # the first of equals
    assert run.summary["best"] == {"step": best["steps"], "score": best["accuracy"]}
    assert len({line["loss"] for line in scores}) == 6
    restored = evaluate_run(run.path, best=True)
    assert restored.loss == pytest.approx(best["loss"], abs=1e-5)
    assert restored.score == best["accuracy"]


def test_best_is_not_just_the_last(configured):
    """A learning rate that ruins the model: some seed is best before its end."""
    for seed in range(5):
        run = train(configured(MEZO | {"rule": {"lr": 0.02}}, f"run-{seed}", eval_steps=1, steps=5, seed=seed))
        if run.summary["best"]["step"] < 5:
            break
    assert run.summary["best"]["step"] < 5
    assert abs(evaluate_run(run.path, best=True).loss - run.summary["loss"]) > 1e-3


@pytest.mark.parametrize("name", ["bilevel", "first-order"])
def test_adapters_load_with_peft_itself(trained, model_folder, name):
    run = trained(SHORT[name])
    assert json.loads((run.path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    restored = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    ours = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = peft.PeftModel.from_pretrained(restored, str(run.path / "adapter"))
    tensors = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert sum(t.abs().sum() for n, t in tensors.items() if "lora_B" in n) > 0
    ids = torch.tensor([[5, 6, 7, 8]])
    loaded = transformers.AutoTokenizer.from_pretrained(model_folder)
    if name == "first-order":  # no trajectory: base and adapter are the whole model
        from zofo.models import LoadedModel

        run.restore(LoadedModel(ours, loaded, "tiny"))
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    else:
        names = {n.replace(".lora_A", "").replace(".lora_B", "") for n in tensors}
        assert len(names) == len(tensors) // 2
        assert not torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_partial_trains_the_named_layers_and_nothing_else(trained, model_folder):
    run = trained(RESTORED["named layers"])
    base = load_file(model_folder / "model.safetensors")
    weights = load_file(run.path / "weights.safetensors")
    assert set(weights) == {name for name in base if ".layers.1." in name}
    assert all(not torch.equal(weights[name], base[name]) for name in weights)
    assert not (run.path / "adapter").exists()


def test_all_trains_every_weight(trained, model_folder):
    run = trained(RESTORED["all weights"])
    base, weights = load_file(model_folder / "model.safetensors"), load_file(run.path / "weights.safetensors")
    assert set(weights) == set(base)
    assert all(not torch.equal(weights[name], base[name]) for name in weights)


def test_a_run_of_another_base_model_is_refused(configured, model_folder, tokenizer, tmp_path):
    own = tmp_path / "model"
    build_model("llama", len(tokenizer)).save_pretrained(own)
    tokenizer.save_pretrained(own)
    run = train(configured(MEZO, model=own))
    before = evaluate_run(run.path)
    build_model("llama", len(tokenizer), seed=1).save_pretrained(own)
    with pytest.raises(RunError, match="is not the one that .* was trained from"):
        evaluate_run(run.path)
    with pytest.raises(RunError, match="is not the one that .* was trained from"):
        predict(run.path, ["a joy"])
    build_model("llama", len(tokenizer)).save_pretrained(own)
    assert evaluate_run(run.path) == before


@pytest.mark.parametrize("name", with_soak(SHORT, {"bilevel", "linear-probe"}))
def test_a_missing_or_damaged_part_is_named(trained, tmp_path, name):
    """Parts of a run that trains get one of three damages each, in turn; a probe's get all."""
    run = RunFolder(shutil.copytree(trained(SHORT[name]).path, tmp_path / "run"))
    for number, relative in enumerate(run.summary["parts"]):
        path = run.path / relative
        whole = path.read_bytes()
        damages = whole[: len(whole) // 2], whole[:-24], bytes([*whole[:-3], whole[-3] ^ 1, *whole[-2:]])
        for damaged in damages if name not in TRAINING else damages[number % 3 :][:1]:
            path.write_bytes(damaged)
            with pytest.raises(RunError, match=f"{relative}' is damaged"):
                evaluate_run(run.path)
        path.unlink()
        with pytest.raises(RunError, match=f"{relative}', a part of the trained model, is missing"):
            evaluate_run(run.path)
        path.write_bytes(whole)
    assert evaluate_run(run.path).loss == pytest.approx(run.summary["loss"], abs=1e-5)


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "summary.json"])
def test_a_missing_or_damaged_record_is_named(trained, tmp_path, name):
    run = RunFolder(shutil.copytree(trained(FIRST_ORDER).path, tmp_path / "run"))
    path = run.path / name
    for damage in (b"{", b"[]", b"\xff", b"text"):
        path.write_bytes(damage)
        with pytest.raises((RunError, ConfigError), match=name):
            evaluate_run(run.path)
    path.unlink()
    with pytest.raises((RunError, ConfigError), match=name):
        evaluate_run(run.path)


def test_an_unknown_variant_is_refused(trained):
    run = trained(BILEVEL)
    with pytest.raises(RunError, match="no model 'upper'") as refused:
        evaluate_run(run.path, variant="upper")
    assert "adapter, lower_adapter" in refused.value.hint


# determinism


@pytest.mark.parametrize("name", with_soak(TRAINING, {"bilevel"}))
def test_a_seed_decides_everything(configured, name):
    def everything(run):
        lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            del line["seconds"]
        return lines, contents(run.path, ".bin", ".safetensors")

    torch.manual_seed(1)
    one = everything(train(configured(SHORT[name], "one", eval_steps=2)))
    torch.manual_seed(2)
    random.seed(2)
    assert everything(train(configured(SHORT[name], "two", eval_steps=2))) == one
    metrics, files = everything(train(configured(SHORT[name], "other", eval_steps=2, seed=1)))
    assert metrics != one[0]
    assert set(files) == set(one[1])
    assert all(files[path] != one[1][path] for path in files)


@pytest.mark.parametrize("name", with_soak(SHORT, set(SHORT) - set(TRAINING)))
def test_global_generators_are_left_alone(configured, name):
    torch.manual_seed(3)
    random.seed(3)
    state = numpy.random.get_state()[1].copy()  # noqa: NPY002
    expected = torch.get_rng_state(), random.getstate()
    train(configured(SHORT[name], steps=2))
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]
    assert (numpy.random.get_state()[1] == state).all()  # noqa: NPY002


# counting


@pytest.mark.parametrize("name", ["mezo", "bilevel", "linear-probe"])
def test_epochs_make_as_many_steps_as_draw_all_rows_so_often(configured, name):
    run = train(configured(SHORT[name], steps=None, epochs=0.4))
    rows = {"mezo": 60, "bilevel": 40}.get(name, 0)  # D_p is two thirds of them
    assert run.summary["steps"] == (-(-rows * 4 // (10 * BATCH)) or 1)  # a probe is one step, however long


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 16}, "training.epochs=1 draws 64 rows, but about 9 of 60 are in no batch: batches of 16"),
        ({"batch_size": 8, "gradient_accumulation_steps": 2}, "draws 64 rows, but about 3 of 60 are in no batch"),
        ({"batch_size": 20}, ""),
    ],
)
def test_rows_that_epochs_do_not_see_are_counted_in_a_note(configured, options, said):
    shown = io.StringIO()
    train(configured({"name": "first-order", **options}, steps=None, epochs=1), console=Console(file=shown, width=500))
    assert said in shown.getvalue()
    assert ("in no batch" in shown.getvalue()) == bool(said)


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 9])
def test_as_many_rows_are_unseen_as_are_drawn_by_seed(steps):
    epoch, found = Epoch(47, 16), []
    for seed in range(200):
        batches = EpochSampler(range(47), 16, list, seed, "train")
        found.append(47 - len({row for number in range(steps) for row in batches[number]}))
    spread = statistics.stdev(found) / len(found) ** 0.5
    assert epoch.steps(1) == 3
    assert statistics.fmean(found) == pytest.approx(epoch.unseen(steps), abs=4 * spread + 1e-9)


@pytest.mark.parametrize(
    ("method", "forwards", "backwards", "queries"),
    [
        (MEZO, 1, 0, 2 * BATCH),  # all points share one forward
        (MEZO | {"num_directions": 3, "directions": "per-example"}, 1, 0, 6 * BATCH),
        (MEZO | {"estimator": "one-sided", "num_directions": 3}, 1, 0, 4 * BATCH),
        (MEZO | {"evaluator": {"micro_batch": 3}}, 2, 0, 2 * BATCH),
        (MEZO | IN_PLACE, 2, 0, 2 * BATCH),
        (MEZO | IN_PLACE | {"num_directions": 3}, 6, 0, 6 * BATCH),
        (MEZO | IN_PLACE | {"estimator": "one-sided", "num_directions": 3}, 4, 0, 4 * BATCH),
        (FIRST_ORDER, 1, 1, BATCH),
        (FIRST_ORDER | {"parameters": "all"}, 1, 1, BATCH),
        (BILEVEL, T + 2 + 3, T + 2, (T + 8) * BATCH),  # one forward for each of three losses
        (BILEVEL | {"directions": "per-example"}, T + 2 + 3, T + 2, (T + 8) * BATCH),
        (BILEVEL | IN_PLACE, T + 2 + 6, T + 2, (T + 8) * BATCH),
        (BILEVEL | {"inner_steps": 5, "estimator": "one-sided"}, 5 + 2 + 3, 5 + 2, 13 * BATCH),
        (BILEVEL | IN_PLACE | {"inner_steps": 5, "estimator": "one-sided"}, 5 + 2 + 6, 5 + 2, 13 * BATCH),
    ],
)
def test_the_work_of_a_step_is_counted(method, forwards, backwards, queries):
    kind = METHODS[method["name"]]
    made = kind(parse_model(kind.Config, method), language_context())
    for number in range(1, 3):
        made.step(number - 1)
        expected = {"forwards": number * forwards, "backwards": number * backwards, "queries": number * queries}
        assert made.counts.as_dict() == expected


@pytest.mark.parametrize("method", [MEZO, BILEVEL], ids=["mezo", "bilevel"])
def test_work_is_logged_step_by_step_and_evaluation_apart(configured, method):
    run = train(configured(method, eval_steps=1, eval_batch_size=5, steps=3))
    each = ("forwards", "backwards", "queries")
    first, *others = [{key: line[key] for key in each} for line in lines_of(run, "step")]
    assert first["queries"] > 0
    assert others == [{key: number * value for key, value in first.items()} for number in (2, 3)]
    assert {key: run.summary[key] for key in each} == others[-1]
    variants = len(run.summary["variants"])
    evaluations = 3 * variants  # of 12 examples, in batches of 5
    work = run.summary["evaluation"]
    assert work.pop("seconds") > 0
    assert work == {"forwards": 3 * evaluations, "backwards": 0, "queries": 12 * evaluations}


def worth(name):
    """How many queries a first step of a method takes, and three steps."""
    two_points = dict.fromkeys(("mezo", "es", "select"), 2 * BATCH)
    step = {**two_points, "first-order": BATCH, "bilevel": (T + 8) * BATCH}.get(name, BATCH)
    step = 2 * 2 * BATCH if name in ("svrg", "zo-svrg") else step  # the first: over the anchor batch, of two batches
    return step, BATCH + 2 * 2 * BATCH if name == "two-stage" else 3 * step  # one on the adapter, two of both sides


@pytest.mark.parametrize("name", TRAINING)
def test_whole_steps_fit_in_a_budget_of_queries(name):
    method = METHODS[name](parse_model(METHODS[name].Config, SHORT[name]), language_context())
    assert [method.steps_within(worth(name)[1] - less) for less in (0, 1)] == [3, 2]


@pytest.mark.parametrize("name", with_soak(TRAINING, {"bilevel", "two-stage", "svrg"}))
def test_a_budget_of_queries_pays_for_whole_steps(configured, name):
    step, three = worth(name)
    run = train(configured(SHORT[name], max_queries=three + step - 1))
    assert (run.summary["queries"], run.summary["steps"]) == (three, 3)
    with pytest.raises(ConfigError, match=f"one step of '{name}' takes {step}") as refused:
        train(configured(SHORT[name], "none", max_queries=step - 1))
    assert f"training.max_queries={step}" in refused.value.hint
    assert not configured(SHORT[name], "none").output_dir.exists()


@pytest.mark.soak
def test_evaluation_does_not_change_training(configured):
    often = train(configured(BILEVEL, "often", eval_steps=1))
    once = train(configured(BILEVEL, "once"))
    ends = (".bin", ".safetensors")
    assert {k: v for k, v in contents(often.path, *ends).items() if not k.startswith("best/")} == {
        k: v for k, v in contents(once.path, *ends).items() if not k.startswith("best/")
    }


# how a run may end


FAILING = [name for name in TRAINING if name != "select"]
"""Methods that see other rows in each step: `select` asks for the same ones, and its last step alone moves."""


@pytest.fixture
def poisoned(tokenizer, tmp_path, data_dir):
    """A model that gives nan for texts with a tilde, and training data with a few of them."""
    model = build_model("qwen2", len(tokenizer))  # its input and output embeddings are two tensors
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("~")] = torch.nan
    model.save_pretrained(tmp_path / "poisoned")
    tokenizer.save_pretrained(tmp_path / "poisoned")
    rows = review_rows(60)
    for row in rows[:4]:
        row["sentence"] += " ~"
    write_rows(data_dir / "train.jsonl", rows)
    return tmp_path / "poisoned"


def fail_after_a_step(configured, method, model):
    """The first seed whose run goes well for a step or more and then fails: its run folder, error and seed."""
    for seed in range(20):
        config = configured(method, f"failed-{seed}", model, seed=seed, steps=20)
        with pytest.raises(NonFiniteError) as failed:
            train(config)
        if failed.value.step > method.get("adapter_steps", 0):
            return RunFolder(config.output_dir), failed.value, seed
    raise AssertionError("every run failed in its first step")


@pytest.mark.promise(9)
@pytest.mark.parametrize("name", with_soak(FAILING, {"mezo"}))
def test_a_non_finite_loss_ends_the_run_and_leaves_what_was_learned(configured, poisoned, name):
    run, error, seed = fail_after_a_step(configured, SHORT[name], poisoned)
    assert error.exit_code == 1
    assert f"step {error.step}: non-finite loss nan of example" in error.message
    assert "weights were not updated" in error.message
    if name == "mezo":
        assert f"+0.001 * Key(seed={seed}, step={error.step}, index=0)" in error.message
    assert [line["step"] for line in lines_of(run, "step")] == list(range(error.step))
    (stopped,) = lines_of(run, "stopped")
    assert (stopped["error"], error.message in stopped["message"]) == ("NonFiniteError", True)
    assert error.message in run.summary["stopped"]
    assert set(run.artifact_hashes()) == set(run.summary["parts"])


@pytest.mark.promise(9)
@pytest.mark.parametrize("name", with_soak(FAILING, {"first-order"}))
def test_a_failed_step_updates_nothing(configured, poisoned, name):
    """What is left is, bit for bit, what a run that ends before the failing step leaves."""
    run, error, seed = fail_after_a_step(configured, SHORT[name], poisoned)
    shorter = train(configured(SHORT[name], "shorter", poisoned, seed=seed, steps=error.step))
    left = contents(run.path, ".safetensors")
    assert left == {k: v for k, v in contents(shorter.path, ".safetensors").items() if "best/" not in k}
    assert run.trajectory.is_file() == shorter.trajectory.is_file()
    if run.trajectory.is_file():
        one, two = (Trajectory.read(folder.trajectory).first(error.step) for folder in (run, shorter))
        assert one == two
    assert evaluate_run(run.path).loss == pytest.approx(shorter.summary["loss"], abs=1e-5)


def test_a_learning_rate_that_is_far_too_large_ends_the_run(configured):
    config = configured(RUINOUS)
    with pytest.raises(NonFiniteError, match="step 1: non-finite loss"):
        train(config)
    assert len(Trajectory.read(RunFolder(config.output_dir).trajectory).updates) == 1


def test_non_finite_scores_are_no_scores(configured):
    config = configured(RUINOUS, steps=1)
    with pytest.raises(NonFiniteError, match="scores of 12 of 12 examples"):
        train(config)
    run = RunFolder(config.output_dir)
    assert run.summary["variants"] == {"model": {}}
    assert run.summary["best"]["step"] == 0
    for path in (run.metrics, run.path / "summary.json"):
        assert "NaN" not in path.read_text(encoding="utf-8")
    with pytest.raises(NonFiniteError, match="scores of 12 of 12 examples"):
        evaluate_run(run.path)
    with pytest.raises(NonFiniteError, match="scores of 1 of 1 examples"):
        predict(run.path, ["a joy"])


class Interrupting(io.StringIO):
    """Where progress is written: presses Ctrl-C when the second step is shown."""

    def write(self, text):
        if "step 2/" in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.mark.parametrize("name", with_soak(FAILING, {"mezo", "bilevel"}))
def test_ctrl_c_leaves_a_folder_that_can_be_used(configured, name):
    config = configured(SHORT[name], steps=10)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config, Console(file=Interrupting()))
    finally:
        signal.signal(signal.SIGINT, before)
    run = RunFolder.open(config.output_dir)
    assert run.summary["stopped"] == "stopped by SIGINT after 2 steps, which are saved"
    assert [line["step"] for line in lines_of(run, "step")] == [0, 1]
    assert len(lines_of(run, "stopped")) == 1
    shorter = train(configured(SHORT[name], "shorter", steps=2))
    assert evaluate_run(run.path).loss == pytest.approx(shorter.summary["loss"], abs=1e-5)
    assert predict(run.path, ["a joy"])[0].label in (0, 1)
    with pytest.raises(RunError, match="kept no best model") as refused:
        evaluate_run(run.path, best=True)
    assert "eval_steps" in refused.value.hint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_is_answered(configured, monkeypatch, number):
    begun, again = configured(FIRST_ORDER, "begun", steps=1), configured(FIRST_ORDER, "new", steps=1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(configured(FIRST_ORDER, "begun", steps=10), Console(file=Interrupting()))
        training = sys.modules["zofo.training.train"]
        monkeypatch.setattr(training, "prepare_run", lambda *_, **__: signal.raise_signal(number))
        said = []
        for config in (again, configured(FIRST_ORDER, "begun", steps=10)):
            with pytest.raises(Interrupted) as stopped:
                train(config)
            said.append((stopped.value.message, stopped.value.hint.partition(",")[0]))
    finally:
        signal.signal(signal.SIGINT, before)
    name = signal.Signals(number).name
    assert said == [
        (f"stopped by {name} before its first step: nothing is written yet", "to begin again"),
        (f"stopped by {name} before it went on: what was saved is kept", "to go on"),
    ]
    assert not again.output_dir.exists()
    assert begun.output_dir.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_replay_of_a_run_that_goes_on_is_answered(configured, monkeypatch, number):
    config, before = configured(MEZO, steps=3, save_steps=1), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config, Console(file=Interrupting()))
        with monkeypatch.context() as patched:
            state = sys.modules["zofo.training.run_state"]
            patched.setattr(state, "replay_records", lambda *_: signal.raise_signal(number))
            with pytest.raises(Interrupted) as stopped:
                train(config)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (
        stopped.value.message == f"stopped by {signal.Signals(number).name} before it went on: what was saved is kept"
    )
    assert stopped.value.hint.startswith("to go on: zofo train ")
    assert train(config).summary["steps"] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_folder_is_made_is_answered(configured, monkeypatch, number):
    """Also where pydantic, which was at work then, makes an error of its own of what was raised."""

    class Path(Config):
        path: str = ""

        @field_serializer("path")
        def _stopped(self, _):
            signal.raise_signal(number)

    training, config = sys.modules["zofo.training.train"], configured(FIRST_ORDER, steps=1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(training, "write_provenance", lambda *_: Path().model_dump())
            with pytest.raises(Interrupted) as stopped:
                train(config)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.message == f"stopped by {signal.Signals(number).name} before its first step"
    assert train(config).summary["steps"] == 1


def test_a_run_never_overwrites_another(configured):
    run = train(configured(FIRST_ORDER, steps=1))
    before = contents(run.path, "")
    with pytest.raises(RunError, match="exists, and a run never overwrites another") as refused:
        train(configured(MEZO))
    assert refused.value.hint.startswith(f"its run has ended, and answers to zofo eval {run.path}; choose another")
    assert contents(run.path, "") == before


def test_progress_is_plain_lines_when_there_is_no_terminal(configured):
    shown = io.StringIO()
    train(configured(MEZO, steps=3, eval_steps=2), Console(file=shown))
    note, *lines = shown.getvalue().splitlines()
    assert re.fullmatch(r"trains ([\d,]+) of \1 parameters \(100 %\) in 20 tensors", note)
    assert [line.split("  ")[1] for line in lines] == [
        "step 1/3",
        "step 2/3",
        "after 2 steps",
        "step 3/3",
        "after 3 steps",
    ]
    assert all("\x1b" not in line and "loss" in line for line in lines)
    assert "accuracy" in lines[3]
    assert "queries/s" in lines[0]
    assert "GiB" in lines[0]


def test_long_runs_show_about_ten_lines(configured):
    shown = io.StringIO()
    train(configured(MEZO, steps=43), Console(file=shown))
    assert 10 <= len([line for line in shown.getvalue().splitlines() if "  step " in line]) <= 12


def test_progress_on_a_terminal_is_one_bar(configured):
    shown = io.StringIO()
    train(configured(MEZO, steps=3), Console(file=shown, force_terminal=True, width=120))
    assert "3/3" in shown.getvalue()
    assert "step 1/3" not in shown.getvalue()


@pytest.mark.parametrize("parts", [{}, IN_PLACE | {"evaluator": {"allow_half": True}}], ids=["in-forward", "in-place"])
def test_a_half_precision_run_keeps_the_weights_its_trajectory_cannot_give_back(configured, parts):
    config = configured({"name": "mezo", "batch_size": 4, "rule": {"lr": 1e-2}} | parts, "half", steps=3)
    config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    run = train(config)
    assert (run.path / "weights.safetensors").is_file()
    assert abs(evaluate_zero_shot(config).loss - run.summary["loss"]) > 1e-3
    assert evaluate_run(run.path).loss == pytest.approx(run.summary["loss"], rel=1e-5)


def test_a_run_can_be_loaded_as_a_model_also_after_its_base_has_moved(trained, model_folder, tmp_path):
    run = trained(SHORT["mezo"])
    moved = tmp_path / "elsewhere"
    shutil.copytree(model_folder, moved)
    one, two = run.load(), run.load(model=str(moved))
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert predict(str(run.path), ["a joy"], model=str(moved)) == predict(run.path, ["a joy"])
    for wrong, message in (
        ("a joy", "a list of texts"),
        ({"sentence": "a joy"}, "not a table or mapping"),
        ([None], "text 1 is None"),
        (["a joy", 3], "text 2 is 3"),
    ):
        with pytest.raises(DataError, match=message):
            predict(run.path, wrong)
    assert predict(run.path, []) == []
    assert predict(run.path, iter([{"sentence": "a joy"}]))[0].label == predict(run.path, ["a joy"])[0].label
    for options in ({"temperature": -1.0}, {"temperature": math.nan}, {"max_new_tokens": 0}):
        with pytest.raises(ConfigError, match="so that nothing|no draw"):
            zofo.Predictor(run.path, **options)
    asked = zofo.Predictor(run.path)
    assert asked.loaded is asked.loaded
    assert asked.predict(["a joy"]) == predict(run.path, ["a joy"])


def test_a_second_method_on_a_model_that_carries_adapters_is_refused(tokenizer):
    model = build_model("llama", len(tokenizer))
    context = TrainingContext(model, None, list(range(30)), list)
    Bilevel(BilevelConfig(batch_size=2), context)
    for build in (lambda: MeZO(MeZOConfig(), context), lambda: FirstOrder(FirstOrderConfig(), context)):
        with pytest.raises(ConfigError, match="adapters"):
            build()


# heads

CLASSES = {
    "classification": transformers.AutoModelForSequenceClassification,
    "masked-lm": transformers.AutoModelForMaskedLM,
}
ON_HEADS = {
    "mezo": MEZO | {"rule": {"lr": 1e-2}},
    "mezo in place": MEZO | {"evaluator": "in-place", "rule": {"lr": 1e-2}},
    "mezo, per-example": MEZO | {"directions": "per-example", "rule": {"lr": 1e-2}},
    "the head": FIRST_ORDER | {"parameters": "head", "lr": 0.05},
    "LoRA": FIRST_ORDER | {"adapter": "lora"},
    "all weights": FIRST_ORDER | {"parameters": "all", "lr": 5e-3},
    "bilevel": BILEVEL,
    "two-stage": SHORT["two-stage"],
}


@pytest.fixture(scope="module")
def headed(tmp_path_factory):
    """The folder of a tiny model with a head, by kind and head."""
    folder = tmp_path_factory.mktemp("headed")

    def build(kind, head="classification"):
        path = folder / f"{kind}-{head}"
        if not path.exists():
            own = build_tokenizer(bos=True)
            if head == "masked-lm":
                own.add_special_tokens({"mask_token": "[MASK]"})
            build_model(kind, len(own), seed=1, head=CLASSES[head]).save_pretrained(path)
            own.save_pretrained(path)
        return path

    return build


def comes_back(config, run):
    """The run scores as it did at its end, and unlike the model before; and it answers."""
    assert abs(evaluate_zero_shot(config).loss - run.summary["loss"]) > 1e-4
    for variant, trained in run.summary["variants"].items():
        restored = evaluate_run(run.path, variant=variant)
        assert restored.loss == pytest.approx(trained["loss"], abs=1e-5)
        assert restored.score == trained["accuracy"]
    for answer in predict(run.path, ["a joy", "dull film"]):
        assert (answer.label, answer.answer) in ((0, " terrible"), (1, " great"))
        assert 0.5 <= answer.probability <= 1


@pytest.mark.parametrize(
    ("kind", "case"),
    with_soak(
        [(kind, case) for kind in ("bert", "gpt2") for case in ON_HEADS],
        {("bert", "mezo, per-example"), ("gpt2", "the head"), ("bert", "bilevel")},
    ),
)
def test_a_classification_head_is_trained_and_comes_back(configured, headed, kind, case):
    config = configured(ON_HEADS[case], model=headed(kind))
    comes_back(config, train(config))


@pytest.mark.parametrize(
    ("kind", "case"), grid(["roberta", "distilbert", "opt", "llama"], ["mezo", "the head"], strength=1)
)
def test_heads_of_other_architectures_are_trained_and_come_back(configured, headed, kind, case):
    config = configured(ON_HEADS[case], model=headed(kind))
    comes_back(config, train(config))


@pytest.mark.parametrize(
    ("case", "kind"),
    with_soak(
        [
            (case, kind)
            for case in ("mezo", "mezo in place", "the head", "LoRA", "all weights", "bilevel")
            for kind in ("bert", "roberta")
        ],
        {("mezo", "bert"), ("LoRA", "roberta"), ("the head", "bert")},
    ),
)
def test_a_masked_language_model_is_trained_and_comes_back(configured, headed, kind, case):
    config = configured(ON_HEADS[case], model=headed(kind, "masked-lm"))
    comes_back(config, train(config))


@pytest.mark.parametrize(
    ("kind", "head"),
    with_soak(
        [("bert", "classification"), ("roberta", "classification"), ("distilbert", "classification")]
        + [("gpt2", "classification"), ("opt", "classification"), ("llama", "classification")]
        + [("bert", "masked-lm"), ("roberta", "masked-lm")],
        [("distilbert", "classification"), ("llama", "classification"), ("bert", "masked-lm")],
    ),
)
def test_in_the_forward_and_in_place_are_the_same_run_on_a_head(configured, headed, kind, head):
    runs = [
        train(configured(MEZO | {"evaluator": evaluator}, evaluator, model=headed(kind, head), steps=3))
        for evaluator in ("in-forward", "in-place")
    ]
    one, other = (lines_of(run, "step") for run in runs)
    assert len(one) == 3
    for left, right in zip(one, other, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)
        slope = right["projected_gradient_0"]
        assert left["projected_gradient_0"] == pytest.approx(slope, rel=1e-2, abs=2e-2)
    assert runs[0].summary["loss"] == pytest.approx(runs[1].summary["loss"], rel=1e-3)


def test_training_the_head_leaves_the_body_alone(configured, headed):
    run = train(configured(ON_HEADS["the head"], model=headed("bert")))
    weights = load_file(run.path / "weights.safetensors")
    base = load_file(headed("bert") / "model.safetensors")
    assert set(weights) == {"classifier.weight", "classifier.bias"}
    assert all(not torch.equal(weights[name], base[name]) for name in weights)


def test_a_head_that_the_checkpoint_does_not_bring_comes_back_too(configured, tokenizer, tmp_path):
    """It is drawn anew when the run is restored: the same, by its seed."""
    path = tmp_path / "bare"
    build_model("gpt2", len(tokenizer), head=transformers.AutoModel).save_pretrained(path)
    tokenizer.save_pretrained(path)
    model = {"name": str(path), "head": "classification", "head_seed": 3}
    config = configured(MEZO | {"rule": {"lr": 1e-2}})
    config = config.model_copy(update={"model": config.model.model_validate(model)})
    run = train(config)
    comes_back(config, run)
    other = config.model.model_copy(update={"head_seed": 4})
    moved = config.model_copy(update={"model": other, "output_dir": tmp_path / "other"})
    assert train(moved).summary["loss"] != pytest.approx(run.summary["loss"], abs=1e-6)


def test_a_head_of_three_labels_and_a_pair_of_texts(configured, headed, tmp_path, tokenizer):
    path = tmp_path / "bare"
    build_model("bert", len(tokenizer), head=transformers.AutoModel).save_pretrained(path)
    tokenizer.save_pretrained(path)
    task = tmp_path / "pairs.yaml"
    task.write_text(
        """
name: pairs
version: 1
kind: classification
metric: accuracy
template: "{{ one }} and {{ two }} ?"
texts: ["{{ one }}", "{{ two }}"]
label: label
verbalizers: {"yes": " yes", "no": " no", "maybe": " maybe"}
splits: {train: {from: train}, validation: {from: train, size: 9}, test: {from: train, size: 3}}
""",
        encoding="utf-8",
    )
    rows = [
        {"one": f"film {i % 5}", "two": ("dull", "warm", "a joy")[i % 3], "label": ("yes", "no", "maybe")[i % 3]}
        for i in range(42)
    ]
    write_rows(tmp_path / "rows" / "train.jsonl", rows)
    config = read_config(
        model={"name": str(path), "head": "classification"},
        task={"name": str(task), "data_dir": str(tmp_path / "rows")},
        method=FIRST_ORDER | {"parameters": "all", "lr": 2e-3},
        training={"steps": 80},
        output_dir=str(tmp_path / "pairs"),
    )
    run = train(config)
    assert run.summary["accuracy"] == 1.0
    assert evaluate_run(run.path).loss == pytest.approx(run.summary["loss"], abs=1e-5)
    found = predict(run.path, [json.dumps({"one": "film 3", "two": two}) for two in ("dull", "warm", "a joy")])
    assert [one.label for one in found] == ["yes", "no", "maybe"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_the_longest_text_that_a_head_can_take(configured, headed, data_dir, kind):
    """RoBERTa's positions begin after its padding token's, so that it takes fewer tokens than it has positions."""
    limit = 63 if kind == "roberta" else 64
    config = configured(MEZO, model=headed(kind), steps=1)
    word = "a"  # one token each, and one before them
    rows = review_rows(12)
    write_rows(data_dir / "train.jsonl", [*rows, {"sentence": word * (limit - 1), "label": 1}])
    long = config.model_copy(update={"task": config.task.model_copy(update={"truncate": "left"})})
    train(long)
    write_rows(data_dir / "train.jsonl", [*rows, {"sentence": word * limit, "label": 1}])
    with pytest.raises(DataError, match=f"train.jsonl:13: the text has {limit + 1} tokens .* the limit is {limit}"):
        train(config.model_copy(update={"output_dir": config.output_dir.with_name("other")}))


def test_a_reward_that_is_no_number_ends_the_run(configured):
    config = configured(MEZO)
    for wrong in (float("nan"), None, "good"):
        what = "no reward gives a number" if wrong is None else f"is {wrong!r}, not a finite number"
        with pytest.raises(ConfigError, match=what) as refused:
            train(config, reward=lambda example, answer, wrong=wrong: wrong)
        assert "train.jsonl:" in refused.value.message
    assert not config.output_dir.exists()
