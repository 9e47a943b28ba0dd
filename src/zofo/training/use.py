"""Using a run, or a model as it is: scores and predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zofo.errors import DataError
from zofo.evaluators import Counts
from zofo.tasks import Example, Split, known_split, load_task, render_prompt
from zofo.training.config import RunConfig, read_config
from zofo.training.evaluation import Evaluation, evaluate, score_candidates
from zofo.training.material import Material, batch_maker, encode_for, load_material
from zofo.training.run import RunFolder


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


def evaluate_run(
    path: Path | str,
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
    config = read_config(run.path / "config.yaml", given)
    if config.task.name == run.config.task.name:  # the task as it was then, whatever has become of its file
        config = config.model_copy(update={"task": config.task.model_copy(update={"name": str(run.task_file)})})
    chosen = known_split(split)
    material = load_material(config, remote_code, (chosen,))
    run.restore(material.loaded, variant, best)
    return _evaluate(config, material, chosen)


def evaluate_zero_shot(config: RunConfig, split: str = "validation", remote_code: bool = False) -> Evaluation:
    """Score the model of a configuration as it is."""
    chosen = known_split(split)
    return _evaluate(config, load_material(config, remote_code, (chosen,)), chosen)


def _evaluate(config: RunConfig, material: Material, split: Split) -> Evaluation:
    size = config.training.eval_batch_size
    return evaluate(material.loaded.model, material.encoded[split], material.make, material.task.metric, size, Counts())


def predict(
    path: Path | str,
    texts: Sequence[str],
    variant: str | None = None,
    best: bool = False,
    model: str | None = None,
    remote_code: bool = False,
) -> list[Prediction]:
    """Label texts with a trained run.

    Args:
        path: of the run.
        texts: one for each prediction; for a task with several columns, rows as JSON objects.
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
    task = load_task(str(run.task_file))
    fields = [column for column in task.columns if column != task.label]
    rows = [_row(text, fields, number) for number, text in enumerate(texts, start=1)]
    candidates = tuple(task.verbalizers.values())
    examples = [
        Example(render_prompt(task, row, f"text {number}"), candidates, 0, f"text {number}")
        for number, row in enumerate(rows, start=1)
    ]
    loaded = run.load(variant, best, model, remote_code)
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
