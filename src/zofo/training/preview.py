"""Showing what a model sees of a task."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zofo.tasks import EncodedMask, EncodedText, Example, known_split
from zofo.training.config import RunConfig
from zofo.training.material import load_material


@dataclass(frozen=True)
class PreviewedExample:
    """One example as the model sees it.

    Args:
        where: file and line, or source and row.
        prompt: the rendered prompt.
        candidates: text, scored tokens, and whether it is the right one.
    """

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
    """

    examples: tuple[PreviewedExample, ...]
    count: int
    shortest: int
    mean: float
    longest: int
    sequences: int

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def preview(config: RunConfig, split: str = "train", rows: int = 3, remote_code: bool = False) -> Preview:
    """Render and tokenise a split, and show the first examples."""
    chosen = known_split(split)
    material = load_material(config, remote_code, (chosen,))
    tokenizer = material.loaded.tokenizer
    pairs = list(zip(material.examples[chosen], material.encoded[chosen], strict=True))
    shown = [_shown(example, encoded, tokenizer) for example, encoded in pairs[:rows]]
    lengths = [encoded.length for _, encoded in pairs]
    sequences = max(len(material.make([encoded]).row_examples) for _, encoded in pairs)
    return Preview(tuple(shown), len(pairs), min(lengths), sum(lengths) / len(lengths), max(lengths), sequences)


def _shown(example: Example, encoded: Any, tokenizer: Any) -> PreviewedExample:
    if isinstance(encoded, EncodedText):
        scored: list[list[int]] = [[] for _ in example.candidates]
        prompt = tokenizer.decode(encoded.tokens)
    elif isinstance(encoded, EncodedMask):
        scored, prompt = [[target] for target in encoded.targets], tokenizer.decode(encoded.tokens)
    else:
        scored = [list(row[-count:]) for row, count in zip(encoded.rows, encoded.scored, strict=True)]
        prompt = encoded.example.prompt
    candidates = tuple(
        (text, tuple(tokenizer.convert_ids_to_tokens(ids)), index in example.golds)
        for index, (text, ids) in enumerate(zip(encoded.example.candidates, scored, strict=True))
    )
    return PreviewedExample(example.where, prompt, candidates)
