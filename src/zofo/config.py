"""The configuration tree: frozen, typed, strict about its keys, and able to say what was wrong with them.

Each piece is defined beside what it builds. A part that a registry holds is configured by its name and the options of
its constructor, so that no option is declared twice.
"""

from __future__ import annotations

import inspect
import typing
from typing import Any, ClassVar, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, TypeAdapter, model_validator

from zofo.errors import ConfigError, nearest
from zofo.registry import Registry

C = TypeVar("C", bound=BaseModel)


class Config(BaseModel):
    """A frozen piece of the configuration tree; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PartConfig(BaseModel):
    """A part of a registry by its name, with the options of its constructor: `{name: sgd, lr: 1e-4}`, or just `sgd`.

    Options that are left out get the constructor's defaults, so that a saved configuration is complete.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    registry: ClassVar[Registry[Any]]
    default: ClassVar[str]
    """The part that is meant when only options are given."""

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
                raise ConfigError(f"{kind}.{key}: not an option of the {kind} {name!r}", _guess(key, options))
        complete = {"name": name}
        for key, (annotation, default) in options.items():
            try:
                complete[key] = TypeAdapter(annotation).validate_python(given.get(key, default))
            except pydantic.ValidationError as error:
                raise ConfigError(f"{kind}.{key}: {error.errors()[0]['msg']}, got {given[key]!r}") from error
        return complete

    def build(self, *parts: Any) -> Any:
        """The part itself; `parts` are the constructor's arguments that no configuration can hold."""
        return self.registry[self.name](*parts, **(self.model_extra or {}))


def _options(part: Any) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each option: the constructor's arguments that have a default."""
    hints = typing.get_type_hints(part.__init__)
    parameters = inspect.signature(part).parameters.values()
    return {p.name: (hints[p.name], p.default) for p in parameters if p.default is not p.empty}


def validated(model: type[C], content: Any, where: str) -> C:
    """Build a piece of configuration, or say what is wrong in one line.

    Args:
        model: the class of the piece.
        content: plain data, as YAML gives it.
        where: the file, or the path of keys, that it came from.

    Raises:
        ConfigError: names the place and the key, with the nearest right key for an unknown one.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected keys with values, got {content!r}")
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            known = _model_at(model, first["loc"][:-1]).model_fields
            raise ConfigError(f"{place}: unknown key", _guess(str(first["loc"][-1]), known)) from error
        message = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        raise ConfigError(f"{place}: {message}{got}") from error


def _model_at(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return model


def _guess(key: str, known: typing.Iterable[str]) -> str:
    names = list(known)
    near = nearest(key, names)
    return f"did you mean {near!r}?" if near else f"known: {', '.join(names) or 'none'}"
