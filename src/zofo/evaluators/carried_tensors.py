"""Selected tensors while a forward pass carries terms: of classes whose operations torch hands on to the forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from zofo.backbone import leaving_out
from zofo.errors import EvaluatorError

_BOTH_AXES = ([0, 1], [-2, -1], [-1, 0], [-2, 1])


class Carrier(Protocol):
    """What carries the terms."""

    answering: bool

    def answer(self, func: Callable[..., Any], touched: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation in which `touched`, a selected tensor, takes part."""


class Uncarried(EvaluatorError):
    """A use of a selected tensor that no forward can carry.

    Attributes:
        name: of the tensor.
        names: of those that are made alike, which share its lot.
    """

    name: str = ""
    names: Sequence[str] = ()


def uncarried(name: str, message: str) -> Uncarried:
    """That error, with what to do about it."""
    error = Uncarried(
        message, f"{leaving_out(name)}, or set method.evaluator.uncarried=in-place or method.evaluator=in-place"
    )
    error.name = name
    return error


def unanswered(tensor: Any, operation: str, name: str | None = None) -> Uncarried:
    """What to say of a use of a selected tensor that has no answer."""
    name, shape = name or tensor.carried_name, " x ".join(map(str, tensor.shape))
    return uncarried(
        name, f"the model uses {name!r} ({shape}) through {operation!r}, which cannot carry a direction in the forward"
    )


class PerturbedParameter(nn.Parameter):
    """A selected parameter while a forward pass carries terms: torch hands us each operation that it takes part in."""

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
    """What an operation made of a selected vector, with its values at each point."""

    carrier: Carrier
    carried_name: str
    values_of_rows: torch.Tensor

    __torch_function__ = PerturbedParameter.__torch_function__


class CarriedTransposed(torch.Tensor):
    """The transposed of a selected matrix."""

    carrier: Carrier
    carried_name: str
    matrix: Any

    __torch_function__ = PerturbedParameter.__torch_function__


_CARRIED = (PerturbedParameter, CarriedVector, CarriedTransposed)  # a union would be made anew at each operation


def _first_carried(values: Iterable[Any]) -> Any:
    for value in values:
        if is_carried(value):
            return value
        if isinstance(value, tuple | list) and (found := _first_carried(value)) is not None:
            return found
    return None


def is_carried(value: object) -> bool:
    """Whether it is a selected tensor, or was made of one, and carries terms."""
    return isinstance(value, _CARRIED)


def is_matrix(value: object) -> bool:
    """Whether it carries terms and has two axes or more."""
    return isinstance(value, CarriedTransposed) or (isinstance(value, PerturbedParameter) and value.dim() > 1)


def is_transposing(touched: Any, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation makes the transposed of a selected matrix: `w.T`, `w.t()`, `w.transpose(0, 1)`."""
    if not isinstance(touched, PerturbedParameter) or touched.dim() != 2 or kwargs:
        return False
    axes = tuple(args[1:]) if args and args[0] is touched else ()
    return operation in ("T", "mT", "t") or (operation in ("transpose", "swapaxes") and sorted(axes) in _BOTH_AXES)


def is_vector(value: object) -> bool:
    """Whether it carries terms and has one axis or none."""
    return isinstance(value, CarriedVector) or (isinstance(value, PerturbedParameter) and value.dim() < 2)
