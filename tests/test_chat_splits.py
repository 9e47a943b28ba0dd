"""No answer that is scored is trained within a longer conversation: in the draw of splits, and in what is said."""

from __future__ import annotations

import time

import pytest

from conftest import write_rows
from test_chat_turns import asked, said
from zofo.errors import DataError
from zofo.tasks import SPLITS, TaskConfig, load_examples, load_task, resolve_task, row_notes, trained_on_notes
from zofo.tasks.drawing import divide
from zofo.tasks.readers.row import Row, questions_of

SEEDS = range(6)


def talk(number, answers, first=None):
    """A conversation of so many answers."""
    turns = [[asked(f"film {number} ?, {turn}"), said(f"answer {turn}")] for turn in range(answers)]
    turns[0][0] = asked(first or turns[0][0]["content"])
    return [one for pair in turns for one in pair]


def each_answer(talks):
    """A row for each answer of each conversation."""
    return [talk[:end] for talk in talks for end in range(2, len(talk) + 1, 2)]


def drawn(path, talks, **options):
    write_rows(path, [{"messages": talk} for talk in talks])
    config = TaskConfig(data=str(path), **options)
    return load_examples(resolve_task(config), config)


def leaked(examples):
    """Rows of validation and test whose question is trained."""
    trained = {question for one in examples["train"] for question in questions_of(one, False)}
    return [one.where for split in SPLITS[1:] for one in examples[split] if questions_of(one, False)[-1] in trained]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("newest_first", [False, True])
def test_a_row_for_each_answer_is_drawn_by_conversation(tmp_path, seed, newest_first):
    rows = each_answer([talk(number, 3) for number in range(16)])
    rows = rows[::-1] if newest_first else rows
    examples = drawn(tmp_path / "chats.jsonl", rows, split_seed=seed)
    assert not leaked(examples)
    first = {split: {one.messages[0] for one in examples[split]} for split in SPLITS}
    assert all(first[one].isdisjoint(first[other]) for one in SPLITS for other in SPLITS if one != other)
    assert sum(map(len, examples.values())) == 48
    assert min(map(len, examples.values())) >= 6
    assert not row_notes(load(tmp_path), examples)


def load(folder):
    return resolve_task(TaskConfig(data=str(folder / "chats.jsonl")))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_answer_alone_is_drawn_as_before(tmp_path, seed):
    rows = each_answer([talk(number, 3) for number in range(16)])
    examples = drawn(tmp_path / "chats.jsonl", rows, split_seed=seed, trained_turns="last")
    assert [len(examples[split]) for split in SPLITS] == [32, 8, 8]
    apart = {split: {one.messages[0] for one in examples[split]} for split in SPLITS}
    assert apart["train"] & (apart["validation"] | apart["test"])
    assert not row_notes(load(tmp_path), examples)
    plain = drawn(tmp_path / "plain.jsonl", [talk(number, 1) for number in range(48)], split_seed=seed)
    number = {one.where.rpartition(":")[2] for one in examples["test"]}
    assert {one.where.rpartition(":")[2] for one in plain["test"]} == number  # as rows that have nothing in common


@pytest.mark.parametrize("seed", SEEDS)
def test_a_greeting_that_all_conversations_begin_with_joins_none(tmp_path, seed):
    whole = [talk(number, 3, first="Hi") for number in range(24)]
    examples = drawn(tmp_path / "whole.jsonl", whole, split_seed=seed)
    assert [len(examples[split]) for split in SPLITS] == [16, 4, 4]
    assert not leaked(examples)
    # and as a row for each answer: what asks for the answer to "Hi" alone is in train
    examples = drawn(tmp_path / "chats.jsonl", each_answer(whole), split_seed=seed)
    assert not leaked(examples)
    assert sum(map(len, examples.values())) == 72
    assert all(12 <= len(examples[split]) <= 14 for split in SPLITS[1:])
    assert all(len(one.messages) > 1 for split in SPLITS[1:] for one in examples[split])
    assert sum(len(one.messages) == 1 for one in examples["train"]) == 24


@pytest.mark.parametrize("seed", SEEDS)
def test_a_small_train_is_not_of_greetings_alone(tmp_path, seed):
    rows = each_answer([talk(number, 3, first="Hi") for number in range(24)])
    sizes = {"train": 10, "validation": 12, "test": 12}
    examples = drawn(tmp_path / "chats.jsonl", rows, split_seed=seed, split_sizes=sizes)
    assert not leaked(examples)
    assert 10 <= len(examples["train"]) <= 11
    assert any(len(one.messages) > 1 for one in examples["train"])
    with pytest.raises(DataError, match="too few to draw"):
        drawn(tmp_path / "few.jsonl", each_answer([talk(0, 3), talk(0, 2)]))


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_that_differ_after_the_last_trained_answer_are_in_one_split(tmp_path, seed):
    tails = [[], [asked("and so ?"), said("no", weight=0)], [asked("why ?"), said("well", weight=0)]]
    rows = [talk(number, 2) + tail for number in range(16) for tail in tails]
    examples = drawn(tmp_path / "chats.jsonl", rows, split_seed=seed)
    assert not leaked(examples)
    assert sum(map(len, examples.values())) == 48


@pytest.mark.parametrize("seed", SEEDS)
def test_a_row_joins_conversations_that_have_nothing_else_in_common(tmp_path, seed):
    rows = []
    for number in range(16):
        whole = talk(number, 2)
        second = [whole[0], said("answer 0", weight=0), *whole[2:]]
        rows += [whole[:2], second, whole, [*second, asked("why ?"), said("well", weight=0)]]
    examples = drawn(tmp_path / "chats.jsonl", rows, split_seed=seed)
    assert not leaked(examples)
    assert sum(map(len, examples.values())) == 64


@pytest.mark.parametrize("seed", SEEDS)
def test_names_of_turns_make_no_other_question(tmp_path, seed):
    """As exports have them: each turn has an id of its own, which most templates do not write."""
    bare = each_answer([talk(number, 2) for number in range(16)])
    named = [[{**turn, "id": f"{row}-{place}"} for place, turn in enumerate(one)] for row, one in enumerate(bare)]
    found = [drawn(tmp_path / f"{number}.jsonl", rows, split_seed=seed) for number, rows in enumerate((bare, named))]
    lines = [{split: [one.where.rpartition(":")[2] for one in each[split]] for split in SPLITS} for each in found]
    assert lines[0] == lines[1]
    assert not leaked(found[1])


def test_splits_have_their_sizes_where_rows_are_for_train_alone(tmp_path):
    rows = [talk(number, 2, first="Hi") for number in range(40)] + [talk(0, 1, first="Hi")] * 10
    sizes = {"validation": 30, "test": 10}
    examples = drawn(tmp_path / "chats.jsonl", rows, split_sizes=sizes)
    assert [len(examples[split]) for split in SPLITS] == [10, 30, 10]
    assert not leaked(examples)


def test_conversations_that_each_go_on_with_the_one_before_say_what_to_type(tmp_path):
    rows = each_answer([talk(0, 30)])
    with pytest.raises(DataError, match="30 rows in all in 1 groups that ask the same, or train each other's") as found:
        drawn(tmp_path / "chats.jsonl", rows)
    assert "task.trained_turns=last" in found.value.hint
    examples = drawn(tmp_path / "chats.jsonl", rows, trained_turns="last")
    assert [len(examples[split]) for split in SPLITS] == [20, 5, 5]


def test_files_of_their_own_say_how_many_rows_are_trained_within_longer_ones(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    talks = [talk(number, 3) for number in range(6)]
    held = [talks[0][:2], talks[1][:4], talks[2], talk(9, 1)]
    for split, rows in {"train": talks, "validation": held, "test": held[:1]}.items():
        write_rows(folder / f"{split}.jsonl", [{"messages": row} for row in rows])
    found = {}
    for turns in ("auto", "last"):
        config = TaskConfig(data=str(folder), trained_turns=turns)
        task = resolve_task(config)
        examples = load_examples(task, config)
        found[turns] = row_notes(task, examples)
        noted = trained_on_notes(config, examples, "runs/first")
        assert noted[0].startswith(
            "warning: runs/first was trained on "
            + ("3 of 4 rows of validation and 1 of 1 rows" if turns == "auto" else "1 of 4 rows of validation,")
        )
    assert found["last"] == [one for one in found["auto"] if "earlier answer" not in one]
    within = [one for one in found["auto"] if "earlier answer" in one]
    assert [one.partition(" ask for an earlier answer")[0] for one in within] == [
        "2 of 4 rows of validation",
        "1 of 1 rows of test",
    ]
    assert "validation.jsonl:1, as " in within[0]
    assert any(one.startswith("1 of 4 rows of validation are in train, too") for one in found["auto"])


def test_a_start_on_other_chats_is_not_said_to_be_trained_on_these(tmp_path):
    write_rows(tmp_path / "other.jsonl", [{"messages": talk(number, 2)} for number in range(20, 32)])
    examples = drawn(tmp_path / "chats.jsonl", [talk(number, 2) for number in range(12)])
    assert trained_on_notes(TaskConfig(data=str(tmp_path / "other.jsonl")), examples, "runs/first") == []


def test_a_task_that_keeps_its_test_apart_refuses_rows_trained_within_longer_ones(tmp_path):
    for split, rows in {"train": [talk(0, 3), talk(1, 3)], "validation": [talk(2, 1)], "test": [talk(1, 2)]}.items():
        write_rows(tmp_path / f"{split}.jsonl", [{"messages": row} for row in rows])
    (tmp_path / "task.yaml").write_text(
        "name: chats\nversion: 1\nkind: generation\nmetric: token-f1\nmessages: messages\ndisjoint: true\n"
        "splits: {train: {from: train}, validation: {from: validation}, test: {from: test}}\n"
    )
    task, name = load_task(str(tmp_path / "task.yaml")), str(tmp_path / "task.yaml")
    load_examples(task, TaskConfig(name=name, data_dir=tmp_path, trained_turns="last"))
    with pytest.raises(DataError, match=r"test.jsonl:1: the same input as .*train.jsonl:2.*; 1 such rows"):
        load_examples(task, TaskConfig(name=name, data_dir=tmp_path))


def test_the_draw_of_many_rows_takes_time_in_proportion(tmp_path):
    write_rows(tmp_path / "chats.jsonl", [{"messages": talk(0, 1)}])
    config = TaskConfig(data=str(tmp_path / "chats.jsonl"))
    task = resolve_task(config)

    def seconds(count):
        talks = [talk(number, 4, first="Hi" if number % 2 else None) for number in range(count)]
        rows = [Row(f"r:{n}", {"messages": one}) for n, one in enumerate(each_answer(talks))]
        since = time.process_time()
        divide(task, "data", rows, config)
        return time.process_time() - since

    few = seconds(250)
    assert seconds(2000) < 30 * few  # 8 times as many; of quadratic time, 64
