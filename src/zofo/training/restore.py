"""From a freshly loaded model to the weights of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from zofo.adapters import AdapterConfig, check_untrusted_adapter
from zofo.backbone import Backbone, selected
from zofo.errors import RunError
from zofo.methods import METHODS
from zofo.models import LoadedModel, load_tensors
from zofo.noise import Gaussian
from zofo.trajectory.replay import check_replayable


def model_hash(loaded: LoadedModel) -> str:
    """SHA-256 of all weights of a freshly loaded model."""
    return Backbone(loaded.model, Gaussian(), list(selected(loaded.model))).fingerprint()


def load_weights(model: Any, path: Path) -> None:
    """Write the tensors of a safetensors file into a model.

    Raises:
        RunError: it cannot be read, or holds a tensor that the model lacks, of another shape, or not finite.
    """
    own = selected(model)
    for name, tensor in load_tensors(path).items():
        if name not in own or own[name].shape != tensor.shape:
            raise RunError(f"{path}: {name!r} does not fit the model")
        own[name].data.copy_(tensor)


def weights_cover_trajectory(path: Path, model: Any, header: Mapping[str, Any]) -> bool:
    """Whether a file of weights is there and holds every tensor that a trajectory moves, as runs in half precision save
    them: then a replay would write nothing that the file does not.

    Args:
        path: of the safetensors file.
        model: the base model.
        header: of the trajectory.

    Raises:
        RunError: the file cannot be read, or the trajectory could not be replayed.
        ConfigError: it selects what the model does not have.
    """
    if not path.is_file():
        return False
    check_replayable(header)
    moved = selected(model, header["select"])
    try:
        with safe_open(path, framework="pt") as file:
            return set(moved) <= set(file.keys())
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read {str(path)!r}: {str(error)[:200]}") from error


def refuse_strange_adapter(folder: Path, method: Any) -> None:
    """Refuse the adapter of a run that zofo could not have written: a run folder may come from anyone, and peft's
    configurations can name modules to import, files to read and sizes to allocate.

    Args:
        folder: of the adapter.
        method: the configuration of the run's method; what a method or an adapter makes that is registered by the
            user's own code is not looked at.

    Raises:
        RunError: names the folder, and the option or the tensor.
    """
    asked = getattr(method, "adapter", None)
    makers = [METHODS[method.name], *([asked.kind] if isinstance(asked, AdapterConfig) else [])]
    if any(maker.__module__.partition(".")[0] != "zofo" for maker in makers):
        return
    try:
        check_untrusted_adapter(folder)
    except RunError as error:
        error.message = f"{str(folder)!r}: {error.message}"
        raise
