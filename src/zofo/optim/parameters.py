"""What an optimizer gets to move: a module, or parameters as for a torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zofo.errors import ConfigError
from zofo.models import unwrapped

Movable = nn.Module | Iterable[Any]
"""A module, or parameters, (name, parameter) pairs, or groups of them."""

_KNOWN = {"params", "lr", "initial_lr", "weight_decay", "param_names"}


@dataclass(frozen=True)
class Given:
    """A module whose parameters move, and how their groups differ.

    Args:
        module: the given one, or one created to hold the parameters.
        groups: the given groups, each with its parameters; None for a module.
        decaying: names that weight decay applies to; None if the types of the modules decide.
        lr: learning rate of all groups; None if not given.
        weight_decay: weight decay of those that decay; None if not given.
    """

    module: nn.Module
    groups: list[dict[str, Any]] | None = None
    decaying: frozenset[str] | None = None
    lr: float | None = None
    weight_decay: float | None = None


def given(movable: Movable) -> Given:
    """The module and groups to move.

    Args:
        movable: a module, possibly compiled or wrapped by torch; or the argument of a torch optimizer.

    Raises:
        ConfigError: it is empty, something else, or has groups with different learning rates.
    """
    if isinstance(movable, nn.Module):
        return Given(whole(unwrapped(movable)))
    if isinstance(movable, torch.Tensor):
        raise ConfigError("the parameters are one tensor", "give the module, MeZO(model), or a list of parameters")
    if not isinstance(movable, Iterable) or isinstance(movable, str):
        what = f"what is to move is {type(movable).__name__}, and no module"
        raise ConfigError(what, "give the module, MeZO(model), or its parameters")
    entries = list(movable)
    if not entries:
        raise ConfigError("no parameters were given", "give the module: MeZO(model)")
    groups = [dict(entry) if isinstance(entry, dict) else None for entry in entries]
    listed = [group for group in groups if group is not None]
    if listed and len(listed) != len(groups):
        raise ConfigError("parameters and groups of parameters are mixed", "give either of them")
    return _of_groups(listed or [{"params": entries}])


_OF_SHARDS = ("device_mesh", "ds_id")  # attributes of tensors that FSDP or DeepSpeed has cut


def whole(module: nn.Module) -> nn.Module:
    """The module; raises ConfigError if its tensors are sharded, as by FSDP."""
    wrapped = any("_fsdp_wrapped_module" in name for name, _ in module.named_modules())
    for name, parameter in module.named_parameters():
        if wrapped or any(hasattr(parameter, of_shards) for of_shards in _OF_SHARDS):
            raise ConfigError(
                f"{name!r} is cut into pieces over processes, as by FSDP, and each step writes whole tensors",
                "give the model as it was loaded; each process has all of it, and examples are shared out",
            )
    return module


def _of_groups(groups: list[dict[str, Any]]) -> Given:
    holder, decaying = nn.Module(), set()
    rates, decays = set(), set()
    for group in groups:
        if "params" not in group:
            raise ConfigError("a group of parameters has no 'params'", "give the module: MeZO(model)")
        if unknown := sorted(group.keys() - _KNOWN):
            raise ConfigError(
                f"a group of parameters has {unknown[0]!r}, which cannot differ between groups",
                f"groups have params and weight_decay; give {unknown[0]} to the optimizer itself",
            )
        names = _hold(holder, group)
        rates |= {float(group["lr"])} if "lr" in group else set()
        decay = float(group.get("weight_decay", math.nan))
        decays |= {decay} - {0.0} if decay == decay else set()
        decaying |= set(names) if decay != 0 else set()
    if len(rates) > 1 or (rates and any("lr" not in group for group in groups)):
        raise ConfigError(
            "groups of parameters have learning rates of their own, but a zeroth-order step moves all tensors along "
            "one direction",
            "give one lr to the optimizer itself, or move fewer tensors",
        )
    if len(decays) > 1:
        raise ConfigError(
            f"groups of parameters have {len(decays)} values of weight_decay other than 0", "give all of them the same"
        )
    return Given(holder, groups, frozenset(decaying), *(next(iter(found), None) for found in (rates, decays)))


def _hold(holder: nn.Module, group: dict[str, Any]) -> list[str]:
    """Put the parameters of a group into a module, under their names or numbers; returns the names."""
    entries = group["params"]
    entries = [entries] if isinstance(entries, torch.Tensor) else list(entries)
    names, tensors = _named(entries, group.get("param_names"), len(holder._parameters))
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_leaf:
            raise ConfigError(f"{name!r} is no parameter but {type(tensor).__name__}", "give the module: MeZO(model)")
        if name in holder._parameters or any(tensor is other for other in holder._parameters.values()):
            raise ConfigError(f"{name!r} is given twice", "give every parameter once")
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, tensor.requires_grad)
        holder._parameters[name] = parameter  # whose name may have dots
    group["params"] = [holder._parameters[name] for name in names]
    return names


def _named(entries: Sequence[Any], names: Any, first: int) -> tuple[list[str], list[Any]]:
    if names is not None:
        return list(names), list(entries)
    if all(isinstance(entry, tuple) for entry in entries):
        return [str(name) for name, _ in entries], [tensor for _, tensor in entries]
    return [str(first + number) for number in range(len(entries))], list(entries)
