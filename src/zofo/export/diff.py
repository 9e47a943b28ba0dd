"""The first difference of two runs: in their configuration, then step by step, then in their results."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from zofo.backbone import Update
from zofo.errors import truncate
from zofo.training import RunFolder
from zofo.training.identity import Identity, changes, differences, task_content_of, title_of
from zofo.training.run_logs import MAXIMISED, loss_of_step, metrics_lines, told_of_step
from zofo.trajectory import Trajectory
from zofo.trajectory.format import Flushed, Moved, Record, Stepped

_NO_RESULT = ("seconds", "measured_seconds", "exchanged_bytes")  # times, and communication between processes
_SHOWN = 12


@dataclass(frozen=True)
class Difference:
    """One difference of two runs: a configuration key, a file or a value of a step, and both values.

    A value is None if a run has none.
    """

    where: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"{self.where}: {_value(self.first)} | {_value(self.second)}"


@dataclass(frozen=True)
class RunDiff:
    """All differences of two runs.

    Args:
        asked: differences in configuration, task and base model.
        versions: differences in software versions; these alone do not make runs different.
        step: the first step that differs, counted from 0; None for none.
        at_step: the differences of that step.
        left: files of the trained model that differ.
    """

    asked: tuple[Difference, ...]
    versions: tuple[Difference, ...]
    step: int | None
    at_step: tuple[Difference, ...]
    left: tuple[Difference, ...]
    steps: tuple[int, int]

    @property
    def equal(self) -> bool:
        """Whether the runs differ at most in versions."""
        return not self.asked and self.step is None and not self.left

    def lines(self) -> list[str]:
        """The differences as lines of text."""
        lines = [str(difference) for difference in self.asked]
        if self.step is None:
            lines.append(f"no step differs ({self.steps[0]} and {self.steps[1]} steps)")
        else:
            lines.append(
                f"the first step that differs: {self.step} (counted from 0; {self.steps[0]} and {self.steps[1]} steps)"
            )
            lines += [f"  {difference}" for difference in self.at_step[:_SHOWN]]
            more = len(self.at_step) - _SHOWN
            lines += [f"  and {more} more"] if more > 0 else []
        lines += [f"left: {difference}" for difference in self.left]
        lines += [f"versions: {difference}" for difference in self.versions]
        return [*lines, "equal" if self.equal else "different"]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return {"equal": self.equal, **asdict(self)}


def compare_runs(first: Path | str, second: Path | str) -> RunDiff:
    """Find the differences of two runs: in their configuration, their steps, and their results.

    Times, communication between processes, and the runs' own folders are ignored.

    Raises:
        RunError: a folder is not a run, or a trajectory or log is damaged.
    """
    runs = RunFolder.open(first), RunFolder.open(second)
    asked = [*_asked(*runs), *_content(*runs)]
    steps_of = [_steps(run) for run in runs]
    step, at_step = _first(*steps_of)
    counts = sum(number >= 0 for number in steps_of[0]), sum(number >= 0 for number in steps_of[1])
    return RunDiff(tuple(asked), tuple(_versions(*runs)), step, tuple(at_step), tuple(_left(*runs)), counts)


def _asked(first: RunFolder, second: RunFolder) -> Iterator[Difference]:
    tasks = [task_content_of(run.task) if run.task_file.is_file() else None for run in (first, second)]
    configs = [run.config.model_dump(mode="json", exclude={"output_dir"}) for run in (first, second)]
    for key, values in differences(configs[0], configs[1]):
        yield Difference(key, *values)
    for key, values in differences(tasks[0], tasks[1]):
        yield Difference(f"task.yaml: {key}", *values)


def _content(first: RunFolder, second: RunFolder) -> Iterator[Difference]:
    """Differences of model and data by content, as far as both runs have recorded it."""
    one, other = first.identity.as_dict(), second.identity.as_dict()
    for part in changes(first.identity, second.identity):
        name, _, split = part.partition(".")
        if name in ("model_config", "generation_config"):
            for key, values in differences(one[name], other[name]):
                yield Difference(f"{title_of(name)}: {key}", *values)
        elif name not in ("task", "configuration"):  # of which each key was compared
            both = (one[name][split], other[name][split]) if split else (one[name], other[name])
            yield Difference(title_of(part), *both)


def _versions(first: RunFolder, second: RunFolder) -> Iterator[Difference]:
    parts = {field.name for field in fields(Identity)}
    for key, values in differences(first.environment, second.environment):
        if key.partition(".")[0] not in parts:
            yield Difference(key, *values)


def _left(first: RunFolder, second: RunFolder) -> Iterator[Difference]:
    """Differences of files of the trained model; the trajectory is compared step by step instead."""
    files = [
        {name: digest for name, digest in run.artifact_hashes().items() if name != run.trajectory.name}
        for run in (first, second)
    ]
    for name, digests in differences(files[0], files[1]):
        yield Difference(name, *digests)


Facts = dict[str, Any]
"""The values of a step by name."""


def _steps(run: RunFolder) -> dict[int, Facts]:
    """Updates and measurements of each step; those before the first have number -1."""
    steps: dict[int, Facts] = {}
    if run.trajectory.is_file():
        trajectory = Trajectory.read(run.trajectory)
        steps[-1] = {f"trajectory: {name}": value for name, value in trajectory.header.items() if name != "model_hash"}
        for number, records in _by_step(trajectory):
            steps.setdefault(number, {}).update(_describe_records(records))
    for line in metrics_lines(run.metrics) if run.metrics.is_file() else ():
        number = line["step"] if "step" in line else line.get("steps", 0) - 1
        kind = line.pop("event")
        prefix = f"{kind} {line.get('variant')}: " if kind == "evaluation" else "" if kind == "step" else f"{kind}: "
        named = {f"{prefix}{k}": v for k, v in line.items() if k not in (*_NO_RESULT, "step", "steps", "variant")}
        if kind != "stopped":
            steps.setdefault(number, {}).update(named)
    return steps


def _by_step(trajectory: Trajectory) -> Iterator[tuple[int, list[Record]]]:
    """The records of each step; those after the last complete one belong to the next."""
    records: list[Record] = []
    number = 0
    for record in trajectory.records:
        if isinstance(record, Stepped):
            yield record.number, records
            records, number = [], record.number + 1
        else:
            records.append(record)
    if any(not isinstance(record, Flushed) for record in records):
        yield number, records


def _describe_records(records: list[Record]) -> Facts:
    facts: Facts = {}
    updates = [record for record in records if isinstance(record, Update)]
    for number, update in enumerate(updates):
        name = "update" if len(updates) == 1 else f"update {number}"
        facts |= {f"{name} along {tuple(key)}": c for key, c in update.displacement.items()}
        facts |= {f"{name}: shrink": update.decay_factor} if update.decay_factor else {}
        facts |= {f"{name}: learning rate": update.lr} if update.lr is not None else {}
        facts |= {f"{name}: displacement decay": update.displacement_decay} if update.displacement_decay else {}
    moves = [record for record in records if isinstance(record, Moved)]
    for number, move in enumerate(moves):
        facts |= {f"move {number} along {tuple(key)}": c for key, c in move.point.items()}
    facts["order of what was written"] = " ".join(type(record).__name__.lower() for record in records)
    return facts


def _first(first: Mapping[int, Facts], second: Mapping[int, Facts]) -> tuple[int | None, list[Difference]]:
    """The first step that differs, and its differences."""
    for number in sorted({*first, *second}):
        if number not in first or number not in second:
            made = ["made" if number in steps else None for steps in (first, second)]
            return max(number, 0), [Difference("the step itself", *made)]
        one, other = _told_alike(first[number], second[number])
        names = dict.fromkeys(itertools.chain(one, other))
        different = [name for name in names if repr(one.get(name)) != repr(other.get(name))]  # nan is nan
        if different:
            return max(number, 0), [Difference(name, one.get(name), other.get(name)) for name in different]
    return None, []


def _told_alike(one: Facts, other: Facts) -> tuple[Facts, Facts]:
    """Both log lines by their loss, if one has a reward and the other a loss: older versions logged minus the
    reward."""
    tells = [facts.keys() & {*MAXIMISED, "loss"} for facts in (one, other)]
    if not all(tells) or tells[0] == tells[1]:
        return one, other
    return _by_loss(one), _by_loss(other)


def _by_loss(facts: Facts) -> Facts:
    told, _ = told_of_step(facts)
    rest = {name: value for name, value in facts.items() if name != told}
    return {**rest, "loss": loss_of_step(facts) + 0.0}  # 0.0 for the -0.0 of a reward of 0


def _value(value: Any) -> str:
    text = "-" if value is None else repr(value) if isinstance(value, float) else str(value)
    return truncate(text, 60)
