"""Runs of methods on toy problems."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, model_validator

from zofo.config import Config, as_group, parse_model
from zofo.errors import ConfigError, NonFiniteError, ZofoError
from zofo.evaluators import Counts, counting_forwards
from zofo.methods import METHODS, Method, MethodConfig
from zofo.studies.problems import Problem, ProblemConfig
from zofo.studies.result import Outcome
from zofo.studies.trial import ConfigFault, Executor, Loading, steps_of
from zofo.training import TrainingConfig
from zofo.training.config import method_config
from zofo.training.identity import Identity
from zofo.training.training_config import lr_schedule

_USED = {"seed", "steps", "max_queries", "num_evals", "eval_steps", "eval_on_test"} | {
    "lr_scheduler_type",
    "warmup_steps",
    "lr_scheduler_kwargs",
}
_CURVE = ("train", "validation")  # the data are small, and a paper's curves are of the training loss


class ProblemRun(Config):
    """Everything that a run on a toy problem depends on."""

    problem: Annotated[ProblemConfig, BeforeValidator(as_group)]
    """The problem, with its options."""
    method: Annotated[SerializeAsAny[MethodConfig], BeforeValidator(partial(method_config, default="mezo"))]
    """The method, with its parts."""
    training: TrainingConfig = TrainingConfig()
    """How long, and with which seed."""

    @model_validator(mode="after")
    def _means_something(self) -> ProblemRun:
        for key in sorted(self.training.model_fields_set - _USED):
            if getattr(self.training, key) != TrainingConfig.model_fields[key].default:
                raise ConfigError(f"training.{key} has no meaning for a problem", f"leave it out: {self.problem.name}")
        if self.training.length_key == "steps":
            self.training.warmup(self.training.steps)
        return self


class ProblemRuns(Executor):
    """A run made in memory; its folder contains only the outcome."""

    def config(self, tree: Mapping[str, Any]) -> ProblemRun:
        return parse_model(ProblemRun, dict(tree))

    def label(self, config: ProblemRun, column: str) -> str:
        return config.problem.name if column == "task" else ""

    def faults(self, config: ProblemRun) -> Iterator[ConfigFault]:
        """Check that problem and method can be built, and that the budget allows a step."""
        try:
            steps_of(_built(config)[1], config)
        except ZofoError as error:
            yield ConfigFault("", error)

    def execute(self, config: ProblemRun, folder: Path, remote_code: bool) -> Outcome:
        problem, method = _built(config)
        steps = steps_of(method, config)
        method.lr_factor = lr_schedule(config.training, steps)
        method.check()
        scoring = _Scoring(problem, method, folder)
        due = config.training.evaluated_after(steps)
        seconds = 0.0
        scoring.record(0)
        sign, best, at_best = 1 if problem.higher_is_better else -1, -math.inf, dict[str, float]()
        for number in range(steps):
            start = time.perf_counter()
            method.step(number)
            seconds += time.perf_counter() - start
            if number + 1 in due:
                scoring.record(number + 1)
                score = sign * scoring.curve[-1]["score"]  # on validation
                if config.training.eval_on_test == "best" and score > best:
                    best, at_best = score, scoring.score("test", number + 1)
        scores: dict[str, dict[str, float]] = {
            split: scoring.score(split, steps) for split in config.training.scored_splits
        }
        if config.training.eval_on_test == "best":
            scores |= {"test": at_best, "test_last": scores["test"]}
        if problem.majority is not None and "test" in scores:  # only known for its test split
            scores["test"]["majority"] = problem.majority
        return Outcome(
            metric=problem.metric,
            higher_is_better=problem.higher_is_better,
            scores=scores,
            steps=steps,
            counts=method.counts.as_dict(),
            evaluation={"forwards": scoring.counts.forwards, "seconds": round(scoring.seconds, 3)},
            seconds=round(seconds, 3),
            curve=scoring.curve,
        )

    def identity(self, config: ProblemRun, remote_code: bool, test: bool, load: Loading) -> Identity:
        """Empty: a problem depends on its configuration alone."""
        return Identity()

    def curve(self, folder: Path) -> list[dict[str, Any]]:
        path = folder / _POINTS
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def prepare(self, configs: Sequence[ProblemRun], remote_code: bool) -> tuple[Method, float, Callable[..., float]]:
        problem, method = _built(configs[0])
        start = time.perf_counter()
        for split in _CURVE:
            problem.evaluate(method.model, split)
        look = time.perf_counter() - start
        return method, 0.0, lambda config, steps: look * (1 + len(config.training.evaluated_after(steps)))


@lru_cache(maxsize=4)
def _problem(written: str) -> Problem:
    """The problem, built once for many runs."""
    built: Problem = ProblemConfig.model_validate_json(written).build()
    return built


def _built(config: ProblemRun) -> tuple[Problem, Method]:
    problem = _problem(config.problem.model_dump_json())
    return problem, METHODS[config.method.name](config.method, problem.training_context(config.training.seed))


_POINTS = "curve.jsonl"


class _Scoring:
    """Scores the current model, and records each point, so that a failed run has a curve too."""

    def __init__(self, problem: Problem, method: Method, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._problem, self._method, self._path = problem, method, folder / _POINTS
        self.counts, self.seconds = Counts(), 0.0
        self.curve: list[dict[str, Any]] = []

    def score(self, split: str, steps: int) -> dict[str, float]:
        """Loss and score of a split. Raises NonFiniteError if either is not finite."""
        start = time.perf_counter()
        with self._method.using(self._method.variants[0]), counting_forwards(self._method.model, self.counts):
            found = self._problem.evaluate(self._method.model, split)
        self.seconds += time.perf_counter() - start
        if not all(math.isfinite(value) for value in found.values()):
            raise NonFiniteError(f"loss on {split} after {steps} steps", consequence="the run ends there")
        return {"score": found[self._problem.metric], "loss": found["loss"]}

    def record(self, steps: int) -> None:
        """Add a point for each split to the curve."""
        for split in _CURVE:
            counted = {"steps": steps, "queries": self._method.counts.queries, "split": split}
            self.curve.append({**counted, **self.score(split, steps)})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.curve[-1]) + "\n")
