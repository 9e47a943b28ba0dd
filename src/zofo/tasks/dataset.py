"""The rows of a task's splits: read from a file, a folder, an embedded data set or the Hub; drawn, and rendered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zofo.displacement import Key
from zofo.embedded import EMBEDDED_DATA
from zofo.errors import ConfigError, DataError, UnknownNameError
from zofo.noise import permutation
from zofo.tasks.columns import columns_in_file, renamed
from zofo.tasks.config import TaskConfig
from zofo.tasks.drawing import divide, with_demonstrations
from zofo.tasks.example import Example
from zofo.tasks.prompt_rendering import label_of, render
from zofo.tasks.readers.formats import single_label_error
from zofo.tasks.readers.row import Row, with_valid_example
from zofo.tasks.readers.sources import folder_origins, has_split, hub_origins, read_file, read_folder, read_hub
from zofo.tasks.row_notes import check_test_rows
from zofo.tasks.task import NO_PROMPT, SPLITS, Split, Task


def load_task_examples(
    task: Task,
    config: TaskConfig,
    splits: Sequence[Split] = SPLITS,
    head: bool = False,
    right: bool = True,
    of_several: bool = False,
) -> dict[Split, list[Example]]:
    """Read, check, split and render all rows of a task.

    Args:
        splits: those that are needed; the rows of others are read only where the task forbids rows of test in them.
        head: for a classification head instead of a language model.
        right: whether rows must hold what is right.
        of_several: whether it is one of several tasks: then `max_rows` counts for train alone, and train and test are
            compared only if test is among the splits.

    Returns:
        The examples of each split. Splits drawn from the same origin share no row; when the origin is too small, train
        keeps two thirds of it.

    Raises:
        DataError: a missing file or column, a label outside the verbalizers, an empty text, too few rows, one label in
            all rows of train, a row of test in train where the task forbids it; with file, line and column.
    """
    prompt = _known_prompt(task, config, head)
    needed: list[Split] = list(splits)
    if config.num_fewshot and "train" not in needed:
        needed.append("train")
    examples: dict[Split, list[Example]] = {}
    compared = _compared(task, config, needed, of_several)
    for origin in dict.fromkeys(task.splits[split].origin for split in (*needed, *compared)):
        rows = renamed(_read(task, config, origin), columns_in_file(task, config.columns))
        for split, chosen in divide(task, origin, rows, config).items():
            if split not in needed and split not in compared:
                continue
            answered = right and (split in needed or task.kind == "generation")
            kept = chosen[: config.max_rows if split == "train" or not of_several else None]
            examples[split] = _rendered(task, kept, prompt, head, answered, config.reward_columns)
            if split == "train" and answered:
                _check_several_labels(task, rows, examples[split], prompt, head)
    if not config.allow_overlap:
        check_test_rows(task, examples)
    if config.train_examples_per_label is not None and "train" in needed:
        examples["train"] = _few(task, examples["train"], config.train_examples_per_label, config.split_seed)
    if config.num_fewshot:
        pool = examples["train"]
        examples = {split: with_demonstrations(examples[split], pool, config, task.separator) for split in splits}
    return {split: examples[split] for split in splits}


def _known_prompt(task: Task, config: TaskConfig, head: bool) -> str | None:
    """The name of the prompt that rows are rendered with; None for the task's first, or a head's own."""
    if head and task.kind != "classification":
        raise ConfigError(
            f"a classification head gives the same labels to every row, but {task.name!r} is a {task.kind} task",
            "choose a classification task, or model.head=causal-lm",
        )
    if head and config.num_fewshot:
        raise ConfigError("a classification head takes no demonstrations", "set task.num_fewshot=0")
    if config.prompt is not None:
        task.prompt(config.prompt)  # refuses an unknown name
    return None if head and config.prompt == NO_PROMPT else config.prompt


def _compared(task: Task, config: TaskConfig, needed: Sequence[Split], of_several: bool) -> list[Split]:
    """More splits to read, to check that no row of test is in another split."""
    alone = "test" not in needed and (of_several or "train" not in needed)
    if not task.disjoint or config.allow_overlap or alone:
        return []
    folder = config.data_dir  # of which a file may be missing, if its split is not needed
    return [
        split
        for split in SPLITS
        if split not in needed and (folder is None or has_split(folder, task.splits[split].origin))
    ]


def _check_several_labels(
    task: Task, rows: Sequence[Row], examples: Sequence[Example], prompt: str | None, head: bool
) -> None:
    """Raises DataError for rows of train that all have the same candidates and the same right ones among them.

    Rows that are not among the examples may have others: a few that were drawn may be of one label by chance.
    """
    if task.kind == "generation" or task.kind == "multiple-choice" and len(examples) < 2:
        return
    first = _choice(examples[0])
    if any(_choice(one) != first for one in examples):
        return
    if all(_choice(render(task, row.fields, row.where, prompt, head)) == first for row in rows):
        assert task.label is not None
        raise single_label_error(task.label, label_of(task.label, rows[0].fields, task.name), rows)


def _choice(example: Example) -> tuple[frozenset[str], frozenset[str]]:
    """The candidates, and the right ones among them."""
    return frozenset(example.candidates), frozenset(example.candidates[gold] for gold in example.golds)


def _few(task: Task, examples: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """Examples drawn by seed: `shots` of each label, or in all without labels; raises DataError for too few rows."""
    drawn = [examples[i] for i in permutation(Key(seed, 0), "shots", len(examples))]
    kept: list[Example] = []
    for gold in range(len(task.label_names)) or [None]:
        own = [one for one in drawn if gold is None or one.golds[:1] == (gold,)][:shots]
        if len(own) < shots:
            of = f" with the label {task.label_names[gold]!r}" if gold is not None else ""
            raise DataError(
                f"task.train_examples_per_label is {shots}, but train of {task.name!r} has {len(own)} rows{of}",
                f"set task.train_examples_per_label={max(1, len(own))}, or give more rows",
            )
        kept += own
    return kept


def _rendered(
    task: Task, rows: Sequence[Row], prompt: str | None, head: bool, right: bool, columns: Sequence[str]
) -> list[Example]:
    """Rows as examples. The error for a bad row shows a good one."""
    examples: list[Example] = []
    for row in rows:
        try:
            examples.append(render(task, row.fields, row.where, prompt, head, right, columns))
        except DataError as error:
            raise with_valid_example(error, 1, rows[0] if examples else None) from error
    return examples


def _read(task: Task, config: TaskConfig, origin: str) -> list[Row]:
    if config.data_dir is not None:
        return read_folder(config.data_dir, origin)
    if config.data is not None:
        return read_data(config.data, origin)
    source = task.source
    if source is None:
        raise ConfigError(f"the task {task.name!r} has no source of its own", "give rows with --data or --data-dir")
    if source.embedded is not None:
        if source.embedded not in EMBEDDED_DATA:
            raise UnknownNameError("embedded data set", source.embedded, EMBEDDED_DATA)
        return read_folder(EMBEDDED_DATA[source.embedded](), origin)
    assert source.hub is not None
    return read_hub(source.hub, source.config, source.revision, origin, task.name)


def read_data(data: str, origin: str) -> list[Row]:
    """The user's own rows: of a single file, of the origin's file in a folder, or of a Hub data set."""
    path = Path(data)
    if path.is_dir():
        return read_folder(path, origin)
    if _is_file(data):
        return read_file(path)
    return read_hub(data, None, None, origin, data)


def origins_of(data: str) -> set[str] | None:
    """The splits of a user's own folder or Hub data set by name; None for a single file, or one saved Dataset."""
    path = Path(data)
    if path.is_dir():
        return folder_origins(path)
    return None if _is_file(data) else hub_origins(data)


def _is_file(data: str) -> bool:
    path = Path(data)
    return path.is_file() or bool(path.suffix) or "/" not in data or data.startswith(("/", ".", "~"))
