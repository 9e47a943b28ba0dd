"""The cost of one training step: time and peak memory of every way to make it, next to inference on the same batch."""

from __future__ import annotations

import copy
import functools
import gc
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import nn

from zofo.backbone import Backbone
from zofo.bench.step_memory import failure, load_own, measure_peak
from zofo.bench.step_variants import WAYS, StepOptions, StepVariant
from zofo.errors import ConfigError, RunError, UnknownNameError, ZofoError
from zofo.noise import LowRank

FLOOR, USUAL = "inference", "mezo-usual"
_DTYPES = ("float32", "bfloat16", "float16")
_FLAGS = {"examples": "--rows", "tokens": "--tokens", "rank": "--rank", "repeats": "--repeats"}


@dataclass(frozen=True)
class StepCost:
    """The cost of a step in one way; None for what was not measured.

    Args:
        name: name of the way.
        median_s: seconds per step, the median over the rounds.
        over_inference: median over the rounds of the ratio to inference in the same round.
        usual_over_this: median ratio of the usual step's time to its own.
        fastest_s: seconds per step in its best round.
        slowest_s: seconds per step in its worst round.
        peak_bytes: peak memory in its own process.
        peak_over_inference: ratio to the peak of inference.
        error: why something was not measured; None if nothing went wrong.
    """

    name: str
    median_s: float | None = None
    over_inference: float | None = None
    usual_over_this: float | None = None
    fastest_s: float | None = None
    slowest_s: float | None = None
    peak_bytes: int | None = None
    peak_over_inference: float | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name; `error` only if there was one."""
        return {name: value for name, value in asdict(self).items() if name != "error" or value is not None}


@dataclass(frozen=True)
class StepReport:
    """The costs of all ways, and the conditions of the measurement.

    Args:
        options: what was measured.
        device: the device.
        threads: torch's CPU threads.
        parameters: number of parameters.
        rows: one per way.
    """

    options: StepOptions
    device: str
    threads: int
    parameters: int
    rows: tuple[StepCost, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data: the options, the conditions, and `rows`."""
        place = {"device": self.device, "threads": self.threads, "torch": torch.__version__}
        rows = [row.as_dict() for row in self.rows]
        return {**asdict(self.options), **place, "parameters": self.parameters, "rows": rows}

    def table(self) -> Table:
        """The rows as a terminal table."""
        shown = self.options
        size = f"{shown.model}, {self.parameters:,} parameters, {shown.dtype}, {self.device}, {self.threads} threads"
        moving = f", of {' '.join(shown.trainable)}" if shown.trainable else ""
        title = f"one step on {shown.examples} x {shown.tokens} tokens, rank {shown.rank}{moving}\n{size}"
        table = Table(title=Text(title), box=None, pad_edge=False)
        table.add_column("\nway", no_wrap=True)
        for heading in ("\nseconds", "time /\ninference", "usual /\nthis", "peak\nmemory", "peak /\ninference"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(*_cells(row))
        errors = [f"{row.name}: {row.error}" for row in self.rows if row.error]
        table.caption = Text("\n".join(errors)) if errors else None
        return table


def _cells(row: StepCost) -> list[str]:
    mebibytes = None if row.peak_bytes is None else row.peak_bytes / 2**20
    shown = (
        ("{:.3f}", row.median_s),
        ("{:.1%}", row.over_inference),
        ("{:.2f}", row.usual_over_this),
        ("{:,.0f} MiB", mebibytes),
        ("{:.1%}", row.peak_over_inference),
    )
    return [row.name, *("" if value is None else form.format(value).replace("%", " %") for form, value in shown)]


def bench_step(
    options: StepOptions,
    memory: bool = True,
    file: Path | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> StepReport:
    """Measure the cost of a step in each of `WAYS`.

    Time: all ways share one process and one batch of random tokens, and take turns. Each round times every way once and
    begins with a different one; before the first round, each makes an uncounted step. The ways that only read the
    weights, or restore them, share one model; LoRA has its own layers over the same tensors. The usual step, which
    replaces the tensors, and the first-order step on them share a copy, so that no way disturbs another. Ratios are
    medians of the ratios within a round. A step in the forward is timed in the middle of the cycle between two writes
    of pending updates, and its share of a write, timed separately, is added (see `AmortizedSteps`).

    Memory: the peak of each way in a new process, one after the other, after the timing, when the models have been
    freed.

    Args:
        options: what to measure.
        memory: measure peaks, too.
        file: JSON file for the report, written even if ways ran out of memory; these have an `error`.
        on_progress: called with a line about what is being done.

    Raises:
        ConfigError: a number below 1, a rank that is too large for the model, too many tokens, or an unknown dtype.
            Raised before anything is measured. RunError: the file cannot be written. Raised before anything is
            measured.
        ModelError: there is no such model.
    """
    _check(options)
    if file is not None:
        check_writable(file)
    on_progress(f"loading {options.model}")
    errors: dict[str, str] = {}
    device, parameters, seconds = _time_all(options, errors, on_progress)
    peaks = _peaks(options, errors, on_progress) if memory else {}
    rows = tuple(_cost(name, seconds, peaks, errors.get(name)) for name in WAYS)
    report = StepReport(options, device, torch.get_num_threads(), parameters, rows)
    if file is not None:
        file.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def check_writable(file: Path) -> None:
    """Check that a file can be written, without changing it.

    Raises:
        RunError: it cannot.
    """
    new = not file.exists()
    try:
        file.open("a", encoding="utf-8").close()
    except OSError as error:
        raise RunError(f"cannot write {str(file)!r}: {error.strerror}", "choose another file with --json") from error
    if new:
        file.unlink()


def _check(options: StepOptions) -> None:
    for name, flag in _FLAGS.items():
        if getattr(options, name) < 1:
            raise ConfigError(f"{flag} is {getattr(options, name)}, but must be 1 or more", f"set {flag}=1 or more")
    if options.dtype not in _DTYPES:
        raise UnknownNameError("dtype", options.dtype, _DTYPES, f"set --dtype to one of {', '.join(_DTYPES)}")


def _check_fits(options: StepOptions, model: Any) -> None:
    """Check that the model supports the rank, and this many tokens (plus one for a candidate)."""
    try:
        Backbone(model, LowRank(options.rank), list(options.trainable) if options.trainable else None)
    except ConfigError as error:
        if "method.noise.rank" not in error.message:  # a pattern that matches nothing
            hint = (error.hint or "").replace("method.trainable", "--trainable")
            raise ConfigError(error.message.replace("method.trainable", "--trainable"), hint) from error
        message = error.message.replace("method.noise.rank", "--rank")
        raise ConfigError(message, "set --rank to the smaller of these two sides or less") from error
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and options.tokens >= limit:
        raise ConfigError(
            f"--tokens is {options.tokens}, but {options.model!r} reads {limit} tokens, one of them a candidate",
            f"set --tokens={limit - 1} or less",
        )


def own_modules(model: Any) -> Callable[[str], Any]:
    """The module of each way by name: a copy for ways that change the tensors permanently."""
    copied = functools.cache(lambda: copy.deepcopy(model))

    def module(name: str) -> Any:
        if name in (USUAL, "fo-full"):
            return copied()
        return over_the_same_tensors(model) if name == "fo-lora" else model

    return module


def over_the_same_tensors(model: Any) -> Any:
    """A module with the same layers, whose parameters are new ones over the same tensors, for adapters."""
    known: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, known)


def _time_all(
    options: StepOptions, errors: dict[str, str], on_progress: Callable[[str], None]
) -> tuple[str, int, dict[str, list[float]]]:
    """The device, the number of parameters, and the seconds of each way in each round; failures go to `errors`."""
    loaded = load_own(options)
    _check_fits(options, loaded.model)
    on_progress("first steps, which are not counted")
    module, ways = own_modules(loaded.model), dict[str, StepVariant]()
    for name, build in WAYS.items():
        with _noted(name, errors):
            way = build(module(name), options)
            way.prepare()
            ways[name] = way
    device = loaded.device
    named = f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    return named, parameters, _rounds(ways, options.repeats, errors, on_progress)


@contextmanager
def _noted(name: str, errors: dict[str, str]) -> Iterator[None]:
    """Context that records a lack of memory, or a missing requirement of a way, as its error."""
    try:
        yield
    except (ZofoError, RuntimeError, MemoryError) as error:
        errors[name] = failure(error)


def _rounds(
    ways: dict[str, StepVariant], repeats: int, errors: dict[str, str], on_progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """The seconds of each way in each round; none for a way that fails in one."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(repeats):
        on_progress(f"round {number + 1} of {repeats}")
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            if name not in errors:
                with _noted(name, errors):
                    seconds[name].append(ways[name].seconds())
    return {name: taken for name, taken in seconds.items() if name not in errors}


def _peaks(options: StepOptions, errors: dict[str, str], on_progress: Callable[[str], None]) -> dict[str, int]:
    """The peak of each way in bytes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    peaks = {}
    for name in WAYS:
        on_progress(f"memory of {name}")
        with _noted(name, errors):
            peaks[name] = measure_peak(name, options)
    return peaks


def _cost(name: str, seconds: dict[str, list[float]], peaks: dict[str, int], error: str | None) -> StepCost:
    taken, peak = seconds.get(name, []), peaks.get(name)
    median, fastest, slowest = (round(of(taken), 6) if taken else None for of in (statistics.median, min, max))
    return StepCost(
        name,
        median_s=median,
        over_inference=_median_ratio(taken, seconds.get(FLOOR)),
        usual_over_this=_median_ratio(seconds.get(USUAL), taken),
        fastest_s=fastest,
        slowest_s=slowest,
        peak_bytes=peak,
        peak_over_inference=round(peak / peaks[FLOOR], 4) if peak and FLOOR in peaks else None,
        error=error,
    )


def _median_ratio(above: list[float] | None, below: list[float] | None) -> float | None:
    """The median over the rounds of the ratio within a round."""
    if not above or not below:
        return None
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 4)
