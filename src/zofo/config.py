"""The configuration tree: frozen, typed, strict about its keys, and able to say what was wrong with them.

Each piece is defined beside what it builds. A part that a registry holds is configured by its name and the options of
its constructor, so that no option is declared twice.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator, model_validator

from zofo.errors import ConfigError, RunError, nearest
from zofo.filesystem import refuse_special
from zofo.registry import Registry
from zofo.repeated import refuse_repeated_keys

C = TypeVar("C", bound=BaseModel)
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


class PartConfig(BaseModel):
    """A part of a registry by its name, with the options of its constructor: `{name: sgd, lr: 1e-4}`, or just `sgd`.

    Options that are left out get the constructor's defaults, so that a saved configuration is complete.
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
        options = _options(cls.registry[name])
        for key in given:
            if key not in options:
                raise ConfigError(
                    f"{cls.inside}{kind}.{key}: not an option of the {kind} {name!r}", _guess(key, ["name", *options])
                )
        complete = {"name": name}
        for key, (annotation, _) in options.items():
            if key in given and (problem := _number_problem(given[key], annotation)):
                raise ConfigError(f"{cls.inside}{kind}.{key}: {problem}")
        for key, (annotation, default) in options.items():
            try:
                complete[key] = TypeAdapter(annotation).validate_python(given.get(key, default))
            except pydantic.ValidationError as error:
                raise ConfigError(
                    f"{cls.inside}{kind}.{key}: {error.errors()[0]['msg']}, got {_short(given[key])}"
                ) from error
        return complete

    @property
    def options(self) -> dict[str, Any]:
        """The options of the part's constructor."""
        return dict(self.model_extra or {})

    def with_options(self: P, **options: Any) -> P:
        """The same part with some options changed."""
        return type(self).model_validate({**self.model_dump(), **options})

    def build(self, *parts: Any) -> Any:
        """The part itself; `parts` are the constructor's arguments that no configuration can hold."""
        return self.registry[self.name](*parts, **self.options)


def _options(part: Any) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each option: the constructor's arguments that have a default."""
    hints = typing.get_type_hints(part.__init__, include_extras=True)
    parameters = inspect.signature(part).parameters.values()
    return {p.name: (hints[p.name], p.default) for p in parameters if p.default is not p.empty}


def _number_problem(value: Any, annotation: Any) -> str | None:
    """What is wrong with a value where a number is wanted, that pydantic would take: a truth value, or one that
    becomes 0."""
    if isinstance(value, dict):
        return next((found for one in value.values() if (found := _number_problem(one, annotation))), None)
    kinds = _kinds(annotation)
    if not kinds & {int, float} or kinds & {bool, Any}:
        return None
    if isinstance(value, bool):
        return f"Input should be a number, got the truth value {value}"
    if isinstance(value, str) and is_lost(value):
        return f"Input is too small a number, which would be read as 0, got {_short(value)}"
    return None


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation allows, at any depth."""
    return {annotation}.union(*(_kinds(inner) for inner in typing.get_args(annotation)))


def is_lost(text: str) -> bool:
    """Whether a text is a number that is not 0, and that a float can only hold as 0."""
    found = re.fullmatch(r"\s*[-+]?([\d_.]+)(e[-+]?\d+)?\s*", text, re.IGNORECASE)
    try:
        return found is not None and bool(re.search("[1-9]", found[1])) and float(text) == 0
    except ValueError:
        return False


def named(value: Any) -> Any:
    """A bare name as the group that it stands for."""
    return {"name": value} if isinstance(value, str) else value


_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_DEVICES = re.compile(
    r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE
)  # names that Windows keeps for itself


def is_device(name: str) -> bool:
    """Whether Windows keeps a file's name for a device."""
    return _DEVICES.fullmatch(name) is not None


def is_name(text: str) -> bool:
    """Whether a text can be the name of a file in any folder on any system: letters, digits and `._-`."""
    return _NAME.fullmatch(text) is not None and not is_device(text)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that zofo or peft wrote.

    Raises:
        RunError: it cannot be read, or holds something else.
    """
    try:
        refuse_special(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {str(path)!r}: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{str(path)!r} holds no JSON object")
    return content


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or gives a key twice.
    """
    try:
        refuse_special(path)
        text = path.read_text(encoding="utf-8")
        content = parse_yaml(text)
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2020-99-99 is a ValueError
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    with error_context(str(path)):
        refuse_repeated_keys(text)
    return content


def parse_yaml(text: str) -> Any:
    """The value of a YAML text: of plain values alone, nested 64 deep and with 1,000,000 values at most.

    Both are counted before a value is made of it. What stands in several places counts in each, so that references to
    references do not outgrow the memory.

    Raises:
        YAMLError: it is not YAML.
        ValueError: it is larger or deeper, or holds a number of more than 400 characters.
    """
    loader = _Bounded(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_bomb(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


_DEEPEST, _LONGEST_NUMBER = 64, 400
_MOST = 1_000_000  # values in one file, those that stand in several places counted in each


class _Bounded(yaml.SafeLoader):
    """PyYAML's safe loader, which stops where values are nested too deeply, or a number is too long."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node and all below it."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError("its values are nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise ValueError(f"it holds a number of {len(node.value)} characters")
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS:
            _refuse_second_reading(node.value)
        return node


def _refuse_second_reading(number: str) -> None:
    """ValueError for a number that YAML 1.1 reads otherwise than people do: in base 60 or 8, or as 0."""
    base = "base 60" if ":" in number else "base 8" if re.fullmatch(r"[-+]?0[0-7_]+", number) else None
    if base:
        raise ValueError(f"{number} is a number in {base} to YAML: write it in quotes, or another way")
    if is_lost(number):
        raise ValueError(f"{number} is too small a number, which would be read as 0")


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _refuse_bomb(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values there are; ValueError for too many, as references to references make them, or without end."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MOST  # until it is known: what holds itself has no end
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_refuse_bomb(part, known) for part in parts)
    if known[id(node)] >= _MOST:
        raise ValueError("its references make it larger than any configuration")
    return known[id(node)]


@contextmanager
def error_context(file: str) -> Iterator[None]:
    """While it is open, the name of the file is put before what is wrong with its content."""
    try:
        yield
    except ConfigError as error:
        error.message = f"{file}: {error.message}"
        raise


def parse_model(model: type[C], content: Any, where: str = "") -> C:
    """Build a piece of configuration, or say what is wrong in one line.

    Args:
        model: the class of the piece.
        content: plain data, as YAML gives it.
        where: the path of keys that leads to it; empty for a whole file.

    Raises:
        ConfigError: names the path of the key, with the nearest right key for an unknown one.
    """
    if not isinstance(content, dict):
        shown = repr(content) if len(repr(content)) < 60 else f"a {type(content).__name__}"
        raise ConfigError(f"{where}: expected keys with values, got {shown}".removeprefix(": "))
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        errors = error.errors()  # a key that is unknown is why another one is missing
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        place = ".".join([*([where] if where else []), *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{place}: unknown key", _guess(str(first["loc"][-1]), _keys_at(model, first["loc"]))
            ) from error
        message = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] in ("missing", "value_error") else f", got {_short(first['input'])}"
        raise ConfigError(f"{place}: {message}{got}".removeprefix(": ")) from error


def _keys_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that could stand in place of the last of `path`, as a file writes them."""
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        inside = (field.annotation, *typing.get_args(field.annotation)) if field else ()
        model = next((kind for kind in inside if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _short(value: Any) -> str:
    """A value as a message can show it."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _guess(key: str, known: typing.Iterable[str]) -> str:
    names = list(known)
    near = nearest(key, names)
    return f"did you mean {near!r}?" if near else f"known: {', '.join(names) or 'none'}"
