"""What a replay led to, kept beside the run, for the many runs of a study that start from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from zofo.backbone import Backbone, fingerprint, selected
from zofo.errors import RunError
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

        Raises:
            RunError: they were, but could not be read a second time.
        """
        own = selected(model)
        if not self._is_whole(own):
            return False
        with _opened(self._file) as file, torch.no_grad():
            tensors = _Read(file)
            for name in tensors:
                own[name].copy_(tensors[name])
        return True

    def _is_whole(self, own: Mapping[str, torch.Tensor]) -> bool:
        try:
            with _opened(self._file) as file:
                tensors = _Read(file)
                fits = all(name in own and _fits(own[name], tensors[name]) for name in tensors)
                return fits and file.metadata() == {**self._origin, "sha256": fingerprint(tensors)}
        except RunError:
            return False

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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise RunError(f"cannot read {str(path)!r}: {str(error)[:200]}") from error


class _Read(Mapping[str, torch.Tensor]):
    """The tensors of an open file, read when they are asked for: never more than one beside those of the model."""

    def __init__(self, file: Any) -> None:
        self._file, self._names = file, list(file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _fits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype)
