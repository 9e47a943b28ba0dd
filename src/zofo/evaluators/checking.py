"""What is found out about a model before its first step: whether it runs, and what it does with selected tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zofo.errors import EvaluatorError, ZofoError, out_of_memory
from zofo.evaluators.base import Objective
from zofo.evaluators.watching import look, refuse_changing

IN_PLACE = "set method.evaluator=in-place"
_SAME, _SAME_HALF = 1e-4, 1e-2  # relative to the mean loss; kernels that add in any order differ by rounding


def check_by_itself(
    model: nn.Module, objective: Objective, batch: Any, parameters: Sequence[tuple[str, nn.Parameter]]
) -> None:
    """Run a model twice as it is, without a trace.

    Args:
        model: run by the objective.
        objective: what is asked.
        batch: of what.
        parameters: the selected ones, each with the name of its tensor.

    Raises:
        EvaluatorError: it cannot be run, writes into a selected tensor, keeps what it made of one, or gives other
            losses each time.
    """
    losses: list[torch.Tensor] = []
    try:
        looks = look(model, lambda: losses.append(objective(model, batch).float()), parameters, times=2)
    except (ZofoError, MemoryError):
        raise
    except Exception as error:  # a forward fails in as many ways as there are models
        if out_of_memory(error):
            raise
        raise EvaluatorError(
            f"{type(model).__name__} cannot be run on the first examples, with or without directions: {reason(error)}",
            "run objective(model, batch) by itself, and mend what it says",
        ) from error
    refuse_changing(looks[0], looks[1], dict.fromkeys(name for name, _ in parameters))
    first, second = losses
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for _, parameter in parameters)
    if ((first - second).abs() > (_SAME_HALF if half else _SAME) * first.abs().mean()).any():
        raise EvaluatorError(
            "the model's losses of the same rows differ from one run to the next, as with dropout, so that two points "
            "cannot be compared",
            "call model.eval(), or make the model repeat itself",
        )


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """While it is open, whatever the model raises is said in one message, as `what` because of it."""
    try:
        yield
    except (ZofoError, MemoryError):
        raise
    except Exception as error:  # a forward fails in as many ways as there are models
        if out_of_memory(error):
            raise
        raise EvaluatorError(f"the model cannot {what} because {reason(error)}", IN_PLACE) from error


def reason(error: BaseException) -> str:
    """What an error says, in one line: its last one where its text is a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    traced = any(line.startswith("Traceback") for line in lines) and not lines[-1].endswith(":")
    said = (lines[-1] if traced else lines[0])[:200] if lines else ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
