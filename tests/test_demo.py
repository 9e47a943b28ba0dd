"""The demo from end to end, on a tiny model and made-up rows; the real one is `make demo`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from several_processes import say_and_end
from zofo.cli import main
from zofo.demo import SCENES, Scene, run_demo
from zofo.demo.scenes import FEW_WORDS, LONGEST, write_files
from zofo.demo.side_by_side import Share, train_each
from zofo.errors import RunError
from zofo.tasks import SPLITS
from zofo.training import RunFolder


def small(scenes, model, rows):
    """The same scenes on another model and other rows."""

    def changed(one):
        task, method = {"name": one.tree["task"]["name"], "data_dir": str(rows)}, one.tree["method"]
        method = {**method, "batch_size": 2} if "batch_size" in method else method
        method = {**method, "population": 4} if "population" in method else method
        tree = {**one.tree, "model": {**one.tree["model"], "name": str(model)}, "task": task, "method": method}
        return dataclasses.replace(one, tree=tree)

    return tuple(dataclasses.replace(scene, contenders=tuple(map(changed, scene.contenders))) for scene in scenes)


@pytest.fixture
def runs_here(monkeypatch):
    """Runs are made in this process, which has imported all of it; gives their arguments."""
    module, given = sys.modules["zofo.demo.side_by_side"], []

    class Here:
        def __init__(self, target, args):
            self.folder, self.arguments, self.log, _ = args
            given.append(self.arguments)

        def start(self):
            with monkeypatch.context() as patched, self.log.open("w") as told:
                patched.chdir(self.folder)
                with (
                    contextlib.redirect_stdout(told),
                    contextlib.redirect_stderr(told),
                    pytest.raises(SystemExit) as end,
                ):
                    main(self.arguments)
            self.exitcode = end.value.code

        def kill(self):
            pass

        join = kill

    monkeypatch.setattr(module, "worker_context", lambda _: SimpleNamespace(Process=Here))
    return given


@pytest.fixture
def demo(model_folder, data_dir, tmp_path):
    def run(folder, queries=24, scenes=None):
        with (tmp_path / "shown.txt").open("a", encoding="utf-8") as shown:
            chosen = small(SCENES, model_folder, data_dir) if scenes is None else scenes
            console = Console(file=shown, width=200)
            return run_demo(folder, console, queries, chosen, lambda folder: shutil.copy(FEW_WORDS, folder))

    return run


def test_shows_each_way_beside_what_one_would_use_otherwise(demo, tmp_path, runs_here):
    result = demo(tmp_path / "runs" / "demo")
    summary = json.loads((result.folder / "summary.json").read_text())
    names = {row["name"] for scene in summary["scenes"] for row in scene["rows"]}
    assert len(runs_here) == len(names) == len(summary["settings"])  # what two scenes show is run once
    for scene, asked in zip(summary["scenes"], SCENES, strict=True):
        assert [row["name"] for row in scene["rows"]] == [one.name for one in asked.contenders]
        assert len(scene["verdicts"]) == sum(one.scored for one in asked.contenders)  # the memory, and each other way
        for row in scene["rows"]:
            assert 0 <= row[row["metric"]] <= 1
            assert row["queries"] <= 24 + 8  # and the gate of select
            assert row["peak_bytes"] > 0
            assert RunFolder.open(result.folder / row["name"]).summary["queries"] == row["queries"]
    brief = summary["scenes"][1]["rows"][0]
    assert brief["backwards"] == 0
    answers = [json.loads(line) for line in (result.folder / brief["name"] / "answers.jsonl").read_text().splitlines()]
    rewards = [1 / (1 + len(one["predicted"]["model"].split())) for one in answers]
    assert brief["reward"]["model"] == pytest.approx(sum(rewards) / len(rewards))
    shown = (tmp_path / "shown.txt").read_text()
    assert all(title in shown for title in (scene.title for scene in SCENES))
    assert max(len(line) for line in shown.splitlines() if "file://" not in line and "predict" not in line) <= 80
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in names)
    assert (result.folder / "report.html").as_uri() in shown


def test_what_fails_or_lacks_a_package_costs_the_others_nothing(
    demo, model_folder, data_dir, tmp_path, runs_here, capsys
):
    one = small(SCENES, model_folder, data_dir)[0].contenders[-1]
    wrong = dataclasses.replace(one, name="wrong", tree={**one.tree, "method": {"name": "mezzo"}})
    scenes = (
        Scene("needs much", "nothing", (dataclasses.replace(one, name="other", needs=("no_such_module",)),)),
        Scene("goes wrong", "nothing", (one, wrong)),
    )
    with pytest.raises(RunError, match="training 'wrong' failed"):
        demo(tmp_path / "demo", scenes=scenes)
    shown = (tmp_path / "shown.txt").read_text()
    assert "left out: no_such_module is not installed" in shown
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert [row["name"] for row in summary["scenes"][1]["rows"]] == [one.name]
    assert (tmp_path / "demo" / "report.html").is_file()
    assert "mezzo" in capsys.readouterr().err
    assert not (tmp_path / "demo" / "other").exists()


def test_the_run_to_use_is_one_whose_score_is_shown(demo, model_folder, data_dir, tmp_path, monkeypatch):
    one = small(SCENES, model_folder, data_dir)[0].contenders[-1]
    better = dataclasses.replace(one, name="better", scored=False)
    rows = {name: {"name": name, "metric": "accuracy", "accuracy": score} for name, score in (("a", 0.5), ("b", 0.9))}
    module = sys.modules["zofo.demo.demo"]
    monkeypatch.setattr(module, "_row", lambda name, _: rows["b" if name == better.name else "a"] | {"name": name})
    monkeypatch.setattr(module, "train_each", lambda _, contenders, *others: (RunFolder(tmp_path) for _ in contenders))
    monkeypatch.setattr(module, "_told", lambda *_: {})
    monkeypatch.setattr(module, "read_runs", lambda folders: [])
    monkeypatch.setattr(module, "write_report", lambda *_: None)
    demo(tmp_path / "demo", scenes=(Scene("two", "nothing", (one, better)),))
    demo(tmp_path / "none", scenes=(Scene("one", "nothing", (better,)),))
    assert [line.split()[2] for line in (tmp_path / "shown.txt").read_text().splitlines() if " predict " in line] == [
        str(tmp_path / "demo" / one.name)
    ]


def test_the_shortest_demo_of_the_readme_pays_for_a_step_of_each_way(run_zofo):
    said = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    least = int(re.search(r"`zofo demo --queries (\d+)` is a shorter version", said)[1])
    for run in (run for scene in SCENES for run in scene.contenders):
        method = run.tree["method"]
        step = method.get("population", 2) * method.get("batch_size", 1)
        assert step + (64 if method.get("adapter") == "subspace" else 0) <= least, run.name
    code, _, problem = run_zofo("demo", "--queries", least - 1)
    assert code == 2
    assert f"greater than or equal to {least}" in problem


@pytest.mark.soak
def test_runs_twice_with_the_same_scores(demo, tmp_path):
    folder, scores = tmp_path / "demo", []
    for _ in range(2):
        scenes = demo(folder).summary["scenes"]
        scores.append([row[row["metric"]] for scene in scenes for row in scene["rows"]])
    assert scores[0] == scores[1]


def test_two_at_a_time_are_shown_in_turn_and_end_with_the_demo(tmp_path, monkeypatch, capsys):
    """Plain processes instead of runs: the second one ends first, and a third one never does."""
    module = sys.modules["zofo.demo.side_by_side"]
    monkeypatch.setattr(module, "_train", say_and_end)
    monkeypatch.setattr(module, "LIBRARIES", ())
    monkeypatch.setattr(module.RunFolder, "open", lambda path: path.name)
    contenders = [dataclasses.replace(SCENES[0].contenders[0], name=name) for name in "abc"]
    shown = io.StringIO()
    trained = train_each(tmp_path, contenders, None, Share(2, 1), Console(file=shown))
    assert [next(trained), next(trained)] == ["a", "b"]
    assert (shown.getvalue().split(), capsys.readouterr().err) == (["a", "b"], "a says\nb says\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.log", "c.yaml"]
    start = time.monotonic()
    trained.close()
    assert time.monotonic() - start < 30
    assert not list(tmp_path.iterdir())


def test_the_rows_are_the_shorter_sentences(tmp_path, monkeypatch):
    given = {split: [{"sentence": "x" * n, "label": 0} for n in (LONGEST, LONGEST + 1, 1)] for split in SPLITS}
    for split, rows in given.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scenes = sys.modules["zofo.demo.scenes"]
    monkeypatch.setattr(scenes, "EMBEDDED_MODELS", {"smollm2-135m": lambda: tmp_path})
    monkeypatch.setattr(scenes, "EMBEDDED_DATA", {"movie-reviews": lambda: tmp_path})
    write_files(tmp_path)
    kept = (tmp_path / "sentences" / "train.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["sentence"]) for line in kept] == [LONGEST, 1]
    assert (tmp_path / FEW_WORDS.name).is_file()


def test_never_removes_what_is_not_a_demo(demo, tmp_path):
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not an earlier demo"):
        demo(other)
    assert (other / "thesis.txt").read_text() == "years of work"


DEMO = """
import functools, sys
from zofo import demo
from zofo.cli import main
out, model, rows = sys.argv[1:]
task = {"name": "movie-reviews", "data_dir": rows}
tree = {"model": model, "task": task, "method": {"name": "mezo", "batch_size": 2}, "training": {"max_queries": 10**7}}
scenes = (demo.Scene("long", "nothing", (demo.DemoRun("long", tree),)),)
demo.run_demo = functools.partial(demo.run_demo, scenes=scenes, prepare=lambda _: None)
main(["demo", "--out", out])
"""


@pytest.mark.promise(10)
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak, id="term"),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak, id="ctrl-c"),
    ],
)
def test_a_demo_that_is_asked_to_stop_leaves_with_the_run_that_it_was_at(
    model_folder, data_dir, tmp_path, number, code
):
    folder = tmp_path / "demo"
    child = subprocess.Popen(
        [sys.executable, "-c", DEMO, str(folder), str(model_folder), str(data_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    run, deadline = RunFolder(folder / "long"), time.monotonic() + 120
    while not (run.metrics.is_file() and run.metrics.read_bytes().count(b"\n") >= 3):
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child.pid, number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code
    assert "Traceback" not in err
    assert f"stopped by {signal.Signals(number).name} before its end" in err
    with run.locked():  # no process trains there any more
        assert not run.ended
    assert not folder.joinpath("long.yaml").exists()
