"""An example: one row of a task as text, before any model sees it."""

from __future__ import annotations

from dataclasses import dataclass

Message = tuple[str, str] | tuple[str, str, str]
"""A turn of a chat: role and content, and as JSON what else it has, if anything."""


@dataclass(frozen=True)
class Example:
    """A prompt, and what may follow it.

    Args:
        prompt: text before the candidate.
        candidates: texts that may follow: one for each label or choice; of a generation, the answer to train on.
        golds: the right candidates, of which the first is trained on; empty where that is not known.
        answers: of a generation, every accepted answer.
        group: rows with the same group belong together, such as the answers of one question; "" for none.
        where: file and line, or source and row, for messages.
        ending: text after the candidate, for models that see both sides of it.
        ends: whether the model's own end of text follows the candidate.
        content_free: the prompt without its content, which calibrated scores are measured against; "" for none.
        texts: the row's own texts, one or two, for a classification head.
        messages: of a chat, the turns before the answer; they take the place of `prompt`.
        before: where prompts are scored after candidates, the demonstrations, which stand before the candidate.
        task: of several tasks at once, the name of its own; "" for a task by itself.
        reply: of a chat, what else the answer has, such as tool calls, as JSON; "" for nothing.
        thinks: of a chat, whether the answer holds what was thought before it, so that it begins with that.
        tools: of a chat, what may be called, as JSON; "" for nothing.
        own: texts of the row as they were written into prompt, candidates and texts, in that order: control tokens
            that are spelt in them stay text.
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

    @property
    def gold(self) -> int:
        """The candidate that is trained on; the first where none is known to be right."""
        return self.golds[0] if self.golds else 0
