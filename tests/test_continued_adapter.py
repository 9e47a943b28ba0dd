"""A run that starts from one with an adapter, and goes on with that adapter."""

from __future__ import annotations

import io
import re
import shlex

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from conftest import review_rows, write_rows
from zofo.errors import ConfigError
from zofo.methods import METHODS
from zofo.methods.base import AdapterStart
from zofo.methods.first_order import FirstOrder
from zofo.tasks import load_examples, resolve_task
from zofo.training import RunFolder, explain_config, read_config, train

FIRST_ORDER = {"name": "first-order", "batch_size": 4}
MEZO = {"name": "mezo", "batch_size": 4, "adapter": "lora"}
BILEVEL = {"name": "bilevel", "batch_size": 2, "inner_steps": 1, "rule": {"lr": 1e-3}}
STILL = {
    "first-order": {**FIRST_ORDER, "lr": 0},
    "mezo": {**MEZO, "rule": {"lr": 0}},
    "bilevel": {**BILEVEL, "lr_lower": 0, "lr_adapter": 0, "rule": {"lr": 0}},
}


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    """Gives runs by name, each trained once."""
    folder, runs = tmp_path_factory.mktemp("continued"), {}
    for split, rows in (("train", review_rows(24)), ("validation", review_rows(6, 60))):
        write_rows(folder / "data" / f"{split}.jsonl", rows)

    def make(name, method, start=None):
        if name not in runs:
            runs[name] = train(
                read_config(
                    model=str(model_folder),
                    task={"data_dir": str(folder / "data")},
                    method=method,
                    training={"steps": 2},
                    output_dir=str(folder / name),
                    **({} if start is None else {"init_from": str(start)}),
                )
            )
        return runs[name]

    return make


def tensors(run, variant="adapter"):
    return load_file(run.path / variant / "adapter_model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3", "subspace", "prefix", "prompt"])
def test_an_adapter_goes_on_from_where_it_was(made, adapter):
    first = made(adapter, {**FIRST_ORDER, "adapter": adapter})
    same = made(f"{adapter}-still", {**STILL["first-order"], "adapter": adapter}, first.path)
    assert equal(tensors(same), tensors(first))
    assert same.summary["loss"] == first.summary["loss"]
    further = made(f"{adapter}-further", {**FIRST_ORDER, "adapter": adapter}, first.path)
    assert not equal(tensors(further), tensors(first))


@pytest.mark.parametrize("start", ["first-order", "mezo", "bilevel"])
@pytest.mark.parametrize("method", STILL)
def test_it_goes_on_by_another_method(made, start, method):
    first = made(start, {"first-order": FIRST_ORDER, "mezo": MEZO, "bilevel": BILEVEL}[start])
    same = made(f"{start}-{method}", STILL[method], first.path)
    assert equal(tensors(same), tensors(first))
    if method == "bilevel":
        assert equal(tensors(same, "lower_adapter"), tensors(first))
    assert same.summary["loss"] == pytest.approx(first.summary["loss"], rel=1e-6)


def test_a_chain_comes_back_and_is_shipped(made, run_zofo, tmp_path, model_folder):
    first = made("bilevel", BILEVEL)  # whose backbone has moved, too
    second = made("bilevel-mezo-moving", MEZO, first.path)
    third = made("bilevel-mezo-first-order", FIRST_ORDER, second.path)
    ids, wanted = torch.tensor([[5, 17, 42, 8, 99]]), None
    with torch.no_grad():
        wanted = RunFolder.open(third.path).load().model(ids).logits
    assert run_zofo("export", third.path, "--merged", tmp_path / "merged")[0] == 0
    assert run_zofo("export", third.path, "--patch", tmp_path / "patch")[0] == 0
    assert run_zofo("apply", tmp_path / "patch", "--base", model_folder, "--out", tmp_path / "applied")[0] == 0
    assert run_zofo("export", third.path, "--adapter", tmp_path / "adapter")[0] == 0
    assert "zofo replay RUN --out BACKBONE, of the run" in (tmp_path / "adapter" / "README.md").read_text("utf-8")
    from transformers import AutoModelForCausalLM

    for folder in ("merged", "applied"):
        with torch.no_grad():
            found = AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval()(ids).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_another_shape_is_refused_with_what_to_type(made, run_zofo, tmp_path):
    shape = {"name": "lora", "rank": 4, "target_modules": ["q_proj"]}
    first = made("narrow", {**FIRST_ORDER, "adapter": shape})
    arguments = ["train", first.path / "config.yaml", f"init_from={first.path}", "method.adapter=null"]
    arguments += ["method.adapter=lora", "method.adapter.rank=8", "method.adapter.target_modules=null"]
    code, _, err = run_zofo(*arguments, f"output_dir={tmp_path / 'new'}")
    said = " ".join(err.split())
    assert code == 2
    assert "would attach another one" in said
    typed = said.partition("to go on with it, give ")[2].partition("; to have a new one")[0]
    assert shlex.split(typed) == ["method.adapter.rank=4", 'method.adapter.target_modules=["q_proj"]']
    code, _, err = run_zofo(*arguments, *shlex.split(typed), f"output_dir={tmp_path / 'new'}")
    assert code == 0, err
    assert f"the adapter goes on from that of '{first.path}'" in " ".join(err.split())


def test_a_method_that_begins_with_new_adapters_is_refused(made, monkeypatch):
    class Own(FirstOrder):
        """Which attaches what it likes."""

        def __init__(self, config, context):
            super().__init__(config, context)
            del self.adapter_start

    first = made("lora", {**FIRST_ORDER, "adapter": "lora"})
    monkeypatch.setitem(METHODS._parts, "first-order", Own)
    with pytest.raises(ConfigError, match="does not start from the adapter of init_from"):
        made("own", FIRST_ORDER, first.path)


def test_a_method_that_says_more_of_its_adapters_goes_on_with_them(made, monkeypatch):
    class Own(FirstOrder):
        """Which adds a note."""

        def __init__(self, config, context):
            super().__init__(config, context)
            self.adapter_start = AdapterStart(("of my own",)).and_then(self.adapter_start)

    first = made("lora", {**FIRST_ORDER, "adapter": "lora"})
    monkeypatch.setitem(METHODS._parts, "first-order", Own)
    assert made("own", {**FIRST_ORDER, "adapter": "lora"}, first.path).ended


def test_a_head_for_other_labels_is_refused(model_folder, run_zofo, tmp_path):
    words = ["train", f"model={model_folder}", "model.head=classification", "method=first-order"]
    words += ["method.batch_size=2", "training.steps=1"]
    for name, labels in (("two", ("good", "bad")), ("three", ("good", "bad", "so"))):
        rows = [{"text": f"{label} film {number}", "label": label} for number in range(8) for label in labels]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    first = [f"task.data={tmp_path / 'two.jsonl'}", f"output_dir={tmp_path / 'first'}"]
    code, _, err = run_zofo(*words, *first)
    assert code == 0, err
    other = [f"task.data={tmp_path / 'three.jsonl'}", f"init_from={tmp_path / 'first'}"]
    code, _, err = run_zofo(*words, *other, f"output_dir={tmp_path / 'second'}")
    assert code == 2
    assert "has a head for 2 labels, and this task has 3" in " ".join(err.split())
    other = [f"task.data={tmp_path / 'two.jsonl'}", f"init_from={tmp_path / 'first'}", "model.head=causal-lm"]
    code, _, err = run_zofo(*words, *other, f"output_dir={tmp_path / 'second'}")
    assert code == 2
    assert "with model.head=classification, and this run has model.head=causal-lm" in " ".join(err.split())


def test_a_folder_that_is_no_run_is_refused_with_what_to_type(made, run_zofo, tmp_path):
    run = made("lora", {**FIRST_ORDER, "adapter": "lora"})
    code, _, err = run_zofo("train", run.path / "config.yaml", f"init_from={run.path / 'adapter'}", "output_dir=x")
    assert code == 2
    assert f"did you mean '{run.path}'?" in " ".join(err.split())
    code, _, err = run_zofo("watch", run.path.parent)
    assert code == 2
    assert f"name a run that lies in it, such as '{run.path.parent}/" in " ".join(err.split())
    assert run_zofo("export", run.path, "--adapter", tmp_path / "alone")[0] == 0
    code, _, err = run_zofo("train", run.path / "config.yaml", f"init_from={tmp_path / 'alone'}", "output_dir=x")
    assert code == 2
    assert "it is an adapter: merge it into its model" in " ".join(err.split())


@pytest.mark.parametrize(("split_seed", "said"), [(0, False), (1, True)])
def test_rows_that_the_start_was_trained_on_are_named_where_another_seed_draws_the_splits(
    model_folder, tmp_path, split_seed, said
):
    write_rows(tmp_path / "rows.jsonl", review_rows(40))
    method = {**FIRST_ORDER, "batch_size": 2}
    common = {"model": str(model_folder), "method": method, "training": {"steps": 1}}
    data = {"data": str(tmp_path / "rows.jsonl"), "split_sizes": {"validation": 10, "test": 10}}
    first = train(read_config(**common, task=data, output_dir=str(tmp_path / "first")))
    shown = Console(record=True, file=io.StringIO(), width=1000)
    config = read_config(
        **common,
        task={**data, "split_seed": split_seed},
        init_from=str(first.path),
        output_dir=str(tmp_path / "second"),
    )
    train(config, shown)
    found = re.search(rf"warning: {first.path} was trained on (\d+) of 10 rows of validation", shown.export_text())
    assert (found is not None) == said
    if found is not None:
        known = {one.prompt for one in load_examples(resolve_task(config.task), first.config.task, ["train"])["train"]}
        held = load_examples(resolve_task(config.task), config.task, ["validation"])["validation"]
        assert int(found[1]) == sum(one.prompt in known for one in held) > 0


def test_the_model_of_the_run_that_it_starts_from_is_the_default(model_folder, tmp_path):
    (tmp_path / "first").mkdir()
    config = read_config(model={"name": str(model_folder), "dtype": "bfloat16"})
    (tmp_path / "first" / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    start = str(tmp_path / "first")
    assert read_config(init_from=start).model == config.model
    assert read_config(init_from=start, model={"dtype": "float32"}).model.name == str(model_folder)
    assert read_config(init_from=start, model="other").model == read_config(model="other").model
    assert read_config(init_from=str(tmp_path / "nothing")).model == read_config().model
    model, *_ = explain_config(None, [f"init_from={start}"])
    assert (model.value, model.source) == (str(model_folder), f"default for init_from={start}")
