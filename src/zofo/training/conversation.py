"""A conversation with a trained run, turn by turn."""

from __future__ import annotations

from typing import Any

from zofo.errors import ConfigError
from zofo.training.predictor import Predictor


class Conversation:
    """What was said so far, asked with the chat template of the run's model.

    A run that was not trained on chats is asked each text by itself, in its own prompt.

    Args:
        predictor: the run; one that writes texts.
        system: the first turn, in place of the one that the chats of the run begin with.

    Raises:
        ConfigError: the run does not write texts, or asks with several columns; or `system` for a run without chats.
    """

    def __init__(self, predictor: Predictor, system: str | None = None) -> None:
        self._predictor, self._column = predictor, predictor.task.messages
        if predictor.task.kind != "generation":
            raise ConfigError(
                f"the run was trained on a {predictor.task.kind}, and writes no texts to talk to",
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
        (answer,) = self._predictor.answers([text], self._predictor.encode([example]))
        if self.remembers and answer.answer.strip():
            self._turns += [asked, {"role": "assistant", "content": answer.answer}]
        return answer.answer
