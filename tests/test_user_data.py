"""Rows of a user's own through the command line: checked, shown, trained on, scored, and asked about."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pytest
import transformers

from conftest import build_model, build_tokenizer, review_rows, with_soak, write_rows
from zofo.errors import DataError, ModelError
from zofo.tasks import resolve_task
from zofo.training import RunConfig, RunFolder
from zofo.training.data_module import check_every_split, prepare_run

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NOWHERE = "model=no/such-model"  # nothing is loaded where a mistake is found before the model


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    own = build_tokenizer()
    build_model("llama", len(own), seed=2, positions=256).save_pretrained(folder / "plain")
    own.save_pretrained(folder / "plain")
    head = build_model("gpt2", len(own), head=transformers.AutoModelForSequenceClassification, positions=256)
    head.save_pretrained(folder / "head")
    own.save_pretrained(folder / "head")
    build_model("llama", len(own), seed=2, positions=256).save_pretrained(folder / "chat")
    own.chat_template = TEMPLATE
    own.save_pretrained(folder / "chat")
    return folder


def labelled(count: int, text: str = "text", label: str = "label", start: int = 0) -> list[dict[str, str]]:
    return [{text: row["sentence"], label: ("bad", "good")[row["label"]]} for row in review_rows(count, start)]


def write_csv(path: Path, rows: list[dict[str, str]], separator: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def questions(count: int) -> list[dict[str, object]]:
    return [{"prompt": f"Is film {i} good ?", "completion": f"yes , film {i} is great"} for i in range(count)]


def choices(count: int) -> list[dict[str, object]]:
    return [
        {"question": f"film {i} is", "choices": ["warm", "dull", f"a joy {i}"], "answer": i % 3} for i in range(count)
    ]


def chats(count: int) -> list[dict[str, object]]:
    return [
        {
            "messages": [
                {"role": "system", "content": "an honest picture"},
                {"role": "user", "content": f"was film {i} good ?"},
                {"role": "assistant", "content": f"great , film {i}"},
            ]
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_csv(folder / "labels.csv", labelled(30))
    write_csv(folder / "labels.tsv", labelled(30), "\t")
    write_csv(folder / "blanks.csv", labelled(30, "my text", "the label"))
    write_rows(folder / "questions.jsonl", questions(24))
    write_rows(folder / "choices.jsonl", choices(24))
    write_rows(folder / "chats.jsonl", chats(24))
    write_csv(folder / "split" / "train.csv", labelled(20))
    write_csv(folder / "split" / "dev.csv", labelled(6, start=40))
    (folder / "array.json").write_text(json.dumps(labelled(30)), encoding="utf-8")
    return folder


MEZO = ("method=mezo", "method.batch_size=4", "training.steps=5")


def cells(text: str) -> dict:
    return json.loads(text)


# all verbs, for each format

FORMATS = {  # file -> kind, scores, the first row's right answer as it is scored, model
    "labels.csv": ("classification", ["accuracy", "macro-f1"], "plain"),
    "labels.tsv": ("classification", ["accuracy", "macro-f1"], "plain"),
    "array.json": ("classification", ["accuracy", "macro-f1"], "plain"),
    "questions.jsonl": ("generation", ["token-f1", "exact-match", "text-match"], "plain"),
    "choices.jsonl": ("multiple-choice", ["accuracy"], "plain"),
    "chats.jsonl": ("generation", ["token-f1", "exact-match", "text-match"], "chat"),
}
COUNTS = {
    "labels": (20, 5, 5),
    "array": (20, 5, 5),
    "questions": (16, 4, 4),
    "choices": (16, 4, 4),
    "chats": (16, 4, 4),
}


@pytest.mark.parametrize("file", FORMATS)
def test_each_format_is_checked_without_a_model(run_zofo, data, file):
    kind, scores, _ = FORMATS[file]
    code, out, err = run_zofo("validate", "--data", data / file, "--json")
    assert code == 0, err
    report = cells(out)
    assert report["task"]["name"] == file.partition(".")[0]
    assert (report["task"]["kind"], report["task"]["scores"]) == (kind, scores)
    assert file in report["task"]["about"]
    counts = tuple(report["splits"][split]["rows"] for split in ("train", "validation", "test"))
    assert counts == COUNTS[file.partition(".")[0]]
    if kind == "classification":
        right = [report["splits"][split]["right"] for split in ("train", "validation", "test")]
        assert all(sum(one.values()) == count for one, count in zip(right, counts, strict=True))
        assert {name for one in right for name in one} == {"bad", "good"}
        for split, one in zip(("train", "validation"), right, strict=False):
            majority = max(one.values()) / sum(one.values())
            assert report["splits"][split]["majority"] == pytest.approx(majority)
    code, out, _ = run_zofo("validate", "--data", data / file, NOWHERE)
    assert code == 0
    assert out.startswith(f"{file.partition('.')[0]}: {kind}, scored by {', '.join(scores)}\n")
    assert f"train: {counts[0]} rows; majority " in out
    assert out.endswith("every row can be used\n")


@pytest.mark.parametrize("file", with_soak(FORMATS, {"labels.csv", "questions.jsonl", "chats.jsonl"}))
def test_each_format_goes_through_all_verbs(run_zofo, models, data, tmp_path, file):
    kind, scores, model = FORMATS[file]
    counts = COUNTS[file.partition(".")[0]]
    given = [f"model={models / model}", "--data", data / file]
    code, out, err = run_zofo("preview", *given, "--json", "--rows", "2")
    assert code == 0, err
    seen = cells(out)
    assert seen["count"] == counts[0]
    assert len(seen["examples"]) == 2
    for example in seen["examples"]:
        assert file in example["where"]
        assert sum(right for _, _, right in example["candidates"]) == 1
    first = seen["examples"][0]
    width = {"classification": 2, "multiple-choice": 3, "generation": 1}[kind]
    assert len(first["candidates"]) == width
    code, out, err = run_zofo("train", *given, *MEZO, f"output_dir={tmp_path / 'run'}")
    assert code == 0, err
    summary = RunFolder.open(tmp_path / "run").summary
    assert (summary["metric"], summary["queries"], summary["steps"]) == (scores[0], 5 * 2 * 4, 5)
    assert summary["task"] == file.partition(".")[0]
    assert f"{scores[0]} {100 * summary[scores[0]]:.1f} % on validation" in out
    code, out, err = run_zofo("eval", tmp_path / "run", "--json")
    assert code == 0, err
    found = cells(out)
    assert set(found) == {"split", "rows", *scores, "loss", "majority"}
    assert {key: found[key] for key in scores} == {key: summary[key] for key in scores}
    assert found["loss"] == pytest.approx(summary["loss"], abs=1e-5)
    asked = {
        "multiple-choice": json.dumps({"question": "film 3 is", "choices": ["a joy", "dull"]}),
        "generation": "was it good ?",
        "classification": "a joy from start to finish",
    }[kind]
    code, out, err = run_zofo("predict", tmp_path / "run", asked, "--json")
    assert code == 0, err
    answer = cells(out)
    assert answer["text"] == asked
    if kind == "classification":
        assert (answer["label"], answer["answer"]) in (("bad", " bad"), ("good", " good"))
    elif kind == "multiple-choice":
        assert (answer["label"], answer["answer"]) in ((0, " a joy"), (1, " dull"))
    else:
        assert answer["label"] == answer["answer"]
        assert answer["probability"] is None
    code, out, _ = run_zofo("predict", tmp_path / "run", asked)
    assert code == 0
    assert out.rstrip("\n").endswith(asked)


def test_answers_that_are_all_numbers_are_scored_as_numbers(run_zofo, tmp_path):
    rows = [{"prompt": f"{n} - 9 is", "completion": str(n - 9)} for n in range(12)]
    write_rows(tmp_path / "sums.jsonl", rows)
    code, out, err = run_zofo("validate", "--data", tmp_path / "sums.jsonl")
    assert code == 0, err
    assert out.startswith("sums: generation, scored by number-match, exact-match, token-f1\n")
    assert "answers that are numbers" in out
    write_rows(tmp_path / "sums.jsonl", [*rows, {"prompt": "0 - 9 is", "completion": "less"}])
    assert "scored by token-f1, exact-match, text-match" in run_zofo("validate", "--data", tmp_path / "sums.jsonl")[1]


def test_the_label_that_f1_is_of_is_named_and_can_be_chosen(run_zofo, models, tmp_path):
    """Two thirds are legit: always to answer that is best for its own F1, and of no use for that of fraud."""
    rows = [{"text": f"payment {n} of today", "label": "fraud" if n % 3 == 0 else "legit"} for n in range(60)]
    write_csv(tmp_path / "mail.csv", rows)
    of_one = ["--data", tmp_path / "mail.csv", "task.metric=f1"]
    code, out, err = run_zofo("validate", *of_one)
    assert code == 0, err
    assert "scored by f1 of 'legit', macro-f1" in out
    assert "; majority 80." in out
    code, out, err = run_zofo("validate", *of_one, "task.positive_label=fraud", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["task"]["scores"][0] == "f1 of 'fraud'"
    for found in report["splits"].values():  # of always answering fraud, which is not the most frequent
        positives, rows = found["right"]["fraud"], found["rows"]
        assert found["majority"] == pytest.approx(2 * positives / (positives + rows))
    short = [f"model={models / 'plain'}", "method=first-order", "method.batch_size=4", "training.steps=1"]
    code, out, err = run_zofo("train", *of_one, *short, "task.positive_label=fraud", f"output_dir={tmp_path / 'run'}")
    assert code == 0, err
    assert "f1 of 'fraud' " in out
    assert "after 1 steps  f1 of 'fraud'" in err
    code, out, err = run_zofo("eval", tmp_path / "run")
    assert code == 0, err
    assert out.startswith("f1 of 'fraud' ")
    code, out, err = run_zofo("eval", tmp_path / "run", "task.positive_label=legit")
    assert code == 0, err
    assert out.startswith("f1 of 'legit' ")
    code, _, err = run_zofo("validate", *of_one, "task.positive_label=spam")
    assert code == 2
    assert "positive_label 'spam' is no label; known: fraud, legit" in err
    code, _, err = run_zofo("validate", *of_one, "task.positive_label=yes")
    assert code == 2
    assert "a word such as yes is one to YAML: write " in err


def test_what_is_asked_of_each_format(run_zofo, models, data):
    def shown(file: str, *more: str) -> dict:
        model = FORMATS.get(file, ("", [], "plain"))[2]
        code, out, err = run_zofo("preview", f"model={models / model}", "--data", data / file, *more, "--json")
        assert code == 0, err
        return cells(out)["examples"][0]

    by_line = {f"labels.csv:{number}": row for number, row in enumerate(labelled(30), start=2)}
    one = shown("labels.csv")
    row = by_line[Path(one["where"]).name]
    assert one["prompt"] == f"{row['text']}\nLabel:"
    assert [(text, right) for text, _, right in one["candidates"]] == [
        (" bad", row["label"] == "bad"),
        (" good", row["label"] == "good"),
    ]
    one = shown("choices.jsonl")
    row = choices(24)[int(one["where"].rpartition(":")[2]) - 1]
    assert one["prompt"] == f"{row['question']}\nAnswer:"
    assert [text for text, _, right in one["candidates"] if right] == [f" {row['choices'][row['answer']]}"]
    one = shown("questions.jsonl")
    row = questions(24)[int(one["where"].rpartition(":")[2]) - 1]
    assert one["prompt"] == row["prompt"]
    assert one["candidates"][0][0] == f" {row['completion']}</s>"  # the model's own end of text ends an answer
    one = shown("chats.jsonl")
    system, user, answer = chats(24)[int(one["where"].rpartition(":")[2]) - 1]["messages"]
    assert one["prompt"] == f"<|system|>{system['content']}\n<|user|>{user['content']}\n<|assistant|>"
    assert one["candidates"][0][0] == answer["content"] + "</s>"  # this template ends no answer: the model does


def test_a_chat_is_asked_by_a_text_by_turns_or_by_a_row(run_zofo, models, data, tmp_path):
    run = tmp_path / "run"
    options = ["method=zero-shot", f"output_dir={run}"]
    assert run_zofo("train", f"model={models / 'chat'}", "--data", data / "chats.jsonl", *options)[0] == 0
    turns = [{"role": "user", "content": "was it good ?"}]
    system = {"role": "system", "content": "an honest picture"}  # which a text gets: all chats of the run begin with it
    asked = ["was it good ?", json.dumps([system, *turns]), json.dumps({"messages": [system, *turns]})]
    _, out, err = run_zofo("predict", run, *asked, "--json")
    assert "warning" not in err
    answers = [cells(line)["answer"] for line in out.splitlines()]
    assert len(answers) == 3
    assert len(set(answers)) == 1
    more = [{"role": "system", "content": "dull and lifeless"}, *turns]
    _, out, _ = run_zofo("predict", run, json.dumps(more), "--json")
    assert cells(out)["answer"] != answers[0]
    code, _, err = run_zofo("predict", run, json.dumps([{"role": "robot", "content": "a"}]))
    assert code == 2
    assert "text 1: column 'messages': turn 1 has the role 'robot'" in err


def test_a_chat_needs_a_chat_template(run_zofo, models, data, tmp_path):
    code, _, err = run_zofo(
        "train", f"model={models / 'plain'}", "--data", data / "chats.jsonl", f"output_dir={tmp_path / 'r'}"
    )
    assert code == 2
    assert "a chat, but the model's tokenizer has no chat template" in err
    assert not (tmp_path / "r").exists()


def test_turns_that_the_models_template_refuses_are_named(run_zofo, models, data, tmp_path):
    """As those of models that know no system turn."""
    own = transformers.AutoTokenizer.from_pretrained(models / "chat")
    own.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}" + TEMPLATE
    )
    folder = tmp_path / "strict"
    build_model("llama", len(own), seed=2, positions=256).save_pretrained(folder)
    own.save_pretrained(folder)
    code, _, err = run_zofo("preview", f"model={folder}", "--data", data / "chats.jsonl")
    assert code == 2
    assert "chats.jsonl:" in err
    assert "the model's chat template refuses the turns: no system turns here" in err
    assert "hint: fix the row" in err


def test_the_white_space_of_a_completion_is_kept(run_zofo, models, tmp_path):
    rows = [{"prompt": f"def f{i}():", "completion": f"\n    a = {i}\n    return a\n"} for i in range(12)]
    write_rows(tmp_path / "code.jsonl", rows)
    seen = cells(run_zofo("preview", f"model={models / 'plain'}", "--data", tmp_path / "code.jsonl", "--json")[1])
    number = int(seen["examples"][0]["where"].rpartition(":")[2]) - 1
    assert seen["examples"][0]["candidates"][0][0] == rows[number]["completion"] + "</s>"
    assert seen["notes"] == []


def test_what_is_unusual_about_tokens_is_counted_and_said(run_zofo, models, tmp_path):
    rows = [
        {"prompt": f"what ends text {i} ?", "completion": "it is </s> , I think" if i % 2 else "it"} for i in range(12)
    ]
    write_rows(tmp_path / "spelt.jsonl", rows)
    model = f"model={models / 'plain'}"
    for command in ("preview", "validate"):
        code, out, err = run_zofo(command, model, "--data", tmp_path / "spelt.jsonl")
        assert code == 0, err
        assert "rows spell control tokens of the model, which are read as text; the first is " in out
    assert "control tokens" not in run_zofo("validate", "--data", tmp_path / "spelt.jsonl")[1]  # of no model


# splits


def test_a_folder_with_train_and_dev_files(run_zofo, models, data, tmp_path):
    code, out, err = run_zofo("validate", "--data", data / "split", "--json")
    assert code == 0, err
    splits = cells(out)["splits"]
    assert splits["validation"] == {"rows": 6, "right": {"bad": 3, "good": 3}, "majority": 0.5}
    assert splits["train"]["rows"] + splits["test"]["rows"] == 20  # test is drawn from train, which keeps the rest
    seen = cells(
        run_zofo("preview", f"model={models / 'plain'}", "--data", data / "split", "--split", "validation", "--json")[1]
    )
    assert [example["where"].rpartition("/")[2] for example in seen["examples"]] == [
        "dev.csv:2",
        "dev.csv:3",
        "dev.csv:4",
    ]
    code, _, err = run_zofo(
        "train", f"model={models / 'plain'}", "--data", data / "split", *MEZO, f"output_dir={tmp_path / 'r'}"
    )
    assert code == 0, err
    assert RunFolder.open(tmp_path / "r").summary["evaluation"]["queries"] == 6
    for split in ("train", "validation", "test"):
        assert run_zofo("eval", tmp_path / "r", "--split", split)[0] == 0


def saved_reviews(names=("bad", "good")) -> datasets.Dataset:
    rows = review_rows(24)
    columns = {"text": [row["sentence"] for row in rows], "label": [row["label"] for row in rows]}
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


@pytest.mark.parametrize("kind", ["saved", "shards", "parquet"])
def test_classes_are_called_by_their_names(run_zofo, tmp_path, kind):
    if kind == "saved":
        saved_reviews().save_to_disk(tmp_path / "rows")
    elif kind == "shards":
        (tmp_path / "rows" / "data").mkdir(parents=True)
        for n in range(2):
            saved_reviews().shard(2, n).to_parquet(tmp_path / "rows" / "data" / f"train-{n:05d}-of-00002.parquet")
    else:
        saved_reviews().to_parquet(tmp_path / "rows.parquet")
    path = tmp_path / ("rows.parquet" if kind == "parquet" else "rows")
    code, out, err = run_zofo("validate", "--data", path, NOWHERE, "--json")
    assert code == 0, err
    found = cells(out)
    assert "classes: 0 is 'bad', 1 is 'good'" in found["task"]["about"]
    assert set(found["splits"]["train"]["right"]) == {"bad", "good"}
    assert sum(split["rows"] for split in found["splits"].values()) == 24
    assert found["example"][0][2].strip() in ("bad", "good")
    for verbalizers in ("{0: ' awful', 1: ' great'}", "{bad: ' awful', good: ' great'}"):
        code, out, err = run_zofo("validate", "--data", path, NOWHERE, f"task.verbalizers={verbalizers}", "--json")
        assert code == 0, err
        assert cells(out)["example"][0][2].strip() in ("awful", "great")


def test_classes_of_another_order_keep_their_names(run_zofo, tmp_path):
    saved_reviews().to_parquet(tmp_path / "train.parquet")
    saved_reviews(("good", "bad")).select(range(3)).to_parquet(tmp_path / "test.parquet")
    code, out, err = run_zofo("validate", "--data", tmp_path, NOWHERE, "task.allow_overlap=true", "--json")
    assert code == 0, err
    labels = [("good", "bad")[row["label"]] for row in review_rows(3)]
    right = cells(out)["splits"]["test"]["right"]
    assert right == {label: labels.count(label) for label in sorted(set(labels))}


def test_a_class_by_its_name_and_another_by_its_number_are_two_readings(run_zofo, tmp_path):
    saved_reviews(("1", "0")).to_parquet(tmp_path / "rows.parquet")
    code, _, err = run_zofo(
        "validate", "--data", tmp_path / "rows.parquet", NOWHERE, "task.verbalizers={0: ' bad', 1: ' good'}"
    )
    assert code == 2
    assert "so that both of 0, 1 fit" in err


def test_a_folder_without_train_is_refused(run_zofo, tmp_path):
    write_csv(tmp_path / "only" / "dev.csv", labelled(6))
    code, _, err = run_zofo("validate", "--data", tmp_path / "only", NOWHERE)
    assert code == 2
    assert "has no rows called train; it has validation" in err
    assert "train.csv" in err
    write_csv(tmp_path / "snapshot" / "plain_text" / "train.csv", labelled(6))  # a configuration of a Hub repository
    code, _, err = run_zofo("validate", "--data", tmp_path / "snapshot", NOWHERE)
    assert code == 2
    assert f"give one of its folders: {tmp_path}/snapshot/plain_text" in err.replace("\n", "")


def test_one_file_gives_three_splits_that_share_no_row(run_zofo, models, data):
    places = {}
    for split in ("train", "validation", "test"):
        given = [f"model={models / 'plain'}", "--data", data / "labels.csv", "--split", split, "--rows", "99"]
        seen = cells(run_zofo("preview", *given, "--json")[1])
        places[split] = [example["where"] for example in seen["examples"]]
        again = cells(run_zofo("preview", *given, "--json")[1])
        assert again == seen
        other = cells(run_zofo("preview", *given, "task.split_seed=1", "--json")[1])
        assert [example["where"] for example in other["examples"]] != places[split]
    every = [where for split in places.values() for where in split]
    assert len(every) == len(set(every)) == 30


def test_columns_with_blanks_in_their_names(run_zofo, models, data, tmp_path):
    given = [f"model={models / 'plain'}", "--data", data / "blanks.csv"]
    code, _, err = run_zofo("validate", *given)
    assert code == 2
    assert "'my text'" in err
    named = ["task.template={{ row['my text'] }} It was", "task.label=the label"]
    code, out, err = run_zofo("validate", *given, *named, "--json")
    assert code == 0, err
    assert cells(out)["task"]["kind"] == "classification"
    ((_, asked, right),) = [one for one in cells(out)["example"] if one[0] == "given"]
    assert (asked.endswith(" It was"), right in (" bad", " good")) == (True, True)
    code, _, err = run_zofo("train", *given, *named, *MEZO, f"output_dir={tmp_path / 'named'}")
    assert code == 0, err
    assert run_zofo("eval", tmp_path / "named")[0] == 0
    code, out, err = run_zofo("predict", tmp_path / "named", "a joy", "--json")
    assert code == 0, err
    assert cells(out)["label"] in ("bad", "good")
    task = tmp_path / "mine.yaml"
    task.write_text(
        """
name: mine
version: 1
kind: classification
metric: accuracy
template: "{{ row['my text'] }} It was"
texts: ["{{ row['my text'] }}"]
label: the label
verbalizers: {bad: " terrible", good: " great"}
splits: {train: {from: train}, validation: {from: train, size: 5}, test: {from: train, size: 5}}
""",
        encoding="utf-8",
    )
    run = tmp_path / "run"
    code, _, err = run_zofo("train", *given, f"task={task}", *MEZO, f"output_dir={run}")
    assert code == 0, err
    assert run_zofo("eval", run)[0] == 0
    code, out, err = run_zofo("predict", run, "a joy", "--json")
    assert code == 0, err
    assert cells(out)["label"] in ("bad", "good")
    for split in ("validation", "test"):
        assert run_zofo("eval", run, "task.scoring=calibrated", "--split", split)[0] == 0
    code, out, err = run_zofo(
        "train", f"model={models / 'head'}", *given[1:], f"task={task}", *MEZO, f"output_dir={tmp_path / 'h'}"
    )
    assert code == 0, err
    assert run_zofo("predict", tmp_path / "h", "a joy", "--json")[0] == 0


@pytest.mark.parametrize("names", [("text", "labels"), ("Text", "Label"), ("sentence", "class")])
def test_columns_of_other_names(run_zofo, tmp_path, names):
    file = write_csv(tmp_path / "rows.csv", labelled(12, *names))
    code, out, err = run_zofo("validate", "--data", file, "--json")
    assert code == 0, err
    assert cells(out)["task"]["kind"] == "classification"


@pytest.mark.parametrize("values", [(0, 1), ("0", "1"), (True, False), (1.0, 2.0), ("no", "yes"), ("a b", "c: d")])
def test_labels_of_every_kind(run_zofo, models, tmp_path, values):
    rows = [{"text": f"film {i}", "label": values[i % 2]} for i in range(12)]
    write_rows(tmp_path / "rows.jsonl", rows)
    given = [f"model={models / 'plain'}", "--data", tmp_path / "rows.jsonl"]
    code, out, err = run_zofo("preview", *given, "--json")
    assert code == 0, err
    texts = {text for example in cells(out)["examples"] for text, _, _ in example["candidates"]}
    written = {int(one) if isinstance(one, float) else one for one in values}
    assert texts == {f" {one}" for one in written}
    code, _, err = run_zofo("train", *given, "method=zero-shot", f"output_dir={tmp_path / 'run'}")
    assert code == 0, err
    _, out, _ = run_zofo("predict", tmp_path / "run", "film 3", "--json")
    assert cells(out)["label"] in values
    assert run_zofo("eval", tmp_path / "run")[0] == 0


def colours(answers: list[object], choices: object = ("red", "green", "blue", "grey")) -> list[dict[str, object]]:
    return [{"question": f"Pick {i} ?", "choices": choices, "answer": answer} for i, answer in enumerate(answers)]


NUMBERS = ["2", "3", "4", "5"]
KEYED = {"text": ["red", "green"], "label": ["2", "1"]}
SAID = {  # name -> rows, how the answer is said to be read, the text of the right choice of each answer
    "from 1": (colours([1, 2, 3] * 4), "task.labels=[1, 2, 3, 4]", {1: "red", 2: "green", 3: "blue"}),
    "from 0": (colours([1, 2, 3] * 4), "task.labels=[0, 1, 2, 3]", {1: "green", 2: "blue", 3: "grey"}),
    "floats": (colours([1.0, 2.0, 4.0] * 4), "task.labels=[1, 2, 3, 4]", {1.0: "red", 2.0: "green", 4.0: "grey"}),
    "texts": (colours([2, 3] * 6, NUMBERS), "task.labels=choices", {2: "2", 3: "3"}),
    "numbers": (colours([2, 3] * 6, NUMBERS), "task.labels=[0, 1, 2, 3]", {2: "4", 3: "5"}),
    "letters": (colours(["A", "B"] * 6, ["B", "A"]), "task.labels=[A, B]", {"A": "B", "B": "A"}),
    "keys": (colours(["1", "2"] * 6, KEYED), "task.prompt=default", {"1": "green", "2": "red"}),
    "expression": (colours(["x", "y"] * 6), "task.label='3 if answer == \"x\" else 0'", {"x": "grey", "y": "red"}),
}


@pytest.mark.parametrize("name", SAID)
def test_what_stands_for_each_choice_is_said(run_zofo, models, tmp_path, name):
    rows, said, right = SAID[name]
    write_rows(tmp_path / "rows.jsonl", rows)
    given = [f"model={models / 'plain'}", "--data", tmp_path / "rows.jsonl", said]
    code, out, err = run_zofo("preview", *given, "--rows", "12", "--json")
    assert code == 0, err
    for example in cells(out)["examples"]:
        row = rows[int(example["where"].rpartition(":")[2]) - 1]
        assert [text for text, _, is_right in example["candidates"] if is_right] == [f" {right[row['answer']]}"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("[1, 5]", "but must be one of 1, 5"),
        ("keys", "the column 'keys', which the task 'rows' needs, is missing"),
        ("choices[:3]", "labels: 'choices[:3]' is 3 labels, but there are 4 choices"),
        ("question", "but there are 4 choices"),
        ("[1, '1', 2]", "the label '1' stands for two choices"),
    ],
)
def test_what_cannot_stand_for_choices_is_refused(run_zofo, tmp_path, labels, message):
    write_rows(tmp_path / "rows.jsonl", colours([3, 2] * 6))
    code, _, err = run_zofo("validate", "--data", tmp_path / "rows.jsonl", f"task.labels={labels}", "task.max_rows=1")
    assert code == 2
    assert message in err


def test_a_choice_of_keyed_rows_that_is_not_among_them_is_named(run_zofo, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [*colours(["1", "2"] * 6, KEYED), *colours(["3"], KEYED)])
    code, _, err = run_zofo("validate", "--data", tmp_path / "rows.jsonl")
    assert code == 2
    assert "rows.jsonl:13: column 'answer' is '3', which is none of the labels in 'choices'" in err
    write_rows(tmp_path / "rows.jsonl", [*colours([0, 1] * 6), *colours(["1", "2"], KEYED)])
    code, _, err = run_zofo("validate", "--data", tmp_path / "rows.jsonl")
    assert code == 2
    assert "not a list of choices" in err


def test_a_label_may_be_an_expression_of_columns(run_zofo, tmp_path):
    rows = [{"text": f"film {i}", "stars": i % 5, "the kind": "ab"[i % 2]} for i in range(20)]
    write_rows(tmp_path / "rows.jsonl", rows)
    given = ["validate", "--data", tmp_path / "rows.jsonl", "task.template={{ text }} is", "--json"]
    for label, right in (
        ("'good' if stars > 2 else 'bad'", {"bad": 12, "good": 8}),
        ("row['the kind'] | upper", {"A": 10, "B": 10}),
        ("the kind", {"a": 10, "b": 10}),
    ):
        code, out, err = run_zofo(*given, f'task.label="{label}"')
        assert code == 0, err
        found = [one["right"] for one in cells(out)["splits"].values()]
        assert {name: sum(one.get(name, 0) for one in found) for name in right} == right
    code, _, err = run_zofo(*given, "task.label=stars + points")
    assert code == 2
    assert "the column 'points', which the task" in err
    code, _, err = run_zofo(*given, "task.label=text.nothing")
    assert code == 2
    assert "'text.nothing' has no value in this row" in err


def test_minus_one_is_a_label_where_the_user_says_so(run_zofo, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"text": f"film {i}", "label": i % 3 - 1} for i in range(12)])
    code, _, err = run_zofo("validate", "--data", tmp_path / "rows.jsonl")
    assert code == 2
    assert "column 'label' is -1, which is a label, or says that the row has none" in err
    said = "task.verbalizers={-1: ' bad', 0: ' fair', 1: ' good'}"
    code, out, err = run_zofo("validate", "--data", tmp_path / "rows.jsonl", said, "--json")
    assert code == 0, err
    assert cells(out)["splits"]["train"]["right"].keys() == {"-1", "0", "1"}


def test_labels_that_look_like_a_mistake_are_pointed_out(run_zofo, models, tmp_path):
    rows = [*labelled(60), {"text": "a slip", "label": "goood"}]
    file = write_csv(tmp_path / "rows.csv", rows)
    note = "note: label 'goood' (1 row) looks like a typo of 'good' (30 rows)"
    code, out, err = run_zofo("validate", "--data", file)
    assert code == 0, err
    assert note in out
    _, out, _ = run_zofo("validate", "--data", file, "--json")
    assert cells(out)["notes"] == [note.removeprefix("note: "), "train has few rows of the label 'goood' (1)"]
    train = ["train", f"model={models / 'plain'}", "--data", file, "method=zero-shot", f"output_dir={tmp_path / 'run'}"]
    sizes = "task.split_sizes={train: 59, validation: 1, test: 1}"
    code, _, err = run_zofo(*train, sizes)
    assert code == 0, err
    assert "looks like a typo of 'good'" in err


def test_a_first_choice_that_is_never_right_in_one_split_is_pointed_out(run_zofo, tmp_path):
    """A validation file that counts from 1 beside a train file that counts from 0 was read from 0, shifted by one."""
    write_rows(tmp_path / "train.jsonl", colours([0, 1, 2] * 12))
    write_rows(
        tmp_path / "validation.jsonl", [{**row, "question": f"? {row['question']}"} for row in colours([1, 2] * 12)]
    )
    _, out, _ = run_zofo("validate", "--data", str(tmp_path))
    assert "the first choice is right in none of 24 rows of validation" in " ".join(out.split())


def test_a_first_choice_that_is_never_right_is_pointed_out(run_zofo, tmp_path):
    """As where the numbers in a task file's label column count from 1."""
    write_rows(tmp_path / "rows.jsonl", colours([1, 2, 3] * 12))
    task = tmp_path / "mine.yaml"
    task.write_text(
        """
name: mine
version: 1
kind: multiple-choice
metric: accuracy
template: "{{ question }}"
choices: {each: choices}
label: answer
splits: {train: {from: train}, validation: {from: train, size: 5}, test: {from: train, size: 5}}
""",
        encoding="utf-8",
    )
    code, out, err = run_zofo("validate", "--data", tmp_path / "rows.jsonl", f"task={task}")
    assert code == 0, err
    assert "note: the first choice is right in none of 36 rows; if its numbers count from 1" in out


# flags


def test_template_verbalizers_and_metric_from_the_command_line(run_zofo, models, data, tmp_path):
    given = [f"model={models / 'plain'}", "--data", data / "labels.csv"]
    flags = [
        "task.template={{ text }} It was",
        "task.verbalizers={good: ' great', bad: ' terrible'}",
        "task.metric=matthews",
    ]
    seen = cells(run_zofo("preview", *given, *flags, "--json")[1])["examples"][0]
    assert seen["prompt"].endswith(" It was")
    assert [text for text, _, _ in seen["candidates"]] == [" great", " terrible"]
    run = tmp_path / "run"
    code, out, err = run_zofo("train", *given, *flags, *MEZO, f"output_dir={run}")
    assert code == 0, err
    assert out.startswith("matthews ")
    code, out, _ = run_zofo("eval", run, "--json")
    assert cells(out)["matthews"] == pytest.approx(RunFolder.open(run).summary["matthews"])
    _, out, _ = run_zofo("predict", run, "a joy", "--json")
    assert (cells(out)["label"], cells(out)["answer"]) in (("good", " great"), ("bad", " terrible"))
    # in a run, too, the last one wins
    before, after = (
        cells(run_zofo("eval", run, *more, "--json")[1])["loss"] for more in ([], ["task.template=So {{ text }} is"])
    )
    assert before != pytest.approx(after, abs=1e-4)


@pytest.mark.parametrize(
    ("written", "prompt"),
    [
        ("{{ text }}", "{}"),
        ("{{ text }} It was", "{} It was"),
        ("Review: {{ text }} # It was", "Review: {} # It was"),
        ("{% if text %}{{ text }}{% endif %}\nIt was", "{}\nIt was"),
        ('"{{ text }}\\nIt was"', "{}\nIt was"),
        ("'{{ text }} It was'", "{} It was"),
        ('"{{ text }}" It was', '"{}" It was'),
        ("[{{ text }}] It was", "[{}] It was"),
    ],
)
def test_templates_stand_on_the_command_line_as_they_are(run_zofo, data, written, prompt):
    code, out, err = run_zofo("validate", "--data", data / "labels.csv", f"task.template={written}", "--json")
    assert code == 0, err
    ((name, text, right),) = [one for one in cells(out)["example"] if one[0] != "none"]
    assert name == "given"
    assert right in (" bad", " good")
    before, _, after = prompt.partition("{}")
    assert text.startswith(before)
    assert text.endswith(after)
    assert text.removeprefix(before).removesuffix(after) in {row["text"] for row in labelled(30)}


def test_a_label_column_from_the_command_line(run_zofo, tmp_path):
    rows = [{**row, "stars": str(i % 3)} for i, row in enumerate(labelled(12))]
    file = write_csv(tmp_path / "rows.csv", rows)
    given = ["validate", "--data", file, "task.label=stars", "--json"]
    code, out, err = run_zofo(*given, "task.verbalizers={0: ' bad', 1: ' so', 2: ' good'}")
    assert code == 0, err
    found = cells(out)
    assert sum(sum(one["right"].values()) for one in found["splits"].values()) == 12
    assert {name for one in found["splits"].values() for name in one["right"]} == {"0", "1", "2"}
    code, _, err = run_zofo(*given, "task.verbalizers={0: ' bad', 1: ' good'}")
    assert code == 2
    assert "column 'stars' is '2', which no verbalizer" in err


def test_verbalizers_stand_in_place_of_those_of_any_prompt(run_zofo, tmp_path):
    """A task whose prompts have verbalizers of their own."""
    file = tmp_path / "mine.yaml"
    assert run_zofo("copy", "movie-reviews", file)[0] == 0
    write_rows(tmp_path / "rows.jsonl", review_rows(12))
    given = [f"task={file}", "--data", tmp_path / "rows.jsonl"]
    right = {}
    for more in ([], ["task.verbalizers={0: ' no', 1: ' yes'}"]):
        code, out, err = run_zofo("validate", *given, *more, "--json")
        assert code == 0, err
        right[len(more)] = {name: text for name, _, text in cells(out)["example"]}
    assert set(right[0]) == set(right[1]) == {"review", "question", "none"}
    assert len(set(right[0].values())) == 2
    assert set(right[1].values()) in ({" no"}, {" yes"})


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (["task.template=It was"], "task.template: the template names no column", "{{ sentence }}"),
        (["task.template={text} It was"], "task.template: columns stand in double braces", "{{ sentence }}"),
        (["task.template={{ txt }} It was"], "the column 'txt', which the task 'labels' needs, is missing", "rename"),
        (["task.template={{ text"], "is not a template", None),
        (["task.metric=acuracy"], "acuracy", "accuracy"),
        (["task.metric=token-f1"], "has no meaning for a classification task", "macro-f1"),
        (
            ["task.verbalizers={good: ' great'}"],
            "task.verbalizers: a classification needs two verbalizers or more",
            None,
        ),
        (["task.verbalizers={good: ' x', bad: ' x'}"], "the same verbalizer", None),
        (["task.label=stars"], "'stars'", None),
        (["task.prompt=other"], "other", "default"),
        (["task.dta=x"], "task.dta: unknown key", "data"),
    ],
)
def test_flags_with_mistakes(run_zofo, data, flags, message, hint):
    for verb in ("validate", "train"):
        code, _, err = run_zofo(verb, "--data", data / "labels.csv", NOWHERE, *flags)
        assert code == 2
        assert message in err
        assert hint is None or hint in err


def test_data_and_a_folder_of_rows_are_one_too_many(run_zofo, data):
    code, _, err = run_zofo("validate", "--data", data / "labels.csv", "--data-dir", data)
    assert code == 2
    assert "give task.data or task.data_dir, not both" in err


# runs


def test_two_runs_of_one_command_are_the_same(run_zofo, models, data, tmp_path):
    runs = [tmp_path / name for name in ("one", "two")]
    for run in runs:
        code, _, err = run_zofo(
            "train", f"model={models / 'plain'}", "--data", data / "labels.csv", *MEZO, f"output_dir={run}"
        )
        assert code == 0, err
    one, two = (RunFolder.open(run) for run in runs)
    assert one.artifact_hashes() == two.artifact_hashes()
    assert one.task_file.read_bytes() == two.task_file.read_bytes()
    timed = {"seconds", "peak_bytes", "evaluation"}
    assert {k: v for k, v in one.summary.items() if k not in timed} == {
        k: v for k, v in two.summary.items() if k not in timed
    }
    code, _, err = run_zofo(
        "train", f"model={models / 'plain'}", "--data", data / "labels.csv", *MEZO, f"output_dir={runs[0]}"
    )
    assert code == 2
    assert "exists, and a run never overwrites another" in err


def test_runs_without_a_name_get_one_from_the_data(run_zofo, models, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [f"model={models / 'plain'}", "--data", data / "labels.csv", "method=zero-shot"]
    assert run_zofo("train", *given)[0] == 0
    assert run_zofo("train", *given)[0] == 0  # within the same second, as likely as not
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 2
    assert all(run.name.startswith("labels-zero-shot-") for run in runs)


def test_a_run_is_used_from_another_folder_and_on_other_rows(run_zofo, models, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    run = tmp_path / "run"
    code, _, err = run_zofo("train", f"model={models / 'plain'}", "--data", "labels.csv", *MEZO, f"output_dir={run}")
    assert code == 0, err
    monkeypatch.chdir(tmp_path)
    code, out, err = run_zofo("eval", run, "--json")
    assert code == 0, err
    other = write_csv(tmp_path / "other.csv", labelled(9, start=300))
    code, changed, err = run_zofo("eval", run, "--json", "--data", other)
    assert code == 0, err
    assert cells(changed)["loss"] != cells(out)["loss"]
    assert changed == run_zofo("eval", run, "--json", f"task.data={other}")[1]
    assert (cells(changed)["split"], cells(changed)["rows"]) == ("all 9 rows of other.csv", 9)
    code, text, err = run_zofo("eval", run, "--data", other, "--split", "test")
    assert code == 0, err
    assert " on all 9 rows of other.csv (majority " in text
    assert text.endswith(", 9 rows\n")
    _, own, _ = run_zofo("eval", run, "--json", "--data", data / "labels.csv")
    assert cells(own)["split"] == "all 30 rows of labels.csv, 20 of which it was trained on"
    mixed = write_csv(tmp_path / "mixed.csv", [*labelled(9, start=300), *labelled(30)])
    assert ", 20 of which it was trained on" in run_zofo("eval", run, "--data", mixed)[1]
    write_rows(tmp_path / "halves" / "train.jsonl", [{"text": "a joy", "label": "good"}])
    code, _, err = run_zofo("eval", run, "--data", tmp_path / "halves")
    assert code == 2
    assert "has no rows called validation; it has train" in err
    assert "--split train" in err
    assert run_zofo("eval", run, "--json")[1] == out


def test_a_run_on_a_folder_of_a_tasks_rows_is_scored_on_a_file(run_zofo, models, tmp_path):
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / "rows" / f"{split}.jsonl", review_rows(12))
    run, given = tmp_path / "run", [f"model={models / 'plain'}", "--data-dir", tmp_path / "rows", "method=zero-shot"]
    assert run_zofo("train", *given, f"output_dir={run}")[0] == 0
    write_rows(tmp_path / "other.jsonl", review_rows(12, 100))
    code, out, err = run_zofo("eval", run, "--json", "--data", tmp_path / "other.jsonl", "--split", "train")
    assert code == 0, err
    alone = run_zofo("eval", given[0], "--data", tmp_path / "other.jsonl", "task=movie-reviews", "--json")
    assert cells(out)["rows"] == 12
    assert cells(out) == cells(alone[1])


def test_an_untrained_model_is_scored_on_own_data(run_zofo, models, data):
    code, out, err = run_zofo("eval", f"model={models / 'plain'}", "--data", data / "choices.jsonl", "--json")
    assert code == 0, err
    assert set(cells(out)) == {"split", "rows", "accuracy", "loss", "majority"}
    assert (cells(out)["split"], cells(out)["rows"]) == ("all 24 rows of choices.jsonl", 24)
    drawn = run_zofo("eval", f"model={models / 'plain'}", "--data", data / "choices.jsonl", "--split", "test", "--json")
    assert (cells(drawn[1])["split"], cells(drawn[1])["rows"]) == ("test", 4)


def test_a_head_is_trained_on_own_data(run_zofo, models, data, tmp_path):
    given = [f"model={models / 'head'}", "--data", data / "labels.csv"]
    seen = cells(run_zofo("preview", *given, "--json")[1])["examples"][0]
    assert not seen["prompt"].endswith("Label:")
    code, _, err = run_zofo("train", *given, *MEZO, f"output_dir={tmp_path / 'run'}")
    assert code == 0, err
    code, out, err = run_zofo("predict", tmp_path / "run", "a joy", "--json")
    assert code == 0, err
    assert cells(out)["label"] in ("bad", "good")
    _, out, _ = run_zofo("eval", tmp_path / "run", "--data", data / "labels.csv")
    assert "on all 30 rows of labels.csv, 20 of which it was trained on (majority" in out
    for file in ("choices.jsonl", "questions.jsonl"):
        for verb in (["train", f"output_dir={tmp_path / 'no'}"], ["validate"]):
            code, _, err = run_zofo(*verb, given[0], "--data", data / file)
            assert code == 2
            assert "a classification head gives the same labels to every row" in err


# wrong rows, found before a model is loaded


def broken(kind: str) -> tuple[str, list[dict], str]:
    rows = {"labels": labelled(12), "questions": questions(12), "choices": choices(12), "chats": chats(12)}[
        kind.split()[0]
    ]
    line = rows[4]
    problem = kind.partition(" ")[2]
    if problem == "empty text":
        line["text"] = " "
        return "rows.jsonl", rows, "rows.jsonl:5: column 'text' is empty"
    if problem == "number":
        line["text"] = 5
        return "rows.jsonl", rows, "rows.jsonl:5: column 'text' is 5, not a text"
    if problem == "no label":
        del line["label"]
        return "rows.jsonl", rows, "rows.jsonl:5: the column 'label' is missing"
    if problem == "one label":
        return "rows.jsonl", [{**row, "label": "bad"} for row in rows], "column 'label' is 'bad' in all 12 rows"
    if problem == "no completion":
        line["completion"] = ""
        return "rows.jsonl", rows, "rows.jsonl:5: column 'completion' is empty"
    if problem == "answer":
        line["answer"] = 7
        return "rows.jsonl", rows, "rows.jsonl:5: column 'answer' is 7, which is none of the 3 choices"
    if problem == "one choice":
        line["choices"] = ["warm"]
        return "rows.jsonl", rows, "rows.jsonl:5: column 'choices' has 1 choices, but two or more are needed"
    assert problem == "no answer"
    line["messages"] = line["messages"][:2]
    return "rows.jsonl", rows, "rows.jsonl:5: column 'messages' does not end with an answer of the assistant"


@pytest.mark.parametrize(
    "kind",
    [
        "labels empty text",
        "labels number",
        "labels no label",
        "labels one label",
        "questions no completion",
        "choices answer",
        "choices one choice",
        "chats no answer",
    ],
)
def test_wrong_rows_are_named_before_a_model_is_loaded(run_zofo, tmp_path, kind):
    name, rows, message = broken(kind)
    write_rows(tmp_path / name, rows)
    for verb in ("validate", "train", "preview", "eval"):
        code, _, err = run_zofo(verb, NOWHERE, "--data", tmp_path / name)
        assert code == 2
        assert message in err, verb
        assert "no/such-model" not in err
        assert "hint: " in err


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", ["x"]], "rows.jsonl:3: column 'the label' is ['x'], not a label"),
        (["a", {"x": 1}, "b"], "rows.jsonl:2: column 'the label' is "),
        (["a", "b", None], "rows.jsonl:3: column 'the label' is empty"),
        (["a", "a", "a"], "column 'the label' is 'a' in all 12 rows"),
        ([0.5, 1.0, 2.0], "rows.jsonl:1: column 'the label' is 0.5, not a label"),
        (["a", "b", "a "], "rows.jsonl:3: column 'the label' is "),
        ([1, 2, "1"], "rows.jsonl:3: column 'the label' is "),
    ],
)
def test_wrong_labels_of_columns_that_are_named(run_zofo, tmp_path, labels, message):
    rows = [{"my text": f"film {i}", "the label": label} for i, label in enumerate(labels * 4)]
    write_rows(tmp_path / "rows.jsonl", rows)
    given = ["--data", tmp_path / "rows.jsonl", "task.template={{ row['my text'] }} is", "task.label=the label"]
    for verb in ("validate", "train"):
        code, _, err = run_zofo(verb, NOWHERE, *given)
        assert code == 2
        assert message in err
        assert "hint: " in err


@pytest.mark.parametrize("model", [NOWHERE, "model=nothing-of-that-name"])
def test_wrong_rows_of_a_task_file_are_named_before_a_model_is_loaded(run_zofo, tmp_path, model):
    rows = tmp_path / "rows"
    for split in ("validation", "test"):
        write_rows(rows / f"{split}.jsonl", review_rows(4))
    given = [model, "task=movie-reviews", "--data", rows]
    write_rows(rows / "train.jsonl", [*review_rows(12), {"sentence": "a joy", "label": 7}])
    for verb in ("validate", "train", "preview"):
        code, _, err = run_zofo(verb, *given)
        assert code == 2
        assert "train.jsonl:13: column 'label' is 7, which no verbalizer of 'movie-reviews' stands for" in err
    write_rows(rows / "train.jsonl", [*review_rows(12), {"review": "a joy", "label": 1}])
    code, _, err = run_zofo("train", *given)
    assert code == 2
    assert "train.jsonl:13: the column 'sentence', which the task 'movie-reviews' needs, is missing" in err
    write_rows(rows / "train.jsonl", review_rows(12))
    code, _, err = run_zofo("train", *given)
    assert code == 2
    assert model.partition("=")[2] in err  # nothing else is wrong


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.csv", "there is no file"),
        ("rows.xlsx", "files that end in .xlsx are not read"),
        ("empty.jsonl", "no rows"),
    ],
)
def test_files_that_cannot_be_read(run_zofo, tmp_path, name, message):
    if name != "missing.csv":
        (tmp_path / name).write_text("", encoding="utf-8")
    code, _, err = run_zofo("train", NOWHERE, "--data", tmp_path / name)
    assert code == 2
    assert message in err
    assert name in err


@pytest.mark.parametrize(
    ("outputs", "verbalizers", "message"),
    [
        (("LABEL_0", "LABEL_1"), None, None),
        (("0", "1"), None, None),
        (("Bad", "GOOD"), None, None),
        (("good", "bad"), None, r"good, bad, and the labels.* other labels may be meant"),
        (("good", "bad"), {"good": "good", "bad": "bad"}, None),
        (("POSITIVE", "NEGATIVE"), None, "POSITIVE, NEGATIVE"),
        (("POSITIVE", "NEGATIVE"), {"good": "positive", "bad": "negative"}, None),
        (("1", "0"), None, "other labels may be meant"),
    ],
)
def test_a_head_that_names_its_outputs_otherwise_is_refused(models, tmp_path, outputs, verbalizers, message):
    """With two labels, a head in the other order would have been scored upside down."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (models / "head").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    content |= {"id2label": dict(enumerate(outputs)), "label2id": {text: n for n, text in enumerate(outputs)}}
    (folder / "config.json").write_text(json.dumps(content))
    data = write_csv(tmp_path / "rows.csv", labelled(12))
    task = {"data": str(data)} | ({} if verbalizers is None else {"verbalizers": verbalizers})
    config = RunConfig(model={"name": str(folder)}, task=task)
    if message is None:
        prepare_run(config)
        return
    with pytest.raises(ModelError, match=message) as caught:
        prepare_run(config)
    assert "task.verbalizers=" in caught.value.hint


def test_a_test_split_of_the_hub_is_looked_through_before_the_first_step(models, tmp_path, monkeypatch):
    """A row of test that was too long was found after training, when it was scored."""
    splits = {name: labelled(12, start=12 * n) for n, name in enumerate(("train", "validation", "test"))}
    splits["test"][3] = {**splits["test"][3], "text": "good film " * 300}
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda hub: list(splits))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda hub, config, revision, split: datasets.Dataset.from_list(splits[split])
    )
    config = RunConfig(model={"name": str(models / "plain")}, task={"data": "some/hub"})
    prepared = prepare_run(config, splits=("train", "validation"))
    with pytest.raises(DataError, match="some/hub/test row 3: the text has .* tokens"):
        check_every_split(config, prepared)
    del splits["test"]
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda hub: ["train", "validation", "test"])
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, config, revision, split: _found(splits, split))
    assert any(note.startswith("test cannot be scored: cannot load") for note in check_every_split(config, prepared))


def _found(splits, split):
    if split not in splits:
        raise ValueError(f"no split {split}")
    return datasets.Dataset.from_list(splits[split])


def test_answers_that_no_generation_can_give_are_said(models, tmp_path):
    """A perfect model would have had no exact match."""
    rows = questions(12)
    rows[2]["completion"] = "a good film " * 60
    rows[3]["completion"] = "one line\nand another"
    write_rows(tmp_path / "rows.jsonl", rows)
    config = RunConfig(
        model={"name": str(models / "plain")}, task={"data": str(tmp_path / "rows.jsonl"), "max_new_tokens": 40}
    )
    task = resolve_task(config.task).model_copy(update={"stop": ("\n",)})
    prepared = prepare_run(config, task=task)
    notes = "\n".join(check_every_split(config, prepared))
    assert "1 of 12 rows have an answer of more tokens than task.max_new_tokens=40; the first is " in notes
    assert "whose 'one line\\nand another' is read back as 'one line'" in notes


def test_rows_that_max_rows_leaves_out_are_said(models, tmp_path):
    data = write_csv(tmp_path / "rows.csv", labelled(24))
    config = RunConfig(model={"name": str(models / "plain")}, task={"data": str(data), "max_rows": 3})
    notes = check_every_split(config, prepare_run(config))
    assert "task.max_rows=3 leaves 3 rows of train, validation, test: scores are of these rows alone" in notes


def test_letters_that_were_lost_before_the_file_was_written_are_pointed_out(run_zofo, tmp_path):
    rows = labelled(24)
    rows[5]["text"] += " caf\ufffd"
    _, out, _ = run_zofo("validate", "--data", write_csv(tmp_path / "rows.csv", rows))
    assert "hold U+FFFD instead of letters that were lost; the first is" in " ".join(out.split())
