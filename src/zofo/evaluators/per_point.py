"""Modules that are run once for each point, on the rows of that point, because their rows cannot share an operation.

Experts sort the tokens of a batch, a scan or a convolution mixes a weight with all positions, a weight is read by its
index: which row is where in what such code computes cannot be known. But among rows of one point nothing needs to be
known, since all of them carry the same term: the weight itself is moved, W + Delta, for the time of the operation.
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
    """Which modules of a model are run once for each point; a check finds them out.

    Attributes:
        names: of these modules.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._found: set[str] = set()  # these, and those that they hold
        self._running: list[str] = []

    def modules(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """These modules, each with its name."""
        return [(name, model.get_submodule(name)) for name in self.names]

    @property
    def running(self) -> str | None:
        """The innermost module that runs, or was running when the model raised, as far as `watching` saw it; of those
        inside a module that is run for each point, that one. None where no module runs."""
        innermost = self._running[-1] if self._running else None
        return next((name for name in self._running if name in self.names), innermost)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While it is open, it is known which module runs."""
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
        """Run the module at `place`, and those made alike, once for each point; or the one that holds it, if that is
        done already. Whether there was one.
        """
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
        """Run these modules once for each point, and no others, as a run did that goes on."""
        self.names = tuple(names)
        self._found = set(self.names)


def _kind_of(name: str, module: nn.Module) -> tuple[str, type]:
    return re.sub(r"\d+", "*", name), type(module)


def runs(module: nn.Module) -> bool:
    """Whether it has a forward; a list of modules has none."""
    return type(module).forward is not nn.Module.forward


@contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """While it is open, modules have other forwards."""
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
    """What a module gives for all rows, from one call for each block of rows that carry the same.

    Args:
        call: the module's forward.
        at: a context in which a block's rows are asked.
        blocks: of rows.
        given: the arguments and keyword arguments of the call, the rows of the batch first in their tensors.
        layout: where these stand.
        name: of the module.

    Raises:
        EvaluatorError: rows do not stand first in what it is given, or in what it gives; or it is given a cache, which
            the calls would share.
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
    """Tell a check what a module is given."""
    for place, value in enumerate(tree_flatten(given)[0]):
        if _counts(value):
            layout.see(value, _of(name, place), rows, of_module=True)


def note_output(layout: Layout, made: Any, name: str, rows: int) -> None:
    """Tell a check what a module gives."""
    for place, value in enumerate(tree_flatten(made)[0] if name else []):  # what the model itself gives, losses show
        if _counts(value):
            layout.see(value, _of(name, -1 - place), rows, of_module=True)


def _of(name: str, place: int) -> str:
    """What a module is given in one place; of what it gives, the places are negative."""
    return f"{name or 'the model'}({place})"


def _counts(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.is_meta:
        return False
    return value.dim() > 0 and not hasattr(value, "carrier")


def _part(value: Any, kind: Kind | None, block: Block, number: int, rows: int, blocks: int) -> Any:
    """What one block is given of an argument."""
    if isinstance(value, torch.Tensor) and hasattr(value, "values_of_rows"):  # a vector that moves
        own = value.values_of_rows[number if len(value.values_of_rows) == blocks else block.start]
        return own.view(value.shape).to(value.dtype)
    if kind not in ("rows", "flat"):
        return value
    each = value.shape[0] // rows
    return value[block.start * each : block.stop * each]


def _joined(parts: Sequence[Any], blocks: Sequence[Block]) -> Any:
    """What all blocks gave in one place, the rows first. A tensor that does not hold them has no numbers: what looks at
    it fails.
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
