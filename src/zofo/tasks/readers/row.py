"""A row of data: what it holds, checks of its values, and errors about it, which are raised without the row's place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zofo.errors import DataError, error_context, truncate, truncate_repr
from zofo.tasks.readers.look_alikes import is_blank, number_key

MEND = "mend or remove the row"
"""The default hint."""
_SHORT, _SHORTER = 160, 40  # characters of a row, and of a value in it, in a message


@dataclass(frozen=True)
class Row:
    """A row of data.

    Args:
        where: file and line, or source and row, for messages.
        fields: its values by column.
    """

    where: str
    fields: Mapping[str, Any]


class NamedLabel(int):
    """A label that is the number of a class, and whose class has a name, as in `datasets.ClassLabel`."""

    name: str

    def __new__(cls, number: int, name: str) -> NamedLabel:
        """The number, with a name."""
        label = super().__new__(cls, number)
        label.name = name
        return label


def shown_row(row: Row) -> str:
    """A row for a message: its line, and its truncated values."""
    place = re.search(r"( row |:)(\d+)(:\d+)?$", row.where)
    text = json.dumps({key: _shortened(value) for key, value in row.fields.items()}, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a character cannot be printed
    text = truncate(text, _SHORT)
    return f"{'line' if place[1] == ':' else 'row'} {place[2]}: {text}" if place else text


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return truncate(value, _SHORTER)
    if isinstance(value, list):
        return [_shortened(entry) for entry in value]
    return {key: _shortened(entry) for key, entry in value.items()} if isinstance(value, dict) else value


class RowError(DataError):
    """A mistake in a row. It is raised without the row's place, which `at_row` puts before the message.

    Args:
        kind: the same for rows that are wrong in the same way.
    """

    def __init__(self, message: str, hint: str = MEND, kind: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


def at_row(where: str) -> AbstractContextManager[None]:
    """While it is open, the place of a row is put before what is wrong with it."""
    return error_context(where, RowError)


def all_rows(items: Iterable[tuple[str, Any]], parse: Callable[[Any], Mapping[str, Any]]) -> list[Row]:
    """Every item as a row. The error for the first bad one counts those of its kind, and shows a good one.

    Args:
        items: place and content of each item; it may end with a DataError.
        parse: content -> the values by column.

    Raises:
        DataError: the first mistake.
    """
    rows: list[Row] = []
    mistakes: list[DataError] = []
    try:
        for where, item in items:
            try:
                with at_row(where):
                    rows.append(Row(where, parse(item)))
            except RowError as error:
                mistakes.append(error)
    except DataError as error:
        mistakes.append(error)
    if mistakes:
        kinds = [getattr(error, "kind", "") for error in mistakes]
        raise with_valid_example(mistakes[0], kinds.count(kinds[0]), rows[0] if rows else None)
    return rows


def with_valid_example(mistake: DataError, count: int, good: Row | None) -> DataError:
    """An error of one row, whose hint has the number of bad rows and shows a good one."""
    parts = [mistake.hint or MEND]
    if count > 1:
        parts.append(f"{count} rows are wrong")
    if good is not None:
        parts.append(f"a good row: {shown_row(good)}")
    return DataError(mistake.message, "; ".join(parts))


def decoded(line: bytes) -> str:
    """A line as text; raises RowError where it is not UTF-8."""
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(
            f"not UTF-8 text: {error.reason} at byte {error.start + 1} of the line",
            "save the file as UTF-8: iconv -f LATIN1 -t UTF-8 OLD > NEW",
        ) from error


def decoded_file(path: Path, data: bytes) -> str:
    """A whole file as text; raises RowError for the first line that is not UTF-8."""
    for number, line in enumerate(data.splitlines(), start=1):
        with at_row(f"{path}:{number}"):
            decoded(line)
    return data.decode("utf-8-sig")


ROLES = ("system", "user", "assistant", "tool")
"""Roles in a chat."""

_TURNS = 'turns are written [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
_WHOLE = "labels are texts or whole numbers"
_EXACT = 2**53  # the largest whole number that a float holds beside its neighbours


_HALF = re.compile("[\ud800-\udfff]")


def has_half(text: str) -> bool:
    """Whether a text holds half of a character, a lone surrogate."""
    return not text.isascii() and _HALF.search(text) is not None


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


_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_ROLES |= {"model": "assistant", "observation": "tool", "function_response": "tool"}


def turns_of(fields: Mapping[str, Any], column: str) -> Any:
    """The turns of a row, each with role and content; what is no list of turns is given back as it is.

    Args:
        fields: the row. A text in its column `system` is the first turn of a chat that begins with another one, as in
            the files of LLaMA-Factory.
    """
    turns, system = fields[column], fields.get("system")
    if not isinstance(turns, list | tuple) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        return turns
    written = [_turn(turn) if _is_foreign(turn) else turn for turn in turns]
    if isinstance(system, str) and system.strip() and written[0].get("role") != "system":
        written.insert(0, {"role": "system", "content": system})
    return written


def _is_foreign(turn: Mapping[str, Any]) -> bool:
    return {"from", "value"} <= set(turn) and turn.get("role") is None


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn with all of its keys; a speaker that is not known keeps his name, which is refused later."""
    speaker = turn["from"]
    role = _ROLES.get(speaker.lower(), speaker) if isinstance(speaker, str) else speaker
    others = {key: value for key, value in turn.items() if key not in ("from", "value", "role", "content")}
    return {"role": role, "content": turn["value"], **others}
