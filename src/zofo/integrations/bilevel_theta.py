"""Save and load the base model of a bilevel trainer, which has moved, in the folder of its adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from zofo.adapters import own_state_dict
from zofo.config import read_json_object
from zofo.errors import CheckpointError
from zofo.methods.bilevel.bilevel import Bilevel
from zofo.models import save_tensors

BASE = "base_model"
"""The folder that holds it."""

_REST = "theta.safetensors"


def save_theta(method: Bilevel, folder: Path) -> None:
    """Save the moved model without its adapters as a transformers folder."""
    model: Any = method.model
    model.save_pretrained(folder / BASE, state_dict=own_state_dict(model))
    files = _files_of(folder / BASE)
    left = {name: home for name, home in _theta(method).items() if name not in files}
    if left:  # of architectures whose files have other tensors than the model
        save_tensors(left, folder / _REST)


def name_base(adapter: Path, base: str) -> None:
    """Record in the folder of an adapter which model it belongs to."""
    path = adapter / "adapter_config.json"
    content = {**read_json_object(path, CheckpointError), "base_model_name_or_path": base}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _theta(method: Bilevel) -> dict[str, torch.Tensor]:
    return {} if method.backbone is None else dict(method.backbone.tensors)


def _files_of(folder: Path) -> dict[str, Path]:
    """The file of each tensor in a transformers folder."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


@torch.no_grad()
def load_theta(method: Bilevel, folder: Path) -> None:
    """Load the tensors that moved; raises CheckpointError if one is missing or has another shape."""
    files = _files_of(folder / BASE)
    if (folder / _REST).is_file():
        with safe_open(folder / _REST, "pt") as file:
            files |= dict.fromkeys(file.keys(), folder / _REST)
    for name, home in _theta(method).items():
        if name not in files:
            raise CheckpointError(f"{str(folder)!r} lacks the tensor {name!r} of the model", "name another checkpoint")
        with safe_open(files[name], "pt") as file:
            kept = file.get_tensor(name)
        if kept.shape != home.shape or kept.dtype != home.dtype:
            raise CheckpointError(f"the tensor {name!r} in {str(folder)!r} is of another model", "give the same model")
        home.copy_(kept)
