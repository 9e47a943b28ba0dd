"""The configuration of training: length, seed, learning-rate schedule, and evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from zofo.config import Config
from zofo.errors import ConfigError
from zofo.methods import unscheduled
from zofo.tasks import Split

LrSchedulerType = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
"""Schedules of `transformers.get_scheduler` that depend on the number of the step alone."""


def _as_names(given: Any) -> Any:
    """One name, or none, as a list."""
    if isinstance(given, str):
        return [] if given == "none" else [given]
    return [] if given is None else given


class TrainingConfig(Config):
    """Length, evaluations, and seed."""

    seed: int = Field(0, ge=0, lt=1 << 64)
    """Seed of the run: directions, data order and adapters depend on it alone."""
    steps: int = Field(100, ge=1, lt=1 << 32)
    """Number of training steps; for `bilevel`, outer steps."""
    max_queries: int | None = Field(None, ge=1)
    """A budget of queries instead of `steps`: as many whole steps as fit into it."""
    epochs: float | None = Field(None, gt=0, lt=1 << 32, allow_inf_nan=False)
    """Passes over the training rows instead of `steps`, rounded up to whole steps; for `bilevel`, over the rows of D_p.
    Each shuffled pass drops a remainder smaller than a batch: unless `method.batch_size` divides the number of rows,
    some rows are drawn twice before others are drawn once, and a note says how many are never drawn."""
    objective: str | None = None
    """The objective to minimise, see `zofo list objectives`; by default `classification`, or `answer` for other
    kinds."""
    kl_beta: float = Field(0.0, ge=0, le=1e6, allow_inf_nan=False)
    """Factor of the KL of a generated answer from the initial model, which is subtracted from its reward. It takes two
    more forwards of each batch. Without an adapter it needs `method.keep_base`."""
    lr_scheduler_type: LrSchedulerType = "constant"
    """Schedule of all learning rates of the method, named as in `transformers.get_scheduler`; `linear` and `cosine`
    fall to 0 at the end."""
    warmup_steps: float = Field(0, ge=0, lt=1 << 32, allow_inf_nan=False)
    """Number of steps in which the learning rates rise from 0; below 1, a share of all steps."""
    lr_scheduler_kwargs: dict[str, FiniteFloat] = {}
    """Options of the schedule, such as `{num_cycles: 2}` for `cosine_with_restarts`."""
    group_by_length: bool = True
    """Put examples of similar length into the same batch, to reduce padding."""
    eval_steps: int | None = Field(None, ge=1)
    """Steps between evaluations on validation; by default only at the end."""
    num_evals: int | None = Field(None, ge=1)
    """Number of evaluations, evenly spaced, instead of `eval_steps`."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """End the run after this many evaluations in a row without a better score, as `--best` compares them; by default
    all steps are made. Needs `eval_steps` or `num_evals`."""
    eval_on_test: bool | Literal["best"] = False
    """Score the test split once, after the last step; with `best`, also after each evaluation that is the best so far,
    which gives the test score of the best checkpoint as well."""
    treatment_steps: int | None = Field(None, ge=1)
    """Steps between measurements of the treatment's strength: the gradient of theta, its spread over examples, and the
    predicted descent, with two backward passes per example; by default none."""
    treatment_examples: int = Field(16, ge=2)
    """Number of training examples for such a measurement."""
    treatment_directions: int = Field(16, ge=2)
    """Number of directions for such a measurement of an objective without a gradient; each takes two queries per
    example."""
    before_after_examples: int = Field(32, ge=0)
    """Number of validation rows whose rewards and answers a run with a reward measures before its first and after its
    last step, together with unrelated everyday sentences; 0 for none."""
    eval_batch_size: int = Field(32, ge=1)
    """Batch size in evaluation."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What to do after a step with a non-finite loss, which never updates anything: stop, or continue with the next."""
    max_consecutive_skips: int = Field(3, ge=1)
    """Maximum number of skipped steps in a row before the run stops."""
    save_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints; by default they are written by time, taking less than 2 % of the run."""
    save_total_limit: int = Field(2, ge=1)
    """Number of checkpoints to keep during the run, the newest ones."""
    on_save_error: Literal["stop", "skip"] = "stop"
    """What to do if a checkpoint cannot be written, as on a full disk: stop, or continue and try again when the next
    one is due."""
    report_to: Annotated[list[str], BeforeValidator(_as_names)] = []
    """Trackers to send the numbers of `metrics.jsonl` to: `tensorboard`, `trackio`, `mlflow`, `wandb`, or others that
    accelerate supports."""
    checkpoint_weights: bool | None = None
    """Whether a checkpoint contains the backbone's weights in addition to the trajectory; by default if a replay would
    be slow."""

    def warmup(self, steps: int) -> int:
        """The number of warm-up steps: `warmup_steps`, or that share of all steps, rounded up.

        Raises:
            ConfigError: the warm-up takes the whole run, or more.
        """
        warmup = math.ceil(self.warmup_steps if self.warmup_steps >= 1 else self.warmup_steps * steps)
        if warmup and warmup >= steps:
            raise ConfigError(
                f"training.warmup_steps is {self.warmup_steps:g}, but the run has {steps} steps, and some must follow "
                "the warm-up",
                "set training.warmup_steps=0.1 for a tenth of the steps, or train longer",
            )
        return warmup

    @property
    def scored_splits(self) -> tuple[Split, ...]:
        """The splits that are scored after the last step."""
        return ("validation", "test") if self.eval_on_test else ("validation",)

    def evaluated_after(self, steps: int) -> frozenset[int]:
        """The numbers of steps after which validation is scored, including the last one.

        With `num_evals` = n they are k steps / n, rounded up, for k = 1 .. n.
        """
        if self.num_evals is not None:
            return frozenset(-(-steps * k // self.num_evals) for k in range(1, self.num_evals + 1))
        every = self.eval_steps or max(steps, 1)
        return frozenset((*range(every, steps, every), steps))

    @model_validator(mode="before")
    @classmethod
    def _taken_back(cls, given: Any) -> Any:
        """Remove `steps: null` if another key sets the length."""
        if not isinstance(given, dict) or given.get("steps", 0) is not None:
            return given
        others = given.get("epochs") is not None or given.get("max_queries") is not None
        return {key: value for key, value in given.items() if key != "steps"} if others else given

    @property
    def length_key(self) -> str:
        """The key that sets the length of the run."""
        return "epochs" if self.epochs is not None else "max_queries" if self.max_queries is not None else "steps"

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        steps = self.steps != type(self).model_fields["steps"].default  # a saved configuration holds the default, too
        if self.epochs is not None and (steps or self.max_queries is not None):
            raise ConfigError(
                f"training.epochs and training.{'steps' if steps else 'max_queries'} both say how long the run is",
                "give one of training.steps, training.max_queries and training.epochs; null takes one back",
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainingConfig:
        if self.lr_scheduler_type == "constant" and (self.warmup_steps or self.lr_scheduler_kwargs):
            key = "warmup_steps" if self.warmup_steps else "lr_scheduler_kwargs"
            raise ConfigError(
                f"training.{key} has no effect with training.lr_scheduler_type=constant",
                "set training.lr_scheduler_type=constant_with_warmup, linear or cosine",
            )
        if self.warmup_steps % 1 and self.warmup_steps > 1:
            raise ConfigError(
                f"training.warmup_steps is {self.warmup_steps:g}, which is neither a number of steps nor a share",
                "give a whole number, or a share below 1",
            )
        return self

    @model_validator(mode="after")
    def _one_spacing(self) -> TrainingConfig:
        if self.num_evals is not None and self.eval_steps is not None:
            raise ConfigError(
                "training.num_evals and training.eval_steps both say when to evaluate",
                "give one of them; null takes one back",
            )
        return self


def lr_schedule(training: TrainingConfig, steps: int) -> Callable[[int], float]:
    """The factor of all learning rates in each step, as a pure function of the step's number, from 0.

    It has no state: a resumed run has the same rates, and a replay finds them in its trajectory.

    Raises:
        ConfigError: the warm-up leaves no step, or the schedule does not have these options.
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
    if (falls := options.get("num_decay_steps", 0)) > steps - warmup:
        raise ConfigError(
            f"training.lr_scheduler_kwargs.num_decay_steps is {falls:g}, but {steps - warmup} steps follow the "
            "warm-up: the rates would never have their full size",
            f"set it to {max(1, (steps - warmup) // 5)}, a fifth of them, or train longer",
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
