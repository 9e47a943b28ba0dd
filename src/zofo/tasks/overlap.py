"""Checks that a run is not tested on a task that it, or the run it starts from, was trained on."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path

from zofo.errors import ConfigError, DataError, ZofoError
from zofo.tasks.config import TaskConfig
from zofo.tasks.dataset import load_task_examples, resolve_task
from zofo.tasks.multi_task import (
    check_no_shared_rows,
    inputs_in,
    overlapping_tasks,
    subtask_config,
    task_inputs,
    tasks_of,
)
from zofo.tasks.readers.row import Example, questions_of
from zofo.tasks.task import SPLITS, Split, task_content

_INSTEAD = "take a run that was not trained on it"


def check_not_trained_on(trained: TaskConfig, asked: TaskConfig, run: str, scored: bool = False) -> None:
    """Refuse to test a run on a task that it was trained on as one of several, judged by names and rows.

    Rows are compared if they are MetaICL's and still at their place.

    Args:
        asked: the task to score it on, or of a run that starts from it.
        scored: whether all tasks of `asked` are scored; otherwise only the unseen ones.

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
            f"the run {run!r} was trained on tasks that it is to be tested on: {same}",
            f"{_INSTEAD}, or allow it with task.allow_overlap=true",
        )
    known = {text for rows in held.values() for text in rows.values()}
    for name in names:
        if known.isdisjoint(task_inputs(trained, name, "train").values()):
            continue
        check_no_shared_rows(name, _trained_rows(trained, name), held, f" in the run {run!r}", _INSTEAD)


def trained_questions(trained: TaskConfig, head: bool) -> frozenset[Hashable]:
    """The questions that a run on one task was trained to answer, for `is_asked`; empty for several tasks.

    Args:
        head: whether it has a classification head.

    Raises:
        ZofoError: its rows cannot be read any more.
    """
    if trained.several:
        return frozenset()
    rows = load_task_examples(resolve_task(trained), trained.bare, ["train"], head=head)["train"]
    return frozenset(question for one in rows for question in questions_of(one, False))


def is_asked(example: Example, questions: Collection[Hashable]) -> bool:
    """Whether an example without demonstrations asks one of these questions."""
    return questions_of(example, False)[-1] in questions


def trained_on_notes(
    trained: TaskConfig, examples: Mapping[Split, Sequence[Example]], run: str, head: bool = False
) -> list[str]:
    """Notes about validation and test rows whose questions the start run was trained on.

    Such as when another `split_seed` draws the splits. Also if the start run's rows can no longer be read.
    """
    try:
        known = trained_questions(trained, head)
    except ZofoError as error:
        return [f"it is not known whether {run} was trained on rows that are scored here: {error.message}"]
    scored = {split: rows for split, rows in examples.items() if split != "train"}
    shared = {split: sum(is_asked(one, known) for one in rows) for split, rows in scored.items()}
    parts = [f"{count} of {len(examples[split])} rows of {split}" for split, count in shared.items() if count]
    if not parts:
        return []
    return [
        f"warning: {run} was trained on {' and '.join(parts)}, whose scores say less for that: "
        f"task.split_seed={trained.split_seed} splits the same rows as it did"
    ]


def _tested(asked: TaskConfig, scored: bool) -> Mapping[str, Mapping[str, str]]:
    """The tested tasks by all their names, each with the inputs of its test rows by place."""
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
    own = subtask_config(trained, name).bare.model_copy(update={"allow_overlap": True})
    examples = load_task_examples(resolve_task(own, free_words=True), own, ["train"], of_several=True)
    return {one.where: one.prompt.strip() for one in examples["train"]}
