"""Checks of a patch before its base model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from zofo.adapters import check_untrusted_adapter
from zofo.adapters.untrusted import WEIGHTS, can_name_a_tensor
from zofo.errors import ConfigError, PatchError, as_ascii, printable
from zofo.export.patch import Patch
from zofo.trajectory.replay import check_replayable


def inspect_parts(patch: Patch, folder: Path) -> None:
    """Check what can be checked of trajectories, weights and adapter without the model: options, names, sizes, numbers.

    Args:
        patch: a patch that was read.
        folder: a new folder for its adapter.

    Raises:
        RunError: a part that zofo cannot have written.
    """
    for stage in patch.stages:
        if stage.trajectory is not None:
            _refuse_header(stage.trajectory.header)
        if stage.weights is not None:
            _refuse_weights(str(stage.header.weights), stage.weights)
    if patch.adapter:
        write_adapter(patch, folder)
        check_untrusted_adapter(folder)


def _refuse_header(header: Mapping[str, Any]) -> None:
    try:
        check_replayable(header)
    except ConfigError as error:  # an unknown noise, rule, mask or evaluator, or an option that it does not have
        hint = None if error.hint is None else printable(error.hint)
        raise PatchError(f"the header of the trajectory: {printable(error.message)}", hint) from error


def write_adapter(patch: Patch, folder: Path) -> None:
    """Write the adapter of a patch as a peft folder."""
    folder.mkdir(parents=True)
    for name, content in patch.adapter.items():
        (folder / name).write_bytes(content)


def _refuse_weights(part: str, content: bytes) -> None:
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise PatchError(f"the part {part!r} holds no tensors: {as_ascii(str(error))}") from error
    if not tensors:
        raise PatchError(f"the part {part!r} holds no tensors: it is empty")
    for name, tensor in tensors.items():
        if not can_name_a_tensor(name):
            raise PatchError(f"the part {part!r}: {as_ascii(name)} cannot be the name of a tensor")
        if tensor.dtype not in WEIGHTS or not tensor.numel():
            raise PatchError(
                f"the part {part!r}: {as_ascii(name)} is {list(tensor.shape)} of {tensor.dtype}, no weights"
            )
        if not tensor.isfinite().all():
            raise PatchError(f"the part {part!r}: {as_ascii(name)} holds numbers that are not finite")
