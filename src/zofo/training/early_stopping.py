"""End a run after several evaluations without a better score, and warn if a run has lost its best score."""

from __future__ import annotations

import math
from typing import Any

from zofo.errors import ConfigError
from zofo.methods import Method
from zofo.training.callbacks import BestCheckpoint, Callback, EvaluationCallback
from zofo.training.evaluation import as_percent
from zofo.training.training_config import TrainingConfig


class EarlyStopping(Callback):
    """Whether the last `training.early_stopping_patience` evaluations in a row brought no better score.

    Also warns at the end of a run whose last score is below the best one by more than sqrt(2 / rows), at least two
    standard errors of the difference of two proportions over that many rows.

    It has no state: the best evaluation and the step of the last one are in the checkpoint, so a resumed run ends at
    the same step.
    """

    def __init__(
        self, training: TrainingConfig, steps: int, best: BestCheckpoint, evaluating: EvaluationCallback
    ) -> None:
        self._patience, self._steps, self._due = (
            training.early_stopping_patience,
            steps,
            training.evaluated_after(steps),
        )
        self._best, self._evaluating = best, evaluating

    def has_enough(self) -> bool:
        """Whether to stop before the next step."""
        if self._patience is None:
            return False
        since = sum(self._best.step < due <= self._evaluating.steps_evaluated for due in self._due)
        return since >= self._patience

    @property
    def _early(self) -> bool:
        return self._evaluating.steps_made < self._steps and self.has_enough()

    def conclusions(self) -> list[str]:
        if not self._early:
            return self._lost()
        return [
            f"stopped after {self._evaluating.steps_made} of {self._steps} steps: {self._patience} evaluations in a "
            f"row were no better than that after {self._best.step} (training.early_stopping_patience)"
        ]

    def _lost(self) -> list[str]:
        """The warning about a last score that is clearly below the best one."""
        best, last = self._best, next(iter(self._evaluating.last.values()), None)
        if best.score is None or last is None or best.score - last.score <= math.sqrt(2 / len(last.predictions)):
            return []
        return [
            f"warning: {last.titled()} on validation was {as_percent(best.score)} after {best.step} steps, and is "
            f"{as_percent(last.score)}: --best of zofo eval and predict takes the model of then; try a lower learning "
            "rate, training.lr_scheduler_type=linear, or training.early_stopping_patience"
        ]

    def summary(self) -> dict[str, Any]:
        """Its entries of a run's summary; empty if the run made all of its steps."""
        stopped = {"patience": self._patience, "planned_steps": self._steps}
        return {"early_stopping": stopped} if self._early else {}


def check_early_stopping(training: TrainingConfig, method: Method, name: str, steps: int) -> None:
    """Refuse a patience that can never end the run, or a method that needs all planned steps.

    Raises:
        ConfigError: it is one of these.
    """
    patience = training.early_stopping_patience
    if patience is None:
        return
    if method.needs_all_steps:
        raise ConfigError(
            f"method={name} needs the last of its planned steps, and training.early_stopping_patience may end it "
            "before",
            "set training.early_stopping_patience=null",
        )
    if (looks := len(training.evaluated_after(steps))) <= patience:
        raise ConfigError(
            f"training.early_stopping_patience={patience} ends no run that is scored {looks} time{'s' * (looks != 1)}",
            f"score more often with training.num_evals={4 * patience}, or take the patience back with null"
            if steps > patience
            else f"a run of {steps} steps is too short for it: take it back with null",
        )
