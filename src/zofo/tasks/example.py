"""An example: one row of a task as text, before any model sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Message = tuple[str, str] | tuple[str, str, str]
"""A turn of a chat: role, content, and its other keys as JSON, if there are any."""


@dataclass(frozen=True)
class Example:
    """A prompt, and what may follow it.

    Args:
        prompt: text before the candidate.
        candidates: texts that may follow: one for each label or choice; for a generation, the answer to train on.
        golds: the right candidates; the first is trained on. Empty where they are not known.
        answers: for a generation, every accepted answer.
        group: rows with the same group belong together, such as answers to one question; "" for none.
        where: file and line, or source and row, for messages.
        ending: text after the candidate, for models that see both sides of it.
        ends: whether the model's end of text follows the candidate.
        content_free: the prompt without its content, for calibrated scores; "" for none.
        texts: one or two texts of the row, for a classification head.
        messages: for a chat, the turns before the answer; they replace `prompt`.
        before: for channel scores, the demonstrations before the candidate.
        task: name of the task, if there are several at once; else "".
        reply: for a chat, other keys of the answer such as tool calls, as JSON; "" for none.
        thinks: for a chat, whether the answer begins with its reasoning.
        tools: for a chat, the tools that may be called, as JSON; "" for none.
        columns: those of the row that rewards are given (`task.reward_columns`), as JSON; "" for none.
        own: the row's texts in prompt, candidates and texts, in that order: control tokens spelt in them stay text.
    """

    prompt: str
    candidates: tuple[str, ...]
    golds: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()
    group: str = ""
    where: str = ""
    ending: str = ""
    ends: bool = False
    content_free: str = ""
    texts: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    before: str = ""
    task: str = ""
    reply: str = ""
    thinks: bool = False
    tools: str = ""
    own: tuple[str, ...] = ()
    columns: str = ""

    @property
    def columns_of_row(self) -> dict[str, Any]:
        """The columns that rewards are given, by name."""
        found: dict[str, Any] = json.loads(self.columns) if self.columns else {}
        return found

    @property
    def gold(self) -> int:
        """Index of the candidate that is trained on; 0 where the right one is not known."""
        return self.golds[0] if self.golds else 0

    @property
    def text(self) -> str:
        """What is asked, for people: the turns of a chat, the texts of a classifier, or else the prompt."""
        if self.messages:
            return "\n".join(f"{role}: {content}" for role, content, *_ in self.messages)
        return "\n".join(self.texts) or self.prompt
