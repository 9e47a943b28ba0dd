"""Reading a study: a file or a packaged one, with what the command line says on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from zofo.config import parse_model
from zofo.embedded import EMBEDDED_MODELS
from zofo.errors import ConfigError, DataError, UnknownNameError, ZofoError, error_context
from zofo.overrides import Tree, get_by_path, merge_trees, parse_override, set_by_path
from zofo.studies.config import Start, StudyConfig
from zofo.studies.figures import FigureConfig
from zofo.studies.grid import Grid
from zofo.studies.shorthand import GROUPS, SHORT_FORMS, spelled_out
from zofo.tasks import has_metaicl_rows, load_task
from zofo.yaml_loader import parse_yaml, read_yaml

_YAML = (".yaml", ".yml")
_FILES = (
    *(("task", key) for key in ("setting", "data_dir", "data", "name")),
    ("model", "name"),
    ("problem", "folder"),
)


@dataclass(frozen=True)
class Study:
    """A study that was read.

    Args:
        name: of its file, without the ending; its results go to a folder of that name unless told otherwise.
        config: what it compares.
        notes: what a reader should know, such as tasks that are left out.
    """

    name: str
    config: StudyConfig
    notes: tuple[str, ...] = ()

    @cached_property
    def grid(self) -> Grid:
        """Its runs."""
        return Grid(self.config)


def study_names() -> dict[str, str]:
    """The packaged studies, with a line on each."""
    found = {}
    for file in sorted(files(__package__).joinpath("files").iterdir(), key=lambda file: file.name):
        if file.name.endswith(_YAML):
            content = parse_yaml(file.read_text(encoding="utf-8"))
            found[file.name.rpartition(".")[0]] = str(content.get("about", ""))
    return found


def read_study(
    name: Path | str, overrides: Sequence[str] = (), data: Path | None = None, skip_missing: bool = False
) -> Study:
    """Read a study and find its mistakes; nothing is run.

    Args:
        name: a YAML file, or a packaged study.
        overrides: `key=value` over the keys of the file, such as `seeds=[0]` or `base.task.max_rows=50`.
        data: a folder that holds a folder for each task; for tasks that name no data of their own.
        skip_missing: leave out tasks whose folder is not there.

    Raises:
        UnknownNameError: neither a file nor a packaged study.
        ConfigError: names the file, the key and the nearest right one.
        DataError: the folder of a task is not there.
    """
    content, folder, short = _content(str(name))
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}: a study is a mapping from keys to values", "see docs/studies.md for an example")
    with error_context(str(name)):
        config = parse_model(StudyConfig, _with_overrides(content, overrides))
        if config.figure is not None:
            parse_model(FigureConfig, config.figure, "figure")
        study = Study(short, _located(config, folder))
        study = _with_data(study, data, skip_missing)
        study.grid  # noqa: B018  # finds what is wrong with any run
    return study


def _content(name: str) -> tuple[Any, Path, str]:
    """What a study's file holds, the folder that its paths are relative to, and the study's name."""
    path = Path(name)
    if path.suffix in _YAML:
        if not path.is_file():
            raise ConfigError(f"there is no study file {name!r}", f"packaged studies: {', '.join(study_names())}")
        return read_yaml(path), path.absolute().parent, path.stem
    if name not in study_names():
        raise UnknownNameError("study", name, study_names())
    text = (files(__package__) / "files" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text), Path.cwd(), name


def _with_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> Tree:
    """The file with single keys set; dotted keys of the file are nested first, so that the last word counts."""
    tree = {str(key): value for key, value in content.items()}
    for section, group in SHORT_FORMS.items():
        if isinstance(tree.get(section), Mapping):
            tree[section] = spelled_out(tree[section], group)
    for override in overrides:
        parts, value = parse_override(override, "write for example --set seeds=[0,1]")
        if isinstance(value, list) and _names_things(parts):
            _keep(tree, parts, value)
            continue
        if isinstance(tree.get(parts[0]), Mapping) and parts[0] not in ("budget", "search", "figure"):
            tree[parts[0]] = _nested(tree[parts[0]], parts[1:-1])
        set_by_path(tree, parts, value)
    return tree


def _names_things(path: Sequence[str]) -> bool:
    """Whether what stands there are things by name, of which a list can keep some."""
    return list(path) in (["methods"], ["models"], ["tasks"]) or (len(path) == 2 and path[0] == "axes")


def _keep(tree: Tree, path: Sequence[str], names: Sequence[Any]) -> None:
    """Leave out all methods, models, tasks or values of an axis but some."""
    if len(path) == 2:
        tree["axes"] = dict(tree.get("axes") or {})
    where = tree if len(path) == 1 else tree["axes"]
    there = {str(name): content for name, content in (where.get(path[-1]) or {}).items()}
    for name in names:
        if str(name) not in there:
            raise UnknownNameError(f"name in {'.'.join(path)}", str(name), there)
    where[path[-1]] = {str(name): there[str(name)] for name in names}
    if list(path) == ["methods"]:
        gone = there.keys() - tree["methods"].keys()
        for section in {"models", "tasks"} & tree.keys():
            tree[section] = _without_methods(tree[section], gone)
        if isinstance(tree.get("axes"), Mapping):
            tree["axes"] = {axis: _without_methods(values, gone) for axis, values in tree["axes"].items()}


def _without_methods(levels: Any, gone: Set[str]) -> Any:
    """Models, tasks or values of an axis, without what they say of methods that are left out."""
    if not isinstance(levels, Mapping):
        return levels
    made = dict(levels)
    for name, level in levels.items():
        if isinstance(level, Mapping) and isinstance(level.get("methods"), Mapping):
            own = {method: change for method, change in level["methods"].items() if str(method) not in gone}
            made[name] = {**level, "methods": own}
    return made


def _nested(tree: Mapping[str, Any], path: Sequence[str]) -> Tree:
    """A tree in which the group that a path leads to, and those on the way, have nested keys."""
    made = {str(key): value for key, value in tree.items()}
    if path and isinstance(made.get(path[0]), Mapping):
        made[path[0]] = _nested(made[path[0]], path[1:])
    dotted = {key: made.pop(key) for key in list(made) if "." in key and key.split(".")[0] in GROUPS}
    return merge_trees(made, dotted) if dotted else made


def _located(config: StudyConfig, folder: Path) -> StudyConfig:
    """The study with the paths that are relative to its file made absolute; others are as from the working folder."""

    def located(tree: Tree) -> Tree:
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

    def level(one: Any) -> Any:
        return one.model_copy(update={"tree": located(one.tree)})

    return config.model_copy(
        update={
            "base": located(config.base),
            "models": {name: level(one) for name, one in config.models.items()},
            "tasks": {name: level(one) for name, one in config.tasks.items()},
            "starts": {name: level(one) for name, one in config.starts.items()},
            "axes": {a: {name: level(one) for name, one in axis.items()} for a, axis in config.axes.items()},
        }
    )


def _with_data(study: Study, data: Path | None, skip_missing: bool) -> Study:
    """The study with a folder for each task that names none, and without tasks whose folder is missing, if allowed."""
    config, notes = study.config, []
    tasks = dict(config.tasks)
    if not tasks and data is not None and "problem" not in config.base:
        label = get_by_path(config.base, "task.name")
        if label is not None:
            config = config.model_copy(update={"base": _in_folder(config.base, config.base, str(label), data)})
    starts = {name: _of_several(one, data) for name, one in config.starts.items()}
    config = config.model_copy(update={"starts": starts})
    for name, level in config.tasks.items():
        whole = merge_trees(config.base, level.tree)
        if "problem" in whole:
            continue
        tree = level.tree if data is None else _in_folder(whole, level.tree, name, data)
        tasks[name] = level.model_copy(update={"tree": tree})
        folder = get_by_path(merge_trees(config.base, tree), "task.data_dir")
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
    return replace(study, config=config.model_copy(update={"tasks": tasks}), notes=tuple(notes))


def _in_folder(whole: Tree, tree: Tree, name: str, data: Path) -> Tree:
    """A task's tree with its folder, unless it names data of its own or brings them."""
    if get_by_path(whole, "task.data_dir") is not None or get_by_path(whole, "task.data") is not None:
        return tree
    task = str(get_by_path(whole, "task.name") or name)
    places = [data / name, data / Path(task).stem]
    place = next((one for one in places if one.is_dir()), places[-1])
    if has_metaicl_rows(place):
        return merge_trees(tree, {"task": {"name": None, "data": str(place.absolute())}})
    if not place.is_dir() and _brings_rows(task):
        return tree
    return merge_trees(tree, {"task": {"data_dir": str(place.absolute())}})


def _of_several(start: Start, data: Path | None) -> Start:
    """A start on several tasks with the folder that holds theirs, unless it names one of its own."""
    tree = start.tree
    several = get_by_path(tree, "task.tasks") or get_by_path(tree, "task.setting")
    if data is None or not several or get_by_path(tree, "task.data") or get_by_path(tree, "task.data_dir"):
        return start
    return start.model_copy(update={"tree": merge_trees(tree, {"task": {"data": str(data.absolute())}})})


def _brings_rows(task: str) -> bool:
    try:
        source = load_task(task).source
    except ZofoError:  # said when the runs are configured
        return False
    return source is not None and source.embedded is not None
