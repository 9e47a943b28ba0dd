"""What is installed here, and everything that a configuration can name."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from zofo.adapters import ADAPTERS
from zofo.embedded import EMBEDDED_DATA, EMBEDDED_MODELS, cache_dir
from zofo.errors import UnknownNameError
from zofo.estimators import ESTIMATORS
from zofo.evaluators import EVALUATORS
from zofo.methods import METHODS
from zofo.noise import MASKS, NOISES
from zofo.objectives import OBJECTIVES
from zofo.plugins import load_plugins, loaded_packages
from zofo.recipes import recipe_lines
from zofo.rules import RULES
from zofo.tasks import METRICS, load_task, task_names

_PACKAGES = ("zofo", "torch", "transformers", "peft", "datasets", "accelerate", "safetensors", "jinja2", "torchmetrics")


def environment() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, **{f"plugin {package}": number for package, number in loaded_packages().items()}}


def device_fingerprint(device: torch.device) -> dict[str, str]:
    """The same, and what else the bits of a result depend on: the device, and on a CPU the number of threads.

    Args:
        device: where the model is.
    """
    if device.type == "cuda":
        return {**environment(), "device": f"{device.type}, {torch.cuda.get_device_name(device)}"}
    return {**environment(), "device": device.type, "threads": str(torch.get_num_threads())}


def names(kind: str | None = None, more: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Mapping[str, str]]:
    """Everything a configuration can name, by kind, with one line on each.

    Args:
        kind: only this one.
        more: kinds that are not known here.

    Raises:
        UnknownNameError: no such kind.
    """
    found: dict[str, Mapping[str, str]] = {
        "models": dict.fromkeys(EMBEDDED_MODELS, "embedded; fetched once with pip"),
        "tasks": {name: load_task(name).about for name in task_names()},
        "methods": {name: METHODS[name].paper for name in METHODS},
        "noises": _first_lines(NOISES),
        "masks": _first_lines(MASKS),
        "estimators": _first_lines(ESTIMATORS),
        "rules": _first_lines(RULES),
        "evaluators": _first_lines(EVALUATORS),
        "objectives": _first_lines(OBJECTIVES),
        "adapters": _first_lines(ADAPTERS),
        "metrics": {name: METRICS[name].about for name in METRICS},
        "recipes": recipe_lines(),
        "plugins": {plugin.name: plugin.error or f"{plugin.package} {plugin.version}" for plugin in load_plugins()},
        **(more or {}),
    }
    if kind is None:
        return found
    if kind not in found:
        raise UnknownNameError("kind", kind, found)
    return {kind: found[kind]}


def _first_lines(registry: Any) -> dict[str, str]:
    return {name: (registry[name].__doc__ or "").strip().splitlines()[0] for name in registry}


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
