"""Runs of language models on tasks, through `zofo.training.train`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from zofo.config import validated
from zofo.errors import RunError
from zofo.evaluators import Counts
from zofo.methods import METHODS, Method
from zofo.studies.execution import Cost, Execution, queries_of, steps_of
from zofo.studies.outcome import INNER, Outcome
from zofo.tasks import Split, resolve_task
from zofo.training import RunConfig, load_material, setting_of, train

_LONG = 3.0  # seconds of a first step after which no other one is timed
_TIMED = 2  # steps that are timed, after the first
_INNER_POINTS = 50  # of the curve of an inner problem


class TaskRuns(Execution):
    """A run is a run folder of `zofo train`."""

    def config(self, tree: Mapping[str, Any]) -> RunConfig:
        """See `Execution.config`."""
        return validated(RunConfig, dict(tree))

    def label(self, config: RunConfig, column: str) -> str:
        """See `Execution.label`."""
        return Path(config.model.name).stem if column == "model" else config.task.title

    def check(self, config: RunConfig, remote_code: bool) -> None:
        """See `Execution.check`: that there is such a task. Models and rows take time, so each run finds out itself."""
        if config.task.data is None or config.task.several:
            resolve_task(config.task)

    def execute(self, config: RunConfig, folder: Path, remote_code: bool) -> Outcome:
        """See `Execution.execute`."""
        given = {"run": folder, "start": _start_beside(folder, config.start)}
        run = train(config.model_copy(update=given), remote_code=remote_code)
        summary = run.summary
        variant, metric = next(iter(summary["variants"])), summary["metric"]
        splits = {"validation": summary["variants"], "test": summary.get("test", {})}
        return Outcome(
            metric=metric,
            scores={
                split: {"score": found[metric], "loss": found["loss"], "majority": found["majority"]}
                for split, variants in splits.items()
                if (found := variants.get(variant))
            },
            steps=summary["steps"],
            counts={name: summary[name] for name in Counts().as_dict()},
            evaluation=summary["evaluation"],
            seconds=summary["seconds"],
            curve=_curve(run.metrics, variant, metric),
        )

    def curve(self, folder: Path) -> list[dict[str, Any]]:
        """See `Execution.curve`."""
        path = folder / "metrics.jsonl"
        if not path.is_file():
            return []
        lines = [line for line in _lines(path) if line["event"] == "evaluation"]
        if not lines:
            return []
        first = lines[0]
        metric = next(key for key in first if key not in ("event", "steps", "variant"))  # written before the others
        return _curve(path, first["variant"], metric)

    def costs(self, configs: Sequence[RunConfig], remote_code: bool) -> list[Cost]:
        """See `Execution.costs`."""
        first = configs[0].model_copy(update={"start": None})  # which may not be made yet, and takes no time
        splits: tuple[Split, ...] = ("train", "validation")
        splits += ("test",) if any(config.training.test for config in configs) else ()
        material = load_material(first, remote_code, splits)
        method = METHODS[first.method.name](first.method, setting_of(first, material))
        steps = [steps_of(method, config) for config in configs]
        some = material.encoded["validation"][: first.training.eval_batch_size]
        with method.using(method.variants[0]):
            start = time.perf_counter()
            material.scorer.evaluate(method.model, some, Counts())
            each = (time.perf_counter() - start) / len(some)
        query = seconds_per_query(method) if method.fixed_steps is None else each
        found = []
        for config, number in zip(configs, steps, strict=True):
            scored = len(config.training.evaluated_after(number)) * len(material.encoded["validation"])
            scored += len(material.encoded["test"]) if config.training.test else 0
            queries = queries_of(method, number)
            found.append(Cost(queries, queries * query + scored * each))
        return found


def _start_beside(folder: Path, start: Path | None) -> Path | None:
    """The run that a run starts from: one of the same study, by the name of its folder, or any other by its path.

    Raises:
        RunError: it failed, so that what is in its folder is not what was asked for.
    """
    if start is None or start.is_absolute() or len(start.parts) > 1:
        return start
    outcome = Outcome.read(folder.parent / start)
    if outcome is None or outcome.failed:
        why = f" failed: {outcome.failed['message']}" if outcome and outcome.failed else " was not made"
        raise RunError(f"the run {start.name!r}, which this one starts from,{why}", "see what failed in report.md")
    return folder.parent / start


def seconds_per_query(method: Method) -> float:
    """What a query takes, from two steps after the first, or from that one where it takes long."""
    before, start = method.counts.copy(), time.perf_counter()
    method.step(0)
    if time.perf_counter() - start < _LONG:
        before, start = method.counts.copy(), time.perf_counter()
        for number in range(1, 1 + _TIMED):
            method.step(number)
    return (time.perf_counter() - start) / max(1, (method.counts - before).queries)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; one that a kill cut short is not there."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _curve(path: Path, variant: str, metric: str) -> list[dict[str, Any]]:
    points, inner, queries = [], [], 0
    for line in _lines(path):
        if line["event"] == "step":
            queries = line["queries"]
            if "loss_inner" in line:
                inner.append({"steps": line["step"] + 1, "queries": queries, "loss": line["loss_inner"]})
        elif line["event"] == "evaluation" and line["variant"] == variant:
            point = {"steps": line["steps"], "queries": queries, "split": "validation"}
            points.append({**point, "loss": line["loss"], "score": line[metric]})
    return [*points, *_thinned(inner)]


def _thinned(inner: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The loss of the inner problem along a run: means over blocks of steps, each at the last step of its block."""
    block = max(1, -(-len(inner) // _INNER_POINTS))
    blocks = [inner[start : start + block] for start in range(0, len(inner), block)]
    return [{**some[-1], "loss": mean(one["loss"] for one in some), "split": INNER, "score": None} for some in blocks]
