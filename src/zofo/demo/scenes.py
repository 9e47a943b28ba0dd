"""The scenes of the demo: what each shows, and the configuration of each way in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zofo.objectives.packaged_rewards import brevity

QUERIES = 400
"""Forward passes of one example that each way may spend, where its scene says nothing else."""
ROWS = 160
"""Validation rows by which all are scored."""


@dataclass(frozen=True)
class DemoRun:
    """One way to train.

    Args:
        name: of its row in the table, and of its run's folder.
        tree: its configuration; a local path in it is relative to the folder of the demo.
        rewards: as `zofo train --reward` takes them.
        needs: modules of an extra that it cannot do without.
        scored: whether its score is shown; one that makes a few steps, for its memory, has none to speak of.
    """

    name: str
    tree: dict[str, Any]
    rewards: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    scored: bool = True


@dataclass(frozen=True)
class Scene:
    """A few ways beside each other.

    Args:
        title: of its table.
        shows: what to look at, and how the settings were chosen.
        contenders: the first one is what zofo adds, and is compared with each of the others; one that an earlier scene
            has run is shown again, not run again.
        reward: (example, answer) -> the reward, by which all are scored in place of the task's metric.
    """

    title: str
    shows: str
    contenders: tuple[DemoRun, ...]
    reward: Callable[[Any, Any], float] | None = None


def _judge(
    name: str, method: dict[str, Any], queries: int | None = QUERIES, quantization: str | None = None
) -> DemoRun:
    """A way to let SmolLM2-135M judge movie reviews."""
    needs = () if quantization is None else ("bitsandbytes",)
    model = {"name": "smollm2-135m", "quantization": quantization}
    return DemoRun(name, _tree(model, "movie-reviews", ROWS, method, queries), needs=needs)


def _brief(name: str, method: dict[str, Any], queries: int | None = 5 * 16 * 4) -> DemoRun:
    """A way to let it say in a few words what a review says."""
    rewards = () if queries is None else ("brevity",)
    return DemoRun(name, _tree({"name": "smollm2-135m"}, FEW_WORDS.name, 48, method, queries), rewards)


def _tree(model: dict[str, Any], task: str, rows: int, method: dict[str, Any], queries: int | None) -> dict[str, Any]:
    length = {} if queries is None else {"max_queries": queries}
    return {
        "model": model,
        "task": {"name": task, "split_sizes": {"validation": rows}},
        "method": method,
        "training": {"eval_batch_size": 16, "before_after_examples": 16, **length},
    }


FEW_WORDS = Path(__file__).with_name("few-words.yaml")
"""The task file of a scene, which the demo copies beside its runs."""
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
_POPULATION = {"population": 16, "batch_size": 4, "estimator": {"epsilon": 1e-2}}
_FO_LORA, _ZERO_SHOT = _judge("lora", _LORA), _judge("zero-shot", {"name": "zero-shot"}, None)

SCENES = (
    Scene(
        "All linear layers move, on a base of 4 bits",
        "Look at the memory. Both LoRA ways keep the inputs of layers alone (gradient checkpointing). qlora makes "
        "three steps, for its memory. Two settings were tried for mezo-4-bit and for lora.",
        (
            _judge("mezo-4-bit", _SUBSPACE, quantization="nf4"),
            _FO_LORA,
            replace(_judge("qlora", _LORA, 24, "nf4"), scored=False),
            _ZERO_SHOT,
        ),
    ),
    Scene(
        "An outcome without a gradient: short answers",
        "The reward is 1 / (1 + words), of what the model says of a review in a few words. No row has such an "
        "answer, so cross-entropy cannot be asked; select is the control, the best of as many random moves. "
        "Nonsense is short, too: look at the answers in the report. Another prompt may do more. Two settings were "
        "tried for by-reward.",
        (
            _brief("by-reward", {"name": "es", "lr": 1e-2, **_POPULATION}),
            _brief("select", {"name": "select", "gate_examples": 4, **_POPULATION}, 5 * 16 * 4 + 2 * 4),
            _brief("as-prompted", {"name": "zero-shot"}, None),
        ),
        brevity(""),
    ),
    Scene(
        "Bilevel-ZOFO: an adapter by gradients, and the model below it",
        "frozen is the control: the same settings, and a model below that stays. Eleven settings were tried for "
        "bilevel, with more queries, and two for lora, which alone has gradient checkpointing.",
        (
            _judge("bilevel", _BILEVEL),
            _judge("frozen", {**_BILEVEL, "backbone_update": "frozen"}),
            _FO_LORA,
            _ZERO_SHOT,
        ),
    ),
)
"""What `zofo demo` shows."""
