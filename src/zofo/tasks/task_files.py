"""Task files: packaged ones and those of plugins by name, a user's own by path."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from zofo.config import parse_model
from zofo.errors import ConfigError, error_context
from zofo.registry import Registry
from zofo.tasks.metrics import METRICS, check_metric
from zofo.tasks.task import Task
from zofo.yaml_loader import parse_yaml, read_yaml

TASK_FILES: Registry[Any] = Registry("task")
"""The packaged task files, and those of plugins, by the names of their tasks."""


def register_tasks(folder: Any) -> None:
    """Make tasks known by name: one for each .yaml file in a folder.

    Args:
        folder: of task files: a path, or of a package `importlib.resources.files("my_package") / "tasks"`.

    Raises:
        ValueError: a name is taken.
    """
    for path in folder.iterdir():
        if path.name.endswith(".yaml"):
            TASK_FILES.register(path.name.removesuffix(".yaml"))(path)


register_tasks(files(__package__) / "files")


def task_names() -> list[str]:
    """The packaged tasks, and those of plugins."""
    return list(TASK_FILES)


def packaged_text(name: str) -> str:
    """The file of a packaged task.

    Raises:
        UnknownNameError: there is none of that name.
    """
    return str(TASK_FILES[name].read_text(encoding="utf-8"))


def task_content(name: str) -> Any:
    """The plain content of a packaged task by its name, or of a task file by its path.

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
    """Read a packaged task by its name, or a task file by its path.

    Raises:
        UnknownNameError: neither a packaged task nor a file.
        ConfigError: the file is not a task; names the file and the key.
    """
    return parse_task(task_content(name), name)


def parse_task(content: Any, where: str) -> Task:
    """Build a task from the content of its file.

    Raises:
        ConfigError: names the file and the key.
    """
    with error_context(where):
        task = parse_model(Task, content)
        for metric in (task.metric, *task.extra_metrics):
            METRICS[metric]  # refuses an unknown name
            check_metric(metric, task.kind)
    return task
