"""The form of the chats that a run is trained on, so that a plain text can be asked in the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zofo.tasks import Example

_KEY = "chat"


def chat_form(examples: Sequence[Example]) -> dict[str, Any]:
    """What a run writes down of the chats it is trained on; as JSON, empty where they are none.

    Returns:
        `system`: the turn that begins all of them, "" where none has one, None where they begin in different ways;
        `thinks`: whether their answers hold what was thought before them; `tools`: whether they name any.
    """
    chats = [example for example in examples if example.messages]
    if not chats:
        return {}
    systems = {one.messages[0][1] if one.messages[0][0] == "system" else "" for one in chats}
    system = systems.pop() if len(systems) == 1 else None
    tools = any(one.tools for one in chats)
    return {_KEY: {"system": system, "thinks": any(one.thinks for one in chats), "tools": tools}}


def in_trained_form(
    example: Example, plain: bool, environment: Mapping[str, Any], warn: Callable[[str], None]
) -> Example:
    """A chat in the form of those that a run was trained on, by its `environment`; before a plain text stands the
    system turn of the run. `warn` is told where it stays different from the chats of the run."""
    form = environment.get(_KEY)
    if not isinstance(form, dict):
        return example
    example = replace(example, thinks=bool(form.get("thinks")))
    if not plain:
        return example
    if form.get("tools"):
        warn(f"{example.where}: the run was trained on chats with tools, and a plain text has none: give a row as JSON")
    if form.get("system") is None:
        warn(
            f"{example.where}: the run was trained on chats that begin in different ways, and a plain text has no "
            "system turn: give the turns as JSON"
        )
    elif form["system"]:
        system = str(form["system"])
        return replace(example, messages=(("system", system), *example.messages), own=(system, *example.own))
    return example
