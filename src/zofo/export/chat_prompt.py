"""How a run's chats are prompted, in terms of transformers, for a program without zofo."""

from __future__ import annotations

from typing import Any, NamedTuple

from zofo.tasks import Speller, Task, render
from zofo.tasks.chats import WAYS, write_chat
from zofo.training import RunFolder
from zofo.training.predictor import CHAT, in_trained_form


class ChatPrompt(NamedTuple):
    """A prompt as `apply_chat_template(turns, add_generation_prompt=True, **options) + block`.

    Args:
        turns: a sample, including the system message of all chats of the run.
        options: further arguments of the template.
        block: text before an answer that the generation prompt lacks, such as empty reasoning.
        stops: texts and tokens that end an answer.
    """

    turns: list[dict[str, str]]
    options: dict[str, Any]
    block: str
    stops: list[str]


def chat_prompt(run: RunFolder, task: Task, tokenizer: Any) -> ChatPrompt | None:
    """The prompt of a sample; None if the template writes the current date, which zofo fixes."""
    system = (run.environment.get(CHAT) or {}).get("system")
    turns = [{"role": "system", "content": str(system)}] if system else []
    turns.append({"role": "user", "content": "A question."})
    example = render(task, {str(task.messages): turns}, "the card", right=False)
    asked = write_chat(Speller(tokenizer), in_trained_form(example, False, run.environment, lambda _: None))
    for options in WAYS:
        plain = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options))
        if asked.example.prompt.startswith(plain):
            return ChatPrompt(turns, dict(options), asked.example.prompt[len(plain) :], list(asked.stops))
    return None
