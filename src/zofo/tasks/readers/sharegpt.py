"""Chats in the form of ShareGPT, `{"from": "human", "value": "..."}`, in the form of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_ROLES |= {"model": "assistant", "observation": "tool", "function_response": "tool"}


def turns_of(fields: Mapping[str, Any], column: str) -> Any:
    """The turns of a row, each with role and content; what is no list of turns is given back as it is.

    Args:
        fields: the row. A text in its column `system` is the first turn of a chat that begins with another one, as in
            the files of LLaMA-Factory.
        column: that holds the turns.
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
