"""A forward pass with low-rank terms: where the model uses a tensor, the effect of its terms is added to the
activations.

For a matrix W with terms c_k left_k right_k.T / sqrt(rank), `x @ W.T` becomes `x @ W.T + ((x @ right) * c) @ left.T`,
where c is the coefficient of each row of the batch. The weights are only read: during the forward, the selected
parameters have a tensor class whose operations torch dispatches to us. Operations without such a form use W + Delta
itself, in a module that is run once per point; no other module is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

from zofo.evaluators.carried_tensors import (
    CarriedTransposed,
    CarriedVector,
    PerturbedParameter,
    Uncarried,
    is_carried,
    is_matrix,
    is_transposing,
    is_vector,
    unanswered,
)
from zofo.evaluators.low_rank_terms import Block, LowRankTerms
from zofo.evaluators.per_point import note_input, note_output, replaced_forwards, run_for_each
from zofo.evaluators.row_layout import Layout
from zofo.temporary import temporarily

_BINARY = {"mul", "add", "sub", "div", "true_divide", "multiply"}
_SAME_SHAPE = {"float", "double", "half", "bfloat16", "to", "type", "type_as", "clone", "contiguous", "neg", "detach"}
_ASSIGNMENTS = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__"}
_ASSIGNMENTS |= {"__imatmul__", "__iand__", "__ior__", "__ixor__", "__setitem__"}
_QUESTIONS = {"size", "dim", "ndimension", "numel", "nelement", "len", "stride", "storage_offset", "element_size"}
_QUESTIONS |= {"is_floating_point", "is_complex", "is_signed", "is_contiguous", "is_same_size", "is_inference"}
_QUESTIONS |= {"get_device", "result_type", "can_cast", "hash", "repr", "requires_grad"}  # same answer at every point


class PerturbedForward:
    """Context in which the model's operations on selected tensors apply the terms.

    The selected parameters get a tensor class whose operations torch dispatches to us, and the modules that run once
    per point get another forward. No weight is written.

    Args:
        parameters: the selected parameters, each with the name of its tensor.
        terms: the terms of each row.
        layout: where rows are in each tensor.
        rows: number of rows in the batch.
        per_point: the modules that are run once per point, with their names.
        around: context in which such a module runs on a block of rows.

    Attributes:
        answering: whether an operation on a selected tensor is being computed.
        met: whether one has been computed, after which points differ.

    Raises:
        EvaluatorError: (from the forward) an operation is not supported; the message names the tensor.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[nn.Parameter, str]],
        terms: LowRankTerms,
        layout: Layout,
        rows: int,
        per_point: Sequence[tuple[str, nn.Module]] = (),
        around: Callable[[Block], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._parameters = parameters
        self._terms = terms
        self._rows = rows
        self._all = terms, rows
        self._around = around or (lambda _: nullcontext())
        self._in_block = False  # of rows with the same terms, in a module that runs once per point
        self._alike = False  # the rows of one point, in a layer that all points share
        self.met = False
        self._per_point = per_point
        self._replaced = ExitStack()  # their forwards
        self._layout = layout
        self.answering = False
        self._vectors: dict[LowRankTerms, dict[str, torch.Tensor]] = {}  # values of those with one axis or none
        self._answers: dict[str, Callable[..., Any]] = {
            "linear": self._linear,
            "addmm": self._addmm,
            "addmm_": self._addmm_,
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
                carried.carrier, carried.carried_name, carried.__class__ = self, name, PerturbedParameter
            own = ((module, partial(self._run, name, module.forward)) for name, module in self._per_point)
            self._replaced.enter_context(replaced_forwards(own))
        except BaseException:  # an interrupt
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for parameter, _name in self._parameters:
            released: Any = parameter
            released.__class__ = nn.Parameter
            vars(released).pop("carrier", None)
            vars(released).pop("carried_name", None)
        self._replaced.close()

    def keep_rows(self, rows: Sequence[int] | None) -> None:
        """Restrict the batch to some of its rows, with their terms; None restores all rows."""
        self._terms, self._rows = self._all
        if rows is not None:
            self._terms, self._rows = self._terms.of_rows(rows), len(rows)

    def _run(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a module once per point."""
        if self._in_block or self._alike:
            return forward(*args, **kwargs)
        self.met = True
        if self._terms.rows > 1:
            blocks = self._terms.blocks()
            return run_for_each(forward, self._block, blocks, (args, kwargs), self._layout, name)
        note_input(self._layout, (args, kwargs), name, self._rows)
        with self._block(Block(0, self._rows, self._terms)):
            made = forward(*args, **kwargs)
        note_output(self._layout, made, name, self._rows)
        return made

    def alike(self) -> AbstractContextManager[None]:
        """Context in which the batch holds the rows of one point, since all points are equal."""
        return temporarily(self, _alike=True)

    @contextmanager
    def _block(self, block: Block) -> Iterator[None]:
        """Context in which all rows have the terms of one block."""
        kept, self._terms, self._in_block = self._terms, block.terms, True
        try:
            with self._around(block):
                yield
        finally:
            self._terms, self._in_block = kept, False

    def answer(self, func: Callable[..., Any], touched: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation that uses `touched`, a selected tensor."""
        outer, self.answering = self.answering, True
        try:
            direct = None if self._in_block else self._answers.get(getattr(func, "__name__", ""))
            result = NotImplemented if direct is None else direct(*args, **kwargs)
            if result is NotImplemented:
                result = self._answered(func, touched, args, kwargs)
            self.met = self.met or _holds_tensors(result)
            return result
        finally:
            self.answering = outer

    def _answered(self, func: Callable[..., Any], touched: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        operation = getattr(func, "__name__", str(func))
        reads = operation == "__get__"
        sets = operation == "__set__"
        if reads or sets:  # an attribute
            operation = getattr(getattr(func, "__self__", None), "__name__", operation)
        plain = operation.strip("_")
        if is_transposing(touched, plain, args, kwargs):
            made: Any = torch.empty_like(touched.T, device="meta").as_subclass(CarriedTransposed)  # without numbers
            made.carrier, made.carried_name, made.matrix = self, touched.carried_name, touched
            return made
        in_place = operation.endswith("_") and not operation.endswith("__")
        if reads or plain in _QUESTIONS or (plain in _SAME_SHAPE and is_matrix(touched)):
            result = func(*args, **kwargs)
            if result is touched or not _holds_tensors(result):
                return result
            if not self._in_block:
                raise unanswered(touched, operation)
        answer = self._answers.get(operation if in_place else plain)  # y.addmm_(x, w) is to change y
        if answer is None:
            answer = partial(self._elementwise, func, operation)
        writes = sets or operation in _ASSIGNMENTS or in_place
        if self._in_block and not (writes and is_carried(args[0])) and not is_carried(kwargs.get("out")):
            return self._in_block_answer(answer, func, args, kwargs)
        result = answer(*args, **kwargs)
        if result is NotImplemented:
            raise unanswered(touched, operation)
        return result

    def _in_block_answer(
        self, answer: Callable[..., Any], func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The result by terms if possible, otherwise with the moved tensors themselves."""
        traced = torch.is_grad_enabled() or any(
            isinstance(value, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value) for value in args
        )
        try:
            result = NotImplemented if traced else answer(*args, **kwargs)
        except Uncarried:
            result = NotImplemented
        if result is not NotImplemented:
            return result
        return func(*tree_map(self._whole, args), **tree_map(self._whole, kwargs))

    def _whole(self, value: Any) -> Any:
        """A selected tensor as a plain one, moved by the terms that all rows share; other values unchanged."""
        if not is_carried(value):
            return value
        if isinstance(value, CarriedTransposed):
            return self._terms.moved(value.matrix, value.carried_name).T
        if is_matrix(value):
            return self._terms.moved(value, value.carried_name)
        return self._values(value)[0].view(value.shape).to(value.dtype)

    def _with_rows(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """`x` with the rows of the batch first; unchanged if all rows have the same terms."""
        if self._terms.rows > 1:
            return self._layout.with_rows(x, name, self._rows)
        if not self._in_block:
            self._layout.see(x, name, self._rows)
        return x

    # operations on matrices

    def _linear(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        return self._product(F.linear, input, weight, bias, transposed=False)

    def _addmm(self, input: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor, **scales: Any) -> Any:
        if scales or is_matrix(mat1):
            return NotImplemented
        return self._product(lambda x, w, _: x @ w, mat1, mat2, input, transposed=True)

    def _addmm_(self, input: torch.Tensor, mat1: torch.Tensor, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
        if beta != 1 or not is_matrix(mat2) or any(map(is_carried, (input, mat1))) or not input.is_contiguous():
            return NotImplemented
        if input.dtype != mat1.dtype or torch.is_autocast_enabled(input.device.type):
            return NotImplemented
        transposed = not isinstance(mat2, CarriedTransposed)
        if self._with_rows(mat1, mat2.carried_name).shape != mat1.shape:
            return NotImplemented
        weight = mat2 if transposed else mat2.matrix
        return self._terms.add_matmul_(input, mat1, weight, mat2.carried_name, transposed, alpha)

    def _matmul(self, input: torch.Tensor, other: torch.Tensor) -> Any:
        if is_matrix(input) or other.dim() != 2:
            return NotImplemented
        return self._product(lambda x, w, _: x @ w, input, other, None, transposed=True)

    def _product(
        self, multiply: Callable[..., torch.Tensor], x: torch.Tensor, weight: Any, bias: Any, transposed: bool
    ) -> torch.Tensor:
        if isinstance(weight, CarriedTransposed):
            weight, transposed = weight.matrix, not transposed
        for factor in (x, weight):
            if is_vector(factor) or (factor is x and is_matrix(factor)):
                raise unanswered(factor, "a product")
        if not is_matrix(weight):
            return self._plus(multiply(x, weight, None), bias)
        name = weight.carried_name
        x = self._with_rows(x, name)
        if torch.is_autocast_enabled(x.device.type):
            x, weight = (each.to(torch.get_autocast_dtype(x.device.type)) for each in (x, weight))
        out = self._terms.matmul(x, weight, name, transposed)
        return self._plus(out.view(*x.shape[:-1], out.shape[-1]), bias)

    def _plus(self, out: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if bias is None:
            return out
        if is_vector(bias):
            return self._rowwise(torch.add, out, bias, out.dtype)
        if is_matrix(bias):
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
        if max_norm is not None or not is_matrix(weight) or isinstance(weight, CarriedTransposed):
            return NotImplemented
        name = weight.carried_name
        ids = self._with_rows(input, name)
        out = self._terms.delta_embedding(ids.reshape(-1), name, weight.dtype).view(*ids.shape, -1)
        return out.add_(F.embedding(ids, weight))

    # operations on vectors: norms, biases and scales

    def _layer_norm(
        self, input: torch.Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Any:
        if any(map(is_matrix, (input, weight))) or is_vector(input):
            return NotImplemented
        return self._scaled(F.layer_norm(input, normalized_shape, None, None, eps), weight, bias)

    def _rms_norm(
        self, input: torch.Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None
    ) -> Any:
        if any(map(is_matrix, (input, weight))) or is_vector(input):
            return NotImplemented
        return self._scaled(F.rms_norm(input, normalized_shape, None, eps), weight, None)

    def _scaled(self, out: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        if weight is not None:
            out = self._rowwise(torch.mul, out, weight, out.dtype) if is_vector(weight) else out * weight
        return self._plus(out, bias)

    def _elementwise(self, func: Callable[..., Any], operation: str, *args: Any, **kwargs: Any) -> Any:
        """An element-wise operation on a vector: with another tensor, with a number, or alone."""
        places = [place for place, value in enumerate(args[:2]) if is_vector(value)]
        tensors = sum(isinstance(value, torch.Tensor) for value in args)
        if len(places) != 1 or any(map(is_matrix, args)):
            return NotImplemented
        place = places[0]
        vector = args[place]
        in_place, operation = operation.endswith("_") and not operation.endswith("__"), operation.strip("_")
        plain = operation if operation in _BINARY else operation.removeprefix("r")
        if tensors == 2 and plain in _BINARY and not kwargs:
            first = (place == 0) == (plain == operation)  # a reflected operation has swapped operands
            x, combine = args[1 - place], getattr(torch, plain)
            if in_place and (first or (self._terms.rows > 1 and x.shape[:1] != (self._rows,))):
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
            if self._in_block:
                return values[0].view(made.shape).to(made.dtype)
            # without values, so that code that bypasses these functions fails instead of using theta
            made = torch.empty_like(made, device="meta").as_subclass(CarriedVector)
            made.carrier, made.carried_name, made.values_of_rows = self, vector.carried_name, values
            return made
        return NotImplemented

    def _values(self, vector: Any) -> torch.Tensor:
        """The values of a vector: float32, [points, entries], or [rows, entries] if rows have their own terms."""
        if isinstance(vector, CarriedVector):
            return vector.values_of_rows
        if self._terms not in self._vectors:
            vectors = {name: p for p, name in self._parameters if p.dim() < 2}
            self._vectors[self._terms] = self._terms.vectors(vectors)
        return self._vectors[self._terms][vector.carried_name]

    def _rowwise(
        self, combine: Callable[..., torch.Tensor], x: torch.Tensor, vector: Any, dtype: torch.dtype
    ) -> torch.Tensor:
        values = self._values(vector)
        x = self._with_rows(x, vector.carried_name)
        if x.shape[-1:] != values.shape[1:] and values.shape[1] != 1:
            raise unanswered(vector, f"a tensor of shape {list(x.shape)}")
        return combine(x.reshape(len(values), -1, values.shape[1]), values.unsqueeze(1)).view(x.shape).to(dtype)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_tensors, value))
    return isinstance(value, torch.Tensor)
