"""Keys that have been renamed: accepted in files of older versions, and suggested to whoever types an old one.

A new configuration must have today's keys. Records in runs, trajectories and patches are read with either name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_RUNS = {
    "start": "init_from",
    "run": "output_dir",
    "task.demonstrations": "task.num_fewshot",
    "task.demonstration_sets": "task.fewshot_sampling",
    "task.sizes": "task.split_sizes",
    "task.shots": "task.train_examples_per_label",
    "task.setting": "task.metaicl_setting",
    "task.unseen": "task.held_out_tasks",
    "training.queries": "training.max_queries",
    "training.eval_every": "training.eval_steps",
    "training.evaluations": "training.num_evals",
    "training.test": "training.eval_on_test",
    "training.non_finite": "training.on_non_finite",
    "training.most_skips": "training.max_consecutive_skips",
    "training.checkpoint_every": "training.save_steps",
    "training.checkpoint_keep": "training.save_total_limit",
    "training.checkpoint_failure": "training.on_save_error",
    "method.select": "method.trainable",
    "method.layers": "method.trainable",
    "method.loss_spread": "method.normalize_by_std",
    "method.pair": "method.control_variate",
    "method.anneal_above": "method.anneal_threshold",
    "method.anneal_by": "method.anneal_factor",
    "method.backbone_step": "method.backbone_update",
    "method.adapters": "method.adapter_offload",
    "method.evaluator.fold_every": "method.evaluator.flush_every",
    "method.noise.factors": "method.noise.factor_distribution",
    "method.mask.share": "method.mask.density",
    "method.mask.every": "method.mask.refresh_every",
    "method.mask.blocks": "method.mask.num_blocks",
    "method.adapter.tokens": "method.adapter.num_virtual_tokens",
    "method.adapter.start": "method.adapter.init",
}
"""Keys of the configuration of a run, dotted."""

_OWNERS = {
    "method.": ("bilevel", "first-order", "meta-bilevel", "mezo", "svrg", "two-stage", "zo-svrg"),
    "method.noise.": ("low-rank",),
    "method.mask.": ("magnitude", "random", "rotation"),
    "method.evaluator.": ("in-forward",),
    "method.adapter.": ("prefix", "prompt"),
}
"""The parts whose options had these names: a part of another package may have an option that is called so today."""

OBJECTIVES_NOW = {"f1": "token-f1"}
"""Objectives that once had another name."""
_OF_OBJECTIVES = (("training", "objective"), ("method", "upper_objective"))

OF_TASK_FILES = {"also": "extra_metrics", "optional": "optional_columns"}
"""Keys of a task file."""

_OF_STUDIES = {
    "base": "defaults",
    "evaluations": "num_evals",
    "seeded": "seed_keys",
    "starts": "pretraining",
    "reference": "baseline",
    "contrast": "contrast_axis",
    "measure": "split",
    "by": "metric",
    "setting_of": "tuned_by",
}
_OF_RECIPES = {"over": "extends", "needs": "requires", "row": "table_row", "grid": "search_space"}
_ANYWHERE = {**_OF_STUDIES, **_OF_RECIPES, **OF_TASK_FILES, "start": "init_from"}


def name_now(key: str) -> str | None:
    """The current name of a key.

    Args:
        key: dotted key from a file or the command line.

    Returns:
        The last part of its current name; None for a key that was never renamed.
    """
    return OF_RUNS.get(key, _ANYWHERE.get(key.rpartition(".")[2], "")).rpartition(".")[2] or None


def run_as_now(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded configuration of an older version's run, with today's keys."""
    made = _renamed(tree, "")
    method = made.get("method")
    if isinstance(method, dict) and method.get("parameters") == "partial":  # which `trainable` says alone
        made["method"] = {**method, "parameters": "all"}
    for group, key in _OF_OBJECTIVES:
        own = made.get(group)
        if isinstance(own, dict) and own.get(key) in OBJECTIVES_NOW:
            made[group] = {**own, key: OBJECTIVES_NOW[own[key]]}
    return made


def method_as_now(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded options of a method of an older version, such as in the header of a trajectory, with today's
    keys."""
    return _renamed(tree, "method.")


def task_as_now(content: Any) -> Any:
    """The recorded task of an older version, with today's keys; an invalid one is returned unchanged."""
    if not isinstance(content, Mapping):
        return content
    return {OF_TASK_FILES.get(key, key): value for key, value in content.items()}


def _renamed(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    own = "name" not in tree or where not in _OWNERS or tree["name"] in _OWNERS[where]
    for key, value in tree.items():
        name = OF_RUNS.get(f"{where}{key}") if own else None
        value = _renamed(value, f"{where}{key}.") if isinstance(value, Mapping) else value
        if name is None:
            made[key] = value
        elif value is not None or name.rpartition(".")[2] not in made:  # `select` and `layers` are one key now
            made[name.rpartition(".")[2]] = value
    return made
