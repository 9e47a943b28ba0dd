"""The peak memory of MeZO-SVRG with each kind of anchor, beside MeZO's.

    python benchmarks/svrg_memory.py [--model smollm2-135m] [--rows 8] [--tokens 64] [--steps 6] [--json FILE]

Every method runs in a process of its own on the same random tokens: load the model, forget the peak of loading, make
the steps, read the peak that the kernel saw. An anchor's batch is four batches. Promised: the displacement anchor takes
at most 1.05 times MeZO's memory, where a copy takes the weights' size more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from zofo.bench.step_memory import load_own, peak_of
from zofo.bench.step_variants import StepOptions, random_examples
from zofo.methods import METHODS, TrainingContext
from zofo.objectives import classification_loss
from zofo.tasks import collate

EVALUATORS = {"in-forward": {"noise": "low-rank"}, "in-place": {"noise": "gaussian"}}
ANCHORS = ("displacement", "copy", "offload")


def measured(method: dict[str, object], options: StepOptions, steps: int) -> int:
    loaded = load_own(options)
    examples = random_examples(loaded.model.config.vocab_size, options) * 8
    setting = TrainingContext(
        loaded.model, classification_loss, examples, lambda chosen: collate(chosen, 0, loaded.device)
    )

    def work() -> None:
        kind = METHODS[str(method["name"])]
        built = kind(kind.Config.model_validate(method), setting)
        for number in range(steps):
            built.step(number)

    return peak_of(work, loaded.device)


def apart(method: dict[str, object], options: argparse.Namespace) -> int:
    given = json.dumps([method, options.model, options.rows, options.tokens, options.steps])
    done = subprocess.run([sys.executable, __file__, "--one", given], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model, a folder or a Hub id")
    parser.add_argument("--rows", type=int, default=8, help="examples of a minibatch")
    parser.add_argument("--tokens", type=int, default=64, help="of each example")
    parser.add_argument("--steps", type=int, default=6, help="steps, every second of which sets an anchor")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        method, model, rows, tokens, steps = json.loads(options.one)
        print(measured(method, StepOptions(model, rows, tokens), steps))
        return
    figures = {}
    for evaluator, parts in EVALUATORS.items():
        common = {"batch_size": options.rows, "rule": {"lr": 1e-7}, "evaluator": evaluator, **parts}
        ways = {"mezo": {"name": "mezo", **common}}
        for anchor in ANCHORS:
            anchored = {"anchor": anchor, "anchor_batch_size": 4 * options.rows, "anchor_interval": 2}
            ways[f"svrg, {anchor}"] = {"name": "svrg", **anchored, **common}
        peaks = {name: apart(way, options) for name, way in ways.items()}
        figures[evaluator] = peaks
        for name, peak in peaks.items():
            ratio = peak / peaks["mezo"]
            print(f"{evaluator:11} {name:20} {peak / 2**20:7,.0f} MiB  {ratio:.3f} x mezo", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**vars(options), "json": None, "peaks": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
