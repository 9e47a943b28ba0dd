"""The complete configuration of a run, and its written forms: YAML and `key=value`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationInfo, model_validator

from zofo.config import Config, as_group, parse_model, read_json_object
from zofo.errors import ConfigError, UnknownNameError, error_context, reordered
from zofo.methods import METHODS, MethodConfig
from zofo.models import ModelConfig
from zofo.plugins import lost_packages
from zofo.recipes import Recipe, is_recipe, parse_recipe, recipe_text
from zofo.retired_keys import name_now, run_as_now
from zofo.tasks import TaskConfig
from zofo.training.training_config import TrainingConfig
from zofo.trees import format_yaml, get_by_path, parse_override, parse_yaml, read_yaml, set_by_path

_METHOD = "first-order"  # the default: it learned most wherever a gradient was available


def method_config(value: Any, info: ValidationInfo, *, default: str = _METHOD) -> Any:
    """Parse a method's options with its own configuration class; anything that is not a mapping is refused later.

    Args:
        info: validation info of the run; the model is parsed before the method, and determines some defaults.
        default: the method if only options are given.

    Raises:
        ConfigError: there is no such method, or it does not have an option.
    """
    value = {"name": None} if value is None else as_group(value)
    if not isinstance(value, dict):
        return value
    kind = METHODS[value.get("name", default)].Config
    _check_has_keys(kind, value, default)
    return parse_model(
        kind, _plain_lr(kind, value), "method", {"dtype": getattr(info.data.get("model"), "dtype", None)}
    )


def _plain_lr(kind: type[MethodConfig], given: Mapping[str, Any]) -> dict[str, Any]:
    """A method's raw options, with `lr` replaced by the keys that it stands for.

    Raises:
        ConfigError: one of these keys is given, too.
    """
    made = dict(given)
    if kind.lr_means and "lr" in made and "lr" not in kind.model_fields:
        rate = made.pop("lr")
        for key in kind.lr_means:
            if get_by_path(made, key) is not None:
                raise ConfigError(f"method.lr stands for method.{key}, and both are given", "leave one of them out")
            set_by_path(made, key.split("."), rate)
    return made


def _check_has_keys(kind: type[MethodConfig], options: Mapping[str, Any], default: str) -> None:
    """Raise ConfigError for options that other methods have and this one lacks; the message names those methods."""
    lacks = [key for key in map(str, options) if _known_as(key, kind) is None]
    if not lacks:
        return
    others = {name: METHODS[name].Config for name in sorted(METHODS)}
    having = [name for name, other in others.items() if all(_known_as(str(key), other) for key in options)]
    having = having or [name for name, other in others.items() if _known_as(lacks[0], other)]
    if not having:
        return
    key, named = _known_as(lacks[0], others[having[0]]), options.get("name")
    that = "that has it" if key == lacks[0] else f"that has method.{key}"
    choice = ", ".join(f"method={name}" for name in having)
    raise ConfigError(
        f"method.{lacks[0]} is no key of " + (named or f"{default}, which is the method where none is named"),
        f"leave it out, or take a method {that}: {choice}" if named else f"name one {that}: {choice}",
    )


def _known_as(key: str, kind: type[MethodConfig]) -> str | None:
    """A method's current name for a key, or the same words in another order; None if there is none."""
    return reordered(name_now(f"method.{key}") or key, kind.known_keys())


def _method_class(method: Any) -> type[MethodConfig] | None:
    """The configuration class for raw method options; None if they name none."""
    method = as_group(method)
    name = method.get("name", _METHOD) if isinstance(method, dict) else None
    return METHODS[name].Config if isinstance(name, str) and name in METHODS else None


class RunConfig(Config):
    """Everything that a run depends on. A bare name can replace a group that has one: `model: smollm2-135m`."""

    model: Annotated[ModelConfig, BeforeValidator(as_group)] = ModelConfig()
    """Which model."""
    task: Annotated[TaskConfig, BeforeValidator(as_group)] = TaskConfig()
    """Which task."""
    method: Annotated[SerializeAsAny[MethodConfig], BeforeValidator(method_config)] = Field(
        default_factory=METHODS[_METHOD].Config
    )
    """Which method, with its parts."""
    training: TrainingConfig = TrainingConfig()
    """How long."""
    init_from: Path | None = None
    """A run to start from: its trained weights replace the model's own, and an adapter of the same kind and shape
    continues from its adapter. Its model is the default of `model`."""
    output_dir: Path | None = None
    """The folder that the run is written to; by default a new one under `runs`."""

    @classmethod
    def chosen(cls, given: Mapping[str, Any]) -> dict[str, type[Config] | None]:
        return {"method": _method_class(given.get("method", {}))}

    @model_validator(mode="before")
    @classmethod
    def _completed_by_the_method(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kind, task = _method_class(given.get("method", {})), as_group(given.get("task", {}))
        defaults = {} if kind is None or not isinstance(task, dict) else kind.task_defaults
        return {"method": {}, **given, **({"task": {**defaults, **task}} if defaults else {})}

    @model_validator(mode="before")
    @classmethod
    def _completed_by_the_start(cls, given: Any) -> Any:
        model = as_group(given.get("model", {})) if isinstance(given, dict) else None
        if not isinstance(model, dict) or "name" in model or not isinstance(given.get("init_from"), str | Path):
            return given
        file = Path(given["init_from"]) / "config.yaml"  # where there is none, the run is refused when it is opened
        recorded = as_recorded(read_yaml(file)) if file.is_file() else None
        theirs = as_group(recorded.get("model")) if isinstance(recorded, dict) else None
        return {**given, "model": {**theirs, **model}} if isinstance(theirs, dict) else given

    @model_validator(mode="after")
    def _enough_steps(self) -> RunConfig:
        training, least = self.training, self.method.least_queries
        if training.length_key == "max_queries" and (training.max_queries or 0) < least:
            raise ConfigError(
                f"training.max_queries is {training.max_queries}, but one step of {self.method.name!r} takes {least}",
                f"give at least training.max_queries={least}",
            )
        if training.length_key == "steps":  # how many steps the others mean is known later
            self.method.check_steps(self.training.steps)
            if METHODS[self.method.name].fixed_steps is None:
                self.training.warmup(self.training.steps)
        return self

    @model_validator(mode="after")
    def _method_suits_the_task(self) -> RunConfig:
        self.method.check_task(self.task)
        return self

    @model_validator(mode="after")
    def _base_can_be_asked(self) -> RunConfig:
        if self.training.kl_beta and self.method.base_of is None:
            raise ConfigError(
                "training.kl_beta needs zeroth-order steps that move an adapter alone, since the base model is the one "
                f"without it, or that keep a copy of the weights; here method={self.method.name} does neither",
                "with method=es, select or mezo set method.adapter=lora, or subspace, whose directions are those of "
                "the weights; or method.keep_base=true, which takes the memory of the weights that move once more",
            )
        if self.method.copies_base and not self.training.kl_beta:
            raise ConfigError(
                "method.keep_base keeps what training.kl_beta asks, and that is 0", "set training.kl_beta=0.04"
            )
        return self

    def with_absolute_paths(self) -> RunConfig:
        """A copy with every local path absolute, so that a run can be used from any folder."""
        task, model = self.task, self.model
        if task.data_dir is not None:
            task = task.model_copy(update={"data_dir": task.data_dir.absolute()})
        if task.name is not None and Path(task.name).suffix in (".yaml", ".yml"):
            task = task.model_copy(update={"name": str(Path(task.name).absolute())})
        if task.metaicl_setting is not None:
            task = task.model_copy(update={"metaicl_setting": task.metaicl_setting.absolute()})
        if task.data is not None and Path(task.data).exists():
            task = task.model_copy(update={"data": str(Path(task.data).absolute())})
        if Path(model.name).is_dir():
            model = model.model_copy(update={"name": str(Path(model.name).absolute())})
        start = None if self.init_from is None else self.init_from.absolute()
        return self.model_copy(update={"task": task, "model": model, "init_from": start})

    def to_yaml(self) -> str:
        """The complete tree, readable by `read_config`."""
        return format_yaml(self.model_dump(mode="json"), letters=False)


def read_config(file: Path | str | None = None, overrides: Sequence[str] = (), **groups: Any) -> RunConfig:
    """Build a configuration from a YAML file or a recipe, then `groups`, then `key=value` overrides; the last one wins.

    If overrides replace the several tasks of a file, its `task.max_rows` is dropped as well, since it applies to each
    of them.

    Args:
        file: a YAML file with any part of the tree, or with a recipe; or the name of a packaged recipe. The config.yaml
            of a run refers to that run, in its current folder.
        overrides: `path.to.key=value`, with a YAML value; a name instead of a group sets its name. For a recipe,
            `preset=NAME` selects another preset than the first.
        groups: top-level groups, as plain data.

    Raises:
        ConfigError: a file or an override is invalid; the message names the key and suggests the nearest valid one; or
            a recipe needs something. UnknownNameError: there is no such recipe or preset.
    """
    content, changes, recipe = given_layers(file, overrides, groups)
    tree = changed(content, changes)
    of_run = nullcontext() if file is None else naming_lost_plugins(Path(file).parent)
    with error_context(str(file)) if file is not None else nullcontext(), of_run:
        if recipe is not None:
            recipe.check_required(tree)
        return parse_model(RunConfig, tree)


def given_layers(
    file: Path | str | None, overrides: Sequence[str], groups: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Change], Recipe | None]:
    """The input of `read_config` before defaults are filled in: the tree of the file, and the keys set on top.

    In both, a plain `method.lr` is replaced by the keys that it stands for with the configured method.

    Returns:
        The tree, the changes in order, and the recipe, if the file is one.

    Raises:
        ConfigError: as `read_config`; or both `method.lr` and a key that it stands for are set.
    """
    given = [parse_override(override) for override in overrides]
    if file is not None and (run := _run_of(Path(file))) is not None:  # wherever it has been moved to
        given.insert(0, (["output_dir"], str(run)))
    preset = next((str(value) for path, value in reversed(given) if path == _PRESET), None)
    content, recipe = _content(file, preset)
    changes: list[Change] = [([group], value) for group, value in groups.items()]
    changes += [one for one in given if one[0] != _PRESET]
    tree = changed(content, changes)
    if _of_several(content) and not _of_several(tree):  # whose training rows `max_rows` counted
        set_by_path(content, ["task", "max_rows"], None)
    if isinstance(content.get("method"), dict) and (kind := _method_class(content["method"])) is not None:
        content["method"] = _plain_lr(kind, content["method"])
    kind = _method_class(tree.get("method", {}))
    return content, changes if kind is None else _with_plain_lr(changes, kind), recipe


def _with_plain_lr(changes: Sequence[Change], kind: type[MethodConfig]) -> list[Change]:
    """The changes, with `method.lr` replaced by the keys that it stands for."""
    made: list[Change] = []
    for path, value in changes:
        if list(path) == ["method", "lr"] and kind.lr_means:
            set_too = {".".join(other) for other, _ in changes}
            for key in kind.lr_means:
                if f"method.{key}" in set_too:
                    raise ConfigError(f"method.lr stands for method.{key}, and both are given", "leave one of them out")
                made.append((["method", *key.split(".")], value))
        else:
            whole = list(path) == ["method"] and isinstance(value, dict)
            made.append((path, _plain_lr(kind, value) if whole else value))
    return made


def _run_of(file: Path) -> Path | None:
    """The run folder of a configuration file; None for any other file."""
    own = file.name == "config.yaml" and any(os.path.lexists(file.parent / name) for name in OF_RUNS)
    return (file.parent if file.parent.name else file.parent.absolute()) if own else None


def changed(tree: Mapping[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """A copy of a tree with some keys set in order."""
    made = dict(tree)
    for path, value in changes:
        set_by_path(made, path, value)
    return made


def _of_several(tree: Mapping[str, Any]) -> bool:
    """Whether a tree has several tasks."""
    task = tree.get("task")
    return isinstance(task, Mapping) and bool(task.get("tasks") or task.get("metaicl_setting"))


ENVIRONMENT = "environment.json"
"""The file of a run folder that says what the run was made with."""
OF_RUNS = (ENVIRONMENT, "run.lock", "trajectory.bin")
"""What only a run folder holds beside a configuration: each alone tells that it is one, which may lack the others."""
Change = tuple[Sequence[str], Any]
"""The keys that lead to a value, and the value that is set there."""
_PRESET = ["preset"]  # of a recipe, as an override names it


def _content(file: Path | str | None, preset: str | None) -> tuple[dict[str, Any], Recipe | None]:
    """The tree of a configuration file, or of a preset of a recipe, and that recipe."""
    content: Any = {}
    if isinstance(file, str) and _is_bare(file):
        content = parse_yaml(recipe_text(file))
    elif file is not None:
        content = read_yaml(Path(file))
        if _run_of(Path(file)) is not None:
            content = as_recorded(content)
    if is_recipe(content):
        tree: dict[str, Any] = {}
        with error_context(str(file)):
            recipe = parse_recipe(content)
            for key, value in recipe.keys(preset).items():
                set_by_path(tree, key.split("."), value)
        return tree, recipe
    if preset is not None:
        raise ConfigError(
            f"preset={preset} chooses among the presets of a recipe, but there is no recipe",
            "name one first, of `zofo list recipes`: zofo train opt-1.3b-mezo preset=paper",
        )
    if not isinstance(content, dict | None):
        raise ConfigError(f"{file}: a configuration is a mapping from keys to values")
    return content or {}, None


@contextmanager
def naming_lost_plugins(folder: Path) -> Iterator[None]:
    """Context in which an unknown name in a run's configuration is explained by the package that had it."""
    try:
        yield
    except UnknownNameError as error:
        recorded = folder / ENVIRONMENT
        if recorded.is_file() and (lost := lost_packages(read_json_object(recorded))):
            error.hint = lost
        raise


def as_recorded(content: Any) -> Any:
    """The tree in a run folder, in today's keys, with the defaults of the version that wrote it.

    Before these were recorded, every split was drawn `plain`, and only the last answer of a conversation was trained.
    """
    if not isinstance(content, dict):
        return content
    tree = run_as_now(content)
    task = tree.get("task")
    if not isinstance(task, dict):
        return tree
    return {**tree, "task": {"draw": "plain", "trained_turns": "last", **task}}


def _is_bare(file: str) -> bool:
    """Whether it can only be the name of a recipe: not a path, without a file extension, and no such file exists."""
    return Path(file).name == file and Path(file).suffix not in (".yaml", ".yml") and not Path(file).exists()
