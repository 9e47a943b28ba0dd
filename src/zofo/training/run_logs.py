"""The logs of a run: its steps in `metrics.jsonl`, and its models' answers in `answers.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zofo.config import validator_of
from zofo.errors import DamagedRunError, RunError
from zofo.filesystem import atomic_write_text, check_not_special
from zofo.tasks import Example
from zofo.tasks.metrics import Answer
from zofo.training.evaluation import Evaluation

LONGEST = 1000
"""Characters of an example's text that are kept."""


@dataclass(frozen=True)
class ScoredExample:
    """An example, and the answer of each model of a run.

    Args:
        split: its split.
        where: file and line, or source and row.
        text: the prompt, or the texts of a classifier, or the turns before the answer; only the end if it is long.
        candidates: texts that may follow; for a generation, the training answer.
        golds: the right candidates.
        answers: for a generation, every accepted answer.
        group: rows with the same group belong together.
        task: name of the task, if there are several.
        predicted: by variant, the index of the predicted candidate, or the generated text.
        losses: loss by variant.
        positive: the candidate that F1 is for, if it is not the second of two.
    """

    split: str
    where: str
    text: str
    candidates: tuple[str, ...]
    golds: tuple[int, ...]
    answers: tuple[str, ...]
    group: str
    task: str
    predicted: Mapping[str, Answer]
    losses: Mapping[str, float | None]
    positive: int | None = None

    @property
    def example(self) -> Example:
        """The example in the form that metrics take."""
        asked = self.text, self.candidates, self.golds, self.answers, self.group, self.where
        return Example(*asked, task=self.task, positive=self.positive)

    def said(self, variant: str) -> str:
        """The answer as text."""
        found = self.predicted[variant]
        return self.candidates[found].strip() if isinstance(found, int) else found

    @property
    def right(self) -> str:
        """The right answer as text."""
        return " / ".join(self.answers or [self.candidates[gold].strip() for gold in self.golds])


def write_answers(path: Path, scored: Mapping[str, tuple[Sequence[Example], Mapping[str, Evaluation]]]) -> None:
    """Write one line per example, atomically.

    Args:
        scored: the examples of each split, and the evaluation of each variant.
    """
    lines = [json.dumps(asdict(one)) + "\n" for split, given in scored.items() for one in _examples(split, *given)]
    if lines:
        atomic_write_text(path, "".join(lines))


def _examples(split: str, examples: Sequence[Example], scores: Mapping[str, Evaluation]) -> Iterator[ScoredExample]:
    for i, one in enumerate(examples if scores else ()):
        yield ScoredExample(
            split,
            one.where,
            one.text[-LONGEST:],
            *(one.candidates, one.golds, one.answers, one.group, one.task),
            {variant: score.predictions[i] for variant, score in scores.items()},
            {variant: score.losses[i] if score.losses else None for variant, score in scores.items()},
            one.positive,
        )


def read_answers(path: Path) -> list[ScoredExample]:
    """The examples of such a file; empty if there is no file, as in a run of an older version.

    Raises:
        RunError: the file is damaged; the message names the line.
    """
    check_not_special(path)
    if not path.is_file():
        return []
    adapter = validator_of(ScoredExample)
    found = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                found.append(adapter.validate_json(line))
            except (ValidationError, UnicodeDecodeError) as error:
                raise RunError(
                    f"{str(path)!r}, line {number}, is not as a run writes it; the file is damaged",
                    "remove it: only reports and comparisons need it",
                ) from error
    return found


MAXIMISED = ("reward", "score")
"""What stands in the line of a step instead of its loss where minus that is minimised: the mean reward, or score."""


def maximised(number: float) -> float:
    """A loss that is minus a score, as the score; never -0."""
    return 0.0 - number


def told_of_step(line: Mapping[str, Any]) -> tuple[str, float]:
    """The quantity of a step in its log line: `loss` or one of `MAXIMISED`, and its value.

    Older versions logged minus the reward as `loss`.
    """
    name = next((name for name in MAXIMISED if name in line), "loss")
    return name, line[name]


def loss_of_step(line: Mapping[str, Any]) -> float:
    """What a step minimised."""
    name, value = told_of_step(line)
    return value if name == "loss" else maximised(value)


def metrics_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the file; a last line that a kill has cut is ignored.

    Raises:
        RunError: the file cannot be read, or a line is invalid; the message names it.
    """
    try:
        check_not_special(path)
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines[:-1], start=1):  # the last one ends without a line break: it is empty, or cut
        try:
            content = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise DamagedRunError(f"{str(path)!r}, line {number}, is no JSON: {reason}") from error
        if not isinstance(content, dict) or not isinstance(content.get("event"), str):
            raise DamagedRunError(f"{str(path)!r}, line {number}, is no object with an event")
        place = content.get("step", content.get("steps", 0))
        if not isinstance(place, int) or isinstance(place, bool):
            raise DamagedRunError(f"{str(path)!r}, line {number}: the step cannot be {place!r}")
        found.append(content)
    return found
