"""Output to a terminal: texts from files, names and models, with control and invisible characters escaped.

Everything that the command line prints goes through here; files are not affected.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from zofo.signals import remember_closed_pipe
from zofo.temporary import temporarily

# control characters but tab and new line, marks that turn the order of a line around or hide in it, lone surrogates
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


_LINGERS = 5.0  # seconds: a launcher stops all processes when one has ended, even one that is still writing


def is_heard(quiet: bool | None) -> bool:
    """Whether this process prints an error: of several started by a launcher, one prints what all of them found.

    Args:
        quiet: what they agreed on; None for nothing.
    """
    return not quiet if quiet is not None else os.environ.get("LOCAL_RANK", "0") in ("", "0")


def linger() -> None:
    """Let the process that prints finish before the launcher stops all of them."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(_LINGERS)


def escaped(text: str) -> str:
    """A text with control and invisible characters in Python's notation: an escape is `\x1b`."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def as_line(text: str) -> str:
    """The same for a text that must stay on one line."""
    return escaped(text.replace("\n", "\\n"))


_UNLIMITED = 100_000  # columns


class Terminal(Console):
    """A console that prints texts literally: no markup, no emoji names, no control characters.

    Lines are not wrapped at the width of the terminal.

    Args:
        stderr: whether it is standard error instead of standard output.
        width: width in columns; by default that of the terminal.
    """

    def __init__(self, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)

    @property
    def file(self) -> IO[str]:
        """The stream itself, even while rich has replaced it, as under a progress bar."""
        found = Console.file.fget(self)  # type: ignore[attr-defined]
        while isinstance(found, _Escaping):
            found = found.rich_proxied_file
        return cast(IO[str], found)

    @file.setter
    def file(self, new: IO[str]) -> None:
        Console.file.fset(self, new)  # type: ignore[attr-defined]

    def on_broken_pipe(self) -> None:
        """Let a run stop and save, or raise BrokenPipeError, which ends a command; rich would exit the process."""
        self.quiet = True
        if remember_closed_pipe():
            return
        raise BrokenPipeError(errno.EPIPE, "nobody reads what it shows any more")

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Print texts on one line, each plain or with its style."""
        pairs = [(part, "") if isinstance(part, str) else part for part in parts]
        self.print(Text.assemble(*((as_line(text), style) for text, style in pairs)))

    def say_table(self, table: Table) -> None:
        """Print a table: on a terminal in its width, on a pipe unwrapped with one line per row.

        On a pipe without the trailing blanks of the last column.
        """
        if self.is_terminal:
            self.print(table, soft_wrap=False)
            return
        wide = Terminal(self.stderr, _UNLIMITED)
        with wide.capture() as caught:
            wide.print(table, soft_wrap=False)
        for line in caught.get().splitlines():
            self.print(Text(line.rstrip()))

    def say_json(self, value: Any) -> None:
        """Print a value as a line of JSON, the same on all terminals and pipes."""
        text = json.dumps(value, ensure_ascii=(getattr(self.file, "encoding", None) or "utf-8").lower() != "utf-8")
        self.print(_OBEYED.sub(lambda found: "".join(f"\\u{unit:04x}" for unit in _units(found[0])), text))

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape a text before rich silently drops control characters from it."""
        return super().render_str(escaped(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape everything that is printed, including cells of tables; rich's own codes are kept."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text))


class _Escaping(io.TextIOBase):
    """A wrapper of a standard stream for other libraries: warnings, and click's messages about wrong arguments."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # to which a console writes, whose codes are its own

    def write(self, text: str) -> int:
        """Write a text, escaped."""
        self.rich_proxied_file.write(escaped(text))
        return len(text)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return self.rich_proxied_file.encoding

    def flush(self) -> None:
        self.rich_proxied_file.flush()

    def isatty(self) -> bool:
        return self.rich_proxied_file.isatty()

    def fileno(self) -> int:
        return self.rich_proxied_file.fileno()


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Context in which texts on standard streams are escaped, and characters that these lack do not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # None where the process was started without one
    stdout, stderr = (stream and _Escaping(stream) for stream in (sys.stdout, sys.stderr))
    with temporarily(sys, stdout=stdout, stderr=stderr):
        yield


def _units(character: str) -> tuple[int, ...]:
    """The UTF-16 code units of a character, as JSON writes it: one or two numbers."""
    data = character.encode("utf-16-be", "surrogatepass")
    return struct.unpack(f">{len(data) // 2}H", data)
