"""MetaICL's rows and setting files: what they become, what is refused, and scoring in the other direction."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import build_model, build_tokenizer, write_rows
from metaicl_rows import choosing, labelled, write_tasks
from zofo.errors import ConfigError, DataError, ZofoError
from zofo.objectives import candidate_scores
from zofo.tasks import TaskConfig, collate, encode, encode_channel, load_examples, resolve_task
from zofo.tasks.mixture import twin_key


@pytest.fixture
def root(tmp_path):
    return write_tasks(tmp_path / "tasks")


def loaded(splits=("train", "validation", "test"), **options):
    config = TaskConfig(**options)
    task = resolve_task(config)
    return task, load_examples(task, config, splits)


def test_rows_with_the_same_options_are_a_classification_and_others_a_choice(root):
    mood, examples = loaded(data=str(root / "mood"))
    assert (mood.kind, mood.metric, mood.name) == ("classification", "macro-f1", "mood")
    first = examples["test"][0]
    assert (first.prompt, first.candidates, first.gold) == ("a joy mood number 30\n", ("great", "terrible"), 0)
    pick, examples = loaded(data=str(root / "pick"))
    assert (pick.kind, pick.metric) == ("multiple-choice", "accuracy")
    assert all(
        one.candidates[one.gold] == row["output"]
        for one, row in zip(examples["test"], choosing("pick", 6, 30), strict=True)
    )
    assert len({one.candidates for one in examples["test"]}) == 6


def test_tasks_json_says_that_a_task_with_the_same_options_is_a_question(root):
    (root / "tasks.json").write_text(json.dumps({"mood": {"type": "qa"}, "pick": {"type": "classification"}}))
    mood, examples = loaded(data=str(root / "mood"))
    assert (mood.kind, mood.metric) == ("multiple-choice", "accuracy")
    assert examples["train"][0].candidates == ("great", "terrible")
    with pytest.raises(DataError, match=r"train\.jsonl:2: a classification, .* but this one has 'the dull 1'"):
        resolve_task(TaskConfig(data=str(root / "pick")))


def test_an_output_is_matched_by_its_text_and_never_as_a_number_or_letter(tmp_path):
    rows = [{"task": "t", "input": f"{i}", "output": o, "options": ["1", "0", f"x{i}"]} for i, o in enumerate("10" * 9)]
    rows += [
        {"task": "t", "input": "b", "output": "B", "options": ["C", "B", "A", "B"]}
    ]  # an option may be there twice
    write_rows(tmp_path / "t" / "train.jsonl", rows)
    _, examples = loaded(["train"], data=str(tmp_path / "t"), sizes={"validation": 1, "test": 1})
    for one in examples["train"]:
        assert one.candidates[one.gold] == ("B" if one.prompt == "b\n" else "01"[int(one.prompt) % 2 == 0])


def test_demonstrations_are_of_the_same_task_in_metaicls_form(root):
    _, examples = loaded(["test"], data=str(root / "mood"), demonstrations=2, demonstration_sets="fixed")
    *solved, asked = examples["test"][0].prompt.split("\n\n\n")
    assert asked == "a joy mood number 30\n"
    assert len(solved) == 2
    assert len({one.prompt[: len(one.prompt) - len(asked)] for one in examples["test"][::2]}) == 1
    assert all(text.split("\n")[1] == ("great" if text.startswith("a joy") else "terrible") for text in solved)


def test_shots_are_so_many_of_each_label_by_split_seed(root):
    draws = []
    for seed in (0, 0, 1):
        _, examples = loaded(["train"], data=str(root / "tone"), shots=3, split_seed=seed)
        golds = [one.gold for one in examples["train"]]
        assert sorted(golds) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        draws.append([one.where for one in examples["train"]])
    assert draws[0] == draws[1] != draws[2]
    assert len(loaded(["train"], data=str(root / "pick"), shots=4)[1]["train"]) == 4
    with pytest.raises(DataError, match="task.shots is 90, but train of 'tone' has .* rows with the label 'good'"):
        loaded(["train"], data=str(root / "tone"), shots=90)


def test_several_tasks_keep_their_own_rows_options_and_demonstrations(root):
    names = ["mood", "tone", "pick"]
    task, examples = loaded(data=str(root), tasks=names, demonstrations=1, sizes={"validation": 3})
    assert task.metric == "accuracy"
    for split, rows in (("train", 27), ("validation", 3), ("test", 6)):
        assert [one.task for one in examples[split]] == [name for name in names for _ in range(rows)]
    for one in examples["train"]:
        before, asked = one.prompt.split("\n\n\n")
        assert one.task in before
        assert one.task in asked
    assert {len(one.candidates) for one in examples["train"] if one.task == "tone"} == {3}
    _, fewer = loaded(["train"], data=str(root), tasks=names, max_rows=5)
    assert len(fewer["train"]) == 15
    assert TaskConfig(data=str(root), tasks=names).max_rows == 768


def test_a_setting_file_names_the_tasks_and_those_of_zofo_can_be_among_them(root, tmp_path, data_dir):
    setting = tmp_path / "my_setting.json"
    setting.write_text(json.dumps({"train": ["mood", "pick"], "test": ["judge"]}))
    task, examples = loaded(["train"], data=str(root), setting=setting)
    assert task.name == "my_setting"
    assert {one.task for one in examples["train"]} == {"mood", "pick"}
    (root / "sst2").symlink_to(data_dir)
    _, examples = loaded(["train"], data=str(root), tasks=["sst2", "pick"])
    assert examples["train"][0].prompt.endswith(" It was")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["mood", "mood"]}, "the task 'mood' is given twice"),
        ({"tasks": ["moot", "pick"]}, "has no folder 'moot'"),
        ({"tasks": ["../mood", "pick"]}, "'../mood' is no name of a task"),
        ({"tasks": ["mood", "pick"], "unseen": ["mood"]}, "kept for the test are trained on: 'mood'\n"),
        ({"tasks": ["mood", "pick"], "unseen": ["GLUE-Mood"]}, r"'mood' \(tested as 'GLUE-Mood'\)"),
        ({"tasks": ["mood"], "template": "{{ input }}"}, "task.template has no meaning for several tasks"),
        ({"tasks": ["mood"], "setting": "x.json"}, "not both"),
        ({"setting": "missing.json"}, "cannot read 'missing.json'"),
    ],
    ids=["twice", "unknown", "escape", "same", "twin", "template", "both", "no file"],
)
def test_tasks_that_cannot_be_are_named(root, options, message):
    with pytest.raises((ZofoError, ValueError), match=message):
        loaded(["train"], data=str(root), **options)


def test_twins_are_found_by_name_and_by_their_rows_and_can_be_allowed(root):
    same = {twin_key(name) for name in ("glue-sst2", "SST-2", "sst2", "glue_sst_2")}
    assert same == {"sst2"}
    assert twin_key("superglue-rte") == twin_key("glue-rte") != twin_key("anli")
    write_rows(root / "other" / "train.jsonl", labelled("other", 6))
    write_rows(root / "other" / "test.jsonl", labelled("mood", 3, start=10))
    options = {"data": str(root), "tasks": ["mood", "pick"], "unseen": ["other"], "sizes": {"validation": 1}}
    with pytest.raises(ConfigError, match="2 training rows of 'mood' are test rows of 'other'"):
        loaded(["train"], **options)
    with pytest.raises(ConfigError, match="2 training rows of 'mood' are test rows of 'other'"):
        loaded(["train"], **options, demonstrations=2)
    assert loaded(["train"], **options, allow_overlap=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": "greatest"}, r"train\.jsonl:31: column 'output' is 'greatest', which is none of the 2 options"),
        ({"options": "great"}, r"train\.jsonl:31: column 'options' is 'great', not a list"),
        ({"options": []}, r"train\.jsonl:31: column 'options' is empty: an output in free words"),
        ({"options": ["great"]}, r"train\.jsonl:31: column 'options' has 1 choices"),
        ({"options": ["great", ["x"]]}, r"train\.jsonl:31: column 'options': choice 1"),
        ({"input": " "}, r"train\.jsonl:31: column 'input' is empty"),
        ({"output": 1}, r"train\.jsonl:31: column 'output' is 1, not a text"),
    ],
    ids=["output", "no list", "no options", "one option", "option", "input", "number"],
)
def test_a_wrong_row_is_named_by_file_and_line(root, row, message):
    path = root / "mood" / "train.jsonl"
    good = {"task": "mood", "input": "a joy", "output": "great", "options": ["great", "terrible"]}
    path.write_text(path.read_text() + json.dumps({**good, **row}) + "\n")
    with pytest.raises(DataError, match=message):
        resolve_task(TaskConfig(data=str(root / "mood")))


def test_a_task_of_one_label_wrong_json_and_a_row_of_both_splits_are_named(root):
    path = root / "mood" / "train.jsonl"
    rows = labelled("mood", 30)
    write_rows(path, [row for row in rows if row["output"] == "great"])
    with pytest.raises(DataError, match="'output' is 'great' in all 15 rows"):
        resolve_task(TaskConfig(data=str(root / "mood")))
    path.write_text(json.dumps(rows[0]) + "\n{oops\n")
    with pytest.raises(DataError, match=r"train\.jsonl:2:"):
        resolve_task(TaskConfig(data=str(root / "mood")))
    write_rows(path, [*rows, labelled("mood", 1, start=31)[0]])
    with pytest.raises(DataError, match=r"test\.jsonl:2: the same input and options as .*train\.jsonl:31"):
        loaded(data=str(root / "mood"))
    assert loaded(data=str(root / "mood"), allow_overlap=True)
    (root / "set.json").write_text('{"train": ["mood"],\n "test" []}')
    with pytest.raises(DataError, match=r"set\.json:2: not JSON"):
        resolve_task(TaskConfig(data=str(root), setting=root / "set.json"))
    (root / "set.json").write_text('{"train": "mood", "test": []}')
    with pytest.raises(DataError, match=r"set\.json: 'train' is no list of tasks"):
        resolve_task(TaskConfig(data=str(root), setting=root / "set.json"))


# as MetaICL names and writes them

# excerpts of its four setting files: the names and tasks that are unlike most
SETTINGS = {
    "class_to_class": (
        ["superglue-rte", "glue-rte", "tweet_eval-stance_hillary", "ethos-directed_vs_generalized", "trec-finegrained"],
        ["ade_corpus_v2-classification"],
        ["tweet_eval-stance_feminist", "hate_speech18", "superglue-cb", "emo", "anli"],
    ),
    "non_class_to_class": (
        ["blimp-sentential_negation_npi_licensor_present", "quartz-no_knowledge", "race-high", "superglue-multirc"],
        ["gigaword", "kilt_ay2", "xsum", "freebase_qa", "lama-google_re", "wikisql", "spider"],
        ["ethos-national_origin", "tweet_eval-hate", "dbpedia_14", "ag_news", "wiki_qa"],
    ),
    "qa_to_qa": (
        [
            "unifiedqa:squad2",
            "unifiedqa:race_string",
            "unifiedqa:winogrande_xl",
            "unifiedqa:boolq",
            "boolq",
            "numer_sense",
        ],
        ["freebase_qa", "kilt_hotpotqa", "squad-no_context", "unifiedqa:natural_questions_with_dpr_para"],
        ["unifiedqa:qasc", "qasc", "quartz-with_knowledge", "unifiedqa:ai2_science_middle", "wino_grande"],
    ),
    "non_qa_to_qa": (
        ["glue-qnli", "tweet_eval-emoji", "hatexplain", "ade_corpus_v2-classification", "dbpedia_14"],
        ["kilt_ay2", "gigaword", "wikisql", "xsum"],
        ["unifiedqa:openbookqa_with_ir", "openbookqa", "codah", "unifiedqa:mctest", "superglue-copa"],
    ),
}


def in_words(name, count, start=0):
    """Rows of a task in free words."""
    return [
        {"task": name, "input": f"{name} says {i}", "output": f"in short {i}", "options": []}
        for i in range(start, start + count)
    ]


def write_as_metaicl(root, name, rows, test, folder=None):
    """The files of a training task as its scripts call them, with the small draws beside it."""
    at = root / (folder or name)
    write_rows(at / f"{name}_16384_100_train.jsonl", rows(name, 12))
    for seed in (13, 100):
        write_rows(at / f"{name}_16_{seed}_train.jsonl", rows(name, 4, 40))
        write_rows(at / f"{name}_16_{seed}_test.jsonl", test(name, 5, 20))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tasks_of_metaicls_setting_files_can_be_trained_on(name, tmp_path):
    chosen, free, unseen = SETTINGS[name]
    for number, task in enumerate(chosen):
        rows = labelled if number % 2 else choosing
        write_as_metaicl(tmp_path, task, rows, rows, task.replace(":", "_") if number == 1 else None)
    for task in free:
        write_as_metaicl(tmp_path, task, in_words, in_words)
    for task in unseen:
        write_as_metaicl(tmp_path, task, choosing, choosing)
    setting = tmp_path / f"{name}.json"
    content = {"train": [*chosen, *free], "test": unseen, "unseen_domain_test": unseen[:1]}
    setting.write_text(json.dumps(content))
    _, examples = loaded(data=str(tmp_path), setting=setting, sizes={"validation": 2})
    assert list(dict.fromkeys(one.task for one in examples["train"])) == [*chosen, *free]
    for split, rows in (("validation", 2), ("test", 5)):
        assert [one.task for one in examples[split]] == [task for task in chosen for _ in range(rows)]
    for task in free:
        own = [one for one in examples["train"] if one.task == task]
        assert [(one.prompt, one.candidates, one.golds) for one in own] == [
            (f"{task} says {i}\n", (f"in short {i}",), (0,)) for i in range(12)
        ]
        assert not any(one.ends or one.answers for one in own)
    for task in unseen:
        assert resolve_task(TaskConfig(data=str(tmp_path / task))).kind == "multiple-choice"


def test_of_several_files_that_metaicl_wrote_the_largest_of_its_seed_is_read(tmp_path):
    write_as_metaicl(tmp_path, "mood", labelled, labelled)
    _, examples = loaded(data=str(tmp_path / "mood"), sizes={"validation": 2})
    assert len(examples["train"]) == 10
    assert "mood_16384_100_train.jsonl" in examples["train"][0].where
    assert "mood_16_100_test.jsonl" in examples["test"][0].where
    write_rows(tmp_path / "mood" / "mood_16_100_dev.jsonl", labelled("mood", 3, 60))
    write_rows(tmp_path / "mood" / "other_32_100_test.jsonl", labelled("other", 3, 80))  # of another task
    write_rows(tmp_path / "mood" / "test.jsonl", labelled("mood", 2, 90))
    _, examples = loaded(data=str(tmp_path / "mood"))
    assert {split: len(rows) for split, rows in examples.items()} == {"train": 12, "validation": 3, "test": 2}


def test_free_words_can_be_trained_on_and_nothing_else(root, tmp_path):
    words = tmp_path / "tasks" / "gigaword"
    write_rows(words / "train.jsonl", in_words("gigaword", 8))
    write_rows(words / "test.jsonl", in_words("gigaword", 3, 20))
    options = {"data": str(root), "tasks": ["mood", "gigaword"]}
    _, examples = loaded(["train"], **options, demonstrations=2)
    last = examples["train"][-1]
    assert last.prompt.count("\nin short") == 2
    assert last.candidates == ("in short 7",)
    with pytest.raises(DataError, match=r"gigaword/train\.jsonl:1: column 'options' is empty.* 8 such rows"):
        loaded(data=str(words))
    with pytest.raises(ConfigError, match="'gigaword' is kept for the test, but its rows have no options"):
        loaded(["train"], data=str(root), tasks=["mood", "pick"], unseen=["gigaword"])
    write_rows(root / "xsum" / "train.jsonl", in_words("xsum", 8))
    with pytest.raises(ConfigError, match="none of the tasks has options, so that validation"):
        loaded(["train", "validation"], data=str(root), tasks=["gigaword", "xsum"])
    write_rows(words / "train.jsonl", [*in_words("gigaword", 8), *labelled("gigaword", 2)])
    with pytest.raises(DataError, match="in free words, but other rows have options; 8 such rows"):
        loaded(["train"], **options)


def test_names_that_make_the_same_folder_and_twins_of_a_collection_are_refused(root):
    with pytest.raises(ConfigError, match="the task 'a_b' is given twice, also as 'a:b'"):
        loaded(["train"], data=str(root), tasks=["a:b", "a_b"])
    with pytest.raises(ConfigError, match=r"'mood' \(tested as 'unifiedqa:mood'\)"):
        loaded(["train"], data=str(root), tasks=["mood", "pick"], unseen=["unifiedqa:mood"])
    with pytest.raises(ConfigError, match=r"'\.\./x:y' is no name of a task"):
        loaded(["train"], data=str(root), tasks=["../x:y", "pick"])


def test_a_row_in_free_words_is_trained_on_in_both_directions(root):
    write_rows(root / "xsum" / "train.jsonl", in_words("xsum", 4))
    tokenizer = build_tokenizer()
    options = {"data": str(root), "tasks": ["xsum", "mood"]}
    for scoring, code in (("mean", encode), ("channel", encode_channel)):
        _, examples = loaded(["train"], **options, scoring=scoring)
        one = code(tokenizer, examples["train"][:1])[0].right_only()
        text = "in short 0" if scoring == "mean" else "xsum says 0"
        assert one.scored[0] == len(one.rows[0]) - one.rows[0].index(one.rows[0][-one.scored[0]])
        assert tokenizer.decode(one.rows[0][-one.scored[0] :]).strip() == text


# the other direction


@torch.no_grad()
def mean_log_likelihood(model, tokenizer, before, after):
    """Of the tokens of `after`, by hand."""
    ids = tokenizer(before + after).input_ids
    start = len(tokenizer(before).input_ids)
    log_p = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(log_p[i - 1, ids[i]].item() for i in range(start, len(ids))) / (len(ids) - start)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("demonstrations", [0, 2])
def test_channel_scores_are_the_likelihood_of_the_input_after_each_option(root, kind, demonstrations):
    tokenizer = build_tokenizer()
    model = build_model(kind, len(tokenizer), positions=256)
    for name in ("tone", "pick"):
        _, examples = loaded(["test"], data=str(root / name), scoring="channel", demonstrations=demonstrations)
        chosen = examples["test"][:3]
        batch = collate(encode_channel(tokenizer, chosen), tokenizer.pad_token_id, torch.device("cpu"))
        found = candidate_scores(model, batch)
        for one, row in zip(chosen, found, strict=True):
            assert one.before.count("\n\n\n") == demonstrations
            for option, score in zip(one.candidates, row.tolist(), strict=True):
                by_hand = mean_log_likelihood(model, tokenizer, f"{one.before}{option}\n", one.prompt.strip())
                assert score == pytest.approx(by_hand, rel=1e-4)


def test_channel_demonstrations_have_the_output_first(root):
    _, examples = loaded(["test"], data=str(root / "mood"), scoring="channel", demonstrations=2)
    one = examples["test"][0]
    for text in one.before.split("\n\n\n")[:2]:
        output, text_input = text.split("\n")
        assert output == ("great" if text_input.startswith("a joy") else "terrible")
    assert one.prompt == "a joy mood number 30\n"


def test_long_channel_rows_lose_their_oldest_demonstration_first_and_never_the_option(root):
    tokenizer = build_tokenizer()
    _, examples = loaded(["test"], data=str(root / "mood"), scoring="channel", demonstrations=2)
    whole = encode_channel(tokenizer, examples["test"][:1])[0]
    bare = encode_channel(tokenizer, [loaded(["test"], data=str(root / "mood"), scoring="channel")[1]["test"][0]])[0]
    for limit in (whole.length - 5, bare.length, bare.length - 4):
        short = encode_channel(tokenizer, examples["test"][:1], limit, truncate=True)[0]
        assert short.length == limit
        assert len(set(short.scored)) == 1
        assert short.scored[0] == whole.scored[0] - max(0, bare.length - limit)
        for kept, full, own in zip(short.rows, whole.rows, bare.rows, strict=True):
            assert kept[-short.scored[0] :] == full[-short.scored[0] :]  # the end of the input
            option = own[: len(own) - bare.scored[0]]
            assert kept[: len(kept) - short.scored[0]][-len(option) :] == option
    with pytest.raises(DataError, match="the limit is 12"):
        encode_channel(tokenizer, examples["test"][:1], 12, truncate=False)


def test_demonstrations_change_nothing_of_the_direct_form_of_other_tasks(data_dir):
    config = {"name": "sst2", "data_dir": data_dir, "demonstrations": 2}
    _, examples = loaded(["validation"], **config)
    assert examples["validation"][0].prompt.count("\n\n") == 2
    assert not examples["validation"][0].before
    assert encode(build_tokenizer(), examples["validation"][:1])[0].scored == (1, 1)
