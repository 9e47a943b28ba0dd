"""What a replay led to, kept beside the run, for the many runs of a study that start from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from zofo.backbone import Backbone, fingerprint, selected
from zofo.training.disk import part_of


class KeptReplay:
    """The weights that a trajectory leads to, as a file that is there once it has been replayed.

    It is only made where its folder exists, since it is as large as the weights that the trajectory moves, and it is
    no part of the run: without it, or with one that does not fit, everything is replayed again.

    Args:
        folder: of such files.
        steps: how many steps of the trajectory; None for all.
        origin: what the weights follow from, such as hashes of the base model and the trajectory.
    """

    def __init__(self, folder: Path, steps: int | None, origin: Mapping[str, str]) -> None:
        self._file = folder / ("weights.safetensors" if steps is None else f"weights-{steps}.safetensors")
        self._origin = dict(origin)

    def take(self, model: Any) -> bool:
        """Write the weights into the freshly loaded base model.

        Returns:
            Whether they are there, whole, and of the same origin; if not, the model is as it was.
        """
        own = selected(model)
        try:
            with safe_open(self._file, framework="pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, RuntimeError):
            return False
        shapes = {name: (own[name].shape, own[name].dtype) for name in tensors if name in own}
        if {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} != shapes:
            return False
        if told != {**self._origin, "sha256": fingerprint(tensors)}:
            return False
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
        return True

    def keep(self, backbone: Backbone) -> None:
        """Write the file, whole or not at all, if its folder exists and the disk has room.

        Args:
            backbone: whose tensors the trajectory has moved.
        """
        if not self._file.parent.is_dir():
            return
        part = part_of(self._file).with_suffix(f".{os.getpid()}")  # another process may replay the same
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.tensors.items()}
        try:
            save_file(tensors, part, metadata={**self._origin, "sha256": fingerprint(tensors)})
            os.replace(part, self._file)
        except (OSError, SafetensorError):  # the next run replays again
            part.unlink(missing_ok=True)
