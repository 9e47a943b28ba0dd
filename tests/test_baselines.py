"""Evaluation, and the methods that only read a model: zero-shot, in-context and linear-probe."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import sklearn.linear_model
import sklearn.metrics
import sklearn.preprocessing
import torch
import transformers

import zofo
from conftest import build_model, build_tokenizer, review_rows, write_rows
from zofo.errors import ConfigError, DataError, ModelError, NonFiniteError, RunError
from zofo.evaluators import Counts
from zofo.models import LoadedModel
from zofo.objectives import Generation, generate
from zofo.tasks import METRICS, Example, encode
from zofo.tasks.metrics import token_f1
from zofo.tasks.task import parse_task
from zofo.training import TaskEvaluator, evaluate_run, predict, read_config, train
from zofo.training.data_module import batch_maker, prepare_run
from zofo.training.evaluation import majority_of, most_frequent

COMMON = {
    "version": 1,
    "splits": {
        "train": {"from": "data"},
        "validation": {"from": "data", "size": 8},
        "test": {"from": "data", "size": 4},
    },
}


def task_of(kind: str, metric: str, **keys):
    shape = {
        "classification": {"label": "label", "verbalizers": {"bad": " terrible", "good": " great", "so": " not to be"}},
        "multiple-choice": {"label": "answer", "choices": {"each": "choices"}},
        "generation": {"answers": "answers", "max_new_tokens": 4},
    }[kind]
    content = {
        **COMMON,
        "name": "a task",
        "kind": kind,
        "metric": metric,
        "template": "{{ text }} It was",
        **shape,
        **keys,
    }
    return parse_task(content, "a task")


@pytest.fixture(scope="module")
def llama(tokenizer) -> LoadedModel:
    return LoadedModel(build_model("llama", len(tokenizer), seed=2), tokenizer, "llama")


def scorer_for(loaded: LoadedModel, task, **options) -> TaskEvaluator:
    return TaskEvaluator(
        task=task,
        encode=lambda examples: encode(loaded.tokenizer, examples),
        collate=batch_maker(loaded),
        generation=Generation(loaded.tokenizer, ("\n",), task.max_new_tokens),
        **options,
    )


CANDIDATES = (" terrible", " great", " not to be missed")
TEXTS = ("a joy from start to finish", "dull", "it drags on and on and nobody laughed", "warm", "an honest picture")


def reviews(golds=((1,), (0,), (0,), (2,), (1,)), free="N/A It was") -> list[Example]:
    return [
        Example(f"{text} . It was", CANDIDATES, gold, content_free=free, where=f"rows.jsonl:{number}")
        for number, (text, gold) in enumerate(zip(TEXTS, golds, strict=True), start=1)
    ]


@torch.no_grad()
def sums(loaded: LoadedModel, prompt: str, candidates=CANDIDATES) -> list[list[float]]:
    """log p of each token of each candidate after the prompt: one row at a time, all logits."""
    found = []
    for candidate in candidates:
        (one,) = encode(loaded.tokenizer, [Example(prompt, (candidate,), (0,))])
        row = list(one.rows[0])
        logits = loaded.model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
        found.append([float(logits[i - 1, row[i]]) for i in range(len(row) - one.scored[0], len(row))])
    return found


def evaluated(loaded, task, examples, counts=None, **options):
    scorer = scorer_for(loaded, task, **options)
    return scorer.evaluate(loaded.model, encode(loaded.tokenizer, examples), counts or Counts())


def table_of(loaded, examples, counts=None, **options) -> torch.Tensor:
    scorer = scorer_for(loaded, task_of("classification", "accuracy"), **options)
    return scorer.candidates(loaded.model, encode(loaded.tokenizer, examples), counts or Counts())


# scores


def test_sum_mean_and_calibrated_scores_are_those_by_hand(llama):
    examples = reviews()
    by_token = [sums(llama, one.prompt) for one in examples]
    free = sums(llama, "N/A It was")
    expected = {
        "mean": [[sum(tokens) / len(tokens) for tokens in row] for row in by_token],
        "sum": [[sum(tokens) for tokens in row] for row in by_token],
        "calibrated": [[sum(tokens) - sum(less) for tokens, less in zip(row, free, strict=True)] for row in by_token],
    }
    assert len(by_token[0][2]) > 1
    for scoring, table in expected.items():
        found = table_of(llama, examples, scoring=scoring)
        torch.testing.assert_close(found, torch.tensor(table), rtol=1e-4, atol=1e-4)
        score = evaluated(llama, task_of("classification", "accuracy"), examples, scoring=scoring)
        best = torch.tensor(table).argmax(1).tolist()
        assert list(score.predictions) == best
        assert score.score == sum(b in e.golds for b, e in zip(best, examples, strict=True)) / 5
        gold = torch.tensor([one.gold for one in examples])
        loss = torch.nn.functional.cross_entropy(torch.tensor(table), gold)
        assert score.loss == pytest.approx(float(loss), rel=1e-4)
    assert expected["sum"][0][2] < expected["mean"][0][2]


def test_prompts_without_content_that_are_the_same_are_asked_once(llama):
    counts = Counts()
    table_of(llama, reviews(), counts, scoring="calibrated")
    assert counts.queries == 5 + 1
    own = [dataclasses.replace(one, content_free=f"N/A {i % 2} It was") for i, one in enumerate(reviews())]
    counts = Counts()
    found = table_of(llama, own, counts, scoring="calibrated")
    assert counts.queries == 5 + 2
    for i, one in enumerate(own):
        alone = table_of(llama, [one], scoring="calibrated")
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_calibrated_choices_of_unequal_number(llama):
    examples = [
        Example("the film is", (" great", " dull", " warm"), (0,), content_free="N/A is"),
        Example("nobody", (" laughed", " was missed"), (1,), content_free="N/A"),
    ]
    found = table_of(llama, examples, scoring="calibrated")
    for row, one in zip(found, examples, strict=True):
        pairs = zip(sums(llama, one.prompt, one.candidates), sums(llama, one.content_free, one.candidates), strict=True)
        expected = torch.tensor([sum(a) - sum(b) for a, b in pairs])
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-4, atol=1e-4)
        assert row[len(expected) :].eq(-torch.inf).all()


def test_calibrated_scores_need_a_prompt_without_content(llama):
    examples = reviews()
    examples[3] = dataclasses.replace(examples[3], content_free="")
    with pytest.raises(ConfigError, match=r"rows.jsonl:4: task.scoring=calibrated needs") as caught:
        table_of(llama, examples, scoring="calibrated")
    assert "task.scoring=mean" in caught.value.hint


@pytest.mark.parametrize("scoring", ["mean", "sum", "calibrated"])
def test_numbers_do_not_depend_on_the_batch(llama, scoring):
    scores = [
        evaluated(llama, task_of("classification", "accuracy"), reviews(), scoring=scoring, batch_size=size)
        for size in (1, 2, 5, 32)
    ]
    assert len({one.predictions for one in scores}) == 1
    assert all(one.loss == pytest.approx(scores[0].loss, rel=1e-5) for one in scores)
    turned = evaluated(llama, task_of("classification", "accuracy"), reviews()[::-1], scoring=scoring)
    assert turned.predictions == scores[0].predictions[::-1]


def test_forwards_and_queries_are_counted(llama):
    counts = Counts()
    evaluated(llama, task_of("classification", "accuracy"), reviews(), counts, batch_size=2)
    assert (counts.queries, counts.forwards, counts.backwards) == (5, 3, 0)


def test_scores_that_are_no_numbers_are_refused(llama):
    scorer = scorer_for(llama, task_of("classification", "accuracy"))
    ruined = dataclasses.replace(scorer, score=lambda model, batch, by: torch.full((len(batch), 3), torch.nan))
    with pytest.raises(NonFiniteError, match="scores of 5 of 5 examples"):
        ruined.evaluate(llama.model, encode(llama.tokenizer, reviews()), Counts())


# metrics


@pytest.mark.parametrize("golds", [[0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 1]])
def test_the_majority_of_f1_is_the_better_of_two_constant_answers(golds):
    """Of equally frequent labels the first to occur was taken, so that it was 66.7 or 0 % by the order of the rows."""
    task = task_of("classification", "f1", verbalizers={"fraud": " bad", "legit": " good"})
    examples = [Example("asked", (" bad", " good"), (gold,), where="f:1") for gold in golds]
    assert majority_of(task, examples) == {"f1": pytest.approx(sklearn.metrics.f1_score(golds, [1] * 4))}


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "matthews"])
def test_score_and_majority_under_each_metric(llama, metric):
    golds = [1, 0, 0, 2, 0]
    examples = reviews([(gold,) for gold in golds])
    score = evaluated(llama, task_of("classification", metric, extra_metrics=["accuracy"]), examples)
    reference = {
        "accuracy": sklearn.metrics.accuracy_score,
        "macro-f1": lambda a, b: sklearn.metrics.f1_score(a, b, average="macro", zero_division=0.0),
        "matthews": lambda a, b: 0.0 if len(set(b)) == 1 else sklearn.metrics.matthews_corrcoef(a, b),
    }[metric]
    assert score.score == pytest.approx(reference(golds, list(score.predictions)))
    assert score.majority == pytest.approx(reference(golds, [0] * 5))
    assert score.also == {"accuracy": sklearn.metrics.accuracy_score(golds, list(score.predictions))}
    assert score.as_dict() == {
        "accuracy": score.also["accuracy"],
        metric: score.score,
        "loss": score.loss,
        "majority": score.majority,
    }


def test_several_right_choices(llama):
    task = task_of("multiple-choice", "accuracy")
    examples = reviews([(0, 1, 2), (0, 1), (1, 2), (2,), ()])[:4]
    score = evaluated(llama, task, examples)
    expected = [place in one.golds for place, one in zip(score.predictions, examples, strict=True)]
    assert score.score == sum(expected) / 4
    # 1 is right three times and 2 three times, 0 twice: of equals the one that was met first
    assert most_frequent(examples, task) == 1
    assert score.majority == 3 / 4
    table = table_of(llama, examples)  # the loss is that of the first right one
    assert score.loss == pytest.approx(float(torch.nn.functional.cross_entropy(table, torch.tensor([0, 0, 1, 2]))))


ANSWERS = (("it was great", "great"), ("great",), ("the dog", "nothing"), ("nothing",))


def questions(answers=ANSWERS) -> list[Example]:
    return [
        Example(text, (f" {own[0]}\n",) if own else ("",), (0,) if own else (), own, where=f"rows.jsonl:{number}")
        for number, (text, own) in enumerate(zip(TEXTS, answers, strict=False), start=1)
    ]


@pytest.mark.parametrize(("metric", "also"), [("token-f1", ["exact-match"]), ("exact-match", ["token-f1"])])
def test_scores_of_generated_texts(llama, metric, also):
    texts = generate(llama.model, encode(llama.tokenizer, questions()), Generation(llama.tokenizer, ("\n",), 4))
    assert texts[0]
    assert texts[3]
    answers = ((texts[0].upper(), "x"), ("nothing",), ("nothing",), ("great", f"{texts[3]} and more words"))
    examples = questions(answers)
    task = task_of("generation", metric, extra_metrics=also)
    score = evaluated(llama, task, examples)
    assert list(score.predictions) == texts
    found = {score.metric: score.score, **score.also}
    assert found["exact-match"] == 1 / 4
    assert found["token-f1"] == pytest.approx(sum(map(token_f1, texts, answers)) / 4, abs=1e-6)
    assert 1 / 4 < found["token-f1"] < 1
    assert score.majority == 1 / 2  # of "nothing"
    losses = [-sum(tokens) / len(tokens) for e in examples for tokens in sums(llama, e.prompt, e.candidates)]
    assert score.loss == pytest.approx(sum(losses) / 4, rel=1e-4)
    small = evaluated(llama, task, examples, batch_size=1)
    assert small.predictions == score.predictions
    assert small.as_dict() == pytest.approx(score.as_dict(), rel=1e-5)


@pytest.mark.parametrize("missing", [(2,), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "matthews"])
def test_a_missing_label_names_its_row(llama, metric, missing):
    golds = [() if i in missing else (i % 3,) for i in range(5)]
    with pytest.raises(DataError, match=f"rows.jsonl:{missing[0] + 1}: its label is not known"):
        evaluated(llama, task_of("classification", metric), reviews(golds))


@pytest.mark.parametrize("missing", [(1,), (0, 1, 2, 3)])
def test_a_missing_answer_names_its_row(llama, missing):
    answers = [() if i in missing else ANSWERS[i] for i in range(4)]
    with pytest.raises(DataError, match=f"rows.jsonl:{missing[0] + 1}: its answer is not known"):
        evaluated(llama, task_of("generation", "token-f1"), questions(answers))


# the methods, as runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    build_model("llama", len(tokenizer), seed=2, positions=256).save_pretrained(folder / "causal")
    own = build_tokenizer()
    own.save_pretrained(folder / "causal")
    masked = build_model("bert", len(own) + 1, head=transformers.AutoModelForMaskedLM, positions=256)
    masked.save_pretrained(folder / "masked")
    head = build_model("gpt2", len(own), head=transformers.AutoModelForSequenceClassification, positions=256)
    head.save_pretrained(folder / "head")
    own.save_pretrained(folder / "head")
    own.add_special_tokens({"mask_token": "[MASK]"})
    own.save_pretrained(folder / "masked")
    for split, (count, start) in {"train": (24, 0), "validation": (10, 40), "test": (6, 60)}.items():
        write_rows(folder / "rows" / f"{split}.jsonl", review_rows(count, start))
    return folder


def config_of(folder: Path, *more: str, model: str = "causal", rows: str = "rows"):
    return read_config(None, [f"model={folder / model}", f"task.data_dir={folder / rows}", *more])


def lines_of(run, event: str) -> list[dict]:
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def restored_as_reported(run, texts=("a joy", "dull film")):
    """The run's score by `evaluate_run` is its own, and `predict` gives labels with probabilities."""
    again = evaluate_run(run.path)
    assert again.as_dict() == pytest.approx({key: run.summary[key] for key in again.as_dict()}, abs=1e-6)
    found = predict(run.path, list(texts))
    assert all(0.5 <= one.probability <= 1 and (one.label, one.answer) in LABELS for one in found)
    return found


LABELS = ((0, " terrible"), (1, " great"))


def test_zero_shot_is_the_model_as_it_is(folder, tmp_path):
    config = config_of(folder, "method=zero-shot", "training.steps=7", f"output_dir={tmp_path / 'run'}")
    run = train(config)
    summary = run.summary
    assert (summary["method"], summary["steps"], summary["evaluated_after"]) == ("zero-shot", 0, 0)
    assert (summary["queries"], summary["forwards"], summary["backwards"]) == (0, 0, 0)
    assert summary["evaluation"]["queries"] == 10
    assert summary["parts"] == {}
    assert lines_of(run, "step") == []
    (line,) = lines_of(run, "evaluation")
    assert line["steps"] == 0
    assert not run.trajectory.exists()
    prepared = prepare_run(config, splits=("validation",))
    by_hand = [
        max(range(2), key=lambda c, p=p: sums(LoadedModel(*loaded_pair(prepared)), p, PAIR)[c][0])
        for p in prompts(prepared)
    ]
    assert (
        summary["accuracy"]
        == sum(b == e.gold for b, e in zip(by_hand, prepared.encoded["validation"], strict=True)) / 10
    )
    restored_as_reported(run)


PAIR = (" terrible", " great")


def loaded_pair(prepared):
    return prepared.loaded.model, prepared.loaded.tokenizer, "model"


def prompts(prepared, split: str = "validation") -> list[str]:
    return [example.prompt for example in prepared.examples[split]]


def test_in_context_has_four_demonstrations_of_train_unless_told_otherwise(folder, tmp_path):
    config = config_of(folder, "method=in-context", f"output_dir={tmp_path / 'run'}")
    assert config.task.num_fewshot == 4
    run = train(config)
    summary = run.summary
    assert (summary["steps"], summary["queries"], summary["evaluation"]["queries"]) == (0, 0, 10)
    prepared = prepare_run(config)
    own = {row["sentence"]: row["label"] for row in review_rows(24)}
    for split in ("train", "validation", "test"):
        for prompt in prompts(prepared, split):
            *solved, asked = prompt.split("\n\n")
            assert len(solved) == 4
            assert len(set(solved)) == 4
            for one in solved:
                text, label = one.rsplit(" It was ", 1)
                assert ("terrible", "great")[own[text]] == label
            assert asked.endswith(" It was")
            assert asked not in {one.rsplit(" ", 1)[0] for one in solved}  # never itself
    plain = train(config_of(folder, "method=zero-shot", f"output_dir={tmp_path / 'plain'}"))
    assert summary["loss"] != pytest.approx(plain.summary["loss"], abs=1e-3)
    restored_as_reported(run)
    two = train(config_of(folder, "method=in-context", "task.num_fewshot=2", f"output_dir={tmp_path / 'two'}"))
    assert two.summary["loss"] != pytest.approx(summary["loss"], abs=1e-4)


def test_demonstrations_are_each_examples_own_or_fixed_and_drawn_by_split_seed(folder):
    def shown(*more: str) -> list[str]:
        prepared = prepare_run(config_of(folder, "method=in-context", *more), splits=("validation",))
        return [prompt.rpartition("\n\n")[0] for prompt in prompts(prepared)]

    own, fixed = shown(), shown("task.fewshot_sampling=fixed")
    assert len(set(own)) > 5
    assert len(set(fixed)) == 1
    assert shown() == own
    assert shown("task.split_seed=1") != own
    assert shown("task.split_seed=1", "task.fewshot_sampling=fixed") != fixed


def test_demonstrations_that_do_not_fit_lose_their_oldest_tokens(folder):
    config = config_of(folder, "method=in-context", "task.num_fewshot=20", "task.max_length=40")
    prepared = prepare_run(config, splits=("validation",))
    for example, one in zip(prepared.examples["validation"], prepared.encoded["validation"], strict=True):
        assert one.length == 40
        text = prepared.loaded.tokenizer.decode(one.rows[0])
        assert (example.prompt + example.candidates[0]).endswith(text)


def test_a_method_that_reads_needs_no_objective_of_its_own_for_any_model(folder, tmp_path):
    """A masked language model, which has no loss of answers, and a head."""
    masked = train(config_of(folder, "method=zero-shot", f"output_dir={tmp_path / 'masked'}", model="masked"))
    assert masked.summary["evaluation"]["queries"] == 10
    restored_as_reported(masked)
    head = train(config_of(folder, "method=zero-shot", f"output_dir={tmp_path / 'head'}", model="head"))
    restored_as_reported(head)


# the probe


def plain_features(prepared, split: str) -> torch.Tensor:
    """The last layer's states where the answer is predicted: one text at a time, by transformers' own outputs."""
    found = []
    for one in prepared.encoded[split]:
        with torch.no_grad():
            states = prepared.loaded.model(
                input_ids=torch.tensor([one.prompt]), output_hidden_states=True
            ).hidden_states[-1]
        found.append(states[0, -1])
    return torch.stack(found)


def test_the_probe_is_a_logistic_regression_on_the_last_states(folder, tmp_path):
    config = config_of(
        folder, "method=linear-probe", "method.batch_size=7", "training.steps=9", f"output_dir={tmp_path / 'run'}"
    )
    run = train(config)
    summary = run.summary
    assert (summary["steps"], summary["queries"], summary["forwards"], summary["backwards"]) == (1, 24, 4, 0)
    assert set(summary["parts"]) == {"probe.safetensors", "best/probe.safetensors"}
    prepared = prepare_run(config)
    train_x, test_x = (plain_features(prepared, split).numpy() for split in ("train", "validation"))
    gold = [one.gold for one in prepared.encoded["train"]]
    scaler = sklearn.preprocessing.StandardScaler().fit(train_x)
    reference = sklearn.linear_model.LogisticRegressionCV(cv=5, max_iter=5000, scoring="neg_log_loss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        reference.fit(scaler.transform(train_x), gold)
    expected = torch.tensor(reference.predict_proba(scaler.transform(test_x)))
    with torch.no_grad():
        scorer = run.scorer(prepared.scorer)
        found = scorer.candidates(prepared.loaded.model, prepared.encoded["validation"], Counts()).softmax(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-3)
    right = torch.tensor([one.gold for one in prepared.encoded["validation"]])
    assert summary["accuracy"] == float((expected.argmax(1) == right).double().mean())
    assert summary["loss"] == pytest.approx(float(-expected[torch.arange(10), right].log().mean()), rel=1e-2)
    own = torch.tensor(reference.predict_proba(scaler.transform(train_x)))
    (step,) = lines_of(run, "step")
    assert step["loss"] == pytest.approx(float(-own[torch.arange(24), gold].log().mean()), rel=1e-2)
    assert summary["accuracy"] >= 0.8  # the words tell the labels apart
    texts = [example.prompt.removesuffix(" It was") for example in prepared.examples["validation"]]
    answers = restored_as_reported(run, texts)
    assert [one.label for one in answers] == expected.argmax(1).tolist()
    assert [one.probability for one in answers] == pytest.approx(expected.max(1).values.tolist(), abs=1e-3)


def three_labels(folder: Path, name: str, labels: list[str], **more: list[str]) -> Path:
    target = folder / name
    for split, own in {"train": labels, "validation": labels, "test": labels, **more}.items():
        rows = [{"text": f"{one} film {i % 4}", "label": one} for i, one in enumerate(own)]
        write_rows(target / f"{split}.jsonl", rows)
    return target


def test_a_probe_of_three_labels_and_one_that_train_lacks(folder, tmp_path):
    labels = ["dull", "warm", "joy"] * 5
    task = ["task.verbalizers={dull: ' terrible', warm: ' great', joy: ' good', never: ' bad'}"]
    rows = three_labels(folder, "three", labels)
    options = ["method=linear-probe", f"task.data={rows}", *task]
    run = train(read_config(None, [f"model={folder / 'causal'}", *options, f"output_dir={tmp_path / 'run'}"]))
    assert run.summary["accuracy"] == 1.0
    assert run.summary["loss"] < 0.5
    json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
    (found,) = predict(run.path, ["joy film 2"])
    assert (found.label, found.answer) == ("joy", " good")


@pytest.fixture(scope="module")
def probed(folder, tmp_path_factory):
    """A run of a probe by its defaults, which tests only read."""
    return train(config_of(folder, "method=linear-probe", f"output_dir={tmp_path_factory.mktemp('probe') / 'run'}"))


@pytest.mark.parametrize("task", [["task.prompt=none"], ["method.folds=2"], ["task.num_fewshot=2"]])
def test_the_probe_reads_what_it_is_asked_to(folder, probed, tmp_path, task):
    other = train(config_of(folder, "method=linear-probe", *task, f"output_dir={tmp_path / 'other'}"))
    assert other.summary["loss"] != pytest.approx(probed.summary["loss"], abs=1e-4)
    restored_as_reported(other)


def test_a_probe_of_a_masked_language_model(folder, tmp_path):
    run = train(config_of(folder, "method=linear-probe", f"output_dir={tmp_path / 'run'}", model="masked"))
    assert run.summary["queries"] == 24
    restored_as_reported(run)


def test_one_probe_seed_or_thread_of_batches_gives_the_same_probe(folder, probed, tmp_path):
    again, one_by_one = (
        train(config_of(folder, "method=linear-probe", *more, f"output_dir={tmp_path / str(len(more))}"))
        for more in ([], ["method.batch_size=1"])
    )
    assert probed.artifact_hashes() == again.artifact_hashes()
    assert one_by_one.summary["loss"] == pytest.approx(probed.summary["loss"], rel=1e-3)


def test_a_damaged_probe_is_named(folder, tmp_path):
    run = train(config_of(folder, "method=linear-probe", f"output_dir={tmp_path / 'run'}"))
    probe = run.path / "probe.safetensors"
    probe.write_bytes(probe.read_bytes()[:-4] + b"\x00\x00\x80\x7f")
    with pytest.raises(RunError, match=r"probe.safetensors' is damaged"):
        evaluate_run(run.path)
    probe.unlink()
    with pytest.raises(RunError, match=r"probe.safetensors', a part of the trained model, is missing"):
        predict(run.path, ["a joy"])


# refusals


@pytest.mark.parametrize(
    ("labels", "error", "message", "hint"),
    [
        (["dull"] * 6, DataError, "'label' is 'dull' in all 6 rows", "give rows of two labels or more"),
        (["dull"] * 6 + ["warm"], ConfigError, "only one row of train has the label number 1", "give more rows"),
    ],
)
def test_a_probe_of_too_few_labels_is_refused(folder, tmp_path, labels, error, message, hint):
    rows = three_labels(folder, f"few-{len(labels)}", labels, validation=["dull", "warm"], test=["dull", "warm"])
    task = folder / "words.yaml"
    task.write_text(
        """
name: words
version: 1
kind: classification
metric: accuracy
template: "{{ text }} It was"
label: label
verbalizers: {dull: " terrible", warm: " great"}
splits: {train: {from: train}, validation: {from: validation}, test: {from: test}}
""",
        encoding="utf-8",
    )
    options = [f"model={folder / 'causal'}", f"task={task}", f"task.data_dir={rows}", "method=linear-probe"]
    with pytest.raises(error, match=message) as caught:
        train(read_config(None, [*options, f"output_dir={tmp_path / 'run'}"]))
    assert hint in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_probe_of_choices_or_answers_is_refused(folder, tmp_path):
    choices = [{"prompt": f"film {i}", "choices": ["good", f"bad {i}"], "answer": i % 2} for i in range(24)]
    answers = [{"prompt": f"film {i}", "completion": f"good {i}"} for i in range(24)]
    for name, rows in (("choices", choices), ("answers", answers)):
        write_rows(folder / f"{name}.jsonl", rows)
        options = [f"model={folder / 'causal'}", f"task.data={folder / name}.jsonl", "method=linear-probe"]
        with pytest.raises(ConfigError, match="needs the same labels for every row"):
            train(read_config(None, [*options, f"output_dir={tmp_path / 'run'}"]))


def test_a_probe_of_a_classification_head_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match="GPT2ForSequenceClassification has no language-model head") as caught:
        train(config_of(folder, "method=linear-probe", f"output_dir={tmp_path / 'run'}", model="head"))
    assert "method.parameters=head" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_zero_shot_takes_no_demonstrations_and_in_context_needs_them(folder):
    with pytest.raises(ConfigError, match="method=zero-shot has no demonstrations") as caught:
        config_of(folder, "method=zero-shot", "task.num_fewshot=2")
    assert "method=in-context" in caught.value.hint
    with pytest.raises(ConfigError, match="method=in-context needs demonstrations") as caught:
        config_of(folder, "method=in-context", "task.num_fewshot=0")
    assert "method=zero-shot" in caught.value.hint


@pytest.mark.parametrize("number", [24, 1000])
def test_more_demonstrations_than_rows_are_refused(folder, number):
    with pytest.raises(ConfigError, match=f"task.num_fewshot is {number}, but train has 24 rows"):
        prepare_run(config_of(folder, "method=in-context", f"task.num_fewshot={number}"))
    if number == 24:
        prepare_run(config_of(folder, "method=in-context", "task.num_fewshot=23"))


def test_a_head_takes_no_demonstrations(folder):
    with pytest.raises(ConfigError, match="a classification head takes no demonstrations"):
        prepare_run(config_of(folder, "method=in-context", model="head"))


def test_methods_that_read_leave_the_global_generators_alone(folder, tmp_path):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    for name in ("zero-shot", "in-context", "linear-probe"):
        zofo.train(config_of(folder, f"method={name}", f"output_dir={tmp_path / name}"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_metric_has_a_test_of_its_majority():
    """Those of rows with one right label or choice stand above; the others need groups or answers of their own."""
    assert {"accuracy", "macro-f1", "matthews", "token-f1", "exact-match"} <= set(METRICS)
