"""Free text: generated in batches with correct masks, until a stop text, the model's end of text, or a limit."""

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
    """Rows may leave, and nobody asks which."""


_KEEP: ContextVar[KeepRows | None] = ContextVar("keep_rows", default=_nobody)


def generation_rows(keep: KeepRows | None) -> AbstractContextManager[None]:
    """While it is open, `keep` is told of rows that leave the batch of a generation; with None, none leaves.

    It is for whoever gives the rows of a batch something of their own, such as a direction.
    """
    return bound(_KEEP, keep)


_DRAW: ContextVar[int] = ContextVar("draw", default=0)


def drawing(number: int) -> AbstractContextManager[None]:
    """While it is open, texts at a temperature are those of this draw: another number draws others of the same prompt.

    Training has a draw for each step, so that all points of a step are asked along one, and an expectation over draws
    is trained over steps; evaluations have draw 0, and can be repeated.
    """
    return bound(_DRAW, number)


def parts_of_rows(rows: int, size: int) -> Iterator[range]:
    """The rows of a batch, one part after the other: while it is looked at, the model can be given these rows alone.

    There are `size` rows or up to twice as many in each, and two or more, since one alone would have another form. All
    rows are one part where none can leave.
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
        stop: texts that end one; they are cut off.
        max_new_tokens: after which it ends in any case.
        temperature: 0 takes the likeliest token (greedy); more draws from softmax(logits / temperature).
        seed: of the draws; see `drawing`.
    """

    tokenizer: Any
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 50
    temperature: float = 0.0
    seed: int = 0


class Completion(NamedTuple):
    """A text that was generated: its tokens, with the one that ended it, and what is read of them."""

    tokens: tuple[int, ...]
    text: str


def generate(model: Any, examples: Sequence[TokenizedChoices], how: Generation) -> list[str]:
    """Continue the prompt of each example; see `completions`.

    Returns:
        One text for each example, without the prompt, what ended it, and white space around it: only the indentation
        of its first line is kept, where that is more than the space that a word begins with.
    """
    return [one.text for one in completions(model, examples, how)]


def completions(model: Any, examples: Sequence[TokenizedChoices], how: Generation) -> list[Completion]:
    """Continue the prompt of each example.

    Prompts are padded on the left, with a mask and explicit positions, so that a text does not depend on what shares
    its batch; draws depend on the seed, the prompt and `drawing`. Rows that have ended leave the batch once they are
    half of it, and their keys and values with them.

    Args:
        model: a causal language model of transformers, with or without adapters.
        examples: one or more; their candidates are not read.
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
    """The tokens of each text, with the one that ended it. A decode ends when half of its rows have, and the next goes
    on with the others, from the keys and values there are."""
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
    """Whether the keys and values of some rows can be taken out of those that a model's generation gives back: not of
    states of another form, nor where an adapter puts its own before them."""
    whole = bare_model(model)
    if keep is None or not getattr(whole, "_supports_default_dynamic_cache", lambda: False)():
        return False
    prompted = any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())
    return only_attends(whole) and not whole.config.is_encoder_decoder and not prompted


def _until(ends: Sequence[int], row: Sequence[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    return list(itertools.takewhile(lambda token: token not in ends, row))


def answer_notes(encoded: Sequence[Any], how: Generation) -> list[str]:
    """Answers that no generation can give, so that even a perfect model would be scored as wrong; a line for each kind.

    Args:
        encoded: rows in tokens; those whose answer is not known are passed over.
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
    """The same with what ends the answers of a chat template, beside the stops of the task."""
    return replace(how, stop=tuple(dict.fromkeys([*how.stop, *(stop for one in examples for stop in one.stops)])))


def _stop_texts(how: Generation) -> tuple[str, ...]:
    """The stops that are no special tokens: those end a text as tokens, and may be spelt in it."""
    special = _special_tokens(how.tokenizer)
    return tuple(stop for stop in how.stop if stop not in special)


def _special_tokens(tokenizer: Any) -> frozenset[str]:
    """The tokens that a decoded text does not show, named by the tokenizer or not."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return frozenset([*tokenizer.all_special_tokens, *added])


class _Ends:
    """Ends a text when it holds a stop; white space before its first word is none, or many would end before it.

    A new token can only make a stop at the end of a text, so that whole texts are read where their last tokens hold
    one; each token is a byte or more of it, but for some that are not shown, and blanks that are cleaned up. A stop
    with more of these in it is not seen: its text is the same, since `_cut` reads the whole of it, and only has more
    tokens after the stop, which take time and which a KL reads, too.

    Where rows may leave, all end once half of them have, and two or more have not: one row alone would have another
    form.

    Attributes:
        lengths: how many tokens each row had when it ended; 0 where it has not.
        leave: whether the decode has ended for that.
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
        """The places of the rows whose text, as it is read, holds a stop."""
        texts = map(read, self._tokenizer.batch_decode(rows, skip_special_tokens=True) if len(rows) else ())
        return torch.tensor([i for i, text in enumerate(texts) if any(one in text for one in self._stop)]).long()

    def drop_ended(self) -> torch.Tensor:
        """The places of the rows that have not ended, which are all that there are from now on."""
        stay = (self.lengths == 0).nonzero().flatten()
        self.lengths, self.leave = torch.zeros(len(stay), dtype=torch.int64), False
        return stay


class _Drawn:
    """Makes the likeliest token a draw: argmax of logits / temperature + Gumbel noise is a sample of the softmax.

    The noise depends on the seed, the prompt, the place in the text and the draw that is open (`drawing`), whatever
    shares the batch, and on no generator.
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
    """transformers' settings for these texts: of the model's own, only the tokens that end a text."""
    import transformers

    return transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=how.max_new_tokens,
        use_cache=True,
        pad_token_id=how.tokenizer.pad_token_id,
        eos_token_id=_ends(model, how),
    )


def _ends(model: Any, how: Generation) -> list[int]:
    """The tokens that end a text, by the model's own account and the tokenizer's; and stops that are no text."""
    tokenizer = how.tokenizer
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    special = [tokenizer.convert_tokens_to_ids(stop) for stop in how.stop if stop in _special_tokens(tokenizer)]
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, *special]
    return sorted({end for end in ends if end is not None})


def _cut(text: str, stop: Sequence[str]) -> str:
    """A text up to its first stop, wherever it began with white space; of that, the indentation of a line is kept."""
    said = text.lstrip()
    before = text[: len(text) - len(said)].rpartition("\n")[2]
    ends = [place for place in (said.find(one) for one in stop) if place >= 0]
    said = said[: min(ends, default=len(said))].rstrip()
    return said if before in ("", " ") or not said else before + said


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """While it is open, the model brings no settings: transformers would take from them whatever is left out."""
    import transformers

    with ExitStack() as changed:
        for holder in {id(one): one for one in (model, bare_model(model))}.values():
            changed.enter_context(temporarily(holder, generation_config=transformers.GenerationConfig()))
        yield
