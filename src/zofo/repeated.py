"""Keys that stand twice in one group of a YAML file, of which a parser keeps the last without a word."""

from __future__ import annotations

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from zofo.errors import ConfigError


def refuse_repeated_keys(text: str) -> None:
    """Find a key that is given twice in the same group.

    Args:
        text: YAML that can be parsed.

    Raises:
        ConfigError: names the keys that lead to it, and both lines.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        _look(root, (), set())


def _look(node: Node, path: tuple[str, ...], seen: set[int]) -> None:
    if id(node) in seen:  # an alias of what was looked at, or of what it stands in
        return
    seen.add(id(node))
    if isinstance(node, SequenceNode):
        for number, item in enumerate(node.value, start=1):
            _look(item, (*path, str(number)), seen)
    elif isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ConfigError(
                    f"{'.'.join((*path, key.value))}: given twice, in lines {lines[key.value]} and {line}, of which "
                    "only the second would count",
                    "keep one of them",
                )
            lines[key.value] = line
            _look(value, (*path, key.value), seen)
