"""A task is a file: where its rows come from, how a row becomes a prompt, and what counts as right."""

from __future__ import annotations

import string
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import Field, field_validator, model_validator

from zofo.config import Config, mistakes_of, read_yaml, validated
from zofo.errors import ConfigError, DataError, UnknownNameError
from zofo.tasks.metrics import METRICS

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class TaskConfig(Config):
    """Which task, and which of its rows."""

    name: str = "movie-reviews"
    """A task of `zofo list tasks`, or the path of a task file (.yaml)."""
    data_dir: Path | None = None
    """A folder with the task's rows as JSONL, one file for each source split, in place of its own source."""
    split_seed: int = Field(0, ge=0)
    """Which rows are drawn for each split, where a task draws them."""
    max_length: int | None = Field(None, ge=8)
    """Longest text in tokens; by default, what the model can take."""
    truncate: Literal["never", "left"] = "never"
    """What happens to a longer text: `never` refuses it, `left` drops the oldest tokens of its prompt."""


class Source(Config):
    """Where rows come from: a Hub data set, or an embedded one."""

    hub: str | None = None
    """Hub id of a data set."""
    config: str | None = None
    """Its configuration, where it has several."""
    embedded: str | None = None
    """Name of an embedded data set."""

    @model_validator(mode="after")
    def _one(self) -> Source:
        if (self.hub is None) == (self.embedded is None):
            raise ValueError("give exactly one of source.hub and source.embedded")
        return self


class SplitSource(Config):
    """Which rows make up a split."""

    model_config = pydantic.ConfigDict(**Config.model_config, populate_by_name=True)

    origin: str = Field(alias="from")
    """Split of the source, and name of the file in a local folder: `train` reads train.jsonl."""
    size: int | None = Field(None, ge=1)
    """Rows drawn by `split_seed`, disjoint from other splits of the same origin; None takes all in order."""


class Task(Config):
    """A task file, read and checked.

    Raises:
        ValueError: (as a ConfigError from `load_task`) a template, verbalizer or split that cannot work.
    """

    name: str
    """What it is called."""
    version: int = Field(ge=1)
    """Raised when anything changes that changes a score."""
    about: str = ""
    """One line on what it asks, and its source."""
    kind: Literal["classification"]
    """How an example is scored: by the likelihood of one candidate for each verbalizer."""
    metric: str
    """Name of the score, of `zofo.tasks.METRICS`."""
    source: Source
    """Where rows come from when no folder is given."""
    splits: dict[Split, SplitSource]
    """The rows of train, validation and test."""
    template: str
    """The prompt, with `{column}` wherever a column of the row goes."""
    label: str
    """The column that holds the label."""
    verbalizers: dict[int | str, str]
    """For each label, the text that stands for it after the prompt; begins with a space where a word would."""

    @field_validator("template")
    @classmethod
    def _plain_fields(cls, template: str) -> str:
        fields = template_fields(template)
        if not fields:
            raise ValueError("the template names no column; write for example '{sentence} It was'")
        bad = [field for field in fields if not field.isidentifier()]
        if bad:
            raise ValueError(f"{bad[0]!r} in the template is not a plain column name")
        if any(spec or conversion for _, _, spec, conversion in string.Formatter().parse(template)):
            raise ValueError("the template takes columns as they are: write {column}, without ':' or '!'")
        return template

    @field_validator("verbalizers", mode="before")
    @classmethod
    def _quoted(cls, verbalizers: Any) -> Any:
        if isinstance(verbalizers, dict) and any(isinstance(label, bool) for label in verbalizers):
            raise ValueError(
                "YAML reads the bare labels yes, no, on, off, true and false as truth values: put them in quotes"
            )
        return verbalizers

    @field_validator("verbalizers")
    @classmethod
    def _distinct(cls, verbalizers: dict[int | str, str]) -> dict[int | str, str]:
        if len(verbalizers) < 2:
            raise ValueError("a classification needs two verbalizers or more")
        taken: dict[str, int | str] = {}
        for label, text in verbalizers.items():
            if not text.strip():
                raise ValueError(f"the verbalizer of label {label!r} is empty")
            if text in taken:
                raise ValueError(f"labels {taken[text]!r} and {label!r} have the same verbalizer {text!r}")
            taken[text] = label
        return verbalizers

    @field_validator("splits")
    @classmethod
    def _all_splits(cls, splits: dict[Split, SplitSource]) -> dict[Split, SplitSource]:
        missing = [split for split in SPLITS if split not in splits]
        if missing:
            raise ValueError(f"the split {missing[0]!r} is not defined")
        return splits

    @property
    def labels(self) -> list[int | str]:
        """The labels, in the order of the candidates."""
        return list(self.verbalizers)

    @property
    def columns(self) -> list[str]:
        """The columns every row must have."""
        return [*template_fields(self.template), self.label]


def template_fields(template: str) -> list[str]:
    """The columns that a template names, in order, each once."""
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    return list(dict.fromkeys(names))


def task_names() -> list[str]:
    """The packaged tasks."""
    return sorted(path.name.removesuffix(".yaml") for path in files(__package__).joinpath("files").iterdir())


def load_task(name: str) -> Task:
    """Read a packaged task by its name, or a task file by its path.

    Raises:
        UnknownNameError: neither a packaged task nor a file.
        ConfigError: the file is not a task; names the file and the key.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"there is no task file {name!r}", f"packaged tasks: {', '.join(task_names())}")
        return parse_task(read_yaml(path), name)
    if name not in task_names():
        raise UnknownNameError("task", name, task_names())
    packaged = files(__package__) / "files" / f"{name}.yaml"
    return parse_task(yaml.safe_load(packaged.read_text(encoding="utf-8")), name)


def parse_task(content: Any, where: str) -> Task:
    """Build a task from the content of its file.

    Raises:
        ConfigError: names the file and the key.
    """
    with mistakes_of(where):
        task = validated(Task, content)
        METRICS[task.metric]  # refuses an unknown name
    return task


def label_index(task: Task, label: object, where: str) -> int:
    """Position of a row's label among the verbalizers; false and true are 0 and 1, as data sets on the Hub mean them.

    Raises:
        DataError: no verbalizer stands for it.
    """
    for index, known in enumerate(task.labels):
        if label == known:
            return index
    shown = ", ".join(repr(known) for known in task.labels)
    raise DataError(
        f"{where}: column {task.label!r} is {label!r}, which no verbalizer of {task.name!r} stands for",
        f"the verbalizers have the labels {shown}; mend the row, or add the label to the task file",
    )


def known_split(split: str) -> Split:
    """The split of that name.

    Raises:
        ConfigError: there is none.
    """
    for known in SPLITS:
        if split == known:
            return known
    raise ConfigError(f"unknown split {split!r}", f"known: {', '.join(SPLITS)}")
