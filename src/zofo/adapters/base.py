"""The contract of adapters: named sets of small tensors on one model, of which one set is active at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn


class Adapters(ABC):
    """Named adapters of one model. All start equal and leave the model's function as it was.

    Attributes:
        names: of the adapters; the first is active at the start.
    """

    names: tuple[str, ...]

    @abstractmethod
    def parameters(self, adapter: str) -> list[nn.Parameter]:
        """The tensors of one adapter, in the model's order."""

    @property
    @abstractmethod
    def active(self) -> str:
        """The adapter that the model's forward uses now."""

    @abstractmethod
    def use(self, adapter: str) -> None:
        """Make one adapter the active one; only its parameters require a gradient."""

    @abstractmethod
    def save(self, adapter: str, folder: Path) -> None:
        """Write one adapter into a folder of its own."""

    @contextmanager
    def using(self, adapter: str) -> Iterator[None]:
        """Make one adapter the active one for a while."""
        before = self.active
        self.use(adapter)
        try:
            yield
        finally:
            self.use(before)
