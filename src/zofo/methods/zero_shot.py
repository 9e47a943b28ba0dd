"""The model as it is, with and without solved examples before the prompt: baselines that only read.

In-context learning: Brown et al. (2020), "Language Models are Few-Shot Learners".
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from zofo.evaluators import Counts
from zofo.methods.base import METHODS, Method, MethodConfig, StepLog, TrainingContext


class ZeroShotConfig(MethodConfig):
    """Configuration of `zero-shot`."""

    name: Literal["zero-shot"] = "zero-shot"
    """Which method."""


@METHODS.register("zero-shot")
class ZeroShot(Method):
    """The model as it is: no step is made.

    Args:
        config: its name.
        context: the model.
    """

    Config: ClassVar[type[MethodConfig]] = ZeroShotConfig
    paper = "the model as it is, scored on the task's prompt"
    needs_gradient = False
    fixed_steps = 0

    def __init__(self, config: MethodConfig, context: TrainingContext) -> None:
        self.model = context.model
        self.counts = Counts()
        self.queries_per_step = 0

    def step(self, number: int) -> StepLog:
        """Never called: there are no steps."""
        raise AssertionError("a method that only reads makes no step")

    def save(self, folder: Path) -> None:
        """Nothing: the model is as it was."""


class InContextConfig(MethodConfig):
    """Configuration of `in-context`; how many demonstrations, and whose, are options of the task."""

    name: Literal["in-context"] = "in-context"
    """Which method."""


@METHODS.register("in-context")
class InContext(ZeroShot):
    """The model as it is, with `task.demonstrations` solved rows of train before each prompt, by default 4."""

    Config = InContextConfig
    paper = "Brown et al. 2020, Language Models are Few-Shot Learners"
