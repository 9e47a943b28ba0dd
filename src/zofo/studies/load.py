"""Load a study: a file or a packaged one, with overrides from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from zofo.config import parse_model
from zofo.embedded import EMBEDDED_MODELS
from zofo.errors import ConfigError, DataError, UnknownNameError, ZofoError, error_context
from zofo.studies.checks import check
from zofo.studies.config import GROUPS, AxisValue, StudyConfig
from zofo.studies.grid import Grid
from zofo.tasks import has_metaicl_rows, load_task
from zofo.trees import Tree, get_by_path, merge_trees, parse_override, parse_yaml, read_yaml, set_by_path

_YAML = (".yaml", ".yml")
_FILES = (
    *(("task", key) for key in ("metaicl_setting", "data_dir", "data", "name")),
    ("model", "name"),
    ("problem", "folder"),
)


@dataclass(frozen=True)
class Study:
    """A loaded study.

    Args:
        name: name of its file, without extension; by default its results go to a folder of that name.
        notes: messages to the user, such as tasks that were skipped.
    """

    name: str
    config: StudyConfig
    notes: tuple[str, ...] = ()

    @cached_property
    def grid(self) -> Grid:
        """Its runs."""
        return Grid(self.config)


@cache
def study_names() -> dict[str, str]:
    """The packaged studies, with one line about each and its sizes."""
    found = {}
    for file in sorted(files(__package__).joinpath("files").iterdir(), key=lambda file: file.name):
        if file.name.endswith(_YAML):
            content = parse_yaml(file.read_text(encoding="utf-8"))
            sizes = ", ".join(content.get("sizes", {}))
            about = str(content.get("about", "")).strip()
            found[file.name.rpartition(".")[0]] = f"{about} --size: {sizes}" if sizes else about
    return found


def read_study(
    name: Path | str,
    overrides: Sequence[str] = (),
    data: Path | None = None,
    skip_missing: bool = False,
    size: str | None = None,
) -> Study:
    """Read and check a study; nothing is run.

    Args:
        name: a YAML file, or a packaged study.
        overrides: `key=value` over the keys of the file, such as `seeds=[0]` or `defaults.task.max_rows=50`.
        data: a folder with a subfolder for each task, for tasks that name no data.
        skip_missing: skip tasks whose folder does not exist.
        size: one of the file's `sizes`, applied before the overrides; it becomes a part of the study's name.

    Raises:
        UnknownNameError: neither a file nor a packaged study. ConfigError: the study is invalid; the message names the
            file and the key, and suggests the nearest valid one. DataError: the folder of a task does not exist.
    """
    content, folder, short = _content(str(name))
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}: a study is a mapping from keys to values", "see docs/studies.md for an example")
    with error_context(str(name)):
        tree, kept = dict(content), []
        notes: list[str] = []
        changes = [parse_override(override, "write for example --set seeds=[0,1]") for override in overrides]
        if size is not None:
            short, changes = f"{short}-{size}", [*_of_size(content, size, notes), *changes]
        for path, value in changes:
            path = _with_whole_names(tree, path)
            if isinstance(value, list) and (path in (["methods"], ["models"], ["tasks"]) or path[:-1] == ["axes"]):
                kept.append((path, [str(name) for name in value]))
            else:
                _set(tree, path, value)
        config = parse_model(StudyConfig, tree)
        for path, names in kept:
            config = _keep(config, path, names)
        check(config)
        config = config.with_each(lambda one: one.model_copy(update=_located(one.tree, folder)))
        study = _with_data(Study(short, config, tuple(notes)), data, skip_missing)
        study.grid  # noqa: B018  # finds what is wrong with any run
    return study


def _content(name: str) -> tuple[Any, Path, str]:
    """The content of a study's file, the folder that its paths are relative to, and the study's name."""
    path = Path(name)
    if path.suffix in _YAML:
        if not path.is_file():
            raise ConfigError(f"there is no study file {name!r}", f"packaged studies: {', '.join(study_names())}")
        return read_yaml(path), path.absolute().parent, path.stem
    if name not in study_names():
        raise UnknownNameError("study", name, study_names())
    text = (files(__package__) / "files" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text), Path.cwd(), name


def _of_size(content: Mapping[str, Any], size: str, notes: list[str]) -> list[tuple[list[str], Any]]:
    """The keys that a size changes, with their values; its description goes to the notes."""
    sizes = content.get("sizes") or {}
    if size not in sizes:
        hint = None if sizes else "its file has no sizes; change its keys with --set"
        raise UnknownNameError("size", size, sizes, hint)
    changed = dict(sizes[size] or {})
    if "about" in changed:
        notes.append(f"size {size}: {changed.pop('about')}")
    return [(str(key).split("."), value) for key, value in changed.items()]


def _with_whole_names(tree: Any, path: Sequence[str]) -> list[str]:
    """The path with each name of the file that contains dots, such as `lr 0.1`, as one part; the longest match wins."""
    made: list[str] = []
    while path:
        there = {str(key): one for key, one in tree.items()} if isinstance(tree, Mapping) else {}
        most = 1 if path[0] in GROUPS else len(path)
        parts = next((n for n in range(most, 1, -1) if ".".join(path[:n]) in there), 1)
        made.append(".".join(path[:parts]))
        tree, path = there.get(made[-1]), path[parts:]
    return made


def _set(tree: Tree, path: Sequence[str], value: Any) -> None:
    """Set a key of the file; a key of a run's configuration is merged, nested or dotted."""
    first = {"defaults": 1, "axes": 3}.get(path[0], 2)  # where the configuration of runs may begin
    end = next((i for i in range(first, len(path)) if path[i] in GROUPS), len(path) - 1)
    holder = tree
    for part in path[:end]:
        key = next((key for key in holder if str(key) == part), part)
        below = holder.get(key, {})
        if below is None:  # a model or task by its name alone
            below = {path[0][:-1]: {"name": part}} if path[0] in ("models", "tasks") and holder is not tree else {}
        if not isinstance(below, Mapping):
            raise ConfigError(f"{'.'.join(path)}: {part!r} is {below!r} and has no keys below it")
        holder[key] = holder = dict(below)
    if path[end] in GROUPS:
        key = ".".join(path[end:])
        holder.pop(key, None)
        holder[key] = value  # as the last one, so that it counts
    else:
        set_by_path(holder, path[end:], value)


def _keep(config: StudyConfig, path: Sequence[str], names: Sequence[str]) -> StudyConfig:
    """Keep only some methods, models, tasks or values of an axis."""
    section = config.axes if path[0] == "axes" else {path[0]: getattr(config, path[0])}
    there = section.get(path[-1], {})
    for name in names:
        if name not in there:
            raise UnknownNameError(f"name in {'.'.join(path)}", name, there)
    kept = {name: there[name] for name in names}
    if path[0] == "axes":
        return config.model_copy(update={"axes": {**config.axes, path[-1]: kept}})

    def without(one: Any) -> Any:
        """A level without its entries for methods that were removed."""
        if path[0] != "methods" or not isinstance(one, AxisValue):
            return one
        own = {name: change for name, change in one.methods.items() if name in kept or name not in there}
        return one.model_copy(update={"methods": own})

    return config.with_each(without).model_copy(update={path[0]: kept})


def _located(tree: Tree, folder: Path) -> Tree:
    """The tree with paths relative to the study's file made absolute; others stay relative to the working folder."""
    made = merge_trees(tree)
    for group, key in _FILES:
        value = get_by_path(tree, f"{group}.{key}")
        if not isinstance(value, str) or Path(value).is_absolute():
            continue
        named = key == "name"
        if named and (value in EMBEDDED_MODELS or (group == "task" and not value.endswith(_YAML))):
            continue
        if (folder / value).exists():
            set_by_path(made, [group, key], str((folder / value).resolve()))
        elif Path(value).exists():
            set_by_path(made, [group, key], str(Path(value).absolute()))
    return made


def _with_data(study: Study, data: Path | None, skip_missing: bool) -> Study:
    """The study with a folder for each task that names none, without tasks whose folder is missing, if allowed."""
    config, base, tasks = study.config, study.config.defaults.tree, dict(study.config.tasks)
    notes = list(study.notes)
    for name, level in config.tasks.items():
        if "problem" in merge_trees(base, level.tree):
            continue
        tree = _in_folder(base, level.tree, name, data)
        tasks[name] = level.model_copy(update=tree)
        folder = get_by_path(merge_trees(base, tree), "task.data_dir")
        if folder is not None and not Path(folder).is_dir():
            if not skip_missing:
                raise DataError(
                    f"tasks.{name}: there is no folder {str(folder)!r}",
                    "say where it is with --data or --set, or leave such tasks out with --skip-missing",
                )
            notes.append(f"{name} is left out: there is no folder {str(folder)!r}")
            del tasks[name]
    if config.tasks and not tasks:
        raise DataError("no task is left: the folders of all of them are missing", "say where they are with --data")
    starts = {}
    for name, start in config.pretraining.items():
        several = get_by_path(start.tree, "task.tasks") or get_by_path(start.tree, "task.metaicl_setting")
        own = "" if several else get_by_path(start.tree, "task.name")
        starts[name] = start if own is None else start.model_copy(update=_in_folder({}, start.tree, own, data))
    label = get_by_path(base, "task.name")
    if not tasks and label is not None and "problem" not in base:
        base = _in_folder({}, base, str(label), data)
    made = {"defaults": config.defaults.model_copy(update=base), "tasks": tasks, "pretraining": starts}
    return replace(study, config=config.model_copy(update=made), notes=tuple(notes))


def _in_folder(base: Tree, tree: Tree, name: str, data: Path | None) -> Tree:
    """A task's configuration with its folder in the data folder, unless it has its own data.

    Several tasks without a name get the data folder itself.
    """
    whole = merge_trees(base, tree)
    if data is None or get_by_path(whole, "task.data_dir") is not None or get_by_path(whole, "task.data") is not None:
        return tree
    task = str(get_by_path(whole, "task.name") or name)
    places = [data / name, data / Path(task).stem]
    place = next((one for one in places if one.is_dir()), places[-1])
    if not name or has_metaicl_rows(place):
        return merge_trees(tree, {"task": {**({"name": None} if name else {}), "data": str(place.absolute())}})
    if not place.is_dir() and _brings_rows(task):
        return tree
    return merge_trees(tree, {"task": {"data_dir": str(place.absolute())}})


def _brings_rows(task: str) -> bool:
    try:
        source = load_task(task).source
    except ZofoError:  # said when the runs are configured
        return False
    return source is not None and source.embedded is not None
