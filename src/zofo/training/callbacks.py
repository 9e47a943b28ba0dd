"""The parts of a run outside its loop, each with its own state."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from zofo.backbone import Theta, UpdateLog
from zofo.config import validator_of
from zofo.errors import NonFiniteError
from zofo.evaluators import Counts
from zofo.filesystem import temp_path
from zofo.methods import Method, StepLog, unscheduled
from zofo.objectives import Rewards
from zofo.processes import ALONE, Processes
from zofo.training.evaluation import Evaluation, as_percent
from zofo.training.peak_memory import PeakMemory
from zofo.training.progress import EvaluationProgress, progress_bar, say
from zofo.training.run_logs import maximised
from zofo.trajectory.format import TrajectoryWriter


class Callback:
    """Base class of callbacks, which the loop calls in the given order.

    Attributes:
        seconds: time spent on work that is not training.
    """

    seconds: float = 0.0

    def before_run(self) -> None:
        """The loop is about to begin."""

    def after_step(self, number: int, log: StepLog) -> None:
        """A step was made; `number` counts from 0."""

    def after_skip(self, number: int, error: NonFiniteError) -> None:
        """A step was skipped, since a loss was not finite. Nothing was updated."""

    def before_evaluation(self, steps: int) -> None:
        """`steps` steps have been made, and the model is about to be evaluated."""

    def after_evaluation(self, steps: int, scores: Mapping[str, Evaluation]) -> None:
        """The model was evaluated after `steps` steps; one score per variant."""

    def between_steps(self, steps: int) -> None:
        """`steps` steps have been made, and there are more; every callback has seen the last one."""

    def after_run(self, error: BaseException | None) -> None:
        """The loop ended, normally or with `error`."""

    def conclusions(self) -> list[str]:
        """Messages to the user after the last step, one sentence each."""
        return []


class RewardMeans(Callback):
    """The mean of each reward in a step, computed in every process, since each process has its own examples.

    Attributes:
        last: mean of each reward over all answers of the last step.
    """

    def __init__(self, rewards: Rewards | None, processes: Processes) -> None:
        self._rewards, self._processes = rewards, processes
        self.last: Mapping[str, float] = {}
        self._forget()  # what checks and trials have asked

    def _forget(self) -> None:
        if self._rewards is not None:
            self._rewards.means()

    def after_step(self, number: int, log: StepLog) -> None:
        if self._rewards is not None:
            self.last = self._rewards.means(self._processes)

    def after_skip(self, number: int, error: NonFiniteError) -> None:
        self._forget()  # the step does not count


class MetricsLogger(Callback):
    """`metrics.jsonl`: one line per step with its loss, coefficients and running counts, and one per evaluation.

    If steps minimise minus a reward or score, the line has that value under its name, `named`, instead of the loss.

    A resumed file keeps its first `keep` bytes, and `seconds` continue from the given value. Lines also have the factor
    of the learning rates, if there is a schedule; the mean of each reward over all answers of the step; and, with
    several processes, the bytes of losses and gradients that they exchanged in the step.
    """

    def __init__(
        self,
        path: Path,
        method: Method,
        keep: int | None = None,
        seconds: float = 0.0,
        rewards: Rewards | None = None,
        processes: Processes = ALONE,
        named: str = "loss",
    ) -> None:
        self._named = named
        self._file = path.open("xb" if keep is None else "r+b")
        self._digest, self._size = hashlib.sha256(), keep or 0
        if keep is not None:
            self._file.truncate(keep)
            self._digest.update(self._file.read())
        self._method = method
        self._processes, self._exchanged = processes, processes.bytes
        self.with_rates = False
        self._rewards = RewardMeans(rewards, processes)
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []  # get each line that is written
        self._start = time.perf_counter() - seconds

    @property
    def size(self) -> int:
        """Size of the file in bytes so far."""
        return self._size

    @property
    def sha256(self) -> str:
        """SHA-256 of the file so far."""
        return f"sha256:{self._digest.hexdigest()}"

    def after_step(self, number: int, log: StepLog) -> None:
        value = log.loss if self._named == "loss" else maximised(log.loss)
        line = {"event": "step", "step": number, self._named: value, **log.coefficients}
        self._rewards.after_step(number, log)
        line |= self._rewards.last
        line |= self._method.counts.as_dict()
        if self.with_rates and (log.update is not None or log.rate is not None):
            line["rate"] = log.rate
        if self._method.lr_factor is not unscheduled:
            line["lr_factor"] = self._method.lr_factor(number)
        if not self._processes.alone:
            line["exchanged_bytes"] = self._processes.bytes - self._exchanged
        self._exchanged = self._processes.bytes
        self._write(line)

    def after_skip(self, number: int, error: NonFiniteError) -> None:
        self._rewards.after_skip(number, error)
        self._write({"event": "skipped", "step": number, "error": error.message, **self._method.counts.as_dict()})

    def after_evaluation(self, steps: int, scores: Mapping[str, Evaluation]) -> None:
        for variant, score in scores.items():
            self._write({"event": "evaluation", "steps": steps, "variant": variant, **score.as_dict()})

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Write a line for another kind of event."""
        self._write({"event": event, **values})

    def after_run(self, error: BaseException | None) -> None:
        if error is not None:
            self._write({"event": "stopped", "error": type(error).__name__, "message": str(error)})
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        stamped = {**line, "seconds": round(time.perf_counter() - self._start, 3)}
        written = (json.dumps(stamped) + "\n").encode()
        self._file.write(written)
        self._file.flush()
        self._digest.update(written)
        self._size += len(written)
        for listen in self.listeners:
            listen(stamped)


class Measuring(Callback):
    """Base class of measurements before the first step and later; its work and time are kept apart from training's."""

    def begin(self, metrics: MetricsLogger, lines: Sequence[Mapping[str, Any]]) -> Measuring:
        """Continue with what the log contains; `before_run` starts from scratch if there is nothing."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Its entries of a run's summary."""
        raise NotImplementedError


class TrajectoryLogger(Callback):
    """`trajectory.bin`: everything that is written into the backbone, and where each step ends."""

    def __init__(self, writer: TrajectoryWriter, theta: Theta) -> None:
        self._writer = writer
        self._theta = theta
        theta.log = writer

    def after_step(self, number: int, log: StepLog) -> None:
        self._writer.stepped(number)

    def after_skip(self, number: int, error: NonFiniteError) -> None:
        self._writer.stepped(number)

    def after_run(self, error: BaseException | None) -> None:
        self._theta.log = UpdateLog()
        self._writer.close()


class BestCheckpoint(Callback):
    """Saves the adapters or weights of the best evaluation so far to a folder, and remembers which one it was.

    With `testing`, the test split is scored there, too; the choice is made on validation only. Without a folder it only
    remembers which evaluation it was.
    """

    def __init__(
        self, folder: Path | None, save: Callable[[Path], None], testing: EvaluationCallback | None = None
    ) -> None:
        self._folder, self._save, self._testing = folder, save, testing
        self.score: float | None = None  # nothing was evaluated yet
        self.step = 0
        self._tested: Mapping[str, Evaluation] = {}

    @property
    def tests(self) -> bool:
        """Whether the test split is scored, too."""
        return self._testing is not None

    @property
    def test_scores(self) -> dict[str, Any]:
        """The scores on the test split there, by variant; empty if it is not scored."""
        return {variant: score.as_dict() for variant, score in self._tested.items()}

    def state_dict(self, folder: Path) -> dict[str, Any]:
        """Which evaluation it is, as JSON; its files are copied to a folder."""
        if self._folder is not None and self._folder.is_dir():
            shutil.copytree(self._folder, folder / self._folder.name)
        tested = {} if self._testing is None else {"test": self._testing.state_dict()}
        return {"score": self.score, "step": self.step, **tested}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, except the files; ValueError for values of another kind."""
        self.score, self.step = values["score"], values["step"]
        if self._testing is not None:
            self._testing.load_state_dict(values["test"])
            self._tested = self._testing.last

    def load_files(self, folder: Path) -> None:
        """Load the files that `state_dict` copied to a folder."""
        if self._folder is None:
            return
        part = temp_path(self._folder)
        shutil.rmtree(part, ignore_errors=True)
        if (folder / self._folder.name).is_dir():
            shutil.copytree(folder / self._folder.name, part)  # if the disk is full, the old one stays
        shutil.rmtree(self._folder, ignore_errors=True)
        if part.is_dir():
            part.rename(self._folder)

    def after_evaluation(self, steps: int, scores: Mapping[str, Evaluation]) -> None:
        first = next(iter(scores.values()))
        if self.score is None or first.score > self.score:
            tested = {} if self._testing is None else self._testing()  # first: it may fail, or be stopped
            if self._folder is not None:
                self._folder.mkdir(exist_ok=True)
                self._save(self._folder)
            self.score, self.step, self._tested = first.score, steps, tested


class ProgressBar(Callback):
    """One line: step, loss, score, queries per second, time left, memory. Plain lines if there is no terminal.

    A resumed run has already made its `first` steps. `evaluations` are shown below. If steps minimise minus a score,
    that is shown under its name, `named`, as in the log, since `loss` is the loss of the answers in evaluations.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        steps: int,
        method: Method,
        memory: PeakMemory,
        first: int,
        evaluations: EvaluationProgress,
        named: str = "loss",
    ) -> None:
        self._named = named
        self._console, self._name, self._steps, self._method, self._memory = console, name, steps, method, memory
        self._start = time.perf_counter()
        self._queries, self._first = method.counts.queries, first
        self._score, self._evaluations = "", evaluations
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = progress_bar(console)
            self._task = self._bar.add_task(name, total=steps, completed=first, shown="")
            self._bar.start()
            evaluations.below = self._bar

    def after_step(self, number: int, log: StepLog) -> None:
        done = number + 1
        seconds = time.perf_counter() - self._start
        rate = (self._method.counts.queries - self._queries) / seconds
        value = log.loss if self._named == "loss" else maximised(log.loss)
        shown = f"{self._named} {value:.3f}{self._score}  {rate:.0f} queries/s  {self._memory.now() / 2**30:.2f} GiB"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, shown=shown)
        elif done == self._steps or done % max(1, self._steps // 10) == 0:
            left = seconds / (done - self._first) * (self._steps - done)
            say(self._console, f"{self._name}  step {done}/{self._steps}  {shown}  {left:.0f} s left")

    def after_evaluation(self, steps: int, scores: Mapping[str, Evaluation]) -> None:
        first, *others = scores.items()
        self._score = f"  {first[1].titled()} {as_percent(first[1].score)}"
        if self._bar is None:
            shown = "".join(f"  {variant} {as_percent(score.score)}" for variant, score in others)
            say(self._console, f"{self._name}  after {steps} steps{self._score}  loss {first[1].loss:.3f}{shown}")

    def after_run(self, error: BaseException | None) -> None:
        self._evaluations.below = None
        if self._bar is not None:
            self._bar.stop()


@dataclass(frozen=True)
class _EvaluationState:
    counts: Counts
    seconds: float
    last: dict[str, Evaluation]
    steps_made: int
    steps_evaluated: int


class EvaluationCallback(Callback):
    """Scores every variant of the method on validation; its counts and seconds are kept apart from training's.

    `score` evaluates the method's current model, and adds its work to the counts that it gets.
    """

    def __init__(self, method: Method, score: Callable[[Counts], Evaluation]) -> None:
        self._method = method
        self._score = score
        self.counts = Counts()
        self.seconds = 0.0
        self.steps_made = 0
        self.steps_evaluated = 0
        self.last: dict[str, Evaluation] = {}

    def __call__(self) -> dict[str, Evaluation]:
        """The score of each variant."""
        start = time.perf_counter()
        scores = {}
        for variant in self._method.variants:
            with self._method.using(variant):
                scores[variant] = self._score(self.counts)
        self.seconds += time.perf_counter() - start
        self.last = scores
        return scores

    def state_dict(self) -> dict[str, Any]:
        """Counts, seconds and the last scores, as JSON."""
        return asdict(_EvaluationState(self.counts, self.seconds, self.last, self.steps_made, self.steps_evaluated))

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; ValueError for values of another kind."""
        state = validator_of(_EvaluationState).validate_json(json.dumps(values), strict=True)
        self.counts.include(state.counts)
        self.seconds, self.last = state.seconds, state.last
        self.steps_made, self.steps_evaluated = state.steps_made, state.steps_evaluated

    def after_step(self, number: int, log: StepLog) -> None:
        self.steps_made = number + 1

    def after_skip(self, number: int, error: NonFiniteError) -> None:
        self.steps_made = number + 1

    def after_evaluation(self, steps: int, scores: Mapping[str, Evaluation]) -> None:
        self.steps_evaluated = steps
