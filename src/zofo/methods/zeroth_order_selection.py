"""Which tensors a zeroth-order step moves, and what to say of those that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from zofo.backbone import check_plain_weights, matching, movable, named_by, selected

_SHOWN = 3  # names of tensors that stay


def moving_tensors(
    trainable: list[str] | None, model: nn.Module, among: Sequence[nn.Parameter] | None, unused: frozenset[str]
) -> tuple[list[str] | None, list[str]]:
    """The names of what moves, None for all that `trainable` takes to the letter; and notes on what stays.

    Args:
        trainable: patterns, as configured; None for what may move.
        model: whose parameters they name.
        among: the parameters that may move, such as an adapter's; None for all.
        unused: the names of those that no forward uses; they stay, unless they are named.
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
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return (
        f"{len(names)} tensors {kind} ({size:,} numbers) stay as they are: {shown}; to move them, name them in "
        "method.trainable by more than '*'"
    )
