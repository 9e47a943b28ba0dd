"""Tasks: files that are checked, rows that are checked, splits that are fair, batches in a seeded order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from conftest import review_rows, write_rows
from zofo.errors import ConfigError, DataError, UnknownNameError, ZofoError
from zofo.tasks import (
    SPLITS,
    EpochSampler,
    TaskConfig,
    dataset,
    load_examples,
    load_task,
    render,
    resolve_task,
    task_names,
)
from zofo.tasks.readers.files import read_file
from zofo.tasks.task import parse_task

MINE = {
    "name": "mine",
    "version": 1,
    "kind": "classification",
    "metric": "accuracy",
    "source": {"hub": "nobody/nothing"},
    "splits": {split: {"from": split} for split in SPLITS},
    "template": "{{ sentence }} It was",
    "label": "label",
    "verbalizers": {0: " terrible", 1: " great"},
}


def mine(**changes):
    return parse_task({**MINE, **changes}, "mine.yaml")


# task files


def test_both_packaged_tasks_are_there():
    assert {"sst2", "movie-reviews"} <= set(task_names())


def test_unknown_task_names_get_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown task 'sst3'. Did you mean 'sst2'?"):
        load_task("sst3")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"template": "{sentence} It was"}, "columns stand in double braces; write for example"),
        ({"template": "It was"}, "the template names no column"),
        ({"template": "{{ sentence It was"}, "is not a template"),
        ({"template": "{{ sentence }} {{ label }}"}, "names 'label', which holds what is right: the prompt would tell"),
        ({"template": "{{ sentence }} {{ row['label'] }}"}, "names 'label', which holds what is right"),
        ({"texts": ["{{ sentence }}", "{{ label }}"]}, "names 'label', which holds what is right"),
        ({"template": "{{ sentence }} {% if %}"}, "is not a template"),
        ({"prompts": {"a": "{{ sentence }}"}}, "give template or prompts, not both"),
        ({"choices": [" a", " b"]}, "'choices' has no meaning in a classification task"),
        ({"metric": "token-f1"}, "the metric 'token-f1' has no meaning for a classification task"),
        ({"extra_metrics": ["em", "bleu"]}, "unknown metric 'bleu'"),
        ({"texts": ["no column"]}, "the template names no column"),
        ({"metric": "acuracy"}, "unknown metric 'acuracy'. Did you mean 'accuracy'?"),
        ({"metric": 3}, "metric"),
        ({"kind": "regression"}, "kind"),
        ({"version": 0}, "version"),
        ({"verbalizers": {0: " bad"}}, "two verbalizers or more"),
        ({"verbalizers": {0: " bad", 1: "  "}}, "the verbalizer of label 1 is empty"),
        ({"verbalizers": {0: " bad", 1: " bad"}}, "labels 0 and 1 have the same verbalizer ' bad'"),
        ({"verbalizers": {0: " bad", 1: 2}}, "verbalizers.1"),
        ({"verbalizers": yaml.safe_load('{yes: " yes", no: " no"}')}, "put them in quotes"),
        ({"source": {}}, "exactly one of source.hub and source.embedded"),
        ({"source": {"hub": "a/b", "embedded": "c"}}, "exactly one of source.hub and source.embedded"),
        ({"splits": {"train": {"from": "train"}}}, "the split 'validation' is not defined"),
        ({"splits": {**MINE["splits"], "dev": {"from": "train"}}}, "dev"),
        ({"splits": {**MINE["splits"], "train": {"size": 3}}}, "splits.train.from"),
        ({"splits": {**MINE["splits"], "train": {"from": "train", "size": 0}}}, "splits.train.size"),
        ({"lable": "label"}, "lable: unknown key"),
    ],
)
def test_task_files_that_cannot_work_are_refused_with_file_and_key(changes, says):
    with pytest.raises(ConfigError) as refused:
        mine(**changes)
    assert refused.value.message.startswith("mine.yaml: ")
    assert says in str(refused.value)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        *((key, f"{key}: Field required") for key in ("name", "version", "kind", "metric", "splits")),
        ("template", "prompts: Field required"),
        ("label", "'label' is missing: the column that holds what is right"),
        ("verbalizers", "a classification task needs 'verbalizers'"),
    ],
)
def test_a_missing_key_is_named(missing, says):
    with pytest.raises(ConfigError) as refused:
        parse_task({key: value for key, value in MINE.items() if key != missing}, "mine.yaml")
    assert refused.value.message == f"mine.yaml: {says}"


def test_a_task_without_a_source_needs_rows_of_ones_own():
    with pytest.raises(ConfigError, match="the task 'mine' has no source of its own"):
        load_examples(
            parse_task({key: value for key, value in MINE.items() if key != "source"}, "mine.yaml"), TaskConfig()
        )


def test_unknown_keys_of_a_task_file_get_the_nearest():
    with pytest.raises(ConfigError) as refused:
        mine(splits={**MINE["splits"], "test": {"form": "test"}})
    assert refused.value.message == "mine.yaml: splits.test.form: unknown key"
    assert refused.value.hint == "did you mean 'from'?"


@pytest.mark.parametrize("content", [b"- a list\n", b"a: [1\n", b"\xff\xfe\x00", b"when: 2020-99-99\n", b"", b"text"])
def test_files_that_are_no_task_are_refused(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="mine.yaml"):
        load_task(str(path))


def test_a_task_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no task file"):
        load_task(str(tmp_path / "mine.yaml"))


@pytest.mark.promise(12)
def test_a_task_file_cannot_run_code(tmp_path):
    path, canary = tmp_path / "mine.yaml", tmp_path / "canary"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{canary}']\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not YAML"):
        load_task(str(path))
    assert not canary.exists()


# rows


def one_row(tmp_path: Path, line: bytes | dict, **changes):
    """Load train.jsonl with one bad line, the third."""
    folder = tmp_path / "rows"
    write_rows(folder / "train.jsonl", review_rows(2))
    for split in ("validation", "test"):
        write_rows(folder / f"{split}.jsonl", review_rows(4))
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    with (folder / "train.jsonl").open("ab") as file:
        file.write(raw + b"\n")
    return load_examples(mine(**changes), TaskConfig(data_dir=folder))


def test_a_good_row_is_rendered(tmp_path):
    good = {"sentence": "  a joy \n", "label": 1, "other": None}
    example = one_row(tmp_path, good)["train"][2]
    assert example.prompt == "a joy It was"
    assert example.gold == 1
    assert example.where.endswith("train.jsonl:3")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"label": 1}, "column 'sentence', which the task 'mine' needs, is missing; the row has 'label'"),
        ({"sentence": "a joy"}, "column 'label', which the task 'mine' needs, is missing; the row has 'sentence'"),
        ({}, "is missing; the row has nothing"),
        ({"sentence": "a joy", "label": 2}, "column 'label' is 2, which no verbalizer of 'mine' stands for"),
        ({"sentence": "a joy", "label": "one"}, "column 'label' is 'one'"),
        ({"sentence": "a joy", "label": -1}, "column 'label' is -1, which no verbalizer"),
        ({"sentence": "a joy", "label": None}, "column 'label' is None"),
        ({"sentence": "a joy", "label": [1]}, "column 'label' is [1]"),
        ({"sentence": "", "label": 1}, "column 'sentence' is empty"),
        ({"sentence": " \t", "label": 1}, "column 'sentence' is empty"),
        ({"sentence": None, "label": 1}, "column 'sentence' is empty"),
        ({"sentence": 7, "label": 1}, "column 'sentence' is 7, not a text"),
        ({"sentence": ["a"], "label": 1}, "column 'sentence' is ['a'], not a text"),
        (b'{"sentence": "\\ud800 half a character", "label": 1}', "column 'sentence'"),
        (b"{'sentence': 'a joy'}", "not JSON"),
        (b'{"sentence": "a joy", "label": 1', "not JSON"),
        (b'{"sentence": "a joy"} {"label": 1}', "not JSON"),
        pytest.param(b'{"label": ' + b"9" * 5000 + b"}", "not JSON", id="long number"),
        pytest.param(b"[" * 100_000, "not JSON", id="deep"),
        (b'["a joy", 1]', "a list, not an object"),
        (b'"a joy"', "a str, not an object"),
        (b"null", "a NoneType, not an object"),
        (b'{"sentence": "sch\xf6n", "label": 1}', "not UTF-8"),
    ],
)
def test_bad_rows_are_refused_with_file_and_line(tmp_path, line, says):
    with pytest.raises(DataError) as refused:
        one_row(tmp_path, line)
    assert f"{tmp_path}/rows/train.jsonl:3: " in refused.value.message
    assert says in refused.value.message
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 500


def test_a_hint_names_the_labels_there_are(tmp_path):
    with pytest.raises(DataError) as refused:
        one_row(tmp_path, {"sentence": "a joy", "label": 5})
    assert "0, 1" in refused.value.hint
    assert "a good row: " in refused.value.hint
    with pytest.raises(DataError) as refused:
        one_row(tmp_path, {"sentence": "a joy", "label": -1})
    assert "a label that the data set's authors keep to themselves" in refused.value.hint


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    folder = tmp_path / "rows"
    for split in SPLITS:
        write_rows(folder / f"{split}.jsonl", review_rows(3))
    train = folder / "train.jsonl"
    train.write_bytes(b"\xef\xbb\xbf" + train.read_bytes().replace(b"\n", b"\r\n\r\n"))
    examples = load_examples(mine(), TaskConfig(data_dir=folder))["train"]
    assert [e.prompt for e in examples] == [f"{row['sentence']} It was" for row in review_rows(3)]
    assert [e.where.rpartition(":")[2] for e in examples] == ["1", "3", "5"]


def test_a_missing_folder_file_or_row_is_named(tmp_path):
    task = mine()
    with pytest.raises(DataError, match="the data folder .*none' does not exist"):
        load_examples(task, TaskConfig(data_dir=tmp_path / "none"))
    (tmp_path / "rows").mkdir()
    with pytest.raises(DataError, match="has no train.jsonl; it holds no .jsonl file"):
        load_examples(task, TaskConfig(data_dir=tmp_path / "rows"))
    write_rows(tmp_path / "rows" / "train.jsonl", review_rows(4))
    with pytest.raises(DataError, match="has no validation.jsonl; it holds train.jsonl"):
        load_examples(task, TaskConfig(data_dir=tmp_path / "rows"))
    write_rows(tmp_path / "rows" / "validation.jsonl", [])
    with pytest.raises(DataError, match="validation.jsonl: no rows"):
        load_examples(task, TaskConfig(data_dir=tmp_path / "rows"))


def test_texts_may_hold_braces_and_newlines(tmp_path):
    text = "{label} {0} \\n {{}} %s\nsecond line"
    assert one_row(tmp_path, {"sentence": text, "label": 1})["train"][2].prompt == f"{text} It was"


# splits


def split_sst2(folder: Path, seed=0, rows=60, sizes=None):
    write_rows(folder / "train.jsonl", review_rows(rows))
    write_rows(folder / "validation.jsonl", review_rows(5, 100_000))
    examples = load_examples(
        load_task("sst2"), TaskConfig(name="sst2", data_dir=folder, split_seed=seed, split_sizes=sizes or {})
    )
    return {split: [e.where for e in examples[split]] for split in SPLITS}


def test_splits_are_drawn_by_seed_and_share_no_row(tmp_path):
    first = split_sst2(tmp_path / "a", rows=1800)
    assert {split: len(rows) for split, rows in first.items()} == {"train": 1000, "validation": 500, "test": 5}
    assert len(set(first["train"]) | set(first["validation"])) == 1500
    assert split_sst2(tmp_path / "a", rows=1800) == first
    other = split_sst2(tmp_path / "a", seed=1, rows=1800)
    assert other != first
    assert set(other["validation"]) != set(first["validation"])
    assert len(set(other["train"]) & set(other["validation"])) == 0
    assert first["train"] != sorted(first["train"])  # drawn, not cut from the top


@pytest.mark.soak
def test_a_larger_set_leaves_no_part_unseen(tmp_path):
    """Over ten seeds nearly every row is drawn at some time, wherever it stands in the file."""
    drawn = set()
    for seed in range(10):
        rows = split_sst2(tmp_path, seed, rows=3000)
        drawn |= {int(where.rpartition(":")[2]) for where in rows["train"] + rows["validation"]}
    assert len(drawn) > 2980


def test_sizes_are_drawn_in_place_of_the_tasks(tmp_path):
    """Two splits of one file share no row; each seed draws others; a split without a size keeps the task's."""
    given = {"train": 30, "validation": 20}
    drawn = [split_sst2(tmp_path, seed, rows=100, sizes=given) for seed in (0, 1)]
    for split in drawn:
        assert (len(split["train"]), len(split["validation"])) == (30, 20)
        assert not set(split["train"]) & set(split["validation"])
    assert set(drawn[0]["train"]) != set(drawn[1]["train"])
    rest = split_sst2(tmp_path, rows=100, sizes={"validation": 20})
    assert (len(rest["train"]), len(rest["validation"])) == (80, 20)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"train": 60, "validation": 50},
            "task.split_sizes asks for 60 of train \\+ 50 of validation, but 'train' has 100",
        ),
        ({"train": 100}, "task.split_sizes asks for 100 of train, but 'train' has 100 rows for train, validation"),
    ],
    ids=["more-than-there-are", "nothing-left"],
)
def test_sizes_that_rows_do_not_reach_are_refused(tmp_path, sizes, message):
    with pytest.raises(ConfigError, match=message) as refused:
        split_sst2(tmp_path, rows=100, sizes=sizes)
    assert "lower task.split_sizes" in refused.value.hint


@pytest.mark.parametrize("rows", [3, 4, 10, 60, 61, 1499])
def test_a_small_set_keeps_two_thirds_for_train(tmp_path, rows):
    split = split_sst2(tmp_path, rows=rows)
    assert len(split["validation"]) == rows // 3
    assert len(split["train"]) == min(1000, rows - rows // 3)
    assert not set(split["train"]) & set(split["validation"])


@pytest.mark.parametrize("rows", [1, 2])
def test_a_set_too_small_to_split_is_refused(tmp_path, rows):
    with pytest.raises(
        DataError, match=f"train.jsonl:1: {rows} rows in all, too few to draw train and validation from"
    ):
        split_sst2(tmp_path, rows=rows)


def test_a_split_that_takes_a_whole_file_keeps_its_order(tmp_path):
    split = split_sst2(tmp_path)
    assert [where.rpartition(":")[2] for where in split["test"]] != []
    whole = load_examples(mine(), TaskConfig(data_dir=_three_files(tmp_path / "whole")))
    assert [e.where.rpartition(":")[2] for e in whole["train"]] == [str(i) for i in range(1, 8)]


def _three_files(folder):
    for split in SPLITS:
        write_rows(folder / f"{split}.jsonl", review_rows(7))
    return folder


@pytest.mark.parametrize("head", [False, True])
def test_train_rows_of_one_label_are_refused_and_a_few_that_are_drawn_may_be_of_one(tmp_path, head):
    for split in SPLITS:
        write_rows(tmp_path / f"{split}.jsonl", [{**row, "label": 1} for row in review_rows(60)])
    for name in ("sst2", "movie-reviews"):
        task, config = load_task(name), TaskConfig(name=name, data_dir=tmp_path)
        message = r"train\.jsonl:1: column 'label' is 1 in all 60 rows, which leaves nothing to learn\n.*two labels"
        with pytest.raises(DataError, match=message):
            load_examples(task, config, head=head)
        with pytest.raises(DataError, match=message):
            load_examples(task, TaskConfig(name=name, data_dir=tmp_path, max_rows=5), ["train"], head)
        assert load_examples(task, config, ["test"], head)  # which may be of one
        assert load_examples(task, config, head=head, right=False)
    write_rows(tmp_path / "train.jsonl", [{**row, "label": int(i > 40)} for i, row in enumerate(review_rows(60))])
    drawn = load_examples(mine(texts=["{{ sentence }}"]), TaskConfig(data_dir=tmp_path, max_rows=5), ["train"], head)
    assert {one.gold for one in drawn["train"]} == {0}


def test_one_right_choice_or_answer_in_all_rows_is_refused_only_among_the_same_choices(tmp_path):
    rows = [{"premise": f"{i}", "one": f"a {i}", "two": f"b {i}", "label": 0} for i in range(6)]
    write_rows(tmp_path / "train.jsonl", rows)
    shape = {"kind": "multiple-choice", "verbalizers": None, "template": "{{ premise }}"}
    own = mine(**shape, choices=[" {{ one }}", " {{ two }}"])
    assert load_examples(own, TaskConfig(data_dir=tmp_path), ["train"])
    with pytest.raises(DataError, match=r"train\.jsonl:1: column 'label' is 0 in all 6 rows"):
        load_examples(mine(**shape, choices=[" yes", " no"]), TaskConfig(data_dir=tmp_path), ["train"])
    free = {"kind": "generation", "metric": "exact-match", "verbalizers": None, "label": None}
    same = mine(**free, answers="'yes' if label == 0 else 'no'", template="{{ premise }}")
    assert load_examples(same, TaskConfig(data_dir=tmp_path), ["train"])


DISJOINT = {
    "classification": {"texts": ["{{ sentence }}"]},
    "generation": {
        "kind": "generation",
        "metric": "exact-match",
        "verbalizers": None,
        "label": None,
        "answers": "'great' if label else 'terrible'",
    },
}


@pytest.mark.parametrize("kind", DISJOINT)
def test_a_row_of_test_in_train_is_refused_whichever_of_both_is_read(tmp_path, kind):
    task, config = mine(**DISJOINT[kind], disjoint=True), TaskConfig(data_dir=tmp_path)
    heads = (False, True) if kind == "classification" else (False,)
    for split, start in (("train", 0), ("validation", 40), ("test", 80)):
        write_rows(tmp_path / f"{split}.jsonl", review_rows(12, start))
    for head in heads:
        for split in SPLITS:
            assert load_examples(task, config, [split], head).keys() == {split}
    write_rows(tmp_path / "test.jsonl", [*review_rows(3, 80), *review_rows(1, 5)])
    options = " and options" if kind == "classification" else ""
    message = rf"test\.jsonl:4: the same input{options} as .*train\.jsonl:6, .*; 1 such rows in 'mine'"
    for head in heads:
        for splits in (["train"], ["test"], ["train", "validation"], SPLITS):
            with pytest.raises(DataError, match=message):
                load_examples(task, config, splits, head)
            assert load_examples(mine(**DISJOINT[kind]), config, splits, head)
        assert load_examples(task, config, ["validation"], head)


def test_a_test_that_is_only_compared_may_be_missing_or_without_its_labels(tmp_path):
    task, config = mine(disjoint=True), TaskConfig(data_dir=tmp_path)
    write_rows(tmp_path / "train.jsonl", review_rows(12))
    assert load_examples(task, config, ["train"])
    write_rows(tmp_path / "test.jsonl", [{"sentence": "not known"}])
    assert load_examples(task, config, ["train"])
    write_rows(tmp_path / "test.jsonl", [{"sentence": review_rows(1)[0]["sentence"]}])
    with pytest.raises(DataError, match=r"test\.jsonl:1: the same input and options as .*train\.jsonl:1,"):
        load_examples(task, config, ["train"])


def test_a_disjoint_chat_is_known_by_what_is_asked(tmp_path):
    chat = {"kind": "generation", "metric": "exact-match", "verbalizers": None, "label": None, "messages": "messages"}
    task = parse_task({k: v for k, v in {**MINE, **chat}.items() if k != "template"} | {"disjoint": True}, "chat.yaml")
    for split in SPLITS:
        rows = [
            [{"role": "user", "content": f"{split} {i}"}, {"role": "assistant", "content": "yes"}] for i in range(4)
        ]
        write_rows(tmp_path / f"{split}.jsonl", [{"messages": turns} for turns in rows])
    assert load_examples(task, TaskConfig(data_dir=tmp_path))
    asked = [{"role": "user", "content": "train 2"}, {"role": "assistant", "content": "no"}]
    write_rows(tmp_path / "test.jsonl", [{"messages": asked}])
    with pytest.raises(DataError, match=r"test\.jsonl:1: the same input as .*train\.jsonl:3"):
        load_examples(task, TaskConfig(data_dir=tmp_path), ["train"])


# batches


def test_batches_are_a_pure_function_of_seed_name_and_number():
    def batches(seed=0, name="train", size=4):
        return EpochSampler(range(18), size, list, seed, name)

    first = [batches()[i] for i in range(12)]
    again = batches()
    assert [again[i] for i in (11, 3, 0, 7)] == [first[i] for i in (11, 3, 0, 7)]  # any order of asking
    assert again.per_epoch == 4
    for epoch in range(3):
        seen = [x for i in range(4) for x in first[epoch * 4 + i]]
        assert len(set(seen)) == 16  # each example at most once an epoch; the remainder waits
    assert first[:4] != first[4:8]
    assert [batches(seed=1)[i] for i in range(4)] != first[:4]
    assert [batches(name="inner")[i] for i in range(4)] != first[:4]


def test_examples_of_similar_length_share_a_batch_in_a_random_order():
    lengths = [(7 * i) % 40 for i in range(160)]

    def batches(length):
        drawn = EpochSampler(range(160), 4, list, 0, "train", length)
        return [drawn[i] for i in range(40)]

    grouped = batches(lambda i: lengths[i])
    plain = batches(None)
    assert sorted(x for batch in grouped for x in batch) == list(range(160))
    assert grouped == batches(lambda i: lengths[i])

    def spread(chosen):
        return sum(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in chosen) / len(chosen)

    assert spread(grouped) < 0.3 * spread(plain)
    means = [sum(lengths[i] for i in batch) / 4 for batch in grouped]
    assert means != sorted(means)
    assert abs(sum(means[:20]) - sum(means[20:])) / 20 < 8  # short and long ones come mixed


def test_no_example_is_left_out_forever():
    batches = EpochSampler(range(18), 4, list, 0, "train")
    assert {x for i in range(40) for x in batches[i]} == set(range(18))


def test_a_batch_larger_than_the_data_is_refused():
    assert sorted(EpochSampler(range(4), 4, list, 0, "train")[3]) == [0, 1, 2, 3]
    with pytest.raises(ConfigError) as refused:
        EpochSampler(range(3), 4, list, 0, "train")
    assert "a batch of 4 examples cannot be drawn from the 3 of 'train'" in refused.value.message
    assert "batch_size to 3" in refused.value.hint


def test_global_generators_are_left_alone(data_dir):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_examples(load_task("sst2"), TaskConfig(data_dir=data_dir))
    assert torch.equal(torch.get_rng_state(), before)
    assert EpochSampler(range(18), 4, list, 0, "train")[0]
    assert torch.equal(torch.get_rng_state(), before)


# sources


def test_no_hub_and_no_cache_is_one_clear_message(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(DataError) as refused:
        load_examples(load_task("sst2"), TaskConfig(name="sst2"))
    assert "cannot load 'nyu-mll/glue' from the Hub or its cache" in refused.value.message
    assert "--data-dir" in refused.value.hint
    assert "\n" not in str(refused.value.message)


def test_an_unknown_embedded_data_set_gets_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'movie-reviews'"):
        load_examples(mine(source={"embedded": "movie-review"}), TaskConfig())


def test_a_users_own_task_is_a_file(tmp_path):
    """Text labels, several columns, verbalizers of several words: no code."""
    content = {
        **MINE,
        "template": "{{ premise }}\nQuestion: {{ claim }}? Answer:",
        "label": "answer",
        "verbalizers": {"yes": " yes", "no": " no", "unsure": " it is not clear"},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    folder = tmp_path / "rows"
    rows = [{"premise": "a", "claim": "b", "answer": "unsure"}, {"premise": "c", "claim": "d", "answer": "no"}]
    for split in SPLITS:
        write_rows(folder / f"{split}.jsonl", rows)
    examples = load_examples(load_task(str(path)), TaskConfig(name=str(path), data_dir=folder))
    assert [e.prompt for e in examples["test"]] == ["a\nQuestion: b? Answer:", "c\nQuestion: d? Answer:"]
    assert [e.gold for e in examples["test"]] == [2, 1]
    assert examples["test"][0].candidates == (" yes", " no", " it is not clear")


def test_every_error_of_a_user_is_a_zofo_error():
    for kind in (ConfigError, DataError, UnknownNameError):
        assert issubclass(kind, ZofoError)
        assert kind.exit_code == 2


def test_truth_values_are_the_labels_0_and_1():
    task = load_task("sst2")
    for value, gold in ((False, 0), (True, 1), ("0", 0), (" 1", 1)):
        assert render(task, {"sentence": "a joy", "label": value}, "here").golds == (gold,)


def test_rows_that_a_task_was_made_for_are_not_read_again(tmp_path, monkeypatch):
    file, read = tmp_path / "rows.jsonl", []
    write_rows(file, [{"text": f"film {n}", "label": n % 2} for n in range(40)])
    monkeypatch.setattr(dataset, "read_file", lambda path: read.append(path) or read_file(path))
    config = TaskConfig(data=str(file))
    task = resolve_task(config)
    first = load_examples(task, config)
    assert read == [file]
    assert load_examples(task, config) == first  # and they are not kept
    assert read == [file, file]
