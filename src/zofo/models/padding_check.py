"""Small forwards that check whether a model's scores of a row depend on other rows in the batch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from zofo.errors import ModelError, first_line, raise_if_out_of_memory
from zofo.models.heads import Head, takes

_LENGTH, _MORE, _ATTEMPTS = 5, 3, 3
_TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 3e-2}  # of the relative difference; for other types:
_TOLERANCE = 3e-4
_HINT = "choose a causal language model that takes positions, such as OPT, GPT-2, Llama, Qwen or SmolLM2"
_ENCODER_HINT = "choose a model that leaves padding out, such as BERT, RoBERTa, DistilBERT or ModernBERT"
# keys of a configuration whose numbers may be a count of tokens
_A_LENGTH = re.compile(
    r"position|length|len$|seq|window|chunk|block|topk|local|context|distance|capacity|floor|compress"
)
_NO_LENGTH = re.compile(r"layers|num_blocks|num_local|size_feed")
_ROUNDINGS = 8  # allowed multiple of the effect of padding alone on a score, far from any such number


@torch.no_grad()
def check_fit_for_scoring(model: Any, pad: int, name: str) -> None:
    """Refuse a model whose logits of a token depend on later tokens, or on padding on the left.

    One forward has a row of five tokens followed by three more, and a row of three masked padding tokens followed by
    the same five; positions are those of the tokens, if the model accepts positions. The logits of the fifth token must
    agree. Rounding can change the choice of a router, so a model is refused only if several choices of tokens disagree.

    Raises ModelError if they do not, or the model cannot be run; the message names the architecture.
    """
    shown = f"{name!r} is a {type(model).__name__}"
    try:
        with torch.random.fork_rng(devices=[]):  # some models hash at random
            if _agrees(model, pad, padding=_MORE):
                return
            ahead = not _agrees(model, pad, padding=0)
    except Exception as error:  # a model's forward can raise anything
        raise_if_out_of_memory(error)
        raise ModelError(f"{shown}, which cannot score a padded row: {first_line(error)}", _HINT) from error
    if ahead:
        raise ModelError(
            f"{shown}, whose tokens see those after them: it is no causal language model",
            "set model.head=masked-lm or model.head=classification",
        )
    raise ModelError(f"{shown}, whose scores change when a row is padded on the left", _HINT)


@torch.no_grad()
def check_mixed_lengths(
    model: Any, pad: int, name: str, head: Head, rows: Collection[Sequence[int]], longest: int
) -> None:
    """Refuse rows for which a long row changes the scores of a short one in the same batch.

    The causes are rope factors that depend on the longest row, sparse or chunked attention, and experts of limited
    capacity, each beyond a number of tokens in the model's configuration. The shortest row, and the shortest row beyond
    each such number, are scored alone, beside a row just longer than each such number, and beside the longest. A model
    without such a number below `longest` is not tested, unless rows are padded on the right; then a few more tokens are
    used.

    Args:
        rows: the tokens of each row that may be in a batch.
        longest: tokens of the longest row, including virtual and generated ones.

    Raises:
        ModelError: there are such rows, or their forward fails; the message names the keys of the configuration and the
            longest usable row.
    """
    numbers = {value: key for key, value in _lengths(model.config.to_dict()) if _LENGTH + _MORE < value < longest}
    if not numbers and head == "causal-lm":  # whose padding was tried when it was loaded
        return
    own = sorted(set(map(len, rows)))
    shortest = {next((length for length in own if length > number), longest) for number in (0, *numbers)}
    for length in sorted(shortest - {longest}):
        _check_beside_longer(model, pad, name, head, [row for row in rows if len(row) >= length], longest, numbers)


def _check_beside_longer(
    model: Any,
    pad: int,
    name: str,
    head: Head,
    rows: Collection[Sequence[int]],
    longest: int,
    numbers: Mapping[int, str],
) -> None:
    """Refuse rows if the shortest gets other scores beside a longer one; `numbers` are token counts with their keys."""
    shortest = min(map(len, rows))
    ahead = [number for number in numbers if number >= shortest]
    near = min(shortest + _MORE, longest, *ahead)
    lengths = sorted({number + 1 for number in ahead} | {longest}) if numbers else []
    shown = f"{name!r} is a {type(model).__name__}"
    hint = _HINT if head == "causal-lm" else _ENCODER_HINT
    probe = _Neighbours(model, pad, head, rows)
    try:
        with torch.random.fork_rng(devices=[]):
            usable = probe.longest_usable(shortest, near, lengths)
    except Exception as error:  # a model's forward can raise anything
        raise_if_out_of_memory(error)
        raise ModelError(f"{shown}, which cannot score a padded row: {first_line(error)}", hint) from error
    if usable is None:
        return
    if usable == 0:
        raise ModelError(f"{shown}, whose scores of a row of {shortest} tokens depend on rows scored before", hint)
    if usable == shortest:
        side = "left" if head == "causal-lm" else "right"
        below = max((number for number in numbers if number < shortest), default=None)
        if below is not None:
            hint = f"set task.max_length={below} ({numbers[below]} in its configuration), or {hint}"
        raise ModelError(f"{shown}, whose scores change when a row of {shortest} tokens is padded on the {side}", hint)
    # where a change begins little by little, a probe finds it somewhat later
    usable = max((number for number in ahead if usable - usable // 8 <= number <= usable), default=usable)
    keys = f" ({numbers[usable]}={usable} in its configuration)" if usable in numbers else ""
    raise ModelError(
        f"{shown}, whose scores of a row of {shortest} tokens change when one of more than {usable} shares its batch"
        f"{keys}, and there is one of {longest}, counting those that are generated",
        f"set task.max_length={usable}; task.truncate=left shortens longer prompts",
    )


class _Neighbours:
    """Scores of the shortest rows, alone and beside a longer one."""

    def __init__(self, model: Any, pad: int, head: Head, rows: Collection[Sequence[int]]) -> None:
        self._model, self._pad, self._head = model, pad, head
        shortest = min(map(len, rows))
        self._short = [list(row[-shortest:]) for row in sorted(rows, key=len)[:_ATTEMPTS]]
        self._long = max(rows, key=len)

    def longest_usable(self, shortest: int, near: int, lengths: Sequence[int]) -> int | None:
        """The number of tokens of the longest row that does not change a short one.

        Returns:
            None if no row of `lengths` and `near` changes it; 0 if it depends on what was scored before.
        """
        most = _TOLERANCES.get(self._model.dtype, _TOLERANCE)
        least = 1e-5 if self._model.dtype == torch.float32 else 2 * torch.finfo(self._model.dtype).eps
        first = self._once(self._short[0], lengths[-1]) if lengths else 0.0  # before any short row was scored
        rounding = self._apart(near, least)
        if rounding > most:
            return shortest
        limit = min(max(least, _ROUNDINGS * rounding), most)
        if first > limit and self._once(self._short[0], lengths[-1]) <= limit:
            return 0
        usable = shortest
        for length in lengths:
            if self._apart(length, limit) > limit:
                while length - usable > 1:
                    middle = (usable + length) // 2
                    usable, length = (middle, length) if self._apart(middle, limit) <= limit else (usable, middle)
                return usable
            usable = length
        return None

    def _apart(self, length: int, limit: float) -> float:
        """The largest difference between scores alone and beside a row of `length` tokens, until a row is within the
        limit.

        Rounding can change the choice of a router, and often does in half precision: there the row with the smallest
        difference counts, otherwise the median.
        """
        found: list[float] = []
        enough = 2 if self._model.dtype == torch.float32 and len(self._short) > 1 else 1
        for row in self._short:
            found.append(self._once(row, length))
            if sum(apart <= limit for apart in found) == enough:
                break
        return sorted(found)[enough - 1]

    def _once(self, row: Sequence[int], length: int) -> float:
        """The difference for one row. A few tokens reset what a model remembers of its longest row."""
        long = (list(self._long) * (length // len(self._long) + 1))[-length:]
        beside = self._scores([row, long])
        self._scores([row[-_LENGTH:]])
        return _distance(self._scores([row]), beside)

    def _scores(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits from which the first row is scored."""
        tokens = len(rows[0])
        if self._head == "causal-lm":
            return _logits(self._model, rows, self._pad, keep=min(tokens, _MORE))[0]
        logits = _logits(self._model, rows, self._pad, right=True)[0]
        return logits[:tokens] if self._head == "masked-lm" else logits


def _lengths(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, int]]:
    """Values in a configuration that may be numbers of tokens, with their keys; nested keys have a prefix."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _lengths(value, f"{above}{key}.")
        elif _A_LENGTH.search(f"{above}{key}") and not _NO_LENGTH.search(f"{key}"):
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if type(number) is int:
                    yield f"{above}{key}", number


def _agrees(model: Any, pad: int, padding: int) -> bool:
    """Whether a row scores the same before other tokens as after padding; or without padding, before two sets of
    tokens."""
    size, tokens = model.config.get_text_config().vocab_size, _LENGTH + 2 * _MORE
    spread = [(2 * i + 1) * size // (2 * tokens * _ATTEMPTS + 2) for i in range(tokens * _ATTEMPTS + 1)]
    ids = [token for token in spread if token != pad]  # from all over the vocabulary: its ends are often special
    ids += ids  # a tiny vocabulary may have given the padding token several times
    for attempt in range(_ATTEMPTS):
        mine = ids[attempt::_ATTEMPTS]
        row, more, others = mine[:_LENGTH], mine[_LENGTH : _LENGTH + _MORE], mine[_LENGTH + _MORE :][:_MORE]
        logits = _logits(model, [row + more, row if padding else row + others], pad)
        apart = _distance(logits[0, _LENGTH - 1], logits[1, _LENGTH - 1 + padding])
        if apart <= _TOLERANCES.get(model.dtype, _TOLERANCE):
            return True
    return False


def _logits(
    model: Any, rows: Sequence[Sequence[int]], pad: int, right: bool = False, keep: int | None = None
) -> torch.Tensor:
    """The logits of the last `keep` positions of rows padded on the left, if the model takes positions, or on the
    right."""
    width = max(map(len, rows))
    padding = [width - len(row) for row in rows]
    both = list(zip(rows, padding, strict=True))
    input_ids = torch.tensor([[*row, *[pad] * n] if right else [*[pad] * n, *row] for row, n in both])
    mask = torch.tensor([[1] * len(row) + [0] * n if right else [0] * n + [1] * len(row) for row, n in both])
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
    if not right:
        inputs["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in inputs.items() if takes(model, key)}
    if keep and takes(model, "logits_to_keep"):
        inputs["logits_to_keep"] = keep
    logits: torch.Tensor = model(**inputs).logits.float()
    return logits[:, -keep:] if keep else logits


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference of logits, relative to their spread over the vocabulary."""
    if not first.isfinite().all():  # a forward that overflows says so itself, where a loss is asked for
        return 0.0
    # what is equal for all tokens is taken off, since no probability depends on it
    difference = second - first - (second - first).mean(dim=-1, keepdim=True)
    centred = first - first.mean(dim=-1, keepdim=True)
    apart = difference.norm(dim=-1) / centred.norm(dim=-1).clamp(min=1e-30)
    return float(apart.nan_to_num(nan=torch.inf).max())
