"""Storage for the adapters of tasks that are not in the current step."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zofo.errors import RunError
from zofo.state_dict import StateDict

Where = Literal["cpu", "disk"]

_WHOLE = "tensors"  # name of a task's file in its stored state


class AdapterStore:
    """Adapters and their optimizer states by task: copies in CPU memory, or temporary files.

    Args:
        where: `cpu`, or `disk` for a temporary folder (see TMPDIR).
    """

    def __init__(self, where: Where) -> None:
        self._kept: dict[str, StateDict] = {}  # with disk, without tensors
        self._folder: Path | None = None
        if where == "disk":
            self._folder = Path(tempfile.mkdtemp(prefix="zofo-adapters-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        """The tasks in the store, in the order in which they were added."""
        return list(self._kept)

    def put(self, task: str, state: StateDict) -> None:
        """Store a copy, replacing that of the task.

        Raises:
            RunError: the disk is full or cannot be written. What was stored before is unchanged.
        """
        if self._folder is None:
            tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.tensors.items()}
            self._kept[task] = StateDict(state.values, tensors)
            return
        number = self.names.index(task) if task in self._kept else len(self._kept)  # its name may be no file name
        part, whole = self._folder / f"{number}.part", self._folder / f"{number}.safetensors"
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        try:
            save_file(tensors, part)
            os.replace(part, whole)
        except (OSError, SafetensorError) as error:  # safetensors does not raise an OSError on a full disk
            reason = getattr(error, "strerror", None) or error
            raise RunError(
                f"cannot write the adapters of {task!r} to {str(self._folder)!r}: {reason}",
                "make room, name another folder with TMPDIR, or set method.adapter_offload=cpu",
            ) from error
        self._kept[task] = StateDict(state.values, {}, {_WHOLE: whole})

    def get(self, task: str) -> StateDict | None:
        """The stored state of a task, read-only; None if there is none."""
        kept = self._kept.get(task)
        if kept is None or not kept.files:
            return kept
        return StateDict(kept.values, load_file(kept.files[_WHOLE]))

    def remember_in(self, whole: StateDict, name: str, task: str) -> None:
        """Add the stored state of a task to a state dict under a name; from disk, as its file."""
        kept = self._kept[task]
        if kept.files:
            whole.put_file(name, kept.values, kept.files[_WHOLE])
        else:
            whole.put(name, kept)
