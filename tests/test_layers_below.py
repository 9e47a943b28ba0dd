"""Layers below the first tensor that moves are run once for all points, with the losses of the in-place evaluator."""

import copy
import warnings

import peft
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from conftest import build_model
from test_in_forward import POINTS, A, build, check_agreement, own_points, square_loss, text_batch, token_loss
from zofo.backbone import selected
from zofo.displacement import Displacement
from zofo.errors import EvaluatorError
from zofo.estimate import estimate_run
from zofo.estimate.ledger import trace
from zofo.evaluators import sharing_on_meta
from zofo.tasks import batches
from zofo.training import read_config

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

LAST, HEAD, ADAPTER = ["*.1.*"], ["lm_head*"], ["*lora_*"]
FAR = [Displacement({A: size}) for size in (0.1, -0.1)]


def seen_rows(layers, ask):
    """How many rows each layer was given, of all its calls while the losses were asked for."""
    seen = [[] for _ in layers]
    insides = [next(part for part in layer.modules() if isinstance(part, nn.LayerNorm) or "Norm" in type(part).__name__)
               for layer in layers]  # fmt: skip  # inside of what is run with fewer rows
    handles = [
        part.register_forward_pre_hook(lambda _, given, own=own: own.append(len(given[0])))
        for part, own in zip(insides, seen, strict=True)
    ]
    ask()
    for handle in handles:
        handle.remove()
    return seen


def real_flops(ask):
    """Of the products of a call, with those that torch's counter does not know."""

    def of_attention(query, key, value, *_, **__):
        return 4 * query.numel() * key.shape[-2]

    def of_addmm(*given, **named):
        return flop_registry[torch.ops.aten.addmm](*given, **named)

    of_attention._get_raw = of_addmm._get_raw = True  # given tensors, not shapes
    known = {CPU_ATTENTION: of_attention, torch.ops.aten.addmm_: of_addmm}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        ask()
    return counter.get_total_flops()


@pytest.mark.parametrize("trainable", [None, LAST])
def test_an_estimate_counts_layers_below_once(trainable):
    """As many operations of products as a forward of two points makes, to 2 %."""
    model, batch = build_model("llama-untied"), text_batch(3)
    evaluator = build(model, trainable)
    evaluator.check([(token_loss, batch)])
    evaluator.losses(token_loss, batch, FAR)  # and more rows than were tried, alone
    real = real_flops(lambda: evaluator.losses(token_loss, batch, FAR))
    bare = copy.deepcopy(model).to("meta")
    moved = {id(one) for one in selected(bare, trainable).values()}
    rows = batches.repeated({name: one.to("meta") for name, one in batch.items()}, 2)
    with sharing_on_meta(bare, moved, 2):
        found = trace(lambda: token_loss(bare, rows), carried=moved)
    assert real == pytest.approx(found.work.flops, rel=0.02)
    whole = trace(lambda: token_loss(bare, rows), carried=moved)
    assert (found.work.flops < 0.9 * whole.work.flops) == (trainable is not None)


def test_an_estimate_knows_which_tensors_move(model_folder):
    def of(trainable):
        method = {"name": "mezo", "batch_size": 4, "trainable": trainable}
        asked = read_config(model=str(model_folder), method=method)
        return estimate_run(asked, tokens=12, device="cpu", beside=False).configured.work

    whole, last = of(None), of(LAST)
    assert last.flops < 0.9 * whole.flops
    assert last.moved_bytes < whole.moved_bytes  # the sweep over what moves


def layers_of(model):
    return next(part for part in model.modules() if isinstance(part, nn.ModuleList))


@pytest.mark.parametrize(
    ("kind", "trainable", "below"),
    [
        ("llama", LAST, 1),
        ("gpt2", LAST, 1),
        ("gemma3", LAST, 1),
        ("llama-untied", HEAD, 2),
        ("llama-untied", ["*norm.weight", "!*layers*"], 2),
        ("qwen2", ["*.0.*"], 0),
        ("qwen2", None, 0),
    ],
)
def test_layers_are_run_once_up_to_the_first_tensor_that_moves(kind, trainable, below):
    model, batch = build_model(kind), text_batch(3)
    evaluator = build(model, trainable)
    evaluator.check([(token_loss, batch)])
    evaluator.losses(token_loss, batch, own_points(3))  # and more rows than were tried, alone
    rows = seen_rows(layers_of(model), lambda: evaluator.losses(token_loss, batch, own_points(3)))
    assert rows == [[3]] * below + [[6]] * (len(rows) - below)
    check_agreement(evaluator, token_loss, batch, own_points(3), [*POINTS, own_points(3)[0]])
    check_agreement(evaluator, token_loss, text_batch(1), FAR)  # one row could be an axis that all rows share


def test_layers_below_an_adapter_of_the_top_layer_are_run_once():
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], layers_to_transform=[1], init_lora_weights=False)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        model = peft.get_peft_model(build_model("llama"), config).eval()
    evaluator, batch = build(model, ADAPTER), text_batch(3)
    evaluator.check([(token_loss, batch)])
    rows = seen_rows(layers_of(model), lambda: evaluator.losses(token_loss, batch, POINTS[:2]))
    assert rows[0][0] == 3
    assert rows[1][0] == 6
    check_agreement(evaluator, token_loss, batch, POINTS, own_points(3))


class Layer(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.norm, self.part, self.call = nn.LayerNorm(4), nn.Linear(4, 4), call

    def forward(self, x, *others):
        return self.call(self, x, *others)


class Stack(nn.Module):
    """Two layers, of which the second may move; `call` is what the first does, `use` what the model does with it."""

    def __init__(self, call, use=lambda m, x: m.layers[0](x)):
        super().__init__()
        self.layers = nn.ModuleList([Layer(call), Layer(lambda m, x: m.part(m.norm(x)))])
        self.use = use

    def forward(self, x):
        return self.layers[1](self.use(self, x))


class Cache(list):
    """Keeps what it is given."""


def plain(m, x, *others):
    return m.part(m.norm(x)) + sum((each for each in others if each is not None), 0)


def into_its_input(m, x):
    return m.part(m.norm(x.mul_(0.5)))


def from_a_cache(m, x, cache):
    cache.append(m.part(m.norm(x)))
    return cache[0]


def ends(m, x, bounds):
    """Told of the rows by where they end, as kernels of packed rows are."""
    lengths = bounds.diff().to(x.dtype)
    return m.part(m.norm(x)) * lengths.view(-1, 1, 1)


def held(m, x):
    m.layers[0].of_rows = x
    return m.layers[0](x)


FIRST = {
    "plain": (plain, lambda m, x: m.layers[0](x), True),
    "masks of rows, of heads, of none": (
        plain, lambda m, x: m.layers[0](x, x[:, :, :1] * 1, x[:1].detach() * 0, None, torch.ones(6, 1)), True),
    "writes into its input, which is used again": (into_its_input, lambda m, x: m.layers[0](h := x * 1) + h, True),
    "gives several": (lambda m, x: (plain(m, x), None, x), lambda m, x: sum(m.layers[0](x)[::2]), True),
    "gives what holds rows elsewhere": (
        lambda m, x: (plain(m, x), x.sum((1, 2))), lambda m, x: (y := m.layers[0](x))[0] + y[1].view(-1, 1, 1), False),
    "a cache": (from_a_cache, lambda m, x: m.layers[0](x, Cache()), False),
    "where rows end": (ends, lambda m, x: m.layers[0](x, torch.arange(len(x) + 1)), False),
    "number of rows": (lambda m, x, n: plain(m, x) * n / n, lambda m, x: m.layers[0](x, len(x)), False),
    "positions first": (
        lambda m, x: plain(m, x), lambda m, x: m.layers[0](x.transpose(0, 1)).transpose(0, 1), False),
    "rows beside what it is given": (lambda m, x: plain(m, x) + m.of_rows, held, False),
}  # fmt: skip


@pytest.mark.parametrize("first", FIRST)
def test_a_layer_is_run_as_the_model_runs_it_where_rows_are_elsewhere(first):
    call, use, shared = FIRST[first]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batch = Stack(call, use).requires_grad_(False), (torch.randn(4, 6, 4), torch.randn(4, 6, 4))
    evaluator = build(model, ["layers.1.*"])
    evaluator.check([(square_loss, batch)])
    evaluator.losses(square_loss, batch, own_points(4))
    rows = seen_rows(model.layers, lambda: evaluator.losses(square_loss, batch, own_points(4)))
    assert (rows[0][-1] == 4) is shared
    assert rows[1] == [8]
    check_agreement(evaluator, square_loss, batch, own_points(4), POINTS)
    again = build(model, ["layers.1.*"])
    again.load_state_dict(evaluator.state_dict())
    assert again.below.on is evaluator.below.on


def test_rows_that_differ_before_anything_moves_are_not_shared():
    """An objective may give points rows of their own; what is compared is numbers."""
    model = Stack(plain)
    evaluator, asked = build(model, ["layers.1.*"]), torch.randn(4, 6, 4, generator=torch.Generator().manual_seed(0))

    def objective(model, batch):
        return model(batch + torch.arange(len(batch)).view(-1, 1, 1)).square().mean((1, 2))

    rows = seen_rows(model.layers, lambda: evaluator.losses(objective, asked, POINTS[:2]))
    assert rows == [[8], [8]]


def test_a_check_says_what_is_wrong_with_the_layer_that_moves_and_goes_on_sharing():
    model = Stack(plain)
    model.layers[1].part = nn.GRU(4, 4, batch_first=True)
    model.layers[1].call = lambda m, x: m.part(x)[0]
    evaluator, batch = build(model, ["layers.1.*"]), (torch.randn(4, 6, 4), torch.randn(4, 6, 4))
    evaluator.check([(square_loss, batch)])
    assert evaluator.per_point.names == ("layers.0", "layers.1")  # made alike
    assert evaluator.below.on
    check_agreement(evaluator, square_loss, batch, own_points(4))
    model.layers[1].call = lambda m, x: m.part(x)[0].cumsum(0)
    with pytest.raises(EvaluatorError, match="which rows share a batch|one example at a time"):
        build(model, ["layers.1.*"]).check([(square_loss, batch)])
