"""The model without its adapters for a while: the base model, without a second copy in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

_OFF: ContextVar[bool] = ContextVar("adapters_off", default=False)


def are_off() -> bool:
    """Whether adapters are switched off, for adapters that are not layers of the model."""
    return _OFF.get()


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Context in which the forward of `model` uses none of its adapters.

    `requires_grad` and all parameters are unchanged, so it can be used within a forward that perturbs the adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [part for part in model.modules() if isinstance(part, BaseTunerLayer) and not part.disable_adapters]
    token = _OFF.set(True)
    try:
        for layer in layers:
            layer._disable_adapters = True  # enable_adapters would change what requires a gradient, too
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
        _OFF.reset(token)
