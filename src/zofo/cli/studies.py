"""Commands that measure and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zofo.cli.options import AsJson, RemoteCode, err, leaving_when_stopped, out, verbs

commands = verbs()
bench = verbs("Measure time and memory on this machine.")


@bench.command(name="step")
def bench_step(
    model: Annotated[str, typer.Option(help="An embedded model, a folder or a Hub id.")] = "smollm2-135m",
    rows: Annotated[int, typer.Option(help="Batch size.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens of each example's prompt.")] = 64,
    rank: Annotated[int, typer.Option(help="Rank of the low-rank noise.")] = 1,
    repeats: Annotated[int, typer.Option(help="Number of timing rounds.")] = 5,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    trainable: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern of the tensors that zofo's zeroth-order steps move; can be repeated.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this file.", show_default=False)
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peak memory, each in its own process.")
    ] = True,
) -> None:
    """Time and memory of one training step, relative to inference."""
    from zofo.bench import StepOptions
    from zofo.bench import bench_step as measure

    options = StepOptions(model, rows, tokens, rank, repeats, dtype, trainable or None)
    report = measure(options, memory, file, lambda text: err.say((text, "dim")))
    out.say_table(report.table())


@bench.command(name="memory", saves=True)
def bench_memory(
    model: Annotated[
        str, typer.Option(help="An embedded model, a folder, a Hub id, or llama-300m or llama-1b of random weights.")
    ] = "smollm2-135m",
    rows: Annotated[int, typer.Option(help="Batch size.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens of each example's prompt.")] = 256,
    steps: Annotated[int, typer.Option(help="Number of steps for each way.")] = 3,
    ways: Annotated[
        list[str] | None, typer.Option("--way", help="Measure only this way; can be repeated.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--json", help="File to add a row per way to; existing rows are reused.", show_default=False),
    ] = None,
) -> None:
    """Peak memory and step time of each way to run or train a model."""
    from zofo.bench import MemoryOptions, frontier_table
    from zofo.bench import bench_memory as measure

    options = MemoryOptions(model, rows, tokens, steps)
    found = measure(options, ways or [], file, lambda text: err.say((text, "dim")))
    out.print(frontier_table(found), soft_wrap=False)


@bench.command(name="calibrate")
def bench_calibrate(as_json: AsJson = False) -> None:
    """Measure this machine's constants for `zofo estimate`.

    Takes half a minute, on an otherwise idle machine.
    """
    from dataclasses import asdict

    from zofo.estimate import calibrate

    machine, file = calibrate(lambda text: err.say((text, "dim")))
    if as_json:
        out.say_json(asdict(machine))
        return
    for dtype, seconds in machine.seconds_per_flop.items():
        out.say(f"products in {dtype}: {1e-9 / seconds:.1f} GFLOP/s")
    byte = machine.seconds_per_byte
    out.say(f"sweeps: {1e-9 / byte:.1f} GB/s" if byte else "sweeps take no time beside products here")
    out.say(f"an operation: {1e6 * machine.seconds_per_operation:.1f} microseconds")
    out.say(
        f"a process: {machine.process_bytes / 2**30:.2f} GiB, with an adapter {machine.adapter_bytes / 2**30:.2f} more"
    )
    out.say(f"wrote {file}, which zofo estimate reads from now on")


@commands.command(saves=True)
def study(
    name: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, or a study of `zofo list studies`.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for runs and report.md; by default runs/NAME.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the runs and their estimated time, and exit.")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the results of finished runs, and exit.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Number of runs at a time, each in its own process.", min=1)] = 1,
    data: Annotated[
        Path | None, typer.Option(help="Folder with a subfolder for each task.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value to override a key of the file; can be repeated.", show_default=False),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Skip tasks whose folder does not exist.")
    ] = False,
    size: Annotated[
        str | None, typer.Option(help="One of the sizes in the file, such as gpu.", show_default=False)
    ] = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Compare methods as a YAML file describes.

    If it was stopped, the same command resumes. Example: zofo study FILE
    """
    from zofo.errors import ConfigError
    from zofo.studies import plan_study, read_study, report_study, run_study

    if plan and report_only:
        raise ConfigError("--plan shows runs and --report-only writes results: a command does one", "leave one out")
    asked = read_study(name, settings or [], data, skip_missing, size)
    folder = folder or Path("runs") / asked.name
    if plan:
        for note in asked.notes:
            err.say(note)
        planned = plan_study(asked, folder, jobs, trust_remote_code, lambda text: err.say((text, "dim")))
        out.say_table(planned.table())
        for line in planned.lines():
            out.say(line)
        if any(row.fault for row in planned.rows):
            raise typer.Exit(1)
        return
    with leaving_when_stopped("type the same command again"):
        found = report_study(asked, folder) if report_only else run_study(asked, folder, err, jobs, trust_remote_code)
    failed = f", {found.failed} of them failed" if found.failed else ""
    missing = f"; {found.missing} are not done" if found.missing else ""
    out.say(f"{found.done} runs are done{failed}{missing}")
    out.say(f"report: {found.folder / 'report.md'}")


@commands.command(saves=True)
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder for runs, summary.json and report.html.")] = Path(
        "runs/demo"
    ),
    queries: Annotated[
        int | None,
        typer.Option(min=96, help="Maximum queries per run, for a shorter demo.", show_default=False),
    ] = None,
) -> None:
    """Show what zofo is for, in three scenes."""
    from zofo.demo import run_demo

    with leaving_when_stopped():
        run_demo(folder, out, queries)
