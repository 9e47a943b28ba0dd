"""The loop."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from zofo.errors import NonFiniteError
from zofo.methods import Method
from zofo.training.callbacks import Callback
from zofo.training.evaluation import Evaluation


def run_loop(
    method: Method,
    steps: int,
    callbacks: Sequence[Callback],
    evaluate: Callable[[], Mapping[str, Evaluation]],
    evaluated_after: Container[int] = (),
) -> None:
    """Step the method, evaluate when it is due and at the end, and tell the callbacks.

    Args:
        method: what is trained.
        steps: how many; 0 for a method that only reads, which is evaluated once.
        callbacks: told of each step and evaluation, and of the end however it comes.
        evaluate: scores the method as it stands.
        evaluated_after: numbers of steps after which it is evaluated; after the last one it always is.

    Raises:
        NonFiniteError: of a step, with its number; the callbacks were told, and nothing was updated by that step.
    """

    def look(steps_made: int) -> None:
        scores = evaluate()
        for callback in callbacks:
            callback.after_evaluation(steps_made, scores)

    error: BaseException | None = None
    try:
        if steps == 0:
            look(0)
        for number in range(steps):
            try:
                log = method.step(number)
            except NonFiniteError as problem:
                raise problem if problem.step is not None else NonFiniteError(problem.what, number) from problem
            for callback in callbacks:
                callback.after_step(number, log)
            if number + 1 == steps or number + 1 in evaluated_after:
                look(number + 1)
    except BaseException as problem:
        error = problem
        raise
    finally:
        for callback in callbacks:
            callback.after_run(error)
