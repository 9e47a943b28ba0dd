"""Bilevel with another objective on D_f than below: one without a gradient moves theta alone."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from sklearn.metrics import f1_score

from bilevel_problems import IN_PLACE, Quadratic, Vectors, language_context, quadratic_context
from test_treatment import configured, lines_of  # noqa: F401  # a fixture
from zofo import Bilevel, BilevelConfig
from zofo.errors import ConfigError
from zofo.objectives import objectives
from zofo.tasks.batches import repeated
from zofo.training import evaluate_run, prepare_run, read_config, train, training_context
from zofo.trajectory import Trajectory


def stepped(penalty=2.0, **options):
    """A problem after one step; by another name, the same upper losses are said to have no gradient."""
    model = Quadratic()
    context = quadratic_context(model)
    without = replace(context, log_ties=True)
    config = BilevelConfig(
        batch_size=2,
        inner_steps=1,
        penalty=penalty,
        optimizer="sgd",
        lr_lower=0.5,
        lr_adapter=0.1,
        **IN_PLACE,
        **options,
    )
    method = Bilevel(config, replace(context, by_objective=lambda name: without), Vectors(model))
    return model, method, method.step(0)


def test_theta_steps_as_with_a_gradient_and_p_follows_the_penaltys_term_alone():
    usual, _, log = stepped()
    model, method, other = stepped(upper_objective="accuracy")
    assert torch.equal(model.theta, usual.theta)
    assert torch.equal(model.w["lower_adapter"], usual.w["lower_adapter"])
    start = Quadratic()
    expected = -0.1 * 2.0 * (start.w["adapter"] - start.lower_solution(start.theta))
    assert torch.allclose(model.w["adapter"], expected)
    assert not torch.allclose(usual.w["adapter"], expected)
    assert -other.coefficients["upper_score"] == pytest.approx(log.coefficients["loss_upper"], abs=1e-3)
    assert other.coefficients["ties_upper"] == 0.0
    assert other.counts.queries == method.queries_per_step == log.counts.queries - 2


def test_a_surrogate_stands_for_it_in_the_step_on_p():
    usual, _, _ = stepped()
    model, _, log = stepped(upper_objective="accuracy", upper_surrogate=True)
    for one in ("adapter", "lower_adapter"):
        assert torch.equal(model.w[one], usual.w[one])
    assert {"upper_score", "loss_surrogate"} <= log.coefficients.keys()


@pytest.mark.parametrize("surrogate", [False, True])
def test_a_run_maximises_a_score_above_a_loss(configured, surrogate):  # noqa: F811
    method = {"name": "bilevel", "inner_steps": 1, "upper_objective": "accuracy", "upper_surrogate": surrogate}
    run = train(configured("run", {**method, "estimator": {"epsilon": 1e-2}}, steps=2, treatment_steps=None))
    lines = lines_of(run, "step")
    assert all(0 <= line["upper_reward"] <= 1 for line in lines)
    assert all(line["loss"] == -line["upper_reward"] and 0 <= line["ties_upper"] <= 1 for line in lines)
    assert lines[0]["loss_lower"] > 0
    assert run.summary["queries"] == 2 * 4 * (1 + (2 if surrogate else 1) + 3 * 2)


def test_a_function_is_asked_of_d_f_alone(configured):  # noqa: F811
    asked = []

    def reward(example, prediction):
        asked.append(example.prompt)
        return 0.25 * prediction

    method = {"name": "bilevel", "inner_steps": 1, "upper_objective": "reward"}
    config = configured("run", method, steps=6, treatment_steps=None, before_after_examples=0)
    with pytest.raises(ConfigError, match="no reward is given"):
        train(config)
    assert not config.output_dir.exists()
    run = train(config, reward=reward)
    assert 0 < len(set(asked)) <= 8 + 2  # a third of 24 rows, and two for the check
    assert all(0 <= line["upper_reward"] <= 0.25 for line in lines_of(run, "step"))


def test_what_has_no_meaning_is_refused(configured):  # noqa: F811
    bilevel = {"name": "bilevel", "inner_steps": 1}
    wrong = [
        ({**bilevel, "upper_surrogate": True}, "the one on D_f has a gradient"),
        ({**bilevel, "upper_objective": "token-f1"}, "'token-f1' has no meaning for the classification task"),
        ({**bilevel, "upper_objective": "accurracy"}, "accurracy"),
        ({**bilevel, "upper_objective": "f1"}, "the objective 'f1' is called 'token-f1'"),
    ]
    for method, message in wrong:
        config = configured("run", method, treatment_steps=None)
        with pytest.raises(ConfigError, match=message):
            train(config)
        assert not config.output_dir.exists()
    with pytest.raises(ConfigError, match="has one objective"):
        Bilevel(BilevelConfig(batch_size=2, upper_objective="accuracy"), language_context())


def test_p_that_nothing_moves_is_said():
    _, method, _ = stepped(penalty=0.0, upper_objective="accuracy")
    assert any("p stays as it starts" in note for note in method.notes())
    assert not any("p stays" in note for note in stepped(penalty=0.0)[1].notes())


@pytest.mark.parametrize(
    "method", [{"name": "mezo"}, {"name": "bilevel", "inner_steps": 1, "upper_objective": "reward"}]
)
def test_a_reward_that_is_constant_is_said_and_repeated_at_the_end(configured, method):  # noqa: F811
    console = Console(file=StringIO(), width=200)
    train(configured("run", method, steps=21, treatment_steps=None), console, reward=lambda example, prediction: 0.5)
    assert console.file.getvalue().count("is the reward constant?") == 2


TEMPLATE = (
    "{% for one in messages %}<{{ one.role }}> {{ one.content }}~ {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def test_generated_answers_of_a_chat_model_move_theta_above_a_loss(model_folder, tokenizer, tmp_path):
    """Below, adapters learn the answers of D_p by gradients; above, the reward of what is generated for D_f moves
    theta, with p's adapter in place, and is reported before and after."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    shutil.copytree(model_folder, tmp_path / "chatty")
    tokenizer.save_pretrained(tmp_path / "chatty")
    rows = [
        {"messages": [{"role": "user", "content": f"{n} ?"}, {"role": "assistant", "content": "a warm film"}]}
        for n in range(24)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = []

    def letters(prompts, completions, **columns):
        asked.extend(chat[-1]["content"] for chat in prompts)
        return [len(chat[0]["content"]) / 50 for chat in completions]

    config = read_config(
        model=str(tmp_path / "chatty"),
        task={"data": str(tmp_path / "chats.jsonl"), "max_new_tokens": 6, "split_sizes": {"validation": 3, "test": 3}},
        method={"name": "bilevel", "inner_steps": 2, "batch_size": 4, "upper_objective": "reward", "rule": {"lr": 1e-3}}
        | {"estimator": {"epsilon": 0.1}},
        training={"steps": 4},
        output_dir=str(tmp_path / "run"),
    )
    run = train(config, reward=letters)
    steps = lines_of(run, "step")
    assert any(line["ties_upper"] < 1 for line in steps)
    assert all(line["reward_letters"] >= 0 and line["upper_reward"] >= 0 for line in steps)
    assert run.summary["before_after"]["reward"][0] > 0
    assert any(len(update.displacement) for update in Trajectory.read(run.trajectory).updates)
    assert evaluate_run(run.path).loss == pytest.approx(run.summary["loss"], rel=1e-5)
    assert len(set(asked)) <= 18 / 3 + 2 + 3 + 5  # D_f, those of the check and the trial, and validation


def test_macro_f1_is_that_of_a_batch_at_each_point(configured, monkeypatch):  # noqa: F811
    """Two copies of a batch, as an evaluator asks at two points: each has the F1 of what is predicted there."""
    method = {"name": "bilevel", "inner_steps": 1, "upper_objective": "macro-f1", "estimator": {"epsilon": 1e-2}}
    config = configured("run", method, steps=2, treatment_steps=None)
    prepared = prepare_run(config)
    examples = prepared.encoded["train"][:5]
    context = training_context(config, prepared).by_objective("macro-f1")
    gold = [one.example.golds[0] for one in examples]
    said = [*gold, *[gold[0]] * 5]  # all right at the first point, and one label for all at the second
    logits = torch.nn.functional.one_hot(torch.tensor(said), 2).float()
    monkeypatch.setattr(objectives, "scores", lambda model, batch: logits)
    losses = context.objective(context.model, repeated(context.collate(examples), 2))
    right, alike = (f1_score(gold, one, average="macro", zero_division=0.0) for one in (said[:5], said[5:]))
    assert right == 1 > alike > 0
    assert losses.tolist() == pytest.approx([-right] * 5 + [-alike] * 5)
