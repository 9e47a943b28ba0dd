"""What decides the defaults of a zeroth-order step: the numbers, and one function for each key that depends on others.

| key | where | default |
|---|---|---|
| `rule.lr`, of a rule that is plain SGD | one or two shared directions a step | `LR_OF_ONE` |
| | more directions, or some for each example | `LR_OF_SEVERAL` |
| | loss-spread steps | `LR_OVER_SPREAD` |
| | on the tensors of an adapter | the adapter's `zo_lr` |
| `estimator.epsilon` | on weights in float32 | the estimator's own |
| | on weights in half precision | `EPSILON_OF_HALF` |
| | on the tensors of an adapter | the adapter's `zo_epsilon` |
| `evaluator` | noise with factors, and no adapter that hinders it | `in-forward` |
| | otherwise | `in-place` |

An adapter with `projects_weights` has the defaults of weights. A rate is a quarter of the largest stable one of
SmolLM2-135M on two tasks; see docs/methods.md, and `zofo tune lr` for your own model. If a method adds up several
slopes of one loss, the rate is divided by their number. The rates and the epsilon of other adapters are defined in
their class; see `PeftAdapters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zofo.adapters import PeftAdapters
from zofo.noise import NOISES, FactoredNoise

LR_OF_ONE, LR_OF_SEVERAL, LR_OVER_SPREAD = 5e-5, 1e-4, 6e-3
EPSILON_OF_HALF = 3e-3  # losses of half-precision models are rounded more coarsely
HALF = ("bfloat16", "float16")

Adapter = type[PeftAdapters] | None
"""The class of the adapter whose tensors move; None for the model's own weights."""


def default_lr(given: Mapping[str, Any], moved: Adapter) -> float:
    """The default learning rate of plain SGD."""
    if given.get("normalize_by_std"):
        return LR_OVER_SPREAD
    if moved is not None and not moved.projects_weights:
        return moved.zo_lr
    several = given.get("num_directions", 1) not in (1, 2) or given.get("directions", "shared") != "shared"
    return LR_OF_SEVERAL if several else LR_OF_ONE


def default_epsilon(moved: Adapter, half: bool) -> float | None:
    """The default distance of a probe; None leaves it to the estimator."""
    if moved is not None and not moved.projects_weights:
        return moved.zo_epsilon
    return EPSILON_OF_HALF if half else None


def default_evaluator(noise: Any, moved: Adapter, beside: Adapter) -> str:
    """The name of the default evaluator; `beside` says whether first-order steps train an adapter."""
    factored = isinstance(noise, str) and noise in NOISES and issubclass(NOISES[noise], FactoredNoise)
    carried = (moved is None or moved.zo_in_forward) and (beside is None or beside.theta_in_forward)
    return "in-forward" if factored and carried else "in-place"
