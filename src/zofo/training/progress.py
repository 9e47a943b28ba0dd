"""How far a piece of work is, on a terminal as a bar and elsewhere as a line now and then; what is said before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from zofo.methods import Method
from zofo.models import is_offloaded, offload_note, packing_note, quantized_as
from zofo.training.config import RunConfig
from zofo.training.data_module import PreparedRun

_EVERY = 10.0  # seconds between two lines where there is no terminal


def say(console: Console, text: str) -> None:
    """Show a text as it is, on one line however narrow the terminal is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Shown(ProgressColumn):
    """The `shown` text of a task, as much of it as a narrow terminal has room for."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["shown"], no_wrap=True, overflow="crop")


def progress_bar(console: Console) -> Progress:
    """A bar with what is done, how many there are, and the time that is left; with a `shown` text for each task."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        _Shown(table_column=Column()),
    )
    return Progress(*columns, console=console)


class RowProgress:
    """Rows that are done, of all of them, with rows a second and the time that is left.

    Args:
        done: of them, before it began.
        bar: that is on the terminal already, to which a line is added while the work lasts.
    """

    def __init__(self, console: Console, name: str, total: int, done: int = 0, bar: Progress | None = None) -> None:
        self._console, self._name, self._total, self._done, self._first = console, name, total, done, done
        self._start = self._last = time.perf_counter()
        self._bar, self._own = bar or (progress_bar(console) if console.is_terminal else None), bar is None

    def __enter__(self) -> Callable[[int], None]:
        if self._bar is not None:
            self._task = self._bar.add_task(self._name, total=self._total, completed=self._done, shown="")
            self._bar.start()
        return self.advance

    def advance(self, rows: int) -> None:
        """So many rows more are done."""
        self._done += rows
        now = time.perf_counter()
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        shown = f"{rate:.0f} rows/s" if rate >= 10 else f"{rate:.1f} rows/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, shown=shown)
        elif now - self._last >= _EVERY and self._done < self._total:
            self._last = now
            left = (self._total - self._done) / rate
            say(self._console, f"{self._name}  {self._done}/{self._total} rows  {shown}  {left:.0f} s left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None and self._own:
            self._bar.stop()
        elif self._bar is not None:
            self._bar.remove_task(self._task)


class EvaluationProgress:
    """Shows each pass of an evaluation over its rows; below the bar of the steps, while that is there."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.below: Progress | None = None

    def __call__(self, rows: int) -> RowProgress:
        """What is opened for a pass over so many rows."""
        return RowProgress(self._console, "evaluation", rows, bar=self.below)


@contextmanager
def working(console: Console, what: str) -> Iterator[None]:
    """While it is open, a terminal shows what is being done."""
    with console.status(what) if console.is_terminal else nullcontext():
        yield


def start_notes(config: RunConfig, prepared: PreparedRun, method: Method) -> list[str]:
    """What a user should know before the first step: how rows were read, which tensors move, what a rule costs."""
    notes = [f"{prepared.task.kind}, {prepared.task.about}"] if config.task.name is None else []
    packed = quantized_as(prepared.loaded.model) is not None  # several weights in a number, so that none are counted
    if packed:
        notes.append(packing_note(prepared.loaded.model))
    if is_offloaded(prepared.loaded.model):
        notes.append(offload_note(prepared.loaded.model))
    moved, whole = _sizes(method)
    if moved:
        share = "" if packed else f" of {whole:,}"
        part = "" if packed else f" ({100 * moved / whole:.3g} %)"
        tensors = f" in {len(method.trained_names)} tensors" if method.trained_names else ""
        notes.append(f"trains {moved:,}{share} parameters{part}{tensors}")
    if method.backbone is not None and method.rule is not None and method.rule.dense_buffers:
        gigabytes = method.rule.dense_buffers * method.backbone.size * method.rule.buffer_bytes / 2**30
        notes.append(f"this rule keeps {method.rule.dense_buffers} buffers of the backbone's size: {gigabytes:.2f} GiB")
    return [*notes, *method.adapter_start.notes, *method.notes()]


def _sizes(method: Method) -> tuple[int, int]:
    """How many parameters steps move, and how many the model has, with all of its adapters."""
    theta = set(method.backbone.tensors) if method.backbone is not None else set()
    sizes = [
        (one.numel(), name in theta or one.requires_grad or not set(method.variants).isdisjoint(name.split(".")[-2:]))
        for name, one in ((name.replace(".base_layer.", "."), one) for name, one in method.model.named_parameters())
    ]
    return sum(size for size, moves in sizes if moves), sum(size for size, _ in sizes)
