"""Objectives: against plain references of one row each, which tasks and models they suit, and training with each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import zofo
from conftest import ARCHITECTURES, build_model, build_tokenizer, review_rows, write_rows
from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, UnknownNameError
from zofo.evaluators import InForward, InPlace
from zofo.models import LoadedModel
from zofo.noise import LowRank
from zofo.objectives import OBJECTIVES, Generation, build_objective, default_objective, generate, reward_objective
from zofo.tasks import Example, encode, encode_masked, encode_texts
from zofo.tasks.metrics import token_f1
from zofo.tasks.task import parse_task
from zofo.training import read_config, train
from zofo.training.data_module import batch_maker

SPLITS = {"train": {"from": "data"}, "validation": {"from": "data", "size": 8}, "test": {"from": "data", "size": 4}}
COMMON = {"version": 1, "splits": SPLITS}
LABELS = {0: " terrible", 1: " great", 2: " not to be missed"}
CLASSIFICATION = parse_task(
    {
        **COMMON,
        "name": "labels",
        "kind": "classification",
        "metric": "accuracy",
        "template": "{{ sentence }} It was",
        "label": "label",
        "verbalizers": LABELS,
    },
    "labels",
)
CHOICE = parse_task(
    {
        **COMMON,
        "name": "choosing",
        "kind": "multiple-choice",
        "metric": "accuracy",
        "template": "{{ question }}",
        "label": "answer",
        "choices": {"each": "choices"},
    },
    "choosing",
)
WRITING = parse_task(
    {
        **COMMON,
        "name": "writing",
        "kind": "generation",
        "metric": "token-f1",
        "template": "{{ question }}",
        "answers": "answers",
        "max_new_tokens": 4,
    },
    "writing",
)
TASKS = {"classification": CLASSIFICATION, "multiple-choice": CHOICE, "generation": WRITING}

EXAMPLES = {
    "classification": [
        Example("a joy from start to finish . It was", tuple(LABELS.values()), (1,)),
        Example("dull . It was", tuple(LABELS.values()), (0,)),
        Example("an honest picture , warm . It was", tuple(LABELS.values()), (2,)),
    ],
    "multiple-choice": [
        Example("the film is", (" great", " a dull story", " warm"), (1, 2)),
        Example("nobody laughed and", (" nobody", " it drags on and on"), (0,)),
        Example("an honest", (" film", " picture", " joy", " bad good"), (3,)),
    ],
    "generation": [
        Example("the film is", (" great and funny\n",), (0,), ("great and funny", "a joy")),
        Example("nobody laughed and", (" it\n",), (0,), ("it",)),
        Example("an honest and warm", (" picture story\n",), (0,), ("picture story", "film")),
    ],
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request, tokenizer) -> LoadedModel:
    return LoadedModel(build_model(request.param, len(tokenizer), seed=2), tokenizer, request.param)


@pytest.fixture(scope="module")
def llama(tokenizer) -> LoadedModel:
    return LoadedModel(build_model("llama", len(tokenizer), seed=2), tokenizer, "llama")


def how(tokenizer, **options) -> Generation:
    return Generation(tokenizer, stop=tuple(WRITING.stop), max_new_tokens=4, **options)


def losses(objective, loaded: LoadedModel, encoded) -> torch.Tensor:
    with torch.no_grad():
        return objective.losses(loaded.model, batch_maker(loaded)([objective.prepare(one) for one in encoded]))


@torch.no_grad()
def token_likelihoods(model, row) -> torch.Tensor:
    """log p of each token of a row after those before it: one row, no padding, all logits."""
    logits = model(input_ids=torch.tensor([row])).logits[0].double()
    return logits.log_softmax(-1)[:-1].gather(1, torch.tensor(row[1:]).unsqueeze(1)).squeeze(1)


def plain_scores(loaded: LoadedModel, one) -> torch.Tensor:
    pairs = zip(one.rows, one.scored, strict=True)
    return torch.stack([token_likelihoods(loaded.model, row)[-scored:].mean() for row, scored in pairs])


def plain_loss(name: str, loaded: LoadedModel, one) -> float:
    """By definition."""
    if name == "classification":
        return float(-plain_scores(loaded, one).log_softmax(0)[one.example.golds[0]])
    if name == "answer":
        return float(-plain_scores(loaded, one)[one.example.golds[0]])
    if name == "text":
        return float(-token_likelihoods(loaded.model, one.rows[one.example.golds[0]]).mean())
    assert name == "accuracy"
    return -float(int(plain_scores(loaded, one).argmax()) in one.example.golds)


MEANINGFUL = [
    (name, kind)
    for kind, names in {
        "classification": ("classification", "answer", "text", "accuracy"),
        "multiple-choice": ("classification", "answer", "text", "accuracy"),
        "generation": ("answer", "text"),
    }.items()
    for name in names
]


@pytest.mark.parametrize(("name", "kind"), MEANINGFUL)
def test_losses_are_those_of_plain_references(loaded, name, kind):
    encoded = encode(loaded.tokenizer, EXAMPLES[kind])
    objective = build_objective(name, TASKS[kind], how(loaded.tokenizer), causal=True)
    found = losses(objective, loaded, encoded)
    assert found.dtype == torch.float32
    expected = torch.tensor([plain_loss(name, loaded, one) for one in encoded])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    alone = torch.cat([losses(objective, loaded, [one]) for one in encoded])
    torch.testing.assert_close(alone, found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["answer", "text", "classification"])
def test_the_losses_of_one_example_differ_between_objectives(llama, name):
    encoded = encode(llama.tokenizer, EXAMPLES["classification"])
    others = {
        other: [plain_loss(other, llama, one) for one in encoded] for other in ("answer", "text", "classification")
    }
    mine = others.pop(name)
    for other in others.values():
        assert all(abs(a - b) > 1e-3 for a, b in zip(mine, other, strict=True))


def test_answer_and_text_of_a_tokenizer_with_a_first_token():
    own = build_tokenizer(bos=True)
    loaded = LoadedModel(build_model("llama", len(own), seed=2), own, "llama")
    for name in ("answer", "text"):
        encoded = encode(own, EXAMPLES["generation"])
        assert all(one.rows[0][0] == own.bos_token_id for one in encoded)
        found = losses(build_objective(name, WRITING, how(own), causal=True), loaded, encoded)
        expected = torch.tensor([plain_loss(name, loaded, one) for one in encoded])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_accuracy_counts_any_right_choice(llama):
    objective = build_objective("accuracy", CHOICE, how(llama.tokenizer), causal=True)
    encoded = encode(llama.tokenizer, EXAMPLES["multiple-choice"])
    best = [int(plain_scores(llama, one).argmax()) for one in encoded]
    width = [len(one.rows) for one in encoded]
    examples = EXAMPLES["multiple-choice"]

    def of(golds):
        changed = [Example(one.prompt, one.candidates, gold) for one, gold in zip(examples, golds, strict=True)]
        return losses(objective, llama, encode(llama.tokenizer, changed)).tolist()

    wrong = [(place + 1) % count for place, count in zip(best, width, strict=True)]
    assert of([(place,) for place in best]) == [-1, -1, -1]
    assert of([(place,) for place in wrong]) == [0, 0, 0]
    assert of(list(zip(wrong, best, strict=True))) == [-1, -1, -1]
    assert of([(wrong[0],), (best[1],), (wrong[2],)]) == [0, -1, 0]


def test_f1_is_that_of_the_generated_text(llama):
    encoded = encode(llama.tokenizer, EXAMPLES["generation"])
    objective = build_objective("token-f1", WRITING, how(llama.tokenizer), causal=True)
    texts = generate(llama.model, encoded, how(llama.tokenizer))
    assert all(texts)
    found = losses(objective, llama, encoded)
    assert found.tolist() == pytest.approx(
        [-token_f1(t, e.example.answers) for t, e in zip(texts, encoded, strict=True)]
    )
    answers = [(texts[0],), ("nothing of it", texts[1]), (f"{texts[2]} zzz",)]
    changed = encode(
        llama.tokenizer,
        [Example(e.prompt, e.candidates, (0,), a) for e, a in zip(EXAMPLES["generation"], answers, strict=True)],
    )
    words = len(texts[2].split())
    assert losses(objective, llama, changed).tolist() == pytest.approx([-1, -1, -2 * words / (2 * words + 1)])


def test_a_reward_sees_the_example_and_what_was_predicted(llama):
    seen = []

    def reward(example, prediction):
        seen.append((example, prediction))
        return 0.25 * len(seen)

    for kind, examples in EXAMPLES.items():
        seen.clear()
        encoded = encode(llama.tokenizer, examples)
        objective = reward_objective(reward, TASKS[kind], how(llama.tokenizer))
        assert not objective.differentiable
        found = losses(objective, llama, encoded)
        assert found.dtype == torch.float32
        assert found.tolist() == [-0.25, -0.5, -0.75]
        assert [example for example, _ in seen] == examples
        if kind == "generation":
            expected = generate(llama.model, encoded, how(llama.tokenizer))
        else:
            expected = [int(plain_scores(llama, one).argmax()) for one in encoded]
        assert [prediction for _, prediction in seen] == expected
        assert all(type(prediction) is (str if kind == "generation" else int) for _, prediction in seen)


# which suit which


def test_which_objectives_have_a_gradient(llama):
    for name in OBJECTIVES:
        for task in TASKS.values():
            try:
                objective = build_objective(name, task, how(llama.tokenizer), causal=True)
            except ConfigError:
                continue
            assert objective.name == name
            assert objective.differentiable == (name in ("classification", "answer", "text"))
            encoded = encode(llama.tokenizer, EXAMPLES[task.kind])
            found = objective.losses(llama.model, batch_maker(llama)([objective.prepare(one) for one in encoded]))
            assert found.requires_grad == (objective.differentiable and next(llama.model.parameters()).requires_grad)


@pytest.mark.parametrize(
    ("name", "kind", "better"),
    [
        ("classification", "generation", "answer"),
        ("accuracy", "generation", "token-f1"),
        ("token-f1", "classification", "accuracy"),
        ("token-f1", "multiple-choice", "accuracy"),
    ],
)
def test_objectives_without_a_meaning_for_a_task_are_refused(tokenizer, name, kind, better):
    with pytest.raises(ConfigError, match=f"the objective '{name}' has no meaning for the {kind}") as caught:
        build_objective(name, TASKS[kind], how(tokenizer), causal=True)
    assert caught.value.hint == f"choose {better!r}, as in training.objective={better}"
    build_objective(better, TASKS[kind], how(tokenizer), causal=True)


@pytest.mark.parametrize("name", ["answer", "text"])
@pytest.mark.parametrize("kind", ["classification", "multiple-choice"])
def test_the_losses_of_a_causal_model_are_refused_for_others(tokenizer, name, kind):
    with pytest.raises(ConfigError, match=f"'{name}' is the loss of a causal language model") as caught:
        build_objective(name, TASKS[kind], how(tokenizer), causal=False)
    assert "training.objective=classification" in caught.value.hint
    build_objective("classification", TASKS[kind], how(tokenizer), causal=False)
    build_objective("accuracy", TASKS[kind], how(tokenizer), causal=False)


def test_every_kind_has_a_default_that_suits_it(tokenizer):
    assert {kind: default_objective(task) for kind, task in TASKS.items()} == {
        "classification": "classification",
        "multiple-choice": "answer",
        "generation": "answer",
    }
    for task in TASKS.values():
        build_objective(default_objective(task), task, how(tokenizer), causal=True)


def test_an_unknown_objective_is_refused(tokenizer):
    with pytest.raises(UnknownNameError, match="acuracy") as caught:
        build_objective("acuracy", CLASSIFICATION, how(tokenizer), causal=True)
    assert "accuracy" in caught.value.hint


# both evaluators


def points(count: int = 3, size: float = 0.3) -> list[Displacement]:
    """Where theta is, and both sides of some directions."""
    away = [Displacement({Key(5, number): size * sign}) for number in range(count) for sign in (1, -1)]
    return [Displacement(), *away]


def hash_of(answer: int | str) -> float:
    return float(sum(map(ord, answer)) if isinstance(answer, str) else answer)


@pytest.mark.parametrize(
    ("name", "kind"), [*MEANINGFUL, ("token-f1", "generation"), ("reward", "generation"), ("reward", "multiple-choice")]
)
def test_both_evaluators_agree_on_the_losses_at_the_same_points(tokenizer, name, kind):
    loaded = LoadedModel(build_model("llama", len(tokenizer), seed=4), tokenizer, "llama")
    settings = how(tokenizer, temperature=1.0 if name == "reward" else 0.0)
    if name == "reward":
        objective = reward_objective(lambda one, answer: hash_of(answer) + len(one.prompt), TASKS[kind], settings)
    else:
        objective = build_objective(name, TASKS[kind], settings, causal=True)
    examples = EXAMPLES[kind]
    if name == "token-f1":  # what a random model does say where it stands
        texts = generate(loaded.model, encode(tokenizer, examples), settings)
        pairs = zip(examples, texts, strict=True)
        examples = [Example(one.prompt, one.candidates, (0,), (text,)) for one, text in pairs]
    batch = batch_maker(loaded)([objective.prepare(one) for one in encode(tokenizer, examples)])
    before = Backbone(loaded.model, LowRank()).fingerprint()
    backbone = Backbone(loaded.model, LowRank())
    carried = InForward(loaded.model, backbone).losses(objective.losses, batch, points())
    assert backbone.fingerprint() == before
    moved = InPlace(loaded.model, backbone).losses(objective.losses, batch, points())
    assert carried.shape == moved.shape == (7, 3)
    if objective.differentiable:
        torch.testing.assert_close(carried, moved, rtol=1e-3, atol=1e-3)
    else:
        assert torch.equal(carried, moved)
    assert (carried != carried[0]).any()  # the points differ in it


def test_parts_of_a_batch_have_the_losses_of_the_whole(llama):
    objective = build_objective("token-f1", WRITING, how(llama.tokenizer), causal=True)
    batch = batch_maker(llama)(encode(llama.tokenizer, EXAMPLES["generation"]))
    backbone = Backbone(llama.model, LowRank())
    whole = InForward(llama.model, backbone).losses(objective.losses, batch, points(1))
    parts = InForward(llama.model, backbone, micro_batch=1).losses(objective.losses, batch, points(1))
    assert torch.equal(whole, parts)


# training


WRITING_FILE = """
name: writing
version: 1
kind: generation
metric: token-f1
template: "{{ prompt }}"
answers: completion
stop: []
max_new_tokens: 6
splits: {train: {from: data}, validation: {from: data, size: 8}, test: {from: data, size: 4}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A tiny model, a head on the same, and rows of a classification and a generation task."""
    folder = tmp_path_factory.mktemp("objectives")
    causal = build_model("llama", len(tokenizer), seed=2)
    causal.save_pretrained(folder / "causal")
    build_model("bert", len(tokenizer), head=transformers.AutoModelForMaskedLM).save_pretrained(folder / "masked-lm")
    build_model("gpt2", len(tokenizer), head=transformers.AutoModelForSequenceClassification).save_pretrained(
        folder / "classification"
    )
    for name in ("causal", "masked-lm", "classification"):
        own = build_tokenizer()
        own.add_special_tokens({"mask_token": "[MASK]"} if name == "masked-lm" else {})
        own.mask_token = "<s>" if name == "masked-lm" else None
        own.save_pretrained(folder / name)
    write_rows(
        folder / "labels.jsonl",
        [{"text": r["sentence"], "label": ("bad", "good")[r["label"]]} for r in review_rows(24)],
    )
    (folder / "writing.yaml").write_text(WRITING_FILE, encoding="utf-8")
    prompts = [line["sentence"] for line in review_rows(24)]
    asked = encode(tokenizer, [Example(prompt, ("",)) for prompt in prompts])
    said = generate(causal, asked, Generation(tokenizer, max_new_tokens=6))  # so that F1 begins at 1
    write_rows(
        folder / "answers.jsonl", [{"prompt": p, "completion": t or "joy"} for p, t in zip(prompts, said, strict=True)]
    )
    write_rows(
        folder / "choices.jsonl",
        [{"prompt": f"film {i} is", "choices": ["good", "bad"], "answer": i % 2} for i in range(24)],
    )
    return folder


def given(folder: Path, rows: str, *more: str, model: str = "causal", size: int = 4):
    arguments = [f"model={folder / model}", f"task.data={folder / rows}.jsonl", f"method.batch_size={size}", *more]
    if rows == "answers":
        arguments.append(f"task={folder / 'writing.yaml'}")
    return read_config(None, arguments)


def metrics_of(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


MEZO = ("method=mezo", "training.steps=3", "method.estimator.epsilon=0.1", "method.rule.lr=1e-2")


@pytest.mark.parametrize(
    ("rows", "objective"), [("labels", "accuracy"), ("choices", "accuracy"), ("answers", "token-f1")]
)
def test_mezo_trains_what_has_no_gradient_with_both_evaluators(folder, tmp_path, rows, objective):
    steps = {}
    for evaluator in ("in-forward", "in-place"):
        near = ["method.estimator.epsilon=0.02"] if objective == "token-f1" else []  # where some texts are as they were
        options = [
            *MEZO,
            *near,
            f"training.objective={objective}",
            f"method.evaluator={evaluator}",
            f"output_dir={tmp_path / evaluator}",
        ]
        run = train(given(folder, rows, *options))
        steps[evaluator] = [line for line in metrics_of(run) if line["event"] == "step"]
        assert run.summary["queries"] == 3 * 2 * 4
    assert len(steps["in-forward"]) == 3
    for one, other in zip(steps["in-forward"], steps["in-place"], strict=True):
        assert 0 <= one["reward"] <= 1
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-6)
        assert one["projected_gradient_0"] == pytest.approx(other["projected_gradient_0"], abs=1e-4)
        assert one["ties"] == other["ties"] == float(one["projected_gradient_0"] == 0)
    assert any(one["reward"] > 0 for one in steps["in-place"])


@pytest.mark.parametrize("rows", ["labels", "answers"])
@pytest.mark.parametrize("evaluator", ["in-forward", "in-place"])
def test_mezo_trains_a_users_reward(folder, tmp_path, rows, evaluator):
    seen = []

    def reward(example: Example, prediction) -> float:
        seen.append((example, prediction))
        return float(len(str(prediction)) + len(example.prompt) % 3)

    config = given(
        folder,
        rows,
        *MEZO,
        f"method.evaluator={evaluator}",
        "training.before_after_examples=0",
        f"output_dir={tmp_path / 'run'}",
    )
    run = zofo.train(config, reward=reward)
    assert {type(prediction) for _, prediction in seen} == {int if rows == "labels" else str}
    assert all(isinstance(example, Example) for example, _ in seen)
    steps = [line for line in metrics_of(run) if line["event"] == "step"]
    assert len(steps) == 3
    # seven examples are asked before the first step; then, in place, the mean of what is rewarded at both points
    if evaluator == "in-place":
        rewards = [float(len(str(p)) + len(e.prompt) % 3) for e, p in seen[7:]]
        for number, step in enumerate(steps):
            own = rewards[8 * number : 8 * number + 8]
            assert step["reward"] == pytest.approx(sum(own) / 8)
    assert run.summary["metric"] == ("accuracy" if rows == "labels" else "token-f1")  # evaluation stays the task's


def test_a_reward_gives_the_same_run_with_both_evaluators(folder, tmp_path):
    def reward(example: Example, prediction) -> float:
        return float(len(str(prediction)))

    runs = [
        zofo.train(
            given(folder, "answers", *MEZO, f"method.evaluator={name}", f"output_dir={tmp_path / name}"), reward=reward
        )
        for name in ("in-forward", "in-place")
    ]
    one, other = ([line for line in metrics_of(run) if line["event"] == "step"] for run in runs)
    for left, right in zip(one, other, strict=True):
        assert left["reward"] == pytest.approx(right["reward"])
        assert left["projected_gradient_0"] == pytest.approx(right["projected_gradient_0"], abs=1e-3)
    assert any(left["projected_gradient_0"] for left in one)


@pytest.mark.parametrize("method", ["first-order", "bilevel", "two-stage"])
@pytest.mark.parametrize(("rows", "objective"), [("labels", "accuracy"), ("answers", "token-f1"), ("labels", "reward")])
def test_methods_with_first_order_steps_refuse_what_has_no_gradient(folder, tmp_path, method, rows, objective):
    options = [f"method={method}", "training.steps=60", f"output_dir={tmp_path / 'run'}"]
    if objective != "reward":
        options.append(f"training.objective={objective}")
    with pytest.raises(ConfigError, match=f"'{objective}' has no gradient, but method={method}") as caught:
        train(given(folder, rows, *options), reward=(lambda *_: 0.0) if objective == "reward" else None)
    assert "method=mezo" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["classification", "masked-lm"])
@pytest.mark.parametrize("objective", ["answer", "text"])
def test_heads_refuse_the_losses_of_causal_models(folder, tmp_path, model, objective):
    options = ["method=mezo", f"training.objective={objective}", f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=f"'{objective}' is the loss of a causal language model"):
        train(given(folder, "labels", *options, model=model))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["classification", "masked-lm"])
def test_heads_cannot_write_free_texts(folder, tmp_path, model):
    with pytest.raises(ConfigError, match="classification head gives the same labels|asks for a free text"):
        train(given(folder, "answers", "method=mezo", f"output_dir={tmp_path / 'run'}", model=model))


def test_a_masked_language_model_chooses_by_the_classification_loss_unless_told_otherwise(folder, tmp_path):
    run = train(given(folder, "choices", *MEZO, f"output_dir={tmp_path / 'run'}", model="masked-lm"))
    told = train(
        given(
            folder,
            "choices",
            *MEZO,
            "training.objective=classification",
            f"output_dir={tmp_path / 'told'}",
            model="masked-lm",
        )
    )
    losses = [[line["loss"] for line in metrics_of(one) if line["event"] == "step"] for one in (run, told)]
    assert losses[0] == losses[1]


def test_examples_of_the_head_are_one_text_and_its_label(tokenizer):
    model = build_model("gpt2", len(tokenizer), head=transformers.AutoModelForSequenceClassification)
    model.config.pad_token_id = 0
    loaded = LoadedModel(model, tokenizer, "gpt2", "classification")
    examples = [
        Example("", (" terrible", " great"), (gold,), texts=(text,))
        for gold, text in ((1, "a joy from start to finish"), (0, "dull"), (1, "it drags on"))
    ]
    encoded = encode_texts(tokenizer, examples)
    logits = torch.cat([model(input_ids=torch.tensor([one.tokens])).logits for one in encoded]).double()
    found = losses(build_objective("classification", CLASSIFICATION, how(tokenizer), causal=False), loaded, encoded)
    torch.testing.assert_close(found.double(), -logits.log_softmax(1)[torch.arange(3), [1, 0, 1]], rtol=1e-4, atol=1e-5)
    right = losses(build_objective("accuracy", CLASSIFICATION, how(tokenizer), causal=False), loaded, encoded)
    assert right.tolist() == [-float(a == b) for a, b in zip(logits.argmax(1).tolist(), (1, 0, 1), strict=True)]


def test_examples_of_a_masked_language_model_are_judged_in_the_masks_place():
    own = build_tokenizer()
    own.add_special_tokens({"mask_token": "[MASK]"})
    model = build_model("bert", len(own), head=transformers.AutoModelForMaskedLM)
    loaded = LoadedModel(model, own, "bert", "masked-lm")
    examples = [
        Example(text, (" terrible", " great"), (gold,), ending=" .")
        for gold, text in ((1, "a joy . It was"), (0, "dull and lifeless story . It was"))
    ]
    encoded = encode_masked(own, examples)
    expected = []
    for one, example in zip(encoded, examples, strict=True):
        ids = own(f"{example.prompt}[MASK]{example.ending}")["input_ids"]
        assert list(one.tokens) == ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, ids.index(own.mask_token_id)].double()
        two = logits[[own.convert_tokens_to_ids("Ġterrible"), own.convert_tokens_to_ids("Ġgreat")]]
        expected.append(float(-two.log_softmax(0)[example.gold]))
    found = losses(build_objective("classification", CLASSIFICATION, how(own), causal=False), loaded, encoded)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
