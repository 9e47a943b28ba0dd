"""Observe which parameters a model reads and writes while it runs, without side effects."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zofo.backbone import leaving_out, memory_of
from zofo.errors import EvaluatorError
from zofo.models import plain_tensors

_CHOOSING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}  # values decide what follows

Told = Callable[[str, str, bool], None]
"""(name of a tensor, operation, whether it is written)"""


class ParameterTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that reports every operation on the memory of a module's parameters, however it is reached.

    Parameters that were written are restored at the end. It slows down every operation.

    Attributes:
        chooses: whether values decide which operations follow.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], tell: Told) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tell = tell
        self._memory: dict[int, list[tuple[int, int, str, torch.Tensor]]] = {}
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.chooses = False
        for name, parameter in parameters:
            if not parameter.numel() or parameter.is_meta:
                continue
            for _, held in plain_tensors(name, parameter):
                of_storage = self._memory.setdefault(held.untyped_storage().data_ptr(), [])
                of_storage.append((*memory_of(held), name, held))

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            chooses, places = _known(func)
            self.chooses |= chooses
            written = [args[place] if place < len(args) else given.get(name) for place, name in places]
            into = {id(tensor) for tensor in _tensors(written)}
            for value in _tensors((*args, *given.values())):
                if value.layout is torch.strided and value.numel():
                    self._look(value, str(func), id(value) in into)
        return func(*args, **given)

    def _look(self, value: torch.Tensor, operation: str, written: bool) -> None:
        try:
            held, (start, end) = self._memory.get(value.untyped_storage().data_ptr(), ()), memory_of(value)
        except (RuntimeError, NotImplementedError):  # has no memory of its own
            return
        for first, last, name, tensor in held:
            if start < last and first < end:
                self._tell(name, operation, written)
                if written and id(tensor) not in self._before:
                    self._before[id(tensor)] = tensor, tensor.data.clone()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for tensor, before in self._before.values():
            tensor.data.copy_(before)


@functools.cache
def _known(operation: Any) -> tuple[bool, Sequence[tuple[int, str]]]:
    """Whether the values of its result can decide which operations follow; and the arguments it writes into."""
    schema = operation._schema
    written = [one.alias_info is not None and one.alias_info.is_write for one in schema.arguments]
    places = [(place, one.name) for place, one in enumerate(schema.arguments) if written[place]]
    return schema.name.partition("::")[2] in _CHOOSING, places


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among the arguments of an operation, including those in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def uncompiled() -> AbstractContextManager[Any]:
    """Context in which compiled models run as eager ones: compiled code has no place for the terms."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and importing it takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def without_trace(model: nn.Module) -> Iterator[None]:
    """Context that restores buffers, attributes and modes of a model's modules, and generators, when it exits."""
    modules = list(model.modules())
    attributes = [(part, dict(vars(part)), dict(part._buffers)) for part in modules]
    tensors = [
        (tensor, tensor.detach().clone())
        for part, own, buffers in attributes
        for tensor in (*buffers.values(), *own.values())
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta
    ]
    flags = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    own, numbers = random.getstate(), numpy.random.get_state()  # noqa: NPY002  # of models that draw from them
    try:
        with torch.random.fork_rng({p.device for p in model.parameters() if p.is_cuda}):
            yield
    finally:
        random.setstate(own)
        numpy.random.set_state(numbers)  # noqa: NPY002
        for part, before, buffers in attributes:
            if isinstance(part, torch.jit.ScriptModule):  # whose attributes are internal
                continue
            vars(part).clear()
            vars(part).update(before)
            part._buffers.clear()
            part._buffers.update(buffers)
        with torch.no_grad():
            for tensor, values in tensors:
                if not torch.equal(tensor, values):
                    tensor.data.copy_(values)
        for parameter, data, flag in flags:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            parameter.requires_grad_(flag)


class ObservedUse:
    """How a model used its parameters, by name.

    Attributes:
        read: parameters that an operation used.
        written: parameters that an operation wrote into, with the operation.
        chooses: whether values decide which operations follow.
    """

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.written: dict[str, str] = {}
        self.chooses = False

    def tell(self, name: str, operation: str, written: bool) -> None:
        """Record one operation; called by `ParameterTracker`."""
        self.read.add(name)
        if written:
            self.written.setdefault(name, operation)


def observe(
    model: nn.Module, run: Callable[[], Any], parameters: Sequence[tuple[str, nn.Parameter]], times: int = 1
) -> list[ObservedUse]:
    """Run a model several times, without side effects, and record how each run uses its parameters."""
    looks = []
    with without_trace(model), torch.no_grad(), uncompiled():
        for _ in range(times):
            looked = ObservedUse()
            held = [(name, parameter, parameter.data_ptr()) for name, parameter in parameters]
            with ParameterTracker(parameters, looked.tell) as watching:
                run()
            for name, parameter, place in held:
                if parameter.data_ptr() != place:
                    looked.tell(name, "parameter.data = ...", True)
            looked.chooses = watching.chooses
            looks.append(looked)
    return looks


def unused_by(model: nn.Module, run: Callable[[], Any]) -> frozenset[str]:
    """Names of parameters that no forward uses, judging by one forward; none if it fails."""
    try:
        (looked,) = observe(model, run, list(model.named_parameters(remove_duplicate=False)))
    except Exception:  # noqa: BLE001  # it fails in as many ways as there are models, and a check says how
        return frozenset()
    return unused(model, looked)


def unused(model: nn.Module, looked: ObservedUse) -> frozenset[str]:
    """Names of parameters that no forward uses, judging by one observed forward.

    Of similar modules side by side, such as experts or layers, those that one forward does not use may be used by
    another one: if they are in a list or a dictionary, or if values decide what the model does.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    spared: set[str] = set()
    for prefix, parent in model.named_modules(remove_duplicate=False):
        listed = isinstance(parent, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict)
        if not listed and not looked.chooses:
            continue
        start = f"{prefix}." if prefix else ""
        parts: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, parameter in named.items():
            if name.startswith(start):
                child, _, rest = name.removeprefix(start).partition(".")
                if rest or listed:
                    parts.setdefault(child, {})[rest] = tuple(parameter.shape)
        used = {child for child in parts if any(_joined(start, child, rest) in looked.read for rest in parts[child])}
        alike = [parts[child] for child in used]
        for child in parts.keys() - used:
            if parts[child] in alike:
                spared |= {_joined(start, child, rest) for rest in parts[child]}
    return frozenset(named) - looked.read - spared if looked.read else frozenset()


def _joined(start: str, child: str, rest: str) -> str:
    return f"{start}{child}.{rest}" if rest else f"{start}{child}"


def check_same_use(looked: ObservedUse, again: ObservedUse, selected: Iterable[str]) -> None:
    """Refuse a model that writes selected tensors itself, or caches values derived from them.

    Raises:
        EvaluatorError: it does; the message names the tensor.
    """
    for name in selected:
        if name in looked.written:
            raise EvaluatorError(
                f"the model itself writes into {name!r} when it runs ({looked.written[name]}), as an embedding with "
                "max_norm does, so that a point is not where it is asked",
                leaving_out(name),
            )
        if name in looked.read and name not in again.read:
            raise EvaluatorError(
                f"the model keeps what its first forward made of {name!r}, and does not look at it again, so that "
                "moving it changes nothing",
                leaving_out(name),
            )
