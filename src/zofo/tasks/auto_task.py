"""The task of a configuration: a task file with its overrides, or one made for the user's own rows; none trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zofo.errors import ConfigError, DataError
from zofo.tasks.columns import check_present, columns_in_file, explaining, renamed
from zofo.tasks.config import TaskConfig
from zofo.tasks.dataset import load_task_examples, origins_of, read_data
from zofo.tasks.example import Example
from zofo.tasks.free_answers import free_answer_scores, last_content
from zofo.tasks.multi_task import (
    check_has_options,
    check_no_shared_rows,
    combined_task,
    in_free_words,
    inputs_in,
    metaicl_content,
    overlapping_tasks,
    subtask_config,
    task_inputs,
    tasks_of,
    type_of,
)
from zofo.tasks.prompt_rendering import label_of
from zofo.tasks.readers.choices import is_keyed
from zofo.tasks.readers.formats import DataFormat, check_labels, detect
from zofo.tasks.readers.row import NamedLabel, Row, all_rows, turns_of
from zofo.tasks.readers.sources import folders_with_rows
from zofo.tasks.task import SPLITS, Split, Task, parse_task, task_content

_SIZES = {"validation": 500, "test": 1000}  # of splits that are drawn from the rows of train


def resolve_task(config: TaskConfig, free_words: bool = False, whole: bool = False) -> Task:
    """The task of a configuration.

    A task file keeps its splits, unless its rows come from one file: then all three are drawn from that.

    Args:
        free_words: whether MetaICL's rows may lack options, as in one of several training tasks.
        whole: whether each split is a whole file, so that no rows are drawn.

    Raises:
        ConfigError: the task file, or what is given in place of its keys, cannot work.
        DataError: rows of no known format.
    """
    if config.several:
        return combined_task(config)
    if config.name is not None:
        content, where = task_content(config.name), config.name
        if config.data is not None and isinstance(content, dict):
            content = {**content, "splits": _splits(config.data, whole)}
    else:
        assert config.data is not None
        with explaining(config.columns or {}):
            content, where = _content(config, config.data, free_words, whole), config.data
    if isinstance(content, dict):
        content = {**content, **config.overrides}
        if config.verbalizers is not None:
            content = _without_own_verbalizers(content)
        if config.template is not None:
            kept = {key: value for key, value in content.items() if key != "template"}
            content = {**kept, "prompts": {"given": config.template}}
    return parse_task(content, where)


def load_examples(
    task: Task, config: TaskConfig, splits: Sequence[Split] = SPLITS, head: bool = False, right: bool = True
) -> dict[Split, list[Example]]:
    """Read, check, split and render all rows of a task, or of several at once; see `dataset.load_task_examples`.

    Raises:
        DataError: rows that cannot be used; with file, line and column.
        ConfigError: several tasks for a classification head; of several, one that is kept for the test, or that has no
            candidates other than by MetaICL's rows; no task with options; rows that are test rows of an unseen task.
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


def _mixed_examples(config: TaskConfig, splits: Sequence[Split], right: bool) -> dict[Split, list[Example]]:
    """The examples of several tasks, one after the other, each under the name of its own.

    Those of a task in free words have their output as only candidate, and are in train alone.
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
            bare = own.model_copy(update={"num_fewshot": 0})
            plain = load_task_examples(task, bare, ["train"], False, right, True) if own.num_fewshot else found
            check_no_shared_rows(name, {one.where: one.prompt.strip() for one in plain["train"]}, held)
    for split in splits:
        if not mixed[split]:
            raise ConfigError(
                f"none of the tasks has options, so that {split} has no row that can be scored by likelihood",
                "name a task with options beside them in task.tasks",
            )
    return mixed


def _without_own_verbalizers(content: dict[str, Any]) -> dict[str, Any]:
    """A task's content without verbalizers in its prompts, which would override the task's."""
    prompts = content.get("prompts")
    if not isinstance(prompts, dict):
        return content
    bare = {name: {**one, "verbalizers": None} if isinstance(one, dict) else one for name, one in prompts.items()}
    return {**content, "prompts": bare}


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


def _content(config: TaskConfig, data: str, free_words: bool, whole: bool) -> dict[str, Any]:
    """A task file's content for rows in a known format, or with a template and a label column."""
    splits = _splits(data, whole)
    rows, columns = read_data(data, splits["train"]["from"]), config.columns or {}
    check_present(rows, columns, data)
    rows = renamed(rows, columns)
    named = config.verbalizers or ()
    if config.template is not None and config.label is not None:
        label = config.label
        found = DataFormat("text-label", {"label": label}, f"label from {label!r}")
        held = all_rows(
            ((row.where, row.fields) for row in rows), lambda fields: {label: label_of(label, fields, data)}
        )
        check_labels(label, held, named)
        shape = _labelled(label, held, config.template)
    else:
        found = detect(rows, named, answers=config.label is None and config.labels is None)
        if found.name == "metaicl":
            shape = metaicl_content(rows, type_of(Path(data)), free_words)
            if shape["kind"] == "generation":  # only trained on: no row of train is kept for another split
                splits = {split: {"from": split} for split in SPLITS}
        else:
            shape = _shape(found, rows)
    more = ", answers that are numbers" if shape["metric"] == "number-match" else ""
    values = {row.fields.get(found.columns.get("label", "")) for row in rows} if "label" in found.columns else ()
    classes = [f"{int(one)} is {one.name!r}" for one in sorted(one for one in values if isinstance(one, NamedLabel))]
    more += f"; classes: {', '.join(classes)}" if classes else ""
    about = f"rows of {Path(data).name}: {found.about}{more}"
    return {"name": Path(data).stem, "version": 1, "about": about, "splits": splits, **shape}


def _shape(found: DataFormat, rows: list[Row]) -> dict[str, Any]:
    """The part of a task file that says how rows of a format are asked about."""
    named = {role: column if column.isidentifier() else f"row[{column!r}]" for role, column in found.columns.items()}
    written = {role: f"{{{{ {name} }}}}" for role, name in named.items()}  # as templates refer to the columns
    if found.name == "text-label":
        shape = _labelled(found.columns["label"], rows, f"{written['text']}\nLabel:")
        return {**shape, "texts": [written["text"]]}
    if found.name == "choices-answer":
        if "prompt" not in found.columns:
            raise ConfigError(
                f"{rows[0].where}: choices, but no column that asks for them", "call the question's column prompt"
            )
        keyed = is_keyed(rows[0].fields[found.columns["choices"]])
        return {
            "kind": "multiple-choice",
            "metric": "accuracy",
            "label": found.columns["answer"],
            **({"labels": f"{named['choices']}.label"} if keyed else {}),
            "choices": {"each": f"{named['choices']}.text" if keyed else named["choices"], "text": " {{ choice }}"},
            "prompts": {"default": f"{written['prompt']}\nAnswer:"},
        }
    free = {"kind": "generation", "stop": [], "max_new_tokens": 100}
    if found.name == "messages":
        turns = [turns_of(row.fields, found.columns["messages"]) for row in rows]
        return {**free, **free_answer_scores(map(last_content, turns)), "messages": found.columns["messages"]}
    prompt, optional = written["prompt"], []
    if "input" in found.columns:  # what an instruction may be about
        prompt += f"{{% if {named['input']} %}}\n{written['input']}{{% endif %}}"
        optional = [found.columns["input"]]
    scores = free_answer_scores(row.fields.get(found.columns["completion"]) for row in rows)
    return {
        **free,
        **scores,
        "answers": named["completion"],
        "prompts": {"default": prompt},
        "optional_columns": optional,
    }


def _labelled(label: str, rows: list[Row], template: str) -> dict[str, Any]:
    """A classification whose verbalizers are its labels."""
    labels = sorted({row.fields[label] for row in rows}, key=str)
    texts = {_plain(value): str(value if isinstance(value, bool) else _plain(value)).strip() for value in labels}
    return {
        "kind": "classification",
        "metric": "accuracy",
        "extra_metrics": ["macro-f1"],
        "label": label,
        "verbalizers": {known: f" {text}" for known, text in texts.items()},
        "prompts": {"default": template},
    }


def _plain(value: Any) -> Any:
    """A label as a task file can hold it: the name of its class, if it has one."""
    if isinstance(value, NamedLabel):
        return value.name
    return int(value) if isinstance(value, bool | float) else value


_INSTEAD = "take a run that was not trained on it"


def check_not_trained_on(trained: TaskConfig, asked: TaskConfig, run: str, scored: bool = False) -> None:
    """Refuse to test a run on a task that it was trained on as one of several: by any of its names, or by its rows.

    Rows are compared if they are MetaICL's and have not been moved.

    Args:
        asked: task of a run that starts from it, or that it is scored on.
        scored: whether all tasks of `asked` are scored; else only the unseen ones are.

    Raises:
        ConfigError: they overlap and `asked.allow_overlap` is false, or the run's tasks are not known.
        DataError: rows of one of the tasks cannot be read.
    """
    if asked.allow_overlap or not trained.several:
        return
    try:
        names, _ = tasks_of(trained)
    except DataError as error:
        raise ConfigError(
            f"it is not known which tasks the run {run!r} was trained on: {error.message}",
            "put the file back, or allow any task with task.allow_overlap=true",
        ) from error
    held = _tested(asked, scored)
    if same := overlapping_tasks(names, list(held)):
        raise ConfigError(
            f"the run {run!r} was trained on tasks that it shall be tested on: {same}",
            f"{_INSTEAD}, or allow it with task.allow_overlap=true",
        )
    known = {text for rows in held.values() for text in rows.values()}
    for name in names:
        if known.isdisjoint(task_inputs(trained, name, "train").values()):
            continue
        check_no_shared_rows(name, _trained_rows(trained, name), held, f" in the run {run!r}", _INSTEAD)


def _tested(asked: TaskConfig, scored: bool) -> Mapping[str, Mapping[str, str]]:
    """The tested tasks by all of their names, each with the inputs of its test rows by place."""
    if asked.several:
        names, unseen = tasks_of(asked)
        return {name: task_inputs(asked, name, "test") for name in (*unseen, *(names if scored else ()))}
    folder = asked.data_dir if asked.data is None else Path(asked.data)
    rows = {} if folder is None else inputs_in(folder, "test") or inputs_in(folder, "train")  # which it is drawn from
    return dict.fromkeys(_names(asked), rows)


def _names(asked: TaskConfig) -> Sequence[str]:
    """The names of a single task: that in its file, and that of the file or folder of its rows."""
    found = []
    if asked.name is not None:
        content = task_content(asked.name)
        named = content.get("name") if isinstance(content, dict) else None
        found.append(named if isinstance(named, str) else Path(asked.name).stem)
    if asked.data is not None:
        path = Path(asked.data).absolute()
        found += [path.stem, path.parent.name] if path.stem in SPLITS else [path.stem if path.is_file() else path.name]
    return found


def _trained_rows(trained: TaskConfig, name: str) -> dict[str, str]:
    """The inputs of a training task's rows by place."""
    own = subtask_config(trained, name).model_copy(update={"num_fewshot": 0, "allow_overlap": True})
    examples = load_task_examples(resolve_task(own, free_words=True), own, ["train"], of_several=True)
    return {one.where: one.prompt.strip() for one in examples["train"]}
