"""A run that diverges says so while it happens; one that learns, or wanders, does not."""

from __future__ import annotations

import logging
import random
from io import StringIO

import pytest
from rich.console import Console

from test_resume import Stopping
from test_treatment import configured  # noqa: F401  # a fixture
from zofo.errors import Interrupted
from zofo.evaluators import Counts
from zofo.methods import StepLog
from zofo.training import read_config, train
from zofo.training.divergence import DivergenceWarning, default_rates
from zofo.training.progress import LOG


def said(losses, method=None):
    """What is said of a run of such losses, and after how many steps."""
    found = []
    watching = DivergenceWarning(found.append, method or {"rule": {"lr": 4e-4}})
    for number, loss in enumerate(losses):
        watching.after_step(number, StepLog(loss, Counts()))
        if found:
            return found[0], number + 1
    return None


def test_a_loss_that_leaves_is_named_with_the_rate_to_lower():
    text, steps = said([0.7, 0.9, 1.5, 2.5, 4.0, 6.0, 8.0, 9.0, 9.0])
    assert steps <= 9
    assert "it was 0.7 before the first step" in text
    assert "method.rule.lr=0.0001" in text
    text, steps = said([0.7, 11.0, 11.0, 11.0, 11.0, 11.0])  # by the first update
    assert steps == 5
    text, _ = said([0.7, *[9.0] * 9], {"lr": 1.0, "lr_lower": 0.4, "rule": {"lr": None}})
    assert "method.lr=0.25 method.lr_lower=0.1" in text


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        (
            {"name": "mezo", "lr": 1e9},
            "try method.rule.lr=5e-05; zofo tune lr finds the largest stable rate of method=mezo",
        ),
        ({"name": "mezo", "lr": 4e-4}, "try method.rule.lr=0.0001; zofo tune lr"),
        ({"name": "mezo", "rule": {"name": "momentum", "lr": 1e9}}, "try method.rule.lr=0.0001; zofo tune lr"),
        ({"name": "first-order", "lr": 1e9}, "try method.lr=0.001"),
        ({"name": "first-order", "parameters": "all", "lr": 1e9}, "try method.lr=1e-05"),
        ({"name": "bilevel", "lr_lower": 1e9}, "method.lr_lower=0.001 method.lr_adapter=0.00025"),
    ],
)
def test_an_absurd_rate_gives_way_to_the_default_and_the_method_is_named(method, advice):
    config = read_config(model="smollm2-135m", method=method).method
    tuned = config.name if getattr(config, "one_rate", False) else None
    found = []
    watching = DivergenceWarning(found.append, config.model_dump(), None, default_rates(config), tuned)
    for number in range(9):
        watching.after_step(number, StepLog(0.7 if not number else 9.0, Counts()))
    assert advice in found[0]
    assert ("tune lr" in found[0]) == (config.name == "mezo")
    assert all(("tune lr" in line) == (config.name == "mezo") for line in watching.conclusions())


@pytest.mark.parametrize(
    "losses",
    [
        [0.7, 0.6, 3.0, 0.5, 0.4, 4.0, 0.3, 0.2],  # single batches
        [-0.5, -0.1, -0.9, -0.2, 0.0, 0.0, 0.0],
        [0.02, 0.01, 0.2, 0.1, 0.3, 0.2, 0.1],  # small losses grow by large factors
        [1.2, 0.9, 1.4, 1.1, 1.8, 1.3, 1.5, 1.6],
    ],
)
def test_what_does_not_diverge_is_not_named(losses):
    assert said(losses) is None


def test_noisy_batches_raise_no_alarm():
    """300 runs of 200 steps, each batch of whose losses spreads by a half."""
    draw = random.Random(0)
    assert not any(said([0.69 * draw.lognormvariate(0, 0.4) for _ in range(200)]) for _ in range(300))


def shown(config):
    console = Console(file=StringIO(), width=300)
    train(config, console)
    return console.file.getvalue()


def test_a_run_says_it(configured):  # noqa: F811
    method = {"name": "mezo", "batch_size": 8, "rule": {"lr": 0.3}}
    text = shown(configured("run", method, steps=12, treatment_steps=None))
    assert text.count("training diverges") == text.count("training diverged") == 1
    assert "method.rule.lr=5e-05" in text.splitlines()[-1]  # the default, again, where it can be seen


def test_a_run_from_python_logs_what_it_says_and_warns(configured, monkeypatch):  # noqa: F811
    said = []
    monkeypatch.setattr(LOG, "_log", lambda level, text, _: said.append((level, text)))
    monkeypatch.setattr(LOG, "isEnabledFor", lambda level: True)
    train(configured("run", {"name": "mezo", "batch_size": 8, "rule": {"lr": 0.3}}, steps=12, treatment_steps=None))
    assert any(text.startswith("trains ") for level, text in said if level == logging.INFO)
    assert any("step 12/12" in text for level, text in said if level == logging.INFO)
    assert any(text.startswith("training diverged") for level, text in said if level == logging.WARNING)


@pytest.mark.parametrize(
    ("method", "reward", "what"),
    [
        ({"rule": {"lr": 1e-4}}, lambda example, answer: 1.0, "no direction of 10 steps up to step 10 changed"),
        ({"rule": {"lr": 0.3}}, None, "moved the weights by about"),
    ],
    ids=["ties", "distance"],
)
def test_what_a_run_concludes_outlives_a_stop(configured, method, reward, what):  # noqa: F811
    ended = []
    for name in ("whole", "stopped"):
        config = configured(name, {"name": "mezo", "batch_size": 2, **method}, steps=13, treatment_steps=None)
        if name == "stopped":
            with pytest.raises(Interrupted):
                train(config, Console(file=Stopping(12)), reward=reward)
        ended.append(train(config, reward=reward).summary["conclusions"])
    assert ended[0] == ended[1]
    assert what in ended[0][0]


@pytest.mark.soak
def test_planted_divergence_is_named_within_ten_steps_in_20_of_20_runs_and_no_alarm_is_false_in_50(configured):  # noqa: F811
    named = []
    for seed in range(20):
        method = {"name": "mezo", "batch_size": 8, "rule": {"lr": 0.3}}
        config = configured(f"planted{seed}", method, steps=11, treatment_steps=None, seed=seed)
        named.append("training diverges" in shown(config))
    false = []
    for seed in range(50):
        method = {"name": ("mezo", "bilevel", "svrg")[seed % 3], "batch_size": 4}
        config = configured(f"healthy{seed}", method, steps=25, treatment_steps=None, seed=seed)
        false.append("training diverges" in shown(config))
    print(f"named {sum(named)} of 20, false alarms {sum(false)} of 50")
    assert sum(named) == 20
    assert not any(false)
