"""Everything of a run that is not the loop, each with its own state."""

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
    """Told what happens in the loop, in the order in which the callbacks are given.

    Attributes:
        seconds: that it has taken for work that is not training.
    """

    seconds: float = 0.0

    def before_run(self) -> None:
        """The loop begins."""

    def after_step(self, number: int, log: StepLog) -> None:
        """A step was made; `number` counts from 0."""

    def after_skip(self, number: int, error: NonFiniteError) -> None:
        """A step was skipped, since a loss was not finite; nothing was updated."""

    def before_evaluation(self, steps: int) -> None:
        """`steps` steps are made, and the model will be evaluated."""

    def after_evaluation(self, steps: int, scores: Mapping[str, Evaluation]) -> None:
        """The model was evaluated after `steps` steps; a score for each of its variants."""

    def between_steps(self, steps: int) -> None:
        """`steps` steps are made and there are more; every callback has been told of the last one."""

    def after_run(self, error: BaseException | None) -> None:
        """The loop ended, by itself or by `error`."""

    def conclusions(self) -> list[str]:
        """What a user should know after the last step, a sentence each."""
        return []


class RewardMeans(Callback):
    """What each reward gave in a step, in every process of a run: each has judged the answers of its own examples.

    Attributes:
        last: the mean of each over all answers of the last step.
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
    """`metrics.jsonl`: a line a step with its loss, coefficients and running counts, and a line an evaluation.

    Where steps minimise minus a reward or score, the line has that under its name, `named`, in place of the loss.

    A file that goes on keeps its first `keep` bytes, what it has beyond them is cut off, and `seconds` are counted on.
    Where a schedule changes the learning rates, each step's factor is written; where there are rewards, the mean of
    each of them over all answers of the step; of several processes, how many bytes of losses and gradients they
    exchanged for the step, all together.
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
        """Bytes of the file so far."""
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
        """A line of an event of its own."""
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
    """Measures the model before the first step and later; its work and seconds are apart from training's."""

    def begin(self, metrics: MetricsLogger, lines: Sequence[Mapping[str, Any]]) -> Measuring:
        """Go on with what the log holds of it, which `before_run` begins where there is nothing yet."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """What a run's summary holds of it, by name."""
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
    """Keeps the adapters or weights of the best evaluation so far in a folder, and remembers which one it was.

    With `testing` the test split is scored there, too: chosen on validation, and never by it. Without a folder nothing
    is kept but which one it was.
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
        """What the test split gave there, by variant; empty where it is not scored."""
        return {variant: score.as_dict() for variant, score in self._tested.items()}

    def state_dict(self, folder: Path) -> dict[str, Any]:
        """Which one it is, as JSON; what was kept of it goes into a folder."""
        if self._folder is not None and self._folder.is_dir():
            shutil.copytree(self._folder, folder / self._folder.name)
        tested = {} if self._testing is None else {"test": self._testing.state_dict()}
        return {"score": self.score, "step": self.step, **tested}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, but for the files; ValueError for values of another kind."""
        self.score, self.step = values["score"], values["step"]
        if self._testing is not None:
            self._testing.load_state_dict(values["test"])
            self._tested = self._testing.last

    def load_files(self, folder: Path) -> None:
        """Take back the files that `state_dict` put into a folder."""
        if self._folder is None:
            return
        part = temp_path(self._folder)
        shutil.rmtree(part, ignore_errors=True)
        if (folder / self._folder.name).is_dir():
            shutil.copytree(folder / self._folder.name, part)  # a disk may be full: the old one stays until it is whole
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
    """One line: step, loss, score, queries a second, time left, memory. Plain lines when there is no terminal.

    A run that goes on has made its `first` steps before. Below it `evaluations` are shown. Where steps minimise minus
    a score, it is shown under its name, `named`, as in the log: loss is what evaluations call that of the answers.
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

    `score` scores the method's model as it stands, and counts into the counts that it is given.
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
        """Take back what `state_dict` gave; ValueError for values of another kind."""
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
