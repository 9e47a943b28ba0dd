"""A row of data, and the example made from it; checks of values; and errors that get their place from a context."""

from __future__ import annotations

import json
import math
import operator
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Any

from zofo.errors import DataError, error_context, listed, truncate, truncate_repr

MEND = "fix or remove the row"
"""The default hint."""
NAMING = ("name", "id", "tool_call_id")
"""Keys of a turn that only name it, its speaker, or the call that it answers."""
_SHORT, _SHORTER = 160, 40  # maximum characters of a row, and of a value in it, in a message


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
    """A label that is a class number with a name, as in `datasets.ClassLabel`."""

    name: str

    def __new__(cls, number: int, name: str) -> NamedLabel:
        """The number with its name."""
        label = super().__new__(cls, number)
        label.name = name
        return label


Message = tuple[str, str] | tuple[str, str, str]
"""A turn of a chat: role, content, and its other keys as JSON, if there are any."""


@dataclass(frozen=True)
class Example:
    """A prompt, and the texts that may follow it.

    Args:
        prompt: text before the candidate.
        candidates: texts that may follow: one per label or choice; for a generation, the training answer.
        golds: the right candidates; the first is trained on. Empty if unknown.
        answers: for a generation, every accepted answer.
        group: rows with the same group belong together, such as answers to one question; "" for none.
        where: file and line, or source and row, for messages.
        ending: text after the candidate, for bidirectional models.
        ends: whether the end-of-text token follows the candidate.
        content_free: the prompt without its content, for calibrated scores; "" for none.
        texts: one or two texts of the row, for a classification head.
        messages: for a chat, the turns before the answer; they replace `prompt`.
        before: for channel scores, the demonstrations before the candidate.
        task: name of the task, if there are several at once; else "".
        reply: for a chat, other keys of the answer such as tool calls, as JSON; "" for none.
        thinks: for a chat, whether the answer begins with its reasoning.
        tools: for a chat, the tools that may be called, as JSON; "" for none.
        columns: the row's columns for rewards (`task.reward_columns`), as JSON; "" for none.
        positive: for a classification, the candidate that F1 is for; None for the second of two.
        own: the row's texts in prompt, candidates and texts, in that order: control tokens in them stay text.
        earlier_answers: for a chat, the indices in `messages` of earlier answers that are trained, too.
    """

    prompt: str
    candidates: tuple[str, ...]
    golds: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()
    group: str = ""
    where: str = ""
    ending: str = ""
    ends: bool = False
    content_free: str = ""
    texts: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    before: str = ""
    task: str = ""
    reply: str = ""
    thinks: bool = False
    tools: str = ""
    own: tuple[str, ...] = ()
    columns: str = ""
    positive: int | None = None
    earlier_answers: tuple[int, ...] = ()

    @property
    def columns_of_row(self) -> dict[str, Any]:
        """The columns for rewards by name."""
        found: dict[str, Any] = json.loads(self.columns) if self.columns else {}
        return found

    @property
    def gold(self) -> int:
        """Index of the candidate to train on; 0 if the right one is unknown."""
        return self.golds[0] if self.golds else 0

    @property
    def text(self) -> str:
        """The question for people: the turns of a chat, the texts of a classifier, or the prompt."""
        if self.messages:
            return "\n".join(f"{role}: {content}" for role, content, *_ in self.messages)
        return "\n".join(self.texts) or self.prompt


def rows_note(places: Sequence[str], count: int, what: str) -> str:
    """A note about some of `count` rows: their number, and the first of them in its file.

    Args:
        places: file and line of each, possibly with more text.
    """
    first = min(places, key=lambda place: [(text, int(part or 0)) for text, part in _NUMBERS.findall(place)])
    return f"{len(places)} of {count} rows {what}; the first is {first}"


_NUMBERS = re.compile(r"(\D*)(\d*)")


def shown_row(row: Row) -> str:
    """A row for a message: its line, and its shortened values."""
    place = re.search(r"( row |:)(\d+)(:\d+)?$", row.where)
    text = json.dumps({key: _shortened(value) for key, value in row.fields.items()}, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be printed
    text = truncate(text, _SHORT)
    return f"{'line' if place[1] == ':' else 'row'} {place[2]}: {text}" if place else text


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return truncate(value, _SHORTER)
    if isinstance(value, list):
        return [_shortened(entry) for entry in value]
    return {key: _shortened(entry) for key, entry in value.items()} if isinstance(value, dict) else value


class RowError(DataError):
    """An error in a row, raised without the row's place, which `at_row` adds to the message.

    Args:
        kind: the same for rows with the same kind of error.
    """

    def __init__(self, message: str, hint: str = MEND, kind: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


def at_row(where: str) -> AbstractContextManager[None]:
    """Context that adds the place of a row to its errors."""
    return error_context(where, RowError)


def all_rows(items: Iterable[tuple[str, Any]], parse: Callable[[Any], Mapping[str, Any]]) -> list[Row]:
    """Parse all items as rows. The error for the first bad one counts those of its kind, and shows a good one.

    Args:
        items: place and content of each item; may end with a DataError.
        parse: content -> values by column.

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
    """The error for one row, with a hint that has the number of bad rows and shows a good one."""
    parts = [mistake.hint or MEND]
    if count > 1:
        parts.append(f"{count} rows are wrong")
    if good is not None:
        parts.append(f"a good row: {shown_row(good)}")
    return DataError(mistake.message, "; ".join(parts))


def decoded(line: bytes) -> str:
    """A line as text; raises RowError if it is not UTF-8."""
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


_WHOLE = "labels are texts or whole numbers"
_EXACT = 2**53  # the largest whole number that a float holds beside its neighbours
_HALF = re.compile("[\ud800-\udfff]")


def has_half(text: str) -> bool:
    """Whether a text contains a lone surrogate, half of a character."""
    return not text.isascii() and _HALF.search(text) is not None


def check_text(column: str, value: Any) -> None:
    """Refuse anything but a text with a visible character."""
    if value is None or isinstance(value, str) and is_blank(value):
        raise RowError(f"column {column!r} is empty", MEND, f"empty {column}")
    if not isinstance(value, str):
        hint = "put quotes around it, or remove the row" if isinstance(value, int | float) else MEND
        raise RowError(f"column {column!r} is {truncate_repr(value)}, not a text", hint, f"type {column}")
    if has_half(value):
        raise RowError(f"column {column!r} holds a lone surrogate (half of a character)", MEND, f"half {column}")


def check_label(column: str, value: Any) -> None:
    """Refuse anything but a text or a whole number."""
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


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?")
_SAME_SHAPE = str.maketrans(
    "\u2010\u2011\u2012\u2013\u2014\u2212\u2018\u2019\u201c\u201d"  # dashes and quotes
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455"  # small Cyrillic letters
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u0408\u0405"  # capital ones
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf",  # Greek letters
    "------''\"\"aeopcyxijsABEKMHOPCTXIJSABEZHIKMNOPTYXo",
)


def number_key(value: Any) -> str | None:
    """A number in canonical form, the same for 1, 1.0, "01" and "1e0"; None for other values."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(Fraction(value))
    text = str(value).strip().lower()
    return str(Fraction(text)) if len(text) < 100 and _NUMBER.fullmatch(text) else None


def look_alike_key(value: Any) -> str:
    """A key that is the same for all labels that look alike.

    They differ only in Unicode form, invisible characters, look-alike letters of other scripts, case, white space, or
    the notation of a number; `true` and `false` are 1 and 0.
    """
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | float):
        return number_key(value) or str(value)
    text = value
    if not (text.isascii() and text.isprintable()):
        text = "".join(one for one in unicodedata.normalize("NFKC", text) if not _invisible(one))
        text = text.translate(_SAME_SHAPE)
    text = " ".join(text.casefold().split())
    return number_key(text) or {"true": "1", "false": "0"}.get(text, text)


def is_blank(text: str) -> bool:
    """Whether a text has no visible character."""
    return all(one.isspace() or _invisible(one) for one in text)


def _invisible(character: str) -> bool:
    """Whether it is a format or control character, such as U+FEFF, or a variation selector."""
    kind = unicodedata.category(character)
    return kind == "Cf" or kind == "Cc" and not character.isspace() or "\ufe00" <= character <= "\ufe0f"


def first_repeated(values: Sequence[Any], same: Callable[[Any, Any], bool] = operator.eq) -> Any:
    """The first value that repeats an earlier one; None if all differ."""
    return next((one for n, one in enumerate(values) if any(same(one, other) for other in values[:n])), None)


def told_apart(one: Any, other: Any) -> tuple[str, str]:
    """The reprs of two values, so that a reader sees how they differ."""
    texts = repr(one), repr(other)
    visible = all(text.isascii() for text in texts)
    return texts if visible else (ascii(one), ascii(other))


def normalized(text: str) -> str:
    """A text in normalised form: NFKC, case-folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def question_of(example: Example, with_candidates: bool) -> Hashable:
    """The question of an example, normalised: its prompt or turns, its texts, and the candidates in any order.

    Args:
        example: an example without demonstrations.
        with_candidates: whether candidates are part of the question; those of a generation contain its answer.
    """
    return questions_of(example, with_candidates)[-1]


def questions_of(example: Example, with_candidates: bool) -> list[Hashable]:
    """All questions an example is trained to answer; for a chat, of its earlier trained answers, with its own last."""
    prompt, texts = normalized(example.prompt), tuple(map(normalized, example.texts))
    candidates = tuple(sorted(map(normalized, example.candidates))) if with_candidates else ()
    return [(prompt, turns, texts, candidates) for turns in turns_asked(example, normalized)]


def turns_asked(example: Example, form: Callable[[str], str] = str) -> list[bytes]:
    """Digests of the turns before each trained answer of a chat, in order.

    They are the same for the same turns, whatever their keys are called.

    Args:
        form: the form in which contents are compared.
    """
    found, so_far = [], b""
    for place, (role, content, *others) in enumerate(example.messages):
        if place in example.earlier_answers:
            found.append(so_far)
        more = [{key: value for key, value in json.loads(one).items() if key not in NAMING} for one in others]
        so_far = blake2b(so_far + repr((role, form(content), *filter(None, more))).encode(), digest_size=16).digest()
    return [*found, so_far]


def check_columns(name: str, columns: Iterable[str], fields: Mapping[str, Any]) -> None:
    """Raise RowError for a row that lacks a column of the task of that name."""
    for column in columns:
        if column not in fields:
            raise RowError(
                f"the column {column!r}, which the task {name!r} needs, is missing; the row has "
                f"{listed(fields) or 'nothing'}",
                "rename the column in the file, or name yours in a copy of the task file",
            )
