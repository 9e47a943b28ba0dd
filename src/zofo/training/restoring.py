"""From a freshly loaded model to the weights of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zofo.adapters import AdapterConfig, adapter_content, refuse_strange_options
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


def refuse_strange_adapter(folder: Path, asked: AdapterConfig | None) -> None:
    """Refuse the adapter of a run that zofo could not have written: a run folder may come from anyone, and peft's
    configurations can name modules to import and files to read.

    Args:
        folder: of the adapter.
        asked: what the run's configuration asks for; a kind that the user's own code has registered is not looked at.

    Raises:
        RunError: names the option.
    """
    if asked is None or asked.kind.__module__.partition(".")[0] == "zofo":
        refuse_strange_options(adapter_content(folder), f"the adapter in {str(folder)!r}")
