"""Selection: what is kept is the best of the members, weighted as said, and only where the gate finds it better."""

from __future__ import annotations

import math
import signal
from io import StringIO

import pytest
from rich.console import Console

from test_conformance import AtStep
from test_treatment import configured, lines_of  # noqa: F401  # a fixture
from zofo.displacement import Key
from zofo.errors import ConfigError, Interrupted
from zofo.export import apply_patch, export_run, replay_run
from zofo.methods.select import Select
from zofo.report import read_runs, write_report
from zofo.training import evaluate_run, read_config, train
from zofo.trajectory import Trajectory

SIGMA = 0.25
SELECT = {"name": "select", "population": 4, "gate_examples": 12, "estimator": {"epsilon": SIGMA}}


def test_the_best_member_is_what_the_model_becomes(configured, model_folder, tmp_path):  # noqa: F811
    """Found by hand in the log, with its loss on the rows that chose it; a patch of one key brings it elsewhere."""
    console = Console(file=StringIO(), width=400)
    run = train(configured("one", SELECT | {"gate_examples": 0}, steps=3, treatment_steps=None), console)
    steps = lines_of(run, "step")
    losses = {(s["step"], i): s[f"member_loss_{i}"] for s in steps for i in range(4)}
    assert len(set(losses.values())) == 12
    step, place = min(losses, key=losses.get)
    (update,) = Trajectory.read(run.trajectory).updates
    best = Key(run.config.training.seed, step, place // 2)
    assert dict(update.displacement.items()) == {best: -SIGMA if place % 2 else SIGMA}
    found = run.summary["selection"]
    assert found == {
        "members": 12,
        "kept": 1,
        "mean_loss": pytest.approx(sum(losses.values()) / 12),
        "best_loss": losses[step, place],
    }
    assert "the best of 12 members: loss" in console.file.getvalue()
    write_report(read_runs([run.path]), tmp_path / "page.html")
    assert "<p>the best of 12 members: loss" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [line["queries"] for line in steps] == [16, 32, 48]
    assert replay_run(run.path).verdict == "same bits"
    export_run(run.path, "patch", tmp_path / "best.zofo")
    assert apply_patch(tmp_path / "best.zofo", str(model_folder), tmp_path / "out").same_bits


def test_the_best_are_weighed_by_how_much_better_than_the_mean_they_are(configured):  # noqa: F811
    """Again at the keys of the log: w_i = (mean - l_i) / sum of that over the best three of the better ones."""
    method = SELECT | {"gate_examples": 0, "keep": 3, "estimator": {"epsilon": SIGMA, "mirrored": False}, "lr": 0.5}
    run = train(configured("three", method, steps=3, treatment_steps=None))
    losses = {(s["step"], i): s[f"member_loss_{i}"] for s in lines_of(run, "step") for i in range(4)}
    mean, seed = sum(losses.values()) / 12, run.config.training.seed
    better = {member: mean - losses[member] for member in sorted(losses, key=losses.get)[:3]}
    expected = {Key(seed, *member): 0.5 * more / sum(better.values()) for member, more in better.items()}
    (update,) = Trajectory.read(run.trajectory).updates
    assert dict(update.displacement.items()) == pytest.approx(expected)
    assert sum(abs(c) for _, c in update.displacement.items()) == pytest.approx(0.5)


def test_the_gate_lets_through_what_is_better_on_other_rows(configured):  # noqa: F811
    """A displacement far too long is not; either way the log says what was asked."""
    console = Console(file=StringIO(), width=400)
    far = train(configured("far", SELECT | {"lr": 1e3}, steps=2, treatment_steps=None), console)
    (*_, last) = lines_of(far, "step")
    assert last["gate_loss_kept"] > last["gate_loss_untrained"]
    assert last["queries"] == 2 * 16 + 2 * 12
    assert Trajectory.read(far.trajectory).updates == ()
    assert far.summary["selection"]["kept"] == 0
    assert "not better: nothing is kept" in console.file.getvalue()
    near = train(
        configured("near", SELECT | {"population": 40, "keep": 20, "batch_size": 12}, steps=1, treatment_steps=None)
    )
    found = near.summary["selection"]
    assert found["kept"] > 0
    assert found["gate_loss_kept"] < found["gate_loss_untrained"]
    assert near.summary["loss"] != far.summary["loss"]
    assert evaluate_run(near.path).loss == pytest.approx(near.summary["loss"], rel=1e-5)


def test_a_member_without_a_finite_loss_is_left_out(configured, monkeypatch):  # noqa: F811
    """The best of the others is kept; and a gate that is not finite lets nothing through."""
    build = Select.__init__

    def built(self, config, context):
        build(self, config, context)
        losses = self._zo.evaluator.losses

        def poisoned(*asked):
            found = losses(*asked)
            found[1, 0] = math.nan
            return found

        monkeypatch.setattr(self._zo.evaluator, "losses", poisoned)

    monkeypatch.setattr(Select, "__init__", built)
    console = Console(file=StringIO(), width=400)
    run = train(configured("lost", SELECT | {"gate_examples": 0}, steps=2, treatment_steps=None), console)
    steps = lines_of(run, "step")
    losses = {(s["step"], i): s[f"member_loss_{i}"] for s in steps for i in (0, 2, 3)}
    assert [(s["non_finite"], "member_loss_1" in s) for s in steps] == [(1, False)] * 2
    step, place = min(losses, key=losses.get)
    (update,) = Trajectory.read(run.trajectory).updates
    key = Key(run.config.training.seed, step, place // 2)
    assert dict(update.displacement.items()) == {key: -SIGMA if place % 2 else SIGMA}
    assert run.summary["selection"] == {
        "members": 8,
        "kept": 1,
        "non_finite": 2,
        "mean_loss": pytest.approx(sum(losses.values()) / 6),
        "best_loss": losses[step, place],
    }
    config = configured("again", SELECT | {"gate_examples": 0}, steps=2, treatment_steps=None)
    with pytest.raises(Interrupted):
        train(config, Console(file=AtStep(1, lambda: signal.raise_signal(signal.SIGTERM))))
    assert train(config).summary["selection"] == run.summary["selection"]
    far = train(configured("far", SELECT | {"lr": 1e38}, steps=1, treatment_steps=None), console)
    assert Trajectory.read(far.trajectory).updates == ()
    assert far.summary["selection"]["gate_loss_kept"] is None
    assert "2 of 8 members had no finite loss" in console.file.getvalue()
    assert "no finite loss on the rows of the gate" in console.file.getvalue()


def test_a_reward_that_is_the_same_for_all_keeps_nothing(configured):  # noqa: F811
    console = Console(file=StringIO(), width=400)
    config = configured("flat", SELECT, steps=2, treatment_steps=None)
    run = train(config, console, reward=lambda example, prediction: 0.5)
    assert "all 8 members have the same reward: nothing is kept" in console.file.getvalue()
    assert run.summary["selection"] == {"members": 8, "kept": 0, "mean_reward": 0.5}
    assert [line["ties"] for line in lines_of(run, "step")] == [1.0, 1.0]


def test_a_budget_pays_for_the_gate(configured):  # noqa: F811
    run = train(configured("budget", SELECT, max_queries=2 * 16 + 24 + 15, treatment_steps=None))
    assert (run.summary["steps"], run.summary["queries"]) == (2, 2 * 16 + 24)


@pytest.mark.parametrize(
    ("method", "training", "message"),
    [
        ({"rule": "dense-adam"}, {}, "keeps a displacement, and updates by 'dense-adam' are none"),
        ({"rule": {"weight_decay": 0.1}}, {}, "weight decay"),
        ({"gate_examples": 30}, {}, "but there are 24 training rows"),
        ({}, {"lr_scheduler_type": "linear"}, "has no schedule"),
        ({"estimator": "two-sided"}, {}, "compares the members of a population"),
        ({"keep": 99}, {}, r"method.keep=99 keeps more than the \d+ members that \d+ steps score"),
    ],
)
def test_what_has_no_meaning_is_refused(configured, method, training, message):  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        train(configured("run", SELECT | method, treatment_steps=None, **training))


@pytest.mark.parametrize(("steps", "score"), [(1, "1 step scores"), (2, "2 steps score")])
def test_more_members_than_there_are_cannot_be_kept(steps, score):
    members = 4 * steps
    with pytest.raises(ConfigError, match=f"keeps more than the {members} members that {score}") as refused:
        read_config(method={"name": "select", "population": 4, "keep": members + 1}, training={"steps": steps})
    assert refused.value.hint == f"set method.keep={members} or less, or more training.steps"


def test_a_plain_lr_of_a_member_is_sigma(configured):  # noqa: F811
    for scores in ("z-score", "plain"):
        config = configured("run", SELECT | {"estimator": {"epsilon": SIGMA, "scores": scores}}).method
        assert config.rule.options["lr"] == SIGMA
    assert config.num_directions == 2
