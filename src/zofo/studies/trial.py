"""A run of a study, complete before it is made, and the cell that it stands in."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from zofo.config import Config
from zofo.overrides import Tree
from zofo.studies.executor import Executor


class Cell(NamedTuple):
    """One model, one task and one value of each further axis: methods are compared in it.

    Args:
        model: its name in the tables; empty for a problem.
        task: its name in the tables.
        axes: the value of each axis, in the order of the file.
    """

    model: str
    task: str
    axes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(part for part in (self.model, self.task, *self.axes) if part)


@dataclass(frozen=True)
class StudyRun:
    """One run, complete before it is made.

    Args:
        method: its name in the tables.
        cell: where it stands.
        seed: of the run.
        trial: which setting is tried, from 0; None for a final run.
        config: its whole configuration.
        execution: how it is made.
        setting: which trial's setting it has, from 0; without meaning where nothing was tried.
    """

    method: str
    cell: Cell
    seed: int
    trial: int | None
    config: Config
    execution: Executor
    setting: int = 0

    @cached_property
    def tree(self) -> Tree:
        """The whole configuration as plain data, as JSON gives it back."""
        made: Tree = json.loads(json.dumps(self.config.model_dump(mode="json", exclude={"output_dir"})))
        return made

    @cached_property
    def _chosen(self) -> Tree:
        """The configuration without what is at its default; the name of the method is always there."""
        made: Tree = json.loads(
            json.dumps(self.config.model_dump(mode="json", exclude={"output_dir"}, exclude_defaults=True))
        )
        made.setdefault("method", {})["name"] = self.tree["method"]["name"]
        return made

    @cached_property
    def digest(self) -> str:
        """Twelve characters that no other configuration has; an option that is new and at its default changes none."""
        return hashlib.sha256(json.dumps(self._chosen, sort_keys=True).encode()).hexdigest()[:12]

    def was_made_with(self, tree: Tree) -> bool:
        """Whether a whole configuration, perhaps of an older version, is this run's: options that it lacks must be at
        their default here."""
        return _same(tree, self.tree, self._chosen)

    @property
    def id(self) -> str:
        """Readable, and different for every configuration."""
        parts = [self.method, self.cell.model, self.cell.task, *self.cell.axes]
        parts += [f"trial{self.trial + 1}"] if self.trial is not None else []
        name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts if part)
        return f"{name[:_NAME]}-seed{self.seed}-{self.digest}"

    def __str__(self) -> str:
        trial = f" trial {self.trial + 1}" if self.trial is not None else ""
        return f"{self.method} {self.cell}{trial} seed {self.seed}"


_NAME = 100  # characters of a run's name; file systems have a limit


def _same(old: Any, new: Any, chosen: Any) -> bool:
    """Whether two trees are equal but for keys that only the new one has, none of which is in `chosen`."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return bool(old == new)
    chosen = chosen if isinstance(chosen, dict) else {}
    added = any(key in chosen for key in new if key not in old)
    return not added and all(key in new and _same(value, new[key], chosen.get(key)) for key, value in old.items())
