"""The seam between a study and what it runs: a tree goes in, an outcome comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from zofo.config import Config
from zofo.errors import ZofoError
from zofo.methods import Method
from zofo.models import LoadedModel, ModelConfig
from zofo.studies.result import Outcome
from zofo.training.identity import Identity
from zofo.training.train import number_of_steps

Loading = Callable[[ModelConfig, bool, int | None], tuple[LoadedModel, Identity]]


@dataclass(frozen=True)
class CostEstimate:
    """What a run takes.

    Args:
        queries: of training.
        seconds: of training and evaluation, estimated from a few steps.
    """

    queries: int
    seconds: float


class ConfigFault(NamedTuple):
    """Something that is wrong with a run.

    Args:
        key: dotted, of the configuration; empty where no single one is at fault.
        error: what is said.
    """

    key: str
    error: ZofoError


class Executor(ABC):
    """How runs of one kind are made."""

    @abstractmethod
    def config(self, tree: Mapping[str, Any]) -> Config:
        """The complete configuration that a tree stands for.

        Raises:
            ConfigError: what is wrong with it.
        """

    @abstractmethod
    def label(self, config: Any, column: str) -> str:
        """What the results call the model or the task of a run whose study gives it no name."""

    @abstractmethod
    def faults(self, config: Any) -> Iterator[ConfigFault]:
        """Why the run cannot be made, as far as it takes no time to find out; nothing where it can."""

    @abstractmethod
    def execute(self, config: Any, folder: Path, remote_code: bool) -> Outcome:
        """Make the run.

        Args:
            config: of the run.
            folder: of the run; it does not exist yet.
            remote_code: allow the model's repository to run its own code.

        Raises:
            ZofoError: the run failed.
        """

    @abstractmethod
    def identity(self, config: Any, remote_code: bool, test: bool, load: Loading) -> Identity:
        """What the run would be made from now, by content.

        Args:
            config: of the run.
            remote_code: allow the model's repository to run its own code.
            test: whether the rows of test are part of it.
            load: loads a model, and says what it is known by.

        Raises:
            ZofoError: rows or model cannot be read.
        """

    @abstractmethod
    def curve(self, folder: Path) -> list[dict[str, Any]]:
        """The evaluations that a failed run has left in its folder."""

    @abstractmethod
    def costs(self, configs: Sequence[Any], remote_code: bool) -> list[CostEstimate]:
        """What runs would take, from a few steps of the first.

        Args:
            configs: of runs of the same method in the same cell, which differ in their settings and length.
            remote_code: allow the model's repository to run its own code.

        Raises:
            ZofoError: one of them cannot be made.
        """


def steps_of(method: Method, config: Any) -> int:
    """How many steps a run makes, with its `method` and `training`.

    Raises:
        ConfigError: the budget does not pay for one, or so many cannot do what is configured.
    """
    steps = number_of_steps(config, method)
    method.check_steps(steps)
    return steps


def queries_of(method: Method, steps: int) -> int:
    """What a number of steps costs: the smallest budget that pays for them."""
    if method.fixed_steps is not None:
        return method.fixed_steps * method.queries_per_step
    low, high = 0, max(1, method.queries_per_step) * steps
    while method.steps_within(high) < steps:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if method.steps_within(middle) >= steps else (middle, high)
    return high
