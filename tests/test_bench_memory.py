"""`zofo bench memory`: a row a way, kept in a file; what is predicted; models of random weights; and wrong input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from zofo.bench import MemoryOptions, MemoryRow, bench_memory, memory, shapes
from zofo.errors import RunError, UnknownNameError
from zofo.models import load_model

SOME = ("inference", "mezo-halved", "mezo-subspace-nf4", "bilevel-nf4-checkpointing")


@pytest.fixture
def options(model_folder):
    return MemoryOptions(str(model_folder), examples=2, tokens=6, steps=1)


@pytest.fixture
def small(monkeypatch):
    """The rank of subspaces that fits into the tiny model."""
    own = {**memory.WAYS}
    for name, way in own.items():
        adapters = {key: value for key, value in (way.method or {}).items() if isinstance(value, dict)}
        if adapters:
            own[name] = replace(way, method={**way.method, **{key: {**a, "rank": 4} for key, a in adapters.items()}})
    monkeypatch.setattr(memory, "WAYS", own)


def test_each_way_has_a_row_that_a_second_call_keeps(options, children_here, small, tmp_path, run_zofo):
    file = tmp_path / "rows.jsonl"
    rows = bench_memory(options, SOME[::-1], file)
    assert [row.way for row in rows] == list(SOME)
    assert all(row.error is None and row.peak_bytes > row.weights_bytes > 0 and row.seconds > 0 for row in rows)
    assert len({row.weights_bytes for row in rows}) == 2
    assert [MemoryRow(**json.loads(line)) for line in file.read_text().splitlines()] == rows
    code, shown, said = run_zofo(
        *("bench", "memory", "--model", options.model, "--rows", 2, "--tokens", 6, "--steps", 1, "--json", file),
        *(part for way in SOME for part in ("--way", way)),
    )
    assert (code, said) == (0, "")
    assert shown.count("GiB") == 2 * len(SOME)
    assert len(children_here) == len(SOME)
    assert [row.steps for row in bench_memory(replace(options, steps=2), SOME[:1], file)] == [2]
    assert len(children_here) == len(SOME) + 1


def test_all_weights_by_adam_are_predicted_where_there_is_no_room(options, monkeypatch):
    lora = MemoryRow("lora", options.model, 2, 6, parameters=10, weights_bytes=40, peak_bytes=100, seconds=1.0)

    class Room:
        available = 231

    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: Room)
    found = memory._predicted("adam", options, {"lora": lora})
    assert (found.peak_bytes, found.seconds, found.predicted) == (220, None, True)
    Room.available = 250
    assert memory._predicted("adam", options, {"lora": lora}) is None


def test_a_shape_is_a_model_of_random_weights(tokenizer, monkeypatch, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "heads": 2, "groups": 1}
    monkeypatch.setitem(shapes.SHAPES, "tiny", sizes)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(shapes, "EMBEDDED_MODELS", {"smollm2-135m": lambda: tmp_path / "tokenizer"})
    state = torch.random.get_rng_state()
    first, second = (load_model(str(shapes.random_model("tiny", tmp_path / name))).model for name in "ab")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(first) is transformers.LlamaForCausalLM
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


def test_wrong_input_is_said_before_anything_is_measured(options, tmp_path, run_zofo, monkeypatch):
    code, _, said = run_zofo("bench", "memory", "--rows", 0)
    assert code == 2
    assert "--rows is 0" in said
    with pytest.raises(UnknownNameError, match="Did you mean 'qlora-nf4'"):
        bench_memory(options, ["qlora-nf"])
    monkeypatch.setattr(memory, "_measured", lambda *_: pytest.fail("measured"))
    with pytest.raises(RunError, match="cannot write"):
        bench_memory(options, ["inference"], tmp_path / "no" / "folder.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"way": 1', encoding="utf-8")
    with pytest.raises(RunError, match="cannot read"):
        bench_memory(options, ["inference"], tmp_path / "rows.jsonl")


def test_a_way_that_fails_is_a_row_with_the_reason(options, children_here, tmp_path):
    (row,) = bench_memory(replace(options, model=str(tmp_path / "nothing")), ["inference"])
    assert row.peak_bytes is None
    assert "nothing" in row.error


def table_of(rows):
    """The rows of one model as the page shows them, in the order of the ways: without times."""
    floor = next((row for row in rows if row.way == "inference"), None) or rows[0]
    ordered = [row for way in memory.WAYS for row in rows if row.way == way]
    return "".join(f"| {' | '.join(memory.cells_of(row, floor)[:4])} |\n" for row in ordered)


def test_the_tables_of_the_page_are_those_of_the_archived_rows():
    root = Path(__file__).parent.parent
    lines = (root / "benchmarks" / "results" / "memory.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [MemoryRow(**json.loads(line)) for line in lines]
    page = (root / "docs" / "big-model.md").read_text(encoding="utf-8")
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        assert table_of(own) in page


def test_the_table_of_steps_on_quantised_weights_is_that_of_the_archived_rows():
    root = Path(__file__).parent.parent
    lines = (root / "benchmarks" / "results" / "quantized.jsonl").read_text(encoding="utf-8").splitlines()
    names = {"lora": "LoRA", "subspace": "subspace, rank 16 beside all linear layers"}
    table = "".join(
        f"| {names[row['way']]} | `{row['model']}` | {row['time']:.2f} times ({row['least']:.2f} to "
        f"{row['largest']:.2f}) | {row['peak']:.2f} times |\n"
        for row in map(json.loads, lines)
        if row["way"] in names
    )
    assert f"|---|---|---|---|\n{table}\n" in (root / "docs" / "big-model.md").read_text(encoding="utf-8")
