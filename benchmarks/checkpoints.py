"""What checkpoints cost a run: the time of a save, and the share of a run's time at the default interval.

    python benchmarks/checkpoints.py [--model smollm2-135m] [--seconds 200] [--rounds 1] [--ways NAME ...] [--json FILE]

Each way trains the packaged movie reviews in a folder of its own, three times.

- Nine steps with a checkpoint after every fourth: each save is timed from outside, with its syncing.
- `--seconds` long at the default interval, and as many steps without any checkpoint, one after the other, in turns
  (`--rounds`). Said are the seconds of the saves over those of the run, and the run with over the run without, less 1,
  by the clock and by processor time; the clock's is noise of several percent where other processes run.

By default a checkpoint is written a minute after the last one, or 50 times as long as that one took if this is longer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from zofo.training import RunFolder, read_config, train
from zofo.training.checkpoint import Checkpoints

FEW, EVERY = 9, 4
IN_PLACE = {"noise": "gaussian", "evaluator": "in-place"}
WAYS: dict[str, dict[str, Any]] = {
    "mezo": {"name": "mezo", "batch_size": 2},
    "mezo-in-place": {"name": "mezo", "batch_size": 2, **IN_PLACE},
    "mezo-dense-adam": {"name": "mezo", "batch_size": 2, "rule": {"name": "dense-adam", "lr": 1e-5}},
    "first-order-lora": {"name": "first-order", "batch_size": 2, "adapter": "lora"},
    "bilevel": {"name": "bilevel", "batch_size": 2, "inner_steps": 1},
}


class Timed(Checkpoints):
    """Checkpoints whose saves are timed and weighed."""

    seconds: list[float] = []
    bytes: list[int] = []

    def save(self, *arguments: Any) -> Path:
        """See `Checkpoints.save`."""
        start = time.perf_counter()
        path = super().save(*arguments)
        self.seconds.append(time.perf_counter() - start)
        self.bytes.append(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
        return path


def run_of(method: dict[str, Any], model: str, steps: int, every: int | None) -> dict[str, float]:
    """One run: its seconds and those of its saves."""
    Timed.seconds, Timed.bytes = [], []
    sizes = {"train": 64, "validation": 4, "test": 4}
    training = {"steps": steps, "save_steps": every}
    with tempfile.TemporaryDirectory() as folder:
        config = read_config(
            model=model,
            task={"split_sizes": sizes},
            method=method,
            training=training,
            output_dir=str(Path(folder) / "run"),
        )
        start, processor = time.perf_counter(), time.process_time()
        run: RunFolder = train(config)
        took, processor = time.perf_counter() - start, time.process_time() - processor
        lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    times = [line["seconds"] for line in lines if line["event"] == "step"]
    return {
        "seconds": took,
        "processor_seconds": processor,
        "step_seconds": median(b - a for a, b in zip(times, times[1:], strict=False)),
        "saves": len(Timed.seconds),
        "save_seconds": sum(Timed.seconds),
        "slowest_save_seconds": max(Timed.seconds, default=0.0),
        "checkpoint_bytes": max(Timed.bytes, default=0),
    }


def measured(method: dict[str, Any], model: str, seconds: float, rounds: int) -> dict[str, float]:
    """A way's figures: of a save, and of whole runs with checkpoints and without."""
    few = run_of(method, model, FEW, EVERY)
    steps = math.ceil(seconds / few["step_seconds"])
    pairs = [(run_of(method, model, steps, None), run_of(method, model, steps, steps + 1)) for _ in range(rounds)]
    ratios = {
        key: median(first[key] / second[key] - 1 for first, second in pairs) for key in ("seconds", "processor_seconds")
    }
    return {
        "step_seconds": few["step_seconds"],
        "save_seconds": few["save_seconds"] / few["saves"],
        "slowest_save_seconds": max(few["slowest_save_seconds"], *(a["slowest_save_seconds"] for a, _ in pairs)),
        "checkpoint_bytes": few["checkpoint_bytes"],
        "run_seconds": median(first["seconds"] for first, _ in pairs),
        "run_saves": sum(first["saves"] for first, _ in pairs),
        "share_in_saves": sum(a["save_seconds"] for a, _ in pairs) / sum(a["seconds"] for a, _ in pairs),
        "longer_than_without": ratios["seconds"],
        "longer_than_without_by_processor": ratios["processor_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model, a folder or a Hub id")
    parser.add_argument("--seconds", type=float, default=200.0, help="of each of the two runs that are compared, about")
    parser.add_argument("--rounds", type=int, default=1, help="how often they are compared")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="to train")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    vars(sys.modules[train.__module__])["Checkpoints"] = Timed
    figures = {}
    for name in options.ways:
        found = figures[name] = measured(WAYS[name], options.model, options.seconds, options.rounds)
        print(
            f"{name:<17} step {found['step_seconds']:.2f} s, save {found['save_seconds']:.3f} s (slowest "
            f"{found['slowest_save_seconds']:.3f} s, {found['checkpoint_bytes'] / 1e6:.1f} MB); of a run of "
            f"{found['run_seconds']:.0f} s, {found['run_saves']} saves took {found['share_in_saves']:.2%}; it took "
            f"{found['longer_than_without']:+.1%} by the clock and {found['longer_than_without_by_processor']:+.1%} by "
            "processor time than without",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
