"""How the chats of a run are asked, in the words of transformers, for a program that has nothing of zofo."""

from __future__ import annotations

from typing import Any, NamedTuple

from zofo.tasks import Speller, Task, render
from zofo.tasks.chats import WAYS, write_chat
from zofo.training import RunFolder
from zofo.training.predictor import CHAT, in_trained_form


class ChatPrompt(NamedTuple):
    """A prompt as `apply_chat_template(turns, add_generation_prompt=True, **options) + block`.

    Args:
        turns: a sample, with the system turn that begins all chats of the run.
        options: what the template is told beside the turns.
        block: what stands before an answer, and the template does not write where it asks: an empty thought.
        stops: texts and tokens that end an answer.
    """

    turns: list[dict[str, str]]
    options: dict[str, Any]
    block: str
    stops: list[str]


def chat_prompt(run: RunFolder, task: Task, tokenizer: Any) -> ChatPrompt | None:
    """The prompt of a sample; None where the template writes another one each day, and zofo holds the day."""
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
