"""The file of a study: the methods, tasks, models and seeds to compare, and how hyperparameters are chosen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from zofo.config import Config
from zofo.errors import ConfigError, UnknownNameError, nearest
from zofo.trees import Tree, flatten, format_overrides, get_by_path, merge_trees

T = TypeVar("T")

COUNTED = ("forwards", "backwards", "queries")
CURVE_COLUMNS = ("steps", "queries", "split", "loss", "score")
RESULT_COLUMNS = (
    *("setting", "chosen", "metric", "score", "majority"),
    *(f"{split}_{what}" for split in ("validation", "test", "test_last") for what in ("loss", "score")),
    *("steps", *COUNTED, "seconds", "peak_bytes"),
    *(f"evaluation_{name}" for name in (*COUNTED, "seconds")),
    *(
        f"treatment_{name}_{end}"
        for name in ("gradient_squared", "gradient_squared_error", "spread_squared")
        for end in ("first", "last")
    ),
    *("treatment_predicted_descent", "treatment_predicted_descent_error", "treatment_backbone_distance"),
    *("failed", "run"),
)
COLUMNS = frozenset(("method", "model", "task", "seed", "trial", *RESULT_COLUMNS, *CURVE_COLUMNS))
"""Columns of the results and curves; an axis cannot have one of these names."""

ZERO_SHOT = "zero-shot"
MAJORITY = "majority"

GROUPS = ("method", "model", "problem", "task", "training")
"""What a run's tree can hold: a task with a model, or a problem."""

_SET_BY_BUDGET = ("steps", "max_queries", "epochs", "num_evals", "eval_steps", "eval_on_test")

SEEDED = ("training.seed", "task.split_seed", "model.head_seed")
"""The keys that a seed sets by default; in a study of problems, only the first."""


def _distinct(given: Any) -> Any:
    """Seeds as a file gives them, of which each must be a whole number, and another one: `true` would count as 1."""
    for seed in given if isinstance(given, list) else []:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"{seed!r} is no whole number; write for example seeds: [0, 1, 2]")
        if given.count(seed) > 1:
            raise ValueError(f"{seed} is given twice, which would count one run as two; give each seed once")
    return given


def _by_name(given: Any) -> Any:
    """Names that YAML reads as numbers or truth values as text."""
    return {str(name): one for name, one in given.items()} if isinstance(given, Mapping) else given


Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 64)]], Field(min_length=1), BeforeValidator(_distinct)]
Named = Annotated[dict[str, T], BeforeValidator(_by_name)]


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

    @property
    def training(self) -> Tree:
        """The keys of a run's `training` that say so."""
        return {"steps": self.steps} if self.queries is None else {"max_queries": self.queries}

    def __str__(self) -> str:
        return f"{self.queries} queries" if self.queries is not None else f"{self.steps} steps"


class Search(Config):
    """How a method's hyperparameters are chosen from its trials: on validation, separately in each cell."""

    budget: Budget
    """Length of one trial."""
    seeds: Seeds = [1000]
    """Seeds of the trials, none of which may be one of the final runs; their means are compared."""
    metric: Literal["loss", "score"] = "loss"
    """What is compared on validation after the last step: the lowest loss, or the best score and then the loss."""
    same_share: bool = False
    """Trials of a method with a budget of its own are the same share of it as `budget` is of the study's."""


class Changes(Config):
    """What some runs of a study are configured with, beside what is said elsewhere; keys may be nested or dotted."""

    method: Any = None
    """The method, or some of its keys."""
    model: Any = None
    """The same of the model."""
    problem: Any = None
    """The same of the problem."""
    task: Any = None
    """The same of the task."""
    training: Any = None
    """The same of the training."""

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return {} if given is None else given
        own = {str(key): value for key, value in given.items() if key in cls.model_fields and key not in GROUPS}
        return {**merge_trees({key: value for key, value in given.items() if str(key) not in own}), **own}

    @property
    def tree(self) -> Tree:
        """What was given of the groups."""
        return {group: getattr(self, group) for group in GROUPS if group in self.model_fields_set}


class AxisValue(Changes):
    """One value of an axis: what it changes in its runs."""

    methods: Named[None | Changes] = {}
    """For single methods, configuration in place of the value's own `method`; null leaves the method out here."""
    init_from: str | None = None
    """One of the study's `pretraining`, in place of that of a method; the untrained model stays as it is."""


class PretrainingRun(Changes):
    """A run that methods start from, such as training on many tasks, over `model` and `training` of `defaults`."""

    budget: Budget
    """Its length."""


class MethodSpec(Changes):
    """A method that is compared. Its configuration is merged into `defaults`."""

    trials: list[Changes] = []
    """Hyperparameters to try; empty for a method that is not searched."""
    tuned_by: str | None = None
    """Use the trial that was chosen for another method in the same cell, instead of own trials; for a control."""
    budget: Budget | None = None
    """Length of its final runs, in place of the study's; the report marks it."""
    init_from: str | None = None
    """One of the study's `pretraining`; its trained weights replace those of the model."""
    seeds: Seeds | None = None
    """Seeds of its final runs, in place of the study's; one is enough for a deterministic method."""

    @field_validator("trials", mode="before")
    @classmethod
    def _a_list(cls, given: Any) -> Any:
        if not isinstance(given, list | None):
            example = "write for example trials: [{method.rule.lr: 1e-3}, {method.rule.lr: 1e-4}]"
            raise ValueError(f"expected a list of settings, got {given!r}; {example}")
        return given or []


class FigureConfig(Config):
    """Options of the figures of a study."""

    x: Literal["queries", "steps"] = "queries"
    """What the curves are drawn against."""
    split: Literal["train", "validation"] | None = None
    """The split of the curves; by default train for losses, where it was scored, and else validation."""
    band: Literal["range", "interval"] = "range"
    """The band around the mean over seeds: smallest to largest, or the 95 % interval of the mean (Student's t)."""


class StudyConfig(Config):
    """A comparison: methods x tasks x models x further axes x seeds."""

    about: str = ""
    """The question of the comparison, in a sentence."""
    defaults: Changes = Changes()
    """Configuration that all runs share."""
    budget: Budget
    """Length of every final run."""
    seeds: Seeds
    """Seeds of the final runs of each method in each cell."""
    seed_keys: list[str] = []
    """The keys that a seed sets; by default those of the run, the split and a new head."""
    num_evals: int = Field(8, ge=1)
    """Evaluations of a final run on validation, evenly spaced: the points of its curve."""
    models: Named[AxisValue] = {}
    """Models by their names in the tables."""
    tasks: Named[AxisValue] = {}
    """Tasks or problems by their names in the tables."""
    axes: Named[Named[AxisValue]] = {}
    """More axes, each with its values by name."""
    pretraining: Named[PretrainingRun] = {}
    """Runs that are made first, once for each model, for `methods` to start from."""
    methods: Named[MethodSpec]
    """Methods by their names in the tables."""
    search: Search | None = None
    """How hyperparameters are chosen; without it, nothing is searched."""
    keep_weights: bool = False
    """Keep `weights.safetensors` of a run after it has been scored. Adapters, trajectories and runs that others start
    from are always kept."""
    zero_shot: bool = False
    """Add the untrained model as a row of the tables."""
    baseline: str | None = None
    """The method that all others are compared with, in pairs of the same task and seed."""
    contrast_axis: str | None = None
    """An axis: its first value is compared with each other one, for each method, in pairs of the same seed."""
    split: Literal["test", "validation"] = "test"
    """The split whose scores the tables show."""
    margin: float | None = Field(None, gt=0, lt=1)
    """Differences of the score that are surely smaller than this count as equal: a share, so that 0.02 is two points of
    a score in percent."""
    margin_loss: float | None = Field(None, gt=0)
    """The same of the loss that stands beside such a score, in nats."""
    checkpoint: Literal["last", "best"] = "last"
    """Where a final run is scored on test: after its last step, or at its best evaluation on validation, as in the
    papers. With `best` the results hold the score after the last step, too, as `test_last_score`."""
    figure: FigureConfig | None = None
    """Draw the curves: options of the figure, or `true` for the defaults."""
    sizes: Named[dict[str, Any]] = {}
    """By name, what keys of the file, dotted, are for another machine, and `about`, what that is and takes."""

    def searched(self, name: str) -> str:
        """The method whose trials a method uses: itself, or its `tuned_by`."""
        contender = self.methods.get(name)  # the untrained model is none
        return name if contender is None else contender.tuned_by or name

    def tried(self, name: str) -> list[Tree]:
        """The trials that a method chooses from; empty where nothing is searched."""
        return [trial.tree for trial in self.methods[self.searched(name)].trials]

    def settings(self, name: str) -> list[str]:
        """These trials, each as one line of `key=value`."""
        return list(map(format_overrides, self.tried(name)))

    def controls(self, name: str) -> list[str]:
        """The methods that use the trial chosen for this one."""
        return [control for control, contender in self.methods.items() if contender.tuned_by == name]

    def levels(self) -> dict[str, AxisValue]:
        """Every value of every axis by its place in the file; models and tasks are axes too."""
        axes = {"models": self.models, "tasks": self.tasks}
        axes |= {f"axes.{axis}": values for axis, values in self.axes.items()}
        return {f"{axis}.{name}": level for axis, values in axes.items() for name, level in values.items()}

    def trees(self) -> list[tuple[str, Tree]]:
        """All that goes into a run, with its place in the file."""
        found: list[tuple[str, Changes]] = [("defaults", self.defaults), *self.levels().items()]
        found += [(f"pretraining.{name}", start) for name, start in self.pretraining.items()]
        for place, level in self.levels().items():
            found += [(f"{place}.methods.{name}", one) for name, one in level.methods.items() if one is not None]
        for name, method in self.methods.items():
            found += [(f"methods.{name}", method), *((f"methods.{name}.trials", trial) for trial in method.trials)]
        return [(place, one.tree) for place, one in found]

    def with_each(self, change: Callable[[Any], Any]) -> StudyConfig:
        """The study with `defaults` and every level and start changed."""

        def each(section: Mapping[str, Any]) -> dict[str, Any]:
            return {name: change(one) for name, one in section.items()}

        made = {"defaults": change(self.defaults), "axes": {axis: each(values) for axis, values in self.axes.items()}}
        made |= {"models": each(self.models), "tasks": each(self.tasks), "pretraining": each(self.pretraining)}
        return self.model_copy(update=made)

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, given: Any) -> Any:
        """A key with nothing after it is as if it were left out, and a name alone is the model or task of that name."""
        if not isinstance(given, Mapping):
            return given
        made = {str(key): value for key, value in given.items() if value is not None}
        if isinstance(made.get("sizes"), Mapping):
            made["sizes"] = {name: size or {} for name, size in made["sizes"].items()}
        for section, group in (("models", "model"), ("tasks", "task")):
            if isinstance(made.get(section), Mapping):
                named = {name: {group: {"name": str(name)}} for name, one in made[section].items() if one is None}
                made[section] = {**made[section], **named}
        if isinstance(made.get("figure"), bool):
            made["figure"] = {} if made["figure"] else None
        return made


def check(config: StudyConfig) -> None:
    """Find out whether the parts of a study fit together.

    Raises:
        ConfigError: names the key, and what to write there.
    """
    _check_names(config)
    _check_trials(config)
    for (place, tree), key in itertools.product(config.trees(), config.seed_keys or SEEDED):
        if get_by_path(tree, key) is not None:
            raise ConfigError(
                f"{place}.{key}: each of the seeds sets this, so that it would have no effect",
                "leave it out, or say with seed_keys: [...] which keys a seed sets",
            )
    for (place, tree), key in itertools.product(config.trees(), _SET_BY_BUDGET):
        if get_by_path(tree, f"training.{key}") is not None:
            raise ConfigError(
                f"{place}.training.{key}: how long a run is, and when it is scored, is the study's to say",
                "use budget and num_evals, which are the same for all methods",
            )


def _check_names(config: StudyConfig) -> None:
    """Raises ConfigError for a name that is unknown, or taken."""
    if not config.methods:
        raise ConfigError("methods: a study without a method has no runs", "name one, or several to compare")
    final = {seed for method in config.methods.values() for seed in method.seeds or config.seeds}
    if config.search is not None and (both := sorted(final & set(config.search.seeds))):
        raise ConfigError(
            f"search.seeds: {both[0]} is a seed of final runs, too, which would be scored with what was chosen for it",
            f"choose with seeds of their own, for example search: {{seeds: [{max(final) + 1}]}}",
        )
    if config.checkpoint == "best" and config.split == "validation":
        raise ConfigError(
            "checkpoint: best is chosen on validation, so that its score there says too much",
            "set split: test, or checkpoint: last",
        )
    if config.baseline is not None and config.baseline not in config.methods:
        other = f'keep it, too, or add --set "baseline={next(iter(config.methods))}", or --set baseline=null for none'
        hint = None if nearest(config.baseline, config.methods) else other
        raise UnknownNameError("method of baseline", config.baseline, config.methods, hint)
    named: list[AxisValue | MethodSpec] = [*config.methods.values(), *config.levels().values()]
    used = {one.init_from for one in named} - {None}
    for name in sorted(map(str, used - set(config.pretraining))):
        raise UnknownNameError("pretraining run", name, config.pretraining)
    if config.contrast_axis is not None:
        if config.contrast_axis not in config.axes:
            raise UnknownNameError(
                "axis of contrast_axis", config.contrast_axis, config.axes, "name one of the study's axes"
            )
        if len(config.axes[config.contrast_axis]) < 2:
            raise ConfigError(
                f"contrast_axis: the axis {config.contrast_axis!r} has one value only", "give it another one"
            )
    for name in {ZERO_SHOT, MAJORITY} & set(config.methods):
        if name == MAJORITY or config.zero_shot:
            raise ConfigError(f"methods.{name}: a row of that name is in the tables already", "give it another name")
    if taken := COLUMNS & set(config.axes):
        raise ConfigError(f"axes.{min(taken)}: a column of that name is in the results already", "give it another name")
    if not all(config.axes.values()):
        raise ConfigError("axes: an axis without a value has no runs", "give it a value, or leave it out")
    for level in config.levels().values():
        for name in level.methods.keys() - config.methods.keys():
            raise UnknownNameError("method", name, config.methods)


def _check_trials(config: StudyConfig) -> None:
    """Raises ConfigError where methods have different numbers of trials, or trials and no search."""
    for name, contender in config.methods.items():
        if contender.tuned_by is not None:
            _check_tuned_by(config, name, contender.tuned_by)
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
            "add for example search: {budget: {queries: 5120}, seeds: [0], metric: loss}",
        )


def _check_tuned_by(config: StudyConfig, name: str, other: str) -> None:
    """Raises ConfigError for a control of a method without trials, or one that also sets what the trials set."""
    control, where = config.methods[name], f"methods.{name}.tuned_by"
    if other not in config.methods:
        hint = None if nearest(other, config.methods) else f"of a part of a study, keep {other!r}, too"
        raise UnknownNameError(f"method of {where}", other, config.methods, hint)
    if control.trials:
        raise ConfigError(f"methods.{name} has trials of its own, and tuned_by: {other}", "leave one of the two out")
    if not config.methods[other].trials:
        message = f"{where}: {other} has no trials, so that no setting of it is chosen"
        raise ConfigError(message, "name a method that has trials")
    nothing = Changes()
    said = [(f"methods.{name}", control.tree, config.methods[other].tree)]
    for place, level in config.levels().items():
        alone, theirs = (level.methods.get(one) or nothing for one in (name, other))
        said.append((f"{place}.methods.{name}", alone.tree, theirs.tree))
    for number, trial in enumerate(config.tried(other), 1):
        for (place, tree, others), (key, _) in itertools.product(said, flatten(trial)):
            if get_by_path(tree, key) not in (None, get_by_path(others, key)):
                raise ConfigError(
                    f"{place}.{key}: trial {number} of {other} sets this, so that it would have no effect",
                    f"leave it out, or give {name} trials of its own in place of tuned_by",
                )
