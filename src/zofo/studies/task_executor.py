"""Runs of language models on tasks, through `zofo.training.train`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from zofo.config import parse_model
from zofo.errors import CheckpointError, DataError, NonFiniteError, RunError, ZofoError
from zofo.evaluators import Counts
from zofo.interpreters import LIBRARIES
from zofo.methods import METHODS, Method
from zofo.models import LoadedModel, check_known_model
from zofo.objectives import objective_maker
from zofo.studies.result import INNER, Outcome
from zofo.studies.trial import ConfigFault, Executor, Loading
from zofo.tasks import METRICS, Split, Task, TaskConfig, resolve_task
from zofo.training import RunConfig, RunFolder, prepare_run, train, training_context
from zofo.training.checkpoint import Checkpoints
from zofo.training.identity import Identity
from zofo.training.resume import find_resumable_run, prepared_identity
from zofo.training.run_logs import metrics_lines

_INNER_POINTS = 50  # of the curve of an inner problem


class TaskRuns(Executor):
    """A run that is a run folder of `zofo train`."""

    libraries = (*Executor.libraries, *LIBRARIES)

    def config(self, tree: Mapping[str, Any]) -> RunConfig:
        return parse_model(RunConfig, dict(tree))

    def label(self, config: RunConfig, column: str) -> str:
        return Path(config.model.name).name if column == "model" else config.task.title

    def faults(self, config: RunConfig) -> Iterator[ConfigFault]:
        """Check that model, task, prompt, objective and the folder of rows exist.

        The model is not loaded, and rows are not read, since that takes time: each run does it.
        """
        yield from _fault("model.name", lambda: check_known_model(config.model.name))
        if config.training.objective is not None:
            yield from _fault("training.objective", lambda: objective_maker(str(config.training.objective)))
        yield from _faults_of_task(config.task)

    def execute(self, config: RunConfig, folder: Path, remote_code: bool) -> Outcome:
        given = {"output_dir": folder, "init_from": _start_beside(folder, config.init_from)}
        run = train(config.model_copy(update=given), Console(quiet=True), remote_code)  # the report says what it says
        summary = run.summary
        metric, (first, *others) = summary["metric"], list(summary["variants"])
        return Outcome(
            metric=metric,
            positive_label=summary.get("positive_label", ""),
            scores=_scores(summary, first),
            steps=summary["steps"],
            counts={name: summary[name] for name in Counts().as_dict()},
            evaluation=summary["evaluation"],
            seconds=summary["seconds"],
            peak_bytes=summary["peak_bytes"],
            treatment=summary.get("treatment", {}),
            conclusions=summary.get("conclusions", []),
            curve=_curve(run.metrics, first, metric),
            variants={variant: _scores(summary, variant) for variant in others},
        )

    def goes_on(self, config: RunConfig, folder: Path, warn: Callable[[str], None]) -> bool:
        try:
            start = _start_beside(folder, config.init_from)
            found = find_resumable_run(config.model_copy(update={"output_dir": folder, "init_from": start}))
        except ZofoError:  # it has ended, or what it left cannot be read
            return False
        if found is not None:
            checkpoints = Checkpoints(found.checkpoints)
            checkpoints.sweep()
            with suppress(CheckpointError):  # all are damaged: the run says so, and fails
                checkpoints.latest(warn)
        return found is not None

    def identity(self, config: RunConfig, remote_code: bool, test: bool, load: Loading) -> Identity:
        """What the run would be made from, without the run that it starts from."""
        model = Identity()

        def loaded(*asked: Any) -> LoadedModel:
            nonlocal model
            found, model = load(*asked)
            return found

        alone = config.model_copy(update={"init_from": None})
        return prepared_identity(prepare_run(alone, remote_code, _splits(test), load=loaded), model)

    def curve(self, folder: Path) -> list[dict[str, Any]]:
        path = folder / "metrics.jsonl"
        if not path.is_file():
            return []
        first = next((line for line in metrics_lines(path) if line["event"] == "evaluation"), None)
        if first is None:
            return []
        metric = next(key for key in first if key not in ("event", "steps", "variant"))  # written before the others
        return _curve(path, first["variant"], metric)

    def prepare(self, configs: Sequence[RunConfig], remote_code: bool) -> tuple[Method, float, Callable[..., float]]:
        first = configs[0].model_copy(update={"init_from": None})  # which may not be made yet, and takes no time
        splits = _splits(any(config.training.eval_on_test for config in configs))
        prepared = prepare_run(first, remote_code, splits)
        method = METHODS[first.method.name](first.method, training_context(first, prepared))
        some = prepared.encoded["validation"][: first.training.eval_batch_size]
        with method.using(method.variants[0]):
            start = time.perf_counter()
            prepared.scorer.evaluate(method.model, some, Counts())
            each = (time.perf_counter() - start) / len(some)

        def scoring(config: RunConfig, steps: int) -> float:
            looks = len(config.training.evaluated_after(steps)) * len(prepared.encoded["validation"])
            on_test = config.training.eval_on_test and (2 if config.training.eval_on_test == "best" else 1)  # or more
            return each * (looks + (len(prepared.encoded["test"]) * on_test if on_test else 0))

        return method, each, scoring


def _splits(test: bool) -> tuple[Split, ...]:
    return ("train", "validation", "test") if test else ("train", "validation")


def _scores(summary: Mapping[str, Any], variant: str) -> dict[str, dict[str, float]]:
    """The scores of one model of a run, for each split that was scored."""
    metric, splits = summary["metric"], {"validation": summary["variants"], "test": summary.get("test", {})}
    if best := summary["best"].get("test"):
        splits |= {"test": best, "test_last": splits["test"]}
    return {
        split: {"score": found[metric], "loss": found["loss"], "majority": found["majority"]}
        for split, variants in splits.items()
        if (found := variants.get(variant))
    }


def _fault(key: str, check: Callable[[], object]) -> Iterator[ConfigFault]:
    """The error of a check, as a fault of the key."""
    try:
        check()
    except ZofoError as error:
        yield ConfigFault(key, error)


def _faults_of_task(task: TaskConfig) -> Iterator[ConfigFault]:
    """Faults of the folder, and those that the task's file and registries show.

    A user's own rows are checked when they are read.
    """
    if task.data_dir is not None and not task.data_dir.is_dir():
        lacks = DataError(f"there is no folder {str(task.data_dir)!r}", "say where it is with --data or --set")
        yield ConfigFault("task.data_dir", lacks)
    if task.data is not None and not task.several:
        return
    if task.metric is not None and task.metric not in METRICS:
        yield from _fault("task.metric", lambda: METRICS[str(task.metric)])
        return
    whole = task.model_dump_json(exclude={"split_seed"}, exclude_unset=True)
    wrong = list(_fault("task.metaicl_setting" if task.several else "task.name", lambda: _resolved(whole)))
    yield from wrong
    if wrong or task.several:
        return
    found = _resolved(whole)
    yield from _fault("task.prompt", lambda: found.prompt(task.prompt))
    if task.data_dir is None and found.source is None:
        lacks = DataError(f"the task {found.name!r} has no source of its own", "give its rows with --data")
        yield ConfigFault("task.name", lacks)


@lru_cache(maxsize=64)
def _resolved(written: str) -> Task:
    """The task, read once for many runs."""
    return resolve_task(TaskConfig.model_validate_json(written))


def _start_beside(folder: Path, start: Path | None) -> Path | None:
    """The run that a run starts from: one of the same study, by the name of its folder, or any other by its path.

    For a run of the same study, the first run that starts from it caches its trained weights, since a replay may take
    longer than the run. A start that failed or diverged is refused.
    """
    if start is None or start.is_absolute() or len(start.parts) > 1:
        return start
    outcome = Outcome.read(folder.parent / start)
    if outcome is None or outcome.failed:
        why = f" failed: {outcome.failed['message']}" if outcome and outcome.failed else " was not made"
        message = f"the run {start.name!r}, which this one starts from,{why}"
        if outcome is not None and outcome.diverged_nonfinite:
            raise NonFiniteError(f"start: {message}", consequence="this one cannot be made")
        raise RunError(message, "see what failed in report.md")
    with suppress(OSError):  # then each run that starts from it replays it
        RunFolder(folder.parent / start).enable_replay_cache()
    return folder.parent / start


def _curve(path: Path, variant: str, metric: str) -> list[dict[str, Any]]:
    points, inner, queries = [], [], 0
    for line in metrics_lines(path):
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
