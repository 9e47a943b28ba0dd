"""A model as it is without its adapters, for a while: the base model, without a second one in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

_OFF: ContextVar[bool] = ContextVar("adapters_off", default=False)


def are_off() -> bool:
    """Whether adapters are switched off, for those that are no layers of the model."""
    return _OFF.get()


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """While it is open, the forward of `model` uses none of the adapters that are attached to it.

    What requires a gradient stays as it is, and no parameter is touched, so that a forward which carries directions of
    the adapter may be around it.
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
