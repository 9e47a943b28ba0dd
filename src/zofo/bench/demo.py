"""The demo: a small real model learns to judge real sentences, by three methods with the same number of queries."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zofo.errors import RunError
from zofo.evaluators import Counts
from zofo.interpreters import python_command
from zofo.training import Evaluation, RunFolder, as_percent, prepare_run, read_config
from zofo.training.signals import Signals

QUERIES = 960
"""Forward passes of one example that each method may spend."""

CONTENDERS: dict[str, dict[str, Any]] = {
    "bilevel": {
        "name": "bilevel",
        "batch_size": 8,
        "inner_steps": 2,
        "penalty": 1,
        "lr_lower": 1e-3,
        "lr_adapter": 2.5e-3,
        "rule": {"name": "sgd", "lr": 2e-5},
    },
    "mezo": {"name": "mezo", "batch_size": 16, "rule": {"name": "sgd", "lr": 1e-4}},
    "fo-lora": {"name": "first-order", "batch_size": 8, "lr": 1e-3},
}
"""Configuration of each, chosen on validation: eleven settings tried for bilevel, one for mezo, two for fo-lora."""

_MARK = ".demo"


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Args:
        folder: with summary.json, and a run folder for each method.
        summary: the content of summary.json.
    """

    folder: Path
    summary: dict[str, Any]


@Signals().raise_on_signal()
def run_demo(
    folder: Path, console: Console, queries: int = QUERIES, model: str = "smollm2-135m", task: Any = "movie-reviews"
) -> DemoResult:
    """Zero-shot first, then every one of `CONTENDERS` at the same number of queries, each in a process of its own.

    Args:
        folder: written anew; the runs of an earlier demo there are replaced, any other folder is refused.
        console: where progress and the table are shown.
        queries: the budget of each method.
        model: as in a configuration.
        task: as in a configuration.

    Raises:
        RunError: the folder exists and was not written by the demo, or a method failed.
        Interrupted: the process was asked to stop, by SIGTERM or Ctrl-C; the run that it was at is stopped with it.
    """
    _make_room(folder)
    console.print(f"Loading {model} and its task (what is missing is fetched once, about 95 MB) ...", soft_wrap=True)
    zero_shot, counts = _zero_shot(console, model, task)
    rows = []
    for name, method in CONTENDERS.items():
        console.print(Text.assemble("\n", (name, "bold"), f": {queries} queries"))
        tree = {"model": model, "task": task, "method": method, "training": {"max_queries": queries}}
        rows.append(_row(name, _train(folder / name, read_config(output_dir=folder / name, **tree).to_yaml())))
    summary = {
        "model": model,
        "task": rows[0]["task"],
        "split": rows[0]["split"],
        "zero_shot": {**zero_shot.as_dict(), **counts.as_dict()},
        "methods": rows,
        "settings": CONTENDERS,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console.print(_table(zero_shot, rows))
    console.print("seconds: training alone; peak memory: of the whole process, training and evaluation", soft_wrap=True)
    command = f"{Path(sys.executable).parent / 'zofo'} predict {folder / 'bilevel'} 'A joy from start to finish.'"
    console.print(f"\nEach run can be used:\n  {command}", soft_wrap=True, highlight=False, markup=False)
    return DemoResult(folder, summary)


def _make_room(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        if not (folder / _MARK).is_file():
            raise RunError(f"{str(folder)!r} exists and is not an earlier demo", "choose another folder with --out")
        (folder / "summary.json").unlink(missing_ok=True)
        for name in CONTENDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        return
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from error
    (folder / _MARK).touch()


def _zero_shot(console: Console, model: str, task: Any) -> tuple[Evaluation, Counts]:
    prepared = prepare_run(read_config(model=model, task=task), splits=("validation",))
    examples, counts = prepared.encoded["validation"], Counts()
    example = prepared.examples["validation"][0]
    candidates = " or ".join(map(repr, example.candidates))
    shown = f"An example: {example.prompt!r} followed by {candidates}"
    console.print(shown, highlight=False, markup=False, soft_wrap=True)
    score = prepared.scorer.evaluate(prepared.loaded.model, examples, counts)
    about = f"Zero-shot {score.metric} on {len(examples)} validation sentences: "
    majority = f" (always the more frequent label: {as_percent(score.majority)})"
    console.print(Text.assemble(about, (as_percent(score.score), "bold"), majority), soft_wrap=True)
    return score, counts


def _train(folder: Path, configuration: str) -> RunFolder:
    """Train in a child process, so that its memory is its own."""
    file = folder.with_suffix(".yaml")
    file.write_text(configuration, encoding="utf-8")
    try:  # where this process is asked to stop, `run` ends the other one
        done = subprocess.run(python_command("from zofo.cli import main; main()", "train", str(file)), check=False)
    finally:
        file.unlink()
    if done.returncode:
        raise RunError(f"training {folder.name!r} failed, as said above", "run the demo again")
    return RunFolder.open(folder)


def _row(name: str, run: RunFolder) -> dict[str, Any]:
    summary = run.summary
    metric = summary["metric"]
    work = ("forwards", "backwards", "queries", "seconds", "peak_bytes", "evaluation")
    kept = {key: summary[key] for key in ("task", "split", "loss", "variants", *work)}
    return {"name": name, "metric": metric, metric: summary[metric], **kept}


def _table(zero_shot: Evaluation, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{zero_shot.metric} on validation at equal queries")
    table.add_column("method", no_wrap=True)
    for heading in (zero_shot.metric, "queries", "forwards", "backwards", "seconds", "peak memory"):
        table.add_column(heading, justify="right")
    table.add_row("zero-shot", as_percent(zero_shot.score), "0", "0", "0", "", "")
    for row in rows:
        for variant, scores in row["variants"].items():
            first = variant == next(iter(row["variants"]))
            work = [str(row[key]) for key in ("queries", "forwards", "backwards")] if first else ["", "", ""]
            cost = [f"{row['seconds']:.0f}", f"{row['peak_bytes'] / 2**30:.2f} GiB"] if first else ["", ""]
            label = row["name"] if first else "  " + variant.replace("_", " ")
            table.add_row(label, as_percent(scores[row["metric"]]), *work, *cost)
    return table
