"""Consistency checks of a study."""

from __future__ import annotations

import itertools

from zofo.errors import ConfigError, UnknownNameError, nearest
from zofo.studies.config import (
    COLUMNS,
    MAJORITY,
    SEEDED,
    ZERO_SHOT,
    AxisValue,
    Changes,
    MethodSpec,
    StudyConfig,
)
from zofo.trees import flatten, get_by_path

_SET_BY_BUDGET = (
    *("steps", "max_queries", "epochs", "early_stopping_patience"),
    *("num_evals", "eval_steps", "eval_on_test"),
)


def check(config: StudyConfig) -> None:
    """Check that the parts of a study are consistent.

    Raises:
        ConfigError: they are not; the message names the key, and what to write there.
    """
    _check_names(config)
    _check_trials(config)
    for (place, tree), key in itertools.product(config.trees(), config.seed_keys or SEEDED):
        if get_by_path(tree, key) is not None:
            raise ConfigError(
                f"{place}.{key}: each of the seeds sets this, so that it would have no effect",
                "leave it out, or say with seed_keys: [...] which keys a seed sets",
            )
    for (place, tree), key in itertools.product(config.trees(), _SET_BY_BUDGET):
        if get_by_path(tree, f"training.{key}") is not None:
            raise ConfigError(
                f"{place}.training.{key}: how long a run is, and when it is scored, is the study's to say",
                "use budget and num_evals, which are the same for all methods",
            )


def _check_names(config: StudyConfig) -> None:
    """Raise ConfigError for a name that is unknown or duplicate."""
    if not config.methods:
        raise ConfigError("methods: a study without a method has no runs", "name one, or several to compare")
    final = {seed for method in config.methods.values() for seed in method.seeds or config.seeds}
    if config.search is not None and (both := sorted(final & set(config.search.seeds))):
        raise ConfigError(
            f"search.seeds: {both[0]} is a seed of final runs, too, which would be scored with what was chosen for it",
            f"choose with seeds of their own, for example search: {{seeds: [{max(final) + 1}]}}",
        )
    if config.checkpoint == "best" and config.split == "validation":
        raise ConfigError(
            "checkpoint: best is chosen on validation, so that its score there says too much",
            "set split: test, or checkpoint: last",
        )
    if config.baseline is not None and config.baseline not in config.methods:
        other = f'keep it, too, or add --set "baseline={next(iter(config.methods))}", or --set baseline=null for none'
        hint = None if nearest(config.baseline, config.methods) else other
        raise UnknownNameError("method of baseline", config.baseline, config.methods, hint)
    named: list[AxisValue | MethodSpec] = [*config.methods.values(), *config.levels().values()]
    used = {one.init_from for one in named} - {None}
    for name in sorted(map(str, used - set(config.pretraining))):
        raise UnknownNameError("pretraining run", name, config.pretraining)
    if config.contrast_axis is not None:
        if config.contrast_axis not in config.axes:
            raise UnknownNameError(
                "axis of contrast_axis", config.contrast_axis, config.axes, "name one of the study's axes"
            )
        if len(config.axes[config.contrast_axis]) < 2:
            raise ConfigError(
                f"contrast_axis: the axis {config.contrast_axis!r} has one value only", "give it another one"
            )
    for name in {ZERO_SHOT, MAJORITY} & set(config.methods):
        if name == MAJORITY or config.zero_shot:
            raise ConfigError(f"methods.{name}: a row of that name is in the tables already", "give it another name")
    if taken := COLUMNS & set(config.axes):
        raise ConfigError(f"axes.{min(taken)}: a column of that name is in the results already", "give it another name")
    if not all(config.axes.values()):
        raise ConfigError("axes: an axis without a value has no runs", "give it a value, or leave it out")
    for level in config.levels().values():
        for name in level.methods.keys() - config.methods.keys():
            raise UnknownNameError("method", name, config.methods)


def _check_trials(config: StudyConfig) -> None:
    """Raise ConfigError if methods have different numbers of trials, or there are trials but no search."""
    for name, contender in config.methods.items():
        if contender.tuned_by is not None:
            _check_tuned_by(config, name, contender.tuned_by)
    counts = {name: len(contender.trials) for name, contender in config.methods.items() if contender.trials}
    if len(set(counts.values())) > 1:
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        raise ConfigError(
            f"methods.{most} has {counts[most]} trials, but methods.{least} has {counts[least]}: a method that may "
            "try more settings has a better one by luck",
            "give all of them the same number of trials",
        )
    if counts and config.search is None:
        raise ConfigError(
            f"methods.{next(iter(counts))} has trials, but the study says not how they are judged",
            "add for example search: {budget: {queries: 5120}, seeds: [0], metric: loss}",
        )


def _check_tuned_by(config: StudyConfig, name: str, other: str) -> None:
    """Raise ConfigError for a control of a method without trials, or one that sets a key of the trials."""
    control, where = config.methods[name], f"methods.{name}.tuned_by"
    if other not in config.methods:
        hint = None if nearest(other, config.methods) else f"of a part of a study, keep {other!r}, too"
        raise UnknownNameError(f"method of {where}", other, config.methods, hint)
    if control.trials:
        raise ConfigError(f"methods.{name} has trials of its own, and tuned_by: {other}", "leave one of the two out")
    if not config.methods[other].trials:
        message = f"{where}: {other} has no trials, so that no setting of it is chosen"
        raise ConfigError(message, "name a method that has trials")
    nothing = Changes()
    said = [(f"methods.{name}", control.tree, config.methods[other].tree)]
    for place, level in config.levels().items():
        alone, theirs = (level.methods.get(one) or nothing for one in (name, other))
        said.append((f"{place}.methods.{name}", alone.tree, theirs.tree))
    for number, trial in enumerate(config.tried(other), 1):
        for (place, tree, others), (key, _) in itertools.product(said, flatten(trial)):
            if get_by_path(tree, key) not in (None, get_by_path(others, key)):
                raise ConfigError(
                    f"{place}.{key}: trial {number} of {other} sets this, so that it would have no effect",
                    f"leave it out, or give {name} trials of its own instead of tuned_by",
                )
