"""Generated texts: against a plain loop, in batches, with every way to end, and drawn by seed."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import peft
import pytest
import torch
import transformers
from torch import nn

from conftest import ARCHITECTURES, LINES, build_model, build_tokenizer, write_rows
from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, ModelError
from zofo.evaluators import EVALUATORS
from zofo.noise import NOISES
from zofo.objectives import Generation, generate, token_loss
from zofo.tasks import Example, TokenizedChoices, collate, encode
from zofo.training import evaluate_zero_shot, read_config

TEXTS = ("the film is", "a dull and lifeless story that never finds its", "it drags on and", "an")
NO_END = 10_000  # no token has this id


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tokenizer):
    return build_model(request.param, len(tokenizer), seed=3)


@pytest.fixture(scope="module")
def llama(tokenizer):
    return build_model("llama", len(tokenizer), seed=3)


def prompts(tokenizer, *texts: str) -> list[TokenizedChoices]:
    return encode(tokenizer, [Example(text, (" x",), (0,)) for text in texts])


def ends(tokenizer) -> set[int]:
    return {2, tokenizer.eos_token_id}


@torch.no_grad()
def plain_tokens(model, prompt: tuple[int, ...], steps: int, ending: set[int]) -> list[int]:
    """Greedy tokens one at a time: one row, no padding, no cache, no `generate`; the ending token is left out."""
    ids, found = list(prompt), []
    for _ in range(steps):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        token = int(logits.argmax())
        if token in ending:
            break
        ids.append(token)
        found.append(token)
    return found


def plain_text(model, tokenizer, prompt: tuple[int, ...], steps: int, stop: tuple[str, ...] = ()) -> str:
    tokens = plain_tokens(model, prompt, steps, ends(tokenizer))
    for length in range(len(tokens) + 1):
        text = tokenizer.decode(tokens[:length], skip_special_tokens=True).lstrip()
        if any(one in text for one in stop):
            return text[: min(text.find(one) for one in stop if one in text)].strip()
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def with_ends(model, *tokens: int):
    """The same model, whose own end of text is one of these tokens."""
    other = copy.deepcopy(model)
    other.generation_config.eos_token_id = list(tokens)
    return other


def test_greedy_texts_are_those_of_a_plain_loop(model, tokenizer):
    examples = prompts(tokenizer, *TEXTS)
    how = Generation(tokenizer, max_new_tokens=8)
    expected = [plain_text(model, tokenizer, one.prompt, 8) for one in examples]
    assert len(set(expected)) > 1
    assert all(expected)
    assert generate(model, examples, how) == expected
    assert [generate(model, [one], how)[0] for one in examples] == expected
    assert generate(model, examples[::-1], how) == expected[::-1]


def test_candidates_are_not_read(llama, tokenizer):
    how = Generation(tokenizer, max_new_tokens=5)
    one, other = encode(tokenizer, [Example("the film is", (" great",), (0,)), Example("the film is", ("",))])
    assert one.prompt == other.prompt
    assert generate(llama, [one], how) == generate(llama, [other], how)


def test_a_text_ends_after_max_new_tokens(llama, tokenizer):
    examples = prompts(tokenizer, *TEXTS)
    never = with_ends(llama, NO_END)
    silent = copy.deepcopy(tokenizer)
    silent.eos_token = None
    for limit in (1, 3, 12):
        found = generate(never, examples, Generation(silent, stop=("no such text",), max_new_tokens=limit))
        for example, text in zip(examples, found, strict=True):
            tokens = plain_tokens(never, example.prompt, limit, set())
            assert len(tokens) == limit
            assert text == silent.decode(tokens, skip_special_tokens=True).strip()


def rows_of_forwards(model):
    """How many rows each forward has, in a list that grows; and what stops looking."""
    seen = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return seen, handle.remove


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_rows_that_have_ended_leave_the_batch(model, tokenizer, temperature):
    """Those that stay say what they say alone, whatever left and when; prompts differ in length."""
    examples = prompts(tokenizer, *(f"{'very ' * i}{text}" for i in range(2) for text in TEXTS))
    how = Generation(tokenizer, max_new_tokens=12, temperature=temperature, seed=5)
    said = [plain_tokens(model, one.prompt, 6, set()) for one in examples[:5]]
    ending = with_ends(model, *{tokens[i + 1] for i, tokens in enumerate(said)}, *range(12, len(tokenizer), 9))
    seen, done = rows_of_forwards(ending)
    found = generate(ending, examples, how)
    done()
    assert sorted(seen, reverse=True) == seen
    assert len(set(seen)) > 1
    assert found == [generate(ending, [example], how)[0] for example in examples]


def test_members_say_what_they_say_alone_when_rows_of_others_leave(llama, tokenizer):
    """Each row carries its direction on, in one decode; beside the weights moved to each member."""
    examples = prompts(tokenizer, *TEXTS)
    ending = with_ends(llama, *range(12, len(tokenizer), 9))
    how = Generation(tokenizer, max_new_tokens=12, stop=("e",))
    backbone = Backbone(ending, NOISES["low-rank"]())
    points = [Displacement({Key(0, 1, member): 0.1}) for member in range(3)]
    own = [[Displacement({Key(0, 2, row): 0.1}) for row in range(len(examples))]]
    batch = collate(examples, pad=tokenizer.pad_token_id, device=torch.device("cpu"))
    texts = []

    def lengths(model, batch):
        texts.append(generate(model, batch.examples, how))
        return torch.tensor([float(len(text)) for text in texts[-1]])

    forward = EVALUATORS["in-forward"](ending, backbone)
    forward.check([(token_loss, batch)])
    for asked in (points, own):
        seen, done = rows_of_forwards(ending)
        together = forward.losses(lengths, batch, asked)
        done()
        assert len(set(seen)) > 1
        each = [(point, examples) for point in points]
        if asked is own:
            each = [(at, [one]) for at, one in zip(own[0], examples, strict=True)]
        said = []
        for point, rows in each:
            EVALUATORS["in-place"](ending, backbone).losses(
                lengths, collate(rows, pad=tokenizer.pad_token_id, device=batch.gold.device), [point]
            )
            said += texts[-1]
        assert [len(text) for text in said] == together.flatten().tolist()
        assert len(set(said)) > 2


@pytest.mark.parametrize("whose", ["model", "tokenizer"])
def test_a_text_ends_at_the_end_of_text_of_model_and_tokenizer(llama, tokenizer, whose):
    examples = prompts(tokenizer, *TEXTS)
    longest = [plain_tokens(llama, one.prompt, 8, ends(tokenizer)) for one in examples]
    ending = longest[0][3]
    if whose == "model":
        model, own = with_ends(llama, 2, ending), tokenizer
    else:
        model, own = with_ends(llama, 2), copy.deepcopy(tokenizer)
        own.eos_token = own.convert_ids_to_tokens(ending)
    found = generate(model, examples, Generation(own, max_new_tokens=8))
    for tokens, text in zip(longest, found, strict=True):
        kept = tokens[: tokens.index(ending)] if ending in tokens else tokens
        assert text == tokenizer.decode(kept, skip_special_tokens=True).strip()
    assert found != generate(llama, examples, Generation(tokenizer, max_new_tokens=8))


def test_a_text_ends_before_its_first_stop(llama, tokenizer):
    examples = prompts(tokenizer, *TEXTS)
    whole = generate(llama, examples, Generation(tokenizer, max_new_tokens=10))
    stop = (whole[0][2:4], whole[1][3:5])
    found = generate(llama, examples, Generation(tokenizer, stop=stop, max_new_tokens=10))
    assert found == [plain_text(llama, tokenizer, one.prompt, 10, stop) for one in examples]
    assert found != whole
    assert not any(one in text for one in stop for text in found)
    assert found[0] == whole[0][: min(whole[0].find(one) for one in stop if one in whole[0])].strip()


class Scripted(nn.Module):
    """Stands in for a model that always says the same tokens, whatever it is asked."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.generation_config = transformers.GenerationConfig()
        self.tokens, self.said = tokens, 0

    def can_generate(self) -> bool:
        return True

    def generate(self, input_ids, attention_mask, generation_config, stopping_criteria, logits_processor):
        self.said = 0
        for token in self.tokens[: generation_config.max_new_tokens]:
            input_ids = torch.cat([input_ids, torch.full((len(input_ids), 1), token)], dim=1)
            self.said += 1
            if token in generation_config.eos_token_id or any(all(ends(input_ids, None)) for ends in stopping_criteria):
                break
        return input_ids


@pytest.mark.parametrize(
    ("says", "stop", "expected", "said"),
    [
        (" yes\nno\nmaybe", ("\n",), "yes", " yes\n"),
        ("\n\n yes\nno", ("\n",), "yes", "\n\n yes\n"),  # white space before the first word is none
        ("\n\n yes", ("\n",), "yes", "\n\n yes"),
        ("  \n ", ("\n",), "", "  \n "),
        ("yes . no", (" .", "no"), "yes", "yes ."),
        ("yes", (), "yes", "yes"),
        ("###", ("###",), "", "###"),
        ("\n    return a\n    return b\n\n", (), "    return a\n    return b", "\n    return a\n    return b\n\n"),
    ],
)
def test_white_space_before_the_first_word_is_no_stop(tokenizer, says, stop, expected, said):
    tokens = tokenizer(says)["input_ids"]
    model = Scripted(tokens)
    assert generate(model, prompts(tokenizer, "the film is", "a"), Generation(tokenizer, stop=stop)) == [expected] * 2
    assert tokenizer.decode(tokens[: model.said]) == said


def test_a_stop_that_spans_tokens_ends_a_text(tokenizer):
    tokens = [token for letter in "ab###cd" for token in tokenizer(letter)["input_ids"]]
    model = Scripted(tokens)
    assert generate(model, prompts(tokenizer, "a"), Generation(tokenizer, stop=("###",))) == ["ab"]
    assert model.said == 5


def test_a_stop_between_tokens_that_are_not_shown_cuts_its_text(tokenizer):
    hidden = [tokenizer.convert_tokens_to_ids("<s>")] * 40  # too many for the look at the last tokens
    word, letter = tokenizer("great")["input_ids"], tokenizer("#")["input_ids"]
    model = Scripted([*word, *letter, *hidden, *letter, *word])
    assert generate(model, prompts(tokenizer, "a"), Generation(tokenizer, stop=("##",), max_new_tokens=60)) == ["great"]
    assert model.said == len(model.tokens)


@pytest.mark.parametrize("stop", ["<s>", "<pad>"])
def test_a_special_token_can_be_a_stop(tokenizer, stop):
    """A decoded text does not show it."""
    word = tokenizer("great")["input_ids"]
    model = Scripted([*word, tokenizer.convert_tokens_to_ids(stop), *word])
    assert generate(model, prompts(tokenizer, "a"), Generation(tokenizer, stop=("\n", stop))) == ["great"]
    assert model.said == len(word) + 1


# draws


def test_draws_depend_on_seed_and_prompt_only(model, tokenizer):
    examples = prompts(tokenizer, *TEXTS)
    how = Generation(tokenizer, max_new_tokens=6, temperature=1.5, seed=7)
    together = generate(model, examples, how)
    assert [generate(model, [one], how)[0] for one in examples] == together
    assert generate(model, [examples[2], examples[0], examples[2]], how) == [together[2], together[0], together[2]]
    assert generate(model, examples, how) == together
    others = [generate(model, examples, dataclasses.replace(how, seed=seed)) for seed in (8, 9)]
    assert len({tuple(texts) for texts in (together, *others)}) == 3
    assert together != generate(model, examples, Generation(tokenizer, max_new_tokens=6))


def test_prompts_of_one_batch_have_draws_of_their_own(llama, tokenizer):
    """Logits that are equal everywhere: any difference between the texts is one between the draws."""
    flat = copy.deepcopy(llama)
    for parameter in flat.parameters():
        parameter.data.zero_()
    found = generate(flat, prompts(tokenizer, *TEXTS), Generation(tokenizer, max_new_tokens=5, temperature=1.0))
    assert len(set(found)) == len(TEXTS)
    assert all(len(set(text)) > 1 for text in found)  # and so do the places of one text


@pytest.mark.parametrize("temperature", [pytest.param(0.7, marks=pytest.mark.soak), 2.0])
def test_the_first_drawn_token_has_the_distribution_of_the_softmax(tokenizer, temperature):
    letters = "abcdefgh"
    ids = [tokenizer.convert_tokens_to_ids(letter) for letter in letters]
    model = with_ends(build_model("gpt2", len(tokenizer), seed=5), NO_END)
    (prompt,) = prompts(tokenizer, "the film is")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt.prompt])).logits[0, -1]
    bias = torch.full((len(tokenizer),), -1e4)
    bias[ids] = 0.0
    model.lm_head = Biased(model.lm_head, bias)
    expected = (3 * logits[ids] / temperature).softmax(dim=0)
    count = 200
    how = Generation(tokenizer, max_new_tokens=1, temperature=temperature)
    drawn = [generate(model, [prompt], dataclasses.replace(how, seed=seed))[0] for seed in range(count)]
    shares = torch.tensor([drawn.count(letter) / count for letter in letters])
    assert shares.sum() == 1
    error = (expected * (1 - expected) / count).sqrt()
    assert ((shares - expected).abs() < 4 * error).all(), (shares, expected)
    assert ((shares - (3 * logits[ids]).softmax(dim=0)).abs() > 4 * error).any()  # the test sees the temperature


class Biased(nn.Module):
    """A head whose logits are three times as large, with something added."""

    def __init__(self, head: nn.Module, bias: torch.Tensor) -> None:
        super().__init__()
        self.head, self.bias = head, bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 3 * self.head(states) + self.bias


def test_a_small_temperature_is_greedy(model, tokenizer):
    examples = prompts(tokenizer, *TEXTS)
    greedy = generate(model, examples, Generation(tokenizer, max_new_tokens=6))
    for temperature in (1e-4, 1e-30):
        cold = Generation(tokenizer, max_new_tokens=6, temperature=temperature, seed=3)
        assert generate(model, examples, cold) == greedy


def test_no_global_generator_moves(llama, tokenizer):
    examples = prompts(tokenizer, *TEXTS)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    for temperature in (0.0, 1.0):
        generate(llama, examples, Generation(tokenizer, max_new_tokens=4, temperature=temperature))
    assert torch.equal(torch.random.get_rng_state(), before)
    how = Generation(tokenizer, max_new_tokens=4, temperature=1.0)
    first = generate(llama, examples, how)
    torch.manual_seed(1)
    assert generate(llama, examples, how) == first


# the model's own settings

OWN = {
    "sampling": {"do_sample": True, "top_p": 0.1, "top_k": 2, "temperature": 9.0},
    "penalty": {"repetition_penalty": 50.0},
    "n-grams": {"no_repeat_ngram_size": 1},
    "forced first": {"forced_bos_token_id": 5},
    "forced last": {"forced_eos_token_id": 5},
    "least": {"min_new_tokens": 6, "min_length": 40},
    "beams": {"num_beams": 3, "length_penalty": 9.0},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "a dictionary": {"return_dict_in_generate": True, "output_scores": True},
    "lengths": {"max_length": 3},
    "decay": {"exponential_decay_length_penalty": (1, 9.0)},
    "typical": {"typical_p": 0.1, "epsilon_cutoff": 0.5},
}


@pytest.mark.parametrize("settings", [*OWN, "suppressed", "bad words", "bias"])
def test_a_models_own_settings_have_no_influence(llama, tokenizer, settings):
    examples = prompts(tokenizer, *TEXTS)
    hows = [Generation(tokenizer, max_new_tokens=6, temperature=temperature) for temperature in (0.0, 1.0)]
    expected = [generate(llama, examples, how) for how in hows]
    token = plain_tokens(llama, examples[0].prompt, 1, set())[0]
    by_token = {
        "suppressed": {"suppress_tokens": [token], "begin_suppress_tokens": [token]},
        "bad words": {"bad_words_ids": [[token]]},
        "bias": {"sequence_bias": [[[token], -100.0]]},
    }
    other = copy.deepcopy(llama)
    for name, value in (OWN | by_token)[settings].items():
        setattr(other.generation_config, name, value)
    kept = copy.deepcopy(other.generation_config.to_dict())
    assert [generate(other, examples, how) for how in hows] == expected
    assert other.generation_config.to_dict() == kept  # and is as it was


def test_a_model_keeps_its_settings_when_generation_fails(llama, tokenizer):
    other = copy.deepcopy(llama)
    own = other.generation_config
    other.forward = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("of the model"))
    with pytest.raises(RuntimeError, match="of the model"):
        generate(other, prompts(tokenizer, "a"), Generation(tokenizer))
    assert other.generation_config is own


def test_notes_of_transformers_are_as_loud_as_before(llama, tokenizer):
    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_info()
    try:
        generate(llama, prompts(tokenizer, "a"), Generation(tokenizer, max_new_tokens=1))
        assert log.get_verbosity() == log.INFO
    finally:
        log.set_verbosity(before)


# other models


def wrapped_by_peft(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(
            copy.deepcopy(model), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
        )
    with torch.no_grad():
        for number, (name, parameter) in enumerate(wrapped.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return wrapped.eval()


def test_a_model_with_an_adapter_generates_with_it(llama, tokenizer):
    examples = prompts(tokenizer, *TEXTS)
    wrapped = wrapped_by_peft(llama)
    wrapped.generation_config.repetition_penalty = 50.0
    found = generate(wrapped, examples, Generation(tokenizer, max_new_tokens=6))
    assert found == [plain_text(wrapped, tokenizer, one.prompt, 6) for one in examples]
    assert found != generate(llama, examples, Generation(tokenizer, max_new_tokens=6))
    assert wrapped.generation_config.repetition_penalty == 50.0


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
def test_a_model_with_any_adapter_of_zofo_generates_with_it(llama, tokenizer, kind):
    from zofo.adapters import AdapterConfig

    model, examples = copy.deepcopy(llama), prompts(tokenizer, *TEXTS)
    adapters = AdapterConfig.model_validate({"name": kind}).build(model, ("adapter",), 0)
    with torch.no_grad():
        for number, parameter in enumerate(adapters.parameters("adapter")):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    found = generate(model, examples, Generation(tokenizer, max_new_tokens=6))
    assert found == [plain_text(model, tokenizer, one.prompt, 6) for one in examples]
    assert found != generate(llama, examples, Generation(tokenizer, max_new_tokens=6))


def test_a_model_that_cannot_generate_is_refused(tokenizer):
    examples = prompts(tokenizer, "a")
    head = build_model("gpt2", len(tokenizer), head=transformers.AutoModelForSequenceClassification)
    for model in (head, build_model("bert", len(tokenizer), head=transformers.AutoModelForMaskedLM), nn.Linear(2, 2)):
        with pytest.raises(ModelError, match=f"{type(model).__name__} cannot generate text") as caught:
            generate(model, examples, Generation(tokenizer))
        assert "model.head=causal-lm" in caught.value.hint


# tasks


@pytest.fixture(scope="module")
def asking(tmp_path_factory, tokenizer):
    """The arguments of a generation task on a tiny model of 64 positions."""
    folder = tmp_path_factory.mktemp("asking")
    build_model("llama", len(tokenizer), seed=3).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": text, "completion": "great"} for line in LINES for text in (line[:10], line[:20], line[5:30])]
    write_rows(folder / "rows.jsonl", rows)
    content = """
name: asking
version: 1
kind: generation
metric: token-f1
extra_metrics: [exact-match]
template: "{{ prompt }}"
answers: completion
splits: {train: {from: data}, validation: {from: data, size: 4}, test: {from: data, size: 4}}
max_new_tokens: LIMIT
"""
    for limit in (4, 63, 64, 5000):
        (folder / f"{limit}.yaml").write_text(content.replace("LIMIT", str(limit)), encoding="utf-8")

    def ask(limit: int, *more: str) -> list[str]:
        return [
            f"model={folder / 'model'}",
            f"task={folder / f'{limit}.yaml'}",
            f"task.data={folder / 'rows.jsonl'}",
        ] + [*more]

    return ask


@pytest.mark.parametrize("limit", [63, 64, 5000])
def test_a_task_that_generates_more_than_the_context_holds_is_refused(asking, limit):
    with pytest.raises(ConfigError, match=f"at most 64 tokens.* the task 'asking' generates {limit}") as caught:
        evaluate_zero_shot(read_config(None, asking(limit)))
    assert "max_new_tokens" in caught.value.hint


def test_seed_and_temperature_of_a_run_reach_the_texts(asking):
    def texts(*more: str):
        return evaluate_zero_shot(read_config(None, asking(4, *more))).predictions

    greedy = texts()
    assert len(greedy) == 12  # a model as it is answers every row
    assert all(isinstance(text, str) for text in greedy)
    assert texts("training.seed=1") == greedy
    warm = texts("task.temperature=2.0")
    assert warm != greedy
    assert texts("task.temperature=2.0", "training.eval_batch_size=1") == warm
    assert texts("task.temperature=2.0", "training.seed=1") != warm


def test_a_tokenizer_with_a_first_token_of_its_own(tokenizer):
    own = build_tokenizer(bos=True)
    model = build_model("llama", len(own), seed=3)
    examples = prompts(own, *TEXTS)
    assert all(one.prompt[0] == own.bos_token_id for one in examples)
    found = generate(model, examples, Generation(own, max_new_tokens=5))
    assert found == [plain_text(model, own, one.prompt, 5) for one in examples]
