"""Run folders that were edited, damaged or left behind, and systems that lack something: one message each."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import zlib

import pytest
import yaml

from conftest import READ, review_rows, with_soak, write_rows
from zofo.embedded import cache_dir
from zofo.errors import CheckpointError, DownloadError, OutOfMemoryError, RunError
from zofo.export import compare_runs
from zofo.studies import read_study
from zofo.studies.process_pool import Workers
from zofo.studies.result import Outcome
from zofo.studies.store import Store
from zofo.training import RunFolder, read_config, train
from zofo.training.checkpoint import Checkpoints
from zofo.training.run_logs import metrics_lines
from zofo.trajectory import Trajectory
from zofo.trajectory.format import MAGIC


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    """A finished run, and the configuration that made it."""
    folder = tmp_path_factory.mktemp("faults")
    write_rows(folder / "data" / "train.jsonl", review_rows(40))
    write_rows(folder / "data" / "validation.jsonl", review_rows(8, 40))
    write_rows(folder / "data" / "test.jsonl", review_rows(8, 60))
    config = {
        "model": str(model_folder),
        "task": {"name": "movie-reviews", "data_dir": str(folder / "data")},
        "method": {"name": "mezo", "batch_size": 2, "rule": {"lr": 1e-4}},
        "training": {"steps": 2},
    }
    train(read_config(**config, output_dir=str(folder / "run")))
    return config, folder / "run"


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made[1], tmp_path / "run")
    return RunFolder.open(tmp_path / "run")


def edit(run, **changes):
    """Change a run's configuration as nobody can see: also where environment.json holds it."""
    path, known = run.path / "config.yaml", run.path / "environment.json"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    environment = json.loads(known.read_text(encoding="utf-8"))
    environment["configuration"] |= changes
    known.write_text(json.dumps(environment), encoding="utf-8")
    return RunFolder.open(run.path)


# starts


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_run_that_starts_from_itself_is_one_message(run_zofo, made, run, tmp_path, length):
    folders = [run.path, *(tmp_path / f"other{i}" for i in range(length - 1))]
    for folder in folders[1:]:
        shutil.copytree(run.path, folder)
    for folder, start in zip(folders, [*folders[1:], folders[0]], strict=True):
        edit(RunFolder(folder), init_from=str(start))
    for arguments in (
        ("eval", run.path),
        ("predict", run.path, "a joy"),
        ("replay", run.path),
        ("export", run.path, "--merged", tmp_path / "merged"),
        ("export", run.path, "--patch", tmp_path / "a.patch"),
        ("train", run.path / "config.yaml", f"output_dir={tmp_path / 'new'}"),
    ):
        code, _, err = run_zofo(*arguments)
        assert code == 2, arguments
        assert "no run can start from itself" in err, arguments
        assert err.count("error: ") == 1


def test_a_circle_of_links_is_seen(run, tmp_path):
    (tmp_path / "link").symlink_to(run.path)
    with pytest.raises(RunError, match="no run can start from itself"):
        edit(run, init_from=str(tmp_path / "link")).chain()


def test_a_second_adapter_is_refused_with_what_to_type_and_that_works(model_folder, data_dir, tmp_path, run_zofo):
    rows = ("task=movie-reviews", f"task.data_dir={data_dir}", "method=first-order", "method.batch_size=2")
    first, second = (tmp_path / name for name in ("first", "second"))
    lora = ("train", *rows, "training.steps=1", "training.eval_batch_size=64")
    assert run_zofo(*lora, f"model={model_folder}", f"output_dir={first}")[0] == 0
    other = (*lora, "method.adapter.rank=4")
    code, _, err = run_zofo(*other, f"model={model_folder}", f"init_from={first}", f"output_dir={second}")
    assert code == 2
    assert "would attach another one" in err.replace("\n", " ")
    assert f"zofo export {first} --merged {first}-merged" in err.replace("\n", " ")
    assert run_zofo("export", first, "--merged", f"{first}-merged")[0] == 0
    assert run_zofo(*other, f"model={first}-merged", f"output_dir={second}")[0] == 0


# leftovers


def leave_checkpoints(run):
    Checkpoints(run.checkpoints).save(1, lambda folder: (folder / "a").write_text("x"))


def test_checkpoints_that_a_killed_process_left_of_an_ended_run_go_when_it_is_used(run_zofo, run):
    leave_checkpoints(run)
    assert run_zofo("eval", run.path)[0] == 0
    assert not run.checkpoints.exists()


def test_they_go_when_the_same_is_typed_again(made, run):
    leave_checkpoints(run)
    with pytest.raises(RunError, match="exists, and a run never overwrites another"):
        train(read_config(**made[0], output_dir=str(run.path)))
    assert not run.checkpoints.exists()


def test_they_stay_while_a_process_is_at_it_or_the_run_has_not_ended(run):
    leave_checkpoints(run)
    with run.locked():
        RunFolder.open(run.path)
    assert run.checkpoints.exists()
    summary = run.path / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"stopped": "by SIGTERM"}), encoding="utf-8")
    RunFolder.open(run.path)
    assert run.checkpoints.exists()


def test_a_run_whose_summary_is_damaged_does_not_begin_again(made, run):
    before = run.trajectory.read_bytes()
    (run.path / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"summary\.json"):
        train(read_config(**made[0], output_dir=str(run.path)))
    assert run.trajectory.read_bytes() == before


def test_the_loser_of_two_starts_is_told_of_the_winner(made, run):
    with run.locked(), pytest.raises(RunError, match="another process is training in") as raised:
        train(read_config(**made[0], output_dir=str(run.path)))
    assert "wait for it" in raised.value.hint
    assert "remove" not in str(raised.value)


# logs


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * 100_000, "is no JSON"),
        (b'{"event": "step", "a": ' * 50_000, "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"{", "is no JSON"),
        (b"[1]", "no object with an event"),
        (b"null", "no object with an event"),
        (b'[["event", "step"]]', "no object with an event"),
        (b'{"step": 1}', "no object with an event"),
        (b'{"event": "step", "step": "1"}', "step cannot be '1'"),
        (b'{"event": "step", "step": true}', "step cannot be True"),
        (b'{"event": "step", "step": 1.5}', "step cannot be 1.5"),
        (b'{"event": "evaluation", "steps": null}', "step cannot be None"),
    ],
)
def test_a_line_of_metrics_that_no_run_writes_is_named(run, made, line, message):
    run.metrics.write_bytes(run.metrics.read_bytes() + line + b"\n")
    number = run.metrics.read_bytes().count(b"\n")
    with pytest.raises(RunError, match=f"line {number}.*{message}"):
        metrics_lines(run.metrics)
    with pytest.raises(RunError, match=message):
        compare_runs(run.path, made[1])


def test_a_last_line_that_a_kill_has_cut_is_left_out(run):
    whole = metrics_lines(run.metrics)
    run.metrics.write_bytes(run.metrics.read_bytes()[:-4])
    assert metrics_lines(run.metrics) == whole[:-1]
    run.metrics.write_bytes(b"")
    assert metrics_lines(run.metrics) == []


def headed(header, *steps):
    text = json.dumps(header).encode()
    frames = [struct.pack("<BII", 4, n, zlib.crc32(struct.pack("<BI", 4, n))) for n in steps]
    return MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text + b"".join(frames)


@pytest.mark.parametrize("seed", [True, 1.0, "1", -1, 1 << 64, 10**30, None, [1]])
def test_a_seed_that_no_run_has_is_refused(seed):
    with pytest.raises(RunError, match="header of the trajectory is damaged"):
        Trajectory.parse(headed({"seed": seed}), "a")


@pytest.mark.parametrize("steps", [(0, 0), (1, 0), (0, 1, 1), (4_294_967_295, 0)])
def test_steps_that_end_twice_or_backwards_are_refused(steps):
    with pytest.raises(RunError, match="ends step"):
        Trajectory.parse(headed({"seed": 0}, *steps), "a")
    assert Trajectory.parse(headed({"seed": (1 << 64) - 1}, 0, 1, 2), "a").steps == 3
    assert Trajectory.parse(headed({"seed": 0}, 4), "a").steps == 5  # a summed patch


HOSTILE = [True, False, -1, 0, 10**30, 1 << 63, 1 << 40, 0.5, "x", "1", [], {}, None, float("nan"), float("inf"), 1e308]


@pytest.mark.parametrize("share", with_soak([8, 1], [8]))
def test_no_value_in_the_header_of_a_trajectory_gives_a_traceback(run_zofo, run, share):
    header = dict(Trajectory.read(run.trajectory).header)
    noise = header["noise"] if isinstance(header["noise"], dict) else {"name": header["noise"]}
    rest = run.trajectory.read_bytes()
    length = struct.unpack_from("<I", rest, len(MAGIC))[0]
    records = rest[len(MAGIC) + 8 + length :]
    summary = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
    for number, value in enumerate(HOSTILE):
        places = [("noise", {**noise, key: value}) for key in noise] + [(key, value) for key in header]
        for key, changed in places[number % share :: share]:  # the others come with the next values
            text = json.dumps({**header, key: changed}).encode()
            data = MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text + records
            run.trajectory.write_bytes(data)
            parts = {**summary["parts"], "trajectory.bin": sha256(data)}
            (run.path / "summary.json").write_text(json.dumps({**summary, "parts": parts}), encoding="utf-8")
            code, _, err = run_zofo("replay", run.path)  # asserts that there is no traceback
            assert code in (0, 1, 2), (key, changed, err)


def sha256(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# what a system may lack


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EACCES])
def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path, monkeypatch, number):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, lambda folder: (folder / "a").write_text("x"))
    (tmp_path / "outcome.json").write_text("{}", encoding="utf-8")

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    for read in (checkpoints.latest, lambda: Outcome.read(tmp_path)):
        with pytest.raises(RunError) as raised:
            read()
        assert os.strerror(number) in raised.value.message
        assert "remove" not in str(raised.value)


def test_memory_that_runs_out_is_not_called_damage(made, monkeypatch):
    def run_out(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    READ.clear()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", run_out)
    with pytest.raises(OutOfMemoryError, match="memory ran out"):
        RunFolder.open(made[1]).load()


def test_processes_that_cannot_be_started_are_said(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/dev/shm")

    monkeypatch.setattr("zofo.studies.process_pool.ProcessPoolExecutor", refuse)
    with Workers(2, False) as workers, pytest.raises(RunError, match="/dev/shm") as raised:
        list(workers.make(read_study("least-squares").grid.final_runs[:1], Store(tmp_path)))
    assert "leave out --jobs" in raised.value.hint


def test_without_a_home_folder_the_cache_is_asked_for(monkeypatch):
    monkeypatch.delenv("ZOFO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", homeless)
    with pytest.raises(DownloadError) as raised:
        cache_dir()
    assert "ZOFO_CACHE" in raised.value.hint


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=4294967296",
        "training.steps=10000000000000000000000000000000",
        "training.max_queries=10000000000000000000000000000000",
        "method.trainable=[]",
        "method.rule.lr=.inf",
        "method.rule.lr=1e400",
        "method.epsilon=.nan",
        "training.seed=18446744073709551616",
        "training.steps=٣",
    ],
)
def test_a_number_that_no_run_can_have_is_refused(run_zofo, made, tmp_path, override):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(made[0]), encoding="utf-8")
    code, _, err = run_zofo("train", config, f"output_dir={tmp_path / 'new'}", override)
    assert code == 2, err
    assert err.startswith("error: ")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_that_cannot_be_read_is_not_removed(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, lambda folder: (folder / "a").write_text("x"))
    with monkeypatch.context() as patch:
        patch.setattr("zofo.training.checkpoint.sha256_of", lambda _: (_ for _ in ()).throw(OSError(errno.EMFILE, "x")))
        with pytest.raises(CheckpointError):
            checkpoints.latest()
    assert checkpoints.latest().step == 1


def test_a_pipe_among_the_checkpoints_is_not_waited_for(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c" / "step-00000009")
    checkpoints.sweep()
    checkpoints.save(1, lambda folder: (folder / "a").write_text("x"))
    assert checkpoints.latest().step == 1
    assert [each.name for each in (tmp_path / "c").iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_no_run_has_is_damage(tmp_path, score):
    Outcome({"a": 1}, "accuracy", scores={"validation": {"loss": 1.0, "score": 0.5}}).write(tmp_path)
    assert Outcome.read(tmp_path) is not None
    Outcome({"a": 1}, "accuracy", scores={"validation": {"loss": 1.0, "score": score}}).write(tmp_path)
    with pytest.raises(RunError, match="is damaged: a score cannot be"):
        Outcome.read(tmp_path)
