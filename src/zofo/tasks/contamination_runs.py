"""That a task is not tested by a run that was trained on it as one of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zofo.errors import ConfigError, DataError
from zofo.tasks.auto_task import resolve_task
from zofo.tasks.config import TaskConfig
from zofo.tasks.contamination import inputs_in, refuse_shared_rows, twins
from zofo.tasks.dataset import load_examples
from zofo.tasks.multi_task import subtask_config, task_inputs, tasks_of
from zofo.tasks.task import SPLITS
from zofo.tasks.task_files import task_content

_INSTEAD = "take a run that was not trained on it"


def refuse_trained_on(trained: TaskConfig, asked: TaskConfig, run: str, scored: bool = False) -> None:
    """Refuse a task that a run was trained on as one of several, by its name or another, or by its rows.

    The rows of both are compared where they are MetaICL's and still where they were.

    Args:
        trained: what the run was trained on.
        asked: the task of a run that starts from it, or that it is scored with.
        run: its name, for messages.
        scored: whether several tasks are all scored, and not trained on again, so that only the unseen are.

    Raises:
        ConfigError: names the run and the tasks, unless `allow_overlap` of what is asked allows them; or it is not
            known what the run was trained on.
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
    if same := twins(names, list(held)):
        raise ConfigError(
            f"the run {run!r} was trained on tasks that it shall be tested on: {same}",
            f"{_INSTEAD}, or allow it with task.allow_overlap=true",
        )
    known = {text for rows in held.values() for text in rows.values()}
    for name in names:
        if known.isdisjoint(task_inputs(trained, name, "train").values()):
            continue
        refuse_shared_rows(name, _trained_rows(trained, name), held, f" in the run {run!r}", _INSTEAD)


def _tested(asked: TaskConfig, scored: bool) -> Mapping[str, Mapping[str, str]]:
    """The tasks that are tested by all of their names, each with the inputs of its test rows by their places."""
    if asked.several:
        names, unseen = tasks_of(asked)
        return {name: task_inputs(asked, name, "test") for name in (*unseen, *(names if scored else ()))}
    folder = asked.data_dir if asked.data is None else Path(asked.data)
    rows = {} if folder is None else inputs_in(folder, "test") or inputs_in(folder, "train")  # which it is drawn from
    return dict.fromkeys(_names(asked), rows)


def _names(asked: TaskConfig) -> Sequence[str]:
    """What a task by itself is called: as its file says it, and as its rows' file or folder is."""
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
    """The inputs of the rows of one of several tasks that a run was trained on, by their places."""
    own = subtask_config(trained, name).model_copy(update={"demonstrations": 0, "allow_overlap": True})
    examples = load_examples(resolve_task(own, free_words=True), own, ["train"], of_several=True)
    return {one.where: one.prompt.strip() for one in examples["train"]}
