"""A trained run that answers rows."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from zofo.evaluators import Counts
from zofo.models import LoadedModel, head_of
from zofo.tasks import NO_PROMPT, Example, load_examples, render, with_demonstrations
from zofo.training.chat_form import in_trained_form
from zofo.training.data_module import scorer_of
from zofo.training.evaluation import TaskEvaluator
from zofo.training.identity import Identity, check_unchanged, split_identity
from zofo.training.run_folder import RunFolder


def _nothing(_: str) -> None:
    pass


@dataclass(frozen=True)
class Prediction:
    """What a model answers to a row.

    Args:
        text: the row, as it was given.
        label: of a classification, its label; of a multiple choice, the number of the choice from 0; of a generation,
            the text itself.
        answer: the verbalizer, choice or generated text.
        probability: among the candidates, from 0 to 1; None for a generation.
        probabilities: of every label, or of every choice by its number; None for a generation.
    """

    text: str
    label: int | str
    answer: str
    probability: float | None
    probabilities: Mapping[int | str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class Predictor:
    """A run that answers rows of its task.

    Args:
        run: the run.
        variant: which model of the run.
        best: as of the best evaluation.
        model: where the base model is now, if it has moved; its hash must be the run's.
        remote_code: allow the model's repository to run its own code.
        warn: told where a text is asked in another form than the run was trained with.
        max_new_tokens: the most tokens of a text that is written, in place of the run's.
        temperature: of the draws of its tokens, in place of the run's.
    """

    def __init__(
        self,
        run: RunFolder,
        variant: str | None = None,
        best: bool = False,
        model: str | None = None,
        remote_code: bool = False,
        warn: Callable[[str], None] = _nothing,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> None:
        longest = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        drawn = {} if temperature is None else {"temperature": temperature}
        self.run, self.task, self._warn = run, run.task.model_copy(update=longest), warn
        self._wanted = run.config.task.model_copy(update=drawn)
        self._head = head_of(run.config.model) == "classification"
        none = self._head and self._wanted.prompt == NO_PROMPT
        self._prompt = None if none else self._wanted.prompt
        self._load: Callable[[], LoadedModel] = lambda: run.load(variant, best, model, remote_code)

    @property
    def columns(self) -> list[str]:
        """The columns that a row needs."""
        asked = self.task.columns(self._prompt, self._head and self._prompt is None)
        return [column for column in asked if column not in self.task.optional_columns]

    def example(self, row: Mapping[str, Any], where: str, plain: bool = False) -> Example:
        """A row as an example without what is right.

        Args:
            row: its values by column.
            where: its place, for messages.
            plain: whether it is a user's only turn, which is asked in the form of the chats that the run was trained
                on.

        Raises:
            DataError: the row lacks a column, or the template cannot take it.
        """
        example = render(self.task, row, where, self._prompt, self._head, right=False)
        if self.task.messages is None:
            return example
        return in_trained_form(example, plain, self.run.environment, self._warn)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The trained model, loaded when it is first asked for."""
        return self._load()

    @cached_property
    def _scorer(self) -> TaskEvaluator:
        config = self.run.config.model_copy(update={"task": self._wanted})
        return self.run.scorer(scorer_of(config, self.task, self.loaded))

    def encode(self, examples: Sequence[Example]) -> list[Any]:
        """Examples in tokens, with the demonstrations that the run is asked with.

        Raises:
            DataError: a text that is too long, with its place.
        """
        if self._wanted.num_fewshot:
            examples = with_demonstrations(examples, solved_rows(self.run), self._wanted, self.task.separator)
        return self._scorer.encode(examples)

    def answers(self, texts: Sequence[str], encoded: Sequence[Any]) -> list[Prediction]:
        """What the model answers.

        Args:
            texts: the rows as they were given.
            encoded: the same in tokens.

        Raises:
            NonFiniteError: the model gives scores that are not numbers.
        """
        model = self.loaded.model
        if self.task.kind == "generation":
            found = self._scorer.generated(model, encoded, Counts())
            return [Prediction(text, answer, answer, None) for text, answer in zip(texts, found, strict=True)]
        table = self._scorer.candidates(model, encoded, Counts()).softmax(dim=1)
        return [self._prediction(*one) for one in zip(texts, encoded, table.tolist(), strict=True)]

    def _prediction(self, text: str, encoded: Any, scores: Sequence[float]) -> Prediction:
        candidates = encoded.example.candidates
        known = scores[: len(candidates)]  # rows with fewer choices are filled up
        chosen = max(range(len(known)), key=known.__getitem__)
        labels = self.task.label_names or range(len(known))
        by_label = dict(zip(labels, known, strict=True))
        return Prediction(text, labels[chosen], candidates[chosen], known[chosen], by_label)


def solved_rows(run: RunFolder) -> list[Example]:
    """The rows of train that a run draws demonstrations from; others than it began with are refused."""
    check_rows(run, split_identity(load_examples(run.task, run.config.task, ["train"])))
    own = run.config.task.model_copy(update={"num_fewshot": 0})
    return load_examples(run.task, own, ["train"])["train"]


def check_rows(run: RunFolder, rows: Identity) -> None:
    """Raises RunError for rows of a split, or their tokens, that are not those that a run began with; a split that it
    did not read is not compared."""
    hint = f"put them back, or name the rows that are meant: zofo eval {shlex.quote(str(run.path))} --data FILE"
    check_unchanged(run.identity, rows, repr(str(run.path)), {"": hint}, task=run.task.name)
