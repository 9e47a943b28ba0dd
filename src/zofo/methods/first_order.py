"""First-order fine-tuning by back-propagation: of LoRA adapters, of all weights, or of named layers.

The baseline that zeroth-order methods stand beside. LoRA: Hu et al. (2022), "LoRA: Low-Rank Adaptation of Large
Language Models".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator
from torch import nn

from zofo.adapters import Adapters, LoraAdapters, LoraConfig
from zofo.backbone import save_tensors, selected
from zofo.config import NonNegative
from zofo.errors import ConfigError
from zofo.evaluators import Counts, Gradient
from zofo.methods.base import METHODS, Method, MethodConfig, Setting, StepLog
from zofo.methods.optimizers import OptimizerName, build_optimizer


class FirstOrderConfig(MethodConfig):
    """Configuration of `first-order`."""

    name: Literal["first-order"] = "first-order"
    """Which method."""
    parameters: Literal["lora", "all", "partial"] = "lora"
    """What is trained: LoRA adapters, all weights, or those that `layers` names."""
    layers: list[str] | None = None
    """For `partial`: glob patterns of parameter names, for example `["*.layers.29.*"]`."""
    optimizer: OptimizerName = "adam"
    """Adam or SGD."""
    lr: NonNegative = 1e-3
    """The learning rate; by default 1e-3 for LoRA, and 1e-5 for weights."""
    lora: LoraConfig = LoraConfig()
    """The adapter, for `parameters=lora`."""

    @model_validator(mode="before")
    @classmethod
    def _lr_of_weights(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("parameters", "lora") != "lora":
            return {"lr": 1e-5, **given}
        return given


@METHODS.register("first-order")
class FirstOrder(Method):
    """w <- optimizer(w, gradient of the mean loss over the batch), for the chosen parameters w.

    Args:
        config: what is trained, and how.
        setting: model, objective and examples.

    Raises:
        ConfigError: `partial` without layers, or layers without `partial`.
    """

    Config = FirstOrderConfig
    paper = "Hu et al. 2022, LoRA; the first-order rows of both papers' tables"

    def __init__(self, config: FirstOrderConfig, setting: Setting) -> None:
        if (config.parameters == "partial") != (config.layers is not None):
            raise ConfigError(
                f"method.parameters is {config.parameters!r}, but method.layers is {config.layers!r}",
                "partial fine-tuning needs both: method.parameters=partial \"method.layers=['*.layers.29.*']\"",
            )
        self._objective = setting.objective
        self._batches = setting.batches(config.batch_size, "train")
        self._adapters: Adapters | None = None
        self._weights: dict[str, nn.Parameter] = {}
        self.model = setting.model
        if config.parameters == "lora":
            self.variants = ("adapter",)
            self._adapters = LoraAdapters(setting.model, self.variants, config.lora, setting.seed)
            self.trained = self._adapters.parameters(self.variants[0])
        else:
            self._weights = selected(setting.model, config.layers)
            self.trained = list(self._weights.values())
            setting.model.requires_grad_(False)
            for weight in self.trained:
                weight.requires_grad_(True)
        self.counts = Counts()
        self._gradient = Gradient(self.model, self.counts)
        self._optimizer = build_optimizer(config.optimizer, self.trained, config.lr)
        self.queries_per_step = config.batch_size

    def step(self, number: int) -> StepLog:
        """See `Method.step`."""
        before = self.counts.copy()
        losses = self._gradient.accumulate(self.trained, self._objective, self._batches[number])
        self._optimizer.step()
        self._optimizer.zero_grad()
        return StepLog(losses.mean().item(), self.counts - before)

    def save(self, folder: Path) -> None:
        """The adapter as a peft folder `adapter`, or the trained weights as `weights.safetensors`."""
        if self._adapters is not None:
            self._adapters.save(self.variants[0], folder / self.variants[0])
        else:
            save_tensors(self._weights, folder / "weights.safetensors")
