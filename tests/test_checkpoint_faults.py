"""Saves that are killed, that find no room, or whose files are damaged: a whole checkpoint is always there."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError

from conftest import review_rows, write_rows
from crash_points import REMOVALS, forked
from test_resume import contents
from zofo.errors import ConfigError, RunError
from zofo.filesystem import writing
from zofo.training import RunFolder, read_config, train
from zofo.training.callbacks import BestCheckpoint
from zofo.training.checkpoint import Checkpoints, damage_of
from zofo.training.data_module import prepare_run
from zofo.training.resume import create_run_folder

STEPS = 5
BILEVEL = {"name": "bilevel", "batch_size": 2, "inner_steps": 1, "rule": {"lr": 1e-4}}


def later(*values, **options):
    return pytest.param(*values, marks=pytest.mark.soak, **options)


@pytest.fixture(scope="module")
def config(model_folder, tmp_path_factory):
    """The file of a run that saves after each step, with adapters, optimizers, a best model and a trajectory."""
    folder = tmp_path_factory.mktemp("saves")
    write_rows(folder / "data" / "train.jsonl", review_rows(40))
    write_rows(folder / "data" / "validation.jsonl", review_rows(8, 40))
    content = {
        "model": str(model_folder),
        "task": {"name": "movie-reviews", "data_dir": str(folder / "data")},
        "method": BILEVEL,
        "training": {"steps": STEPS, "eval_steps": 2, "save_steps": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def whole(config):
    """What a run leaves that nothing happened to."""
    run = config.parent / "whole"
    train(read_config(config, [f"output_dir={run}"]))  # here, so that the forks have what a run imports
    return contents(run)


@pytest.fixture(scope="module")
def points(config, whole):
    """The points of the third save, by name: the first one that has an older checkpoint to remove."""
    names = forked(config, f"output_dir={config.parent / 'counted'}", save=3)["points"]
    assert len(names) >= 20
    for kind in (
        "os.fsync",
        "os.rename",
        "os.replace",
        "write_text",
        "write_bytes",
        "save_file",
        "copyfile",
        "os.unlink",
    ):
        assert any(kind in name for name in names), kind
    return names


@pytest.fixture(scope="module")
def stopped_once(config, whole):
    run = config.parent / "stopped"
    said = forked(config, f"output_dir={run}", signal=signal.SIGTERM, times=1, step=3)
    assert (said["status"], said["error"]) == (143, "Interrupted")
    return run


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run that was asked to stop after three steps; it has two checkpoints."""
    return RunFolder(shutil.copytree(stopped_once, tmp_path / "run"))


@pytest.fixture(scope="module")
def end_points(config, whole):
    """The points of the last writes of a run, by name."""
    return forked(config, f"output_dir={config.parent / 'ended'}", save="end")["points"]


def again(config, run, *overrides):
    said = forked(config, f"output_dir={run}", *overrides)
    assert said["status"] == 0, said
    return said


def steps_of(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


# killed


def check_kill(config, whole, run, save, point):
    """Kill a save of a run at a point: the checkpoint is the old or the new one, and the run ends as any other."""
    assert forked(config, f"output_dir={run}", save=save, point=point)["status"] == -signal.SIGKILL
    checkpoints = run / "checkpoints"
    found = Checkpoints(checkpoints).latest() if save > 1 else None
    if save > 1:
        assert found.step in (save - 1, save)
        assert damage_of(found.path) is None
        copy = run.with_name(f"{run.name}-swept")
        shutil.copytree(checkpoints, copy)
        Checkpoints(copy).sweep()
        assert {damage_of(path) for path in copy.iterdir()} == {None}
    said = again(config, run)
    assert "warning" not in said["shown"]
    if found is not None:
        assert f"goes on after {found.step} of {STEPS} steps" in said["shown"]
    assert contents(run) == whole


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    "at",
    [
        "halfway save_file",
        "after os.rename",
        later("halfway write_bytes .complete"),
        later("before os.rmdir"),
    ],
)
def test_a_killed_save_leaves_a_whole_checkpoint(config, whole, points, tmp_path, at):
    point = next(number for number, name in enumerate(points) if name.startswith(at))
    check_kill(config, whole, tmp_path / "run", 3, point)


@pytest.mark.promise(7)
@pytest.mark.soak
@pytest.mark.parametrize("save", [1, 3, 4])
def test_a_save_may_be_killed_at_every_point(config, whole, points, tmp_path, save, tries):
    names = forked(config, f"output_dir={tmp_path / 'counted'}", save=save)["points"]
    for point in tries(range(len(names))):
        check_kill(config, whole, tmp_path / f"run-{point}", save, point)
    print(f"save {save}: killed at {len(names)} points")


@pytest.mark.promise(7)
def test_what_a_killed_save_left_is_swept_when_the_run_goes_on(config, points, tmp_path):
    run = tmp_path / "run"
    forked(config, f"output_dir={run}", save=3, point=points.index("after os.rename"))
    assert damage_of(run / "checkpoints" / "step-00000003") is not None
    shutil.copytree(run / "checkpoints" / "step-00000002", run / "checkpoints" / ".saving-00000009")
    said = forked(config, f"output_dir={run}", "training.save_steps=1", signal=signal.SIGTERM, times=1, step=4)
    assert said["status"] == 143
    assert steps_of(run / "checkpoints") == [3, 4]


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    "left",
    [later(()), later(("run.lock",)), ("run.lock", "task.yaml", "environment.json", ".config.yaml")],
)
def test_a_run_that_was_killed_at_its_very_start_begins(config, whole, tmp_path, left):
    run = tmp_path / "run"
    run.mkdir()
    for name in left:
        (run / name).write_text("" if name == "run.lock" else "{", encoding="utf-8")
    again(config, run)
    assert contents(run) == whole


def test_a_run_that_another_process_ends_meanwhile_is_left_alone(config, whole, stopped, monkeypatch):
    asked = read_config(config, [f"output_dir={stopped.path}"])

    def load(*arguments):
        monkeypatch.undo()
        train(asked)
        return prepare_run(*arguments)

    monkeypatch.setattr(sys.modules[train.__module__], "prepare_run", load)
    with pytest.raises(RunError, match="another process has just ended the run"):
        train(asked)
    assert contents(stopped.path) == whole


@pytest.mark.promise(10)
@pytest.mark.parametrize("number", [signal.SIGTERM, later(signal.SIGINT)])
def test_a_second_signal_leaves_at_once(config, whole, tmp_path, number):
    run, seldom = tmp_path / "run", "training.save_steps=5"
    said = forked(config, f"output_dir={run}", seldom, signal=number, times=2, step=3)
    if number == signal.SIGTERM:
        assert said["status"] == -signal.SIGTERM
    else:
        assert "KeyboardInterrupt" in said["message"]
    assert not (run / "checkpoints").exists()
    assert not (run / "summary.json").exists()
    assert not (run / "adapter").exists()
    again(config, run, seldom)
    assert contents(run) == whole


# the end of a run


def check_kill_at_the_end(config, whole, run, point):
    """Kill the last writes of a run: what says that it has ended is there only with all that it names."""
    assert forked(config, f"output_dir={run}", save="end", point=point)["status"] == -signal.SIGKILL
    folder = RunFolder(run)
    if folder.ended:
        folder.verify()
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    else:
        assert Checkpoints(folder.checkpoints).latest().step == STEPS - 1
        again(config, run)
    assert contents(run) == whole
    return folder


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    "at",
    ["halfway write_bytes .summary.json", later("before os.replace"), "after os.replace", later("before os.rmdir")],
)
def test_a_run_that_is_killed_at_its_end_has_ended_or_goes_on(config, whole, end_points, tmp_path, at):
    point = next(number for number, name in enumerate(end_points) if name.startswith(at))
    check_kill_at_the_end(config, whole, tmp_path / "run", point)


@pytest.mark.promise(7)
@pytest.mark.soak
def test_a_run_may_be_killed_at_every_point_of_its_end(config, whole, end_points, tmp_path, tries):
    for point in tries(range(len(end_points))):
        check_kill_at_the_end(config, whole, tmp_path / f"run-{point}", point)
    print(f"killed at {len(end_points)} points")


@pytest.mark.promise(7)
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the file of a descriptor cannot be looked up here")
def test_what_a_run_left_is_on_the_disk_before_it_says_that_it_has_ended(config, tmp_path, monkeypatch):
    run, happened = RunFolder(tmp_path / "run"), []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        happened.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def replaced(source, target):
        happened.append(("replace", Path(target), run.checkpoints.is_dir()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    train(read_config(config, [f"output_dir={run.path}"]))
    saved = max(i for i, event in enumerate(happened) if event[1].name == "complete" and event[0] == "replace")
    last = [event for event in happened[saved + 1 :] if run.checkpoints not in event[1].parents]
    ended = last.index(("replace", run.path / "summary.json", True))  # while the checkpoints were still there
    before = {event[1] for event in last[:ended]}
    parts = {run.path / name for name in run.summary["parts"]}
    assert len(parts) >= 5
    assert before >= {*parts, *(path.parent for path in parts), run.metrics, run.path / ".summary.json"}
    assert ("sync", run.path) in last[ended:]
    assert not run.checkpoints.exists()


# damaged


def files_of(checkpoint):
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    assert {"manifest.json", "complete", "progress.json", "state.json", "state.safetensors"} <= {p.name for p in files}
    return files


def check_damage(stopped, path, data):
    """One file of the newest checkpoint holds something else: it is named once, and the one before is used."""
    before, warnings = path.read_bytes(), []
    path.write_bytes(data)
    try:
        found = Checkpoints(stopped.checkpoints).latest(warnings.append)
    finally:
        path.write_bytes(before)
    assert found.step == 2
    (warning,) = warnings
    assert str(path) in warning
    assert "the checkpoint before it is used" in warning


@pytest.mark.promise(8)
def test_every_flip_and_every_cut_is_detected(stopped, tries):
    draw = random.Random(0)
    newest = stopped.checkpoints / "step-00000003"
    files, tried = files_of(newest), 0
    for number in tries(range(200)):
        path = files[number % len(files)]
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        check_damage(stopped, path, bytes(data))
        tried += 1
    for number in tries(range(50)):
        path = files[number % len(files)]
        data = path.read_bytes()
        check_damage(stopped, path, data[: draw.randrange(len(data))])
        tried += 1
    assert tried == 250
    assert Checkpoints(stopped.checkpoints).latest().step == 3


@pytest.mark.promise(8)
@pytest.mark.parametrize("name", ["manifest.json", "progress.json", "state.json", "state.safetensors"])
def test_a_file_that_is_gone_is_named(stopped, name):
    path = stopped.checkpoints / "step-00000003" / name
    path.unlink()
    warnings = []
    assert Checkpoints(stopped.checkpoints).latest(warnings.append).step == 2
    assert str(path) in warnings[0]


@pytest.mark.promise(8)
def test_a_file_too_many_is_named(stopped):
    path = stopped.checkpoints / "step-00000003" / "best" / "more.json"
    path.write_text("{}", encoding="utf-8")
    assert f"{str(path)!r} is not in the manifest" in damage_of(path.parent.parent)


@pytest.mark.promise(8)
def test_where_none_can_be_used_the_run_does_not_begin_again_by_itself(config, whole, stopped):
    kept = stopped.path.with_name("kept")
    shutil.copytree(stopped.checkpoints, kept)
    damaged = [stopped.checkpoints / f"step-0000000{step}" / "state.json" for step in (2, 3)]
    for path in damaged:
        path.write_text("{}", encoding="utf-8")
    metrics = stopped.metrics.read_bytes()
    said = forked(config, f"output_dir={stopped.path}")
    assert (said["error"], said["status"]) == ("CheckpointError", 2)
    assert all(str(path) in said["message"] for path in damaged)
    assert f"remove {str(stopped.checkpoints)!r}" in said["hint"]
    assert stopped.metrics.read_bytes() == metrics
    shutil.rmtree(stopped.checkpoints)
    shutil.copytree(kept, stopped.checkpoints)
    again(config, stopped.path)
    assert contents(stopped.path) == whole


@pytest.mark.promise(7)
def test_those_of_later_steps_go_when_an_earlier_one_is_saved(tmp_path):
    """A run that went on from the one before saves at other steps; the newest whole ones are those that are kept."""
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(8, lambda folder: (folder / "a").write_text("8"))
    checkpoints.save(5, lambda folder: (folder / "a").write_text("5"))
    assert checkpoints.latest().step == 5
    assert steps_of(tmp_path / "c") == [5]


@pytest.mark.promise(7)
def test_a_newer_damaged_one_does_not_push_out_the_last_whole_one(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (2, 3):
        checkpoints.save(step, lambda folder, step=step: (folder / "a").write_text(str(step)))
    (tmp_path / "c" / "step-00000003" / "a").write_text("damaged")
    assert checkpoints.latest().step == 2
    checkpoints.save(6, lambda folder: (folder / "a").write_text("6"))
    assert steps_of(tmp_path / "c") == [2, 6]


@pytest.mark.promise(8)
@pytest.mark.parametrize("name", ["metrics.jsonl", "trajectory.bin"])
def test_a_log_that_is_shorter_than_its_checkpoint_says_is_named(config, stopped, name):
    path = stopped.path / name
    size = path.stat().st_size
    os.truncate(path, size // 2)
    said = forked(config, f"output_dir={stopped.path}")
    assert (said["error"], said["status"]) == ("CheckpointError", 2)
    assert f"{str(path)!r} has {size // 2} bytes" in said["message"]


# full disks, and those that are read-only


def check_no_room(config, whole, run, save, point, how):
    """Every write of a save fails from a point on: it is said, and the checkpoint before is as it was."""
    said = forked(config, f"output_dir={run}", save=save, point=point, how=how)
    if said["status"] == 0:  # nothing was to be written any more
        return False
    assert (said["error"], said["status"]) == ("CheckpointError", 2), said
    reason = {"ENOSPC": "No space left on device", "EROFS": "Read-only file system"}[how]
    assert f"cannot write the checkpoint {str(run / 'checkpoints' / f'step-{save:08d}')!r}: {reason}" in said["message"]
    assert ("bytes free)" in said["message"]) == (how == "ENOSPC")
    assert "type the same command again" in said["hint"]
    left = steps_of(run / "checkpoints") if (run / "checkpoints").exists() else []
    before = [step for step in (save - 2, save - 1) if step > 0]
    assert left in (before, [*before, save])  # the new one, where only its last sync failed
    assert all(damage_of(run / "checkpoints" / f"step-{step:08d}") is None for step in left)
    again(config, run)
    assert contents(run) == whole
    return True


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("how", "at"), [("ENOSPC", "before save_file"), later("EROFS", "before write_bytes .complete")]
)
def test_a_full_disk_leaves_the_checkpoint_before(config, whole, points, tmp_path, how, at):
    point = next(number for number, name in enumerate(points) if name.startswith(at))
    assert check_no_room(config, whole, tmp_path / "run", 3, point, how)


@pytest.mark.promise(15)
@pytest.mark.soak
@pytest.mark.parametrize("how", ["ENOSPC", "EROFS"])
@pytest.mark.parametrize("save", [1, 3])
def test_a_disk_may_be_full_at_every_write(config, whole, tmp_path, save, how, tries):
    names = forked(config, f"output_dir={tmp_path / 'counted'}", save=save)["points"]
    writes = [
        number
        for number, name in enumerate(names)
        if name.startswith("before") and not any(removal in name for removal in REMOVALS)
    ]
    failed = [check_no_room(config, whole, tmp_path / f"run-{n}", save, n, how) for n in tries(writes)]
    assert sum(failed) == len(writes) >= 20
    print(f"save {save}: {how} at {len(writes)} writes")


@pytest.mark.promise(15)
def test_a_run_may_go_on_without_a_checkpoint(config, whole, points, tmp_path):
    run = tmp_path / "run"
    skip = "training.on_save_error=skip"
    said = forked(config, f"output_dir={run}", skip, save=3, point=points.index("before os.mkdir"), how="ENOSPC")
    assert said["status"] == 0
    assert said["shown"].count("warning: cannot write the checkpoint") == 1
    assert contents(run) == whole


@pytest.mark.promise(15)
def test_it_does_not_where_it_was_asked_to_stop(config, tmp_path):
    """What Stopped says is true: the steps are saved."""
    skip = ("training.on_save_error=skip", "training.save_steps=5")
    how = {"signal": signal.SIGTERM, "times": 1, "step": 3, "save": 1, "point": 0, "how": "EROFS"}
    said = forked(config, f"output_dir={tmp_path / 'run'}", *skip, **how)
    assert (said["error"], said["status"]) == ("CheckpointError", 2)


def number_of(error):
    return getattr(error, "errno", None) or errno.ENOSPC


def system_error(kind, number, *name):
    return kind(number, os.strerror(number), *name)


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("error", "names_the_disk"),
    [
        (lambda _: system_error(OSError, errno.ENOSPC), True),
        (lambda _: system_error(OSError, errno.EROFS, "/elsewhere/a"), True),
        (lambda _: system_error(OSError, errno.EIO), True),
        (lambda _: shutil.Error([("a", "b", f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: 'b'")]), True),
        (lambda _: SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})"), True),
        (lambda run: system_error(PermissionError, errno.EACCES, str(run / "metrics.jsonl")), True),
        (lambda run: system_error(FileNotFoundError, errno.ENOENT, str(run / "best" / "a")), True),
        (lambda run: system_error(OSError, errno.EIO, str(run.parent / "task.yaml")), False),
        (lambda run: system_error(FileNotFoundError, errno.ENOENT, str(run.parent / "task.yaml")), False),
        (lambda run: system_error(PermissionError, errno.EACCES, f"{run}-2/metrics.jsonl"), False),
        (lambda _: system_error(ConnectionResetError, errno.ECONNRESET), False),
        (lambda _: TimeoutError("the Hub does not answer"), False),
        (lambda _: SafetensorError("Error while deserializing header: HeaderTooLarge"), False),
    ],
)
def test_only_errors_of_writing_are_called_so(tmp_path, error, names_the_disk):
    run = tmp_path / "run"
    given = error(run)
    with pytest.raises(RunError if names_the_disk else type(given)) as raised, writing("the run", run, "type it again"):
        raise given
    if names_the_disk:
        assert raised.value.message.startswith(f"cannot write the run {str(run)!r}: {os.strerror(number_of(given))}")
        assert ("bytes free" in raised.value.message) == (number_of(given) == errno.ENOSPC)
        assert raised.value.hint.endswith("type it again")
    else:
        assert raised.value is given


@pytest.mark.promise(15)
def test_a_file_that_a_reward_does_not_find_is_no_full_disk(config, tmp_path):
    run = RunFolder(tmp_path / "run")

    def reward(_example, _answer):
        return float((tmp_path / "rewards.json").read_text(encoding="utf-8")) if run.metrics.is_file() else 1.0

    content = yaml.safe_load(config.read_text(encoding="utf-8")) | {"method": {"name": "mezo", "batch_size": 2}}
    with pytest.raises(ConfigError, match="FileNotFoundError.*rewards.json"):
        train(read_config(**content, output_dir=str(run.path)), reward=reward)
    assert "rewards.json" in run.summary["stopped"]


SELDOM = "training.save_steps=5"


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("largest", "what", "overrides"),
    [
        pytest.param(20_000, "the checkpoint", (), id="tensors of a checkpoint"),
        later(4_000, "the run", (SELDOM,), id="best adapter"),
        pytest.param(2_200, "the run", (SELDOM, "training.eval_steps=5"), id="log"),
        later(600, "the run", (), id="configuration"),
    ],
)
def test_the_system_itself_refuses_to_write_more(config, whole, tmp_path, largest, what, overrides):
    """A limit on the size of a file, in bytes."""
    run = tmp_path / "run"
    said = forked(config, f"output_dir={run}", *overrides, largest_file=largest)
    assert (said["status"], said["error"]) == (2, "CheckpointError" if what == "the checkpoint" else "RunError"), said
    assert f"cannot write {what} '{run}" in said["message"]
    assert "File too large (" in said["message"]
    again(config, run, *overrides)
    if SELDOM not in overrides or len(overrides) == 1:
        assert contents(run) == whole


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own in memory, and what changes its options."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(path)], capture_output=True, check=False).returncode

    if shutil.which("mount") is None or mount("-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        pytest.skip("no file system can be mounted here")
    yield path, mount
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.promise(15)
@pytest.mark.soak
def test_a_real_disk_may_be_full_at_any_size(config, whole, small_disk, tries):
    path, mount = small_disk
    failed = 0
    for kilobytes in tries(range(4, 1200, 60)):
        mount("-o", f"remount,size={kilobytes}k")
        said = forked(config, f"output_dir={path / 'run'}")
        if said["status"]:
            failed += 1
            assert said["error"] in ("CheckpointError", "RunError"), said
            assert "No space left on device (" in said["message"]
            mount("-o", "remount,size=20m")
            again(config, path / "run")
        assert contents(path / "run") == whole
        shutil.rmtree(path / "run")
    assert failed >= 5
    print(f"{failed} disks were full")


@pytest.mark.promise(15)
@pytest.mark.soak
def test_a_real_disk_may_be_read_only(config, whole, small_disk, tries):
    path, mount = small_disk
    mount("-o", "remount,size=20m")
    forked(config, f"output_dir={path / 'run'}", signal=signal.SIGTERM, times=1, step=3)
    mount("-o", "remount,ro")
    for run in tries(("run", "new")):
        said = forked(config, f"output_dir={path / run}")
        assert (said["error"], said["status"]) == ("RunError", 2)
        assert "Read-only file system" in said["message"]
    mount("-o", "remount,rw")
    again(config, path / "run")
    assert contents(path / "run") == whole


def test_a_disk_that_is_full_when_the_best_model_is_taken_back_costs_neither_of_the_two(tmp_path, monkeypatch):
    kept, saved = tmp_path / "best", tmp_path / "checkpoint" / "best"
    for folder, text in ((kept, "of the stop"), (saved, "of the checkpoint")):
        folder.mkdir(parents=True)
        (folder / "weights").write_text(text)
    best = BestCheckpoint(kept, lambda _: None)

    def full(_, to):
        Path(to).mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", full)
        with pytest.raises(OSError, match="No space"):
            best.load_files(saved.parent)
    assert (kept / "weights").read_text() == "of the stop"
    best.load_files(saved.parent)
    assert (kept / "weights").read_text() == "of the checkpoint"
    assert [each.name for each in tmp_path.iterdir() if each.name not in ("best", "checkpoint")] == []


def test_a_folder_with_a_task_file_of_a_user_is_not_taken_for_a_run_that_had_begun(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "task.yaml").write_text("# mine\n", encoding="utf-8")
    with pytest.raises(RunError, match="exists"):
        create_run_folder(read_config(config, [f"output_dir={tmp_path / 'run'}"]))
    (tmp_path / "run" / "run.lock").touch()
    assert create_run_folder(read_config(config, [f"output_dir={tmp_path / 'run'}"])).path == tmp_path / "run"
