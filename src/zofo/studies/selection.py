"""The choice of each method's hyperparameters from its trials, on validation alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from zofo.studies.grid import Grid
from zofo.studies.result import Outcome
from zofo.studies.trial import Cell, Run

Outcomes = Mapping[str, Outcome]
"""The outcomes of the runs that are done, by digest."""


@dataclass(frozen=True)
class TrialResult:
    """One setting and the result of its trials.

    Args:
        setting: what it is, as `key=value`.
        loss: mean on validation over the seeds; None where a trial diverged, has to be made again or is not done.
        score: the same of the score.
        metric: name of the score.
        diverged: message of a trial whose loss was not finite, which is the worst that a setting can come to; or None.
        accident: message of a trial that anything else ended, so that it says nothing of the setting and is made again;
            or None.
        done: whether all of its trials are, and none by accident.
        key: lower for the better setting; None where it cannot be chosen.
    """

    setting: str
    loss: float | None
    score: float | None
    metric: str
    diverged: str | None
    accident: str | None
    done: bool
    key: float | None


@dataclass(frozen=True)
class Selection:
    """The settings of a method in one cell.

    Args:
        method: its name in the tables.
        cell: where it stands.
        trials: in the order of the file.
        chosen: number of the best, from 0; None where every one diverged, or some are not done.
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
    def accident(self) -> str | None:
        """What the final runs wait for: the message of the first trial that has to be made again; None without one."""
        return next((trial.accident for trial in self.trials if trial.accident is not None), None)


def choices_of(grid: Grid, outcomes: Outcomes) -> dict[tuple[str, Cell], Selection]:
    """The choice in every cell for every method with trials.

    argmin over settings of (1 / seeds) sum over seeds of the loss on validation (or of minus the score), both after the
    last step of the trial. A setting of which a trial diverged is the worst and not chosen; of equal ones the first is.
    Nothing is chosen while a trial is not done or was ended by accident: fewer settings would be compared than for
    other methods.

    Args:
        grid: of the study.
        outcomes: of its trials; the scores of other splits in them are not looked at.
    """
    by = grid.config.search.by if grid.config.search else "loss"
    runs: dict[tuple[str, Cell], dict[int, list[Run]]] = {}
    for run in grid.trials:
        runs.setdefault((run.method, run.cell), {}).setdefault(run.trial or 0, []).append(run)
    found = {}
    for (name, cell), numbered in runs.items():
        settings = grid.config.settings(name)
        trials = tuple(_result(settings[number], these, outcomes, by) for number, these in numbered.items())
        keys = [trial.key for trial in trials]
        best = min((key for key in keys if key is not None), default=None)
        chosen = keys.index(best) if best is not None and all(trial.done for trial in trials) else None
        found[name, cell] = Selection(name, cell, trials, chosen)
    return found


def _result(setting: str, runs: list[Run], outcomes: Outcomes, by: str) -> TrialResult:
    made = [outcomes[run.digest] for run in runs if run.digest in outcomes]
    accident = next((outcome.failed["message"] for outcome in made if outcome.failed and not outcome.final), None)
    diverged = next((outcome.failed["message"] for outcome in made if outcome.failed and outcome.final), None)
    done = len(made) == len(runs) and accident is None
    if not done or diverged is not None:
        return TrialResult(setting, None, None, "", diverged, accident, done, None)
    validation = [outcome.scores["validation"] for outcome in made]
    loss, score = (sum(scores[name] for scores in validation) / len(made) for name in ("loss", "score"))
    key = sum(outcome.better_key(by) for outcome in made) / len(made)
    if not math.isfinite(key):
        infinite = f"its {by} on validation is {key}"
        return TrialResult(setting, loss, score, made[0].metric, infinite, None, True, None)
    return TrialResult(setting, loss, score, made[0].metric, None, None, True, key)


def final_runs(grid: Grid, choices: Mapping[tuple[str, Cell], Selection]) -> list[Run]:
    """The final runs whose setting is known: chosen, or the only one; the untrained model's first."""
    found = list(grid.zero_shots)
    for name, cell in grid.entries:
        choice = choices.get((grid.config.searched(name), cell))
        if choice is None:
            found += grid.finals(name, cell, 0)
        elif choice.chosen is not None:
            found += grid.finals(name, cell, choice.chosen)
    return found
