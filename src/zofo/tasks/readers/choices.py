"""The right choice of a row, from any form of answer; an ambiguous answer is refused."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from zofo.errors import DataError, truncate_repr
from zofo.tasks.readers.row import (
    MEND,
    Row,
    RowError,
    check_text,
    first_repeated,
    has_half,
    is_blank,
    look_alike_key,
    number_key,
    told_apart,
)

_KEY = re.compile(r"\(?([A-Za-z]|\d{1,2})[.):]\s")  # before a choice, as in "B) red"
_READINGS = {
    "text": "the text of choice {}",
    "key": "the key that choice {} begins with",
    "letter": "the letter of choice {}",
    "number": "the number of choice {}, counted from 0",
}


def hidden_hint(answer: Any) -> str | None:
    """A hint for a label of -1, which may mean that there is no label; None for other labels."""
    hidden = "-1 stands for a label that the data set's authors keep to themselves: take a split that has its labels"
    return hidden if number_key(answer) == "-1" else None


def same_key(one: Any, other: Any) -> bool:
    """Whether an answer equals a key, as a text or as a number; 3, 3.0 and "3" are equal."""
    number = number_key(one)
    return str(one).strip() == str(other).strip() or number is not None and number == number_key(other)


def gold_readings(choices: Sequence[str], answer: Any) -> dict[str, int]:
    """The choice that an answer refers to, for every way to read it.

    Args:
        choices: texts of the choices, stripped.
        answer: a text or a number.

    Returns:
        "text", "key", "letter" or "number" -> index of the choice. They differ if, for example, 1 is the text of choice
        0; empty if the answer is not a choice.
    """
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return {}
    text, found = str(answer).strip(), {}
    texts = [n for n, choice in enumerate(choices) if choice == text] or [
        n for n, choice in enumerate(choices) if same_key(answer, choice)
    ]
    keys = [match[1] if (match := _KEY.match(choice)) else "" for choice in choices]
    if texts:
        found["text"] = texts[0]
    if all(keys) and text in keys and len(set(keys)) == len(keys):
        found["key"] = keys.index(text)
    if len(text) == 1 and text in string.ascii_uppercase[: len(choices)]:
        found["letter"] = string.ascii_uppercase.index(text)
    number = number_key(answer)
    if number is not None and len(number) < 10 and number.isdecimal() and int(number) < len(choices):
        found["number"] = int(number)
    return found


def gold_choice(column: str, choices: Sequence[str], answer: Any, texts: str | None) -> int:
    """The index of the right choice.

    Args:
        choices: texts of the choices, stripped.
        texts: the column or expression of the choices, for the hint.

    Raises:
        RowError: the answer is not a choice, or matches two different ones.
    """
    found = gold_readings(choices, answer)
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    letters = ", ".join(string.ascii_uppercase[: len(choices)])
    if not found:
        what = f"{truncate_repr(answer)}, which is none of the {len(choices)} choices"
        like = next((one for one in choices if look_alike_key(one) == look_alike_key(str(answer))), None)
        if like is not None and isinstance(answer, str):
            shown, other = told_apart(answer, like)
            what = f"{shown}, which is not the choice {other}, though it looks like it"
        known = f"a letter from A to {letters[-1:]}, or the text of a choice"
        hint = hidden_hint(answer) or f"write a number from 0 to {len(choices) - 1}, {known}"
        raise RowError(f"column {column!r} is {what}", hint, "answer")
    ways = " or ".join(_READINGS[way].format(place) for way, place in found.items())
    numbers = ", ".join(map(str, range(len(choices))))
    says = {"number": f"task.labels=[{numbers}] for numbers", "letter": f"task.labels=[{letters}] for letters"}
    says["text"] = f"task.labels={texts} for texts" if texts is not None else f'label: "[{column}]" for texts'
    hint = ", ".join(says[way] for way in found if way in says)
    raise RowError(f"column {column!r} is {answer!r}, which may be {ways}", f"say which: {hint}", "two readings")


def check_choices(column: str, choices: Any) -> None:
    """Refuse anything but a list of choices, or a mapping of texts and labels."""
    if not is_keyed(choices):
        return check_list(column, choices)
    texts, keys = choices["text"], choices["label"]
    twice = first_repeated(keys, same_key)
    if len(texts) != len(keys) or twice is not None:
        what = f"{len(texts)} texts and {len(keys)} labels" if twice is None else f"the label {twice!r} twice"
        raise RowError(f"column {column!r} holds {what}", MEND, "keys")
    return check_list(f"{column}.text", texts)


def check_list(column: str, choices: Any) -> None:
    """Refuse anything but a list of at least two different texts."""
    if not isinstance(choices, list | tuple):
        hint = 'write a list of texts, ["yes", "no"], in JSONL or parquet; CSV holds none'
        if isinstance(choices, Mapping):
            listed = next((name for name, held in choices.items() if isinstance(held, list)), None)
            each = f"{column}.{listed}" if listed is not None else f"{column}.values() | list"
            labels = "" if listed is not None else f", labels: {column}.keys() | list"
            hint = f"write a list of texts, or give a task file with choices: {{each: {each}}}{labels}"
        raise RowError(f"column {column!r} is {truncate_repr(choices)}, not a list of choices", hint, "no list")
    for number, choice in enumerate(choices):
        if not isinstance(choice, str) or is_blank(choice) or has_half(choice):
            hint = "write all choices as texts"
            if isinstance(choice, Mapping) and {"text", "label"} <= set(choice):
                texts, keys = (f"{column} | map(attribute='{key}') | list" for key in ("text", "label"))
                hint += f', or give a task file with choices: {{each: "{texts}"}}, labels: "{keys}"'
            what = f"column {column!r}: choice {number} is {truncate_repr(choice)}, not a text"
            raise RowError(what, hint, "bad choice")
    if len(choices) < 2:
        what = f"column {column!r} has {len(choices)} choices, but two or more are needed"
        raise RowError(what, MEND, "few choices")
    twice = first_repeated([choice.strip() for choice in choices])
    if twice is not None:
        raise RowError(f"column {column!r} holds the choice {truncate_repr(twice)} twice", MEND, "choice twice")


def is_keyed(choices: Any) -> bool:
    """Whether choices have the form of ARC, {"text": ["red", "blue"], "label": ["A", "B"]}."""
    return isinstance(choices, Mapping) and all(isinstance(choices.get(key), list) for key in ("text", "label"))


def check_right_choice(column: str, choices: Any, answer_column: str, answer: Any) -> None:
    """Refuse an answer that matches none of well-formed choices, or two of them."""
    if not is_keyed(choices):
        gold_choice(answer_column, [choice.strip() for choice in choices], answer, column)
    elif not any(same_key(answer, key) for key in choices["label"]):
        what = f"column {answer_column!r} is {truncate_repr(answer)}, which is none of the labels in {column!r}"
        hint = hidden_hint(answer) or f"write one of {', '.join(map(repr, choices['label']))}"
        raise RowError(what, hint, "answer")


def check_index_base(choices_column: str, column: str, rows: Sequence[Row]) -> None:
    """Refuse choice numbers that may count from 0 or from 1: no row has 0, whatever letters and texts others have.

    Raises:
        DataError: they may; the hint says how to specify which.
    """
    first: Row | None = None
    last: Row | None = None
    size = 0
    for row in rows:
        choices, answer = row.fields.get(choices_column), row.fields.get(column)
        if not isinstance(choices, list) or isinstance(answer, bool):
            return
        number = number_key(answer)
        known = [choice.strip() for choice in choices if isinstance(choice, str)]
        ways = gold_readings(known, answer)
        if number is None or ways and "number" not in ways:
            continue  # a letter or a text, which does not say how numbers count
        if not number.isdecimal() or set(ways) - {"number"} or not 1 <= int(number) <= len(known):
            return
        first, size = first or row, max(size, len(known))
        last = last or (row if int(number) == len(known) else None)
    if first is None:
        return
    counts = [f"task.labels=[{', '.join(str(n + start) for n in range(size))}]" for start in (1, 0)]
    if last is not None:
        answer, count = last.fields[column], len(last.fields[choices_column])
        raise DataError(
            f"{last.where}: column {column!r} is {answer!r} for {count} choices, and no row has 0: it counts from 1",
            f"say so: {counts[0]}",
        )
    raise DataError(
        f"{first.where}: no row has 0 in column {column!r}: its numbers may count the choices from 1, or from 0",
        f"say which: {counts[0]} or {counts[1]}",
    )


def check_metaicl(text: Any, output: Any, options: Any) -> None:
    """Refuse an invalid MetaICL row; options may repeat, and no options mean a free-text output.

    Args:
        output: must be exactly one of the options.

    Raises:
        RowError: the row is invalid; the message names the column.
    """
    check_text("input", text)
    check_text("output", output)
    if isinstance(options, list | tuple):
        if not options:
            return
        check_list("options", [one for n, one in enumerate(options) if one not in options[:n]])
    else:
        check_list("options", options)
    if output not in options:
        what = f"column 'output' is {truncate_repr(output)}, which is none of the {len(options)} options"
        raise RowError(what, "write one of the options, letter by letter, or remove the row", "output")
