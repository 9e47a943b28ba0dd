"""Paths that lead to no file: pipes, devices, links in a circle, names that are no text. One message each, at once."""

from __future__ import annotations

import os
import threading

import pytest

from zofo.errors import RunError
from zofo.filesystem import atomic_folder, check_file_not_taken, check_not_special, real
from zofo.training import RunFolder, read_config
from zofo.training.resume import create_run_folder
from zofo.training.run_logs import metrics_lines
from zofo.trajectory import Trajectory


@pytest.fixture
def pipe(tmp_path):
    """One that nobody writes into: what opens it waits without end."""
    os.mkfifo(tmp_path / "pipe.yaml")
    return tmp_path / "pipe.yaml"


@pytest.mark.parametrize("place", ["pipe", "/dev/zero"])
@pytest.mark.parametrize("words", [("train", "{}", "model=none"), ("apply", "{}", "--base", "none", "--out", "out")])
def test_what_has_no_beginning_or_no_end_is_not_read(run_zofo, pipe, tmp_path, place, words):
    if place != "pipe":
        pipe.unlink()
        pipe.symlink_to(place)
    code, _, err = run_zofo(*(word.format(pipe) for word in words))
    assert code == 2
    assert err.count("is a pipe or a device, and no file") == 1


@pytest.mark.parametrize("name", ["environment.json", "metrics.jsonl", "trajectory.bin"])
def test_nor_is_it_in_a_run(tmp_path, name):
    (tmp_path / "config.yaml").touch()
    os.mkfifo(tmp_path / name)
    reads = {
        "environment.json": lambda run: run.identity,
        "metrics.jsonl": lambda run: metrics_lines(run.metrics),
        "trajectory.bin": lambda run: Trajectory.read(run.trajectory),
    }
    with pytest.raises(RunError, match="is a pipe"):
        reads[name](RunFolder.open(tmp_path))


def test_files_folders_and_what_is_not_there_are_left_to_their_readers(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "nothing", "."):
        check_not_special(tmp_path / place)


def test_a_pipe_is_not_written_over(pipe):
    for force in (True, False):
        with pytest.raises(RunError, match="a folder, a pipe or a device"):
            check_file_not_taken(pipe, force)
    assert pipe.is_fifo()


def test_links_in_a_circle_hold_no_folder(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert real(tmp_path / "circle") == tmp_path / "circle"
    for place in (tmp_path / "circle", tmp_path / "circle" / "inside"):
        with pytest.raises(RunError, match="circle|symbolic links"), atomic_folder(place, force=True):
            pass
    assert [each.name for each in tmp_path.iterdir()] == ["circle"]


def test_a_folder_has_a_name_that_libraries_can_write(tmp_path):
    with pytest.raises(RunError, match="no text in UTF-8"), atomic_folder(tmp_path / os.fsdecode(b"\xff"), force=True):
        pass
    assert not list(tmp_path.iterdir())


def test_runs_without_a_name_that_begin_at_once_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, found = read_config(), []
    ready = threading.Barrier(8)

    def begin():
        ready.wait()
        found.append(create_run_folder(config).path)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8


@pytest.mark.parametrize("words", [("train", "{}"), ("validate", "task={}")])
def test_a_key_that_is_given_twice_is_refused_in_every_file(run_zofo, tmp_path, words):
    (tmp_path / "a.yaml").write_text("training:\n  steps: 2\n  steps: 9\n", encoding="utf-8")
    code, _, err = run_zofo(*(word.format(tmp_path / "a.yaml") for word in words))
    assert code == 2
    assert "training.steps: given twice, in lines 2 and 3" in err
