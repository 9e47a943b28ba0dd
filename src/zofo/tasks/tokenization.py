"""Tokenisation for causal language models, and the place where the candidate begins; of a channel, the prompt."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zofo.errors import DataError, ModelError
from zofo.tasks.chats import write_chat
from zofo.tasks.control_tokens import Asked, Coded, Speller, Spelt
from zofo.tasks.readers.row import Example


@dataclass(frozen=True)
class TokenizedChoices:
    """An example in tokens.

    Args:
        rows: for each candidate, the tokens of prompt and candidate together.
        scored: for each candidate, how many tokens at the end of its row belong to it.
        gold: index of the candidate that is trained on.
        stops: texts and tokens that end its answer, beside those of the task.
        joined: whether prompt and candidate have the tokens that they have as one text.
        unwritten: for a chat, content that the template drops or changes.
    """

    rows: tuple[tuple[int, ...], ...]
    scored: tuple[int, ...]
    gold: int
    example: Example | None = None
    stops: tuple[str, ...] = ()
    joined: bool = True
    unwritten: tuple[str, ...] = ()

    @property
    def ids(self) -> set[int]:
        """All of its tokens."""
        return set(itertools.chain(*self.rows))

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the candidate that is trained on."""
        row = self.rows[self.gold]
        return row[: len(row) - self.scored[self.gold]]

    def gold_only(self) -> TokenizedChoices:
        """The example with only the candidate that is trained on."""
        return replace(self, rows=(self.rows[self.gold],), scored=(self.scored[self.gold],), gold=0)

    def full_sequence(self) -> TokenizedChoices:
        """As `gold_only`, with every token scored but the first."""
        row = self.rows[self.gold]
        return replace(self, rows=(row,), scored=(len(row) - 1,), gold=0)


def encode(
    tokenizer: Any, examples: Sequence[Example], limit: int | None = None, truncate: bool = False
) -> list[TokenizedChoices]:
    """Tokenise examples for a causal language model.

    The prompt does not depend on what is right. With one candidate, the answer of a generation, its tokens are those
    of the prompt alone, and the answer's follow. With several, each row is tokenised as one text, and all are scored
    from the same place: the last before the first token of any candidate, found by character offsets, up to which
    they have the same tokens. Lengths are never subtracted. A candidate with nothing before it is predicted from the
    token that begins a text, or from the one that ends texts where a model has no other.

    Args:
        limit: the longest row in tokens; None for no limit.
        truncate: drop the oldest tokens of a longer prompt, keeping a leading special token, instead of refusing it.

    Raises:
        DataError: a text longer than `limit`, candidates of one example that have the same tokens, or a candidate that
            has no token, or none before it to be predicted from; turns that the chat template refuses or changes.
        ModelError: a chat, and a tokenizer without a chat template or with one that cannot be trained with.
    """
    if not examples:
        return []
    speller = Speller(tokenizer)
    asked = [_asked(speller, example) for example in examples]
    _check_reasoning_prompts(asked)
    add = {"add_special_tokens": not examples[0].messages}
    wholes = iter(coded(speller, [_spelt(one, one.prompt + text) for one in asked for text in one.candidates], **add))
    alone = iter(coded(speller, [_spelt(one, one.prompt) for one in asked if len(one.candidates) == 1], **add))
    end = tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    encoded = []
    for one in asked:
        texts = [_without_closing(speller, next(wholes), add) for _ in one.candidates]
        if len(texts) == 1:
            prompt = _without_closing(speller, next(alone), add).ids
            rows, start, joined = _answered(speller, one, prompt, texts[0], end)
        else:
            rows, start, joined = _from_one_place(texts, len(one.prompt))
        if start == 0 and first is not None:
            rows, start = [(first, *row) for row in rows], 1
        for candidate, row in enumerate(rows):
            _check_scorable(one.example, candidate, start, len(row))
        scored = tuple(len(row) - start for row in rows)
        head = leading(rows[0], speller.special)
        rows = fitted(rows, [(head, start - 1 - head)], limit, truncate, one.example)
        _check_distinct(one.example, rows)
        gold = one.example.gold
        encoded.append(TokenizedChoices(tuple(rows), scored, gold, one.example, one.stops, joined, one.unwritten))
    return encoded


def coded(speller: Speller, texts: Sequence[Spelt], spans: bool = True, **options: Any) -> list[Coded]:
    """Tokenise texts, with the control tokens that rows spell left as text.

    Args:
        texts: all by themselves, or all pairs.
        spans: whether they are asked for; without, they are empty.

    Raises:
        DataError: the tokenizer makes a control token of a text even where it is spelt as text.
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
    """An example as it is tokenised: a chat as its template writes it, candidates with their end of text."""
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


def _check_reasoning_prompts(asked: Sequence[Asked]) -> None:
    """Raises DataError for chats with and without reasoning, if the template gives them different prompts."""
    with_block = [one.example for one in asked if one.block]
    first = {example.thinks: example for example in reversed(with_block)}
    if len(first) > 1:
        raise DataError(
            f"{first[True].where}: the answer holds what was thought before it, and that of {first[False].where} does "
            "not; the model's chat template asks for them in different words, so that the prompt would tell",
            "give all answers their reasoning_content, or none",
        )


def _answered(
    speller: Speller, asked: Asked, prompt: list[int], whole: Coded, end: int
) -> tuple[list[tuple[int, ...]], int, bool]:
    """The row of a prompt with its only candidate, where that begins, and whether both are tokenised as one text.

    Where one text would have other tokens than the prompt, the candidate's are those after a text that it does not
    merge with.

    Raises:
        DataError: it merges with every one.
    """
    candidate = asked.candidates[0]
    if not candidate:  # nothing to score: the end of a text holds its place
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
    """The rows of several candidates, the place that all are scored from, and whether each begins there."""
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
    """Rows within the limit; as many tokens are dropped for every candidate, so that all follow the same prompt.

    Args:
        spare: what may be dropped, the first before the next: where it begins in a row, from the end if that is
            negative, and how many tokens it has.

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
    """How many special tokens a row begins with that are kept where it is shortened: 1 or 0."""
    return 1 if row[0] in special else 0


def too_long(example: Example, tokens: int, limit: int) -> DataError:
    """The error for a text that is too long."""
    return DataError(
        f"{example.where or repr(example.prompt[:40])}: the text has {tokens} tokens with its candidate, "
        f"but the limit is {limit}",
        "shorten the row, or drop the oldest tokens of long prompts with task.truncate=left",
    )


def _check_scorable(example: Example, candidate: int, start: int, end: int) -> None:
    if 0 < start < end:
        return
    problem = "has no token of its own" if start == end else "has no token before it to be predicted from"
    raise DataError(
        f"{example.where or repr(example.prompt[:40])}: the candidate {example.candidates[candidate]!r} {problem}",
        "let the template begin with a word, and the verbalizer be a word after a space",
    )


def _check_distinct(example: Example, rows: Sequence[tuple[int, ...]]) -> None:
    first: dict[tuple[int, ...], int] = {}
    for index, row in enumerate(rows):
        if row in first:
            one, two = example.candidates[first[row]], example.candidates[index]
            raise DataError(
                f"{example.where}: the candidates {one!r} and {two!r} have the same tokens and the same score",
                "choose other verbalizers in a copy of the task file",
            )
        first[row] = index


def in_channel(example: Example) -> str:
    """A solved example with its candidate before its prompt."""
    return f"{_candidate(example, example.gold)}{example.prompt.strip()}"


def _candidate(example: Example, number: int) -> str:
    return f"{example.candidates[number].strip()}\n"


def encode_channel(
    tokenizer: Any, examples: Sequence[Example], limit: int | None = None, truncate: bool = False
) -> list[TokenizedChoices]:
    """Tokenise examples so that the score of a candidate is that of the prompt after it.

    score[c] = (1 / n) sum over the n tokens of the prompt of log p(token | demonstrations, c, tokens before it).

    Every candidate is followed by the same tokens, those of the prompt, so that means and sums rank alike.

    Args:
        truncate: of longer rows, drop the oldest tokens: of the demonstrations, and then of the prompt.

    Raises:
        DataError: a text longer than `limit`, a chat, or one without candidates to choose from.

    Source: Min, Lewis, Hajishirzi, Zettlemoyer (2022), "Noisy Channel Language Model Prompting for Few-Shot Text
    Classification".
    """
    if not examples:
        return []
    flat: list[Example] = []
    for example in examples:
        of_several = bool(example.task)  # which one may be in free words
        if example.messages or len(example.candidates) < 2 and not of_several:
            raise DataError(
                f"{example.where}: task.scoring=channel scores the prompt after each candidate, but there are no "
                "candidates to choose from",
                "set task.scoring=mean, or choose a classification or multiple-choice task",
            )
        prompt = example.prompt.strip()
        flat += [
            Example(example.before + _candidate(example, number), (prompt,), (0,), where=example.where, own=example.own)
            for number in range(len(example.candidates))
        ]
    before = [one.before for one in examples]
    alone = tokenizer(before, add_special_tokens=False, return_attention_mask=False, verbose=False)
    heads = iter([len(ids) for ids in alone["input_ids"]])
    flat_rows = iter(encode(tokenizer, flat))
    special = set(tokenizer.all_special_ids)
    encoded = []
    for example in examples:
        parts = [next(flat_rows) for _ in example.candidates]
        rows, scored = [part.rows[0] for part in parts], min(part.scored[0] for part in parts)
        demonstrations, longest = next(heads), max(map(len, rows))
        spare = [(leading(rows[0], special), demonstrations), (-scored, scored - 1)]  # of the prompt, its oldest tokens
        rows = fitted(rows, spare, limit, truncate, example)
        scored -= max(0, longest - max(map(len, rows)) - demonstrations)
        encoded.append(TokenizedChoices(tuple(rows), (scored,) * len(rows), example.gold, example))
    return encoded
