"""Checking a task and its rows before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zofo.errors import ConfigError, ModelError, UnknownNameError
from zofo.models import head_of, load_tokenizer
from zofo.objectives import Generation
from zofo.recipes import recipe_text
from zofo.tasks import (
    SPLITS,
    Example,
    Split,
    Task,
    load_examples,
    packaged_text,
    resolve_task,
    row_notes,
)
from zofo.training.config import RunConfig
from zofo.training.data_module import encoder_of
from zofo.training.evaluation import majority_of
from zofo.training.preview import token_notes


@dataclass(frozen=True)
class SplitReport:
    """The rows of a split: how many, how often each label or choice is right by its name, and the score of always
    giving the most frequent answer."""

    rows: int
    right: dict[str, int]
    majority: float


@dataclass(frozen=True)
class TaskReport:
    """A task whose rows were all read and rendered.

    Args:
        task: its name, kind, scores, and prompts by name.
        splits: what each holds.
        example: the first row of train, in every prompt: (prompt's name, text, right answer).
        notes: what to look at in the rows, one line each.
    """

    task: dict[str, Any]
    splits: dict[Split, SplitReport]
    example: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...] = ()


def validate(config: RunConfig) -> TaskReport:
    """Read every row of every split, and render it with every prompt.

    No model is loaded. Where one is named, its tokenizer is, and every row is tokenised.

    Raises:
        ConfigError: the task cannot work.
        DataError: the first row that cannot be used, with file, line and column.
        ModelError: the chat template of the tokenizer cannot be trained with.
    """
    task = resolve_task(config.task)
    shown = []
    splits: dict[Split, SplitReport] = {}
    notes: list[str] = []
    tokenizer = None
    if "model" in config.model_fields_set:
        try:
            tokenizer = load_tokenizer(config.model)
        except (ModelError, UnknownNameError) as error:
            notes.append(f"tokens are not checked: {error.message}")
    for number, prompt in enumerate(task.prompt_names if config.task.prompt is None else [config.task.prompt]):
        asked = config.task.model_copy(update={"prompt": prompt})
        examples = load_examples(task, asked)
        first = examples["train"][0]
        shown.append((prompt, _text(first), first.candidates[first.gold]))
        if tokenizer is not None and (head := head_of(config.model)) != "classification":
            way = encoder_of(head, config.task)
            encoded = [one for rows in examples.values() for one in way(tokenizer, rows)]
            generates = task.kind == "generation" and head == "causal-lm"
            how = Generation(tokenizer, tuple(task.stop), task.max_new_tokens) if generates else None
            notes += token_notes(tokenizer, encoded, how)
        if number == 0:
            splits = {split: _report(task, examples[split]) for split in SPLITS}
            bare = asked.model_copy(update={"num_fewshot": 0})
            notes += row_notes(task, load_examples(task, bare) if asked.num_fewshot else examples)
    if task.texts is not None:  # what a classification head sees
        load_examples(task, config.task.model_copy(update={"prompt": None, "num_fewshot": 0}), head=True)
    about = {"name": task.name, "kind": task.kind, "about": task.about, "scores": [task.metric, *task.extra_metrics]}
    return TaskReport({**about, "prompts": task.prompt_names}, splits, tuple(shown), tuple(dict.fromkeys(notes)))


def _text(example: Example) -> str:
    if example.messages:
        return "\n".join(f"{role}: {content}" for role, content, *_ in example.messages)
    return example.prompt


def _report(task: Task, examples: Sequence[Example]) -> SplitReport:
    counts = Counter(gold for one in examples for gold in one.golds) if task.kind != "generation" else Counter()
    names = [str(label) for label in task.label_names]
    right = {names[gold] if names else str(gold): count for gold, count in sorted(counts.items())}
    return SplitReport(len(examples), right, majority_of(task, examples)[task.metric])


def copy_task(name: str, target: Path) -> None:
    """Write a packaged task as a new .yaml file to edit."""
    _write_new(packaged_text(name), target, "task")


def copy_recipe(name: str, target: Path) -> None:
    """Write a packaged recipe as a new .yaml file to edit."""
    _write_new(recipe_text(name), target, "recipe")


def _write_new(text: str, target: Path, what: str) -> None:
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{str(target)!r} is no name for a {what} file", f"write {target.with_suffix('.yaml')}")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{str(target)!r} exists", "choose another name, or remove it") from error
    except OSError as error:
        raise ConfigError(f"cannot write {str(target)!r}: {error.strerror}") from error
