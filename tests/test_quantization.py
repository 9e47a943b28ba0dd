"""Bases whose weights are packed: they are read, adapters on them move, and what would write them is refused."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
import transformers

import zofo
from conftest import build_model, review_rows, with_soak, write_rows
from test_resume import contents, stopped_at
from zofo.adapters import LoraAdapters
from zofo.adapters.base import quiet_peft
from zofo.backbone import fingerprint, selected
from zofo.errors import ConfigError, ModelError, RunError
from zofo.export import export_run
from zofo.models import ModelConfig, load_model, packing_note
from zofo.models.loading import quiet_transformers
from zofo.training.identity import model_hash, model_identity

pytestmark = pytest.mark.usefixtures("old_objects_kept")
WAYS = ("nf4", "int8", "int8-weight-only")
IDS = torch.randint(3, 200, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def configured(model_folder, tmp_path_factory):
    """A configuration of a run on a tiny quantised Llama."""
    data = tmp_path_factory.mktemp("rows")
    for split, count in (("train", 40), ("validation", 8), ("test", 8)):
        write_rows(data / f"{split}.jsonl", review_rows(count))

    def call(folder, quantization, method="mezo", adapter="lora", name=model_folder, steps=4, **more):
        return zofo.read_config(
            model={"name": str(name), "quantization": quantization, **more.pop("model", {})},
            task={"name": "movie-reviews", "data_dir": str(data)},
            method={"name": method, "batch_size": 4} | ({} if adapter is None else {"adapter": adapter}) | more,
            training={"steps": steps},
            output_dir=str(folder),
        )

    return call


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def changed(folder, into, **quantization):
    """A copy of a model whose config.json says that it is quantised in some way."""
    shutil.copytree(folder, into)
    content = json.loads((into / "config.json").read_text(encoding="utf-8"))
    (into / "config.json").write_text(json.dumps({**content, "quantization_config": quantization}), encoding="utf-8")
    return into


@pytest.mark.parametrize("way", WAYS)
def test_rows_stand_alone_and_gradients_agree_with_slopes(model_folder, way):
    """Libraries would let rows mix, and cut the gradient after a forward without one; a loaded model does neither."""
    model = load_model(ModelConfig(name=str(model_folder), quantization=way)).model
    alone = torch.cat([model(row[None]).logits for row in IDS])
    assert torch.allclose(logits(model), alone, atol=1e-4)
    tensors = LoraAdapters(model, ["adapter"], 0).parameters("adapter")
    generator = torch.Generator().manual_seed(0)

    def move(size):
        for tensor, z in zip(tensors, directions, strict=True):
            tensor.data.add_(z, alpha=size)

    directions = [torch.randn(tensor.shape, generator=generator) for tensor in tensors]
    move(0.1)

    def loss():
        return model(IDS).logits.log_softmax(-1)[..., 5].mean()

    gradients = torch.autograd.grad(loss(), tensors)
    slope = float(sum((g * z).sum() for g, z in zip(gradients, directions, strict=True)))
    size, apart = (0.02, 0.2) if way == "int8" else (0.002, 0.01)  # it rounds what goes into a layer
    move(size)
    ahead = loss().item()
    move(-2 * size)
    assert (ahead - loss().item()) / (2 * size) == pytest.approx(slope, rel=apart)


@pytest.mark.parametrize("way", with_soak(WAYS, ("nf4",)))
def test_an_adapter_is_trained_stopped_resumed_asked_and_exported(configured, tmp_path, way):
    whole = zofo.train(configured(tmp_path / "whole", way))
    assert stopped_at(configured(tmp_path / "stopped", way), 2).exit_code == 143
    assert contents(zofo.train(configured(tmp_path / "stopped", way)).path) == contents(whole.path)
    base = whole.load_base()
    assert model_hash(base) == whole.base_hash
    assert zofo.evaluate_run(whole.path).as_dict()["loss"] == pytest.approx(whole.summary["loss"], abs=1e-6)
    for other in ("int8" if way == "nf4" else "nf4", "null"):
        with pytest.raises(RunError, match="not the one that .* its weights"):
            zofo.evaluate_run(whole.path, [f"model.quantization={other}"])
    for kind in ("merged", "patch"):
        with pytest.raises(RunError, match="are quantised") as error:
            export_run(whole.path, kind, tmp_path / kind)
        assert "--adapter DIR" in error.value.hint
    shipped = export_run(whole.path, "adapter", tmp_path / "adapter")
    with quiet_peft():
        loaded = peft.PeftModel.from_pretrained(base.model, str(shipped.path)).eval()
    assert torch.equal(logits(loaded), logits(whole.load().model))


def test_packed_weights_stay_as_they_are_in_every_way_to_train(configured, model_folder, tmp_path):
    base = fingerprint(selected(load_model(ModelConfig(name=str(model_folder), quantization="nf4")).model))
    for method, more in (
        ("svrg", {"anchor_batch_size": 8}),
        ("first-order", {"gradient_checkpointing": True}),
        ("mezo", {"adapter": "prompt"}),
        ("bilevel", {"inner_steps": 1, "backbone_adapter": {"name": "subspace", "rank": 4}}),
    ):
        run = zofo.train(configured(tmp_path / method, "nf4", method, steps=2, **more))
        assert run.summary["queries"]
        trained = run.load().model
        own = {name: p for name, p in selected(trained).items() if "lora_" not in name and "prompt_" not in name}
        kept = {name.replace(".base_layer", ""): tensor for name, tensor in own.items()}
        assert fingerprint(kept) == base


@pytest.mark.parametrize(
    ("method", "more"),
    [("mezo", {}), ("mezo", {"trainable": ["*norm*"]}), ("bilevel", {}), ("first-order", {"parameters": "all"})],
)
def test_weights_that_are_packed_do_not_move(configured, tmp_path, method, more):
    with pytest.raises(ModelError, match="quantised .bitsandbytes., so that they can be read but not moved") as error:
        zofo.train(configured(tmp_path / "run", "nf4", method, None, **more))
    assert "method.adapter=subspace" in error.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("way", with_soak(WAYS, ("nf4", "int8-weight-only")))
def test_a_checkpoint_that_is_quantised_already_is_loaded_as_it_is(model_folder, tokenizer, tmp_path, way):
    made = load_model(ModelConfig(name=str(model_folder), quantization=way))
    with quiet_transformers():
        made.model.save_pretrained(tmp_path / "packed")
    tokenizer.save_pretrained(tmp_path / "packed")
    loaded = load_model(ModelConfig(name=str(tmp_path / "packed")))
    assert torch.equal(logits(loaded.model), logits(made.model))
    assert model_identity(loaded).model_hash == model_identity(made).model_hash
    assert packing_note(loaded.model) == packing_note(made.model)
    with pytest.raises(ModelError, match="is quantised already") as error:
        load_model(ModelConfig(name=str(tmp_path / "packed"), quantization="nf4"))
    assert error.value.hint.startswith("leave out model.quantization")


def test_the_hash_covers_what_weights_are_unpacked_by(model_folder):
    loaded = {way: load_model(ModelConfig(name=str(model_folder), quantization=way)) for way in WAYS}
    before = {way: model_hash(one) for way, one in loaded.items()}
    assert len({*before.values(), model_hash(load_model(str(model_folder)))}) == 4
    layers = {way: one.model.model.layers[0].mlp.up_proj for way, one in loaded.items()}
    layers["nf4"].weight.quant_state.absmax[0] += 1
    layers["int8"].state.SCB[0] *= 1.01
    layers["int8-weight-only"].weight.scale[0] *= 1.01
    for way, one in loaded.items():
        assert model_hash(one) != before[way]


@pytest.mark.parametrize(
    ("own", "message", "hint"),
    [
        ({"quant_method": "gptq", "bits": 4}, "optimum", "pip install optimum gptqmodel"),
        ({"quant_method": "hqq"}, "HQQ", "pip install hqq"),
        ({"quant_method": "made-up"}, "'made-up', which transformers does not know", "known are aqlm"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "those of 'model.layers.0.*' are not", "take out"),
    ],
)
def test_a_checkpoint_that_cannot_be_unpacked_is_refused(model_folder, tmp_path, own, message, hint):
    folder = changed(model_folder, tmp_path / "model", **own)
    with pytest.raises(ModelError, match=message) as error:
        load_model(str(folder))
    assert error.value.hint.startswith(hint)


def test_what_is_missing_or_cannot_run_here_is_said(model_folder, tokenizer, tmp_path, monkeypatch):
    name = str(model_folder)
    with pytest.raises(ModelError, match="int4-weight-only cannot be run on 'cpu' in bfloat16"):
        load_model(ModelConfig(name=name, quantization="int4-weight-only", device="cpu", dtype="bfloat16"))
    with pytest.raises(ConfigError, match="got 'nf5'") as error:
        zofo.read_config(model={"name": name, "quantization": "nf5"})
    assert error.value.hint == "did you mean 'nf4'?"
    build_model("gpt2", len(tokenizer)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match="its layers are Conv1D"):
        load_model(ModelConfig(name=str(tmp_path / "gpt2"), quantization="int8-weight-only"))
    monkeypatch.setattr("zofo.models.quantization.find_spec", lambda package: None)
    with pytest.raises(ModelError, match="nf4 needs bitsandbytes, which is not installed") as error:
        load_model(ModelConfig(name=name, quantization="nf4"))
    assert error.value.hint == "pip install 'zofo[quantized]'"


def test_the_head_of_a_classifier_is_not_packed(configured, tokenizer, tmp_path):
    kind = transformers.AutoModelForSequenceClassification
    build_model("roberta", len(tokenizer), head=kind).save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    run = zofo.train(configured(tmp_path / "run", "nf4", "first-order", name=tmp_path / "roberta"))
    assert type(run.load_base().model.classifier.dense) is torch.nn.Linear
    card = export_run(run.path, "adapter", tmp_path / "adapter").card
    assert "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4'" in card
    assert "llm_int8_skip_modules=['classifier']" in card
