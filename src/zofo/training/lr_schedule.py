"""Learning-rate schedules, by the names that they have in `transformers.get_scheduler`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zofo.errors import ConfigError
from zofo.methods import unscheduled
from zofo.training.config import TrainingConfig


def lr_schedule(training: TrainingConfig, steps: int) -> Callable[[int], float]:
    """What all learning rates of a run are multiplied by, as a pure function of the number of the step, from 0.

    It has no state: a run that goes on meets the same rates, and a replay finds each in its trajectory.

    Args:
        training: which schedule, its warm-up and its options.
        steps: of the whole run.

    Raises:
        ConfigError: the warm-up leaves no step, or the schedule does not have such options.
    """
    name, warmup = training.lr_scheduler_type, warmup_steps(training, steps)
    if name == "constant":
        return unscheduled
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        scheduler = get_scheduler(name, optimizer, warmup, steps, dict(training.lr_scheduler_kwargs))
        factor: Callable[[int], float] = scheduler.lr_lambdas[0]
        factor(0)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"training.lr_scheduler_kwargs: the schedule {name!r} cannot be made of {training.lr_scheduler_kwargs}: "
            f"{error}",
            "see `transformers.get_scheduler` for its options",
        ) from error
    return lambda step: float(factor(step))


def warmup_steps(training: TrainingConfig, steps: int) -> int:
    """How many steps the rates rise: `training.warmup_steps`, or that share of the steps where it is below 1.

    Raises:
        ConfigError: they are all of the run, or more.
    """
    asked = training.warmup_steps
    warmup = int(asked) if asked >= 1 else round(asked * steps)
    if warmup and warmup >= steps:
        raise ConfigError(
            f"training.warmup_steps is {asked:g}, but the run has {steps} steps, and some must follow the warm-up",
            "set training.warmup_steps=0.1 for a tenth of the steps, or train longer",
        )
    return warmup
