"""The file of a study: the methods, tasks, models and seeds to compare, and how hyperparameters are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from zofo.config import Config
from zofo.errors import ConfigError
from zofo.trees import Tree, format_overrides, merge_trees

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

SEEDED = ("training.seed", "task.split_seed", "model.head_seed")
"""The keys that a seed sets by default; in a study of problems, only the first."""


def _distinct(given: Any) -> Any:
    """Seeds of a file, which must be distinct whole numbers; `true` would count as 1."""
    for seed in given if isinstance(given, list) else []:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"{seed!r} is no whole number; write for example seeds: [0, 1, 2]")
        if given.count(seed) > 1:
            raise ValueError(f"{seed} is given twice, which would count one run as two; give each seed once")
    return given


def _by_name(given: Any) -> Any:
    """Names that YAML parses as numbers or booleans, as text."""
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
        """The keys of a run's `training` for this length."""
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
    """Changes to the configuration of some runs of a study; keys may be nested or dotted."""

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
        """The given groups."""
        return {group: getattr(self, group) for group in GROUPS if group in self.model_fields_set}


class AxisValue(Changes):
    """One value of an axis: what it changes in its runs."""

    methods: Named[None | Changes] = {}
    """For single methods, configuration instead of the value's own `method`; null leaves the method out here."""
    init_from: str | None = None
    """One of the study's `pretraining`, instead of that of a method; the untrained model stays as it is."""


class PretrainingRun(Changes):
    """A run that methods start from, such as training on many tasks, on top of `model` and `training` of `defaults`."""

    budget: Budget
    """Its length."""


class MethodSpec(Changes):
    """A method to compare. Its configuration is merged into `defaults`."""

    trials: list[Changes] = []
    """Hyperparameters to try; empty for a method that is not searched."""
    tuned_by: str | None = None
    """Use the trial that was chosen for another method in the same cell, instead of own trials; for a control."""
    budget: Budget | None = None
    """Length of its final runs, instead of the study's; the report marks it."""
    init_from: str | None = None
    """One of the study's `pretraining`; its trained weights replace those of the model."""
    seeds: Seeds | None = None
    """Seeds of its final runs, instead of the study's; one is enough for a deterministic method."""

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
        """The method whose trials a method uses: its own, or those of `tuned_by`."""
        contender = self.methods.get(name)  # the untrained model is none
        return name if contender is None else contender.tuned_by or name

    def tried(self, name: str) -> list[Tree]:
        """The trials that a method chooses from; empty without a search."""
        return [trial.tree for trial in self.methods[self.searched(name)].trials]

    def settings(self, name: str) -> list[str]:
        """These trials, each as one line of `key=value`."""
        return list(map(format_overrides, self.tried(name)))

    def controls(self, name: str) -> list[str]:
        """The methods that use the trial chosen for this one."""
        return [control for control, contender in self.methods.items() if contender.tuned_by == name]

    def levels(self) -> dict[str, AxisValue]:
        """Every value of every axis by its path in the file; models and tasks are axes too."""
        axes = {"models": self.models, "tasks": self.tasks}
        axes |= {f"axes.{axis}": values for axis, values in self.axes.items()}
        return {f"{axis}.{name}": level for axis, values in axes.items() for name, level in values.items()}

    def trees(self) -> list[tuple[str, Tree]]:
        """All configuration parts of runs, with their path in the file."""
        found: list[tuple[str, Changes]] = [("defaults", self.defaults), *self.levels().items()]
        found += [(f"pretraining.{name}", start) for name, start in self.pretraining.items()]
        for place, level in self.levels().items():
            found += [(f"{place}.methods.{name}", one) for name, one in level.methods.items() if one is not None]
        for name, method in self.methods.items():
            found += [(f"methods.{name}", method), *((f"methods.{name}.trials", trial) for trial in method.trials)]
        return [(place, one.tree) for place, one in found]

    def with_each(self, change: Callable[[Any], Any]) -> StudyConfig:
        """A copy with `defaults` and every level and start mapped."""

        def each(section: Mapping[str, Any]) -> dict[str, Any]:
            return {name: change(one) for name, one in section.items()}

        made = {"defaults": change(self.defaults), "axes": {axis: each(values) for axis, values in self.axes.items()}}
        made |= {"models": each(self.models), "tasks": each(self.tasks), "pretraining": each(self.pretraining)}
        return self.model_copy(update=made)

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, given: Any) -> Any:
        """Drop keys without a value, and expand a name alone to the model or task of that name."""
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
