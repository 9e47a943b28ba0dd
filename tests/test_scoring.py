"""Candidate likelihoods against the plainest reference there is: one candidate, one token, one forward at a time."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import warnings

import peft
import pytest
import torch
import transformers
from tokenizers import processors
from torch import nn

from conftest import ARCHITECTURES, ENCODERS, build_model, build_tokenizer
from zofo.adapters import LoraAdapters
from zofo.models import LoadedModel, ModelConfig, load_model
from zofo.objectives import candidate_scores, classification_loss, packing_limit, scores
from zofo.tasks import Example, TokenizedChoices, collate, encode, encode_masked, encode_texts
from zofo.training.data_module import batch_maker

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
    "two": [(" terrible and dull", " great honest picture")] * 4,
    "many": [
        (" great film", " terrible film"),
        (" yes it was", " no it drags", " maybe"),
        (" good and warm", " bad", " dull and bad", " awful"),
        (" a joy to see", " dull", " no joy", " funny and honest", " bad film"),
    ],
    "merged long": [("art to finish", " bad and dull", "ory")] * 4,
    "lone": [(" great honest picture",), (" terrible bad", " no joy"), (" yes",), (" dull film", " bad film")],
}
BRANCHED = ("two", "many", "merged long", "lone")  # several candidates of one example have tokens of their own


@pytest.fixture(scope="module")
def tokenizers():
    return {False: build_tokenizer(), True: build_tokenizer(bos=True)}


@pytest.fixture(scope="module")
def models(tokenizers):
    return {kind: build_model(kind, len(tokenizers[False])) for kind in ARCHITECTURES}


@pytest.fixture(scope="module")
def attending(models):
    """The same models, in each kind of attention that takes a mask of pairs."""
    copies = {(kind, one): copy.deepcopy(model) for kind, model in models.items() for one in ("eager", "sdpa")}
    for (_, one), model in copies.items():
        model.set_attn_implementation(one)
    return copies


def encoded_case(tokenizer, case):
    ends = " st" if case.startswith("merged") else ""
    return encode(
        tokenizer,
        [Example(prompt + ends, c, (i % 2,)) for i, (prompt, c) in enumerate(zip(PROMPTS, CASES[case], strict=True))],
    )


@functools.cache  # candidates of an example, and many cases, begin alike
@torch.no_grad()
def next_token(model, tokens):
    """Log-likelihoods of the token after some, which are asked alone."""
    return model(input_ids=torch.tensor([tokens])).logits[0, -1].double().log_softmax(dim=0)


def reference(model, examples):
    """Mean log-likelihood of each candidate's tokens, from right to left, without padding, mask or batch."""
    table = torch.full((len(examples), max(len(e.rows) for e in examples)), -torch.inf)
    for number, example in enumerate(examples):
        for candidate, (row, scored) in enumerate(zip(example.rows, example.scored, strict=True)):
            total = 0.0
            for place in range(len(row) - 1, len(row) - 1 - scored, -1):
                total += next_token(model, tuple(row[:place]))[row[place]].item()
            table[number, candidate] = total / scored
    return table


def close(one, two):
    return torch.allclose(one, two, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bos", [False, True])
def test_scores_equal_the_reference(models, attending, tokenizers, kind, case, bos):
    """In as few rows as may be and in one row a candidate, with both kinds of attention that take a mask of pairs."""
    examples = encoded_case(tokenizers[bos], case)
    assert len({e.length for e in examples}) > 1  # mixed lengths, so that padding and positions matter
    expected = reference(models[kind], examples)
    assert expected.isfinite().sum() == sum(len(e.rows) for e in examples)
    batch, apart = collate(examples, 0, CPU), collate(examples, 0, CPU, pack_limit=0)
    assert batch.packed == (case in BRANCHED)
    assert not apart.packed
    assert len(batch.input_ids) == len(examples)
    assert len(apart.input_ids) > len(examples) or case not in BRANCHED
    for attention in ("eager", "sdpa"):
        for one in (batch, apart):
            scores = candidate_scores(attending[kind, attention], one)
            assert scores.dtype == torch.float32
            assert close(scores, expected)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_which_token_pads_does_not_matter(models, tokenizers, kind):
    for case in ("single", "ragged", "many"):
        examples = encoded_case(tokenizers[False], case)
        one, two = (candidate_scores(models[kind], collate(examples, pad, CPU)) for pad in (0, 300))
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_company_in_a_batch_does_not_matter(models, tokenizers, kind):
    """Alone, with longer and shorter ones, and with some that make the batch a packed one."""
    single, ragged, many = (encoded_case(tokenizers[False], case) for case in ("single", "ragged", "many"))
    example = single[0]
    alone = candidate_scores(models[kind], collate([example], 0, CPU))[0]
    for company in ([*single[1:]], [single[3], single[1]], [ragged[1]], [ragged[3], many[1], single[2]], many):
        for place in (0, len(company)):
            batch = collate([*company[:place], example, *company[place:]], 0, CPU)
            assert close(candidate_scores(models[kind], batch)[place, :2], alone)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("case", ["single", "ragged", "many"])
def test_scores_with_an_adapter(tokenizers, kind, case):
    model = build_model(kind, len(tokenizers[False]))
    examples = encoded_case(tokenizers[False], case)
    batch = collate(examples, 0, CPU)
    before = candidate_scores(model, batch)
    adapters = LoraAdapters(model, ["adapter"], seed=0, rank=2)
    assert close(candidate_scores(model, batch), before)  # a new adapter changes nothing
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters("adapter"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    scores = candidate_scores(model, batch).detach()
    assert (scores - before)[before.isfinite()].abs().max() > 1e-2
    assert close(scores, reference(model, examples))


def test_the_loss_is_the_cross_entropy_among_the_candidates(models, tokenizers):
    for case in ("single", "ragged", "counts", "many"):
        examples = encoded_case(tokenizers[False], case)
        losses = classification_loss(models["llama"], collate(examples, 0, CPU))
        expected = []
        for row, example in zip(reference(models["llama"], examples).tolist(), examples, strict=True):
            own = torch.tensor(row[: len(example.rows)]).exp()
            expected.append(-(own[example.gold] / own.sum()).log().item())
        assert losses.shape == (len(examples),)
        assert losses.dtype == torch.float32
        assert close(losses, torch.tensor(expected))


def test_gradients_are_finite_where_an_example_has_fewer_candidates(tokenizers):
    for case in ("counts", "ragged", "many", "lone"):
        model = build_model("llama", len(tokenizers[False]))
        classification_loss(model, collate(encoded_case(tokenizers[False], case), 0, CPU)).mean().backward()
        gradients = [p.grad for p in model.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert sum(g.abs().sum() for g in gradients) > 0


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_gradients_through_packed_scores_equal_those_through_one_row_a_candidate(tokenizers, kind):
    examples = encoded_case(tokenizers[False], "many")
    gradients = []
    for limit in (None, 0):
        model = build_model(kind, len(tokenizers[False]))
        batch = collate(examples, 0, CPU, limit)
        assert batch.packed == (limit is None)
        classification_loss(model, batch).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert gradients[0].abs().max() > 0.1
    assert close(*gradients)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize(
    ("case", "limit", "wanted"),
    [("single", None, 1), ("long", None, 3), ("two", 0, 3), ("two", None, 5), ("merged long", None, 6)],
)
def test_logits_are_asked_for_only_where_a_token_is_scored(models, tokenizers, kind, case, limit, wanted):
    """From the position that predicts the first scored token to that of the last: as many as tokens of one candidate,
    or one and the tokens of all branches."""
    seen = []

    def watch(_model, _args, kwargs, output):
        seen.append((kwargs["logits_to_keep"].tolist(), output.logits.shape[1]))

    batch = collate(encoded_case(tokenizers[False], case), 0, CPU, limit)
    assert batch.input_ids.shape[1] > wanted + 2
    model = copy.deepcopy(models[kind])
    model.register_forward_hook(watch, with_kwargs=True)
    candidate_scores(model, batch)
    assert seen == [(list(range(-wanted, 0)), wanted)]


class AllLogits(nn.Module):
    """A model whose forward cannot be told which logits are wanted."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, attention_mask, position_ids):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)


@pytest.mark.parametrize("case", ["single", "ragged", "many"])
def test_a_model_that_gives_all_logits_has_the_same_scores(models, tokenizers, case):
    batch = collate(encoded_case(tokenizers[False], case), 0, CPU)
    assert close(candidate_scores(AllLogits(models["llama"]), batch), candidate_scores(models["llama"], batch))


def made_up(prompt, *candidates):
    """An example of so many tokens in the prompt and in each candidate."""
    rows = tuple((*range(3, 3 + prompt), *range(100 * n, 100 * n + size)) for n, size in enumerate(candidates, 1))
    return TokenizedChoices(rows, candidates, 0)


def test_candidates_are_packed_exactly_when_that_saves_a_fifth():
    """Two candidates of n tokens after p: 2 (p + n - 1) tokens apart, p + 2 (n - 1) packed, since nobody needs the last
    token of a candidate as an input."""
    seen = set()
    for prompt in range(1, 9):
        for size in range(2, 14):
            batch = collate([made_up(prompt, size, size)] * 3, 0, CPU)
            apart, packed = 2 * (prompt + size - 1), prompt + 2 * (size - 1)
            assert batch.packed == (apart - packed >= apart / 5)
            assert batch.input_ids.numel() == 3 * (packed if batch.packed else apart)
            seen.add(batch.packed)
    assert seen == {False, True}


def test_padding_counts_when_packing_is_decided():
    """Four long candidates make a long row, to which the others would be padded."""
    short, long = made_up(20, 2, 2), made_up(20, 30, 30, 30, 30)
    assert collate([short] * 3, 0, CPU).packed
    assert collate([long], 0, CPU).packed
    assert not collate([short] * 3 + [long], 0, CPU).packed


def test_packed_rows_are_not_longer_than_the_limit():
    for limit, branched in ((None, True), (22, True), (21, False), (0, False)):
        assert collate([made_up(20, 2, 2), made_up(9, 1, 1)], 0, CPU, limit).packed == branched


def test_one_row_that_needs_no_mask_of_its_own_is_no_packing():
    """One-token candidates share the last position of the prompt, and one longer candidate may follow it."""
    batch = collate([made_up(5, 1, 1, 1), made_up(4, 1, 40)], 0, CPU, pack_limit=0)
    assert not batch.packed
    assert batch.input_ids.shape == (2, 43)


def test_a_packed_row_sees_the_prompt_and_its_own_branch():
    batch = collate([made_up(4, 3, 2), made_up(4, 2, 2)], 0, CPU)
    assert batch.packed
    assert batch.input_ids.tolist() == [[3, 4, 5, 6, 100, 101, 200], [0, 3, 4, 5, 6, 100, 200]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4], [0, 0, 1, 2, 3, 4, 4]]
    seen = [[[k for k in range(7) if row[q][k]] for q in range(7)] for row in batch.visible[:, 0].tolist()]
    prompt = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert seen[0] == [*prompt, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6]]
    assert seen[1] == [[0], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 6]]


@pytest.mark.parametrize(
    ("case", "limit"), [("single", None), ("counts", None), ("ragged", 0), ("many", 0), ("many", None)]
)
def test_parts_and_repetitions_have_the_scores_of_their_examples(models, tokenizers, case, limit):
    batch = collate(encoded_case(tokenizers[False], case), 0, CPU, limit)
    assert batch.packed == (case == "many" and limit is None)
    scores = candidate_scores(models["gpt2"], batch)
    for start, stop in ((0, 4), (0, 1), (1, 3), (3, 4)):
        part = batch.part(start, stop)
        assert len(part) == stop - start
        assert part.gold.tolist() == batch.gold[start:stop].tolist()
        assert set(part.row_examples.tolist()) == set(range(stop - start))
        assert len(part.row_examples) == len(part.input_ids)
        assert close(candidate_scores(models["gpt2"], part), scores[start:stop])
    thrice = batch.part(1, 4).repeated(3)
    assert len(thrice) == 9
    assert thrice.row_examples.tolist() == sorted(thrice.row_examples.tolist())
    assert len(thrice.row_examples) == len(thrice.input_ids) == 3 * len(batch.part(1, 4).input_ids)
    assert close(candidate_scores(models["gpt2"], thrice), scores[1:].repeat(3, 1))
    assert close(candidate_scores(models["gpt2"], thrice.part(2, 7)), scores[1:].repeat(3, 1)[2:7])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_half_precision_models_score_packed_rows(tokenizers, kind):
    examples = encoded_case(tokenizers[False], "many")
    exact = candidate_scores(build_model(kind, len(tokenizers[False])), collate(examples, 0, CPU))
    model = build_model(kind, len(tokenizers[False])).bfloat16()
    for limit in (None, 0):
        scores = candidate_scores(model, collate(examples, 0, CPU, limit))
        assert scores.dtype == torch.float32
        assert torch.allclose(scores, exact, rtol=0, atol=0.1)


TINY = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
OTHERS = {  # configuration, and the longest packed row the model takes
    "mistral": (transformers.MistralConfig(**TINY, intermediate_size=24, num_key_value_heads=1, sliding_window=40), 40),
    "gpt_neo": (
        transformers.GPTNeoConfig(
            vocab_size=400,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["local"], 2]],
            window_size=48,
            bos_token_id=1,
            eos_token_id=2,
        ),
        48,
    ),
    "gpt_neox": (transformers.GPTNeoXConfig(**TINY, intermediate_size=24, max_position_embeddings=64), 64),
    "bert": (transformers.BertConfig(**TINY, intermediate_size=24), 0),
    "bloom": (transformers.BloomConfig(vocab_size=400, hidden_size=16, n_layer=2, n_head=2), 0),
    "falcon": (transformers.FalconConfig(**TINY, alibi=True), 0),
    "lfm2": (transformers.Lfm2Config(**TINY, intermediate_size=24, layer_types=["conv", "full_attention"]), 0),
    "mamba": (transformers.MambaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=2, state_size=4), 0),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_only_models_that_score_branches_apart_get_packed_rows(tokenizers, kind):
    config, limit = OTHERS[kind]
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.config.use_cache = False
    assert packing_limit(model) == limit
    examples = encoded_case(tokenizers[False], "two")
    batch = batch_maker(LoadedModel(model, tokenizers[False], kind))(examples)
    assert batch.packed == (limit > 0)
    if limit:
        assert close(candidate_scores(model, batch), reference(model, examples))


def test_the_limit_of_packed_rows_is_that_of_positions_windows_and_attention():
    model = build_model("llama", 300)
    assert packing_limit(model) == 64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(task_type="CAUSAL_LM"))
    assert packing_limit(wrapped) == 64
    assert packing_limit(torch.nn.Linear(2, 2)) == 0
    model.config._attn_implementation = "flash_attention_2"  # takes lengths, not masks
    assert packing_limit(model) == 0


def test_left_padding_and_positions(tokenizers):
    examples = encoded_case(tokenizers[False], "single")
    batch = collate(examples, 7, CPU)
    for row, example in enumerate(examples):
        length = example.length - 1  # the candidate itself is not an input of a one-sequence batch
        assert batch.input_ids[row, -length:].tolist() == list(example.rows[0][:-1])
        assert batch.input_ids[row, :-length].eq(7).all()
        assert batch.attention_mask[row].tolist() == [0] * (batch.input_ids.shape[1] - length) + [1] * length
        assert batch.position_ids[row, -length:].tolist() == list(range(length))
        assert batch.targets[row].flatten().tolist() == [r[-1] for r in example.rows]
        assert batch.gold[row] == example.gold


def test_a_wrapped_model_gets_positions_and_scored_positions_too(tokenizer):
    """GPT-2 has absolute positions, and peft's wrapper names neither argument in its own forward."""
    model = build_model("gpt2", len(tokenizer))
    examples = [
        Example("a joy from start to finish . It was", (" terrible", " great"), (1,)),
        Example("dull . It was", (" terrible", " great"), (0,)),
    ]
    batch = collate(encode(tokenizer, examples), 0, torch.device("cpu"))
    plain = candidate_scores(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM")).eval()
    torch.testing.assert_close(candidate_scores(wrapped, batch), plain, rtol=1e-6, atol=1e-6)


# heads: models that see both sides, and classification heads

CLASSIFIERS = (*ENCODERS, "gpt2", "opt", "llama")
MASKED = ("bert", "roberta")
HEADS = {
    "classification": transformers.AutoModelForSequenceClassification,
    "masked-lm": transformers.AutoModelForMaskedLM,
}


def paired_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """As BERT's: a token before a text and one after it, types of a pair's texts, and a mask."""
    core = build_tokenizer().backend_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    own.add_special_tokens({"mask_token": "[MASK]"})
    return own


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Models with a head by kind and head, as `load_model` gives them."""
    folder, made = tmp_path_factory.mktemp("heads"), {}

    def load(kind: str, head: str) -> LoadedModel:
        if (kind, head) not in made:
            own = paired_tokenizer() if kind in ENCODERS else build_tokenizer()
            path = folder / f"{kind}-{head}"
            build_model(kind, len(own), seed=1, head=HEADS[head]).save_pretrained(path)
            own.save_pretrained(path)
            made[kind, head] = load_model(ModelConfig(name=str(path), head=head))
        return made[kind, head]

    return load


TEXTS = (
    ("a joy from start to finish", "an honest , warm and funny picture , not to be missed"),
    ("dull", "it drags"),
    ("it drags on and on , and nobody laughed", "no"),
    ("warm and funny", "a lifeless story that never finds its way"),
)


def given_texts(width: int) -> list[Example]:
    return [Example("", (" no", " yes"), (i % 2,), texts=pair[:width]) for i, pair in enumerate(TEXTS)]


@torch.no_grad()
def logits_of_one(loaded: LoadedModel, texts: tuple[str, ...]) -> torch.Tensor:
    """One text or pair without padding, as the tokenizer and the model themselves would have it."""
    pair = len(texts) == 2 and loaded.tokenizer.sep_token_id is not None
    coded = (
        loaded.tokenizer(*texts, return_tensors="pt")
        if pair
        else loaded.tokenizer("\n".join(texts), return_tensors="pt")
    )
    takes_types = "token_type_ids" in inspect.signature(type(loaded.model).forward).parameters
    types = {"token_type_ids": coded["token_type_ids"]} if takes_types and loaded.tokenizer.sep_token_id else {}
    return loaded.model(input_ids=coded["input_ids"], attention_mask=coded["attention_mask"], **types).logits[0]


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("width", [1, 2])
def test_logits_of_a_head_are_those_of_one_text_without_padding(heads, kind, width):
    loaded = heads(kind, "classification")
    examples = given_texts(width)
    encoded = encode_texts(loaded.tokenizer, examples)
    expected = torch.stack([logits_of_one(loaded, one.texts) for one in examples])
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    make = batch_maker(loaded)
    with torch.no_grad():
        batch = make(encoded)
        assert (batch.attention_mask == 0).any()
        found = scores(loaded.model, batch)
        alone = torch.cat([scores(loaded.model, make([one])) for one in encoded])
        both = scores(loaded.model, batch.repeated(2))
        part = scores(loaded.model, batch.part(1, 3))
    assert found.dtype == torch.float32
    for one in (found, alone, both[:4], both[4:]):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part, expected[1:3], rtol=1e-4, atol=1e-5)


def test_bert_is_told_which_text_of_a_pair_a_token_belongs_to(heads):
    loaded = heads("bert", "classification")
    encoded = encode_texts(loaded.tokenizer, given_texts(2))
    for one, example in zip(encoded, given_texts(2), strict=True):
        second = len(loaded.tokenizer(example.texts[1], add_special_tokens=False)["input_ids"]) + 1
        assert one.types == (0,) * (len(one.tokens) - second) + (1,) * second
    batch = batch_maker(loaded)(encoded)
    with torch.no_grad():
        told = scores(loaded.model, batch)
        untold = scores(loaded.model, dataclasses.replace(batch, token_type_ids=torch.zeros_like(batch.token_type_ids)))
    assert (told - untold).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["distilbert", "opt", "llama"])
def test_models_without_types_are_not_told_them(heads, kind):
    loaded = heads(kind, "classification")
    encoded = encode_texts(paired_tokenizer(), given_texts(1))
    assert all(one.types for one in encoded)
    with torch.no_grad():
        found = scores(loaded.model, batch_maker(loaded)(encoded[:1]))
        expected = loaded.model(input_ids=torch.tensor([encoded[0].tokens])).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def asked_masks(ending: str = " .") -> list[Example]:
    return [
        Example(f"{pair[0]} . It was", (" terrible", " great"), (i % 2,), ending=ending) for i, pair in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("ending", [" .", "", " , and it drags on and on"])
def test_scores_of_label_words_are_those_of_one_text_without_padding(heads, kind, ending):
    loaded = heads(kind, "masked-lm")
    own = loaded.tokenizer
    examples = asked_masks(ending)
    words = own.convert_tokens_to_ids(["Ġterrible", "Ġgreat"])
    expected = []
    for example in examples:
        coded = own(f"{example.prompt}{own.mask_token}{example.ending}", return_tensors="pt")
        place = coded["input_ids"][0].tolist().index(own.mask_token_id)
        with torch.no_grad():
            logits = loaded.model(input_ids=coded["input_ids"], attention_mask=coded["attention_mask"]).logits
        expected.append(logits[0, place].log_softmax(0)[words])
    encoded = encode_masked(own, examples)
    make = batch_maker(loaded)
    with torch.no_grad():
        batch = make(encoded)
        found = scores(loaded.model, batch)
        alone = torch.cat([scores(loaded.model, make([one])) for one in encoded])
        both = scores(loaded.model, batch.repeated(2))
        part = scores(loaded.model, batch.part(1, 3))
    for one in (found, alone, both[:4], both[4:]):
        torch.testing.assert_close(one, torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part, torch.stack(expected[1:3]), rtol=1e-4, atol=1e-5)
    by_sum = scores(loaded.model, batch, "sum")
    assert torch.equal(by_sum, found)


def test_a_head_has_the_same_scores_by_mean_and_by_sum(heads):
    loaded = heads("bert", "classification")
    batch = batch_maker(loaded)(encode_texts(loaded.tokenizer, given_texts(1)))
    with torch.no_grad():
        assert torch.equal(scores(loaded.model, batch, "mean"), scores(loaded.model, batch, "sum"))
