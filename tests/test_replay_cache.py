"""When a trained model is not replayed: its weights are in the run, or what a replay led to is kept beside it."""

from __future__ import annotations

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import review_rows, write_rows
from test_resume import METHOD
from zofo.backbone import Backbone, fingerprint, selected
from zofo.errors import RunError
from zofo.noise import Gaussian, LowRank
from zofo.training import RunFolder, read_config, train
from zofo.training import restore as restore_module


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    """A run of zeroth-order steps, with the best of its evaluations before the last step or after it."""
    folder = tmp_path_factory.mktemp("made")
    write_rows(folder / "data" / "train.jsonl", review_rows(40))
    write_rows(folder / "data" / "validation.jsonl", review_rows(8, 40))
    task = {"data_dir": str(folder / "data")}
    training = {"steps": 4, "eval_steps": 2}

    def make(dtype):
        model, where = {"name": str(model_folder), "dtype": dtype}, str(folder / dtype)
        return train(
            read_config(model=model, task=task, method=METHOD["mezo"], training=training, output_dir=where)
        ).path

    return {dtype: make(dtype) for dtype in ("float32", "bfloat16")}


@pytest.fixture
def run(made, tmp_path):
    return RunFolder.open(shutil.copytree(made["float32"], tmp_path / "run"))


@pytest.fixture
def half(made, tmp_path):
    """The same in half precision, where the run holds the weights as they were rounded."""
    return RunFolder.open(shutil.copytree(made["bfloat16"], tmp_path / "half"))


@pytest.fixture
def replays(monkeypatch):
    """How many steps each replay was asked for; None for all."""
    found, replay = [], restore_module.replay

    def watched(model, trajectory, steps=None, summed=False):
        found.append(steps)
        return replay(model, trajectory, steps, summed)

    monkeypatch.setattr(restore_module, "replay", watched)
    return found


def bits(run, **how):
    return Backbone(run.load(**how).model, Gaussian()).fingerprint()


def test_weights_that_hold_all_that_was_moved_need_no_replay(half, replays):
    assert bits(half) == half.summary["backbone"]
    assert bits(half, best=True) == Backbone(half.load(best=True).model, Gaussian()).fingerprint()
    assert replays == []


@pytest.mark.parametrize("best", [False, True])
def test_weights_that_lack_one_are_taken_after_a_replay(half, replays, best):
    folder = half.path / "best" if best else half.path
    tensors = load_file(folder / "weights.safetensors")
    norm = next(name for name in tensors if "norm" in name)
    del tensors[norm]
    save_file(tensors, folder / "weights.safetensors")
    half.write_outcome({key: value for key, value in half.summary.items() if key != "parts"})
    found = half.load(best=best).model
    assert replays == [half.summary["best"]["step"] if best else None]
    usual = load_file(folder / "weights.safetensors")
    assert all(torch.equal(selected(found)[name], tensor) for name, tensor in usual.items())
    assert not torch.equal(selected(found)[norm], selected(half.load_base().model)[norm])


def test_nothing_is_kept_unless_it_is_asked_for(run, replays):
    assert bits(run) == bits(run)
    assert replays == [None, None]
    assert not (run.path / "replayed").exists()


def test_a_replay_is_made_once_for_each_number_of_steps_and_has_the_same_bits(run, replays):
    usual, best, base = bits(run), bits(run, best=True), Backbone(run.load_base().model, Gaussian()).fingerprint()
    assert usual != base
    step = run.summary["best"]["step"]
    replays.clear()
    run.enable_replay_cache()
    run.enable_replay_cache()  # twice is once
    assert [bits(run), bits(run), bits(run, best=True), bits(run, best=True)] == [usual, usual, best, best]
    assert replays == [None, step]
    names = {"weights.safetensors", f"weights-{step}.safetensors"}
    assert {file.name for file in (run.path / "replayed").glob("[!.]*")} == names
    assert run.artifact_hashes() == run.summary["parts"]  # it is no part of the run


def damaged(change):
    def damage(file):
        with safe_open(file, framework="pt") as opened:
            told = opened.metadata()
        tensors = load_file(file)
        change(tensors, told)
        save_file(tensors, file, metadata=told)

    return damage


def first(tensors):
    return next(iter(tensors))


DAMAGE = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "another bit": damaged(lambda tensors, told: tensors[first(tensors)].view(-1)[:1].mul_(-1)),
    "another trajectory": damaged(lambda tensors, told: told.update(trajectory="sha256:0")),
    "another version": damaged(lambda tensors, told: told.update(torch="1.0")),
    "another device": damaged(lambda tensors, told: told.update(device="cuda")),
    "no word of its origin": damaged(lambda tensors, told: told.clear()),
    "a tensor too many": damaged(lambda tensors, told: tensors.update(more=tensors[first(tensors)].clone())),
    "a tensor less": damaged(lambda tensors, told: tensors.pop(first(tensors))),
    "another dtype": damaged(lambda tensors, told: tensors.update({first(tensors): tensors[first(tensors)].double()})),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_file_that_does_not_fit_is_replaced(run, replays, how):
    run.enable_replay_cache()
    usual, file = bits(run), run.path / "replayed" / "weights.safetensors"
    DAMAGE[how](file)
    assert bits(run) == usual
    assert replays == [None, None]
    assert bits(run) == usual
    assert len(replays) == (3 if how == "a folder" else 2)  # which is in the way of the file


def test_a_damaged_trajectory_is_refused_though_its_replay_is_kept(run):
    run.enable_replay_cache()
    bits(run)
    data = bytearray(run.trajectory.read_bytes())
    data[-1] ^= 1
    run.trajectory.write_bytes(bytes(data))
    with pytest.raises(RunError, match="is damaged"):
        run.load()


def test_a_full_disk_costs_a_replay_and_nothing_else(run, replays, monkeypatch):
    usual = bits(run)
    run.enable_replay_cache()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(restore_module, "save_file", full)
    assert bits(run) == usual
    assert bits(run) == usual
    assert not list((run.path / "replayed").glob("*.safetensors"))
    monkeypatch.undo()
    shutil.rmtree(run.path / "replayed")
    (run.path / "replayed").touch()  # nor can anything be written where no folder is
    assert bits(run) == usual


def test_a_folder_that_can_only_be_read_costs_a_replay_and_nothing_else(run, replays, monkeypatch):
    """As on a disk that is mounted so, with what another machine has kept there."""
    usual = bits(run)
    run.enable_replay_cache()
    bits(run)
    DAMAGE["another device"](run.path / "replayed" / "weights.safetensors")
    before = {file.name: file.read_bytes() for file in (run.path / "replayed").iterdir()}

    def refused(*given, **how):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(restore_module, "save_file", refused)
    monkeypatch.setattr(restore_module, "FileLock", refused)
    monkeypatch.setattr(type(run.path), "unlink", refused)
    assert bits(run) == usual
    assert {file.name: file.read_bytes() for file in (run.path / "replayed").iterdir()} == before


def test_of_several_that_come_at_once_one_replays(run, replays):
    run.enable_replay_cache()
    models = [run.load_base() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run.restore, models))
    assert replays == [None]
    assert len({Backbone(loaded.model, Gaussian()).fingerprint() for loaded in models}) == 1


def test_the_checked_file_is_the_one_that_is_read(run, replays, monkeypatch):
    """Another process may give its name to another file in between, or remove it."""
    run.enable_replay_cache()
    usual, file = bits(run), run.path / "replayed" / "weights.safetensors"

    def checked(tensors):
        found = fingerprint(tensors)
        file.unlink()
        return found

    monkeypatch.setattr(restore_module, "fingerprint", checked)
    assert bits(run) == usual
    assert replays == [None]


def test_what_depends_on_code_of_the_users_own_is_not_kept(run, replays, monkeypatch):
    """Its version says nothing of it."""
    run.enable_replay_cache()
    monkeypatch.setattr(LowRank, "__module__", "mine")
    assert bits(run) == bits(run)
    assert replays == [None, None]


def test_a_run_without_a_trajectory_keeps_nothing(run):
    run.trajectory.unlink()
    run.enable_replay_cache()
    assert not (run.path / "replayed").exists()


def test_what_is_written_says_what_it_is_the_bits_of(run):
    run.enable_replay_cache()
    run.load()
    with safe_open(run.path / "replayed" / "weights.safetensors", framework="pt") as file:
        told = file.metadata()
    assert told["sha256"] == fingerprint(load_file(run.path / "replayed" / "weights.safetensors"))
    assert told["base"] == run.base_hash
