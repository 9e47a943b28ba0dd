"""Scores and predictions of a run, or of an untrained model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from zofo.errors import ConfigError, ZofoError
from zofo.evaluators import Counts
from zofo.tasks import (
    SPLITS,
    Split,
    is_asked,
    known_split,
    origins_of,
    resolve_task,
    trained_questions,
    with_demonstrations,
)
from zofo.training.config import RunConfig, read_config
from zofo.training.data_module import PreparedRun, prepare_run, scorer_of
from zofo.training.evaluation import Evaluation
from zofo.training.identity import split_identity
from zofo.training.predictor import Prediction, Predictor, check_rows, solved_rows
from zofo.training.progress import LOG, EvaluationProgress, log_console, working
from zofo.training.run_folder import RunFolder


def evaluate_run(
    path: Path | str,
    overrides: Sequence[str] = (),
    split: str | None = None,
    variant: str | None = None,
    best: bool = False,
    data_dir: Path | None = None,
    remote_code: bool = False,
    data: str | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Score a trained run on a split of its task, of another task set by overrides, or on all rows of other data.

    Every row of a given file is scored, or every row of the split of a folder or Hub id; no split is drawn.

    Args:
        path: folder of the run.
        overrides: `key=value`, to replace settings of the run.
        split: train, validation or test; by default validation.
        variant: which model of the run.
        best: use the model of the best evaluation.
        data_dir: a folder with other rows of the task.
        remote_code: allow the model's repository to run its own code.
        data: other rows: a file, a folder or a Hub id.
        console: where progress is shown; by default it is logged by `logging.getLogger("zofo")`.

    Raises:
        RunError: there is no run, or the base model is not the one it was trained from. ConfigError: the run was
            trained on this task as one of several; or the task cannot work.
    """
    run, console = RunFolder.open(path), console or log_console()
    given = [overrides] if isinstance(overrides, str) else list(overrides)
    if data_dir is not None:
        given += ["task.data=null", f"task.data_dir={json.dumps(str(data_dir))}"]
    if data is not None:
        given += ["task.data_dir=null", f"task.data={json.dumps(data)}"]
    config = read_config(run.path / "config.yaml", given)
    config = config.model_copy(update={"init_from": None})  # which the run restores by itself
    own, asked = run.config.task, config.task
    named = data is not None or any(override.startswith("task.data=") for override in overrides)
    by_intent = named or data_dir is not None or asked != own  # then its rows need not be the run's
    if not asked.several and not own.several and (asked.name, asked.overrides) == (own.name, own.overrides):
        _ = run.task  # refuses one that was edited
        # the task as it was then, whatever has become of its file
        config = config.model_copy(update={"task": config.task.model_copy(update={"name": str(run.task_file)})})
    if not asked.several or (asked.tasks, asked.metaicl_setting) != (own.tasks, own.metaicl_setting):
        run.check_not_trained_on(config.task, scored=True)
    chosen = known_split(split or "validation")
    with working(console, f"reading the rows, loading {config.model.name}"):
        if not named:
            prepared, on = prepare_run(config, remote_code, (chosen,)), str(chosen)
        else:
            prepared, on = _on_all_rows(run, config, overrides, chosen, remote_code)
        run.restore(prepared.loaded, variant, best)
    if not by_intent:
        check_rows(run, split_identity(prepared.examples, prepared.encoded))
    return _evaluate(replace(prepared, scorer=run.scorer(prepared.scorer, best)), chosen, on, console)


def evaluate_zero_shot(
    config: RunConfig, split: str | None = None, remote_code: bool = False, console: Console | None = None
) -> Evaluation:
    """Score the untrained model of a configuration.

    Args:
        split: train, validation or test; by default validation, or every row if all rows are in one file.
        remote_code: allow the model's repository to run its own code.
        console: where progress is shown; by default it is logged by `logging.getLogger("zofo")`.
    """
    data, console = config.task.data, console or log_console()
    if split is None and data is not None and not config.task.several and origins_of(data) is None:
        with working(console, f"reading the rows, loading {config.model.name}"):
            prepared, on = _load_whole(config, data, "validation", remote_code)
        return _evaluate(prepared, "validation", on, console)
    chosen = known_split(split or "validation")
    with working(console, f"reading the rows, loading {config.model.name}"):
        prepared = prepare_run(config, remote_code, (chosen,))
    return _evaluate(prepared, chosen, chosen, console)


def _on_all_rows(
    run: RunFolder, config: RunConfig, overrides: Sequence[str], split: Split, remote_code: bool
) -> tuple[PreparedRun, str]:
    """The configuration to score a run with on all rows of other data, and a description of these."""
    task, data = config.task, config.task.data
    drawn = any(one.startswith("task.split_sizes") for one in overrides)  # the user says how the splits are drawn
    if data is None or task.several or drawn:
        return prepare_run(config, remote_code, (split,)), split
    limits = {"split_sizes": {}} if any(one.startswith("task.max_rows=") for one in overrides) else _UNLIMITED
    config = config.model_copy(update={"task": task.model_copy(update=limits)})
    origins = origins_of(data)
    if origins is not None:
        if split not in origins:
            raise ConfigError(
                f"{data!r} has no rows called {split}; it has {', '.join(sorted(origins)) or 'none'}",
                f"choose with --split {next(iter(sorted(origins & set(SPLITS))), 'test')}, or name one file of it",
            )
        if split == "train":  # of which rows might be drawn for others
            prepared, on = _load_whole(config, data, split, remote_code)
        else:
            prepared, on = prepare_run(config, remote_code, (split,)), split
        return prepared, on + ("" if task.num_fewshot else _of_training(run, prepared, split))
    bare = config.model_copy(update={"task": config.task.bare})
    prepared, on = _load_whole(bare, data, split, remote_code)
    known = _of_training(run, prepared, split)
    if task.num_fewshot:  # of the run's own rows, as `predict` has them
        solved = with_demonstrations(prepared.examples[split], solved_rows(run), task, prepared.task.separator)
        scorer = scorer_of(config, prepared.task, prepared.loaded)
        prepared = replace(prepared, examples={split: solved}, encoded={split: scorer.encode(solved)}, scorer=scorer)
    return prepared, on + known


def _of_training(run: RunFolder, prepared: PreparedRun, split: Split) -> str:
    """Notes about rows that a run, or one that it started from, was trained on."""
    head = prepared.loaded.head == "classification"
    try:
        known = [trained_questions(one.config.task, head) for one in run.chain()]
    except ZofoError:
        return ", which may be those that it was trained on"
    count = sum(any(is_asked(row, one) for one in known) for row in prepared.examples[split])
    return f", {count} of which it was trained on" if count else ""


_UNLIMITED: dict[str, Any] = {"split_sizes": {}, "max_rows": None}


def _load_whole(config: RunConfig, data: str, split: Split, remote_code: bool) -> tuple[PreparedRun, str]:
    """A model with all rows of a file as a split, and a description of these."""
    task = resolve_task(config.task, whole=True)
    one = config.task.model_copy(update={"allow_overlap": True})  # every split is that file
    prepared = prepare_run(config.model_copy(update={"task": one}), remote_code, (split,), task=task)
    return prepared, f"all {len(prepared.examples[split])} rows of {Path(data).name}"


def _evaluate(prepared: PreparedRun, split: Split, on: str, console: Console) -> Evaluation:
    scorer = replace(prepared.scorer, watch=EvaluationProgress(console))
    scored = scorer.evaluate(prepared.loaded.model, prepared.encoded[split], Counts())
    return replace(scored, on=on)


def predict(
    path: Path | str,
    texts: Sequence[str],
    variant: str | None = None,
    best: bool = False,
    model: str | None = None,
    remote_code: bool = False,
    warn: Callable[[str], None] = LOG.warning,
) -> list[Prediction]:
    """Answer rows with a trained run, which is loaded for the call; use `zofo.Predictor` to keep it loaded.

    Args:
        path: folder of the run.
        texts: one per prediction; for a task with several columns, rows as JSON objects; for a chat, the user's
            message, or all turns as JSON.
        variant: which model of the run.
        best: use the model of the best evaluation.
        model: the base model's new location, if it has moved; its hash must match.
        remote_code: allow the model's repository to run its own code.
        warn: called if a text is asked in another form than in training; by default it is logged.

    Raises:
        DataError: the task's template cannot render a text.
    """
    return Predictor(path, variant, best, model, remote_code, warn).predict(texts)
