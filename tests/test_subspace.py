"""The subspace adapter: what its A holds, the law of its steps, what it costs, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from conftest import build_model, build_tokenizer
from test_adapters import CPU, examples_of, training_context
from tiny_architectures import build_tiny
from zofo import Bilevel, BilevelConfig, FirstOrder, FirstOrderConfig, MeZO, MeZOConfig, TrainingContext
from zofo.adapters import check_untrusted_adapter, load_adapter, merge_adapter
from zofo.adapters.input_directions import InputDirections, orthonormal_rows
from zofo.adapters.subspace import SubspaceAdapters, linear_layers
from zofo.displacement import Displacement, Key
from zofo.errors import CheckpointError, ConfigError, RunError
from zofo.methods.adapter_start import attach_adapters
from zofo.methods.bilevel.meta_bilevel import MetaBilevel, MetaBilevelConfig
from zofo.noise import LowRank
from zofo.objectives import candidate_scores, classification_loss
from zofo.tasks import collate
from zofo.testing import check_method

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def words():
    return build_tokenizer()


@pytest.fixture(scope="module")
def base(words):
    return build_model("llama", len(words))


def attach(base, words, names=("adapter",), seed=3, **options):
    """A copy of the base with the adapter, calibrated; and its context."""
    context = training_context(copy.deepcopy(base), words, seed)
    config = MeZOConfig(adapter={"name": "subspace", "rank": 4, **options}).adapter
    adapters, start = attach_adapters(config, context, names, 4)
    return context, adapters, start


def rows_of(adapters, name=Q_PROJ):
    return adapters.tensors("adapter")[f"{name}.lora_A.weight"]


def gradients(base, context):
    """The gradient of each linear layer's weight over all examples."""
    model = copy.deepcopy(base)
    named = {name: model.get_submodule(name).weight for name in linear_layers(model)}
    loss = classification_loss(model, context.collate(context.examples)).mean()
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


# what A holds


def test_the_rows_of_a_are_orthonormal_and_hold_the_gradient_where_random_ones_do_not(base, words):
    shares = {}
    for init in ("inputs", "random"):
        context, adapters, start = attach(base, words, init=init)
        held = total = 0.0
        for name, gradient in gradients(base, context).items():
            rows = rows_of(adapters, name)
            torch.testing.assert_close(rows @ rows.T, torch.eye(4), rtol=0, atol=1e-6)
            held += (gradient @ rows.T).square().sum().item()
            total += gradient.square().sum().item()
        shares[init] = held / total
        assert (start.counts.queries > 0) == (init == "inputs")
    assert shares["inputs"] > 2 * shares["random"]  # 4 of 16 and 24 inputs of random weights


def test_a_sketch_of_a_stream_is_the_eigenvectors_of_the_second_moment():
    draw = torch.Generator().manual_seed(0)
    spread = 0.8 ** torch.arange(60)
    x = torch.randn(900, 60, generator=draw) * spread + 0.5 * torch.randn(60, generator=draw)  # far from mean 0
    layer = torch.nn.Linear(60, 3)
    found = InputDirections({"layer": layer}, 6, 0)
    for piece in x.view(3, 10, 30, 60):
        with found.watching(None):
            layer(piece)
    exact = torch.linalg.eigh(x.double().T @ x.double())[1][:, -6:].flip(1).T.float()
    overlap = (found.directions("layer") @ exact.T).abs()
    torch.testing.assert_close(overlap, torch.eye(6), rtol=0, atol=1e-3)


def test_padding_is_left_out(base, words):
    """Rows of different lengths in one batch give the directions of each row alone."""
    examples = examples_of(words, count=6)
    found = []
    for parts in ([examples], [[one] for one in examples]):
        directions = InputDirections({Q_PROJ: base.get_submodule(Q_PROJ)}, 4, 0)
        for part in parts:
            batch = collate(part, 0, CPU)
            with directions.watching(batch.attention_mask), torch.no_grad():
                candidate_scores(base, batch)
        found.append(directions.directions(Q_PROJ))
    assert collate(examples, 0, CPU).attention_mask.min() == 0
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)


def test_layers_of_the_same_input_share_their_directions_and_all_adapters_have_them(base, words):
    _, adapters, _ = attach(base, words, names=("adapter", "lower_adapter"))
    for name in ("k_proj", "v_proj"):
        assert torch.equal(rows_of(adapters), rows_of(adapters, Q_PROJ.replace("q_proj", name)))
    a, b = (adapters.tensors(name) for name in adapters.names)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all("lora_B" in name for name, p in adapters.model.named_parameters() if p.requires_grad)
    _, other, _ = attach(base, words, seed=4)
    assert not torch.equal(rows_of(adapters), rows_of(other))


@pytest.mark.parametrize(("head", "kind"), [("causal", "gpt2"), ("causal", "mixtral"), ("masked", "bert")])
def test_layers_of_other_kinds_are_taken_or_named(head, kind):
    model = build_tiny(head, kind)
    output = model.get_output_embeddings()
    adapters = SubspaceAdapters(model, ("adapter",), 0, rank=4)
    layers = [name for name, part in model.named_modules() if hasattr(part, "lora_A")]
    assert layers == [name for name in layers if model.get_submodule(name) is not output]
    assert any("attn" in name or "attention" in name for name in layers)
    (note,) = adapters.notes()
    assert ("experts" in note) == (kind == "mixtral")  # which are no linear layers
    assert "embed" in note or "wte" in note


# the law of a step


def test_a_direction_of_b_is_a_projected_direction_of_the_weight():
    """z A^T of a full direction z has the moments that the same noise gives to B: mean 0, covariance I, and the fourth
    moments of a product of two normal factors."""
    rows, noise = orthonormal_rows(torch.randn(3, 8, generator=torch.Generator().manual_seed(0))), LowRank()
    full = torch.stack([noise.whole(Key(0, step), "w", (4, 8)) @ rows.T for step in range(2500)]).flatten(1)
    own = torch.stack([noise.whole(Key(1, step), "b", (4, 3)) for step in range(2500)]).flatten(1)
    for z in (full, own):
        torch.testing.assert_close(z.T @ z / len(z), torch.eye(12), rtol=0, atol=0.25)
        assert z.pow(4).mean().item() == pytest.approx(9, rel=0.3)  # 3 for a normal one


def test_a_slope_of_b_is_the_slope_of_the_weights_along_the_projected_direction(base, words):
    context = training_context(copy.deepcopy(base), words)
    method = MeZO(MeZOConfig(batch_size=4, adapter={"name": "subspace", "rank": 4}), context)
    key = method._zo.directions(0)[0]
    values = method.backbone.values(Displacement({key: 1e-3}))
    losses = []
    for sign in (1, -1):
        model = copy.deepcopy(base)
        with torch.no_grad():
            for name in linear_layers(model):
                step = next(z for tensor, z in values.items() if tensor.startswith(f"{name}.lora_B"))
                model.get_submodule(name).weight.add_(sign * step @ rows_of(method._adapters, name))
            losses.append(classification_loss(model, method._batches[0]).double().mean())
    slope = method.step(0).coefficients["projected_gradient_0"]
    assert slope == pytest.approx(((losses[0] - losses[1]) / 2e-3).item(), rel=5e-3, abs=1e-4)
    assert MeZOConfig(adapter="subspace").estimator == MeZOConfig().estimator
    assert MeZOConfig(adapter="subspace").rule == MeZOConfig().rule
    assert FirstOrderConfig(adapter="subspace").lr == 3e-4


# runs


def test_a_run_by_mezo_repeats_itself_goes_on_and_comes_back(tmp_path):
    run = check_method("mezo", tmp_path, batch_size=2, adapter={"name": "subspace", "rank": 4})
    calibration = run.summary["calibration"]
    assert calibration["queries"] == calibration["examples"] == 8
    assert run.summary["queries"] == 8 + 4 * 4
    assert calibration["rows"].startswith("sha256:")


def test_first_order_moves_b_alone_and_what_is_saved_merges(base, words, tmp_path):
    context = training_context(copy.deepcopy(base), words)
    method = FirstOrder(FirstOrderConfig(batch_size=4, adapter={"name": "subspace", "rank": 4}), context)
    before = {name: p.clone() for name, p in method._adapters.tensors("adapter").items()}
    for number in range(2):
        method.step(number)
    for name, now in method._adapters.tensors("adapter").items():
        assert torch.equal(now, before[name]) == ("lora_A" in name), name
    method.save(tmp_path)
    batch = context.collate(context.examples)
    found = []
    for load in (load_adapter, merge_adapter):
        model = copy.deepcopy(base)
        load(model, tmp_path / "adapter")
        found.append(candidate_scores(model, batch).detach())
    expected = candidate_scores(context.model, batch).detach()
    assert torch.equal(found[0], expected)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-5)
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**base.config.to_dict(), "hidden_size": 32}))
    with pytest.raises(RunError, match="not an adapter of this model"):
        load_adapter(other, tmp_path / "adapter")


def test_a_run_that_goes_on_has_the_a_of_its_checkpoint(base, words):
    config = MeZOConfig(batch_size=4, adapter={"name": "subspace", "rank": 4})
    method = MeZO(config, training_context(copy.deepcopy(base), words))
    method.step(0)
    state = method.state_dict(weights=True)
    context = training_context(copy.deepcopy(base), words)
    again = MeZO(config, TrainingContext(context.model, context.objective, context.examples[::-1], context.collate, 9))
    assert not torch.equal(rows_of(again._adapters), rows_of(method._adapters))  # of other rows
    again.load_state_dict(state)
    assert again.counts == method.counts
    tensors = method._adapters.tensors("adapter")
    assert all(torch.equal(p, tensors[name]) for name, p in again._adapters.tensors("adapter").items())
    random = MeZO(config.model_copy(update={"adapter": None}), training_context(copy.deepcopy(base), words))
    with pytest.raises(CheckpointError):
        again._adapters.load_state_dict(random.state_dict(weights=True))


def test_the_theta_of_bilevel_can_be_an_adapter_beneath_the_others(base, words, tmp_path):
    """Theta's B moves by forwards alone, p and s by gradients alone, the base not at all; saved is their sum."""
    context = training_context(copy.deepcopy(base), words)
    before = {id(p): p.detach().clone() for p in context.model.parameters()}
    config = {"batch_size": 4, "inner_steps": 2, "adapter": {"name": "lora", "rank": 2}}
    method = Bilevel(BilevelConfig(**config, backbone_adapter={"name": "subspace", "rank": 4}), context)
    method.check()
    p = [tensor.clone() for tensor in method._adapters.parameters("adapter")]
    for number in range(2):
        theta = {name: tensor.clone() for name, tensor in method.backbone.tensors.items()}
        assert all("lora_B.backbone" in name for name in theta)
        log = method.step(number)
        assert log.update is not None
        method._theta.flush()
        assert all(not torch.equal(tensor, theta[name]) for name, tensor in method.backbone.tensors.items())
    assert any(not torch.equal(a, b) for a, b in zip(p, method._adapters.parameters("adapter"), strict=True))
    assert all(torch.equal(p, before[id(p)]) for p in context.model.parameters() if id(p) in before)
    method.save(tmp_path)
    batch = context.collate(context.examples)
    for variant in method.variants:
        with method.using(variant), torch.no_grad():
            expected = candidate_scores(context.model, batch)
        model = copy.deepcopy(base)
        load_adapter(model, tmp_path / variant)
        torch.testing.assert_close(candidate_scores(model, batch), expected, rtol=1e-4, atol=1e-5)
        check_untrusted_adapter(tmp_path / variant)


def test_a_bilevel_run_with_theta_as_an_adapter_goes_on_and_comes_back(tmp_path):
    options = {"inner_steps": 1, "adapter": "lora", "backbone_adapter": {"name": "subspace", "rank": 4}}
    run = check_method("bilevel", tmp_path, batch_size=2, **options)
    assert run.config.method.estimator.options["epsilon"] == MeZOConfig().estimator.options["epsilon"]
    assert run.backbone_trajectory is None  # it does not move the base


# refusals


def test_what_cannot_be_is_refused_with_what_to_type(base, words):
    with pytest.raises(ConfigError, match=r"rank is 32, but .*q_proj' has 16 inputs") as refused:
        attach(base, words, rank=32)
    assert "rank=16" in refused.value.hint
    with pytest.raises(ConfigError, match="Embedding"):
        attach(build_model("llama-untied", len(words)), words, target_modules=["embed_tokens"])
    layer = torch.nn.Linear(30, 2)
    directions = InputDirections({"layer": layer}, 6, 0)
    with directions.watching(None):
        layer(torch.ones(5, 30))
    with pytest.raises(ConfigError, match="rank=6 directions cannot be told from 5 inputs") as refused:
        directions.directions("layer")
    assert "calibration_batches" in refused.value.hint
    with pytest.raises(ConfigError, match="dora is no low-rank term"):
        BilevelConfig(adapter="dora", backbone_adapter="subspace")
    with pytest.raises(ConfigError, match="has many"):
        MetaBilevel(MetaBilevelConfig(backbone_adapter="subspace"), training_context(copy.deepcopy(base), words))
    classifier = build_model("llama", len(words), head=transformers.AutoModelForSequenceClassification)
    with pytest.raises(ConfigError, match="classification head"):
        Bilevel(BilevelConfig(batch_size=4, backbone_adapter="subspace"), training_context(classifier, words))
    broken = copy.deepcopy(base)
    with torch.no_grad():
        broken.model.layers[0].self_attn.v_proj.weight[0] = float("nan")
    with pytest.raises(ConfigError, match="not finite"):
        attach(broken, words)
