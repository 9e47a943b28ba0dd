"""From a freshly loaded model to the weights of a run, the one way that every verb takes; and what a replay led to."""

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
    """Turn the weights that a run began with into those that it trained.

    If the file of weights holds every tensor that the trajectory moves, as for half precision, it is loaded; else the
    trajectory is replayed.

    Args:
        loaded: the model, with the weights that the run began with.
        trajectory: of the backbone; None where it did not move.
        weights: the safetensors file of weights that were trained by first-order steps; it need not be there.
        steps: how many of the trajectory; all by default.
        summed: whether the updates are added up and written at once.
        cache: where an earlier replay may have kept what it led to.

    Returns:
        The tensors that a replay has moved; None where none was made here.

    Raises:
        RunError: the trajectory cannot be replayed; or the file cannot be read, or holds a tensor that the model lacks,
            of another shape, or not finite.
        ConfigError: the trajectory selects what the model does not have.
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
    """Whether a file of weights is there and holds every tensor that a trajectory moves."""
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
    """Raises RunError for the adapter of a run that zofo could not have written: a run folder may come from anyone, and
    peft's configurations can name modules to import, files to read and sizes to allocate.

    What a method or an adapter of the user's own code makes is not looked at.
    """
    makers = [METHODS[method.name], *(adapter.kind for adapter in method.adapter_configs)]
    if any(maker.__module__.partition(".")[0] != "zofo" for maker in makers):
        return
    with error_context(repr(str(folder)), RunError):
        check_untrusted_adapter(folder)


class ReplayCache:
    """The weights that a trajectory leads to, as a file that is there once it has been replayed.

    It is as large as the weights that the trajectory moves, and no part of the run: without it, or with one that does
    not fit, everything is replayed again.

    Args:
        folder: of such files, which exists.
        steps: how many steps of the trajectory; None for all.
        origin: what the weights follow from, such as hashes of the base model and the trajectory.
    """

    def __init__(self, folder: Path, steps: int | None, origin: Mapping[str, str]) -> None:
        self._file = folder / ("weights.safetensors" if steps is None else f"weights-{steps}.safetensors")
        self._origin = dict(origin)

    def load_or_replay(self, model: Any, replay: Callable[[], Backbone]) -> None:
        """Bring the freshly loaded base model to where the trajectory leads, by `replay` where nothing is kept.

        Of several processes that come at once, one replays, and the others wait for it.
        """
        if self._taken(model):
            return
        with ExitStack() as stack:
            with suppress(OSError, NotImplementedError):  # a folder that is only read: nobody is waited for
                stack.enter_context(FileLock(temp_path(self._file).with_suffix(".lock")))
            if not self._taken(model):
                self._keep(replay())

    def _taken(self, model: Any) -> bool:
        """Write the weights into the model, if they are there, whole, and of the same origin; else it is as it was."""
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
        """Write the file, whole or not at all, if the disk has room."""
        part = temp_path(self._file)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.tensors.items()}
        try:
            save_file(tensors, part, metadata={**self._origin, "sha256": fingerprint(tensors)})
            os.replace(part, self._file)
        except (OSError, SafetensorError):  # the next run replays again
            with suppress(OSError):
                part.unlink(missing_ok=True)
