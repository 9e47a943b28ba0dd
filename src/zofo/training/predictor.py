"""A trained run that answers rows, and holds conversations."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from zofo.errors import ConfigError, DataError, nearest
from zofo.evaluators import Counts
from zofo.models import LoadedModel, head_of
from zofo.objectives import drawing
from zofo.tasks import NO_PROMPT, Example, load_examples, render, with_demonstrations
from zofo.training.data_module import scorer_of
from zofo.training.evaluation import TaskEvaluator
from zofo.training.identity import Identity, check_unchanged, split_identity
from zofo.training.progress import LOG
from zofo.training.run_folder import RunFolder


@dataclass(frozen=True)
class Prediction:
    """The answer of a model to a row.

    Args:
        text: the row, as given.
        label: the label of a classification; the number of a choice from 0; or the generated text.
        answer: the verbalizer, choice or generated text.
        probability: probability among the candidates; None for a generation.
        probabilities: probability of every label, or of every choice by its number; None for a generation.
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
    """A loaded run that answers rows of its task.

        answers = zofo.Predictor("runs/tickets").predict(["I was charged twice for my card"])

    Args:
        run: a run, or its path.
        variant: which model of the run.
        best: use the model of the best evaluation.
        model: the base model's new location, if it has moved; its hash must match.
        remote_code: allow the model's repository to run its own code.
        warn: called if a text is asked in another form than in training; by default it is logged.
        max_new_tokens: maximum number of new tokens, instead of the run's.
        temperature: sampling temperature, instead of the run's.
    """

    def __init__(
        self,
        run: RunFolder | Path | str,
        variant: str | None = None,
        best: bool = False,
        model: str | None = None,
        remote_code: bool = False,
        warn: Callable[[str], None] = LOG.warning,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> None:
        run = run if isinstance(run, RunFolder) else RunFolder.open(run)
        if temperature is not None and not 0 <= temperature < math.inf:
            raise ConfigError(f"temperature is {temperature}, which no draw has", "give 0, which is greedy, or above")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}, so that nothing would be written", "give 1 or more")
        longest = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        drawn = {} if temperature is None else {"temperature": temperature}
        self.run, self.task, self._warn = run, run.task.model_copy(update=longest), warn
        self._wanted = run.config.task.model_copy(update=drawn)
        self._best = best
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
        """A row as an example without the right answer.

        Args:
            plain: whether it is a single user message, to be asked in the form of the run's training chats.

        Raises:
            DataError: the row lacks a column, or the template cannot render it.
        """
        example = render(self.task, row, where, self._prompt, self._head, right=False)
        if self.task.messages is None:
            return example
        return in_trained_form(example, plain, self.run.environment, self._warn)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The trained model, loaded on first use."""
        return self._load()

    @cached_property
    def _scorer(self) -> TaskEvaluator:
        config = self.run.config.model_copy(update={"task": self._wanted})
        return self.run.scorer(scorer_of(config, self.task, self.loaded), self._best)

    def predict(self, texts: Iterable[str | dict[str, Any] | list[Any]]) -> list[Prediction]:
        """Answer rows.

        Args:
            texts: one per prediction; for a task with several columns, rows as dicts or JSON objects; for a chat, the
                user's message, or all turns as a list or JSON.

        Raises:
            DataError: the task's template cannot render a text.
        """
        if isinstance(texts, str | bytes | Mapping) or hasattr(texts, "columns"):
            one = "one text" if isinstance(texts, str | bytes) else "a table or mapping"
            raise DataError(f"predict takes a list of texts, not {one}", "predict(['a text', 'another'])")
        columns, examples, written = self.columns, [], list[str]()
        for number, text in enumerate(texts, start=1):
            text = json.dumps(text) if isinstance(text, dict | list) else text  # a row, or turns
            if not isinstance(text, str):
                raise DataError(f"text {number} is {text!r:.80}, which is no text", "give texts, or rows as dicts")
            written.append(text)
            row, plain = _row(text, columns, number, self.task.messages)
            examples.append(self.example(row, f"text {number}", plain))
        return self.answers(written, self.encode(examples)) if examples else []

    def encode(self, examples: Sequence[Example]) -> list[Any]:
        """Encode examples, including the run's demonstrations.

        Raises:
            DataError: a text is too long; the message names it.
        """
        if self._wanted.num_fewshot:
            examples = with_demonstrations(examples, solved_rows(self.run), self._wanted, self.task.separator)
        return self._scorer.encode(examples)

    def answers(self, texts: Sequence[str], encoded: Sequence[Any]) -> list[Prediction]:
        """The answers of the model.

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


_USUAL = ("text", "sentence", "input", "prompt", "question")  # columns that a row is likely to have for a text


def _row(text: str, fields: Sequence[str], number: int, messages: str | None) -> tuple[Mapping[str, Any], bool]:
    """The row for a text, and whether it is a plain text: a single column, or a single user message."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if messages is not None:
        if isinstance(row, list):  # turns by themselves
            return {messages: row}, False
        is_row = isinstance(row, dict) and messages in row
        return (row, False) if is_row else ({messages: [{"role": "user", "content": text}]}, True)
    if len(fields) == 1 and not (isinstance(row, dict) and fields[0] in row):
        usual = next((name for name in row if name.lower() in _USUAL), None) if isinstance(row, dict) else None
        if isinstance(row, dict) and (near := nearest(fields[0], row) or usual):
            raise DataError(
                f"text {number} is a JSON object with {near!r}, and the task needs the column {fields[0]!r}",
                f"call it {fields[0]!r}; a text that looks so is the value of that column: "
                + json.dumps({fields[0]: "..."}),
            )
        return {fields[0]: text}, True
    if not isinstance(row, dict):
        raise DataError(
            f"text {number}: the task needs the columns {', '.join(fields)}", "give each row as a JSON object"
        )
    return row, False


def solved_rows(run: RunFolder) -> list[Example]:
    """The training rows from which a run draws demonstrations; refused if they have changed."""
    check_rows(run, split_identity(load_examples(run.task, run.config.task, ["train"])))
    return load_examples(run.task, run.config.task.bare, ["train"])["train"]


def check_rows(run: RunFolder, rows: Identity) -> None:
    """Raise RunError if rows of a split, or their tokens, have changed since a run began; splits it did not read are
    ignored."""
    hint = f"put them back, or name the rows that are meant: zofo eval {shlex.quote(str(run.path))} --data FILE"
    check_unchanged(run.identity, rows, repr(str(run.path)), {"": hint}, task=run.task.name)


CHAT = "chat"
"""The key of what a run writes down of its chats."""


def chat_form(examples: Sequence[Example]) -> dict[str, Any]:
    """The form of the chats that a run is trained on, for its records; as JSON, empty if they are not chats.

    Returns:
        `system`: the system message of all of them, "" if none has one, None if they differ; `thinks`: whether their
        answers contain reasoning; `tools`: whether they list tools.
    """
    chats = [example for example in examples if example.messages]
    if not chats:
        return {}
    systems = {one.messages[0][1] if one.messages[0][0] == "system" else "" for one in chats}
    system = systems.pop() if len(systems) == 1 else None
    tools = any(one.tools for one in chats)
    return {CHAT: {"system": system, "thinks": any(one.thinks for one in chats), "tools": tools}}


def in_trained_form(
    example: Example, plain: bool, environment: Mapping[str, Any], warn: Callable[[str], None]
) -> Example:
    """A chat in the form of a run's training chats, according to its `environment`.

    A plain text gets the system message of the run. `warn` is called if the form still differs from that of training.
    """
    form = environment.get(CHAT)
    if not isinstance(form, dict):
        return example
    example = replace(example, thinks=bool(form.get("thinks")))
    if not plain:
        return example
    if form.get("tools"):
        warn(f"{example.where}: the run was trained on chats with tools, and a plain text has none: give a row as JSON")
    if form.get("system") is None:
        warn(
            f"{example.where}: the run was trained on chats that begin in different ways, and a plain text has no "
            "system turn: give the turns as JSON"
        )
    elif form["system"]:
        system = str(form["system"])
        return replace(example, messages=(("system", system), *example.messages), own=(system, *example.own))
    return example


class Conversation:
    """The turns so far, asked with the chat template of the run's model.

    A run that was not trained on chats answers each text by itself, in its own prompt.

    Args:
        system: the system message, instead of that of the run's training chats.

    Raises:
        ConfigError: the run does not generate texts, or has several columns; or `system` is given for a run without
            chats.
    """

    def __init__(self, predictor: Predictor, system: str | None = None) -> None:
        self._predictor, self._column = predictor, predictor.task.messages
        if predictor.task.kind != "generation":
            raise ConfigError(
                f"the run answers a {predictor.task.kind} task and writes no texts",
                "ask it with: zofo predict RUN TEXT",
            )
        if self._column is None and len(predictor.columns) != 1:
            raise ConfigError(
                f"the run asks with the columns {', '.join(predictor.columns)}, and a text has one",
                "ask it with: zofo predict RUN --data FILE --out FILE",
            )
        if self._column is None and system is not None:
            raise ConfigError("the run was not trained on chats, and has no system turn", "leave --system out")
        self._first = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[dict[str, Any]] = []
        self._asked = itertools.count()  # so that each answer at a temperature is a draw of its own

    @property
    def remembers(self) -> bool:
        """Whether earlier turns are part of the prompt."""
        return self._column is not None

    def restart(self) -> None:
        """Forget all turns."""
        self._turns = []

    def say(self, text: str) -> str:
        """The answer to a text. A failed or empty answer is not remembered.

        Raises:
            DataError: the template refuses the turns, or they are too long for the model.
        """
        asked = {"role": "user", "content": text}
        row: dict[str, Any]
        if self._column is None:
            row, plain = {self._predictor.columns[0]: text}, False
        else:
            row, plain = {self._column: [*self._first, *self._turns, asked]}, not self._first
        example = self._predictor.example(row, "what you said", plain)
        with drawing(next(self._asked)):
            (answer,) = self._predictor.answers([text], self._predictor.encode([example]))
        if self.remembers and answer.answer.strip():
            self._turns += [asked, {"role": "assistant", "content": answer.answer}]
        return answer.answer
