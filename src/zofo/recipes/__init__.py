"""Recipes: packaged configurations for the rows of the papers' tables, each with presets.

A recipe is a YAML file that `zofo train` accepts as a configuration: the keys common to all of its presets, and the
presets, one of which is merged into them. Keys are dotted, as overrides on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from pydantic import Field

from zofo.config import Config, parse_model
from zofo.errors import ConfigError, UnknownNameError
from zofo.trees import get_by_path, parse_yaml

Keys = dict[str, Any]
"""Values of a configuration by their dotted keys."""

OVER = "extends"
"""The key of a preset that names another one, over which it is laid."""


class Recipe(Config):
    """A configuration with presets."""

    about: str
    """What it trains, in a line."""
    table_row: str = ""
    """Which rows of which tables it stands for, and where the paper says how they were made."""
    requires: list[dict[str, str]] = []
    """What whoever takes it must give: one key of each entry, with what to type for it as an example."""
    base: Keys = {}
    """What all presets have in common."""
    presets: dict[str, Keys] = Field(min_length=1)
    """What each sets, by name; the first is taken unless another is asked for. One that says `extends: NAME` sets its
    keys over those of that other preset."""
    search_space: dict[str, list[Any]] = {}
    """What the paper searched: the values of a key. Nothing reads it but the reader."""

    def keys(self, preset: str | None = None) -> Keys:
        """The keys of a preset merged into the common ones.

        Args:
            preset: name of the preset; by default the first.

        Raises:
            UnknownNameError: no such preset.
        """
        name: str | None = next(iter(self.presets)) if preset is None else preset
        layers: dict[str, Keys] = {}
        while name is not None:
            if name not in self.presets:
                raise UnknownNameError("preset", name, self.presets)
            if name in layers:
                message = f"presets.{name}: it extends itself, by way of {', '.join(layers)}"
                raise ConfigError(message, "take one of their `extends` out")
            layers[name] = dict(self.presets[name])
            name = layers[name].pop(OVER, None)
        found = dict(self.base)
        for layer in reversed(layers.values()):
            found.update(layer)
        return found

    def check_required(self, given: Mapping[str, Any]) -> None:
        """Refuse a configuration that lacks what the recipe needs.

        Args:
            given: the tree of a preset, with overrides.

        Raises:
            ConfigError: it lacks something; the message names the keys, of which one must be given.
        """
        for keys in self.requires:
            if not any(get_by_path(given, key) for key in keys):
                raise ConfigError(
                    f"this recipe leaves {' or '.join(keys)} to you, and it is not given",
                    f"add for example {next(iter(keys.values()))}",
                )


def is_recipe(content: Any) -> bool:
    """Whether the content of a YAML file is a recipe instead of a configuration."""
    return isinstance(content, dict) and "presets" in content


def parse_recipe(content: Any) -> Recipe:
    """The content of a YAML file as a recipe.

    Raises:
        ConfigError: it is invalid; the message names the key.
    """
    return parse_model(Recipe, content)


def recipe_names() -> list[str]:
    """Names of the packaged recipes, in order."""
    return sorted(name for name, _ in _packaged())


def recipe_lines() -> dict[str, str]:
    """The packaged recipes with a line about each: what it trains, and which rows of the papers it reproduces."""
    recipes = {name: load_recipe(name) for name in recipe_names()}
    return {name: f"{recipe.about} ({recipe.table_row})" for name, recipe in recipes.items()}


def recipe_text(name: str) -> str:
    """The file of a packaged recipe.

    Raises:
        UnknownNameError: there is none of that name.
    """
    for known, file in _packaged():
        if known == name:
            return str(file.read_text(encoding="utf-8"))
    raise UnknownNameError(
        "recipe", name, recipe_names(), "`zofo list recipes` names them all; a file of your own ends in .yaml"
    )


def load_recipe(name: str) -> Recipe:
    """A packaged recipe.

    Raises:
        UnknownNameError: there is none of that name.
    """
    return parse_recipe(parse_yaml(recipe_text(name)))


def _packaged() -> Iterator[tuple[str, Any]]:
    for file in files(__package__).joinpath("files").iterdir():
        if file.name.endswith(".yaml"):
            yield file.name.removesuffix(".yaml"), file
