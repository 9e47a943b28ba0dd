"""The scenes of the demo: what each shows, and the configuration of each way in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zofo.bench import demo_rewards

QUERIES = 400
"""Forward passes of one example that each way may spend, where its scene says nothing else."""
ROWS = 160
"""Validation rows by which all are scored."""


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Args:
        name: of its row in the table, and of its run's folder.
        tree: its configuration; local paths are relative to the folder of the demo.
        rewards: as `zofo train --reward` takes them.
        needs: modules of an extra that it cannot do without.
    """

    name: str
    tree: dict[str, Any]
    rewards: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """A few ways beside each other.

    Args:
        title: of its table.
        shows: what to look at, and how the settings were chosen.
        contenders: the first one is what zofo adds, and is compared with each of the others; one that an earlier scene
            has run is shown again, not run again.
        reward: (example, predicted candidate) -> what the answer is worth, by which all are scored in place of the
            task's metric.
    """

    title: str
    shows: str
    contenders: tuple[Contender, ...]
    reward: Callable[[Any, Any], float] | None = None


def _way(name: str, method: dict[str, Any], queries: int = QUERIES, **options: Any) -> Contender:
    """A way to let SmolLM2-135M judge movie reviews."""
    needs, rewards, start = options.pop("needs", ()), options.pop("rewards", ()), options.pop("start", None)
    training = {"eval_batch_size": 16, "before_after_examples": 0}
    tree = {
        "model": {"name": "smollm2-135m", **options},
        "task": {"name": "movie-reviews", "split_sizes": {"validation": ROWS}, "allow_overlap": start is not None},
        "method": method,
        "training": training if method["name"] == "zero-shot" else {**training, "max_queries": queries},
    }
    return Contender(name, tree if start is None else {**tree, "init_from": start}, rewards, needs)


_LORA = {"name": "first-order", "batch_size": 8, "lr": 1e-3, "gradient_checkpointing": True}
_BILEVEL = {
    "name": "bilevel",
    "batch_size": 8,
    "inner_steps": 2,
    "penalty": 1,
    "lr_lower": 1e-3,
    "lr_adapter": 2.5e-3,
    "rule": {"name": "sgd", "lr": 2e-5},
}
_SUBSPACE = {
    "name": "mezo",
    "adapter": "subspace",
    "batch_size": 16,
    "evaluator": {"name": "in-forward", "micro_batch": 4},
    "rule": {"name": "sgd", "lr": 2e-4},
}
_POPULATION = {
    "name": "es",
    "trainable": ["*lora_*"],
    "population": 8,
    "batch_size": 16,
    "estimator": {"epsilon": 2e-2},
}
_PACKED = {"quantization": "nf4", "needs": ("bitsandbytes",)}
_ZERO_SHOT, _FO_LORA = _way("zero-shot", {"name": "zero-shot"}), _way("lora", _LORA)

SCENES = (
    Scene(
        "All linear layers move, on a base of 4 bits",
        "Look at the memory. Both LoRA ways keep the inputs of layers alone (gradient checkpointing). qlora makes a "
        "few steps, for its memory. One setting was tried for each way.",
        (
            _way("mezo-4-bit", _SUBSPACE, **_PACKED),
            _FO_LORA,
            _way("qlora", _LORA, queries=48, **_PACKED),
            _ZERO_SHOT,
        ),
    ),
    Scene(
        "An outcome without a gradient: what a mistake costs",
        "A bad review that is missed costs 5, a false alarm 1. by-cost goes on from lora-half, by the cost itself; "
        "lora has the same cross-entropy for as many seconds as both. It does not know the cost.",
        (
            _way("by-cost", _POPULATION, queries=640, start="lora-half", rewards=("rewards.py:careful",)),
            _way("lora-half", _LORA, queries=QUERIES // 2),
            _FO_LORA,
            _ZERO_SHOT,
        ),
        demo_rewards.careful,
    ),
    Scene(
        "Bilevel-ZOFO: an adapter by gradients, and the model below it",
        "frozen is the control: the same settings, and a model below that stays. Eleven settings were tried for "
        "bilevel, with more queries; one for LoRA.",
        (
            _way("bilevel", _BILEVEL),
            _way("frozen", {**_BILEVEL, "backbone_update": "frozen"}),
            _FO_LORA,
            _ZERO_SHOT,
        ),
    ),
)
"""What `zofo demo` shows."""

REWARDS = Path(demo_rewards.__file__)
"""The file of the rewards, which the demo copies beside its runs, as rewards.py."""
