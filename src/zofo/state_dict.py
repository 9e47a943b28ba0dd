"""The state of a method between steps, besides theta, as JSON values and tensors: the content of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from zofo.displacement import Displacement, Key
from zofo.errors import CheckpointError


@dataclass
class StateDict:
    """JSON values and tensors by name, with named parts.

    Args:
        values: any JSON.
        tensors: tensors by name; may be those in use, and are only read.
        files: safetensors files with the tensors of some parts, by the part's name, each read when its part is
            requested: for more than fits into memory. They may be those in use, and are valid until the next step.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def put(self, name: str, part: StateDict) -> StateDict:
        """Add a part under a name, and return the whole."""
        self.values[name] = part.values
        self.tensors |= {f"{name}/{key}": tensor for key, tensor in part.tensors.items()}
        self.files |= {f"{name}/{key}": path for key, path in part.files.items()}
        return self

    def put_file(self, name: str, values: dict[str, Any], path: Path) -> StateDict:
        """Add a part whose tensors are in a file, and return the whole."""
        self.values[name], self.files[name] = values, path
        return self

    def part(self, name: str) -> StateDict:
        """The part of that name; from a file, with its own tensors.

        Raises:
            CheckpointError: there is no such part.
            SafetensorError: its file is damaged.
        """
        values = self.values.get(name)
        if not isinstance(values, dict):
            raise CheckpointError(f"the checkpoint lacks {name!r}")
        start = f"{name}/"
        tensors = {key.removeprefix(start): t for key, t in self.tensors.items() if key.startswith(start)}
        if name in self.files:
            tensors |= load_file(self.files[name])
        files = {key.removeprefix(start): path for key, path in self.files.items() if key.startswith(start)}
        return StateDict(values, tensors, files)


def tensors_to_state(tensors: Sequence[torch.Tensor]) -> StateDict:
    """The state of some tensors, in their order."""
    return StateDict({"count": len(tensors)}, {str(number): t.detach() for number, t in enumerate(tensors)})


@torch.no_grad()
def load_tensors_state(tensors: Sequence[torch.Tensor], saved: StateDict) -> None:
    """Copy the state of some tensors into them.

    Raises:
        CheckpointError: it belongs to other tensors.
    """
    for number, tensor in enumerate(tensors):
        found = saved.tensors.get(str(number))
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(f"the checkpoint's tensor {number} is not of shape {list(tensor.shape)}")
        tensor.copy_(found)


def optimizer_to_state(optimizer: torch.optim.Optimizer) -> StateDict:
    """The state of a torch optimizer."""
    state = optimizer.state_dict()
    values: dict[str, dict[str, Any]] = {}
    tensors: dict[str, torch.Tensor] = {}
    for number, kept in state["state"].items():
        values[str(number)] = {name: value for name, value in kept.items() if not isinstance(value, torch.Tensor)}
        tensors |= {f"{number}/{name}": v for name, v in kept.items() if isinstance(v, torch.Tensor)}
    return StateDict({"state": values}, tensors)


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: StateDict) -> None:
    """Load the state of an optimizer into one that was built alike."""
    state: dict[int, dict[str, Any]] = {int(n): dict(kept) for n, kept in saved.values["state"].items()}
    for name, tensor in saved.tensors.items():
        number, key = name.split("/", 1)
        state.setdefault(int(number), {})[key] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def of_displacement(displacement: Displacement) -> list[list[float]]:
    """The terms as JSON: [seed, step, index, coefficient]."""
    return [[*key, coefficient] for key, coefficient in displacement.items()]


def to_displacement(terms: Sequence[Sequence[float]]) -> Displacement:
    """The inverse of `of_displacement`."""
    return Displacement({_key(term): term[3] for term in terms})


def of_numbers(numbers: Mapping[Key, float]) -> list[list[float]]:
    """Numbers by key as JSON, including those that are 0."""
    return [[*key, number] for key, number in numbers.items()]


def to_numbers(terms: Sequence[Sequence[float]]) -> dict[Key, float]:
    """The inverse of `of_numbers`."""
    return {_key(term): term[3] for term in terms}


def _key(term: Sequence[float]) -> Key:
    seed, step, index = (int(number) for number in term[:3])
    return Key(seed, step, index)
