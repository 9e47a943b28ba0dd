"""The file of a study: the methods, tasks, models and seeds to compare, and how hyperparameters are chosen."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from zofo.config import Config
from zofo.errors import ConfigError, UnknownNameError, nearest
from zofo.overrides import Tree, flat, format_overrides, get_by_path
from zofo.studies.shorthand import as_written, distinct

_OF_RUNS = "method model task seed trial setting chosen metric score majority steps seconds failed run split loss"
_SCORED, _COUNTED = ("validation", "test"), ("forwards", "backwards", "queries")
COLUMNS = frozenset(
    (*_OF_RUNS.split(), *_COUNTED, *(f"evaluation_{name}" for name in (*_COUNTED, "seconds")))
    + tuple(f"{split}_{what}" for split in _SCORED for what in ("loss", "score"))
)
"""Columns of the results and curves; an axis cannot have one of these names."""

ZERO_SHOT = "zero-shot"
MAJORITY = "majority"

_SET_BY_BUDGET = ("steps", "queries", "epochs", "evaluations", "eval_every", "test")

Seed = Annotated[int, Field(ge=0, lt=1 << 64)]

SEEDED = ("training.seed", "task.split_seed", "model.head_seed")
"""The keys that a seed sets by default; in a study of problems, only the first."""


class Budget(Config):
    """The length of a run: in queries, which compares methods at equal cost, or in steps."""

    queries: int | None = Field(None, ge=1)
    """The most queries of a run; it makes as many whole steps as they pay for."""
    steps: int | None = Field(None, ge=1)
    """Steps of a run, at any cost."""

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if (self.queries is None) == (self.steps is None):
            raise ConfigError("a budget is a number of queries or of steps", "write for example {queries: 20480}")
        return self

    def __str__(self) -> str:
        return f"{self.queries} queries" if self.queries is not None else f"{self.steps} steps"


class Search(Config):
    """How a method's hyperparameters are chosen from its trials: on validation, separately in each cell."""

    budget: Budget
    """Length of one trial."""
    seeds: list[Seed] = Field([0], min_length=1)
    """Seeds of the trials; their means are compared."""
    by: Literal["loss", "score"] = "loss"
    """What is compared, on validation after the last step: the lowest loss or the best score wins."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _once(cls, seeds: Any) -> Any:
        return distinct(seeds, "search.seeds")


class AxisValue(Config):
    """One value of an axis: what it changes in its runs."""

    tree: Tree = {}
    """Configuration that is merged into every run."""
    methods: dict[str, Tree | None] = {}
    """For single methods, configuration in place of the tree's `method`; null leaves the method out here."""


class Start(Config):
    """A run that is made first and that methods start from, such as training on many tasks."""

    tree: Tree = {}
    """Its configuration, method and tasks among it; merged into `model` and `training` of `base`."""
    budget: Budget
    """Its length."""


class MethodSpec(Config):
    """A method that is compared."""

    tree: Tree = {}
    """Its configuration, merged into `base`."""
    trials: list[Tree] = []
    """Hyperparameters to try, a tree each; empty for a method that is not searched."""
    setting_of: str | None = None
    """Use the trial that was chosen for another method in the same cell, instead of own trials; for a control."""
    budget: Budget | None = None
    """Length of its final runs, in place of the study's; the report marks it."""
    start: str | None = None
    """One of the study's `starts`; its trained weights replace those of the model."""
    seeds: list[Seed] | None = Field(None, min_length=1)
    """Seeds of its final runs, in place of the study's; one is enough for a deterministic method."""


class StudyConfig(Config):
    """A comparison: methods x tasks x models x further axes x seeds."""

    about: str = ""
    """The question of the comparison, in a sentence."""
    base: Tree = {}
    """Configuration that all runs share."""
    budget: Budget
    """Length of every final run."""
    seeds: list[Seed] = Field(min_length=1)
    """Seeds of the final runs of each method in each cell."""
    seeded: list[str] = []
    """The keys that a seed sets; by default those of the run, the split and a new head."""
    evaluations: int = Field(8, ge=1)
    """Evaluations of a final run on validation, evenly spaced: the points of its curve."""
    models: dict[str, AxisValue] = {}
    """Models by their names in the tables."""
    tasks: dict[str, AxisValue] = {}
    """Tasks or problems by their names in the tables."""
    axes: dict[str, dict[str, AxisValue]] = {}
    """More axes, each with its values by name."""
    starts: dict[str, Start] = {}
    """Runs that are made first, once for each model, for `methods` to start from."""
    methods: dict[str, MethodSpec] = Field(min_length=1)
    """Methods by their names in the tables."""
    search: Search | None = None
    """How hyperparameters are chosen; without it, nothing is searched."""
    keep_weights: bool = False
    """Keep `weights.safetensors` of a run after it has been scored. Adapters, trajectories and runs that others start
    from are always kept."""
    zero_shot: bool = False
    """Add the untrained model as a row of the tables."""
    reference: str | None = None
    """The method that all others are compared with, in pairs of the same task and seed."""
    contrast: str | None = None
    """An axis: its first value is compared with each other one, for each method, in pairs of the same seed."""
    measure: Literal["test", "validation"] = "test"
    """The split whose scores the tables show."""
    figure: Tree | None = None
    """Draw the curves: options of `zofo.studies.figures`, or `true` for the defaults."""

    def searched(self, name: str) -> str:
        """The method whose trials a method uses: itself, or its `setting_of`."""
        contender = self.methods.get(name)  # the untrained model is none
        return name if contender is None else contender.setting_of or name

    def tried(self, name: str) -> list[Tree]:
        """The trials that a method chooses from; empty where nothing is searched."""
        return self.methods[self.searched(name)].trials

    def settings(self, name: str) -> list[str]:
        """These trials, each as one line of `key=value`."""
        return list(map(format_overrides, self.tried(name)))

    def controls(self, name: str) -> list[str]:
        """The methods that use the trial chosen for this one."""
        return [control for control, contender in self.methods.items() if contender.setting_of == name]

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, given: Any) -> Any:
        return as_written(given)

    @field_validator("seeds", mode="before")
    @classmethod
    def _once(cls, seeds: Any) -> Any:
        return distinct(seeds, "seeds")

    @model_validator(mode="after")
    def _fits(self) -> StudyConfig:
        _check_names(self)
        _check_trials(self)
        for where, tree in _trees(self):
            for key in self.seeded or SEEDED:
                if get_by_path(tree, key) is not None:
                    raise ConfigError(
                        f"{where}.{key}: each of the seeds sets this, so that it would have no effect",
                        "leave it out, or say with seeded: [...] which keys a seed sets",
                    )
            for key in _SET_BY_BUDGET:
                if get_by_path(tree, f"training.{key}") is not None:
                    raise ConfigError(
                        f"{where}.training.{key}: how long a run is, and when it is scored, is the study's to say",
                        "use budget and evaluations, which are the same for all methods",
                    )
        return self


def _levels(config: StudyConfig) -> list[tuple[str, AxisValue]]:
    """Every value of every axis, with its path in the file; models and tasks are axes too."""
    levels = [(f"models.{name}", level) for name, level in config.models.items()]
    levels += [(f"tasks.{name}", level) for name, level in config.tasks.items()]
    for axis, values in config.axes.items():
        levels += [(f"axes.{axis}.{name}", level) for name, level in values.items()]
    return levels


def _trees(config: StudyConfig) -> list[tuple[str, Tree]]:
    """Every tree of the file that goes into a run, with its path."""
    levels = _levels(config)
    found = [("base", config.base), *((where, level.tree) for where, level in levels)]
    found += [(f"starts.{name}", start.tree) for name, start in config.starts.items()]
    for where, level in levels:
        found += [(f"{where}.methods.{name}", tree) for name, tree in level.methods.items() if tree is not None]
    for name, contender in config.methods.items():
        found += [(f"methods.{name}", contender.tree), *((f"methods.{name}.trials", t) for t in contender.trials)]
    return found


def _check_names(config: StudyConfig) -> None:
    """Raises ConfigError for a name that is unknown, or taken."""
    if config.reference is not None and config.reference not in config.methods:
        raise UnknownNameError("method of reference", config.reference, config.methods)
    used = {contender.start for contender in config.methods.values()} - {None}
    for name in sorted(map(str, used - set(config.starts))):
        raise UnknownNameError("start", name, config.starts)
    if config.contrast is not None:
        if config.contrast not in config.axes:
            raise UnknownNameError("axis of contrast", config.contrast, config.axes, "name one of the study's axes")
        if len(config.axes[config.contrast]) < 2:
            raise ConfigError(f"contrast: the axis {config.contrast!r} has one value only", "give it another one")
    for name in {ZERO_SHOT, MAJORITY} & set(config.methods):
        if name == MAJORITY or config.zero_shot:
            raise ConfigError(f"methods.{name}: a row of that name is in the tables already", "give it another name")
    if taken := COLUMNS & set(config.axes):
        raise ConfigError(f"axes.{min(taken)}: a column of that name is in the results already", "give it another name")
    levels = [*config.models.values(), *config.tasks.values()]
    for values in config.axes.values():
        if not values:
            raise ConfigError("axes: an axis without a value has no runs", "give it a value, or leave it out")
        levels += values.values()
    for level in levels:
        for name in level.methods:
            if name not in config.methods:
                raise UnknownNameError("method", name, config.methods)


def _check_trials(config: StudyConfig) -> None:
    """Raises ConfigError where methods have different numbers of trials, or trials and no search."""
    for name, contender in config.methods.items():
        if contender.setting_of is not None:
            _check_setting_of(config, name, contender.setting_of)
    counts = {name: len(contender.trials) for name, contender in config.methods.items() if contender.trials}
    if len(set(counts.values())) > 1:
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        raise ConfigError(
            f"methods.{most} has {counts[most]} trials, but methods.{least} has {counts[least]}: a method that may "
            "try more settings has a better one by luck",
            "give all of them the same number of trials",
        )
    if counts and config.search is None:
        raise ConfigError(
            f"methods.{next(iter(counts))} has trials, but the study says not how they are judged",
            "add for example search: {budget: {queries: 5120}, seeds: [0], by: loss}",
        )


def _check_setting_of(config: StudyConfig, name: str, other: str) -> None:
    """Raises ConfigError for a control of a method without trials, or one that also sets what the trials set."""
    control, where = config.methods[name], f"methods.{name}.setting_of"
    if other not in config.methods:
        hint = None if nearest(other, config.methods) else f"of a part of a study, keep {other!r}, too"
        raise UnknownNameError(f"method of {where}", other, config.methods, hint)
    if control.trials:
        raise ConfigError(f"methods.{name} has trials of its own, and setting_of: {other}", "leave one of the two out")
    if not config.methods[other].trials:
        message = f"{where}: {other} has no trials, so that no setting of it is chosen"
        raise ConfigError(message, "name a method that has trials")
    said = [(f"methods.{name}", control.tree, config.methods[other].tree)]
    for place, level in _levels(config):
        said.append((f"{place}.methods.{name}", level.methods.get(name) or {}, level.methods.get(other) or {}))
    for number, trial in enumerate(config.methods[other].trials, 1):
        for (place, own, others), (key, _) in itertools.product(said, flat(trial)):
            if get_by_path(own, key) not in (None, get_by_path(others, key)):
                raise ConfigError(
                    f"{place}.{key}: trial {number} of {other} sets this, so that it would have no effect",
                    f"leave it out, or give {name} trials of its own in place of setting_of",
                )
