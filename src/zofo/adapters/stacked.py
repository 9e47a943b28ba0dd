"""Adapters that act above another one, which is active with each of them: p and s above the theta of a bilevel run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zofo.adapters.base import Adapters, PeftAdapters, write_adapter
from zofo.state_dict import StateDict


class StackedAdapters(Adapters):
    """Low-rank adapters of one model: those of `above`, of which one is active at a time, beside the one of `below`.

    A forward computes W x + s_1 B_1 A_1 x + s_2 B_2 A_2 x. Saved is what both come to, as one adapter of the ranks
    together: A = [A_1; A_2] and B = [s_1 B_1, s_2 B_2], with zeros beside layers that have one of them only.

    Args:
        below: with one adapter.
        above: attached to the same model while `below.carrying_others()` was open.
    """

    def __init__(self, below: PeftAdapters, above: PeftAdapters) -> None:
        self._below, self._above, self.names = below, above, above.names

    def parameters(self, adapter: str) -> list[nn.Parameter]:
        """The tensors of one adapter above that steps move."""
        return self._above.parameters(adapter)

    @property
    def active(self) -> str:
        """The adapter above that the model's forward uses now."""
        return self._above.active

    def use(self, adapter: str) -> None:
        """Make one adapter above the active one, beside the one below."""
        self._above.use(adapter)

    def state_dict(self) -> StateDict:
        """What no step moves of both."""
        return StateDict().put("below", self._below.state_dict()).put("above", self._above.state_dict())

    def load_state_dict(self, state: StateDict) -> None:
        """Take back what `state_dict` gave."""
        self._below.load_state_dict(state.part("below"))
        self._above.load_state_dict(state.part("above"))

    def save(self, adapter: str, folder: Path) -> None:
        """Write the sum of one adapter above and the one below, as a folder that `PeftModel.from_pretrained` loads."""
        import peft

        both = (self._below.names[0], adapter)
        layers: dict[str, Any] = {n: part for n, part in self._above.model.named_modules() if hasattr(part, "lora_A")}
        ranks = [next(len(p.lora_A[name].weight) for p in layers.values() if name in p.lora_A) for name in both]
        tensors: dict[str, torch.Tensor] = {}
        for name, layer in layers.items():
            a, b = _side_by_side(layer, both, ranks)
            tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        of_one = self._above.configuration(adapter)
        shape = peft.LoraConfig(
            r=sum(ranks),
            lora_alpha=sum(ranks),
            target_modules=sorted(layers),
            task_type=of_one.task_type,
            base_model_name_or_path=of_one.base_model_name_or_path,
        )
        write_adapter(shape, tensors, folder)


@torch.no_grad()
def _side_by_side(layer: Any, names: Sequence[str], ranks: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of some adapters of a layer as those of one; zeros for one that it has not got."""
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
