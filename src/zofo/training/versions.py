"""Installed versions, and everything that a configuration can name."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from zofo.adapters import ADAPTERS
from zofo.embedded import EMBEDDED_DATA, EMBEDDED_MODELS, cache_dir
from zofo.errors import UnknownNameError, ZofoError
from zofo.estimators import ESTIMATORS
from zofo.evaluators import EVALUATORS
from zofo.methods import METHODS
from zofo.noise import MASKS, NOISES
from zofo.objectives import OBJECTIVES, REWARDS
from zofo.plugins import load_plugins, used_packages
from zofo.recipes import recipe_lines
from zofo.rules import RULES
from zofo.tasks import METRICS, load_task, task_names

_PACKAGES = ("zofo", "torch", "transformers", "peft", "datasets", "accelerate", "safetensors", "jinja2", "torchmetrics")
_MISSING = "not installed"
OF_QUANTIZED = ("bitsandbytes", "torchao")
"""Packages that pack weights; they are named where they are installed."""


@functools.cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _MISSING


def environment() -> dict[str, str]:
    """The versions of everything a result depends on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {package: _version(package) for package in _PACKAGES}
    found |= {package: _version(package) for package in OF_QUANTIZED if _version(package) != _MISSING}
    return {**found, **{f"plugin {package}": number for package, number in used_packages().items()}}


def device_fingerprint(device: torch.device) -> dict[str, str]:
    """The versions, and what else the bits depend on: the device, and on a CPU the number of threads."""
    if device.type == "cuda":
        return {**environment(), "device": f"{device.type}, {torch.cuda.get_device_name(device)}"}
    return {**environment(), "device": device.type, "threads": str(torch.get_num_threads())}


def names(kind: str | None = None, more: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Mapping[str, str]]:
    """Everything a configuration can name, by kind, or for one kind, with one line about each.

    `more` are kinds that are not defined here.
    """
    found: dict[str, Callable[[], Mapping[str, str]]] = {
        "models": lambda: dict.fromkeys(EMBEDDED_MODELS, "embedded; fetched once with pip"),
        "tasks": lambda: {name: _about_task(name) for name in task_names()},
        "methods": lambda: {name: getattr(METHODS[name], "paper", "") for name in METHODS},
        "noises": lambda: _first_lines(NOISES),
        "masks": lambda: _first_lines(MASKS),
        "estimators": lambda: _first_lines(ESTIMATORS),
        "rules": lambda: _first_lines(RULES),
        "evaluators": lambda: _first_lines(EVALUATORS),
        "objectives": lambda: _first_lines(OBJECTIVES),
        "rewards": lambda: _first_lines(REWARDS),
        "adapters": lambda: _first_lines(ADAPTERS),
        "metrics": lambda: {name: METRICS[name].about for name in METRICS},
        "recipes": recipe_lines,
        "plugins": lambda: {f"{p.package}: {p.name}": p.error or f"version {p.version}" for p in load_plugins()},
        **{name: functools.partial(dict, entries) for name, entries in (more or {}).items()},
    }
    if kind is not None and kind not in found:
        raise UnknownNameError("kind", kind, found)
    return {name: entries() for name, entries in found.items() if kind in (None, name)}


def _first_lines(registry: Any) -> dict[str, str]:
    return {name: (registry[name].__doc__ or "").strip().partition("\n")[0] for name in registry}


def _about_task(name: str) -> str:
    """The description of a task; for an invalid file, as a plugin may have it, what is wrong with it."""
    try:
        return load_task(name).about
    except ZofoError as error:
        return f"cannot be used: {error.message}"


def describe_environment() -> dict[str, str]:
    """Versions, device and folders."""
    from accelerate import PartialState

    return {
        **environment(),
        "device": str(PartialState().device),
        "threads": str(torch.get_num_threads()),
        "cache": str(cache_dir()),
        "embedded data": ", ".join(EMBEDDED_DATA),
    }
