"""A run of a study, complete before it is made, the cell that it stands in, and how runs of one kind are made."""

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
    """One model, one task and one value of each further axis: methods are compared in it.

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
    """One run, complete before it is made.

    Args:
        trial: which setting is tried, from 0; None for a final run.
        setting: which trial's setting it has, from 0; without meaning where nothing was tried.
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
        """The whole configuration as plain data, as JSON gives it back."""
        made: Tree = json.loads(json.dumps(self.config.model_dump(mode="json", exclude={"output_dir"})))
        return made

    @cached_property
    def _chosen(self) -> Tree:
        """The configuration without what is at its default; the name of the method is always there."""
        made: Tree = json.loads(
            json.dumps(self.config.model_dump(mode="json", exclude={"output_dir"}, exclude_defaults=True))
        )
        made.setdefault("method", {})["name"] = self.tree["method"]["name"]
        return made

    @cached_property
    def digest(self) -> str:
        """Twelve characters that no other configuration has; an option that is new and at its default changes none."""
        return hashlib.sha256(json.dumps(self._chosen, sort_keys=True).encode()).hexdigest()[:12]

    def was_made_with(self, tree: Tree) -> bool:
        """Whether a whole configuration, perhaps of an older version, is this run's: options that it lacks must be at
        their default here."""
        return _same(tree, self.tree, self._chosen)

    @property
    def id(self) -> str:
        """Readable, and different for every configuration."""
        parts = [self.method, self.cell.model, self.cell.task, *self.cell.axes]
        parts += [f"trial{self.trial + 1}"] if self.trial is not None else []
        name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts if part)
        return f"{name[:_NAME]}-seed{self.seed}-{self.digest}"

    def __str__(self) -> str:
        trial = f" trial {self.trial + 1}" if self.trial is not None else ""
        return f"{self.method} {self.cell}{trial} seed {self.seed}"


_NAME = 100  # characters of a run's name; file systems have a limit


def _same(old: Any, new: Any, chosen: Any) -> bool:
    """Whether two trees are equal but for keys that only the new one has, none of which is in `chosen`."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return bool(old == new)
    chosen = chosen if isinstance(chosen, dict) else {}
    added = any(key in chosen for key in new if key not in old)
    return not added and all(key in new and _same(value, new[key], chosen.get(key)) for key, value in old.items())


Loading = Callable[[ModelConfig, bool, int | None], tuple[LoadedModel, Identity]]

_LONG = 3.0  # seconds of a first step after which no other one is timed
_TIMED = 2  # steps that are timed, after the first


class CostEstimate(NamedTuple):
    """The queries of a run's training, and the seconds of training and evaluation, estimated from a few steps."""

    queries: int
    seconds: float


class ConfigFault(NamedTuple):
    """What is wrong with a run, and the dotted key of its configuration; empty where no single one is at fault."""

    key: str
    error: ZofoError


class Executor(ABC):
    """How runs of one kind are made.

    In all methods `config` is the configuration of a run, as `Executor.config` gives it, and `remote_code` allows the
    model's repository to run its own code.
    """

    libraries: tuple[str, ...] = ("zofo.studies.process_pool",)
    """What is imported once for all processes that make runs."""

    @abstractmethod
    def config(self, tree: Mapping[str, Any]) -> Config:
        """The complete configuration that a tree stands for; raises ConfigError for what is wrong with it."""

    @abstractmethod
    def label(self, config: Any, column: str) -> str:
        """What the results call the model or the task of a run whose study gives it no name."""

    @abstractmethod
    def faults(self, config: Any) -> Iterator[ConfigFault]:
        """Why the run cannot be made, as far as it takes no time to find out; nothing where it can."""

    @abstractmethod
    def execute(self, config: Any, folder: Path, remote_code: bool) -> Outcome:
        """Make the run in a folder that does not exist yet, or that `goes_on`; raises ZofoError where it failed."""

    def goes_on(self, config: Any, folder: Path, warn: Callable[[str], None]) -> bool:
        """Whether a run that was stopped, or failed, goes on from what it left in its folder; else it begins anew.

        Args:
            warn: told of what is damaged there and is not used.
        """
        return False

    @abstractmethod
    def identity(self, config: Any, remote_code: bool, test: bool, load: Loading) -> Identity:
        """What the run would be made from now, by content; raises ZofoError where rows or model cannot be read.

        Args:
            test: whether the rows of test are part of it.
            load: loads a model, and says what it is known by.
        """

    @abstractmethod
    def curve(self, folder: Path) -> list[dict[str, Any]]:
        """The evaluations that a failed run has left in its folder."""

    @abstractmethod
    def prepare(self, configs: Sequence[Any], remote_code: bool) -> tuple[Method, float, Callable[[Any, int], float]]:
        """What `costs` asks for: the method of the first run just before its first step, the seconds of a query where
        it only reads, and (configuration, steps) -> the seconds in which such a run is scored."""

    def costs(self, configs: Sequence[Any], remote_code: bool) -> list[CostEstimate]:
        """What runs of the same method in the same cell would take, which differ in their settings and length.

        A few steps of the first are timed. Raises ZofoError where one of them cannot be made.
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
    """How many steps a run makes, with its `method` and `training`.

    Raises:
        ConfigError: the budget does not pay for one, or so many cannot do what is configured.
    """
    steps = number_of_steps(config, method)
    method.check_steps(steps)
    return steps


def seconds_per_query(method: Method) -> float:
    """What a query takes, from two steps after the first, or from that one where it takes long."""
    before, start = method.counts.copy(), time.perf_counter()
    method.step(0)
    if time.perf_counter() - start < _LONG:
        before, start = method.counts.copy(), time.perf_counter()
        for number in range(1, 1 + _TIMED):
            method.step(number)
    return (time.perf_counter() - start) / max(1, (method.counts - before).queries)
