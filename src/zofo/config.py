"""The configuration tree: frozen, typed, strict about its keys, and with helpful errors.

Each piece is defined beside what it builds. A part in a registry is configured by its name and the options of its
constructor, so that no option is declared twice.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator, model_validator

from zofo.errors import ConfigError, RunError, advice, nearest, reordered, truncate_repr
from zofo.filesystem import check_not_special
from zofo.registry import Registry
from zofo.retired_keys import name_now
from zofo.trees import is_lost

C = TypeVar("C", bound="Config")
P = TypeVar("P", bound="PartConfig")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
"""A share that is kept, below one."""


class Config(BaseModel):
    """A frozen piece of the configuration tree; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _a_number(cls, value: Any, info: ValidationInfo) -> Any:
        problem = _number_problem(value, cls.model_fields[str(info.field_name)].annotation)
        if problem:
            raise ValueError(problem)
        return value

    @classmethod
    def known_keys(cls) -> list[str]:
        """The keys as written in a file."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def chosen(cls, given: Mapping[str, Any]) -> dict[str, type[Config] | None]:
        """The groups whose kind depends on the raw values, each with that kind; None if they name none."""
        return {}


class PartConfig(BaseModel):
    """A part of a registry by name, with the options of its constructor: `{name: sgd, lr: 1e-4}`, or just `sgd`.

    Missing options get the constructor's defaults, so that a saved configuration is complete.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    registry: ClassVar[Registry[Any]]
    default: ClassVar[str]
    """The part that is meant when only options are given."""
    inside: ClassVar[str] = "method."
    """The path of keys that leads to the part, for messages; empty at the top of a file."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            return value
        kind = cls.registry.kind
        given = dict(value)
        name = given.pop("name", cls.default)
        part = cls.registry[name]
        options = options_of(part)
        for key in given:
            if key not in options:
                raise ConfigError(
                    f"{cls.inside}{kind}.{key}: not an option of the {kind} {name!r}",
                    _guess(f"{cls.inside}{kind}.{key}", ["name", *options]),
                )
        complete = {"name": name}
        for key, (annotation, _) in options.items():
            if key in given and (problem := _number_problem(given[key], annotation)):
                raise ConfigError(f"{cls.inside}{kind}.{key}: {problem}")
        for key, (_, default) in options.items():
            try:
                complete[key] = _option_type(part, key).validate_python(given.get(key, default))
            except pydantic.ValidationError as error:
                first = error.errors()[0]
                raise ConfigError(
                    f"{cls.inside}{kind}.{key}: {first['msg']}, got {truncate_repr(given[key])}", _near_literal(first)
                ) from error
        return complete

    @property
    def options(self) -> dict[str, Any]:
        """The options of the part's constructor."""
        return dict(self.model_extra or {})

    @classmethod
    def known_options(cls, given: Any) -> list[str]:
        """The options of the part in raw values; empty for an unknown part."""
        given = as_group(given)
        name = given.get("name", cls.default) if isinstance(given, dict) else cls.default
        return [*options_of(cls.registry[name])] if name in cls.registry else []

    def with_options(self: P, **options: Any) -> P:
        """The same part with some options changed."""
        return type(self).model_validate({**self.model_dump(), **options})

    def build(self, *parts: Any) -> Any:
        """Build the part; `parts` are constructor arguments that a configuration cannot contain."""
        return self.registry[self.name](*parts, **self.options)


@functools.cache
def validator_of(kind: Any) -> TypeAdapter[Any]:
    """A cached validator of a type; building one takes milliseconds."""
    return TypeAdapter(kind)


@functools.cache
def _option_type(part: Any, option: str) -> TypeAdapter[Any]:
    """A cached validator of an option; the grid of a study has thousands of options."""
    return TypeAdapter(options_of(part)[option][0])


@functools.cache
def options_of(part: Any) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each option: the constructor's arguments with a default."""
    hints = typing.get_type_hints(part.__init__, include_extras=True)
    parameters = inspect.signature(part).parameters.values()
    return {p.name: (hints[p.name], p.default) for p in parameters if p.default is not p.empty}


def _number_problem(value: Any, annotation: Any) -> str | None:
    """What is wrong with a value for a number that pydantic would accept: a boolean, or one that underflows to 0."""
    if isinstance(value, dict):
        return next((found for one in value.values() if (found := _number_problem(one, annotation))), None)
    lost = isinstance(value, str) and is_lost(value)
    if not lost and not isinstance(value, bool):  # only for these few values the types are needed
        return None
    kinds = _kinds(annotation)
    if not kinds & {int, float} or kinds & {bool, Any}:
        return None
    if lost:
        return f"Input is too small a number, which would be read as 0, got {truncate_repr(value)}"
    word = "; a word such as yes is one to YAML: write '\"yes\"'" if str in kinds else ""
    return f"Input should be a number, got the boolean {value}{word}"


def _kinds(annotation: Any) -> set[Any]:
    """The types in an annotation, at any depth."""
    return {annotation}.union(*(_kinds(inner) for inner in typing.get_args(annotation)))


def as_group(value: Any) -> Any:
    """The group for a bare name."""
    return {"name": value} if isinstance(value, str) else value


_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # names that Windows reserves


def is_device(name: str) -> bool:
    """Whether Windows reserves a file name for a device."""
    return _DEVICES.fullmatch(name) is not None


def is_name(text: str) -> bool:
    """Whether a text can be a file name on any system: letters, digits and `._-`."""
    return _NAME.fullmatch(text) is not None and not is_device(text)


def read_json_object(path: Path, error: type[RunError] = RunError, finite: bool = False) -> dict[str, Any]:
    """Read a JSON object from a file that zofo or peft wrote.

    Args:
        finite: whether to refuse NaN and Infinity, which are not JSON.

    Raises:
        RunError: (or the given subclass) it cannot be read, or contains something else.
    """

    def constant(name: str) -> float:
        if finite:
            raise ValueError(f"{name} is no number of JSON")
        return float(name)

    try:
        check_not_special(path)
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=constant)
    except (OSError, ValueError, RecursionError) as problem:
        damaged = None if isinstance(problem, OSError) else "the file is damaged: put back a copy of it"
        hint = advice(getattr(problem, "errno", None)) or damaged
        raise error(f"cannot read {str(path)!r}: {problem}", hint) from problem
    if not isinstance(content, dict):
        raise error(f"{str(path)!r} holds no JSON object")
    return content


def parse_model(model: type[C], content: Any, where: str = "", context: Mapping[str, Any] | None = None) -> C:
    """Validate a piece of configuration, or raise an error of one line.

    Args:
        where: path of keys of the piece; empty for a whole file.
        context: validation context: values from elsewhere that determine defaults, such as the `dtype` of the model.

    Raises:
        ConfigError: it is invalid; the message names the path of the key, and suggests the nearest key for an unknown
            one.
    """
    if not isinstance(content, dict):
        shown = repr(content) if len(repr(content)) < 60 else f"a {type(content).__name__}"
        hint = f"give it a value, or leave {where!r} out" if content is None and where else None
        raise ConfigError(f"{where}: expected keys with values, got {shown}".removeprefix(": "), hint)
    try:
        return model.model_validate(content, context=context)
    except pydantic.ValidationError as error:
        errors = error.errors()  # an unknown key explains why another one is missing
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        place = ".".join([*([where] if where else []), *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{place}: unknown key", _guess(place, _keys_at(model, first["loc"]), _places(model, content, where))
            ) from error
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("dict_type", "model_type"):
            message = "expected keys with values"
        nothing = first["type"] != "missing" and first["input"] is None
        hint = f"give it a value, or leave {place!r} out" if nothing else _near_literal(first)
        got = "" if first["type"] in ("missing", "value_error") else f", got {truncate_repr(first['input'])}"
        raise ConfigError(f"{place}: {message}{got}".removeprefix(": "), hint) from error


def _keys_at(model: type[Config], path: tuple[int | str, ...]) -> list[str]:
    """The keys that could replace the last one of `path`, as written in a file."""
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        inside = _kinds(field.annotation) if field else set()
        model = next((kind for kind in inside if isinstance(kind, type) and issubclass(kind, Config)), model)
    return model.known_keys()


def _near_literal(error: Any) -> str | None:
    """A suggestion for a text that is none of the allowed values of a key."""
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return None
    near = nearest(error["input"], re.findall(r"'([^']*)'", str(error["ctx"]["expected"])))
    return f"did you mean {near!r}?" if near else None


_OTHER_WORDS = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "eps": "epsilon",
    **dict.fromkeys(("num_train", "num_dev", "num_eval"), "split_sizes"),
}
"""Keys as other trainers call them."""


def _guess(place: str, known: Iterable[str], homes: Mapping[str, str] = MappingProxyType({})) -> str:
    """A suggestion for an unknown key: its current name, its place, the nearest one, or all keys.

    Args:
        homes: places of the keys of all groups.
    """
    names, key = list(known), place.rpartition(".")[2]
    if (now := name_now(place)) in names:
        return f"it is called {now!r} now"
    key = _OTHER_WORDS.get(key, key)
    if key not in names and key in homes:
        return f"did you mean {homes[key]!r}?"
    near = reordered(key, names) or nearest(key, names, 0.6)
    return f"did you mean {near!r}?" if near else f"known: {', '.join(names) or 'none'}"


def _places(model: type[Config], given: Any, where: str) -> dict[str, str]:
    """The keys of all groups in a raw piece of configuration, at any depth, each with the first path to it.

    Keys of a group of unknown kind are left out.

    Args:
        where: path of the piece.
    """
    given = as_group(given)
    given = given if isinstance(given, dict) else {}
    chosen, found, inner = model.chosen(given), dict[str, str](), list[dict[str, str]]()
    for field_name, field in model.model_fields.items():
        name = field.alias or field_name
        default = field.get_default(call_default_factory=True)
        kinds: Iterable[Any] = [type(default)] if isinstance(default, BaseModel) else _kinds(field.annotation)
        for kind in [chosen[name]] if name in chosen else kinds:
            path, keys = f"{where}.{name}".lstrip("."), list[str]()
            if isinstance(kind, type) and issubclass(kind, Config):
                inner.append(_places(kind, given.get(name), path))
                keys = kind.known_keys()
            elif isinstance(kind, type) and issubclass(kind, PartConfig):
                keys = kind.known_options(given.get(name))
            found = {**{key: f"{path}.{key}" for key in keys if key != "name"}, **found}
    return functools.reduce(lambda all_of, more: {**more, **all_of}, inner, found)
