"""Peak memory of a piece of work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

_INTERVAL = 0.01  # seconds between samples


class PeakMemory:
    """The peak memory: of the device's allocator on CUDA, otherwise of the process's resident set (sampled)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self.bytes = 0

    def now(self) -> int:
        """Bytes currently in use."""
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        return int(self._process.memory_info().rss)

    @contextmanager
    def watching(self) -> Iterator[PeakMemory]:
        """Context in which `bytes` tracks the peak."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            try:
                yield self
            finally:
                self.bytes = max(self.bytes, int(torch.cuda.max_memory_allocated(self._device)))
            return
        done = threading.Event()

        def sample() -> None:
            while not done.wait(_INTERVAL):
                self.bytes = max(self.bytes, self.now())

        self.bytes = max(self.bytes, self.now())
        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()
            self.bytes = max(self.bytes, self.now())
