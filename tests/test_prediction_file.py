"""A file of rows answered by a run: what is written, what is refused, and how stopped work goes on."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest
import transformers

import zofo
from conftest import build_model, build_tokenizer, review_rows, write_rows
from zofo.errors import ConfigError, DataError, Interrupted, RunError
from zofo.tasks.readers.files import read_file
from zofo.training import Predictor, prediction_file, read_config
from zofo.training.row_files import row_bytes

CHATTING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZE = 4  # rows a batch


def mails(count, start=0):
    """Rows whose columns are called as nobody else calls them."""
    names = ("bad", "good")
    return [
        {"id": row["sentence"][-2:].strip(), "Message": row["sentence"], "Team": names[row["label"]]}
        for row in review_rows(count, start)
    ]


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with runs on rows of all kinds, of a classifier and of a chat model."""
    folder, own = tmp_path_factory.mktemp("predicting"), build_tokenizer()
    head = build_model("llama", len(own), head=transformers.AutoModelForSequenceClassification, positions=128)
    head.config.pad_token_id = own.pad_token_id
    head.save_pretrained(folder / "head")
    own.save_pretrained(folder / "head")
    own.chat_template = CHATTING
    build_model("llama", len(own), seed=3, positions=128).save_pretrained(folder / "chat")
    own.save_pretrained(folder / "chat")
    write_csv(folder / "mail.csv", mails(24))
    shared = [
        {"conversations": [{"from": "human", "value": f"is film {i} good ?"}, {"from": "gpt", "value": f"yes {i % 5}"}]}
        | {"system": "be short"}
        for i in range(24)
    ]
    write_rows(folder / "shared.jsonl", shared)
    write_rows(
        folder / "choices.jsonl",
        [{"question": f"film {i} is", "choices": ["warm", "dull", f"a joy {i}"], "answer": i % 3} for i in range(24)],
    )
    named = {"text": "Message", "label": "Team"}
    given = {
        "mail": ("head", {"data": folder / "mail.csv", "columns": named}),
        "chat": ("chat", {"data": folder / "shared.jsonl", "max_new_tokens": 4}),
        "choices": ("chat", {"data": folder / "choices.jsonl"}),
    }
    for name, (model, task) in given.items():
        config = read_config(
            model=str(folder / model),
            task={key: str(value) if key == "data" else value for key, value in task.items()},
            method={"name": "zero-shot"},
            training={"eval_batch_size": SIZE},
            output_dir=folder / "runs" / name,
        )
        zofo.train(config)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """How many rows each call asked the model for."""
    calls, answers = [], Predictor.answers

    def counted(self, texts, encoded):
        calls.append(len(encoded))
        return answers(self, texts, encoded)

    monkeypatch.setattr(Predictor, "answers", counted)
    return calls


def read_back(path):
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    return [dict(row.fields) for row in read_file(path)]


def test_labels_and_their_probabilities_in_every_kind_of_file(home, tmp_path, asked):
    """The same as `predict` gives text by text, beside all columns of the rows, in their order."""
    rows = mails(11, 50)
    alone = zofo.predict(home / "runs" / "mail", [row["Message"] for row in rows])
    asked.clear()
    data = {"csv": write_csv(tmp_path / "new.csv", rows), "jsonl": tmp_path / "new.jsonl"}
    write_rows(data["jsonl"], [{**row, "tags": [row["id"], None], "seen": True} for row in rows])
    for kind, out in [("csv", "a.csv"), ("csv", "a.parquet"), ("jsonl", "a.jsonl"), ("jsonl", "a.tsv")]:
        made = zofo.predict_file(home / "runs" / "mail", data[kind], tmp_path / out)
        assert made.columns == ("prediction", "probability", "probability_bad", "probability_good")
        found = read_back(tmp_path / out)
        assert len(found) == made.rows == 11
        for row, one, written in zip(rows, alone, found, strict=True):
            assert {name: written[name] for name in row} == row
            assert written["prediction"] == one.label
            assert float(written["probability"]) == pytest.approx(one.probability, abs=1e-6)
            assert float(written[f"probability_{one.label}"]) == float(written["probability"])
            assert float(written["probability_bad"]) + float(written["probability_good"]) == pytest.approx(1)
    assert asked == [4, 4, 3] * 4
    assert read_back(tmp_path / "a.jsonl")[0]["tags"] == [rows[0]["id"], None]
    assert json.loads(read_back(tmp_path / "a.tsv")[0]["tags"]) == [rows[0]["id"], None]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.csv", "a.jsonl", "a.parquet", "a.tsv", "new.csv", "new.jsonl")
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_texts_with_any_line_end_come_back(tmp_path, name):
    rows = [{"text": text, "n": "1"} for text in ("a\rb", "a\nb", "a\r\nb", 'a"b', "a,b\tc")]
    (tmp_path / name).write_bytes(row_bytes(tmp_path / name, rows, ["row"] * len(rows)))
    assert read_back(tmp_path / name) == rows


@pytest.mark.parametrize("cut", [False, True])
def test_stopped_work_goes_on_to_the_same_bytes(home, tmp_path, asked, monkeypatch, cut):
    run, data = home / "runs" / "mail", write_csv(tmp_path / "new.csv", mails(18, 40))
    zofo.predict_file(run, data, tmp_path / "whole.csv")
    asked.clear()
    counted, out = Predictor.answers, tmp_path / "out.csv"

    def stop(self, texts, encoded):
        if len(asked) == 2:
            signal.raise_signal(signal.SIGINT)
        return counted(self, texts, encoded)

    monkeypatch.setattr(Predictor, "answers", stop)
    with pytest.raises(Interrupted, match="SIGINT|stopped") as left:
        zofo.predict_file(run, data, out)
    monkeypatch.setattr(Predictor, "answers", counted)
    assert left.value.message == "stopped by SIGINT after 8 of 18 rows, which are kept"
    assert not out.exists()
    journal = tmp_path / "out.csv.part"
    if cut:
        journal.write_bytes(journal.read_bytes()[:-9])
    with pytest.raises(RunError, match="keeps answers of other work, with another batch_size"):
        zofo.predict_file(run, data, out, batch_size=3)
    with pytest.raises(RunError, match="with another run"):
        zofo.predict_file(home / "runs" / "choices", write_choices(tmp_path), out)
    assert zofo.predict_file(run, data, out).kept == (4 if cut else 8)
    assert asked == [4, 4, *([4] if cut else []), 4, 4, 2]
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not journal.exists()
    with pytest.raises(RunError, match="out.csv' exists"):
        zofo.predict_file(run, data, out)
    assert zofo.predict_file(run, data, out, force=True).kept == 0


def write_choices(folder):
    write_rows(folder / "c.jsonl", [{"question": "film 7 is", "choices": ["warm", "dull"][: 2 - i]} for i in range(1)])
    return folder / "c.jsonl"


def test_choices_need_no_answer(home, tmp_path):
    zofo.predict_file(home / "runs" / "choices", write_choices(tmp_path), tmp_path / "o.jsonl")
    (row,) = read_back(tmp_path / "o.jsonl")
    assert row["answer"] == row["choices"][row["prediction"]]
    assert max(row["probabilities"]) == row["probability"] == row["probabilities"][row["prediction"]]


def test_chats_are_asked_without_the_answer_that_they_hold(home, tmp_path):
    """In the form of ShareGPT, with a system turn in a column, with and without the answer; and as a text alone."""
    run, turn = home / "runs" / "chat", {"from": "human", "value": "is film 3 good ?"}
    answer = {"from": "gpt", "value": "yes"}
    write_rows(tmp_path / "a.jsonl", [{"conversations": [turn, answer], "system": "be short"}])
    write_rows(tmp_path / "b.jsonl", [{"conversations": [turn], "system": "be short"}])
    write_rows(tmp_path / "c.jsonl", [{"question": turn["value"]}])
    said = set()
    for name, columns in (("a", None), ("b", None), ("c", {"text": "question"})):
        zofo.predict_file(run, tmp_path / f"{name}.jsonl", tmp_path / f"{name}.out.jsonl", columns=columns)
        (row,) = read_back(tmp_path / f"{name}.out.jsonl")
        said.add(row["prediction"])
    assert len(said) == 1
    plain = zofo.predict(run, ["is film 3 good ?"])
    assert said == {plain[0].answer}


def test_what_cannot_be_read_is_named_before_anything_is_loaded(home, tmp_path, monkeypatch):
    monkeypatch.setattr(zofo.RunFolder, "load", lambda *_: pytest.fail("a model was loaded"))
    run, good = home / "runs" / "mail", write_csv(tmp_path / "good.csv", mails(3))

    def refused(kind, says, hint, data=good, out="out.csv", **options):
        with pytest.raises(kind, match=says) as mistake:
            zofo.predict_file(run, data, tmp_path / out, **options)
        assert hint in mistake.value.hint
        assert not (tmp_path / "out.csv").exists()
        assert not (tmp_path / "out.csv.part").exists()

    rows = [{"Message": "a joy"}, {"Message": "  "}]
    write_rows(tmp_path / "bad.jsonl", rows)
    refused(DataError, "bad.jsonl:2: column 'text' is empty", "'text' is the column 'Message'", tmp_path / "bad.jsonl")
    write_rows(tmp_path / "other.jsonl", [{"Body": "a joy"}])
    refused(DataError, "no row has a column 'Message'", "the columns are 'Body'", tmp_path / "other.jsonl")
    refused(DataError, "column 'Massage'", "did you mean 'Message'", columns={"text": "Massage"})
    refused(ConfigError, "unknown column of the task 'mail' 'body'", "text", columns={"body": "Message"})
    refused(ConfigError, "does not end in a kind of file", ".parquet", out="out.xlsx")
    refused(RunError, "holds the rows that are read", "another name", out="good.csv")
    refused(RunError, "lies in", "another place", out=home / "runs" / "mail" / "o.csv")
    write_rows(tmp_path / "twice.jsonl", [{"Message": "a joy", "probability_bad": 1}])
    refused(DataError, "have the column 'probability_bad' already", "--prefix", tmp_path / "twice.jsonl")
    write_rows(tmp_path / "mixed.jsonl", [{"Message": "a joy", "n": 1}, {"Message": "dull", "n": "x"}])
    refused(DataError, "parquet cannot hold the column 'n'", ".jsonl", tmp_path / "mixed.jsonl", "out.parquet")
    write_rows(tmp_path / "half.jsonl", [{"Message": "a joy", "n": "\ud800"}])
    refused(
        DataError,
        "half.jsonl:1: column 'n' holds a lone surrogate",
        ".jsonl",
        tmp_path / "half.jsonl",
    )


def test_a_row_that_is_too_long_is_named_before_anything_is_asked(home, tmp_path, asked):
    write_rows(tmp_path / "long.jsonl", [{"Message": "a joy"}, {"Message": "dull " * 500}])
    with pytest.raises(DataError, match="long.jsonl:2"):
        zofo.predict_file(home / "runs" / "mail", tmp_path / "long.jsonl", tmp_path / "out.csv")
    assert asked == []


def test_columns_have_their_own_names_on_the_command_line(run_zofo, home, tmp_path):
    """Named for the run when it trains; other ones when it is scored or asked."""
    given = ["--data", home / "mail.csv", "--text", "Message", "--label", "Team"]
    code, out, err = run_zofo("validate", *given)
    assert (code, err) == (0, "")
    assert "text-label ('text', 'label'; not used: 'id')" in out
    code, _, err = run_zofo("validate", "--data", home / "mail.csv", "--text", "Massage", "--label", "Team")
    assert code == 2
    assert "no row has a column 'Massage', which was given for 'text'" in err
    assert "did you mean 'Message'?" in err
    code, _, err = run_zofo("validate", "--data", home / "mail.csv")
    assert "--text COLUMN --label COLUMN" in " ".join(err.split())
    run = tmp_path / "run"
    options = ["method=zero-shot", f"model={home / 'head'}", f"output_dir={run}"]
    assert run_zofo("train", *given, *options)[0] == 0
    other = [{"Body": row["Message"], "Queue": row["Team"]} for row in mails(24)]
    _, _, err = run_zofo("eval", run, "--data", write_csv(tmp_path / "o.csv", other))
    assert "the row has 'Body', 'Queue'" in err
    scores = []
    for rows in ([tmp_path / "o.csv", "--text", "Body", "--label", "Queue"], [home / "mail.csv"]):
        code, out, _ = run_zofo("eval", run, "--json", "--data", *rows)
        scores.append({**json.loads(out), "split": ""})
    assert scores[0] == scores[1]
    code, out, err = run_zofo("predict", run, "--data", tmp_path / "o.csv", "--out", tmp_path / "a.csv")
    assert "no row has a column 'Message', which was given for 'text'" in err
    made = ["--data", tmp_path / "o.csv", "--out", tmp_path / "a.csv"]
    code, out, err = run_zofo("predict", run, *made, "--column", "text=Body")
    assert code == 0
    assert (
        out == f"wrote {tmp_path / 'a.csv'}: 24 rows, with prediction, probability, probability_bad, probability_good\n"
    )
    for wrong in (made[:2], made[2:], ["a text", *made], [], [*made, "--column", "Body"]):
        assert run_zofo("predict", run, *wrong)[0] == 2


def test_columns_of_a_task_file_can_be_swapped(home, tmp_path):
    """A name that the rows have already stands for something else in them."""
    rows = [{"text": ("bad", "good")[row["label"]], "label": row["sentence"]} for row in review_rows(24)]
    write_rows(tmp_path / "swapped.jsonl", rows)
    config = read_config(
        model=str(home / "head"),
        task={"data": str(tmp_path / "swapped.jsonl"), "columns": {"text": "label", "label": "text"}},
        method={"name": "zero-shot"},
        output_dir=tmp_path / "run",
    )
    run = zofo.train(config)
    assert run.task.label_names == ["bad", "good"]
    assert run.task.label == "label"


def test_preferences_are_named_as_what_they_are(run_zofo, tmp_path):
    pairs = [{"prompt": f"is film {i} good ?", "chosen": f"yes {i}", "rejected": "no"} for i in range(12)]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    code, _, err = run_zofo("validate", "--data", tmp_path / "pairs.jsonl")
    assert code == 2
    assert "rows of preferences, of which 'chosen' is better than 'rejected'" in err
    assert "task.columns={completion: chosen}" in err
    code, out, _ = run_zofo("validate", "--data", tmp_path / "pairs.jsonl", "task.columns={completion: chosen}")
    assert code == 0
    assert "not used: 'rejected'" in out
    marked = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i != 4} for i, row in enumerate(pairs)]
    write_rows(tmp_path / "marked.jsonl", marked)
    code, _, err = run_zofo("validate", "--data", tmp_path / "marked.jsonl")
    assert code == 2
    assert "marked.jsonl:5: rows of preferences without pairs: column 'label'" in err


@pytest.mark.soak
def test_ctrl_c_leaves_at_once_and_the_same_command_goes_on(home, tmp_path):
    """A process of its own, stopped when its journal has the first answers."""
    rows = mails(400, 40)
    data, out = write_csv(tmp_path / "new.csv", rows), tmp_path / "out.jsonl"
    code = "from zofo.cli import main; main()"
    command = [sys.executable, "-c", code, "predict", str(home / "runs" / "mail"), "--data", str(data)]
    command += ["--out", str(out), "--batch-size", "1"]
    journal = tmp_path / "out.jsonl.part"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    kept = journal.read_bytes().count(b"\n") - 1
    assert f"of {len(rows)} rows, which are kept" in said
    assert "type the same command again" in said
    assert not out.exists()
    assert zofo.predict_file(home / "runs" / "mail", data, out, batch_size=1).kept in (kept, kept - 1)
    assert [row["id"] for row in read_back(out)] == [row["id"] for row in rows]


def test_a_signal_before_the_first_row_is_answered(home, tmp_path, monkeypatch):
    data = write_csv(tmp_path / "new.csv", mails(4, 40))
    module = sys.modules["zofo.training.prediction_file"]
    monkeypatch.setattr(module, "read_file", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted) as stopped:
        zofo.predict_file(home / "runs" / "mail", data, tmp_path / "out.csv")
    assert stopped.value.message == "stopped by SIGTERM before a row was answered"
    assert stopped.value.hint == "to begin again, type the same command again"


def test_a_chat_goes_on_turn_by_turn(run_zofo, home, monkeypatch):
    """Lines of a pipe are turns of one conversation, in the run's own template and with its system turn."""
    run, asked = home / "runs" / "chat", []
    generated = zofo.training.TaskEvaluator.generated

    def seen(self, model, examples, counts):
        asked.append([one.example.messages for one in examples])
        return generated(self, model, examples, counts)

    monkeypatch.setattr(zofo.training.TaskEvaluator, "generated", seen)
    monkeypatch.setattr(sys, "stdin", io.StringIO("is film 3 good ?\n\nwhy ?\n/new\nis film 3 good ?\n"))
    code, out, _ = run_zofo("chat", run)
    assert code == 0
    first, second, third = out.splitlines()
    assert first == third == zofo.predict(run, ["is film 3 good ?"])[0].answer
    begun = (("system", "be short"), ("user", "is film 3 good ?"))
    remembered = (("assistant", first),) if first else ()
    assert [one for (one,) in asked[:3]] == [begun, (*begun, *remembered, ("user", "why ?")), begun]
    monkeypatch.setattr(sys, "stdin", io.StringIO("is film 3 good ?\n"))
    assert run_zofo("chat", run, "--system", "be long", "--max-new-tokens", "1", "--temperature", "0.5")[0] == 0
    assert asked[-1][0][0] == ("system", "be long")
    answers = []
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.StringIO("is film 3 good ?\n/new\n" * 4))
        code, out, _ = run_zofo("chat", run, "--temperature", "2")
        answers.append(out)
    assert answers[0] == answers[1]
    assert len(set(out.splitlines())) > 1  # each is a draw of its own
    code, _, err = run_zofo("chat", home / "runs" / "mail")
    assert code == 2
    assert "the run answers a classification task and writes no texts" in err


def test_at_a_terminal_a_turn_that_cannot_be_asked_does_not_end_a_chat(run_zofo, home, monkeypatch):
    typed = io.StringIO(f"{'long ' * 400}\nis film 3 good ?\n/exit\n")
    typed.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", typed)
    code, out, err = run_zofo("chat", home / "runs" / "chat")
    assert code == 0
    assert "what you said" in err
    assert "/new begins again" in err
    assert len(out.splitlines()) == 1


def test_at_a_terminal_a_person_leaves_a_chat_by_ctrl_c(run_zofo, home, monkeypatch):
    class Typed(io.StringIO):
        def isatty(self):
            return True

        def readline(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Typed())
    code, out, err = run_zofo("chat", home / "runs" / "chat")
    assert (code, out) == (0, "")
    assert "stopped" not in err


@pytest.mark.parametrize(
    ("turns", "asked"),
    [
        ("u a", "u"),
        ("u a u a", "u a u"),
        ("u a u a0", "u"),
        ("u a u a0 u a0", "u"),
        ("a u a0", "a u"),  # trains nothing
        ("u a u", "u a u"),
    ],
)
def test_a_conversation_is_asked_what_an_evaluation_asks(turns, asked):
    roles = {"u": {"role": "user"}, "a": {"role": "assistant"}, "a0": {"role": "assistant", "weight": 0}}
    given = [{"content": str(number), **roles[name]} for number, name in enumerate(turns.split())]
    found, _ = prediction_file._asked({"messages": given}, "messages")
    assert found["messages"] == given[: len(asked.split())]
