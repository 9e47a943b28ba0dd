"""Rows that are chats: their turns in the forms of several data sets, checked, and as an example."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zofo.errors import truncate_repr
from zofo.tasks.readers.row import MEND, Example, Message, RowError, check_columns, has_half, is_blank

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a turn that hold what its speaker thought before the content."""
WEIGHT = "weight"
"""The key of an answer that is 0 where it is not trained, as in the files of OpenAI."""
TOOLS = "tools"
"""The column beside a chat that holds what its model may call."""
ROLES = ("system", "user", "assistant", "tool")
"""Roles in a chat."""
_TURNS = 'turns are written [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_ROLES |= {"model": "assistant", "observation": "tool", "function_response": "tool"}


def chat_example(name: str, column: str, fields: Mapping[str, Any], right: bool) -> Example:
    """A chat as an example: the last trained answer is the answer, and all turns before it are the prompt."""
    check_columns(name, [column], fields)
    turns = turns_of(fields, column)
    check_turns(column, turns, answered=right)
    messages = tuple(_message(turn) for turn in turns)
    asked = Example("", ("",), messages=messages, own=tuple(texts_of(turns)), tools=_tools(fields))
    if not right:
        return asked
    *earlier, last = trained_places(turns)
    return replace(chat_until(asked, last), earlier_answers=tuple(earlier))


def trained_places(turns: Any) -> list[int]:
    """The indices of the trained answers, those after another turn; empty for invalid turns."""
    given = turns if isinstance(turns, list | tuple) else ()
    return [
        place
        for place, turn in enumerate(given)
        if place and isinstance(turn, Mapping) and turn.get("role") == "assistant" and turn.get(WEIGHT) != 0
    ]


def chat_until(chat: Example, place: int) -> Example:
    """A chat up to one of its answers, which then is the one to train on."""
    _, content, *more = chat.messages[place]
    return replace(
        chat,
        candidates=(content,),
        golds=(0,),
        answers=(content.strip(),),
        messages=chat.messages[:place],
        reply="".join(more),
        thinks=any(set(REASONING) & set(json.loads(keys)) for keys in more),
        earlier_answers=(),
    )


def _message(turn: Mapping[str, Any]) -> Message:
    """A turn, with all non-empty keys for the model."""
    ours = ("role", "content", WEIGHT)
    more = {key: value for key, value in turn.items() if key not in ours and value not in (None, [], "")}
    content = turn.get("content") or ""
    return (turn["role"], content, json.dumps(more)) if more else (turn["role"], content)


def _tools(fields: Mapping[str, Any]) -> str:
    """The available tools as JSON; "" for none. Data sets have them as a list, or as JSON text."""
    given = next((value for name, value in fields.items() if name.lower() == TOOLS), None)
    try:
        tools = json.loads(given) if isinstance(given, str) and given.strip() else given or None
    except ValueError:
        tools = given
    if tools is not None and not isinstance(tools, list):
        raise RowError(f"column {TOOLS!r} is no list of tools, and no JSON of one")
    return json.dumps(tools) if tools else ""


def texts_of(value: Any) -> list[str]:
    """All texts in a value for a chat template."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for part in parts for text in texts_of(part)]


def turns_of(fields: Mapping[str, Any], column: str) -> Any:
    """The turns of a row, each with role and content; anything else is returned unchanged.

    Args:
        fields: the row. A text in its column `system` is the first turn, if the chat begins with another one, as in
            files of LLaMA-Factory.
    """
    turns, system = fields[column], fields.get("system")
    if not isinstance(turns, list | tuple) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        return turns
    written = [_turn(turn) if {"from", "value"} <= set(turn) and turn.get("role") is None else turn for turn in turns]
    if isinstance(system, str) and system.strip() and written[0].get("role") != "system":
        written.insert(0, {"role": "system", "content": system})
    return written


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn with all of its keys; an unknown speaker keeps its name, and is refused later."""
    speaker = turn["from"]
    role = _ROLES.get(speaker.lower(), speaker) if isinstance(speaker, str) else speaker
    others = {key: value for key, value in turn.items() if key not in ("from", "value", "role", "content")}
    return {"role": role, "content": turn["value"], **others}


def check_turns(column: str, turns: Any, answered: bool = True) -> None:
    """Refuse invalid turns of a chat.

    Args:
        answered: whether the last turn must be an answer; otherwise any role may have it.
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
    if answered and not trained_places(turns):
        opens = turns[0]["role"] == "assistant"
        why = "has the weight 0 in every answer" + (" but one that nothing is asked before" if opens else "")
        hint = "give an answer after a turn of the user weight 1, or remove the row"
        raise RowError(f"column {column!r} {why}, so that none is trained", hint, "no weight")


def _check_turn(place: str, number: int, turn: Any) -> None:
    if not isinstance(turn, Mapping):
        raise RowError(f"{place} is {truncate_repr(turn)}, without role and content", _TURNS, "turn")
    weight = turn.get(WEIGHT)
    if turn.get("role") in ROLES and weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        hint = "weight is 1 (trained, the default) or 0 (not trained); of turns that are no answers it is not read"
        raise RowError(f"{place} has the weight {truncate_repr(weight)}", hint, "weight")
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
        raise RowError(f"{place} has {what}", "content is a text; fix or remove the row", "content")
    if has_half(content):
        raise RowError(f"{place} holds a lone surrogate (half of a character)", MEND, "half")
