"""The page docs/reference.md, generated from the types: `python -m zofo.training.reference > docs/reference.md`."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from zofo.adapters import AdapterConfig
from zofo.config import PartConfig, options_of
from zofo.estimators import EstimatorConfig
from zofo.evaluators import EvaluatorConfig
from zofo.methods import METHODS
from zofo.models import ModelConfig
from zofo.noise import MaskConfig, NoiseConfig
from zofo.rules import RuleConfig
from zofo.tasks import TaskConfig
from zofo.training.config import RunConfig
from zofo.training.explain import about_option
from zofo.training.training_config import TrainingConfig
from zofo.training.versions import names

COMMAND = "python -m zofo.training.reference > docs/reference.md"
"""What renews the page."""
COLUMNS = 120
"""The longest line of a page."""
_PARTS = (NoiseConfig, MaskConfig, EstimatorConfig, RuleConfig, EvaluatorConfig, AdapterConfig)
_LISTED = ("objectives", "metrics", "models", "tasks")
_TYPES = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text", Path: "path", Any: "any value"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_HEAD = f"""\
# Reference

Every key of the configuration, and every part that a key can name. This page is made from the source; to renew it,
type `{COMMAND}`.

`zofo config [RECIPE] [key=value ...]` shows the values of one run, with where each comes from.

A key is typed as `path.to.key=value`. What is not set is written `null`. How a file looks:
[configuration](configuration.md). The methods decide some defaults of their parts, among them the learning rate of
`sgd` and epsilon: see [methods](methods.md).
"""


def reference_page() -> str:
    """The page, as Markdown with lines of at most `COLUMNS` characters."""
    lines = [_HEAD]
    lines += ["## The run", "", *_keys(RunConfig, "", {"output_dir", "init_from"}), ""]
    for title, prefix, group in (
        ("The model", "model.", ModelConfig),
        ("The task", "task.", TaskConfig),
        ("Training", "training.", TrainingConfig),
    ):
        lines += [f"## {title}", "", *_keys(group, prefix), ""]
    lines += ["## Methods", "", *_methods()]
    for part in _PARTS:
        lines += [f"## {part.registry.kind.capitalize()}s", "", *_options(part)]
    for kind in _LISTED:
        lines += [
            f"## {kind.capitalize()}",
            "",
            *(_item(f"`{name}`: {about}") for name, about in names(kind)[kind].items()),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _methods() -> Iterator[str]:
    """Each method with its own keys; shared keys are listed once, under their names."""
    own = [name for name in METHODS if _is_own(METHODS[name])]
    users: dict[Any, list[str]] = {}
    for name in own:
        for base in reversed(METHODS[name].Config.__mro__):
            if set(_declared(base)) - {"name"}:
                users.setdefault(base, []).append(name)
    usual = RunConfig().method.name
    yield _paragraph(f"`method=NAME` chooses one, `method.KEY=...` sets its options. The default is `{usual}`.")
    yield ""
    for base, names_of in sorted(users.items(), key=lambda item: -len(item[1])):
        if len(names_of) > 1:
            of = "every method" if names_of == own else ", ".join(f"`{name}`" for name in names_of)
            yield from (f"### Keys of {of}", "", *_keys(base, "method.", set(_declared(base)) - {"name"}), "")
    for name in own:
        method = METHODS[name]
        keys = {key for base, names_of in users.items() if names_of == [name] for key in _declared(base)} - {"name"}
        lines = list(_keys(method.Config, "method.", keys))
        if method.Config.lr_means:
            meant = " and ".join(f"`method.{key}`" for key in method.Config.lr_means)
            lines.append(_item(f"`method.lr` (number; not set): Stands for {meant}."))
        yield from (f"### `{name}`", "", _paragraph(_summary(method)), "", f"Source: {method.paper}.", "")
        yield from (*lines, *([""] if lines else []))


def _declared(kind: Any) -> list[str]:
    """The fields that a class itself declares, without inherited ones."""
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    return [name for name in inspect.get_annotations(kind) if name in fields]


def _keys(group: type[BaseModel], prefix: str, chosen: set[str] | None = None) -> Iterator[str]:
    """A list item for each field of a class, or for selected ones."""
    for name, field in group.model_fields.items():
        if chosen is None or name in chosen:
            default = field.get_default(call_default_factory=True)
            about = " ".join((field.description or "").split())
            yield _item(f"`{prefix}{name}` ({_type(field.annotation, field)}; {_default(default)}): {about}")


def _options(part: type[PartConfig]) -> Iterator[str]:
    """Each part of a registry, with the options of its constructor."""
    kind = part.registry.kind
    for name in part.registry:
        made = part.registry[name]
        if not _is_own(made):
            continue
        yield from (f"### `{part.inside}{kind}={name}`", "", _paragraph(_summary(made)), "")
        options = options_of(made)
        for option, (annotation, default) in options.items():
            about = about_option(made, option)
            yield _item(f"`{part.inside}{kind}.{option}` ({_type(annotation)}; {_default(default)}): {about}")
        if options:
            yield ""


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    """A type in words, with its bounds."""
    bounds = [] if field is None else list(field.metadata)
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *more = typing.get_args(annotation)
        bounds += [one for each in more for one in getattr(each, "metadata", [each])]
    said = _plain_type(annotation)
    limits = [f"{sign} {value}" for one in bounds for key, sign in _BOUNDS.items() if (value := _bound(one, key)) != ""]
    return " ".join([said, *([", ".join(limits)] if limits else [])])


def _bound(constraint: Any, key: str) -> str:
    value = getattr(constraint, key, None)
    if value is None or isinstance(value, str) or callable(value):
        return ""
    return f"2^{value.bit_length() - 1}" if isinstance(value, int) and value > 1 << 16 else f"{value:g}"


def _plain_type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _TYPES:
        return _TYPES[annotation]
    if origin is typing.Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin in (typing.Union, types.UnionType):
        said = list(dict.fromkeys(_type(one) for one in inner if one is not type(None)))
        return (", or " if any(" or " in one for one in said) else " or ").join(said)
    if origin in (list, tuple):
        return f"list of {_type(inner[0])}"
    if origin is dict or isinstance(origin, type) and issubclass(origin, Mapping):
        return f"keys with values ({_type(inner[1])})"
    if isinstance(annotation, type) and issubclass(annotation, PartConfig):
        return f"a part of [{annotation.registry.kind}s](#{annotation.registry.kind}s)"
    return "keys with values"


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "must be given"
    if value is None:
        return "not set"
    if isinstance(value, PartConfig):
        return f"default `{value.name}`"
    if isinstance(value, bool):
        return f"default `{str(value).lower()}`"
    if value in ([], {}, ()):
        return "default empty"
    return f"default `{value:g}`" if isinstance(value, float) else f"default `{value}`"


def _is_own(part: Any) -> bool:
    """Whether a part is zofo's own; parts of plugins are not documented here."""
    return str(part.__module__).startswith("zofo.")


def _summary(part: Any) -> str:
    """The first paragraph of a docstring."""
    return (inspect.getdoc(part) or "").partition("\n\n")[0]


def _paragraph(text: str) -> str:
    return _wrapped(text, "", "")


def _item(text: str) -> str:
    return _wrapped(text, "- ", "  ")


def _wrapped(text: str, first: str, rest: str) -> str:
    """A text in lines, broken between words but not inside code."""
    held = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    wrap = textwrap.TextWrapper(COLUMNS, first, rest, break_long_words=False, break_on_hyphens=False)
    return wrap.fill(held).replace("\0", " ")


if __name__ == "__main__":
    print(reference_page(), end="")  # noqa: T201
