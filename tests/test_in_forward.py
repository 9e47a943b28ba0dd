"""The in-forward evaluator: the losses of the in-place one, one forward for all points, and no weight written."""

import copy
import functools
import math
import pickle
import warnings

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from conftest import ARCHITECTURES, ENCODERS, MORE_ARCHITECTURES, build_model, with_soak
from covering import grid
from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, EvaluatorError
from zofo.estimators import TwoSided
from zofo.evaluators import EVALUATORS, InForward, InPlace
from zofo.noise import Gaussian, LowRank
from zofo.objectives import classification_loss
from zofo.tasks import TokenizedChoices, batches, collate

A, B, C = Key(11, 3), Key(11, 3, 1), Key(11, 2)
POINTS = [Displacement({A: 1e-2, B: 3e-3}), Displacement({A: -1e-2}), Displacement()]
PENDING = Displacement({C: 1e-2})


def own_points(examples, group=1):
    """+ and - a direction for each group of examples."""
    return [[Displacement({Key(11, 4, i // group): size}) for i in range(examples)] for size in (1e-2, -1e-2)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def text_batch(examples, padding="left", seed=0):
    lengths = torch.randint(4, 9, (examples,), generator=generator(seed)).tolist()
    ids, mask = torch.zeros(2, examples, max(lengths), dtype=torch.int64).unbind(0)
    for row, length in enumerate(lengths):
        where = slice(-length, None) if padding == "left" else slice(length)
        ids[row, where] = torch.randint(3, 300, (length,), generator=generator(row))
        mask[row, where] = 1
    return {"input_ids": ids, "attention_mask": mask}


def token_loss(model, batch):
    """Cross-entropy of each next token, one mean for each row."""
    logits = model(**batch).logits[:, :-1].float()
    seen = batch["attention_mask"][:, 1:] * batch["attention_mask"][:, :-1]
    each = F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    return (each * seen).sum(1) / seen.sum(1)


def masked_loss(model, batch):
    """Cross-entropy of each token in its own place, as a masked language model would have it."""
    each = F.cross_entropy(model(**batch).logits.transpose(1, 2), batch["input_ids"], reduction="none")
    return (each * batch["attention_mask"]).sum(1) / batch["attention_mask"].sum(1)


def label_loss(model, batch):
    return F.cross_entropy(model(**batch).logits.float(), batch["input_ids"][:, -1] % 2, reduction="none")


def square_loss(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().flatten(1).mean(dim=1)


def make_mlp(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 2)).to(dtype)


def mlp_batch(examples):
    return torch.randn(examples, 5, generator=generator()), torch.randn(examples, 2, generator=generator(1))


def build(model, trainable=None, noise=None, **options):
    return InForward(model, Backbone(model, noise or LowRank(), trainable), **options)


def in_place_losses(evaluator, objective, batch, points):
    """What the in-place evaluator says of a copy of the model; a point for each example, of one example at a time."""
    model, backbone = copy.deepcopy((evaluator.model, evaluator.backbone))
    in_place, pending, losses = InPlace(model, backbone), evaluator.theta.pending, []
    for point in points:
        if isinstance(point, Displacement):
            losses.append(in_place.losses(objective, batch, [point + pending])[0])
            continue
        parts = [batches.part(batch, i, i + 1) for i in range(len(point))]
        each = [in_place.losses(objective, part, [at + pending])[0] for part, at in zip(parts, point, strict=True)]
        losses.append(torch.cat(each))
    return torch.stack(losses)


def check_agreement(evaluator, objective, batch, *askings, rtol=1e-5):
    """Each asking, a list of points, in one call."""
    for points in askings:
        losses = evaluator.losses(objective, batch, points)
        assert losses.shape == (len(points), batches.size(batch))
        assert losses.dtype == torch.float32
        expected = in_place_losses(evaluator, objective, batch, points)
        torch.testing.assert_close(losses, expected, rtol=rtol, atol=1e-6)
        if len(points) > 1:  # many tolerances
            assert ((losses[0] - losses[1]) / losses[0]).abs().amax() > 20 * rtol


def test_the_in_forward_evaluator_is_registered():
    assert EVALUATORS["in-forward"] is InForward
    assert InForward.per_example


# agreement with the in-place evaluator


@pytest.mark.parametrize("kind", [*ARCHITECTURES, *MORE_ARCHITECTURES])
def test_losses_of_causal_models_equal_those_of_the_in_place_evaluator(kind):
    evaluator = build(build_model(kind))
    evaluator.theta.pending = PENDING
    batch = text_batch(3)
    evaluator.check([(token_loss, batch)])
    check_agreement(evaluator, token_loss, batch, POINTS[:2], own_points(3))


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(
    ("head", "objective"),
    [
        (transformers.AutoModelForSequenceClassification, label_loss),
        (transformers.AutoModelForMaskedLM, masked_loss),
    ],
    ids=["classes", "tokens"],
)
def test_losses_of_encoders_equal_those_of_the_in_place_evaluator(kind, head, objective):
    evaluator = build(build_model(kind, head=head))
    batch = text_batch(3, "right")
    evaluator.check([(objective, batch)])
    check_agreement(evaluator, objective, batch, POINTS[:2], own_points(3))


@pytest.mark.parametrize(
    ("kind", "attention", "padding"), grid(["llama", "gpt2", "gemma3", "bert"], ["eager", "sdpa"], ["left", "right"])
)
def test_losses_agree_for_either_attention_and_padding(kind, attention, padding):
    encoder = kind == "bert"
    head = transformers.AutoModelForMaskedLM if encoder else transformers.AutoModelForCausalLM
    evaluator = build(build_model(kind, head=head, attention=attention))
    objective = masked_loss if encoder else token_loss
    check_agreement(evaluator, objective, text_batch(4, padding), [POINTS[0], own_points(4)[1]])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "noise",
    [LowRank(3), LowRank(1, "rademacher"), LowRank(3, "rademacher")],
    ids=["rank 3", "signs", "signs of rank 3"],
)
def test_losses_agree_for_every_rank_and_distribution_of_factors(kind, noise):
    evaluator = build(build_model(kind), noise=noise)
    evaluator.theta.pending = PENDING
    check_agreement(evaluator, token_loss, text_batch(5), POINTS, own_points(5))


@pytest.mark.parametrize(("examples", "group", "rank"), grid([1, 2, 7, 31, 40], [1, 3], [1, 3]))
def test_losses_agree_for_few_and_many_and_a_prime_number_of_examples(examples, group, rank):
    """With many keys the rows are cut into blocks, and a prime number of them cannot be."""
    evaluator = build(make_mlp(), noise=LowRank(rank) if rank == 1 else LowRank(2))
    evaluator.theta.pending = PENDING
    shared_too = [*own_points(examples, group), POINTS[0]]
    check_agreement(evaluator, square_loss, mlp_batch(examples), shared_too)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_losses_of_many_rows_with_a_direction_each_agree(kind):
    """Enough keys for blocks of rows, in products, embeddings and a head that is tied to them."""
    evaluator = build(build_model(kind))
    check_agreement(evaluator, token_loss, text_batch(24), own_points(24))


@pytest.mark.parametrize(
    "select",
    [["*.0.*"], ["*norm*", "*ln*"], ["*embed_tokens*", "*wte*"], ["*bias", "*norm*"], ["*q_proj*", "*c_attn*"]],
    ids="{0[0]}".format,
)
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_losses_agree_when_some_tensors_move(kind, select):
    model = build_model(kind)
    names = [name for name, _ in model.named_parameters()]
    patterns = [p for p in select if any(p.strip("*") in name for name in names)]
    evaluator = build(model, patterns)
    assert 0 < len(evaluator.backbone.tensors) < len(names)
    check_agreement(evaluator, token_loss, text_batch(3), [*own_points(3), POINTS[1]], rtol=3e-6)


def lora_model():
    base = build_model("llama")
    backbone = Backbone(base, LowRank())
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return model.eval(), backbone


def test_losses_agree_below_an_adapter_that_is_on_or_off():
    model, backbone = lora_model()
    evaluator, batch = InForward(model, backbone), text_batch(5)
    asking = [POINTS[0], own_points(5)[0]]
    check_agreement(evaluator, token_loss, batch, asking)
    on = evaluator.losses(token_loss, batch, asking)

    def without(model, batch):
        with model.disable_adapter():
            return token_loss(model, batch)

    check_agreement(evaluator, without, batch, asking)
    assert (on - evaluator.losses(without, batch, asking)).abs().min() > 1e-4


def test_losses_agree_when_the_adapter_itself_moves():
    model, _ = lora_model()
    check_agreement(build(model, ["*lora_*"]), token_loss, text_batch(5), POINTS, own_points(5))


def encoded(examples, candidates, tokens, prompt):
    """Examples whose candidates have up to `tokens` tokens after a prompt of about `prompt`."""
    made = []
    for i in range(examples):
        draw = torch.randint(3, 300, (200,), generator=generator(i)).tolist()
        start = draw[: prompt + i % 3]
        ends = [draw[100 + 9 * c : 100 + 9 * c + 1 + (i + c) % tokens] for c in range(candidates)]
        made.append(TokenizedChoices(tuple((*start, *end) for end in ends), tuple(map(len, ends)), i % candidates))
    return made


@pytest.mark.parametrize(
    ("rows", "model"),
    grid(
        {"one an example": (1, 5, None), "several an example": (3, 4, 0), "packed": (3, 24, None)}.items(),
        [("llama", None), ("llama", 2), ("llama", 1), ("opt", None)],
        strength=1,
    ),
)
def test_losses_of_candidates_agree(rows, model):
    (arrangement, (tokens, prompt, limit)), (kind, micro_batch) = rows, model
    model = build_model(kind)
    batch = collate(encoded(5, 3, tokens, prompt), 0, torch.device("cpu"), limit if kind == "llama" else 0)
    assert batch.packed == (arrangement == "packed" and kind == "llama")
    evaluator = build(model, micro_batch=micro_batch)
    evaluator.check([(classification_loss, batch)])
    check_agreement(evaluator, classification_loss, batch, [POINTS[0], own_points(5)[0]])


def test_parts_of_a_batch_give_the_losses_of_the_whole_in_more_forwards():
    batch, asking = mlp_batch(7), own_points(7)
    evaluator, in_parts = build(make_mlp()), build(make_mlp(), micro_batch=3)
    whole, parts = (one.losses(square_loss, batch, asking) for one in (evaluator, in_parts))
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-7)
    assert evaluator.counts.as_dict() == {"forwards": 1, "backwards": 0, "queries": 14}
    assert in_parts.counts.as_dict() == {"forwards": 3, "backwards": 0, "queries": 14}


def test_several_objectives_with_batches_of_their_own_stand_side_by_side():
    def absolute(model, batch):
        return (model(batch[0]) - batch[1]).abs().mean(dim=1)

    few, batch, evaluator = mlp_batch(2), mlp_batch(7), build(make_mlp())
    shared, each = POINTS[0], own_points(11)[0]
    with evaluator.probe([(square_loss, batch), (absolute, few), (square_loss, few)], [shared, each]) as probe:
        losses = probe.losses
    assert losses.shape == (2, 11)
    for first, objective, own in ((0, square_loss, batch), (7, absolute, few), (9, square_loss, few)):
        last = first + batches.size(own)
        expected = in_place_losses(evaluator, objective, own, [shared, each[first:last]])
        torch.testing.assert_close(losses[:, first:last], expected, rtol=1e-5, atol=1e-6)


def test_theta_alone_without_a_key_is_a_point():
    evaluator = build(make_mlp())
    losses = evaluator.losses(square_loss, mlp_batch(3), [Displacement()])
    torch.testing.assert_close(losses[0], square_loss(evaluator.model, mlp_batch(3)), rtol=1e-6, atol=1e-7)


def test_an_objective_in_inference_mode_or_autocast_agrees():
    def inference(model, batch):
        with torch.inference_mode():
            return token_loss(model, batch)

    def autocast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return token_loss(model, batch)

    evaluator, batch = build(build_model("llama")), text_batch(5)
    check_agreement(evaluator, inference, batch, [*own_points(5), POINTS[0]])
    losses = evaluator.losses(autocast, batch, [*own_points(5), POINTS[0]])
    exact = evaluator.losses(token_loss, batch, [*own_points(5), POINTS[0]])
    torch.testing.assert_close(losses, exact, rtol=0.01, atol=0.01)
    assert not torch.equal(losses, exact)


# the model is untouched


def picture(model):
    """All that could be left behind: bits, classes, attributes, hooks."""
    hooks = [
        (len(part._forward_hooks), len(part._forward_pre_hooks), len(part._parameters), sorted(vars(part)))
        for part in model.modules()
    ]
    tensors = {name: (type(value), value.clone()) for name, value in model.named_parameters()}
    attributes = {name: dict(vars(value)) for name, value in model.named_parameters()}
    return hooks, tensors, attributes, {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model, before):
    after = picture(model)
    assert after[0] == before[0]
    assert after[2] == before[2]
    for name, (kind, value) in before[1].items():
        assert after[1][name][0] is kind is nn.Parameter
        assert same_bits(after[1][name][1], value), name
    assert all(same_bits(after[3][name], value) for name, value in before[3].items())
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))  # noqa: S301  # our own
    assert all(type(value) is nn.Parameter for twin in twins for value in twin.parameters())


def same_bits(a, b):
    return torch.equal(*(value.detach().reshape(-1).contiguous().view(torch.uint8) for value in (a, b)))


@pytest.mark.promise(2)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_is_untouched_after_losses(kind):
    model, batch = build_model(kind), text_batch(3)
    before, logits = picture(model), model(**batch).logits
    evaluator = build(model)
    evaluator.check([(token_loss, batch)])
    evaluator.losses(token_loss, batch, [*own_points(3), *POINTS])
    assert_untouched(model, before)
    assert same_bits(model(**batch).logits, logits)
    assert logits.requires_grad  # a graph can be recorded as before


@pytest.mark.promise(2)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["in the objective", "in the forward"])
def test_a_model_is_untouched_after_an_exception(error, place):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.fails = build_model("llama"), False

        def forward(self, **inputs):
            out = self.below(**inputs)
            if self.fails:
                raise error
            return out

    model, batch = Failing(), text_batch(3)
    before, logits = picture(model.below), model(**batch).logits

    def objective(model, batch):
        model.fails = place == "in the forward"
        losses = token_loss(model, batch)
        raise error if losses.sum() > 0 else AssertionError

    evaluator = build(model)
    with pytest.raises(error):
        evaluator.losses(objective, batch, POINTS)
    model.fails = False
    assert_untouched(model.below, before)
    assert not model._forward_hooks
    assert same_bits(model(**batch).logits, logits)
    check_agreement(evaluator, token_loss, batch, POINTS)


@pytest.mark.promise(2)
def test_a_model_is_untouched_after_the_body_of_a_visit_raises():
    model = make_mlp()
    before = picture(model)
    with pytest.raises(KeyError), build(model).probe([(square_loss, mlp_batch(3))], POINTS):
        raise KeyError
    assert_untouched(model, before)


def probe(dtype, times):
    model = make_mlp(dtype)
    before, evaluator, estimator = picture(model), build(model), TwoSided(1e-3)
    batch = tuple(part.to(dtype) for part in mlp_batch(4))
    for step in range(times):
        keys = [Key(0, step, i) for i in range(4)]
        losses = evaluator.losses(square_loss, batch, estimator.ask([keys] if step % 2 else keys[:1]))
        assert losses.isfinite().all()
    assert evaluator.counts.forwards == times
    assert evaluator.backbone.sweeps == 0
    assert_untouched(model, before)


every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@pytest.mark.promise(2)
@every_dtype
def test_50_probes_change_0_bits(dtype, tries):
    probe(dtype, 50)
    tries(50)


@pytest.mark.promise(2)
@pytest.mark.soak
@every_dtype
def test_1000_probes_change_0_bits(dtype, tries):
    probe(dtype, 1000)
    tries(1000)


def test_frozen_and_trainable_parameters_give_the_same_bits_and_no_graph_is_kept():
    frozen, trainable = make_mlp().requires_grad_(False), make_mlp()
    results = [build(model).losses(square_loss, mlp_batch(3), POINTS) for model in (frozen, trainable)]
    assert torch.equal(*results)
    assert not any(losses.requires_grad for losses in results)
    assert all(p.grad is None and p.is_leaf and p.requires_grad for p in trainable.parameters())
    trainable(mlp_batch(3)[0]).sum().backward()
    assert all(p.grad is not None for p in trainable.parameters())


# torch.compile


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_a_compiled_model_gives_the_same_losses_and_stays_compiled(backend):
    """The forward that carries terms runs as it was written; dynamo would trace our own code."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        model, batch = torch.compile(make_mlp(), backend=backend), mlp_batch(5)
        before = square_loss(model, batch)
    evaluator, traced = build(model), counters["stats"]["calls_captured"]
    evaluator.check([(square_loss, batch)])
    losses = evaluator.losses(square_loss, batch, [*POINTS, *own_points(5)])
    assert counters["stats"]["calls_captured"] == traced > 0
    torch.testing.assert_close(
        losses, in_place_losses(evaluator, square_loss, batch, [*POINTS, *own_points(5)]), rtol=1e-5, atol=1e-6
    )
    assert type(model._orig_mod[0].weight) is nn.Parameter
    assert torch.equal(square_loss(model, batch), before)
    with torch.compiler.set_stance("fail_on_recompile"):
        square_loss(model, batch)
    torch.compiler.reset()


# ways that models use a tensor


class Use(nn.Module):
    """A module that is one function of its parameters and its input."""

    def __init__(self, function, **shapes):
        super().__init__()
        self.function = function
        for number, (name, shape) in enumerate(shapes.items()):
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator(number)) * 0.5 + 0.2))

    def forward(self, x):
        return self.function(self, x)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        return F.linear(x, w)


def seeded_module(make):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make().eval()


def output_loss(model, x):
    return (model(x).flatten(1) - 0.3).square().mean(1)


def into(x, w):
    """`x *= w` seen through another name."""
    y = x * 1
    z = y
    z *= w
    return y


def iadd(x, w):
    y = x * 1
    y += w
    return y


FLAT, LONG = torch.randn(8, 6, generator=generator(7)), torch.randn(8, 3, 6, generator=generator(8))
IDS = torch.randint(0, 9, (8, 3), generator=generator(9))
PLAIN = torch.randn(4, 6, generator=generator(10))

RIGHT = {
    "linear": (lambda m, x: F.linear(x, m.w, m.b), FLAT, {"w": (4, 6), "b": (4,)}),
    "linear with another's weight": (lambda m, x: F.linear(x, PLAIN, m.b), FLAT, {"b": (4,)}),
    "linear with another's bias": (lambda m, x: F.linear(x, m.w, PLAIN[:, 0]), LONG, {"w": (4, 6)}),
    "aten": (lambda m, x: torch.ops.aten.linear(x, m.w), LONG, {"w": (4, 6)}),
    "a square matrix": (lambda m, x: F.linear(x, m.w) @ m.w, LONG, {"w": (6, 6)}),
    "matmul": (lambda m, x: torch.matmul(x, m.w) + (x @ m.w).tanh(), LONG, {"w": (6, 4)}),
    "mm": (lambda m, x: torch.mm(x, m.w) + x.mm(m.w) ** 2, FLAT, {"w": (6, 4)}),
    "addmm onto y": (lambda m, x: addmm_(torch.ones(len(x), 4), x, m.w), FLAT, {"w": (6, 4)}),
    "addmm onto y of many": (lambda m, x: addmm_(torch.zeros(len(x), 40), x, m.w.T, 0.5), FLAT, {"w": (40, 6)}),
    "addmm": (lambda m, x: torch.addmm(m.b, x.view(-1, 6), m.w).view(-1, 12), LONG, {"w": (6, 4), "b": (4,)}),
    "heads": (lambda m, x: F.linear(x.unflatten(2, (2, 3)), m.w), LONG, {"w": (4, 3)}),
    "x changed in between": (
        lambda m, x: F.linear(y := x * 1, m.w) + F.linear(y.mul_(2), m.v),
        FLAT,
        {"w": (4, 6), "v": (4, 6)},
    ),
    "embedding": (lambda m, x: F.embedding(x, m.w, 0), IDS, {"w": (9, 4)}),
    "embedding that is also the head": (lambda m, x: F.linear(F.embedding(x, m.w), m.w), IDS, {"w": (9, 4)}),
    "positions": (lambda m, x: x + F.embedding(torch.arange(3)[None], m.w), LONG, {"w": (5, 6)}),
    "layer norm": (lambda m, x: F.layer_norm(x, (6,), m.w, m.b), LONG, {"w": (6,), "b": (6,)}),
    "layer norm without bias": (lambda m, x: F.layer_norm(x, [6], weight=m.w), LONG, {"w": (6,)}),
    "rms norm": (lambda m, x: F.rms_norm(x, (6,), m.w), LONG, {"w": (6,)}),
    "one plus": (lambda m, x: F.normalize(x, dim=-1) * (1.0 + m.w.float()), LONG, {"w": (6,)}),
    "one minus": (lambda m, x: (1 - m.w) * x - (2 - (-m.w)), LONG, {"w": (6,)}),
    "minus and over": (lambda m, x: (x - m.w) + (m.w - x) * 2 + x / m.w + (m.w / (x.square() + 1)), LONG, {"w": (6,)}),
    "in place on x": (lambda m, x: into(x, m.w) + iadd(x, m.b), LONG, {"w": (6,), "b": (6,)}),
    "a number": (lambda m, x: x * m.w + m.b, LONG, {"w": (), "b": (1,)}),
    "a vector that the model rounds": (
        lambda m, x: x * m.w.half() + m.b.bfloat16().float(),
        LONG,
        {"w": (6,), "b": (6,)},
    ),
    "a vector taken out of the graph": (lambda m, x: x * m.w.detach().clone(), LONG, {"w": (6,)}),
    "autograd function": (lambda m, x: Function.apply(x, m.w), FLAT, {"w": (4, 6)}),
    "checkpoint": (
        lambda m, x: torch.utils.checkpoint.checkpoint(lambda y: F.linear(y, m.w), x, use_reentrant=False),
        FLAT,
        {"w": (4, 6)},
    ),
    "asks for shapes": (
        lambda m, x: F.linear(x.to(m.w.dtype), m.w) * len(m.w) * m.w.shape[1] / m.w.numel() * (m.w.grad is None),
        FLAT,
        {"w": (4, 6)},
    ),
}


@pytest.mark.parametrize("use", RIGHT)
def test_ways_to_use_a_tensor_that_agree_with_the_in_place_evaluator(use):
    function, batch, shapes = RIGHT[use]
    module = Use(function, **shapes)
    evaluator = build(module)
    evaluator.check([(output_loss, batch)])
    for examples in (1, 5):
        check_agreement(evaluator, output_loss, batch[:examples], POINTS, own_points(examples))
    assert type(next(module.parameters())) is nn.Parameter


def held(m, name, make):
    """Something made of a tensor when the module was built, and kept."""
    if not hasattr(m, name):
        object.__setattr__(m, name, make())
    return getattr(m, name)


def assigned(x, w):
    y = x * 1
    y[:, 0] = w
    return y


def addmm_(y, x, w, alpha=1):
    y.addmm_(x, w, alpha=alpha)
    return y


def experts(m, x):
    """Each token through one of two linear modules."""
    tokens, out = x.reshape(-1, 6), torch.zeros(x.shape[0] * 3, 4)
    chosen = (tokens.sum(1) > 0).long()
    for number, w in enumerate((m.w, m.v)):
        place = (chosen == number).nonzero().flatten()
        out = out.index_add(0, place, F.linear(tokens[place], w))
    return out.view(len(x), -1)


W = {"w": (4, 6)}
SQUARE = {"w": (6, 6)}
VECTOR = {"w": (6,)}
ONCE_A_POINT = {
    "einsum": (lambda m, x: torch.einsum("oi,ri->ro", m.w, x), FLAT, W),
    "conv": (lambda m, x: F.conv1d(x.transpose(1, 2), m.w), LONG, {"w": (4, 6, 1)}),
    "a product of two": (lambda m, x: F.linear(x, m.w @ m.v), FLAT, {"w": (4, 5), "v": (5, 6)}),
    "linear of one by another": (lambda m, x: F.linear(x, F.linear(m.w, m.v)), FLAT, {"w": (4, 6), "v": (6, 6)}),
    "linear of one by another's": (lambda m, x: F.linear(x, F.linear(m.w, torch.eye(6))), FLAT, {"w": (8, 6)}),
    "a vector by a matrix": (lambda m, x: x @ (m.w @ PLAIN.T).expand(6, 4), FLAT, VECTOR),
    "transposed": (lambda m, x: (m.w.T @ x.T).T, FLAT, {"w": (6, 4)}),
    "transposed for linear": (lambda m, x: F.linear(x, m.w.t()), FLAT, {"w": (6, 4)}),
    "times x": (lambda m, x: (m.w @ x.T).T, FLAT, W),
    "scaled by a vector": (lambda m, x: F.linear(x, m.w * m.s), FLAT, {"w": (8, 6), "s": (6,)}),
    "scaled by a number that moves": (lambda m, x: F.linear(x, m.w * m.s), FLAT, {"w": (8, 6), "s": ()}),
    "scaled by a number": (lambda m, x: F.linear(x, m.w * 0.5), FLAT, W),
    "scales another's": (lambda m, x: F.linear(x, PLAIN * m.w), FLAT, VECTOR),
    "first row": (lambda m, x: x * m.w[0], FLAT, W),
    "first rows": (lambda m, x: F.linear(x, m.w[:2]), FLAT, W),
    "view": (lambda m, x: F.linear(x, m.w.view(6, 4).reshape(4, 6)), FLAT, W),
    "bmm": (lambda m, x: torch.bmm(x, m.w.unsqueeze(0).expand(len(x), 6, 4)), LONG, {"w": (6, 4)}),
    "joined": (lambda m, x: F.linear(x, torch.cat([m.w, m.v])), FLAT, {"w": (4, 6), "v": (2, 6)}),
    "index_select": (lambda m, x: m.w.index_select(0, x.flatten()).view(len(x), -1), IDS, {"w": (9, 4)}),
    "indexed": (lambda m, x: m.w[x], IDS, {"w": (9, 4)}),
    "embedding bag": (lambda m, x: F.embedding_bag(x, m.w), IDS, {"w": (9, 4)}),
    "positions without rows": (lambda m, x: x + F.embedding(torch.arange(3), m.w), LONG, {"w": (5, 6)}),
    "as many positions as rows": (
        lambda m, x: x + F.embedding(torch.arange(4), m.w).unflatten(0, (2, 2)).sum((0, 1)),
        LONG,
        {"w": (5, 6)},
    ),
    "data": (lambda m, x: F.linear(x, m.w.data), FLAT, W),
    "data of a vector": (lambda m, x: x * m.w.data, FLAT, VECTOR),
    "out of the graph": (lambda m, x: F.linear(x, m.w.detach()), FLAT, W),
    "copied": (lambda m, x: F.linear(x, m.w.clone()), FLAT, W),
    "another dtype": (lambda m, x: F.linear(x.double(), m.w.double()).float(), FLAT, W),
    "layer norm over two axes": (lambda m, x: F.layer_norm(x, (3, 6), m.w), LONG, {"w": (3, 6)}),
    "layer norm with such a bias": (lambda m, x: F.layer_norm(x, (3, 6), None, m.w), LONG, {"w": (3, 6)}),
    "rms norm over two axes": (lambda m, x: F.rms_norm(x, (3, 6), m.w), LONG, {"w": (3, 6)}),
    "normalised itself": (lambda m, x: F.linear(x, F.layer_norm(m.w, (6,))), FLAT, {"w": (8, 6)}),
    "a normalised vector": (lambda m, x: x * F.layer_norm(m.w, (6,)), FLAT, VECTOR),
    "unit length": (lambda m, x: F.linear(x, F.normalize(m.w)), FLAT, W),
    "group norm": (lambda m, x: F.group_norm(x, 2, m.w), FLAT, VECTOR),
    "batch norm": (lambda m, x: F.batch_norm(x, torch.zeros(6), torch.ones(6), m.w), FLAT, VECTOR),
    "prelu": (lambda m, x: F.prelu(x, m.w), FLAT, VECTOR),
    "bilinear": (lambda m, x: F.bilinear(x, x, m.w), FLAT, {"w": (2, 6, 6)}),
    "a sum with a matrix": (lambda m, x: x + m.w, LONG, {"w": (3, 6)}),
    "addmm with scales": (lambda m, x: torch.addmm(m.b, x, m.w, beta=2), FLAT, {"w": (6, 4), "b": (4,)}),
    "addmm onto y, scaled": (lambda m, x: torch.ones(len(x), 4).addmm_(x, m.w, beta=2), FLAT, {"w": (6, 4)}),
    "add with a scale": (lambda m, x: torch.add(x, m.w, alpha=2), FLAT, VECTOR),
    "broadcast the other way": (lambda m, x: x[..., :1].expand(-1, -1, 1) * m.w, LONG.repeat(1, 2, 1), VECTOR),
    "a gate": (lambda m, x: x * m.w.sigmoid(), FLAT, VECTOR),
    "a power": (lambda m, x: x.abs() ** m.w, FLAT, VECTOR),
    "a product of vectors": (lambda m, x: x * (m.w * m.v), FLAT, {"w": (6,), "v": (6,)}),
    "where": (lambda m, x: torch.where(x > 0, x, m.w), FLAT, VECTOR),
    "a token for all": (lambda m, x: torch.cat([m.w.expand(len(x), 1, 6), x], 1), LONG, {"w": (1, 1, 6)}),
    "a vector for all": (lambda m, x: torch.cat([m.w.expand(len(x), 6), x], 1), FLAT, VECTOR),
    "a product with a vector": (lambda m, x: (x @ m.w).unsqueeze(1), FLAT, VECTOR),
    "linear with a vector": (lambda m, x: F.linear(x, m.w).unsqueeze(1), FLAT, VECTOR),
    "assigned": (lambda m, x: assigned(x, m.w), LONG, VECTOR),
    "copied into": (lambda m, x: x + torch.zeros(6).copy_(m.w), FLAT, VECTOR),
    "whole numbers": (lambda m, x: x * m.w.to(torch.int64), FLAT, VECTOR),
    "item": (lambda m, x: x * m.w.item(), FLAT, {"w": ()}),
    "float": (lambda m, x: x * float(m.w), FLAT, {"w": ()}),
    "a condition": (lambda m, x: x * (1 if m.w else 2), FLAT, {"w": ()}),
    "list": (lambda m, x: x * torch.tensor(m.w.tolist()), FLAT, VECTOR),
    "numpy": (lambda m, x: x * torch.from_numpy(m.w.detach().numpy()), FLAT, VECTOR),
    "rows one by one": (lambda m, x: torch.stack([(x * row).sum(1) for row in m.w], 1), FLAT, W),
    "experts": (experts, LONG, {"w": (4, 6), "v": (4, 6)}),
    "vmap": (lambda m, x: torch.vmap(torch.mv, in_dims=(None, 0))(m.w, x), FLAT, W),
    "vmap over positions": (lambda m, x: torch.vmap(lambda y: y * m.w, in_dims=1, out_dims=1)(x), LONG, VECTOR),
}
REFUSED = {
    "embedding with a largest norm": (lambda m, x: F.embedding(x, m.w, max_norm=1.0), IDS, {"w": (9, 4)}),
    "addmm onto it": (lambda m, x: torch.addmm(m.w, x[0].T, PLAIN[:3]).expand(len(x), 6, 6), LONG, SQUARE),
    "changed by the model": (lambda m, x: x * m.w.mul_(1.0), FLAT, VECTOR),
    "clamped by the model": (lambda m, x: F.linear(x, m.w.clamp_(min=-9)), FLAT, W),
    "tensor": (lambda m, x: F.linear(x, torch.asarray(m.w, copy=True, requires_grad=False)), FLAT, W),
    "Tensor": (lambda m, x: F.linear(x, torch.Tensor(m.w)), FLAT, W),
    "subclass": (lambda m, x: F.linear(x, m.w.as_subclass(torch.Tensor)), FLAT, W),
    "a view that the module holds": (lambda m, x: F.linear(x, held(m, "view", lambda: m.w.data.T).T), FLAT, W),
}


def check_once_a_point(module, batch):
    """Its losses are those in place, where it is run once for each point."""
    evaluator = build(module)
    evaluator.check([(output_loss, batch)])
    for examples, points in ((1, POINTS), (5, POINTS), (5, own_points(5))):
        losses = evaluator.losses(output_loss, batch[:examples], points)
        expected = in_place_losses(evaluator, output_loss, batch[:examples], points)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert all(type(value) is nn.Parameter for value in module.parameters())
    assert not any("forward" in vars(part) for part in module.modules())
    return evaluator.per_point.names


@pytest.mark.parametrize("use", ONCE_A_POINT)
def test_a_use_that_points_cannot_share_is_made_once_a_point(use):
    function, batch, shapes = ONCE_A_POINT[use]
    names = check_once_a_point(Use(function, **shapes).requires_grad_(False), batch)
    assert names == (() if use in ("positions without rows", "transposed for linear") else ("",))


@pytest.mark.parametrize("use", REFUSED)
def test_a_use_that_cannot_carry_a_direction_is_found_before_the_first_step(use):
    function, batch, shapes = REFUSED[use]
    module = Use(function, **shapes).requires_grad_(False)
    output_loss(module, batch)
    evaluator, before = build(module), {name: value.clone() for name, value in module.named_parameters()}
    with pytest.raises(EvaluatorError) as caught:
        evaluator.check([(output_loss, batch)])
    named = any(f"{name!r}" in caught.value.message for name in shapes)
    assert named or "depend on which rows share a batch" in caught.value.message
    elsewhere = "the model itself writes into" not in caught.value.message  # which it does in place, too
    assert ("method.evaluator=in-place" if elsewhere else 'method.trainable=["*", "!w"]') in caught.value.hint
    assert all(type(value) is nn.Parameter and same_bits(value, before[n]) for n, value in module.named_parameters())
    assert evaluator.counts.forwards == 0


def from_torch(make, batch, call=None):
    """A module of torch, with what makes one tensor out of its output."""
    holder = Use(call or (lambda m, x: m.part(x)))
    holder.part = seeded_module(make)
    return holder, batch


def query(m, x):
    return m.part(x, x, x)[0]


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(nn.Linear(6, 4))


MODULES_ONCE_A_POINT = {
    "attention": (lambda: nn.MultiheadAttention(6, 2, batch_first=True), LONG, query),
    "attention in training": (lambda: nn.MultiheadAttention(6, 2, batch_first=True).train(), LONG, query),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0), LONG, None),
    "lstm": (lambda: nn.LSTM(6, 4, batch_first=True), LONG, lambda m, x: m.part(x)[0]),
    "gru": (lambda: nn.GRU(6, 4, batch_first=True), LONG, lambda m, x: m.part(x)[0]),
    "rnn cell": (lambda: nn.RNNCell(6, 4), FLAT, None),
    "bilinear": (lambda: nn.Bilinear(6, 6, 3), FLAT, lambda m, x: m.part(x, x)),
    "conv": (lambda: nn.Conv1d(3, 4, 2), LONG, None),
    "batch norm": (lambda: nn.BatchNorm1d(6).eval(), FLAT, None),
    "group norm": (lambda: nn.GroupNorm(2, 6), FLAT, None),
    "instance norm": (lambda: nn.InstanceNorm1d(3, affine=True), LONG, None),
    "layer norm over two axes": (lambda: nn.LayerNorm([3, 6]), LONG, None),
    "prelu": (lambda: nn.PReLU(6), FLAT, None),
    "embedding bag": (lambda: nn.EmbeddingBag(9, 4), IDS, None),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), FLAT, None),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)).eval(), FLAT, None),
    "rows second": (lambda: nn.Linear(6, 4), LONG, lambda m, x: m.part(x.transpose(0, 1)).transpose(0, 1)),
    "heads first": (
        lambda: nn.Linear(3, 4),
        LONG,
        lambda m, x: m.part(x.unflatten(2, (2, 3)).permute(2, 0, 1, 3).flatten(0, 1)).unflatten(0, (2, -1)).sum(0),
    ),
}


@pytest.mark.parametrize("kind", MODULES_ONCE_A_POINT)
def test_a_module_of_torch_that_points_cannot_share_is_run_once_a_point(kind):
    module, batch = from_torch(*MODULES_ONCE_A_POINT[kind])
    assert check_once_a_point(module, batch)


def test_a_scripted_module_is_refused_by_name():
    module, _ = from_torch(scripted, FLAT)
    with pytest.raises(EvaluatorError, match=r"'part\.weight' belongs to a scripted module") as caught:
        build(module)
    assert "method.evaluator=in-place" in caught.value.hint


RIGHT_MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6), nn.LayerNorm(6)), LONG, None),
    "rms norm": (lambda: nn.RMSNorm(6), LONG, None),
    "embedding with padding": (lambda: nn.Embedding(9, 4, padding_idx=0), IDS, None),
    "attention without its own weights": (
        lambda: nn.Linear(6, 12),
        LONG,
        lambda m, x: F.scaled_dot_product_attention(*m.part(x).split([6, 6], 2), x, is_causal=True),
    ),
    "identity": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Identity(), nn.Dropout(0.5)), FLAT, None),
    "a buffer made of a weight": (lambda: nn.Linear(6, 4), FLAT, lambda m, x: m.part(x) + m.kept),
}


@pytest.mark.parametrize("kind", RIGHT_MODULES)
def test_modules_of_torch_that_agree_with_the_in_place_evaluator(kind):
    make, batch, call = RIGHT_MODULES[kind]
    module, batch = from_torch(make, batch, call)
    if "buffer" in kind:  # a number that stays what it is when the weight moves
        module.register_buffer("kept", module.part.weight.detach().sum(1))
    evaluator = build(module)
    evaluator.check([(output_loss, batch)])
    for examples in (1, 5):
        check_agreement(evaluator, output_loss, batch[:examples], POINTS, own_points(examples))


MIXING = {
    "batch norm in training": lambda m, x: m.part(F.batch_norm(x, None, None, training=True)),
    "without the mean": lambda m, x: m.part(x - x.mean(0)),
    "after the product": lambda m, x: m.part(x) - m.part(x).mean(0, keepdim=True),
    "attention among rows": lambda m, x: F.scaled_dot_product_attention(*[m.part(x)[None]] * 3)[0],
    "the next row": lambda m, x: m.part(x).roll(1, 0),
}


@pytest.mark.parametrize("kind", MIXING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_whose_rows_influence_one_another_is_refused(kind, dtype):
    module, batch = from_torch(lambda: nn.Linear(6, 4), FLAT, MIXING[kind])
    evaluator = build(module.to(dtype))
    with pytest.raises(EvaluatorError, match="depend on which rows share a batch|one example at a time") as caught:
        evaluator.check([(output_loss, batch.to(dtype))])
    assert "method.evaluator=in-place" in caught.value.hint


class AdapterOnHalf(nn.Module):
    """A float32 adapter after a layer whose last digits are others where several rows share a product, as in kernels of
    half precision for large matrices."""

    def __init__(self, dtype):
        super().__init__()
        self.base, self.adapter = nn.Linear(6, 8, dtype=dtype), nn.Linear(8, 4)
        self.base.requires_grad_(False)

    def forward(self, x):
        hidden = self.base(x.to(self.base.weight.dtype)).float()
        return self.adapter(hidden * (1 + 2.0**-8 * (len(x) > 1)))


def test_an_adapter_on_a_base_in_half_precision_has_the_rounding_of_its_base():
    torch.manual_seed(0)
    batch = torch.randn(3, 6)
    evaluator = InForward(half := AdapterOnHalf(torch.bfloat16), Backbone(half, LowRank()))
    evaluator.check([(output_loss, batch)])
    exact = AdapterOnHalf(torch.float32)
    with pytest.raises(EvaluatorError, match="depend on which rows share a batch"):
        InForward(exact, Backbone(exact, LowRank())).check([(output_loss, batch)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_in_half_precision_passes_the_check(kind, dtype):
    evaluator, batch = build(build_model(kind).to(dtype)), text_batch(5)
    evaluator.check([(token_loss, batch)])
    exact = build(build_model(kind)).losses(token_loss, batch, [POINTS[0], own_points(5)[0]])
    losses = evaluator.losses(token_loss, batch, [POINTS[0], own_points(5)[0]])
    torch.testing.assert_close(losses, exact, rtol=0.02 if dtype is torch.bfloat16 else 0.003, atol=0)


def test_a_parameter_of_another_class_is_refused_with_its_name():
    class Quantised(nn.Parameter):
        pass

    module = make_mlp()
    module[0].weight = Quantised(torch.randn(16, 5, generator=generator()))
    with pytest.raises(EvaluatorError, match=r"'0\.weight' is a Quantised") as caught:
        build(module)
    assert "method.evaluator=in-place" in caught.value.hint
    evaluator = build(module, ["3.*"])
    check_agreement(evaluator, square_loss, mlp_batch(3), POINTS)


def test_an_adapter_that_moves_can_be_switched_off_in_the_objective():
    """peft sets `requires_grad` of its parameters while their terms are carried."""
    model, _ = lora_model()

    def without(model, batch):
        with model.disable_adapter():
            off = token_loss(model, batch)
        return token_loss(model, batch) - off

    check_agreement(build(model, ["*lora_*"]), without, text_batch(3), [POINTS[0], own_points(3)[0]], rtol=1e-4)


# what a user can get wrong


def test_noise_without_factors_is_refused():
    with pytest.raises(EvaluatorError, match="cannot carry Gaussian directions") as caught:
        InForward(make_mlp(), Backbone(make_mlp(), Gaussian()))
    assert "method.noise=low-rank" in caught.value.hint


def test_a_rank_above_the_smaller_side_of_a_matrix_names_it_and_the_largest():
    with pytest.raises(ConfigError, match=r"rank is 3, but '3\.weight' is 2 x 16") as caught:
        build(make_mlp(), noise=LowRank(3))
    assert "method.noise.rank to 2 or less" in caught.value.hint


def too_large_above(limit, error=torch.OutOfMemoryError):
    def objective(model, batch):
        if len(batch[0]) > limit:
            raise error("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return square_loss(model, batch)

    return objective


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_batch_that_does_not_fit_proposes_the_micro_batch_that_does(error):
    model, batch = make_mlp(), mlp_batch(16)
    before, evaluator = picture(model), build(model)
    with pytest.raises(EvaluatorError, match="16 examples at 2 points do not fit into memory") as caught:
        evaluator.losses(too_large_above(9, error), batch, own_points(16))  # 8 rows are 4 examples at 2 points
    assert "method.evaluator.micro_batch=4," in caught.value.hint
    assert_untouched(model, before)
    assert not model._forward_hooks
    advised = build(model, micro_batch=4).losses(too_large_above(9, error), batch, own_points(16))
    torch.testing.assert_close(advised, evaluator.losses(square_loss, batch, own_points(16)))
    with pytest.raises(EvaluatorError, match="4 of the 16 examples at 2 points") as caught:
        build(model, micro_batch=4).losses(too_large_above(3, error), batch, own_points(16))
    assert "method.evaluator.micro_batch=1," in caught.value.hint


def test_an_example_that_does_not_fit_alone_proposes_to_ask_for_one_point_at_a_time():
    with pytest.raises(EvaluatorError, match="5 examples at 3 points") as caught:
        build(make_mlp()).losses(too_large_above(1), mlp_batch(5), POINTS)
    assert "method.evaluator=in-place" in caught.value.hint


def test_another_error_of_the_model_is_passed_on_as_it_is():
    with pytest.raises(RuntimeError, match="mat1 and mat2|size mismatch|must match"):
        build(make_mlp()).losses(square_loss, (torch.zeros(3, 6), torch.zeros(3, 2)), POINTS)


def test_a_batch_that_cannot_be_repeated_is_named():
    with pytest.raises(EvaluatorError, match="a batch of type str cannot be repeated"):
        build(make_mlp()).losses(square_loss, "words", POINTS)


# directions of each example, through the real evaluator

EXAMPLES, AT_A_TIME = 4, 20  # draws that share a forward
EPSILON = 1e-3


def class_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def make_classifier(select, factors):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batch = torch.randn(EXAMPLES, 3, generator=generator(2)).double(), torch.tensor([0, 0, 0, 1])
    return build(model, select and [select], LowRank(1, factors)), batch


def gradients(evaluator, batch):
    """The gradient of each example's loss, by autograd: a tensor [examples, entries] for each selected name."""
    names = dict(evaluator.model.named_parameters())
    moving = [names[name] for name in evaluator.backbone.tensors]
    rows = [torch.autograd.grad(loss, moving, retain_graph=True) for loss in class_loss(evaluator.model, batch)]
    return {name: torch.stack([row[i].flatten() for row in rows]) for i, name in enumerate(evaluator.backbone.tensors)}


def drawn(evaluator, keys):
    """z of each key: float64, [keys, d], the selected tensors one after the other."""
    noise, shapes = evaluator.backbone.noise, evaluator.backbone.shapes
    layout, parts = noise.layout(shapes, torch.device("cpu")), []
    numbers = layout.draw(keys)
    for name, shape in shapes.items():
        if len(shape) < 2:
            parts.append(layout.vector(numbers, name))
        else:
            parts.append(torch.einsum("kir,kjr->kij", *layout.matrix(numbers, name)).flatten(1) * noise.scale)
    return torch.cat(parts, 1).double()


def estimates(evaluator, batch, draws, group):
    """The estimate of each of many steps: [draws, d]. `group` examples share a direction; 0 for all of them."""
    estimator, groups, found = TwoSided(EPSILON), EXAMPLES // group if group else 1, []
    for start in range(0, draws, AT_A_TIME):
        table = [[Key(3, start + i, g) for g in range(groups)] for i in range(AT_A_TIME)]
        asked = [[row[e // group] for e in range(EXAMPLES)] if group else row[0] for row in table]
        losses = evaluator.losses(class_loss, batch, estimator.ask(asked))
        slopes = estimator.slopes(losses.double()).view(AT_A_TIME, groups, -1).sum(2) / EXAMPLES
        z = drawn(evaluator, [key for row in table for key in row]).view(AT_A_TIME, groups, -1)
        found.append((slopes.unsqueeze(2) * z).sum(1))
        if not start:  # what the estimator itself makes of them is their mean
            told = evaluator.backbone.values(estimator.tell(asked, losses).gradient)
            told = torch.cat([value.flatten() for value in told.values()]).double()
            torch.testing.assert_close(told, found[0].mean(0), rtol=1e-4, atol=1e-5)
    assert evaluator.counts.queries == draws * 2 * EXAMPLES
    return torch.cat(found)


# The estimate along one direction z, of a loss with gradient g, is (g.z) z. Let z have blocks z_b of d_b entries, one a
# tensor, independent and even, d in all. Mixed terms vanish, and E z z' = I, so that
#     E |(g.z) z|^2 = sum over b, c of E[(g_b.z_b)^2 |z_c|^2] = sum over b of |g_b|^2 (d - d_b + k_b),
# where E[(g_b.z_b)^2 |z_b|^2] = k_b |g_b|^2. A Gaussian vector has k = d_b + 2. A matrix of rank-1 noise, m x n, is
# l r', hence (l'G r)^2 |l|^2 |r|^2, and one Gaussian factor after the other gives k = (m + 2)(n + 2): more than
# m n + 2, the price of a direction that fits into a forward. With signs for factors |z_b|^2 is d_b, and so is k. The
# variance is that less |g|^2. A step of m groups with gradients g_j of their mean losses is the mean of m independent
# estimates: its variance is the sum of theirs over m^2.
def variance_in_theory(each, shapes, group, factors):
    """Of one step.

    Args:
        each: gradients of the examples, by name.
        shapes: of the tensors, by name.
        group: examples that share a direction; 0 for all.
        factors: name of the noise of the factors.
    """
    d, total = sum(g.shape[1] for g in each.values()), 0.0
    groups = EXAMPLES // group if group else 1
    for name, g in each.items():
        squared = g.view(groups, -1, g.shape[1]).mean(1).square().sum().item()
        kurtosis = math.prod(side + 2 if factors == "gaussian" else side for side in shapes[name])
        total += squared * (d - g.shape[1] + kurtosis - 1)
    return total / groups**2


@functools.cache
def variance(select, factors, group, draws):
    """Of one step: measured, in theory; after a look at the mean."""
    evaluator, batch = make_classifier(select, factors)
    each, found = gradients(evaluator, batch), estimates(evaluator, batch, draws, group)
    g = torch.cat([value.mean(0) for value in each.values()])
    error = found.std(0) / draws**0.5
    assert (4 * error).max() < g.norm()
    assert ((found.mean(0) - g).abs() <= 4 * error).all()
    measured = (found - g).square().sum(1)
    theory = variance_in_theory(each, evaluator.backbone.shapes, group, factors)
    assert abs(measured.mean().item() - theory) < 4 * measured.std().item() / draws**0.5
    return measured.mean().item(), theory


few_or_many = pytest.mark.parametrize("draws", [600, pytest.param(20_000, marks=pytest.mark.soak)])


@few_or_many
@pytest.mark.parametrize(("select", "group"), [(None, 0), (None, 1), (None, 2), ("0.weight", 0), ("0.weight", 1)])
def test_estimates_of_a_small_model_average_to_its_gradient_with_the_variance_of_theory(select, group, draws):
    variance(select, "gaussian", group, draws)


@pytest.mark.parametrize(
    ("select", "factors"),
    with_soak([(None, "rademacher"), ("*.bias", "gaussian"), ("2.weight", "rademacher")], [(None, "rademacher")]),
    ids=["all", "vectors", "matrix"],
)
@few_or_many
def test_directions_of_their_own_cut_the_variance_by_the_known_ratio(select, factors, draws):
    (shared, shared_theory), (own, own_theory) = (variance(select, factors, group, draws) for group in (0, 1))
    assert own / shared == pytest.approx(own_theory / shared_theory, rel=0.1 if draws > 600 else 0.2)
    assert abs(own_theory / shared_theory - 1) > 0.2  # so that the tolerance tells it from no gain
