"""Ctrl-C during a step: immediate in a closure, and after the sweep elsewhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_UNSET: Any = object()


class Interrupts:
    """Delays Ctrl-C during a sweep over the weights, which cannot be undone.

    Does nothing outside the main thread, where handlers cannot be set and Ctrl-C does not arrive.
    """

    def __init__(self) -> None:
        self._before: Any = _UNSET
        self._came: tuple[int, FrameType | None] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Context in which Ctrl-C is deferred to its end, or to `let_through`."""
        if threading.current_thread() is not threading.main_thread() or self._before is not _UNSET:
            yield
            return
        before = signal.getsignal(signal.SIGINT)
        if not callable(before):  # ignored, or not Python's
            yield
            return
        self._before, self._came = before, None
        signal.signal(signal.SIGINT, self._remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self._before = _UNSET
            self._deliver(before)

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Context inside `held` in which Ctrl-C works normally."""
        before = self._before
        if before is _UNSET:
            yield
            return
        signal.signal(signal.SIGINT, before)
        try:
            self._deliver(before)
            yield
        finally:
            signal.signal(signal.SIGINT, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._came = number, frame

    def _deliver(self, handler: Any) -> None:
        came, self._came = self._came, None
        if came is not None:
            handler(*came)
