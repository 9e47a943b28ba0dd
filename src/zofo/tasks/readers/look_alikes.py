"""Labels that look the same but differ, and labels that look like a typing mistake of another."""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?")
_SAME_SHAPE = str.maketrans(
    "\u2010\u2011\u2012\u2013\u2014\u2212\u2018\u2019\u201c\u201d"  # dashes and quotes
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455"  # small Cyrillic letters
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u0408\u0405"  # capital ones
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf",  # Greek letters
    "------''\"\"aeopcyxijsABEKMHOPCTXIJSABEZHIKMNOPTYXo",
)
_RARE = 20  # a label is rare beside one that is this many times as frequent
_SHORT = 4  # letters; below, another letter makes another word
_MISSING = {"n/a", "na", "nan", "<na>", "#n/a", "null", "none", "nil", "?", "-"}  # as programs write that there is none


def number_key(value: Any) -> str | None:
    """A number in one form, the same for 1, 1.0, "01" and "1e0"; None for other values."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(Fraction(value))
    text = str(value).strip().lower()
    return str(Fraction(text)) if len(text) < 100 and _NUMBER.fullmatch(text) else None


def look_alike_key(value: Any) -> str:
    """What all labels have in common that look alike.

    They differ only in their Unicode form, characters that cannot be seen, letters of another script with the same
    shape, case, white space, or the writing of a number; `true` and `false` are 1 and 0.
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
    """Whether it is a format or control character, such as U+FEFF, or selects a variant of the one before it."""
    kind = unicodedata.category(character)
    return kind == "Cf" or kind == "Cc" and not character.isspace() or "\ufe00" <= character <= "\ufe0f"


def first_repeated(values: Sequence[Any], same: Callable[[Any, Any], bool] = operator.eq) -> Any:
    """The first value that repeats an earlier one; None where all differ."""
    return next((one for n, one in enumerate(values) if any(same(one, other) for other in values[:n])), None)


def told_apart(one: Any, other: Any) -> tuple[str, str]:
    """Two values as Python writes them, so that a reader sees how they differ."""
    texts = repr(one), repr(other)
    visible = all(text.isascii() for text in texts)
    return texts if visible else (ascii(one), ascii(other))


def label_notes(counts: Mapping[Any, int]) -> list[str]:
    """What a user should look at among labels, each of which can be used."""
    notes = []
    texts = sorted((label for label in counts if isinstance(label, str)), key=lambda label: (-counts[label], label))
    for number, rare in enumerate(texts):
        like = next((label for label in texts[:number] if _typo(rare, label, counts[rare], counts[label])), None)
        if like is not None:
            few, many = _rows(counts[rare]), _rows(counts[like])
            notes.append(f"label {rare!r} ({few}) looks like a typing mistake of {like!r} ({many})")
    named = [label for label in counts if isinstance(label, str) and label.strip().casefold() in _MISSING]
    notes += [f"label {label!r} ({_rows(counts[label])}) is read as a label, not as a missing one" for label in named]
    return notes


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _typo(rare: str, frequent: str, few: int, many: int) -> bool:
    """Whether a label differs from another only in punctuation, or is rare and one edit away."""
    plain = [re.sub(r"[-_\s.,:;!?\"'()\[\]]+", "", label.casefold()) for label in (rare, frequent)]
    if plain[0] == plain[1] and re.search(r"[^\W\d]", plain[0]):
        return True
    if many < _RARE * few or max(map(len, plain)) < _SHORT or _letters(plain[0]) == _letters(plain[1]):
        return False
    return _one_edit_apart(plain[0], plain[1])


def _letters(text: str) -> str:
    return re.sub(r"\d", "", text)


def _one_edit_apart(one: str, other: str) -> bool:
    """Whether two texts differ in one character that is added, left out or another, or in two neighbours' order."""
    short, long = sorted((one, other), key=len)
    start = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    rest_short, rest_long = short[start:], long[start:]
    if len(long) - len(short) == 1:
        return rest_short == rest_long[1:]
    swapped = rest_short[1:2] + rest_short[:1] == rest_long[:2] and rest_short[2:] == rest_long[2:]
    return len(long) == len(short) and (swapped or rest_short[1:] == rest_long[1:])
