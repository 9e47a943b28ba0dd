"""The unchanged model, without and with solved examples in the prompt: baselines without training.

In-context learning: Brown et al. (2020), "Language Models are Few-Shot Learners".
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from zofo.errors import ConfigError
from zofo.evaluators import Counts
from zofo.methods.base import METHODS, Method, MethodConfig, StepLog, TrainingContext
from zofo.tasks import TaskConfig


class ZeroShotConfig(MethodConfig):
    """Configuration of `zero-shot`."""

    name: Literal["zero-shot"] = "zero-shot"
    """Which method."""

    def check_task(self, task: TaskConfig) -> None:
        """Check that there are no demonstrations."""
        if task.num_fewshot:
            raise ConfigError(
                f"method={self.name} has no demonstrations, but task.num_fewshot is {task.num_fewshot}",
                "choose method=in-context, or set task.num_fewshot=0",
            )


@METHODS.register("zero-shot")
class ZeroShot(Method):
    """The unchanged model: no step is made."""

    Config: ClassVar[type[MethodConfig]] = ZeroShotConfig
    paper = "the model as it is, scored on the task's prompt"
    needs_gradient = False
    fixed_steps = 0
    shares_examples = True

    def __init__(self, config: MethodConfig, context: TrainingContext) -> None:
        self.model = context.model
        self.counts = Counts()
        self.queries_per_step = 0

    def step(self, number: int) -> StepLog:
        """Never called: there are no steps."""
        raise AssertionError("a method that only reads makes no step")

    def save(self, folder: Path) -> None:
        """Saves nothing: the model is unchanged."""


class InContextConfig(MethodConfig):
    """Configuration of `in-context`. The number and origin of the demonstrations are options of the task."""

    task_defaults = {"num_fewshot": 4}

    name: Literal["in-context"] = "in-context"
    """Which method."""

    def check_task(self, task: TaskConfig) -> None:
        """Check that there are demonstrations."""
        if not task.num_fewshot:
            raise ConfigError(f"method={self.name} needs demonstrations", "set task.num_fewshot=4, or method=zero-shot")


@METHODS.register("in-context")
class InContext(ZeroShot):
    """The unchanged model, with `task.num_fewshot` solved training rows before each prompt, by default 4."""

    Config = InContextConfig
    paper = "Brown et al. 2020, Language Models are Few-Shot Learners"
