"""Files that earlier versions wrote load, and give the numbers that they gave then."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from formats.make import (
    CHECKPOINT,
    NUMBERS,
    PATCHES,
    STEPS,
    TRAJECTORY,
    VOTE,
    base_model,
    make_trajectory,
    method_of,
    numbers_of,
    progress_of,
    save_base,
    votes_of,
)
from zofo.displacement import Key
from zofo.export import Patch, apply_patch
from zofo.export.patch import VERSION
from zofo.methods.vote import read_members
from zofo.training.checkpoint import Checkpoints
from zofo.trajectory import Trajectory, replay


def agree(found, name, apart_from="base"):
    """The numbers are the recorded ones, and the file had a part in them."""
    known = json.loads(NUMBERS.read_text(encoding="utf-8"))
    assert torch.allclose(torch.tensor(found), torch.tensor(known[name]), rtol=1e-5, atol=1e-6)
    if apart_from:
        assert not torch.allclose(torch.tensor(found), torch.tensor(known[apart_from]), rtol=1e-4, atol=1e-4)


def test_the_base_model_is_what_it_was():
    agree(numbers_of(base_model()), "base", apart_from=None)


@pytest.mark.promise(17)
def test_a_trajectory_of_format_2(tmp_path):
    trajectory = Trajectory.read(TRAJECTORY)
    kinds = [type(record).__name__ for record in trajectory.records]
    assert kinds == ["Moved", "Update", "Stepped", "Flushed", "Update", "Stepped", "Update", "Stepped"]
    assert trajectory.whole
    assert trajectory.updates[0].displacement[Key(7, 0, 1)] == 0.125
    assert (trajectory.updates[1].decay_factor, trajectory.updates[2].lr) == (0.001, 0.02)
    model = base_model()
    replay(model, trajectory)
    agree(numbers_of(model), TRAJECTORY.name)
    make_trajectory(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == TRAJECTORY.read_bytes()  # it is still what is written


@pytest.mark.promise(17)
@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_a_patch_of_each_version(tmp_path, path):
    patch = Patch.read(path)
    assert (patch.header.method, patch.header.base.name, patch.stages[0].header.steps) == ("bilevel", "tiny", STEPS)
    save_base(tmp_path / "base")
    apply_patch(path, str(tmp_path / "base"), tmp_path / "out")
    agree(numbers_of(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()), path.name)


@pytest.mark.promise(17)
def test_a_vote(tmp_path):
    save_base(tmp_path / "base")
    apply_patch(VOTE, str(tmp_path / "base"), tmp_path / "out")
    assert Patch.read(VOTE).header.vote == len(read_members(tmp_path / "out" / "vote.json")) == 3
    agree(votes_of(tmp_path / "out"), VOTE.name, apart_from=None)


def test_there_is_a_file_of_the_format_that_is_written_today():
    assert PATCHES[-1].name == f"patch-{VERSION}.zofo"


@pytest.mark.promise(6)
def test_a_checkpoint_of_version_1(tmp_path):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "run")
    method = method_of(base_model())
    saved = Checkpoints(folder).latest(pytest.fail)
    assert saved is not None
    done = progress_of(method, folder).restore(saved, folder / "metrics.jsonl", folder / "trajectory.bin")
    assert (saved.step, done.steps) == (STEPS, STEPS)
    with method.using("adapter"):
        agree(numbers_of(method.model), CHECKPOINT.name)


def test_the_files_are_small():
    sizes = [path.stat().st_size for path in NUMBERS.parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert max(sizes) < 20_000
    assert sum(sizes) < 60_000
