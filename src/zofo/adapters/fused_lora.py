"""LoRA layers with fewer passes over their outputs, for forwards without a gradient.

peft's layer computes B A x, scales it, copies W x and adds them: each is another pass over an output as large as that
of the model's own layer. Here the product that computes B A x accumulates onto W x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from zofo.adapters.lora import is_linear


class FusedLora:
    """Replacement forwards for the LoRA layers of a model: the same values up to rounding, without a gradient.

    A layer keeps its own forward if it does more than W x + scaling B A x (such as DoRA), if its adapters are disabled,
    merged, or have another dtype than its input, or if its parts have hooks, which may store what they see.

    Args:
        model: the model; its layers are found at the first call of `forwards`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers: list[nn.Module] | None = None

    def forwards(self) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        """Each such layer with its replacement forward."""
        if self._layers is None:
            self._layers = [part for part in self._model.modules() if _is_plain(part)]
        for layer in self._layers:
            yield layer, partial(_forward, layer, layer.forward)


def _is_plain(part: Any) -> bool:
    """Whether a module is a LoRA layer around a linear one, with linear A and B."""
    inner = part._modules
    if not {"base_layer", "lora_A", "lora_B"} <= inner.keys() or not is_linear(inner["base_layer"]):
        return False
    return all(
        type(one) is nn.Linear and one.bias is None for key in ("lora_A", "lora_B") for one in inner[key].values()
    )


def _forward(layer: Any, own: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if args or kwargs or torch.is_grad_enabled() or not all(_adds(layer, name, x) for name in active):
        return own(x, *args, **kwargs)
    out = layer.base_layer(x)
    for name in active:
        narrow, b, scaling = layer.lora_A[name](x), layer.lora_B[name].weight, layer.scaling[name]
        if out.dtype == b.dtype and out.is_contiguous():
            out.view(-1, out.shape[-1]).addmm_(narrow.reshape(-1, narrow.shape[-1]), b.T, alpha=scaling)
        else:
            out = (out + layer.lora_B[name](narrow) * scaling).to(out.dtype)
    return out


def _adds(layer: Any, name: str, x: torch.Tensor) -> bool:
    """Whether an adapter adds scaling B A x, and does nothing else."""
    if layer.disable_adapters or layer.merged or name in layer.lora_variant or torch.is_autocast_enabled(x.device.type):
        return False
    dropout = layer.lora_dropout[name]
    if layer.training and not isinstance(dropout, nn.Identity):
        return False
    if any(map(_is_looked_at, (layer.base_layer, layer.lora_B[name]))):
        return False
    return bool(x.dtype == layer.lora_A[name].weight.dtype == layer.lora_B[name].weight.dtype)


def _is_looked_at(module: nn.Module) -> bool:
    """Whether a module has hooks, other than those of a check, which store nothing."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(not getattr(hook, "keeps_nothing", False) for hook in hooks)
