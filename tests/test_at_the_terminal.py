"""What a person at a terminal sees: answers at once, progress, short lines, and no long wait for a network."""

from __future__ import annotations

import io
import re
import socket
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from rich.console import Console

import zofo
from conftest import review_rows, write_rows
from zofo import hub
from zofo.cli.terminal import Terminal, guarded_streams
from zofo.errors import DataError, ModelError
from zofo.tasks.readers.sources import read_hub
from zofo.training.progress import EvaluationProgress, progress_bar, row_progress


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def lines(screen):
    """What a screen showed, without what moves its cursor."""
    return [line.rstrip() for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[\d?]*[a-zA-Z]", "", screen.getvalue()))]


def test_a_bar_fits_80_columns_and_keeps_its_estimate(monkeypatch):
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    with progress_bar(console) as bar:
        shown = "loss 0.610  accuracy 81.8 %  69 queries/s  0.69 GiB"
        task = bar.add_task("first-order", total=1000, shown=shown)
        monkeypatch.setattr(type(bar.tasks[0]), "time_remaining", 75.0)
        bar.update(task, completed=250)
        bar.refresh()
    (line,) = {line for line in lines(screen) if "250/1000" in line}
    assert "01:15" in line
    assert "69 queries/s" in line
    assert max(map(len, lines(screen))) <= 80


def test_evaluations_are_shown_below_the_bar_and_go(monkeypatch):
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    shown = EvaluationProgress(console)
    with progress_bar(console) as bar:
        bar.add_task("steps", total=2, shown="")
        shown.below = bar
        with shown(40) as done:
            done(10)
            bar.refresh()
            assert len(bar.tasks) == 2
        assert len(bar.tasks) == 1
    assert any("evaluation" in line and "10/40" in line for line in lines(screen))


def test_long_work_says_a_line_now_and_then_where_there_is_no_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    shown = io.StringIO()
    with row_progress(Console(file=shown), "evaluation", 100, 20) as done:
        for seconds in (4, 11, 15, 22):
            now[0] = seconds
            done(20)
    assert shown.getvalue().splitlines() == ["evaluation  60/100 rows  3.6 rows/s  11 s left"]


def test_a_bar_under_guarded_streams_is_drawn_and_not_spelt(monkeypatch):
    """rich puts a stream of its own in front while a bar is there; what it draws was written out as \\x1b."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with guarded_streams():
        console = Terminal(stderr=True)
        with progress_bar(console) as bar:
            bar.add_task("steps", total=2, shown="")
            print("a warning of \x1b[2J", file=sys.stderr)
            bar.refresh()
    assert "\x1b[" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()
    assert "\\x1b" not in screen.getvalue()


def test_train_alone_shows_its_usage_and_trains_nothing(run_zofo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for verb in (["train"], ["tune", "lr"]):
        _, out, err = run_zofo(*verb)
        assert "Usage:" in out + err
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_gets_a_row_of_a_table_as_a_line(run_zofo):
    _, out, _ = run_zofo("list", "tasks")
    assert all(line.startswith(("kind", "tasks", "     ")) for line in out.splitlines())
    assert next(line for line in out.splitlines() if "boolq" in line).rstrip().endswith("as in SuperGLUE")


@pytest.fixture
def lost_hub(monkeypatch):
    """A Hub that cannot be reached."""
    hub._cannot_connect.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def refuse(address, *_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    yield
    hub._cannot_connect.cache_clear()


def test_without_a_network_one_line_comes_in_seconds(lost_hub, tmp_path):
    start = time.perf_counter()
    with pytest.raises(ModelError, match="the Hub cannot be reached, nor is it in its cache .*Name or service"):
        zofo.load_model("nobody/no-such-model")
    with pytest.raises(DataError, match="the Hub cannot be reached .*Name or service not known"):
        read_hub("nobody/no-such-rows", None, None, "train", "mine")
    assert time.perf_counter() - start < 5
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_SECONDS", 0.05)

    def wait(*_):
        time.sleep(0.8)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", wait)
    hub._cannot_connect.cache_clear()
    assert "no answer of" in hub.unreachable()
    hub._cannot_connect.cache_clear()


def test_a_hub_that_answers_or_must_not_be_asked_is_not_lost(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.unreachable() is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.unreachable() is None


def test_near_names_on_the_disk_are_offered_before_the_hub_is_asked(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "unreachable", lambda: pytest.fail("the Hub was asked"))
    write_rows(Path("rows/reviews.jsonl"), review_rows(4))
    Path("models/tiny").mkdir(parents=True)
    with pytest.raises(ModelError, match="Did you mean 'models/tiny'"):
        zofo.load_model("models/tyny")
    with pytest.raises(DataError, match="Did you mean 'rows/reviews.jsonl'"):
        read_hub("rows/reviews", None, None, "train", "mine")
