"""Restore the weights of a run on a freshly loaded model: the one path for every command; and a cache of replays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from zofo.adapters import check_untrusted_adapter
from zofo.backbone import Backbone, fingerprint, selected
from zofo.errors import RunError, error_context
from zofo.filesystem import temp_path
from zofo.methods import METHODS, MethodConfig
from zofo.models import LoadedModel, load_tensors
from zofo.trajectory.format import Trajectory
from zofo.trajectory.replay import parts_of, replay


def restore_weights(
    loaded: LoadedModel,
    trajectory: Trajectory | None,
    weights: Path,
    steps: int | None = None,
    *,
    summed: bool,
    cache: ReplayCache | None = None,
) -> Backbone | None:
    """Change the initial weights of a run into the trained ones.

    If the file of weights has every tensor that the trajectory moves, as in half precision, it is loaded; otherwise the
    trajectory is replayed.

    Args:
        loaded: the model, with the initial weights of the run.
        trajectory: trajectory of the backbone; None if it did not move.
        weights: safetensors file of weights trained by first-order steps; may be absent.
        steps: number of steps to replay; all by default.
        summed: whether to add updates up and write them at once.
        cache: a cache of earlier replays.

    Returns:
        The tensors that a replay has moved; None if there was no replay.

    Raises:
        RunError: the trajectory cannot be replayed; or the file cannot be read, or has a tensor that the model lacks,
            with another shape, or with non-finite values. ConfigError: the trajectory selects tensors that the model
            does not have.
    """
    moved = None
    if trajectory is not None and not _covers(weights, loaded.model, trajectory):

        def replayed() -> Backbone:
            return replay(loaded.model, trajectory, steps, summed)

        if cache is None:
            moved = replayed()
        else:
            cache.load_or_replay(loaded.model, replayed)
    if weights.is_file():
        own = selected(loaded.model)
        for name, tensor in load_tensors(weights).items():
            if name not in own or own[name].shape != tensor.shape:
                raise RunError(f"{weights}: {name!r} does not fit the model")
            own[name].data.copy_(tensor)
    return moved


def _covers(weights: Path, model: Any, trajectory: Trajectory) -> bool:
    """Whether a file of weights exists and has every tensor that a trajectory moves."""
    if not weights.is_file():
        return False
    parts_of(trajectory.header)  # refuses what could not be replayed
    moved = selected(model, trajectory.header["trainable"])
    try:
        with safe_open(weights, framework="pt") as file:
            return set(moved) <= set(file.keys())
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read {str(weights)!r}: {str(error)[:200]}") from error


def check_run_adapter(folder: Path, method: MethodConfig) -> None:
    """Raise RunError for an adapter in a run folder that zofo cannot have written.

    A run folder may come from anyone, and peft's configurations can name modules to import, files to read and sizes to
    allocate. Adapters and methods of the user's own code are not checked.
    """
    makers = [METHODS[method.name], *(adapter.kind for adapter in method.adapter_configs)]
    if any(maker.__module__.partition(".")[0] != "zofo" for maker in makers):
        return
    with error_context(repr(str(folder)), RunError):
        check_untrusted_adapter(folder)


class ReplayCache:
    """The weights that a trajectory leads to, saved to a file after the first replay.

    It is as large as the weights that the trajectory moves, and not part of the run: if it is missing or does not
    match, the trajectory is replayed again.

    Args:
        folder: existing folder of such files.
        steps: number of steps of the trajectory; None for all.
        origin: everything that determines the weights, such as hashes of the base model and the trajectory.
    """

    def __init__(self, folder: Path, steps: int | None, origin: Mapping[str, str]) -> None:
        self._file = folder / ("weights.safetensors" if steps is None else f"weights-{steps}.safetensors")
        self._origin = dict(origin)

    def load_or_replay(self, model: Any, replay: Callable[[], Backbone]) -> None:
        """Restore the weights of a freshly loaded base model from the file, or by `replay` if there is none.

        If several processes call this at once, one replays, and the others wait.
        """
        if self._taken(model):
            return
        with ExitStack() as stack:
            with suppress(OSError, NotImplementedError):  # a folder that is only read: nobody is waited for
                stack.enter_context(FileLock(temp_path(self._file).with_suffix(".lock")))
            if not self._taken(model):
                self._keep(replay())

    def _taken(self, model: Any) -> bool:
        """Write the weights into the model if they are complete and of the same origin; otherwise it is unchanged."""
        own = selected(model)
        with ExitStack() as stack:
            try:
                file: Any = stack.enter_context(safe_open(self._file, framework="pt"))
                # mapped, and read when they are used: never more than one beside those of the model
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}
                if any(kinds.get(name) != (tensor.shape, tensor.dtype) for name, tensor in tensors.items()):
                    return False
                if file.metadata() != {**self._origin, "sha256": fingerprint(tensors)}:
                    return False
            except (OSError, SafetensorError, ValueError, RuntimeError):
                return False
            with torch.no_grad():  # of the same open file, whatever has taken its name since
                for name, tensor in tensors.items():
                    own[name].copy_(tensor)
        return True

    def _keep(self, backbone: Backbone) -> None:
        """Write the file atomically, if the disk has room."""
        part = temp_path(self._file)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.tensors.items()}
        try:
            save_file(tensors, part, metadata={**self._origin, "sha256": fingerprint(tensors)})
            os.replace(part, self._file)
        except (OSError, SafetensorError):  # the next run replays again
            with suppress(OSError):
                part.unlink(missing_ok=True)
