"""Commands that estimate the cost of a run before it is made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from zofo.cli.options import (
    NO_ROWS,
    AsJson,
    Overrides,
    RemoteCode,
    RowOptions,
    err,
    out,
    verbs,
)
from zofo.trees import split_arguments

if TYPE_CHECKING:
    from zofo.estimate import DryRun, Fit, RunEstimate, StepEstimate

commands = verbs()
MaxMemory = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="SIZE", help="Memory limit, such as 8GB or 900MiB.", show_default=False),
]


@commands.command()
def estimate(
    arguments: Overrides = None,
    max_memory: MaxMemory = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens per row; by default those of the rows, or 256.", min=2, max=1 << 20, show_default=False
        ),
    ] = None,
    answer: Annotated[int, typer.Option(help="With --tokens: number of answer tokens.", min=1)] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.", show_default=False)] = None,
    given: RowOptions = NO_ROWS,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Estimate the memory and time of a step, next to other methods.

    No weights are read. Example: zofo estimate RECIPE
    """
    from zofo.estimate import RowSource, estimate_run, fitting, known_machine, parse_bytes
    from zofo.estimate.report import device_of
    from zofo.training import read_config

    config = read_config(*split_arguments(arguments, given.keys))
    limit = None if max_memory is None else parse_bytes(max_memory)
    found = estimate_run(config, tokens, answer, device, limit is None, trust_remote_code, _progress)
    fits: list[Fit] = []
    if limit is not None:
        source = RowSource(config, tokens, answer, trust_remote_code)
        place = device_of(config, device)
        fits = fitting(config, source, known_machine(), place, limit, on_progress=_progress)
    if as_json:
        out.say_json(_as_json(found, fits))
        return
    _say_estimate(found, config.model.name)
    if limit is not None:
        _say_fits(found.configured, fits, limit)


def _progress(text: str) -> None:
    if err.is_terminal:
        _stage(text)


def _stage(text: str) -> None:
    err.say((text, "dim"))


def _say_estimate(found: RunEstimate, model: str) -> None:
    from zofo.training.evaluation import as_number

    own = found.configured
    out.say((f"{model}, {found.name}, on {found.device}", "bold"))
    out.say(f"rows: {found.rows}")
    table = Table(box=None, pad_edge=False)
    for heading in ("memory", "GiB", "what it is"):
        table.add_column(heading, justify="right" if heading == "GiB" else "left")
    for term in own.terms:
        table.add_row(term.name, _gibibytes(term.size), term.about)
    table.add_row("peak", _gibibytes(own.peak_bytes), own.moment, style="bold")
    out.say_table(table)
    lost = sum(term.size for term in own.terms if term.name == "not given back")
    if lost > 0.05 * own.peak_bytes:
        out.say(("on Linux, MALLOC_MMAP_THRESHOLD_=262144 before zofo takes most of what is not given back off", "dim"))
    if found.beside:
        floor = found.beside.get("inference")
        beside = Table(box=None, pad_edge=False)
        beside.add_column("way", no_wrap=True)
        for heading in ("peak GiB", "/ inference", "seconds a step", "/ inference"):
            beside.add_column(heading, justify="right")
        for name, one in {found.name: own, **found.beside}.items():
            beside.add_row(*_row(name, one, floor), style="bold" if one is own else "")
        out.say_table(beside)
        for name, one in found.beside.items():
            if isinstance(one, str):
                out.say((f"{name}: {one}", "dim"))
    if own.seconds is None:
        out.say("time is not known on CUDA: no constants were measured there; torch's allocator is all of its memory")
    else:
        out.say(f"a step takes {as_number(own.seconds)} s, by {found.machine}; your own: zofo bench calibrate")


def _row(name: str, one: StepEstimate | str, floor: StepEstimate | str | None) -> list[str]:
    if isinstance(one, str):
        return [name, "-", "-", "-", "-"]
    seconds = "-" if one.seconds is None else f"{one.seconds:.2f}"
    if floor is None or isinstance(floor, str):
        return [name, _gibibytes(one.peak_bytes), "-", seconds, "-"]
    times = "-" if one.seconds is None or not floor.seconds else f"{one.seconds / floor.seconds:.2f}"
    return [name, _gibibytes(one.peak_bytes), f"{one.peak_bytes / floor.peak_bytes:.2f}", seconds, times]


def _say_fits(own: StepEstimate, fits: list[Fit], limit: int) -> None:
    shown = _gibibytes(limit)
    if not fits[0].fits:
        small = fits[0]
        out.say(
            (f"nothing fits into {shown} GiB; the smallest takes {_gibibytes(small.estimate.peak_bytes)} GiB:", "bold")
        )
    else:
        fitting = " (so does what is configured)" if own.peak_bytes <= limit else ""
        out.say((f"what fits into {shown} GiB{fitting}, the first one first:", "bold"))
    for fit in fits:
        seconds = fit.estimate.seconds
        time = "" if seconds is None else f", {seconds:.2f} s a step"
        if seconds is not None and own.seconds:
            time += f" ({seconds / own.seconds:.2f} times what is configured)"
        out.say(f"{_gibibytes(fit.estimate.peak_bytes)} GiB{time}")
        out.say(f"  {' '.join(_quoted(key) for key in fit.keys)}")
        if fit.needs is not None:
            out.say(f"  needs: {fit.needs}")


def _quoted(key: str) -> str:
    return f"'{key}'" if " " in key else key


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _as_json(found: RunEstimate, fits: list[Fit]) -> dict[str, Any]:
    def one(step: StepEstimate | str) -> Any:
        if isinstance(step, str):
            return {"error": step}
        return {"peak_bytes": step.peak_bytes, "seconds": step.seconds, "moment": step.moment}

    return {
        "method": found.name,
        **one(found.configured),
        "terms": [asdict(term) for term in found.configured.terms],
        "beside": {name: one(step) for name, step in found.beside.items()},
        "rows": found.rows,
        "device": found.device,
        "measured": found.machine,
        "fits": [{"keys": list(fit.keys), "fits": fit.fits, **one(fit.estimate)} for fit in fits],
    }


def say_dry_run(found: DryRun) -> None:
    """Print the cost of a step next to its estimate."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("estimated", "measured", "estimated / measured"):
        table.add_column(heading, justify="right")
    of = found.estimate
    shares = f"{of.peak_bytes / found.peak_bytes:.2f}"
    table.add_row("peak GiB", _gibibytes(of.peak_bytes), _gibibytes(found.peak_bytes), shares)
    if of.seconds is None:
        table.add_row("seconds a step", "-", f"{found.seconds:.2f}", "-")
    else:
        ratio = f"{of.seconds / found.seconds:.2f}"
        table.add_row("seconds a step", f"{of.seconds:.2f}", f"{found.seconds:.2f}", ratio)
    out.say_table(table)
    if of.seconds is not None:
        out.say((f"estimated by {found.machine}", "dim"))
    out.say(f"the step saw a loss of {found.loss:.4f} on the longest rows; nothing was written, and it is undone")


@commands.command(name="recommend", no_args_is_help=True)
def recommend_config(
    arguments: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="An embedded model, a folder or a Hub id.", show_default=False)
    ] = None,
    max_memory: MaxMemory = None,
    seconds: Annotated[
        str | None,
        typer.Option("--time", metavar="TIME", help="Time limit, such as 90s, 20m or 2h.", show_default=False),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="New file for the configuration, for `zofo train`.", show_default=False)
    ] = None,
    given: RowOptions = NO_ROWS,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Recommend a configuration for your rows and this machine.

    Prints the reasons as comments. Example: zofo recommend --data FILE
    """
    from zofo.errors import ConfigError
    from zofo.estimate import parse_bytes, recommend
    from zofo.estimate.fit import parse_seconds
    from zofo.estimate.recommend import check_new
    from zofo.training.config import changed, given_layers

    if write is not None:
        check_new(write)  # before minutes of work
    named = [] if model is None else [f"model.name={json.dumps(model)}"]
    content, changes, _ = given_layers(*split_arguments(arguments, [*given.keys, *named]), {})
    tree = changed(content, changes)
    if write is not None:
        tree.setdefault("output_dir", f"runs/{write.stem}")  # so that the same command goes on with a stopped run
    limit = None if max_memory is None else parse_bytes(max_memory)
    time = None if seconds is None else parse_seconds(seconds)
    found = recommend(tree, limit, time, trust_remote_code, _stage)
    if limit is not None and found.peak_bytes and found.peak_bytes > limit:
        raise ConfigError(
            f"nothing fits into {_gibibytes(limit)} GiB: the smallest takes {_gibibytes(found.peak_bytes)}",
            f"give --max-memory {found.peak_bytes / 2**30 + 0.01:.2f}GiB, or name a smaller model",
        )
    if write is not None:
        found.write(write)
    if as_json:
        out.say_json({**asdict(found), "written": None if write is None else str(write)})
        return
    for line in found.to_yaml().splitlines():
        out.say((line, "dim" if line.startswith("#") else ""))
    if found.peak_bytes:
        took = "" if found.seconds is None else f", about {_duration(found.seconds)} by {found.machine}"
        out.say((f"expected: {_gibibytes(found.peak_bytes)} GiB{took}", "bold"))
    out.say(f"wrote {write}; then: zofo train {write}" if write is not None else "to keep it: --write my.yaml")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
