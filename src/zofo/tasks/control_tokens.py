"""Control tokens that a row spells in its own text: they stay text, while those that a template writes are tokens."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from zofo.errors import DataError
from zofo.tasks.readers.row import Example

_TOKEN, _END_TOKEN = "\ufdd0", "\ufdd1"  # around a control token that a template writes; no characters of any text
_TEXT, _END_TEXT = "\ufdd2", "\ufdd3"  # around the spelling of one in the text of a row
_NO_MARKS = dict.fromkeys(map(ord, (_TOKEN, _END_TOKEN, _TEXT, _END_TEXT)))


class Spelt(NamedTuple):
    """A text, or a pair of texts, to be tokenised.

    Args:
        marked: whether marks tell the control tokens that a template writes from those that the row spells; without,
            every control token is the template's.
    """

    text: str
    second: str | None = None
    marked: bool = False
    where: str = ""


class Asked(NamedTuple):
    """An example in the words that are tokenised.

    Args:
        example: as people read it, its candidates with what ends them.
        prompt, candidates: the same, with marks if `marked`.
        marked: whether control tokens of a template are marked, as `Speller.marked` does it.
        stops: texts and tokens that end an answer, beside those of the task.
        block: of a chat, what its template writes before an answer by itself.
        unwritten: of a chat, what its template does not write, or writes in another way.
    """

    example: Example
    prompt: str
    candidates: tuple[str, ...]
    marked: bool
    stops: tuple[str, ...] = ()
    block: str = ""
    unwritten: tuple[str, ...] = ()


class Coded(NamedTuple):
    """A text in tokens.

    Args:
        spans: for each token, its first character and the one after its last, marks counted.
        types: which text of a pair each token belongs to; empty where the tokenizer gives none.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    types: list[int]


def without_marks(text: str) -> str:
    """The text without marks."""
    return text.translate(_NO_MARKS)


def with_marks(text: str, end: int) -> str:
    """The text up to a place, with the mark that closes a control token there."""
    return text[: end + 1] if text[end : end + 1] == _END_TOKEN else text[:end]


class Speller:
    """Tokenises texts, with the control tokens that rows spell left as text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._tokens = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"
        self._control = re.compile(self._tokens)
        self._in_chat = re.compile(f"{_TEXT}({self._tokens}){_END_TEXT}|({self._tokens})|[{_TEXT}{_END_TEXT}]")

    def spells(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts of a row holds the spelling of a control token."""
        return any(self._control.search(text) for text in texts)

    def marked(self, text: str, own: Sequence[str], where: str) -> str:
        """A text with marks around the control tokens in it that the row did not write.

        Args:
            text: a text that a template made.
            own: texts that the row wrote into it, in order; others are ignored.

        Raises:
            DataError: the row wrote nothing but a control token, which the template writes as well.
        """
        inside: list[tuple[int, int]] = []
        place = 0
        spelt = [part.strip() for part in own if self._control.search(part)]
        for part in spelt:
            alone = not self._control.sub("", part).strip()
            if alone and text.count(part) > spelt.count(part):
                raise DataError(
                    f"{where}: a column holds {part!r} and nothing else, which cannot be told from the control token "
                    "that the template writes",
                    "mend or remove the row, or write the template without that token",
                )
            found = text.find(part, place)
            found = text.find(part) if found < 0 else found
            if found >= 0:
                place = found + len(part)
                inside.append((found, place))

        def mark(token: re.Match[str]) -> str:
            of_row = any(start <= token.start() and token.end() <= end for start, end in inside)
            return token[0] if of_row else f"{_TOKEN}{token[0]}{_END_TOKEN}"

        return self._control.sub(mark, text)

    def in_marks(self, example: Example, texts: Sequence[str]) -> tuple[list[str], bool]:
        """Texts that a template made of a row, marked if the row spells a control token; and whether they are."""
        if not self.spells(example.own):
            return list(texts), False
        return [self.marked(text, example.own, example.where) for text in texts], True

    def marked_value(self, value: Any) -> Any:
        """A value for a chat template, with marks around the control tokens that the row spells."""
        if isinstance(value, str):
            return self._control.sub(lambda token: f"{_TEXT}{token[0]}{_END_TEXT}", value)
        if isinstance(value, dict):
            return {key: self.marked_value(part) for key, part in value.items()}
        return [self.marked_value(part) for part in value] if isinstance(value, list) else value

    def marked_chat(self, text: str) -> str:
        """What a chat template wrote of marked values, with marks around its own control tokens instead."""

        def turned(found: re.Match[str]) -> str:
            return found[1] or (f"{_TOKEN}{found[2]}{_END_TOKEN}" if found[2] else "")

        return self._in_chat.sub(turned, text)

    def without_tokens(self, text: str, marked: bool) -> str:
        """A text without the control tokens that a template wrote, as a generated text is decoded."""
        if not marked:
            return self._control.sub("", text)
        return re.sub(f"{_TOKEN}(?:{self._tokens}){_END_TOKEN}", "", text)

    def as_known(self, text: Spelt, coded: Coded) -> Coded:
        """What the twin made of a text, with the ids of the tokenizer; raises DataError for one made of plain text."""
        known = self._twin[1]
        spelt = {match[0] for match in self._control.finditer(without_marks(text.text + (text.second or "")))}
        made = {self.tokenizer.convert_tokens_to_ids(token): token for token in spelt}
        for token, (start, end) in zip(coded.ids, coded.spans, strict=True):
            if start < end and token in made and token not in known:
                raise DataError(
                    f"{text.where}: the text holds {made[token]!r}, of which the tokenizer makes a control token even "
                    "where it is text",
                    "mend or remove the row",
                )
        return coded._replace(ids=[known.get(token, token) for token in coded.ids])

    @property
    def twin(self) -> Any:
        """A copy of the tokenizer whose control tokens are spelt with marks."""
        return self._twin[0]

    @cached_property
    def _twin(self) -> tuple[Any, dict[int | None, int]]:
        """A copy of the tokenizer whose control tokens are spelt with marks; and the id of each of its added tokens."""
        from tokenizers import AddedToken, Tokenizer

        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        added, content["added_tokens"] = content["added_tokens"], []
        backend = Tokenizer.from_str(json.dumps(content))
        known: dict[int | None, int] = {}
        for token in added:
            id_, spelling = token.pop("id"), token.pop("content")
            spelling = f"{_TOKEN}{spelling}{_END_TOKEN}" if token["special"] else spelling
            backend.add_tokens([AddedToken(spelling, **token)])
            known[backend.token_to_id(spelling)] = id_
        twin = copy.copy(self.tokenizer)
        twin._tokenizer = backend
        return twin, known
