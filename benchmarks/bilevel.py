"""What a bilevel step costs: peak memory beside first-order adapter training and inference, and time beside its parts.

    python benchmarks/bilevel.py memory [--rows 8] [--tokens 64] [--steps 2] [--heap] [--json FILE]
    python benchmarks/bilevel.py time [--inner-steps 2] [--rounds 8] [--clock wall] [--json FILE]

Memory: every way runs in a process of its own on the same random tokens: load the model, forget the peak of loading,
make the steps, read the peak that the kernel saw. Promised: at most 1.05 times the larger of first-order training of
the same adapter and inference, on batches of the same size. Large tensors are taken from the kernel one by one
(MALLOC_MMAP_THRESHOLD_), so that what is measured is what was asked for; with --heap, glibc's heap is left as it is,
whose holes add to every way, and the more the longer it runs.

Time: in each round one outer step, and beside it its parts, with the same model and batches: the inner steps, the two
forwards and backwards of p and its step, and the six forwards of the backbone step, at theta itself, by the plain
model. Promised: the outer step takes at most 1.1 times their sum. Every outer step writes the update of the one before
it, whatever `flush_every` is, since its first-order steps look at the weights. So all outer steps do the same work, and
the ratio is a median over the rounds; that of the sums stands beside it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zofo.adapters import AdapterConfig
from zofo.bench.step_memory import load_own, peak_of
from zofo.bench.step_variants import StepOptions, random_examples, timed
from zofo.config import parse_model
from zofo.evaluators import Counts
from zofo.methods import METHODS, BilevelConfig, Method, TrainingContext
from zofo.methods.bilevel.adapter_pair import VARIANTS, AdapterPair
from zofo.objectives import classification_loss
from zofo.tasks import collate

KINDS = ("lora", "prefix", "prompt")
EVALUATORS = {"in-forward": {"noise": "low-rank"}, "in-place": {"noise": "gaussian"}}
LR = 1e-9  # so small that losses stay as they are
_ONE_BY_ONE = 1 << 18  # bytes from which a tensor is one that the kernel gives, and takes back when it is let go


def setting_for(loaded: Any, options: StepOptions) -> TrainingContext:
    examples = random_examples(loaded.model.config.vocab_size, options) * 6
    return TrainingContext(
        loaded.model, classification_loss, examples, lambda chosen: collate(chosen, 0, loaded.device)
    )


def built(method: dict[str, Any], setting: TrainingContext) -> Method:
    kind = METHODS[str(method["name"])]
    return kind(kind.Config.model_validate(method), setting)


def bilevel(rows: int, adapter: str, evaluator: str, inner_steps: int) -> dict[str, Any]:
    shape = {"adapter": adapter, "evaluator": evaluator, **EVALUATORS[evaluator], "inner_steps": inner_steps}
    return {"name": "bilevel", "batch_size": rows, "rule": {"lr": LR}, "lr_lower": LR, "lr_adapter": LR, **shape}


# memory


def peak(method: dict[str, Any] | None, options: StepOptions, steps: int) -> int:
    """Bytes at the peak of some steps of a method; of inference, for None."""
    loaded = load_own(options)
    setting = setting_for(loaded, options)

    def work() -> None:
        if method is not None:
            made = built(method, setting)
            for number in range(steps):
                made.step(number)
            return
        batches = setting.batches(options.examples, "train")
        with torch.no_grad():
            for number in range(steps):
                classification_loss(loaded.model, batches[number])

    return peak_of(work, loaded.device)


def apart(method: dict[str, Any] | None, given: argparse.Namespace) -> int:
    text = json.dumps([method, given.model, given.rows, given.tokens, given.steps])
    own = {} if given.heap else {"MALLOC_MMAP_THRESHOLD_": str(_ONE_BY_ONE)}
    command = [sys.executable, __file__, "one", text]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **own})
    return int(done.stdout.split()[-1])


def memory(given: argparse.Namespace) -> dict[str, Any]:
    inference = apart(None, given)
    print(f"inference {inference / 2**20:,.0f} MiB", flush=True)
    found: dict[str, Any] = {"inference": inference}
    for kind in given.adapters:
        first_order = apart({"name": "first-order", "batch_size": given.rows, "adapter": kind, "lr": LR}, given)
        larger = max(first_order, inference)
        found[kind] = {"first-order": first_order}
        print(f"{kind:7} first-order          {first_order / 2**20:7,.0f} MiB", flush=True)
        for evaluator in EVALUATORS:
            bytes_used = apart(bilevel(given.rows, kind, evaluator, 2), given)
            found[kind][evaluator] = {"peak": bytes_used, "ratio": bytes_used / larger}
            ratio = f"{bytes_used / larger:.3f} x the larger"
            print(f"{kind:7} bilevel, {evaluator:11} {bytes_used / 2**20:7,.0f} MiB  {ratio}", flush=True)
    return found


# time


class Parts:
    """The parts of an outer step by themselves, on a model that carries p and s."""

    def __init__(self, setting: TrainingContext, kind: str, rows: int, inner_steps: int) -> None:
        self._model, self._inner_steps = setting.model, inner_steps
        adapters = AdapterConfig(name=kind).build(setting.model, VARIANTS, 0)
        config = parse_model(BilevelConfig, bilevel(rows, kind, "in-forward", inner_steps))
        self.pair = AdapterPair(adapters, config, setting, Counts())
        self._batches = setting.batches(rows, "train")

    def inner(self) -> None:
        """The steps on s."""
        for t in range(self._inner_steps):
            self.pair.inner_step(t, self._batches[t])

    def adapter(self) -> None:
        """The step on p."""
        self.pair.differentiate(self._batches[0], self._batches[1], 10.0)
        self.pair.step_adapter(0)

    @torch.no_grad()
    def forwards(self, at_once: int) -> None:
        """The six forwards: of one batch each, or of a batch that stands there twice."""
        for objective, batch in self.pair.asks(self._batches[0], self._batches[1]):
            for _ in range(2 // at_once):
                objective(self._model, batch.repeated(at_once))


def timings(given: argparse.Namespace, kind: str, evaluator: str) -> dict[str, float]:
    options = StepOptions(given.model, given.rows, given.tokens)
    one, other = load_own(options), load_own(options)
    method = built(bilevel(given.rows, kind, evaluator, given.inner_steps), setting_for(one, options))
    parts = Parts(setting_for(other, options), kind, given.rows, given.inner_steps)
    at_once = 2 if evaluator == "in-forward" else 1
    works: dict[str, Callable[[], object]] = {
        "inner steps": parts.inner,
        "adapter step": parts.adapter,
        "six forwards": lambda: parts.forwards(at_once),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("outer step", *works)}
    method.step(0)
    for work in works.values():
        work()
    for number in range(1, given.rounds + 1):
        step = functools.partial(method.step, number)
        seconds["outer step"].append(clocked(step, one.device, given.clock))
        for name, work in works.items():
            seconds[name].append(clocked(work, one.device, given.clock))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    middle["outer step, mean"] = statistics.fmean(seconds["outer step"])
    whole = [sum(seconds[name][i] for name in works) for i in range(given.rounds)]
    middle["ratio"] = statistics.median(seconds["outer step"][i] / whole[i] for i in range(given.rounds))
    middle["ratio of sums"] = sum(seconds["outer step"]) / sum(whole)
    return middle


def clocked(work: Callable[[], object], device: torch.device, clock: str) -> float:
    """Seconds by the clock on the wall, or of this process alone, which other processes do not disturb as much."""
    if clock == "wall":
        return timed(work, device)
    start = time.process_time()
    work()
    return time.process_time() - start


def times(given: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in given.adapters:
        for evaluator in EVALUATORS:
            found[f"{kind}, {evaluator}"] = measured = timings(given, kind, evaluator)
            shown = "  ".join(f"{name} {value:.3f}" for name, value in measured.items())
            print(f"{kind:7} {evaluator:11} {shown}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("memory", "time"):
        verb = verbs.add_parser(name)
        verb.add_argument("--model", default="smollm2-135m", help="an embedded model, a folder or a Hub id")
        verb.add_argument("--rows", type=int, default=8, help="examples of a batch")
        verb.add_argument("--tokens", type=int, default=64, help="of each example")
        verb.add_argument("--json", type=Path, help="write the figures there")
        if name == "memory":
            verb.add_argument("--steps", type=int, default=2, help="outer steps")
            verb.add_argument("--heap", action="store_true", help="leave the heap of the C library as it is")
            verb.add_argument("--adapters", nargs="+", choices=KINDS, default=list(KINDS))
        else:
            verb.add_argument("--inner-steps", type=int, default=2, help="T")
            verb.add_argument("--rounds", type=int, default=8, help="outer steps that are timed")
            verb.add_argument("--clock", choices=("wall", "cpu"), default="wall")
            verb.add_argument("--adapters", nargs="+", choices=KINDS, default=list(KINDS))
    verbs.add_parser("one").add_argument("text")
    given = parser.parse_args()
    if given.verb == "one":
        method, model, rows, tokens, steps = json.loads(given.text)
        print(peak(method, StepOptions(model, rows, tokens), steps))
        return
    figures = memory(given) if given.verb == "memory" else times(given)
    if given.json:
        given.json.write_text(json.dumps({**vars(given), "json": None, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
