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
    """The score of a model on some examples.

    Args:
        metric: name of the score.
        score: its value, from 0 to 1 (Matthews: from -1).
        loss: mean cross-entropy of the right candidate; of a generation, mean loss of the first answer's tokens.
        majority: the same score for always giving the most frequent answer, or the label that the score is of, where
            that is better.
        predictions: for each example, in the order given, the index of the predicted candidate or the generated text.
        also: further scores of the task by name.
        on: what was scored, in words: a split, or all rows of a file; "" where that is known.
        losses: of each example, in the order given.
        label: that scores of one label are of; "" for none.
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
        """A score as people read it, by default the first, with the label that it is of."""
        return score_name(metric or self.metric, self.label)

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, the score under the name of its metric."""
        return {self.metric: self.score, **self.also, "loss": self.loss, "majority": self.majority}


@dataclass(frozen=True)
class TaskEvaluator:
    """How the examples of a task are scored with a model.

    Args:
        encode: examples as text -> in tokens.
        collate: examples in tokens -> a batch.
        generation: how texts are generated.
        scoring: `mean`, `sum`, `calibrated` or `channel`.
        score: how candidates are scored; methods that read may bring their own.
        write: how texts are written; a vote brings its own.
        members: how many models these two ask of each example; those of a vote.
        watch: opened with the number of examples that a pass over them has; gives what is told of each batch.
        processes: that share out the batches.
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
        """As a method scores and writes, with other fields in place of these."""
        return replace(self, score=method.score, write=method.write, members=method.members, **more)

    def evaluate(self, model: nn.Module, examples: Sequence[Any], counts: Counts) -> Evaluation:
        """Score a model. Examples of similar length share a batch; the numbers do not depend on that.

        Args:
            model: in evaluation mode.
            examples: in tokens, at least one.
            counts: where the forwards and queries are counted.

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
        """What the model predicts for each example, its mean loss, and the loss of each."""
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
        """What each example asks without its content, as calibrated scores need it, and in tokens each of these once,
        in their order.

        Raises ZofoError for a prompt that cannot be made without its content, or is too long.
        """
        free = [_content_free(one) for one in examples]
        asked: list[Hashable] = [(one.prompt, one.candidates, one.ending) for one in free]
        distinct = dict(zip(asked, free, strict=True))  # one of those that differ in nothing but their place
        return asked, self.encode(list(distinct.values()))

    def generated(self, model: nn.Module, examples: Sequence[Any], counts: Counts) -> list[str]:
        """A text for each example."""
        counts.queries += (self.members - 1) * len(examples)
        return self._each(model, examples, counts, lambda some: self.write(model, some, self.generation))

    @torch.no_grad()
    def _by_batch(
        self, model: nn.Module, examples: Sequence[Any], counts: Counts, ask: Callable[[Any], torch.Tensor]
    ) -> torch.Tensor:
        """What is asked of each batch, in the order of the examples; rows of unequal width are filled with -inf."""
        asked = self._each(model, examples, counts, lambda some: ask(self.collate(some)).float().cpu().tolist())
        widths = {len(values) if isinstance(values, list) else 0 for values in asked}
        if len(widths) == 1:
            return torch.tensor(asked)
        found = [torch.tensor(values) for values in asked]
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-torch.inf)

    def _each(
        self, model: nn.Module, examples: Sequence[Any], counts: Counts, ask: Callable[[Sequence[Any]], Iterable[Any]]
    ) -> list[Any]:
        """What is asked of some examples at a time, in the order of all."""
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
        """Places of the examples of each batch, those of similar length together, and of one task only."""
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
    """Every score of a task for the best of two answers that are always the same, the most frequent one and the label
    that F1 is of; raises DataError where a score cannot be had."""
    always: set[Answer] = {most_frequent(examples, task)}
    if task.score_of:
        always.add([str(label) for label in task.label_names].index(task.score_of))
    return {
        name: max(METRICS[name].score(examples, [answer] * len(examples)) for answer in always)
        for name in (task.metric, *task.extra_metrics)
    }


def most_frequent(examples: Sequence[Example], task: Task) -> Answer:
    """The answer that is right most often; any, where none is known to be right, which every score refuses."""
    right: list[Answer] = [gold for one in examples for gold in one.golds]
    if task.kind == "generation":
        right = [answer for one in examples for answer in dict.fromkeys(one.answers)]
    return Counter(right).most_common(1)[0][0] if right else 0


def as_percent(value: Any) -> str:
    """A share as people read it: 0.785 -> '78.5 %'."""
    return f"{100 * float(value):.1f} %"


def as_score(value: float | None, metric: str) -> str:
    """A score in a table: a share in percent with one decimal, a loss with four digits, a dash for none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if metric == "loss" else f"{100 * value:.1f}"


def as_number(value: float | None) -> str:
    """Three digits, or all of a whole number from a thousand on; a dash where it is not known."""
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
