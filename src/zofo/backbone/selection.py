"""Select the tensors of a module to move: by glob, tied tensors once, and never two that overlap in memory."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from zofo.errors import ConfigError, ModelError, nearest
from zofo.models import is_offloaded, is_packed, plain_tensors, quantized_as

_MOVABLE = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
EVERYTHING = "*"
"""The pattern that names no tensor in particular: it takes those that move where nothing is selected."""


def matching(
    names: Sequence[str], patterns: Sequence[str], option: str = "", of: str = "the model's", what: str = "parameters"
) -> list[str]:
    """The names that match a pattern, and none that begins with `!`, in their original order.

    Args:
        names: names of tensors.
        patterns: globs or full names; `!glob` excludes. If there are only exclusions, everything else is taken.
        option: that holds the patterns, for messages.
        of: whose names they are, for messages.
        what: they name, for messages.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left.
    """
    where = f" of {option}" if option else ""
    known, found = frozenset(names), {}
    for pattern in patterns:
        glob = pattern.removeprefix("!")
        found[pattern] = {glob} if glob in known else {name for name in names if fnmatch.fnmatchcase(name, glob)}
        if not found[pattern]:
            raise ConfigError(
                f"the pattern {pattern!r}{where} matches none of {of} {len(names)} {what}", _near_pattern(glob, names)
            )
    leaving = [pattern for pattern in patterns if pattern.startswith("!")]
    taking = [pattern for pattern in patterns if not pattern.startswith("!")]
    taken = set().union(*(found[pattern] for pattern in taking)) if taking or not leaving else set(names)
    taken -= set().union(*(found[pattern] for pattern in leaving))
    if not taken:
        empty = "leave none of" if patterns else "are empty, so that nothing would be trained of"
        raise ConfigError(f"the patterns{where} {empty} {of} {len(names)} {what}", _names_such_as(names))
    return [name for name in names if name in taken]


def leaving_out(name: str) -> str:
    """The pattern to type to exclude a tensor, and its counterparts in other layers, from the selection."""
    pattern = "!" + re.sub(r"(?<![^.])\d+(?=\.)", "*", name)
    return f"leave it out with 'method.trainable={json.dumps([EVERYTHING, pattern])}', or add {pattern!r} to your own"


def selected(module: nn.Module, patterns: Sequence[str] | None = None, option: str = "") -> dict[str, nn.Parameter]:
    """Parameters of a module by name; tied ones once, under the first name that the module lists.

    Args:
        module: any torch module.
        patterns: as `matching` takes them; None takes all.
        option: that holds them, for messages.

    Raises:
        ConfigError: a pattern matches nothing, or the module has no parameters.
        ModelError: a parameter has no shape until the model has run (a lazy module).
    """
    named = dict(_unique_parameters(module))
    if not named:
        raise ConfigError("the model has no parameters to move")
    return named if patterns is None else {name: named[name] for name in matching(list(named), patterns, option)}


def movable(
    module: nn.Module, patterns: Sequence[str] | None = None, option: str = ""
) -> tuple[dict[str, nn.Parameter], list[str]]:
    """The parameters of `selected` that can move, and the names of those that do not require a gradient.

    A parameter that a pattern other than `*` names is always included. If no parameter of the module requires a
    gradient, `requires_grad` is ignored.

    Raises:
        ConfigError: as `selected`.
        ModelError: as `selected`, or a parameter cannot be moved on its own; the message names it.
    """
    chosen = selected(module, patterns, option)
    named = named_by(list(selected(module)), patterns)
    frozen: list[str] = []
    if any(parameter.requires_grad for parameter in module.parameters()):
        # numbers that are not floating point never require one, so that their flag chooses nothing
        floating = {name: p for name, p in chosen.items() if p.is_floating_point()}
        frozen = [name for name, p in floating.items() if not p.requires_grad and name not in named]
    # an empty tensor cannot move, and has no direction
    moving = {name: p for name, p in chosen.items() if name not in set(frozen) and p.numel()}
    if not moving:
        raise ConfigError(
            "all selected tensors have requires_grad=False, so that nothing would move",
            f"name them, for example 'method.trainable={json.dumps(frozen[:1])}', or set requires_grad",
        )
    for name, parameter in moving.items():
        if parameter.dtype not in _MOVABLE or is_packed(parameter):
            kind = parameter.dtype if parameter.dtype not in _MOVABLE else f"packed ({type(parameter).__name__})"
            raise ModelError(
                f"{name!r} holds {kind} numbers, which a direction cannot be added to",
                f"load the model without quantisation, or {leaving_out(name)}",
            )
    check_separate_tensors(moving)
    return moving, frozen


def check_plain_weights(module: nn.Module) -> None:
    """Refuse to move read-only weights: those of a quantised model, or of one that is offloaded to disk.

    Raises:
        ModelError: weights are packed or offloaded.
    """
    method = quantized_as(module)
    if method is not None or is_offloaded(module):
        raise ModelError(
            "the weights of the model stay in their files (model.offload=disk), so that they can be read but not moved"
            if method is None
            else f"the weights of the model are quantised ({method}), so that they can be read but not moved",
            "move an adapter's tensors: method=mezo method.adapter=subspace, method=bilevel "
            "method.backbone_adapter=subspace, or method=first-order; or load weights that "
            + ("fit into memory, without model.offload" if method is None else "are not quantised"),
        )


def named_by(names: Sequence[str], patterns: Sequence[str] | None) -> frozenset[str]:
    """The names that a selection asks for by a pattern other than `*`."""
    asking = [pattern for pattern in patterns or () if pattern != EVERYTHING and not pattern.startswith("!")]
    return frozenset(matching(names, asking) if asking else ())


def check_separate_tensors(tensors: dict[str, nn.Parameter]) -> None:
    """Refuse tensors that cannot be moved independently of each other.

    Raises:
        ModelError: a tensor has no values or repeats a value in memory, or two share memory with different shapes,
            strides or slices; the message names them.
    """
    spans = []
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ModelError(f"{name!r} is on the meta device, where it has no numbers", "load the model's weights")
        if not tensor.numel():
            continue
        if not tensor.is_contiguous() and int(_taken(tensor, *memory_of(tensor)).sum()) < tensor.numel():
            raise ModelError(
                f"{name!r} holds the same numbers several times (shape {list(tensor.shape)}, stride "
                f"{list(tensor.stride())}), so that they cannot be moved one by one",
                "make it a tensor of its own: parameter.data = parameter.data.clone()",
            )
        spans.append((str(tensor.device), *memory_of(tensor), name))
    spans.sort()
    for place, (device, start, end, name) in enumerate(spans):
        for other_device, other_start, other_end, other in spans[place + 1 :]:
            if other_device != device or other_start >= end:
                break
            first, second, last = tensors[name], tensors[other], max(end, other_end)
            if first.dtype == second.dtype and not (_taken(first, start, last) & _taken(second, start, last)).any():
                continue
            name, other = sorted((name, other), key=list(tensors).index)
            raise ModelError(
                f"{name!r} and {other!r} share memory under another shape, stride or slice, so that they cannot move "
                "each along a direction of its own",
                f"tie them as one parameter, give {other!r} a copy of its own, or {leaving_out(other)}",
            )


def memory_of(tensor: torch.Tensor) -> tuple[int, int]:
    """The address of the first byte of a non-empty tensor, and of the byte after its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _taken(tensor: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """Which elements between two addresses a tensor covers."""
    size = tensor.element_size()
    taken = torch.zeros((end - start) // size, dtype=torch.bool)
    taken.as_strided(tensor.shape, tensor.stride(), (tensor.data_ptr() - start) // size).fill_(True)
    return taken


def _unique_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters, tied ones once, compared by object and by storage."""
    seen: set[tuple[object, ...]] = set()
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(
                f"{name!r} has no shape until the model has run", "run the model once on a batch before it is trained"
            )
        held = parameter.numel() and not parameter.is_meta
        place: tuple[object, ...] = (name,)
        if held:
            numbers = tuple(tensor.data_ptr() for _, tensor in plain_tensors(name, parameter))
            place = (numbers, tuple(parameter.shape), parameter.stride())
        if place not in seen:
            seen.add(place)
            yield name, parameter


def _near_pattern(pattern: str, names: Sequence[str]) -> str:
    """A suggestion: the pattern with its literal part replaced by the closest part of a name."""
    literal = pattern.strip("*.")
    length = literal.count(".") + 1
    parts = [name.split(".") for name in names]
    pieces = dict.fromkeys(
        ".".join(part[start : start + length]) for part in parts for start in range(len(part) - length + 1)
    )
    near = nearest(literal, pieces) if literal else None
    guess = f"did you mean {pattern.replace(literal, near)!r}? " if near else ""
    return guess + _names_such_as(names)


def _names_such_as(names: Sequence[str]) -> str:
    return f"patterns are globs over names such as {', '.join([*names[:2], *names[-1:]])}"


_STAYING = 3  # number of names of tensors that do not move


def moving_tensors(
    trainable: list[str] | None, model: nn.Module, among: Sequence[nn.Parameter] | None, unused: frozenset[str]
) -> tuple[list[str] | None, list[str]]:
    """The names of the tensors to move (None for exactly what `trainable` says), and notes about those left out.

    Args:
        trainable: patterns, as configured; None for everything that can move.
        model: the model whose parameters they name.
        among: the parameters that may move, such as an adapter's; None for all.
        unused: names of parameters that no forward uses; they are left out unless a pattern names them.
    """
    named = selected(model)
    option = "method.trainable"
    if among is None:
        check_plain_weights(model)
        moving, frozen = movable(model, trainable, option)
        chosen, letter = list(moving), list(selected(model, trainable))
    else:
        own = {id(parameter) for parameter in among}
        letter = [name for name, parameter in named.items() if id(parameter) in own]
        if trainable is not None:
            letter = matching(letter, trainable, option, "the adapter's", "tensors")
        chosen, frozen = letter, []
    asked = named_by(letter, trainable)
    idle = [name for name in chosen if name in unused and name not in asked]
    if len(idle) == len(chosen):  # a forward that uses none of them tells nothing
        idle = []
    kinds = (("that no forward uses", idle), ("with requires_grad=False", frozen))
    notes = [_note_of_staying(kind, names, named) for kind, names in kinds if names]
    left = set(idle)
    moves = [name for name in chosen if name not in left]
    return (None if moves == letter and among is None else moves), notes


def _note_of_staying(kind: str, names: Sequence[str], named: Mapping[str, nn.Parameter]) -> str:
    size = sum(named[name].numel() for name in names)
    shown = ", ".join(names[:_STAYING]) + (f" and {len(names) - _STAYING} more" if len(names) > _STAYING else "")
    return (
        f"{len(names)} tensors {kind} ({size:,} numbers) stay as they are: {shown}; to move them, name them in "
        "method.trainable by more than '*'"
    )
