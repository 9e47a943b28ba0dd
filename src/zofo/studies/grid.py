"""From the file of a study to its runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from zofo.config import Config
from zofo.errors import ConfigError, ZofoError
from zofo.studies.config import SEEDED, ZERO_SHOT, AxisValue, Budget, StudyConfig
from zofo.studies.problem_executor import ProblemRuns
from zofo.studies.task_executor import TaskRuns
from zofo.studies.trial import Cell, Executor, StudyRun
from zofo.trees import Tree, get_by_path, merge_trees

_SHOWN = 8  # faults of one message

_EXECUTIONS: dict[str, Executor] = {"task": TaskRuns(), "problem": ProblemRuns()}


def execution_of(tree: Mapping[str, Any]) -> Executor:
    """How the run of a configuration is made: on a toy problem if it names one, else on a task."""
    return _EXECUTIONS["problem" if "problem" in tree else "task"]


class Grid:
    """All runs of a study, validated.

    Raises:
        ConfigError: a run cannot be configured; the message names the method, the place and the key.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.cells: dict[Cell, list[AxisValue]] = dict(self._cells())
        if len(self.cells) < len(self._combinations()):
            raise ConfigError("two models or tasks of the study have the same name", "name each under models and tasks")
        self.entries = [(name, cell) for cell in self.cells for name in config.methods if self._takes_part(name, cell)]
        self._check_methods_used()
        search = config.search
        self.trials: list[StudyRun] = [
            self._run(name, cell, seed, number)
            for name, cell in self.entries
            for number in range(len(config.methods[name].trials))
            for seed in (search.seeds if search else [])
        ]
        """Every trial."""
        self._check_distinct_trials()
        for name in config.pretraining:  # one that no method starts from may have mistakes, too
            self._pretraining_run(name, next(iter(self.cells)))
        of = [(self._starting_run(name, cell), cell) for name, cell in self.entries]
        starts = [self._pretraining_run(start, cell) for start, cell in of if start is not None]
        self.starts: list[StudyRun] = list({run.digest: run for run in starts}.values())
        """The runs that others start from, each once."""
        self.zero_shots: list[StudyRun] = [
            self._zero_shot(cell, seed) for cell in self.cells for seed in config.seeds if config.zero_shot
        ]
        """The untrained model in every cell, with every seed, if the study asks for it."""
        first = [run for name, cell in self.entries for run in self.finals(name, cell, 0)]
        self.final_runs: list[StudyRun] = [*first, *self.zero_shots]
        """The final runs of methods with one setting, and as many of the others, as if their first were chosen."""
        others = [
            self._run(name, cell, self.seeds(name)[0], None, number)
            for name, cell in self.entries
            for number in range(1, len(config.tried(name)))
        ]
        self.one_of_each: list[StudyRun] = [
            *self.starts,
            *(run for run in self.trials if search is None or run.seed == search.seeds[0]),
            *(run for run in first if run.seed == self.seeds(run.method)[0]),
            *others,
            *(run for run in self.zero_shots if run.seed == config.seeds[0]),
        ]
        """Every start, trial and final run of every setting that may be made, with one seed of several."""

    def seeds(self, name: str) -> list[int]:
        """Seeds of the final runs of a method."""
        return self.config.methods[name].seeds or self.config.seeds

    def trial_budget(self, name: str) -> Budget:
        """Length of a method's trials: that of the search, or the method's own budget if that is shorter.

        With `same_share` it has the same ratio to the method's own budget as the search's to the study's.
        """
        search, own, whole = self.config.search, self.config.methods[name].budget, self.config.budget
        assert search is not None
        unit = "queries" if whole.queries is not None else "steps"
        trial, final, usual = (getattr(one, unit, None) for one in (search.budget, own, whole))
        if search.same_share and trial and final and usual:
            return Budget.model_validate({unit: max(1, trial * final // usual)})
        return _shorter(search.budget, own)

    def finals(self, name: str, cell: Cell, chosen: int) -> list[StudyRun]:
        """The final runs of a method in a cell.

        Args:
            chosen: the trial whose setting they use, of the method or of its `tuned_by`; ignored if there are no
                trials.
        """
        return [self._run(name, cell, seed, None, chosen) for seed in self.seeds(name)]

    def _check_methods_used(self) -> None:
        """Raise ConfigError for a method that is in no cell, or in one in which nothing is chosen for it."""
        for name in self.config.methods.keys() - {name for name, _ in self.entries}:
            raise ConfigError(f"methods.{name} is left out of every cell", "take it out of the study")
        for name, cell in self.entries:
            if not self._takes_part(searched := self.config.searched(name), cell):
                raise ConfigError(
                    f"methods.{name}.tuned_by: {searched} is left out of {cell}, so that no setting of it is chosen "
                    "there",
                    f"leave {name} out of it, too",
                )

    def _check_distinct_trials(self) -> None:
        """Raise ConfigError for a duplicate setting: the method would have fewer trials than others."""
        seen: dict[tuple[str, Cell, int, str], int] = {}
        for run in self.trials:
            number = (run.trial or 0) + 1
            first = seen.setdefault((run.method, run.cell, run.seed, run.digest), number)
            if first != number:
                raise ConfigError(
                    f"methods.{run.method}.trials: {first} and {number} are the same setting in {run.cell}",
                    "give each setting once; an option at its default is the same as one that is left out",
                )

    def _pretraining_run(self, name: str, cell: Cell) -> StudyRun:
        """The run that a method starts from with the model of a cell; all tasks of the study are unseen in it."""
        start, model = self.config.pretraining[name], self.cells[cell][0].tree
        base = merge_trees(self.config.defaults.tree, model)
        common = {key: value for key, value in base.items() if key in ("model", "training")}
        unseen = [_known_as(task, level) for task, level in self.config.tasks.items()]
        tree = merge_trees(common, {"task": {"held_out_tasks": unseen}}, start.tree)
        if missing := [task for task in unseen if task not in get_by_path(tree, "task.held_out_tasks")]:
            raise ConfigError(
                f"pretraining.{name}: {missing[0]!r}, a task of the study, is not among its task.held_out_tasks",
                "add it there, or leave task.held_out_tasks out",
            )
        if get_by_path(tree, "method.name") is None:
            raise ConfigError(
                f"pretraining.{name}: no method is named", "write for example method: {name: meta-bilevel}"
            )
        if get_by_path(tree, "task.tasks") is None and get_by_path(tree, "task.metaicl_setting") is None:
            tree["task"].pop("held_out_tasks", None)
        tree = merge_trees(tree, {"training": {**start.budget.training, "num_evals": 1}})
        seed = int(get_by_path(tree, "training.seed") or 0)
        made = self._complete_run(f"start {name}", cell, seed, None, tree, f"pretraining.{name}")
        return replace(made, cell=Cell(cell.model, made.execution.label(made.config, "task")))

    def _combinations(self) -> list[tuple[tuple[str, AxisValue], ...]]:
        config = self.config
        axes = [config.models or {"": AxisValue()}, config.tasks or {"": AxisValue()}, *config.axes.values()]
        return list(itertools.product(*(axis.items() for axis in axes)))

    def _cells(self) -> Iterator[tuple[Cell, list[AxisValue]]]:
        """Every cell, with the changes of its model, its task and its axes."""
        for chosen in self._combinations():
            (model, _), (task, _), *axes = chosen
            levels = [level for _, level in chosen]
            if not model or not task:
                tree = merge_trees(self.config.defaults.tree, *(_without_method(level.tree) for level in levels))
                tree["method"] = ZERO_SHOT
                execution = execution_of(tree)
                config = _complete(execution, tree, "defaults")
                model, task = model or execution.label(config, "model"), task or execution.label(config, "task")
            yield Cell(model, task, tuple(name for name, _ in axes)), levels

    def _takes_part(self, name: str, cell: Cell) -> bool:
        return all(level.methods.get(name, {}) is not None for level in self.cells[cell])

    def _starting_run(self, name: str, cell: Cell) -> str | None:
        """The run that a method starts from in a cell."""
        own = [level.init_from for level in self.cells[cell] if level.init_from is not None]
        return own[-1] if own else self.config.methods[name].init_from

    def _run(self, name: str, cell: Cell, seed: int, trial: int | None, chosen: int = 0) -> StudyRun:
        contender, config = self.config.methods[name], self.config
        number = chosen if trial is None else trial
        where = self._named(name, number)
        if trial is None:
            budget, last = contender.budget or config.budget, self._scored(config.num_evals)
        else:
            budget, last = self.trial_budget(name), {"num_evals": 1}
        written = merge_trees(*(tree for _, tree in self._layers(name, cell, number)))
        if get_by_path(written, "method.name") is None:
            raise ConfigError(f"{where}: no method is named", "write for example method: {name: mezo}")
        tree = merge_trees(written, self._seeds(written, seed), {"training": {**budget.training, **last}})
        if (start := self._starting_run(name, cell)) is not None:
            first = self._pretraining_run(start, cell)
            tree["init_from"] = first.id
            if get_by_path(written, "model.head") is not None:  # a new one is that which the start trained
                tree["model"]["head_seed"] = get_by_path(first.tree, "model.head_seed")
        return replace(self._complete_run(name, cell, seed, trial, tree, f"{where}, {cell}"), setting=number)

    def _named(self, name: str, number: int) -> str:
        """A method with one of its settings, for messages."""
        other = self.config.methods[name].tuned_by
        trial = f", trial {number + 1}" + (f" of {other}" if other is not None else "")
        return f"methods.{name}" + (trial if self.config.tried(name) else "")

    def _layers(self, name: str, cell: Cell, number: int) -> list[tuple[str, Tree]]:
        """The layers of a run's configuration, the last one winning, each with its path in the file."""
        places = [f"models.{cell.model}", f"tasks.{cell.task}"]
        places += [f"axes.{axis}.{value}" for axis, value in zip(self.config.axes, cell.axes, strict=True)]
        common, own = [], []
        for place, level in zip(places, self.cells[cell], strict=True):
            alone = level.methods.get(name)
            common.append((place, level.tree if alone is None else _without_method(level.tree)))
            own.append((f"{place}.methods.{name}", {} if alone is None else alone.tree))
        base = ("defaults", self.config.defaults.tree)
        if name not in self.config.methods:  # the untrained model
            return [base, *common]
        tried = self.config.tried(name)
        trial = f"methods.{self.config.searched(name)}.trials.{number + 1}"
        axes = itertools.chain.from_iterable(zip(common[2:], own[2:], strict=True))
        return [
            *(base, *common[:2], (f"methods.{name}", self.config.methods[name].tree), *own[:2], *axes),
            *([(trial, tried[number])] if tried else []),
        ]

    def where(self, run: StudyRun, key: str) -> str:
        """The place in the study's file that sets a key of a run; otherwise the name of the run.

        Args:
            key: dotted key of the run's configuration; empty for the run as a whole.
        """
        if run in self.starts:
            return f"pretraining.{run.method.removeprefix('start ')}.{key}".rstrip(".")
        layers = self._layers(run.method, run.cell, run.setting) if key else []
        place = next((place for place, tree in reversed(layers) if get_by_path(tree, key) is not None), None)
        if place is not None:
            return f"{place}.{key}"
        own = run.trial is None and self.config.searched(run.method) == run.method
        name = run.method if run.method == ZERO_SHOT else f"methods.{run.method}"
        return f"{name if own else self._named(run.method, run.setting)}, {run.cell}"

    def check(self) -> None:
        """Do all fast checks of every method, setting and cell at once.

        Raises:
            ZofoError: something is wrong; the message names each faulty key of the study's file, or else the run.
        """
        found: dict[str, ZofoError] = {}
        for run in self.one_of_each:
            for key, error in run.execution.faults(run.config):
                found.setdefault(f"{self.where(run, key)}: {error.message}", error)
        if found:
            messages, first = list(found), next(iter(found.values()))
            more = [f"and {len(messages) - _SHOWN} more"] if len(messages) > _SHOWN else []
            first.message = "\n".join([*messages[:_SHOWN], *more])
            raise first

    def _zero_shot(self, cell: Cell, seed: int) -> StudyRun:
        """The runs of the untrained model, to which options of methods and the budget do not apply."""
        levels = (_without_method(level.tree) for level in self.cells[cell])
        written = merge_trees(_without_method(self.config.defaults.tree), *levels)
        # of training, only how it is scored
        kept = get_by_path(written, "training.eval_batch_size")
        written["training"] = {} if kept is None else {"eval_batch_size": kept}
        last = {**self._scored(1), "steps": 1}
        tree = merge_trees({"method": ZERO_SHOT}, written, self._seeds(written, seed), {"training": last})
        return self._complete_run(ZERO_SHOT, cell, seed, None, tree, f"zero_shot, {cell}")

    def _complete_run(self, name: str, cell: Cell, seed: int, trial: int | None, tree: Tree, where: str) -> StudyRun:
        execution = execution_of(tree)
        return StudyRun(name, cell, seed, trial, _complete(execution, tree, where), execution)

    def _scored(self, evaluations: int) -> Tree:
        """How a final run is scored. Runs that something is chosen from never score the test split."""
        if self.config.split != "test":
            return {"num_evals": evaluations}
        return {"num_evals": evaluations, "eval_on_test": "best" if self.config.checkpoint == "best" else True}

    def _seeds(self, tree: Mapping[str, Any], seed: int) -> Tree:
        keys = self.config.seed_keys or (SEEDED[:1] if "problem" in tree else SEEDED)
        return merge_trees(dict.fromkeys(keys, seed))


def _known_as(task: str, level: AxisValue) -> str:
    """The name of a task of the study in its source."""
    named = get_by_path(level.tree, "task.data") or get_by_path(level.tree, "task.name") or task
    return Path(str(named)).stem


def _without_method(tree: Mapping[str, Any]) -> Tree:
    return {key: value for key, value in tree.items() if key != "method"}


def _shorter(search: Budget, own: Budget | None) -> Budget:
    """The shorter of two budgets of the same unit; the first if the units differ."""
    for unit in ("queries", "steps"):
        if own is not None and None not in (getattr(search, unit), getattr(own, unit)):
            return min(search, own, key=attrgetter(unit))
    return search


def _complete(execution: Executor, tree: Mapping[str, Any], where: str) -> Config:
    try:
        return execution.config(tree)
    except ConfigError as error:
        error.message = f"{where}: {error.message}"
        raise
