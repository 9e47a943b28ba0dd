"""The files of a trainer's checkpoint beside its weights: JSON, and safetensors for large tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from zofo.config import read_json_object
from zofo.errors import CheckpointError

OPTIMIZER, TENSORS, SCHEDULER = "optimizer.json", "optimizer.safetensors", "scheduler.json"


def write_json(path: Path, state: Mapping[str, Any]) -> None:
    """Write JSON; raises CheckpointError for anything else, such as a scheduler with objects in its state."""
    try:
        text = json.dumps(state)
    except TypeError as error:
        raise CheckpointError(
            f"the state for {str(path)!r} cannot be written as JSON: {error}", "use another lr_scheduler_type"
        ) from error
    path.write_text(text + "\n", encoding="utf-8")


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the tensors of an optimizer; no file if there are none."""
    if tensors:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)


def read_optimizer(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read the files of an optimizer.

    Raises:
        CheckpointError: they are missing, or are not JSON.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {str(folder)!r}", "name a checkpoint, such as OUTPUT/checkpoint-500")
    if not (folder / OPTIMIZER).is_file():
        raise CheckpointError(
            f"{str(folder)!r} holds no {OPTIMIZER}, so that its steps were made by another trainer, or it was "
            "saved with save_only_model",
            "load its weights with from_pretrained, and train without resume_from_checkpoint",
        )
    tensors = load_file(folder / TENSORS) if (folder / TENSORS).is_file() else {}
    return read_json_object(folder / OPTIMIZER, CheckpointError), tensors
