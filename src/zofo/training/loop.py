"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from zofo.errors import NonFiniteError
from zofo.methods import Method
from zofo.objectives import drawing
from zofo.training.callbacks import Callback
from zofo.training.evaluation import Evaluation


@dataclass
class NonFiniteSkipCounter:
    """Counts steps in a row that were skipped because of a non-finite loss, up to a limit."""

    most: int = 0
    in_a_row: int = 0


def run_loop(
    method: Method,
    steps: int,
    callbacks: Sequence[Callback],
    evaluate: Callable[[], Mapping[str, Evaluation]],
    evaluated_after: Container[int] = (),
    first: int = 0,
    skips: NonFiniteSkipCounter | None = None,
    scored: int | None = None,
    has_enough: Callable[[], bool] = lambda: False,
) -> None:
    """Step the method, evaluate when due and at the end, and call the callbacks.

    Args:
        method: the method to train.
        steps: total number of steps; 0 for a method that only reads, which is evaluated once.
        callbacks: called for each step and evaluation, and at the end, even after an error.
        evaluate: scores the current model.
        evaluated_after: numbers of steps after which to evaluate; the last one always is.
        first: number of steps already made.
        skips: counts steps with a non-finite loss; by default none may be skipped.
        scored: number of steps before the last evaluation of a resumed run; None for none.
        has_enough: called before each step; whether to stop before it.

    Raises:
        NonFiniteError: a step had a non-finite loss; the message has its number. Callbacks were called, and the step
            updated nothing.
    """

    def evaluate_if_due(steps_made: int) -> None:
        if steps_made not in evaluated_after and steps_made != steps:
            return
        for callback in callbacks:
            callback.before_evaluation(steps_made)
        scores = evaluate()
        for callback in callbacks:
            callback.after_evaluation(steps_made, scores)

    counted = skips or NonFiniteSkipCounter()
    error: BaseException | None = None
    try:
        for callback in callbacks:
            callback.before_run()
        if scored != first and (first or not steps):  # stopped before it, or a method that only reads
            evaluate_if_due(first)
        for number in range(first, steps):
            if has_enough():
                break
            _make_step(method, number, callbacks, counted)
            evaluate_if_due(number + 1)
            if number + 1 < steps and not has_enough():
                for callback in callbacks:
                    callback.between_steps(number + 1)
    except BaseException as problem:
        error = problem
        raise
    finally:
        with ExitStack() as ending:  # all are called, even if one cannot write any more
            for callback in reversed(callbacks):
                ending.callback(callback.after_run, error)


def _make_step(method: Method, number: int, callbacks: Sequence[Callback], skips: NonFiniteSkipCounter) -> None:
    """Make one step and call the callbacks, or skip it if its loss is not finite."""
    try:
        with drawing(number + 1):
            log = method.step(number)
    except NonFiniteError as problem:
        named = problem if problem.step is not None else NonFiniteError(problem.what, number)
        skips.in_a_row += 1
        if skips.in_a_row > skips.most:
            raise named from problem
        for callback in callbacks:
            callback.after_skip(number, named)
    else:
        skips.in_a_row = 0
        for callback in callbacks:
            callback.after_step(number, log)
