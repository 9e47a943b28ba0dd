"""A reward, tried on a few rows before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from zofo.methods import TrainingContext

ROWS = 5


def reward_trial(context: TrainingContext) -> Iterator[str]:
    """What the reward of a context gives for the untrained model's answers to the first rows, a sentence each.

    Raises:
        ConfigError: the reward failed, or gave something else than numbers.
    """
    rows = context.examples[:ROWS]
    batch = context.collate(rows)
    start = time.perf_counter()
    with torch.no_grad():
        found = (-context.objective(context.model, batch)).tolist()
    each = (time.perf_counter() - start) / len(rows)
    values = ", ".join(f"{value:.4g}" for value in found)
    yield f"the reward of the first {len(rows)} rows, untrained: {values}; {each:.2g} s a row, with the answer"
    if len(set(found)) == 1 and len(found) > 1:
        yield (
            "warning: it is the same for all of them: a reward that never differs moves nothing; give partial credit, "
            "or raise method.batch_size"
        )
