"""Run the layers below the first tensor that moves once for all points.

Until an operation uses a tensor that moves, all points have the same activations: the batch contains its rows once per
point. So a layer without such a tensor is run on the rows of one point, and its output is repeated for the others. This
is verified: the inputs of a layer are compared, and a layer is run on all rows if these differ between points, or if
rows are not the first axis of an input or output.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from zofo.evaluators.low_rank_forward import PerturbedForward
from zofo.evaluators.per_point import replaced_forwards, runs

_PLAIN = (bool, float, str, torch.dtype, torch.device, type(None))  # inputs of a layer other than tensors


class LayersBelow:
    """Runs the layers of a model without moved tensors once for all points, as long as the points are equal there.

    A layer is an element of a list of modules, such as a decoder layer; its input and its output are activations of
    shape [rows, positions, features].

    Attributes:
        on: whether layers are shared; None before the check.
        shared: number of shared layers in the last forward of several points.
    """

    def __init__(self) -> None:
        self.on: bool | None = None
        self.shared = 0
        self._found: dict[frozenset[str], list[nn.Module]] = {}
        self._whole: set[int] = set()  # layers whose output cannot be repeated

    @contextmanager
    def sharing(
        self,
        model: nn.Module,
        moved: Collection[tuple[nn.Parameter, str]],
        points: int,
        rows: int,
        perturbed: PerturbedForward,
    ) -> Iterator[None]:
        """Context in which layers below the first moved tensor are run once for all points.

        Args:
            model: the model.
            moved: the tensors that move, with their names.
            points: P, the number of points.
            rows: number of rows in the batch, P times those of a point.
            perturbed: the forward that applies the terms.
        """
        if points == 1:
            yield
            return
        self.shared = 0
        if self.on is False:
            yield
            return
        names = frozenset(name for _, name in moved)
        if names not in self._found:
            self._found[names] = _layers_below(model, {id(parameter) for parameter, _ in moved})
        alike = _Alike(points, rows)
        run = partial(self._run, alike, perturbed)
        with replaced_forwards((layer, partial(run, id(layer), layer.forward)) for layer in self._found[names]):
            yield

    def learn(self) -> None:
        """Record from a successful check whether layers were shared in it."""
        if self.on is None:
            self.on = self.shared > 0

    def _run(
        self,
        alike: _Alike,
        perturbed: PerturbedForward,
        layer: int,
        forward: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        given = None
        if not perturbed.met and layer not in self._whole:
            values, form = tree_flatten((args, kwargs))
            given = alike.of_one_point(values)
        if given is None:
            return forward(*args, **kwargs)
        versions = [value._version for value in values if isinstance(value, torch.Tensor)]
        own_args, own_kwargs = tree_unflatten(given, form)
        self.shared += 1
        with perturbed.alike():
            leaves, made = tree_flatten(forward(*own_args, **own_kwargs))
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        for value, version in zip(tensors, versions, strict=True):
            if value._version != version:  # the layer wrote into its input
                alike.repeat_first_(value)
        repeated = alike.of_all_points(leaves)
        if repeated is None:
            self._whole.add(layer)
            self.shared -= 1
            return forward(*args, **kwargs)
        return tree_unflatten(repeated, made)


@contextmanager
def sharing_on_meta(model: nn.Module, moved: Collection[int], points: int) -> Iterator[None]:
    """As `LayersBelow.sharing` for a model on the meta device, whose rows cannot be compared and count as equal.

    Args:
        moved: `id` of each tensor that moves.
    """
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    above = points > 1 and not any(id(parameter) in moved for part in tables for parameter in part.parameters())
    layers = _layers_below(model, moved) if above else []
    with replaced_forwards((layer, partial(_on_a_share, layer.forward, points)) for layer in layers):
        yield


def _on_a_share(forward: Callable[..., Any], points: int, *args: Any, **kwargs: Any) -> Any:
    values, form = tree_flatten((args, kwargs))
    rows = next(len(value) for value in values if isinstance(value, torch.Tensor))
    has = [isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == rows for value in values]
    own = [value[: rows // points] if of_rows else value for value, of_rows in zip(values, has, strict=True)]
    own_args, own_kwargs = tree_unflatten(own, form)
    leaves, made = tree_flatten(forward(*own_args, **own_kwargs))
    return tree_unflatten([leaf.repeat(points, *[1] * (leaf.dim() - 1)) for leaf in leaves], made)


class _Alike:
    """Tracks which tensors hold the same rows for each of P points.

    Args:
        points: P.
        rows: number of rows of all points.
    """

    def __init__(self, points: int, rows: int) -> None:
        self._points, self._all_rows, self._rows = points, rows, rows // points
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}  # with the version that was looked at

    def of_one_point(self, values: Sequence[Any]) -> list[Any] | None:
        """The inputs of a layer with the rows of the first point only; None if they cannot be split."""
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        if not tensors or tensors[0].dim() != 3 or not tensors[0].is_floating_point():
            return None
        length = tensors[0].shape[1]  # as many positions as rows could be taken for them
        if len(tensors[0]) != self._all_rows or self._all_rows in (length, length + 1):
            return None
        given = []
        for value in values:
            if isinstance(value, torch.Tensor):
                value = self._narrowed(value)
                if value is None:
                    return None
            elif not isinstance(value, _PLAIN) and (not isinstance(value, int) or value == self._all_rows):
                return None  # a cache, or what else may hold rows
            given.append(value)
        return given

    def _narrowed(self, value: torch.Tensor) -> torch.Tensor | None:
        if hasattr(value, "carrier") or value.is_meta or value.is_inference():
            return None
        if not value.dim() or value.shape[0] == 1:
            return value
        if value.shape[0] % self._all_rows:
            return None if value.shape[0] == self._all_rows + 1 else value  # of rows that are found by their end
        return value[: value.shape[0] // self._points] if self._holds(value) else None

    def _holds(self, value: torch.Tensor) -> bool:
        seen, version = self._known.get(id(value), (None, 0))
        if seen is not None and seen() is value and value._version == version:
            return True
        first, *others = self._of_each_point(value)
        if not all(torch.equal(first, other) for other in others):
            return False
        self._know(value)
        return True

    def _of_each_point(self, value: torch.Tensor) -> torch.Tensor:
        return value.view(self._points, len(value) // self._points, *value.shape[1:])

    def _know(self, value: torch.Tensor) -> None:
        self._known[id(value)] = weakref.ref(value), value._version

    def repeat_first_(self, value: torch.Tensor) -> None:
        """Copy the values of the first point to all points."""
        if value.dim() and value.shape[0] % self._all_rows == 0:
            parts = self._of_each_point(value)
            parts[1:] = parts[:1]
            self._know(value)

    def of_all_points(self, leaves: Sequence[Any]) -> list[Any] | None:
        """The outputs of a layer for one point, repeated for all; None if rows are not the first axis."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if not tensors or tensors[0].dim() != 3 or any(each.dim() < 3 for each in tensors):
            return None
        if len(tensors[0]) != self._rows or any(len(each) not in (1, self._rows) for each in tensors):
            return None
        if not all(isinstance(leaf, (torch.Tensor, int, *_PLAIN)) for leaf in leaves):
            return None
        return [self._repeated(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    def _repeated(self, leaf: torch.Tensor) -> torch.Tensor:
        if len(leaf) != self._rows:
            return leaf
        made = leaf.repeat(self._points, *[1] * (leaf.dim() - 1))
        self._know(made)
        return made


def _layers_below(model: nn.Module, moved: Collection[int]) -> list[nn.Module]:
    """The layers of each outermost module list before its first one with a moved tensor."""
    found: list[nn.Module] = []
    for child in model.children():
        if not isinstance(child, nn.ModuleList):
            found += _layers_below(child, moved)
            continue
        for layer in child:
            if any(id(parameter) in moved for parameter in layer.parameters()):
                break
            if runs(layer) and not isinstance(layer, torch.jit.ScriptModule):
                found.append(layer)
    return list(dict.fromkeys(found))
