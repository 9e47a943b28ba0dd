"""Choose each method's hyperparameters from its trials, on validation alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from zofo.studies.grid import Grid
from zofo.studies.result import Outcome
from zofo.studies.trial import Cell, StudyRun
from zofo.trees import Tree, flatten

Outcomes = Mapping[str, Outcome]
"""The outcomes of the runs that are done, by digest."""


@dataclass(frozen=True)
class TrialResult:
    """One setting and the result of its trials.

    Args:
        setting: the setting, as `key=value`.
        done: whether all of its trials are done, and none failed.
        state: "failed" if anything but its loss ended a trial, which will be made again; "diverged", the worst result
            of a setting; "not done"; or empty.
        message: message of the trial that failed or diverged.
        loss: mean loss on validation over the seeds; None if a trial has none.
        score: mean score, likewise.
        key: lower for the better setting; None if it cannot be chosen.
    """

    setting: str
    done: bool
    state: str = ""
    message: str = ""
    loss: float | None = None
    score: float | None = None
    metric: str = ""
    key: float | None = None


@dataclass(frozen=True)
class Selection:
    """The settings of a method in one cell.

    Args:
        trials: the trials in the order of the file.
        chosen: index of the best; None if all diverged, or some are not done.
    """

    method: str
    cell: Cell
    trials: tuple[TrialResult, ...]
    chosen: int | None

    @property
    def done(self) -> bool:
        """Whether all trials are done."""
        return all(trial.done for trial in self.trials)

    @property
    def transient_failure(self) -> str | None:
        """The message of the first trial that must be made again before the final runs; None without one."""
        return next((trial.message for trial in self.trials if trial.state == "failed"), None)


Choices = Mapping[tuple[str, Cell], Selection]
"""The choice of each method with trials in each cell."""


def choices_of(grid: Grid, outcomes: Outcomes) -> Choices:
    """The choice in every cell for every method with trials.

    argmin over settings of (1 / seeds) sum over seeds of the loss on validation (or of minus the score), after the last
    step of the trial. For equal scores the lower loss is chosen, then the first setting. A setting with a diverged
    trial is not chosen. Nothing is chosen while a trial is not done or failed for an external reason: fewer settings
    would be compared than for other methods.

    Args:
        outcomes: outcomes of its trials; scores of other splits are not used.
    """
    by = grid.config.search.metric if grid.config.search else "loss"
    found = {}
    for (name, cell), tried in groupby(grid.trials, key=lambda run: (run.method, run.cell)):
        settings, numbered = grid.config.settings(name), groupby(tried, key=lambda run: run.setting)
        trials = tuple(_result(settings[number], list(runs), outcomes, by) for number, runs in numbered)
        able = [number for number, trial in enumerate(trials) if trial.key is not None]
        best = min(able, key=lambda number: _rank(trials[number]), default=None)
        chosen = best if all(trial.done for trial in trials) else None
        found[name, cell] = Selection(name, cell, trials, chosen)
    return found


def _rank(trial: TrialResult) -> tuple[float, float]:
    """A number that is lower for the better of two settings; a non-finite loss is worse than any."""
    key, loss = trial.key, trial.loss
    return (math.inf if key is None else key, loss if loss is not None and math.isfinite(loss) else math.inf)


def _result(setting: str, runs: list[StudyRun], outcomes: Outcomes, by: str) -> TrialResult:
    made = [outcomes[run.digest] for run in runs if run.digest in outcomes]
    ended = {"diverged" if one.is_final else "failed": one.failed["message"] for one in reversed(made) if one.failed}
    done = len(made) == len(runs) and "failed" not in ended
    for state in ("failed", "diverged"):
        if state in ended:
            return TrialResult(setting, done, state, ended[state])
    if not done:
        return TrialResult(setting, done, "not done")
    validation = [outcome.scores["validation"] for outcome in made]
    loss, score = (sum(scores[name] for scores in validation) / len(made) for name in ("loss", "score"))
    key = sum(outcome.better_key(by) for outcome in made) / len(made)
    state, message = ("", "") if math.isfinite(key) else ("diverged", f"its {by} on validation is {key}")
    return TrialResult(setting, done, state, message, loss, score, made[0].metric, None if state else key)


def final_runs(grid: Grid, choices: Choices) -> list[StudyRun]:
    """The final runs with a known setting, chosen or the only one; the untrained model's first."""
    found = list(grid.zero_shots)
    for name, cell in grid.entries:
        choice = choices.get((grid.config.searched(name), cell))
        chosen = 0 if choice is None else choice.chosen
        if chosen is not None:
            found += grid.finals(name, cell, chosen)
    return found


def edges_of(tried: Sequence[Tree], chosen: int) -> list[str]:
    """The keys whose chosen value is the smallest or largest of those tried.

    A better value may lie beyond.
    """
    values: dict[str, set[float]] = {}
    for tree in tried:
        for key, value in flatten(tree):
            if (number := _number(value)) is not None:
                values.setdefault(key, set()).add(number)
    taken = {key: _number(value) for key, value in flatten(tried[chosen])}
    return [
        key
        for key, number in taken.items()
        if number is not None and len(values[key]) > 1 and number in (min(values[key]), max(values[key]))
    ]


def _number(value: Any) -> float | None:
    """A value as a number, including text such as `1e-3`, which YAML reads as text; None for any other."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
