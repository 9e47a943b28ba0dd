"""The packaged tasks: what a row becomes, scores against the plainest reference, and whole runs of every kind."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from conftest import build_model, build_tokenizer, with_soak, write_rows
from covering import grid
from task_rows import COUNT, ROWS, write_task
from zofo.adapters import ADAPTERS
from zofo.errors import DataError
from zofo.evaluators import Counts
from zofo.objectives import candidate_scores
from zofo.tasks import (
    METRICS,
    NO_PROMPT,
    SPLITS,
    TaskConfig,
    collate,
    encode,
    load_examples,
    load_task,
    render,
    task_names,
)
from zofo.tasks.task import SEPARATOR, parse_task

CPU = torch.device("cpu")
POSITIONS = 1024
DOCS = Path(__file__).parents[1] / "docs" / "tasks.md"
SHARED = Path(__file__).parents[2] / "shared" / "data"
TASKS = {name: load_task(name) for name in task_names()}
BY_KIND = {kind: [name for name in TASKS if TASKS[name].kind == kind] for kind in ("classification", "multiple-choice")}
OF_EACH_KIND = {"sst2", "cb", "wic", "copa", "record", "squad", "drop"}
"""Tasks of two, three and as many labels as a row has, of one text and of several, and of free answers."""

PROMPTS = [(name, prompt) for name, task in TASKS.items() for prompt in task.prompt_names]
SOURCES = {  # Hub id, configuration
    "sst2": ("nyu-mll/glue", "sst2"),
    "mnli": ("nyu-mll/glue", "mnli"),
    "qnli": ("nyu-mll/glue", "qnli"),
    "cola": ("nyu-mll/glue", "cola"),
    "rte": ("aps/super_glue", "rte"),
    "cb": ("aps/super_glue", "cb"),
    "boolq": ("aps/super_glue", "boolq"),
    "wsc": ("aps/super_glue", "wsc.fixed"),
    "wic": ("aps/super_glue", "wic"),
    "multirc": ("aps/super_glue", "multirc"),
    "copa": ("aps/super_glue", "copa"),
    "record": ("aps/super_glue", "record"),
    "winogrande": ("allenai/winogrande", "winogrande_m"),
    "squad": ("rajpurkar/squad", None),
    "drop": ("ucinlp/drop", None),
}
SCORES = {"cb": ["macro-f1"], "multirc": ["f1a", "em"], "cola": ["matthews"]}
SMALL = {"cb": (250, 150, 100), "copa": (400, 300, 100), "wsc": (554, 370, 184)}  # rows, train, validation


def example_of(task, row, prompt=None):
    return render(TASKS[task], ROWS[task][row], f"{task} row {row}", prompt)


def examples_of(task, count=COUNT, prompt=None):
    return [example_of(task, row, prompt) for row in range(count)]


# what the files say


def test_the_fifteen_tasks_of_the_papers_are_there():
    assert set(TASKS) == {*SOURCES, "movie-reviews"}
    assert set(ROWS) == set(TASKS)


@pytest.mark.parametrize("name", SOURCES)
def test_sources_splits_and_scores(name):
    task = TASKS[name]
    assert task.name == name
    assert task.source is not None
    assert (task.source.hub, task.source.config) == SOURCES[name]
    assert task.about
    assert task.metric == ("token-f1" if task.kind == "generation" else "accuracy")
    assert task.extra_metrics == (["exact-match"] if task.kind == "generation" else SCORES.get(name, []))
    sizes = [task.splits[split].size for split in SPLITS]
    assert sizes == [*(SMALL[name][1:] if name in SMALL else (1000, 500)), 1000]
    held_out = "validation_matched" if name == "mnli" else "validation"
    assert [task.splits[split].origin for split in SPLITS] == ["train", "train", held_out]


LABELS = {  # what the Hub's label numbers 0, 1, ... stand for
    "sst2": ("negative", "positive"),
    "movie-reviews": ("negative", "positive"),
    "rte": ("entailment", "not_entailment"),
    "qnli": ("entailment", "not_entailment"),
    "cb": ("entailment", "contradiction", "neutral"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "boolq": ("False", "True"),
    "wsc": ("False", "True"),
    "wic": ("False", "True"),
    "multirc": ("False", "True"),
    "cola": ("unacceptable", "acceptable"),
}
WORDS = {
    "negative": {"terrible", "negative", "No"},
    "positive": {"great", "positive", "Yes"},
    "entailment": {"Yes", "true"},
    "not_entailment": {"No", "false"},
    "contradiction": {"No", "false"},
    "neutral": {"Maybe", "uncertain"},
    "False": {"No", "different", "wrong"},
    "True": {"Yes", "similar", "right"},
    "unacceptable": {"incorrect", "No", "bad"},
    "acceptable": {"correct", "Yes", "good"},
}


@pytest.mark.parametrize("name", BY_KIND["classification"])
def test_every_label_has_a_word_that_means_it(name):
    for prompt in TASKS[name].prompt_names:
        words = TASKS[name].verbalizers_of(prompt)
        assert list(words) == list(range(len(LABELS[name])))
        assert all(words[number][1:] in WORDS[meaning] for number, meaning in enumerate(LABELS[name]))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_asked_in_several_ways_and_without_a_prompt(name):
    task = TASKS[name]
    assert len(task.prompt_names) >= 3
    assert task.prompt_names[-1] == NO_PROMPT
    assert (task.texts is not None) == (task.kind == "classification")
    for prompt in task.prompt_names:
        if task.kind == "classification":
            assert all(text.startswith(" ") for text in task.verbalizers_of(prompt).values())
        if prompt != NO_PROMPT:
            assert task.prompt(prompt).template != task.prompt(NO_PROMPT).template


# rendering


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_every_row_renders_in_every_prompt(name, prompt):
    task = TASKS[name]
    for row, example in zip(ROWS[name], examples_of(name, prompt=prompt), strict=True):
        text = example.prompt + example.candidates[example.gold]
        assert "{" not in text
        assert "  " not in text
        assert "N/A" not in example.prompt
        assert not example.prompt.endswith(" ")
        assert not example.prompt.startswith((" ", "\n"))
        assert len(set(example.candidates)) == len(example.candidates)
        assert example.golds
        for column in task.columns(prompt):  # what the row says is in the text, whole, but for its first and last
            value = row[column]
            if isinstance(value, str) and column not in ("question", "title") and name not in ("record", "winogrande"):
                inside = value.strip()[1:].removesuffix(".")
                assert inside in text or inside in "".join(example.candidates)
        if task.kind != "generation":
            assert example.content_free
            assert not example.content_free.endswith(" ")
    if task.kind == "classification":
        right = Counter(example.gold for example in examples_of(name))
        assert set(right) == set(range(len(task.label_names)))


RENDERED = [  # task, row, prompt: the text before the candidates; the candidates; the right ones
    ("sst2", 1, None, "warm and funny number 1 It was", (" terrible", " great"), (1,)),
    (
        "rte",
        1,
        None,
        'Björn found a drum in the attic.\nCan we conclude from this that "Björn lost a drum in the attic."? '
        "Yes or no?\nAnswer:",
        (" Yes", " No"),
        (1,),
    ),
    (
        "cb",
        1,
        None,
        "Well, Dana doubted that the shop was open. Nobody asked.\nIf the speaker is right, is it true that "
        '"the shop was open"? Yes, no or maybe?\nAnswer:',
        (" Yes", " No", " Maybe"),
        (1,),
    ),
    (
        "boolq",
        2,
        None,
        "Finds (list) -- Chidi found the jam on the hill.\nQuestion: Did Chidi find nothing?\nAnswer:",
        (" No", " Yes"),
        (0,),
    ),
    (
        "wsc",
        1,
        None,
        'Björn thanked Chidi-san because he had been given a lamp.\nDoes the word "he" here refer to Björn? '
        "Yes or no?\nAnswer:",
        (" No", " Yes"),
        (1,),
    ),
    (
        "wic",
        0,
        None,
        'Is "bank" used in the same sense in these two sentences? Yes or no?\nThey sat on the bank.\n'
        "The bank was muddy.\nAnswer:",
        (" No", " Yes"),
        (1,),
    ),
    (
        "multirc",
        1,
        None,
        "Ana met O'Neil. It was early.\nQuestion: Whom did they meet?\nReply: Nobody\nIs this reply right? "
        "Yes or no?\nAnswer:",
        (" No", " Yes"),
        (0,),
    ),
    ("copa", 0, None, "Ana's kitchen was warm because", (" I lit the stove.", " ana put on a coat."), (0,)),
    ("copa", 1, None, "Dana's kitchen was cold so", (" I lit the stove.", " dana put on a coat."), (1,)),
    ("copa", 1, "none", "Dana's kitchen was cold", (" I lit the stove.", " dana put on a coat."), (1,)),
    (
        "record",
        0,
        None,
        "Ana and Gil met Ida.\n- Ana sang to Ida\n- Gil, or GIL, played\n-",
        (" Later Ana sang.", " Later Gil sang.", " Later Ida sang.", " Later GIL sang."),
        (1, 3),
    ),
    (
        "record",
        1,
        "gap",
        "Dana and Gil met Ida.\n- Dana sang to Ida\n- Gil, or GIL, played\n-",
        (" Dana's song was short.", " Gil's song was short.", " Ida's song was short."),
        (0,),
    ),
    (
        "record",
        5,
        "gap",
        "O'Neil and Gil met Ida.\n- O'Neil sang to Ida\n- Gil, or GIL, played\n- They cheered \"",
        ("O'Neil\" again.", 'Gil" again.', 'Ida" again.', 'GIL" again.'),
        (0,),
    ),
    (
        "winogrande",
        0,
        None,
        "Ana lent Dana a map so",
        (" Ana could find the way.", " Dana could find the way."),
        (0,),
    ),
    (
        "winogrande",
        3,
        None,
        "",
        ("Dana got lost although Dana had given Émile a map.", "Émile got lost although Dana had given Émile a map."),
        (1,),
    ),
    (
        "squad",
        0,
        None,
        "Lost and found\nAna found a lamp in Oslo.\nQuestion: What was found?\nAnswer:",
        (" a lamp\n",),
        (0,),
    ),
    ("squad", 1, None, "Björn found a drum in the attic.\nQuestion: What was found?\nAnswer:", (" a drum\n",), (0,)),
    ("drop", 1, None, "Fatma scored 3 goals on 4 May.\nQuestion: On which day?\nAnswer:", (" 4 May\n",), (0,)),
    ("drop", 1, "none", "Fatma scored 3 goals on 4 May.\nOn which day?\n", ("4 May\n",), (0,)),
    (
        "mnli",
        1,
        None,
        'Björn found a drum in the attic.\nGiven that, is it true that "Björn once saw a drum in the attic."? '
        "Yes, no or maybe?\nAnswer:",
        (" Yes", " Maybe", " No"),
        (1,),
    ),
    (
        "qnli",
        0,
        None,
        "What was found by Ana?\nAna found a lamp in Oslo.\nDoes the second line answer the question in the first? "
        "Yes or no?\nAnswer:",
        (" Yes", " No"),
        (0,),
    ),
    ("cola", 1, None, "Björn found a drum in the attic. This is", (" incorrect", " correct"), (1,)),
    ("movie-reviews", 0, None, "dull number 0 It was", (" terrible", " great"), (0,)),
]


@pytest.mark.parametrize(
    ("name", "row", "prompt", "text", "candidates", "golds"),
    RENDERED,
    ids=[f"{name}-{row}-{prompt or 'default'}" for name, row, prompt, *_ in RENDERED],
)
def test_what_a_row_becomes(name, row, prompt, text, candidates, golds):
    example = example_of(name, row, prompt)
    assert (example.prompt, example.candidates, example.golds) == (text, candidates, golds)


def test_what_a_row_becomes_is_written_down_for_every_task():
    assert {case[0] for case in RENDERED} == set(TASKS)


def test_every_accepted_answer_is_kept_once():
    assert example_of("squad", 0).answers == ("a lamp", "lamp")
    assert example_of("drop", 1).answers == ("4 May", "May 4")
    assert example_of("drop", 2).answers == ("Chidi",)


def test_the_conjunction_stays_in_the_content_free_prompt_of_copa():
    """It belongs to the question that is asked, and not to the content."""
    assert [example_of("copa", row).content_free for row in range(2)] == ["because", "so"]


@pytest.mark.parametrize("name", BY_KIND["classification"])
def test_a_classification_head_sees_the_text_alone(name):
    example = render(TASKS[name], ROWS[name][1], "here", head=True)
    assert len(example.texts) == len(TASKS[name].texts or ())
    assert "\n".join(example.texts) == example_of(name, 1, NO_PROMPT).prompt
    assert not example.prompt


def test_rows_of_a_question_of_multirc_have_the_same_group():
    groups = [example.group for example in examples_of("multirc")]
    assert len(set(groups)) == COUNT // 3
    assert all(len(set(groups[i : i + 3])) == 1 for i in range(0, COUNT, 3))


# splits


def repeated(task, count):
    """So many rows, each with a text of its own."""
    return [{**ROWS[task][i % COUNT], "idx": i, "n": i} for i in range(count)]


@pytest.mark.parametrize(("name", "rows", "train", "validation"), [(name, *sizes) for name, sizes in SMALL.items()])
def test_small_sets_are_divided_as_in_the_papers(tmp_path, name, rows, train, validation):
    """All rows of the official train split are used; WSC keeps two thirds to train on."""
    write_rows(tmp_path / "train.jsonl", repeated(name, rows))
    write_rows(tmp_path / "validation.jsonl", repeated(name, 56))
    examples = load_examples(TASKS[name], TaskConfig(name=name, data_dir=tmp_path))
    assert [len(examples[split]) for split in SPLITS] == [train, validation, 56]
    places = [{example.where for example in examples[split]} for split in SPLITS]
    assert len(places[0] | places[1] | places[2]) == train + validation + 56


def test_large_sets_give_1000_500_and_1000_rows(tmp_path):
    for origin, rows in (("train", 1700), ("validation", 1200)):
        write_rows(tmp_path / f"{origin}.jsonl", repeated("cola", rows))
    first, same, other = (
        load_examples(TASKS["cola"], TaskConfig(name="cola", data_dir=tmp_path, split_seed=seed)) for seed in (0, 0, 1)
    )
    assert [len(first[split]) for split in SPLITS] == [1000, 500, 1000]
    assert first == same
    assert all(first[split] != other[split] for split in SPLITS)


@pytest.mark.parametrize("name", TASKS)
def test_a_small_folder_keeps_two_thirds_to_train_on(tmp_path, name):
    examples = load_examples(TASKS[name], TaskConfig(name=name, data_dir=write_task(tmp_path, name)))
    if name == "movie-reviews":  # has files of its own for all three splits
        assert [len(examples[split]) for split in SPLITS] == [COUNT, COUNT - 1, COUNT - 2]
    else:
        spare = 1 if name == "multirc" else 0  # whole questions are drawn
        assert len(examples["train"]) >= COUNT * 2 // 3 - spare
        assert len(examples["train"]) + len(examples["validation"]) == COUNT
        assert len(examples["test"]) == COUNT - 1


def test_whole_questions_of_multirc_are_drawn(tmp_path):
    examples = load_examples(TASKS["multirc"], TaskConfig(data_dir=write_task(tmp_path, "multirc")))
    groups = [{example.group for example in examples[split]} for split in ("train", "validation")]
    assert not groups[0] & groups[1]
    assert all(count == 3 for count in Counter(example.group for example in examples["validation"]).values())


# scores


@pytest.fixture(scope="module")
def tokenizers():
    return {False: build_tokenizer(), True: build_tokenizer(bos=True)}


@pytest.fixture(scope="module")
def causal(tokenizers):
    return {kind: build_model(kind, len(tokenizers[False]), positions=POSITIONS) for kind in ("llama", "gpt2", "opt")}


@torch.no_grad()
def plain_scores(model, tokenizer, prompt, candidates, mean=True):
    """One candidate at a time, without padding: log-likelihoods of its tokens from all logits, averaged or summed."""
    found = []
    for candidate in candidates:
        coded = tokenizer(prompt + candidate, return_offsets_mapping=True)
        ids, spans = coded["input_ids"], coded["offset_mapping"]
        own = [i for i, (_, end) in enumerate(spans) if end > len(prompt)]
        if own[0] == 0:  # nothing before it: the token that begins a text
            ids, own = [tokenizer.bos_token_id, *ids], [i + 1 for i in own]
        likelihoods = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        values = torch.stack([likelihoods[i - 1, ids[i]] for i in own])
        found.append(values.mean() if mean else values.sum())
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("name", TASKS)
def test_scores_equal_the_plain_reference(causal, tokenizers, name, kind):
    """Padded on either side; OPT with a tokenizer that begins every text with a special token, as its own does."""
    model, tokenizer = causal[kind], tokenizers[kind == "opt"]
    examples = [example_of(name, row) for row in (0, 1, 3, 5)]
    expected = [plain_scores(model, tokenizer, one.prompt, one.candidates) for one in examples]
    encoded = encode(tokenizer, examples)
    assert len({one.length for one in encoded}) > 1
    for side in ("left", "right"):
        for limit in (None, 0):
            with torch.no_grad():
                found = candidate_scores(model, collate(encoded, 0, CPU, limit, side))
            for row, values in zip(found, expected, strict=True):
                torch.testing.assert_close(row[: len(values)].double(), values, rtol=0, atol=1e-5)
                assert row[len(values) :].isneginf().all()


# runs


class Encoders:
    """Tiny BERTs with a tokenizer that knows every verbalizer as one token."""

    def __init__(self, folder: Path) -> None:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        words = {text for n in BY_KIND["classification"] for p in TASKS[n].prompts for text in verbalizers(n, p)}
        trainer = trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=["<pad>", "<s>", "</s>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(sorted(words) * 4, trainer)
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            cls_token="<s>",
            sep_token="</s>",
            mask_token="<mask>",
        )
        self.folder = folder / "tiny-bert"
        head = transformers.AutoModelForMaskedLM
        build_model("bert", len(tokenizer), positions=POSITIONS, head=head).save_pretrained(self.folder)
        tokenizer.save_pretrained(self.folder)


def verbalizers(name, prompt):
    return list(TASKS[name].verbalizers_of(prompt).values())


@pytest.fixture(scope="module")
def folders(tmp_path_factory, causal, tokenizers):
    """Folders of the tiny models: a Llama and a BERT."""
    folder = tmp_path_factory.mktemp("models")
    causal["llama"].save_pretrained(folder / "tiny-llama")
    tokenizers[False].save_pretrained(folder / "tiny-llama")
    return {"llama": folder / "tiny-llama", "bert": Encoders(folder).folder}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {name: write_task(folder / name, name) for name in TASKS}


MEZO = {"name": "mezo", "batch_size": 4, "rule": {"name": "sgd", "lr": 1e-3}}
FIRST_ORDER = {"name": "first-order", "batch_size": 4, "lr": 1e-2}


@pytest.fixture
def short_run(folders, data, tmp_path):
    """Trains 5 steps with batches of 4, and checks what every run must leave."""
    from zofo.training import read_config, train

    def run(name, method, model="llama", head=None, **task):
        config = read_config(
            model={"name": str(folders[model]), "head": head},
            task={"name": name, "data_dir": str(data[name]), **task},
            method=method,
            training={"steps": 5},
            output_dir=str(tmp_path / "run"),
        )
        found = train(config).summary
        scores = [TASKS[name].metric, *TASKS[name].extra_metrics]
        assert found["stopped"] is None
        assert found["steps"] == 5
        calibrated = 4 * 4 if method.get("adapter") == "subspace" else 0  # batches of rows that its directions are of
        assert found["queries"] == calibrated + 5 * 4 * (2 if method["name"] == "mezo" else 1)
        assert found["metric"] == scores[0]
        assert all(-1 <= found[score] <= 1 for score in scores)
        assert found["majority"] == pytest.approx(majority(config))
        assert 0 < found["loss"] < 100
        return config, found

    return run


def majority(config):
    """The score of the answer that is right most often, counted here."""
    task = TASKS[config.task.name]
    examples = load_examples(task, config.task, ["validation"])["validation"]
    if task.kind == "generation":
        counts = Counter(answer for one in examples for answer in set(one.answers))
        best = max(counts.values())
        return max(METRICS["token-f1"].score(examples, [a] * len(examples)) for a, n in counts.items() if n == best)
    counts = Counter(gold for one in examples for gold in one.golds)
    return max(counts.values()) / len(examples)


@pytest.mark.parametrize("name", with_soak(TASKS, OF_EACH_KIND))
def test_every_task_trains_and_is_scored(short_run, name):
    short_run(name, MEZO)


@pytest.mark.parametrize(("adapter", "name"), grid(ADAPTERS, ["rte", "copa", "squad"], strength=1))
def test_every_kind_trains_every_adapter(short_run, name, adapter):
    from zofo.training import evaluate_zero_shot

    config, found = short_run(name, FIRST_ORDER | {"adapter": adapter})
    assert found["backwards"] == 5
    assert found["loss"] != pytest.approx(evaluate_zero_shot(config).loss, abs=1e-6)


@pytest.mark.parametrize(("name", "adapter"), grid(["rte", "copa", "squad"], ["lora", "prefix"], strength=1))
def test_every_kind_moves_an_adapter_without_gradients(short_run, name, adapter):
    _, found = short_run(name, {"name": "mezo", "batch_size": 4, "adapter": adapter})
    assert found["backwards"] == 0


@pytest.mark.soak
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("method", [FIRST_ORDER, {"name": "mezo", "batch_size": 4}], ids=["first-order", "mezo"])
def test_every_task_trains_every_adapter(short_run, name, adapter, method):
    short_run(name, method | {"adapter": adapter})


@pytest.mark.parametrize(
    ("name", "head"),
    with_soak(
        [(name, head) for name in BY_KIND["classification"] for head in ("classification", "masked-lm")],
        {("sst2", "masked-lm"), ("rte", "classification"), ("cb", "masked-lm"), ("wic", "classification")},
    ),
)
def test_every_classification_has_a_head_and_a_mask(short_run, name, head):
    short_run(name, MEZO, model="bert", head=head)


# in-context learning


def in_context(name, folder, sets, splits=("validation",), count=2):
    config = TaskConfig(name=name, data_dir=folder, num_fewshot=count, fewshot_sampling=sets)
    return [example for split in splits for example in load_examples(TASKS[name], config, [split])[split]]


@pytest.mark.parametrize("name", ["boolq", "copa", "record", "squad"])
@pytest.mark.parametrize("sets", ["fixed", "per-example"])
def test_demonstrations_are_solved_rows_of_train(data, name, sets):
    plain = load_examples(TASKS[name], TaskConfig(name=name, data_dir=data[name]))
    solved = {(one.prompt + one.candidates[one.gold]).rstrip(): one.where for one in plain["train"]}
    seen = []
    for split in ("train", "validation"):
        for one, asked in zip(in_context(name, data[name], sets, [split]), plain[split], strict=True):
            parts = one.prompt.split(SEPARATOR)
            assert len(parts) == 3
            assert parts[2] == asked.prompt
            assert parts[0] != parts[1]
            assert all(part in solved and solved[part] != one.where for part in parts[:2])
            assert (one.candidates, one.golds, one.answers) == (asked.candidates, asked.golds, asked.answers)
            if split == "validation":
                seen.append(tuple(parts[:2]))
    assert (len(set(seen)) == 1) == (sets == "fixed")


def test_the_newest_demonstration_is_kept_when_a_prompt_is_cut(data, tokenizers):
    examples = in_context("boolq", data["boolq"], "per-example")
    whole = encode(tokenizers[True], examples)
    newest = max(len(tokenizers[False](one.prompt.split(SEPARATOR, 1)[1]).input_ids) for one in examples) + 5
    assert all(one.length > newest for one in whole)
    for cut, one in zip(encode(tokenizers[True], examples, newest, truncate=True), whole, strict=True):
        assert cut.length == newest
        assert cut.scored == one.scored
        for short, long in zip(cut.rows, one.rows, strict=True):
            assert short[0] == long[0] == tokenizers[True].bos_token_id
            assert short[1:] == long[1 + len(long) - len(short) :]
        kept = tokenizers[True].decode(cut.prompt, skip_special_tokens=True)
        assert kept.endswith(one.example.prompt.split(SEPARATOR, 1)[1])


def test_in_context_scores_are_those_of_the_longer_prompt(folders, data, causal, tokenizers):
    from zofo.training import evaluate_zero_shot, read_config

    task = {"name": "copa", "data_dir": str(data["copa"]), "num_fewshot": 2}
    found = evaluate_zero_shot(read_config(model=str(folders["llama"]), task=task, method="in-context"))
    table = [
        plain_scores(causal["llama"], tokenizers[False], one.prompt, one.candidates)
        for one in in_context("copa", data["copa"], "per-example")
    ]
    assert list(found.predictions) == [int(row.argmax()) for row in table]


# calibrated scores


@pytest.mark.parametrize("name", ["sst2", "copa", "record"])
def test_calibrated_scores(folders, data, causal, tokenizers, name):
    """sum log p(candidate | prompt) - sum log p(candidate | prompt without content), by hand."""
    from zofo.training import prepare_run, read_config

    task = {"name": name, "data_dir": str(data[name])}
    tables = {}
    for scoring in ("mean", "sum", "calibrated"):
        config = read_config(model=str(folders["llama"]), task={**task, "scoring": scoring})
        prepared = prepare_run(config, splits=["validation"])
        model, encoded = prepared.loaded.model, prepared.encoded["validation"]
        tables[scoring] = prepared.scorer.candidates(model, encoded, Counts())
    for number, one in enumerate(prepared.examples["validation"]):
        model, tokenizer = causal["llama"], tokenizers[False]
        mean = plain_scores(model, tokenizer, one.prompt, one.candidates)
        total = plain_scores(model, tokenizer, one.prompt, one.candidates, mean=False)
        free = plain_scores(model, tokenizer, one.content_free, one.candidates, mean=False)
        for scoring, expected in (("mean", mean), ("sum", total), ("calibrated", total - free)):
            row = tables[scoring][number, : len(expected)].double()
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-4 if scoring != "mean" else 1e-5)


# a stranger's task


def documented():
    """The task files that docs/tasks.md shows: kind -> text."""
    blocks = [block.split("```")[0] for block in DOCS.read_text(encoding="utf-8").split("```yaml\n")[1:]]
    return {yaml.safe_load(block)["kind"]: block for block in blocks}


STRANGERS = documented()


def stranger_rows(kind):
    if kind == "classification":
        teams = ("billing", "repair", "other")
        return [{"subject": f"Case {i}", "body": f"a {teams[i % 3]} matter", "team": teams[i % 3]} for i in range(18)]
    if kind == "multiple-choice":
        return [
            {"riddle": f"What is {i} and one?", "options": [str(i + k) for k in range(1, 4)], "solution": "A"}
            for i in range(18)
        ]
    return [{"country": f"Land {i}", "capital": f"Town {i}", "other": f"City {i}" * (i % 2)} for i in range(18)]


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_adds_a_task_by_one_file(run_zofo, folders, tmp_path, kind):
    file, rows = tmp_path / "mine.yaml", stranger_rows(kind)
    file.write_text(STRANGERS[kind], encoding="utf-8")
    write_rows(tmp_path / "rows" / "train.jsonl", rows)
    write_rows(tmp_path / "rows" / "test.jsonl", rows[:5])
    given = [f"task={file}", "--data-dir", tmp_path / "rows"]
    code, out, err = run_zofo("validate", *given)
    assert (code, err) == (0, "")
    assert "train: 12 rows" in out
    assert "every row can be used" in out
    code, out, _ = run_zofo("preview", *given, f"model={folders['llama']}", "--json")
    assert code == 0
    assert json.loads(out)["count"] == 12
    options = ["method=mezo", "method.batch_size=4", "training.steps=5", f"output_dir={tmp_path / 'run'}"]
    code, out, _ = run_zofo("train", *given, f"model={folders['llama']}", *options)
    assert code == 0
    metric = yaml.safe_load(STRANGERS[kind])["metric"]
    assert out.startswith(f"{metric} ")
    file.unlink()  # the run has its own copy
    code, out, _ = run_zofo("eval", tmp_path / "run", "--split", "test", "--json")
    assert code == 0
    assert {metric, *yaml.safe_load(STRANGERS[kind]).get("extra_metrics", [])} <= set(json.loads(out))
    asked = rows[0]["country"] if kind == "generation" else json.dumps(rows[0])
    code, out, _ = run_zofo("predict", tmp_path / "run", asked, "--json")
    assert code == 0
    predicted = json.loads(out)
    if kind == "classification":
        assert predicted["label"] in ("billing", "repair", "other")
    elif kind == "multiple-choice":
        assert predicted["answer"] in (" 1.", " 2.", " 3.")
    else:
        assert predicted["label"] == predicted["answer"]
        assert predicted["probability"] is None


def test_columns_whose_names_are_no_words_can_be_named():
    template = "{{ row['the text'] }}, {{ mood }}\nThis is"
    task = parse_task({**yaml.safe_load(STRANGERS["classification"]), "prompts": {"mine": template}}, "mine.yaml")
    assert task.columns() == ["the text", "mood"]
    example = render(task, {"the text": " broken ", "mood": "sad", "team": "repair"}, "here")
    assert example.prompt == "broken, sad\nThis is"
    with pytest.raises(DataError, match="column 'the text'"):
        render(task, {"mood": "sad", "team": "repair"}, "here")


def test_a_packaged_task_can_be_copied_and_changed(run_zofo, data, tmp_path):
    file = tmp_path / "mine.yaml"
    assert run_zofo("copy", "copa", file)[0] == 0
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**content, "prompts": {"mine": "{{ premise }} Therefore"}}), encoding="utf-8")
    code, out, _ = run_zofo("validate", f"task={file}", "--data-dir", data["copa"])
    assert code == 0
    assert re.search(r"mine: .*'s (kitchen|hall|attic) was (warm|cold)\. Therefore (I lit|.* put on)", out)


# the documentation


def table_of_tasks():
    """Rows of the table in docs/tasks.md: name -> cells."""
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| task | Hub id"))
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[start + 2 :]]
    return {row[0]: row[1:] for row in cells[: next((i for i, row in enumerate(cells) if len(row) < 3), len(cells))]}


def test_the_table_of_tasks_is_right():
    table = table_of_tasks()
    assert set(table) == set(SOURCES)
    for name, (hub, kind, metric, sizes, *_) in table.items():
        task = TASKS[name]
        assert hub == " ".join(filter(None, SOURCES[name])), name
        assert kind == task.kind
        assert metric == ", ".join([task.metric, *task.extra_metrics])
        assert sizes.split(" / ")[:2] == [str(task.splits[split].size) for split in ("train", "validation")]


def test_the_documentation_shows_a_task_of_every_kind():
    assert set(STRANGERS) == {"classification", "multiple-choice", "generation"}
    assert {parse_task(yaml.safe_load(text), "docs/tasks.md").kind for text in STRANGERS.values()} == set(STRANGERS)


# the real rows, where they are at hand


@pytest.mark.parametrize(("name", "prompt"), [(n, p) for n, p in PROMPTS if n in SOURCES])
def test_real_rows_render(name, prompt):
    folder = SHARED / ("wsc_fixed" if name == "wsc" else name)
    if not folder.is_dir():
        pytest.skip(f"no rows of {name} at hand: {folder} is not there")
    for origin in ("train", "validation"):
        lines = (folder / f"{origin}.jsonl").read_text(encoding="utf-8").splitlines()[:300]
        for number, line in enumerate(lines, start=1):
            example = render(TASKS[name], json.loads(line), f"{origin}:{number}", prompt)
            assert example.golds
            assert "{{" not in example.prompt
