"""A trainer in several processes: each has its own model, and all start with the same weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import nn
from torch.utils.data import IterableDataset

from zofo.errors import ConfigError
from zofo.models import plain_tensors
from zofo.processes import Processes, joined

_ROWS = 32  # number of rows of a data set that are compared


def processes_of(trainer: Any) -> Processes:
    """The processes of a trainer, whose model is not wrapped by `DistributedDataParallel`.

    The wrapper would allocate a gradient for every tensor that requires one, which no step of zofo uses.
    """
    own = trainer.accelerator
    own.prepare_model = functools.partial(own.prepare_model, evaluation_mode=True)
    return joined()


def check_one_device(trainer: Any) -> None:
    """Raise ConfigError if one process has several devices, of which a step would use only one."""
    if (number := trainer.args.n_gpu) > 1:
        raise ConfigError(
            f"one process has {number} devices, and the model is on one of them",
            f"start a process for each, torchrun --nproc_per_node {number}, or set CUDA_VISIBLE_DEVICES=0",
        )


@torch.no_grad()
def take_weights_of_first(model: nn.Module, processes: Processes) -> None:
    """Copy the first process's tensors to all, as `DistributedDataParallel` does: each process draws its own new head.

    Raises:
        ConfigError: a process has tensors with other names, dtypes or shapes, or in another order. None was changed.
    """
    if processes.alone:
        return
    from accelerate.utils import broadcast

    named = (*model.named_parameters(), *model.named_buffers())
    own = {name: tensor for whole_name, each in named for name, tensor in plain_tensors(whole_name, each)}
    alike: dict[str, Any] = {
        f"the model's tensor {name}": f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in own.items()
    }
    alike |= {"the number of the model's tensors": len(own), "the hash of their order": _hash(list(own))}
    processes.check_same(
        alike, "give all processes the same model: one checkpoint, dtype, number of labels and adapter"
    )
    for tensor in own.values():
        whole = tensor.detach().contiguous()
        broadcast(whole)
        if whole.data_ptr() != tensor.data_ptr():
            tensor.copy_(whole)


def check_same_rows(data_sets: Mapping[str, Any], processes: Processes) -> None:
    """Compare the number of rows, and a hash of some of them, before the first step.

    Args:
        data_sets: data sets by the name of the trainer's argument.
        processes: the processes that have them.

    Raises:
        ConfigError: a process has other rows.
    """
    if processes.alone:
        return
    own: dict[str, Any] = {}
    for name, rows in data_sets.items():
        if not isinstance(rows, IterableDataset) and hasattr(rows, "__len__") and len(rows):
            own[f"the number of rows of {name}"] = len(rows)
            own[f"the hash of rows of {name}"] = _hash_of_some(rows)
    processes.check_same(own, "give all processes the same rows, in the same order: seed whatever shuffles them")


def _hash_of_some(rows: Sequence[Any]) -> str | None:
    """SHA-256 of rows from all over a data set; None if they change each time they are read."""
    number = len(rows)
    some = sorted({number * part // _ROWS for part in range(_ROWS)} | {number - 1})
    first, again = (_hash([rows[place] for place in some]) for _ in range(2))
    return first if first == again else None


def _hash(value: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    """Add a row to a hash; for an object of unknown kind only its type."""
    if isinstance(value, Mapping):
        for key in value:
            digest.update(repr(key).encode())
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}]".encode())
        for one in value:
            _feed(digest, one)
    elif isinstance(value, str | bytes | int | float | None):
        digest.update(repr(value).encode())
    elif isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        array = numpy.asarray(value)  # of numbers, or an image
        digest.update(f"{type(value).__name__}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes() if array.dtype != object else b"")
