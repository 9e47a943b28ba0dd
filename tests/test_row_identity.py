"""Rows are known by what they ask: in the draw of splits, among demonstrations, and in what is said of them."""

from __future__ import annotations

from collections import Counter

import pytest

from conftest import write_rows
from zofo.errors import DataError
from zofo.tasks import SPLITS, TaskConfig, load_examples, resolve_task
from zofo.tasks.readers.row import normalized, question_of
from zofo.training import read_config
from zofo.training.run_folder import RunFolder


def loaded(path, **options):
    config = TaskConfig(data=str(path), **options)
    return load_examples(resolve_task(config), config)


def labelled(labels, texts=None):
    return [{"text": (texts or {}).get(i, f"film {i}"), "label": label} for i, label in enumerate(labels)]


def labels_of(examples):
    return {split: Counter(one.gold for one in examples[split]) for split in SPLITS}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [8, 12, 24, 100])
def test_drawn_splits_of_own_rows_have_the_labels_in_their_shares(tmp_path, count, seed):
    write_rows(tmp_path / "rows.jsonl", labelled(["good", "bad"] * (count // 2)))
    found = labels_of(loaded(tmp_path / "rows.jsonl", split_seed=seed))
    assert sum(map(Counter.total, found.values())) == count
    assert all(abs(one[0] - one[1]) <= 1 and len(one) == 2 for one in found.values())


@pytest.mark.parametrize("seed", range(6))
def test_a_rare_label_is_in_train_first(tmp_path, seed):
    write_rows(tmp_path / "rows.jsonl", labelled(["rare", "two", "two", "ten"] + ["ten"] * 9 + ["many"] * 60))
    examples = loaded(tmp_path / "rows.jsonl", split_seed=seed)
    names = ["many", "rare", "ten", "two"]
    found = {split: {names[gold]: n for gold, n in one.items()} for split, one in labels_of(examples).items()}
    assert found["train"]["rare"] == 1
    assert found["train"]["two"] >= 1
    assert all(found[split]["ten"] >= 1 for split in SPLITS)


@pytest.mark.parametrize("seed", range(6))
def test_splits_of_one_file_share_no_text_in_any_form_unless_that_is_asked_for(tmp_path, seed):
    texts = {
        i: ("Film  1", "film 1", "ｆilm 1 ", "film one")[i % 4] + ("" if i < 8 else f" {i // 4}") for i in range(40)
    }
    write_rows(tmp_path / "rows.jsonl", labelled(["good", "bad", "bad"] * 13 + ["good"], texts))
    examples = loaded(tmp_path / "rows.jsonl", split_seed=seed)
    asked = {split: {question_of(one, True) for one in examples[split]} for split in SPLITS}
    assert all(asked[one].isdisjoint(asked[other]) for one in SPLITS for other in SPLITS if one != other)
    assert sum(len(examples[split]) for split in SPLITS) == 40
    shared = loaded(tmp_path / "rows.jsonl", split_seed=seed, allow_overlap=True)
    assert sum(len(shared[split]) for split in SPLITS) == 40


def test_a_file_of_one_text_cannot_be_drawn_from(tmp_path):
    write_rows(tmp_path / "rows.jsonl", labelled(["good", "bad"] * 6, dict.fromkeys(range(12), "the same film")))
    with pytest.raises(DataError, match="12 rows in all that all ask the same, too few") as refused:
        loaded(tmp_path / "rows.jsonl")
    assert "task.allow_overlap=true" in refused.value.hint


@pytest.mark.parametrize("sets", ["fixed", "per-example"])
@pytest.mark.parametrize("seed", range(3))
def test_a_demonstration_is_never_the_example_in_any_row_or_form(tmp_path, sets, seed):
    texts = {i: f"{'film' if i % 3 else 'FILM '} {i % 5}" for i in range(30)}
    for split in SPLITS:
        write_rows(tmp_path / f"{split}.jsonl", labelled(["good", "bad"] * 15, texts))
    examples = loaded(tmp_path, num_fewshot=2, fewshot_sampling=sets, split_seed=seed)
    for one in (one for split in SPLITS for one in examples[split]):
        *solved, asked = one.prompt.split("\n\n")
        assert len(solved) == 2
        assert not any(normalized(part).startswith(normalized(asked)) for part in solved)


def test_too_few_other_rows_to_demonstrate_with_are_named(tmp_path):
    for split in SPLITS:
        write_rows(tmp_path / f"{split}.jsonl", labelled(["good", "bad"] * 3, {i: f"film {i % 2}" for i in range(6)}))
    with pytest.raises(Exception, match="task.num_fewshot is 4, but only 3 rows of train ask something else than"):
        loaded(tmp_path, num_fewshot=4)


@pytest.mark.parametrize("demonstrations", [0, 1])
def test_validate_counts_rows_that_are_there_again(run_zofo, tmp_path, demonstrations):
    write_rows(tmp_path / "train.jsonl", labelled(["good", "bad", "bad", "good"], {2: "Film 0", 3: "film 1"}))
    write_rows(tmp_path / "validation.jsonl", labelled(["good", "bad"], {1: "film  1"}))
    write_rows(tmp_path / "test.jsonl", labelled(["good", "good"], {0: "a", 1: "b"}))
    code, out, err = run_zofo("validate", "--data", tmp_path, f"task.num_fewshot={demonstrations}")
    assert code == 0, err
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    again = f"ask what an earlier row asks, 2 of them with another answer (for example {train}:3, as {train}:1)"
    assert notes == [
        f"note: 2 of 4 rows of train {again}",
        f"note: 2 of 2 rows of validation are in train, too (for example {validation}:1, as {train}:1)",
        "note: all 2 rows of test have the label 'good': saying it always scores 100 %",
    ]


def test_a_run_from_before_draws_were_written_down_keeps_its_rows(tmp_path):
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, labelled(["good", "bad"] * 15))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"task: {{data: {rows}}}\nmethod: mezo\n", encoding="utf-8")
    assert read_config(folder / "config.yaml").task.draw == "stratified"
    (folder / "environment.json").write_text('{"model_hash": "0"}', encoding="utf-8")
    assert read_config(folder / "config.yaml").task.draw == "plain"
    assert RunFolder.open(folder).config.task.draw == "plain"
    old = [one.where.rpartition(":")[2] for one in loaded(rows, draw="plain")["validation"]]
    assert old == ["1", "5", "15", "27", "11"]  # as the version before drew them
