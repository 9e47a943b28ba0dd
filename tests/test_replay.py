"""A replay does again what training did: the same bits of every tensor, after any number of steps."""

from __future__ import annotations

import copy

import pytest
import torch

from conftest import build_model, build_tokenizer, with_soak
from zofo import TrainingContext
from zofo.methods import METHODS
from zofo.noise import STREAM_VERSION
from zofo.objectives import classification_loss
from zofo.tasks import Example, collate, encode
from zofo.trajectory import Trajectory, TrajectoryWriter, replay

STEPS, LOOKED_AT = 11, 4  # updates wait in the forward, and are written early where somebody looks
MEZO = {"name": "mezo", "batch_size": 4, "rule": {"lr": 1e-3}}
IN_PLACE = {"noise": "gaussian", "evaluator": "in-place"}
METHOD = {
    "mezo": MEZO,
    "mezo, rank 2": MEZO | {"noise": {"name": "low-rank", "rank": 2}},
    "mezo, per example": MEZO | {"directions": "per-example"},
    "mezo, more keys than are held at once": MEZO | {"directions": "per-example", "num_directions": 20},
    "mezo, weight decay": MEZO | {"rule": {"lr": 1e-3, "weight_decay": 0.1}},
    "mezo, momentum": MEZO | {"rule": {"name": "momentum", "lr": 1e-3}},
    "mezo, sign": MEZO | {"rule": {"name": "sign", "lr": 1e-5}},
    "mezo, dense adam": MEZO | {"rule": {"name": "dense-adam", "lr": 1e-4}},
    "mezo, in place": MEZO | IN_PLACE,
    "mezo, in place, one-sided": MEZO | IN_PLACE | {"estimator": "one-sided", "num_directions": 3},
    "mezo, in place, low rank": MEZO | {"evaluator": "in-place"},
    "mezo, in place, dense adam": MEZO | IN_PLACE | {"rule": {"name": "dense-adam", "lr": 1e-4}},
    "svrg": {"name": "svrg", "batch_size": 4, "anchor_interval": 3, "rule": {"lr": 1e-3}},
    "svrg, in place, copy": {"name": "svrg", "batch_size": 4, "anchor": "copy", "rule": {"lr": 1e-3}} | IN_PLACE,
    "bilevel": {"name": "bilevel", "batch_size": 2, "inner_steps": 2, "rule": {"lr": 1e-4}},
    "bilevel, in place": {"name": "bilevel", "batch_size": 2, "inner_steps": 1, "rule": {"lr": 1e-4}} | IN_PLACE,
    "two-stage": {"name": "two-stage", "batch_size": 4, "adapter_steps": 3, "rule": {"lr": 1e-3}},
}
ON_PARTS_OF_THEIR_OWN = {
    ("mezo, rank 2", torch.float32),
    ("mezo, per example", torch.bfloat16),
    ("mezo, more keys than are held at once", torch.float32),
    ("mezo, weight decay", torch.bfloat16),
    ("mezo, in place, one-sided", torch.float32),
    ("svrg, in place, copy", torch.float32),
}
"""What is not in test_conformance.py."""


@pytest.fixture(scope="module")
def context():
    """Settings on copies of the same tiny model."""
    tokenizer = build_tokenizer()
    words = [" terrible", " great"]
    rows = [Example(f"film number {i} was", tuple(words), (i % 2,)) for i in range(24)]
    examples = encode(tokenizer, rows, 64, False)
    base = build_model("llama", len(tokenizer))

    def make(dtype=torch.float32):
        model = copy.deepcopy(base).to(dtype)
        return TrainingContext(
            model, classification_loss, examples, lambda chosen: collate(chosen, 0, torch.device("cpu"))
        )

    return make


def trained(context, options, path, steps=STEPS, looked_at=LOOKED_AT):
    """Train, looking at the weights once in between, and give the base tensors of theta as they are in the end."""
    method = METHODS[options["name"]](METHODS[options["name"]].Config.model_validate(options), context)
    writer = TrajectoryWriter(path, context.seed, {"stream": STREAM_VERSION, **method.replay_header()})
    method.evaluator.theta.log = writer
    for number in range(steps):
        method.step(number)
        writer.stepped(number)
        if number + 1 == looked_at:
            method.evaluator.theta.flush()
    method.evaluator.theta.flush()
    writer.close()
    return {name: tensor.clone() for name, tensor in method.backbone.tensors.items()}


def tensors(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.promise(17)
@pytest.mark.parametrize(
    ("case", "dtype"),
    with_soak([(case, dtype) for case in METHOD for dtype in (torch.float32, torch.bfloat16)], ON_PARTS_OF_THEIR_OWN),
)
def test_a_replay_has_the_bits_of_training(context, tmp_path, case, dtype):
    options = dict(METHOD[case])
    if dtype == torch.bfloat16 and (options.get("evaluator") == "in-place"):
        options["evaluator"] = {"name": "in-place", "allow_half": True}
    theta = trained(context(dtype), options, tmp_path / "t")
    trajectory = Trajectory.read(tmp_path / "t")
    assert trajectory.steps == STEPS
    model = context(dtype).model
    assert any(not torch.equal(tensor, theta[name]) for name, tensor in tensors(model).items())
    replay(model, trajectory)
    differing = [name for name, tensor in tensors(model).items() if not torch.equal(tensor, theta[name])]
    assert not differing


@pytest.mark.promise(17)
@pytest.mark.parametrize("case", ["mezo", "mezo, in place"])
def test_a_replay_of_many_steps_has_the_bits_of_training(context, tmp_path, case):
    """Updates were written together many times."""
    theta = trained(context(), METHOD[case], tmp_path / "t", steps=60, looked_at=37)
    trajectory = Trajectory.read(tmp_path / "t")
    assert trajectory.steps == len(trajectory.updates) == 60
    model = context().model
    replay(model, trajectory)
    assert [name for name, tensor in tensors(model).items() if not torch.equal(tensor, theta[name])] == []


@pytest.mark.promise(17)
@pytest.mark.parametrize(
    "case",
    with_soak(["mezo", "mezo, in place, one-sided", "svrg", "bilevel", "two-stage"], ["mezo", "svrg", "two-stage"]),
)
def test_a_replay_of_some_steps_is_the_run_that_stopped_there(context, tmp_path, case):
    trained(context(), METHOD[case], tmp_path / "all")
    trajectory = Trajectory.read(tmp_path / "all")
    for steps in (0, 1, LOOKED_AT, 9):
        theta = trained(context(), METHOD[case], tmp_path / str(steps), steps)
        model = context().model
        replay(model, trajectory, steps)
        assert all(torch.equal(tensor, theta[name]) for name, tensor in tensors(model).items())


def test_a_replay_at_once_agrees_up_to_rounding(context, tmp_path):
    theta = trained(context(), METHOD["mezo, in place"], tmp_path / "t")
    model = context().model
    replay(model, Trajectory.read(tmp_path / "t"), summed=True)
    for name, tensor in tensors(model).items():
        torch.testing.assert_close(tensor, theta[name], rtol=1e-5, atol=2e-6)


def test_the_bits_do_not_depend_on_whether_factors_were_kept(context, tmp_path):
    """More keys than are written at a time: those of a step are at hand, those that waited longer are drawn again."""
    options = METHOD["mezo, more keys than are held at once"]
    theta = trained(context(), options, tmp_path / "t", steps=3)
    assert len(Trajectory.read(tmp_path / "t").updates[0].displacement) == 80
    model = context().model
    replay(model, Trajectory.read(tmp_path / "t"))
    assert all(torch.equal(tensor, theta[name]) for name, tensor in tensors(model).items())
