"""In-context learning: solved examples before each prompt.

Brown et al. (2020), "Language Models are Few-Shot Learners".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise import permutation
from zofo.tasks.channel import in_channel
from zofo.tasks.config import TaskConfig
from zofo.tasks.example import Example
from zofo.tasks.task import SEPARATOR


def with_demonstrations(
    examples: Sequence[Example], pool: Sequence[Example], config: TaskConfig, separator: str = SEPARATOR
) -> list[Example]:
    """Examples whose prompts begin with solved ones of the pool, the same or others for each by `demonstration_sets`.

    An example is never among its own demonstrations. Which are drawn depends on `split_seed` and the example's place.

    Args:
        examples: what is asked.
        pool: solved examples, of train.
        config: how many demonstrations, and whose.
        separator: what stands between them.

    Raises:
        ConfigError: the pool is too small, or holds chats.
    """
    wanted, seed = config.demonstrations, config.split_seed
    if len(pool) <= wanted:
        raise ConfigError(
            f"task.demonstrations is {wanted}, but train has {len(pool)} rows", "ask for fewer, or give more rows"
        )
    if any(example.messages for example in pool):
        raise ConfigError("a chat takes no demonstrations", "put solved turns into its messages")
    shared = permutation(Key(seed, 0), "demonstrations", len(pool)) if config.demonstration_sets == "fixed" else None
    solved = []
    for number, example in enumerate(examples):
        order = permutation(Key(seed, number), "demonstrations of one", len(pool)) if shared is None else shared
        chosen = [pool[i] for i in order[: wanted + 1] if pool[i].where != example.where][:wanted]
        if config.scoring == "channel":
            solved.append(replace(example, before="".join(in_channel(one) + separator for one in chosen)))
            continue
        before = separator.join(_solved(one) for one in chosen) + separator
        free = before + example.content_free if example.content_free else ""
        solved.append(replace(example, prompt=before + example.prompt, content_free=free))
    return solved


def _solved(example: Example) -> str:
    return (example.prompt + example.candidates[example.gold]).rstrip()
