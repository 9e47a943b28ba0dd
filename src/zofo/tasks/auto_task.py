"""The task of a configuration: a task file with its overrides, or a task made for the user's own rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zofo.errors import ConfigError
from zofo.tasks.config import TaskConfig
from zofo.tasks.dataset import load_examples as load_of_one
from zofo.tasks.dataset import origins_of, read_data
from zofo.tasks.example import Example
from zofo.tasks.free_answers import free_answer_scores, last_content
from zofo.tasks.gold import label_of
from zofo.tasks.metaicl import metaicl_content, type_of
from zofo.tasks.multi_task import combined_task, mixed_examples
from zofo.tasks.readers import Format, Row, check_labels, detect, folders_with_rows
from zofo.tasks.readers.choices import is_keyed
from zofo.tasks.readers.row import NamedLabel
from zofo.tasks.task import SPLITS, Split, Task
from zofo.tasks.task_files import parse_task, task_content

_SIZES = {"validation": 500, "test": 1000}  # of splits that are drawn from the rows of train


def resolve_task(config: TaskConfig, free_words: bool = False, whole: bool = False) -> Task:
    """The task of a configuration.

    A task file keeps its splits, unless its rows come from one file: then all three are drawn from that.

    Args:
        config: the configuration of the task.
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
    """Read, check, split and render all rows of a task, or of several at once; see `zofo.tasks.dataset.load_examples`.

    Raises:
        DataError: rows that cannot be used; with file, line and column.
        ConfigError: several tasks for a classification head, or of which one is kept for the test.
    """
    if not config.several:
        return load_of_one(task, config, splits, head, right)
    if head:
        raise ConfigError(
            "a classification head gives the same labels to every row, and several tasks have each their own",
            "choose one task, or model.head=causal-lm",
        )
    return mixed_examples(
        config,
        splits,
        lambda own: resolve_task(own, free_words=True),
        lambda one, own, some: load_of_one(one, own, some, False, right, of_several=True),
    )


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
    rows = read_data(data, splits["train"]["from"])
    named = config.verbalizers or ()
    if config.template is not None and config.label is not None:
        found = Format("text-label", {"label": config.label}, f"label from {config.label!r}")
        held = [Row(row.where, {config.label: label_of(config.label, row.fields, row.where, data)}) for row in rows]
        check_labels(config.label, held, named)
        shape = _labelled(config.label, held, config.template)
    else:
        found = detect(rows, named, answers=config.label is None and config.labels is None)
        if found.name == "metaicl":
            shape = metaicl_content(rows, type_of(Path(data)), free_words)
            if shape["kind"] == "generation":  # only trained on: no row of train is kept for another split
                splits = {split: {"from": split} for split in SPLITS}
        else:
            shape = _SHAPES[found.name](found, rows)
    more = ", answers that are numbers" if shape["metric"] == "number-match" else ""
    more += _named_classes(rows, found.columns.get("label"))
    about = f"rows of {Path(data).name}: {found.about}{more}"
    return {"name": Path(data).stem, "version": 1, "about": about, "splits": splits, **shape}


def _named_classes(rows: list[Row], label: str | None) -> str:
    """Numbers and names of the classes, where the data have names."""
    values = {row.fields.get(label) for row in rows} if label is not None else ()
    named = sorted(value for value in values if isinstance(value, NamedLabel))
    return f"; classes: {', '.join(f'{int(value)} is {value.name!r}' for value in named)}" if named else ""


def _column(name: str) -> str:
    """A column as a template refers to it."""
    return f"{{{{ {name} }}}}" if name.isidentifier() else f"{{{{ row[{name!r}] }}}}"


def _text_label(found: Format, rows: list[Row]) -> dict[str, Any]:
    text = _column(found.columns["text"])
    return {**_labelled(found.columns["label"], rows, f"{text}\nLabel:"), "texts": [text]}


def _labelled(label: str, rows: list[Row], template: str) -> dict[str, Any]:
    """A classification whose verbalizers are its labels."""
    labels = sorted({row.fields[label] for row in rows}, key=str)
    return {
        "kind": "classification",
        "metric": "accuracy",
        "also": ["macro-f1"],
        "label": label,
        "verbalizers": {_plain(value): f" {str(_written(value)).strip()}" for value in labels},
        "prompts": {"default": template},
    }


def _written(value: Any) -> Any:
    """A label as it is written: 1 for 1.0, and the name of its class."""
    if isinstance(value, NamedLabel):
        return value.name
    return int(value) if isinstance(value, float) else value


def _plain(value: Any) -> Any:
    """A label as a task file can hold it: the name of its class, if it has one."""
    if isinstance(value, NamedLabel):
        return value.name
    return int(value) if isinstance(value, bool | float) else value


def _prompt_completion(found: Format, rows: list[Row]) -> dict[str, Any]:
    completion = found.columns["completion"]
    return {
        "kind": "generation",
        **free_answer_scores([row.fields.get(completion) for row in rows]),
        "answers": _column(completion).strip("{} "),
        "prompts": {"default": _column(found.columns["prompt"]) + _more(found)},
        "optional": [found.columns["input"]] if "input" in found.columns else [],
        "stop": [],
        "max_new_tokens": 100,
    }


def _more(found: Format) -> str:
    """The input that an instruction may be about."""
    if "input" not in found.columns:
        return ""
    column = _column(found.columns["input"])
    return f"{{% if {column.strip('{} ')} %}}\n{column}{{% endif %}}"


def _choices_answer(found: Format, rows: list[Row]) -> dict[str, Any]:
    prompt = found.columns.get("prompt")
    if prompt is None:
        raise ConfigError(
            f"{rows[0].where}: choices, but no column that asks for them",
            "call the question's column prompt",
        )
    each, keys = _column(found.columns["choices"]).strip("{} "), {}
    if is_keyed(rows[0].fields[found.columns["choices"]]):
        each, keys = f"{each}.text", {"labels": f"{each}.label"}
    return {
        "kind": "multiple-choice",
        "metric": "accuracy",
        "label": found.columns["answer"],
        **keys,
        "choices": {"each": each, "text": " {{ choice }}"},
        "prompts": {"default": f"{_column(prompt)}\nAnswer:"},
    }


def _messages(found: Format, rows: list[Row]) -> dict[str, Any]:
    return {
        "kind": "generation",
        **free_answer_scores([last_content(row.fields[found.columns["messages"]]) for row in rows]),
        "messages": found.columns["messages"],
        "stop": [],
        "max_new_tokens": 100,
    }


_SHAPES = {
    "text-label": _text_label,
    "prompt-completion": _prompt_completion,
    "choices-answer": _choices_answer,
    "messages": _messages,
}
