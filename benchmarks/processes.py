"""What two processes with one thread each take for a step beside one process with two: the ratio of docs/processes.md.

    python benchmarks/processes.py --rounds 3 --json benchmarks/results/processes.json

Both make the same steps of MeZO on the same rows, in turn, each round in new processes, which torchrun starts. Of the
steps but the first two the median is taken, by the clock, and of the rounds the median ratio. The losses of both are
compared, and the bytes that were exchanged are counted. `--json` keeps the figures, with what was measured and the
seconds of each round. That killed processes go on to the same bits is no figure, but a test:

    pytest -m soak tests/test_processes.py -k killed
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

FIRST = 2  # steps that are not counted
MEASURED = ("model", "rows", "tokens", "steps", "rounds", "evaluator")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model, a folder or a Hub id")
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--tokens", type=int, default=64, help="of a row")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--evaluator", default="in-forward")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)  # where a process that was started writes
    return parser.parse_args()


def make_steps(options: argparse.Namespace) -> dict[str, Any]:
    """The steps of this process, one of those that share them out."""
    import torch

    import zofo
    from zofo.integrations.losses import example_losses
    from zofo.processes import joined

    processes, model = joined(), zofo.load_model(options.model).model
    shape, most = (4 * options.rows, options.tokens), min(1000, model.config.vocab_size)
    drawn = torch.randint(10, most, shape, generator=torch.Generator().manual_seed(0))

    def objective(model: Any, batch: Any) -> torch.Tensor:
        return example_losses(model, {"input_ids": batch, "labels": batch}, shifted=True)

    context = zofo.TrainingContext(model, objective, list(drawn), torch.stack, processes=processes)
    method = zofo.MeZO(zofo.MeZOConfig(batch_size=options.rows, evaluator=options.evaluator), context)
    method.check()
    seconds, losses, before = [], [], processes.bytes
    for number in range(FIRST + options.steps):
        start = time.perf_counter()
        losses.append(method.step(number).loss)
        seconds.append(time.perf_counter() - start)
    made = FIRST + options.steps
    found = {"seconds": statistics.median(seconds[FIRST:]), "losses": losses, "threads": torch.get_num_threads()}
    found["bytes a step"] = (processes.bytes - before) / made
    if processes.is_first:
        options.found.write_text(json.dumps(found), encoding="utf-8")
    return found


def started(options: argparse.Namespace, processes: int, threads: int) -> dict[str, Any]:
    """What so many processes found, each with so many threads."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        own = [f"--{name}={getattr(options, name)}" for name in MEASURED]
        number = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, *launcher, __file__, *own, f"--found={file}"]
        subprocess.run(command, check=True, env={**os.environ, **number})
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def main() -> None:
    options = arguments()
    if options.found is not None:
        make_steps(options)
        return
    rounds = [(started(options, 1, 2), started(options, 2, 1)) for _ in range(options.rounds)]
    one, two = rounds[0]
    ratios = [shared["seconds"] / alone["seconds"] for alone, shared in rounds]
    figures = {
        "one process, two threads": statistics.median(alone["seconds"] for alone, _ in rounds),
        "two processes, one thread": statistics.median(shared["seconds"] for _, shared in rounds),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "largest": max(ratios),
        "losses apart": max(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True)),
        "bytes a step": two["bytes a step"],
        "bytes a loss": two["bytes a step"] / (2 * options.rows),
    }
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    if options.json:
        measured = {name: getattr(options, name) for name in MEASURED}
        each = [[alone["seconds"], shared["seconds"]] for alone, shared in rounds]
        versions = {"torch": version("torch"), "zofo": version("zofo"), "cores": os.cpu_count()}
        whole = {**measured, **versions, **figures, "seconds of each round": each}
        options.json.write_text(json.dumps(whole) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
