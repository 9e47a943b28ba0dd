"""A trained run that answers rows, and talks turn by turn."""

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
    """A run that answers rows of its task, loaded once.

        answers = zofo.Predictor("runs/tickets").predict(["I was charged twice for my card"])

    Args:
        run: or its path.
        variant: which model of the run.
        best: as of the best evaluation.
        model: where the base model is now, if it has moved; its hash must be the run's.
        remote_code: allow the model's repository to run its own code.
        warn: told where a text is asked in another form than the run was trained with; by default it is logged.
        max_new_tokens: the most tokens of a text that is written, in place of the run's.
        temperature: of the draws of its tokens, in place of the run's.
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
        """A row as an example without what is right.

        Args:
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
        return self.run.scorer(scorer_of(config, self.task, self.loaded), self._best)

    def predict(self, texts: Iterable[str | dict[str, Any] | list[Any]]) -> list[Prediction]:
        """Answer rows.

        Args:
            texts: one for each prediction; for a task with several columns, rows as dicts or JSON objects; for a chat,
                what the user says, or the turns as a list or JSON.

        Raises:
            DataError: a text that the task's template cannot take.
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
        """Examples in tokens, with the demonstrations that the run is asked with.

        Raises:
            DataError: a text that is too long, with its place.
        """
        if self._wanted.num_fewshot:
            examples = with_demonstrations(examples, solved_rows(self.run), self._wanted, self.task.separator)
        return self._scorer.encode(examples)

    def answers(self, texts: Sequence[str], encoded: Sequence[Any]) -> list[Prediction]:
        """What the model answers.

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
    """The row that a text stands for, and whether it is a plain text: a single column, or the user's only turn."""
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
    """The rows of train that a run draws demonstrations from; others than it began with are refused."""
    check_rows(run, split_identity(load_examples(run.task, run.config.task, ["train"])))
    return load_examples(run.task, run.config.task.bare, ["train"])["train"]


def check_rows(run: RunFolder, rows: Identity) -> None:
    """Raises RunError for rows of a split, or their tokens, that are not those that a run began with; a split that it
    did not read is not compared."""
    hint = f"put them back, or name the rows that are meant: zofo eval {shlex.quote(str(run.path))} --data FILE"
    check_unchanged(run.identity, rows, repr(str(run.path)), {"": hint}, task=run.task.name)


CHAT = "chat"
"""The key of what a run writes down of its chats."""


def chat_form(examples: Sequence[Example]) -> dict[str, Any]:
    """What a run writes down of the chats it is trained on; as JSON, empty where they are none.

    Returns:
        `system`: the turn that begins all of them, "" where none has one, None where they begin in different ways;
        `thinks`: whether their answers hold what was thought before them; `tools`: whether they name any.
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
    """A chat in the form of those that a run was trained on, by its `environment`; before a plain text stands the
    system turn of the run. `warn` is told where it stays different from the chats of the run."""
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
    """What was said so far, asked with the chat template of the run's model.

    A run that was not trained on chats is asked each text by itself, in its own prompt.

    Args:
        system: the first turn, in place of the one that the chats of the run begin with.

    Raises:
        ConfigError: the run does not write texts, or asks with several columns; or `system` for a run without chats.
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
        """Whether earlier turns are asked with."""
        return self._column is not None

    def restart(self) -> None:
        """Forget what was said."""
        self._turns = []

    def say(self, text: str) -> str:
        """The answer to a text. What fails, or is answered by nothing, is not remembered.

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
