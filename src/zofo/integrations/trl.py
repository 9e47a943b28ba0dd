"""MeZO in TRL's `SFTTrainer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from trl import SFTConfig, SFTTrainer

from zofo.integrations.arguments import ZerothOrderArguments
from zofo.integrations.losses import example_losses, loss_of_its_own
from zofo.integrations.mixin import ZerothOrderMixin

__all__ = ["ZerothOrderSFTConfig", "ZerothOrderSFTTrainer"]


@dataclass
class ZerothOrderSFTConfig(ZerothOrderArguments, SFTConfig):  # type: ignore[misc]
    """`trl.SFTConfig` with options of zeroth-order steps. bfloat16 and gradient checkpointing are off by default."""


class ZerothOrderSFTTrainer(ZerothOrderMixin, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` with zeroth-order steps: with TRL's chats, templates, packing, peft configurations and metrics.

    See `ZerothOrderMixin`. `num_tokens` counts each batch once, for any number of points. With
    `zo_evaluator="in-forward"` it is the only one of TRL's own metrics, since `mean_token_accuracy` and `entropy` come
    from a forward that is not made.
    """

    def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """The mean negative log-likelihood of each row's tokens, as with `loss_type="nll"`.

        Raises:
            ConfigError: the trainer uses another loss.
        """
        changed = self.label_smoother, self.compute_loss_func, getattr(self, "aux_loss_enabled", False) or None
        if self.args.loss_type != "nll" or any(one is not None for one in changed):
            raise loss_of_its_own()
        return example_losses(model, inputs, shifted=True)
