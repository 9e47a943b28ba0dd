"""What a run by a reward gained and lost: the numbers are those of the models, and a stop does not change them."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from io import StringIO

import pytest
from rich.console import Console

from test_conformance import AtStep
from test_treatment import configured, lines_of  # noqa: F401  # a fixture
from zofo.cli import main
from zofo.errors import Interrupted
from zofo.methods.mezo import MeZO
from zofo.training import evaluate_zero_shot, read_config, train
from zofo.training.before_after import EVERYDAY, read_samples
from zofo.training.evaluation import TaskEvaluator


@pytest.fixture
def generating(model_folder, tmp_path):
    """Configurations of short runs that generate."""
    rows = [{"prompt": f"{n} is", "completion": "a number"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def make(name, **training):
        return read_config(
            model=str(model_folder),
            task={"data": str(tmp_path / "rows.jsonl"), "max_new_tokens": 4, "split_sizes": {"validation": 6}},
            method={"name": "es", "population": 4, "batch_size": 4, "estimator": {"epsilon": 0.05}},
            training={"steps": 3, "before_after_examples": 5, **training},
            output_dir=str(tmp_path / name),
        )

    return make


def spaces(example, text):
    """Spaces of a text: a reward that differs from its words by one."""
    return float(text.count(" "))


def test_gain_and_loss_are_those_of_the_models_also_after_a_stop(generating, tmp_path, capsys):
    console = Console(file=StringIO(), width=400)
    run = train(generating("whole"), console, reward=spaces)
    found, samples = run.summary["before_after"], read_samples(run.path / "samples.jsonl")
    assert len(samples) == 5
    for place, when in enumerate(("before", "after")):
        said = [row[when] for row in samples]
        assert found["reward"][place] == pytest.approx(sum(text.count(" ") for text in said) / 5)
        assert found["answer_words"][place] == pytest.approx(sum(len(text.split()) for text in said) / 5)
        assert [row[f"reward_{when}"] for row in samples] == [text.count(" ") for text in said]
    assert [row["before"] for row in samples] != [row["after"] for row in samples]
    lines = (run.path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["predicted"]["model"] for line in lines][:5]
    assert [row["after"] for row in samples] == answers
    assert found["backbone_distance"][0] == 0.0 < found["backbone_distance"][1] < 1
    assert 0 <= found["everyday_accuracy"][1] <= 1
    assert found["everyday_loss"][0] != found["everyday_loss"][1]
    shown = console.file.getvalue().partition("before -> after, 5 rows of validation:\n  reward")[2].splitlines()
    assert shown
    assert max(map(len, shown[:4])) < 80
    assert run.summary["queries"] == 3 * 4 * 4  # none of it is training's

    stopping = AtStep(2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(generating("stopped"), Console(file=stopping), reward=spaces)
    again = train(generating("stopped"), reward=spaces)
    assert again.summary["before_after"] == found
    assert read_samples(again.path / "samples.jsonl") == samples
    assert len(lines_of(again, "before_after")) == 2

    with pytest.raises(SystemExit):
        main(["report", str(run.path), "-o", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Answers before and after, with their rewards." in page
    assert "everyday sentences, loss" in page


def watched(monkeypatch):
    """Of each time that answers are asked for: whether that is of a variant, which the method's `using` opens."""
    answers, using, variants, found = TaskEvaluator.answers, MeZO.using, [], []

    @contextmanager
    def opened(self, variant):
        with using(self, variant):
            variants.append(variant)
            yield
            variants.pop()

    def asked(self, *arguments):
        found.append(bool(variants))
        return answers(self, *arguments)

    monkeypatch.setattr(MeZO, "using", opened)
    monkeypatch.setattr(TaskEvaluator, "answers", asked)
    return found


def test_it_is_of_rewards_alone_and_has_a_switch(generating, configured, monkeypatch):  # noqa: F811
    off = train(generating("off", steps=1, before_after_examples=0), reward=spaces)
    own = {"steps": 1, "treatment_steps": None, "before_after_examples": 32}
    plain = train(configured("plain", {"name": "mezo"}, **own))
    accuracy = configured("accuracy", {"name": "mezo"}, **own, objective="accuracy")
    inside = watched(monkeypatch)
    scored = train(accuracy)
    assert inside == [True] * len(inside) != []
    above = {"name": "bilevel", "inner_steps": 1, "batch_size": 2, "upper_objective": "accuracy"}
    bilevel = train(configured("bilevel", above, **own))
    for run in (off, plain):
        assert "before_after" not in run.summary
        assert not (run.path / "samples.jsonl").exists()
    assert 0 <= lines_of(bilevel, "step")[0]["reward_accuracy"] <= 1
    (step,) = lines_of(scored, "step")
    assert step["reward_accuracy"] == pytest.approx(step["reward"])
    for run in (scored, bilevel):
        assert run.summary["before_after"]["reward"][1] == run.summary["accuracy"]
        assert run.summary["before_after"]["reward"][0] == evaluate_zero_shot(accuracy).score


def test_everyday_sentences_are_of_two_words_and_none_twice():
    assert len({text for text, _, _ in EVERYDAY}) == len(EVERYDAY) == 24
    assert all(right != wrong and text == text.strip() for text, right, wrong in EVERYDAY)
