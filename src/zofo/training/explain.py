"""The resolved configuration: every key with its value, its origin, and its description."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from zofo.config import PartConfig, parse_model
from zofo.errors import ZofoError
from zofo.training.config import Change, RunConfig, changed, given_layers, read_config
from zofo.trees import flatten, get_by_path, without


@dataclass(frozen=True)
class ResolvedKey:
    """A key of a resolved configuration.

    Args:
        key: dotted.
        value: its value in YAML.
        source: its origin: the command line, a file or recipe, a default, or a default that another key determines.
        about: one sentence on what the key does; empty if there is none.
    """

    key: str
    value: Any
    source: str
    about: str


def explain_config(file: Path | str | None = None, overrides: Sequence[str] = ()) -> list[ResolvedKey]:
    """Every key of the configuration that `read_config` returns, in its order.

    Finds defaults that depend on another key by omitting that key: if the value then differs, the key determined it.

    Args:
        file: a YAML file or a recipe, as `read_config` takes it.

    Raises:
        ConfigError: as `read_config`.
    """
    config = read_config(file, overrides)
    content, changes, _ = given_layers(file, overrides, {})
    tree, sources = _with_sources(content, changes, str(file))
    resolved = dict(flatten(config.model_dump(mode="json")))
    deciding = _deciding(tree, sources, resolved)
    found = []
    for key, value in resolved.items():
        source = _source(key, tree, sources) or (f"default for {deciding[key]}" if key in deciding else "default")
        if key == "training.steps" and (length := config.training.length_key) != "steps":
            source = f"{source}, without effect: training.{length} says how long"
        found.append(ResolvedKey(key, value, source, _about(config, key.split("."))))
    return found


def _with_sources(
    content: Mapping[str, Any], changes: Sequence[Change], file: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """The given tree, and for each of its keys whether it comes from the file or the command line.

    A key that a later one replaced, such as an option of a replaced method, is in neither.
    """
    tree = dict(content)
    sources = {key: file for key, _ in flatten(tree)}
    for path, value in changes:
        tree, whole = changed(tree, [(path, value)]), ".".join(path)
        typed = {f"{whole}.{key}" for key, _ in flatten(value)} if isinstance(value, Mapping) and value else {whole}
        typed |= {f"{whole}.name"} if isinstance(value, str) else set()
        sources = {key: "command line" if key in typed else sources.get(key, file) for key, _ in flatten(tree)}
    return tree, sources


def _source(key: str, tree: Mapping[str, Any], sources: Mapping[str, str]) -> str | None:
    """Where a key was given, directly or inside a value; a bare word sets the name of its group."""
    if key in sources:
        return sources[key]
    above = key.rpartition(".")[0]
    while above and above not in sources:
        above = above.rpartition(".")[0]
    if not above:
        return None
    return sources[above] if key == f"{above}.name" or not isinstance(get_by_path(tree, above), str) else None


def _deciding(tree: Mapping[str, Any], sources: Mapping[str, str], resolved: Mapping[str, Any]) -> dict[str, str]:
    """The given key that determines the value of each key, by key."""
    decided: dict[str, str] = {}
    for given in sources:
        value = get_by_path(tree, given)
        try:
            other = dict(flatten(parse_model(RunConfig, without(tree, given.split("."))).model_dump(mode="json")))
        except ZofoError:
            continue
        said = f"{given}={value if isinstance(value, str) else json.dumps(value, default=str)}"
        decided |= {key: said for key, now in resolved.items() if other.get(key, now) != now}
    return decided


def _about(config: BaseModel, path: Sequence[str]) -> str:
    """The first sentence of a key's description."""
    part: Any = config
    for name in path[:-1]:
        part = getattr(part, name, None)
    text = ""
    if isinstance(part, PartConfig):
        text = about_option(part.registry[part.name], path[-1])
    elif isinstance(part, BaseModel) and path[-1] in type(part).model_fields:
        text = type(part).model_fields[path[-1]].description or ""
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


def about_option(part: type[Any], name: str) -> str:
    """The description of a constructor's option in the docstring of a part, or of a base class.

    `name` itself is described by the part.
    """
    return next((said for kind in inspect.getmro(part) if (said := _argument(kind, name))), "")


def _argument(part: Any, name: str) -> str:
    """The description of a constructor's argument in the docstring of one class."""
    if name == "name":
        return (inspect.getdoc(part) or "").partition("\n")[0]
    found = re.search(rf"^    {name}: (.*(?:\n      .*)*)", inspect.getdoc(part) or "", re.MULTILINE)
    return f"{found[1][:1].upper()}{found[1][1:]}" if found else ""
