"""The configuration of a task: which one, which of its rows, and how they become prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from zofo.config import Config
from zofo.tasks.task import ChoiceLabels, Label, PromptTemplate, Split, Verbalizers

DEFAULT_TASK = "movie-reviews"
ROWS_OF_EACH = 768
"""Training rows of each of several tasks, as in the Bilevel-ZOFO paper: 256 for D_f, 512 for D_p."""
OF_ONE = ("name", "columns", "prompt", "template", "label", "labels", "verbalizers", "metric", "positive_label")
"""Options that only a single task can have."""


def _as_text(label: Any) -> Any:
    """A number with a decimal point as it was written."""
    return str(label) if isinstance(label, float) else label


class TaskConfig(Config):
    """Which task, which of its rows, and how they become prompts."""

    name: str | None = None
    """A task of `zofo list tasks`, or the path of a task file; by default `movie-reviews`, or what `data` is."""
    data: Annotated[str, BeforeValidator(lambda data: str(data) if isinstance(data, Path) else data)] | None = None
    """Rows of your own: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder of them, or a Hub id."""
    data_dir: Path | None = None
    """A folder with the task's rows, one file for each source split, in place of its own source."""
    columns: dict[str, str] | None = None
    """What columns are called in your rows, such as `{text: Message, label: Team}`; a task file's own columns can be
    named, and `text` and `label` stand for its only text and its label."""
    prompt: str | None = None
    """Name of one of the task's prompts; by default its first, and `none` for a classification head."""
    template: PromptTemplate | None = None
    """A prompt in place of the task's, in Jinja, for example `"{{ text }} It was"`."""
    label: str | None = None
    """The label column, or an expression of columns, in place of the task's."""
    labels: ChoiceLabels | None = None
    """Multiple choice: what the label column holds for each choice, such as `[1, 2, 3, 4]` where it counts from 1; or
    an expression of the row that gives such a list. It takes the place of the task's."""
    verbalizers: Verbalizers | None = None
    """Verbalizers in place of the task's."""
    metric: str | None = None
    """A score in place of the task's."""
    positive_label: Annotated[Label | None, BeforeValidator(_as_text)] = None
    """The label that `f1` is of, such as `fraud`, in place of the task's; by default the last of two labels, in the
    task's order, which is that of the alphabet for a CSV file. It is named beside the score."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Generation: the most tokens of an answer, in place of the task's."""
    scoring: Literal["mean", "sum", "calibrated", "channel"] = "mean"
    """How a candidate is scored. `mean` and `sum`: the log-likelihood of its tokens. `calibrated`: the sum, less that
    of the same candidate after a prompt without content. `channel`: the log-likelihood of the prompt after the
    candidate, in training too."""
    num_fewshot: int = Field(0, ge=0)
    """How many solved rows of train stand before each prompt (in-context learning)."""
    fewshot_sampling: Literal["per-example", "fixed"] = "per-example"
    """Draw demonstrations for each example, or once for all."""
    split_seed: int = Field(0, ge=0)
    """Seed of the draw of splits and of demonstrations."""
    draw: Literal["plain", "stratified"] = "plain"
    """How splits are drawn. `stratified` keeps the share of each label and puts rows that ask the same into one split;
    `plain` draws each row independently. The default is `stratified` for `data` and task files, and `plain` for
    packaged tasks, as in the papers."""
    split_sizes: dict[Split, Annotated[int, Field(ge=1)]] = {}
    """Rows of each split, in place of the task's: `{train: 512, validation: 256, test: 256}`."""
    max_rows: int | None = Field(None, ge=1)
    """Keep only so many rows of each split, after the draw. Of several tasks, it counts for train alone, and is 768."""
    train_examples_per_label: int | None = Field(None, ge=1)
    """Few-shot training: rows of each label of a classification, or of train as a whole, drawn by `split_seed`."""
    tasks: list[str] = []
    """Several tasks at once: packaged tasks, or folders with MetaICL's rows. With `data`, each is a folder in it."""
    metaicl_setting: Path | None = None
    """A setting file of MetaICL, `{"train": [...], "test": [...]}`, which gives `tasks` and `held_out_tasks`."""
    held_out_tasks: list[str] = []
    """Tasks kept for the test. A task of `tasks` that is one of them by another name, or shares rows, is refused."""
    allow_overlap: bool = False
    """Allow training and test data to overlap: by task, by rows, or through the run in `init_from`."""
    max_length: int | None = Field(None, ge=8)
    """The longest text in tokens; by default the model's limit."""
    truncate: Literal["never", "left"] = "never"
    """What happens to a longer text: `never` refuses it; `left` drops the first tokens of its prompt, as is always done
    with demonstrations."""
    trained_turns: Literal["auto", "all", "last"] = "auto"
    """Conversations: which answers of a training row are trained. `auto`: each answer that the model would be asked for
    after the same tokens; a note counts rows with others. `all`: the same, and a row with another is an error. `last`:
    the last answer alone. Evaluation is of the last answer."""
    reward_columns: list[str] = []
    """Columns of your rows that a reward is given beside `answer` and `answers`, such as `[tests]`; they may hold
    whatever JSON does."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Generation: 0 takes the likeliest token; above 0, tokens are drawn at that temperature, by
    `training.seed`: anew in each step of training, and alike in each evaluation."""

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("data") is not None or str(given.get("name")).endswith((".yaml", ".yml")):  # the user's own rows
            given = {"draw": "stratified", **given}
        if given.get("tasks") or given.get("metaicl_setting"):
            return {"max_rows": ROWS_OF_EACH, **given}
        if given.get("name") is None and given.get("data") is None:
            return {**given, "name": DEFAULT_TASK}
        return given

    @model_validator(mode="after")
    def _means_something(self) -> TaskConfig:
        if self.data is not None and self.data_dir is not None:
            raise ValueError("give task.data or task.data_dir, not both; task.data_dir=null takes one back")
        if not self.several:
            return self
        if self.tasks and self.metaicl_setting is not None:
            raise ValueError(
                "give task.tasks or task.metaicl_setting, not both; task.metaicl_setting=null takes one back"
            )
        wrong = next((key for key in OF_ONE if getattr(self, key) is not None), None)
        if wrong:
            raise ValueError(f"task.{wrong} has no meaning for several tasks; task.{wrong}=null takes it back")
        return self

    @property
    def several(self) -> bool:
        """Whether there are several tasks at once."""
        return bool(self.tasks) or self.metaicl_setting is not None

    @property
    def bare(self) -> TaskConfig:
        """A copy without demonstrations, as rows are counted and compared."""
        return self.model_copy(update={"num_fewshot": 0})

    @property
    def title(self) -> str:
        """The task's name in runs and tables."""
        if self.several:
            return self.metaicl_setting.stem if self.metaicl_setting is not None else f"{len(self.tasks)}-tasks"
        return Path(self.name or str(self.data)).stem

    @property
    def overrides(self) -> dict[str, Any]:
        """The keys of the task file that are overridden here."""
        names = ("label", "labels", "verbalizers", "metric", "positive_label", "max_new_tokens")
        given = {name: getattr(self, name) for name in names}
        return {key: value for key, value in given.items() if value is not None}
