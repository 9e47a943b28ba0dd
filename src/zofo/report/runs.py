"""The data of a run for reports: its configuration, its log, its outcome and its models' answers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zofo.config import parse_model
from zofo.errors import RunError, ZofoError
from zofo.filesystem import real
from zofo.tasks import score_name
from zofo.training import RunConfig, RunFolder
from zofo.training.run_logs import ScoredExample, metrics_lines, read_answers
from zofo.training.run_record import ANSWERS, SUMMARY
from zofo.trees import flatten, without

SEEDS = ("training.seed", "task.split_seed")
"""The keys in which runs of one group may differ."""


@dataclass(frozen=True)
class ReportedRun:
    """A run as a report shows it.

    Args:
        name: its name among the runs.
        task: title of its task.
        settings: every key of its configuration that has an effect, dotted, with its value.
        events: the lines of its log in order.
        summary: its outcome; empty for a run that is active, or whose process died.
        examples: its models' last answers; empty for a run of an older version.
        group: name of the group; its runs differ only in their seed.
    """

    name: str
    folder: RunFolder
    task: str
    settings: dict[str, Any]
    events: list[dict[str, Any]]
    summary: dict[str, Any] = field(default_factory=dict)
    examples: list[ScoredExample] = field(default_factory=list)
    group: str = ""

    @property
    def seed(self) -> tuple[Any, ...]:
        """What distinguishes it within its group."""
        return tuple(self.settings.get(key) for key in SEEDS)

    @property
    def state(self) -> str:
        """Why it has not ended, in words; empty if it has."""
        if not self.summary:
            return "has not ended: it is going on, or was killed"
        stopped = self.summary.get("stopped")
        return f"was stopped: {stopped}" if stopped else ""

    @property
    def conclusions(self) -> list[str]:
        """Its messages after the last step: what `select` kept, that it diverged."""
        return [str(one) for one in self.summary.get("conclusions", [])]

    @property
    def metric(self) -> str:
        """Name of its score; empty before the first evaluation."""
        first = next(self.evaluations, None)
        names = (key for key in first or () if key not in ("event", "steps", "variant"))
        return str(self.summary.get("metric") or next(names, ""))

    @property
    def score_name(self) -> str:
        """Its score for people, with its label: "f1 of 'fraud'"."""
        return score_name(self.metric, str(self.summary.get("positive_label", "")))

    @property
    def variant(self) -> str:
        """The main model."""
        first = next(self.evaluations, {"variant": "model"})
        return str(next(iter(self.summary.get("variants", {})), first["variant"]))

    @property
    def evaluations(self) -> Any:
        """The evaluations on validation in its log."""
        return (line for line in self.events if line["event"] == "evaluation")

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps in its log."""
        return [line for line in self.events if line["event"] == "step"]

    def scores(self, split: str) -> dict[str, float]:
        """Scores, loss and majority of the main model on a split; empty if it was not scored.

        For a run without an outcome, those of its last evaluation.
        """
        variants = self.summary.get("test", {}) if split == "test" else self.summary.get("variants", {})
        found = variants.get(self.variant)
        if found or split == "test" or self.summary:
            return dict(found or {})
        own = [line for line in self.evaluations if line["variant"] == self.variant]
        return {k: v for k, v in own[-1].items() if isinstance(v, int | float)} if own else {}

    def answered(self, split: str) -> list[ScoredExample]:
        """The examples of a split."""
        return [one for one in self.examples if one.split == split]


def read_runs(paths: Sequence[Path | str]) -> list[ReportedRun]:
    """Read runs, and for a study its final runs.

    Raises:
        RunError: a folder is neither a run nor a study, or is given twice; the message names it.
    """
    found: list[ReportedRun] = []
    for path in map(Path, paths):
        found += _of_study(path) if (path / "study.json").is_file() else [_read(path, path.name or str(path))]
    seen: set[Path] = set()
    for run in found:
        if real(run.folder.path) in seen:
            raise RunError(f"the run {str(run.folder.path)!r} is given twice", "name each run once")
        seen.add(real(run.folder.path))
    if len({run.name for run in found}) < len(found):  # folders of one name in several places
        found = [replace(run, name=str(run.folder.path)) for run in found]
    found = grouped(found)
    if not found:
        raise RunError("the study has no final run that is done", "run it first: zofo study NAME")
    return found


def grouped(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """Runs outside studies, grouped with those that differ from them only in the seed."""
    first: dict[str, str] = {}
    grouped = []
    for run in runs:
        same = repr([run.task, *((key, value) for key, value in run.settings.items() if key not in SEEDS)])
        grouped.append(run if run.group else replace(run, group=first.setdefault(same, run.name)))
    return grouped


def _of_study(path: Path) -> list[ReportedRun]:
    """The final runs of a study, with the names in its results."""
    results = path / "results.csv"
    if not results.is_file():
        raise RunError(f"{str(path)!r} is a study without results.csv", "write it first: zofo study NAME --report-only")
    with results.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["trial"] == "False" and not row["failed"]]
    found: dict[str, ReportedRun] = {}
    for row in rows:
        folder = path / "runs" / row["run"]
        if row["run"] not in found and (folder / "config.yaml").is_file():
            name = ", ".join(filter(None, [row["method"], row["task"], f"seed {row['seed']}"]))
            found[row["run"]] = _read(folder, name, ", ".join(filter(None, [row["method"], row["task"]])))
    return list(found.values())


def _read(path: Path, name: str, group: str = "") -> ReportedRun:
    run = RunFolder.open(path)
    config = run.config
    summary = run.summary if (run.path / SUMMARY).is_file() else {}
    without: dict[str, Any] = {"output_dir": True, "method": dict.fromkeys(config.method.keys_without_effect, True)}
    return ReportedRun(
        name,
        run,
        str(summary.get("task") or config.task.title),
        dict(flatten(config.model_dump(mode="json", exclude=without))),
        metrics_lines(run.metrics) if run.metrics.is_file() else [],
        summary,
        read_answers(run.path / ANSWERS) if summary else [],  # those of an earlier stop are not of this outcome
        group,
    )


Settings = list[tuple[str, list[Any]]]
"""Keys, and the value that each run has; None where it has none."""


def differing_settings(runs: Sequence[ReportedRun]) -> tuple[Settings, Settings]:
    """Every key whose value differs between runs, except those that follow from others.

    First for parts that all runs have, with the names of the parts that only some have; then the options of these.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = {key: [run.settings.get(key) for run in runs] for key in keys}
    differing = [key for key, values in rows.items() if any(value != values[0] for value in values)]
    given = [key for key, values in rows.items() if None in values and key.endswith(".name")]  # parts that not all have
    following = _following(runs, [key for key in differing if key not in given])
    apart = [(key, rows[key]) for key in differing if key not in following]
    main = [(key, values) for key, values in apart if None not in values or key.endswith(".name")]
    return main, [one for one in apart if one not in main]


def _following(runs: Sequence[ReportedRun], keys: Sequence[str]) -> set[str]:
    """Keys that each run has by default, given its other keys, such as the learning rate for an adapter.

    Without all of them, its configuration would be the same.
    """
    own = [run.folder.config.model_dump(mode="json") for run in runs]
    kept, found = own, set[str]()
    for key in keys:
        left = [without(tree, key.split(".")) for tree in kept]
        if all(_completed(tree) == whole for tree, whole in zip(left, own, strict=True)):
            kept = left
            found.add(key)
    return found


def _completed(tree: dict[str, Any]) -> dict[str, Any] | None:
    """The complete configuration for a tree; None if it is invalid."""
    try:
        return parse_model(RunConfig, tree).model_dump(mode="json")
    except ZofoError:
        return None
