"""SIGTERM and Ctrl-C, and a pipe that nobody reads: a run finishes what it is at and saves; a second signal leaves at
once.
"""

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
    """Let a run that is under way, and saves, stop as after SIGTERM, since nobody reads any more what it shows.

    Returns:
        Whether there is one; else nothing is remembered.
    """
    number = getattr(signal, "SIGPIPE", None)  # which Windows lacks
    if number is None or not any(one._defers for one in _open):
        return False
    for one in _open:
        one.received = one.received or number
    return True


class Signals:
    """Remembers the signal that asked the process to stop, also one that came to those of a part of its work."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.doing = ""  # what is finished before the process leaves
        self._defers = False

    @contextmanager
    def defer_signals(self, answer: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """While it is open, the first SIGTERM or Ctrl-C is only remembered; a second one does what it did before.

        Outside the main thread, where no handler can be set, signals do what they always do.

        Args:
            answer: told at once of the first one, with what is being finished; it has returned when this closes.
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
        """While it is open, SIGTERM and Ctrl-C raise Interrupted where they come, since there is nothing to save.

        A part of the work may open others inside, which catch them; then `received` says what came. It is not
        hidden by a library that makes an error of its own of all that is raised inside of it, as pydantic does.

        Args:
            kept: asked then what is kept nevertheless, see `Interrupted`.
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
        """Of the signal, once there was one."""
        return None if self.received is None else signal.Signals(self.received).name

    def is_second_signal(self, error: BaseException) -> bool:
        """Whether an error is that of a second signal, after which nothing is written any more."""
        again = isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted)
        return again and self.received is not None

    def check(self, steps: int | None) -> None:
        """Raises Interrupted if the process was asked to stop; `steps` are made and saved, None where nothing is."""
        if self.received is not None:
            raise Interrupted(signal.Signals(self.received).name, 128 + self.received, steps)

    @contextmanager
    def _handling(self, act: Callable[[int, Callable[[], None]], None]) -> Iterator[None]:
        """While it is open, a signal that is not ignored calls `act`, with its number and what puts handlers back."""
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
