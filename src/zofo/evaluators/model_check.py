"""Checks of a model before the first step: that it runs, and how it uses the selected tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zofo.backbone import Backbone
from zofo.displacement import Displacement
from zofo.errors import EvaluatorError, ZofoError, out_of_memory
from zofo.evaluators.base import Objective
from zofo.evaluators.carried_tensors import uncarried
from zofo.evaluators.parameter_use import check_same_use, observe, without_trace
from zofo.evaluators.row_layout import Use
from zofo.tasks import batches

_LARGE = 1 << 26  # entries
IN_PLACE = "set method.evaluator=in-place"
_AGREES = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative to the mean loss
AGREES_TF32 = 1e-2
_AGREES_HALF = 0.1  # SmolLM2's bfloat16 losses are 0.04 apart there
_SAME, _SAME_HALF = 1e-4, 1e-2  # relative to the mean loss; kernels with a varying summation order differ by rounding


def check_by_itself(
    model: nn.Module, objective: Objective, batch: Any, parameters: Sequence[tuple[str, nn.Parameter]]
) -> None:
    """Run an unperturbed model twice, without side effects.

    Raises:
        EvaluatorError: it does not run, writes into a selected tensor, caches a value derived from one, or is not
            deterministic.
    """
    losses: list[torch.Tensor] = []
    name, mend = type(model).__name__, "run objective(model, batch) by itself, and fix what it says"
    with explaining(f"{name} cannot be run on the first examples, with or without directions: ", mend):
        looks = observe(model, lambda: losses.append(objective(model, batch).float()), parameters, times=2)
    check_same_use(looks[0], looks[1], dict.fromkeys(name for name, _ in parameters))
    first, second = losses
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for _, parameter in parameters)
    if ((first - second).abs() > (_SAME_HALF if half else _SAME) * first.abs().mean()).any():
        raise EvaluatorError(
            "the model's losses of the same rows differ from one run to the next, as with dropout, so that two points "
            "cannot be compared",
            "call model.eval(), or make the model repeat itself",
        )


@torch.no_grad()
def rows_are_independent(model: nn.Module, objective: Objective, batch: Any, dtypes: frozenset[torch.dtype]) -> bool:
    """Whether each example of a small batch has the same loss as alone, up to rounding. Without side effects."""
    size = batches.size(batch)
    parts = [batches.part(batch, each, each + 1) for each in range(size)]
    with without_trace(model):
        together = objective(model, batch).float()
        alone = torch.cat([objective(model, part).float() for part in parts])
    limit = max(agreement((), dtypes), _SAME) * max(float(together.abs().mean()), 0.1)
    return not bool(((together - alone).abs() > limit).any())


@contextmanager
def explaining(what: str, hint: str = IN_PLACE) -> Iterator[None]:
    """Context that turns any error of the model into one message that begins with `what`."""
    try:
        yield
    except (ZofoError, MemoryError):
        raise
    except Exception as error:  # a model's forward can raise anything
        if out_of_memory(error):
            raise
        raise EvaluatorError(f"{what}{reason(error)}", hint) from error


def reason(error: BaseException) -> str:
    """The message of an error in one line; the last line if its text is a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    traced = any(line.startswith("Traceback") for line in lines) and not lines[-1].endswith(":")
    said = (lines[-1] if traced else lines[0])[:200] if lines else ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def selected_parameters(
    model: nn.Module, backbone: Backbone, but: Collection[str] = ()
) -> list[tuple[nn.Parameter, str]]:
    """Every parameter that is a selected tensor, with the tensor's name; tied parameters share a name.

    Raises:
        Uncarried: terms cannot be applied to one of them.
    """

    def place(tensor: torch.Tensor) -> tuple[object, ...]:
        return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.device)

    names = {place(tensor): name for name, tensor in backbone.tensors.items() if name not in but}
    found = {id(p): (p, names[place(p)]) for p in model.parameters() if place(p) in names}
    for parameter, name in found.values():
        if type(parameter) is not nn.Parameter:
            raise uncarried(
                name, f"{name!r} is a {type(parameter).__name__}, whose operations cannot carry a direction"
            )
    scripted = [part for part in model.modules() if isinstance(part, torch.jit.ScriptModule)]
    for tensor in (p for part in scripted for p in part.parameters() if place(p) in names):
        name = names[place(tensor)]
        raise uncarried(name, f"{name!r} belongs to a scripted module, which carries no direction")
    return list(found.values())


def one_of_each_kind(backbone: Backbone) -> frozenset[str]:
    """One selected tensor for each set of names that differ in numbers only; none that is very large."""
    kinds: dict[str, str] = {}
    for name, tensor in backbone.tensors.items():
        if tensor.numel() <= _LARGE:
            kinds.setdefault(re.sub(r"\d+", "*", name), name)
    return frozenset(kinds.values())


@contextmanager
def displaced(backbone: Backbone, names: Collection[str], point: Displacement) -> Iterator[None]:
    """Context in which some tensors of theta are moved to a point; their bits are restored from a copy."""
    directions, tensors = backbone.directions(point), backbone.tensors
    kept = {name: tensors[name].clone() for name in names}
    try:
        for name, before in kept.items():
            tensor = tensors[name]
            flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
            terms = [(key, coefficient) for key, coefficient in point.items() if backbone.is_active(key, name)]
            directions.add_to(flat, terms, name, (0, flat.numel()))
            if not tensor.is_contiguous():
                tensor.copy_(flat.view(before.shape))
        yield
    finally:
        for name, before in kept.items():
            tensors[name].copy_(before)


def number_types(model: nn.Module) -> frozenset[torch.dtype]:
    """The dtypes of all weights of a model, whether they move or not."""
    return frozenset(tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())


def agreement(uses: Sequence[Use], dtypes: frozenset[torch.dtype]) -> float:
    """The largest relative difference of two losses that counts as rounding."""
    if any(use.coarse for use in uses) or dtypes & {torch.float16, torch.bfloat16}:
        return _AGREES_HALF
    if torch.get_float32_matmul_precision() != "highest":
        return AGREES_TF32
    return max(_AGREES.get(dtype, _AGREES_HALF) for dtype in dtypes)
