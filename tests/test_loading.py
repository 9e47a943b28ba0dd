"""Models with the heads their checkpoints bring, new heads from a seed, and models that cannot do what is asked."""

from __future__ import annotations

import json
import random
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from conftest import build_model, build_tokenizer
from zofo.adapters.base import quiet_peft
from zofo.config import parse_model
from zofo.displacement import Key
from zofo.errors import ConfigError, ModelError
from zofo.models import Head, ModelConfig, head_of, load_model, load_tokenizer
from zofo.models.heads import complete_head, default_head, is_encoder
from zofo.models.loading import quiet_transformers
from zofo.models.padding_check import check_fit_for_scoring
from zofo.noise import Gaussian
from zofo.training import RunConfig, progress

CLASSES: dict[Head, type] = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "classification": transformers.AutoModelForSequenceClassification,
}
DECODERS = ("gpt2", "opt", "llama", "qwen2", "llama-untied")
ENCODERS = ("bert", "roberta", "distilbert")


@pytest.fixture(autouse=True, scope="module")
def reads_once():
    """Every file is read in this module."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """Saves a tiny model of a kind with a head, or bare, once; gives the folder."""
    made = {}

    def save(kind, head=None, **settings):
        key = (kind, head, str(settings))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("models") / f"{kind}-{head}"
            model = build_model(kind, len(tokenizer), head=CLASSES.get(head, transformers.AutoModel))
            for name, value in settings.items():
                setattr(model.config, name, value)
            model.save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
        return str(made[key])

    return save


@pytest.fixture
def refused():
    """Loads what must be refused; gives message and hint."""

    def call(folder, labels=None, **settings):
        with pytest.raises(ModelError) as error:
            load_model(ModelConfig(name=str(folder), **settings), labels=labels)
        assert error.value.hint
        return error.value.message, error.value.hint

    return call


def rewritten(folder, target, change):
    """A copy of a saved model whose config.json and tensors `change` has changed."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


# which head a checkpoint has


@pytest.mark.parametrize(
    ("kind", "head"),
    [(kind, head) for kind in DECODERS for head in ("causal-lm", "classification")]
    + [(kind, head) for kind in ENCODERS for head in ("masked-lm", "classification")],
)
def test_a_checkpoint_is_loaded_with_its_own_head(saved, kind, head):
    folder = saved(kind, head)
    loaded = load_model(folder, labels=2)
    assert loaded.head == head == head_of(folder) == head_of(ModelConfig(name=folder))
    assert type(loaded.model) is type(CLASSES[head].from_pretrained(folder))
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    kept = CLASSES[head].from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in loaded.model.state_dict().items())


@pytest.mark.parametrize("kind", DECODERS + ENCODERS)
def test_a_bare_encoder_is_given_a_classification_head(saved, kind):
    assert head_of(saved(kind)) == ("classification" if kind in ENCODERS else "causal-lm")


@pytest.mark.parametrize(
    ("content", "head"),
    [
        ({}, "causal-lm"),
        ({"model_type": "bert"}, "causal-lm"),  # nothing says what it is
        ({"model_type": "bert", "architectures": ["BertForPreTraining"]}, "classification"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "causal-lm"),
        ({"model_type": "bert", "architectures": ["BertModel"], "is_decoder": True}, "causal-lm"),
        ({"model_type": "bart", "architectures": ["BartModel"], "is_encoder_decoder": True}, "causal-lm"),
        ({"model_type": "unheard-of", "architectures": ["UnheardOfModel"]}, "causal-lm"),
        ({"model_type": "unheard-of", "architectures": ["UnheardOfForMaskedLM"]}, "masked-lm"),
    ],
)
def test_the_head_follows_from_the_configuration(content, head):
    assert default_head(content) == head


def test_what_is_asked_for_comes_first_and_needs_no_folder(saved):
    assert head_of(ModelConfig(name="nowhere", head="masked-lm")) == "masked-lm"
    loaded = load_model(ModelConfig(name=saved("bert", "masked-lm"), head="classification"), labels=2)
    assert loaded.head == "classification"
    assert isinstance(loaded.model, transformers.BertForSequenceClassification)


def test_only_the_configuration_is_read_for_the_head(saved, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]}')
    assert head_of(str(tmp_path)) == "masked-lm"
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(ModelError, match="cannot load the model"):
        head_of(str(tmp_path))


# new heads


def new_parameters(kind, head):
    """What a checkpoint with a head, or a bare one, does not bring of a classification head: names."""
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} if head else set()
    return {
        "bert": {"classifier.weight", "classifier.bias"} | pooler,
        "roberta": {f"classifier.{part}.{end}" for part in ("dense", "out_proj") for end in ("weight", "bias")},
        "distilbert": {f"{part}.{end}" for part in ("pre_classifier", "classifier") for end in ("weight", "bias")},
    }.get(kind, {"score.weight"})


@pytest.mark.parametrize("kind", DECODERS + ENCODERS)
@pytest.mark.parametrize("bare", [True, False])
def test_a_new_head_starts_from_its_seed_and_the_body_is_kept(saved, kind, bare):
    head = None if bare else "masked-lm" if kind in ENCODERS else "causal-lm"
    folder, new = saved(kind, head), new_parameters(kind, head)
    loaded = load_model(ModelConfig(name=folder, head="classification", head_seed=3), labels=5)
    own = dict(loaded.model.named_parameters())
    assert new <= set(own)
    for name in new:
        start = Gaussian().whole(Key(3, 0), f"head/{name}", tuple(own[name].shape)) * 0.02
        assert torch.equal(own[name], torch.zeros_like(start) if name.endswith("bias") else start)
    kept = transformers.AutoModel.from_pretrained(folder).state_dict()
    prefix = f"{loaded.model.base_model_prefix}."
    body = {name.removeprefix(prefix): p for name, p in own.items() if name.startswith(prefix) and name not in new}
    assert body
    assert all(torch.equal(tensor, kept[name]) for name, tensor in body.items())
    with torch.no_grad():
        assert loaded.model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 5)


def test_a_new_head_is_the_same_bits_whatever_the_global_generators_hold(saved):
    config = ModelConfig(name=saved("roberta", "masked-lm"), head="classification")
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(load_model(config, labels=3).model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = load_model(config.model_copy(update={"head_seed": 1}), labels=3).model.state_dict()
    same = {name for name in other if torch.equal(other[name], states[0][name])}
    assert set(other) - same == {"classifier.dense.weight", "classifier.out_proj.weight"}


@pytest.mark.parametrize(("kind", "head"), [("bert", None), ("llama", "causal-lm"), ("bert", "masked-lm")])
def test_the_global_generators_are_left_alone(saved, kind, head):
    before = torch.get_rng_state(), random.getstate()
    load_model(ModelConfig(name=saved(kind, head)), labels=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_a_new_head_takes_the_spread_of_its_architecture(saved):
    wide = load_model(ModelConfig(name=saved("bert", None, initializer_range=0.5)), labels=40).model
    assert 0.4 < wide.classifier.weight.std() < 0.6
    opt = load_model(ModelConfig(name=saved("opt", None, init_std=0.3), head="classification"), labels=40).model
    assert 0.25 < opt.score.weight.std() < 0.35


def test_norms_of_a_new_head_start_from_one(saved):
    config = transformers.ModernBertConfig(
        vocab_size=90, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    with torch.random.fork_rng():
        model = transformers.ModernBertForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    names = [name for name, _ in model.named_parameters() if not name.startswith("model.")]
    complete_head(model, names, "classification", "tiny", 0)
    assert torch.equal(model.head.norm.weight, torch.ones(16))
    assert 0.01 < model.head.dense.weight.std() < 0.03
    assert torch.equal(model.model.embeddings.norm.weight, torch.full((16,), 7.0))


def test_a_new_head_in_half_precision_is_the_rounded_one(saved):
    config = ModelConfig(name=saved("bert"))
    exact = load_model(config, labels=2).model.classifier.weight
    half = load_model(config.model_copy(update={"dtype": "bfloat16"}), labels=2).model.classifier.weight
    assert torch.equal(half, exact.bfloat16())


# labels


def test_labels_are_those_of_the_task_or_of_the_checkpoint(saved, refused):
    folder = saved("bert", "classification")
    assert load_model(folder).model.config.num_labels == 2
    assert load_model(folder, labels=2).model.classifier.out_features == 2
    message, hint = refused(folder, labels=3)
    assert message == f"the classification head of {folder!r} has 2 labels, but the task has 3"
    assert "2 labels" in hint
    bare = saved("bert")
    message, hint = refused(bare)
    assert message == f"{bare!r} brings no classification head, so the number of labels must be known"
    assert "labels=2" in hint


def test_a_checkpoint_of_more_labels(saved, tmp_path, tokenizer, refused):
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    config.num_labels = 4
    with torch.random.fork_rng():
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).model.config.num_labels == 4
    assert "has 4 labels, but the task has 2" in refused(tmp_path, labels=2)[0]


def test_names_of_labels_without_a_head_do_not_count(saved):
    """A configuration may name labels although its checkpoint has a language model's head."""
    folder = saved("bert", "masked-lm", id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    loaded = load_model(ModelConfig(name=folder, head="classification"), labels=5)
    assert loaded.model.config.num_labels == loaded.model.classifier.out_features == 5


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_logits_do_not_depend_on_the_checkpoints_problem(saved, problem):
    folder = saved("bert", "classification", problem_type=problem)
    loaded = load_model(folder)
    plain = load_model(saved("bert", "classification"))
    ids = torch.tensor([[5, 6, 7]])
    assert loaded.model.config.problem_type == "single_label_classification"
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, plain.model(input_ids=ids).logits)


# padding


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_head_of_a_causal_model_sees_the_last_token(saved, kind, side):
    """Also where the checkpoint names no padding token, and the tokenizer's is another than the model's."""
    folder = saved(kind, "causal-lm", pad_token_id=None)
    loaded = load_model(ModelConfig(name=folder, head="classification", dtype="float32"), labels=3)
    pad = loaded.tokenizer.pad_token_id
    with torch.no_grad():
        loaded.model.score.weight.mul_(50)
    rows = [[9, 20, 31, 42, 53], [64, 75], [86, 97, 108]]
    ids = torch.full((3, 8), pad)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(len(row)) if side == "right" else slice(8 - len(row), None)
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=-1) - 1).clamp(min=0)}
    with torch.no_grad():
        together = loaded.model(**inputs).logits
        alone = torch.cat([loaded.model(input_ids=torch.tensor([row])).logits for row in rows])
        other = loaded.model(input_ids=torch.tensor([[9, 20, 31, 42, 54]])).logits
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (other - alone[:1]).abs().max() > 1e-3  # the last token counts


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_padding_token_of_an_encoder_stays(saved, kind):
    """RoBERTa counts its positions from it."""
    loaded = load_model(saved(kind, "classification", pad_token_id=1))
    assert loaded.tokenizer.pad_token_id == 0
    assert loaded.model.config.pad_token_id == 1


def test_a_tokenizer_without_padding_takes_another_token_or_is_refused(saved, tmp_path, refused):
    build_model("llama", 300).save_pretrained(tmp_path)
    core = build_tokenizer().backend_tokenizer
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>").save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).tokenizer.pad_token == "</s>"
    transformers.PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(tmp_path)
    message, hint = refused(tmp_path)
    assert "has no token to pad with" in message
    assert "pad_token" in hint


def build(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.config.use_cache = False
    return model


SMALL = {"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BART = {"vocab_size": 90, "d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}
EXPERTS = {"intermediate_size": 24, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
FIT = {
    "mixtral": transformers.MixtralConfig(**SMALL, **EXPERTS),
    "bloom": transformers.BloomConfig(vocab_size=90, hidden_size=16, n_layer=2, n_head=2),
    "gpt_neox": transformers.GPTNeoXConfig(**SMALL, intermediate_size=24),
    "mamba": transformers.MambaConfig(vocab_size=90, hidden_size=16, num_hidden_layers=2, state_size=4),
    "bert": transformers.BertConfig(**SMALL, intermediate_size=24, is_decoder=True),
}
UNFIT = {
    "bart": transformers.BartConfig(**BART),
    "pegasus": transformers.PegasusConfig(**BART),
    "roformer": transformers.RoFormerConfig(**SMALL, intermediate_size=24, is_decoder=True),
    "rwkv": transformers.RwkvConfig(vocab_size=90, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*DECODERS, "gemma2", "gemma3", "phi", *FIT])
def test_models_that_score_padded_rows_alike_pass(kind, dtype):
    model = build(FIT[kind]) if kind in FIT else build_model(kind, 90)
    check_fit_for_scoring(model.to(dtype), 0, kind)


@pytest.mark.parametrize(("vocabulary", "pad"), [(2, 0), (3, 2), (20, 7), (50000, 25000)])
def test_any_vocabulary_will_do(vocabulary, pad):
    check_fit_for_scoring(build_model("gpt2", vocabulary), pad, "gpt2")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_whose_scores_change_with_padding_is_refused(kind):
    model = build(UNFIT[kind])
    for dtype in (torch.float32, torch.bfloat16)[: 1 if kind == "roformer" else 2]:  # whose change is small
        with pytest.raises(ModelError) as error:
            check_fit_for_scoring(model.to(dtype), 0, kind)
        name = type(model).__name__
        assert error.value.message == f"{kind!r} is a {name}, whose scores change when a row is padded on the left"
        assert "positions" in error.value.hint


def test_a_model_that_is_refused_is_refused_when_it_is_loaded(tmp_path, tokenizer, refused):
    build(transformers.BartConfig(**BART | {"vocab_size": len(tokenizer)})).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert refused(tmp_path)[0].endswith("a BartForCausalLM, whose scores change when a row is padded on the left")


def test_a_forward_that_fails_or_overflows():
    class Broken(transformers.LlamaForCausalLM):
        def forward(self, input_ids, attention_mask=None):
            raise RuntimeError("no such kernel\nmore")

    model = build_model("llama", 90)
    model.lm_head.weight.data.fill_(torch.inf)
    check_fit_for_scoring(model, 0, "infinite")  # a loss that is not finite has an error of its own
    with torch.random.fork_rng():
        broken = Broken(model.config)
    with pytest.raises(ModelError) as error:
        check_fit_for_scoring(broken, 0, "x")
    assert error.value.message == "'x' is a Broken, which cannot score a padded row: no such kernel"


# models that cannot do what is asked


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("head", [None, "masked-lm", "causal-lm", "classification"])
def test_an_encoder_is_no_causal_language_model(saved, refused, kind, head):
    message, hint = refused(saved(kind, head), head="causal-lm")
    assert "whose tokens see those after them" in message
    assert hint == "set model.head=masked-lm or model.head=classification"


def test_an_encoder_that_decodes_is_one(saved, refused):
    loaded = load_model(saved("bert", "causal-lm", is_decoder=True))
    assert (loaded.head, type(loaded.model)) == ("causal-lm", transformers.BertLMHeadModel)
    assert not is_encoder(loaded.model.config.to_dict())


def test_a_model_that_looks_ahead_is_found_without_its_configuration():
    model = build_model("bert", 90)
    with pytest.raises(ModelError) as error:
        check_fit_for_scoring(model, 0, "tiny")
    assert error.value.message.startswith("'tiny' is a BertLMHeadModel, whose tokens see those after them")
    assert "model.head=masked-lm" in error.value.hint


def test_an_architecture_without_the_head_is_refused(saved, refused):
    message, hint = refused(saved("llama", "causal-lm"), head="masked-lm")
    assert message.endswith("is a llama model, which has no masked-lm head")
    assert hint == "set model.head=causal-lm or model.head=classification"
    assert "which has no causal-lm head" in refused(saved("distilbert", "masked-lm"), head="causal-lm")[0]


def test_a_language_model_without_its_head_is_refused(saved, refused):
    folder = saved("qwen2")
    message, hint = refused(folder)
    assert message == f"{folder!r} brings no causal-lm head: its checkpoint lacks 'lm_head.weight'"
    assert "model.head=classification" in hint
    assert refused(saved("qwen2", "classification"), head="causal-lm")[0].endswith("lacks 'lm_head.weight'")
    assert "brings no masked-lm head" in refused(saved("bert"), head="masked-lm")[0]
    assert load_model(saved("llama")).head == "causal-lm"  # its head is tied to the embeddings


@pytest.mark.parametrize("head", ["causal-lm", "classification"])
def test_a_checkpoint_without_a_part_of_the_body_is_refused(saved, refused, tmp_path, head):
    def change(config, tensors):
        for name in [name for name in tensors if "layers.1.mlp" in name]:
            del tensors[name]

    folder = rewritten(Path(saved("llama", head)), tmp_path / "cut", change)
    message, _ = refused(folder, labels=2)
    assert message.endswith("lacks 3 of the model's tensors, such as 'model.layers.1.mlp.down_proj.weight'")


# the rest of the configuration


def test_the_device_and_the_number_type(saved, refused):
    folder = saved("bert", "classification")
    loaded = load_model(ModelConfig(name=folder, device="cpu", dtype="float16"))
    assert loaded.device == torch.device("cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float16}
    message, hint = refused(folder, device="nothing")
    assert message.startswith("cannot put the model on 'nothing': ")
    assert hint == "set model.device=cpu"


def test_a_revision_is_the_one_that_is_loaded(saved, tmp_path, monkeypatch):
    """Two revisions with different heads in the Hub's cache, without a Hub."""
    commits = {"main": ("a" * 40, saved("bert", "masked-lm")), "other": ("b" * 40, saved("bert", "classification"))}
    base = tmp_path / "models--some--model"
    for name, (commit, source) in commits.items():
        (base / "refs").mkdir(parents=True, exist_ok=True)
        (base / "refs" / name).write_text(commit)
        (base / "snapshots" / commit).mkdir(parents=True)
        for path in Path(source).iterdir():
            (base / "snapshots" / commit / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert head_of("some/model") == load_model("some/model").head == "masked-lm"
    config = ModelConfig(name="some/model", revision="other")
    assert head_of(config) == load_model(config).head == "classification"
    with pytest.raises(ModelError, match="cannot load the model 'some/model'"):
        load_model(config.model_copy(update={"revision": "third"}))


def test_settings_of_the_head_are_checked():
    from zofo.config import parse_model

    with pytest.raises(ConfigError, match="head: Input should be 'causal-lm', 'masked-lm' or 'classification'"):
        parse_model(ModelConfig, {"head": "regression"})
    with pytest.raises(ConfigError, match="head_seed"):
        parse_model(ModelConfig, {"head_seed": -1})


# what a checkpoint holds beside the model


def copy_of(folder, target):
    return rewritten(Path(folder), target, lambda config, tensors: None)


@pytest.fixture
def adapter_folder(saved, tmp_path):
    """A LoRA adapter of a tiny model, as peft saves it, with the model's tokenizer."""
    base = saved("llama", "causal-lm")
    shape = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    with quiet_peft(), torch.random.fork_rng():
        peft.get_peft_model(CLASSES["causal-lm"].from_pretrained(base), shape).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_folder_is_no_model(saved, refused, adapter_folder):
    message, hint = refused(adapter_folder)
    base = saved("llama", "causal-lm")
    assert message == f"{str(adapter_folder)!r} is no model but a LORA adapter of {base!r}"
    assert "merge_and_unload" in hint
    with pytest.raises(ModelError, match="is no model but a LORA adapter"):
        head_of(str(adapter_folder))


def test_an_adapter_beside_a_model_is_never_attached(saved, refused, adapter_folder, tmp_path):
    """Which transformers would do without a word, in all that loads a model."""
    both = copy_of(saved("llama", "causal-lm"), tmp_path / "both")
    for path in adapter_folder.iterdir():
        (both / path.name).write_bytes(path.read_bytes())
    message, hint = refused(both)
    assert "holds a LORA adapter of" in message
    assert "the model alone may be meant, or the model with its adapter" in message
    assert "move adapter_config.json out of it" in hint
    (both / "adapter_config.json").unlink()
    plain, loaded = (load_model(str(folder)).model.state_dict() for folder in (saved("llama", "causal-lm"), both))
    assert plain.keys() == loaded.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("with_model", [False, True])
def test_an_adapter_in_the_cache_of_the_hub_is_no_model(
    saved, refused, adapter_folder, tmp_path, monkeypatch, with_model
):
    snapshot = tmp_path / "models--some--adapter" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    for folder in [adapter_folder, *([Path(saved("llama", "causal-lm"))] if with_model else [])]:
        for path in folder.iterdir():
            (snapshot / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refused("some/adapter")[0]
    assert ("beside the model" if with_model else "is no model but a LORA adapter") in message


def test_every_command_that_loads_a_model_refuses_an_adapter(run_zofo, adapter_folder, data_dir, tmp_path):
    for command in (["eval"], ["train", f"output_dir={tmp_path / 'run'}"], ["preview"]):
        code, _, err = run_zofo(*command, f"model={adapter_folder}", f"task.data={data_dir}")
        assert code == 2, err
        assert "is no model but a LORA adapter" in err, command


def other_layers(count):
    def change(config, tensors):
        config["num_hidden_layers"] = count

    return change


def other_type(kind, made):
    def change(config, tensors):
        config |= {"model_type": kind, "architectures": [made]}

    return change


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        ("llama", other_layers(1), "holds 9 tensors that the model has no place for, such as 'model.layers.1."),
        ("llama", other_layers(3), "lacks 9 of the model's tensors, such as 'model.layers.2."),
        ("bert", other_layers(1), "holds 16 tensors that the model has no place for, such as 'bert.encoder.layer.1."),
        (
            "qwen3",
            other_type("llama", "LlamaForCausalLM"),
            "has no place for, such as 'model.layers.0.self_attn.k_norm",
        ),
        (
            "qwen2",
            other_type("llama", "LlamaForCausalLM"),
            "has no place for, such as 'model.layers.0.self_attn.k_proj",
        ),
        ("llama", other_type("qwen2", "Qwen2ForCausalLM"), "lacks 6 of the model's tensors"),
        (
            "llama",
            lambda config, tensors: config.update(intermediate_size=20),
            "'model.layers.0.mlp.down_proj.weight' as 16 x 24, but its config.json means 16 x 20",
        ),
        (
            "llama",
            lambda config, tensors: config.update(vocab_size=200),
            "'model.embed_tokens.weight' as 390 x 16, but its config.json means 200 x 16",
        ),
    ],
)
def test_weights_of_another_model_than_the_configuration_are_refused(saved, refused, tmp_path, kind, change, text):
    folder = rewritten(Path(saved(kind, "masked-lm" if kind == "bert" else "causal-lm")), tmp_path / "mixed", change)
    message, hint = refused(folder)
    assert text in message
    assert "another model" in hint


def test_a_part_that_the_architecture_leaves_out_is_not_missed(saved, tmp_path):
    """The vision tower of a multimodal checkpoint, another head, or a mask that older versions saved."""

    def change(config, tensors):
        tensors["vision_tower.layers.0.mlp.weight"] = torch.ones(2, 2)
        tensors["score.weight"] = torch.ones(2, 16)
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
        tensors["transformer.h.1.attn.masked_bias"] = torch.ones(())

    assert load_model(str(rewritten(Path(saved("gpt2", "causal-lm")), tmp_path / "more", change))).head == "causal-lm"


def test_two_sets_of_weights_are_refused(saved, refused, tmp_path):
    folder = copy_of(saved("llama", "causal-lm"), tmp_path / "both")
    (folder / "model.safetensors.index.json").write_text("{}")
    message, hint = refused(folder)
    assert "holds two sets of weights: model.safetensors, and the files that model.safetensors.index.json" in message
    assert "remove the one that is not meant" in hint


def test_a_shard_that_is_not_there_is_named(saved, refused, tmp_path):
    model = CLASSES["causal-lm"].from_pretrained(saved("llama", "causal-lm"))
    model.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    build_tokenizer().save_pretrained(tmp_path / "shards")
    gone = sorted((tmp_path / "shards").glob("model-*.safetensors"))[1]
    gone.unlink()
    assert gone.name in refused(tmp_path / "shards")[0]


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_settings_of_generation_that_cannot_be_read_are_refused(saved, refused, tmp_path, text):
    """transformers would leave them out, and with them the tokens that end a text."""
    folder = copy_of(saved("llama", "causal-lm"), tmp_path / "broken")
    (folder / "generation_config.json").write_text(text)
    message, hint = refused(folder)
    assert "generation_config.json" in message
    assert "end a generated text" in hint


# tokenizers


SPLITTING = {  # keeps two line breaks together before a word
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\n+| ?\w+|."}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


@pytest.mark.parametrize(
    "name", ["GPT2Tokenizer", "GPT2TokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast", None]
)
def test_the_tokens_are_those_of_tokenizer_json_whatever_class_is_named(tmp_path, name):
    build_tokenizer().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"] = SPLITTING
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("tokenizer_class", None)
    config |= {"tokenizer_class": name} if name else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    build_model("llama", 390).save_pretrained(tmp_path)
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(ModelConfig(name=str(tmp_path)))
    for text in ("first\n\nsecond", "it's 12345", "  a b\r\n c"):
        assert loaded(text)["input_ids"] == own.encode(text).ids
    assert (loaded.pad_token, loaded.eos_token) == ("<pad>", "</s>")
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "tokenizer.json").read_text(encoding="utf-8"))
    assert again["pre_tokenizer"] == content["pre_tokenizer"]


def test_a_padding_token_that_the_model_does_not_have_gives_way_to_one_that_it_has(tmp_path):
    own = build_tokenizer()
    size = len(own)
    own.add_special_tokens({"pad_token": "[PAD]"})
    build_model("llama", size).save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    assert own.pad_token_id == size
    assert load_model(str(tmp_path)).tokenizer.pad_token == "</s>"
    assert load_tokenizer(ModelConfig(name=str(tmp_path))).pad_token == "</s>"


def test_notes_are_quiet_in_a_program_that_has_taken_the_handler_of_transformers_away(capfd):
    """Of a logger without any handler, Python prints warnings by itself."""
    log = transformers.utils.logging
    logger, before = log.get_logger(), log.get_logger().propagate
    log.disable_default_handler()
    try:
        logger.propagate = False
        with quiet_transformers():
            log.get_logger("transformers.somewhere").warning("a note")
        assert logger.handlers == []
        assert logger.propagate is False
    finally:
        log.enable_default_handler()
        logger.propagate = before
    assert capfd.readouterr().err == ""


def test_a_checkpoint_in_half_precision_that_is_loaded_as_float32_is_said(tmp_path, tokenizer, monkeypatch):
    build_model("llama", len(tokenizer)).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    as_it_is = load_model(ModelConfig(name=str(tmp_path), dtype="bfloat16"))
    wider = load_model(str(tmp_path))
    assert wider.checkpoint_dtype == as_it_is.checkpoint_dtype == "bfloat16"
    assert progress._upcast_note(wider) == []  # less than a GiB
    monkeypatch.setattr(progress, "_WORTH_SAYING", 1)
    (note,) = progress._upcast_note(wider)
    assert note.startswith("weights of bfloat16 are loaded as float32, which takes 0.0 GiB more: model.dtype=bfloat16")
    assert progress._upcast_note(as_it_is) == []


def test_auto_is_the_number_type_of_the_checkpoint(model_folder, tokenizer, tmp_path):
    folder = tmp_path / "half"
    build_model("llama", len(tokenizer)).bfloat16().save_pretrained(folder)
    config = parse_model(RunConfig, {"model": {"name": str(folder), "dtype": "auto"}})
    assert config.model.dtype == "bfloat16"
    assert config.method == parse_model(RunConfig, {"model": {"name": str(folder), "dtype": "bfloat16"}}).method
    assert "dtype: bfloat16" in config.to_yaml()
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for named, said in (({}, "names no dtype"), ({"dtype": "float64"}, "names float64, which is not trained")):
        other = {**{key: value for key, value in content.items() if "dtype" not in key}, **named}
        (folder / "config.json").write_text(json.dumps(other), encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            ModelConfig(name=str(folder), dtype="auto")
