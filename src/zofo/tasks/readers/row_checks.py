"""Checks of values of a row: texts, labels, and the turns of a chat."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from zofo.errors import truncate_repr
from zofo.tasks.readers.look_alikes import is_blank, number_key

ROLES = ("system", "user", "assistant", "tool")
"""Roles in a chat."""

MEND = "mend or remove the row"
"""The default hint."""
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


def text_problem(column: str, value: Any, hint: str = MEND) -> Problem | None:
    """The problem of a text, or None."""
    if value is None or isinstance(value, str) and is_blank(value):
        return Problem(f"empty {column}", f"column {column!r} is empty", hint)
    if not isinstance(value, str):
        hint = "put quotes around it, or remove the row" if isinstance(value, int | float) else hint
        return Problem(f"type {column}", f"column {column!r} is {truncate_repr(value)}, not a text", hint)
    if any("\ud800" <= character <= "\udfff" for character in value):
        return Problem(f"half {column}", f"column {column!r} holds half of a character (a lone surrogate)", hint)
    return None


_WHOLE = "labels are texts or whole numbers"
_EXACT = 2**53  # the largest whole number that a float holds beside its neighbours


def label_problem(column: str, value: Any) -> Problem | None:
    """The problem of a label, or None."""
    if value is None or isinstance(value, str):
        fraction = "/" in (number_key(value or "") or "")
        if fraction:  # of a CSV file, whose values are all texts
            return Problem(f"fraction {column}", f"column {column!r} is {value}, not a label", _WHOLE)
        if re.fullmatch(r"\s*[+-]?\d+(\.\d{3})*,\d+\s*", value or ""):
            message = f"column {column!r} is {value!r}: a number with a comma in it, or two labels"
            return Problem(f"comma {column}", message, f"{_WHOLE}, one a row: 1.5 is none, and 1000 has no comma")
        return text_problem(column, value)
    if isinstance(value, float) and not value.is_integer():
        what = "not a number" if math.isnan(value) else f"{value}, not a label"
        return Problem(f"fraction {column}", f"column {column!r} is {what}", _WHOLE)
    if isinstance(value, float) and abs(value) > _EXACT:
        message = f"column {column!r} is {value}, a float too large to tell it from its neighbours"
        return Problem(f"large {column}", message, "write labels as whole numbers, without a point or exponent")
    if not isinstance(value, int | float):
        message = f"column {column!r} is {truncate_repr(value)}, not a label"
        return Problem(f"type {column}", message, "labels are texts or whole numbers, one a row")
    return None


def messages_problem(column: str, turns: Any) -> Problem | None:
    """The problem of a chat that must end with an answer, or None."""
    return turns_problem(column, turns) or answer_problem(column, turns)


def turns_problem(column: str, turns: Any) -> Problem | None:
    """The problem of the turns of a chat, or None; any role may have the last one."""
    if not isinstance(turns, list | tuple) or not turns:
        return Problem("no list", f"column {column!r} is {truncate_repr(turns)}, not a list of turns", _TURNS)
    for number, turn in enumerate(turns, start=1):
        problem = _turn_problem(f"column {column!r}: turn {number}", number, turn)
        if problem is not None:
            return problem
    if not any(turn["role"] == "user" for turn in turns):
        return Problem("no user", f"column {column!r} has no turn of the user", _TURNS)
    return None


def answer_problem(column: str, turns: Any) -> Problem | None:
    """The problem of the last of well-formed turns as an answer, or None."""
    if turns[-1]["role"] == "assistant":
        return None
    message = f"column {column!r} does not end with an answer of the assistant, but with a turn of the "
    return Problem("last turn", f"{message}{turns[-1]['role']}", "add the answer, or remove what follows the last")


def _turn_problem(place: str, number: int, turn: Any) -> Problem | None:
    if not isinstance(turn, Mapping):
        return Problem("turn", f"{place} is {truncate_repr(turn)}, without role and content", _TURNS)
    if turn.get("role") == "assistant" and turn.get("tool_calls") and turn.get("content") in (None, ""):
        return None  # it calls a tool and says nothing
    missing = [key for key in ("role", "content") if key not in turn]
    if missing:
        has = ", ".join(map(repr, turn)) or "nothing"
        return Problem("turn", f"{place} has no {missing[0]!r}; it has {has}", _TURNS)
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        return Problem("role", f"{place} has the role {truncate_repr(role)}", f"roles are {', '.join(ROLES)}")
    if role == "system" and number > 1:
        return Problem("system", f"{place} is of the system, which speaks first or not at all", "make it the first")
    if isinstance(content, list | tuple):
        message = f"{place} has a list of parts as its content, not a text"
        return Problem("parts", message, "join the texts of the parts; images and sounds are not read")
    if not isinstance(content, str) or not content.strip():
        what = "no content" if content is None or isinstance(content, str) else f"the content {truncate_repr(content)}"
        return Problem("content", f"{place} has {what}", "content is a text; mend or remove the row")
    if text_problem("content", content):
        return Problem("half", f"{place} holds half of a character (a lone surrogate)", MEND)
    return None
