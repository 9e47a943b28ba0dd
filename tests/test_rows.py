"""Batches that are asked at several points in one forward, and what is said of those that cannot be."""

import typing

import pytest
import torch
from torch import nn

from zofo import Backbone, Displacement, InForward, InPlace, Key
from zofo.backbone import Update
from zofo.errors import EvaluatorError, NonFiniteError
from zofo.noise import LowRank
from zofo.tasks import batches


class AdapterPair(typing.NamedTuple):
    inputs: torch.Tensor
    weight: float


def squares(model, batch):
    return model(batch["x"]).square().sum(1)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7))


@pytest.fixture
def batch():
    return {"x": torch.linspace(-1, 1, 24).view(4, 6), "labels": None, "size": 3}


def test_what_is_no_tensor_stays_and_named_tuples_stay_named(batch):
    assert batches.size(batch) == 4
    twice = batches.repeated(batch, 2)
    assert (twice["x"].shape, twice["labels"], twice["size"]) == ((8, 6), None, 3)
    assert batches.part(AdapterPair(batch["x"], 0.5), 1, 3) == (pytest.approx(batch["x"][1:3]), 0.5)


@pytest.mark.parametrize(
    "bad",
    [[], {"x": "text"}, [torch.tensor(1.0)], (torch.zeros(4, 2), torch.zeros(1, 2)), [torch.zeros(6), torch.zeros(4)]],
)
def test_a_batch_whose_tensors_do_not_agree_on_the_examples_is_refused(bad):
    with pytest.raises(EvaluatorError, match="cannot be repeated") as caught:
        batches.size(bad)
    assert "method.evaluator=in-place" in caught.value.hint


@pytest.mark.parametrize(
    "wrong", [lambda losses: losses.mean(), lambda losses: losses[:2], lambda losses: losses[None]]
)
def test_an_objective_must_give_one_loss_for_each_example(model, batch, wrong):
    evaluator = InForward(model, Backbone(model, LowRank()))
    with pytest.raises(EvaluatorError, match="2 points of [24] examples"):
        evaluator.losses(lambda m, b: wrong(squares(m, b)), batch, [Displacement(), Displacement({Key(0, 0): 0.1})])


@pytest.mark.parametrize("select", [["*bias"], ["0.bias"], ["*weight"], ["2.*"]])
def test_biases_alone_agree_with_in_place(model, batch, select):
    backbone = Backbone(model, LowRank(), select)
    points = [Displacement({Key(0, 1): 0.1}), Displacement({Key(0, 1): -0.1, Key(0, 2): 0.05})]
    found, expected = (kind(model, backbone).losses(squares, batch, points) for kind in (InForward, InPlace))
    assert torch.allclose(found, expected, rtol=1e-5)


def test_an_update_that_is_not_finite_is_refused_and_leaves_nothing_pending(model, batch):
    evaluator = InForward(model, Backbone(model, LowRank()))
    evaluator.theta.apply(Update(Displacement({Key(0, 1): 0.1})))
    before = evaluator.losses(squares, batch, [Displacement()])
    with pytest.raises(NonFiniteError):
        evaluator.theta.apply(Update(Displacement({Key(0, 2): 1e39})))
    assert torch.equal(evaluator.losses(squares, batch, [Displacement()]), before)
    evaluator.theta.flush()
    assert not len(evaluator.theta.pending)


def test_many_keys_are_folded_some_at_a_time(model):
    displacement = Displacement({Key(0, step): 0.01 * (step % 7 - 3) for step in range(200)})
    backbone = Backbone(model, LowRank())
    before = {name: tensor.clone() for name, tensor in backbone.tensors.items()}
    asked = []
    directions = backbone.directions
    backbone.directions = lambda keys: asked.append(len(tuple(keys))) or directions(keys)
    expected = {name: before[name] + z for name, z in Backbone(model, LowRank()).values(displacement).items()}
    backbone.apply_(Update(displacement))
    assert max(asked) <= LowRank.keys_at_once
    assert all(torch.allclose(tensor, expected[name], atol=1e-5) for name, tensor in backbone.tensors.items())


@pytest.mark.soak
def test_as_many_keys_as_a_long_run_has_can_be_folded():
    small = nn.Linear(2, 2)
    Backbone(small, LowRank()).apply_(Displacement({Key(0, step): 1e-6 for step in range(80_000)}))
    assert small.weight.isfinite().all()
