"""The command line: every verb, what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import zofo
from conftest import review_rows, write_rows
from zofo.errors import Interrupted
from zofo.methods import METHODS
from zofo.noise import MASKS, NOISES
from zofo.objectives import OBJECTIVES
from zofo.rules import RULES
from zofo.tasks import METRICS, load_task, task_names
from zofo.training import RunFolder
from zofo.trajectory import Trajectory


@pytest.fixture
def given(model_folder, data_dir):
    """The arguments that name the tiny model and the made-up data."""
    return [f"model={model_folder}", "--data-dir", data_dir]


@pytest.fixture
def trained(run_zofo, given, tmp_path):
    """A finished bilevel run."""
    options = ["method=bilevel", "method.batch_size=4", "method.inner_steps=2", "training.steps=2"]
    code, _, _ = run_zofo("train", *given, *options, "training.eval_steps=1", f"output_dir={tmp_path / 'trained'}")
    assert code == 0
    return tmp_path / "trained"


def test_train_from_a_file_and_overrides(run_zofo, given, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("method: {name: mezo, batch_size: 4}\ntraining: {steps: 9}\n", encoding="utf-8")
    run = tmp_path / "runs" / "deep" / "one"
    code, out, err = run_zofo("train", file, *given, "training.steps=2", f"output_dir={run}")
    assert code == 0
    summary = RunFolder.open(run).summary
    assert (summary["method"], summary["queries"]) == ("mezo", 2 * 2 * 4)
    assert f"accuracy {100 * summary['accuracy']:.1f} % on validation" in out
    assert "after 16 queries" in out
    assert f"run: {run}" in out.splitlines()
    note, *lines = err.splitlines()
    assert re.fullmatch(r"trains ([\d,]+) of \1 parameters \(100 %\) in 20 tensors", note)
    assert [line.split("  ")[:2] for line in lines] == [
        ["mezo", "step 1/2"],
        ["mezo", "step 2/2"],
        ["mezo", "after 2 steps"],
    ]
    assert "\x1b" not in out + err


def test_train_says_what_the_test_split_was_scored(run_zofo, given, tmp_path):
    run, steps = tmp_path / "run", ("training.steps=1", "method.batch_size=4", "training.eval_on_test=true")
    code, out, _ = run_zofo("train", *given, "method=bilevel", *steps, f"output_dir={run}")
    assert code == 0
    summary = RunFolder.open(run).summary
    upper, lower = (f"accuracy {100 * scored['accuracy']:.1f} % on test" for scored in summary["test"].values())
    assert out.splitlines()[2:4] == [
        f"{upper} (majority 50.0 %) after {summary['queries']} queries",
        f"lower_adapter: {lower}",
    ]


def test_a_run_without_a_name_gets_one(run_zofo, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_zofo("train", *given, "method=first-order", "method.batch_size=4", "training.steps=1")
    assert code == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("movie-reviews-first-order-")
    assert f"runs/{run.name}" in out


def test_eval_of_a_run(run_zofo, trained):
    summary = RunFolder.open(trained).summary
    code, out, _ = run_zofo("eval", trained)
    assert code == 0
    assert f"accuracy {100 * summary['accuracy']:.1f} % on validation" in out
    code, out, _ = run_zofo("eval", trained, "--json")
    found = json.loads(out)
    assert set(found) == {"split", "rows", "accuracy", "loss", "majority"}
    assert found["loss"] == pytest.approx(summary["loss"], abs=1e-5)
    _, out, _ = run_zofo("eval", trained, "--json", "--variant", "lower_adapter")
    assert json.loads(out)["loss"] == pytest.approx(summary["variants"]["lower_adapter"]["loss"], abs=1e-5)
    _, out, _ = run_zofo("eval", trained, "--json", "--best")
    assert json.loads(out)["accuracy"] == summary["best"]["score"]
    _, out, _ = run_zofo("eval", trained, "--json", "--split", "test")
    assert json.loads(out)["split"] == "test"
    assert json.loads(out)["loss"] != found["loss"]


def test_eval_of_a_run_on_other_data(run_zofo, trained, tmp_path):
    other = tmp_path / "other"
    for split in ("train", "validation", "test"):
        write_rows(other / f"{split}.jsonl", review_rows(7, 500))
    _, before, _ = run_zofo("eval", trained, "--json")
    code, out, _ = run_zofo("eval", trained, "--json", "--data-dir", other, "training.eval_batch_size=3")
    assert code == 0
    assert json.loads(out)["majority"] == pytest.approx(4 / 7)
    assert json.loads(out) != json.loads(before)
    assert run_zofo("eval", trained, "--json")[1] == before


def test_eval_of_an_untrained_model(run_zofo, given, tmp_path):
    code, out, _ = run_zofo("eval", *given, "--json")
    assert code == 0
    by_arguments = json.loads(out)
    file = tmp_path / "zero.yaml"
    file.write_text(f"model: {given[0].partition('=')[2]}\n", encoding="utf-8")
    assert json.loads(run_zofo("eval", file, *given[1:], "--json")[1]) == by_arguments
    code, out, _ = run_zofo("eval", *given)
    assert out.startswith(f"accuracy {100 * by_arguments['accuracy']:.1f} % on validation (majority 50.0 %), loss ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a joy", "--data", "rows.csv"], "leave out the texts: zofo predict RUN --data rows.csv --out answers.csv"),
        (["a joy", "--out", "answers.csv"], "--out is for the rows of --data"),
        (["--data", "rows.csv"], "--data has no --out to write its answers to"),
        (["--out", "answers.csv"], "--out has no --data, whose rows it would answer"),
        ([], "nothing to answer"),
    ],
)
def test_each_mistake_about_rows_has_a_sentence_of_its_own(run_zofo, words, said):
    code, _, err = run_zofo("predict", "runs/any", *words)
    assert (code, err.count("error: "), err.count("hint: ")) == (2, 1, 1)
    assert said in " ".join(err.split())


def test_predict(run_zofo, trained):
    code, out, _ = run_zofo("predict", trained, "a joy from start to finish", "dull [bold]and[/bold] lifeless")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert out.splitlines()[1].endswith("dull [bold]and[/bold] lifeless")
    code, out, _ = run_zofo("predict", trained, "a joy", "ein schöner Film", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == ["a joy", "ein schöner Film"]
    for row in rows:
        assert (row["label"], row["answer"]) in ((0, " terrible"), (1, " great"))
        assert 0.5 <= row["probability"] <= 1
    code, _, err = run_zofo("predict", trained, "a joy", '{"sentense": "dull"}')
    assert code == 2
    assert "text 2 is a JSON object with 'sentense', and the task needs the column 'sentence'" in err
    as_text = (
        run_zofo("predict", trained, text, "--json")[1] for text in ('{"film": 1}', r'{"sentence": "{\"film\": 1}"}')
    )
    assert len({json.loads(line)["probability"] for line in as_text}) == 1
    _, alone, _ = run_zofo("predict", trained, "a joy", "--json", "--variant", "adapter")
    assert json.loads(alone)["probability"] == pytest.approx(rows[0]["probability"], abs=1e-5)
    _, lower, _ = run_zofo("predict", trained, "a joy", "--json", "--variant", "lower_adapter")
    assert json.loads(lower)["probability"] != pytest.approx(rows[0]["probability"], abs=1e-5)
    code, _, err = run_zofo("predict", trained, '{"text": "a joy"}')  # a row of another shape was asked as a text
    assert code == 2
    assert "text 1 is a JSON object with 'text', and the task needs the column 'sentence'" in " ".join(err.split())


def test_preview(run_zofo, given):
    code, out, _ = run_zofo("preview", *given, "--rows", "2", "--split", "test")
    assert code == 0
    assert "test.jsonl:1" in out
    assert "  lifeless film number 80 It was terrible  scored: ('Ġterrible',)" in out.splitlines()
    assert "12 examples of test" in out
    assert "sequence an example" in out
    code, out, _ = run_zofo("preview", *given, "--json")
    seen = json.loads(out)
    assert seen["count"] == 60
    assert len(seen["examples"]) == 3
    assert seen["shortest"] <= seen["mean"] <= seen["longest"]
    first = seen["examples"][0]
    assert first["prompt"] == "dull film number 0 It was"
    assert first["candidates"] == [[" terrible", ["Ġterrible"], True], [" great", ["Ġgreat"], False]]
    code, out, _ = run_zofo(
        "preview", *given, "task.scoring=channel", "--json"
    )  # each prompt begins with its candidate
    ((text, tokens, right), _) = json.loads(out)["examples"][0]["candidates"]
    assert (text, right) == ("terrible\ndull film number 0 It was", True)
    assert tokens[-2:] == ["ĠIt", "Ġwas"]


def test_list(run_zofo):
    code, out, _ = run_zofo("list", "--json")
    assert code == 0
    found = json.loads(out)
    kinds = {
        "models",
        "tasks",
        "methods",
        "noises",
        "masks",
        "estimators",
        "rules",
        "evaluators",
        "objectives",
        "metrics",
    }
    assert kinds <= set(found)
    assert set(found["methods"]) == set(METHODS)
    assert set(found["noises"]) == set(NOISES)
    assert set(found["masks"]) == set(MASKS)
    assert set(found["rules"]) == set(RULES)
    assert set(found["objectives"]) == set(OBJECTIVES)
    assert set(found["metrics"]) == set(METRICS)
    assert "smollm2-135m" in found["models"]
    assert all(about.strip() for entries in found.values() for about in entries.values())
    code, out, _ = run_zofo("list", "rules", "--json")
    assert json.loads(out) == {"rules": found["rules"]}
    for kind in ("objectives", "metrics"):
        code, out, _ = run_zofo("list", kind)
        assert code == 0
        assert all(name in out for name in found[kind])
    code, out, _ = run_zofo("list")
    assert code == 0
    assert all(name in out for entries in found.values() for name in entries)


def test_env(run_zofo):
    code, out, _ = run_zofo("env", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["zofo"] == zofo.__version__
    assert {"python", "torch", "transformers", "device", "threads", "cache"} <= set(found)
    code, out, _ = run_zofo("env")
    assert code == 0
    assert all(name in out for name in found)


def test_help_is_there_for_every_verb(run_zofo):
    code, out, _ = run_zofo("--help")
    assert code == 0
    verbs = ("train", "eval", "predict", "preview", "validate", "copy", "list", "env", "demo", "bench", "tune")
    assert all(verb in out for verb in verbs)
    for verb in verbs:
        code, out, _ = run_zofo(verb, "--help")
        assert code == 0
        assert "Usage" in out


@pytest.mark.parametrize("arguments", [["trian"], ["eval"], ["predict"], ["train", "--stpes", "3"], ["list", "--rows"]])
def test_wrong_usage_is_exit_code_2(run_zofo, arguments):
    code, _, err = run_zofo(*arguments)
    assert code == 2
    assert err.strip()


def test_a_non_finite_run_is_exit_code_1(run_zofo, given, tmp_path):
    run = tmp_path / "run"
    rule = "method.rule={name: dense-momentum, lr: 3e+38}"
    code, _, err = run_zofo("train", *given, "method=mezo", rule, "method.batch_size=4", f"output_dir={run}")
    assert code == 1
    assert "error: step 1: non-finite loss" in err
    assert "Key(seed=0, step=1, index=0)" in err
    assert "hint: " in err
    assert len(Trajectory.read(run / "trajectory.bin").updates) == 1
    assert RunFolder.open(run).summary["stopped"] in err.replace("\n", "\n  ")


def test_validate(run_zofo, data_dir):
    code, out, err = run_zofo("validate", "--data-dir", data_dir)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "movie-reviews: classification, scored by accuracy"
    assert [line.partition(":")[0] for line in lines[2:5]] == ["review", "question", "none"]
    assert "train: 60 rows; majority 50.0 % (0: 30, 1: 30)" in lines
    assert "validation: 12 rows; majority 50.0 % (0: 6, 1: 6)" in lines
    assert lines[-1] == "every row can be used"
    code, out, _ = run_zofo("validate", "--data-dir", data_dir, "--json", "task.max_rows=3")
    report = json.loads(out)
    assert code == 0
    assert report["splits"]["train"] == {"rows": 3, "right": {"0": 2, "1": 1}, "majority": pytest.approx(2 / 3)}
    assert [name for name, _, _ in report["example"]] == report["task"]["prompts"]
    assert report["example"][0] == ["review", "dull film number 0 It was", " terrible"]
    code, out, _ = run_zofo("validate", "--data-dir", data_dir, "--json", "task.prompt=none")
    assert [name for name, _, _ in json.loads(out)["example"]] == ["none"]


def test_validate_finds_the_row_that_cannot_be_used(run_zofo, data_dir):
    write_rows(data_dir / "test.jsonl", [*review_rows(5), {"sentence": "a joy", "label": 9}])
    code, out, err = run_zofo("validate", "--data-dir", data_dir)
    assert (code, out) == (2, "")
    assert f"error: {data_dir}/test.jsonl:6: column 'label' is 9, which no verbalizer" in err
    assert "hint: " in err


def test_a_column_that_is_named_for_these_rows_must_be_among_them(run_zofo, trained, tmp_path):
    """Though another one has the name that it would get."""
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, [{"text": one["sentence"], "label": "ab"[one["label"]]} for one in review_rows(40)])
    code, _, err = run_zofo("validate", "--data", rows, "--text", "txet")
    assert code == 2
    assert "no row has a column 'txet', which was given for 'text'\nhint: did you mean 'text'?" in err
    write_rows(rows, review_rows(40))
    code, _, err = run_zofo("validate", "task.name=sst2", f"task.data={rows}", "task.columns={sentence: sentance}")
    assert code == 2
    assert "no row has a column 'sentance', which was given for 'sentence'\nhint: did you mean 'sentence'?" in err
    words = ("predict", trained, "--data", rows, "--out", tmp_path / "answers.csv")
    code, _, err = run_zofo(*words, "--text", "senntence")
    assert code == 2
    assert "no row has a column 'senntence', which was given for 'sentence'\nhint: did you mean 'sentence'?" in err
    assert run_zofo(*words)[0] == 0


def test_a_folder_without_a_name_of_its_own_gets_a_hint_that_can_be_typed(run_zofo, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_zofo("train", *given, "output_dir=.")
    assert (code, err.splitlines()[-1]) == (2, "hint: name a new one: output_dir=runs/mine")
    code, _, err = run_zofo("train", *given, "training.steps=1", "output_dir=/dev/null/run")
    assert (code, err.splitlines()[-1]) == (2, "hint: a part of the path is a file: see where it leads (ls -l)")


def test_copy_edit_and_validate(run_zofo, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_zofo("copy", "movie-reviews", "mine.yaml")
    assert code == 0
    assert out == "wrote mine.yaml; edit it, then: zofo validate task=mine.yaml\n"
    _, packaged, _ = run_zofo("validate", "--data-dir", data_dir)
    code, copied, _ = run_zofo("validate", "task=mine.yaml", "--data-dir", data_dir)
    assert (code, copied) == (0, packaged)
    file = tmp_path / "mine.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("{{ sentence }} It was", "So {{ sentence }} is"), encoding="utf-8")
    code, out, _ = run_zofo("validate", "task=mine.yaml", "--data-dir", data_dir, "--json")
    assert json.loads(out)["example"][0][1] == "So dull film number 0 is"
    file.write_text(text.replace("{{ sentence }} It was", "{{ sentnce }} It was"), encoding="utf-8")
    code, _, err = run_zofo("validate", "task=mine.yaml", "--data-dir", data_dir)
    assert code == 2
    assert "train.jsonl:1: the column 'sentnce', which the task 'movie-reviews' needs, is missing" in err
    file.write_text(text.replace("kind:", "knd:"), encoding="utf-8")
    code, _, err = run_zofo("validate", "task=mine.yaml", "--data-dir", data_dir)
    assert code == 2
    assert "mine.yaml: " in err
    assert "knd" in err


@pytest.mark.parametrize("name", task_names())
def test_every_packaged_task_can_be_copied(run_zofo, tmp_path, name):
    file = tmp_path / f"{name}.yml"
    assert run_zofo("copy", name, file)[0] == 0
    assert load_task(str(file)) == load_task(name)


@pytest.mark.parametrize(
    ("name", "file", "message", "hint"),
    [
        ("movie-reviews", "there.yaml", "'there.yaml' exists", "remove it"),
        ("movie-review", "new.yaml", "unknown task 'movie-review'. Did you mean 'movie-reviews'?", "sst2"),
        ("sst2", "new.txt", "'new.txt' is no name for a task file", "new.yaml"),
        ("sst2", "new", "'new' is no name for a task file", "new.yaml"),
        ("sst2", "nowhere/new.yaml", "cannot write 'nowhere/new.yaml': No such file or directory", ""),
    ],
)
def test_copies_that_cannot_be_made(run_zofo, tmp_path, monkeypatch, name, file, message, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("precious", encoding="utf-8")
    code, out, err = run_zofo("copy", name, file)
    assert (code, out) == (2, "")
    assert f"error: {message}" in err
    assert hint in err
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    assert (tmp_path / "there.yaml").read_text(encoding="utf-8") == "precious"


def test_a_users_own_task_works_end_to_end_without_code(run_zofo, model_folder, tmp_path):
    task = tmp_path / "claims.yaml"
    task.write_text(
        """
name: claims
version: 1
kind: classification
metric: accuracy
source: {hub: nobody/claims}
splits:
  train: {from: all}
  validation: {from: all, size: 6}
  test: {from: held-out}
template: "{{ premise }} So {{ claim }} ?"
label: answer
verbalizers:
  "yes": " yes"
  "no": " no"
  unsure: " not to be missed"
""",
        encoding="utf-8",
    )
    rows = [
        {"premise": f"a film {i}", "claim": f"it drags {i}", "answer": ("yes", "no", "unsure")[i % 3]}
        for i in range(30)
    ]
    write_rows(tmp_path / "rows" / "all.jsonl", rows)
    write_rows(tmp_path / "rows" / "held-out.jsonl", rows[:9])
    given = [f"model={model_folder}", f"task={task}", "--data-dir", tmp_path / "rows"]
    code, out, _ = run_zofo("preview", *given, "--json")
    assert (code, json.loads(out)["count"], json.loads(out)["sequences"]) == (0, 24, 1)
    run = tmp_path / "run"
    options = ["method=bilevel", "method.batch_size=4", "method.inner_steps=2", "training.steps=2"]
    code, _, err = run_zofo("train", *given, *options, f"output_dir={run}")
    assert code == 0, err
    code, out, _ = run_zofo("eval", run, "--json", "--split", "test")
    assert code == 0
    assert json.loads(out)["majority"] == pytest.approx(1 / 3)
    row = json.dumps({"premise": "a film", "claim": "it drags"})
    code, out, _ = run_zofo("predict", run, row, "--json")
    assert code == 0
    assert json.loads(out)["label"] in ("yes", "no", "unsure")
    code, _, err = run_zofo("predict", run, "a film")
    assert code == 2
    assert "text 1: the task needs the columns premise, claim" in err


# real processes


def test_python_m_zofo(tmp_path):
    command = [sys.executable, "-m", "zofo", "train", "training.stpes=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: training.stpes: unknown key", "hint: did you mean 'steps'?"]
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_with_130_and_a_run_that_can_be_used(run_zofo, given, tmp_path, monkeypatch):
    step, run = METHODS["bilevel"].step, tmp_path / "run"

    def asked(self, number):
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell may have it switched off
    try:
        with monkeypatch.context() as patched:
            patched.setattr(METHODS["bilevel"], "step", asked)
            options = ["method=bilevel", "method.batch_size=4", "method.inner_steps=2", "training.steps=100000"]
            code, _, err = run_zofo("train", *given, *options, f"output_dir={run}")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "stopped by SIGINT after 3 steps" in err
    assert "interrupted" not in err  # all was said
    assert RunFolder.open(run).summary["stopped"].startswith("stopped by SIGINT after")
    code, _, err = run_zofo("eval", run, "--json")
    assert code == run_zofo("predict", run, "a joy")[0] == 0
    assert "this run has not ended (stopped by SIGINT after" in err


@pytest.mark.soak
def test_ctrl_c_on_a_real_process(run_zofo, given, tmp_path):
    run = tmp_path / "run"
    options = [
        "method=bilevel",
        "method.batch_size=4",
        "method.inner_steps=2",
        "training.steps=100000",
        f"output_dir={run}",
    ]
    command = [sys.executable, "-m", "zofo", "train", *map(str, given), *options]
    # a job of a shell without a terminal may start with Ctrl-C switched off, so switch it on
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.is_file() and metrics.read_text(encoding="utf-8").count("\n") >= 3):
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in err
    assert "stopped by SIGINT" in err
    summary = RunFolder.open(run).summary
    assert summary["stopped"].startswith("stopped by SIGINT after")
    code, out, _ = run_zofo("eval", run, "--json")
    assert code == 0
    assert json.loads(out)["loss"] > 0
    assert run_zofo("predict", run, "a joy")[0] == 0


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_study_that_is_asked_to_stop_leaves_with_the_code_of_the_signal(run_zofo, tmp_path, monkeypatch, name, code):
    def stopped(*_):
        raise Interrupted(name, code, 3)

    monkeypatch.setattr("zofo.studies.run_study", stopped)
    found, _, said = run_zofo("study", "least-squares", "--out", tmp_path / "out")
    assert found == code
    assert f"stopped by {name}" in said
    assert "type the same command again" in said
    assert "zofo train" not in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_verb_that_saves_nothing_says_so_when_it_is_asked_to_stop(
    run_zofo, trained, tmp_path, monkeypatch, number, code
):
    def asked(*_, **__):
        signal.raise_signal(number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr("zofo.training.evaluation.TaskEvaluator.evaluate", asked)
        monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", asked)
        for words in (["eval", trained], ["export", trained, "--merged", tmp_path / "merged"]):
            found, out, said = run_zofo(*words)
            assert (found, out) == (code, "")
            name = signal.Signals(number).name
            assert f"stopped by {name} before its end; what it was at is not saved" in said
            assert "hint: to begin again, type the same command again" in said
        assert [path.name for path in tmp_path.iterdir() if "merged" in path.name] == []
        monkeypatch.setattr("zofo.cli._run", asked)  # before anything could be said
        assert run_zofo("eval", trained)[0] == code
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_version(run_zofo):
    assert run_zofo("--version")[:2] == (0, f"zofo {zofo.__version__}\n")


@pytest.mark.parametrize(("verb", "call"), [("replay", "replay_run"), ("diff", "compare_runs")])
def test_a_comparison_is_shown_as_lines_or_as_json_and_a_difference_is_exit_code_1(run_zofo, monkeypatch, verb, call):
    found = SimpleNamespace(lines=lambda: ["one", "two"], as_dict=lambda: {"a": 1}, failed=True, equal=False)
    monkeypatch.setattr(f"zofo.export.{call}", lambda *given, **options: found)
    runs = ["runs/a", "runs/b"][: 1 if verb == "replay" else 2]
    assert run_zofo(verb, *runs)[:2] == (1, "one\ntwo\n")
    assert run_zofo(verb, *runs, "--json")[:2] == (1, '{"a": 1}\n')


def test_a_run_that_has_ended_is_watched_and_reported_at_once(run_zofo, trained, tmp_path, monkeypatch):
    code, shown, _ = run_zofo("watch", trained)
    assert code == 0
    assert "accuracy" in shown
    page = tmp_path / "page.html"
    assert run_zofo("report", trained, "--live", "-o", page)[:2] == (0, f"report: {page}; open it in a browser\n")

    def interrupted(run):
        yield "a line"
        raise KeyboardInterrupt

    monkeypatch.setattr("zofo.report.watch_run", interrupted)
    assert run_zofo("watch", trained)[:2] == (0, "a line\nthe run goes on\n")


def test_a_plan_and_a_report_of_a_study_are_two_commands(run_zofo, tmp_path):
    code, _, err = run_zofo("study", "digits", "--plan", "--report-only", "--out", tmp_path / "study")
    assert code == 2
    assert "a command does one" in err
    code, _, err = run_zofo("study", "digits", "--report-only", "--out", tmp_path / "study")
    assert code == 2
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "study.json").write_text("{}", encoding="utf-8")
    code, _, err = run_zofo("report", tmp_path / "begun", "-o", tmp_path / "page.html")
    assert code == 2
    assert "is a study without results.csv" in err
