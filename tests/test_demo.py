"""The demo from end to end, on a tiny model and made-up rows; the real one is `make demo`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from zofo.bench import run_demo
from zofo.errors import RunError
from zofo.training import RunFolder


@pytest.fixture
def demo(model_folder, data_dir, tmp_path):
    def run(folder, queries=240):
        task = {"name": "movie-reviews", "data_dir": str(data_dir)}
        with (tmp_path / "shown.txt").open("a", encoding="utf-8") as shown:
            return run_demo(folder, Console(file=shown, width=200), queries, str(model_folder), task)

    return run


def test_writes_the_promised_summary(demo, tmp_path, children_here):
    result = demo(tmp_path / "runs" / "demo")
    summary = json.loads((result.folder / "summary.json").read_text())
    assert 0 <= summary["zero_shot"]["accuracy"] <= 1
    assert [row["name"] for row in summary["methods"]] == ["bilevel", "mezo", "fo-lora"]
    for row in summary["methods"]:
        assert {"accuracy", "forwards", "backwards", "queries", "seconds", "peak_bytes"} <= set(row)
        assert 0 < row["queries"] <= 240
        assert row["peak_bytes"] > 0
        assert RunFolder.open(result.folder / row["name"]).summary["queries"] == row["queries"]
    assert summary["methods"][1]["backwards"] == 0
    shown = (tmp_path / "shown.txt").read_text()
    assert shown.index("Zero-shot accuracy") < shown.index("bilevel")


@pytest.mark.soak
def test_runs_twice_with_the_same_scores(demo, tmp_path):
    folder = tmp_path / "demo"
    first = demo(folder).summary
    assert [row["accuracy"] for row in demo(folder).summary["methods"]] == [r["accuracy"] for r in first["methods"]]


def test_never_removes_what_is_not_a_demo(demo, tmp_path):
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not an earlier demo"):
        demo(other)
    assert (other / "thesis.txt").read_text() == "years of work"


DEMO = """
import functools, sys
from zofo import studies
from zofo.cli import main
out, model, rows = sys.argv[1:]
task = {"name": "movie-reviews", "data_dir": rows}
studies.run_demo = functools.partial(studies.run_demo, queries=10**7, model=model, task=task)
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
    run, deadline = RunFolder(folder / "bilevel"), time.monotonic() + 120
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
    assert not folder.joinpath("bilevel.yaml").exists()
