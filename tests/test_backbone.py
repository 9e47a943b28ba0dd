"""The backbone: which tensors move, under which names, and the one loop that adds a displacement to them."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from conftest import ARCHITECTURES, build_model
from zofo.backbone import Backbone, Update, selected
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, ModelError
from zofo.noise import NOISES, Gaussian, LowRank, Magnitude

ONE, TWO, THREE = Key(1, 0), Key(1, 1), Key(2, 0, 5)
every_noise = pytest.mark.parametrize("name", NOISES)


class Mixed(nn.Module):
    """A matrix, a norm, a bias, a transposed view and a tensor with three axes."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.linear = nn.Linear(37, 11)
            self.norm = nn.LayerNorm(11)
            self.conv = nn.Conv1d(3, 4, 5)
            self.turned = nn.Parameter(torch.randn(29, 13).t())


def bits(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def all_bits(module):
    return {name: bits(tensor).clone() for name, tensor in module.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def agree(noise, one, two, dtype):
    """The same bits; for low rank, whose products may round otherwise in other blocks, the same numbers."""
    if noise != "low-rank":
        return same(one, two)
    steps = {torch.float32: 3e-6, torch.float64: 1e-13, torch.bfloat16: 0.04, torch.float16: 0.004}[dtype]
    closest = {"rtol": 0, "atol": steps}
    return all(torch.allclose(one[name].view(dtype), two[name].view(dtype), **closest) for name in one)


# which tensors, under which names


def test_tied_tensors_are_one_tensor_under_the_name_seen_first():
    model = build_model("llama")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tensors = Backbone(model, Gaussian()).tensors
    assert "model.embed_tokens.weight" in tensors
    assert "lm_head.weight" not in tensors
    assert list(tensors) == [name for name, _ in model.named_parameters()]


def test_tensors_that_share_storage_without_being_one_parameter_move_once():
    module = nn.Module()
    module.first = nn.Parameter(torch.zeros(3, 4))
    module.second = nn.Parameter(module.first.data)
    backbone = Backbone(module, Gaussian())
    assert list(backbone.tensors) == ["first"]
    backbone.apply_(Displacement({ONE: 1.0}))
    assert torch.equal(module.second, Gaussian().whole(ONE, "first", (3, 4)))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_parameter_of_an_architecture_is_selected_once_and_shares_the_memory_of_the_model(kind):
    model = build_model(kind)
    backbone = Backbone(model, Gaussian())
    parameters = dict(model.named_parameters())
    assert list(backbone.tensors) == list(parameters)
    assert all(tensor.data_ptr() == parameters[name].data_ptr() for name, tensor in backbone.tensors.items())
    assert backbone.size == sum(parameter.numel() for parameter in model.parameters())
    assert backbone.dtypes == {torch.float32}


def test_patterns_select_their_union_in_the_order_of_the_model():
    model = build_model("llama")
    chosen = list(selected(model, ["*.layers.1.mlp.*", "*q_proj*", "model.norm.weight"]))
    assert chosen == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.norm.weight",
    ]


def test_a_pattern_without_a_match_is_refused_even_beside_one_that_matches():
    with pytest.raises(ConfigError, match=r"'\*\.layers\.29\.\*' matches none of the model's 20 parameters") as caught:
        Backbone(build_model("llama"), Gaussian(), ["*mlp*", "*.layers.29.*"])
    assert "model.embed_tokens.weight" in caught.value.hint


def test_a_module_without_parameters_and_a_tensor_of_integers_are_refused():
    with pytest.raises(ConfigError, match="no parameters"):
        Backbone(nn.ReLU(), Gaussian())
    module = nn.Linear(2, 2)
    module.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"'codes' holds torch.int8"):
        Backbone(module, Gaussian())
    assert "codes" not in Backbone(module, Gaussian(), ["weight"]).tensors


def test_a_rank_that_does_not_fit_is_refused_before_any_weight_moves():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    before = all_bits(module)
    with pytest.raises(ConfigError, match=r"'1.weight' is 2 x 8"):
        Backbone(module, LowRank(rank=4)).apply_(Displacement({ONE: 1.0}))
    assert same(all_bits(module), before)


NORMS = {
    "llama": r"(input_layernorm|post_attention_layernorm|model\.norm)\.weight$",
    "qwen2": r"(input_layernorm|post_attention_layernorm|model\.norm)\.weight$",
    "gpt2": r"(ln_1|ln_2|ln_f)\.weight$",
    "opt": r"layer_norm\.weight$",
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_weight_decay_spares_biases_and_norms_by_the_type_of_their_module(kind):
    backbone = Backbone(build_model(kind), Gaussian())
    norms = {name for name in backbone.tensors if re.search(NORMS[kind], name)}
    biases = {name for name in backbone.tensors if name.endswith(".bias")}
    assert len(norms) == 5  # two in each of two layers, and the last
    assert len(biases) == {"llama": 0, "qwen2": 6, "gpt2": 13, "opt": 17}[kind]
    assert backbone.decays == set(backbone.tensors) - norms - biases


def test_weight_decay_spares_the_biases_of_recurrent_and_attention_modules():
    module = nn.ModuleDict(
        {"lstm": nn.LSTM(3, 4), "attention": nn.MultiheadAttention(4, 2), "batch": nn.BatchNorm1d(4)}
    )
    assert Backbone(module, Gaussian()).decays == {
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }


# folding


@every_noise
def test_fold_equals_the_arithmetic_written_out(name):
    module, noise = Mixed(), NOISES[name]()
    start = {tensor: value.clone() for tensor, value in module.state_dict().items()}
    backbone = Backbone(module, noise)
    update = Update(Displacement({ONE: 0.5, TWO: -0.25}), decay_factor=0.125)
    leaving = Displacement({ONE: 2.0, THREE: 1.0})
    backbone.apply_(update, leaving=leaving)
    for tensor, value in module.state_dict().items():
        shape = tuple(value.shape)
        z = {key: noise.whole(key, tensor, shape).double() for key in (ONE, TWO, THREE)}
        keep = 0.875 if tensor in ("linear.weight", "conv.weight", "turned") else 1.0
        home = start[tensor].double() - (2.0 * z[ONE] + 1.0 * z[THREE])
        expected = keep * home + 0.5 * z[ONE] - 0.25 * z[TWO]
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=2e-6)
        assert (value.double() - start[tensor].double()).abs().max() > 0.5


@every_noise
def test_the_value_of_a_sum_is_the_sum_of_the_values(name):
    backbone = Backbone(Mixed(), NOISES[name]())
    u, v = Displacement({ONE: 0.5, TWO: 1.0}), Displacement({TWO: -0.75, THREE: 2.0})
    total, first, second = (backbone.values(d) for d in (u - 3 * v, u, v))
    for tensor in backbone.tensors:
        torch.testing.assert_close(total[tensor], first[tensor] - 3 * second[tensor], rtol=0, atol=3e-6)
        assert total[tensor].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@every_noise
def test_any_block_size_gives_the_same_bits(name, dtype):
    """One number at a time only in float32: it takes most of the time, and blocks of 7 meet no boundary of types."""
    results = []
    for block in (None, *([1] if dtype == torch.float32 else []), 7, 8, 64, 100, 10_000):
        module = Mixed().to(dtype)
        update = Update(Displacement({ONE: 0.3, TWO: -0.7}), decay_factor=0.1)
        Backbone(module, NOISES[name](), block=block).apply_(update, leaving=Displacement({ONE: 0.9}))
        results.append(all_bits(module))
    assert all(agree(name, result, results[0], dtype) for result in results[1:])


@every_noise
def test_any_block_size_hands_an_elementwise_rule_the_same_gradient(name):
    results = []
    for block in (None, 5, 64):
        module = Mixed()
        update = Update(Displacement({ONE: 0.3, TWO: -0.7}), dense_update_fn=lambda _n, _s, _b, g: g.square().neg_())
        Backbone(module, NOISES[name](), block=block).apply_(update, leaving=Displacement({THREE: 0.1}))
        results.append(all_bits(module))
    assert all(agree(name, result, results[0], torch.float32) for result in results[1:])


@every_noise
def test_a_tensor_in_another_memory_order_moves_as_its_contiguous_twin(name):
    turned, straight = nn.Module(), nn.Module()
    turned.w = nn.Parameter(torch.arange(60.0).view(4, 5, 3).permute(2, 0, 1))
    straight.w = nn.Parameter(turned.w.detach().contiguous())
    assert not turned.w.is_contiguous()
    for module in (turned, straight):
        Backbone(module, NOISES[name](), block=7).apply_(Displacement({ONE: 0.5}), leaving=Displacement({TWO: 1.5}))
    assert torch.equal(turned.w, straight.w)
    assert turned.w.stride() == (1, 15, 3)
    assert not torch.equal(turned.w, torch.arange(60.0).view(4, 5, 3).permute(2, 0, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tensors_are_rounded_once_from_float32_arithmetic(dtype):
    module = nn.Linear(64, 64, bias=False).to(dtype)
    start = module.weight.detach().clone()
    Backbone(module, Gaussian()).apply_(Displacement({ONE: 1e-3, TWO: 1e-3, THREE: 1e-3}))
    total, each_time = torch.zeros(64, 64), start.clone()
    for key in (ONE, TWO, THREE):
        z = Gaussian().whole(key, "weight", (64, 64))
        total.add_(z, alpha=1e-3)
        each_time.add_(z.to(dtype), alpha=1e-3)
    once = start.float() + total
    assert torch.equal(bits(module.weight), bits(once.to(dtype)))
    assert not torch.equal(bits(module.weight), bits(each_time))  # which would lose part of each term


@pytest.mark.parametrize("decay_factor", [1e-7, 1e-6, 1e-4])
def test_a_shrink_near_the_last_place_of_float32_takes_off_its_share(decay_factor):
    module = nn.Linear(1000, 100, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(1, 2, 100_001)[:-1].view(100, 1000))
    before = module.weight.detach().double()
    Backbone(module, Gaussian()).apply_(Update(Displacement(), decay_factor=decay_factor))
    taken = (before - module.weight.detach().double()).sum() / before.sum()
    assert taken.item() == pytest.approx(decay_factor, rel=0.05)  # rounding 1 - 1e-7 to float32 would take 1.19e-7


def test_tensors_outside_the_selection_keep_every_bit():
    model = build_model("llama")
    before = all_bits(model)
    backbone = Backbone(model, Gaussian(), ["*.layers.1.*"])
    backbone.apply_(Update(Displacement({ONE: 1.0}), decay_factor=0.5))
    after = all_bits(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(backbone.tensors)


# sweeps


def test_going_home_and_updating_is_one_sweep_and_nothing_to_do_is_none():
    backbone = Backbone(Mixed(), Gaussian())
    backbone.apply_(Displacement({ONE: 1.0}))
    assert backbone.sweeps == 1
    backbone.apply_(Update(Displacement({ONE: -0.5, TWO: 0.5}), decay_factor=0.1), leaving=Displacement({ONE: 1.0}))
    assert backbone.sweeps == 2
    backbone.apply_(Displacement())
    backbone.apply_(Update(Displacement()), leaving=Displacement())
    assert backbone.sweeps == 2
    backbone.apply_(Update(Displacement(), decay_factor=0.1))
    assert backbone.sweeps == 3


@pytest.mark.promise(17)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "noise", [Gaussian(), LowRank(), LowRank(3), Magnitude(0.5)], ids=["dense", "rank 1", "rank 3", "masked"]
)
def test_gathered_updates_have_the_bits_of_one_after_the_other_in_fewer_sweeps(noise, dtype):
    """More keys than are gathered, updates of several keys, of none, some that shrink, and one that cannot wait."""
    updates = [Update(Displacement({Key(1, step): 0.3 / (step + 1)})) for step in range(90)]
    updates += [Update(Displacement({Key(2, 0, index): 0.1 * index for index in range(1, 5)})), Update(Displacement())]
    updates += [Update(Displacement({ONE: -0.5}), decay_factor=0.01), Update(Displacement({TWO: 0.25}))]

    def written(gathered):
        module = Mixed().to(dtype)
        masks = isinstance(noise, Magnitude)
        backbone = Backbone(module, LowRank() if masks else noise, mask=noise if masks else None)
        with backbone.deferred_writes() if gathered else nullcontext():
            for update in updates:
                backbone.apply_(update)
            backbone.apply_(Displacement({THREE: 1.0}), leaving=Displacement({TWO: 0.5}))
            backbone.apply_(updates[0])
            backbone.apply_(updates[1])
        return all_bits(module), backbone

    alone, backbone = written(False)
    together, gathering = written(True)
    assert same(alone, together)
    assert backbone.sweeps == 96
    assert gathering.sweeps == 4
    assert not gathering.is_corrupt


def test_what_was_gathered_is_not_written_after_an_error():
    module = Mixed()
    before, backbone = all_bits(module), Backbone(module, Gaussian())

    def interrupted():
        with backbone.deferred_writes():
            backbone.apply_(Update(Displacement({ONE: 1.0})))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same(before, all_bits(module))
    backbone.apply_(Update(Displacement({ONE: 1.0})))  # at once again
    assert not same(before, all_bits(module))


def test_an_elementwise_update_is_applied_also_when_the_gradient_is_zero():
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    backbone = Backbone(module, Gaussian())
    backbone.apply_(Update(Displacement(), dense_update_fn=lambda _n, _s, _b, gradient: gradient + 0.5))
    assert torch.equal(module.weight, before + 0.5)
    assert backbone.sweeps == 1


def test_folding_records_no_graph_and_leaves_gradients_alone():
    module = Mixed()
    Backbone(module, Gaussian()).apply_(Displacement({ONE: 1.0}))
    assert all(p.requires_grad and p.grad is None and p.grad_fn is None for p in module.parameters())


# fingerprint


def test_the_fingerprint_changes_with_any_single_bit_and_comes_back_with_it():
    module = Mixed()
    backbone = Backbone(module, Gaussian())
    first, seen = backbone.fingerprint(), set()
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", first)
    for tensor in backbone.tensors.values():
        for bit in range(32):
            words = tensor.view(torch.int32)
            mask = torch.zeros_like(words)
            mask[(bit % tensor.shape[0], *[0] * (tensor.dim() - 1))] = -(2**31) if bit == 31 else 1 << bit
            words ^= mask
            seen.add(backbone.fingerprint())
            words ^= mask
    assert len(seen) == 32 * len(backbone.tensors)
    assert first not in seen
    assert backbone.fingerprint() == first


def test_the_fingerprint_tells_names_types_and_shapes_apart_but_not_memory_order():
    def fingerprint(tensor, name="w"):
        module = nn.Module()
        module.register_parameter(name, nn.Parameter(tensor))
        return Backbone(module, Gaussian()).fingerprint()

    zeros = torch.zeros(4, 6)
    others = [(zeros, "v"), (zeros.half(), "w"), (zeros.bfloat16(), "w"), (torch.zeros(6, 4), "w"), (zeros[:2], "w")]
    prints = [fingerprint(*other) for other in others]
    assert len({*prints, fingerprint(zeros)}) == 6
    values = torch.arange(24.0).view(4, 6)
    assert fingerprint(values) == fingerprint(values.t().contiguous().t())
    assert fingerprint(values) != fingerprint(values.t())


def test_a_parameter_that_was_replaced_is_still_the_one_that_moves():
    """`model.half()`, `model.to(device)` and the like give a parameter new storage."""
    model = torch.nn.Linear(3, 2)
    backbone = Backbone(model, Gaussian())
    model.weight.data = model.weight.data.clone()
    before = model.weight.detach().clone()
    backbone.apply_(Displacement({Key(0, 0): 1.0}))
    assert not torch.equal(model.weight, before)
