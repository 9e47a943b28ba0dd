"""Trees of keys laid over one another: how a study writes what a method, a task or a trial changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from zofo.errors import ConfigError, error_context
from zofo.yaml_loader import parse_yaml

_EXAMPLE = "write for example training.steps=20; a file or a recipe stands first, and there is only one"

Tree = dict[str, Any]
"""What a run is configured by, or a part of it, as YAML gives it."""


def merge_trees(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """One tree from several, the last one winning key by key.

    A key may be nested or dotted: `{method: {rule: {lr: 1}}}` is `{method.rule.lr: 1}`. A name joins a group that has
    none, and another name replaces the group with all its options.

    Args:
        trees: as YAML gives them; none of them is changed.

    Raises:
        ConfigError: a value stands where a later tree has keys below it.
    """
    tree: dict[str, Any] = {}
    for one in trees:
        _lay(tree, (), one)
    return tree


def _lay(tree: dict[str, Any], path: Sequence[str], content: Mapping[Any, Any]) -> None:
    for key, value in sorted(content.items(), key=lambda item: item[0] != "name"):  # the name decides about the rest
        whole = [*path, *str(key).split(".")]
        if isinstance(value, Mapping) and value and all(isinstance(below, str) for below in value):
            _lay(tree, whole, value)
        elif path and whole == [*path, "name"] and isinstance(value, str):
            set_by_path(tree, path, value)
        else:
            set_by_path(tree, whole, value)


def get_by_path(tree: Mapping[str, Any], key: str) -> Any:
    """What stands at a dotted key; a bare name stands for a group with that name; None where nothing does."""
    found: Any = tree
    for part in key.split("."):
        if isinstance(found, str):
            found = {"name": found}
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def flatten(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a tree, dotted, with its value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def parse_override(override: str, example: str = _EXAMPLE) -> tuple[list[str], Any]:
    """The keys that an override leads through, and its value, read as YAML.

    Args:
        override: `path.to.key=value`. A template, whose braces mean something else in YAML, may stand as it is.

    Raises:
        ConfigError: it has no key, or its value is not YAML, or gives a key twice.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"{override!r} is not key=value", example)
    keys = path.split(".")
    template = keys[-2:] == ["task", "template"]
    if template and not text.startswith(("'", '"')):
        return keys, None if text in ("", "null") else text
    try:
        with error_context(repr(override)):
            return keys, parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if template:  # one that begins with a quotation
            return keys, text
        reason = f" that can be read: {error}" if type(error) is ValueError else ""
        raise ConfigError(
            f"{override!r}: the value is not YAML{reason}", "quote it, for example \"method.trainable=['*.29.*']\""
        ) from error


def set_by_path(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set one key. A name joins options that were given without one; another name replaces the group.

    Args:
        tree: changed in place; the groups on the way to the key are copied, so that others may share them.
        value: of the key; a group is joined with the one that is there.

    Raises:
        ConfigError: a value stands where the path needs a group.
    """
    for part in path[:-1]:
        below = tree.get(part, {})
        if isinstance(below, str):
            below = {"name": below}
        if not isinstance(below, dict):
            raise ConfigError(f"{'.'.join(path)}: {part!r} is {below!r} and has no keys below it")
        tree[part] = below = dict(below)
        tree = below
    old = tree.get(path[-1])
    if isinstance(old, Mapping) and isinstance(value, Mapping):
        other = "name" in value and value["name"] != old.get("name", value["name"])
        tree[path[-1]] = dict(value) if other else {**old, **value}
    elif isinstance(old, Mapping) and isinstance(value, str) and old.get("name", value) == value:
        tree[path[-1]] = {**old, "name": value}
    else:
        tree[path[-1]] = value


def format_overrides(tree: Tree) -> str:
    """A tree on one line, as `key=value` would be typed on the command line."""
    return " ".join(f"{key}={value}" for key, value in flatten(tree))
