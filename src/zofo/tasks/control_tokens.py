"""Control tokens that occur in a row's own text stay text, while those that a template writes become tokens."""

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
    """A text, or a pair of texts, to tokenise.

    Args:
        marked: whether marks distinguish a template's control tokens from those in the row's text; if not, all are the
            template's.
    """

    text: str
    second: str | None = None
    marked: bool = False
    where: str = ""


class Asked(NamedTuple):
    """An example as the text that is tokenised.

    Args:
        example: the readable example; its candidates include what ends them.
        prompt, candidates: the same, with marks if `marked`.
        marked: whether a template's control tokens are marked; see `Speller.marked`.
        stops: texts and tokens that end an answer, besides those of the task.
        block: for a chat, what its template itself writes before an answer.
        unwritten: for a chat, what its template omits or changes.
    """

    example: Example
    prompt: str
    candidates: tuple[str, ...]
    marked: bool
    stops: tuple[str, ...] = ()
    block: str = ""
    unwritten: tuple[str, ...] = ()


class Coded(NamedTuple):
    """A tokenised text.

    Args:
        spans: for each token, its first character and the one after its last, including marks.
        types: which text of a pair each token belongs to; empty if the tokenizer has none.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    types: list[int]


def without_marks(text: str) -> str:
    """The text without marks."""
    return text.translate(_NO_MARKS)


def with_marks(text: str, end: int) -> str:
    """The text up to a position, with the mark that closes a control token there."""
    return text[: end + 1] if text[end : end + 1] == _END_TOKEN else text[:end]


class Speller:
    """Tokenises texts so that control tokens in a row's own text stay text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._tokens = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"
        self._control = re.compile(self._tokens)
        self._in_chat = re.compile(f"{_TEXT}({self._tokens}){_END_TEXT}|({self._tokens})|[{_TEXT}{_END_TEXT}]")

    def spells(self, texts: Iterable[str]) -> bool:
        """Whether a text of a row contains the text of a control token."""
        return any(self._control.search(text) for text in texts)

    def marked(self, text: str, own: Sequence[str], where: str) -> str:
        """A text with marks around the control tokens in it that are not the row's own.

        Args:
            text: a text that a template produced.
            own: the row's texts in it, in order; others are ignored.

        Raises:
            DataError: a text of the row is a control token that the template writes as well.
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
                    "fix or remove the row, or write the template without that token",
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
        """Texts that a template produced for a row, marked if the row contains a control token; and whether they
        are."""
        if not self.spells(example.own):
            return list(texts), False
        return [self.marked(text, example.own, example.where) for text in texts], True

    def marked_value(self, value: Any) -> Any:
        """A value for a chat template, with marks around the control tokens in the row's text."""
        if isinstance(value, str):
            return self._control.sub(lambda token: f"{_TEXT}{token[0]}{_END_TEXT}", value)
        if isinstance(value, dict):
            return {key: self.marked_value(part) for key, part in value.items()}
        return [self.marked_value(part) for part in value] if isinstance(value, list) else value

    def marked_chat(self, text: str) -> str:
        """The output of a chat template for marked values, with marks around its own control tokens instead."""

        def turned(found: re.Match[str]) -> str:
            return found[1] or (f"{_TOKEN}{found[2]}{_END_TOKEN}" if found[2] else "")

        return self._in_chat.sub(turned, text)

    def without_tokens(self, text: str, marked: bool) -> str:
        """A text without the control tokens that a template wrote, as a generated text is decoded."""
        if not marked:
            return self._control.sub("", text)
        return re.sub(f"{_TOKEN}(?:{self._tokens}){_END_TOKEN}", "", text)

    def as_known(self, text: Spelt, coded: Coded) -> Coded:
        """The twin's output with the ids of the tokenizer; raises DataError for a control token from plain text."""
        known = self._twin[1]
        spelt = {match[0] for match in self._control.finditer(without_marks(text.text + (text.second or "")))}
        made = {self.tokenizer.convert_tokens_to_ids(token): token for token in spelt}
        for token, (start, end) in zip(coded.ids, coded.spans, strict=True):
            if start < end and token in made and token not in known:
                raise DataError(
                    f"{text.where}: the text holds {made[token]!r}, of which the tokenizer makes a control token even "
                    "where it is text",
                    "fix or remove the row",
                )
        return coded._replace(ids=[known.get(token, token) for token in coded.ids])

    @property
    def twin(self) -> Any:
        """A copy of the tokenizer that recognises only marked control tokens."""
        return self._twin[0]

    @cached_property
    def _twin(self) -> tuple[Any, dict[int | None, int]]:
        """A copy of the tokenizer that recognises only marked control tokens, and the id of each added token."""
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
