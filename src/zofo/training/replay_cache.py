"""What a replay led to, kept beside the run, for the many runs of a study that start from it."""

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

from zofo.backbone import Backbone, fingerprint, selected
from zofo.filesystem import temp_path


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
                if not all(name in own and _fits(own[name], tensor) for name, tensor in tensors.items()):
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


def _fits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype)
