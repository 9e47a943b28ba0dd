"""The KL divergence of a model's answers from the base model, to keep a run with a reward close to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from zofo.errors import ConfigError
from zofo.objectives.generation import Completion, Generation, completions, parts_of_rows
from zofo.objectives.objectives import TrainingObjective
from zofo.objectives.scoring import target_log_likelihoods
from zofo.tasks import Task, collate

_AT_ONCE = 512  # tokens whose logits are in memory at once, or one per text, as in a generation: up to twice as many
AsBase = Callable[[nn.Module], AbstractContextManager[None]]
"""A context in which the model answers as the base model would."""


def less_kl(
    objective: TrainingObjective, task: Task, how: Generation, beta: float, base_of: Callable[[], AsBase]
) -> TrainingObjective:
    """The objective minus (reward - beta KL), for an objective that is minus a reward of generated texts; see
    `kl_to_base`.

    `base_of` returns the base model; it is called only if the objective is valid.

    Raises:
        ConfigError: the objective is a loss, or a reward of something other than text.
    """
    if objective.rewards is None:
        raise ConfigError(
            f"training.kl_beta takes something off a reward, and the objective {objective.name!r} is a loss",
            "leave training.kl_beta out, or train by a reward: --reward FILE.py:NAME",
        )
    if task.kind != "generation":
        raise ConfigError(
            f"training.kl_beta needs generated texts, and the answers of the {task.kind} task {task.name!r} are "
            "candidates",
            "leave training.kl_beta out",
        )
    as_base = base_of()
    rewards = replace(objective.rewards, beta=beta, _given=[])

    def losses(model: nn.Module, batch: Any) -> torch.Tensor:
        said = completions(model, batch.examples, how)
        found = rewards.of_each_copy(batch, [one.text for one in said])
        kl = kl_to_base(model, batch.examples, said, how.tokenizer.pad_token_id, as_base)
        scores = rewards.less_kl(found, kl.tolist())
        return -torch.tensor(scores, dtype=torch.float32, device=batch.gold.device)

    return replace(objective, losses=losses, rewards=rewards)


@torch.no_grad()
def kl_to_base(
    model: nn.Module, examples: Sequence[Any], said: Sequence[Completion], pad: int, as_base: AsBase
) -> torch.Tensor:
    """An estimate of KL(model || base) from one text per example: float32, shape [E].

    It is the mean of exp(r) - 1 - r over the tokens of the text, including the one that ended it, where r is log
    p_base(token) - log p_model(token), both at temperature 1: Schulman's estimator k3, as in TRL's GRPOTrainer. It is
    never negative, and 0 for equal models. For texts drawn at temperature 1 its mean is the KL per token; for greedy
    texts it is a distance along them, not an unbiased estimate.

    Texts are processed in parts to limit the memory of logits (see `_AT_ONCE`), with two forwards each.
    """
    rows = [
        replace(one, rows=((*one.prompt, *text.tokens),), scored=(len(text.tokens),), gold=0, earlier_spans=())
        for one, text in zip(examples, said, strict=True)
    ]
    found, longest = [], max(one.scored[0] for one in rows)
    for part in parts_of_rows(len(rows), max(len(rows), _AT_ONCE) // longest):
        batch = collate([rows[place] for place in part], pad, next(model.parameters()).device)
        own = target_log_likelihoods(model, batch)
        with as_base(model):
            base = target_log_likelihoods(model, batch)
        there = batch.target_mask[:, 0]
        apart = (base - own).masked_fill(~there, 0.0)
        found.append((torch.expm1(apart) - apart).sum(dim=1) / there.sum(dim=1))
    return torch.cat(found)
