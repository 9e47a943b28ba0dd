"""Optimisers of torch for first-order steps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

OptimizerName = Literal["adam", "sgd"]


def build_optimizer(name: OptimizerName, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """An optimiser of torch without weight decay."""
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer: torch.optim.Optimizer = kinds[name](parameters, lr=lr)
    return optimizer
