"""The demo: what zofo is for, in a few scenes, each way beside what one would use otherwise."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zofo.demo.scenes import SCENES, Scene, write_files
from zofo.demo.side_by_side import Share, train_each
from zofo.errors import RunError
from zofo.report import ReportedRun, compare_runs, read_runs, write_report
from zofo.signals import Signals
from zofo.significance import paired
from zofo.training import RunFolder, as_percent

Rows = dict[str, dict[str, Any] | None]
"""By name, what came out of a run; None of one that failed."""
RunRewards = dict[str, list[float]]
"""By model of a run, the reward of each of its answers."""
Reward = Callable[[Any, Any], float]
_MARK = ".demo"
_WIDTH = 80  # columns of a table
_REPORT = "report.html"


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Args:
        folder: with summary.json, report.html, and a run folder for each way.
        summary: the content of summary.json.
    """

    folder: Path
    summary: dict[str, Any]


@Signals().raise_on_signal()
def run_demo(
    folder: Path,
    console: Console,
    queries: int | None = None,
    scenes: Sequence[Scene] = SCENES,
    prepare: Callable[[Path], None] = write_files,
) -> DemoResult:
    """Run the contenders of all scenes, each in a process of its own, and show a table a scene.

    A scene whose contender needs a package that is not there is left out, which is said. A contender that fails costs
    the others nothing: their results are shown and kept, and the demo fails at its end.

    Args:
        folder: written anew; the runs of an earlier demo there are replaced, any other folder is refused.
        console: where progress and the tables are shown.
        queries: the most that a run may spend, for a short look; by default what each scene says.
        scenes: what is shown.
        prepare: is given the folder first, for what the runs read there.

    Raises:
        DownloadError: the model or the rows cannot be fetched.
        RunError: the folder exists and was not written by the demo, or a run failed.
        Interrupted: the process was asked to stop, by SIGTERM or Ctrl-C; the run that it was at is stopped with it.
    """
    start, folder = time.perf_counter(), folder.absolute()
    _make_room(folder, scenes)
    console.print("What is missing of models and rows is fetched once, with pip.", soft_wrap=True)
    prepare(folder)
    share = Share.here()
    console.print(f"{str(share).capitalize()}; what each says is shown in turn.", soft_wrap=True, highlight=False)
    missing = {scene.title: _missing(scene) for scene in scenes}
    all_of_them = [one for scene in scenes if not missing[scene.title] for one in scene.contenders]
    contenders = list({one.name: one for one in all_of_them}.values())
    rows: Rows = {}
    shown: list[dict[str, Any]] = []
    with closing(train_each(folder, contenders, queries, share, console)) as trained:
        for number, scene in enumerate(scenes, start=1):
            console.print(Text.assemble("\n", (f"{number}. {scene.title}", "bold")), soft_wrap=True)
            if missing[scene.title]:
                said = f"left out: {missing[scene.title]} is not installed; pip install 'zofo[quantized]'"
                console.print(said, soft_wrap=True, markup=False)
                shown.append({"title": scene.title, "left_out": said})
                continue
            for one in scene.contenders:
                if one.name not in rows:
                    run = next(trained)
                    rows[one.name] = None if run is None else _row(one.name, run)
            shown.append(_told(folder, scene, rows, console))
            _keep(folder, shown, scenes, time.perf_counter() - start)
    summary = _keep(folder, shown, scenes, time.perf_counter() - start)
    scored = {one.name for scene in scenes for one in scene.contenders if one.scored}
    done = [row for row in rows.values() if row is not None]
    _say_what_is_there(folder, done, scored, share, console)
    console.print(f"All of it took {time.perf_counter() - start:.0f} s.", highlight=False)
    _check_all_made(folder, rows)
    return DemoResult(folder, summary)


def _check_all_made(folder: Path, rows: Rows) -> None:
    failed = [name for name, row in rows.items() if row is None]
    if failed:
        raise RunError(
            f"training {', '.join(map(repr, failed))} failed, as said above; the others are in {str(folder)!r}",
            "run the demo again",
        )


def _make_room(folder: Path, scenes: Sequence[Scene]) -> None:
    if folder.exists() or folder.is_symlink():
        if not (folder / _MARK).is_file():
            raise RunError(f"{str(folder)!r} exists and is not an earlier demo", "choose another folder with --out")
        for name in ("summary.json", _REPORT):
            (folder / name).unlink(missing_ok=True)
        for one in (one for scene in scenes for one in scene.contenders):
            shutil.rmtree(folder / one.name, ignore_errors=True)
        return
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        message = f"cannot make the folder {str(folder)!r}: {error.strerror}"
        raise RunError(message, "choose another folder with --out") from error
    (folder / _MARK).touch()


def _missing(scene: Scene) -> str:
    """A module that the scene needs and that is not there; empty where there is none."""
    needed = (module for one in scene.contenders for module in one.needs)
    return next((module for module in needed if importlib.util.find_spec(module) is None), "")


def _row(name: str, run: RunFolder) -> dict[str, Any]:
    """What came out of one of them."""
    summary = run.summary
    work = ("metric", "queries", "forwards", "backwards", "seconds", "peak_bytes", "evaluation", "before_after")
    kept = {key: summary[key] for key in ("task", "split", "variants", *work) if key in summary}
    return {"name": name, summary["metric"]: summary[summary["metric"]], **kept}


def _told(folder: Path, scene: Scene, rows: Rows, console: Console) -> dict[str, Any]:
    """Show the table of a scene, and what can be said of the first of its contenders beside the others."""
    found = {one.name: rows[one.name] for one in scene.contenders}
    done = {name: row for name, row in found.items() if row is not None}
    runs = read_runs([folder / name for name in done]) if done else []
    unscored = {one.name for one in scene.contenders if not one.scored}
    rewards = {} if scene.reward is None else {run.name: _rewards_of(run, scene.reward) for run in runs}
    console.print(_table(scene, found, runs, rewards, unscored), width=_WIDTH)
    verdicts = []
    if scene.contenders[0].name in done and len(done) > 1:
        scored = [run for run in runs if run.name not in unscored]
        verdicts = [*_memory(done), *(_by_metric(scored) if scene.reward is None else _by_reward(rewards))]
    for line in (*verdicts, scene.shows):
        console.print(line, width=_WIDTH, markup=False, highlight=False)
    means = {name: {variant: fmean(values) for variant, values in own.items()} for name, own in rewards.items()}
    kept = [{**row, **({"reward": means[name]} if rewards else {})} for name, row in done.items()]
    return {"title": scene.title, "shows": scene.shows, "rows": kept, "verdicts": verdicts}


def _memory(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """The peak memory of the first beside that of the others that are trained."""
    (first, own), *others = rows.items()
    peak = own["peak_bytes"]
    ratios = [f"{peak / row['peak_bytes']:.2f} times that of {name}" for name, row in others if row["queries"]]
    return [f"peak memory of {first}: {', '.join(ratios)}"] if ratios else []


def _rewards_of(run: ReportedRun, reward: Reward) -> RunRewards:
    """The reward of each answer of each model of a run, in the order of the examples."""
    scored = sorted(run.answered("validation"), key=lambda one: one.where)
    return {name: [reward(one.example, one.predicted[name]) for one in scored] for name in run.summary["variants"]}


def _by_metric(runs: Sequence[ReportedRun]) -> list[str]:
    """What the paired tests over examples say of the first run beside each of the others."""
    return [pair.verdict for pair in compare_runs(runs).pairs] if len(runs) > 1 else []


def _by_reward(rewards: Mapping[str, RunRewards]) -> list[str]:
    """The same of the rewards of answers, by a paired t-test."""
    values = {name: next(iter(own.values())) for name, own in rewards.items()}
    first, *others = values
    said = []
    for other in others:
        found = paired(values[first], values[other]).difference
        half = math.inf if found.half is None else found.half
        clear = abs(found.mean) > half
        middle = abs(found.mean) if clear else found.mean
        between = f"95 %: {middle - half:+.3f} to {middle + half:+.3f} an answer"
        if clear:
            better, worse = (first, other) if found.mean > 0 else (other, first)
            said.append(f"{better} is better than {worse} by {middle:.3f} ({between})")
        else:
            said.append(f"no difference between {first} and {other} that {found.n} examples can show ({between})")
    return said


def _table(
    scene: Scene, rows: Rows, runs: Sequence[ReportedRun], rewards: Mapping[str, RunRewards], unscored: Container[str]
) -> Table:
    table = Table(title=scene.title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("way", no_wrap=True)
    score = "reward" if scene.reward is not None else runs[0].metric if runs else "score"
    for heading in (score, "queries", "backwards", "seconds", "peak GiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    if runs and scene.reward is None:
        table.add_row("always the most frequent", as_percent(runs[0].scores("validation")["majority"]))
    for name, row in rows.items():
        if row is None:
            table.add_row(name, "failed")
            continue
        for number, (variant, own) in enumerate(row["variants"].items()):
            cost = [f"{row['seconds']:.0f}", f"{row['peak_bytes'] / 2**30:.2f}"]
            work = [*(str(row[key]) for key in ("queries", "backwards")), *cost]
            shown = f"{fmean(rewards[name][variant]):.3f}" if rewards else as_percent(own[row["metric"]])
            shown = "-" if name in unscored else shown
            label = "  " + variant.replace("_", " ") if number else name
            table.add_row(label, shown, *([] if number else work))
    return table


def _keep(folder: Path, shown: list[dict[str, Any]], scenes: Sequence[Scene], seconds: float) -> dict[str, Any]:
    """Write what is known so far, so that a demo that is stopped leaves it."""
    settings = {one.name: dataclasses.asdict(one) for scene in scenes for one in scene.contenders}
    summary = {"seconds": seconds, "scenes": shown, "settings": settings}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _say_what_is_there(
    folder: Path, rows: Sequence[dict[str, Any]], scored: Container[str], share: Share, console: Console
) -> None:
    """Write the report, and how to open it and to use a run: the best of the scored ones by the score of the first."""
    told = f"seconds: training alone, {share}; peak: of a run's whole process, evaluation with it"
    console.print(f"\n{told}; one seed, another may differ by more", width=_WIDTH, highlight=False)
    if not rows:
        return
    page, zofo = folder / _REPORT, Path(sys.executable).parent / "zofo"
    write_report(read_runs([folder / row["name"] for row in rows]), page)
    shown = {"Curves, mistakes and settings of all runs, in a browser": page.as_uri()}
    own = [row for row in rows if row["name"] in scored]
    if own:
        metric = own[0]["metric"]
        best = max((row for row in own if row["metric"] == metric), key=lambda row: float(row[metric]))["name"]
        shown["Each run can be used"] = f"{zofo} predict {folder / best} 'A joy from start to finish.'"
    for about, line in shown.items():
        console.print(f"\n{about}:\n  {line}", soft_wrap=True, highlight=False, markup=False)
