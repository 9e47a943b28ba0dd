"""Where the adapters of tasks lie that no step is looking at."""

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

_WHOLE = "tensors"  # what the file of a task is called among what is kept of it


class AdapterStore:
    """Adapters and the state of their optimisers by task: copies in the CPU's memory, or files that end with it.

    Args:
        where: `cpu`, or `disk` for a folder among the system's temporary ones (TMPDIR).
    """

    def __init__(self, where: Where) -> None:
        self._kept: dict[str, StateDict] = {}  # with disk, without tensors
        self._folder: Path | None = None
        if where == "disk":
            self._folder = Path(tempfile.mkdtemp(prefix="zofo-adapters-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        """The tasks that something was kept of, in the order in which they came."""
        return list(self._kept)

    def put(self, task: str, state: StateDict) -> None:
        """Keep a copy, in place of what was kept of the task.

        Raises:
            RunError: the disk is full or cannot be written; what was kept is as it was.
        """
        if self._folder is None:
            tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.tensors.items()}
            self._kept[task] = StateDict(state.values, tensors)
            return
        number = self.names.index(task) if task in self._kept else len(self._kept)  # a name need be none of a file
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
        """What is kept of a task, to be read only; None for nothing."""
        kept = self._kept.get(task)
        if kept is None or not kept.files:
            return kept
        return StateDict(kept.values, load_file(kept.files[_WHOLE]))

    def remember_in(self, whole: StateDict, name: str, task: str) -> None:
        """Put what is kept of a task into a whole, under a name: on disk, as its file."""
        kept = self._kept[task]
        if kept.files:
            whole.put_file(name, kept.values, kept.files[_WHOLE])
        else:
            whole.put(name, kept)
