"""Showing what a model sees of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zofo.objectives import Generation, answer_notes
from zofo.tasks import Example, Speller, TokenizedCloze, TokenizedText, known_split, unwritten_notes
from zofo.training.config import RunConfig
from zofo.training.data_module import prepare_run


@dataclass(frozen=True)
class PreviewedExample:
    """One example as the model sees it: where it is from, its prompt, and of each candidate its text, the scored
    tokens, and whether it is the right one."""

    where: str
    prompt: str
    candidates: tuple[tuple[str, tuple[str, ...], bool], ...]


@dataclass(frozen=True)
class Preview:
    """What the model sees of a split.

    Args:
        examples: the first ones.
        count: of all examples.
        shortest, mean, longest: lengths in tokens, prompt and candidate together.
        sequences: sequences that one example takes.
        notes: what is unusual about tokens of the rows, each with the number of such rows and the first.
    """

    examples: tuple[PreviewedExample, ...]
    count: int
    shortest: int
    mean: float
    longest: int
    sequences: int
    notes: tuple[str, ...] = ()


def preview(config: RunConfig, split: str = "train", rows: int = 3, remote_code: bool = False) -> Preview:
    """Render and tokenise a split, and show the first examples."""
    chosen = known_split(split)
    prepared = prepare_run(config, remote_code, (chosen,))
    tokenizer = prepared.loaded.tokenizer
    pairs = list(zip(prepared.examples[chosen], prepared.encoded[chosen], strict=True))
    shown = [_preview_of(example, encoded, tokenizer) for example, encoded in pairs[:rows]]
    lengths = [encoded.length for _, encoded in pairs]
    sequences = max(len(prepared.scorer.collate([encoded]).row_examples) for _, encoded in pairs)
    how = prepared.scorer.generation if prepared.task.kind == "generation" else None
    notes = token_notes(tokenizer, prepared.encoded[chosen], how)
    return Preview(tuple(shown), len(pairs), min(lengths), sum(lengths) / len(lengths), max(lengths), sequences, notes)


def token_notes(tokenizer: Any, encoded: Sequence[Any], how: Generation | None = None) -> tuple[str, ...]:
    """What is unusual about the tokens of rows, with the number of such rows and the first of them; and about how
    answers end where they are generated."""
    speller = Speller(tokenizer)
    kinds = {
        "spell control tokens of the model, which are read as text": [
            one for one in encoded if speller.spells(one.example.own)
        ],
        "have a prompt whose last tokens would be others if the answer stood behind it; the prompt's own are taken, "
        "whatever the answer is (a template that ends with a word or a colon avoids this)": [
            one for one in encoded if not getattr(one, "joined", True)
        ],
    }
    unusual = (
        f"{len(rows)} of {len(encoded)} rows {what}; the first is {rows[0].example.where}"
        for what, rows in kinds.items()
        if rows
    )
    answers = answer_notes(encoded, how) if how is not None else []
    return (*unusual, *unwritten_notes(tokenizer, encoded), *answers)


def _preview_of(example: Example, encoded: Any, tokenizer: Any) -> PreviewedExample:
    if isinstance(encoded, TokenizedText):
        scored: list[list[int]] = [[] for _ in example.candidates]
        prompt = tokenizer.decode(encoded.tokens)
    elif isinstance(encoded, TokenizedCloze):
        scored, prompt = [[target] for target in encoded.targets], tokenizer.decode(encoded.tokens)
    else:
        scored = [list(row[-count:]) for row, count in zip(encoded.rows, encoded.scored, strict=True)]
        prompt = encoded.example.prompt
    candidates = tuple(
        (text, tuple(tokenizer.convert_ids_to_tokens(ids)), index in example.golds)
        for index, (text, ids) in enumerate(zip(encoded.example.candidates, scored, strict=True))
    )
    return PreviewedExample(example.where, prompt, candidates)
