"""What a model is wrapped in: torch.compile, data parallelism, peft."""

from __future__ import annotations

from typing import Any

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of what torch.compile and torch's data parallelism make of one, whose names are the usual
    ones."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def bare_model(model: nn.Module) -> Any:
    """The model of transformers inside of all wrappers, which hand its arguments on."""
    inner: Any = unwrapped(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner
