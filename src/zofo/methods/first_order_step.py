"""The first-order step: a torch optimizer on some parameters, with gradient clipping and stochastic rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from zofo.adapters import AdapterConfig
from zofo.backbone import Rounding, without_decay, write_rounded_
from zofo.config import Config, NonNegative
from zofo.displacement import Key
from zofo.errors import ConfigError, NonFiniteError
from zofo.methods.base import Pass
from zofo.state_dict import StateDict, load_optimizer_state, load_tensors_state, optimizer_to_state, tensors_to_state

_OPTIMIZERS: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
_MOMENTS = {"adam": 2, "adamw": 2, "sgd": 0}  # tensors of a parameter's size that they keep, in float32
_HALF = (torch.bfloat16, torch.float16)


class FirstOrderStepConfig(Config):
    """Options of first-order steps."""

    adapter: AdapterConfig = Field(default_factory=lambda: AdapterConfig.model_validate({}))
    """The adapter that first-order steps train; both adapters of `bilevel` have this shape."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer of first-order steps, from `torch.optim`."""
    weight_decay: NonNegative = 0.0
    """Weight decay of first-order steps, as the optimizer defines it: added to the gradient by `adam` and `sgd`,
    decoupled in `adamw`. Biases and norms do not decay."""
    max_grad_norm: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Maximum norm of the gradients of first-order steps, above which they are clipped; by default no clipping."""
    rounding: Rounding = "stochastic"
    """How updates of half-precision weights are rounded: to `nearest`, as in other code, loses what is less than half
    the distance of two numbers, which is most of a step."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of storing its activations: less memory, about a third more
    time, the same gradients."""

    def backward(self, examples: int, times: float = 1.0, of: Literal["adapter", "all", "head"] = "adapter") -> Pass:
        """The pass of one forward and backward of some examples."""
        moments = _MOMENTS[self.optimizer]
        return Pass(examples, times=times, gradient=of, again=self.gradient_checkpointing, moments=moments)

    @model_validator(mode="after")
    def _suits_the_adapter(self) -> FirstOrderStepConfig:
        if self.gradient_checkpointing and self.adapter.kind.fills_cache:
            raise ConfigError(
                "method.gradient_checkpointing runs each layer twice, and "
                f"method.adapter={self.adapter.name} would give it its keys and values twice",
                "set method.gradient_checkpointing=false, or method.adapter=prompt",
            )
        if self.weight_decay and not self.adapter.kind.decays:
            raise ConfigError(
                f"method.weight_decay draws tensors to 0, and those of method.adapter={self.adapter.name} are factors, "
                "which leave the model as it is at 1",
                "set method.weight_decay=0, or method.adapter=lora",
            )
        return self


class FirstOrderStep:
    """Steps of an optimizer on some parameters, along the gradients in their `.grad`.

    Half-precision parameters are updated in float32, one at a time, and rounded stochastically: the optimizer keeps its
    moments in float32, and only the parameter being updated has a float32 copy. With `method.rounding=nearest` the
    optimizer updates the parameter directly: its moments are in half precision, too, and steps too small to change a
    value are lost.

    Args:
        seed: seed of the run; with `name` and the step number it determines the rounding bits.
        name: distinguishes several optimizers of one run.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        config: FirstOrderStepConfig,
        lr: float,
        seed: int = 0,
        name: str = "trained",
    ) -> None:
        self.parameters = list(parameters)
        if config.optimizer != "sgd" and any(parameter.dtype == torch.float16 for parameter in self.parameters):
            raise ConfigError(
                f"method.optimizer={config.optimizer} divides by the size of a gradient, and what is small of one "
                "is 0 in float16",
                "set model.dtype=bfloat16 or float32, or method.optimizer=sgd, or train an adapter",
            )
        self._lr, self._max_norm, self._seed, self._name = lr, config.max_grad_norm, seed, name
        half = {id(p) for p in self.parameters if config.rounding == "stochastic" and p.dtype in _HALF}
        self._moved = [_stand_in(p) if id(p) in half else p for p in self.parameters]
        pairs = list(zip(self.parameters, self._moved, strict=True))
        self._half = [(p, stand_in) for p, stand_in in pairs if id(p) in half]
        self._whole = [p for p in self.parameters if id(p) not in half]
        still = {id(parameter) for parameter in without_decay(model).values()} if config.weight_decay else set()
        groups: list[dict[str, Any]] = [
            {"params": [moved for p, moved in pairs if id(p) not in still], "weight_decay": config.weight_decay},
            {"params": [moved for p, moved in pairs if id(p) in still]},
        ]
        groups = [group for group in groups if group["params"]]
        self._optimizer: torch.optim.Optimizer = _OPTIMIZERS[config.optimizer](groups, lr=lr, weight_decay=0.0)

    def step(self, number: int, lr_factor: float = 1.0) -> None:
        """Update the parameters, and reset their gradients.

        Args:
            number: of the step.
            lr_factor: of the learning rate, in this step.
        """
        if self._max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self._max_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * lr_factor
        if self._whole:
            self._optimizer.step()
            for parameter in self._whole:  # which would move again with each of the others
                parameter.grad = None
        for place, (parameter, stand_in) in enumerate(self._half):
            if parameter.grad is None:
                continue
            stand_in.data = parameter.detach().to(torch.float32, memory_format=torch.contiguous_format)
            stand_in.grad, parameter.grad = parameter.grad.float(), None
            self._optimizer.step()  # only this one: no other stand-in has a gradient
            write_rounded_(parameter, stand_in.data, Key(self._seed, number), f"first-order/{self._name}/{place}")
            stand_in.grad, stand_in.data = None, stand_in.data.new_empty(0)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Reset the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @contextmanager
    def undone_by_non_finite(self) -> Iterator[None]:
        """Context that undoes its steps if a loss in it is not finite."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        optimizer = copy.deepcopy(self._optimizer.state_dict())
        try:
            yield
        except NonFiniteError:
            with torch.no_grad():
                for parameter, old in zip(self.parameters, before, strict=True):
                    parameter.copy_(old)
            self._optimizer.load_state_dict(optimizer)
            raise

    def state_in(self, whole: StateDict, parameters: str, optimizer: str) -> StateDict:
        """Add the parameters and the optimizer to the state of a method, under these names."""
        whole.put(parameters, tensors_to_state(self.parameters))
        return whole.put(optimizer, optimizer_to_state(self._optimizer))

    def load_state_of(self, whole: StateDict, parameters: str, optimizer: str) -> None:
        """Load the state that `state_in` added."""
        load_tensors_state(self.parameters, whole.part(parameters))
        load_optimizer_state(self._optimizer, whole.part(optimizer))


def _stand_in(parameter: nn.Parameter) -> nn.Parameter:
    """The optimizer's stand-in for a half-precision parameter; it has values only during its own update."""
    return nn.Parameter(torch.empty(0, dtype=torch.float32, device=parameter.device))
