"""Which task a run is about, and how its rows are asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from zofo.config import Config
from zofo.tasks.prompt_templates import check_template
from zofo.tasks.task import ChoiceLabels, Split, Verbalizers

DEFAULT_TASK = "movie-reviews"
ROWS_OF_EACH = 768
"""Training rows of each of several tasks, as in the Bilevel-ZOFO paper: 256 for D_f, 512 for D_p."""
OF_ONE = ("name", "prompt", "template", "label", "labels", "verbalizers", "metric")
"""Options that have no meaning for several tasks."""


def _has_own_rows(given: dict[str, Any]) -> bool:
    """Whether a task's rows are a user's own, and not those of a packaged task as their authors published them."""
    return given.get("data") is not None or str(given.get("name")).endswith((".yaml", ".yml"))


class TaskConfig(Config):
    """Which task, which of its rows, and how they are asked about."""

    name: str | None = None
    """A task of `zofo list tasks`, or the path of a task file; by default `movie-reviews`, or what `data` is."""
    data: str | None = None
    """Rows of your own: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder of them, or a Hub id."""
    data_dir: Path | None = None
    """A folder with the task's rows, one file for each source split, in place of its own source."""
    prompt: str | None = None
    """Which of the task's prompts; by default its first, and `none` for a classification head."""
    template: str | None = None
    """A prompt in place of the task's, in Jinja, for example `"{{ text }} It was"`."""
    label: str | None = None
    """The label column, or an expression of columns, in place of the task's."""
    labels: ChoiceLabels | None = None
    """Of a multiple choice: what the label holds for each choice, `[1, 2, 3, 4]` for numbers that count from 1, or an
    expression of the row that gives such a list; in place of the task's."""
    verbalizers: Verbalizers | None = None
    """Verbalizers in place of the task's."""
    metric: str | None = None
    """A score in place of the task's."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Of a generation: tokens after which it ends, in place of the task's."""
    scoring: Literal["mean", "sum", "calibrated", "channel"] = "mean"
    """How a candidate is scored in evaluation: the mean log-likelihood of its tokens, their sum, or the sum less that
    of the same candidate after a prompt without content; or, in training as well, that of the prompt after it."""
    demonstrations: int = Field(0, ge=0)
    """Solved rows of train that stand before each prompt: in-context learning."""
    demonstration_sets: Literal["per-example", "fixed"] = "per-example"
    """Whether each example has demonstrations of its own, or all have the same."""
    split_seed: int = Field(0, ge=0)
    """Which rows are drawn for each split, where a task draws them, and which demonstrations."""
    draw: Literal["plain", "stratified"] = "plain"
    """How: `stratified` gives each split each label in its share and keeps rows that ask the same in one split; `plain`
    draws every row by itself. By default, rows of `data` and of a task file are stratified, packaged tasks are as in
    the papers."""
    sizes: dict[Split, Annotated[int, Field(ge=1)]] = {}
    """Rows that are drawn for a split, in place of the task's: `{train: 512, validation: 256, test: 256}`."""
    max_rows: int | None = Field(None, ge=1)
    """Keep only the first rows of each split, after the draw; of several tasks, of train alone, and 768 by default."""
    shots: int | None = Field(None, ge=1)
    """Train on so few rows, drawn by `split_seed`: of each label of a classification, or in all of another task."""
    tasks: list[str] = []
    """Several tasks at once: packaged ones, or folders with MetaICL's rows; each is a folder in `data`, if given."""
    setting: Path | None = None
    """A setting file of MetaICL, `{"train": [...], "test": [...]}`: its training tasks are `tasks`, the others
    `unseen`."""
    unseen: list[str] = []
    """Tasks that are kept for the test, so that none of `tasks` may be one of them by another name, or share rows."""
    allow_overlap: bool = False
    """Train on such a task, or test on one that `start` was trained on, or on rows of train, nevertheless."""
    max_length: int | None = Field(None, ge=8)
    """Longest text in tokens; by default, what the model can take."""
    truncate: Literal["never", "left"] = "never"
    """What happens to a longer text: `never` refuses it, `left` drops the oldest tokens of its prompt. Prompts with
    demonstrations always lose their oldest."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Of a generation: 0 takes the likeliest token, more draws at that temperature, by `training.seed`."""

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and "draw" not in given and _has_own_rows(given):
            given = {**given, "draw": "stratified"}
        if isinstance(given, dict) and (given.get("tasks") or given.get("setting")):
            return {"max_rows": ROWS_OF_EACH, **given}
        if isinstance(given, dict) and given.get("name") is None and given.get("data") is None:
            return {**given, "name": DEFAULT_TASK}
        return given

    @field_validator("data", mode="before")
    @classmethod
    def _path(cls, data: Any) -> Any:
        return str(data) if isinstance(data, Path) else data

    @field_validator("template")
    @classmethod
    def _names_columns(cls, template: str | None) -> str | None:
        if template is not None:
            check_template(template)
        return template

    @model_validator(mode="after")
    def _one_place(self) -> TaskConfig:
        if self.data is not None and self.data_dir is not None:
            raise ValueError("give task.data or task.data_dir, not both; task.data_dir=null takes one back")
        return self

    @model_validator(mode="after")
    def _one_or_several(self) -> TaskConfig:
        if not self.several:
            return self
        if self.tasks and self.setting is not None:
            raise ValueError("give task.tasks or task.setting, not both; task.setting=null takes one back")
        wrong = next((key for key in OF_ONE if getattr(self, key) is not None), None)
        if wrong:
            raise ValueError(f"task.{wrong} has no meaning for several tasks; task.{wrong}=null takes it back")
        return self

    @property
    def several(self) -> bool:
        """Whether it means several tasks at once."""
        return bool(self.tasks) or self.setting is not None

    @property
    def title(self) -> str:
        """What runs and tables call it."""
        if self.several:
            return self.setting.stem if self.setting is not None else f"{len(self.tasks)}-tasks"
        return Path(self.name or str(self.data)).stem

    @property
    def overrides(self) -> dict[str, Any]:
        """What is given here in place of keys of the task file."""
        names = ("label", "labels", "verbalizers", "metric", "max_new_tokens")
        given = {name: getattr(self, name) for name in names}
        return {key: value for key, value in given.items() if value is not None}
