"""Candidate likelihoods against the plainest reference there is: one candidate, one token, one forward at a time."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch

from conftest import ARCHITECTURES, build_model, build_tokenizer
from zofo.adapters import LoraAdapters, LoraConfig
from zofo.objectives import candidate_scores, classification_loss
from zofo.tasks import Example, collate, encode

CPU = torch.device("cpu")
TOLERANCE = 1e-5
PROMPTS = (
    "It was",
    "the film is a joy from start to finish . It was",
    "a dull and lifeless story that never finds its way . It was",
    "it drags on and on . It was",
)
CASES = {
    "single": [(" terrible", " great")] * 4,
    "three": [(" bad", " good", " awful")] * 4,
    "long": [(" terrible", " great honest picture")] * 4,
    "ragged": [(" great", " terrible bad"), (" yes", " no", " maybe not"), (" good", " bad"), (" a joy to see", " no")],
    "counts": [(" great", " terrible"), (" yes", " no", " bad"), (" good", " bad"), (" honest", " no")],
    "merged": [("art", " bad")] * 4,
}


@pytest.fixture(scope="module")
def tokenizers():
    return {False: build_tokenizer(), True: build_tokenizer(bos=True)}


@pytest.fixture(scope="module")
def models(tokenizers):
    return {kind: build_model(kind, len(tokenizers[False])) for kind in ARCHITECTURES}


def encoded_case(tokenizer, case):
    ends = " st" if case == "merged" else ""
    return encode(
        tokenizer,
        [Example(prompt + ends, c, i % 2) for i, (prompt, c) in enumerate(zip(PROMPTS, CASES[case], strict=True))],
    )


@torch.no_grad()
def reference(model, examples):
    """Mean log-likelihood of each candidate's tokens, from right to left, without padding, mask or batch."""
    table = torch.full((len(examples), max(len(e.rows) for e in examples)), -torch.inf)
    for number, example in enumerate(examples):
        for candidate, (row, scored) in enumerate(zip(example.rows, example.scored, strict=True)):
            total = 0.0
            for place in range(len(row) - 1, len(row) - 1 - scored, -1):
                logits = model(input_ids=torch.tensor([row[:place]])).logits[0, -1].double()
                total += logits.log_softmax(dim=0)[row[place]].item()
            table[number, candidate] = total / scored
    return table


def close(one, two):
    return torch.allclose(one, two, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bos", [False, True])
def test_scores_equal_the_reference(models, tokenizers, kind, case, bos):
    examples = encoded_case(tokenizers[bos], case)
    assert len({e.length for e in examples}) > 1  # mixed lengths, so that padding and positions matter
    batch = collate(examples, 0, CPU)
    assert batch.single == (case in ("single", "three", "counts"))
    assert len(batch.input_ids) == (len(examples) if batch.single else sum(len(e.rows) for e in examples))
    scores = candidate_scores(models[kind], batch)
    assert scores.dtype == torch.float32
    expected = reference(models[kind], examples)
    assert expected.isfinite().sum() == sum(len(e.rows) for e in examples)
    assert close(scores, expected)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_which_token_pads_does_not_matter(models, tokenizers, kind):
    for case in ("single", "ragged"):
        examples = encoded_case(tokenizers[False], case)
        one, two = (candidate_scores(models[kind], collate(examples, pad, CPU)) for pad in (0, 300))
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_company_in_a_batch_does_not_matter(models, tokenizers, kind):
    """Alone, with longer and shorter ones, and with one that keeps the batch from being `single`."""
    single, ragged = (encoded_case(tokenizers[False], case) for case in ("single", "ragged"))
    example = single[0]
    alone = candidate_scores(models[kind], collate([example], 0, CPU))[0]
    for company in ([*single[1:]], [single[3], single[1]], [ragged[1]], [ragged[3], ragged[0], single[2]]):
        for place in (0, len(company)):
            batch = collate([*company[:place], example, *company[place:]], 0, CPU)
            assert close(candidate_scores(models[kind], batch)[place, :2], alone)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("case", ["single", "ragged"])
def test_scores_with_an_adapter(tokenizers, kind, case):
    model = build_model(kind, len(tokenizers[False]))
    examples = encoded_case(tokenizers[False], case)
    batch = collate(examples, 0, CPU)
    before = candidate_scores(model, batch)
    adapters = LoraAdapters(model, ["adapter"], LoraConfig(rank=2), seed=0)
    assert close(candidate_scores(model, batch), before)  # a new adapter changes nothing
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters("adapter"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    scores = candidate_scores(model, batch).detach()
    assert (scores - before)[before.isfinite()].abs().max() > 1e-2
    assert close(scores, reference(model, examples))


def test_the_loss_is_the_cross_entropy_among_the_candidates(models, tokenizers):
    for case in ("single", "ragged", "counts"):
        examples = encoded_case(tokenizers[False], case)
        losses = classification_loss(models["llama"], collate(examples, 0, CPU))
        expected = []
        for scores, example in zip(reference(models["llama"], examples).tolist(), examples, strict=True):
            own = torch.tensor(scores[: len(example.rows)]).exp()
            expected.append(-(own[example.gold] / own.sum()).log().item())
        assert losses.shape == (len(examples),)
        assert losses.dtype == torch.float32
        assert close(losses, torch.tensor(expected))


def test_gradients_are_finite_where_an_example_has_fewer_candidates(tokenizers):
    for case in ("counts", "ragged"):
        model = build_model("llama", len(tokenizers[False]))
        classification_loss(model, collate(encoded_case(tokenizers[False], case), 0, CPU)).mean().backward()
        gradients = [p.grad for p in model.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert sum(g.abs().sum() for g in gradients) > 0


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("case", ["single", "long", "ragged"])
def test_logits_are_asked_for_only_where_a_token_is_scored(models, tokenizers, kind, case):
    """One position for one-token candidates, else the longest candidate and the position before it."""
    seen = []

    def watch(_model, _args, kwargs, output):
        seen.append((kwargs["logits_to_keep"], output.logits.shape[1]))

    examples = encoded_case(tokenizers[False], case)
    batch = collate(examples, 0, CPU)
    wanted = 1 if case == "single" else 1 + max(max(e.scored) for e in examples)
    assert batch.input_ids.shape[1] > wanted + 2
    model = copy.deepcopy(models[kind])
    model.register_forward_hook(watch, with_kwargs=True)
    candidate_scores(model, batch)
    assert seen == [(wanted, wanted)]


def test_left_padding_and_positions(tokenizers):
    examples = encoded_case(tokenizers[False], "single")
    batch = collate(examples, 7, CPU)
    for row, example in enumerate(examples):
        length = example.length - 1  # the candidate itself is not an input of a one-sequence batch
        assert batch.input_ids[row, -length:].tolist() == list(example.rows[0][:-1])
        assert batch.input_ids[row, :-length].eq(7).all()
        assert batch.attention_mask[row].tolist() == [0] * (batch.input_ids.shape[1] - length) + [1] * length
        assert batch.position_ids[row, -length:].tolist() == list(range(length))
        assert batch.targets[row].tolist() == [r[-1] for r in example.rows]
        assert batch.gold[row] == example.gold


def test_a_wrapped_model_gets_positions_and_scored_positions_too(tokenizer):
    """GPT-2 has absolute positions, and peft's wrapper names neither argument in its own forward."""
    model = build_model("gpt2", len(tokenizer))
    examples = [
        Example("a joy from start to finish . It was", (" terrible", " great"), 1),
        Example("dull . It was", (" terrible", " great"), 0),
    ]
    batch = collate(encode(tokenizer, examples), 0, torch.device("cpu"))
    plain = candidate_scores(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM")).eval()
    torch.testing.assert_close(candidate_scores(wrapped, batch), plain, rtol=1e-6, atol=1e-6)
