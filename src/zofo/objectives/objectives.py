"""Objectives by name: what a run minimises, and which examples and models it supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from zofo.errors import ConfigError
from zofo.objectives.generation import Generation, generate
from zofo.objectives.packaged_rewards import REWARDS
from zofo.objectives.rewards import Rewards, WeightedReward, as_rewards
from zofo.objectives.scoring import classification_loss, scores, token_loss, whole
from zofo.registry import Registry
from zofo.retired_keys import OBJECTIVES_NOW
from zofo.tasks import Example, Task, TokenizedChoices
from zofo.tasks.metrics import Answer, macro_f1_of, token_f1

REWARD = "reward"
"""The name of the objective that is a user's own function."""


@dataclass(frozen=True)
class TrainingObjective:
    """What training minimises: one float32 number per example.

    Args:
        losses: (model, batch) -> float32, shape [E].
        prepare: selects what it needs of an encoded example.
        differentiable: whether it has a gradient for first-order steps.
        causal_only: whether only a causal language model has this loss.
        compares_candidates: whether it needs several candidates per example.
        check_losses: the loss for checks of the model before the first step; None for `losses`. An objective without a
            gradient needs one: a check would miss a small difference in a reward, and must not call a user's function.
        rewards: the rewards of which it is minus the sum, if any.
        answers: (model, batch) -> the answer of each example that it rewards.
    """

    name: str
    losses: Callable[[nn.Module, Any], torch.Tensor]
    prepare: Callable[[Any], Any] = whole
    differentiable: bool = True
    causal_only: bool = False
    compares_candidates: bool = False
    check_losses: Callable[[nn.Module, Any], torch.Tensor] | None = None
    rewards: Rewards | None = None
    answers: Callable[[nn.Module, Any], Sequence[Answer]] | None = None


Maker = Callable[[Task, Generation], TrainingObjective]
OBJECTIVES: Registry[Maker] = Registry("objective")


def default_objective(task: Task) -> str:
    """The default objective of a task, as in MeZO; see `docs/tasks.md`."""
    return "classification" if task.kind == "classification" else "answer"


def objective_maker(name: str) -> Maker:
    """The function that builds the objective of that name. Raises UnknownNameError or ConfigError if there is none."""
    if now := OBJECTIVES_NOW.get(name):
        raise ConfigError(
            f"the objective {name!r} is called {now!r}, as the metric is", f"type {now} instead of {name}"
        )
    return OBJECTIVES[name]


def build_objective(name: str, task: Task, how: Generation, causal: bool) -> TrainingObjective:
    """Build the objective of that name for a task.

    Args:
        how: how texts are generated, if the objective needs them.

    Raises:
        ConfigError: the objective does not apply to the task or the model.
    """
    made = objective_maker(name)(task, how)
    if not causal and made.causal_only:
        raise ConfigError(
            f"the objective {name!r} is the loss of a causal language model",
            "choose 'classification', as in training.objective=classification, or a causal language model",
        )
    return made


def reward_objective(reward: Any, task: Task, how: Generation, name: str = REWARD) -> TrainingObjective:
    """Minus a reward of the model's predictions; it has no gradient, and takes one forward pass.

    Args:
        reward: a function, see `Reward`, or several, see `as_rewards`.
        task: its kind determines what a prediction is.
    """
    rewards = as_rewards(reward)
    if task.kind != "generation" and any(part.of_texts for part in rewards.parts):
        raise _unfit(next(part.short for part in rewards.parts if part.of_texts), task, "accuracy")

    def losses(model: nn.Module, batch: Any) -> torch.Tensor:
        found = rewards.of_each_copy(batch, _asked(model, batch))
        return -torch.tensor(found, dtype=torch.float32, device=batch.gold.device)

    def _asked(model: nn.Module, batch: Any) -> Sequence[Answer]:
        if task.kind == "generation":
            return generate(model, batch.examples, how)
        answers: list[Answer] = scores(model, batch).argmax(dim=1).tolist()
        return answers

    check_losses = token_loss if task.kind == "generation" else classification_loss
    return TrainingObjective(
        name, losses, differentiable=False, check_losses=check_losses, rewards=rewards, answers=_asked
    )


@OBJECTIVES.register("classification")
def _classification(task: Task, how: Generation) -> TrainingObjective:
    """Cross-entropy of the right candidate among an example's candidates."""
    if task.kind == "generation":
        raise _unfit("classification", task, "answer")
    return TrainingObjective("classification", classification_loss, compares_candidates=True)


@OBJECTIVES.register("answer")
def _answer(task: Task, how: Generation) -> TrainingObjective:
    """Mean negative log-likelihood of the tokens of the right candidate or answer."""
    return TrainingObjective("answer", token_loss, TokenizedChoices.gold_only, causal_only=True)


@OBJECTIVES.register("text")
def _text(task: Task, how: Generation) -> TrainingObjective:
    """Mean negative log-likelihood of all tokens of prompt and right candidate: the full language-model loss."""
    return TrainingObjective("text", token_loss, TokenizedChoices.full_sequence, causal_only=True)


@OBJECTIVES.register("accuracy")
def _accuracy(task: Task, how: Generation) -> TrainingObjective:
    """Minus 1 for a right prediction, 0 for a wrong one; no gradient, for zeroth-order methods."""
    if task.kind == "generation":
        raise _unfit("accuracy", task, "token-f1")

    def accuracy(example: Example, answer: Answer) -> float:
        return float(answer in example.golds)

    return replace(reward_objective(accuracy, task, how, "accuracy"), compares_candidates=True)


@OBJECTIVES.register("token-f1")
def _token_f1(task: Task, how: Generation) -> TrainingObjective:
    """Minus the token F1 of the generated answer; no gradient, for zeroth-order methods."""
    if task.kind != "generation":
        raise _unfit("token-f1", task, "accuracy")

    def f1(example: Example, text: Answer) -> float:
        return token_f1(str(text), example.answers)

    return reward_objective(f1, task, how, "token-f1")


@OBJECTIVES.register("macro-f1")
def _macro_f1(task: Task, how: Generation) -> TrainingObjective:
    """Minus the macro-F1 of a batch, for each of its examples; no gradient, for zeroth-order methods."""
    if task.kind != "classification":
        raise _unfit("macro-f1", task, "token-f1" if task.kind == "generation" else "accuracy")

    def macro_f1(completions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
        of_batch = macro_f1_of([one[0] for one in answers], completions)
        return [of_batch] * len(completions)

    return replace(reward_objective(macro_f1, task, how, "macro-f1"), compares_candidates=True)


def _packaged(name: str, about: str) -> None:
    """Register the objective that is minus a packaged reward."""

    def make(task: Task, how: Generation) -> TrainingObjective:
        return reward_objective(WeightedReward(REWARDS[name](""), typed=name, of_texts=True), task, how, name)

    make.__doc__ = about
    OBJECTIVES.register(name)(make)


_packaged(
    "exact-match", "Minus 1 for a generated text that equals an accepted answer, as SQuAD compares them; no gradient."
)
_packaged("number-match", "Minus 1 for a generated text that is the number of an accepted answer; no gradient.")
_packaged(
    "brevity", "Minus 1 / (1 + words of the generated text); no gradient. Nonsense is short, too: look at the answers."
)
_packaged(
    "rouge-l", "Minus ROUGE-L of the generated text with the closest accepted answer; no gradient. Needs zofo[rewards]."
)
_packaged(
    "bleu", "Minus BLEU of the generated text with the accepted answers, from 0 to 1; no gradient. Needs zofo[rewards]."
)


def _unfit(name: str, task: Task, better: str) -> ConfigError:
    return ConfigError(
        f"the objective {name!r} has no meaning for the {task.kind} task {task.name!r}",
        f"choose {better!r}, as in training.objective={better}",
    )
