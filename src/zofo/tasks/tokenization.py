"""Tokenisation for causal language models, including where candidates begin."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zofo.errors import DataError, ModelError, truncate_repr
from zofo.tasks.chats import write_chat
from zofo.tasks.control_tokens import Asked, Coded, Speller, Spelt
from zofo.tasks.readers.chat_rows import chat_until
from zofo.tasks.readers.row import Example
from zofo.tasks.tokenization_checks import check_distinct, check_reasoning_prompts, check_scorable, too_long


@dataclass(frozen=True)
class TokenizedChoices:
    """An encoded example.

    Args:
        rows: for each candidate, the tokens of prompt and candidate together.
        scored: for each candidate, how many tokens at the end of its row belong to it.
        gold: index of the candidate to train on.
        stops: texts and tokens that end its answer, besides those of the task.
        joined: whether prompt and candidate have the same tokens as when tokenised as one text.
        unwritten: for a chat, content that the template omits or changes.
        earlier_spans: for a chat, where earlier trained answers are in its row: the first token and the one after the
            last of each.
        untrained: for a chat, why one of its earlier answers is not trained; "" for none.
    """

    rows: tuple[tuple[int, ...], ...]
    scored: tuple[int, ...]
    gold: int
    example: Example | None = None
    stops: tuple[str, ...] = ()
    joined: bool = True
    unwritten: tuple[str, ...] = ()
    earlier_spans: tuple[tuple[int, int], ...] = ()
    untrained: str = ""

    @property
    def ids(self) -> set[int]:
        """All of its tokens."""
        return set(itertools.chain(*self.rows))

    @property
    def length(self) -> int:
        """Number of tokens of the longest row."""
        return max(map(len, self.rows))

    @property
    def logits_to_keep(self) -> int:
        """Number of positions whose logits are needed: from the first one that predicts a scored token.

        A batch uses the maximum over its examples.
        """
        earlier = [len(self.rows[0]) - start for start, _ in self.earlier_spans[:1]]
        return max([*earlier, *self.scored])

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the candidate to train on."""
        row = self.rows[self.gold]
        return row[: len(row) - self.scored[self.gold]]

    def places(self, candidate: int) -> list[int]:
        """The positions of a candidate's scored tokens in its row."""
        row = self.rows[candidate]
        spans = (*self.earlier_spans, (len(row) - self.scored[candidate], len(row)))
        return [place for start, end in spans for place in range(start, end)]

    def gold_only(self) -> TokenizedChoices:
        """The example with only the candidate to train on."""
        return replace(self, rows=(self.rows[self.gold],), scored=(self.scored[self.gold],), gold=0)

    def last_only(self) -> TokenizedChoices:
        """The example without earlier trained answers."""
        return replace(self, earlier_spans=()) if self.earlier_spans else self

    def full_sequence(self) -> TokenizedChoices:
        """As `gold_only`, with every token scored except the first."""
        row = self.rows[self.gold]
        return replace(self, rows=(row,), scored=(len(row) - 1,), gold=0, earlier_spans=())


def encode(
    tokenizer: Any,
    examples: Sequence[Example],
    limit: int | None = None,
    truncate: bool = False,
    require_all: bool = False,
) -> list[TokenizedChoices]:
    """Tokenise examples for a causal language model.

    The prompt does not depend on the right answer. With one candidate, the answer of a generation, the prompt is
    tokenised alone, and the answer's tokens follow. With several, each row is tokenised as one text, and all are scored
    from the same position: the last one before the first token of any candidate (found by character offsets) up to
    which they have the same tokens. Lengths are never subtracted. A candidate with nothing before it is predicted from
    the beginning-of-text token, or the end-of-text token if a model has no other.

    Args:
        limit: maximum length of a row in tokens; None for no limit.
        truncate: drop the oldest tokens of a longer prompt, keeping a leading special token, instead of refusing it; an
            earlier answer that is cut is not trained.
        require_all: refuse a chat if one of its earlier answers cannot be trained.

    Raises:
        DataError: a text is longer than `limit`; candidates of one example have the same tokens; a candidate has no
            token, or none before it to be predicted from; the chat template refuses or changes turns; or, with
            `require_all`, an earlier answer would be generated after other tokens. ModelError: a chat, and the
            tokenizer has no chat template, or one that cannot be trained with.
    """
    if not examples:
        return []
    speller, chats = Speller(tokenizer), bool(examples[0].messages)
    asked = [_asked(speller, example) for example in examples]
    check_reasoning_prompts(asked)
    encoded = []
    written = zip(asked, _coded_parts(speller, asked, chats), strict=True)
    parts = [_part(speller, one, own) for one, own in written]
    found = _earlier(speller, examples, asked, [rows[0] for rows, _, _ in parts])
    for one, (rows, start, joined), (earlier, untrained) in zip(asked, parts, found, strict=True):
        scored = tuple(len(row) - start for row in rows)
        whole, head = len(rows[0]), leading(rows[0], speller.special)
        rows = fitted(rows, [(head, start - 1 - head)], limit, truncate, one.example)
        check_distinct(one.example, rows)
        cut = whole - len(rows[0])
        kept = tuple((first - cut, end - cut) for first, end in earlier if not cut or first - cut > head)
        if len(kept) < len(earlier):
            count = f"{len(earlier) - len(kept)} of {len(earlier)}"
            untrained = untrained or f"task.truncate=left cuts {count} of them, or all that stands before"
        if untrained and require_all:
            raise DataError(
                f"{one.example.where}: an earlier answer cannot be trained: {untrained}",
                "task.trained_turns=auto leaves such answers out, and task.trained_turns=last all but the last one",
            )
        more = one.stops, joined, one.unwritten, kept, untrained
        encoded.append(TokenizedChoices(tuple(rows), scored, one.example.gold, one.example, *more))
    return encoded


_Part = tuple[list[tuple[int, ...]], int, bool]
"""The rows of an example, where its candidates begin, and whether they have the tokens of one text with the prompt."""


_Codes = tuple[list[Coded], list[int]]
"""Of an example the tokens of its prompt with each candidate, and of the prompt alone where there is one candidate."""


def _coded_parts(speller: Speller, asked: Sequence[Asked], chats: bool) -> list[_Codes]:
    """Tokenise each example.

    Args:
        chats: whether they are chats, whose template writes all special tokens itself.
    """
    add = {"add_special_tokens": not chats}
    wholes = iter(coded(speller, [_spelt(one, one.prompt + text) for one in asked for text in one.candidates], **add))
    alone = iter(coded(speller, [_spelt(one, one.prompt) for one in asked if len(one.candidates) == 1], **add))
    found = []
    for one in asked:
        texts = [_without_closing(speller, next(wholes), add) for _ in one.candidates]
        found.append((texts, _without_closing(speller, next(alone), add).ids if len(texts) == 1 else []))
    return found


def _part(speller: Speller, one: Asked, codes: _Codes) -> _Part:
    """The rows of an example, before long ones are shortened."""
    tokenizer, (texts, prompt) = speller.tokenizer, codes
    end = tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if len(texts) == 1:
        rows, start, joined = _answered(speller, one, prompt, texts[0], end)
    else:
        rows, start, joined = _from_one_place(texts, len(one.prompt))
    if start == 0 and first is not None:
        rows, start = [(first, *row) for row in rows], 1
    for candidate, row in enumerate(rows):
        check_scorable(one.example, candidate, start, len(row))
    return rows, start, joined


_Earlier = tuple[list[tuple[int, int]], str]


def _earlier(
    speller: Speller, examples: Sequence[Example], asked: Sequence[Asked], rows: Sequence[tuple[int, ...]]
) -> list[_Earlier]:
    """For each chat, the spans of the earlier answers that can be trained, and why another one cannot be, "" for none.

    An answer can be trained if the whole row begins with the row of the chat up to that answer: at inference the model
    would generate it after the same tokens.
    """
    alone: list[Asked] = []
    why: dict[tuple[int, int], Asked | str] = {}
    for number, (example, one) in enumerate(zip(examples, asked, strict=True)):
        for place in example.earlier_answers:
            why[number, place] = own = _asked_until(speller, example, place, one)
            alone += [] if isinstance(own, str) else [own]
    codes = iter(_coded_parts(speller, alone, chats=True) if alone else [])
    found: list[_Earlier] = [([], "") for _ in examples]
    for (number, place), own in why.items():
        spans, untrained = found[number]
        problem = own if isinstance(own, str) else ""
        if not isinstance(own, str):
            try:
                ((row,), start, _) = _part(speller, own, next(codes))
                fits = rows[number][: len(row)] == row
                spans += [(start, len(row))] if fits else []
                problem = "" if fits else "what follows it changes its tokens"
            except DataError as error:
                problem = error.message.removeprefix(f"{examples[number].where}: ")
        found[number] = spans, untrained or (problem and f"turn {place + 1}: {problem}")
    return found


def _asked_until(speller: Speller, example: Example, place: int, whole: Asked) -> Asked | str:
    """A chat up to one of its earlier answers, or why the whole chat does not begin with it."""
    try:
        alone = write_chat(speller, chat_until(example, place), whole=False)
        check_reasoning_prompts([whole, alone])
    except (DataError, ModelError) as error:
        return error.message.removeprefix(f"{example.where}: ")
    one, other = (each.example.prompt + each.example.candidates[0] for each in (alone, whole))
    return alone if other.startswith(one) else _apart(one, other)


def _apart(one: str, other: str) -> str:
    """How a chat up to an answer differs from the beginning of the whole chat."""
    same = len(os.path.commonprefix([one, other]))
    return (
        f"the model's chat template writes {truncate_repr(one[same:])} where it is the last turn, and "
        f"{truncate_repr(other[same:])} where turns follow"
    )


def coded(speller: Speller, texts: Sequence[Spelt], spans: bool = True, **options: Any) -> list[Coded]:
    """Tokenise texts so that control tokens in a row's own text stay text.

    Args:
        texts: either all single texts, or all pairs.
        spans: whether to compute spans; otherwise they are empty.

    Raises:
        DataError: the tokenizer turns a text into a control token regardless.
    """
    found: list[Coded] = [Coded([], [], [])] * len(texts)
    for marked in (False, True):
        places = [place for place, one in enumerate(texts) if one.marked == marked]
        if not places:
            continue
        chosen = [texts[place] for place in places]
        own = (speller.twin if marked else speller.tokenizer)(
            [one.text for one in chosen],
            None if chosen[0].second is None else [one.second for one in chosen],
            return_offsets_mapping=spans or marked,
            return_attention_mask=False,
            verbose=False,
            **options,
        )
        none: list[list[Any]] = [[]] * len(chosen)
        parts = own["input_ids"], own.get("offset_mapping") or none, own.get("token_type_ids") or none
        for place, *row in zip(places, *parts, strict=True):
            one = Coded(*row)
            found[place] = speller.as_known(texts[place], one) if marked else one
    return found


def _spelt(asked: Asked, text: str) -> Spelt:
    return Spelt(text, None, asked.marked, asked.example.where)


def _asked(speller: Speller, example: Example) -> Asked:
    """An example as the text to tokenise: a chat as its template writes it, candidates with their end of text."""
    if example.messages:
        return write_chat(speller, example)
    (prompt, *candidates), marked = speller.in_marks(example, (example.prompt, *example.candidates))
    if example.ends:
        ending = speller.tokenizer.eos_token
        if ending is None:
            raise ModelError(
                f"{example.where}: the model's end of text is to follow the answer, but its tokenizer has no eos_token",
                "name one in its tokenizer_config.json, or give the task a text that ends answers with stop",
            )
        example = replace(example, candidates=tuple(text + ending if text else "" for text in example.candidates))
        ending = speller.marked(ending, (), example.where) if marked else ending
        candidates = [text + ending if text else "" for text in candidates]
    return Asked(example, prompt, tuple(candidates), marked)


def _answered(
    speller: Speller, asked: Asked, prompt: list[int], whole: Coded, end: int
) -> tuple[list[tuple[int, ...]], int, bool]:
    """The row of a prompt with its only candidate, where that begins, and whether both are tokenised as one text.

    If the tokenised whole would not begin with the prompt's tokens, the candidate's tokens are those after a text that
    it does not merge with.

    Raises:
        DataError: it merges with every text.
    """
    candidate = asked.candidates[0]
    if not candidate:  # nothing to score: the end-of-text token is a placeholder
        return [(*prompt, end)], len(prompt), True
    if whole.ids[: len(prompt)] == prompt:
        return [tuple(whole.ids)], len(prompt), True
    befores = ("\n", ":", ".", "x")
    texts = [_spelt(asked, before + text) for before in befores for text in ("", candidate)]
    found = [one.ids for one in coded(speller, texts, add_special_tokens=False)]
    for head, both in zip(found[::2], found[1::2], strict=True):
        if both[: len(head)] == head:
            return [(*prompt, *both[len(head) :])], len(prompt), False
    raise DataError(
        f"{asked.example.where or repr(asked.example.prompt[:40])}: the candidate "
        f"{asked.example.candidates[0][:80]!r} has no tokens of its own after the prompt",
        "let the template end with a word or a colon, and the answer begin with a word",
    )


def _from_one_place(texts: Sequence[Coded], prompt: int) -> tuple[list[tuple[int, ...]], int, bool]:
    """The rows of several candidates, the position that all are scored from, and whether each begins there."""
    starts = [next((i for i, span in enumerate(one.spans) if span[1] > prompt), len(one.ids)) for one in texts]
    columns = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*(one.ids for one in texts), strict=False))
    start = min(*starts, sum(1 for _ in columns))
    return [tuple(one.ids) for one in texts], start, set(starts) == {start}


def _without_closing(speller: Speller, coded: Coded, add: Mapping[str, bool]) -> Coded:
    """The tokens without special ones that some tokenizers append."""
    end = len(coded.ids) if add["add_special_tokens"] else 0
    last = end
    while end > 1 and coded.ids[end - 1] in speller.special and coded.spans[end - 1][0] == coded.spans[end - 1][1]:
        end -= 1
    return coded if end == last else Coded(coded.ids[:end], coded.spans[:end], coded.types[:end])


def fitted(
    rows: list[tuple[int, ...]],
    spare: Sequence[tuple[int, int]],
    limit: int | None,
    truncate: bool,
    example: Example,
) -> list[tuple[int, ...]]:
    """Rows within the limit; the same number of tokens is dropped for every candidate, so that all follow the same
    prompt.

    Args:
        spare: what may be dropped, in order: the start in a row, from the end if negative, and the number of tokens.

    Raises:
        DataError: the rows are too long.
    """
    longest = max(map(len, rows))
    excess = longest - (longest if limit is None else limit)
    if excess > 0 and (not truncate or excess > sum(most for _, most in spare)):
        raise too_long(example, longest, longest - excess)
    for start, most in spare:
        count = max(0, min(excess, most))
        excess -= count
        starts = [start if start >= 0 else len(row) + start for row in rows]
        rows = [row[:at] + row[at + count :] for row, at in zip(rows, starts, strict=True)]
    return rows


def leading(row: Sequence[int], special: Collection[int]) -> int:
    """The number of leading special tokens that are kept when a row is shortened: 1 or 0."""
    return 1 if row[0] in special else 0
