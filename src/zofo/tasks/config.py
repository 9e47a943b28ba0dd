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
    """A folder with the task's rows, one file per source split, instead of its own source."""
    columns: dict[str, str] | None = None
    """Names of columns in your rows, such as `{text: Message, label: Team}`: the task's column -> yours. `text` and
    `label` also work for a task's only text and its label."""
    prompt: str | None = None
    """Name of one of the task's prompts; by default its first, and `none` for a classification head."""
    template: PromptTemplate | None = None
    """A prompt instead of the task's, in Jinja, for example `"{{ text }} It was"`."""
    label: str | None = None
    """The label column, or an expression of columns, instead of the task's."""
    labels: ChoiceLabels | None = None
    """Multiple choice: the value of the label column for each choice, such as `[1, 2, 3, 4]` if it counts from 1; or an
    expression of the row that gives such a list. Replaces the task's."""
    verbalizers: Verbalizers | None = None
    """Verbalizers instead of the task's."""
    metric: str | None = None
    """A metric instead of the task's."""
    positive_label: Annotated[Label | None, BeforeValidator(_as_text)] = None
    """The label that `f1` is computed for, such as `fraud`, instead of the task's; by default the second of two labels
    in the task's order, which is alphabetical for a CSV file. It is shown with the score."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Generation: the maximum number of tokens of an answer, instead of the task's."""
    scoring: Literal["mean", "sum", "calibrated", "channel"] = "mean"
    """How a candidate is scored. `mean` and `sum`: the log-likelihood of its tokens. `calibrated`: the sum minus that
    of the same candidate after a prompt without content. `channel`: the log-likelihood of the prompt after the
    candidate, also in training."""
    num_fewshot: int = Field(0, ge=0)
    """Number of solved training rows before each prompt (in-context learning)."""
    fewshot_sampling: Literal["per-example", "fixed"] = "per-example"
    """Whether to draw new demonstrations for each example, or the same for all."""
    split_seed: int = Field(0, ge=0)
    """Seed of the draw of splits and of demonstrations."""
    draw: Literal["plain", "stratified"] = "plain"
    """How splits are drawn. `stratified` keeps the share of each label, and keeps rows with the same question in one
    split; `plain` draws each row independently. The default is `stratified` for `data` and task files, and `plain` for
    packaged tasks, as in the papers."""
    split_sizes: dict[Split, Annotated[int, Field(ge=1)]] = {}
    """Number of rows per split, instead of the task's: `{train: 512, validation: 256, test: 256}`."""
    max_rows: int | None = Field(None, ge=1)
    """Maximum number of rows per split, after the draw. With several tasks it applies only to train, and the default is
    768."""
    train_examples_per_label: int | None = Field(None, ge=1)
    """Few-shot training: number of training rows per label of a classification, or in total, drawn by `split_seed`."""
    tasks: list[str] = []
    """Several tasks at once: packaged tasks, or folders with MetaICL's rows. With `data`, each is a subfolder of it."""
    metaicl_setting: Path | None = None
    """A setting file of MetaICL, `{"train": [...], "test": [...]}`, which sets `tasks` and `held_out_tasks`."""
    held_out_tasks: list[str] = []
    """Tasks reserved for testing. A task in `tasks` that is the same under another name, or shares rows, is refused."""
    allow_overlap: bool = False
    """Allow training and test data to overlap: by task, by rows, or through the run in `init_from`."""
    max_length: int | None = Field(None, ge=8)
    """Maximum length of a text in tokens; by default the model's limit."""
    truncate: Literal["never", "left"] = "never"
    """What to do with a longer text: `never` refuses it; `left` drops the first tokens of its prompt, as is always done
    with demonstrations."""
    trained_turns: Literal["auto", "all", "last"] = "auto"
    """Conversations: which answers of a training row are trained. `auto`: each answer that follows the same tokens as
    at inference; a note counts rows with other answers. `all`: every answer; a row in which one cannot be trained is an
    error. `last`: only the last answer. Evaluation uses the last answer."""
    reward_columns: list[str] = []
    """Columns of your rows to pass to a reward in addition to `answer` and `answers`, such as `[tests]`; they may
    contain any JSON."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Generation: 0 takes the most likely token; above 0, tokens are sampled at that temperature, seeded by
    `training.seed`: new ones in each training step, the same ones in each evaluation."""

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
