"""A forward pass that carries low-rank terms: where a tensor is used, its terms are added to the activations.

For a matrix W with terms c_k left_k right_k.T / sqrt(rank), `x @ W.T` becomes `x @ W.T + ((x @ right) * c) @ left.T`,
where c is that of the row of the batch. The weights are only read, and no module is touched: for the time of the
forward, the selected parameters are of a class whose operations torch hands to us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zofo.backbone import leaving_out
from zofo.errors import EvaluatorError
from zofo.evaluators.low_rank_terms import LowRankTerms
from zofo.evaluators.row_layout import Layout

_BINARY = {"mul", "add", "sub", "div", "true_divide", "multiply"}
_SAME_SHAPE = {"float", "double", "half", "bfloat16", "to", "type", "type_as", "clone", "contiguous", "neg", "detach"}
_QUESTIONS = {"size", "dim", "ndimension", "numel", "nelement", "len", "stride", "storage_offset", "element_size"}
_QUESTIONS |= {"is_floating_point", "is_complex", "is_signed", "is_contiguous", "is_same_size", "is_inference"}
_QUESTIONS |= {"get_device", "result_type", "can_cast", "hash", "repr", "requires_grad"}  # same answer at every point


class _PerturbedParameter(nn.Parameter):
    """A selected parameter while a forward pass carries terms: torch hands us each operation that it takes part in."""

    carrier: PerturbedForward
    carried_name: str

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        touched = _first_carried((*args, *(kwargs or {}).values()))
        with torch._C.DisableTorchFunctionSubclass():
            return touched.carrier.answer(func, touched, args, kwargs or {})


class _CarriedVector(torch.Tensor):
    """What an operation made of a selected vector, with its values at each point."""

    carrier: PerturbedForward
    carried_name: str
    values_of_rows: torch.Tensor

    __torch_function__ = _PerturbedParameter.__torch_function__


def _first_carried(values: Iterable[Any]) -> Any:
    for value in values:
        if isinstance(value, _PerturbedParameter | _CarriedVector):
            return value
        if isinstance(value, tuple | list) and (found := _first_carried(value)) is not None:
            return found
    return None


class PerturbedForward:
    """While it is open, the model's operations on selected tensors carry the terms.

    For as long, the selected parameters are of a class whose operations torch passes on to us; no module is touched,
    and no number is written.

    Args:
        parameters: the selected parameters, each with the name of its tensor.
        terms: what the rows carry.
        layout: where the rows stand.

    Attributes:
        answering: whether an operation of a selected tensor is being carried out.

    Raises:
        EvaluatorError: (from the forward) an operation it has no answer for, naming the tensor.
    """

    def __init__(self, parameters: Iterable[tuple[nn.Parameter, str]], terms: LowRankTerms, layout: Layout) -> None:
        self._parameters = parameters
        self._terms = terms
        self._layout = layout
        self.answering = False
        self._vectors: dict[str, torch.Tensor] = {}  # values of those with one axis or none
        self._answers: dict[str, Callable[..., Any]] = {
            "linear": self._linear,
            "addmm": self._addmm,
            "matmul": self._matmul,
            "mm": self._matmul,
            "embedding": self._embedding,
            "layer_norm": self._layer_norm,
            "rms_norm": self._rms_norm,
        }

    def __enter__(self) -> None:
        try:
            for parameter, name in self._parameters:
                carried: Any = parameter
                carried.carrier, carried.carried_name, carried.__class__ = self, name, _PerturbedParameter
        except BaseException:  # an interrupt
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for parameter, _name in self._parameters:
            released: Any = parameter
            released.__class__ = nn.Parameter
            vars(released).pop("carrier", None)
            vars(released).pop("carried_name", None)

    def answer(
        self, func: Callable[..., Any], touched: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The result of an operation in which `touched`, a selected tensor, takes part."""
        outer, self.answering = self.answering, True
        try:
            return self._answered(func, touched, args, kwargs)
        finally:
            self.answering = outer

    def _answered(
        self, func: Callable[..., Any], touched: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        operation = getattr(func, "__name__", str(func))
        reads = operation == "__get__"
        if reads or operation == "__set__":  # an attribute
            operation = getattr(getattr(func, "__self__", None), "__name__", operation)
        plain = operation.strip("_")
        in_place = operation.endswith("_") and not operation.endswith("__")
        if reads or plain in _QUESTIONS or (plain in _SAME_SHAPE and _is_matrix(touched)):
            result = func(*args, **kwargs)
            if result is touched or not _holds_tensors(result):
                return result
            raise unanswered(touched, operation)
        answer = None if in_place else self._answers.get(plain)  # y.addmm_(x, w) is to change y
        result = answer(*args, **kwargs) if answer else self._elementwise(func, operation, args, kwargs)
        if result is NotImplemented:
            raise unanswered(touched, operation)
        return result

    # operations on matrices

    def _linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        return self._product(F.linear, input, weight, bias, transposed=False)

    def _addmm(self, input: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor, **scales: Any) -> Any:
        if scales or _is_matrix(mat1):
            return NotImplemented
        return self._product(lambda x, w, _: x @ w, mat1, mat2, input, transposed=True)

    def _matmul(self, input: torch.Tensor, other: torch.Tensor) -> Any:
        if _is_matrix(input) or other.dim() != 2:
            return NotImplemented
        return self._product(lambda x, w, _: x @ w, input, other, None, transposed=True)

    def _product(
        self, multiply: Callable[..., torch.Tensor], x: torch.Tensor, weight: Any, bias: Any, transposed: bool
    ) -> torch.Tensor:
        for factor in (x, weight):
            if _is_vector(factor) or (factor is x and _is_matrix(factor)):
                raise unanswered(factor, "a product")
        if not _is_matrix(weight):
            return self._plus(multiply(x, weight, None), bias)
        name = weight.carried_name
        x, weight = _autocast(self._layout.with_rows(x, name, self._terms.rows)), _autocast(weight)
        # the carried product first: adding the model's own onto it costs nothing, adding it afterwards one more pass
        out = self._terms.delta_matmul(x, name, transposed)
        out.addmm_(x.reshape(-1, x.shape[-1]), weight if transposed else weight.T)
        return self._plus(out.view(*x.shape[:-1], out.shape[-1]), bias)

    def _plus(self, out: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if bias is None:
            return out
        if _is_vector(bias):
            return self._rowwise(torch.add, out, bias, out.dtype)
        if _is_matrix(bias):
            raise unanswered(bias, "a sum")
        return out.add_(bias)

    def _embedding(
        self,
        input: torch.Tensor,
        weight: Any,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        *others: Any,
        **options: Any,
    ) -> Any:
        if max_norm is not None or not _is_matrix(weight):
            return NotImplemented
        name = weight.carried_name
        ids = self._layout.with_rows(input, name, self._terms.rows)
        out = self._terms.delta_embedding(ids.reshape(-1), name, weight.dtype).view(*ids.shape, -1)
        return out.add_(F.embedding(ids, weight))

    # operations on vectors: norms, biases and scales

    def _layer_norm(
        self, input: torch.Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Any:
        if any(map(_is_matrix, (input, weight))) or _is_vector(input):
            return NotImplemented
        return self._scaled(F.layer_norm(input, normalized_shape, None, None, eps), weight, bias)

    def _rms_norm(
        self, input: torch.Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None
    ) -> Any:
        if any(map(_is_matrix, (input, weight))) or _is_vector(input):
            return NotImplemented
        return self._scaled(F.rms_norm(input, normalized_shape, None, eps), weight, None)

    def _scaled(self, out: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        if weight is not None:
            out = self._rowwise(torch.mul, out, weight, out.dtype) if _is_vector(weight) else out * weight
        return self._plus(out, bias)

    def _elementwise(
        self, func: Callable[..., Any], operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """An operation that takes a vector entry by entry: with another tensor, with a number, or alone."""
        places = [place for place, value in enumerate(args[:2]) if _is_vector(value)]
        tensors = sum(isinstance(value, torch.Tensor) for value in args)
        if len(places) != 1 or any(map(_is_matrix, args)):
            return NotImplemented
        place = places[0]
        vector = args[place]
        in_place, operation = operation.endswith("_") and not operation.endswith("__"), operation.strip("_")
        plain = operation if operation in _BINARY else operation.removeprefix("r")
        if tensors == 2 and plain in _BINARY and not kwargs:
            first = (place == 0) == (plain == operation)  # a reflected operation has its operands the other way round
            x, combine = args[1 - place], getattr(torch, plain)
            if in_place and (first or x.shape[:1] != (self._terms.rows,)):
                return NotImplemented
            dtype = torch.result_type(*args[:2])
            out = self._rowwise((lambda x, values: combine(values, x)) if first else combine, x, vector, dtype)
            return x.copy_(out) if in_place else out
        if tensors == 1 and not in_place and (plain in _BINARY or operation in _SAME_SHAPE):
            made = func(*args, **kwargs)
            if not isinstance(made, torch.Tensor) or not made.is_floating_point():  # float(w), w.long()
                return NotImplemented
            values = self._values(vector)
            if plain in _BINARY or operation == "neg":
                values = func(*[values if i == place else value for i, value in enumerate(args)], **kwargs)
            elif torch.finfo(made.dtype).eps > torch.finfo(vector.dtype).eps:  # the model rounds it
                values = values.to(made.dtype)
            # without numbers, so that code that looks past these functions fails instead of taking those of theta
            made = torch.empty_like(made, device="meta").as_subclass(_CarriedVector)
            made.carrier, made.carried_name, made.values_of_rows = self, vector.carried_name, values
            return made
        return NotImplemented

    def _values(self, vector: Any) -> torch.Tensor:
        """The values of a vector: float32, [points, entries], or [rows, entries] where rows have terms of their own."""
        if isinstance(vector, _CarriedVector):
            return vector.values_of_rows
        if not self._vectors:
            self._vectors = self._terms.vectors({name: p for p, name in self._parameters if p.dim() < 2})
        return self._vectors[vector.carried_name]

    def _rowwise(
        self, combine: Callable[..., torch.Tensor], x: torch.Tensor, vector: Any, dtype: torch.dtype
    ) -> torch.Tensor:
        values = self._values(vector)
        x = self._layout.with_rows(x, vector.carried_name, self._terms.rows)
        if x.shape[-1:] != values.shape[1:] and values.shape[1] != 1:
            raise unanswered(vector, f"a tensor of shape {list(x.shape)}")
        return combine(x.reshape(len(values), -1, values.shape[1]), values.unsqueeze(1)).view(x.shape).to(dtype)


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """A factor of a product in the number type that `torch.autocast` asks for."""
    if not torch.is_autocast_enabled(tensor.device.type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _is_matrix(value: object) -> bool:
    return isinstance(value, _PerturbedParameter) and value.dim() > 1


def _is_vector(value: object) -> bool:
    return isinstance(value, _CarriedVector) or (isinstance(value, _PerturbedParameter) and value.dim() < 2)


def unanswered(tensor: Any, operation: str, name: str | None = None) -> EvaluatorError:
    """What to say of a use of a selected tensor that has no answer."""
    name, shape = name or tensor.carried_name, " x ".join(map(str, tensor.shape))
    return EvaluatorError(
        f"the model uses {name!r} ({shape}) through {operation!r}, which cannot carry a direction in the forward",
        f"{leaving_out(name)}, or set method.evaluator=in-place",
    )


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_tensors, value))
    return isinstance(value, torch.Tensor)
