"""From a configuration to examples: the task, from a file or built for the user's own rows, and its rendered rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zofo.embedded import EMBEDDED_DATA
from zofo.errors import ConfigError, DataError, UnknownNameError
from zofo.tasks.columns import check_present, columns_in_file, explaining, renamed
from zofo.tasks.config import TaskConfig
from zofo.tasks.drawing import divide, few_of_each, with_demonstrations
from zofo.tasks.multi_task import (
    check_has_options,
    check_no_shared_rows,
    combined_task,
    in_free_words,
    metaicl_content,
    subtask_config,
    task_inputs,
    tasks_of,
    type_of,
)
from zofo.tasks.prompt_rendering import label_of, render
from zofo.tasks.readers.files import read_file
from zofo.tasks.readers.formats import DataFormat, check_labels, detect, labelled_shape, task_shape
from zofo.tasks.readers.row import Example, NamedLabel, Row, all_rows, with_valid_example
from zofo.tasks.readers.sources import folder_origins, folders_with_rows, has_split, hub_origins, read_folder, read_hub
from zofo.tasks.row_checks import check_several_labels, check_test_rows
from zofo.tasks.task import NO_PROMPT, SPLITS, Split, Task, parse_task, task_content


def load_examples(
    task: Task, config: TaskConfig, splits: Sequence[Split] = SPLITS, head: bool = False, right: bool = True
) -> dict[Split, list[Example]]:
    """Read, check, split and render all rows of one task or several; see `load_task_examples`.

    Raises:
        DataError: rows cannot be used; the message has file, line and column. ConfigError: several tasks with a
            classification head; one of several tasks is reserved for testing, or has no candidates without MetaICL's
            rows; no task has options; rows are test rows of an unseen task.
    """
    if not config.several:
        with explaining(columns_in_file(task, config.columns)):
            return load_task_examples(task, config, splits, head, right)
    if head:
        raise ConfigError(
            "a classification head gives the same labels to every row, and several tasks have each their own",
            "choose one task, or model.head=causal-lm",
        )
    return _mixed_examples(config, splits, right)


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
        splits: splits to load; rows of others are read only if the task forbids test rows in them.
        head: for a classification head instead of a language model.
        right: whether rows must have the right answer.
        of_several: whether it is one of several tasks: then `max_rows` applies to train only, and train and test are
            compared only if test is among the splits.

    Returns:
        The examples of each split. Splits from the same origin share no row; if the origin is too small, train keeps
        two thirds of it.

    Raises:
        DataError: a missing file or column, a label without a verbalizer, an empty text, too few rows, the same label
            in all training rows, a test row in train although the task forbids it; the message has file, line and
            column.
    """
    prompt = _known_prompt(task, config, head)
    needed: list[Split] = list(splits)
    if config.num_fewshot and "train" not in needed:
        needed.append("train")
    examples: dict[Split, list[Example]] = {}
    compared = _compared(task, config, needed, of_several)
    for origin in dict.fromkeys(task.splits[split].origin for split in (*needed, *compared)):
        rows = _read(task, config, origin)
        if config.columns:
            named = columns_in_file(task, config.columns)
            if origin == task.splits["train"].origin and {"train"} < set(splits):  # not other data of a run's columns
                check_present(rows, named, str(config.data or config.data_dir or task.name), typed=True)
            rows = renamed(rows, named)
        for split, chosen in divide(task, origin, rows, config).items():
            if split not in needed and split not in compared:
                continue
            answered = right and (split in needed or task.kind == "generation")
            kept = chosen[: config.max_rows if split == "train" or not of_several else None]
            with_earlier = split == "train" and config.trained_turns != "last"
            examples[split] = _rendered(task, kept, prompt, head, answered, config.reward_columns, with_earlier)
            if split == "train" and answered:
                check_several_labels(task, rows, examples[split], prompt, head)
    task._at_hand.clear()  # a run that asks for other splits alone keeps none either
    if not config.allow_overlap:
        check_test_rows(task, examples)
    if config.train_examples_per_label is not None and "train" in needed:
        examples["train"] = few_of_each(task, examples["train"], config.train_examples_per_label, config.split_seed)
    if config.num_fewshot:
        pool = examples["train"]
        examples = {split: with_demonstrations(examples[split], pool, config, task.separator) for split in splits}
    return {split: examples[split] for split in splits}


def _known_prompt(task: Task, config: TaskConfig, head: bool) -> str | None:
    """The name of the prompt; None for the task's first one, or a head's own input."""
    if head and task.kind != "classification":
        raise ConfigError(
            f"a classification head gives the same labels to every row, but {task.name!r} is a {task.kind} task",
            "choose a classification task, or model.head=causal-lm",
        )
    if head and config.num_fewshot:
        raise ConfigError(
            "a classification head takes no demonstrations", "set task.num_fewshot=0, or model.head=causal-lm"
        )
    if config.prompt is not None:
        task.prompt(config.prompt)  # refuses an unknown name
    return None if head and config.prompt == NO_PROMPT else config.prompt


def _compared(task: Task, config: TaskConfig, needed: Sequence[Split], of_several: bool) -> list[Split]:
    """Further splits to read, to check that they contain no test rows."""
    alone = "test" not in needed and (of_several or "train" not in needed)
    if not task.disjoint or config.allow_overlap or alone:
        return []
    folder = config.data_dir  # of which a file may be missing, if its split is not needed
    return [
        split
        for split in SPLITS
        if split not in needed and (folder is None or has_split(folder, task.splits[split].origin))
    ]


def _rendered(
    task: Task,
    rows: Sequence[Row],
    prompt: str | None,
    head: bool,
    right: bool,
    columns: Sequence[str],
    with_earlier: bool,
) -> list[Example]:
    """Rows as examples; with `with_earlier`, including the earlier answers of chats to train on.

    The error for a bad row shows a good one.
    """
    examples: list[Example] = []
    for row in rows:
        try:
            one = render(task, row.fields, row.where, prompt, head, right, columns)
            examples.append(one if with_earlier or not one.earlier_answers else replace(one, earlier_answers=()))
        except DataError as error:
            raise with_valid_example(error, 1, rows[0] if examples else None) from error
    return examples


def _mixed_examples(config: TaskConfig, splits: Sequence[Split], right: bool) -> dict[Split, list[Example]]:
    """The concatenated examples of several tasks, each with the name of its task.

    Free-text examples have their output as only candidate, and are only in train.
    """
    names, unseen = tasks_of(config)
    mixed: dict[Split, list[Example]] = {split: [] for split in splits}
    check_has_options(config, unseen)
    held = (
        {} if config.allow_overlap else {name: rows for name in unseen if (rows := task_inputs(config, name, "test"))}
    )
    for name in names:
        own = subtask_config(config, name)
        task = resolve_task(own, free_words=True)
        free = task.kind == "generation"
        if free and not (own.data is not None and in_free_words(Path(own.data))):
            raise ConfigError(
                f"{name!r} asks for a free text, but of several tasks each must have candidates",
                "leave it out of task.tasks",
            )
        wanted: list[Split] = [split for split in splits if split == "train" or not free]
        found = load_task_examples(task, own, wanted, False, right, of_several=True)
        for split, examples in found.items():
            for one in examples:
                only: dict[str, Any] = {"candidates": one.answers[:1], "answers": (), "ends": False} if free else {}
                mixed[split].append(replace(one, task=name, **only))
        if "train" in found and held:
            plain = load_task_examples(task, own.bare, ["train"], False, right, True) if own.num_fewshot else found
            check_no_shared_rows(name, {one.where: one.prompt.strip() for one in plain["train"]}, held)
    for split in splits:
        if not mixed[split]:
            raise ConfigError(
                f"none of the tasks has options, so that {split} has no row that can be scored by likelihood",
                "name a task with options beside them in task.tasks",
            )
    return mixed


_SIZES = {"validation": 500, "test": 1000}  # of splits that are drawn from the rows of train


def resolve_task(config: TaskConfig, free_words: bool = False, whole: bool = False) -> Task:
    """The task of a configuration.

    A task file keeps its splits, unless its rows are replaced by a single file, from which all three are drawn.

    Args:
        free_words: whether MetaICL's rows may lack options, as allowed in one of several training tasks.
        whole: whether each split is a whole file, so that none is drawn.

    Raises:
        ConfigError: the task file or its overrides cannot work. DataError: rows have no known format.
    """
    if config.several:
        return combined_task(config)
    read: dict[tuple[str, str], list[Row]] = {}
    if config.name is not None:
        content, where = task_content(config.name), config.name
        if config.data is not None and isinstance(content, dict):
            content = {**content, "splits": _splits(config.data, whole)}
    else:
        assert config.data is not None
        where = config.data
        with explaining(config.columns or {}):
            splits = _splits(where, whole)
            origin = splits["train"]["from"]
            read[where, origin] = read_data(where, origin)
            content = _content(config, where, read[where, origin], splits, free_words)
    if isinstance(content, dict):
        content = {**content, **config.overrides}
        if config.verbalizers is not None:
            content = _without_own_verbalizers(content)
        if config.template is not None:
            kept = {key: value for key, value in content.items() if key != "template"}
            content = {**kept, "prompts": {"given": config.template}}
    task = parse_task(content, where)
    task._at_hand.update(read)
    return task


def _content(
    config: TaskConfig, data: str, rows: list[Row], splits: dict[str, dict[str, Any]], free_words: bool
) -> dict[str, Any]:
    """The content of a task file for rows of a known format, or with a template and a label column."""
    if config.columns:
        check_present(rows, config.columns, data, typed=True)
        rows = renamed(rows, config.columns)
    named = config.verbalizers or ()
    if config.template is not None and config.label is not None:
        label = config.label
        found = DataFormat("text-label", {"label": label}, f"label from {label!r}")
        items = ((row.where, row.fields) for row in rows)
        held = all_rows(items, lambda fields: {label: label_of(label, fields, data)})
        check_labels(label, held, named)
        shape = labelled_shape(label, held, config.template)
    else:
        found = detect(rows, named, answers=config.label is None and config.labels is None)
        shape = (
            metaicl_content(rows, type_of(Path(data)), free_words)
            if found.name == "metaicl"
            else task_shape(found, rows)
        )
    if found.name == "metaicl" and shape["kind"] == "generation":  # only trained on: train keeps all of its rows
        splits = {split: {"from": split} for split in SPLITS}
    more = ", answers that are numbers" if shape["metric"] == "number-match" else ""
    values = {row.fields.get(found.columns.get("label", "")) for row in rows} if "label" in found.columns else ()
    classes = [f"{int(one)} is {one.name!r}" for one in sorted(one for one in values if isinstance(one, NamedLabel))]
    more += f"; classes: {', '.join(classes)}" if classes else ""
    about = f"rows of {Path(data).name}: {found.about}{more}"
    return {"name": Path(data).stem, "version": 1, "about": about, "splits": splits, **shape}


def _splits(data: str, whole: bool = False) -> dict[str, dict[str, Any]]:
    """The sources of the splits: files or Hub splits of these names; a missing one is drawn from train."""
    if whole:
        return {split: {"from": split} for split in SPLITS}
    origins = origins_of(data)
    if origins is None:
        return {"train": {"from": "data"}, **{split: {"from": "data", "size": n} for split, n in _SIZES.items()}}
    if "train" not in origins:
        inner = folders_with_rows(Path(data)) if Path(data).is_dir() else []
        raise ConfigError(
            f"{data!r} has no rows called train; it has {', '.join(sorted(origins)) or 'none'}",
            f"give one of its folders: {', '.join(inner)}"
            if inner
            else "name a file train.jsonl, train.csv or train.parquet",
        )
    drawn: dict[str, dict[str, Any]] = {split: {"from": "train", "size": n} for split, n in _SIZES.items()}
    present: dict[str, dict[str, Any]] = {split: {"from": split} for split in SPLITS if split in origins}
    return {"train": {"from": "train"}, **drawn, **present}


def _without_own_verbalizers(content: dict[str, Any]) -> dict[str, Any]:
    """A task's content without verbalizers in its prompts, which would override the task's."""
    prompts = content.get("prompts")
    if not isinstance(prompts, dict):
        return content
    bare = {name: {**one, "verbalizers": None} if isinstance(one, dict) else one for name, one in prompts.items()}
    return {**content, "prompts": bare}


def _read(task: Task, config: TaskConfig, origin: str) -> list[Row]:
    if config.data_dir is not None:
        return read_folder(config.data_dir, origin)
    if config.data is not None:
        return task._at_hand.pop((config.data, origin), None) or read_data(config.data, origin)
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
    """The user's own rows: from a single file, from a file in a folder, or from a Hub data set."""
    path = Path(data)
    if path.is_dir():
        return read_folder(path, origin)
    if _is_file(data):
        return read_file(path)
    return read_hub(data, None, None, origin, data)


def origins_of(data: str) -> set[str] | None:
    """The splits of a user's own folder or Hub data set; None for a single file, or one saved Dataset."""
    path = Path(data)
    if path.is_dir():
        return folder_origins(path)
    return None if _is_file(data) else hub_origins(data)


def _is_file(data: str) -> bool:
    path = Path(data)
    return path.is_file() or bool(path.suffix) or "/" not in data or data.startswith(("/", ".", "~"))
