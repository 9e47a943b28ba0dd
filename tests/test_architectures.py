"""Every language architecture of the installed transformers: in the forward as in place, or refused before a step."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from tiny_architectures import TYPES, NotBuilt, build_tiny
from zofo import MeZO, MeZOConfig, TrainingContext
from zofo.adapters import LoraAdapters
from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.errors import EvaluatorError
from zofo.evaluators import InPlace, unused_by
from zofo.models.loading import quiet_transformers
from zofo.noise import LowRank

QUICK = {("causal", "qwen3"), ("masked", "distilbert"), ("causal", "recurrent_gemma"), ("causal", "granitemoe")}
FEWEST_BUILT = 160
LEAST_MOVING = 0.98  # of the numbers that a forward uses and that require a gradient
TOLERANCE = 1e-5  # of float32 losses, relative
# examples and tokens; at two points each, there are as many rows as tokens, a divisor of the tokens, or more of them
BATCHES = ((16, 64), (8, 16), (12, 7), (3, 32))
POINTS = [Displacement({Key(11, 4): size}) for size in (1e-2, -1e-2)]


def text_batch(examples, length, padding):
    generator = torch.Generator().manual_seed(examples)
    ids = torch.randint(3, 300, (examples, length), generator=generator)
    mask = torch.ones_like(ids)
    for row, tokens in enumerate(torch.randint(length // 2, length + 1, (examples,), generator=generator).tolist()):
        if row:  # the first is whole, so that the batch is as long as its tensors
            mask[row, slice(length - tokens) if padding == "left" else slice(tokens, length)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def token_loss(model, batch):
    """Of each row: the cross-entropy of its tokens, each in its place, or a square of the states of a bare encoder."""
    out = model(**batch)
    if "logits" in out:
        each = F.cross_entropy(out.logits.float().transpose(1, 2), batch["input_ids"], reduction="none")
    else:
        each = (out.last_hidden_state.float() - 0.3).square().mean(2)
    return (each * batch["attention_mask"]).sum(1) / batch["attention_mask"].sum(1)


def method_of(model, select, batch):
    """MeZO in the forward, checked as before a run."""
    rows = range(len(batch["input_ids"]))
    config = MeZOConfig(batch_size=len(rows), evaluator={"name": "in-forward"}, trainable=select)
    made = {"collate": lambda chosen: {name: tensor[list(chosen)] for name, tensor in batch.items()}}
    method = MeZO(config, TrainingContext(model, token_loss, list(rows), **made))
    method.check()
    return method


def in_place(model, names, batch):
    model = copy.deepcopy(model)
    evaluator = InPlace(model, Backbone(model, LowRank(), names))
    return torch.cat([evaluator.losses(token_loss, batch, [point]) for point in POINTS])


def differs(model, evaluator, batch):
    """Whether the losses in the forward are further from those in place than float32 accounts for."""
    names = list(evaluator.backbone.tensors)
    losses, expected = evaluator.losses(token_loss, batch, POINTS), in_place(model, names, batch)
    assert losses.isfinite().all()
    assert (expected[0] - expected[1]).abs().max() > 20 * TOLERANCE * expected.abs().max()  # a wrong one would show
    if torch.allclose(losses, expected, rtol=TOLERANCE, atol=0):
        return False
    exact = in_place(model.double(), names, batch)  # some models round more: by how much, a float64 one tells
    model.float()
    return bool((losses - exact).abs().max() > 4 * (expected - exact).abs().max())


def outcomes(model, padding):
    """What becomes of all tensors, and, after a refusal, of those that are left: `equal`, `differs` or a refusal."""
    select, batches = None, [text_batch(*shape, padding) for shape in BATCHES]
    while select != []:
        try:
            method = method_of(model, select, batches[0])
        except EvaluatorError as error:
            yield f"refused: {error.message}"
            named = re.findall(r"'([\w.]+)'", error.message)
            kept = select or [name for name, _ in model.named_parameters()]
            left = [name for name in kept if shape_of(name) not in map(shape_of, named)]
            if left == kept:
                return
            select = left
        else:
            found = [
                shape for shape, batch in zip(BATCHES, batches, strict=True) if differs(model, method.evaluator, batch)
            ]
            unused = unused_by(model, lambda: token_loss(model, batches[0]))
            movable = [p for name, p in model.named_parameters() if name not in unused and p.requires_grad]
            share = method.backbone.size / sum(p.numel() for p in movable)
            apart = sorted({shape_of(name) for name in method.evaluator.per_point.names})
            few = "" if share > LEAST_MOVING else "FEW MOVE: "
            yield f"DIFFERS for {found}" if found else f"{few}equal ({share:.1%} move; once a point: {apart})"
            return


def shape_of(name):
    """A parameter's name without the numbers of layers."""
    return re.sub(r"\d+", "*", name)


@pytest.fixture(scope="module")
def table():
    """Collects a line for each type; prints how many became what at the end."""
    results = Counter()
    yield results
    print(f"\n{sum(results.values())} types of models:", dict(results))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("head", "kind"), [pytest.param(*t, marks=[] if t in QUICK else pytest.mark.soak, id="-".join(t)) for t in TYPES]
)
def test_an_architecture_is_asked_in_the_forward_as_in_place_or_refused(table, head, kind):
    with quiet_transformers():
        try:
            model = build_tiny(head, kind)
        except NotBuilt as error:
            table["not built"] += 1
            pytest.skip(f"not built: {error}")
        found = list(outcomes(model, "left" if head == "causal" else "right"))
    tensors = len(list(model.parameters()))
    print(f"{head:8} {kind:26} {tensors:4} tensors  " + f"\n{'':50}".join(found))
    table["refused" if len(found) > 1 or "refused" in found[0] else "equal"] += 1
    assert all(outcome.startswith("equal") for outcome in found), found


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_most_architectures_can_be_built():
    """So that the sweep cannot pass by building nothing."""
    built, why_not = [], {}
    with quiet_transformers():
        for head, kind in TYPES:
            try:
                build_tiny(head, kind)
                built.append(kind)
            except NotBuilt as error:
                why_not[head, kind] = str(error)
    print(f"\n{len(built)} built, of {len(set(built))} types; not built:")
    print("\n".join(f"  {head} {kind}: {reason}" for (head, kind), reason in why_not.items()))
    assert len(set(built)) >= FEWEST_BUILT


TARGETS = {
    "qwen3_moe": {"q_proj", "v_proj"},
    "granite": {"q_proj", "v_proj"},
    "phi3": {"qkv_proj"},
    "olmo2": {"q_proj", "v_proj"},
    "smollm3": {"q_proj", "v_proj"},
    "llama": {"q_proj", "v_proj"},
}
ENCODER_TARGETS = {
    "distilbert": {"q_lin", "v_lin"},
    "albert": {"query", "value"},
    "modernbert": {"Wqkv"},
    "mpnet": {"q", "v"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("head", "kind", "targets"),
    [("causal", *item) for item in TARGETS.items()] + [("masked", *item) for item in ENCODER_TARGETS.items()],
)
def test_lora_finds_query_and_value(tmp_path, head, kind, targets):
    """Where peft knows none for the architecture, too; what was found is written into adapter_config.json."""
    with quiet_transformers():
        model = build_tiny(head, kind)
    LoraAdapters(model, ["adapter"], 0, rank=2).save("adapter", tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(written["target_modules"]) == targets
