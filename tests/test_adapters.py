"""Every adapter against peft's own forward, under padding, packing and generation, and trained by every method."""

from __future__ import annotations

import copy
import itertools
import json

import peft
import pytest
import torch
import transformers

from conftest import build_model, build_tokenizer
from covering import grid
from zofo import (
    Bilevel,
    BilevelConfig,
    FirstOrder,
    FirstOrderConfig,
    MeZO,
    MeZOConfig,
    RunFolder,
    TrainingContext,
    evaluate_run,
    read_config,
    train,
)
from zofo.adapters import ADAPTERS, AdapterConfig, carries_adapters, load_adapter
from zofo.adapters.base import quiet_peft
from zofo.errors import ConfigError, RunError
from zofo.methods import MethodConfig
from zofo.objectives import candidate_scores, classification_loss, scores
from zofo.objectives.generation import Generation, generate
from zofo.tasks import Example, collate, collate_texts, encode
from zofo.tasks.tokenization_encoder import TokenizedText
from zofo.trajectory.format import Trajectory

CPU = torch.device("cpu")
VIRTUAL = ("prefix", "prompt")
EVERY = [(name, kind) for name in ADAPTERS for kind in ("llama", "gpt2")]
EVERY += [(name, kind) for name in VIRTUAL for kind in ("opt", "qwen2")]
ROW = [5, 9, 77, 120, 33, 8, 64]


@pytest.fixture(scope="module")
def words():
    return build_tokenizer()


@pytest.fixture(scope="module")
def bases(words):
    """Models by architecture, never changed: take a copy."""
    made = {}

    def base(kind, head=transformers.AutoModelForCausalLM, attention=None):
        key = kind, head, attention
        if key not in made:
            made[key] = build_model(kind, len(words), head=head, attention=attention)
        return made[key]

    return base


@pytest.fixture
def attached(bases):
    def attach(name, kind="llama", names=("adapter", "lower_adapter"), seed=0, attention=None, **options):
        model = copy.deepcopy(bases(kind, attention=attention))
        return model, ADAPTERS[name](model, names, seed, **options)

    return attach


@torch.no_grad()
def shift(adapters, adapter="adapter", size=0.1):
    """Move an adapter away from its start."""
    for number, parameter in enumerate(adapters.parameters(adapter)):
        draw = torch.Generator().manual_seed(number)
        parameter.add_(torch.randn(parameter.shape, generator=draw) * size)


def loaded_by_peft(model, folder):
    with quiet_peft():
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder))


def examples_of(tokenizer, candidates=(" terrible", " great"), count=12):
    texts = ("a joy", "warm and funny , not to be missed", "it drags on and on , and nobody laughed at all")
    return encode(
        tokenizer,
        [Example(f"{texts[i % 3]} film number {i} . It was", candidates, (i % len(candidates),)) for i in range(count)],
    )


LONG = (" great and good", " terrible and bad , a dull film", " maybe a joy")


def training_context(model, tokenizer, seed=3):
    def make(chosen):
        return collate(chosen, 0, CPU, pack_limit=64)

    return TrainingContext(model, classification_loss, examples_of(tokenizer), make, seed)


# what the model computes


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_saved_adapter_is_what_peft_loads(bases, attached, tmp_path, name, kind):
    model, adapters = attached(name, kind)
    shift(adapters, "lower_adapter")
    adapters.use("lower_adapter")
    adapters.save("lower_adapter", tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    if isinstance(written.get("target_modules"), list):  # a set, whose order is another in every process
        assert written["target_modules"] == sorted(written["target_modules"])
    ids = torch.tensor([ROW])
    ours = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -len(ROW) :]
    theirs = loaded_by_peft(bases(kind), tmp_path)(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs[:, -len(ROW) :], rtol=1e-5, atol=1e-5)
    loaded = copy.deepcopy(bases(kind))
    load_adapter(loaded, tmp_path)
    assert torch.equal(loaded(ids).logits[:, -len(ROW) :], ours)
    assert (bases(kind)(ids).logits - ours).abs().max() > 1e-3
    with adapters.using("adapter"):
        assert (model(ids).logits[:, -len(ROW) :] - ours).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen2", "gemma3", "phi"])
@pytest.mark.parametrize("name", VIRTUAL)
def test_scores_do_not_depend_on_padding_or_packing(attached, words, name, kind, attention):
    model, adapters = attached(name, kind, attention=attention)
    shift(adapters, size=0.3)
    encoded = examples_of(words, LONG, 3)
    alone = []
    for example in encoded:
        for row, scored in zip(example.rows, example.scored, strict=True):
            logits = model(input_ids=torch.tensor([row])).logits[0, -len(row) :].log_softmax(-1)
            tokens = [logits[i - 1, row[i]] for i in range(len(row) - scored, len(row))]
            alone.append(torch.stack(tokens).mean())
    expected = torch.stack(alone).view(3, -1)
    for limit, branched in ((64, True), (0, False)):
        batch = collate(encoded, 0, CPU, pack_limit=limit)
        assert batch.packed == branched
        torch.testing.assert_close(candidate_scores(model, batch), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen2", "mistral", "gemma3"])
def test_a_prefix_from_activations_is_the_words_that_they_are_of(bases, attached, kind):
    from zofo.adapters.prompt_learning import _random_words

    model, _ = attached("prefix", kind, num_virtual_tokens=4)
    before = _random_words(bases(kind), 4, 0)
    assert not {0, 1, 2} & set(before.flatten().tolist())  # pad, bos and eos
    expected = bases(kind)(torch.cat([before, torch.tensor([ROW])], dim=1)).logits[:, 4:]
    torch.testing.assert_close(model(torch.tensor([ROW])).logits, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma3"])
def test_a_prompt_starts_as_words_of_the_vocabulary(bases, attached, kind):
    from zofo.adapters.prompt_learning import _random_words

    model, _ = attached("prompt", kind, num_virtual_tokens=4)
    ids = torch.cat([_random_words(bases(kind), 4, 0), torch.tensor([ROW])], dim=1)
    torch.testing.assert_close(model(torch.tensor([ROW])).logits, bases(kind)(ids).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen2", "mistral"])
@pytest.mark.parametrize("name", VIRTUAL)
def test_generation_is_greedy_and_does_not_depend_on_what_shares_the_batch(attached, words, name, kind):
    model, adapters = attached(name, kind)
    shift(adapters, size=0.3)
    encoded = examples_of(words, count=3)
    assert len({len(example.prompt) for example in encoded}) > 1
    found = generate(model, encoded, Generation(words, max_new_tokens=6))
    for example, text in zip(encoded, found, strict=True):
        ids = list(example.prompt)
        for _ in range(6):
            best = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if best in (1, 2):
                break
            ids.append(best)
        assert text == words.decode(ids[len(example.prompt) :], skip_special_tokens=True).strip()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_classification_heads_are_trained_and_saved_too(bases, tmp_path, name, kind):
    base = bases(kind, transformers.AutoModelForSequenceClassification)
    base.config.pad_token_id = 0
    model = copy.deepcopy(base)
    adapters = ADAPTERS[name](model, ("adapter", "lower_adapter"), 0)
    assert any(parameter.shape == (2, 16) for parameter in adapters.parameters("adapter"))
    shift(adapters)
    texts = [TokenizedText(tuple(ROW[:length]), (), 0, Example("", ("a", "b"), (0,))) for length in (7, 3, 5)]
    found = scores(model, collate_texts(texts, 0, CPU))
    adapters.save("adapter", tmp_path)
    theirs = loaded_by_peft(base, tmp_path)
    for text, row in zip(texts, found, strict=True):
        ids = torch.tensor([text.tokens])
        expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    loaded = copy.deepcopy(base)
    load_adapter(loaded, tmp_path)
    assert torch.equal(scores(loaded, collate_texts(texts, 0, CPU)), found)


# how they start


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_all_adapters_of_a_model_start_equal_and_by_the_seed(bases, attached, name, kind):
    model, adapters = attached(name, kind)
    torch.manual_seed(99)
    _, again = attached(name, kind, names=("another",))
    _, other = attached(name, kind, seed=1)
    first = adapters.parameters("adapter")
    assert len(first) == len(adapters.parameters("lower_adapter")) > 0
    for a, b, c in zip(first, adapters.parameters("lower_adapter"), again.parameters("another"), strict=True):
        assert a is not b
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    pairs = zip(adapters.tensors("adapter").values(), other.tensors("adapter").values(), strict=True)
    differ = [not torch.equal(a, b) for a, b in pairs]
    assert any(differ) == (name != "ia3")  # which draws nothing
    if name not in VIRTUAL:  # the model's function is as it was
        ids = torch.tensor([ROW])
        torch.testing.assert_close(model(ids).logits, bases(kind)(ids).logits, rtol=1e-5, atol=1e-5)
    own = {id(parameter) for parameter in first}
    assert {id(p) for p in model.parameters() if p.requires_grad} == own


def test_a_random_prefix_is_small_and_seeded(attached):
    (_, one), (_, two), (_, other) = (
        attached("prefix", init="random", num_virtual_tokens=64, seed=seed) for seed in (0, 0, 1)
    )
    (prefix,), (same,), (another,) = (a.parameters("adapter") for a in (one, two, other))
    assert torch.equal(prefix, same)
    assert not torch.equal(prefix, another)
    assert prefix.std().item() == pytest.approx(0.02, rel=0.1)


def test_adapters_keep_the_parameters_of_the_model(bases, attached):
    for name in ADAPTERS:
        model = copy.deepcopy(bases("llama"))
        before = {id(p): p.clone() for p in model.parameters()}
        shift(ADAPTERS[name](model, ("adapter",), 0))
        after = {id(p): p for p in model.parameters()}
        assert all(torch.equal(after[i], old) for i, old in before.items())
        assert carries_adapters(model)


# gradients


def test_the_gradient_of_a_prefix_is_that_of_finite_differences(attached, words):
    model, adapters = attached("prefix", names=("adapter",))
    model.double()  # which the adapter is moved by too
    (prefix,) = adapters.parameters("adapter")
    assert prefix.dtype == torch.float64
    batch = collate(examples_of(words, LONG, 3), 0, CPU, pack_limit=64)
    (gradient,) = torch.autograd.grad(candidate_scores(model, batch).double().sum(), prefix)
    with torch.no_grad():
        for seed in range(3):
            z = torch.randn(prefix.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            values = []
            for sign in (1, -1):
                prefix.add_(z, alpha=sign * 1e-2)
                values.append(candidate_scores(model, batch).double().sum())
                prefix.sub_(z, alpha=sign * 1e-2)
            assert ((values[0] - values[1]) / 2e-2).item() == pytest.approx(
                (gradient * z).sum().item(), rel=5e-3, abs=5e-4
            )


# trained by every method

CONFIGS = {
    "first-order": lambda adapter: FirstOrderConfig(batch_size=4, adapter=adapter),
    "mezo": lambda adapter: MeZOConfig(batch_size=4, adapter=adapter),
    "bilevel": lambda adapter: BilevelConfig(batch_size=4, inner_steps=2, penalty=10.0, adapter=adapter),
}
METHODS_WITH = {"first-order": FirstOrder, "mezo": MeZO, "bilevel": Bilevel}


def trained(bases, words, method, name, kind, seed=3, steps=3):
    context = training_context(copy.deepcopy(bases(kind)), words, seed)
    built = METHODS_WITH[method](CONFIGS[method]({"name": name}), context)
    built.check()
    logs = [built.step(number) for number in range(steps)]
    return built, logs, context


IN_TURN = {(EVERY[i], method) for i, method in zip(range(0, len(EVERY), 2), itertools.cycle(CONFIGS), strict=False)}


@pytest.mark.parametrize(
    ("name", "kind", "method"),
    [
        pytest.param(*one, method, marks=[] if (one, method) in IN_TURN else pytest.mark.soak)
        for one in EVERY
        for method in CONFIGS
    ],
)
def test_three_steps_move_the_adapter_and_only_what_the_method_moves(bases, words, tmp_path, name, kind, method):
    model, start = bases(kind), ADAPTERS[name](copy.deepcopy(bases(kind)), ("adapter",), 3)
    built, logs, context = trained(bases, words, method, name, kind)
    with built.using("adapter"):
        moved = [
            (a - b).abs().max().item()
            for a, b in zip(built._adapters.parameters("adapter"), start.parameters("adapter"), strict=True)
        ]
        assert max(moved) > 1e-6
        theta = dict(context.model.named_parameters())
        now = {tensor.replace(".base_layer", ""): p for tensor, p in theta.items()}
        same = [torch.equal(now[tensor], p) for tensor, p in model.named_parameters()]
        assert all(same) == (method != "bilevel")
        assert all(log.loss == log.loss for log in logs)
        assert (logs[0].update is None) == (method == "first-order")
        batch = context.collate(context.examples[:4])
        with torch.no_grad():
            ours = candidate_scores(context.model, batch)
            built.save(tmp_path)
            base = copy.deepcopy(model)
            if method == "bilevel":
                for tensor, parameter in base.named_parameters():
                    parameter.copy_(now[tensor])
            load_adapter(base, tmp_path / "adapter")
            torch.testing.assert_close(candidate_scores(base, batch), ours, rtol=1e-6, atol=1e-6)
    if kind == "llama":
        again, _, _ = trained(bases, words, method, name, kind)
        with again.using("adapter"):  # with every update written
            pairs = zip(built._adapters.parameters("adapter"), again._adapters.parameters("adapter"), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["lora", "prefix", "prompt"])
def test_zeroth_order_steps_on_an_adapter_are_those_in_place(bases, words, name):
    """What the forward carries of an adapter's directions is what moving its tensors gives."""
    found = []
    for evaluator in ("in-forward", "in-place"):
        context = training_context(copy.deepcopy(bases("llama")), words)
        method = MeZO(MeZOConfig(batch_size=4, adapter=name, evaluator=evaluator), context)
        logs = [method.step(number) for number in range(2)]
        found.append([log.coefficients["projected_gradient_0"] for log in logs])
        assert set(method.trained_names) == set(method.backbone.tensors)
        assert all("lora_" in tensor or "prompt_encoder" in tensor for tensor in method.trained_names)
    assert found[0] == pytest.approx(found[1], rel=2e-3, abs=1e-5)


def test_select_chooses_among_the_tensors_of_the_adapter(bases, words):
    config = MeZOConfig(batch_size=4, adapter="lora", trainable=["*.1.*lora_B*"])
    method = MeZO(config, training_context(copy.deepcopy(bases("llama")), words))
    assert len(method.trained_names) == 2
    assert all(".1." in name and "lora_B" in name for name in method.trained_names)
    config = MeZOConfig(batch_size=4, adapter="lora", trainable=["*.down_proj.*"])
    with pytest.raises(ConfigError, match="none of the adapter's 8 tensors") as refused:
        MeZO(config, training_context(copy.deepcopy(bases("llama")), words))
    assert "lora_A" in refused.value.hint


@pytest.mark.parametrize("name", ["ia3", "dora"])
def test_an_adapter_that_points_cannot_share_is_moved_in_place_by_default_and_may_be_run_for_each(bases, words, name):
    assert MeZOConfig(adapter=name).evaluator.name == "in-place"
    steps = []
    for evaluator in ("in-place", "in-forward"):
        context = training_context(copy.deepcopy(bases("llama")), words)
        method = MeZO(MeZOConfig(batch_size=4, adapter=name, evaluator=evaluator), context)
        method.check()
        steps.append(method.step(0).coefficients["projected_gradient_0"])
    assert steps[0] == pytest.approx(steps[1], rel=2e-2, abs=1e-4)
    assert abs(steps[0]) > 1e-3


def test_defaults_follow_the_adapter():
    assert MeZOConfig().adapter is None
    assert MeZOConfig().estimator.options["epsilon"] == 1e-3
    assert MeZOConfig(adapter="lora").estimator.options["epsilon"] == 1e-2
    for name in ADAPTERS:
        of_weights = MeZOConfig().rule.options["lr"]
        lr = of_weights if ADAPTERS[name].projects_weights else ADAPTERS[name].zo_lr
        assert MeZOConfig(adapter=name).rule.options["lr"] == lr
        assert MeZOConfig(adapter=name, rule={"lr": 0.5}).rule.options["lr"] == 0.5
    for name in VIRTUAL:
        assert MeZOConfig(adapter=name).estimator.options["epsilon"] == 1e-1
        assert FirstOrderConfig(adapter=name).lr == 1e-2
        assert (BilevelConfig(adapter=name).lr_lower, BilevelConfig(adapter=name).lr_adapter) == (1e-2, 1e-2)
        assert BilevelConfig(adapter=name, lr_lower=0.5).lr_lower == 0.5
    assert BilevelConfig(adapter="dora").evaluator.name == "in-place"
    assert BilevelConfig(adapter="ia3").evaluator.name == "in-forward"
    assert FirstOrderConfig().lr == 1e-3
    assert FirstOrderConfig(parameters="all", adapter="prefix").lr == 1e-5
    assert AdapterConfig.model_validate("prefix").options == {"num_virtual_tokens": 5, "init": "activations"}


# weights by name


def first_order(bases, words, kind="llama", head=transformers.AutoModelForCausalLM, **options):
    context = training_context(copy.deepcopy(bases(kind, head)), words)
    return FirstOrder(FirstOrderConfig(batch_size=4, **options), context)


def test_partial_fine_tuning_lists_what_matched(bases, words):
    method = first_order(bases, words, parameters="all", trainable=["*.layers.1.mlp.*", "model.norm.weight"])
    assert method.trained_names == (
        *(f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        "model.norm.weight",
    )
    before = {name: p.clone() for name, p in method.model.named_parameters()}
    method.step(0)
    moved = {name for name, p in method.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(method.trained_names)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("*.layer.1.*", "*.layers.1.*"), ("model.nrom.*", "model.norm.*"), ("*.self_atn.*", "*.self_attn.*")],
)
def test_a_pattern_that_matches_nothing_is_refused_with_a_near_one(bases, words, pattern, near):
    with pytest.raises(ConfigError, match="matches none of the model's") as refused:
        first_order(bases, words, parameters="all", trainable=[pattern])
    assert f"did you mean {near!r}?" in refused.value.hint


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("llama", {"model.embed_tokens.weight"}),  # tied
        ("llama-untied", {"lm_head.weight"}),
        ("gpt2", {"transformer.wte.weight"}),
    ],
)
def test_the_head_is_the_output_embedding(bases, words, kind, names):
    method = first_order(bases, words, kind, parameters="head")
    assert set(method.trained_names) == names
    assert method.step(0).counts.backwards == 1


def test_the_head_of_a_classifier_is_what_follows_the_body(bases, words):
    for kind, names in (("llama", {"score.weight"}), ("roberta", {"dense", "out_proj"})):
        method = first_order(bases, words, kind, transformers.AutoModelForSequenceClassification, parameters="head")
        assert {name if kind == "llama" else name.split(".")[1] for name in method.trained_names} == names


# mistakes


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("head", [transformers.AutoModelForMaskedLM, transformers.AutoModelForSequenceClassification])
@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_tokens_of_an_encoder_are_refused(bases, name, head, kind):
    with pytest.raises(ConfigError, match="not a causal transformer") as refused:
        ADAPTERS[name](copy.deepcopy(bases(kind, head)), ("adapter",), 0)
    assert refused.value.hint == "choose method.adapter=lora"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("head", [transformers.AutoModelForMaskedLM, transformers.AutoModelForSequenceClassification])
def test_lora_of_an_encoder_is_what_peft_loads(bases, tmp_path, head, kind):
    model = copy.deepcopy(bases(kind, head))
    adapters = ADAPTERS["lora"](model, ("adapter",), 0)
    shift(adapters)
    adapters.save("adapter", tmp_path)
    ids = torch.tensor([ROW])
    theirs = loaded_by_peft(bases(kind, head), tmp_path)
    torch.testing.assert_close(theirs(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_model_takes_adapters_once(attached, words, tmp_path, name):
    model, adapters = attached(name)
    adapters.save("adapter", tmp_path)
    with pytest.raises(ConfigError, match="already has adapters"):
        ADAPTERS["lora"](model, ("again",), 0)
    with pytest.raises(RunError, match="already has an adapter"):
        load_adapter(model, tmp_path)
    with pytest.raises(ConfigError, match="carries adapters, so that its parameters have other names"):
        MeZO(MeZOConfig(batch_size=4), training_context(model, words))


@pytest.mark.parametrize("name", VIRTUAL)
def test_rows_that_leave_no_room_for_the_virtual_tokens_are_refused(attached, name):
    model, _ = attached(name, "gpt2", num_virtual_tokens=6)
    model(torch.full((1, 58), 7))
    with pytest.raises(ConfigError, match="64 positions, but a row with its 6 virtual tokens takes 65") as refused:
        model(torch.full((1, 59), 7))
    assert "task.max_length=58" in refused.value.hint


def test_layers_that_are_unknown_are_refused(bases):
    with pytest.raises(ConfigError, match="LoRA cannot be attached") as refused:
        ADAPTERS["lora"](copy.deepcopy(bases("phi3")), ("adapter",), 0, target_modules=["q_proj"])
    assert "method.adapter.target_modules" in refused.value.hint
    assert "qkv_proj" in refused.value.hint
    with pytest.raises(ConfigError, match="peft does not know which layers of a"):
        ADAPTERS["ia3"](copy.deepcopy(bases("phi3")), ("adapter",), 0)


@pytest.mark.parametrize("name", VIRTUAL)
def test_whatever_a_model_or_peft_raises_while_virtual_tokens_are_attached_is_one_message(name):
    config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    said = f"{name} tuning cannot be attached|keep no keys and values that a prefix could stand for"  # by the version
    with pytest.raises(ConfigError, match=said) as refused:
        ADAPTERS[name](transformers.T5EncoderModel(config).eval(), ("adapter",), 0)
    assert "\n" not in refused.value.message
    assert "method.adapter=lora" in refused.value.hint


def test_a_model_whose_keys_and_values_peft_does_not_know_is_refused():
    config = transformers.FalconConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    for start in ("activations", "random"):
        with pytest.raises(ConfigError, match="peft holds virtual tokens of FalconForCausalLM in the shape") as refused:
            ADAPTERS["prefix"](transformers.FalconForCausalLM(config).eval(), ("adapter",), 0, init=start)
        assert "method.adapter=prompt" in refused.value.hint


# whole runs


OTHERS = [name for name in ADAPTERS if name not in ("lora", "prefix")]  # which test_conformance.py has in each method


@pytest.mark.parametrize(
    ("name", "adapter"), [*grid(("first-order", "mezo", "bilevel"), OTHERS, strength=1), ("first-order", None)]
)
def test_a_run_restores_what_it_trained(model_folder, data_dir, tmp_path, name, adapter):
    method = {"name": name, **({"adapter": adapter} if adapter else {"parameters": "head"})}
    method |= {"inner_steps": 1} if name == "bilevel" else {}
    config = read_config(
        model=str(model_folder),
        task={"data_dir": str(data_dir)},
        method={"batch_size": 4, **method},
        training={"steps": 2, "eval_steps": 1, "eval_batch_size": 8},
        output_dir=str(tmp_path / "run"),
    )
    run = train(config)
    assert RunFolder.open(run.path).config == config
    for variant, expected in run.summary["variants"].items():
        assert evaluate_run(run.path, variant=variant).loss == pytest.approx(expected["loss"], abs=1e-5)
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    seen = [line for line in lines if line["event"] == "evaluation"]
    best = next(line for line in seen if line["steps"] == run.summary["best"]["step"])
    assert evaluate_run(run.path, best=True).loss == pytest.approx(best["loss"], abs=1e-5)
    if method["name"] == "mezo":
        assert Trajectory.read(run.trajectory).header["adapter"]["name"] == method["adapter"]
        assert (run.path / "adapter" / "adapter_config.json").is_file()


def test_a_method_has_adapters_whatever_their_keys_are_called():
    class Config(MethodConfig):
        tuner: AdapterConfig = AdapterConfig.model_validate("prefix")
        other: AdapterConfig | None = None

    assert [adapter.name for adapter in Config(name="mine").adapter_configs] == ["prefix"]
    assert FirstOrderConfig(name="first-order").adapter_configs[0].name == "lora"
