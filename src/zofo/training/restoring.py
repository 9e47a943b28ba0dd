"""From a freshly loaded model to the weights of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zofo.backbone import Backbone, LoadedModel, load_tensors, selected
from zofo.errors import RunError
from zofo.noise import Gaussian


def model_hash(loaded: LoadedModel) -> str:
    """SHA-256 of all weights of a freshly loaded model."""
    return Backbone(loaded.model, Gaussian()).fingerprint()


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
