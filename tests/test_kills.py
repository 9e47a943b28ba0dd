"""Runs that are killed at random moments, often more than once, and go on: their bits are those of a run left alone."""

from __future__ import annotations

import random
import signal
import time

import pytest
import yaml

from conftest import review_rows, write_rows
from crash_points import forked
from metaicl_rows import write_tasks
from test_resume import METHOD, contents
from zofo.training import read_config, train

CASES = ("mezo", "svrg", "bilevel", "first-order", "meta-bilevel")
SEED, KILLS = 1871, 6  # of each case; another seed tries other moments
STEPS = 24


def written(folder, model, case):
    """The file of a run that saves after every third step and evaluates now and then."""
    write_rows(folder / "data" / "train.jsonl", review_rows(40))
    write_rows(folder / "data" / "validation.jsonl", review_rows(8, 40))
    task = {"name": "movie-reviews", "data_dir": str(folder / "data")}
    if case.startswith("meta"):
        names = ("mood", "tone", "pick")
        task = {
            "data_dir": str(write_tasks(folder / "tasks", names)),
            "tasks": list(names),
            "split_sizes": {"validation": 3},
        }
    training = {"steps": STEPS, "eval_steps": 5, "save_steps": 3}
    content = {"model": str(model), "task": task, "method": METHOD[case], "training": training}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(model_folder, tmp_path, case):
    config = written(tmp_path, model_folder, case)
    train(read_config(config, [f"output_dir={tmp_path / 'first'}"]))  # imports what the forks need
    start = time.perf_counter()
    assert forked(config, f"output_dir={tmp_path / 'whole'}")["status"] == 0
    took = time.perf_counter() - start
    whole, chosen = contents(tmp_path / "whole"), random.Random(f"{SEED} {case}")
    kills, number = 0, 0
    while kills < KILLS:
        number += 1
        run, ended = tmp_path / f"killed-{number}", False
        for _ in range(chosen.choice((1, 1, 2, 3))):  # times that it is killed
            said = forked(config, f"output_dir={run}", kill_after=chosen.uniform(0.02, 1) * took)
            assert said["status"] in (0, -signal.SIGKILL), said
            ended = said["status"] == 0
            if ended:
                break
            kills += 1
        if not ended:
            said = forked(config, f"output_dir={run}")
            if said["status"] != 0:  # killed between its summary and its end
                assert "exists, and a run never overwrites another" in said["message"], said
        assert not (run / "checkpoints").exists()
        assert contents(run) == whole, (case, number)
    print(f"{case}: {kills} kills of {number} runs")
