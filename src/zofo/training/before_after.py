"""What a run with a reward gained and lost: measured before its first step and after its last one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from zofo.backbone import BackboneDistance
from zofo.evaluators import Counts
from zofo.filesystem import atomic_write_text
from zofo.methods import Method, StepLog
from zofo.objectives import Rewards, aside
from zofo.tasks import Example, encode
from zofo.tasks.metrics import Answer
from zofo.training.callbacks import Measuring, MetricsLogger
from zofo.training.data_module import PreparedRun
from zofo.training.evaluation import Evaluation
from zofo.training.progress import say
from zofo.training.run_folder import RunFolder
from zofo.training.run_logs import LONGEST
from zofo.training.run_record import SAMPLES
from zofo.trajectory.format import Trajectory

EVERYDAY: tuple[tuple[str, str, str], ...] = (
    ("The opposite of hot is", "cold", "table"),
    ("At night the sky is", "dark", "wooden"),
    ("Fish live in", "water", "paper"),
    ("Two plus two makes", "four", "green"),
    ("She opened the door with her", "key", "soup"),
    ("Birds build their nests in", "trees", "spoons"),
    ("In winter it often", "snows", "sings"),
    ("The capital of France is", "Paris", "Tuesday"),
    ("He was thirsty, so he drank a glass of", "water", "sand"),
    ("A week has seven", "days", "walls"),
    ("The baker sells fresh", "bread", "clouds"),
    ("When the light turns red, cars must", "stop", "bloom"),
    ("Cows give us", "milk", "glass"),
    ("The sun rises in the", "east", "drawer"),
    ("To see better, he put on his", "glasses", "carpet"),
    ("She was tired and went to", "bed", "number"),
    ("Ice melts and becomes", "water", "iron"),
    ("The doctor works in a", "hospital", "bottle"),
    ("A triangle has three", "sides", "songs"),
    ("They took the train to the next", "station", "colour"),
    ("Grass is usually", "green", "loud"),
    ("Please write your name on this piece of", "paper", "rain"),
    ("The cat chased the", "mouse", "winter"),
    ("He cut the bread with a", "knife", "letter"),
)
"""Beginnings of sentences, each with a word that goes on and one that does not: a task that nobody trains."""

NUMBERS = {
    "reward": "reward",
    "answer_words": "words an answer",
    "everyday_accuracy": "everyday sentences, right",
    "everyday_loss": "everyday sentences, loss",
    "backbone_distance": "backbone moved",
}
"""What is measured, and how people call it."""


_WIDTH = 80  # columns of a terminal


class BeforeAfter(Measuring):
    """Lines `before_after` in `metrics.jsonl`, before the first step and after the last, with answers side by side.

    - `reward`: mean reward of the model's answers to the first rows of validation.
    - `answer_words`: mean length of these answers, for generated texts.
    - `everyday_accuracy`, `everyday_loss`: on sentences unrelated to the task, for causal language models; the loss is
      the cross-entropy of the right one of two words.
    - `backbone_distance`: |theta - theta_0| / |theta_0|, see `BackboneDistance`; null if theta is an adapter, or moves
      by more than displacements.

    Its queries and seconds do not count towards those of the run.
    """

    def __init__(
        self,
        method: Method,
        prepared: PreparedRun,
        rewards: Rewards,
        examples: int,
        steps: int,
        folder: RunFolder,
        console: Console,
    ) -> None:
        self._method, self._prepared, self._rewards, self._steps = method, prepared, rewards, steps
        self._encoded = prepared.encoded["validation"][:examples]
        self._examples: list[Example] = [one.example for one in self._encoded]
        self._folder, self._console, self._lines, self.seconds = folder, console, list[Mapping[str, Any]](), 0.0
        own = method.backbone if method.backbone_is_theta and "adapter" not in method.replay_header() else None
        linear = method.rule is not None and method.rule.linear
        self._moved = BackboneDistance(own, decays=True) if own is not None and linear else None
        self._everyday = _everyday(prepared)

    def begin(self, metrics: MetricsLogger, lines: Sequence[Mapping[str, Any]]) -> BeforeAfter:
        """Continue with what the log and the file of answers contain."""
        self._metrics = metrics
        self._lines = [line for line in lines if line["event"] == "before_after"]
        if self._moved is not None and self._folder.trajectory.is_file():
            for update in Trajectory.read(self._folder.trajectory).updates:
                self._moved.add(update)
        return self

    def before_run(self) -> None:
        if not self._lines:
            start = time.perf_counter()
            with self._method.using(self._method.variants[0]):
                answers = self._prepared.scorer.of(self._method).answers(self._method.model, self._encoded, Counts())[0]
            self.seconds += time.perf_counter() - start
            self._measure(0, answers)

    def after_step(self, number: int, log: StepLog) -> None:
        if self._moved is not None and log.update is not None:
            self._moved.add(log.update)

    def after_evaluation(self, steps: int, scores: Mapping[str, Evaluation]) -> None:
        if steps == self._steps:
            self._measure(steps, scores[self._method.variants[0]].predictions[: len(self._examples)])

    def summary(self) -> dict[str, Any]:
        """Each number before and after."""
        if len(self._lines) < 2:
            return {}
        first, last = self._lines
        return {"before_after": {name: [first[name], last[name]] for name in NUMBERS if name in last}}

    def _measure(self, steps: int, answers: Sequence[Answer]) -> None:
        start = time.perf_counter()
        with self._method.using(self._method.variants[0]), aside(), torch.no_grad():
            rewards = self._rewards(self._examples, answers)
            line: dict[str, Any] = {"steps": steps, "rows": len(rewards), "reward": _mean(rewards)}
            if self._prepared.task.kind == "generation":
                line["answer_words"] = _mean([len(str(text).split()) for text in answers])
            if self._everyday:
                line |= self._untrained()
            line["backbone_distance"] = None if self._moved is None else self._moved.relative
        said = [
            example.candidates[answer].strip() if isinstance(answer, int) else answer
            for example, answer in zip(self._examples, answers, strict=True)
        ]
        file = self._folder.path / SAMPLES
        before = read_samples(file) if steps else []
        known = before if len(before) == len(said) else [{} for _ in said]
        name = "after" if steps else "before"
        rows = [
            {**old, "where": one.where, "text": one.text[-LONGEST:], name: text, f"reward_{name}": reward}
            for old, one, text, reward in zip(known, self._examples, said, rewards, strict=True)
        ]
        atomic_write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
        self.seconds += time.perf_counter() - start
        self._metrics.write("before_after", line)
        self._lines = [*self._lines[:1], line]
        if len(self._lines) == 2:
            for text in self._told():
                say(self._console, text)

    def _untrained(self) -> dict[str, float]:
        scorer = self._prepared.scorer.of(self._method, scoring="mean")
        table = scorer.candidates(self._method.model, self._everyday, Counts())
        gold = torch.zeros(len(table), dtype=torch.long)
        return {
            "everyday_accuracy": (table.argmax(dim=1) == gold).double().mean().item(),
            "everyday_loss": torch.nn.functional.cross_entropy(table, gold).item(),
        }

    def _told(self) -> list[str]:
        both = self.summary()["before_after"]
        known = [(NUMBERS[name], *values) for name, values in both.items() if None not in values]
        told = [f"{name} {before:.3g} -> {after:.3g}" for name, before, after in known]
        lines, head = [""], f"before -> after, {len(self._examples)} rows of validation:"
        for one in told:  # not broken within a number's name
            fits = not lines[-1] or len(f"  {lines[-1]}; {one}") < _WIDTH
            lines = [*lines[:-1], f"{lines[-1]}; {one}".removeprefix("; ")] if fits else [*lines, one]
        return [head, *(f"  {line}" for line in lines)]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file; empty if there is no file."""
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return found


def _everyday(prepared: PreparedRun) -> list[Any]:
    """The encoded everyday sentences; empty for models other than causal language models."""
    if prepared.loaded.head != "causal-lm":
        return []
    examples = [
        Example(text, (f" {right}", f" {wrong}"), (0,), where=f"everyday sentence {number}")
        for number, (text, right, wrong) in enumerate(EVERYDAY, start=1)
    ]
    return list(encode(prepared.loaded.tokenizer, examples))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
