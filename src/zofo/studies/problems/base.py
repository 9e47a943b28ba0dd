"""The interface of toy problems: a new model with training data, and scores of the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import nn

from zofo.config import PartConfig
from zofo.errors import UnknownNameError
from zofo.methods import TrainingContext
from zofo.registry import Registry


class Rows(NamedTuple):
    """The examples of one split, or of one batch.

    Args:
        x: inputs of the model, float32, with the examples along the first axis.
        y: targets, one number per example.
    """

    x: torch.Tensor
    y: torch.Tensor


class Problem(ABC):
    """A model and its data, small enough that every method can be run to convergence.

    The data are the same for every run. A run's seed determines the initial model, the batches and the directions.

    Attributes:
        metric: the main metric of `evaluate`: "loss" or "accuracy".
        higher_is_better: whether a higher value is better.
        majority: the metric of always giving the most frequent answer, on the test split; None if there is none.
        splits: the data by split: train, validation, test.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    majority: float | None = None
    splits: Mapping[str, Rows]

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """A new model to train; the same bits for the same seed, without any global generator."""

    @abstractmethod
    def losses(self, model: nn.Module, rows: Rows) -> torch.Tensor:
        """The objective: one loss per example, float32, shape [examples]."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Scores of a model on all examples of a split: "loss", the mean of the losses, and others.

        Raises:
            UnknownNameError: there is no such split.
        """

    def training_context(self, seed: int) -> TrainingContext:
        """The training context: a new model, and the training split."""
        train = self.splits["train"]

        def collate(chosen: Any) -> Rows:
            index = torch.tensor(list(chosen))
            return Rows(train.x[index], train.y[index])

        return TrainingContext(self.model(seed), self.losses, range(len(train.y)), collate, seed)

    def rows(self, split: str) -> Rows:
        """The examples of a split. Raises UnknownNameError if there is no such split."""
        if split not in self.splits:
            raise UnknownNameError("split", split, self.splits)
        return self.splits[split]


PROBLEMS: Registry[type[Problem]] = Registry("problem")


Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class ProblemConfig(PartConfig):
    """A problem by its name, with its options."""

    registry = PROBLEMS
    default = "least-squares"
    inside = ""
