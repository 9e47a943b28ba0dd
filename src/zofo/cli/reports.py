"""Commands that look at existing runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from zofo.cli.options import AsJson, out, verbs

if TYPE_CHECKING:
    from zofo.report import RunComparison

commands = verbs()
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs or studies.")]
_REFRESH = 10  # seconds


@commands.command()
def compare(
    runs: Runs,
    split: Annotated[
        str | None, typer.Option(help="validation or test; by default test if all runs have it.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs: scores, differences, and whether they are noise.

    Example: zofo compare RUN_A RUN_B
    """
    from zofo.report import compare_runs

    found = compare_runs(runs, split)
    if as_json:
        out.say_json(_as_json(found))
        return
    out.say_table(_table(found))
    if found.options:
        out.say((f"and {len(found.options)} options of parts that not all of them have: see --json", "dim"))
    if found.means:
        out.say_table(_means(found))
    for group in found.groups:
        out.say((group.verdict, "bold"))
    for pair in found.pairs:
        out.say((pair.verdict, "bold"))
        if pair.mcnemar is not None:
            alone = f"{pair.against} alone is right on {pair.only_first}, {pair.name} alone on {pair.only_second}"
            out.say(f"  {alone} of {pair.examples} examples (McNemar's exact test of accuracy: p = {pair.mcnemar:.3g})")
        if pair.loss is not None:
            low, high = pair.loss.low, pair.loss.high
            out.say(f"  loss of {pair.name}: {pair.loss.value:+.4f} (95 %: {low:+.4f} to {high:+.4f})")
    for note in found.notes:
        out.say((f"note: {note}", "yellow"))


@commands.command()
def report(
    runs: Runs,
    file: Annotated[Path, typer.Option("-o", "--out", help="The HTML file to write.")] = Path("report.html"),
    live: Annotated[
        bool, typer.Option("--live", help="Rewrite it every ten seconds until all runs have ended.")
    ] = False,
) -> None:
    """Write one HTML page about runs: curves, scores, examples.

    It needs no network. Example: zofo report RUN... -o report.html
    """
    from zofo.report import read_runs, write_report

    found = read_runs(runs)
    going = live and any(run.state for run in found)
    write_report(found, file, _REFRESH if going else None)
    out.say(f"report: {file}; open it in a browser")
    try:
        while going:
            time.sleep(_REFRESH)
            found = read_runs(runs)
            going = any(not run.summary for run in found)
            write_report(found, file, _REFRESH if going else None)
    except KeyboardInterrupt:
        write_report(found, file)  # which no longer loads itself again
        out.say("the page is as it was last written; the runs go on")


@commands.command()
def watch(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Follow a run from another terminal.

    Ctrl-C ends watching, not the run. Example: zofo watch RUN
    """
    from zofo.report import watch_run

    try:
        for line in watch_run(run):
            out.say(line)
    except KeyboardInterrupt:
        out.say("the run goes on")


def _table(found: RunComparison) -> Table:
    """Runs side by side; shares in percent."""
    from zofo.training.evaluation import as_number, as_score

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for run in found.runs:
        table.add_column(run.name, justify="right", overflow="fold")
    scores = [run.scores(found.split) for run in found.runs]
    metrics = {run.score_name: run.metric for run in found.runs}
    for name, metric in metrics.items():
        unit = "" if metric == "loss" else ", %"
        same = [run.score_name == name for run in found.runs]
        shares = [as_score(one.get(metric) if own else None, metric) for one, own in zip(scores, same, strict=True)]
        table.add_row(f"{name} on {found.split}{unit}", *shares, style="bold")
    table.add_row(
        "majority", *(as_score(one.get("majority"), run.metric) for one, run in zip(scores, found.runs, strict=True))
    )
    table.add_row("loss", *(as_number(one.get("loss")) for one in scores))
    table.add_row("queries", *(f"{run.steps[-1]['queries']:,}" if run.steps else "0" for run in found.runs))
    table.add_row("seconds", *(as_number(run.summary.get("seconds")) for run in found.runs))
    peaks = [run.summary.get("peak_bytes") for run in found.runs]
    table.add_row("peak GiB", *("-" if peak is None else as_number(peak / 2**30) for peak in peaks))
    for key, values in found.settings:
        table.add_row(key, *("-" if value is None else str(value) for value in values), style="dim")
    return table


def _means(found: RunComparison) -> Table:
    """Means over seeds, with their 95 % intervals."""
    table = Table(box=None, pad_edge=False)
    for name in ("mean, 95 %", found.runs[0].score_name, "majority", "loss", "queries", "seconds"):
        table.add_column(name, justify="left" if name == "mean, 95 %" else "right", overflow="fold")
    for row in found.means:
        table.add_row(*(row[key] for key in ("name", "score", "majority", "loss", "queries", "seconds")))
    return table


def _as_json(found: RunComparison) -> dict[str, Any]:
    runs = [{"name": run.name, "folder": str(run.folder.path), **run.scores(found.split)} for run in found.runs]
    return {
        "split": found.split,
        "runs": runs,
        "settings": dict([*found.settings, *found.options]),
        "pairs": [{**asdict(pair), "verdict": pair.verdict} for pair in found.pairs],
        "means": found.means,
        "groups": [{**asdict(group), "verdict": group.verdict} for group in found.groups],
        "notes": found.notes,
    }
