"""The demo from end to end, on a tiny model and made-up rows; the real one is `make demo`."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from zofo.errors import RunError
from zofo.studies import run_demo
from zofo.training import RunFolder


@pytest.fixture
def demo(model_folder, data_dir, tmp_path):
    def run(folder, queries=240):
        task = {"name": "movie-reviews", "data_dir": str(data_dir)}
        with (tmp_path / "shown.txt").open("a", encoding="utf-8") as shown:
            return run_demo(folder, Console(file=shown, width=200), queries, str(model_folder), task)

    return run


def test_writes_the_promised_summary(demo, tmp_path):
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
