"""What a run takes before it is made: memory, time, what fits, a step that is undone, and a configuration that runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from zofo.errors import ConfigError, ModelError, RunError, ZofoError
from zofo.estimate import (
    RowSource,
    calibrate,
    calibration,
    dry_run,
    estimate_run,
    fit,
    fitting,
    known_machine,
    machine_file,
    parse_bytes,
    recommend,
)
from zofo.estimate.budget import FEW_ROWS, Costs, Wanted, about_few, check_enough, share_out, smaller_batch
from zofo.estimate.dry_run import _of_heaviest, _Step
from zofo.estimate.fit import parse_seconds
from zofo.estimate.ledger import trace
from zofo.estimate.machine import PACKAGED
from zofo.estimate.step import fillings, heaviest
from zofo.methods import MethodConfig, TrainingContext
from zofo.models import ModelConfig, load_model, load_on_meta, plain_tensors, weight_bytes
from zofo.tasks import TokenizedChoices, collate
from zofo.training import issue_report, read_config
from zofo.trees import parse_override, set_by_path

GIB = 2**30


@pytest.fixture(autouse=True)
def _own_calibration(monkeypatch):
    """Whoever runs the tests may have calibrated this machine."""
    monkeypatch.setattr("zofo.estimate.machine.FILE", "machine-of-a-test.json")


@pytest.fixture
def config(model_folder):
    return read_config(model=str(model_folder), method={"name": "mezo", "batch_size": 4})


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.csv"
    pairs = (("warm", "good"), ("dull", "bad"))
    lines = [f"{text} story number {i},{label}" for i in range(30) for text, label in pairs]
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    return file


def test_a_trace_counts_what_lives_and_what_is_computed():
    weight = torch.nn.Parameter(torch.empty(8, 4, device="meta"))
    x = torch.empty(2, 4, device="meta")

    def loss() -> torch.Tensor:
        return (torch.nn.functional.linear(x, weight).relu() * 2).sum()

    forward, both = trace(loss), trace(loss, [weight])
    assert forward.work.flops == 2 * 2 * 4 * 8
    assert both.work.flops == 2 * forward.work.flops  # x has no gradient
    assert forward.kept_bytes == 0
    assert 2 * 8 * 4 < both.kept_bytes <= both.peak_bytes
    assert forward.peak_bytes <= 3 * 2 * 8 * 4 + 4


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_weights_have_the_size_that_they_are_loaded_with(model_folder, quantization):
    asked = ModelConfig(name=str(model_folder), quantization=quantization)
    tensors = {id(one): one for one in load_model(asked).model.state_dict(keep_vars=True).values()}
    parts = [part for one in tensors.values() for _, part in plain_tensors("", one)]
    size = sum(part.numel() * part.element_size() for part in parts)
    assert weight_bytes(load_on_meta(asked).model) == pytest.approx(size, rel=0.05 if quantization else 0)


def test_what_fits_is_shown_with_the_keys_to_type(model_folder, rows, run_zofo):
    words = ("estimate", f"model={model_folder}", f"task.data={rows}", "method=mezo", "method.batch_size=2")
    code, shown, _ = run_zofo(*words, "--max-memory", "8GB")
    assert code == 0
    assert "what fits into 7.45 GiB (so does what is configured), the first one first:" in shown
    assert "  method=first-order" in shown
    code, shown, _ = run_zofo(*words, "--max-memory", "1KB")
    assert code == 0
    assert "nothing fits into 0.00 GiB; the smallest takes" in shown
    assert run_zofo(*words, "--max-memory", "much")[0] == 2


def test_a_dry_run_shows_what_was_measured_beside_its_estimate(model_folder, rows, run_zofo):
    words = (f"model={model_folder}", f"task.data={rows}", "method=mezo", "method.batch_size=2")
    code, shown, _ = run_zofo("train", "--dry-run", *words)
    assert code == 0
    assert re.search(r"estimated +measured +estimated / measured", shown)
    assert re.search(r"peak GiB +[0-9.]+ +[0-9.]+ +[0-9.]+", shown)
    assert "nothing was written, and it is undone" in shown


@pytest.mark.parametrize("as_json", [False, True])
def test_the_constants_of_a_machine_are_shown(run_zofo, monkeypatch, as_json, tmp_path):
    machine = replace(PACKAGED, seconds_per_flop={"float32": 1e-11}, seconds_per_byte=0.0)
    monkeypatch.setattr("zofo.estimate.calibrate", lambda on_progress: (machine, tmp_path / "machine.json"))
    code, shown, _ = run_zofo("bench", "calibrate", *(["--json"] if as_json else []))
    assert code == 0
    if as_json:
        assert json.loads(shown)["seconds_per_flop"] == {"float32": 1e-11}
    else:
        assert "products in float32: 100.0 GFLOP/s\nsweeps take no time beside products here\n" in shown
        assert f"wrote {tmp_path / 'machine.json'}" in shown


def test_a_run_that_starts_from_another_is_estimated_like_one_that_does_not(model_folder, rows, tmp_path):
    given = {"model": str(model_folder), "task": {"data": str(rows)}, "method": {"name": "mezo", "batch_size": 2}}
    alone = estimate_run(read_config(**given), beside=False)
    later = estimate_run(read_config(**given, init_from=str(tmp_path / "later")), beside=False)
    assert later.configured.peak_bytes == alone.configured.peak_bytes


def test_ways_stand_beside_the_configured_one(config, run_zofo):
    found = estimate_run(config, tokens=12)
    sizes = {name: one.peak_bytes for name, one in found.beside.items() if not isinstance(one, str)}
    assert sizes["inference"] < sizes["MeZO"] < sizes["full Adam"]
    assert found.configured.peak_bytes == sizes["MeZO"] == sum(term.size for term in found.configured.terms)
    seconds = {name: one.seconds for name, one in found.beside.items() if not isinstance(one, str)}
    assert seconds["inference"] < seconds["MeZO"] < seconds["SVRG"]
    assert seconds["FO-LoRA"] < seconds["FO-LoRA, checkpointing"]
    code, shown, _ = run_zofo(
        "estimate", f"model={config.model.name}", "method=mezo", "--tokens", 12, "--device", "cuda"
    )
    assert code == 0
    assert "process" not in shown
    assert "time is not known on CUDA" in shown


def test_weights_that_stay_in_their_files_are_counted_as_one_tensor(config):
    subspace = read_config(model=config.model.name, method={"name": "mezo", "adapter": "subspace", "batch_size": 4})
    on_disk = subspace.model_copy(update={"model": subspace.model.model_copy(update={"offload": "disk"})})
    loaded, left = (estimate_run(one, tokens=12, device="cpu", beside=False) for one in (subspace, on_disk))
    tensors = [one.numel() * one.element_size() for one in load_on_meta(subspace.model).model.parameters()]
    assert loaded.configured.held_bytes - left.configured.held_bytes == sum(tensors) - max(tensors)
    assert left.machine.endswith("with the files' pages in memory")
    with pytest.raises(ModelError, match="stay in their files"):
        estimate_run(config.model_copy(update={"model": on_disk.model}), tokens=12, beside=False)
    half = on_disk.model_copy(update={"model": on_disk.model.model_copy(update={"dtype": "bfloat16"})})
    with pytest.raises(ModelError, match="makes a copy in memory"):
        estimate_run(half, tokens=12, beside=False)


def test_what_fits_keeps_the_batch(config, monkeypatch):
    monkeypatch.setattr(fit, "CANDIDATES", [fit.CANDIDATES[0], fit.CANDIDATES[6]])
    source = RowSource(config, tokens=48)
    least = fitting(config, source, PACKAGED, "cuda", 1)
    assert [one.fits for one in least] == [False]
    whole = fitting(config, source, PACKAGED, "cuda", GIB)
    assert whole[0].config.method.name == "first-order"
    middle = whole[0].estimate.peak_bytes - 1
    for one in fitting(config, source, PACKAGED, "cuda", middle):
        assert one.estimate.peak_bytes <= middle
        method = one.config.method
        parts = getattr(method, "gradient_accumulation_steps", 1)
        assert method.batch_size * parts == config.method.batch_size


def test_an_odd_batch_is_kept_in_parts_that_divide_it():
    def tried(at_once):
        size = at_once * 10
        return SimpleNamespace(
            fits=size <= 45, estimate=SimpleNamespace(peak_bytes=size, held_bytes=0), at_once=at_once
        )

    parts = {batch: fit._largest(tried, batch, 45).at_once for batch in (7, 8, 9, 12)}
    assert parts == {7: 1, 8: 4, 9: 3, 12: 4}


def test_typed_keys_take_off_a_quantization_that_the_estimate_took_off(config, monkeypatch):
    monkeypatch.setattr(fit, "CANDIDATES", [fit.CANDIDATES[0], fit.CANDIDATES[4]])
    packed = config.model_copy(update={"model": config.model.model_copy(update={"quantization": "int8"})})
    keys = [one.keys for one in fitting(packed, RowSource(config, tokens=12), PACKAGED, "cuda", GIB)]
    assert ["model.quantization=null" in one for one in keys] == [True, False]
    assert "model.quantization=nf4" in keys[1]
    changes = {"method": {"name": "first-order"}, "model": {"name": config.model.name, "quantization": "int8"}}
    for key in keys[0]:
        set_by_path(changes, *parse_override(key))
    assert read_config(**changes).model.quantization is None


@pytest.mark.parametrize(("text", "size"), [("8GB", 8e9), ("7.5GiB", 7.5 * GIB), ("900m", 9e8), (" 1 kb ", 1e3)])
def test_sizes_and_times_are_read(text, size):
    assert parse_bytes(text) == size
    assert [parse_seconds(one) for one in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]


@pytest.mark.parametrize("text", ["", "8", "GB", "8 apples", "-1GB", "nanGB", "infGB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="--max-memory"):
        parse_bytes(text)
    if text == "8":  # of a time, seconds
        return
    with pytest.raises(ConfigError, match="--time"):
        parse_seconds(text)


def test_a_dry_run_leaves_nothing(model_folder, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    config = read_config(
        model=str(model_folder), method={"name": "first-order", "batch_size": 2}, task={"data": str(rows)}
    )
    found = dry_run(config)
    assert found.seconds > 0 < found.peak_bytes
    assert found.estimate.seconds > 0 < found.estimate.peak_bytes
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_has_all_rows_and_refuses_what_train_would(model_folder, rows, monkeypatch):
    def of(**training):
        method = {"name": "select", "batch_size": 2, "population": 2, "gate_examples": 20}
        return read_config(
            model=str(model_folder), method=method, task={"data": str(rows)}, training={"steps": 2, **training}
        )

    assert dry_run(of()).examples > 3 * 2  # the gate alone needs more than three batches
    with pytest.raises(ConfigError, match="has no schedule"):
        dry_run(of(lr_scheduler_type="linear"))
    with pytest.raises(ConfigError, match="max_queries is 1, but one step"):
        dry_run(read_config(**{**of().model_dump(exclude_unset=True), "training": {"max_queries": 1}}))
    with pytest.raises(ZofoError, match="no number"):
        dry_run(of(), reward=lambda example, prediction: "no number")
    monkeypatch.setattr(type(of().method), "passes", MethodConfig.passes)  # as a guest's method that does not tell
    with pytest.raises(ConfigError, match="knows no steps of method=select"):
        dry_run(of())


def rows_of(*sizes):
    """Examples of these numbers of tokens and of scored ones."""
    return [TokenizedChoices(((1,) * tokens,), (scored,), 0) for tokens, scored in sizes]


def test_batches_of_a_dry_run_hold_the_longest_row_and_the_one_with_the_most_logits():
    short, long, answers, middle = rows_of((5, 1), (9, 2), (7, 6), (8, 2))
    context = TrainingContext(torch.nn.Identity(), None, [short, long, answers, middle], list)
    both, step = replace(context, by_objective=lambda name: context), _Step()
    made = _of_heaviest(both, heaviest(context.examples, 4), step)
    assert made.examples == context.examples
    assert made.collate([short, short]) == made.by_objective("reward").collate([short, short]) == [long, answers]
    assert made.collate([short] * 4) == [long, answers, middle, short]
    assert made.collate([short]) == [answers]
    step.number = 1
    assert made.collate([short]) == [long]
    assert made.collate([short] * 3) == [long, answers, middle]


def test_the_heaviest_rows_are_the_longest_and_the_one_that_keeps_most():
    long, other, answers = rows_of((9, 2), (9, 3), (7, 6))
    assert heaviest([long, answers, other], 1) == [other, answers]
    assert fillings([other, answers], 1) == [[other], [answers]]
    assert fillings([other, answers], 2) == [[other, answers]]
    assert heaviest([long, other], 1) == [other]
    assert fillings([other, long], 1) == [[other, long]]
    earlier = replace(long, earlier_spans=((2, 4), (5, 6)))
    assert (earlier.logits_to_keep, earlier.last_only().logits_to_keep) == (7, 2)
    assert collate([earlier, other], 0, torch.device("cpu")).logits_to_keep == 7


def test_a_recommendation_replaces_a_method_and_says_where_time_is_not_used(model_folder, rows, run_zofo, monkeypatch):
    monkeypatch.setattr(fit, "CANDIDATES", fit.CANDIDATES[:1])
    asked = ("recommend", "--data", rows, "--model", model_folder, "--time", "1s", "model.device=cuda", "--json")
    for given in (("method=es", "method.population=8"), ("method=mezo", "method.evaluator=in-place")):
        code, shown, said = run_zofo(*asked, *given)
        assert code == 0, said
        found = json.loads(shown)
        assert found["tree"]["method"]["name"] == "first-order"
        assert not {"population", "evaluator"} & found["tree"]["method"].keys()
        assert (
            f"{given[0]} was given, and is replaced by method=first-order, for the reason that follows"
            in found["reasons"]
        )
    assert "time is not known on CUDA: --time was not used" in found["reasons"]
    code, shown, _ = run_zofo(*asked, "method=first-order", "method.lr=0.5")
    assert json.loads(shown)["tree"]["method"]["lr"] == 0.5  # options of the same method stay
    assert not any("is replaced" in reason for reason in json.loads(shown)["reasons"])


def test_another_number_of_threads_is_said(config, monkeypatch):
    own = replace(PACKAGED, measured="this machine")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert own.described == "this machine"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert own.described == "this machine, with 1 thread, now 16: calibrate again"
    assert PACKAGED.described.endswith("with 1 thread, now 16: calibrate")
    assert estimate_run(config, tokens=8, beside=False).machine.endswith("now 16: calibrate")


def test_a_recommendation_runs_as_it_is(model_folder, rows, tmp_path, run_zofo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("recommend", "--data", rows, "--model", model_folder, "--time", "30s")
    code, shown, said = run_zofo(*asked, "--write", "my.yaml")
    assert (code, said) == (0, "reads the rows\ncounts their tokens\nestimates first-order lora\n")
    assert "first order learned more" in shown
    tree = yaml.safe_load((tmp_path / "my.yaml").read_text())
    assert tree["method"]["name"] == "first-order"
    assert tree["output_dir"] == "runs/my"
    assert read_config(tmp_path / "my.yaml").method.batch_size == tree["method"]["batch_size"]
    code, _, said = run_zofo("train", "my.yaml", "training.steps=1", "training.num_evals=1", "output_dir=run")
    assert code == 0, said
    assert run_zofo(*asked, "--write", "my.yaml")[0] == 2  # which is there


def test_what_is_recommended_follows_the_rows(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "CANDIDATES", fit.CANDIDATES[:1])

    def of(lines, **more):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        file.write_text("text,label\n" + "\n".join(lines) + "\n")
        return recommend({"task": {"data": str(file)}, "model": {"name": str(model_folder)}}, **more)

    few = of([f"story {i},{'ab'[i % 2]}" for i in range(16)])
    assert few.tree["method"] == "in-context"
    unequal = of([f"story {i},{'b' if i % 10 == 0 else 'a'}" for i in range(60)], max_memory=1)
    assert unequal.tree["task"]["metric"] == "macro-f1"
    assert not unequal.enough
    assert unequal.reasons[1].startswith("nothing fits: the smallest takes")
    long = of([f"{'warm ' * (90 if i % 9 == 0 else 3)} {i},{'ab'[i % 2]}" for i in range(60)])
    assert long.tree["task"]["truncate"] == "left"


LONG_ROWS = Costs(start=8, reading=0.1, encoding=0.001, step=12, scoring=0.42)


def test_scored_rows_and_steps_share_the_time():
    wanted = Wanted(steps=240, batch=8, rows=1000, scored=500, fewest=32)
    plan = share_out(wanted, LONG_ROWS, 600)
    assert (plan.evaluations, plan.scored, plan.kept) == (1, 357, None)  # a quarter of 600 s, at 0.42 s each
    assert plan.steps == int((600 - 8 - 0.15 - 1 - 357 * 0.42) / 12)
    assert 600 - 12 < plan.seconds <= 600
    many = share_out(wanted, replace(LONG_ROWS, scoring=0.01), 600)
    assert (many.evaluations, many.scored) == (4, 500)
    tested = share_out(replace(wanted, tests=1), LONG_ROWS, 600)
    assert tested.passes == 2
    assert tested.scored == 357 // 2
    every = share_out(replace(wanted, tests=9), replace(LONG_ROWS, scoring=0.01), 600)
    assert every.passes == 2 * every.evaluations == 8  # a test after each that is the best so far
    free = share_out(wanted, LONG_ROWS, None)
    assert (free.steps, free.evaluations, free.scored) == (240, 4, 500)
    assert free.seconds == pytest.approx(9.15 + 240 * 12 + 4 * 500 * 0.42)


def test_rows_that_no_step_draws_are_left_out_where_they_would_take_the_time():
    costs = Costs(start=8, reading=8, encoding=0.00025, step=4, scoring=0.14)
    wanted = Wanted(steps=1200, batch=8, rows=98_500, scored=500, fewest=32)
    plan = share_out(wanted, costs, 60)
    assert plan.kept == max(64, 8 * plan.steps)
    assert plan.steps >= 5
    assert 60 - 4.1 < plan.seconds <= 60
    assert share_out(replace(wanted, cuts=False), costs, 60).kept is None
    assert share_out(wanted, costs, 3600).kept is None  # where all of them take less than a twentieth


def test_a_time_that_is_too_short_names_what_would_do():
    wanted = Wanted(steps=240, batch=8, rows=1000, scored=500, fewest=32)
    short = share_out(wanted, LONG_ROWS, 30)
    assert (short.steps, short.scored) == (0, 32)
    with pytest.raises(ConfigError, match="32 validation rows that are scored take 13 s, and a step 12") as caught:
        check_enough(short, LONG_ROWS, 30, "a-model", [30, 350])
    assert caught.value.hint == "give --time 6m, a smaller --model, or task.max_length=175 task.truncate=left"
    assert share_out(wanted, LONG_ROWS, 6 * 60).steps * 8 >= FEW_ROWS
    minute = share_out(wanted, LONG_ROWS, 60)
    check_enough(minute, LONG_ROWS, 60, "a-model", [30, 350])
    assert about_few(minute, wanted, [30, 60]) == (
        "24 rows are too few to learn much from: give --time 6m, a smaller --model"
    )


@pytest.mark.parametrize("tests", [0, 1, 4])
@pytest.mark.parametrize("changes", [{}, {"step": 4, "scoring": 0.5}, {"step": 0.5, "scoring": 3}])
def test_the_time_that_is_named_is_enough(tests, changes):
    wanted, costs = (
        Wanted(steps=240, batch=8, rows=1000, scored=500, fewest=32, tests=tests),
        replace(LONG_ROWS, **changes),
    )
    enough = share_out(wanted, costs, 30).enough
    assert share_out(wanted, costs, enough + 0.1).steps * 8 >= FEW_ROWS
    assert share_out(wanted, costs, 0.9 * enough).steps * 8 < FEW_ROWS


def test_batches_are_smaller_where_the_time_pays_for_few_steps():
    wanted = Wanted(steps=240, batch=8, rows=1000, scored=500, fewest=32)
    sizes = {each: share_out(wanted, replace(LONG_ROWS, step=each), 60) for each in (1.5, 3, 12)}
    assert {each: smaller_batch(plan, wanted) for each, plan in sizes.items()} == {1.5: 8, 3: 4, 12: 2}
    few = replace(wanted, steps=3)  # all that is wanted
    assert smaller_batch(share_out(few, LONG_ROWS, 600), few) == 8
    assert about_few(share_out(few, LONG_ROWS, 600), few, [30, 350]) is None


def test_a_recommendation_says_how_many_rows_are_scored(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "CANDIDATES", fit.CANDIDATES[:1])
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "\n".join(f"story {i},{'ab'[i % 2]}" for i in range(3000)) + "\n")
    slow = replace(PACKAGED, start_seconds=8.0, seconds_per_operation=1e-3)
    monkeypatch.setattr("zofo.estimate.machine.PACKAGED", slow)

    def of(seconds, **more):
        tree = {"task": {"data": str(file)}, "model": {"name": str(model_folder)}, **more}
        return recommend(tree, seconds=seconds)

    whole = of(None)
    assert "split_sizes" not in whole.tree["task"]
    assert whole.reasons[-1] == "all 500 validation rows are scored, 4 times"
    minute = of(60, training={"eval_on_test": True})
    sizes = minute.tree["task"]["split_sizes"]
    assert 32 <= sizes["validation"] == sizes["test"] < 500
    assert minute.reasons[-1].startswith(f"{sizes['validation']} of 500 validation rows are scored, once, and as many ")
    assert 0.7 * 60 < minute.seconds <= 60
    with pytest.raises(ConfigError, match=r"^9 s are too short for .*: [89] s go by before the first step"):
        of(9)


def test_models_that_are_not_there_are_said(tmp_path, run_zofo):
    code, _, said = run_zofo("estimate", "model=nowhere", "--tokens", 8)
    assert code == 2
    assert said.startswith("error: unknown model 'nowhere'")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load the model"):
        estimate_run(read_config(model=str(tmp_path)), tokens=8)


def test_a_calibration_is_kept_and_read(tmp_path, monkeypatch, children_here):
    monkeypatch.setenv("ZOFO_CACHE", str(tmp_path))
    assert known_machine() is PACKAGED
    monkeypatch.setattr(calibration, "_LEAST", 0.0)
    monkeypatch.setattr(calibration, "in_a_process", lambda *_: {"process_bytes": 5, "adapter_bytes": 6})
    small = [replace(one, hidden=64, rows=1, tokens=4) for one in calibration._TRIALS]
    monkeypatch.setattr(calibration, "_TRIALS", small)
    made, file = calibrate()
    assert (file, known_machine()) == (machine_file(), made)
    assert {"torch", "zofo"} <= json.loads(file.read_text())["versions"].keys()
    assert made.seconds_per_flop["float32"] + made.seconds_per_byte + made.seconds_per_operation > 0
    file.write_text("{}")
    with pytest.raises(RunError, match="cannot read"):
        known_machine()


def test_an_issue_report_has_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(
        f"model: {tmp_path}/model\ntoken: hf_abcdefghijklmnop\nurl: https://me:pw@host/x\n"
    )
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(9)))
    text = issue_report(run)
    assert not any(secret in text for secret in ("hf_abc", "me:pw", str(tmp_path)))
    assert "model: ~/model" in text
    assert '"step": 8' in text
    assert '"step": 5' not in text
    with pytest.raises(RunError, match="not a run folder"):
        issue_report(tmp_path)
