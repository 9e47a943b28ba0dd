"""Text generation in batches with correct masks, until a stop text, the model's end of text, or a limit."""

from __future__ import annotations

import itertools
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from zofo.displacement import Key
from zofo.errors import ModelError
from zofo.models import bare_model, quiet_transformers
from zofo.noise import random_words
from zofo.objectives.scoring import only_attends
from zofo.tasks import TokenizedChoices, rows_note
from zofo.tasks.batches import padded
from zofo.temporary import bound, temporarily

KeepRows = Callable[[Sequence[int] | None], None]
"""Is told which of the rows of a batch the model is given from now on; None for all of them again."""


def _nobody(rows: Sequence[int] | None) -> None:
    """The default listener of `generation_rows`: rows may leave the batch."""


_KEEP: ContextVar[KeepRows | None] = ContextVar("keep_rows", default=_nobody)


def generation_rows(keep: KeepRows | None) -> AbstractContextManager[None]:
    """Context in which `keep` is called with the rows that stay in the batch of a generation; with None, none leaves.

    It is for callers that give each row of a batch something of its own, such as a direction.
    """
    return bound(_KEEP, keep)


_DRAW: ContextVar[int] = ContextVar("draw", default=0)


def drawing(number: int) -> AbstractContextManager[None]:
    """Context that sets the draw of texts at a temperature: each number draws other texts for the same prompt.

    Training uses one draw per step, so that all points of a step share it, and steps together train the expectation
    over draws. Evaluations use draw 0, and are repeatable.
    """
    return bound(_DRAW, number)


def parts_of_rows(rows: int, size: int) -> Iterator[range]:
    """Yields the rows of a batch in parts, each in a context in which the model gets these rows alone.

    Each part has `size` to twice as many rows, and at least two, since a single row is computed differently. If no row
    may leave, all rows are one part.
    """
    keep = _KEEP.get()
    count = 1 if keep is None else max(1, rows // max(2, size))
    try:
        for place in range(count):
            part = range(rows * place // count, rows * (place + 1) // count)
            if keep is not None and count > 1:
                keep(part)
            yield part
    finally:
        if keep is not None and count > 1:
            keep(None)


@dataclass(frozen=True)
class Generation:
    """How texts are generated.

    Args:
        stop: texts that end a generation; they are cut off.
        max_new_tokens: the maximum number of new tokens.
        temperature: 0 takes the most likely token (greedy); otherwise tokens are drawn from softmax(logits /
            temperature).
        seed: seed of the draws; see `drawing`.
    """

    tokenizer: Any
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 50
    temperature: float = 0.0
    seed: int = 0


class Completion(NamedTuple):
    """A generated text: its tokens, including the one that ended it, and the text read from them."""

    tokens: tuple[int, ...]
    text: str


def generate(model: Any, examples: Sequence[TokenizedChoices], how: Generation) -> list[str]:
    """Continue the prompt of each example; see `completions`.

    Returns:
        One text per example, without the prompt, the stop text, and surrounding white space. Of that, only the
        indentation of the first line is kept, if it is more than the space before a word.
    """
    return [one.text for one in completions(model, examples, how)]


def completions(model: Any, examples: Sequence[TokenizedChoices], how: Generation) -> list[Completion]:
    """Continue the prompt of each example.

    Prompts are padded on the left, with a mask and explicit positions, so a text does not depend on the other rows of
    its batch; draws depend on the seed, the prompt and `drawing`. Once half of the rows have ended, they leave the
    batch, together with their keys and values.

    Args:
        model: a causal language model of transformers, with or without adapters.
        examples: one or more; their candidates are not used.
        how: stop rules and temperature.

    Raises:
        ModelError: the model cannot generate.
    """
    if not hasattr(model, "generate") or not getattr(model, "can_generate", lambda: False)():
        raise ModelError(
            f"{type(model).__name__} cannot generate text", "choose a causal language model, with model.head=causal-lm"
        )
    prompts = [list(example.prompt) for example in examples]
    how = _with_stops_of(examples, how)
    texts, settings = _stop_texts(how), generation_settings(model, how)
    with quiet_transformers(), _without_own_settings(model), torch.no_grad():
        found = _decoded(model, prompts, how, settings, texts)
    rows = [_until(settings.eos_token_id, row) for row in found]
    said = [_cut(text, texts) for text in how.tokenizer.batch_decode(rows, skip_special_tokens=True)]
    return [Completion(tuple(tokens), text) for tokens, text in zip(found, said, strict=True)]


def _decoded(
    model: Any, prompts: Sequence[Sequence[int]], how: Generation, settings: Any, texts: Sequence[str]
) -> list[list[int]]:
    """The tokens of each text, including the one that ended it.

    A decode ends when half of its rows have ended. The next one continues with the others, from the existing keys and
    values.
    """
    start, pad, device = max(map(len, prompts)), how.tokenizer.pad_token_id, next(model.parameters()).device
    ids, mask = (tensor.to(device) for tensor in padded(prompts, pad, "left"))
    keep = _KEEP.get()
    ends = _Ends(how.tokenizer, texts, settings.eos_token_id, start, len(prompts), _lets_rows_leave(model, keep))
    settings.return_dict_in_generate = True
    found: list[list[int]] = [[] for _ in prompts]
    left = list(range(len(prompts)))  # whose the rows are
    held: dict[str, Any] = {}  # the keys and values so far
    try:
        while True:
            settings.max_new_tokens = how.max_new_tokens - (ids.shape[1] - start)
            drawn = [_Drawn(how, [prompts[row] for row in left], start)] if how.temperature > 0 else []
            made = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                stopping_criteria=[ends],
                logits_processor=drawn,
                **held,
            )
            ids = getattr(made, "sequences", made)
            for row, tokens, length in zip(left, ids[:, start:].tolist(), ends.lengths.tolist(), strict=True):
                found[row] = tokens[: length or None]
            if not ends.leave or ids.shape[1] - start >= how.max_new_tokens:
                return found
            stay = ends.drop_ended()
            left, ids, cache = [left[row] for row in stay.tolist()], ids[stay], made.past_key_values
            mask = torch.cat([mask[stay], mask.new_ones(len(stay), ids.shape[1] - mask.shape[1])], dim=1)
            cache.batch_select_indices(stay)
            held = {"past_key_values": cache}
            assert keep is not None
            keep(left)
    finally:
        if keep is not None and len(left) < len(prompts):
            keep(None)


def _lets_rows_leave(model: Any, keep: KeepRows | None) -> bool:
    """Whether rows can be removed from the keys and values of a generation.

    Not for recurrent states, nor if an adapter puts its own keys and values first.
    """
    whole = bare_model(model)
    if keep is None or not getattr(whole, "_supports_default_dynamic_cache", lambda: False)():
        return False
    prompted = any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())
    return only_attends(whole) and not whole.config.is_encoder_decoder and not prompted


def _until(ends: Sequence[int], row: Sequence[int]) -> list[int]:
    """The tokens before the first one that ends a text."""
    return list(itertools.takewhile(lambda token: token not in ends, row))


def answer_notes(encoded: Sequence[Any], how: Generation) -> list[str]:
    """Notes about reference answers that no generation can produce, so that even a perfect model would be scored as
    wrong.

    Args:
        encoded: encoded rows; those without a known answer are skipped.
        how: stop rules and number of tokens.
    """
    long, other = [], []
    for one in encoded:
        if one.example is None or not one.example.answers:
            continue
        row, own = one.rows[one.gold], _with_stops_of([one], how)
        ids = _until(_ends(None, own), row[-one.scored[one.gold] :])
        read = _cut(how.tokenizer.decode(ids, skip_special_tokens=True), _stop_texts(own))
        if unicodedata.normalize("NFC", read).strip() != unicodedata.normalize("NFC", one.example.answers[0]).strip():
            other.append(f"{one.example.where}, whose {one.example.answers[0][:80]!r} is read back as {read[:80]!r}")
        elif len(ids) > how.max_new_tokens:
            long.append(f"{one.example.where}, with {len(ids)}")
    count = sum(1 for one in encoded if one.example is not None and one.example.answers)
    most = f"an answer of more tokens than task.max_new_tokens={how.max_new_tokens}"
    kinds = {most: long, "an answer that stops or tokenizer do not let through": other}
    return [rows_note(rows, count, f"have {kind}") for kind, rows in kinds.items() if rows]


def _with_stops_of(examples: Sequence[TokenizedChoices], how: Generation) -> Generation:
    """The same settings, with the end of answers in a chat template added to the stops of the task."""
    return replace(how, stop=tuple(dict.fromkeys([*how.stop, *(stop for one in examples for stop in one.stops)])))


def _stop_texts(how: Generation) -> tuple[str, ...]:
    """The stops that are not special tokens; those end a text as tokens, and may occur in it as text."""
    special = _special_tokens(how.tokenizer)
    return tuple(stop for stop in how.stop if stop not in special)


def _special_tokens(tokenizer: Any) -> frozenset[str]:
    """The tokens that a decoded text does not show, whether the tokenizer names them or not."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return frozenset([*tokenizer.all_special_tokens, *added])


class _Ends:
    """Ends a text when it contains a stop; white space before its first word is ignored, or many would end there.

    A new token can complete a stop only at the end of a text, so a whole text is decoded only if its last tokens
    contain one. This assumes a byte or more per token, apart from a few hidden tokens and cleaned-up blanks. A stop
    with more of these is missed here. `_cut` still finds it, so the text is the same; only its tokens after the stop
    remain, which take time and enter a KL.

    If rows may leave, the decode ends once half of them have ended and at least two have not, since a single row is
    computed differently.

    Attributes:
        lengths: number of tokens of each row when it ended; 0 if it has not.
        leave: whether the decode has ended so that rows can leave.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str], tokens: Sequence[int], start: int, rows: int, may_leave: bool
    ) -> None:
        self._tokenizer, self._stop, self._tokens, self._start = tokenizer, stop, tokens, start
        self._last = 2 * max((len(one.encode()) for one in stop), default=0) + 8  # tokens, of which half are enough
        self.lengths, self._may_leave, self.leave = torch.zeros(rows, dtype=torch.int64), may_leave, False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        ended = torch.isin(input_ids[:, -1], input_ids.new_tensor(self._tokens)).cpu()
        rows = input_ids[:, self._start :]
        if self._stop:
            near = self._holding(rows[:, -self._last :])
            ended[near[self._holding(rows[near], str.lstrip)]] = True
        self.lengths[ended & (self.lengths == 0)] = rows.shape[1]
        gone = int((self.lengths > 0).sum())
        self.leave = self._may_leave and 2 * gone >= len(rows) and len(rows) - gone >= 2
        return ((self.lengths > 0) | self.leave).to(input_ids.device)

    def _holding(self, rows: torch.Tensor, read: Callable[[str], str] = str) -> torch.Tensor:
        """The indices of the rows whose decoded text contains a stop."""
        texts = map(read, self._tokenizer.batch_decode(rows, skip_special_tokens=True) if len(rows) else ())
        return torch.tensor([i for i, text in enumerate(texts) if any(one in text for one in self._stop)]).long()

    def drop_ended(self) -> torch.Tensor:
        """Remove the rows that have ended; returns the indices of the others."""
        stay = (self.lengths == 0).nonzero().flatten()
        self.lengths, self.leave = torch.zeros(len(stay), dtype=torch.int64), False
        return stay


class _Drawn:
    """Turns greedy decoding into sampling: argmax of logits / temperature + Gumbel noise is a sample of the softmax.

    The noise depends on the seed, the prompt, the position in the text and the current `drawing`, not on other rows or
    any generator.
    """

    def __init__(self, how: Generation, prompts: Sequence[Sequence[int]], start: int) -> None:
        self._how, self._start = how, start
        draw = _DRAW.get()
        self._indices = [zlib.crc32(" ".join(map(str, prompt)).encode(), draw) for prompt in prompts]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step, count = input_ids.shape[1] - self._start, scores.shape[1]
        keys = [Key(self._how.seed, step, index) for index in self._indices]
        drawn = torch.stack([random_words(key, "generation", 0, count, scores.device) for key in keys])
        uniform = (drawn.double() / 2.0**64 + 0.5).clamp(1e-12, 1 - 1e-12)
        return scores / self._how.temperature - (-uniform.log()).log().to(scores.dtype)


def generation_settings(model: Any, how: Generation) -> Any:
    """transformers' generation config for these texts: of the model's own, only the tokens that end a text."""
    import transformers

    return transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=how.max_new_tokens,
        use_cache=True,
        pad_token_id=how.tokenizer.pad_token_id,
        eos_token_id=_ends(model, how),
    )


def _ends(model: Any, how: Generation) -> list[int]:
    """The tokens that end a text, according to the model and the tokenizer, and stops that are tokens."""
    tokenizer = how.tokenizer
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    special = [tokenizer.convert_tokens_to_ids(stop) for stop in how.stop if stop in _special_tokens(tokenizer)]
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, *special]
    return sorted({end for end in ends if end is not None})


def _cut(text: str, stop: Sequence[str]) -> str:
    """A text up to its first stop, without leading white space, except for the indentation of its first line."""
    said = text.lstrip()
    before = text[: len(text) - len(said)].rpartition("\n")[2]
    ends = [place for place in (said.find(one) for one in stop) if place >= 0]
    said = said[: min(ends, default=len(said))].rstrip()
    return said if before in ("", " ") or not said else before + said


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Context in which the model has no generation config, from which transformers would fill in missing values."""
    import transformers

    with ExitStack() as changed:
        for holder in {id(one): one for one in (model, bare_model(model))}.values():
            changed.enter_context(temporarily(holder, generation_config=transformers.GenerationConfig()))
        yield
