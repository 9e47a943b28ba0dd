"""What a MeZO step on an adapter costs beside inference of the same rows, on a quantised base.

    python benchmarks/quantized.py [--model smollm2-135m] [--quantization nf4] [--rows 8] [--tokens 64] [--cpu]

In one process each way has a base of its own, and they take turns: a ratio is of one round, over the forward of the
same 2 B rows. A step in the forward carries its share of the fold, see `zofo.bench.step_variants.AmortizedSteps`. Each
peak is of a process of its own, from the checked model to the last step. Prints a line of JSON for each way: median
seconds, and the median, least and largest ratio. The goals are 1.10 for time and 1.05 for the peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from zofo.bench.step_memory import peak_of
from zofo.bench.step_variants import WAYS, AmortizedSteps, StepOptions, StepVariant, random_examples
from zofo.config import parse_model
from zofo.methods import MeZO, MeZOConfig, TrainingContext
from zofo.models import LoadedModel, ModelConfig, load_model
from zofo.models.quantization import release_memory
from zofo.objectives import classification_loss
from zofo.tasks import collate

FLOOR, ADAPTERS = "inference", ("lora", "subspace")


def base(asked: argparse.Namespace) -> LoadedModel:
    packed = None if asked.quantization == "null" else asked.quantization
    return load_model(parse_model(ModelConfig, {"name": asked.model, "quantization": packed}))


def way_of(name: str, loaded: LoadedModel, asked: argparse.Namespace) -> StepVariant:
    """Inference, or steps on an adapter of that name."""
    options = StepOptions(asked.model, asked.rows, asked.tokens)
    if name == FLOOR:
        return WAYS[FLOOR](loaded.model, options)
    rows = random_examples(len(loaded.tokenizer), options)
    context = TrainingContext(loaded.model, classification_loss, rows, lambda chosen: collate(chosen, 0, loaded.device))
    method = MeZO(parse_model(MeZOConfig, {"batch_size": asked.rows, "adapter": name}), context)
    method.check()
    return AmortizedSteps(method.step, method.evaluator, loaded.device)


def peak(name: str, asked: argparse.Namespace) -> int:
    """Inside a process of its own: bytes at the peak of some steps, once the model was checked for them."""
    loaded = base(asked)
    way = way_of(name, loaded, asked)
    release_memory()

    def work() -> None:
        for _ in range(2):
            way.step()

    return peak_of(work, loaded.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model, a folder or a Hub id")
    parser.add_argument("--quantization", default="nf4", help="how the base is packed; null for not at all")
    parser.add_argument("--rows", type=int, default=8, help="examples in the batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each example's prompt")
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which every way is timed")
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor, where others use the machine")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        print(peak(asked.peak, asked))
        return
    if asked.cpu:
        time.perf_counter = time.process_time
    ways = {name: way_of(name, base(asked), asked) for name in (FLOOR, *ADAPTERS)}
    for way in ways.values():
        way.prepare()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(asked.repeats):
        for name in [*list(ways)[number % 3 :], *list(ways)[: number % 3]]:
            seconds[name].append(ways[name].seconds())
    floor = 0
    for name, taken in seconds.items():
        command = [sys.executable, __file__, *sys.argv[1:], "--peak", name]
        size = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
        floor = floor or size
        ratios = [own / other for own, other in zip(taken, seconds[FLOOR], strict=True)]
        shown = {"time": statistics.median(ratios), "least": min(ratios), "largest": max(ratios), "peak": size / floor}
        rounded = {key: round(value, 3) for key, value in shown.items()}
        asked_for = {
            "model": Path(asked.model).name,
            "rows": asked.rows,
            "tokens": asked.tokens,
            "quantization": asked.quantization,
        }
        row = {"way": name, **asked_for, "median_s": round(statistics.median(taken), 3), **rounded, "peak_bytes": size}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
