"""The scenes of the demo: what each shows, and the configuration of each way in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zofo.embedded import EMBEDDED_DATA, EMBEDDED_MODELS
from zofo.objectives.packaged_rewards import brevity
from zofo.tasks import SPLITS

QUERIES, QUERIES_OF_MEZO, QUERIES_BY_REWARD = 240, 400, 5 * 16 * 4
"""Forward passes of one example that a way may spend: most of them; MeZO on all linear layers; those by a reward."""
ROWS = 128
"""Validation rows by which all are scored; 48 where answers are written."""
LONGEST = 80
"""Characters of the longest sentence that is judged: a third of them, which take half of the time of all."""


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
        reward: (example, answer) -> the reward, by which all are scored instead of the task's metric.
    """

    title: str
    shows: str
    contenders: tuple[DemoRun, ...]
    reward: Callable[[Any, Any], float] | None = None


def _judge(
    name: str,
    method: dict[str, Any],
    queries: int | None = QUERIES,
    quantization: str | None = None,
    rows: int = ROWS,
) -> DemoRun:
    """A way to let SmolLM2-135M judge movie reviews."""
    needs = () if quantization is None else ("bitsandbytes",)
    model = {"name": _MODEL, "quantization": quantization}
    task = {"name": _ROWS, "data_dir": _DATA, "split_sizes": {"validation": rows}}
    return DemoRun(name, _tree(model, task, method, queries), needs=needs)


def _brief(name: str, method: dict[str, Any], queries: int | None = QUERIES_BY_REWARD) -> DemoRun:
    """A way to let it say in a few words what a review says."""
    rewards = () if queries is None else ("brevity",)
    task = {"name": FEW_WORDS.name, "split_sizes": {"validation": 48}}
    return DemoRun(name, _tree({"name": _MODEL}, task, method, queries), rewards)


def _tree(model: dict[str, Any], task: dict[str, Any], method: dict[str, Any], queries: int | None) -> dict[str, Any]:
    length = {} if queries is None else {"max_queries": queries}
    return {
        "model": model,
        "task": task,
        "method": method,
        "training": {"eval_batch_size": 16, "before_after_examples": 16, **length},
    }


FEW_WORDS = Path(__file__).with_name("few-words.yaml")
"""The task file of a scene, which is copied beside its runs."""
_DATA, _MODEL, _ROWS = "sentences", "smollm2-135m", "movie-reviews"


def write_files(folder: Path) -> None:
    """Write what the runs read into the folder of the demo: a task file, and the shorter sentences, which are judged.

    The model and the rows are fetched first, where they are not there: two runs at a time would both fetch them.

    Raises:
        DownloadError: they cannot be fetched.
    """
    shutil.copy(FEW_WORDS, folder)
    EMBEDDED_MODELS[_MODEL]()
    rows, own = EMBEDDED_DATA[_ROWS](), folder / _DATA
    own.mkdir(exist_ok=True)
    for split in SPLITS:
        lines = (rows / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        short = [line for line in lines if len(json.loads(line)["sentence"]) <= LONGEST]
        (own / f"{split}.jsonl").write_text("\n".join(short) + "\n", encoding="utf-8")


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
        "three steps, for its memory. lora may spend 240 queries, and mezo-4-bit 400. Three settings were tried "
        "for mezo-4-bit, and two for lora, with more queries and longer sentences.",
        (
            _judge("mezo-4-bit", _SUBSPACE, QUERIES_OF_MEZO, "nf4"),
            _FO_LORA,
            replace(_judge("qlora", _LORA, 24, "nf4", 16), scored=False),
            _ZERO_SHOT,
        ),
    ),
    Scene(
        "An outcome without a gradient: short answers",
        "The reward is 1 / (1 + words), of what the model says of a review in a few words. No row has such an "
        "answer, so cross-entropy cannot be asked; select is the control, the best of as many random moves. "
        "Nonsense is short, too: look at the answers in the report. Another prompt may do more. Two settings were "
        "tried for by-reward. On shorter sentences, which were tried once, select was ahead.",
        (
            _brief("by-reward", {"name": "es", "lr": 1e-2, **_POPULATION}),
            _brief("select", {"name": "select", "gate_examples": 4, **_POPULATION}, QUERIES_BY_REWARD + 2 * 4),
            _brief("as-prompted", {"name": "zero-shot"}, None),
        ),
        brevity(""),
    ),
    Scene(
        "Bilevel-ZOFO: an adapter by gradients, and the model below it",
        "frozen is the control: the same settings, and a model below that stays. Eleven settings were tried for "
        "bilevel and two for lora, which alone has gradient checkpointing, all with more queries and longer sentences.",
        (
            _judge("bilevel", _BILEVEL),
            _judge("frozen", {**_BILEVEL, "backbone_update": "frozen"}),
            _FO_LORA,
            _ZERO_SHOT,
        ),
    ),
)
"""What `zofo demo` shows."""
