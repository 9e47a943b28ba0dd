"""Which directions learn most per query? The evidence behind the defaults of `method.noise` and `method.directions`.

    python benchmarks/directions.py run --out FILE.jsonl [--worker 0 --workers 2] [--sst2 FOLDER] [--threads 1]
    python benchmarks/directions.py report FILE.jsonl [--figure FILE.svg] [--markdown FILE.md]
    python benchmarks/directions.py spread [--sst2 FOLDER]

`run` trains SmolLM2-135M by MeZO with each of `ARMS`, on each task, with seeds 0, 1 and 2. All arms make the same
number of queries a step. The learning rate of each arm and task is half of the largest that `zofo tune lr` finds stable
with seed 0, the same rule for all. A line of FILE is one tuning or one run; what FILE holds already is not done again,
so it may be stopped and started, and several workers may share a file.

`report` prints means over seeds with 95 % t-intervals. `spread` measures by back-propagation what decides whether a
direction of its own for every example can pay: |g|^2, the squared length of the mean gradient, and s^2, the mean
squared distance of an example's gradient from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from zofo.errors import NonFiniteError
from zofo.evaluators import Counts
from zofo.methods import METHODS
from zofo.objectives import classification_loss
from zofo.training import RunConfig, prepare_run, read_config, tune_lr
from zofo.training.data_module import PreparedRun, training_context

LOW_RANK, RADEMACHER = {"name": "low-rank"}, {"name": "low-rank", "factor_distribution": "rademacher"}
EACH = {"directions": "per-example"}
THREE = {"batch_size": 8, "num_directions": 3, "estimator": "one-sided"}  # (3 + 1) 8 = 32 queries, as 2 x 16
ARMS: dict[str, dict[str, Any]] = {
    "gaussian in place": {"noise": "gaussian"},
    "rank 1, shared": {"noise": LOW_RANK},
    "rank 1, per example": {"noise": LOW_RANK, **EACH},
    "rank 1 signs, shared": {"noise": RADEMACHER},
    "rank 1 signs, per example": {"noise": RADEMACHER, **EACH},
    "rank 1, per example, loss-spread": {"noise": LOW_RANK, **EACH, "normalize_by_std": True, "rule": {"lr": 3e-3}},
    "rank 1, 3 one-sided": {"noise": LOW_RANK, **THREE},
    "rank 1, 3 one-sided, loss-spread": {"noise": LOW_RANK, **THREE, "normalize_by_std": True, "rule": {"lr": 3e-3}},
}
STEPS = {"movie-reviews": 40, "sst2": 60}
EVERY, JUDGED, SEEDS = 20, 256, (0, 1, 2)


def configuration(task: str, sst2: Path | None, arm: str, seed: int, lr: float | None = None) -> RunConfig:
    method = {"name": "mezo", "batch_size": 16, "rule": {"lr": 1e-4}, **ARMS[arm]}
    if lr is not None:
        method["rule"] = {"lr": lr}
    where = {"name": task, "data_dir": str(sst2)} if task == "sst2" else task
    return read_config(model="smollm2-135m", task=where, method=method, training={"seed": seed})


class Bench:
    """One loaded model, put back to its weights before each run."""

    def __init__(self, out: Path, sst2: Path | None) -> None:
        self.out, self._sst2 = out, sst2
        self._materials: dict[str, PreparedRun] = {}

    def done(self) -> list[dict[str, Any]]:
        """The lines of the file."""
        return [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.is_file() else []

    def note(self, line: dict[str, Any]) -> None:
        """Add a line."""
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def prepared(self, config: RunConfig) -> PreparedRun:
        """Model and task, loaded once."""
        name = config.task.name
        if name not in self._materials:
            self._materials[name] = prepare_run(config, splits=("train", "validation"))
        return self._materials[name]

    def lr(self, task: str, arm: str) -> float:
        """The learning rate of an arm: looked up, or tuned."""
        for line in self.done():
            if line["kind"] == "tuning" and (line["task"], line["arm"]) == (task, arm):
                return float(line["largest"]) / 2
        config = configuration(task, self._sst2, arm, 0)
        tuning = tune_lr(config, prepared=self.prepared(config))
        self.note({"kind": "tuning", "task": task, "arm": arm, **tuning.as_dict()})
        return tuning.largest / 2

    def run(self, task: str, arm: str, seed: int) -> None:
        """Train once, and note the curve."""
        lr = self.lr(task, arm)
        config = configuration(task, self._sst2, arm, seed, lr)
        prepared = self.prepared(config)
        model = prepared.loaded.model
        home = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        method = METHODS["mezo"](config.method, training_context(config, prepared))
        curve = []
        start, seconds = time.perf_counter(), 0.0

        def look(steps: int) -> None:
            with method.using("model"):
                seen = prepared.scorer.evaluate(model, prepared.encoded["validation"][:JUDGED], Counts())
            curve.append({"queries": method.counts.queries, "steps": steps, **seen.as_dict()})

        look(0)
        try:
            for step in range(STEPS[task]):
                begin = time.perf_counter()
                method.step(step)
                seconds += time.perf_counter() - begin
                if (step + 1) % EVERY == 0:
                    look(step + 1)
        except NonFiniteError as error:
            curve.append({"stopped": str(error)})
        finally:
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
                    tensor.copy_(home[name])
        self.note({"kind": "run", "task": task, "arm": arm, "seed": seed, "lr": lr, "curve": curve, "seconds": seconds})
        print(f"{time.perf_counter() - start:5.0f} s  {task}, {arm}, seed {seed}: {curve[-1]}", flush=True)


def jobs(tasks: list[str]) -> Iterator[tuple[str, str, int]]:
    """Arm after arm of one task and seed, so that a bench stopped early has compared like with like."""
    yield from ((task, arm, seed) for seed in SEEDS for task in tasks for arm in ARMS)


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    tasks = ["sst2", "movie-reviews"] if options.sst2 else ["movie-reviews"]
    if not options.sst2:
        print("without --sst2 FOLDER (train.jsonl, validation.jsonl) only movie-reviews is run", file=sys.stderr)
    bench = Bench(options.out, options.sst2)
    for number, (task, arm, seed) in enumerate(jobs(tasks)):
        mine = list(ARMS).index(arm) % options.workers == options.worker  # an arm is tuned by one worker
        known = {(r["task"], r["arm"], r["seed"]) for r in bench.done() if r["kind"] == "run"}
        if mine and (task, arm, seed) not in known:
            print(f"job {number}", flush=True)
            bench.run(task, arm, seed)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval."""
    if len(values) < 2:
        return statistics.mean(values), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)


def report(options: argparse.Namespace) -> None:
    lines = [json.loads(line) for line in options.file.read_text().splitlines()]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["kind"] == "run":
            runs[line["task"], line["arm"]].append(line)
    text = []
    for task in dict.fromkeys(task for task, _ in runs):
        first = next(r for (name, _), group in runs.items() for r in group if name == task)["curve"][0]
        text += [
            f"**{task}**: zero-shot accuracy {100 * first['accuracy']:.1f} %, loss {first['loss']:.3f}; "
            f"majority {100 * first['majority']:.1f} %",
            "",
        ]
        points = [p["queries"] for p in max((r["curve"] for r in runs[task, next(iter(ARMS))]), key=len)[1:]]
        text += ["| directions | lr | " + " | ".join(f"loss, accuracy at {q} queries" for q in points) + " | seeds |"]
        text += ["|---|---|" + "---|" * len(points) + "---|"]
        for arm in ARMS:
            group = runs.get((task, arm), [])
            if not group:
                continue
            cells = []
            for queries in points:
                seen = [p for r in group for p in r["curve"] if p.get("queries") == queries]
                if len(seen) < len(group):
                    cells.append(f"{len(group) - len(seen)} of {len(group)} diverged")
                    continue
                loss, wide = interval([p["loss"] for p in seen])
                accuracy, broad = interval([100 * p["accuracy"] for p in seen])
                cells.append(f"{loss:.3f} ± {wide:.3f}, {accuracy:.1f} ± {broad:.1f} %")
            text.append(f"| {arm} | {group[0]['lr']:.1e} | " + " | ".join(cells) + f" | {len(group)} |")
        text.append("")
    print("\n".join(text))
    if options.markdown:
        options.markdown.write_text("\n".join(text), encoding="utf-8")
    if options.figure:
        draw(runs, options.figure)


def draw(runs: dict[tuple[str, str], list[dict[str, Any]]], path: Path) -> None:
    """Mean validation loss and accuracy over queries, a column a task."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(task for task, _ in runs))
    figure, axes = pyplot.subplots(2, len(tasks), figsize=(5.5 * len(tasks), 7), squeeze=False, sharex="col")
    for column, task in enumerate(tasks):
        for arm in ARMS:
            curves = [r["curve"] for r in runs.get((task, arm), [])]
            queries = sorted({p["queries"] for c in curves for p in c if "queries" in p})
            for row, what in enumerate(("loss", "accuracy")):
                seen = {q: [p[what] for c in curves for p in c if p.get("queries") == q] for q in queries}
                axes[row][column].plot(queries, [statistics.mean(seen[q]) for q in queries], marker=".", label=arm)
        axes[0][column].set_title(task)
        axes[0][column].set_ylabel("validation loss")
        axes[1][column].set_ylabel("validation accuracy")
        axes[1][column].set_xlabel("queries")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def spread(options: argparse.Namespace) -> None:
    """|g|^2 and s^2 of the classification loss at the pretrained weights, from 64 examples of each task."""
    for task in ["movie-reviews", *(["sst2"] if options.sst2 else [])]:
        config = configuration(task, options.sst2, "rank 1, shared", 0)
        prepared = prepare_run(config, splits=("train",))
        model = prepared.loaded.model
        parameters = [p.requires_grad_(True) for p in model.parameters()]
        total, squares, count = [torch.zeros_like(p) for p in parameters], 0.0, 64
        for example in prepared.encoded["train"][:count]:
            loss = classification_loss(model, prepared.scorer.collate([example])).sum()
            gradients = torch.autograd.grad(loss, parameters)
            for one, gradient in zip(total, gradients, strict=True):
                one += gradient
            squares += sum(float(gradient.double().square().sum()) for gradient in gradients) / count
        mean = sum(float(one.double().square().sum()) for one in total) / count**2
        unbiased = (count * mean - squares) / (count - 1)  # the mean of g_i . g_j over pairs
        own = squares - unbiased
        print(f"{task}: |g|^2 {unbiased:.3g}, s^2 {own:.3g}, s^2 / |g|^2 {own / unbiased:.2f}")
        for batch in (1, 4, 16, 64):
            gain = (batch * unbiased + own) / (unbiased + own)
            print(f"  batch of {batch}: variance, shared / per example {gain:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("run")
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--worker", type=int, default=0)
    training.add_argument("--workers", type=int, default=1)
    training.add_argument("--threads", type=int, default=torch.get_num_threads())
    training.add_argument("--sst2", type=Path)
    told = verbs.add_parser("report")
    told.add_argument("file", type=Path)
    told.add_argument("--figure", type=Path)
    told.add_argument("--markdown", type=Path)
    measured = verbs.add_parser("spread")
    measured.add_argument("--sst2", type=Path)
    options = parser.parse_args()
    {"run": run, "report": report, "spread": spread}[options.verb](options)


if __name__ == "__main__":
    main()
