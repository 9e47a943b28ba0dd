"""Using a run, or a model as it is: scores, predictions, previews, and what there is to choose from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from zofo.backbone import load_model
from zofo.embedded import EMBEDDED_DATA, EMBEDDED_MODELS, cache_dir
from zofo.errors import ConfigError, DataError, UnknownNameError
from zofo.estimators import ESTIMATORS
from zofo.evaluators import EVALUATORS, Counts
from zofo.methods import METHODS
from zofo.noise import NOISES
from zofo.rules import RULES
from zofo.tasks import SPLITS, Example, Split, load_task, render_prompt, task_names
from zofo.training.config import RunConfig, read_config
from zofo.training.evaluation import Evaluation, evaluate, score_candidates
from zofo.training.run import Material, RunFolder, batch_maker, encode_for, environment, load_material


@dataclass(frozen=True)
class Prediction:
    """The label that a model gives a text.

    Args:
        text: what was labelled.
        label: of the task.
        verbalizer: the text that stands for it.
        probability: among the candidates, from 0 to 1.
    """

    text: str
    label: int | str
    verbalizer: str
    probability: float

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


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


def evaluate_run(
    path: Path,
    overrides: Sequence[str] = (),
    split: str = "validation",
    variant: str | None = None,
    best: bool = False,
    data_dir: Path | None = None,
    remote_code: bool = False,
) -> Evaluation:
    """Score a trained run on a split of its task, or of another task given by overrides.

    Raises:
        RunError: no run there, or the base model is not the one it was trained from.
    """
    run = RunFolder.open(path)
    given = list(overrides)
    if data_dir is not None:
        given.append(f"task.data_dir={json.dumps(str(data_dir))}")
    config = read_config(path / "config.yaml", given)
    if config.task.name == run.config.task.name:  # the task as it was then, whatever has become of its file
        config = config.model_copy(update={"task": config.task.model_copy(update={"name": str(run.task_file)})})
    material = load_material(config, remote_code)
    chosen = known_split(split)
    run.restore(material.loaded, variant, best)
    return _evaluate(config, material, chosen)


def evaluate_zero_shot(config: RunConfig, split: str = "validation", remote_code: bool = False) -> Evaluation:
    """Score the model of a configuration as it is."""
    chosen = known_split(split)
    return _evaluate(config, load_material(config, remote_code), chosen)


def _evaluate(config: RunConfig, material: Material, split: Split) -> Evaluation:
    size = config.training.eval_batch_size
    return evaluate(material.loaded.model, material.encoded[split], material.make, material.task.metric, size, Counts())


def predict(
    path: Path, texts: Sequence[str], variant: str | None = None, best: bool = False, remote_code: bool = False
) -> list[Prediction]:
    """Label texts with a trained run.

    Args:
        path: of the run.
        texts: one for each prediction; for a task with several columns, rows as JSON objects.
        variant: which model of the run.
        best: as of the best evaluation.
        remote_code: allow the model's repository to run its own code.

    Raises:
        DataError: a text that the task's template cannot take.
    """
    run = RunFolder.open(path)
    task = load_task(str(run.task_file))
    fields = [column for column in task.columns if column != task.label]
    rows = [_row(text, fields, number) for number, text in enumerate(texts, start=1)]
    candidates = tuple(task.verbalizers.values())
    examples = [
        Example(render_prompt(task, row, f"text {number}"), candidates, 0, f"text {number}")
        for number, row in enumerate(rows, start=1)
    ]
    loaded = load_model(run.config.model, remote_code)
    run.restore(loaded, variant, best)
    encoded = encode_for(run.config, loaded, examples)
    scores = score_candidates(loaded.model, encoded, batch_maker(loaded), run.config.training.eval_batch_size, Counts())
    probabilities, chosen = scores.softmax(dim=1).max(dim=1)
    return [
        Prediction(text, task.labels[index], candidates[index], probability)
        for text, index, probability in zip(texts, chosen.tolist(), probabilities.tolist(), strict=True)
    ]


def _row(text: str, fields: Sequence[str], number: int) -> Mapping[str, Any]:
    if len(fields) == 1:
        return {fields[0]: text}
    try:
        row = json.loads(text)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict):
        raise DataError(
            f"text {number}: the task needs the columns {', '.join(fields)}", "give each row as a JSON object"
        )
    return row


def preview(config: RunConfig, split: str = "train", rows: int = 3, remote_code: bool = False) -> Preview:
    """Render and tokenise a split, and show the first examples."""
    chosen = known_split(split)
    material = load_material(config, remote_code)
    tokenizer = material.loaded.tokenizer
    shown = []
    pairs = list(zip(material.examples[chosen], material.encoded[chosen], strict=True))
    for example, encoded in pairs[:rows]:
        candidates = []
        for index, text in enumerate(example.candidates):
            ids = encoded.rows[index][-encoded.scored[index] :]
            tokens = tuple(tokenizer.convert_ids_to_tokens(list(ids)))
            candidates.append((text, tokens, index == example.gold))
        shown.append(PreviewedExample(example.where, example.prompt, tuple(candidates)))
    lengths = [encoded.length for _, encoded in pairs]
    sequences = 1 if all(e.single for _, e in pairs) else max(len(e.rows) for _, e in pairs)
    return Preview(tuple(shown), len(pairs), min(lengths), sum(lengths) / len(lengths), max(lengths), sequences)


def names(kind: str | None = None) -> dict[str, dict[str, str]]:
    """Everything a configuration can name, by kind, with one line on each.

    Raises:
        UnknownNameError: no such kind.
    """
    found = {
        "models": dict.fromkeys(EMBEDDED_MODELS, "embedded; fetched once with pip"),
        "tasks": {name: load_task(name).about for name in task_names()},
        "methods": {name: METHODS[name].paper for name in METHODS},
        "noises": _first_lines(NOISES),
        "estimators": _first_lines(ESTIMATORS),
        "rules": _first_lines(RULES),
        "evaluators": _first_lines(EVALUATORS),
    }
    if kind is None:
        return found
    if kind not in found:
        raise UnknownNameError("kind", kind, found)
    return {kind: found[kind]}


def _first_lines(registry: Any) -> dict[str, str]:
    return {name: (registry[name].__doc__ or "").strip().splitlines()[0] for name in registry}


def describe_environment() -> dict[str, str]:
    """Versions, device and folders."""
    from accelerate import PartialState

    return {
        **environment(),
        "device": str(PartialState().device),
        "threads": str(torch.get_num_threads()),
        "cache": str(cache_dir()),
        "embedded data": ", ".join(EMBEDDED_DATA),
    }


def known_split(split: str) -> Split:
    """The split of that name.

    Raises:
        ConfigError: there is none.
    """
    for known in SPLITS:
        if split == known:
            return known
    raise ConfigError(f"unknown split {split!r}", f"known: {', '.join(SPLITS)}")
