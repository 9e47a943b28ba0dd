"""Bilevel-ZOFO on many tasks: each as if it were alone, one step on theta for all, and memory that does not grow."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import build_model, build_tokenizer, write_rows
from metaicl_rows import choosing, labelled, write_tasks
from zofo import Gaussian, InPlace, Key, TrainingContext, TwoSided
from zofo.adapters import load_adapter
from zofo.backbone import Backbone, selected
from zofo.errors import CheckpointError, ConfigError, NonFiniteError, RunError, ZofoError
from zofo.evaluators import Counts
from zofo.methods import MetaBilevel, MetaBilevelConfig
from zofo.methods.bilevel.adapter_pair import AdapterPair
from zofo.methods.bilevel.bilevel import split
from zofo.objectives import token_loss
from zofo.tasks import Example, collate, encode
from zofo.training import RunFolder, evaluate_run, prepare_run, read_config, run_state, train

pytestmark = pytest.mark.usefixtures("old_objects_kept")
TOKENIZER = build_tokenizer()
NAMES = ("mood", "tone", "pick")
SMALL = {"batch_size": 2, "inner_steps": 2, "tasks_per_step": 2, "lr_lower": 0.02, "lr_adapter": 0.01}
DENSE = {"noise": "gaussian", "evaluator": "in-place"}


def new_context(names=NAMES, count=12, seed=3, objective=token_loss):
    """A tiny Llama and made-up rows of several tasks."""
    examples = []
    for name in names:
        rows = choosing(name, count) if name == "pick" else labelled(name, count)
        examples += [
            Example(f"{row['input']}\n", tuple(row["options"]), (row["options"].index(row["output"]),), task=name)
            for row in rows
        ]
    make = lambda chosen: collate([one.gold_only() for one in chosen], 0, torch.device("cpu"))  # noqa: E731
    return TrainingContext(
        build_model("llama", len(TOKENIZER)), objective, encode(TOKENIZER, examples), make, seed=seed
    )


def method(given=None, **options):
    return MetaBilevel(MetaBilevelConfig(**{**SMALL, **options}), given or new_context())


def drawn(log):
    """The tasks of a step, in their order."""
    return [name.split("/", 1)[1] for name in log.coefficients if name.startswith("loss_upper/")]


def theta_of(model):
    own = {name.replace(".base_layer", ""): p for name, p in selected(model).items() if "lora" not in name}
    return {name: p.detach().clone() for name, p in own.items()}


def alone(name, given):
    """The pair of one task on a model of its own, and its batches."""
    model = build_model("llama", len(TOKENIZER))
    config = MetaBilevelConfig(**SMALL)
    adapters = config.adapter.build(model, ("adapter", "lower_adapter"), given.seed)
    pair = AdapterPair(adapters, config, replace(given, model=model), Counts())
    own = TrainingContext(**{**vars(given), "examples": [one for one in given.examples if one.example.task == name]})
    upper, lower = split(own, 2)
    named = (("D_f", upper), ("D_p", lower), ("D_p, inner", lower))
    return pair, [own.batches(2, f"{name}, {part}", some) for part, some in named]


@pytest.mark.parametrize("adapters", ["cpu", "disk"])
def test_each_task_goes_as_if_it_were_alone(adapters):
    given = new_context()
    # theta rests, so that tasks do not meet
    meta = method(given, adapter_offload=adapters, penalty=3.0, rule={"lr": 0.0})
    single = {name: alone(name, given) for name in NAMES}
    seen = []
    for number in range(3):
        log = meta.step(number)
        seen += drawn(log)
        for name in drawn(log):
            pair, (upper, lower, inner) = single[name]
            with pair.transaction():
                losses = [pair.inner_step(number * 2 + t, inner[number * 2 + t]) for t in range(2)]
                f_upper, f_lower = pair.differentiate(upper[number], lower[number], 3.0)
                pair.step_adapter(number)
            assert log.coefficients[f"loss_inner/{name}"] == sum(losses) / 2
            assert (log.coefficients[f"loss_upper/{name}"], log.coefficients[f"loss_lower/{name}"]) == (
                f_upper,
                f_lower,
            )
    assert set(seen) == set(NAMES)
    assert len(seen) == 6
    for name in NAMES:
        meta._load(name)
        here, there = meta._pair.state_dict(), single[name][0].state_dict()
        assert here.values == there.values
        assert here.tensors.keys() == there.tensors.keys()
        assert all(torch.equal(here.tensors[key], there.tensors[key]) for key in here.tensors)


def test_theta_moves_once_along_one_z_by_the_mean_over_the_tasks():
    given = new_context()
    before = theta_of(given.model)
    meta = method(given, inner_steps=0, tasks_per_step=3, rule={"lr": 0.1}, **DENSE)
    log = meta.step(4)
    key = Key(3, 4, 0)
    assert list(log.update.displacement) == [key]
    slopes = []
    for name in NAMES:  # p and s are equal, so that only F(p; B_f) is left
        model, (_, (upper, _, _)) = build_model("llama", len(TOKENIZER)), alone(name, given)
        evaluator = InPlace(model, Backbone(model, Gaussian()))
        estimator = TwoSided(1e-3)
        losses = evaluator.losses(token_loss, upper[4], estimator.ask([key]))
        slopes.append(estimator.tell([key], losses).projected_gradients[key])
    assert len({round(slope, 3) for slope in slopes}) == 3
    expected = sum(slopes) / 3
    assert log.coefficients["projected_gradient_upper_0"] == pytest.approx(expected, rel=5e-3)
    assert log.update.displacement[key] == pytest.approx(-0.1 * expected, rel=5e-3)
    meta.evaluator.theta.flush()
    moved = theta_of(given.model)
    for (name, step), now in zip(meta.backbone.values(log.update.displacement).items(), moved.values(), strict=True):
        torch.testing.assert_close(now, before[name] + step, rtol=1e-5, atol=1e-6)


def test_the_gap_of_the_penalty_is_with_the_new_s_and_the_old_p():
    given = new_context()
    meta = method(given, penalty=5.0, rule={"lr": 0.1}, **DENSE)
    log = meta.step(0)
    found = {part: log.coefficients[f"projected_gradient_{part}_0"] for part in ("upper", "lower_p", "lower_s")}
    total = found["upper"] + 5.0 * (found["lower_p"] - found["lower_s"])
    assert log.update.displacement[Key(3, 0, 0)] == pytest.approx(-0.1 * total, rel=1e-6)
    assert log.coefficients["penalty_gap"] > 1e-4  # s has learned, and p has not
    mean = sum(log.coefficients[f"loss_lower/{name}"] for name in drawn(log)) / 2
    assert log.coefficients["loss_lower"] == pytest.approx(mean)
    assert log.loss == pytest.approx(sum(log.coefficients[f"loss_upper/{name}"] for name in drawn(log)) / 2)


def test_which_tasks_are_drawn_is_a_function_of_seed_and_step():
    one, other = method(inner_steps=0), method(inner_steps=0)
    draws = [drawn(one.step(number)) for number in range(6)]
    assert drawn(other.step(5)) == draws[5]  # whatever was done before
    assert all(len(set(draw)) == 2 for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 1
    assert {name for draw in draws for name in draw} == set(NAMES)
    assert len(drawn(method(tasks_per_step=9, inner_steps=0).step(0))) == 3


@pytest.mark.parametrize(
    ("options", "forwards", "backwards", "queries"),
    [
        (DENSE, 2 * (2 + 2 + 3 * 2), 2 * (2 + 2), 2 * (2 + 2 + 3 * 2) * 2),
        ({}, 2 * (2 + 2 + 3), 2 * (2 + 2), 2 * (2 + 2 + 3 * 2) * 2),  # both points in one forward
        ({"backbone_update": "frozen"}, 2 * (2 + 2), 2 * (2 + 2), 2 * (2 + 2) * 2),
    ],
    ids=["in place", "in the forward", "frozen"],
)
def test_everything_is_counted(options, forwards, backwards, queries):
    meta = method(**options)
    for number in range(2):
        log = meta.step(number)
        assert (log.counts.forwards, log.counts.backwards, log.counts.queries) == (forwards, backwards, queries)
    assert meta.queries_per_step == queries
    assert meta.steps_within(5 * queries + 1) == 5


def test_in_the_forward_and_in_place_agree_and_tasks_can_have_directions_of_their_own():
    steps = []
    for options in ({"evaluator": "in-forward"}, {"evaluator": "in-place"}):
        log = method(noise="low-rank", **options).step(0)
        steps += [coefficient for _, coefficient in log.update.displacement.items()]
    assert steps[0] == pytest.approx(steps[1], rel=0.05)
    log = method(directions="per-group(2)").step(0)
    assert len(log.update.displacement) == 4  # 2 tasks, each with one for B_f and one for B_p


def test_controls_leave_theta_or_move_it_elsewhere_by_as_much():
    given = new_context()
    before = theta_of(given.model)
    frozen = method(given, backbone_update="frozen")
    assert frozen.step(0).update is None
    assert all(torch.equal(value, before[name]) for name, value in theta_of(given.model).items())
    real, random = (method(backbone_update=kind).step(0) for kind in ("zeroth-order", "random"))
    (key, step), (other, moved) = (*real.update.displacement.items(), *random.update.displacement.items())
    assert key != other
    assert abs(moved) == pytest.approx(abs(step))
    assert real.coefficients["loss_upper"] == random.coefficients["loss_upper"]


@pytest.fixture
def warm():
    """What is made once and stays, such as the table of the Gaussian, is there."""
    method(**DENSE).step(0)


def live_bytes():
    """Bytes of all tensors that are alive, those that share their memory once."""
    gc.collect()
    alive = [one for one in gc.get_objects() if type(one) in (torch.Tensor, nn.Parameter)]  # no FakeTensor
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}.values())


def bytes_after(tasks, adapters):
    """What a run on so many tasks holds once it has looked at all of them, and bytes of one adapter."""
    names = [f"task{number}" for number in range(tasks)]
    before = live_bytes()
    meta = method(new_context(names), adapter_offload=adapters, inner_steps=1, **DENSE)
    for number in range(200):
        meta.step(number)
        if len(meta._store.names) == tasks:
            break
    used = live_bytes() - before
    return used, sum(p.numel() * p.element_size() for p in meta._adapters.parameters("adapter")), meta


@pytest.mark.parametrize("adapters", ["cpu", "disk"])
def test_memory_grows_by_the_idle_adapters_alone_or_not_at_all(adapters, warm):
    few, adapter, meta = bytes_after(2, adapters)
    files = 0 if meta._store._folder is None else len(list(meta._store._folder.iterdir()))
    assert files == (2 if adapters == "disk" else 0)
    del meta
    many, _, meta = bytes_after(4, adapters)
    grown = (many - few) / 2
    if adapters == "disk":
        assert grown < adapter / 4
        folder = meta._store._folder
        del meta
        gc.collect()
        assert not folder.exists()
    else:  # p and s, each with two moments of Adam, and a counter a tensor
        assert 6 * adapter <= grown < 6.5 * adapter


def saved(meta, folder):
    """A checkpoint's folder with what a method remembers, and what a save of it takes at its most."""
    counted = [live_bytes()]
    save = run_state.save_file

    def counting(*arguments):
        counted.append(live_bytes())
        save(*arguments)

    nothing = SimpleNamespace(state_dict=lambda *_: {})
    kept = run_state.RunState(meta, nothing, nothing, weights=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_state, "save_file", counting)
        folder.mkdir()
        kept.save(3, folder, SimpleNamespace(size=1, sha256=""), None, 1.0)
    return max(counted) - counted[0]


@pytest.mark.soak
def test_a_save_with_adapters_on_disk_takes_no_more_memory_for_more_tasks(tmp_path, warm):
    taken = {}
    for tasks in (2, 5):
        _, adapter, meta = bytes_after(tasks, "disk")
        taken[tasks] = saved(meta, tmp_path / f"{tasks}")
        files = sorted(path.name for path in (tmp_path / f"{tasks}").glob("state-*.safetensors"))
        assert files == [f"state-{number}.safetensors" for number in range(tasks)]
        most, put = [], meta._store.put
        before, remembered = live_bytes(), meta.state_dict(weights=False)
        assert live_bytes() - before < adapter / 4

        def counting(*arguments, most=most, put=put):
            most.append(live_bytes())
            put(*arguments)

        meta._store.put = counting
        meta.load_state_dict(remembered)
        assert len(most) == tasks
        assert max(most) - before < 7 * adapter  # a pair with its optimizers at a time
    assert abs(taken[5] - taken[2]) < adapter / 4


def test_pairs_on_disk_and_in_memory_are_remembered_alike(tmp_path):
    """With names that are no names of files."""
    names = ["unifiedqa:mood", "a/tone", "pick"]
    disk, cpu = (method(new_context(names), adapter_offload=where) for where in ("disk", "cpu"))
    for number in range(3):
        for one in (disk, cpu):
            one.step(number)
    files, tensors = disk.state_dict(weights=True), cpu.state_dict(weights=True)
    assert json.dumps(files.values) == json.dumps(tensors.values)
    assert len(files.files) == len(disk._store.names)
    for remembered in (files, tensors):
        for where in ("disk", "cpu"):
            other = method(new_context(names), adapter_offload=where)
            other.load_state_dict(
                type(remembered)(json.loads(json.dumps(remembered.values)), remembered.tensors, remembered.files)
            )
            assert other._store.names == disk._store.names
            for name in other._store.names:
                here, there = other._store.get(name), cpu._store.get(name)
                assert here.values == there.values
                assert here.tensors.keys() == there.tensors.keys()
                assert all(torch.equal(here.tensors[key], there.tensors[key]) for key in here.tensors)
    wider = method(new_context(names), adapter={"name": "lora", "rank": 2})
    with pytest.raises(CheckpointError, match="is not of shape"):
        wider.load_state_dict(files)


def test_a_loss_that_is_not_finite_changes_nothing_of_any_task():
    given, broken = new_context(), []

    def objective(model, batch):
        losses = token_loss(model, batch)
        return losses * float("nan") if broken and batch.examples[0].example.task == broken[0] else losses

    given = TrainingContext(**{**vars(given), "objective": objective})
    meta, same = method(given), method(new_context())
    for one in (meta, same):
        one.step(0)
    names = drawn(same.step(1))
    meta.evaluator.theta.flush()
    theta, kept = theta_of(given.model), meta.state_dict(weights=False).tensors
    broken.append(names[1])
    with pytest.raises(NonFiniteError):
        meta.step(1)
    after = meta.state_dict(weights=False).tensors
    assert kept.keys() == after.keys()
    assert all(torch.equal(kept[key], after[key]) for key in kept)
    assert all(torch.equal(value, theta[name]) for name, value in theta_of(given.model).items())
    broken.clear()
    meta.step(1)  # as if nothing had been
    meta.evaluator.theta.flush()
    same.evaluator.theta.flush()
    assert all(torch.equal(value, theta_of(same.model)[name]) for name, value in theta_of(given.model).items())


@pytest.mark.parametrize("backbone_update", ["zeroth-order", "frozen"])
def test_it_goes_on_from_what_it_remembers_bit_by_bit(backbone_update):
    whole, first, second = (method(backbone_update=backbone_update) for _ in range(3))
    for one in (whole, first, second):
        one.check()  # as a run does; a first forward sums in another order
    logs = [whole.step(number) for number in range(3)]
    first.step(0)
    remembered = first.state_dict(weights=True)
    second.load_state_dict(json_roundtrip(remembered))
    again = [second.step(number) for number in (1, 2)]
    assert [log.coefficients for log in again] == [log.coefficients for log in logs[1:]]
    one, other = whole.state_dict(weights=True).tensors, second.state_dict(weights=True).tensors
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert second.counts == whole.counts


def json_roundtrip(remembered):
    tensors = {name: tensor.clone() for name, tensor in remembered.tensors.items()}
    return type(remembered)(json.loads(json.dumps(remembered.values)), tensors)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (["mood"], {}, "several tasks, but there is one"),
        (NAMES, {"batch_size": 5}, "mood: D_f is a third of the 12 training examples, 4, .* takes 5"),
        (NAMES, {"adapter": "prompt"}, "method.adapter=prompt changes what the model does"),
        (NAMES, {"normalize_by_std": True}, "method.normalize_by_std"),
    ],
    ids=["one task", "too few", "prompt", "spread"],
)
def test_what_cannot_be_is_refused(given, options, message):
    with pytest.raises(ConfigError, match=message):
        method(new_context(given), **options)


def test_adapters_that_would_start_from_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not from the adapter of init_from"):
        method(replace(new_context(NAMES), start_adapter=tmp_path))


# as a run


@pytest.fixture
def config(tmp_path, tokenizer):
    """Configurations of runs with a tiny model on made-up tasks."""
    folder = tmp_path / "model"
    build_model("llama", len(tokenizer), positions=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    root = write_tasks(tmp_path / "tasks")

    def make(run, *overrides, **groups):
        given = {
            "model": str(folder),
            "task": {"data": str(root), "tasks": list(NAMES), "split_sizes": {"validation": 4}},
            "method": {"name": "meta-bilevel", **SMALL, "penalty": 1.0, "rule": {"name": "sgd", "lr": 1e-4}},
            "training": {"steps": 3, "eval_batch_size": 4, "eval_on_test": True},
        }
        return read_config(None, list(overrides), **{**given, **groups, "output_dir": str(tmp_path / run)})

    return make


def test_a_run_scores_theta_and_both_adapters_of_each_task_and_replays_theta(config, tmp_path):
    run = train(config("meta", "training.steps=4"))
    summary = run.summary
    assert list(summary["variants"]) == ["backbone", "adapter", "lower_adapter"]
    for variant in ("adapter", "lower_adapter"):
        losses = []
        for name in NAMES:  # each task by its own adapter
            prepared = prepare_run(run.config, splits=["validation"])
            run.restore(prepared.loaded)
            load_adapter(prepared.loaded.model, run.path / variant / name)
            rows = [one for one in prepared.encoded["validation"] if one.example.task == name]
            losses.append(prepared.scorer.evaluate(prepared.loaded.model, rows, Counts()).loss)
        assert summary["variants"][variant]["loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)
        assert summary["variants"][variant]["loss"] != summary["loss"]
    assert summary["queries"] == 4 * 2 * (2 + 2 + 3 * 2) * 2
    assert summary["evaluation"]["queries"] == 3 * (12 + 18)
    saved = {path.parent.name for path in (run.path / "adapter").glob("*/adapter_model.safetensors")}
    assert saved == set(NAMES)
    assert evaluate_run(run.path).loss == pytest.approx(summary["loss"], rel=1e-5)
    with pytest.raises(RunError, match="an adapter for each of its tasks"):
        evaluate_run(run.path, variant="adapter")


def test_a_run_that_starts_from_it_begins_with_its_theta_and_is_restored_with_it(config, tmp_path):
    start = train(config("meta", "method.rule.lr=2e-3"))
    theta = theta_of(start.load().model)
    judge = {"data": str(tmp_path / "tasks" / "judge"), "train_examples_per_label": 4, "split_sizes": {"validation": 4}}
    bare, begun = (
        train(config(name, method="zero-shot", task=judge, **more)).summary
        for name, more in (("bare", {}), ("begun", {"init_from": str(start.path)}))
    )
    assert begun["metric"] == "macro-f1"
    assert begun["loss"] != bare["loss"]
    adapted = train(
        config(
            "adapted",
            method={"name": "first-order", "lr": 0.01, "batch_size": 8},
            task=judge,
            init_from=str(start.path),
        )
    )
    assert adapted.summary["loss"] < begun["loss"]
    loaded = RunFolder.open(adapted.path).load().model
    found = theta_of(loaded)
    assert found.keys() == theta.keys()
    assert all(torch.equal(found[name], value) for name, value in theta.items())
    assert evaluate_run(adapted.path).loss == pytest.approx(adapted.summary["loss"], rel=1e-5)
    assert evaluate_run(adapted.path, split="test").loss == pytest.approx(
        adapted.summary["test"]["adapter"]["loss"], rel=1e-5
    )
    # the start itself, on an unseen task
    asked = [f"task.data={judge['data']}", "task.tasks=[]", "task.split_sizes={validation: 4}"]
    assert evaluate_run(start.path, asked).loss == pytest.approx(begun["loss"], rel=1e-5)


def test_a_part_of_theta_that_is_an_adapter_comes_back_and_is_merged_where_a_run_starts_from_it(config, tmp_path):
    options = {"control_variate": {"name": "subspace", "rank": 4}, "trainable": ["*_proj.weight"], "batch_size": 2}
    run = train(config("meta", method={"name": "meta-bilevel", **SMALL, **options, "rule": {"lr": 0.05}}))
    assert {path.name for path in (run.path / "adapter").iterdir()} <= set(NAMES)
    found = evaluate_run(run.path, variant="backbone")
    assert found.loss == pytest.approx(run.summary["variants"]["backbone"]["loss"], rel=1e-4)
    judge = {"data": str(tmp_path / "tasks" / "judge"), "train_examples_per_label": 4, "split_sizes": {"validation": 4}}
    begun = train(config("begun", method="zero-shot", task=judge, init_from=str(run.path)))
    few = {"name": "first-order", "lr": 0.01, "batch_size": 8}
    adapted = train(config("adapted", method=few, task=judge, init_from=str(run.path)))
    asked = [f"task.data={judge['data']}", "task.tasks=[]", "task.split_sizes={validation: 4}"]
    assert evaluate_run(run.path, asked).loss == pytest.approx(begun.summary["loss"], rel=1e-4)
    assert adapted.summary["loss"] < begun.summary["loss"]
    assert evaluate_run(adapted.path).loss == pytest.approx(adapted.summary["loss"], rel=1e-4)
    bare = train(config("bare", method="zero-shot", task=judge)).summary["loss"]
    assert abs(begun.summary["loss"] - bare) > 1e-3


def test_a_task_with_a_colon_and_one_in_free_words_are_trained_on(config, tmp_path):
    root = tmp_path / "tasks"
    (root / "mood").rename(root / "unifiedqa:mood")
    rows = [{"task": "xsum", "input": f"text {i}", "output": f"in short {i}", "options": []} for i in range(12)]
    write_rows(root / "xsum" / "xsum_16384_100_train.jsonl", rows)
    tasks = "task.tasks=['unifiedqa:mood', xsum, pick]"
    run = train(config("free", tasks, "method.adapter_offload=disk", "training.steps=4"))
    assert {path.parent.name for path in (run.path / "adapter").glob("*/adapter_model.safetensors")} == {
        "unifiedqa_mood",
        "xsum",
        "pick",
    }
    logged = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    found = {key for line in logged for key in line if key.startswith("loss_upper/")}
    assert found == {"loss_upper/unifiedqa:mood", "loss_upper/xsum", "loss_upper/pick"}
    with pytest.raises(ConfigError, match=r"which compares options, but .*xsum_16384_100_train\.jsonl:\d+ has none"):
        train(config("wrong", tasks, "training.objective=classification"))


@pytest.mark.parametrize("scoring", ["mean", "channel"])
def test_metaicl_is_first_order_on_all_weights_with_demonstrations(config, tmp_path, scoring):
    shape = {"num_fewshot": 2, "scoring": scoring, "split_sizes": {"validation": 4}}
    task = {"data": str(tmp_path / "tasks"), "tasks": list(NAMES), **shape}
    run = train(
        config(
            scoring,
            method={"name": "first-order", "parameters": "all", "lr": 3e-3, "batch_size": 4},
            task=task,
            training={"steps": 12, "num_evals": 2},
        )
    )
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    assert sum(losses[-3:]) < 0.92 * sum(losses[:3])
    assert run.summary["objective"] == "answer"
    judge = {"data": str(tmp_path / "tasks" / "judge"), **shape}
    scored = train(config("scored", method="in-context", task=judge, init_from=str(run.path)))
    assert scored.summary["queries"] == 0


def test_mistakes_of_a_run_are_told_before_it_is_made(config, tmp_path):
    judge = tmp_path / "tasks" / "judge"
    for given, message in (
        (("task.held_out_tasks=[pick]",), "reserved for testing are trained on: 'pick'"),
        (("model.head=classification",), "a classification head gives the same labels to every row"),
        (
            (
                "task.scoring=channel",
                "model.head=classification",
                "task.tasks=[]",
                f"task.data={judge}",
            ),
            "task.scoring=channel .*model.head=classification has none of",
        ),
        ((f"init_from={tmp_path / 'nowhere'}",), "is not a run folder"),
        (("method=bilevel", "task.tasks=[]", f"task.data={tmp_path / 'tasks'}"), "has no rows called train"),
    ):
        with pytest.raises(ZofoError, match=message):
            train(config("wrong", *given))
    assert not (tmp_path / "wrong").exists()
