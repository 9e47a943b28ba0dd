"""What a configuration comes to: every key with its value, where the value comes from, and what the key does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from zofo.config import PartConfig
from zofo.errors import ZofoError
from zofo.overrides import flat, parse_override
from zofo.training.config import config_content, read_config


@dataclass(frozen=True)
class Setting:
    """A key of a resolved configuration.

    Args:
        key: dotted.
        value: as YAML gives it.
        source: where it comes from: the command line, a file or recipe, a default, or one that another key decides.
        about: one sentence on what the key does; empty where none is written.
    """

    key: str
    value: Any
    source: str
    about: str


def explain_config(file: Path | str | None = None, overrides: Sequence[str] = ()) -> list[Setting]:
    """Every key of the configuration that `read_config` gives, in its order.

    A default that depends on another key is found by leaving that key out: where the value then differs, the key
    decided it.

    Args:
        file: a YAML file or a recipe, as `read_config` takes it.
        overrides: `path.to.key=value`.

    Raises:
        ConfigError: as `read_config`.
    """
    config = read_config(file, overrides)
    resolved = dict(flat(config.model_dump(mode="json")))
    typed = {".".join(parse_override(one)[0]) for one in overrides}
    written = {key for key, _ in flat(config_content(file, overrides))} if file is not None else set()
    deciding = _deciding(file, overrides, resolved)
    found = []
    for key, value in resolved.items():
        if _covers(typed, key):
            source = "command line"
        elif _covers(written, key):
            source = str(file)
        else:
            source = f"default for {deciding[key]}" if key in deciding else "default"
        if key == "training.steps" and (length := config.training.length_key) != "steps":
            source = f"{source}, without effect: training.{length} says how long"
        found.append(Setting(key, value, source, _about(config, key.split("."))))
    return found


def _covers(given: set[str], key: str) -> bool:
    """Whether a key was given: itself, the group it is in, or the name of a group as a bare word."""
    return any(key in (one, f"{one}.name") for one in given)


def _deciding(file: Path | str | None, overrides: Sequence[str], resolved: Mapping[str, Any]) -> dict[str, str]:
    """By key: the override without which its value would be another."""
    decided: dict[str, str] = {}
    for number, override in enumerate(overrides):
        try:
            without = read_config(file, [*overrides[:number], *overrides[number + 1 :]])
        except ZofoError:
            continue
        other = dict(flat(without.model_dump(mode="json")))
        decided |= {key: override for key, value in resolved.items() if other.get(key, value) != value}
    return decided


def _about(config: BaseModel, path: Sequence[str]) -> str:
    """The first sentence that is written on a key."""
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
    """What the docstring of a part, or of a class that it comes from, says of an option of its constructor.

    Args:
        part: a class of a registry.
        name: of the option; `name` itself stands for the part.
    """
    return next((said for kind in inspect.getmro(part) if (said := _argument(kind, name))), "")


def _argument(part: Any, name: str) -> str:
    """What the docstring of one class says of an argument of its constructor."""
    if name == "name":
        return (inspect.getdoc(part) or "").partition("\n")[0]
    found = re.search(rf"^    {name}: (.*(?:\n      .*)*)", inspect.getdoc(part) or "", re.MULTILINE)
    return f"{found[1][:1].upper()}{found[1][1:]}" if found else ""
