"""Scoring a model on examples, in every kind of task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from zofo.errors import ConfigError, NonFiniteError
from zofo.evaluators import Counts, counting_forwards
from zofo.methods import Method, ScoreFunction, WriteFunction
from zofo.objectives import Generation, generate, scores, token_loss
from zofo.processes import ALONE, Processes
from zofo.tasks import METRICS, Example, Task, score_name
from zofo.tasks.metrics import Answer


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on some examples.

    Args:
        metric: name of the score.
        score: its value, from 0 to 1 (Matthews: from -1).
        loss: mean cross-entropy of the right candidate; for a generation, mean loss of the first answer's tokens.
        majority: the score of always giving the most frequent answer, or the label of the score, if that is better.
        predictions: the index of the predicted candidate or the generated text for each example, in the given order.
        also: further scores of the task by name.
        on: what was scored, in words: a split, or all rows of a file; "" if that is clear.
        losses: loss of each example, in the given order.
        label: the label that the score is for, such as that of F1; "" for none.
    """

    metric: str
    score: float
    loss: float
    majority: float
    predictions: tuple[Answer, ...]
    also: Mapping[str, float] = field(default_factory=dict)
    on: str = ""
    losses: tuple[float, ...] = ()
    label: str = ""

    def titled(self, metric: str | None = None) -> str:
        """The name of a score for people, by default the first, with the label that it is for."""
        return score_name(metric or self.metric, self.label)

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, with the score under the name of its metric."""
        return {self.metric: self.score, **self.also, "loss": self.loss, "majority": self.majority}


@dataclass(frozen=True)
class TaskEvaluator:
    """Scores a model on the examples of a task.

    Args:
        encode: tokenises examples.
        collate: encoded examples -> a batch.
        generation: how texts are generated.
        scoring: `mean`, `sum`, `calibrated` or `channel`.
        score: how candidates are scored; a method can bring its own.
        write: how texts are generated; a vote brings its own.
        members: number of models that these two run per example, for a vote.
        watch: opens a progress display for a number of examples; it returns a function to call after each batch.
        processes: the processes that share the batches.
    """

    task: Task
    encode: Callable[[Sequence[Example]], list[Any]]
    collate: Callable[[Sequence[Any]], Any]
    generation: Generation
    scoring: str = "mean"
    batch_size: int = 32
    score: ScoreFunction = scores
    write: WriteFunction = generate
    members: int = 1
    watch: Callable[[int], AbstractContextManager[Callable[[int], None]]] = lambda _: nullcontext(lambda _: None)
    processes: Processes = ALONE

    def of(self, method: Method, **more: Any) -> TaskEvaluator:
        """A copy that scores and writes as a method does, with other fields replaced."""
        return replace(self, score=method.score, write=method.write, members=method.members, **more)

    def evaluate(self, model: nn.Module, examples: Sequence[Any], counts: Counts) -> Evaluation:
        """Score a model. Examples of similar length share a batch, which does not change the numbers.

        Args:
            model: the model, in evaluation mode.
            examples: encoded examples, at least one.
            counts: counts the forwards and queries.

        Raises:
            DataError: examples whose label or answer is not known.
            NonFiniteError: the model gives scores that are not numbers.
        """
        given = [one.example for one in examples]
        metric = METRICS[self.task.metric]
        majority = majority_of(self.task, given)[self.task.metric]
        predictions, loss, losses = self.answers(model, examples, counts)
        also = {name: METRICS[name].score(given, predictions) for name in self.task.extra_metrics}
        score = metric.score(given, predictions)
        said, label = tuple(predictions), self.task.score_of
        return Evaluation(self.task.metric, score, loss, majority, said, also, losses=losses, label=label)

    def answers(
        self, model: nn.Module, examples: Sequence[Any], counts: Counts
    ) -> tuple[list[Answer], float, tuple[float, ...]]:
        """The prediction for each example, the mean loss, and the loss of each."""
        if self.task.kind == "generation":
            last = [one.last_only() for one in examples]
            losses = self._by_batch(model, last, counts, lambda batch: token_loss(model, batch))
            return list(self.generated(model, examples, counts)), losses.mean().item(), tuple(losses.tolist())
        table = self.candidates(model, examples, counts)
        gold = torch.tensor([one.gold for one in examples])
        each = torch.nn.functional.cross_entropy(table, gold, reduction="none")
        mean = torch.nn.functional.cross_entropy(table, gold).item()
        return table.argmax(dim=1).tolist(), mean, tuple(each.tolist())

    def candidates(self, model: nn.Module, examples: Sequence[Any], counts: Counts) -> torch.Tensor:
        """Scores of the candidates of each example: float32 on the CPU, [examples, candidates].

        Calibrated scores are sum log p(candidate | prompt) - sum log p(candidate | prompt without content).

        Raises:
            NonFiniteError: the model gives scores that are not numbers.

        Source: domain-conditional PMI (Holtzman et al. 2021, "Surface Form Competition"), as in MeZO's `sfc`.
        """
        if self.scoring == "calibrated" and self.score is not scores:
            raise ConfigError(
                "task.scoring=calibrated compares likelihoods of candidates, which this method does not score by",
                "set task.scoring=mean",
            )
        by = "mean" if self.scoring in ("mean", "channel") else "sum"
        table = self._by_batch(model, examples, counts, lambda batch: self.score(model, batch, by))
        counts.queries += (self.members - 1) * len(examples)
        if self.scoring == "calibrated":
            asked, encoded = self.encode_content_free([one.example for one in examples])
            offsets = self._by_batch(model, encoded, counts, lambda batch: self.score(model, batch, by))
            places = {one: place for place, one in enumerate(dict.fromkeys(asked))}
            rows = torch.tensor([places[one] for one in asked])
            table = table - offsets[rows].masked_fill(offsets[rows].isneginf(), 0.0)
        unusable = int((table.isnan() | table.isposinf()).any(dim=1).sum())
        if unusable:
            raise NonFiniteError(f"scores of {unusable} of {len(examples)} examples", consequence="they were not used")
        return table

    def encode_content_free(self, examples: Sequence[Example]) -> tuple[list[Hashable], list[Any]]:
        """The content-free prompt of each example, which calibrated scores need, and each distinct one encoded, in
        order.

        Raises ZofoError for a prompt that cannot be made without its content, or is too long.
        """
        free = [_content_free(one) for one in examples]
        asked: list[Hashable] = [(one.prompt, one.candidates, one.ending) for one in free]
        distinct = dict(zip(asked, free, strict=True))  # one of those that differ in nothing but their place
        return asked, self.encode(list(distinct.values()))

    def generated(self, model: nn.Module, examples: Sequence[Any], counts: Counts) -> list[str]:
        """The generated text for each example."""
        counts.queries += (self.members - 1) * len(examples)
        return self._each(model, examples, counts, lambda some: self.write(model, some, self.generation))

    @torch.no_grad()
    def _by_batch(
        self, model: nn.Module, examples: Sequence[Any], counts: Counts, ask: Callable[[Any], torch.Tensor]
    ) -> torch.Tensor:
        """Results of each batch, in the order of the examples; rows of unequal width are padded with -inf."""
        asked = self._each(model, examples, counts, lambda some: ask(self.collate(some)).float().cpu().tolist())
        widths = {len(values) if isinstance(values, list) else 0 for values in asked}
        if len(widths) == 1:
            return torch.tensor(asked)
        found = [torch.tensor(values) for values in asked]
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-torch.inf)

    def _each(
        self, model: nn.Module, examples: Sequence[Any], counts: Counts, ask: Callable[[Sequence[Any]], Iterable[Any]]
    ) -> list[Any]:
        """Results for a few examples at a time, in the order of all."""
        found: dict[int, Any] = {}
        batches, size = self._batches(examples), self.processes.size
        with counting_forwards(model, counts), self.watch(len(examples)) as done:

            def answered(chosen: Sequence[int]) -> list[Any]:
                answers = list(ask([examples[i] for i in chosen]))
                done(len(chosen) * size)
                return answers

            of_each = self.processes.each(batches, answered)
        for chosen, answers in zip(batches, of_each, strict=True):
            found |= zip(chosen, answers, strict=True)
        counts.queries += len(examples)
        return [found[i] for i in range(len(examples))]

    def _batches(self, examples: Sequence[Any]) -> list[list[int]]:
        """The indices of the examples of each batch, of similar length and from one task."""
        order = sorted(range(len(examples)), key=lambda i: int(examples[i].length))
        each: dict[str, list[int]] = {}
        for i in order:
            each.setdefault(examples[i].example.task, []).append(i)
        size = self.batch_size
        return [own[start : start + size] for own in each.values() for start in range(0, len(own), size)]


def _content_free(example: Example) -> Example:
    if not example.content_free:
        raise ConfigError(
            f"{example.where}: task.scoring=calibrated needs the prompt without its content, which cannot be made here",
            "give the prompt a content_free text in a copy of the task file, or set task.scoring=mean",
        )
    free, candidates = example.content_free, example.candidates
    return Example(free, candidates, ending=example.ending, where=example.where, own=example.own)


def majority_of(task: Task, examples: Sequence[Example]) -> dict[str, float]:
    """Every score of a task for the better of two constant answers: the most frequent one, and the label of F1.

    Raises DataError if a score cannot be computed.
    """
    always: set[Answer] = {most_frequent(examples, task)}
    if task.score_of:
        always.add([str(label) for label in task.label_names].index(task.score_of))
    return {
        name: max(METRICS[name].score(examples, [answer] * len(examples)) for answer in always)
        for name in (task.metric, *task.extra_metrics)
    }


def most_frequent(examples: Sequence[Example], task: Task) -> Answer:
    """The most frequent right answer; any if none is known, which every score refuses."""
    right: list[Answer] = [gold for one in examples for gold in one.golds]
    if task.kind == "generation":
        right = [answer for one in examples for answer in dict.fromkeys(one.answers)]
    return Counter(right).most_common(1)[0][0] if right else 0


def as_percent(value: Any) -> str:
    """A share for people: 0.785 -> '78.5 %'."""
    return f"{100 * float(value):.1f} %"


def as_score(value: float | None, metric: str) -> str:
    """A score for a table: a share in percent with one decimal, a loss with four digits, a dash for none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if metric == "loss" else f"{100 * value:.1f}"


def as_number(value: float | None) -> str:
    """Three digits, or all digits of a whole number from 1,000; a dash for none."""
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
