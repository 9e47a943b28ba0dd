"""How many small operations a step in the forward makes, beside inference of the same rows: a count, not a time."""

from collections import Counter

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import build_model
from test_in_forward import build, check_agreement, own_points, square_loss
from zofo.adapters import FusedLora
from zofo.adapters.base import quiet_peft
from zofo.bench import StepOptions
from zofo.bench.step_variants import WAYS


class OperationCount(TorchDispatchMode):
    """While it is open, counts what torch dispatches, views too."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model():
    """As many layers as SmolLM2 has, so that what a step makes once has its true share."""
    config = transformers.LlamaConfig(
        hidden_size=18,
        intermediate_size=24,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=64,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def test_a_step_makes_at_most_twice_the_operations_of_inference(model):
    options = StepOptions("random", examples=4, tokens=6, dtype="bfloat16")
    counts = {}
    for name in ("inference", "in-forward-shared", "in-forward-per-example"):
        way = WAYS[name](model, options)
        for _ in range(4):  # as many updates wait as in the middle of a cycle
            way.step()
        with OperationCount() as counted:
            way.step()
        counts[name] = counted.calls.total()
    assert max(counts.values()) <= 2 * counts["inference"], counts


def test_a_layer_that_is_applied_again_and_again_to_one_tensor_makes_its_thin_product_once():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x):
            return sum(self.first(x) * self.second(x) for _ in range(20))

    torch.manual_seed(0)
    model, batch = Repeated(), (torch.randn(3, 5), torch.randn(3, 2))
    evaluator = build(model)
    evaluator.losses(square_loss, batch, own_points(3))
    assert max(map(len, evaluator._siblings.values())) == 2
    with OperationCount() as counted:
        evaluator.losses(square_loss, batch, own_points(3))
    assert counted.calls["aten.mm.default"] == 1 + 40  # one for both of them, and what brings each back to its outputs
    check_agreement(evaluator, square_loss, batch, own_points(3))


@pytest.mark.parametrize("state", ["one", "two", "off", "merged", "another dtype", "dropout", "dora", "hook"])
def test_lora_layers_add_onto_what_their_base_gives(state):
    def config(rank, **options):
        options = {"r": rank, "lora_alpha": 3, "target_modules": ["q_proj"], "init_lora_weights": False, **options}
        return peft.LoraConfig(**options)

    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(0)
        model = peft.get_peft_model(build_model("llama"), config(2, lora_dropout=0.5 if state == "dropout" else 0.0))
        model.add_adapter("more", config(1))
        model.add_adapter("directions", config(1, target_modules=["v_proj"], use_dora=True))
        x = torch.randn(3, 5, 16)
    model.base_model.set_adapter(["default", "more"] if state == "two" else ["default"])
    if state == "off":
        model.base_model.disable_adapter_layers()
    if state == "merged":
        model.merge_adapter()
    if state == "another dtype":
        for name, part in model.named_modules():
            if name.endswith(("lora_A", "lora_B")):
                part.bfloat16()
    if state == "hook":  # of someone who keeps what a layer gives
        for name, part in model.named_modules():
            if name.endswith("base_layer"):
                part.register_forward_hook(lambda module, given, out: None)
    model.train(state == "dropout")
    forwards = list(FusedLora(model).forwards())
    assert len(forwards) == 4
    if state == "dora":
        model.base_model.set_adapter("directions")
    layer, fused = forwards[1 if state == "dora" else 0]  # of v_proj
    own = layer.forward
    with torch.no_grad(), torch.random.fork_rng(), OperationCount() as fewer:
        torch.manual_seed(0)
        given = fused(x)
    with torch.no_grad(), torch.random.fork_rng(), OperationCount() as all_of_them:
        torch.manual_seed(0)
        expected = own(x)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)
    same = state not in ("one", "two")
    assert (fewer.calls.total() == all_of_them.calls.total()) is same
    assert fused(x).requires_grad is own(x).requires_grad


def test_points_share_the_layers_of_an_adapter():
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        model = peft.get_peft_model(build_model("llama"), config)
    ids = torch.arange(20).view(4, 5)

    def last(model, batch):
        return model(input_ids=batch).logits[:, -1].square().mean(1)

    evaluator = build(model, ["*lora_*"])
    evaluator.check([(last, ids)])
    evaluator.losses(last, ids, own_points(4))
    assert evaluator.per_point.names == ()
