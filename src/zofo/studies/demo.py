"""The demo: a small real model learns to judge real sentences, by three methods with the same number of queries."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zofo.errors import RunError
from zofo.evaluators import Counts
from zofo.training import RunFolder, as_percent, evaluate, load_material, read_config, train

QUERIES = 1440
"""Forward passes of one example that each method may spend."""

METHODS: dict[str, dict[str, Any]] = {
    "bilevel": {
        "name": "bilevel",
        "batch_size": 8,
        "inner_steps": 4,
        "penalty": 10,
        "lr_lower": 1e-3,
        "lr_adapter": 4e-3,
        "rule": {"name": "sgd", "lr": 2e-5},
    },
    "mezo": {"name": "mezo", "batch_size": 16, "rule": {"name": "sgd", "lr": 1e-4}},
    "fo-lora": {"name": "first-order", "batch_size": 8, "lr": 1e-3},
}
"""Configuration of each method; values were chosen on the validation split with other seeds."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Args:
        folder: with summary.json, and a run folder for each method.
        summary: the content of summary.json.
    """

    folder: Path
    summary: dict[str, Any]


def run_demo(
    folder: Path, console: Console, queries: int = QUERIES, model: str = "smollm2-135m", task: Any = "movie-reviews"
) -> DemoResult:
    """Zero-shot first, then every method of `METHODS` at the same number of queries.

    Args:
        folder: written anew; an earlier demo there is replaced, anything else refused.
        console: where progress and the table are shown.
        queries: the budget of each method.
        model: as in a configuration.
        task: as in a configuration.

    Raises:
        RunError: the folder exists and was not written by the demo.
    """
    _make_room(folder)
    console.print(f"Loading {model} and its task (what is missing is fetched once, about 95 MB) ...")
    config = read_config(model=model, task=task)
    material = load_material(config)
    counts = Counts()
    zero_shot = evaluate(
        material.loaded.model, material.encoded["validation"], material.make, material.task.metric, 32, counts
    )
    _show_example(console, material.examples["validation"][0].prompt, material.task.verbalizers)
    console.print(
        f"Zero-shot accuracy on {len(material.encoded['validation'])} validation sentences: "
        f"[bold]{as_percent(zero_shot.score)}[/bold] (always the more frequent label: {as_percent(zero_shot.majority)})"
    )
    del material

    rows = []
    for name, method in METHODS.items():
        console.print(f"\n[bold]{name}[/bold]: {queries} queries")
        run = train(
            read_config(
                model=model,
                task=task,
                method=method,
                training={"queries": queries},
                run=folder / name,
            ),
            console,
        )
        rows.append(_row(name, run))
    summary = {
        "demo": 1,
        "model": config.model.name,
        "task": config.task.name,
        "zero_shot": {**zero_shot.as_dict(), **counts.as_dict()},
        "methods": rows,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console.print(_table(zero_shot.score, rows))
    console.print(f"\nEach run can be used:  zofo predict {folder / 'bilevel'} 'A joy from start to finish.'")
    return DemoResult(folder, summary)


def _make_room(folder: Path) -> None:
    if folder.exists():
        summary = folder / "summary.json"
        ours = (folder / ".demo").is_file() or (summary.is_file() and '"demo"' in summary.read_text(encoding="utf-8"))
        if not ours:
            raise RunError(f"{str(folder)!r} exists and is not an earlier demo", "choose another folder with --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / ".demo").touch()


def _show_example(console: Console, prompt: str, verbalizers: dict[int | str, str]) -> None:
    candidates = " or ".join(repr(text) for text in verbalizers.values())
    console.print(f"An example: {prompt!r} followed by {candidates}", highlight=False, markup=False)


def _row(name: str, run: RunFolder) -> dict[str, Any]:
    summary = run.summary
    keys = ("accuracy", "loss", "forwards", "backwards", "queries", "seconds", "peak_bytes", "variants", "best")
    return {"name": name, **{key: summary[key] for key in keys}, "run": str(run.path)}


def _table(zero_shot: float, rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Accuracy on validation at equal queries")
    table.add_column("method")
    for heading in ("accuracy", "queries", "forwards", "backwards", "seconds", "peak memory"):
        table.add_column(heading, justify="right")
    table.add_row("zero-shot", as_percent(zero_shot), "0", "0", "0", "", "")
    for row in rows:
        table.add_row(
            row["name"],
            as_percent(row["accuracy"]),
            *(str(row[key]) for key in ("queries", "forwards", "backwards")),
            f"{row['seconds']:.0f}",
            f"{row['peak_bytes'] / 2**30:.2f} GiB",
        )
    return table
