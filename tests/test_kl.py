"""KL to the base model: by hand on a tiny model, off at the base, in the score, the log and the counts."""

from __future__ import annotations

import json
import math
import signal
from contextlib import contextmanager
from io import StringIO

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from conftest import build_model
from covering import grid
from test_before_after import generating, spaces  # noqa: F401  # a fixture
from test_conformance import AtStep
from test_treatment import configured, lines_of  # noqa: F401  # a fixture
from zofo.adapters import ADAPTERS, without_adapters
from zofo.backbone import Backbone, BaseCopy, Update, movable
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, Interrupted, NonFiniteError, ZofoError
from zofo.estimate import estimate_run
from zofo.methods import METHODS
from zofo.noise import Gaussian
from zofo.objectives import Generation, generation_rows
from zofo.objectives.generation import Completion, completions
from zofo.objectives.kl import kl_to_base
from zofo.objectives.scoring import target_log_likelihoods
from zofo.tasks import Example, encode
from zofo.temporary import temporarily
from zofo.training import prepare_run, read_config, train, training_context
from zofo.trajectory import Trajectory

TEXTS = ("the film is", "a dull and lifeless story that never finds its", "an")


@torch.no_grad()
def by_hand(model, base, prompt, tokens):
    """The mean of exp(r) - r - 1 of one text: no batch, no padding, in float64."""
    row, told = torch.tensor([[*prompt, *tokens]]), torch.tensor(tokens).unsqueeze(1)
    logits = (one(input_ids=row).logits[0, -len(tokens) - 1 : -1].double() for one in (model, base))
    own, other = (each.log_softmax(1).gather(1, told).flatten() for each in logits)
    return ((other - own).exp() - (other - own) - 1).mean().item()


@pytest.mark.parametrize("kind", ["lora", "subspace", "dora", "ia3", "prefix", "prompt"])
def test_it_is_zero_at_the_base_and_that_of_plain_forwards_elsewhere(tokenizer, kind):
    """Of a whole batch, whose texts have other lengths; and the base is the model without its adapter, to the bit."""
    base, model = (build_model("llama", len(tokenizer), seed=3).eval() for _ in range(2))
    options = {"subspace": {"init": "random"}, "prefix": {"init": "random"}}.get(kind, {})
    adapters = ADAPTERS[kind](model, ["adapter"], 0, **options)
    examples = encode(tokenizer, [Example(text, (" x",), (0,)) for text in TEXTS])
    how = Generation(tokenizer, stop=(" a",), max_new_tokens=7)

    def measured():
        said = completions(model, examples, how)
        return said, kl_to_base(model, examples, said, tokenizer.pad_token_id, without_adapters)

    if adapters.starts_neutral:
        assert measured()[1].tolist() == [0.0] * 3
    with torch.no_grad():
        for place, parameter in enumerate(adapters.parameters("adapter")):
            generator = torch.Generator().manual_seed(place)
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    ids = torch.tensor([[5, 6, 7]])
    before = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad(), without_adapters(model):
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    assert not torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    said, found = measured()
    hand = [by_hand(model, base, one.prompt, text.tokens) for one, text in zip(examples, said, strict=True)]
    assert min(hand) > 1e-4
    assert found.tolist() == pytest.approx(hand, rel=1e-3, abs=1e-6)


def test_tokens_of_a_text_end_with_what_ended_it(tokenizer):
    model = build_model("llama", len(tokenizer), seed=3)
    examples = encode(tokenizer, [Example(text, (" x",), (0,)) for text in TEXTS])
    free = completions(model, examples, Generation(tokenizer, max_new_tokens=7))
    for one in free:
        assert len(one.tokens) == 7 or one.tokens[-1] in (2, tokenizer.eos_token_id)
    letter = next(letter for letter in free[0].text[2:] if letter.strip())
    for one, whole in zip(completions(model, examples, Generation(tokenizer, (letter,), 7)), free, strict=True):
        assert one.tokens == whole.tokens[: len(one.tokens)]
        said = tokenizer.decode(one.tokens, skip_special_tokens=True).lstrip()
        if letter in tokenizer.decode(whole.tokens, skip_special_tokens=True).lstrip():
            assert letter in said
            assert letter not in tokenizer.decode(one.tokens[:-1], skip_special_tokens=True).lstrip()
        else:
            assert one.tokens == whole.tokens


def held(generating, name, beta, method=None, **training):  # noqa: F811
    """A run by the spaces of texts, of which an adapter moves."""
    given = generating(name, **{"before_after_examples": 0, **training}).model_dump(mode="json", exclude_unset=True)
    given["method"] = {**given["method"], "adapter": "lora", "estimator": {"epsilon": 0.3}, **(method or {})}
    given["method"] = {key: value for key, value in given["method"].items() if value is not None}
    given["training"] |= {"kl_beta": beta} if beta is not None else {}
    return read_config(**given)


def as_built(config):
    """The method of a run before its first step."""
    return METHODS[config.method.name](config.method, training_context(config, prepare_run(config), spaces))


OWN = {"adapter": None, "keep_base": True, "estimator": {"epsilon": 0.05}}


MEMBERS = [
    ("in-forward", {}, 0.3),
    ("in-place", {}, 0.3),
    ("in-forward", OWN, 0.05),
    ("in-forward", OWN | {"trainable": ["*.1.*", "*embed*"]}, 0.05),
    ("in-place", OWN, 0.05),
    ("from-copy", OWN, 0.05),
]


@pytest.mark.parametrize(("member", "at_once"), grid(MEMBERS, [512, 7], strength=1))
def test_a_members_score_is_its_reward_less_beta_times_its_kl(
    generating,  # noqa: F811
    monkeypatch,
    member,
    at_once,
):
    """Of each member that `select` asks, its weights moved to it, beside a base model that was loaded for itself; with
    all texts in one forward, or a few at a time."""
    monkeypatch.setattr("zofo.objectives.kl._AT_ONCE", at_once)
    evaluator, method, sigma = member
    method = {"name": "select", "gate_examples": 0, "evaluator": evaluator, **method}
    config = held(generating, "run", 2.0, method, steps=1)
    run = train(config, reward=spaces)
    (line,) = lines_of(run, "step")
    prepared, built = prepare_run(config), as_built(config)  # each with a model of its own
    base, examples, how = prepared.loaded.model, built._asked.examples, prepared.scorer.generation
    kls, rewards = [], []
    for place in range(4):
        point = Displacement({Key(config.training.seed, 0, place // 2): sigma * (-1) ** place})
        built.backbone.apply_(point)
        said = completions(built.model, examples, how)
        kl = [by_hand(built.model, base, one.prompt, text.tokens) for one, text in zip(examples, said, strict=True)]
        reward = [spaces(one.example, text.text) for one, text in zip(examples, said, strict=True)]
        scores = [own - 2.0 * apart for own, apart in zip(reward, kl, strict=True)]
        assert line[f"member_reward_{place}"] == pytest.approx(sum(scores) / len(scores), rel=1e-3)
        kls, rewards = kls + kl, rewards + reward
        built.backbone.apply_(-point)
    assert line["kl"] == pytest.approx(sum(kls) / len(kls), rel=1e-3)
    assert line["kl"] > 1e-3
    assert line["reward_spaces"] == pytest.approx(sum(rewards) / len(rewards))
    assert line["reward"] == pytest.approx(line["reward_spaces"] - 2.0 * line["kl"], rel=1e-5)


def test_it_takes_two_forwards_a_batch_and_without_it_nothing_changes(generating):  # noqa: F811
    """A beta that no float32 score shows makes the same steps, so that the counts alone differ."""

    def above(example, text):
        return 1 + spaces(example, text)

    betas = {"plain": None, "off": 0, "on": 1e-12}
    plain, off, on = (train(held(generating, name, beta), reward=above) for name, beta in betas.items())
    assert plain.trajectory.read_bytes() == off.trajectory.read_bytes() == on.trajectory.read_bytes()
    adapters = {(one.path / "adapter/adapter_model.safetensors").read_bytes() for one in (plain, off, on)}
    assert len(adapters) == 1
    for one, other, more in zip(*(lines_of(run, "step") for run in (plain, off, on)), strict=True):
        assert one["forwards"] == other["forwards"] == more["forwards"] - 2 * (one["step"] + 1)
        assert one["queries"] == more["queries"]
        assert "kl" not in other
        assert more["kl"] > 0
    assert on.summary["forwards"] == plain.summary["forwards"] + 2 * 3


MEZO = {"name": "mezo", "population": None, "estimator": {"epsilon": 0.3}}


@pytest.mark.parametrize("method", [{}, pytest.param(MEZO, marks=pytest.mark.soak)], ids=["es", "mezo"])
def test_it_holds_back_and_resumes_and_replays_to_the_same_bits(generating, method):  # noqa: F811
    near, far = (
        train(held(generating, name, beta, method, before_after_examples=5), reward=spaces)
        for name, beta in (("near", 5), ("far", 0))
    )
    assert near.trajectory.read_bytes() != far.trajectory.read_bytes()
    stopping = Console(file=AtStep(2, lambda: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(Interrupted):
        train(held(generating, "stopped", 5, method), stopping, reward=spaces)
    with pytest.raises(ZofoError, match="kl_beta"):
        train(held(generating, "stopped", 4, method), reward=spaces)
    again = train(held(generating, "stopped", 5, method), reward=spaces)
    assert again.trajectory.read_bytes() == near.trajectory.read_bytes()
    steps = [[{**line, "seconds": None} for line in lines_of(run, "step")] for run in (again, near)]
    assert steps[0] == steps[1]
    assert all(line["kl"] > 0 for line in steps[0])
    built = as_built(near.config)
    for update in Trajectory.read(near.trajectory).updates:
        built.evaluator.theta.apply(update)
    built.save(near.path / "replayed")
    files = [near.path / place / "adapter" / "adapter_model.safetensors" for place in (".", "replayed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_weights_of_its_own_resume_beside_the_base_that_the_run_began_with(generating):  # noqa: F811
    """And not beside those that the checkpoint holds: the KL of later steps is of all that has moved."""
    method = OWN | {"rule": {"lr": 0.5}}
    whole = train(held(generating, "whole", 5, method), reward=spaces)
    stopping = Console(file=AtStep(2, lambda: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(Interrupted):
        train(held(generating, "stopped", 5, method), stopping, reward=spaces)
    again = train(held(generating, "stopped", 5, method), reward=spaces)
    assert again.trajectory.read_bytes() == whole.trajectory.read_bytes()
    steps = [[{**line, "seconds": None} for line in lines_of(run, "step")] for run in (again, whole)]
    assert steps[0] == steps[1]
    free = train(held(generating, "free", 1e-12, method), reward=spaces)
    assert free.trajectory.read_bytes() != whole.trajectory.read_bytes()
    kls = [line["kl"] for line in lines_of(free, "step")]
    assert kls[2] > 1.5 * kls[0]


def test_a_run_from_a_run_is_held_near_to_that_run(generating, tokenizer):  # noqa: F811
    """Whose answers the base model of both finds less likely."""
    given = generating("first").model_dump(mode="json", exclude_unset=True)
    far = {"name": "mezo", "batch_size": 4, "rule": {"lr": 1e-2}}
    first = train(read_config(**{**given, "method": far, "training": {"steps": 2}}))
    config = held(generating, "near", 1.0, OWN | {"estimator": {"epsilon": 1e-6}}, steps=1)
    near = train(config.model_copy(update={"init_from": first.path}), reward=spaces)
    begun, base, how = first.load().model, prepare_run(config).loaded.model, Generation(tokenizer, max_new_tokens=4)
    examples = encode(tokenizer, [Example(text, (" x",), (0,)) for text in TEXTS])
    said = completions(begun, examples, how)
    apart = kl_to_base(begun, examples, said, 0, lambda model: temporarily(model, forward=base.forward))
    assert lines_of(near, "step")[0]["kl"] < 1e-6 < 1e-3 < apart.mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_answers_as_the_model_did_wherever_its_weights_have_gone(tokenizer, dtype):
    """To the bit, tied tensors and what stays among them; and afterwards the model is what it was."""
    model, ids = build_model("llama", len(tokenizer), seed=3).to(dtype), torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    moving, _ = movable(model, ["*.0.*", "*embed*", "*norm*"])
    copied, parameters = BaseCopy(moving.values()), dict(model.named_parameters())
    backbone = Backbone(model, Gaussian(), list(moving))
    backbone.apply_(Update(Displacement({Key(0, 0): 0.3})))
    moved = model(input_ids=ids).logits
    assert not torch.equal(moved, before)
    with copied(model):
        assert torch.equal(model(input_ids=ids).logits, before)
        backbone.apply_(Update(Displacement({Key(0, 1): 0.3})))  # of the weights themselves
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not torch.equal(model(input_ids=ids).logits, moved)
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


@pytest.mark.parametrize("lengths", [[3], [3, 1], [5, 2, 4, 1, 3, 3, 2], [2] * 12])
def test_it_holds_the_logits_of_few_tokens_at_once(tokenizer, monkeypatch, lengths):
    """And comes to the same, whatever rows share a forward."""
    model, base = build_model("llama", len(tokenizer), seed=3), build_model("llama", len(tokenizer), seed=4)
    examples = encode(tokenizer, [Example(TEXTS[place % 3], (" x",), (0,)) for place in range(len(lengths))])
    said = [Completion(tuple(range(9, 9 + length)), "") for length in lengths]
    seen, kept = [], []
    plain = target_log_likelihoods

    @contextmanager
    def as_base(_):
        with temporarily(model, forward=base.forward):
            yield

    def noted(model, batch):
        seen.append((len(batch.input_ids), len(batch.input_ids) * batch.logits_to_keep))
        return plain(model, batch)

    monkeypatch.setattr("zofo.objectives.kl.target_log_likelihoods", noted)
    whole = kl_to_base(model, examples, said, 0, as_base)
    assert [rows for rows, _ in seen] == [len(lengths)] * 2
    monkeypatch.setattr("zofo.objectives.kl._AT_ONCE", 8)
    seen.clear()
    with generation_rows(kept.append):
        parts = kl_to_base(model, examples, said, 0, as_base)
    assert torch.allclose(parts, whole, rtol=1e-4)
    assert sum(rows for rows, _ in seen) == 2 * len(lengths)
    most = max(8, len(lengths), 2 * max(lengths))
    assert max(tokens for _, tokens in seen) <= 2 * most
    if len(lengths) > 6:
        assert min(rows for rows, _ in seen) >= 2
        assert [place for part in kept[:-1] for place in part] == list(range(len(lengths)))
        assert kept[-1] is None
    with generation_rows(None):  # none can leave
        seen.clear()
        assert torch.equal(kl_to_base(model, examples, said, 0, as_base), whole)
        assert len(seen) == 2


def test_a_kl_that_is_not_finite_makes_no_step(generating, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        "zofo.objectives.kl.kl_to_base", lambda model, examples, *_: torch.full((len(examples),), math.inf)
    )
    with pytest.raises(NonFiniteError, match="loss inf"):
        train(held(generating, "es", 0.1), reward=spaces)
    for line in (generating("es").output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"kl_beta": -0.1}}, "greater than or equal to 0"),
        ({"training": {"kl_beta": math.inf}}, "finite"),
        ({"training": {"kl_beta": 1e39}}, "training.kl_beta: Input should be less than or equal to 1000000"),
        ({"method": {"name": "es", "population": 4}}, "move an adapter alone"),
        ({"method": {"name": "es", "adapter": "lora", "keep_base": True}}, "is of the model's own weights"),
        ({"training": {"kl_beta": 0}, "method": {"name": "es", "keep_base": True}}, "keeps what training.kl_beta asks"),
        ({"method": {"name": "bilevel", "upper_objective": "reward"}}, "move an adapter alone"),
        ({"training": {"kl_beta": 0.1, "objective": "answer"}}, "'answer' is a loss"),
    ],
)
def test_what_it_cannot_hold_is_refused(generating, changes, message):  # noqa: F811
    given = held(generating, "run", 0.1).model_dump(mode="json", exclude_unset=True)
    given |= {key: value if key == "method" else given[key] | value for key, value in changes.items()}
    with pytest.raises((ConfigError, ValidationError), match=message):
        train(read_config(**given))


def test_candidates_are_no_text(configured):  # noqa: F811
    config = configured("run", {"name": "es", "population": 4, "adapter": "lora"}, objective="accuracy", kl_beta=0.1)
    with pytest.raises(ConfigError, match="are candidates"):
        train(config, Console(file=StringIO()))


def test_an_estimate_counts_the_two_forwards_of_the_kl(generating):  # noqa: F811
    free, near = (estimate_run(held(generating, "run", beta), beside=False) for beta in (None, 0.1))
    assert near.rows == free.rows
    assert near.configured.work.flops == pytest.approx(3 * free.configured.work.flops)


def test_an_estimate_and_the_log_say_what_a_copy_takes(generating):  # noqa: F811
    free, held_near = (
        held(generating, name, beta, {"adapter": None, "keep_base": beta is not None}, steps=1)
        for name, beta in (("free", None), ("near", 0.1))
    )
    of = [estimate_run(config, beside=False).configured.terms for config in (free, held_near)]
    sizes = [sum(term.size for term in terms if term.name == "copies of weights") for terms in of]
    size = sum(one.numel() * 4 for one in prepare_run(free).loaded.model.parameters())
    assert sizes[1] - sizes[0] == size
    console = Console(file=StringIO(), width=400)
    train(held_near, console, reward=spaces)
    assert f"a copy of the weights that move, {size / 2**30:.3g} GiB, is kept" in console.file.getvalue()
