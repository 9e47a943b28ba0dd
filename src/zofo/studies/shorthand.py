"""The short forms of a study's file, spelled out: dotted keys, names alone, trees beside other keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zofo.errors import ConfigError, nearest
from zofo.overrides import Tree, as_mapping, merge_trees

GROUPS = ("method", "model", "problem", "task", "training")
"""What a run's tree can hold: a task with a model, or a problem."""

SHORT_FORMS = {"models": "model", "tasks": "task"}
"""Sections in which a name alone stands for the model or the task of that name."""

_OF_CONTENDER = ("budget", "start", "seeds", "setting_of")


def as_written(given: Any) -> Any:
    """A study as its classes read it, from its file: `sst2:` is the task of that name, and what stands beside `trials`,
    `methods` or `budget` is a tree.

    Args:
        given: as YAML gives it; not changed, and given back where it is no mapping.

    Raises:
        ConfigError: names the key.
    """
    if not isinstance(given, Mapping):
        return given
    made = dict(given)
    if "base" in made:
        made["base"] = _tree_of(made["base"], "base")
    for section, group in SHORT_FORMS.items():
        if section in made:
            made[section] = _levels(spelled_out(as_mapping(made[section], section), group), section)
    if "axes" in made:
        axes = as_mapping(made["axes"], "axes")
        made["axes"] = {name: _levels(values, f"axes.{name}") for name, values in axes.items()}
    if "starts" in made:
        starts = as_mapping(made["starts"], "starts")
        made["starts"] = {name: _start(value, f"starts.{name}") for name, value in starts.items()}
    if "methods" in made:
        methods = as_mapping(made["methods"], "methods")
        made["methods"] = {name: _contender(value, f"methods.{name}") for name, value in methods.items()}
    if isinstance(made.get("figure"), bool):
        made["figure"] = {} if made["figure"] else None
    return made


def distinct(seeds: Any, where: str) -> Any:
    """Seeds as a file gives them, of which each must be a whole number, and another one: `true` would count as 1."""
    given = seeds if isinstance(seeds, list) else []
    for seed in given:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ConfigError(f"{where}: {seed!r} is no whole number", "write for example seeds: [0, 1, 2]")
        if given.count(seed) > 1:
            raise ConfigError(
                f"{where}: {seed} is given twice, which would count one run as two", "give each seed once"
            )
    return seeds


def _tree_of(value: Any, where: str, own: tuple[str, ...] = ()) -> Tree:
    """A tree of a run with its dotted keys nested; a group that no run has is refused."""
    tree = merge_trees(as_mapping(value, where))
    for key in tree:
        if key not in GROUPS:
            near = nearest(key, [*GROUPS, *own])
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join([*GROUPS, *own])}"
            raise ConfigError(f"{where}.{key}: unknown key", hint)
    return tree


def spelled_out(section: Mapping[Any, Any], group: str) -> Tree:
    """The section with the tree that a name alone stands for."""
    return {str(name): {group: {"name": str(name)}} if tree is None else tree for name, tree in section.items()}


def _levels(value: Any, where: str) -> Tree:
    """The values of an axis."""
    made: Tree = {}
    for name, content in as_mapping(value, where).items():
        at = f"{where}.{name}"
        content = as_mapping(content, at)
        methods = as_mapping(content.pop("methods", None), f"{at}.methods")
        made[name] = {
            "tree": _tree_of(content, at, ("methods",)),
            "methods": {one: None if t is None else _tree_of(t, f"{at}.methods.{one}") for one, t in methods.items()},
        }
    return made


def _contender(value: Any, where: str) -> Tree:
    content = as_mapping(value, where)
    made: Tree = {key: content.pop(key) for key in _OF_CONTENDER if key in content}
    if "seeds" in made:
        distinct(made["seeds"], f"{where}.seeds")
    trials = content.pop("trials", None)
    trials = [] if trials is None else trials
    if not isinstance(trials, list):
        hint = "write for example trials: [{method.rule.lr: 1e-3}, {method.rule.lr: 1e-4}]"
        raise ConfigError(f"{where}.trials: expected a list of settings, got {trials!r}", hint)
    made["trials"] = [_tree_of(trial, f"{where}.trials") for trial in trials]
    return {**made, "tree": _tree_of(content, where, ("trials", *_OF_CONTENDER))}


def _start(value: Any, where: str) -> Tree:
    content = as_mapping(value, where)
    made: Tree = {key: content.pop(key) for key in ("budget",) if key in content}
    return {**made, "tree": _tree_of(content, where, ("budget",))}
