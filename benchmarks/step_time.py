"""How long a MeZO step takes: in place by zofo, in the usual way, and beside two forwards of the same batch.

    python benchmarks/step_time.py --model smollm2-135m --rows 16 --tokens 64 --repeats 5 --json FILE

A two-sided step needs two forwards, so two forwards alone are the floor. All ways share one process, one model, one
batch of random tokens and the classification loss. They take turns: each round times every way once, and each starts
first in some round. The table shows medians over the rounds; a ratio is the median of the ratios within a round. One
round before the first is not counted.

The usual way is written out below: before each of four sweeps the global generator is seeded, every parameter gets a
`torch.normal` of its size, and its data is replaced by a sum.

Leaves with 2 if the model is neither cached nor to be had.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from zofo.backbone import Backbone, LoadedModel, ModelConfig, load_model
from zofo.displacement import Key
from zofo.errors import ZofoError
from zofo.estimators import TwoSided
from zofo.evaluators import InPlace
from zofo.noise import NOISES
from zofo.objectives import classification_loss
from zofo.rules import SGD
from zofo.tasks import Batch, Encoded, collate

EPSILON, LR = 1e-3, 1e-6
USUAL_SWEEPS = 4


def arguments(description: str, repeats: int) -> argparse.ArgumentParser:
    """The options that both benchmarks of a step have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model, a folder or a Hub id")
    parser.add_argument("--rows", type=int, default=16, help="examples in the batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each example's prompt")
    parser.add_argument("--repeats", type=int, default=repeats, help="measurements of each way")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser


def load(name: str) -> LoadedModel:
    """The model, or the end of the program with status 2."""
    try:
        return load_model(ModelConfig(name=name))
    except ZofoError as error:
        print(f"the model {name!r} is not available: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def random_batch(loaded: LoadedModel, rows: int, tokens: int) -> Batch:
    """Random tokens with two candidates of one token each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, loaded.model.config.vocab_size, (rows, tokens), generator=generator).tolist()
    examples = [Encoded(((*row, 5), (*row, 6)), (1, 1), single=True, gold=i % 2) for i, row in enumerate(ids)]
    return collate(examples, 0, loaded.device)


def zofo_step(loaded: LoadedModel, batch: Batch, backbone: Backbone, number: int) -> None:
    """One MeZO step in place: two forwards, and as many sweeps as `backbone.sweeps` counts."""
    keys, rule, estimator = [Key(0, number)], SGD(LR), TwoSided(EPSILON)
    evaluator = InPlace(loaded.model, backbone)
    with evaluator.visit(classification_loss, batch, estimator.ask(keys)) as visit:
        update, _ = rule.update(estimator.tell(keys, visit.losses), rule.init())
        visit.update(update)


@torch.no_grad()
def usual_step(loaded: LoadedModel, batch: Batch, number: int) -> None:
    """One MeZO step as it is usually written: four sweeps, each with its own copies."""
    parameters = list(loaded.model.parameters())

    def sweep(scale: float, size: float) -> None:
        torch.manual_seed(number)
        for parameter in parameters:
            z = torch.normal(0.0, 1.0, size=parameter.shape, dtype=parameter.dtype, device=parameter.device)
            parameter.data = parameter.data + scale * z * size

    sweep(1, EPSILON)
    plus = classification_loss(loaded.model, batch).mean()
    sweep(-2, EPSILON)
    minus = classification_loss(loaded.model, batch).mean()
    sweep(1, EPSILON)
    sweep(-LR, ((plus - minus) / (2 * EPSILON)).item())


@torch.no_grad()
def two_forwards(loaded: LoadedModel, batch: Batch) -> None:
    """The floor of a two-sided step."""
    for _ in range(2):
        classification_loss(loaded.model, batch)


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds that `work` takes, to its end on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(loaded: LoadedModel, batch: Batch, repeats: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each way in each round, and the sweeps of one step."""
    floor, usual = "two forwards", "usual"
    names = [floor, *(f"zofo {noise}" for noise in NOISES), usual]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    sweeps = {floor: 0, usual: USUAL_SWEEPS}
    for number in range(repeats + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if name == floor:
                taken = timed(lambda: two_forwards(loaded, batch), loaded.device)
            elif name == usual:
                taken = timed(lambda step=number: usual_step(loaded, batch, step), loaded.device)
            else:  # built anew, since the usual way replaces the tensors
                backbone = Backbone(loaded.model, NOISES[name.removeprefix("zofo ")]())
                taken = timed(lambda b=backbone, step=number: zofo_step(loaded, batch, b, step), loaded.device)
                sweeps[name] = backbone.sweeps
            if number:
                seconds[name].append(taken)
    return seconds, sweeps


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def main() -> None:
    options = arguments(__doc__ or "", repeats=5).parse_args()
    loaded = load(options.model)
    batch = random_batch(loaded, options.rows, options.tokens)
    seconds, sweeps = measure(loaded, batch, options.repeats)
    rows = {
        name: {
            "seconds": round(statistics.median(taken), 4),
            "fastest": round(min(taken), 4),
            "slowest": round(max(taken), 4),
            "over_two_forwards": round(median_ratio(taken, seconds["two forwards"]), 3),
            "usual_over_this": round(median_ratio(seconds["usual"], taken), 3),
            "sweeps": sweeps[name],
        }
        for name, taken in seconds.items()
    }
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    print(
        f"{options.model}: {size:,} parameters, {options.rows} rows x {options.tokens} tokens, {loaded.device.type}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {options.repeats} rounds\n"
    )
    print(f"{'way':<18}{'seconds':>9}{'fastest':>9}{'slowest':>9}{'/ 2 forwards':>14}{'usual / this':>14}{'sweeps':>8}")
    for name, row in rows.items():
        print(
            f"{name:<18}{row['seconds']:>9.3f}{row['fastest']:>9.3f}{row['slowest']:>9.3f}"
            f"{row['over_two_forwards']:>14.2f}{row['usual_over_this']:>14.2f}{row['sweeps']:>8}"
        )
    if options.json:
        report = {"model": options.model, "rows": options.rows, "tokens": options.tokens, "parameters": size}
        options.json.write_text(json.dumps({**report, "ways": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
