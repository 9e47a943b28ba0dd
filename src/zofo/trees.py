"""Configuration in written form: YAML, `key=value`, and merging of trees.

YAML is read as plain values only, within limits, without duplicate keys or ambiguous numbers.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from zofo.errors import ConfigError, error_context
from zofo.filesystem import check_not_special

_EXAMPLE = "write for example training.steps=20; a file or a recipe stands first, and there is only one"

Tree = dict[str, Any]
"""What a run is configured by, or a part of it, as YAML gives it."""


def merge_trees(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Merge trees key by key; the last one wins.

    A key may be nested or dotted: `{method: {rule: {lr: 1}}}` is `{method.rule.lr: 1}`. A name is added to a group that
    has none, and another name replaces the group with all its options.

    Args:
        trees: parsed YAML; not modified.

    Raises:
        ConfigError: a key has a value, and keys below it in a later tree.
    """
    tree: dict[str, Any] = {}
    for one in trees:
        _lay(tree, (), one)
    return tree


def _lay(tree: dict[str, Any], path: Sequence[str], content: Mapping[Any, Any]) -> None:
    for key, value in sorted(content.items(), key=lambda item: item[0] != "name"):  # the name determines the rest
        whole = [*path, *str(key).split(".")]
        if isinstance(value, Mapping) and value and all(isinstance(below, str) for below in value):
            _lay(tree, whole, value)
        elif path and whole == [*path, "name"] and isinstance(value, str):
            set_by_path(tree, path, value)
        else:
            set_by_path(tree, whole, value)


def get_by_path(tree: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; a bare name counts as a group with that name; None if there is nothing."""
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
    """The path of keys of an override, and its value, parsed as YAML.

    Args:
        override: `path.to.key=value`. A template, whose braces mean something else in YAML, needs no quotes.

    Raises:
        ConfigError: it has no key, or its value is not YAML, or has a duplicate key.
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
        if template:  # one that begins with a quote
            return keys, text
        tab = _about_tab(error)
        reason = f" that can be read: {tab or error}" if tab or type(error) is ValueError else ""
        raise ConfigError(
            f"{override!r}: the value is not YAML{reason}", "quote it, for example \"method.trainable=['*.29.*']\""
        ) from error


def split_arguments(arguments: Sequence[str] | None, more: Sequence[str] = ()) -> tuple[str | None, list[str]]:
    """The arguments of a command: the leading file or recipe, if any, and the overrides; then `more`."""
    given = list(arguments or [])
    file = given.pop(0) if given and "=" not in given[0] else None
    return file, [*given, *more]


def set_by_path(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set one key. A name is added to options without one; another name replaces the group.

    Args:
        tree: modified in place; groups on the path are copied, so that others may share them.
        value: value of the key; a group is merged with the existing one.

    Raises:
        ConfigError: the path needs a group where there is a value.
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


def without(tree: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """A copy of a tree without one key."""
    below = tree.get(path[0])
    if len(path) > 1:
        return {**tree, path[0]: without(below, path[1:])} if isinstance(below, Mapping) else dict(tree)
    return {key: value for key, value in tree.items() if key != path[0]}


def format_overrides(tree: Tree) -> str:
    """A tree on one line, as `key=value` on the command line."""
    return " ".join(f"{key}={value}" for key, value in flatten(tree))


def format_yaml(tree: Mapping[str, Any], letters: bool = True) -> str:
    """A tree as YAML, with keys in order; non-ASCII `letters` are kept."""
    return str(yaml.dump(dict(tree), Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=letters))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or has a duplicate key.
    """
    try:
        check_not_special(path)
        with error_context(str(path)):
            return parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2020-99-99 is a ValueError
        raise ConfigError(f"{path}: not YAML: {_about_tab(error) or ' '.join(str(error).split())}") from error


def _about_tab(error: Exception) -> str | None:
    """Where a tab is used instead of spaces, if that is what is wrong."""
    if not isinstance(error, yaml.MarkedYAMLError) or "'\\t'" not in (error.problem or "") or not error.problem_mark:
        return None
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1} holds a tab: YAML indents by spaces, put some in its place"


def parse_yaml(text: str) -> Any:
    """Parse a YAML text: plain values only, at most 64 levels deep and with at most 1,000,000 values.

    Both are counted before values are built. A referenced value counts at each reference, so that nested references
    cannot exhaust the memory.

    Raises:
        YAMLError: it is not YAML.
        ValueError: it is larger or deeper, or holds a number of more than 400 characters.
        ConfigError: a key is given twice in the same group; names the keys that lead to it, and both lines.
    """
    return copy.deepcopy(_parsed(text)) if len(text) < _SHORT else _parsed.__wrapped__(text)


_SHORT = 1 << 14  # a text that is remembered: tasks, recipes and overrides are read again and again


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    loader = _Plain(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        _check_unique_keys(node, (), set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


_DEEPEST, _LONGEST_NUMBER = 64, 400
_MOST = 1_000_000  # maximum values in a file; a referenced value counts at each reference


class _Plain(yaml.SafeLoader):
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
            _check_plain_number(node.value)
        return node


def _check_plain_number(number: str) -> None:
    """ValueError for a number that YAML 1.1 reads otherwise than people do: in base 60 or 8, without `_`, or as 0."""
    base = "base 60" if ":" in number else "base 8" if re.fullmatch(r"[-+]?0[0-7_]+", number) else None
    if base:
        raise ValueError(f"{number} is a number in {base} to YAML: write it in quotes, or another way")
    if "_" in number:
        plain = number.replace("_", "")
        raise ValueError(f"{number} is the number {plain} to YAML: write it so, or in quotes where it is a text")
    if is_lost(number):
        raise ValueError(f"{number} is too small a number, which would be read as 0")


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values there are; ValueError for too many, as references to references make them, or without end."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MOST  # until it is complete: a value that contains itself never ends
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    if known[id(node)] >= _MOST:
        raise ValueError("its references make it larger than any configuration")
    return known[id(node)]


def is_lost(text: str) -> bool:
    """Whether a text is a number that is not 0, and that a float can only hold as 0."""
    found = re.fullmatch(r"\s*[-+]?([\d_.]+)(e[-+]?\d+)?\s*", text, re.IGNORECASE)
    try:
        return found is not None and bool(re.search("[1-9]", found[1])) and float(text) == 0
    except ValueError:
        return False


def _check_unique_keys(node: Node, path: tuple[str, ...], seen: set[int]) -> None:
    if id(node) in seen:  # an alias of what was looked at, or of what it stands in
        return
    seen.add(id(node))
    if isinstance(node, SequenceNode):
        for number, item in enumerate(node.value, start=1):
            _check_unique_keys(item, (*path, str(number)), seen)
    elif isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (first := lines.get(key.value)) is not None:
                where = f"in lines {first} and {line}" if first != line else f"in line {line}"
                raise ConfigError(
                    f"{'.'.join((*path, key.value))}: given twice, {where}, of which only the second would count",
                    "keep one of them",
                )
            lines[key.value] = line
            _check_unique_keys(value, (*path, key.value), seen)
