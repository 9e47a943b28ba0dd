"""Trees of keys laid over one another: how a study writes what a method, a task or a trial changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zofo.errors import ConfigError
from zofo.training.config import set_key

Tree = dict[str, Any]
"""What a run is configured by, or a part of it, as YAML gives it."""


def laid_over(*trees: Mapping[str, Any]) -> dict[str, Any]:
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
            set_key(tree, path, value)
        else:
            set_key(tree, whole, value)


def value_at(tree: Mapping[str, Any], key: str) -> Any:
    """What stands at a dotted key; a bare name stands for a group with that name; None where nothing does."""
    found: Any = tree
    for part in key.split("."):
        if isinstance(found, str):
            found = {"name": found}
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a tree, dotted, with its value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """A group of keys as YAML gives it, its own keys as text; nothing at all is an empty one.

    Raises:
        ConfigError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected keys with values, got {value!r}")
    return {str(key): below for key, below in value.items()}
