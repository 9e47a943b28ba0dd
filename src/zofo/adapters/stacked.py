"""Two low-rank adapters that act together, saved as one: p or s on top of the theta of a bilevel run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def as_one_adapter(model: Any, names: Sequence[str]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The sum of several low-rank adapters of a peft model, as the configuration and tensors of a single one.

    A forward computes W x + s_1 B_1 A_1 x + s_2 B_2 A_2 x. The ranks of the sum add up: A = [A_1; A_2] and B = [s_1
    B_1, s_2 B_2], padded with zeros for layers that have only one of them.
    """
    import peft

    base = model.get_base_model()
    layers: dict[str, Any] = {name: part for name, part in base.named_modules() if hasattr(part, "lora_A")}
    ranks = [next(len(part.lora_A[name].weight) for part in layers.values() if name in part.lora_A) for name in names]
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        a, b = _side_by_side(layer, names, ranks)
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    last = model.peft_config[names[-1]]
    shape = peft.LoraConfig(
        r=sum(ranks),
        lora_alpha=sum(ranks),
        target_modules=sorted(layers),
        task_type=last.task_type,
        base_model_name_or_path=last.base_model_name_or_path,
    )
    return shape, tensors


@torch.no_grad()
def _side_by_side(layer: Any, names: Sequence[str], ranks: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of several adapters of a layer, concatenated; zeros for an adapter that it does not have."""
    first = next(layer.lora_A[name].weight for name in names if name in layer.lora_A)
    last = next(layer.lora_B[name].weight for name in names if name in layer.lora_B)
    a, b = first.new_zeros(sum(ranks), first.shape[1]), last.new_zeros(len(last), sum(ranks))
    start = 0
    for name, rank in zip(names, ranks, strict=True):
        if name in layer.lora_A:
            a[start : start + rank] = layer.lora_A[name].weight
            b[:, start : start + rank] = layer.lora_B[name].weight * layer.scaling[name]
        start += rank
    return a, b
