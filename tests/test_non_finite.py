"""Losses that are not finite, at either probe or both: no bit of a run changes, and every such step is in its log.

Which parts refuse them, and that one ends a run of any method: test_estimators.py, test_conformance.py.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from conftest import review_rows, write_rows
from test_resume import IN_PLACE, LR, METHOD
from zofo.displacement import Key
from zofo.errors import NonFiniteError
from zofo.estimators import Estimator
from zofo.methods import METHODS
from zofo.training import RunFolder, read_config, train
from zofo.trajectory import Trajectory

WAYS = [(value, where) for value in (math.nan, math.inf, -math.inf) for where in ("plus", "minus", "both")]
ROWS = {"plus": slice(0, None, 2), "minus": slice(1, None, 2), "both": slice(None)}
SKIPPED = [2 * number + 1 for number in range(len(WAYS))]
STEPS = SKIPPED[-1] + 3
APART = {"counts", "slots", "anchor", "g"}  # the next step of SVRG takes its anchor and g anew


@pytest.fixture
def configured(model_folder, tmp_path):
    write_rows(tmp_path / "data" / "train.jsonl", review_rows(40))
    write_rows(tmp_path / "data" / "validation.jsonl", review_rows(8, 40))

    def configure(method, name="run", **training):
        return read_config(
            model=str(model_folder),
            task={"data_dir": str(tmp_path / "data")},
            method=method,
            training={"steps": STEPS, **training},
            output_dir=str(tmp_path / name),
        )

    return configure


@pytest.fixture
def poison(monkeypatch):
    """Let the losses of one example be what `ways` says, by step; the rest is as it is."""
    tell = Estimator.tell

    def poison(ways):
        def poisoned(self, directions, losses):
            first = directions[0]
            step = first.step if isinstance(first, Key) else first[0].step
            if step in ways:
                value, where = ways[step]
                losses = losses.clone()
                losses[ROWS[where], 1] = value
            return tell(self, directions, losses)

        monkeypatch.setattr(Estimator, "tell", poisoned)

    return poison


def everything(method):
    """Weights, adapters, optimizers and what the rule remembers."""
    method.evaluator.theta.flush()  # what waits to be written moves theta's bits, whenever it is written
    kept = method.state_dict(weights=True)

    def uncounted(values):
        if not isinstance(values, dict):
            return values
        return {key: uncounted(value) for key, value in values.items() if key not in APART}

    return json.dumps(uncounted(kept.values)), {name: tensor.clone() for name, tensor in kept.tensors.items()}


def same(one, other):
    """To the last bit."""
    return one[0] == other[0] and all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


@pytest.fixture
def watched(monkeypatch):
    """The numbers of the abandoned steps of a method, each of which is checked to have changed nothing."""

    def watch(name, rounding):
        abandoned, step = [], METHODS[name].step

        def watching(self, number):
            before = everything(self)
            try:
                return step(self, number)
            except NonFiniteError:
                after = everything(self)
                if rounding:  # in place: there and back
                    assert before[0] == after[0]
                    assert all(torch.allclose(t, after[1][n], rtol=0, atol=1e-6) for n, t in before[1].items())
                else:
                    assert same(before, after)
                abandoned.append(number)
                raise

        monkeypatch.setattr(METHODS[name], "step", watching)
        return abandoned

    return watch


def lines_of(run, event):
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


CASES = {
    "mezo": METHOD["mezo"],
    "mezo, momentum": METHOD["mezo, momentum"],
    "mezo, in place": METHOD["mezo, in place"],
    "mezo, dense adam": METHOD["mezo, dense adam"],
    "zo-svrg": {"name": "zo-svrg", "batch_size": 4, "anchor_interval": 3, "anchor_batch_size": 10} | LR,
    "svrg": METHOD["svrg"],
    "bilevel": {"name": "bilevel", "batch_size": 2, "inner_steps": 1, "rule": {"lr": 1e-4}},
    "bilevel, in place": {"name": "bilevel", "batch_size": 2, "inner_steps": 1, "rule": {"lr": 1e-4}} | IN_PLACE,
}
QUICK = ("mezo", "svrg")


@pytest.mark.promise(9)
@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.soak) for c in CASES])
def test_no_bit_changes_and_each_is_in_the_log(configured, poison, watched, case):
    poison(dict(zip(SKIPPED, WAYS, strict=True)))
    abandoned = watched(CASES[case]["name"], "in place" in case)
    run = train(configured(CASES[case], on_non_finite="skip"))
    assert abandoned == SKIPPED
    skipped = lines_of(run, "skipped")
    assert [line["step"] for line in skipped] == SKIPPED
    for line, (value, where) in zip(skipped, WAYS, strict=True):
        assert f"step {line['step']}: non-finite loss {value} of example 1" in line["error"]
        assert f"Key(seed=0, step={line['step']}, index=" in line["error"]
        if "svrg" not in case:  # whose points are those of the anchor, too
            assert ("at -" if where == "minus" else "at +") in line["error"], line["error"]
    assert [line["step"] for line in lines_of(run, "step")] == [n for n in range(STEPS) if n not in SKIPPED]
    text = run.metrics.read_text(encoding="utf-8")
    assert all(word not in json.loads(line).values() for line in text.splitlines() for word in (math.inf, -math.inf))
    assert run.summary["steps"] == STEPS
    keys = {key.step for update in Trajectory.read(run.trajectory).updates for key in update.displacement}
    assert not keys & set(SKIPPED)


@pytest.mark.promise(9)
@pytest.mark.parametrize("most", [1, 3])
def test_so_many_in_a_row_are_skipped_and_one_more_stops_the_run(configured, poison, most):
    bad = dict.fromkeys(range(4, 4 + most), (math.inf, "both"))
    poison(bad)
    run = train(configured(METHOD["mezo"], "skipped", on_non_finite="skip", max_consecutive_skips=most, steps=10))
    assert [line["step"] for line in lines_of(run, "skipped")] == list(bad)
    poison({**bad, 4 + most: (-math.inf, "minus")})
    config = configured(METHOD["mezo"], "stopped", on_non_finite="skip", max_consecutive_skips=most, steps=10)
    with pytest.raises(NonFiniteError, match=f"step {4 + most}: non-finite loss -inf of example 1") as stopped:
        train(config)
    assert stopped.value.exit_code == 1
    run = RunFolder(config.output_dir)
    assert [line["step"] for line in lines_of(run, "skipped")] == list(bad)
    assert lines_of(run, "stopped")[0]["error"] == "NonFiniteError"


@pytest.mark.promise(9)
@pytest.mark.parametrize(("value", "where"), WAYS)
def test_by_default_the_first_one_stops_the_run(configured, poison, watched, value, where):
    poison({3: (value, where)})
    abandoned = watched("mezo", rounding=False)
    config = configured(METHOD["mezo"], steps=6)
    with pytest.raises(NonFiniteError, match=f"step 3: non-finite loss {value} of example 1"):
        train(config)
    assert abandoned == [3]
    assert len(Trajectory.read(RunFolder(config.output_dir).trajectory).updates) == 3
