"""Tensor classes of the selected parameters during a perturbed forward: torch dispatches their operations to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from zofo.backbone import leaving_out
from zofo.errors import EvaluatorError

_BOTH_AXES = ([0, 1], [-2, -1], [-1, 0], [-2, 1])


class Carrier(Protocol):
    """The forward that applies the low-rank terms."""

    answering: bool

    def answer(self, func: Callable[..., Any], touched: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation that uses `touched`, a selected tensor."""


class Uncarried(EvaluatorError):
    """A selected tensor is used in a way that a perturbed forward does not support.

    Attributes:
        name: name of the tensor.
        names: names of the tensors of the same kind, which are treated alike.
    """

    name: str = ""
    names: Sequence[str] = ()


def uncarried(name: str, message: str) -> Uncarried:
    """An `Uncarried` error with advice."""
    error = Uncarried(
        message, f"{leaving_out(name)}, or set method.evaluator.uncarried=in-place or method.evaluator=in-place"
    )
    error.name = name
    return error


def unanswered(tensor: Any, operation: str, name: str | None = None) -> Uncarried:
    """The message for a use of a selected tensor that is not supported."""
    name, shape = name or tensor.carried_name, " x ".join(map(str, tensor.shape))
    return uncarried(
        name, f"the model uses {name!r} ({shape}) through {operation!r}, which cannot carry a direction in the forward"
    )


class PerturbedParameter(nn.Parameter):
    """A selected parameter during a perturbed forward: torch dispatches every operation on it to the forward."""

    carrier: Carrier
    carried_name: str

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        touched: Any = _first_carried((*args, *(kwargs or {}).values()))
        with torch._C.DisableTorchFunctionSubclass():
            return touched.carrier.answer(func, touched, args, kwargs or {})


class CarriedVector(torch.Tensor):
    """The result of an operation on a selected vector, with its values at each point."""

    carrier: Carrier
    carried_name: str
    values_of_rows: torch.Tensor

    __torch_function__ = PerturbedParameter.__torch_function__


class CarriedTransposed(torch.Tensor):
    """The transpose of a selected matrix."""

    carrier: Carrier
    carried_name: str
    matrix: Any

    __torch_function__ = PerturbedParameter.__torch_function__


_CARRIED = (PerturbedParameter, CarriedVector, CarriedTransposed)  # a union type would be built at each operation


def _first_carried(values: Iterable[Any]) -> Any:
    for value in values:
        if is_carried(value):
            return value
        if isinstance(value, tuple | list) and (found := _first_carried(value)) is not None:
            return found
    return None


def is_carried(value: object) -> bool:
    """Whether it is a selected tensor, or derived from one, and has terms."""
    return isinstance(value, _CARRIED)


def is_matrix(value: object) -> bool:
    """Whether it has terms and at least two axes."""
    return isinstance(value, CarriedTransposed) or (isinstance(value, PerturbedParameter) and value.dim() > 1)


def is_transposing(touched: Any, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation transposes a selected matrix: `w.T`, `w.t()`, `w.transpose(0, 1)`."""
    if not isinstance(touched, PerturbedParameter) or touched.dim() != 2 or kwargs:
        return False
    axes = tuple(args[1:]) if args and args[0] is touched else ()
    return operation in ("T", "mT", "t") or (operation in ("transpose", "swapaxes") and sorted(axes) in _BOTH_AXES)


def is_vector(value: object) -> bool:
    """Whether it has terms and fewer than two axes."""
    return isinstance(value, CarriedVector) or (isinstance(value, PerturbedParameter) and value.dim() < 2)
