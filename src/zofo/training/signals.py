"""SIGTERM and Ctrl-C: the step is finished and saved; a second one leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from zofo.errors import Stopped

_CAUGHT = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Remembers that the process was asked to stop.

    Attributes:
        received: the signal, once there was one.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """While it is open, the first SIGTERM or Ctrl-C is only remembered; a second one does what it did before.

        Outside the main thread, where no handler can be set, signals do what they always do.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _CAUGHT}

        def remember(number: int, _frame: FrameType | None) -> None:
            self.received = number
            for each, handler in before.items():
                signal.signal(each, handler if handler is not None else signal.SIG_DFL)

        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def check(self, steps: int) -> None:
        """Raises Stopped if the process was asked to stop; `steps` have been made."""
        if self.received is not None:
            raise Stopped(signal.Signals(self.received).name, 128 + self.received, steps)
