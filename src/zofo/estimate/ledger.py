"""The memory and work of a forward and backward, found by running them on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Loss = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Work:
    """Work for a processor.

    Args:
        flops: floating-point operations of products.
        moved_bytes: bytes that operations read and write.
        operations: number of operations.
        unpacked: number of weights unpacked for products.
        drawn: number of normal numbers drawn one by one.
    """

    flops: float = 0.0
    moved_bytes: float = 0.0
    operations: float = 0.0
    unpacked: float = 0.0
    drawn: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self.numbers, other.numbers, strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(a * times for a in self.numbers))

    @property
    def numbers(self) -> tuple[float, ...]:
        """The fields in order."""
        return self.flops, self.moved_bytes, self.operations, self.unpacked, self.drawn


@dataclass(frozen=True)
class Trace:
    """Memory and work of a forward, and of a backward if there is one, besides the weights.

    Args:
        peak_bytes: peak memory of tensors.
        kept_bytes: memory kept for the backward pass at the end of the forward.
        logits_bytes: part of the peak: tensors as wide as the vocabulary.
        made_bytes: memory of all tensors that the forward created.
    """

    peak_bytes: int
    kept_bytes: int
    logits_bytes: int
    made_bytes: int
    work: Work


def trace(
    loss: Loss,
    parameters: Sequence[nn.Parameter] = (),
    vocabulary: int = 0,
    carried: Collection[int] = (),
    unpacked: int = 0,
    again: float = 0.0,
) -> Trace:
    """Run a forward, and a backward if there are parameters, on the meta device.

    Args:
        loss: runs the forward; returns losses.
        parameters: parameters to differentiate by.
        vocabulary: its size, to recognise logits.
        carried: `id` of the weights whose products have low-rank terms.
        unpacked: number of weights that one forward unpacks.
        again: how often a backward pass recomputes the layers.
    """
    ledger = _Ledger()
    with _in_place_of(carried), ledger:
        if not parameters:
            with torch.no_grad():
                held = loss()
            kept, made = 0, ledger.made
        else:
            with torch.enable_grad():
                held = loss()
            kept, made = ledger.now, ledger.made
            torch.autograd.grad(held.mean(), list(parameters), allow_unused=True)
    del held
    unpacking = unpacked * (1 + (1 + again if parameters else 0))
    work = Work(ledger.flops, ledger.moved, ledger.operations, unpacking)
    at_peak = ledger.at_peak
    logits = sum(size for size, shape in at_peak if vocabulary and shape[-1:] == (vocabulary,))
    return Trace(ledger.peak, kept, logits, made, work)


@contextmanager
def _in_place_of(carried: Collection[int]) -> Iterator[None]:
    """Context in which attention uses the same kernel as with values, and products have terms if requested.

    A torch function mode would not work: layers recomputed in a backward pass run without it.
    """
    own = F.scaled_dot_product_attention, F.linear
    plain = own[1]

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        without = torch.is_grad_enabled() or id(weight) not in carried
        return plain(x, weight, bias) if without else _carrying(x, weight, bias)

    functions: Any = F
    functions.scaled_dot_product_attention = _attention
    if carried:
        functions.linear = linear
    try:
        yield
    finally:
        functions.scaled_dot_product_attention, functions.linear = own


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention without a matrix of positions by positions, as on processors and CUDA."""
    groups = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    if groups > 1:
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None and attn_mask.dtype != query.dtype:
        attn_mask = attn_mask.to(query.dtype)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out: torch.Tensor = kernel(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out


def _carrying(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A product with a term of rank one; see `zofo.evaluators.low_rank_forward`."""
    flat = x.reshape(-1, x.shape[-1])
    thin = flat @ weight.new_empty(weight.shape[1], 1)
    thin.mul_(thin)
    out = thin @ weight.new_empty(1, weight.shape[0])
    out.addmm_(flat, weight.T)
    out = out.view(*x.shape[:-1], -1)
    return out if bias is None else out.add_(bias)


def _flops_of_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return 2 * query.numel() * key.shape[-2] + 2 * query[..., 0].numel() * key.shape[-2] * value.shape[-1]


_PRODUCTS: dict[Any, Callable[..., int]] = {  # besides those that torch counts
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flops_of_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, *given, **__: (
        5 * _flops_of_attention(*given[:3]) // 2  # five products where the forward has two
    ),
}


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations create, and what of it is alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.made = 0
        self.flops = self.moved = self.operations = 0.0
        self.at_peak: list[tuple[int, tuple[int, ...]]] = []
        self._alive: dict[int, tuple[int, tuple[int, ...]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return True
        out = func(*args, **kwargs)
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        made = [one for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
        own = {one.untyped_storage()._cdata for one in given}
        new = [one for one in made if one.untyped_storage()._cdata not in own]
        changes = not new and func._schema.is_mutable
        if new or changes:
            self.operations += 1
            self.moved += sum(one.numel() * one.element_size() for one in (*given, *new))
        count = _PRODUCTS.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for one in new:
            self._note(one)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = size, tuple(tensor.shape)
        self.now += size
        self.made += size
        weakref.finalize(storage, self._forget, key)
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, list(self._alive.values())

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)[0]
