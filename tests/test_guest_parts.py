"""Parts that zofo does not know: they are asked what they can do, and get the defaults that go with it."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from zofo import read_config
from zofo.adapters import ADAPTERS, LoraAdapters
from zofo.backbone import Backbone, Update
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError
from zofo.evaluators import InForward, InPlace
from zofo.methods import METHODS, ForwardOnlyConfig, MetaBilevel, MeZO, MeZOConfig
from zofo.methods.zeroth_order_defaults import EPSILON_OF_HALF, LR_OF_ONE, LR_OF_SEVERAL
from zofo.noise import NOISES, FactoredNoise, FactorLayout, LowRank, Rademacher, RandomMask
from zofo.objectives import OBJECTIVES, TrainingObjective, build_objective, classification_loss
from zofo.rules import RULES, Rule, State
from zofo.training import tune_lr


class OwnFactors(FactoredNoise):
    """Rank one, of signs; no subclass of `LowRank`."""

    def __init__(self) -> None:
        self.rank, self.scale, self.entries = 1, 1.0, Rademacher()
        self._same = LowRank(1, "rademacher")

    def factors(self, key, name, shape, device=None):
        return self._same.factors(key, name, shape, device)

    def draw(self, key, name, shape, block, device):
        return self._same.draw(key, name, shape, block, device)

    def layout(self, shapes, device):
        return FactorLayout(self, shapes, device)


class OwnRule(Rule):
    """Plain SGD by another name."""

    plain = True

    def __init__(self, lr: float = 0.25) -> None:
        self.lr = lr

    def update(self, estimate, state, lr=None):
        return Update(-self.lr * estimate.gradient), State(state.steps + 1)


class OwnConfig(ForwardOnlyConfig):
    """Configuration of a method that wants two demonstrations, and no others."""

    name: Literal["own"] = "own"

    task_defaults = {"num_fewshot": 2}

    def check_task(self, task):
        if task.num_fewshot != 2:
            raise ConfigError("method=own takes two demonstrations")


class OwnMethod(MeZO):
    """MeZO by another name."""

    Config = OwnConfig


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(NOISES._parts, "own", OwnFactors)
    monkeypatch.setitem(RULES._parts, "own", OwnRule)
    monkeypatch.setitem(METHODS._parts, "own", OwnMethod)


def test_a_noise_with_factors_runs_in_the_forward():
    assert MeZOConfig(noise="own").evaluator.name == "in-forward"


@pytest.mark.parametrize("mask", [None, RandomMask(0.5)])
def test_its_losses_in_the_forward_are_those_in_place(mask):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    batch = torch.randn(4, 6)
    points = [Displacement({Key(3, 0): 1e-2}), Displacement({Key(3, 0): -1e-2, Key(3, 1): 2e-2})]

    def losses(kind):
        evaluator = kind(model, Backbone(model, OwnFactors(), mask=mask))
        return evaluator.losses(lambda model, batch: model(batch).square().mean(dim=1), batch, points)

    assert torch.allclose(losses(InForward), losses(InPlace), atol=1e-6)
    assert not torch.equal(losses(InPlace)[0], losses(InPlace)[1])


@pytest.mark.parametrize(("directions", "lr"), [(1, LR_OF_ONE), (4, LR_OF_SEVERAL)])
def test_a_rule_that_is_plain_sgd_has_the_rate_that_the_method_has_by_default(directions, lr):
    assert MeZOConfig(rule="own", num_directions=directions).rule.options["lr"] == lr
    assert MeZOConfig(rule={"name": "own", "lr": 3.0}).rule.options["lr"] == 3.0
    assert MeZOConfig(rule="sign").rule.options["lr"] == 1e-6  # which is not plain


def test_a_method_completes_the_configuration_and_refuses_a_task():
    config = read_config(None, ["method=own", "model.dtype=bfloat16"])
    assert config.task.num_fewshot == 2
    assert config.method.estimator.options["epsilon"] == EPSILON_OF_HALF
    with pytest.raises(ConfigError, match="method=own takes two demonstrations"):
        config.model_validate({**config.model_dump(exclude={"task"}), "method": config.method})


def test_the_rate_of_a_method_with_one_rate_is_tuned(model_folder, data_dir):
    task = {"name": "sst2", "data_dir": str(data_dir), "num_fewshot": 2}
    own, mezo = (
        tune_lr(read_config(model=str(model_folder), task=task, method={"name": name, "batch_size": 4}), steps=1)
        for name in ("own", "mezo")
    )
    assert own == mezo


def test_meta_training_takes_adapters_that_start_as_nothing(monkeypatch):
    for name, neutral in (("own", True), ("other", False)):
        monkeypatch.setitem(ADAPTERS._parts, name, type("Own", (LoraAdapters,), {"starts_neutral": neutral}))
    config = read_config(None, ["method=meta-bilevel", "method.adapter=other"]).method
    with pytest.raises(ConfigError, match="method.adapter=other changes what the model does") as refused:
        MetaBilevel(config, None)
    assert refused.value.hint == "choose one of dora, ia3, lora, own, subspace"


def test_an_objective_of_causal_models_is_refused_for_others(monkeypatch):
    made = TrainingObjective("own", classification_loss, causal_only=True)
    monkeypatch.setitem(OBJECTIVES._parts, "own", lambda task, how: made)
    assert build_objective("own", None, None, causal=True) is made
    with pytest.raises(ConfigError, match="'own' is the loss of a causal language model"):
        build_objective("own", None, None, causal=False)
