"""Chats as a model's chat template writes them, with checks that work for every tokenizer.

The prompt is what the template writes before an answer, and the finished chat must begin with it. The rest is the
answer and an end-of-text token, at which generation stops. The prompt is found with a probe answer, so it does not
depend on the row's own answer.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jinja2

from zofo.errors import DataError, ModelError, first_line
from zofo.tasks.control_tokens import Asked, Speller, with_marks, without_marks
from zofo.tasks.prompt_templates import FAILURES
from zofo.tasks.readers.chat_rows import texts_of
from zofo.tasks.readers.row import NAMING, Example

_PROBE = "Probe-4711"
_DAY = datetime.date(2024, 7, 26)  # which templates such as that of Llama 3 take themselves where they know no date
WAYS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"thinking": False})
_EDIT = "edit chat_template in the model's folder, or choose another model"


class _Form(NamedTuple):
    """How a template writes an answer: `asked`, an inserted `block`, the answer, `tail`."""

    asked: str
    block: str
    tail: str


def _turn(role: str, content: str, more: str = "") -> dict[str, Any]:
    return {"role": role, "content": content, **(json.loads(more) if more else {})}


def write_chat(speller: Speller, example: Example, whole: bool = True) -> Asked:
    """A chat as the model's template writes it.

    Args:
        example: an example with `messages`; its first candidate is the answer, "" if unknown.
        whole: whether to check what the template omits; false for a part of a chat that was already checked.

    Raises:
        ModelError: the tokenizer has no chat template, or one that cannot be trained with; the message says why.
        DataError: the template refuses the turns, drops a part of them, or changes the answer.
    """
    if getattr(speller.tokenizer, "chat_template", None) is None:
        raise ModelError(
            f"{example.where}: a chat, but the model's tokenizer has no chat template",
            "choose a model that was made for chats, or give columns prompt and completion",
        )
    tools = json.loads(example.tools) if example.tools else None
    answer = example.candidates[0]
    turns = [_turn(*message) for message in (*example.messages, ("assistant", answer, example.reply))]
    marked = speller.spells([text for turn in turns for text in texts_of(turn)] + texts_of(tools))
    writer = _Writer(speller, tools, marked, example.where)
    form = writer.form(turns[:-1])
    lead = "" if form.block.strip() else form.block
    prompt = form.asked + ("" if example.thinks else form.block.removeprefix(lead))
    end, stops = _end(speller, form.tail)
    answers = example.answers
    if answer or example.reply:
        unwritten = writer.unwritten(turns) if whole else ()
        said = _said(example, writer.write(turns), prompt, form.tail, lead)
        written = said + end
        if not example.reply and said != lead + answer:
            unwritten += ("white space around the answer",)
        if example.reply and answers:
            answers = (speller.without_tokens(said, marked).strip(),)
    else:
        written, unwritten = "", writer.unwritten([*turns[:-1], {"role": "assistant", "content": _PROBE}])
    readable = replace(example, prompt=without_marks(prompt), candidates=(without_marks(written),), answers=answers[:1])
    return Asked(readable, prompt, (written,), marked, stops, form.block.strip(), unwritten)


def _said(example: Example, whole: str, prompt: str, tail: str, lead: str) -> str:
    """The answer in a finished chat, between prompt and tail; raises DataError if it was changed."""
    answer = example.candidates[0]
    fits = whole.startswith(prompt) and whole.endswith(tail)
    said = whole[len(prompt) : len(whole) - len(tail)] if fits else None
    expected = [lead + one for one in (answer, answer.strip())]
    if said is None or (not example.reply and said not in expected) or answer.strip() not in said:
        shown = without_marks(whole[len(prompt) :] if whole.startswith(prompt) else whole[-200:])
        thought = "; what was thought before the answer is given as reasoning_content" if "</think>" in answer else ""
        raise DataError(
            f"{example.where}: the model's chat template does not write the answer {answer[:80]!r} as it is, but as "
            f"{shown[:200]!r}",
            f"fix the row, or choose another model{thought}",
        )
    return said


def _end(speller: Speller, tail: str) -> tuple[str, tuple[str, ...]]:
    """The end of an answer, and the texts that stop generation: a token of the template, or the end-of-text token."""
    tokenizer = speller.tokenizer
    plain = without_marks(tail)
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    found = min(((plain.find(token), -len(token), token) for token in tokens if token in plain), default=None)
    if found is None and tokenizer.eos_token is None:
        raise ModelError(
            "the model's chat template ends an answer with no token, and the tokenizer has no eos_token",
            "name one as eos_token in its tokenizer_config.json",
        )
    before = (plain if found is None else plain[: found[0]]).strip()
    if found is None:
        return tail.rstrip() + tokenizer.eos_token, tuple(stop for stop in (before, tokenizer.eos_token) if stop)
    end = with_marks(tail, tail.index(found[2]) + len(found[2]))
    return end, tuple(stop for stop in (before, found[2]) if stop)


class _Writer:
    """Writes turns with a chat template, with the options that make it trainable."""

    def __init__(
        self, speller: Speller, tools: Any, marked: bool, where: str, way: Mapping[str, Any] | None = None
    ) -> None:
        self._speller, self._tools, self._marked, self._where, self._way = speller, tools, marked, where, way or {}
        text = str(speller.tokenizer.chat_template)
        _check_deterministic(text)
        self._dated = "strftime_now" in text
        undated = _undated(speller.tokenizer.get_chat_template(None, tools)) if self._dated else None
        self._given = {"chat_template": undated} if self._dated else {}

    def write(self, turns: Sequence[Mapping[str, Any]], asking: bool = False) -> str:
        """The turns as the template writes them.

        Raises:
            DataError: the template refuses them, for example an unknown role.
        """
        given, tools = list(turns), self._tools
        if self._marked:
            given, tools = self._speller.marked_value(given), self._speller.marked_value(tools)
        try:
            text = self._speller.tokenizer.apply_chat_template(
                given, tools=tools, tokenize=False, add_generation_prompt=asking, **self._given, **self._way
            )
        except (jinja2.TemplateError, *FAILURES) as error:
            raise DataError(
                f"{self._where}: the model's chat template refuses the turns: {first_line(error)}",
                "fix the row, or choose another model",
            ) from error
        return self._speller.marked_chat(str(text)) if self._marked else str(text)

    def form(self, turns: Sequence[Mapping[str, Any]]) -> _Form:
        """What the template writes around an answer to these turns; remembers the options.

        Raises:
            ModelError: it writes no answer, or its generation prompt is not part of a finished chat.
        """
        wrong = []
        for self._way in WAYS:
            form = self._form(turns)
            if not isinstance(form, str):
                return form
            wrong.append(form)
        raise ModelError(f"{self._where}: the model's chat template {wrong[0]}", _EDIT)

    def _form(self, turns: Sequence[Mapping[str, Any]]) -> _Form | str:
        """The form, or an error message."""
        asked = self.write(turns, asking=True)
        whole = self.write([*turns, {"role": "assistant", "content": _PROBE}])
        place = whole.rfind(_PROBE)
        if place < 0:
            return "leaves out the last answer, so that there is nothing to train on"
        before, tail = whole[:place], whole[place + len(_PROBE) :]
        if not before.startswith(asked):
            same = next((i for i, (a, b) in enumerate(zip(asked, before, strict=False)) if a != b), len(before))
            return (
                f"asks for an answer with {without_marks(asked[same:])!r}, where a finished chat has "
                f"{without_marks(before[same:])!r}: an answer would be trained after another text than it is asked with"
            )
        return _Form(asked, before[len(asked) :], tail)

    def _writes(self, turns: Sequence[Mapping[str, Any]], whole: str) -> bool:
        """Whether the template writes these turns as `whole`; false if it refuses them."""
        try:
            return self.write(turns) == whole
        except DataError:
            return False

    def unwritten(self, turns: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """For a note: names that the template does not write, and the date that it writes.

        Raises:
            DataError: it omits the content of a turn, another key, or the tools.
        """
        whole = self.write(turns)
        self._check_content_kept(turns, whole)
        unwritten = []
        for key in dict.fromkeys(key for turn in turns for key in turn if key not in ("role", "content")):
            without = [{name: value for name, value in turn.items() if name != key} for turn in turns]
            if not self._writes(without, whole):
                continue
            if key in NAMING:
                unwritten.append(f"{key!r} in a turn")
                continue
            number = next(number for number, turn in enumerate(turns, start=1) if key in turn)
            raise DataError(
                f"{self._where}: turn {number} has {key!r}, which the model's chat template does not write",
                f"remove {key!r} from the turns, or choose a model whose chat template writes it",
            )
        if self._tools is not None:
            bare = _Writer(self._speller, None, self._marked, self._where, self._way)
            if bare._writes(turns, whole):
                raise DataError(
                    f"{self._where}: the row has 'tools', which the model's chat template does not write",
                    "remove that column, or choose a model whose chat template writes it",
                )
        dated = [f"today's date; every prompt has {_DAY:%d %B %Y} instead"] if self._dated else []
        return (*unwritten, *dated)

    def _check_content_kept(self, turns: Sequence[Mapping[str, Any]], whole: str) -> None:
        """Raise DataError if the template omits or changes the content of a turn before the answer.

        Reasoning in an earlier answer may be omitted, and the output of a tool may be reformatted.
        """
        written = " ".join(without_marks(whole).split())
        for number, turn in enumerate(turns[:-1]):
            role, content = turn["role"], str(turn["content"])
            said = content.split("</think>")[-1] if role == "assistant" else content
            expected = " ".join(without_marks(said).split())
            there = expected in written
            if not expected or there and role != "system":
                continue
            others = [{**one, "content": _PROBE} if place == number else one for place, one in enumerate(turns)]
            left_out = self._writes(others, whole)
            if left_out or not there and role != "tool":
                what = "leaves out" if left_out else "changes"
                raise DataError(
                    f"{self._where}: the model's chat template {what} the content of turn {number + 1}, which is of "
                    f"the role {role!r}: {content[:80]!r}",
                    "remove the turn or put its text into another one, or choose another model",
                )


def _check_deterministic(template: str) -> None:
    """Raise ModelError for a template with random output."""
    found = re.search(r"\|\s*random\b|\blipsum\s*\(", template)
    if found is not None:
        what = f"draws by chance ({found[0].strip('| (')!r})"
        raise ModelError(f"the model's chat template {what}, and a prompt is a function of its row", _EDIT)


def _undated(template: str) -> str:
    """The template with a fixed date; raises ModelError if it reads the clock with a non-literal format."""
    forms = re.findall(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", template)
    if len(forms) < len(re.findall(r"strftime_now\s*\(", template)):
        raise ModelError("the model's chat template reads the clock, and a prompt is a function of its row", _EDIT)
    days = json.dumps({form: _DAY.strftime(form) for _, form in forms})
    return f"{{% macro strftime_now(form) %}}{{{{ {days}[form] }}}}{{% endmacro %}}{{{{ '' }}}}{template}"
