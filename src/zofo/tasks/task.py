"""A task is a file, packaged or a user's own: where rows come from, how one becomes a prompt, and what is right."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from zofo.config import Config, parse_model
from zofo.errors import ConfigError, UnknownNameError, error_context
from zofo.registry import Registry
from zofo.tasks.metrics import METRICS, check_metric
from zofo.tasks.prompt_templates import check_expression, check_no_answer_leak, check_prompt, check_template, columns_of
from zofo.tasks.readers.row import Row, first_repeated
from zofo.trees import parse_yaml, read_yaml

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Kind = Literal["classification", "multiple-choice", "generation"]
Label = int | str
NO_PROMPT = "none"
"""Name of the prompt that is the row's text alone."""
SEPARATOR = "\n\n"
"""Between demonstrations, unless the task has another; it also ends a generated text after them, as they do."""


class Source(Config):
    """A data set of the Hub, or an embedded one."""

    hub: str | None = None
    """Hub id of a data set."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    revision: str | None = None
    """Branch, tag or commit; `refs/convert/parquet` for a data set that still has a loading script."""
    embedded: str | None = None
    """Name of an embedded data set."""

    @model_validator(mode="after")
    def _one(self) -> Source:
        if (self.hub is None) == (self.embedded is None):
            raise ValueError("give exactly one of source.hub and source.embedded")
        return self


class SplitSource(Config):
    """The rows of one split."""

    model_config = pydantic.ConfigDict(**Config.model_config, populate_by_name=True)

    origin: str = Field(alias="from")
    """Split of the source, and name of the file in a local folder: `train` reads train.jsonl, or .csv or .parquet."""
    size: int | None = Field(None, ge=1)
    """Rows drawn by `split_seed`, disjoint from other splits of the same origin; None takes all in order."""


Expression = Annotated[str, AfterValidator(check_expression)]
"""A column, or an expression of columns such as `answers.text`: what may stand between the braces of a template."""
Template = Annotated[str, AfterValidator(check_template)]
"""A text in Jinja."""
PromptTemplate = Annotated[str, AfterValidator(check_prompt)]
"""A text in Jinja that names a column."""


class ChoicesFromColumn(Config):
    """Choices from a list in the row."""

    each: Expression
    """The list: a column, or a value made of columns."""
    text: Template = " {{ choice }}"
    """The text of one choice, in which `choice` is an entry of the list."""


def _verbalizers(given: Any) -> Any:
    if isinstance(given, dict) and any(isinstance(label, bool) for label in given):
        raise ValueError("YAML reads the bare labels yes, no, on, off, true and false as booleans: put them in quotes")
    return given


def _distinct(verbalizers: dict[Label, str]) -> dict[Label, str]:
    if len(verbalizers) < 2:
        raise ValueError("a classification needs two verbalizers or more")
    taken: dict[str, Label] = {}
    for label, text in verbalizers.items():
        if not text.strip():
            raise ValueError(f"the verbalizer of label {label!r} is empty")
        if text in taken:
            raise ValueError(f"labels {taken[text]!r} and {label!r} have the same verbalizer {text!r}")
        taken[text] = label
    return verbalizers


Verbalizers = Annotated[dict[Label, str], BeforeValidator(_verbalizers), AfterValidator(_distinct)]
Choices = list[str] | ChoicesFromColumn


def _once(labels: list[Label] | str) -> list[Label] | str:
    twice = first_repeated([str(label).strip() for label in labels])
    if isinstance(labels, list) and twice is not None:
        raise ValueError(f"the label {twice!r} stands for two choices")
    return labels


ChoiceLabels = Annotated[list[Label] | Expression, AfterValidator(_once)]
"""The label of each choice: a list, or an expression of the row that gives one."""


class Prompt(Config):
    """A template, with its verbalizers or choices."""

    template: PromptTemplate
    """The text before the candidate, in Jinja: `{{ column }}` wherever a column of the row goes."""
    verbalizers: Verbalizers | None = None
    """The text for each label after this prompt; by default the task's."""
    choices: Choices | None = None
    """The choices after this prompt; by default the task's."""
    content_free: str | None = None
    """The prompt without its content, for calibrated scores; by default the template with "N/A" in its columns."""
    ending: Template = "."
    """A template of the text after the candidate; only masked language models see it."""


def _all_splits(splits: dict[Split, SplitSource]) -> dict[Split, SplitSource]:
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise ValueError(f"the split {missing[0]!r} is not defined")
    return splits


def _some(prompts: dict[str, Prompt]) -> dict[str, Prompt]:
    if not prompts:
        raise ValueError("a task needs one prompt or more")
    return prompts


class Task(Config):
    """A task file, read and checked.

    Raises:
        ValueError: (as a ConfigError from `load_task`) a template, verbalizer, choice or split is invalid.
    """

    name: str
    """Name of the task."""
    version: int = Field(ge=1)
    """Raise it with every change that changes a score."""
    about: str = ""
    """One line: what the task asks, and its source."""
    kind: Kind
    """`classification` has the same labels for every row, `multiple-choice` has choices of each row, and `generation`
    asks for a free text."""
    metric: str
    """The score, one of `zofo list metrics`."""
    extra_metrics: list[str] = []
    """More scores to report."""
    positive_label: Label | None = None
    """Classification: the label that `f1` is of; by default the last of two."""
    source: Source | None = None
    """The data set that is read when no file or folder is given."""
    splits: Annotated[dict[Split, SplitSource], AfterValidator(_all_splits)]
    """The rows of train, validation and test."""
    prompts: Annotated[dict[str, Prompt], AfterValidator(_some)]
    """Prompts by name; the first is the default. A task with one prompt writes `template` instead."""
    label: str | None = None
    """The column of the right label or choice, or an expression of columns that gives it."""
    verbalizers: Verbalizers | None = None
    """Classification: the text for each label; let it begin with a space where a word would."""
    choices: Choices | None = None
    """Multiple choice: templates of the choices, or a list in the row and a template of its entries."""
    labels: ChoiceLabels | None = None
    """Multiple choice: what the label column holds for each choice, in order, or an expression of the row that gives
    such a list. By default it may be the choice's number from 0, its text, its letter, or a list of right texts."""
    answers: Expression | None = None
    """Generation: the accepted answer, or a list of them; the first is trained on."""
    messages: str | None = None
    """Generation: a column of chat turns, instead of prompt and answers."""
    stop: list[Annotated[str, Field(min_length=1)]] = ["\n"]
    """Generation: texts that end an answer, beside the model's own end of text."""
    max_new_tokens: int = Field(50, ge=1)
    """Generation: the most tokens of an answer."""
    texts: list[PromptTemplate] | None = Field(None, min_length=1, max_length=2)
    """Templates of the row's text or pair of texts, for classification heads and the prompt `none`."""
    group: list[str] = []
    """Columns that identify rows that belong together, such as all answers to one question. Rows with the same value in
    the first of them are drawn into the same split."""
    optional_columns: list[str] = []
    """Columns that may be empty or missing."""
    separator: str = Field(SEPARATOR, min_length=1)
    """Text between demonstrations."""
    disjoint: bool = False
    """Refuse rows of test that are also in train or validation."""
    _at_hand: dict[tuple[str, str], list[Row]] = PrivateAttr(default_factory=dict)
    """Rows by (data, origin) that the task was made for, until they are taken, so that no file is read twice."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        filled = dict(given)
        if "template" in filled:
            if "prompts" in filled:
                raise ValueError("give template or prompts, not both")
            filled["prompts"] = {"default": filled.pop("template")}
        prompts = filled.get("prompts", {"chat": {"template": "{{ messages }}"}} if "messages" in filled else None)
        if isinstance(prompts, dict):
            prompts = {name: {"template": one} if isinstance(one, str) else one for name, one in prompts.items()}
            texts = filled.get("texts")
            if NO_PROMPT not in prompts and isinstance(texts, list) and all(isinstance(text, str) for text in texts):
                prompts[NO_PROMPT] = {"template": "\n".join(texts)}
            filled["prompts"] = prompts
        return filled

    @model_validator(mode="after")
    def _of_its_kind(self) -> Task:
        free = "answers" if self.messages is None else "messages"
        asked = {
            "classification": ("verbalizers", ("choices", "labels", "answers", "messages")),
            "multiple-choice": ("choices", ("verbalizers", "answers", "messages", "texts")),
            "generation": (free, ("verbalizers", "choices", "labels", "texts")),
        }
        needed, foreign = asked[self.kind]
        everywhere = getattr(self, needed) is not None
        if not everywhere and not all(getattr(prompt, needed, None) is not None for prompt in self.prompts.values()):
            raise ValueError(f"a {self.kind} task needs {needed!r}")
        wrong = next((name for name in foreign if getattr(self, name) is not None), None)
        if wrong:
            raise ValueError(f"{wrong!r} has no meaning in a {self.kind} task")
        if self.kind != "generation" and self.label is None:
            raise ValueError("'label' is missing: the column that holds what is right")
        if self.kind == "classification":
            own = [set(self.verbalizers_of(name)) for name in self.prompts]
            if any(labels != own[0] for labels in own):
                raise ValueError("all prompts must have verbalizers for the same labels")
        names = [str(label) for label in self.label_names]
        if self.positive_label is not None and str(self.positive_label) not in names:
            known = f"known: {', '.join(names)}" if names else f"a {self.kind} task has no labels"
            raise ValueError(f"positive_label {str(self.positive_label)!r} is no label; {known}")
        if self.messages is None:
            templates = [text for one in self.prompts.values() for text in (one.template, one.ending)]
            check_no_answer_leak([*templates, *(self.texts or [])], str(self.answers or self.label))
        return self

    @property
    def prompt_names(self) -> list[str]:
        """Names of the prompts; the first is the default."""
        return list(self.prompts)

    def prompt(self, name: str | None = None) -> Prompt:
        """The prompt of that name, or the default one. Raises UnknownNameError if there is none."""
        if name is None:
            return next(iter(self.prompts.values()))
        if name not in self.prompts:
            raise UnknownNameError(f"prompt of the task {self.name!r}", name, self.prompts)
        return self.prompts[name]

    def verbalizers_of(self, prompt: str | None = None) -> dict[Label, str]:
        """The text of each label after a prompt, in the order of the task's labels."""
        own = self.prompt(prompt).verbalizers
        order = self.verbalizers or own or {}
        return {label: (own or order)[label] for label in order}

    def choices_of(self, prompt: str | None = None) -> Choices:
        """The choices after a prompt."""
        own = self.prompt(prompt).choices
        chosen = self.choices if own is None else own
        assert chosen is not None
        return chosen

    @property
    def label_names(self) -> list[Label]:
        """The labels of a classification, in the order of the candidates; empty for other kinds."""
        return list(self.verbalizers_of()) if self.kind == "classification" else []

    @property
    def positive(self) -> int | None:
        """The index of `positive_label` among the labels; None if the task names none."""
        names = [str(label) for label in self.label_names]
        return None if self.positive_label is None else names.index(str(self.positive_label))

    @property
    def score_of(self) -> str:
        """The label that single-label scores are for; "" for tasks without such scores."""
        names = [str(label) for label in self.label_names]
        if self.positive is None:
            return names[-1] if len(names) == 2 else ""
        return names[self.positive]

    def columns(self, prompt: str | None = None, head: bool = False) -> list[str]:
        """The columns that a row needs for its prompt, without label and answer."""
        if self.messages is not None:
            return [self.messages]
        if head and self.texts is not None:
            return list(dict.fromkeys(name for text in self.texts for name in columns_of(text)))
        asked = self.prompt(prompt)
        named = columns_of(asked.template) + columns_of(asked.ending)
        choices = self.choices_of(prompt) if self.kind == "multiple-choice" else []
        if isinstance(choices, ChoicesFromColumn):
            named += columns_of(choices.each, expression=True)
            choices = [choices.text]
        return list(dict.fromkeys(named + [name for text in choices for name in columns_of(text)]))

    @property
    def asked_columns(self) -> list[str]:
        """The columns that any prompt names, or the texts for a head, without label and answer."""
        named = [column for prompt in self.prompts for column in self.columns(prompt)]
        return list(dict.fromkeys([*named, *(name for text in self.texts or () for name in columns_of(text))]))


def known_split(split: str) -> Split:
    """The split with this name. Raises ConfigError if it is unknown."""
    for known in SPLITS:
        if split == known:
            return known
    raise ConfigError(f"unknown split {split!r}", f"known: {', '.join(SPLITS)}")


TASK_FILES: Registry[Any] = Registry("task")
"""The packaged task files, and those of plugins, by the names of their tasks."""


def register_tasks(folder: Any) -> None:
    """Register tasks by name: one for each .yaml file in a folder.

    Args:
        folder: folder of task files: a path, or `importlib.resources.files("my_package") / "tasks"` in a package.

    Raises:
        ValueError: a name is already taken.
    """
    for path in folder.iterdir():
        if path.name.endswith(".yaml"):
            TASK_FILES.register(path.name.removesuffix(".yaml"))(path)


register_tasks(files(__package__) / "files")


def task_names() -> list[str]:
    """The packaged tasks, and those of plugins."""
    return list(TASK_FILES)


def packaged_text(name: str) -> str:
    """The text of a packaged task file. Raises UnknownNameError if there is none of that name."""
    return str(TASK_FILES[name].read_text(encoding="utf-8"))


def task_content(name: str) -> Any:
    """The parsed content of a packaged task by name, or of a task file by path.

    Raises:
        UnknownNameError: neither a packaged task nor a file.
        ConfigError: the file cannot be read as YAML.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        text = packaged_text(name)
        try:
            return parse_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # of a plugin
            raise ConfigError(f"the task {name!r} is not YAML: {' '.join(str(error).split())}") from error
    if not path.is_file():
        raise ConfigError(f"there is no task file {name!r}", f"packaged tasks: {', '.join(task_names())}")
    return read_yaml(path)


def load_task(name: str) -> Task:
    """Load a packaged task by name, or a task file by path.

    Raises:
        UnknownNameError: neither a packaged task nor a file.
        ConfigError: the file is not a task; names the file and the key.
    """
    return parse_task(task_content(name), name)


def parse_task(content: Any, where: str) -> Task:
    """Build a task from the content of its file. Raises ConfigError that names the file and the key."""
    with error_context(where):
        task = parse_model(Task, content)
        for metric in (task.metric, *task.extra_metrics):
            METRICS[metric]  # refuses an unknown name
            check_metric(metric, task.kind)
    return task
