"""A built and checked run: the parts of its loop, its scoring, and its notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from zofo.evaluators import Counts
from zofo.methods import Method, TrainingContext
from zofo.noise import STREAM_VERSION
from zofo.objectives import Rewards
from zofo.signals import Signals
from zofo.tasks import Split
from zofo.training.callbacks import BestCheckpoint, Callback, EvaluationCallback
from zofo.training.checkpoint import CheckpointCallback, Checkpoints
from zofo.training.config import RunConfig
from zofo.training.data_module import PreparedRun
from zofo.training.early_stopping import EarlyStopping
from zofo.training.evaluation import Evaluation
from zofo.training.identity import content_hash
from zofo.training.loop import NonFiniteSkipCounter, run_loop
from zofo.training.progress import EvaluationProgress, say, start_notes
from zofo.training.run_folder import RunFolder
from zofo.training.run_state import RunState, should_checkpoint_weights


@dataclass(frozen=True)
class Session:
    """A built and checked method with its run's data; `begun` is the header of a resumed run's trajectory."""

    prepared: PreparedRun
    context: TrainingContext
    method: Method
    steps: int
    base_hash: str
    notes: Sequence[str]
    begun: Mapping[str, Any] | None
    reward: Rewards | None


def rewards_of(trained: Session, config: RunConfig) -> Rewards | None:
    """The rewards that training maximises, instead of a loss or in addition; None if there are none."""
    context, beside = trained.context, config.method.score_beside
    return (context if beside is None or context.by_objective is None else context.by_objective(beside)).rewards


def trajectory_header(config: RunConfig, trained: Session) -> dict[str, Any]:
    """The header of a trajectory, including the seed."""
    header = {"stream": STREAM_VERSION, "model_hash": trained.base_hash, **trained.method.replay_header()}
    if trained.begun is not None and "trainable" in trained.begun:
        header["trainable"] = trained.begun["trainable"]  # the same tensors: see `begun_selection`
    return {"seed": config.training.seed, **header}


def _scoring(trained: Session, split: Split, shown: EvaluationProgress) -> EvaluationCallback:
    """A callback that scores the current model on a split."""
    method, prepared, processes = trained.method, trained.prepared, trained.context.processes

    def score(counts: Counts) -> Evaluation:
        scorer = prepared.scorer.of(method, watch=shown, processes=processes)
        return scorer.evaluate(method.model, prepared.encoded[split], counts)

    return EvaluationCallback(method, score)


@dataclass(frozen=True)
class LoopParts:
    """The parts of a run's loop, in every process.

    Args:
        scorings: evaluations on validation, on test after the last step, and on test at the best evaluation.
        best: the best evaluation.
        checkpoints: checkpoints of the run.
        skips: counter of steps with a non-finite loss.
        early: early stopping.
        state: everything that a checkpoint contains.
        signals: signals that ask this process to stop.
    """

    scorings: tuple[EvaluationCallback, EvaluationCallback, EvaluationCallback]
    best: BestCheckpoint
    checkpoints: Checkpoints
    skips: NonFiniteSkipCounter
    early: EarlyStopping
    state: RunState
    signals: Signals


def loop_parts(folder: RunFolder, config: RunConfig, trained: Session, shown: EvaluationProgress) -> LoopParts:
    """Build the parts of a loop. Only the first process saves the best model."""
    method, training, processes = trained.method, config.training, trained.context.processes
    splits: tuple[Split, ...] = ("validation", "test", "test")
    evaluating, testing, testing_best = (_scoring(trained, split, shown) for split in splits)
    own = folder.best if processes.is_first else None
    best = BestCheckpoint(own, method.save, testing_best if training.eval_on_test == "best" else None)
    skips = NonFiniteSkipCounter(training.max_consecutive_skips if training.on_non_finite == "skip" else 0)
    weights = should_checkpoint_weights(method, training.checkpoint_weights)
    state = RunState(method, best, evaluating, weights, skips, content_hash(folder.identity.as_dict()))
    signals = Signals()
    processes.signal = lambda: signals.received or 0
    return LoopParts(
        (evaluating, testing, testing_best),
        best,
        Checkpoints(folder.checkpoints, training.save_total_limit),
        skips,
        EarlyStopping(training, trained.steps, best, evaluating),
        state,
        signals,
    )


def run_parts(
    config: RunConfig,
    trained: Session,
    parts: LoopParts,
    callbacks: Sequence[Callback],
    checkpointing: CheckpointCallback,
    first: int,
) -> None:
    """Make the steps after the first `first`, and score the test split if configured."""
    training, (evaluating, testing, testing_best), best = config.training, parts.scorings, parts.best
    due, scored = training.evaluated_after(trained.steps), evaluating.steps_evaluated if evaluating.last else None
    enough = parts.early.has_enough
    run_loop(trained.method, trained.steps, callbacks, evaluating, due, first, parts.skips, scored, enough)
    if training.eval_on_test:
        checkpointing.stop_if_asked(evaluating.steps_made)
        if best.tests and best.step == evaluating.steps_made:  # the model has been scored there
            testing.last = testing_best.last
        else:
            testing()


def say_notes(config: RunConfig, trained: Session, console: Console) -> None:
    """Print the notes before the first step."""
    processes, notes = trained.context.processes, [f"note: {note}" for note in trained.notes]
    if not processes.alone:
        notes.append(f"{processes.size} processes share out the examples of each batch; memory is that of the first")
    say_all(console, [*start_notes(config, trained.prepared, trained.method), *notes])


def say_all(console: Console, lines: Sequence[str]) -> None:
    """Print lines."""
    for line in lines:
        say(console, line)
