"""What can be wrong with a value of a row: a text, a label, choices with their answer, or the turns of a chat."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zofo.tasks.reading.rows import shown_value

ROLES = ("system", "user", "assistant", "tool")
"""Who can say a turn of a chat."""

_MEND = "mend or remove the row"
_TURNS = 'turns are written [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


class Problem(NamedTuple):
    """What is wrong with a row.

    Args:
        kind: the same for rows that are wrong in the same way.
        message: what it is, with its column.
        hint: what to do about it.
    """

    kind: str
    message: str
    hint: str


def text_problem(column: str, value: Any, hint: str = _MEND) -> Problem | None:
    """What is wrong with a text, if anything."""
    if value is None or isinstance(value, str) and not value.strip():
        return Problem(f"empty {column}", f"column {column!r} is empty", hint)
    if not isinstance(value, str):
        hint = "put quotes around it, or remove the row" if isinstance(value, int | float) else hint
        return Problem(f"type {column}", f"column {column!r} is {shown_value(value)}, not a text", hint)
    if any("\ud800" <= character <= "\udfff" for character in value):
        return Problem(f"half {column}", f"column {column!r} holds half of a character (a lone surrogate)", hint)
    return None


_WHOLE = "labels are texts or whole numbers"


def label_problem(column: str, value: Any) -> Problem | None:
    """What is wrong with a label, if anything."""
    if value is None or isinstance(value, str):
        fraction = re.fullmatch(r"\s*[+-]?\d*\.\d*[1-9]\d*([eE][+-]?\d+)?\s*", value or "")
        if fraction:  # of a CSV file, whose values are all texts
            return Problem(f"fraction {column}", f"column {column!r} is {value}, not a label", _WHOLE)
        return text_problem(column, value)
    if isinstance(value, float) and not value.is_integer():
        what = "not a number" if math.isnan(value) else f"{value}, not a label"
        return Problem(f"fraction {column}", f"column {column!r} is {what}", _WHOLE)
    if not isinstance(value, int | float):
        message = f"column {column!r} is {shown_value(value)}, not a label"
        return Problem(f"type {column}", message, "labels are texts or whole numbers, one a row")
    return None


def label_text(value: Any) -> str:
    """A label as text, the same for 1, 1.0 and true."""
    return str(int(value)) if isinstance(value, int | float) else str(value).strip()


def choices_problem(column: str, choices: Any, answer_column: str, answer: Any) -> Problem | None:
    """What is wrong with choices, or with the one that is said to be right, if anything."""
    if not isinstance(choices, list | tuple):
        hint = 'write a list of texts, ["yes", "no"], in JSONL or parquet; CSV holds none'
        if isinstance(choices, Mapping):
            key = next((name for name, held in choices.items() if isinstance(held, list)), "text")
            hint = f"write a list of texts, or give a task file with the choices {{each: {column}.{key}}}"
        return Problem("no list", f"column {column!r} is {shown_value(choices)}, not a list of choices", hint)
    for number, choice in enumerate(choices):
        if not isinstance(choice, str) or text_problem(column, choice):
            message = f"column {column!r}: choice {number} is {shown_value(choice)}, not a text"
            return Problem("bad choice", message, "write all choices as texts")
    if len(choices) < 2:
        message = f"column {column!r} has {len(choices)} choices, but two or more are needed"
        return Problem("few choices", message, _MEND)
    texts = [choice.strip() for choice in choices]
    twice = next((text for number, text in enumerate(texts) if text in texts[:number]), None)
    if twice is not None:
        return Problem("choice twice", f"column {column!r} holds the choice {shown_value(twice)} twice", _MEND)
    if gold_choice(texts, answer) is None:
        letters = f"a letter from A to {string.ascii_uppercase[min(len(texts), 26) - 1]}"
        return Problem(
            "answer",
            f"column {answer_column!r} is {shown_value(answer)}, which is none of the {len(texts)} choices",
            f"write a number from 0 to {len(texts) - 1}, {letters}, or the text of a choice",
        )
    return None


def metaicl_problem(text: Any, output: Any, options: Any) -> Problem | None:
    """What is wrong with the input, output and options of a row of MetaICL, if anything; an option may be there twice,
    and no option means an output in free words.

    Args:
        text: the input.
        output: must be one of the options, letter by letter.
        options: a list of texts.
    """
    problem = text_problem("input", text) or text_problem("output", output)
    if problem is not None or not isinstance(options, list | tuple):
        return problem or choices_problem("options", options, "output", output)
    if not options:
        return None
    distinct = [option for number, option in enumerate(options) if option not in options[:number]]
    problem = choices_problem("options", distinct, "output", 0)
    if problem is None and output not in options:
        message = f"column 'output' is {shown_value(output)}, which is none of the {len(options)} options"
        return Problem("output", message, "write one of the options, letter by letter, or remove the row")
    return problem


def gold_choice(choices: Sequence[str], answer: Any) -> int | None:
    """The number of the right choice, by its text, its letter or its number from 0; None where there is none such."""
    if isinstance(answer, str):
        text = answer.strip()
        if text in choices:
            return choices.index(text)
        letters = string.ascii_uppercase[: len(choices)]
        if len(text) == 1 and text in letters:
            return letters.index(text)
        answer = int(text) if text.isdecimal() and len(text) < 10 else None
    if isinstance(answer, bool) or not isinstance(answer, int | float) or answer != answer // 1:
        return None
    return int(answer) if 0 <= answer < len(choices) else None


def messages_problem(column: str, turns: Any) -> Problem | None:
    """What is wrong with the turns of a chat that ends with its answer, if anything."""
    return turns_problem(column, turns) or answer_problem(column, turns)


def turns_problem(column: str, turns: Any) -> Problem | None:
    """What is wrong with the turns of a chat, if anything, whoever has the last word."""
    if not isinstance(turns, list | tuple) or not turns:
        return Problem("no list", f"column {column!r} is {shown_value(turns)}, not a list of turns", _TURNS)
    for number, turn in enumerate(turns, start=1):
        problem = _turn_problem(f"column {column!r}: turn {number}", number, turn)
        if problem is not None:
            return problem
    if not any(turn["role"] == "user" for turn in turns):
        return Problem("no user", f"column {column!r} has no turn of the user", _TURNS)
    return None


def answer_problem(column: str, turns: Any) -> Problem | None:
    """What is wrong with the last of well-formed turns, if it is to be the answer."""
    if turns[-1]["role"] == "assistant":
        return None
    message = f"column {column!r} does not end with an answer of the assistant, but with a turn of the "
    return Problem("last turn", f"{message}{turns[-1]['role']}", "add the answer, or remove what follows the last")


def _turn_problem(place: str, number: int, turn: Any) -> Problem | None:
    if not isinstance(turn, Mapping):
        return Problem("turn", f"{place} is {shown_value(turn)}, without role and content", _TURNS)
    missing = [key for key in ("role", "content") if key not in turn]
    if missing:
        has = ", ".join(map(repr, turn)) or "nothing"
        return Problem("turn", f"{place} has no {missing[0]!r}; it has {has}", _TURNS)
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        return Problem("role", f"{place} has the role {shown_value(role)}", f"roles are {', '.join(ROLES)}")
    if role == "system" and number > 1:
        return Problem("system", f"{place} is of the system, which speaks first or not at all", "make it the first")
    if isinstance(content, list | tuple):
        message = f"{place} has a list of parts as its content, not a text"
        return Problem("parts", message, "join the texts of the parts; images and sounds are not read")
    if not isinstance(content, str) or not content.strip():
        what = "no content" if content is None or isinstance(content, str) else f"the content {shown_value(content)}"
        return Problem("content", f"{place} has {what}", "content is a text; mend or remove the row")
    if text_problem("content", content):
        return Problem("half", f"{place} holds half of a character (a lone surrogate)", _MEND)
    return None
