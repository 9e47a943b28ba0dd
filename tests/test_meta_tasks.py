"""MetaICL's rows and setting files: what they become, what is refused, and scoring in the other direction."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from conftest import build_model, build_tokenizer, write_rows
from metaicl_rows import choosing, labelled, write_tasks
from zofo.errors import ConfigError, DataError, ZofoError
from zofo.objectives import candidate_scores
from zofo.tasks import TaskConfig, collate, encode, encode_channel, load_examples, packaged_text, resolve_task
from zofo.tasks.multi_task import canonical_task_name
from zofo.training import RunConfig, evaluate_run, prepare_run, read_config
from zofo.training.data_report import validate


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
    _, examples = loaded(["train"], data=str(tmp_path / "t"), split_sizes={"validation": 1, "test": 1})
    for one in examples["train"]:
        assert one.candidates[one.gold] == ("B" if one.prompt == "b\n" else "01"[int(one.prompt) % 2 == 0])


def test_demonstrations_are_of_the_same_task_in_metaicls_form(root):
    _, examples = loaded(["test"], data=str(root / "mood"), num_fewshot=2, fewshot_sampling="fixed")
    *solved, asked = examples["test"][0].prompt.split("\n\n\n")
    assert asked == "a joy mood number 30\n"
    assert len(solved) == 2
    assert len({one.prompt[: len(one.prompt) - len(asked)] for one in examples["test"][::2]}) == 1
    assert all(text.split("\n")[1] == ("great" if text.startswith("a joy") else "terrible") for text in solved)


def test_shots_are_so_many_of_each_label_by_split_seed(root):
    draws = []
    for seed in (0, 0, 1):
        _, examples = loaded(["train"], data=str(root / "tone"), train_examples_per_label=3, split_seed=seed)
        golds = [one.gold for one in examples["train"]]
        assert sorted(golds) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        draws.append([one.where for one in examples["train"]])
    assert draws[0] == draws[1] != draws[2]
    assert len(loaded(["train"], data=str(root / "pick"), train_examples_per_label=4)[1]["train"]) == 4
    assert (
        len(loaded(["test"], data=str(root / "tone"), train_examples_per_label=4)[1]["test"]) == 6
    )  # as it is scored after the run
    with pytest.raises(
        DataError, match="task.train_examples_per_label is 90, but train of 'tone' has .* rows with the label 'good'"
    ):
        loaded(["train"], data=str(root / "tone"), train_examples_per_label=90)


def test_several_tasks_keep_their_own_rows_options_and_demonstrations(root):
    names = ["mood", "tone", "pick"]
    task, examples = loaded(data=str(root), tasks=names, num_fewshot=1, split_sizes={"validation": 3})
    assert task.metric == "accuracy"
    for split, rows in (("train", 27), ("validation", 3), ("test", 6)):
        assert [one.task for one in examples[split]] == [name for name in names for _ in range(rows)]
    for one in examples["train"]:
        before, asked = one.prompt.split("\n\n\n")
        assert one.task in before
        assert one.task in asked
    assert {len(one.candidates) for one in examples["train"] if one.task == "tone"} == {3}
    _, fewer = loaded(data=str(root), tasks=names, max_rows=5)
    assert [len(fewer[split]) for split in ("train", "validation", "test")] == [15, 48, 18]  # 16 and 6 are not cut
    assert TaskConfig(data=str(root), tasks=names).max_rows == 768


@pytest.mark.parametrize("setting", [False, True])
def test_rows_of_each_task_do_not_follow_a_run_whose_tasks_are_taken_back(root, tmp_path, setting):
    given = {"data": str(root), "tasks": ["mood", "pick"]}
    if setting:
        (tmp_path / "set.json").write_text(json.dumps({"train": ["mood", "pick"], "test": []}))
        given = {"data": str(root), "metaicl_setting": str(tmp_path / "set.json")}
    file = tmp_path / "config.yaml"
    file.write_text(RunConfig(task=given).to_yaml())
    assert yaml.safe_load(file.read_text())["task"]["max_rows"] == 768  # as every run before has written it
    assert read_config(file).task.max_rows == 768
    back = ["task.tasks=[]", "task.metaicl_setting=null", f"task.data={root / 'judge'}"]
    assert read_config(file, back).task.max_rows is None
    assert read_config(file, [*back, "task.max_rows=7"]).task.max_rows == 7
    assert read_config(file, ["task.max_rows=7", *back]).task.max_rows == 7
    file.write_text(RunConfig(task={"data": str(root / "mood"), "max_rows": 9}).to_yaml())
    assert read_config(file, back).task.max_rows == 9  # of one task it stays


def test_several_tasks_are_validated_with_those_of_zofo_among_them(root, data_dir):
    (root / "sst2").symlink_to(data_dir)
    report = validate(RunConfig(task={"data": str(root), "tasks": ["sst2", "pick"]}))
    assert report.splits["train"].rows == 60 - 16 + 30 - 16
    assert [prompt for prompt, _, _ in report.example] == ["default"]
    assert report.example[0][1].endswith(" It was")


def test_a_setting_file_names_the_tasks_and_those_of_zofo_can_be_among_them(root, tmp_path, data_dir):
    setting = tmp_path / "my_setting.json"
    setting.write_text(json.dumps({"train": ["mood", "pick"], "test": ["judge"]}))
    task, examples = loaded(["train"], data=str(root), metaicl_setting=setting)
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
        ({"tasks": ["mood", "pick"], "held_out_tasks": ["mood"]}, "reserved for testing are trained on: 'mood'\n"),
        ({"tasks": ["mood", "pick"], "held_out_tasks": ["GLUE-Mood"]}, r"'mood' \(tested as 'GLUE-Mood'\)"),
        ({"tasks": ["mood"], "template": "{{ input }}"}, "task.template has no meaning for several tasks"),
        ({"tasks": ["mood"], "metaicl_setting": "x.json"}, "not both"),
        ({"metaicl_setting": "missing.json"}, "cannot read 'missing.json'"),
    ],
    ids=["twice", "unknown", "escape", "same", "twin", "template", "both", "no file"],
)
def test_tasks_that_cannot_be_are_named(root, options, message):
    with pytest.raises((ZofoError, ValueError), match=message):
        loaded(["train"], data=str(root), **options)


def test_a_data_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ZofoError, match=f"there is no data folder '{tmp_path / 'nowhere'}'") as refused:
        loaded(["train"], data=str(tmp_path / "nowhere"), tasks=["mood", "pick"])
    assert "task.data=DIR" in refused.value.hint


def test_twins_are_found_by_name_and_by_their_rows_and_can_be_allowed(root):
    same = {canonical_task_name(name) for name in ("glue-sst2", "SST-2", "sst2", "glue_sst_2")}
    assert same == {"sst2"}
    assert canonical_task_name("superglue-rte") == canonical_task_name("glue-rte") != canonical_task_name("anli")
    write_rows(root / "other" / "train.jsonl", labelled("other", 6))
    write_rows(root / "other" / "test.jsonl", labelled("mood", 3, start=10))
    options = {
        "data": str(root),
        "tasks": ["mood", "pick"],
        "held_out_tasks": ["other"],
        "split_sizes": {"validation": 1},
    }
    with pytest.raises(ConfigError, match="2 training rows of 'mood' are test rows of 'other'"):
        loaded(["train"], **options)
    with pytest.raises(ConfigError, match="2 training rows of 'mood' are test rows of 'other'"):
        loaded(["train"], **options, num_fewshot=2)
    assert loaded(["train"], **options, allow_overlap=True)


@pytest.mark.parametrize("demonstrations", [0, 2])
def test_each_of_training_rows_that_are_there_twice_is_found_among_the_test_rows_of_another_task(root, demonstrations):
    rows = labelled("mood", 30)
    write_rows(root / "mood" / "train.jsonl", [*rows, rows[4]])
    write_rows(root / "judge" / "test.jsonl", [*labelled("judge", 3, 30), rows[4]])
    options = {"data": str(root), "tasks": ["pick", "mood"], "held_out_tasks": ["judge"], "num_fewshot": demonstrations}
    options["draw"] = "plain"  # a stratified one keeps both in one split
    found = set()
    for seed in range(12):  # either place, both or neither may be drawn for validation
        draw = {**options, "split_sizes": {"validation": 15}, "split_seed": seed}
        _, examples = loaded(["train"], **draw, allow_overlap=True)
        places = {one.where.rpartition(":")[2] for one in examples["train"] if one.task == "mood"}
        count = len(drawn := {"5", "31"} & places)
        found.add(frozenset(drawn))
        if count:
            with pytest.raises(ConfigError, match=f"{count} training rows of 'mood' are test rows of 'judge'"):
                loaded(["train"], **draw)
        else:
            assert loaded(["train"], **draw)
    assert len(found) == 4


def saved_run(folder, task, **more):
    """A run's folder as far as it says what the run was trained on."""
    folder.mkdir()
    (folder / "config.yaml").write_text(RunConfig(task=task, **more).with_absolute_paths().to_yaml())
    (folder / "environment.json").write_text('{"model_hash": "sha256:0"}')
    return folder


def begun(start, **task):
    """What is loaded for a run that starts from another; its model is none."""
    return prepare_run(RunConfig(model="no/such-model", task=task, init_from=start))


def test_a_run_on_several_tasks_is_not_tested_on_one_of_them(root, tmp_path):
    trained = {"data": str(root), "tasks": ["unifiedqa:mood", "pick"], "held_out_tasks": ["judge"]}
    (root / "mood").rename(root / "unifiedqa:mood")
    run = saved_run(tmp_path / "meta", trained)
    message = r"the run '.*meta' was trained on tasks that it is to be tested on: {}\n.*task\.allow_overlap=true"
    back = ["task.tasks=[]", "task.metaicl_setting=null"]
    mood = message.format("'unifiedqa:mood'")
    with pytest.raises(ConfigError, match=mood):
        begun(run, data=str(root / "unifiedqa:mood"))
    for split in ("validation", "test"):
        with pytest.raises(ConfigError, match=mood):
            evaluate_run(run, [*back, f"task.data={json.dumps(str(root / 'unifiedqa:mood'))}"], split)
    # by another name, as one file, and as one of several
    write_rows(tmp_path / "Mood.jsonl", labelled("other", 30, 90))
    twin = message.format(r"'unifiedqa:mood' \(tested as 'Mood'\)")
    with pytest.raises(ConfigError, match=twin):
        begun(run, data=str(tmp_path / "Mood.jsonl"))
    for file in ("train", "test"):
        with pytest.raises(ConfigError, match=message.format("'pick'")):
            begun(run, data=str(root / "pick" / f"{file}.jsonl"))
    with pytest.raises(ConfigError, match=message.format("'pick'")):
        evaluate_run(run, ["task.tasks=[judge,pick]", "task.held_out_tasks=[]"])
    with pytest.raises(ConfigError, match=message.format("'pick'")):
        begun(run, data=str(root), tasks=["which", "tone"], held_out_tasks=["pick"])
    # what a run that it started from was trained on, and a setting file
    second = saved_run(tmp_path / "second", {"data": str(root / "judge")}, init_from=run)
    with pytest.raises(ConfigError, match=message.format("'pick'")):
        begun(second, data=str(root / "pick"))
    setting = tmp_path / "set.json"
    setting.write_text(json.dumps({"train": ["pick"], "test": []}))
    third = saved_run(tmp_path / "third", {"data": str(root), "metaicl_setting": str(setting)})
    with pytest.raises(ConfigError, match=r"the run '.*third' was .*: 'pick'\n"):
        begun(third, data=str(root / "pick"))
    setting.unlink()
    with pytest.raises(ConfigError, match=r"not known which tasks the run '.*third' was trained on: cannot read '"):
        begun(third, data=str(root / "judge"))
    # an unseen task, more training on the same tasks, and what is allowed get as far as what the run left
    for task in (
        {"data": str(root / "judge")},
        trained,
        {"data": str(root / "pick"), "allow_overlap": True},
    ):
        with pytest.raises(ZofoError, match="has no summary"):
            begun(run, **task)
    model = ["model=no/such-model"]
    for given in (
        [],
        [*back, f"task.data={root / 'judge'}"],
        [*back, f"task.data={root / 'pick'}", "task.allow_overlap=true"],
    ):
        with pytest.raises(ZofoError, match="no/such-model"):
            evaluate_run(run, [*model, *given], "test")


def test_a_packaged_task_that_a_run_was_trained_on_is_known_by_the_name_in_a_task_file(root, tmp_path, data_dir):
    (root / "sst2").symlink_to(data_dir)
    run = saved_run(tmp_path / "meta", {"data": str(root), "tasks": ["sst2", "pick"]})
    file = tmp_path / "mine.yaml"
    file.write_text(packaged_text("sst2"))
    for name in ("sst2", str(file)):
        with pytest.raises(ConfigError, match=r"that it is to be tested on: 'sst2'\n"):
            begun(run, name=name, data_dir=data_dir)


@pytest.mark.parametrize("demonstrations", [0, 2])
def test_rows_that_a_run_was_trained_on_are_not_tested_under_another_name(root, tmp_path, demonstrations):
    write_rows(root / "other" / "train.jsonl", labelled("other", 12))
    write_rows(root / "other" / "test.jsonl", [*labelled("mood", 3, 10), *labelled("other", 3, 40)])
    trained = {"data": str(root), "tasks": ["pick", "mood"], "num_fewshot": demonstrations}
    run = saved_run(tmp_path / "meta", {**trained, "split_sizes": {"validation": 1}})  # one of the three rows
    message = r"2 training rows of 'mood' in the run '.*meta' are test rows of 'other'.*\n.*task\.allow_overlap=true"
    with pytest.raises(ConfigError, match=message):
        begun(run, data=str(root / "other"))
    with pytest.raises(ConfigError, match=message):
        evaluate_run(run, ["task.tasks=[]", f"task.data={root / 'other'}", "task.num_fewshot=0"], "test")
    few = saved_run(tmp_path / "few", {**trained, "max_rows": 3})  # which are others
    with pytest.raises(ZofoError, match="has no summary"):
        begun(few, data=str(root / "other"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": "greatest"}, r"train\.jsonl:31: column 'output' is 'greatest', which is none of the 2 options"),
        ({"options": "great"}, r"train\.jsonl:31: column 'options' is 'great', not a list"),
        ({"options": []}, r"train\.jsonl:31: column 'options' is empty: an output in free text"),
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
    for splits in (["train"], ["test"], ["train", "validation"]):  # as `train` and then `eval` read them
        with pytest.raises(DataError, match=r"test\.jsonl:2: the same input and options as .*train\.jsonl:31"):
            loaded(splits, data=str(root / "mood"))
        assert loaded(splits, data=str(root / "mood"), allow_overlap=True)
    several = {"data": str(root), "tasks": ["mood", "pick"], "split_sizes": {"validation": 1}}
    assert loaded(["train", "validation"], **several)  # whose own test nobody asks for
    with pytest.raises(DataError, match=r"test\.jsonl:2: the same input and options as .*train\.jsonl:31"):
        loaded(["test"], **several)
    assert loaded(data=str(root / "mood"), allow_overlap=True)
    (root / "set.json").write_text('{"train": ["mood"],\n "test" []}')
    with pytest.raises(DataError, match=r"set\.json.: .* line 2 column 9"):
        resolve_task(TaskConfig(data=str(root), metaicl_setting=root / "set.json"))
    (root / "set.json").write_text('{"train": "mood", "test": []}')
    with pytest.raises(DataError, match=r"set\.json: 'train' is no list of tasks"):
        resolve_task(TaskConfig(data=str(root), metaicl_setting=root / "set.json"))


def test_a_choice_among_the_same_options_with_one_answer_is_refused_and_other_choices_are_not(root):
    (root / "tasks.json").write_text(json.dumps({"mood": {"type": "qa"}}))
    same = [row for row in labelled("mood", 30) if row["output"] == "great"]
    turned = [{**row, "options": row["options"][::-1] if i % 2 else row["options"]} for i, row in enumerate(same)]
    for options in ({"data": str(root / "mood")}, {"data": str(root), "tasks": ["pick", "mood"]}):
        write_rows(root / "mood" / "train.jsonl", turned)
        with pytest.raises(
            DataError, match=r"train\.jsonl:1: column 'output' is 'great' in all 15 rows.*\n.*two labels"
        ):
            loaded(["train"], **options, split_sizes={"validation": 1})
        write_rows(root / "mood" / "train.jsonl", [*turned, {**same[0], "input": "x", "output": "terrible"}])
        assert loaded(
            ["train"], **options, max_rows=2, split_sizes={"validation": 1}
        )  # a few may be of one label by chance
    always = [{**row, "output": row["options"][0]} for row in choosing("pick", 12)]
    write_rows(root / "pick" / "train.jsonl", always)
    for most in (None, 1):
        assert loaded(["train"], data=str(root / "pick"), max_rows=most, split_sizes={"validation": 1})


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
    """Rows of a task in free text."""
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
    _, examples = loaded(data=str(tmp_path), metaicl_setting=setting, split_sizes={"validation": 2})
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
    _, examples = loaded(data=str(tmp_path / "mood"), split_sizes={"validation": 2})
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
    _, examples = loaded(["train"], **options, num_fewshot=2)
    last = examples["train"][-1]
    assert last.prompt.count("\nin short") == 2
    assert last.candidates == ("in short 7",)
    with pytest.raises(DataError, match=r"gigaword/train\.jsonl:1: column 'options' is empty.* 8 such rows"):
        loaded(data=str(words))
    with pytest.raises(ConfigError, match="'gigaword' is reserved for testing, but its rows have no options"):
        loaded(["train"], data=str(root), tasks=["mood", "pick"], held_out_tasks=["gigaword"])
    write_rows(root / "xsum" / "train.jsonl", in_words("xsum", 8))
    with pytest.raises(ConfigError, match="none of the tasks has options, so that validation"):
        loaded(["train", "validation"], data=str(root), tasks=["gigaword", "xsum"])
    write_rows(words / "train.jsonl", [*in_words("gigaword", 8), *labelled("gigaword", 2)])
    with pytest.raises(DataError, match="in free text, but other rows have options; 8 such rows"):
        loaded(["train"], **options)


def test_names_that_make_the_same_folder_and_twins_of_a_collection_are_refused(root):
    with pytest.raises(ConfigError, match="the task 'a_b' is given twice, also as 'a:b'"):
        loaded(["train"], data=str(root), tasks=["a:b", "a_b"])
    with pytest.raises(ConfigError, match=r"'mood' \(tested as 'unifiedqa:mood'\)"):
        loaded(["train"], data=str(root), tasks=["mood", "pick"], held_out_tasks=["unifiedqa:mood"])
    with pytest.raises(ConfigError, match=r"'\.\./x:y' is no name of a task"):
        loaded(["train"], data=str(root), tasks=["../x:y", "pick"])


def test_a_row_in_free_words_is_trained_on_in_both_directions(root):
    write_rows(root / "xsum" / "train.jsonl", in_words("xsum", 4))
    tokenizer = build_tokenizer()
    options = {"data": str(root), "tasks": ["xsum", "mood"]}
    for scoring, code in (("mean", encode), ("channel", encode_channel)):
        _, examples = loaded(["train"], **options, scoring=scoring)
        one = code(tokenizer, examples["train"][:1])[0].gold_only()
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
        _, examples = loaded(["test"], data=str(root / name), scoring="channel", num_fewshot=demonstrations)
        chosen = examples["test"][:3]
        batch = collate(encode_channel(tokenizer, chosen), tokenizer.pad_token_id, torch.device("cpu"))
        found = candidate_scores(model, batch)
        for one, row in zip(chosen, found, strict=True):
            assert one.before.count("\n\n\n") == demonstrations
            for option, score in zip(one.candidates, row.tolist(), strict=True):
                by_hand = mean_log_likelihood(model, tokenizer, f"{one.before}{option}\n", one.prompt.strip())
                assert score == pytest.approx(by_hand, rel=1e-4)


def test_channel_demonstrations_have_the_output_first(root):
    _, examples = loaded(["test"], data=str(root / "mood"), scoring="channel", num_fewshot=2)
    one = examples["test"][0]
    for text in one.before.split("\n\n\n")[:2]:
        output, text_input = text.split("\n")
        assert output == ("great" if text_input.startswith("a joy") else "terrible")
    assert one.prompt == "a joy mood number 30\n"


def test_long_channel_rows_lose_their_oldest_demonstration_first_and_never_the_option(root):
    tokenizer = build_tokenizer()
    _, examples = loaded(["test"], data=str(root / "mood"), scoring="channel", num_fewshot=2)
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
    config = {"name": "sst2", "data_dir": data_dir, "num_fewshot": 2}
    _, examples = loaded(["validation"], **config)
    assert examples["validation"][0].prompt.count("\n\n") == 2
    assert not examples["validation"][0].before
    assert encode(build_tokenizer(), examples["validation"][:1])[0].scored == (1, 1)
