"""A task and its rows before training: checked, shown as the model sees them, and copied for editing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zofo.errors import ConfigError, ModelError, UnknownNameError
from zofo.models import LoadedModel, head_of, load_on_meta
from zofo.objectives import answer_notes
from zofo.recipes import recipe_names, recipe_text
from zofo.tasks import (
    SPLITS,
    Example,
    Speller,
    Split,
    Task,
    TokenizedCloze,
    TokenizedText,
    known_split,
    load_examples,
    packaged_text,
    resolve_task,
    row_notes,
    rows_note,
    score_name,
    unwritten_notes,
)
from zofo.training.config import RunConfig
from zofo.training.data_module import check_every_split, prepare_run
from zofo.training.evaluation import majority_of


@dataclass(frozen=True)
class SplitReport:
    """The rows of a split: their number, and how often each label or choice is right.

    Also the score of always giving the most frequent answer.
    """

    rows: int
    right: dict[str, int]
    majority: float


@dataclass(frozen=True)
class TaskReport:
    """A task all of whose rows were read and rendered.

    Args:
        task: its name, kind, scores, and prompts by name.
        splits: report of each split.
        example: the first training row in every prompt: (prompt's name, text, right answer).
        notes: what to look at in the rows, one line each.
    """

    task: dict[str, Any]
    splits: dict[Split, SplitReport]
    example: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...] = ()


def validate(config: RunConfig) -> TaskReport:
    """Read every row of every split, and render it in every prompt.

    If a model is given, its tokenizer and shape are loaded, without weights, and every row is tokenised and checked as
    before a training run.

    Raises:
        ConfigError: the task cannot work.
        DataError: a row cannot be used; the message names file, line and column of the first one.
        ModelError: the chat template of the tokenizer cannot be trained with.
    """
    task = resolve_task(config.task)
    shown = []
    splits: dict[Split, SplitReport] = {}
    notes: list[str] = []
    shape: LoadedModel | None = None
    if "model" in config.model_fields_set:
        try:
            if head_of(config.model) == "classification":
                load_examples(task, config.task, head=True)  # refuses a task without labels, whatever the model
            shape = load_on_meta(config.model, labels=len(task.label_names) or None)
        except (ModelError, UnknownNameError) as error:
            notes.append(f"tokens are not checked: {error.message}")
    for number, prompt in enumerate(task.prompt_names if config.task.prompt is None else [config.task.prompt]):
        asked = config.task.model_copy(update={"prompt": prompt})
        examples = load_examples(task, asked)
        first = examples["train"][0]
        text = f"{first.text}\nassistant: " if first.messages else first.text
        shown.append((prompt, text, first.candidates[first.gold]))
        if number == 0:
            splits = {split: _report(task, examples[split]) for split in SPLITS}
            notes += row_notes(task, load_examples(task, asked.bare) if asked.num_fewshot else examples)
        if shape is not None and (number == 0 or shape.head != "classification"):  # which reads no prompt
            notes += _notes_of_training(config.model_copy(update={"task": asked}), task, shape)
    if task.texts is not None:  # what a classification head sees
        load_examples(task, config.task.bare.model_copy(update={"prompt": None}), head=True)
    scores = [score_name(metric, task.score_of) for metric in (task.metric, *task.extra_metrics)]
    about = {"name": task.name, "kind": task.kind, "about": task.about, "scores": scores}
    return TaskReport({**about, "prompts": task.prompt_names}, splits, tuple(shown), tuple(dict.fromkeys(notes)))


def _notes_of_training(config: RunConfig, task: Task, shape: LoadedModel) -> list[str]:
    """The notes about its rows that a run would show before its first step; raises what it would be refused for."""
    prepared = prepare_run(config.model_copy(update={"init_from": None}), task=task, load=lambda *_: shape)
    encoded = [one for rows in prepared.encoded.values() for one in rows]
    unusual = [] if shape.head == "classification" else unusual_notes(shape.tokenizer, encoded)
    return [*unusual, *check_every_split(config, prepared)]


def _report(task: Task, examples: Sequence[Example]) -> SplitReport:
    counts = Counter(gold for one in examples for gold in one.golds) if task.kind != "generation" else Counter()
    names = [str(label) for label in task.label_names]
    right = {names[gold] if names else str(gold): count for gold, count in sorted(counts.items())}
    return SplitReport(len(examples), right, majority_of(task, examples)[task.metric])


def copy_packaged(name: str, target: Path) -> bool:
    """Write a packaged task or recipe to a new .yaml file for editing; returns whether it is a recipe."""
    is_recipe = name in recipe_names()
    text, what = (recipe_text(name), "recipe") if is_recipe else (packaged_text(name), "task")
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{str(target)!r} is no name for a {what} file", f"write {target.with_suffix('.yaml')}")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{str(target)!r} exists", "choose another name, or remove it") from error
    except OSError as error:
        raise ConfigError(f"cannot write {str(target)!r}: {error.strerror}", "choose another place") from error
    return is_recipe


@dataclass(frozen=True)
class PreviewedExample:
    """One example as the model sees it: its origin, its prompt, and for each candidate the text, the scored tokens, and
    whether it is right.

    For a chat also the text and tokens of each earlier answer that is trained. If candidates have their own prompts,
    these are part of their text.
    """

    where: str
    prompt: str
    candidates: tuple[tuple[str, tuple[str, ...], bool], ...]
    earlier: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Preview:
    """A split as the model sees it.

    Args:
        examples: the first examples.
        count: number of all examples.
        shortest, mean, longest: lengths in tokens, prompt and candidate together.
        sequences: sequences per example.
        notes: unusual properties of the rows' tokens, each with the number of such rows and the first one.
    """

    examples: tuple[PreviewedExample, ...]
    count: int
    shortest: int
    mean: float
    longest: int
    sequences: int
    notes: tuple[str, ...] = ()


def preview(config: RunConfig, split: str = "train", rows: int = 3, remote_code: bool = False) -> Preview:
    """Render and tokenise a split, and show its first examples."""
    chosen = known_split(split)
    prepared = prepare_run(config, remote_code, (chosen,))
    tokenizer = prepared.loaded.tokenizer
    pairs = list(zip(prepared.examples[chosen], prepared.encoded[chosen], strict=True))
    shown = [_preview_of(example, encoded, tokenizer) for example, encoded in pairs[:rows]]
    lengths = [encoded.length for _, encoded in pairs]
    sequences = max(len(prepared.scorer.collate([encoded]).row_examples) for _, encoded in pairs)
    of_rows = prepared.encoded[chosen]
    notes = [*unusual_notes(tokenizer, of_rows), *unwritten_notes(tokenizer, of_rows)]
    notes += answer_notes(of_rows, prepared.scorer.generation) if prepared.task.kind == "generation" else []
    mean = sum(lengths) / len(lengths)
    return Preview(tuple(shown), len(pairs), min(lengths), mean, max(lengths), sequences, tuple(notes))


def unusual_notes(tokenizer: Any, encoded: Sequence[Any]) -> list[str]:
    """Notes about unusual properties of the rows' tokens, with the number of such rows and the first one."""
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
    return [rows_note([one.example.where for one in rows], len(encoded), what) for what, rows in kinds.items() if rows]


def _preview_of(example: Example, encoded: Any, tokenizer: Any) -> PreviewedExample:
    texts: Sequence[str] = encoded.example.candidates
    scored: list[list[int]]
    if isinstance(encoded, TokenizedText):
        prompt, scored = encoded.tokens, [[] for _ in texts]
    elif isinstance(encoded, TokenizedCloze):
        prompt, scored = encoded.tokens, [[target] for target in encoded.targets]
    else:
        prompt = encoded.prompt
        scored = [list(row[-count:]) for row, count in zip(encoded.rows, encoded.scored, strict=True)]
        if any(row[: len(row) - len(own)] != prompt for row, own in zip(encoded.rows, scored, strict=True)):
            texts, prompt = [tokenizer.decode(row) for row in encoded.rows], ()  # such as those of channel scores
    candidates = tuple(
        (text, tuple(tokenizer.convert_ids_to_tokens(ids)), index in example.golds)
        for index, (text, ids) in enumerate(zip(texts, scored, strict=True))
    )
    pieces = [encoded.rows[0][start:end] for start, end in getattr(encoded, "earlier_spans", ())]
    earlier = tuple((tokenizer.decode(ids), tuple(tokenizer.convert_ids_to_tokens(ids))) for ids in pieces)
    return PreviewedExample(example.where, tokenizer.decode(prompt), candidates, earlier)
