"""From text to tokens, and where the candidate begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2

from zofo.errors import DataError, ModelError
from zofo.tasks.example import Example


@dataclass(frozen=True)
class Encoded:
    """An example in tokens.

    Args:
        rows: for each candidate, the tokens of prompt and candidate together.
        scored: for each candidate, how many tokens at the end of its row belong to it.
        gold: index of the candidate that is trained on.
        example: as text.
    """

    rows: tuple[tuple[int, ...], ...]
    scored: tuple[int, ...]
    gold: int
    example: Example | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the candidate that is trained on."""
        row = self.rows[self.gold]
        return row[: len(row) - self.scored[self.gold]]

    def right_only(self) -> Encoded:
        """The same with no candidate but the one that is trained on."""
        return replace(self, rows=(self.rows[self.gold],), scored=(self.scored[self.gold],), gold=0)

    def whole(self) -> Encoded:
        """As `right_only`, with every token scored that has one before it."""
        row = self.rows[self.gold]
        return replace(self, rows=(row,), scored=(len(row) - 1,), gold=0)


def encode(
    tokenizer: Any, examples: Sequence[Example], limit: int | None = None, truncate: bool = False
) -> list[Encoded]:
    """Tokenise examples for a causal language model.

    The text of prompt and candidate is tokenised together. Its candidate tokens are those from the first whose span
    ends after the prompt, found by character offsets: a token merged across the boundary belongs to the candidate, and
    lengths are never subtracted. A candidate with nothing before it is predicted from the token that begins a text, or
    from the one that ends texts where a model has no other.

    Args:
        tokenizer: a fast tokenizer.
        examples: what to tokenise.
        limit: the longest row in tokens; None for no limit.
        truncate: drop the oldest tokens of a longer prompt, keeping a leading special token, instead of refusing it.

    Raises:
        DataError: a text longer than `limit`, candidates of one example that have the same tokens, or a candidate that
            has no token, or none before it to be predicted from; turns that the chat template refuses.
        ModelError: a chat, and a tokenizer without a chat template.
    """
    if not examples:
        return []
    chat = bool(examples[0].messages)
    examples = [_as_text(tokenizer, example) for example in examples]
    texts = [example.prompt + candidate for example in examples for candidate in example.candidates]
    coded = tokenizer(
        texts, return_offsets_mapping=True, return_attention_mask=False, add_special_tokens=not chat, verbose=False
    )
    special = set(tokenizer.all_special_ids)
    pairs = iter(zip(coded["input_ids"], coded["offset_mapping"], strict=True))
    encoded = []
    for example in examples:
        rows: list[tuple[int, ...]] = []
        starts: list[int] = []
        for candidate in example.candidates:
            ids, spans = next(pairs)
            if not chat:
                ids, spans = _without_closing(ids, spans, special)
            start = next((i for i, span in enumerate(spans) if span[1] > len(example.prompt)), len(spans))
            if not candidate:  # nothing to score: the end of a text holds its place
                ids, start = [*ids, _end_of_text(tokenizer)], len(ids)
            rows.append(tuple(ids))
            starts.append(start)
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if min(starts) == 0 and first is not None:
            rows, starts = [(first, *row) for row in rows], [start + 1 for start in starts]
        for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
            _refuse_unscorable(example, number, start, len(row))
        scored = [len(row) - start for row, start in zip(rows, starts, strict=True)]
        rows = _fitted(rows, min(starts), limit, truncate, special, example)
        _refuse_clash(example, rows)
        encoded.append(Encoded(tuple(rows), tuple(scored), example.gold, example))
    return encoded


def _as_text(tokenizer: Any, example: Example) -> Example:
    """A chat in the words of the model's template, and candidates with the model's own end of text if it follows."""
    if not example.messages:
        if not example.ends:
            return example
        return replace(example, candidates=tuple(text + (tokenizer.eos_token or "") for text in example.candidates))
    if getattr(tokenizer, "chat_template", None) is None:
        raise ModelError(
            f"{example.where}: a chat, but the model's tokenizer has no chat template",
            "choose a model that was made for chats, or give columns prompt and completion",
        )
    turns = [{"role": role, "content": content} for role, content in example.messages]
    prompt = _in_template(tokenizer, turns, example.where, add_generation_prompt=True)
    candidates = []
    for answer in example.candidates:
        answered = [*turns, {"role": "assistant", "content": answer}]
        whole = _in_template(tokenizer, answered, example.where, add_generation_prompt=False)
        follows = whole[len(prompt) :].rstrip() if whole.startswith(prompt) else answer + (tokenizer.eos_token or "")
        candidates.append(follows if answer else "")
    return replace(example, prompt=prompt, candidates=tuple(candidates))


def _in_template(tokenizer: Any, turns: list[dict[str, str]], where: str, add_generation_prompt: bool) -> str:
    """A chat as the model's own template writes it; templates refuse turns that their models do not know."""
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except jinja2.TemplateError as error:
        raise DataError(
            f"{where}: the model's chat template refuses the turns: {error}", "mend the row, or choose another model"
        ) from error
    return str(text)


def _end_of_text(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id)


def _without_closing(
    ids: list[int], spans: list[tuple[int, int]], special: set[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Without the special tokens that some tokenizers append."""
    end = len(ids)
    while end > 1 and ids[end - 1] in special and spans[end - 1][0] == spans[end - 1][1]:
        end -= 1
    return ids[:end], spans[:end]


def _fitted(
    rows: list[tuple[int, ...]], prompt: int, limit: int | None, truncate: bool, special: set[int], example: Example
) -> list[tuple[int, ...]]:
    """Rows within the limit; the same tokens are dropped for every candidate, so that all follow the same prompt."""
    longest = max(map(len, rows))
    if limit is None or longest <= limit:
        return rows
    head = 1 if rows[0][0] in special else 0
    excess = longest - limit
    if truncate and head + excess < prompt:
        return [row[:head] + row[head + excess :] for row in rows]
    raise too_long(example, longest, limit)


def too_long(example: Example, tokens: int, limit: int) -> DataError:
    """What is said of a text that does not fit."""
    return DataError(
        f"{example.where or repr(example.prompt[:40])}: the text has {tokens} tokens with its candidate, "
        f"but the limit is {limit}",
        "shorten the row, or drop the oldest tokens of long prompts with task.truncate=left",
    )


def _refuse_unscorable(example: Example, candidate: int, start: int, end: int) -> None:
    if 0 < start < end:
        return
    problem = "has no token of its own" if start == end else "has no token before it to be predicted from"
    raise DataError(
        f"{example.where or repr(example.prompt[:40])}: the candidate {example.candidates[candidate]!r} {problem}",
        "let the template begin with a word, and the verbalizer be a word after a space",
    )


def _refuse_clash(example: Example, rows: Sequence[tuple[int, ...]]) -> None:
    first: dict[tuple[int, ...], int] = {}
    for index, row in enumerate(rows):
        if row in first:
            one, two = example.candidates[first[row]], example.candidates[index]
            raise DataError(
                f"{example.where}: the candidates {one!r} and {two!r} have the same tokens and the same score",
                "choose other verbalizers in a copy of the task file",
            )
        first[row] = index
