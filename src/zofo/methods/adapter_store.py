"""Where the adapters of tasks lie that no step is looking at."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Literal

from safetensors import safe_open
from safetensors.torch import save_file

from zofo.errors import RunError
from zofo.remembered import Remembered

Where = Literal["cpu", "disk"]


class AdapterStore:
    """Adapters and the state of their optimisers by task: copies in the CPU's memory, or files that end with it.

    Args:
        where: `cpu`, or `disk` for a folder among the system's temporary ones (TMPDIR).
    """

    def __init__(self, where: Where) -> None:
        self._kept: dict[str, Remembered] = {}
        self._names: dict[str, None] = {}
        self._folder: Path | None = None
        if where == "disk":
            self._folder = Path(tempfile.mkdtemp(prefix="zofo-adapters-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        """The tasks that something was kept of, in the order in which they came."""
        return list(self._names)

    def put(self, task: str, remembered: Remembered) -> None:
        """Keep a copy, in place of what was kept of the task.

        Raises:
            RunError: the disk is full or cannot be written; what was kept is as it was.
        """
        self._names.setdefault(task)
        if self._folder is None:
            tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in remembered.tensors.items()}
            self._kept[task] = Remembered(remembered.values, tensors)
            return
        part, whole = self._folder / f"{task}.part", self._folder / f"{task}.safetensors"
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in remembered.tensors.items()}
        try:
            save_file(tensors, part, metadata={"values": json.dumps(remembered.values)})
            os.replace(part, whole)
        except OSError as error:
            raise RunError(
                f"cannot write the adapters of {task!r} to {str(self._folder)!r}: {error.strerror or error}",
                "make room, name another folder with TMPDIR, or set method.adapters=cpu",
            ) from error

    def get(self, task: str) -> Remembered | None:
        """What is kept of a task, to be read only; None for nothing."""
        if self._folder is None or task not in self._names:
            return self._kept.get(task)
        with safe_open(self._folder / f"{task}.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            return Remembered(json.loads(file.metadata()["values"]), tensors)
