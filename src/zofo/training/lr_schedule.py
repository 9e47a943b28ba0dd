"""Learning-rate schedules, by the names that they have in `transformers.get_scheduler`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zofo.errors import ConfigError
from zofo.methods import unscheduled
from zofo.training.training_config import TrainingConfig


def lr_schedule(training: TrainingConfig, steps: int) -> Callable[[int], float]:
    """What all learning rates of a run are multiplied by, as a pure function of the number of the step, from 0.

    It has no state: a run that goes on meets the same rates, and a replay finds each in its trajectory.

    Args:
        training: which schedule, its warm-up and its options.
        steps: of the whole run.

    Raises:
        ConfigError: the warm-up leaves no step, or the schedule does not have such options.
    """
    name, warmup, options = training.lr_scheduler_type, training.warmup(steps), dict(training.lr_scheduler_kwargs)
    if name == "constant":
        return unscheduled
    from transformers import get_scheduler

    if unknown := sorted(options.keys() - OPTIONS[name]):
        raise ConfigError(
            f"training.lr_scheduler_kwargs.{unknown[0]}: not an option of the schedule {name!r} here",
            f"it has: {', '.join(OPTIONS[name]) or 'none'}",
        )
    if negative := next((key for key, value in options.items() if value < 0), None):
        raise ConfigError(
            f"training.lr_scheduler_kwargs.{negative} is {options[negative]:g}, but must not be below 0",
            "see `transformers.get_scheduler` for its options",
        )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        scheduler = get_scheduler(name, optimizer, warmup, steps, options)
        factor: Callable[[int], float] = scheduler.lr_lambdas[0]
        seen = [factor(step) for step in {*range(0, steps, max(1, steps // 1000)), steps - 1}]
        if not all(0 <= one <= 1 + 1e-9 for one in seen):
            raise ValueError(f"its factors go from {min(seen):g} to {max(seen):g}, and not between 0 and 1")
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(
            f"training.lr_scheduler_kwargs: the schedule {name!r} cannot be made of {options}: {error}",
            "see `transformers.get_scheduler` for its options",
        ) from error
    return lambda step: float(factor(step))


OPTIONS: dict[str, tuple[str, ...]] = {
    "constant_with_warmup": (),
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr_rate", "num_cycles"),
    "polynomial": ("power",),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("num_decay_steps", "min_lr_ratio", "num_cycles"),
}
"""The options of each schedule: those of transformers, but for rates that would count for one learning rate alone."""
