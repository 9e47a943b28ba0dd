"""Modules that are run once per point, on the rows of that point, because several points cannot share their operations.

Experts sort the tokens of a batch, a scan or a convolution mixes a weight with all positions, and a weight may be read
by index: in such code it is unknown which row is where. With the rows of a single point that does not matter, since
they all have the same term: the weight itself is moved, W + Delta, during the operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from zofo.errors import EvaluatorError
from zofo.evaluators.low_rank_terms import Block
from zofo.evaluators.model_check import IN_PLACE
from zofo.evaluators.row_layout import Kind, Layout, no_rows


class PerPointModules:
    """The modules of a model that are run once per point; a check finds them.

    Attributes:
        names: names of these modules.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._found: set[str] = set()  # these and their submodules
        self._running: list[str] = []

    def modules(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """These modules with their names."""
        return [(name, model.get_submodule(name)) for name in self.names]

    @property
    def running(self) -> str | None:
        """The innermost module that runs, or was running when the model raised, as far as `watching` saw it.

        Inside a module that is run once per point, that module. None if no module runs.
        """
        innermost = self._running[-1] if self._running else None
        return next((name for name in self._running if name in self.names), innermost)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Context that tracks which module runs."""
        self._running.clear()

        def start(name: str, *_: object) -> None:
            self._running.append(name)

        def end(name: str, *_: object) -> None:
            while self._running and self._running.pop() != name:  # those that raised what the model caught
                pass

        with ExitStack() as hooks:
            for name, module in model.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    before, after = partial(start, name), partial(end, name)
                    vars(before)["keeps_nothing"] = vars(after)["keeps_nothing"] = True
                    hooks.enter_context(module.register_forward_pre_hook(before))
                    hooks.enter_context(module.register_forward_hook(after))
            yield

    def widen(self, model: nn.Module, place: str | None) -> bool:
        """Run the module at `place`, and similar ones, once per point; or the enclosing one, if it already is. Returns
        whether there was one."""
        modules = dict(model.named_modules())
        while place is not None and (place in self._found or not runs(modules[place])):
            place = place.rpartition(".")[0] if place else None
        if place is None:
            return False
        like = _kind_of(place, modules[place])
        self._found |= {name for name, module in modules.items() if _kind_of(name, module) == like}
        self.names = tuple(
            name for name in modules if name in self._found and not any(_holds(each, name) for each in self._found)
        )
        return True

    def restore(self, names: Iterable[str]) -> None:
        """Run exactly these modules once per point, as a resumed run did before."""
        self.names = tuple(names)
        self._found = set(self.names)


def _kind_of(name: str, module: nn.Module) -> tuple[str, type]:
    return re.sub(r"\d+", "*", name), type(module)


def runs(module: nn.Module) -> bool:
    """Whether it has a forward; a list of modules has none."""
    return type(module).forward is not nn.Module.forward


@contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Context in which modules have other forwards."""
    own: list[tuple[nn.Module, Any]] = []
    try:
        for module, forward in forwards:
            own.append((module, vars(module).get("forward")))
            vars(module)["forward"] = forward
        yield
    finally:
        for module, before in reversed(own):
            vars(module).pop("forward", None)
            if before is not None:
                vars(module)["forward"] = before


def _holds(outer: str, name: str) -> bool:
    return outer != name and (not outer or name.startswith(f"{outer}."))


def run_for_each(
    call: Callable[..., Any],
    at: Callable[[Block], Any],
    blocks: Sequence[Block],
    given: tuple[Sequence[Any], Mapping[str, Any]],
    layout: Layout,
    name: str,
) -> Any:
    """The output of a module for all rows, from one call for each block of rows with the same terms.

    Args:
        call: the module's forward.
        at: context in which the rows of a block are run.
        blocks: blocks of rows.
        given: the arguments and keyword arguments of the call, with the rows of the batch first in their tensors.
        layout: where rows are in these.
        name: name of the module.

    Raises:
        EvaluatorError: rows are not the first axis of an input or output; or an input is a cache, which the calls would
            share.
    """
    rows = blocks[-1].stop
    if any("cache" in type(value).__name__.lower() for value in (*given[0], *given[1].values())):
        raise EvaluatorError(
            f"{name or 'the model'!r} is run once for each point, and a generation gives it one cache for all of them",
            IN_PLACE,
        )
    values, form = tree_flatten(given)
    kinds: list[Kind | None] = [
        layout.kind(value, _of(name, place), rows, of_module=True) if _counts(value) else None
        for place, value in enumerate(values)
    ]
    if not {"rows", "flat"} & set(kinds):
        raise no_rows(_of(name, 0), values[0].shape if values and _counts(values[0]) else [], rows)
    found, made = [], None
    for number, block in enumerate(blocks):
        parts = [
            _part(value, kind, block, number, rows, len(blocks)) for value, kind in zip(values, kinds, strict=True)
        ]
        args, kwargs = tree_unflatten(parts, form)
        with at(block):
            leaves, made = tree_flatten(call(*args, **kwargs))
        found.append(leaves)
    if any(len(leaves) != len(found[0]) for leaves in found) or made is None:
        raise no_rows(_of(name, -1), [], rows)
    joined = [_joined(parts, blocks) for parts in zip(*found, strict=True)]
    note_output(layout, joined, name, rows)
    return tree_unflatten(joined, made)


def note_input(layout: Layout, given: Any, name: str, rows: int) -> None:
    """Record the inputs of a module for a check."""
    for place, value in enumerate(tree_flatten(given)[0]):
        if _counts(value):
            layout.see(value, _of(name, place), rows, of_module=True)


def note_output(layout: Layout, made: Any, name: str, rows: int) -> None:
    """Record the outputs of a module for a check."""
    for place, value in enumerate(tree_flatten(made)[0] if name else []):  # losses check the model's own output
        if _counts(value):
            layout.see(value, _of(name, -1 - place), rows, of_module=True)


def _of(name: str, place: int) -> str:
    """The name of one input of a module; outputs have negative places."""
    return f"{name or 'the model'}({place})"


def _counts(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.is_meta:
        return False
    return value.dim() > 0 and not hasattr(value, "carrier")


def _part(value: Any, kind: Kind | None, block: Block, number: int, rows: int, blocks: int) -> Any:
    """The part of an argument that belongs to one block."""
    if isinstance(value, torch.Tensor) and hasattr(value, "values_of_rows"):  # a vector that moves
        own = value.values_of_rows[number if len(value.values_of_rows) == blocks else block.start]
        return own.view(value.shape).to(value.dtype)
    if kind not in ("rows", "flat"):
        return value
    each = value.shape[0] // rows
    return value[block.start * each : block.stop * each]


def _joined(parts: Sequence[Any], blocks: Sequence[Block]) -> Any:
    """The outputs of all blocks in one place, with the rows first.

    A tensor without rows gets no values, so that any use of it fails.
    """
    if not isinstance(parts[0], torch.Tensor):
        return parts[0]
    wide, forms = [], set()
    for part, block in zip(parts, blocks, strict=True):
        own = block.stop - block.start
        each = part.expand(own, *part.shape[1:]) if part.shape[:1] == (1,) else part
        held = each.dim() > 0 and len(each) > 0 and len(each) % own == 0
        forms.add((len(each) // own, each.shape[1:]) if held else None)
        wide.append(each)
    if len(forms) > 1 or None in forms:
        return torch.empty_like(parts[0], device="meta")
    return torch.cat(wide)
