"""Bilevel-ZOFO's controls, its penalty, what it logs, and what it says before a run."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch
import transformers
from rich.console import Console

from bilevel_problems import IN_PLACE, Quadratic, Vectors, language_context, quadratic_context
from conftest import build_model, build_tokenizer
from covering import grid
from zofo import (
    Backbone,
    Bilevel,
    BilevelConfig,
    Displacement,
    Gaussian,
    Key,
    LowRank,
    OneSided,
    TrainingContext,
    TwoSided,
)
from zofo.backbone import BackboneDistance, Update
from zofo.errors import ConfigError
from zofo.estimators import Estimate
from zofo.methods.bilevel.penalty_schedule import LARGEST, PenaltySchedule, penalty_at, rate_note, rounding_note
from zofo.methods.zeroth_order_defaults import LR_OF_ONE
from zofo.rules import DenseAdam
from zofo.training import RunFolder, read_config, train
from zofo.trajectory import Trajectory

T, BATCH = 2, 4


def method_of(context=None, **options):
    rule = {"lr": 1e-3} if options.get("rule") is None else options.pop("rule")
    config = {"batch_size": BATCH, "inner_steps": T, "penalty": 10.0, "rule": rule, **options}
    return Bilevel(BilevelConfig(**config), context or language_context())


def stepped(steps=3, context=None, **options):
    method = method_of(context, **options)
    return method, [method.step(number) for number in range(steps)]


def tensors_of(method):
    """The model's tensors, adapters among them, by name."""
    with method.using("adapter"):
        return {name: tensor.detach().clone() for name, tensor in method.model.named_parameters()}


def theta_of(method):
    """The same without the adapters'."""
    return {name: t for name, t in tensors_of(method).items() if "lora_" not in name and "prompt_encoder" not in name}


def distance(one, other):
    return math.sqrt(sum((one[name] - other[name]).double().square().sum().item() for name in one))


# controls


@pytest.mark.parametrize("adapter", ["lora", "prefix", "prompt"])
def test_frozen_is_a_step_of_nothing_without_its_forwards(adapter):
    """Adapters, losses and data are, to the bit, those of a run whose backbone steps have length 0."""
    still, still_logs = stepped(adapter=adapter, rule={"lr": 0.0})
    frozen, logs = stepped(adapter=adapter, backbone_update="frozen")
    start = dict(language_context().model.named_parameters())
    one, other = tensors_of(still), tensors_of(frozen)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(other[name], tensor) for name, tensor in start.items() if name in other)
    for log, beside in zip(logs, still_logs, strict=True):
        for name in ("loss_upper", "loss_lower", "loss_inner", "penalty"):
            assert log.coefficients[name] == beside.coefficients[name]
        assert log.coefficients["backbone_distance"] == 0 == beside.coefficients["backbone_distance"]
        assert log.counts.as_dict() == {"forwards": T + 2, "backwards": T + 2, "queries": (T + 2) * BATCH}
        assert log.update is None
    assert frozen.queries_per_step == (T + 2) * BATCH
    assert frozen.backbone is frozen.evaluator is frozen.rule is None  # so nothing is logged, kept or paid for


def test_the_lower_adapter_of_a_frozen_run_is_first_order_training_on_d_p():
    """The first-order control with the same steps and data needs no run of its own."""
    frozen, _ = stepped(3, backbone_update="frozen", lr_lower=0.01)
    other = method_of(backbone_update="frozen", lr_lower=0.01)
    s = other._adapters.parameters("lower_adapter")
    reference = torch.optim.Adam(s, lr=0.01)
    for number in range(3 * T):
        with other.using("lower_adapter"):
            losses = other._pair._objective(other.model, other._batches_inner[number])
            reference.zero_grad()
            losses.mean().backward(inputs=s)
        reference.step()
    for mine, expected in zip(frozen._adapters.parameters("lower_adapter"), s, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"num_directions": 2},
        {"directions": "per-example"},
        {"directions": "per-group(3)"},
        {"evaluator": "in-place"},
    ],
    ids=["shared", "two", "per-example", "groups across batches", "in place"],
)
def test_random_steps_are_as_long_and_go_elsewhere(parts):
    _, real = stepped(1, **parts)
    method, random = stepped(1, backbone_update="random", **parts)
    assert random[0].counts == real[0].counts  # estimated as usual
    slopes = {name: value for name, value in real[0].coefficients.items() if "projected" in name}
    assert slopes == {name: value for name, value in random[0].coefficients.items() if "projected" in name}
    one, other = (dict(logs[0].update.displacement.items()) for logs in (real, random))
    assert not one.keys() & other.keys()
    assert [abs(c) for c in one.values()] == [abs(c) for c in other.values()]
    assert method.queries_per_step == random[0].counts.queries


def test_random_steps_have_signs_of_their_own():
    """Half of the signs are changed, whatever the estimate; the same run draws the same ones."""
    options = {"directions": "per-example", "num_directions": 8}
    (_, real), (_, random), (_, again) = (
        stepped(1, backbone_update=how, **options) for how in ("zeroth-order", "random", "random")
    )
    one, other = (list(logs[0].update.displacement.items()) for logs in (real, random))
    agree = sum(math.copysign(1, a) == math.copysign(1, b) for (_, a), (_, b) in zip(one, other, strict=True))
    assert len(one) == 8 * 2 * BATCH
    assert abs(agree - len(one) / 2) < 4 * math.sqrt(len(one)) / 2
    assert random[0].update.displacement == again[0].update.displacement


def test_random_steps_do_not_descend():
    """On the quadratic problem the method comes near in steps that leave the control where it was, or further off."""
    ends = {}
    for how in ("zeroth-order", "random"):
        model = Quadratic()
        config = {"batch_size": 1, "inner_steps": 1, "optimizer": "sgd", "lr_lower": 0.8, "lr_adapter": 0.1}
        config |= {"penalty": 3.0, "num_directions": 4, "rule": {"lr": 0.02}, "backbone_update": how, **IN_PLACE}
        method = Bilevel(BilevelConfig(**config), quadratic_context(model), Vectors(model))
        expected = model.solution(3.0)
        before = (model.theta - expected).norm()
        for number in range(60):
            method.step(number)
        ends[how] = ((model.theta - expected).norm() / before).item()
    assert ends["zeroth-order"] < 0.5
    assert ends["random"] > 0.9


@pytest.mark.parametrize("how", ["zeroth-order", "frozen"])
def test_with_a_penalty_of_0_only_d_f_counts(how):
    method, logs = stepped(3, penalty=0, backbone_update=how)
    assert all(log.coefficients["penalty"] == 0 for log in logs)
    other = method_of(penalty=0, backbone_update="frozen")
    if how == "frozen":  # p is first-order training on D_f
        p = other._adapters.parameters("adapter")
        reference = torch.optim.Adam(p, lr=1e-3)
        for number in range(3):
            losses = other._pair._objective(other.model, other._upper.collate(other._batches_f[number]))
            reference.zero_grad()
            losses.mean().backward(inputs=p)
            reference.step()
        for mine, expected in zip(method._adapters.parameters("adapter"), p, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
        return
    for log in logs:
        ((_, coefficient),) = log.update.displacement.items()
        assert coefficient == pytest.approx(-1e-3 * log.coefficients["projected_gradient_upper_0"], rel=1e-12)
        assert log.counts.queries == method.queries_per_step  # as much work as with any other penalty


@pytest.mark.parametrize("how", ["zeroth-order", "frozen"])
def test_without_inner_steps_s_stays_as_it_starts(how):
    start = tensors_of(method_of())
    method, logs = stepped(2, inner_steps=0, backbone_update=how, lr_adapter=0.1)
    after = tensors_of(method)
    moved = {name for name in after if not torch.equal(after[name], start[name])}
    assert not any("lower_adapter" in name for name in moved)
    assert any(".adapter." in name for name in moved)
    assert all("loss_inner" not in log.coefficients for log in logs)
    assert logs[0].counts.backwards == 2
    assert logs[0].counts.queries == method.queries_per_step == (2 if how == "frozen" else 8) * BATCH


# the penalty


def test_schedules_of_the_penalty():
    linear = PenaltySchedule(start=1, end=9, steps=4)
    assert [penalty_at(linear, step) for step in (0, 1, 2, 3, 4, 99)] == [1, 3, 5, 7, 9, 9]
    down = PenaltySchedule(start=10, end=0, steps=2)
    assert [down.at(step) for step in (0, 1, 2)] == [10, 5, 0]
    geometric = PenaltySchedule(start=1e-2, end=1e4, steps=3, shape="geometric")
    assert [geometric.at(step) for step in range(5)] == pytest.approx([1e-2, 1, 100, 1e4, 1e4], rel=1e-12)
    assert penalty_at(7.0, 3) == 7.0


def test_a_schedule_is_used_and_logged():
    schedule = {"start": 0, "end": 8, "steps": 2}
    _, logs = stepped(4, penalty=schedule)
    assert [log.coefficients["penalty"] for log in logs] == [0, 4, 8, 8]
    for log in logs:
        slope = {part: log.coefficients[f"projected_gradient_{part}_0"] for part in ("upper", "lower_p", "lower_s")}
        whole = slope["upper"] + log.coefficients["penalty"] * (slope["lower_p"] - slope["lower_s"])
        ((_, coefficient),) = log.update.displacement.items()
        assert coefficient == pytest.approx(-1e-3 * whole, rel=1e-9)
    _, constant = stepped(1, penalty=0)  # p's step, too
    assert logs[0].coefficients == constant[0].coefficients


def test_a_penalty_is_stored_as_it_was_written(tmp_path):
    assert BilevelConfig(penalty=3).model_dump(mode="json")["penalty"] == 3.0
    keys = ["method.penalty.start=1", "method.penalty.end=100", "method.penalty.steps=5"]
    config = read_config(None, ["method=bilevel", *keys])
    assert config.method.penalty == PenaltySchedule(start=1, end=100, steps=5)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(file).method.penalty == config.method.penalty


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ("-1", "method.penalty is -1, but must be a finite number of 0 or more", "method.penalty=1,"),
        (".nan", "method.penalty is nan", "start: 1"),
        (".inf", "method.penalty is inf", ""),
        ("high", "method.penalty is 'high'", ""),
        ("[1, 2]", "method.penalty is [1, 2]", ""),
        ("1.0e+13", "above 1e+12 the square of a gradient that it multiplies may overflow", "method.penalty=1e4"),
        ("{start: 1, end: 1.0e+20, steps: 3}", "method.penalty is 1e+20", "1e4"),
        ("{strat: 1, end: 2, steps: 3}", "method.penalty.strat: unknown key", "did you mean 'start'"),
        ("{start: 1, steps: 3}", "method.penalty.end: Field required", ""),
        ("{start: -1, end: 2, steps: 3}", "method.penalty.start: Input should be greater than or equal to 0", ""),
        ("{start: .nan, end: 2, steps: 3}", "method.penalty.start: Input should be a finite number", ""),
        ("{start: 1, end: 2, steps: 0}", "method.penalty.steps: Input should be greater than or equal to 1", ""),
        ("{start: 1, end: 2, steps: 3, shape: cosine}", "method.penalty.shape: Input should be 'linear' or", ""),
        ("{start: 0, end: 2, steps: 3, shape: geometric}", "equal factors lead neither from 0", "shape=linear"),
    ],
)
def test_penalties_that_cannot_be(written, message, hint):
    with pytest.raises(ConfigError) as refused:
        read_config(None, ["method=bilevel", f"method.penalty={written}"])
    assert message in refused.value.message
    assert hint in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("penalty", "estimator", "dtypes", "slope"),
    [
        (1.6e5, TwoSided(1e-3), [], None),  # 1.6e5 * 2^-23 / 2e-3 = 9.5
        (1.7e5, TwoSided(1e-3), [torch.float32], 1.7e5 * 2**-23 / 2e-3),
        (1.7e5, TwoSided(1e-1), [], None),
        (1e5, OneSided(1e-3), [], 1e5 * 2**-23 / 1e-3),
        (1.0, TwoSided(3e-3), [torch.bfloat16], None),  # the default: 2^-7 / 6e-3 = 1.3
        (10.0, TwoSided(3e-3), [torch.bfloat16], 10 * 2**-7 / 6e-3),
        (10.0, TwoSided(3e-3), [torch.float16, torch.float32], None),
        (PenaltySchedule(start=1e6, end=1, steps=9), TwoSided(1e-3), [], 1e6 * 2**-23 / 2e-3),
    ],
)
def test_a_penalty_that_multiplies_rounding_is_named_with_its_number(penalty, estimator, dtypes, slope):
    note = rounding_note(penalty, estimator, dtypes)
    assert (note is None) == (slope is None)
    if slope is not None:
        assert f"is a slope of {slope:.2g}, and an ordinary slope is about 20;" in note


@pytest.mark.parametrize("penalty", [1.0, LARGEST])
def test_adam_goes_on_below_a_penalty_that_is_the_largest(penalty):
    """With ordinary slopes and with very steep ones: p, by torch's Adam, and theta, by dense-adam."""
    for slope in (20.0, 1e6):
        p = torch.nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.Adam([p], 1e-3)
        for number in range(1, 4):
            p.grad = torch.full((3,), penalty * slope)
            optimizer.step()
            torch.testing.assert_close(p.detach(), torch.full((3,), -1e-3 * number))
        backbone = Backbone(torch.nn.Linear(4, 4, bias=False), Gaussian())
        start, z = backbone.tensors["weight"].clone(), backbone.noise.whole(Key(0, 0), "weight", (4, 4))
        gradient = Displacement({Key(0, 0): penalty * slope})
        update, _ = DenseAdam(lr=1e-3).update(Estimate.from_gradient(gradient), DenseAdam().init())
        backbone.apply_(update)
        moved = backbone.tensors["weight"] - start
        torch.testing.assert_close(moved, -1e-3 * z.sign(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("penalty", "largest", "several"),
    [(None, 1, 1), (0, 0, 1), (100, 100, 1), ({"start": 1, "end": 9, "steps": 5}, 9, 1), (3, 3, 2)],
)
def test_the_default_rate_falls_as_the_penalty_multiplies_slopes(penalty, largest, several):
    given = {} if penalty is None else {"penalty": penalty}
    rate = BilevelConfig(**given, directions="per-example" if several == 2 else "shared").rule.options["lr"]
    assert rate == pytest.approx(several * LR_OF_ONE / (1 + largest))
    assert BilevelConfig(**given, rule={"lr": 7e-5}).rule.options["lr"] == 7e-5
    assert rate_note(largest, rate, LR_OF_ONE) is None
    note = rate_note(largest, 20 * LR_OF_ONE / (1 + largest), LR_OF_ONE)
    assert note is not None
    assert "20 times the default of one loss" in note


def test_a_large_penalty_does_not_go_through_the_backward_pass_of_half_precision():
    """p's gradient is multiplied, not the loss: in float16 a loss times 1e6 has no finite gradient."""
    context = language_context()
    context.model.half()
    method = method_of(context, penalty=1e6, estimator={"epsilon": 3e-3}, rule={"lr": 0.0})
    log = method.step(0)
    assert all(math.isfinite(value) for value in log.coefficients.values())


def test_the_gradient_of_p_is_that_of_its_last_batches_alone():
    """Whatever was there before, as an outer step that differentiates twice shows."""
    method, fresh = method_of(), method_of()
    pair, p = method._pair, method._adapters.parameters("adapter")
    b_f, b_p = method._upper.collate(method._batches_f[0]), method._batches_p[0]
    pair.differentiate(b_f, b_p, 3.0)
    pair.differentiate(b_f, b_p, 3.0)
    fresh._pair.differentiate(b_f, b_p, 3.0)
    assert any(tensor.grad.abs().max() > 0 for tensor in p)
    for tensor, expected in zip(p, fresh._adapters.parameters("adapter"), strict=True):
        torch.testing.assert_close(tensor.grad, expected.grad, rtol=1e-5, atol=1e-6)


# updates that wait


def test_every_update_is_written_before_the_next_outer_step_and_a_note_says_so():
    ends = []
    for flush_every in (1, 8, 4):
        method = method_of(evaluator={"name": "in-forward", "flush_every": flush_every})
        notes = [note for note in method.notes() if "flush_every" in note]
        assert len(notes) == (flush_every == 4)
        for number in range(3):
            assert method.backbone.sweeps == (number if flush_every == 1 else max(0, number - 1))
            method.step(number)
        ends.append(theta_of(method))
    assert "method.evaluator.flush_every=4 changes nothing" in notes[0]
    assert all(torch.equal(end[name], tensor) for end in ends[1:] for name, tensor in ends[0].items())
    assert not any("flush_every" in note for note in method_of(evaluator="in-place").notes())
    assert not method_of(backbone_update="frozen", evaluator={"flush_every": 4}).notes()
    assert any("s stays as it starts" in note for note in method_of(inner_steps=0).notes())


# how far the backbone moved


MOVES = {
    "shared": {},
    "rank 2": {"noise": {"name": "low-rank", "rank": 2}},
    "momentum": {"rule": {"name": "momentum", "lr": 1e-3}},
    "per-example": {"directions": "per-example"},
    "gaussian": {"noise": "gaussian"},
    "random": {"backbone_update": "random"},
    "rows of a mask": {"mask": {"name": "magnitude", "density": 0.5}},
    "entries of a mask": {"noise": "gaussian", "mask": {"name": "magnitude", "density": 0.25}},
    "entries drawn anew": {"noise": "gaussian", "mask": {"name": "random", "density": 0.25}},
    "weight decay": {"rule": {"name": "sgd", "lr": 1e-4, "weight_decay": 200.0}},
    "nothing but weight decay": {"rule": {"name": "sgd", "lr": 1e-12, "weight_decay": 1e10}},
    "tensors in turn": {"noise": "rademacher", "mask": {"name": "rotation", "num_blocks": 3}},
}


@pytest.mark.parametrize("case", MOVES)
def test_the_distance_in_the_log_is_how_far_theta_is_from_its_start(case):
    method = method_of(**MOVES[case])
    start = theta_of(method)
    logs = [method.step(number) for number in range(3)]
    length = math.sqrt(sum(tensor.double().square().sum().item() for tensor in start.values()))
    found = logs[-1].coefficients["backbone_distance"]
    assert found == pytest.approx(distance(theta_of(method), start) / length, rel=0.05)
    assert found > logs[0].coefficients["backbone_distance"] > 0


@pytest.mark.parametrize(("noise", "exact"), [(LowRank(1), 1e-5), (LowRank(3), 1e-5), (Gaussian(), 0.05)])
def test_the_distance_after_one_key_in_two_updates(noise, exact):
    """Momentum's coefficients of one key add up; those of a key that was left behind stay."""
    model = build_model("llama")
    backbone = Backbone(model, noise)
    moved = BackboneDistance(backbone)
    start = {name: tensor.clone() for name, tensor in backbone.tensors.items()}
    length = math.sqrt(sum(tensor.double().square().sum().item() for tensor in start.values()))
    for update in (Displacement({Key(0, 0): 0.1}), Displacement({Key(0, 0): 0.05})):
        backbone.apply_(Update(update))
        moved.add(Update(update))
    assert moved.relative == pytest.approx(distance(backbone.tensors, start) / length, rel=exact)
    moved.add(Update(Displacement({Key(0, 1): 0.15})))
    assert moved.relative == pytest.approx(0.15 * math.sqrt(2 * backbone.size) / length, rel=0.2)


@pytest.mark.parametrize("noise", [LowRank(2), Gaussian()], ids=["low-rank", "gaussian"])
@pytest.mark.parametrize("select", [None, ["*norm*", "*layers.0.mlp*"], ["*norm*"]], ids=["all", "some", "no decay"])
def test_the_distance_with_weight_decay(select, noise):
    """Each coefficient shrinks with theta at every update after its own, in the tensors that decay and in no other."""
    backbone = Backbone(build_model("llama"), noise, select)
    moved, start = (
        BackboneDistance(backbone, decays=True),
        {name: tensor.clone() for name, tensor in backbone.tensors.items()},
    )
    length = math.sqrt(sum(tensor.double().square().sum().item() for tensor in start.values()))
    close = 0.3 if backbone.size < 1000 else 0.05  # with few entries, directions have products and other lengths
    for keys, decay_factor in (([0], 0.0), ([0, 1], 0.5), ([1], 0.4), ([], 0.6), ([2], 0.0)):
        update = Update(Displacement({Key(0, key): 0.01 for key in keys}), decay_factor)
        backbone.apply_(update)
        moved.add(update)
        assert moved.relative == pytest.approx(distance(backbone.tensors, start) / length, rel=close)
    again = BackboneDistance(Backbone(build_model("llama"), noise, select), decays=True)
    again.load_state_dict(moved.state_dict())
    assert again.relative == moved.relative


def test_the_distance_is_unknown_where_theta_shrinks_unannounced():
    """As a rule of the user's own may do."""
    moved = BackboneDistance(Backbone(build_model("llama"), LowRank(1)))
    moved.add(Update(Displacement({Key(0, 0): 0.01})))
    assert moved.relative > 0
    moved.add(Update(Displacement({Key(0, 1): 0.01}), 0.1))
    assert moved.relative is None


def test_a_rule_whose_updates_are_no_displacements_logs_no_distance():
    _, logs = stepped(2, rule={"name": "sign", "lr": 1e-4})
    assert all("backbone_distance" not in log.coefficients for log in logs)


@pytest.mark.parametrize(
    ("rule", "evaluator"), grid(["dense-adam", "dense-momentum"], ["in-forward", "in-place"], strength=1)
)
def test_rules_with_buffers_of_theta_log_the_distance_itself(rule, evaluator):
    method = method_of(rule={"name": rule, "lr": 1e-3}, evaluator=evaluator)
    start = theta_of(method)
    logs = [method.step(number) for number in range(3)]
    length = math.sqrt(sum(tensor.double().square().sum().item() for tensor in start.values()))
    assert logs[-1].coefficients["backbone_distance"] == pytest.approx(
        distance(theta_of(method), start) / length, rel=1e-5
    )
    assert any("copy of the backbone" in note for note in method.notes())
    assert not any("copy of the backbone" in note for note in method_of().notes())
    first, second = (method_of(rule={"name": rule, "lr": 1e-3}, evaluator=evaluator) for _ in range(2))
    second.check()  # as a run does; a first forward sums in another order
    for number in range(2):
        first.step(number)
    second.load_state_dict(first.state_dict(weights=True))  # in a model that stands at the base weights
    found = second.step(2).coefficients["backbone_distance"]
    assert found == pytest.approx(logs[-1].coefficients["backbone_distance"], rel=1e-5)


# whole runs


@pytest.fixture
def configured(model_folder, data_dir, tmp_path):
    def build(run, **method):
        given = [f"model.name={model_folder}", "training.steps=2", f"output_dir={tmp_path / run}"]
        chosen = {"name": "bilevel", "batch_size": BATCH, "inner_steps": T, "penalty": 10.0, **method}
        return read_config(None, given, method=chosen, task={"name": "movie-reviews", "data_dir": data_dir})

    return build


def shown_by(config):
    console = Console(file=io.StringIO(), width=200)
    run = train(config, console)
    return run, console.file.getvalue()


def lines_of(run):
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


def test_every_line_of_a_run_says_what_the_step_did(configured):
    run, shown = shown_by(configured("run"))
    steps = [line for line in lines_of(run) if line["event"] == "step"]
    of_pairs = {f"projected_gradient_{part}_0" for part in ("upper", "lower_p", "lower_s")}
    losses = {"loss_upper", "loss_lower", "loss_inner", "penalty_gap", "penalty", "backbone_distance"}
    for number, line in enumerate(steps):
        assert of_pairs | losses | {"forwards", "backwards", "queries"} <= set(line)
        assert line["queries"] == (number + 1) * (T + 8) * BATCH
    scores = run.summary["variants"]
    assert list(scores) == ["adapter", "lower_adapter"]
    assert "lower_adapter" in shown and "accuracy" in shown  # noqa: PT018
    assert not any("rounding" in line for line in shown.splitlines())


def test_a_frozen_run_has_no_trajectory_and_can_be_loaded(configured):
    run, shown = shown_by(configured("frozen", backbone_update="frozen", rule={"name": "dense-adam", "lr": 1e-4}))
    assert not run.trajectory.exists()
    assert "buffers" not in shown  # of a rule that is never used
    assert all("projected_gradient_upper_0" not in line for line in lines_of(run))
    for variant in ("adapter", "lower_adapter"):
        RunFolder.open(run.path).load(variant)


def test_a_random_run_replays(configured):
    run, _ = shown_by(configured("random", backbone_update="random"))
    (first, second) = Trajectory.read(run.trajectory).updates
    assert {key.index for update in (first, second) for key in update.displacement} == {1}
    RunFolder.open(run.path).load("adapter")


def test_what_is_said_before_a_run(configured):
    size = sum(parameter.numel() for parameter in build_model("llama", len(build_tokenizer())).parameters())
    rule = {"name": "dense-adam", "lr": 1e-4}
    run, shown = shown_by(configured("notes", penalty=1e6, rule=rule))
    gigabytes = 2 * 4 * size / 2**30
    assert f"this rule keeps 2 buffers of the backbone's size: {gigabytes:.2f} GiB" in shown
    assert shown.count("the penalty multiplies rounding: 1e+06 x 1.2e-07") == 1
    assert shown.index("rounding") < shown.index("step 1/2")
    _, shown = shown_by(configured("rate", penalty=100, rule={"name": "sgd", "lr": 1e-5}))
    assert "the backbone's learning rate 1e-05 times 1 + 100 is 0.001, 20 times the default" in shown
    assert "set method.rule.lr=5e-07" in shown
    assert run.summary["steps"] == 2


# bad input


@pytest.mark.parametrize(
    ("count", "batch", "message", "hint"),
    [
        (11, 4, "a third of the 11 training examples, 3, and D_p the other 8, but a batch takes 4", "batch_size=3 or"),
        (2, 1, "a third of the 2 training examples, 0", "give at least 3 training examples"),
        (24, 16, "a third of the 24 training examples, 8", "give at least 48 training examples"),
    ],
)
def test_too_few_examples_for_a_batch(count, batch, message, hint):
    with pytest.raises(ConfigError) as refused:
        method_of(language_context(count), batch_size=batch)
    assert message in refused.value.message
    assert hint in refused.value.hint
    assert "batch_size=0" not in refused.value.hint


@pytest.mark.parametrize("how", ["zeroth-order", "frozen"])
@pytest.mark.parametrize(
    ("kind", "adapter", "message"),
    [
        ("bert", "prefix", "is not a causal transformer"),
        ("bert", "prompt", "is not a causal transformer"),
        ("llama", {"name": "lora", "target_modules": ["query"]}, "LoRA cannot be attached"),
    ],
    ids=["prefix", "prompt", "lora"],
)
def test_adapters_that_the_model_cannot_take(kind, adapter, message, how):
    head = transformers.AutoModelForSequenceClassification if kind == "bert" else transformers.AutoModelForCausalLM
    context = TrainingContext(build_model(kind, 300, head=head), None, list(range(24)), list, 0)
    with pytest.raises(ConfigError, match=message):
        method_of(context, adapter=adapter, backbone_update=how)


def test_an_unknown_control():
    with pytest.raises(
        ConfigError, match=r"method.backbone_update: Input should be 'zeroth-order', 'frozen' or 'random'"
    ):
        read_config(None, ["method=bilevel", "method.backbone_update=freeze"])
