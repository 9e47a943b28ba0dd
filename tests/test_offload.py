"""Weights that stay in the checkpoint's files: they are mapped, shared and never written, and steps are the same."""

from __future__ import annotations

import sys

import pytest

import zofo
from conftest import review_rows, write_rows
from zofo.errors import ModelError
from zofo.models import ModelConfig, is_offloaded, load_model
from zofo.training import train
from zofo.training.run_logs import metrics_lines

MEZO = {"name": "mezo", "adapter": "subspace"}
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="mappings are read from /proc")


@pytest.fixture(autouse=True, scope="module")
def reads_once():
    """A copy of a model is in memory."""


@pytest.fixture(scope="module")
def configured(model_folder, tmp_path_factory):
    data = tmp_path_factory.mktemp("rows")
    for split, count in (("train", 40), ("validation", 8)):
        write_rows(data / f"{split}.jsonl", review_rows(count))

    def call(folder, method, **model):
        return zofo.read_config(
            model={"name": str(model_folder), **model},
            task={"name": "movie-reviews", "data_dir": str(data)},
            method={"batch_size": 4, **method},
            training={"steps": 4},
            output_dir=str(folder),
        )

    return call


def mappings(path):
    """(start, end, KiB that this process wrote, so that they are its own) of the mappings of a file."""
    found = []
    with open("/proc/self/smaps", encoding="utf-8") as file:
        for line in file:
            first, *rest = line.split()
            if "-" in first and not first.endswith(":"):
                inside = rest and rest[-1] == str(path.resolve())
                start, end = (int(one, 16) for one in first.split("-"))
            elif inside and first == "Anonymous:":
                found.append((start, end, int(rest[0])))
    return found


@on_linux
@pytest.mark.parametrize("method", [MEZO, {"name": "first-order", "adapter": "lora"}], ids=["mezo", "first-order"])
def test_a_run_reads_the_file_and_writes_none_of_its_pages(configured, model_folder, tmp_path, method, monkeypatch):
    """Where the same run without `offload` ends, to the bit."""
    seen = []
    original = zofo.models.loading.leave_in_files

    def kept(model, name):
        original(model, name)
        seen.append(model)

    monkeypatch.setattr("zofo.models.loading.leave_in_files", kept)
    runs = [train(configured(tmp_path / str(way), method, **way)) for way in ({}, {"offload": "disk"})]
    model, spans = seen[0], mappings(model_folder / "model.safetensors")
    base = [p for name, p in model.named_parameters() if "lora" not in name]
    for parameter in base:
        assert any(start <= parameter.data_ptr() < end for start, end, _ in spans)
    assert spans
    assert all(dirty == 0 for _, _, dirty in spans)
    losses = [[line["loss"] for line in metrics_lines(run.metrics) if line["event"] == "step"] for run in runs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


@pytest.mark.parametrize(
    ("method", "model", "said"),
    [
        ({"name": "mezo"}, {}, r"the weights of the model stay in their files \(model.offload=disk\)"),
        ({"name": "first-order", "parameters": "all"}, {}, "stay in their files"),
        ({"name": "bilevel"}, {}, "stay in their files"),
        (MEZO, {"dtype": "bfloat16"}, "the checkpoint holds float32, of which model.dtype=bfloat16 makes a copy"),
        (MEZO, {"quantization": "nf4"}, "model.quantization=nf4 packs weights into memory of their own"),
        (MEZO, {"device": "meta"}, "'meta' cannot read them there"),
    ],
)
def test_what_would_copy_or_write_weights_is_refused(configured, tmp_path, method, model, said):
    with pytest.raises(ModelError, match=said):
        train(configured(tmp_path / "run", method, offload="disk", **model))


def test_weights_that_were_copied_as_they_were_loaded_are_named(model_folder, monkeypatch):
    loaded = load_model(ModelConfig(name=str(model_folder), offload="disk")).model
    assert is_offloaded(loaded)
    assert not is_offloaded(load_model(str(model_folder)).model)
    loaded.model.layers[0].mlp.up_proj.weight.data = loaded.model.layers[0].mlp.up_proj.weight.detach().clone()
    with pytest.raises(ModelError, match=r"% of 'tiny' were copied into memory .* 'model.layers.0.mlp.up_proj.weight'"):
        zofo.models.offload.leave_in_files(loaded, "tiny")
