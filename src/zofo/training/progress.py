"""Progress of work, as a bar on a terminal and as occasional lines elsewhere; and notes before a run."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, cast

import torch
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
from zofo.models import LoadedModel, is_offloaded, offload_note, packing_note, quantized_as
from zofo.training.config import RunConfig
from zofo.training.data_module import PreparedRun

_EVERY = 10.0  # seconds between two lines where there is no terminal
LOG = logging.getLogger("zofo")
"""Of what a caller from Python is told."""


class _Records(io.TextIOBase):
    """A stream whose lines are records of the logger `zofo`."""

    def write(self, text: str) -> int:
        for line in filter(None, map(str.strip, text.splitlines())):
            LOG.log(logging.WARNING if line.startswith("warning: ") else logging.INFO, line.removeprefix("warning: "))
        return len(text)


def log_console() -> Console:
    """The console for Python callers that pass none: warnings are logged as warnings, everything else as info."""
    return Console(
        file=cast(IO[str], _Records()), force_terminal=False, force_jupyter=False, no_color=True, width=10_000
    )


def say(console: Console, text: str) -> None:
    """Print a text on one line, unwrapped, on any terminal width."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Shown(ProgressColumn):
    """The `shown` text of a task, shortened to the width of the terminal."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["shown"], no_wrap=True, overflow="crop")


def progress_bar(console: Console) -> Progress:
    """A bar with the amount done, the total, and the time left; with a `shown` text per task."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        _Shown(table_column=Column()),
    )
    return Progress(*columns, console=console)


@contextmanager
def row_progress(
    console: Console, name: str, total: int, done: int = 0, bar: Progress | None = None
) -> Iterator[Callable[[int], None]]:
    """Context that shows rows done, rows per second and the time left; yields a function to report more rows.

    Args:
        done: rows already done.
        bar: a bar already on the terminal, which gets an additional line meanwhile.
    """
    first, start = done, time.perf_counter()
    last, shown_in = start, bar or (progress_bar(console) if console.is_terminal else None)
    task = None if shown_in is None else shown_in.add_task(name, total=total, completed=done, shown="")

    def advance(rows: int) -> None:
        nonlocal done, last
        done, now = done + rows, time.perf_counter()
        rate = (done - first) / max(now - start, 1e-9)
        shown = f"{rate:.0f} rows/s" if rate >= 10 else f"{rate:.1f} rows/s"
        if shown_in is not None and task is not None:
            shown_in.update(task, completed=done, shown=shown)
        elif now - last >= _EVERY and done < total:
            last = now
            say(console, f"{name}  {done}/{total} rows  {shown}  {(total - done) / rate:.0f} s left")

    with nullcontext() if shown_in is None or bar is not None else shown_in:
        try:
            yield advance
        finally:
            if bar is not None and task is not None:
                bar.remove_task(task)


class EvaluationProgress:
    """Shows each pass of an evaluation over its rows, below the bar of the steps if there is one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.below: Progress | None = None

    def __call__(self, rows: int) -> AbstractContextManager[Callable[[int], None]]:
        """A context for a pass over this number of rows."""
        return row_progress(self._console, "evaluation", rows, bar=self.below)


@contextmanager
def working(console: Console, what: str) -> Iterator[None]:
    """Context in which a terminal shows what is being done."""
    with console.status(what) if console.is_terminal else nullcontext():
        yield


def start_notes(config: RunConfig, prepared: PreparedRun, method: Method) -> list[str]:
    """Notes before the first step: how rows were read, which tensors move, what a rule costs."""
    notes = [f"{prepared.task.kind}, {prepared.task.about}"] if config.task.name is None else []
    packed = quantized_as(prepared.loaded.model) is not None  # several weights in a number, so that none are counted
    if packed:
        notes.append(packing_note(prepared.loaded.model))
    notes += _upcast_note(prepared.loaded)
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
    return [*notes, *_unseen(config, prepared, method), *method.adapter_start.notes, *method.notes()]


def _unseen(config: RunConfig, prepared: PreparedRun, method: Method) -> list[str]:
    """A note that the whole passes of `training.epochs` do not see every row, for one task."""
    epochs, steps, rows = config.training.epochs, method.planned_steps, prepared.train_rows
    if epochs is None or epochs < 1 or not steps or len(rows) != 1 or method.fixed_steps is not None:
        return []
    epoch = config.method.epoch(rows)
    unseen = round(epoch.unseen(steps))
    if not unseen:
        return []
    return [
        f"training.epochs={epochs:g} draws {steps * epoch.batches * epoch.batch_size} rows, but about {unseen} of "
        f"{epoch.rows} are in no batch: batches of {epoch.batch_size} leave out {epoch.rows % epoch.batch_size} of "
        "each order of the rows; set method.batch_size so that it divides them, or more epochs"
    ]


_WORTH_SAYING = 2**30  # bytes, of weights that are loaded in a wider dtype than the checkpoint's


def _upcast_note(loaded: LoadedModel) -> list[str]:
    """A note if a half-precision checkpoint is loaded in float32, which takes twice the memory."""
    weights = [one for one in loaded.model.parameters() if one.dtype == torch.float32]
    more = sum(one.nbytes for one in weights) // 2
    if loaded.checkpoint_dtype not in ("bfloat16", "float16") or more < _WORTH_SAYING:
        return []
    own = loaded.checkpoint_dtype
    return [f"weights of {own} are loaded as float32, which takes {more / 2**30:.1f} GiB more: model.dtype={own}"]


def _sizes(method: Method) -> tuple[int, int]:
    """The number of parameters that steps move, and of the model with all its adapters."""
    theta = set(method.backbone.tensors) if method.backbone is not None else set()
    sizes = [
        (one.numel(), name in theta or one.requires_grad or not set(method.variants).isdisjoint(name.split(".")[-2:]))
        for name, one in ((name.replace(".base_layer.", "."), one) for name, one in method.model.named_parameters())
    ]
    return sum(size for size, moves in sizes if moves), sum(size for size, _ in sizes)
