"""Checks of values of a row: texts, labels, and the turns of a chat. All raise a RowError, without the row's place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from zofo.errors import truncate_repr
from zofo.tasks.readers.look_alikes import is_blank, number_key
from zofo.tasks.readers.row import MEND, RowError

ROLES = ("system", "user", "assistant", "tool")
"""Roles in a chat."""

_TURNS = 'turns are written [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
_WHOLE = "labels are texts or whole numbers"
_EXACT = 2**53  # the largest whole number that a float holds beside its neighbours


def has_half(text: str) -> bool:
    """Whether a text holds half of a character, a lone surrogate."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def check_text(column: str, value: Any) -> None:
    """Refuse what is no text with a visible character in it."""
    if value is None or isinstance(value, str) and is_blank(value):
        raise RowError(f"column {column!r} is empty", MEND, f"empty {column}")
    if not isinstance(value, str):
        hint = "put quotes around it, or remove the row" if isinstance(value, int | float) else MEND
        raise RowError(f"column {column!r} is {truncate_repr(value)}, not a text", hint, f"type {column}")
    if has_half(value):
        raise RowError(f"column {column!r} holds half of a character (a lone surrogate)", MEND, f"half {column}")


def check_label(column: str, value: Any) -> None:
    """Refuse what is neither a text nor a whole number."""
    is_ = f"column {column!r} is"
    if value is None or isinstance(value, str):
        if "/" in (number_key(value or "") or ""):  # a fraction of a CSV file, whose values are all texts
            raise RowError(f"{is_} {value}, not a label", _WHOLE, "fraction")
        if re.fullmatch(r"\s*[+-]?\d+(\.\d{3})*,\d+\s*", value or ""):
            hint = f"{_WHOLE}, one a row: 1.5 is none, and 1000 has no comma"
            raise RowError(f"{is_} {value!r}: a number with a comma in it, or two labels", hint, "comma")
        check_text(column, value)
    elif isinstance(value, float) and not value.is_integer():
        what = "not a number" if math.isnan(value) else f"{value}, not a label"
        raise RowError(f"{is_} {what}", _WHOLE, "fraction")
    elif isinstance(value, float) and abs(value) > _EXACT:
        hint = "write labels as whole numbers, without a point or exponent"
        raise RowError(f"{is_} {value}, a float too large to tell it from its neighbours", hint, "large")
    elif not isinstance(value, int | float):
        raise RowError(f"{is_} {truncate_repr(value)}, not a label", f"{_WHOLE}, one a row", "label")


def check_turns(column: str, turns: Any, answered: bool = True) -> None:
    """Refuse what are no turns of a chat.

    Args:
        column: that holds them.
        turns: the value.
        answered: whether the last one must be an answer; else any role may have it.
    """
    if not isinstance(turns, list | tuple) or not turns:
        raise RowError(f"column {column!r} is {truncate_repr(turns)}, not a list of turns", _TURNS, "no list")
    for number, turn in enumerate(turns, start=1):
        _check_turn(f"column {column!r}: turn {number}", number, turn)
    if not any(turn["role"] == "user" for turn in turns):
        raise RowError(f"column {column!r} has no turn of the user", _TURNS, "no user")
    if answered and turns[-1]["role"] != "assistant":
        message = f"column {column!r} does not end with an answer of the assistant, but with a turn of the "
        hint = "add the answer, or remove what follows the last"
        raise RowError(f"{message}{turns[-1]['role']}", hint, "last turn")


def _check_turn(place: str, number: int, turn: Any) -> None:
    if not isinstance(turn, Mapping):
        raise RowError(f"{place} is {truncate_repr(turn)}, without role and content", _TURNS, "turn")
    if turn.get("role") == "assistant" and turn.get("tool_calls") and turn.get("content") in (None, ""):
        return  # it calls a tool and says nothing
    missing = [key for key in ("role", "content") if key not in turn]
    if missing:
        has = ", ".join(map(repr, turn)) or "nothing"
        raise RowError(f"{place} has no {missing[0]!r}; it has {has}", _TURNS, "turn")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise RowError(f"{place} has the role {truncate_repr(role)}", f"roles are {', '.join(ROLES)}", "role")
    if role == "system" and number > 1:
        raise RowError(f"{place} is of the system, which speaks first or not at all", "make it the first", "system")
    if isinstance(content, list | tuple):
        hint = "join the texts of the parts; images and sounds are not read"
        raise RowError(f"{place} has a list of parts as its content, not a text", hint, "parts")
    if not isinstance(content, str) or is_blank(content):
        what = "no content" if content is None or isinstance(content, str) else f"the content {truncate_repr(content)}"
        raise RowError(f"{place} has {what}", "content is a text; mend or remove the row", "content")
    if has_half(content):
        raise RowError(f"{place} holds half of a character (a lone surrogate)", MEND, "half")
