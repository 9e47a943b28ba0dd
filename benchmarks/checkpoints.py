"""What share of a run's time checkpoints take at their default interval.

    python benchmarks/checkpoints.py [--model smollm2-135m] [--steps 9] [--json FILE]

Each way trains the packaged movie reviews in a folder of its own and writes a checkpoint after every fourth step; every
save is timed from outside, with its syncing. By default one is written a minute after the last one, or 50 times as long
as that one took if this is longer, so the share is save / (max(60 s, 50 save) + save), with the slowest save seen.
Of a long run it is less than 2 % by that rule, whatever a save takes; what is measured is the save.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from zofo.training import RunFolder, read_config, train
from zofo.training.checkpoints import Checkpoints
from zofo.training.going_on import seconds_between

EVERY = 4
IN_PLACE = {"noise": "gaussian", "evaluator": "in-place"}
WAYS: dict[str, dict[str, Any]] = {
    "mezo, in forward": {"name": "mezo", "batch_size": 2},
    "mezo, in place": {"name": "mezo", "batch_size": 2, **IN_PLACE},
    "mezo, dense adam": {"name": "mezo", "batch_size": 2, "rule": {"name": "dense-adam", "lr": 1e-5}},
    "first-order, lora": {"name": "first-order", "batch_size": 2, "adapter": "lora"},
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


def measured(method: dict[str, Any], model: str, steps: int, folder: Path) -> dict[str, float]:
    Timed.seconds, Timed.bytes = [], []
    vars(sys.modules[train.__module__])["Checkpoints"] = Timed
    sizes = {"train": 64, "validation": 4, "test": 4}
    training = {"steps": steps, "checkpoint_every": EVERY}
    config = read_config(model=model, task={"sizes": sizes}, method=method, training=training, run=str(folder / "run"))
    run: RunFolder = train(config)
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    times = [line["seconds"] for line in lines if line["event"] == "step"]
    worst = max(Timed.seconds)
    return {
        "step_seconds": median(b - a for a, b in zip(times, times[1:], strict=False)),
        "saves": len(Timed.seconds),
        "save_seconds": median(Timed.seconds),
        "slowest_save_seconds": worst,
        "checkpoint_bytes": max(Timed.bytes),
        "seconds_between": seconds_between(worst),
        "share": worst / (seconds_between(worst) + worst),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model, a folder or a Hub id")
    parser.add_argument("--steps", type=int, default=9, help="of each run")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    figures = {}
    for name, method in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = figures[name] = measured(method, options.model, options.steps, Path(folder))
        print(
            f"{name:<18} step {found['step_seconds']:.2f} s, {found['saves']} saves of {found['save_seconds']:.2f} s "
            f"(slowest {found['slowest_save_seconds']:.2f} s, {found['checkpoint_bytes'] / 1e6:.1f} MB), one in "
            f"{found['seconds_between']:.0f} s: {found['share']:.2%}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
