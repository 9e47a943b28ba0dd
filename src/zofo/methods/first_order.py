"""First-order fine-tuning by back-propagation: of adapters, all weights, selected layers, or the head.

The baseline of every zeroth-order method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from zofo.adapters import Adapters, PeftAdapters, kind_of
from zofo.backbone import check_plain_weights, matching, movable, selected
from zofo.config import NonNegative
from zofo.errors import ConfigError
from zofo.evaluators import Counts, Gradient
from zofo.methods.adapter_start import attach_adapters, remember_adapters, restore_adapters
from zofo.methods.base import METHODS, Method, MethodConfig, Pass, StepLog, TrainingContext
from zofo.methods.epoch import Epoch
from zofo.methods.first_order_step import FirstOrderStep, FirstOrderStepConfig
from zofo.models import save_tensors
from zofo.models.heads import is_classifier
from zofo.state_dict import StateDict

LR_OF_WEIGHTS, LR_OF_WEIGHTS_BY_SGD, LR_OF_HEAD = 1e-5, 1e-3, 1e-3
"""Default learning rates where no adapter is trained."""


class FirstOrderConfig(MethodConfig, FirstOrderStepConfig):
    """Configuration of `first-order`."""

    name: Literal["first-order"] = "first-order"
    """Which method."""
    parameters: Literal["adapter", "all", "head"] = "adapter"
    """What to train: an adapter, all weights, or the head."""
    trainable: list[str] | None = Field(None, min_length=1)
    """Glob patterns of the parameters to train among these, for example `["*.layers.29.*"]`; `!pattern` excludes. By
    default all of them."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Number of batches whose gradients are averaged for one step, which then has that many times `batch_size`
    examples."""
    lr: NonNegative = PeftAdapters.lr
    """The learning rate; by default 1e-3 for LoRA, DoRA, IA3 and a head, 1e-2 for a prefix or prompt, 3e-4 for
    `subspace`, and for weights 1e-5, or 1e-3 by SGD."""

    @property
    def keys_without_effect(self) -> Sequence[str]:
        return () if self.parameters == "adapter" else ("adapter",)

    def epoch(self, rows: Sequence[int]) -> Epoch:
        return Epoch(sum(rows), self.batch_size, self.gradient_accumulation_steps)

    @property
    def least_queries(self) -> int:
        return self.batch_size * self.gradient_accumulation_steps

    def passes(self, rows: int) -> Sequence[Pass]:
        return [self.backward(self.batch_size, self.gradient_accumulation_steps, self.parameters)]

    @model_validator(mode="before")
    @classmethod
    def _lr_of_what_is_trained(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "lr" in given:
            return given
        parameters, kind = given.get("parameters", "adapter"), kind_of(given.get("adapter", {}))
        if parameters == "adapter":
            return {"lr": kind.lr, **given} if kind is not None else given
        weights = LR_OF_WEIGHTS_BY_SGD if given.get("optimizer") == "sgd" else LR_OF_WEIGHTS
        return {"lr": LR_OF_HEAD if parameters == "head" else weights, **given}


@METHODS.register("first-order")
class FirstOrder(Method):
    """w <- optimizer(w, gradient of the mean loss over the batch), for the chosen parameters w.

    The head maps the last hidden states to outputs: a classification head, or else the output embedding. If that is
    tied to the input embedding, the shared tensor is trained.

    Attributes:
        trained: the trained parameters.
        trained_names: their names.

    Raises:
        ConfigError: a pattern of `trainable` matches nothing, or the model has no head.
    """

    Config = FirstOrderConfig
    paper = "Hu et al. 2022, LoRA; the first-order rows of both papers' tables"
    shares_examples = True

    def __init__(self, config: FirstOrderConfig, context: TrainingContext) -> None:
        self._objective = context.objective
        self._batches = context.batches(config.batch_size, "train")
        self._adapters: Adapters | None = None
        self._weights: dict[str, nn.Parameter] = {}
        self.model = context.model
        if config.parameters == "adapter":
            self.variants = ("adapter",)
            size = config.batch_size
            self._adapters, self.adapter_start = attach_adapters(config.adapter, context, self.variants, size)
            own = {id(parameter) for parameter in self._adapters.parameters(self.variants[0])}
            named = {name: p for name, p in context.model.named_parameters() if id(p) in own}
            self.trained = list(_matching(named, config, "the adapter's", "tensors").values())
        else:
            self._weights = _chosen(context.model, config)
            self.trained = list(self._weights.values())
            context.model.requires_grad_(False)
            for weight in self.trained:
                weight.requires_grad_(True)
        own = {id(parameter) for parameter in self.trained}
        self.trained_names = tuple(name for name, p in context.model.named_parameters() if id(p) in own)
        self.counts = self.adapter_start.counts.copy()
        self._gradient = Gradient(self.model, self.counts, config.gradient_checkpointing, context.processes)
        self._step = FirstOrderStep(self.model, self.trained, config, config.lr, context.seed)
        self._parts = config.gradient_accumulation_steps
        self.queries_per_step = config.batch_size * self._parts

    def step(self, number: int) -> StepLog:
        before, losses = self.counts.copy(), []
        self._step.zero_grad()  # left over from a step with a non-finite loss
        for part in range(self._parts):
            batch = self._batches[number * self._parts + part]
            found = self._gradient.accumulate(self.trained, self._objective, batch, 1 / self._parts)
            losses.append(found.mean().item())
        self._step.step(number, self.lr_factor(number))
        return StepLog(math.fsum(losses) / self._parts, self.counts - before)

    def state_dict(self, weights: bool) -> StateDict:
        counts = StateDict(dict(self.counts.as_dict()))
        whole = self._step.state_in(StateDict().put("counts", counts), "trained", "optimizer")
        return remember_adapters(self._adapters, whole)

    def load_state_dict(self, state: StateDict) -> None:
        self._step.load_state_of(state, "trained", "optimizer")
        restore_adapters(self._adapters, state)
        self.counts.become(Counts(**state.part("counts").values))

    def save(self, folder: Path) -> None:
        """Save the adapter as a peft folder `adapter`, or the trained weights as `weights.safetensors`."""
        if self._adapters is not None:
            self._adapters.save(self.variants[0], folder / self.variants[0])
        else:
            save_tensors(self._weights, folder / "weights.safetensors")


def _chosen(model: Any, config: FirstOrderConfig) -> dict[str, nn.Parameter]:
    """The trained weights by name, tied ones once."""
    if config.parameters == "all":
        check_plain_weights(model)
        return movable(model, config.trainable, "method.trainable")[0]
    named = selected(model)
    if is_classifier(model):
        body = f"{model.base_model_prefix}."
        head = {name: parameter for name, parameter in named.items() if not name.startswith(body)}
    else:
        output = getattr(model, "get_output_embeddings", lambda: None)()
        own = {id(parameter) for parameter in output.parameters()} if output is not None else set()
        head = {name: parameter for name, parameter in named.items() if id(parameter) in own}
    if not head:
        raise ConfigError(
            f"method.parameters is 'head', but {type(model).__name__} has no head that could be trained",
            "name its layers with method.parameters=all and method.trainable",
        )
    return _matching(head, config, "the head's", "parameters")


def _matching(named: dict[str, nn.Parameter], config: FirstOrderConfig, of: str, what: str) -> dict[str, nn.Parameter]:
    """The weights that `trainable` names; all by default."""
    if config.trainable is None:
        return named
    return {name: named[name] for name in matching(list(named), config.trainable, "method.trainable", of, what)}
