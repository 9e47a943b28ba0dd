"""When two free answers are the same: as texts, and as numbers."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(
    r"(?P<before>[$€£¥₹]?)\s?(?P<sign>[+-]?)\s?(?P<inner>[$€£¥₹]?)"
    r"(?P<digits>\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+|(?=\.\d))(?P<fraction>\.\d*)?(?P<power>[eE][+-]?\d{1,4})?"
    r"\s?(?P<after>[%$€£¥₹]?)\.?"
)
_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-", "\u00a0": " ", "\u2009": " ", "\u202f": " "})
_BETWEEN = {".": "point", ",": "comma", ":": "colon", "/": "slash", "-": "dash"}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """A text in one Unicode form (NFC), without white space around it."""
    return unicodedata.normalize("NFC", text).strip()


def number_in(text: str) -> tuple[Decimal, str] | None:
    """The number that a whole text is, with its unit; None for any other text.

    A unit is one currency sign or a percent sign, "" for none. Commas and spaces may group the digits before the point
    by three; a full stop may end it. `1.000,5` and `1/2` are texts.
    """
    found = _NUMBER.fullmatch(plain(text).translate(_MINUS))
    if found is None:
        return None
    units = [found[part] for part in ("before", "inner", "after") if found[part]]
    if len(units) > 1:
        return None
    digits = re.sub("[, ]", "", found["digits"])
    written = f"{found['sign']}{digits or '0'}{(found['fraction'] or '').rstrip('.')}{found['power'] or ''}"
    return Decimal(written), units[0] if units else ""


def same_number(one: str, other: str) -> bool | None:
    """Whether two texts are the same number; None where one of them is no number.

    Units must be the same where both have one: `$5` is `5`, and not `€5`. A percentage is not its share: `5%` is `5`,
    and not `0.05`.
    """
    first, second = number_in(one), number_in(other)
    if first is None or second is None:
        return None
    return first[0] == second[0] and (first[1] == second[1] or not first[1] or not second[1])


def number_or_text_match(one: str, other: str) -> bool:
    """Whether two texts are the same number, or, where one of them is none, the same text."""
    same = same_number(one, other)
    return plain(one) == plain(other) if same is None else same


def same_without_tokens(one: str, other: str) -> bool | None:
    """Whether a text is another one of which SQuAD's normalisation leaves nothing; None where it leaves something.

    It drops punctuation and the articles a, an, the: here articles stay, then punctuation.
    """
    first, second = _bare(one), _bare(other)
    if _ARTICLES.sub(" ", second).strip():
        return None
    return first == second if first or second else plain(one) == plain(other)


def with_whole_numbers(text: str) -> str:
    """A text whose numbers SQuAD's normalisation does not change: it would make 15 of 1.5 and of -15, and 10 of 1:0.

    Signs, and points and the like between digits, become words; commas that group digits by three go.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain(text).translate(_MINUS))
    text = re.sub(r"(?<![\w.,])-(?=\.?\d)", "minus", text)
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    return re.sub(r"(?<=\d)[.,:/-](?=\d)", lambda sign: _BETWEEN[sign[0]], text)


def _bare(text: str) -> str:
    return " ".join(plain(text).lower().translate(_PUNCTUATION).split())


def free_answer_scores(answers: Iterable[Any]) -> dict[str, Any]:
    """The scores, as a task file names them, that suit the free answers of a user's own rows.

    Args:
        answers: of each row a text or a list of texts; anything else is another part's mistake to name.
    """
    texts = [text for one in answers for text in (one if isinstance(one, list | tuple) else [one])]
    if texts and all(isinstance(text, str) and number_in(text) is not None for text in texts):
        return {"metric": "number-match", "extra_metrics": ["exact-match", "token-f1"]}
    return {"metric": "token-f1", "extra_metrics": ["exact-match", "text-match"]}


def last_content(turns: Any) -> Any:
    """The content of the last turn of a chat; None where there is none."""
    last = turns[-1] if isinstance(turns, list | tuple) and turns else None
    return last.get("content") if isinstance(last, dict) else None
