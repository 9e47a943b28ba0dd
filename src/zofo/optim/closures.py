"""What a closure may return: one loss per example, or their mean; anything else is refused early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zofo.errors import EvaluatorError
from zofo.optim.interrupts import Interrupts

Closure = Callable[..., Any]
"""() -> losses, or (batch) -> losses: shape [examples], or a number that is their mean."""

_HALF = (torch.bfloat16, torch.float16)


class ClosureObjective:
    """A closure as the objective of one step.

    Args:
        closure: the user's closure.
        takes_batch: whether it gets the batch.
        fixed: whether it must always return the same number of losses, as without a repeated batch.
        least: minimum number of losses.
        interrupts: lets Ctrl-C through while it runs.

    Attributes:
        failure: the last exception of the closure.
    """

    def __init__(self, closure: Closure, takes_batch: bool, fixed: bool, least: int, interrupts: Interrupts) -> None:
        self._closure, self._takes_batch, self._fixed = closure, takes_batch, fixed
        self._least, self._interrupts = least, interrupts
        self.shape: torch.Size | None = None
        self.failure: Exception | None = None

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The losses, [examples]; [1] for a closure that returns a mean."""
        try:
            with self._interrupts.let_through():
                given = self._closure(batch) if self._takes_batch else self._closure()
            return self._checked(_as_losses(given))
        except Exception as error:  # a closure can raise anything
            self.failure = _explained(error)
            if self.failure is error:
                raise
            raise self.failure from error

    def _checked(self, losses: torch.Tensor) -> torch.Tensor:
        if not self._fixed and not losses.dim():
            raise EvaluatorError(
                "the closure gave one number, the mean of its batch, but all points share one forward, whose rows have "
                "losses of their own",
                "return one loss for each example, as with reduction='none'; or set evaluator=in-place",
            )
        if self._fixed and self.shape is not None and losses.shape != self.shape:
            raise EvaluatorError(
                f"the closure gave losses of shape {list(self.shape)} and then of shape {list(losses.shape)}, so that "
                "two points of one step cannot be compared",
                "let it use the same batch each time it is called in a step: draw the batch before, outside of it",
            )
        if losses.numel() < self._least:
            raise EvaluatorError(
                "normalize_by_std divides by how much the examples' slopes differ, but the closure gave one loss",
                "return one loss for each example, or set num_directions=2 or more",
            )
        self.shape = losses.shape
        return losses.reshape(-1)


def _explained(error: Exception) -> Exception:
    """The error for a closure that calls `backward`, or reads from an iterator that is exhausted; other errors
    unchanged."""
    if isinstance(error, StopIteration):
        return EvaluatorError(
            "the data ended while the closure drew a batch",
            "draw the batch before, as `for batch in loader: optimizer.step(lambda: losses_of(batch))` does",
        )
    if isinstance(error, RuntimeError) and "does not require grad" in str(error):
        return EvaluatorError(
            "the closure calls backward(), but a zeroth-order step takes no gradient",
            "return the loss from the closure, and leave out loss.backward() and optimizer.zero_grad()",
        )
    return error


def _as_losses(given: Any) -> torch.Tensor:
    """The result of a closure as losses; raises EvaluatorError for anything else."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        return torch.tensor(float(given))
    if not isinstance(given, torch.Tensor):
        instead = "return output.loss" if hasattr(given, "loss") else "return the mean loss, or one for each example"
        raise EvaluatorError(f"the closure gave {type(given).__name__}, and no losses", f"{instead} from the closure")
    if given.dtype in _HALF:
        kind = str(given.dtype).removeprefix("torch.")
        raise EvaluatorError(
            f"the closure gave {kind} losses, whose rounding is larger than what two points differ by",
            "compute the loss in float32, as F.cross_entropy(logits.float(), labels) does",
        )
    if given.dim() > 1 or not given.numel() or given.is_complex():
        raise EvaluatorError(
            f"the closure gave a tensor of shape {list(given.shape)}, and no losses",
            "return a tensor with one loss for each example, shape [examples], or their mean",
        )
    return given.detach() if given.is_floating_point() else given.detach().float()


def check_modes(model: nn.Module) -> None:
    """Refuse modules whose mode makes two points of one step different models.

    Raises:
        EvaluatorError: dropout or batch normalisation is in train mode; the message names it.
    """
    for name, part in model.named_modules():
        if not part.training:
            continue
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise EvaluatorError(
                f"the dropout {name!r} is in train mode, so that two points of one step would not be the same model",
                "call model.eval() before optimizer.step(closure)",
            )
        if isinstance(part, nn.modules.batchnorm._NormBase) and (
            part.track_running_stats or isinstance(part, nn.modules.batchnorm._BatchNorm)
        ):
            raise EvaluatorError(
                f"the normalisation {name!r} is in train mode, so that each forward would write its running statistics "
                "at a point that is not theta",
                "call model.eval() before optimizer.step(closure)",
            )
