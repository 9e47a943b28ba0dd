"""A run of a study with its complete configuration, its cell, and the interface of what makes runs."""

from __future__ import annotations

import hashlib
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from zofo.config import Config
from zofo.errors import ZofoError
from zofo.methods import Method
from zofo.models import LoadedModel, ModelConfig
from zofo.studies.result import Outcome
from zofo.training.identity import Identity
from zofo.training.train import number_of_steps
from zofo.trees import Tree


class Cell(NamedTuple):
    """One model, one task and one value of each further axis; methods are compared within it.

    Args:
        model: its name in the tables; empty for a problem.
        task: its name in the tables.
        axes: the value of each axis, in the order of the file.
    """

    model: str
    task: str
    axes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(part for part in (self.model, self.task, *self.axes) if part)


@dataclass(frozen=True)
class StudyRun:
    """One run with its complete configuration.

    Args:
        trial: index of the setting that is tried; None for a final run.
        setting: index of the trial whose setting it has; ignored if nothing was tried.
    """

    method: str
    cell: Cell
    seed: int
    trial: int | None
    config: Config
    execution: Executor
    setting: int = 0

    @cached_property
    def tree(self) -> Tree:
        """The complete configuration as plain data, after a round trip through JSON."""
        made: Tree = json.loads(json.dumps(self.config.model_dump(mode="json", exclude={"output_dir"})))
        return made

    @cached_property
    def _chosen(self) -> Tree:
        """The configuration without defaults; always with the name of the method."""
        made: Tree = json.loads(
            json.dumps(self.config.model_dump(mode="json", exclude={"output_dir"}, exclude_defaults=True))
        )
        made.setdefault("method", {})["name"] = self.tree["method"]["name"]
        return made

    @cached_property
    def digest(self) -> str:
        """Twelve characters that identify the configuration; a new option with its default does not change them."""
        return hashlib.sha256(json.dumps(self._chosen, sort_keys=True).encode()).hexdigest()[:12]

    def was_made_with(self, tree: Tree) -> bool:
        """Whether a complete configuration, possibly of an older version, is that of this run.

        Options that it lacks must have their default here.
        """
        return _same(tree, self.tree, self._chosen)

    @property
    def id(self) -> str:
        """A readable name that is unique for the configuration."""
        parts = [self.method, self.cell.model, self.cell.task, *self.cell.axes]
        parts += [f"trial{self.trial + 1}"] if self.trial is not None else []
        name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts if part)
        return f"{name[:_NAME]}-seed{self.seed}-{self.digest}"

    def __str__(self) -> str:
        trial = f" trial {self.trial + 1}" if self.trial is not None else ""
        return f"{self.method} {self.cell}{trial} seed {self.seed}"


_NAME = 100  # characters of a run's name; file systems have a limit


def _same(old: Any, new: Any, chosen: Any) -> bool:
    """Whether two trees are equal except for keys that only the new one has, none of which is in `chosen`."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return bool(old == new)
    chosen = chosen if isinstance(chosen, dict) else {}
    added = any(key in chosen for key in new if key not in old)
    return not added and all(key in new and _same(value, new[key], chosen.get(key)) for key, value in old.items())


Loading = Callable[[ModelConfig, bool, int | None], tuple[LoadedModel, Identity]]

_LONG = 3.0  # seconds of a first step beyond which no other one is timed
_TIMED = 2  # steps that are timed, after the first


class CostEstimate(NamedTuple):
    """The queries of a run's training, and the time of training and evaluation, estimated from a few steps."""

    queries: int
    seconds: float


class ConfigFault(NamedTuple):
    """An error of a run, and the dotted key of its configuration; empty if no single one is at fault."""

    key: str
    error: ZofoError


class Executor(ABC):
    """The interface of what makes runs of one kind.

    In all methods `config` is the configuration of a run, as `Executor.config` returns it, and `remote_code` allows the
    model's repository to run its own code.
    """

    libraries: tuple[str, ...] = ("zofo.studies.process_pool",)
    """What is imported once for all processes that make runs."""

    @abstractmethod
    def config(self, tree: Mapping[str, Any]) -> Config:
        """The complete configuration for a tree; raises ConfigError if it is invalid."""

    @abstractmethod
    def label(self, config: Any, column: str) -> str:
        """The name in the results for a model or task without a name in the study."""

    @abstractmethod
    def faults(self, config: Any) -> Iterator[ConfigFault]:
        """Why the run cannot be made, as far as fast checks show; empty if it can."""

    @abstractmethod
    def execute(self, config: Any, folder: Path, remote_code: bool) -> Outcome:
        """Make the run in a new folder, or resume it in one that `goes_on`; raises ZofoError if it fails."""

    def goes_on(self, config: Any, folder: Path, warn: Callable[[str], None]) -> bool:
        """Whether a stopped or failed run can be resumed from what it left in its folder.

        Args:
            warn: called for damaged files there, which are not used.
        """
        return False

    @abstractmethod
    def identity(self, config: Any, remote_code: bool, test: bool, load: Loading) -> Identity:
        """What the run would be made from now, by content; raises ZofoError if rows or model cannot be read.

        Args:
            test: whether test rows are part of it.
            load: loads a model, and returns its identity.
        """

    @abstractmethod
    def curve(self, folder: Path) -> list[dict[str, Any]]:
        """The evaluations in the folder of a failed run."""

    @abstractmethod
    def prepare(self, configs: Sequence[Any], remote_code: bool) -> tuple[Method, float, Callable[[Any, int], float]]:
        """What `costs` needs: the method of the first run just before its first step, the seconds of a query if it only
        reads, and a function (configuration, steps) -> seconds of its evaluations."""

    def costs(self, configs: Sequence[Any], remote_code: bool) -> list[CostEstimate]:
        """The cost of runs of the same method in the same cell, with different settings and lengths.

        A few steps of the first run are timed. Raises ZofoError if a run cannot be made.
        """
        method, reading, scoring = self.prepare(configs, remote_code)
        steps = [steps_of(method, config) for config in configs]
        queries = [method.queries_of(number) for number in steps]
        each = seconds_per_query(method) if method.fixed_steps is None else reading
        seconds = [
            n * each + scoring(config, number) for n, config, number in zip(queries, configs, steps, strict=True)
        ]
        return list(map(CostEstimate, queries, seconds))


def steps_of(method: Method, config: Any) -> int:
    """The number of steps of a run, with its `method` and `training`.

    Raises:
        ConfigError: the budget is too small for a step, or for what is configured.
    """
    steps = number_of_steps(config, method)
    method.check_steps(steps)
    return steps


def seconds_per_query(method: Method) -> float:
    """The time of a query, from two steps after the first, or from the first if it takes long."""
    before, start = method.counts.copy(), time.perf_counter()
    method.step(0)
    if time.perf_counter() - start < _LONG:
        before, start = method.counts.copy(), time.perf_counter()
        for number in range(1, 1 + _TIMED):
            method.step(number)
    return (time.perf_counter() - start) / max(1, (method.counts - before).queries)
