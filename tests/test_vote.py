"""A vote of displaced models: its answers are those that most of the models give, each made by itself."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections import Counter

import pytest
from rich.console import Console

from test_before_after import generating, spaces  # noqa: F401  # a fixture
from test_conformance import AtStep
from test_treatment import configured, lines_of  # noqa: F401  # a fixture
from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, Interrupted, RunError
from zofo.evaluators import Counts
from zofo.export import export_run
from zofo.methods.vote import VOTE, winner
from zofo.report import compare_runs
from zofo.training import evaluate_run, predict, read_config, train
from zofo.training.data_module import prepare_run

SELECT = {"name": "select", "population": 6, "vote": True, "keep": 3, "gate_examples": 0}


def by_hand(run, config, sigma):
    """The members' own answers to validation, each by weights that were moved to it, and what most of them say."""
    prepared = prepare_run(config)
    content = json.loads((run.path / VOTE).read_text(encoding="utf-8"))["members"]
    answers = []
    for ((seed, step, index, coefficient),) in content:
        assert abs(coefficient) == sigma
        backbone = Backbone(prepared.loaded.model, config.method.noise.build(), None)
        backbone.apply_(Displacement({Key(seed, step, index): coefficient}))
        answers.append(prepared.scorer.answers(prepared.loaded.model, prepared.encoded["validation"], Counts())[0])
        backbone.apply_(Displacement({Key(seed, step, index): -coefficient}))
    return [said[winner(said)] for said in map(list, zip(*answers, strict=True))], answers


def test_the_first_of_the_most_frequent_answers_wins():
    assert winner(["a", "b", "B  ", "c", "C"]) == 1
    assert winner([3, 1, 1, 3, 2]) == 0
    for answers in (["x"], ["a", "b"], ["b", "a", "a"]):
        assert Counter(answers)[answers[winner(answers)]] == max(Counter(answers).values())


def test_labels_are_voted_for(configured, tmp_path):  # noqa: F811
    """Of the members that the log says are best; the run is evaluated, asked and resumed, and is nothing else."""

    def reward(example, prediction):
        return 0.01 * len(example.prompt) * (-1 if prediction else 1)

    method = SELECT | {"estimator": {"epsilon": 0.5}, "gate_examples": 8}
    console = Console(file=io.StringIO(), width=400)
    config = configured("vote", method, steps=2, treatment_steps=None, before_after_examples=4)
    run = train(config, console, reward=reward)
    assert "for the 80 queries of this run" in console.file.getvalue()
    found = run.summary["selection"]
    assert found["gate_reward_kept"] > found["gate_reward_untrained"]
    assert (found["kept"], run.summary["queries"]) == (3, 2 * 6 * 4 + 4 * 8)
    losses = {(s["step"], i): -s[f"member_reward_{i}"] for s in lines_of(run, "step") for i in range(6)}
    assert found["best_reward"] == -min(losses.values())
    assert not [name for line in (found, *lines_of(run, "step")) for name in line if "loss" in name]
    best = sorted(losses, key=lambda one: (losses[one], one))[:3]
    seed = run.config.training.seed
    content = json.loads((run.path / VOTE).read_text(encoding="utf-8"))["members"]
    assert content == [[[seed, step, place // 2, -0.5 if place % 2 else 0.5]] for step, place in best]
    expected, answers = by_hand(run, run.config.model_copy(update={"output_dir": tmp_path / "other"}), 0.5)
    assert len({tuple(one) for one in answers}) > 1
    scored = evaluate_run(run.path)
    assert run.summary["evaluation"]["queries"] == 3 * len(expected)  # of the last evaluation alone
    assert list(scored.predictions) == expected
    assert scored.loss == pytest.approx(run.summary["loss"], rel=1e-4)
    plain = train(configured("plain", method | {"vote": False}, steps=2, treatment_steps=None), reward=reward)
    compared = compare_runs([run.path, plain.path])
    assert compared.pairs[0].loss is None
    (foot,) = (note for note in compared.notes if "shares of votes" in note)
    assert foot.startswith("vote is a vote")
    (told,) = predict(run.path, ["the film is good"])
    assert max(told.probabilities.values()) == told.probability > 0.5
    stopped = configured("stopped", method, steps=2, treatment_steps=None)
    with pytest.raises(Interrupted):
        train(stopped, Console(file=AtStep(1, lambda: signal.raise_signal(signal.SIGTERM))), reward=reward)
    assert (train(stopped, reward=reward).path / VOTE).read_bytes() == (run.path / VOTE).read_bytes()
    for kind in ("merged", "adapter"):
        with pytest.raises(RunError, match="a vote of several models and no one set of weights") as caught:
            export_run(run.path, kind, tmp_path / kind)
        assert "--patch FILE" in caught.value.hint
    again = configured("again", method, steps=1, treatment_steps=None)
    with pytest.raises(RunError, match="no beginning"):
        train(again.model_copy(update={"init_from": run.path}), reward=reward)
    (run.path / VOTE).write_text('{"members": [[[0, 0, 0, 1.0]]]}', encoding="utf-8")
    with pytest.raises(RunError, match="damaged"):
        evaluate_run(run.path)


def test_a_vote_is_sent_as_its_folder(configured, model_folder, tmp_path, run_zofo):  # noqa: F811
    """A few kilobytes, without logs and answers, which say the same to the bit beside a base model in another place."""
    run = train(configured("vote", SELECT, steps=2, treatment_steps=None), reward=lambda example, told: float(told))
    asked = ["the film is good", "it drags on"]
    expected = [one.probabilities for one in predict(run.path, asked)]
    scored = evaluate_run(run.path)
    sent, base = tmp_path / "sent", tmp_path / "elsewhere" / "base"
    shutil.copytree(run.path, sent, ignore=shutil.ignore_patterns("*.jsonl", "run.lock"))
    shutil.copytree(model_folder, base)
    run.path.rename(tmp_path / "gone")
    assert sum(file.stat().st_size for file in sent.rglob("*") if file.is_file()) < 20_000
    assert [one.probabilities for one in predict(sent, asked, model=str(base))] == expected
    again = evaluate_run(sent, [f"model.name={base}"])
    assert (again.loss, again.predictions) == (scored.loss, scored.predictions)
    code, told, _ = run_zofo("predict", sent, asked[0], "--model", base, "--json")
    assert code == 0
    assert max(json.loads(told.splitlines()[0])["probabilities"].values()) == max(expected[0].values())


def test_texts_are_voted_for_and_a_gate_may_keep_none(generating, tmp_path):  # noqa: F811
    given = generating("texts", steps=2).model_dump(mode="json", exclude_unset=True)
    method = SELECT | {"batch_size": 4, "estimator": {"epsilon": 0.05}}
    config = read_config(**{**given, "method": method})
    run = train(config, reward=spaces)
    expected, answers = by_hand(run, config.model_copy(update={"output_dir": tmp_path / "other"}), 0.05)
    assert len({tuple(one) for one in answers}) > 1
    assert list(evaluate_run(run.path).predictions) == expected
    lines = (run.path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["predicted"]["model"] for line in lines] == expected
    gated = {**given, "method": method | {"gate_examples": 4}, "output_dir": str(tmp_path / "gated")}
    shut = train(read_config(**gated), reward=lambda example, text: float(len(text) % 3))
    found = shut.summary["selection"]
    assert (
        (found["kept"] == 3)
        == (found["gate_reward_kept"] > found["gate_reward_untrained"])
        == (shut.path / VOTE).exists()
    )


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"keep": 1}, "keeps one"),
        ({"adapter": "lora"}, "own weights"),
        ({"evaluator": "in-place"}, "leave a rounding in the weights"),
        ({"noise": "gaussian"}, "evaluator=in-place"),
        ({"noise": "gaussian", "evaluator": "from-copy"}, "is a loss"),
        ({}, "is a loss"),
    ],
)
def test_what_cannot_vote_is_refused(configured, method, message):  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        train(configured("run", SELECT | method, steps=1, treatment_steps=None))
