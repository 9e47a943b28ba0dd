"""Handling of SIGTERM, Ctrl-C and closed pipes: a run finishes its step and saves; a second signal exits at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from zofo.errors import Interrupted
from zofo.temporary import temporarily

_CAUGHT = (signal.SIGTERM, signal.SIGINT)
_open: list[Signals] = []  # whose handlers are or were set, the innermost last


def remember_closed_pipe() -> bool:
    """Let an active run that saves stop as after SIGTERM, since nobody reads its output any more.

    Returns:
        Whether there is such a run; otherwise nothing happens.
    """
    number = getattr(signal, "SIGPIPE", None)  # which Windows lacks
    if number is None or not any(one._defers for one in _open):
        return False
    for one in _open:
        one.received = one.received or number
    return True


class Signals:
    """Remembers the signal that asked the process to stop, including one that arrived during nested work."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.doing = ""  # what is finished before the process leaves
        self._defers = False

    @contextmanager
    def defer_signals(self, answer: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Context in which the first SIGTERM or Ctrl-C is only remembered; a second one has its usual effect.

        Outside the main thread, where no handler can be set, signals keep their usual effect.

        Args:
            answer: called at once for the first one, with what is being finished; it has returned on exit.
        """
        answers: list[threading.Thread] = []

        def remember(number: int, restore: Callable[[], None]) -> None:
            for one in _open:
                one.received = number
            restore()
            if self.doing:  # in a thread, since it may have come in the middle of a line that is being written
                said = f"finishing {self.doing}; Ctrl-C again to leave now"
                answers.append(threading.Thread(target=answer, args=[said]))
                answers[-1].start()

        try:
            with self._handling(remember), temporarily(self, _defers=True):
                yield
        finally:
            for thread in answers:  # so that it says this before what is said next
                thread.join()

    @contextmanager
    def raise_on_signal(self, kept: Callable[[], str | None] = lambda: None) -> Iterator[None]:
        """Context in which SIGTERM and Ctrl-C raise Interrupted at once, since there is nothing to save.

        Nested contexts may catch a signal; then `received` has it. It is not lost in a library that converts all
        errors, as pydantic does.

        Args:
            kept: called for what is kept nevertheless, see `Interrupted`.
        """
        stops: list[Interrupted] = []

        def leave(number: int, _restore: Callable[[], None]) -> None:
            stops.append(Interrupted(signal.Signals(number).name, 128 + number, None, kept()))
            raise stops[-1]

        with self._handling(leave):
            try:
                yield
            except Exception as error:
                if stops:
                    raise stops[-1] from error
                raise

    @property
    def name(self) -> str | None:
        """Name of the signal, after there was one."""
        return None if self.received is None else signal.Signals(self.received).name

    def is_second_signal(self, error: BaseException) -> bool:
        """Whether an error comes from a second signal, after which nothing more is written."""
        again = isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted)
        return again and self.received is not None

    def check(self, steps: int | None) -> None:
        """Raise Interrupted if the process was asked to stop; `steps` are made and saved, None for nothing."""
        if self.received is not None:
            raise Interrupted(signal.Signals(self.received).name, 128 + self.received, steps)

    @contextmanager
    def _handling(self, act: Callable[[int, Callable[[], None]], None]) -> Iterator[None]:
        """Context in which a signal that is not ignored calls `act` with its number and a function that restores
        handlers."""
        in_main = threading.current_thread() is threading.main_thread()  # elsewhere no handler can be set
        before = {number: signal.getsignal(number) for number in _CAUGHT} if in_main else {}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

        def received(number: int, _frame: FrameType | None) -> None:
            act(number, restore)

        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, received)
        _open.append(self)
        try:
            yield
        finally:
            _open.remove(self)
            restore()
