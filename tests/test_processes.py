"""Several processes train as one does: the same losses and weights, the same bits in each, few bytes between them."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import build_model, review_rows, write_rows
from several_processes import together
from test_resume import contents
from zofo.methods import METHODS, MeZO, TrainingContext
from zofo.processes import Processes, joined
from zofo.training import RunConfig, RunFolder, train
from zofo.training.together import state_hash

BATCH = 5  # an odd one: one process has an example more than the other
RULE = {"name": "sgd", "lr": 2e-4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    write_rows(folder / "train.jsonl", review_rows(40))
    write_rows(folder / "validation.jsonl", review_rows(9, 40))
    return folder


@pytest.fixture(scope="module")
def configured(data, model_folder):
    def make(run, method=None, rows=data, **training):
        method = {"name": "mezo", "rule": RULE} if method is None else method
        content = {
            "model": str(model_folder),
            "task": {"name": "movie-reviews", "data_dir": str(rows)},
            "method": {"batch_size": BATCH, **method},
            "training": {"steps": 6, **training},
            "output_dir": str(run),
        }
        return RunConfig.model_validate(content)

    return make


def lines(run, event="step"):
    return [one for one in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if one["event"] == event]


def of_method(processes, method, folder):
    """Four steps of a method on random rows: its losses, its weights, what it counted and what it exchanged a step."""
    model, rows = build_model("llama"), list(torch.randint(3, 300, (24, 7), generator=torch.Generator().manual_seed(0)))
    context = TrainingContext(model, sequence_losses, rows, torch.stack, processes=processes)
    kind = METHODS[method["name"]]
    made = kind(kind.Config.model_validate({"batch_size": BATCH, **method}), context)
    before, losses = processes.bytes, [made.step(number).loss for number in range(4)]
    with made.using(made.variants[0]):
        save_file({name: p.detach().clone() for name, p in model.named_parameters()}, folder)
    exchanged = (processes.bytes - before) / 4 / max(made.queries_per_step, 1)
    return losses, made.counts.queries, exchanged, state_hash(made)


def sequence_losses(model, batch):
    logits = model(batch).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(dim=1)


ZEROTH_ORDER = (
    {"name": "mezo", "directions": "per-example", "evaluator": {"name": "in-forward", "flush_every": 3}},
    {"name": "mezo", "normalize_by_std": True, "rule": RULE, "evaluator": {"name": "in-forward", "micro_batch": 1}},
    {"name": "mezo", "noise": "gaussian", "evaluator": "from-copy", "batch_size": 1},
    {"name": "es", "population": 4, "rule": RULE},
    {"name": "svrg", "anchor_batch_size": 7},
)
FIRST_ORDER = (
    {"name": "first-order", "parameters": "all", "optimizer": "sgd", "gradient_accumulation_steps": 2},
    {"name": "bilevel", "inner_steps": 1, "optimizer": "sgd", "directions": "per-group(2)", "rule": RULE},
)


def test_methods_step_alike(tmp_path):
    """Losses within 1e-5 and weights within 1e-6 of one process, the same bits in both, at most 16 bytes a loss."""
    methods = [*ZEROTH_ORDER, *FIRST_ORDER]

    def work(rank):
        return [of_method(joined(), method, tmp_path / f"{rank}-{n}") for n, method in enumerate(methods)]

    alone = [of_method(Processes(), method, tmp_path / f"alone-{n}") for n, method in enumerate(methods)]
    first, second = together(work, tmp_path)
    for number, method in enumerate(methods):
        (losses, queries, _, _), one, two = alone[number], first[number], second[number]
        assert one == two, method
        assert one[0] == pytest.approx(losses, abs=1e-5), method
        assert one[1] == queries
        if method in ZEROTH_ORDER:
            assert 0 < one[2] <= 16
        tensors = [load_file(tmp_path / f"{of}-{number}") for of in ("alone", "0", "1")]
        assert all(torch.equal(tensors[1][name], tensors[2][name]) for name in tensors[1])
        apart = max(float((tensor - tensors[1][name]).abs().max()) for name, tensor in tensors[0].items())
        assert apart <= 1e-6, method


def test_two_processes_train_as_one(configured, tmp_path):
    """Over 50 steps, losses within 1e-5 and weights within 1e-6; the first one writes the run, as one process does."""
    training = {"steps": 50, "eval_steps": 30}
    one, two = tmp_path / "one", tmp_path / "two"
    train(configured(one, {"name": "mezo"}, **training))
    assert together(lambda rank: train(configured(two, {"name": "mezo"}, **training)) and None, tmp_path) == [
        None,
        None,
    ]
    for before, now in zip(lines(one), lines(two), strict=True):
        assert now["loss"] == pytest.approx(before["loss"], abs=1e-5)
        assert now["queries"] == before["queries"]
        assert 0 < now["exchanged_bytes"] <= 16 * 2 * BATCH
    weights = zip(*(RunFolder.open(run).load().model.parameters() for run in (one, two)), strict=True)
    assert max(float((a - b).abs().max()) for a, b in weights) <= 1e-6
    files = [{path.relative_to(run) for path in run.rglob("*")} for run in (one, two)]
    assert files[0] == files[1]
    assert lines(two, "evaluation")[-1]["loss"] == pytest.approx(lines(one, "evaluation")[-1]["loss"], abs=1e-5)
    assert RunFolder.open(two).environment["processes"] == "2"
    assert "processes" not in RunFolder.open(one).environment


def at_step(kind, number, what):
    """From now on, a method does something at the beginning of a step."""
    step = kind.step

    def stepped(self, n):
        if n == number:
            what()
        return step(self, n)

    kind.step = stepped


def test_a_signal_to_one_stops_all_after_the_same_step_and_they_go_on_to_the_same_bits(configured, tmp_path):
    def stopped(rank):
        train(configured(tmp_path / "whole"))
        if rank == 1:
            at_step(MeZO, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(configured(tmp_path / "stopped"))

    def again(rank):
        train(configured(tmp_path / "stopped"))

    first, second = together(stopped, tmp_path)
    assert first["message"] == "stopped by SIGTERM after 3 steps, which are saved"
    assert (first["quiet"], second["error"], second["quiet"]) == (False, "Interrupted", True)
    assert together(again, tmp_path) == [None, None]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_one_that_fails_or_dies_ends_the_run_and_is_said_once(configured, tmp_path):
    def failing(rank):
        def reward(example, answer):
            if rank == 1 and asked():
                raise ValueError("no answer today")
            return float(answer == example.gold)

        asked = iter(range(99)).__next__
        train(configured(tmp_path / "failed"), reward=reward)

    def dying(rank):
        if rank == 1:
            at_step(MeZO, 2, lambda: os.kill(os.getpid(), signal.SIGKILL))
        train(configured(tmp_path / "dead"))

    first, second = together(failing, tmp_path)
    assert first == {"error": "ProcessError", "message": "process 1 of 2 could not go on, and says why", "quiet": True}
    assert (second["error"], second["quiet"]) == ("ConfigError", False)
    assert "no answer today" in second["message"]
    first, second = together(dying, tmp_path)
    assert second is None
    assert first["message"] == "another of the 2 processes has ended, so that this one cannot go on"
    assert first["quiet"] is False
    assert json.loads((tmp_path / "dead" / "summary.json").read_text())["stopped"].startswith("another of the 2")


def test_processes_that_differ_are_refused_before_anything_is_written(configured, data, tmp_path):
    other = tmp_path / "other"
    write_rows(other / "train.jsonl", review_rows(40, 2))
    write_rows(other / "validation.jsonl", review_rows(9, 40))
    cases = {
        "seed": (lambda rank: {"seed": rank}, "training.seed is 1 in process 1, and 0 in process 0"),
        "rows": (
            lambda rank: {"rows": (data, other)[rank]},
            "process 1: the train rows of the task 'movie-reviews' are not those that process 0 has",
        ),
    }

    def work(rank):
        found = []
        for name, (differing, _) in cases.items():
            with pytest.raises(Exception) as refused:  # noqa: PT011
                train(configured(tmp_path / name, **differing(rank)))
            found.append([str(refused.value), refused.value.quiet])
        return found

    first, second = together(work, tmp_path)
    for number, (name, (_, said)) in enumerate(cases.items()):
        assert said in first[number][0]
        assert first[number][1] is False
        assert second[number] == [first[number][0], True]
        assert not (tmp_path / name).exists()
