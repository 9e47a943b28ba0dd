"""A trained model as a plain transformers folder, and its adapter as a peft folder."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zofo.backbone import LoadedModel, ModelConfig
from zofo.backbone.loading import quiet_transformers
from zofo.embedded import EMBEDDED_MODELS
from zofo.errors import RunError


def portable_name(model: str) -> str:
    """What a model is called elsewhere: an embedded name or a Hub id as it is, of a folder only its own name."""
    if model in EMBEDDED_MODELS:
        return model
    path = Path(model)
    return path.resolve().name if path.is_dir() or path.is_absolute() or model.startswith((".", "~")) else model


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write model and tokenizer as `from_pretrained` reads them, without a path of this machine.

    Raises:
        RunError: a weight that is not finite; nothing was written.
    """
    refuse_non_finite(loaded.model)
    model, name = loaded.model, portable_name(loaded.name)
    cached, was = model.config.use_cache, getattr(model.config, "_name_or_path", "")
    model.config.use_cache = True  # training turned it off, and generation is slow without it
    model.config._name_or_path = name
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        mode = (folder / "config.json").stat().st_mode
        for weights in folder.glob("*.safetensors"):  # which only their owner may read, as they are written
            weights.chmod(mode)
    finally:
        model.config.use_cache, model.config._name_or_path = cached, was


def save_adapter(source: Path, model: ModelConfig, folder: Path) -> None:
    """Copy an adapter's folder, with the portable name of its base model in place of a path.

    Args:
        source: the adapter's folder.
        model: its base model, as it was configured.
        folder: where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_bytes(portable_config(source, model))


def portable_config(source: Path, model: ModelConfig) -> bytes:
    """The configuration of an adapter, with the portable name of its base model, and its revision."""
    content: dict[str, Any] = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    content |= {"base_model_name_or_path": portable_name(model.name), "revision": model.revision}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def refuse_non_finite(model: nn.Module) -> None:
    """Raises RunError for a weight that is NaN or infinite; names its tensor."""
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RunError(
                f"the tensor {name!r} holds numbers that are not finite, so nothing was written",
                "the run has diverged; export an earlier state with --best",
            )
