"""What a checkpoint holds of a run, gone or of another kind: the run never goes on without it, whatever hashes say."""

from __future__ import annotations

import copy
import json
import random

import pytest
from safetensors.torch import load_file, save_file

from conftest import review_rows, write_rows
from metaicl_rows import write_tasks
from test_resume import METHOD, stopped_at
from zofo.errors import CheckpointError
from zofo.methods import METHODS
from zofo.training import RunFolder, read_config, train
from zofo.training.callbacks import BestCheckpoint, EvaluationCallback
from zofo.training.checkpoint import Checkpoints
from zofo.training.data_module import prepare_run, training_context
from zofo.training.identity import content_hash
from zofo.training.run_state import RunState, should_checkpoint_weights

DISK = "meta-bilevel, on disk"
CASES = ["mezo, momentum", "mezo, dense adam", "svrg", "svrg, copy", "first-order", "bilevel", "two-stage", DISK]
GONE, WORD, NAN, NOTHING = "gone", "a word", "nan", "null"


@pytest.fixture(scope="module")
def stopped(model_folder, tmp_path_factory):
    """Runs that were stopped after 7 of 12 steps, by case: configuration, folder and newest checkpoint."""
    folder, made = tmp_path_factory.mktemp("state"), {}
    write_rows(folder / "data" / "train.jsonl", review_rows(40))
    write_rows(folder / "data" / "validation.jsonl", review_rows(8, 40))

    def stop(case):
        if case not in made:
            names = ["mood", "tone", "pick"]
            several = {
                "data": str(write_tasks(folder / "tasks", names)),
                "tasks": names,
                "split_sizes": {"validation": 3},
            }
            config = read_config(
                model=str(model_folder),
                task=several if case == DISK else {"data_dir": str(folder / "data")},
                method=METHOD[case],
                training={"steps": 12, "eval_steps": 4},
                output_dir=str(folder / case),
            )
            stopped_at(config, 7)
            made[case] = (
                config,
                RunFolder(config.output_dir),
                Checkpoints(RunFolder(config.output_dir).checkpoints).latest(),
            )
        return made[case]

    return stop


def restore(config, run, checkpoint):
    """Take a checkpoint back in a method that was built anew."""
    prepared = prepare_run(config, False, ("train", "validation"))
    method = METHODS[config.method.name](config.method, training_context(config, prepared, None))
    best, evaluating = BestCheckpoint(run.best, method.save), EvaluationCallback(method, lambda _: None)
    began = content_hash(run.identity.as_dict())
    progress = RunState(method, best, evaluating, should_checkpoint_weights(method, None), began=began)
    return progress.restore(checkpoint, run.metrics, run.trajectory)


def places(content, at=()):
    """The path of every key and entry inside a JSON object, with what stands there."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*at, key), value
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def changes(content):
    """Every way to spoil one place; not shorter lists, which could be those of another run, or other numbers."""
    for at, value in places(content):
        if at[-2:-1] == ("predictions",):  # labels, or texts
            continue
        if not isinstance(at[-1], int) and at != ("began",):  # which older versions did not write down
            yield at, GONE
        if not isinstance(value, str):
            yield at, WORD
        if isinstance(value, int | float):
            yield at, NAN
        if value is not None and at != ("g",):  # an anchor that was not taken yet
            yield at, NOTHING


def spoil(content, at, how):
    content = copy.deepcopy(content)
    inside = content
    for key in at[:-1]:
        inside = inside[key]
    if how == GONE:
        del inside[at[-1]]
    else:
        inside[at[-1]] = {WORD: "x", NAN: float("nan"), NOTHING: None}[how]
    return content


def check(stopped, case, few):
    config, run, checkpoint = stopped(case)
    assert restore(config, run, checkpoint).steps == 7
    tried, silent = 0, []
    for name in ("progress.json", "state.json"):
        path = checkpoint.path / name
        text = path.read_text(encoding="utf-8")
        all_of_them = list(changes(json.loads(text)))
        chosen = random.Random(name).sample(all_of_them, few) if few else all_of_them
        for at, how in chosen:
            path.write_text(json.dumps(spoil(json.loads(text), at, how)), encoding="utf-8")
            try:
                restore(config, run, checkpoint)
            except CheckpointError:
                pass
            else:
                silent.append((name, at, how))
            finally:
                path.write_text(text, encoding="utf-8")
            tried += 1
    assert silent == []
    return tried


@pytest.mark.promise(11)
@pytest.mark.parametrize("case", ["svrg", "bilevel"])
def test_a_run_does_not_go_on_without_what_it_remembers(stopped, case, tries):
    assert check(stopped, case, few=4) == 8
    tries(8)


@pytest.mark.promise(11)
@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_without_no_part_of_what_it_remembers(stopped, case, tries):
    ways = check(stopped, case, few=0)
    tries(ways)
    print(f"{case}: {ways} ways")


@pytest.mark.promise(11)
@pytest.mark.parametrize("case", ["first-order", "svrg, copy"])
def test_a_run_does_not_go_on_without_one_of_its_tensors(stopped, case):
    config, run, checkpoint = stopped(case)
    path = checkpoint.path / "state.safetensors"
    before, tensors = path.read_bytes(), load_file(path)
    names = list(tensors)
    for name in (names[0], names[-1]):
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
        with pytest.raises(CheckpointError, match="does not hold the tensors"):
            restore(config, run, checkpoint)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    save_file({**tensors, name: tensors[name][1:].contiguous()}, path)
    with pytest.raises(CheckpointError):
        restore(config, run, checkpoint)
    path.write_bytes(before[:-1])
    with pytest.raises(CheckpointError):
        restore(config, run, checkpoint)
    path.write_bytes(before)
    assert restore(config, run, checkpoint).steps == 7


def test_a_run_does_not_go_on_without_one_of_the_files_that_its_tasks_have(stopped):
    config, run, checkpoint = stopped(DISK)
    assert restore(config, run, checkpoint).steps == 7
    progress, second = checkpoint.path / "progress.json", checkpoint.path / "state-1.safetensors"
    text, held = progress.read_text(encoding="utf-8"), second.read_bytes()
    files = json.loads(text)["files"]
    assert sorted(files) == ["task mood", "task pick", "task tone"]
    for other in (files[:2], [*files, "x"], [*files[:2], "x"], [*files[:2], 3], "x", {}, [*files[:2], files[0]]):
        progress.write_text(json.dumps({**json.loads(text), "files": other}), encoding="utf-8")
        with pytest.raises(CheckpointError):
            restore(config, run, checkpoint)
    progress.write_text(text, encoding="utf-8")
    tensors = {name: tensor.clone() for name, tensor in load_file(second).items()}
    for spoilt in (held[:-1], b"", None):
        second.unlink() if spoilt is None else second.write_bytes(spoilt)
        with pytest.raises(CheckpointError):
            restore(config, run, checkpoint)
    save_file({name: tensor[:1].contiguous() if tensor.dim() else tensor for name, tensor in tensors.items()}, second)
    with pytest.raises(CheckpointError):
        restore(config, run, checkpoint)
    second.write_bytes(held)
    assert restore(config, run, checkpoint).steps == 7


def test_a_run_goes_on_after_all_that(stopped):
    config, run, checkpoint = stopped("svrg")
    assert train(config).summary["steps"] == 12
