"""In-context learning: solved examples before each prompt.

Brown et al. (2020), "Language Models are Few-Shot Learners".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise import permutation
from zofo.tasks.config import TaskConfig
from zofo.tasks.duplicates import question_of
from zofo.tasks.example import Example
from zofo.tasks.task import SEPARATOR
from zofo.tasks.tokenization import in_channel


def with_demonstrations(
    examples: Sequence[Example], pool: Sequence[Example], config: TaskConfig, separator: str = SEPARATOR
) -> list[Example]:
    """Examples whose prompts begin with solved ones of the pool, the same or others for each by `fewshot_sampling`.

    No demonstration asks what its example asks, in whichever row or form it stands, see `question_of`. Which are drawn
    depends on `split_seed` and the example's number.

    Args:
        pool: solved examples, of train.

    Raises:
        ConfigError: the pool is too small, or has too few rows that ask something else; or it holds chats.
    """
    wanted, seed = config.num_fewshot, config.split_seed
    if len(pool) <= wanted:
        raise ConfigError(
            f"task.num_fewshot is {wanted}, but train has {len(pool)} rows", "ask for fewer, or give more rows"
        )
    if any(example.messages for example in pool):
        raise ConfigError("a chat takes no demonstrations", "put solved turns into its messages")
    with_candidates = not any(one.answers for one in pool)  # of a generation, they are its answer
    asked = [question_of(one, with_candidates) for one in pool]
    shared = permutation(Key(seed, 0), "demonstrations", len(pool)) if config.fewshot_sampling == "fixed" else None
    solved = []
    for number, example in enumerate(examples):
        order = permutation(Key(seed, number), "demonstrations of one", len(pool)) if shared is None else shared
        asks = question_of(example, with_candidates)
        chosen = [pool[i] for i in islice((i for i in order if asked[i] != asks), wanted)]
        if len(chosen) < wanted:
            raise ConfigError(
                f"task.num_fewshot is {wanted}, but only {len(chosen)} rows of train ask something else than "
                f"{example.where}",
                "ask for fewer, or give more rows",
            )
        own = tuple(text for one in (*chosen, example) for text in one.own)
        if config.scoring == "channel":
            solved.append(replace(example, before="".join(in_channel(one) + separator for one in chosen), own=own))
            continue
        demonstrations = [(one.prompt + one.candidates[one.gold]).rstrip() for one in chosen]
        before = separator.join(demonstrations) + separator
        free = before + example.content_free if example.content_free else ""
        solved.append(replace(example, prompt=before + example.prompt, content_free=free, own=own))
    return solved
