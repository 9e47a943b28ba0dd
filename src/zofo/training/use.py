"""Using a run, or a model as it is: scores and predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zofo.backbone import head_of
from zofo.errors import DataError
from zofo.evaluators import Counts
from zofo.tasks import NO_PROMPT, Split, known_split, load_examples, load_task, render, with_demonstrations
from zofo.training.config import RunConfig, read_config
from zofo.training.evaluation import Evaluation
from zofo.training.material import Material, load_material, scorer_of
from zofo.training.run import RunFolder


@dataclass(frozen=True)
class Prediction:
    """What a model answers to a row.

    Args:
        text: the row, as it was given.
        label: of a classification, its label; of a multiple choice, the number of the choice from 0; of a generation,
            the text itself.
        answer: the verbalizer, choice or generated text.
        probability: among the candidates, from 0 to 1; None for a generation.
    """

    text: str
    label: int | str
    answer: str
    probability: float | None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def evaluate_run(
    path: Path | str,
    overrides: Sequence[str] = (),
    split: str = "validation",
    variant: str | None = None,
    best: bool = False,
    data_dir: Path | None = None,
    remote_code: bool = False,
    data: str | None = None,
) -> Evaluation:
    """Score a trained run on a split of its task, or of another task given by overrides.

    Args:
        path: of the run.
        overrides: `key=value`, in place of what the run was made with.
        split: train, validation or test.
        variant: which model of the run.
        best: as of the best evaluation.
        data_dir: a folder with other rows of the task.
        remote_code: allow the model's repository to run its own code.
        data: other rows of the user's own: a file, a folder or a Hub id.

    Raises:
        RunError: no run there, or the base model is not the one it was trained from.
        ConfigError: a task that the run was trained on as one of several; or one that cannot work.
    """
    run = RunFolder.open(path)
    given = list(overrides)
    if data_dir is not None:
        given += ["task.data=null", f"task.data_dir={json.dumps(str(data_dir))}"]
    if data is not None:
        given += ["task.data_dir=null", f"task.data={json.dumps(data)}"]
    config = read_config(run.path / "config.yaml", given)
    config = config.model_copy(update={"start": None})  # which the run restores by itself
    own, asked = run.config.task, config.task
    if not asked.several and not own.several and (asked.name, asked.overrides) == (own.name, own.overrides):
        # the task as it was then, whatever has become of its file
        config = config.model_copy(update={"task": config.task.model_copy(update={"name": str(run.task_file)})})
    if not asked.several or (asked.tasks, asked.setting) != (own.tasks, own.setting):
        run.refuse_trained_on(config.task, scored=True)
    chosen = known_split(split)
    material = load_material(config, remote_code, (chosen,))
    run.restore(material.loaded, variant, best)
    return _evaluate(replace(material, scorer=run.scorer(material.scorer)), chosen)


def evaluate_zero_shot(config: RunConfig, split: str = "validation", remote_code: bool = False) -> Evaluation:
    """Score the model of a configuration as it is."""
    chosen = known_split(split)
    return _evaluate(load_material(config, remote_code, (chosen,)), chosen)


def _evaluate(material: Material, split: Split) -> Evaluation:
    return material.scorer.evaluate(material.loaded.model, material.encoded[split], Counts())


def predict(
    path: Path | str,
    texts: Sequence[str],
    variant: str | None = None,
    best: bool = False,
    model: str | None = None,
    remote_code: bool = False,
) -> list[Prediction]:
    """Answer rows with a trained run.

    Args:
        path: of the run.
        texts: one for each prediction; for a task with several columns, rows as JSON objects; for a chat, what the user
            says, or the turns as JSON.
        variant: which model of the run.
        best: as of the best evaluation.
        model: where the base model is now, if it has moved; its hash must be the run's.
        remote_code: allow the model's repository to run its own code.

    Raises:
        DataError: a text that the task's template cannot take.
    """
    if isinstance(texts, str):
        raise DataError("predict takes a list of texts, not one text", f"predict(path, [{texts[:20]!r}])")
    run = RunFolder.open(path)
    task, wanted = load_task(str(run.task_file)), run.config.task
    head = head_of(run.config.model) == "classification"
    prompt = None if head and wanted.prompt == NO_PROMPT else wanted.prompt
    columns = [column for column in task.columns(prompt, head and prompt is None) if column not in task.optional]
    rows = [
        _row(text, columns, number) if task.messages is None else _chat_row(text, task.messages)
        for number, text in enumerate(texts, start=1)
    ]
    examples = [render(task, row, f"text {n}", prompt, head, right=False) for n, row in enumerate(rows, start=1)]
    if wanted.demonstrations:
        pool = load_examples(task, wanted.model_copy(update={"demonstrations": 0}), ["train"])["train"]
        examples = with_demonstrations(examples, pool, wanted)
    loaded = run.load(variant, best, model, remote_code)
    scorer = run.scorer(scorer_of(run.config, task, loaded))
    encoded = scorer.encode(examples)
    if task.kind == "generation":
        found = scorer.generated(loaded.model, encoded, Counts())
        return [Prediction(text, answer, answer, None) for text, answer in zip(texts, found, strict=True)]
    probabilities, chosen = scorer.candidates(loaded.model, encoded, Counts()).softmax(dim=1).max(dim=1)
    labels = task.label_names
    return [
        Prediction(text, labels[index] if labels else index, example.candidates[index], probability)
        for text, example, index, probability in zip(
            texts, examples, chosen.tolist(), probabilities.tolist(), strict=True
        )
    ]


def _chat_row(text: str, column: str) -> Mapping[str, Any]:
    """Turns written as JSON, by themselves or in their row; any other text is the user's only turn."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if isinstance(given, dict) and column in given:
        return given
    return {column: given if isinstance(given, list) else [{"role": "user", "content": text}]}


def _row(text: str, fields: Sequence[str], number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if len(fields) == 1:
        return row if isinstance(row, dict) and fields[0] in row else {fields[0]: text}
    if not isinstance(row, dict):
        raise DataError(
            f"text {number}: the task needs the columns {', '.join(fields)}", "give each row as a JSON object"
        )
    return row
