"""From a freshly loaded model to the weights of a run: the one way that every verb takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from zofo.adapters import check_untrusted_adapter
from zofo.backbone import Backbone, selected
from zofo.errors import RunError, error_context
from zofo.methods import METHODS, MethodConfig
from zofo.models import LoadedModel, load_tensors
from zofo.training.replay_cache import ReplayCache
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
