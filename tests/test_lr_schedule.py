"""Schedules of learning rates, and what is done to first-order steps: against torch and transformers."""

import copy
import json
import math

import pytest
import torch
from transformers import get_scheduler

from conftest import build_model
from least_squares import BATCH, IN_FORWARD, IN_PLACE, LR, LR_FULL, LeastSquares, build, theta_of, training_context
from zofo.adapters import AdapterConfig
from zofo.backbone import Backbone
from zofo.errors import ConfigError
from zofo.methods import METHODS
from zofo.methods.first_order_step import FirstOrderStep
from zofo.noise import Gaussian
from zofo.rules import RULES
from zofo.training import TrainingConfig, read_config, train
from zofo.training.training_config import lr_schedule
from zofo.trajectory import Trajectory
from zofo.trajectory.replay import replay

NAMES = {
    "constant_with_warmup": {},
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "polynomial": {"power": 2},
    "inverse_sqrt": {},
    "warmup_stable_decay": {"num_decay_steps": 4},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_is_that_of_transformers(name):
    training = TrainingConfig(lr_scheduler_type=name, warmup_steps=3, lr_scheduler_kwargs=NAMES[name])
    factor = lr_schedule(training, 12)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, 3, 12, NAMES[name])
    for step in range(12):
        assert factor(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert factor(5) == factor(5)  # whatever was asked before


def test_a_warm_up_is_a_number_of_steps_or_a_share_of_them():
    asked = [TrainingConfig(lr_scheduler_type="linear", warmup_steps=w).warmup(40) for w in (0, 7, 0.1, 0.001)]
    assert asked == [0, 7, 4, 1]


@pytest.mark.parametrize(
    ("given", "steps", "message"),
    [
        ({"lr_scheduler_type": "linear", "warmup_steps": 12}, 12, "the run has 12 steps, and some must follow"),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 13}},
            12,
            "num_decay_steps is 13, but 12 steps follow",
        ),
        (
            {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"num_cycles": 2}},
            12,
            "not an option of the schedule",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
            12,
            "min_lr: not an option of the schedule 'cosine_with_min_lr' here",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 3}},
            12,
            "not between 0 and 1",
        ),
        ({"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}}, 12, "cannot be made of"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": -5}},
            12,
            "must not be below 0",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, 12, "cannot be made of"),
        ({"warmup_steps": 3}, 12, "has no effect with training.lr_scheduler_type=constant"),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 1.5}, 12, "neither a number of steps nor a share"),
    ],
)
def test_what_a_run_cannot_hold_is_refused(given, steps, message):
    with pytest.raises(ConfigError, match=message):
        lr_schedule(TrainingConfig(**given), steps)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_option_is_a_finite_number(value):
    with pytest.raises(ValueError, match="finite"):
        TrainingConfig(lr_scheduler_type="cosine", lr_scheduler_kwargs={"num_cycles": value})


def test_a_warm_up_that_leaves_no_step_is_refused_before_anything_is_loaded():
    given = ["method=mezo", "training.steps=10", "training.lr_scheduler_type=linear", "training.warmup_steps=20"]
    with pytest.raises(ConfigError, match="the run has 10 steps"):
        read_config(None, given)
    read_config(None, ["method=zero-shot", *given[1:]])  # it makes no step, and has no rate


def falling(step):
    return 1 / (1 + step)


@pytest.mark.parametrize("rule", RULES)
def test_each_zeroth_order_step_has_its_rate(rule):
    """As a method that is built with that rate makes it, from the same state."""
    options = {"rule": {"name": rule, "lr": LR}, "lr_full": None, "anchor_interval": None}
    kind = METHODS["mezo"]
    scheduled = build(LeastSquares(), kind=kind, **options)
    scheduled.lr_factor = falling
    for step in range(4):
        plain = build(LeastSquares(), kind=kind, **options | {"rule": {"name": rule, "lr": LR * falling(step)}})
        plain.load_state_dict(copy.deepcopy(scheduled.state_dict(weights=True)))
        before = theta_of(scheduled)
        scheduled.step(step)
        plain.step(step)
        torch.testing.assert_close(theta_of(scheduled) - before, theta_of(plain) - before, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("where", [IN_PLACE, IN_FORWARD], ids=["in place", "in the forward"])
def test_both_rates_of_svrg_are_scheduled(where):
    method = build(LeastSquares(), **where)
    method.lr_factor = falling
    logged = [method.step(step).coefficients["lr"] for step in range(6)]
    assert logged == pytest.approx([(LR if step % 5 else LR_FULL) * falling(step) for step in range(6)])


def test_a_rule_without_a_rate_cannot_be_scheduled():
    method = build(LeastSquares(), kind=METHODS["mezo"], lr_full=None, anchor_interval=None)
    method._zo._lr = None
    method.lr_factor = falling
    method.step(0)
    with pytest.raises(ConfigError, match="and this rule has none"):
        method.step(1)


# first-order steps


def trained(model, **options):
    given = {"parameters": "all", "batch_size": BATCH, "optimizer": "sgd", "lr": 0.01, **options}
    kind = METHODS["first-order"]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return kind(kind.Config.model_validate(given), training_context(model))


def by_torch(steps, optimizer, *, factor=lambda step: 1.0, parts=1, clip=None, decays=0.0):
    """The same steps, written out with torch alone."""
    model = LeastSquares()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    batches = training_context(model).batches(BATCH, "train")
    made = optimizer([{"params": [model.W, model.v], "weight_decay": decays}], lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(made, factor)
    for step in range(steps):
        for part in range(parts):
            (model(batches[step * parts + part]).mean() / parts).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(model.parameters()), clip)
        made.step()
        schedule.step()
        made.zero_grad()
    return model.theta().detach()


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, {}),
        ({"gradient_accumulation_steps": 3}, {"parts": 3}),
        ({"max_grad_norm": 0.5}, {"clip": 0.5}),
        ({"weight_decay": 0.1}, {"decays": 0.1}),
        ({"scheduled": True}, {"factor": falling}),
        (
            {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "weight_decay": 0.1, "scheduled": True},
            {"parts": 2, "clip": 0.5, "decays": 0.1, "factor": falling},
        ),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_first_order_steps_are_those_of_torch(optimizer, options, written):
    model = LeastSquares()
    method = trained(model, optimizer=optimizer, **{k: v for k, v in options.items() if k != "scheduled"})
    if "scheduled" in options:
        method.lr_factor = falling
    losses = [method.step(step).loss for step in range(5)]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

    def without_decay(groups, lr):
        return kinds[optimizer](groups, lr=lr, weight_decay=0.0)

    torch.testing.assert_close(model.theta().detach(), by_torch(5, without_decay, **written), rtol=1e-10, atol=1e-12)
    assert all(math.isfinite(loss) for loss in losses)
    parts = options.get("gradient_accumulation_steps", 1)
    assert method.queries_per_step == BATCH * parts
    assert method.counts.queries == 5 * BATCH * parts


@pytest.mark.parametrize("adapter", [None, "dora"])
def test_first_order_steps_and_theta_decay_alike(adapter):
    model = build_model("qwen2")
    if adapter:
        AdapterConfig.model_validate({"name": adapter}).build(model, ("adapter",), 0)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    config = METHODS["first-order"].Config.model_validate({"weight_decay": 0.5, "optimizer": "sgd"})
    groups = FirstOrderStep(model, list(named.values()), config, 1.0)._optimizer.param_groups
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    decays = Backbone(model, Gaussian(), list(named)).decays
    assert {name for name, p in named.items() if id(p) in decaying} == decays != set(named)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_is_refused_for_weights_in_float16(optimizer):
    with pytest.raises(ConfigError, match="is 0 in float16"):
        trained(LeastSquares(dtype=torch.float16), optimizer=optimizer)


def test_gradient_checkpointing_needs_layers():
    with pytest.raises(ConfigError, match="LeastSquares has none"):
        trained(LeastSquares(), gradient_checkpointing=True)


def test_weight_decay_does_not_go_with_factors():
    with pytest.raises(ConfigError, match="which leave the model as it is at 1"):
        read_config(None, ["method=first-order", "method.adapter=ia3", "method.weight_decay=0.1"])


def test_gradient_checkpointing_does_not_go_with_a_prefix():
    with pytest.raises(ConfigError, match="its keys and values twice"):
        read_config(None, ["method=first-order", "method.adapter=prefix", "method.gradient_checkpointing=true"])


@pytest.fixture
def configured(model_folder, data_dir, tmp_path):
    def make(name, method, **training):
        given = {"steps": 6, "lr_scheduler_type": "cosine", "warmup_steps": 2, "save_steps": 2, **training}
        sizes = {"train": 24, "validation": 4}
        task = {"name": "sst2", "data_dir": str(data_dir), "split_sizes": sizes}
        whole = {"batch_size": 4, **method}
        return read_config(
            model=str(model_folder), task=task, method=whole, training=given, output_dir=str(tmp_path / name)
        )

    return make


@pytest.mark.parametrize("adapter", ["lora", "prompt"])
def test_gradient_checkpointing_changes_no_step(configured, adapter):
    runs = [
        train(configured(str(on), {"name": "first-order", "adapter": adapter, "gradient_checkpointing": on}))
        for on in (False, True)
    ]
    losses = [
        [line["loss"] for line in map(json.loads, run.metrics.read_text().splitlines()) if line["event"] == "step"]
        for run in runs
    ]
    assert losses[0] == losses[1]


MOVING = {
    "mezo": {"name": "mezo", "rule": {"lr": 1e-3}},
    "sign": {"name": "mezo", "rule": {"name": "sign", "lr": 1e-4}},
    "bilevel": {"name": "bilevel", "inner_steps": 2, "rule": {"lr": 1e-3}},
}


@pytest.mark.promise(6)
@pytest.mark.parametrize("case", MOVING)
def test_a_scheduled_run_is_logged_goes_on_and_is_replayed(configured, case, model_folder):
    run = train(configured("run", MOVING[case]))
    steps = [line for line in map(json.loads, run.metrics.read_text().splitlines()) if line["event"] == "step"]
    factor = lr_schedule(run.config.training, 6)
    assert [line["lr_factor"] for line in steps] == [factor(step) for step in range(6)]
    assert factor(0) == 0 < factor(2) == 1

    from transformers import AutoModelForCausalLM

    replayed = replay(AutoModelForCausalLM.from_pretrained(model_folder), Trajectory.read(run.trajectory))
    assert replayed.fingerprint() == run.summary["backbone"]


@pytest.mark.promise(6)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_goes_on_to_the_same_bits(rule):
    options = {"rule": {"name": rule, "lr": LR}, "lr_full": None, "anchor_interval": None}
    whole, first, second = (build(LeastSquares(), kind=METHODS["mezo"], **options) for _ in range(3))
    for method in (whole, first, second):
        method.lr_factor = falling
    for step in range(6):
        whole.step(step)
        (first if step < 3 else second).step(step)
        if step == 2:
            second.load_state_dict(copy.deepcopy(first.state_dict(weights=True)))
    assert torch.equal(theta_of(whole), theta_of(second))
