"""Verbs that measure and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zofo.cli.options import AsJson, RemoteCode, err, leaving_when_stopped, out, verbs

commands = verbs()
bench = verbs("Measure what work costs on this machine.")


@bench.command(name="step")
def bench_step(
    model: Annotated[str, typer.Option(help="An embedded model, a folder or a Hub id.")] = "smollm2-135m",
    rows: Annotated[int, typer.Option(help="Examples in the batch.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens of each example's prompt.")] = 64,
    rank: Annotated[int, typer.Option(help="Rank of the low-rank noise.")] = 1,
    repeats: Annotated[int, typer.Option(help="Rounds in which every way is timed.")] = 5,
    dtype: Annotated[str, typer.Option(help="Number type: float32, bfloat16 or float16.")] = "float32",
    trainable: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern of the tensors that steps in place and in the forward move; may be given several times.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.", show_default=False)] = None,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peaks, each in its own process.")
    ] = True,
) -> None:
    """Time and memory of one training step in every way, beside inference on the same batch."""
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
    rows: Annotated[int, typer.Option(help="Examples in the batch.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens of each example's prompt.")] = 256,
    steps: Annotated[int, typer.Option(help="Steps that each way makes.")] = 3,
    ways: Annotated[
        list[str] | None, typer.Option("--way", help="One way; may be given several times.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--json", help="Add a row a way; those that it holds are kept.", show_default=False)
    ] = None,
) -> None:
    """Peak memory of asking and training a model in every way, each in its own process, and the time of a step."""
    from zofo.bench import MemoryOptions, frontier_table
    from zofo.bench import bench_memory as measure

    options = MemoryOptions(model, rows, tokens, steps)
    found = measure(options, ways or [], file, lambda text: err.say((text, "dim")))
    out.print(frontier_table(found), soft_wrap=False)


@bench.command(name="calibrate")
def bench_calibrate(as_json: AsJson = False) -> None:
    """Measure this machine's constants for `zofo estimate`; takes half a minute, and wants the machine for itself."""
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
        Path | None, typer.Option("--out", help="Where the runs and report.md go; by default runs/NAME.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the runs and the time they would take, and stop.")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the results of what is done, and stop.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each in a process of its own.", min=1)] = 1,
    data: Annotated[
        Path | None, typer.Option(help="A folder that holds a folder for each task.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over a key of the file.", show_default=False)
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out tasks whose folder is not there.")
    ] = False,
    size: Annotated[
        str | None, typer.Option(help="One of the sizes that the file names, such as gpu.", show_default=False)
    ] = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Compare methods, as a file says; stopped at any time and typed again, it goes on: zofo study FILE."""
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
    folder: Annotated[Path, typer.Option("--out", help="Where runs, summary.json and report.html go.")] = Path(
        "runs/demo"
    ),
    queries: Annotated[
        int | None,
        typer.Option(min=96, help="The most that a run may spend, for a short look.", show_default=False),
    ] = None,
) -> None:
    """What zofo is for, in three scenes, each way beside what one would use otherwise."""
    from zofo.demo import run_demo

    with leaving_when_stopped():
        run_demo(folder, out, queries)
