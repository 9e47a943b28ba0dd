"""A vote: several displaced models answer in one batch, and the majority answer wins.

Source: RandOpt and CoRP, which let the best members of one random population vote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zofo.displacement import Displacement
from zofo.errors import RunError
from zofo.evaluators import Evaluator
from zofo.filesystem import atomic_write_text
from zofo.objectives import Generation, aside, generate, is_aside, scores
from zofo.state_dict import of_displacement, to_displacement
from zofo.tasks.batches import padded

VOTE = "vote.json"

AnswersOf = Callable[[nn.Module, Any], Sequence[Any]]


def winner(answers: Sequence[Any]) -> int:
    """The index of the first member that gives the most frequent answer; ties go to the answer of the earlier member.

    Args:
        answers: answers of the members, the best member first. Texts are compared in lower case, word by word.
    """
    said = [" ".join(one.lower().split()) if isinstance(one, str) else one for one in answers]
    first = {one: said.index(one) for one in said}
    return min(first.values(), key=lambda place: (-said.count(said[place]), place))


class Vote:
    """The answers of members theta + x_k, and the one that most of them give.

    Args:
        members: x_k, the best one first.
        build: builds the evaluator of a model, when the model is first used.
    """

    def __init__(self, members: Sequence[Displacement], build: Callable[[Any], Evaluator]) -> None:
        self.members = tuple(members)
        self._build, self._built = build, dict[int, Evaluator]()

    def of_each(self, model: nn.Module, batch: Any, answers: AnswersOf, points: Sequence[Displacement]) -> list[Any]:
        """The result of `answers` at each point, by example: lists with one entry per point.

        Args:
            batch: with `examples`, no two of them the same object.
            answers: (model, batch) -> a value per example.
        """
        places = {id(one): place for place, one in enumerate(batch.examples)}
        found: list[list[Any]] = [[] for _ in places]

        def objective(model: nn.Module, some: Any) -> torch.Tensor:
            given = answers(model, some)
            if not is_aside():  # else a check asks
                for one, answer in zip(some.examples, given, strict=True):  # per example, point by point
                    found[places[id(one)]].append(answer)
            values = [one.float().sum() if isinstance(one, torch.Tensor) else torch.zeros(()) for one in given]
            return torch.stack(values)

        evaluator = self._evaluator(model, batch)
        with aside(False):
            evaluator.losses(objective, batch, points)
        return found

    def score(self, model: nn.Module, batch: Any, by: str) -> torch.Tensor:
        """The logarithm of each candidate's share of the votes, [E, C].

        The winner of a tie gets an extra half vote. To give every candidate a probability, a hundredth of the weight of
        a vote is the mean of the members' probabilities.
        """
        tables = self.of_each(model, batch, lambda model, some: list(scores(model, some, by).cpu()), self.members)
        count, rows = len(self.members), []
        for of_members in tables:
            table = torch.stack(of_members)
            votes = table.argmax(dim=1).tolist()
            shares = torch.bincount(torch.tensor(votes), minlength=table.shape[1]).double()
            shares[votes[winner(votes)]] += 0.5
            small = 0.01 / (count + 0.5)
            rows.append((1 - small) * shares / (count + 0.5) + small * table.double().softmax(dim=1).mean(dim=0))
        return torch.stack(rows).log().float()

    def write(self, model: nn.Module, examples: Sequence[Any], how: Generation) -> list[str]:
        """The majority text after each prompt, as the best of its members wrote it."""
        batch = Prompts(tuple(examples), how.tokenizer.pad_token_id)
        texts = self.of_each(model, batch, lambda model, some: generate(model, some.examples, how), self.members)
        return [said[winner(said)] for said in texts]

    def _evaluator(self, model: nn.Module, batch: Any) -> Evaluator:
        """The evaluator of this model. On first use it is checked with the model's predictions for the first rows."""
        known = self._built.get(id(model))
        if known is None:
            known = self._build(model)
            known.check([(_first_loss, batch)])
            self._built = {id(model): known}
        return known


def save_members(members: Sequence[Displacement], folder: Path) -> None:
    """Write the members of a vote to `vote.json`: [seed, step, index, coefficient] for each term."""
    content = {"members": [of_displacement(member) for member in members]}
    atomic_write_text(folder / VOTE, json.dumps(content) + "\n")


def read_members(path: Path) -> tuple[Displacement, ...]:
    """Read the members from such a file, the best one first.

    Raises:
        RunError: it is damaged.
    """
    try:
        members = [to_displacement(terms) for terms in json.loads(path.read_text(encoding="utf-8"))["members"]]
        if len(members) < 2 or not all(members):
            raise ValueError("there are not two members")
    except (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise RunError(f"cannot read {str(path)!r}: {error}", "put back the file as the run wrote it") from error
    return tuple(members)


@dataclass(frozen=True)
class Prompts:
    """A batch of examples of which only the prompts are used."""

    examples: tuple[Any, ...]
    pad: int

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def row_examples(self) -> torch.Tensor:
        """The example of each row."""
        return torch.arange(len(self.examples))

    def part(self, start: int, stop: int) -> Prompts:
        """A part of the batch."""
        return Prompts(self.examples[start:stop], self.pad)

    def repeated(self, times: int) -> Prompts:
        """The batch repeated several times."""
        return Prompts(self.examples * times, self.pad)


def _first_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """A value per row that depends on every weight.

    -log p of the most likely token after the prompt, or minus the best score of a candidate.
    """
    if not isinstance(batch, Prompts):
        return -scores(model, batch, "mean").amax(dim=1)
    device = next(model.parameters()).device
    ids, mask = (one.to(device) for one in padded([one.prompt for one in batch.examples], batch.pad, "right"))
    places = torch.arange(len(ids), device=device), mask.sum(dim=1) - 1
    logits = model(input_ids=ids, attention_mask=mask).logits[places]
    losses: torch.Tensor = -logits.float().log_softmax(dim=1).amax(dim=1)
    return losses
