"""A first-order control variate for the zeroth-order step on theta, from the gradient of a frozen-A adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zofo.adapters import ADAPTERS, AdapterConfig, PeftAdapters
from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError
from zofo.rules import RULES
from zofo.state_dict import StateDict, load_tensors_state, tensors_to_state


class FirstOrderControlVariate:
    """Replaces pg(z) z by g_hat + (pg(z) - <g_hat, z>) z, with g_hat a projection of theta's gradient G.

    An adapter W x + B A x with B = 0 at the start and orthonormal rows of A has dL/dB = G A^T, so g_hat = (dL/dB) A is
    G A^T A, the part of G in the subspace of A. For a direction z that is independent of it, the estimate has the mean
    G and the variance of G - g_hat instead of G: that of pg(z) z times 1 - rho, with rho = |g_hat|^2 / |G|^2.

    theta <- theta - lr g_hat is B <- B - lr dL/dB. So theta is the sum of its displaced weights, which the trajectory
    contains, and of B A, which is saved as an adapter.

    rho is logged as 1 - sum (pg(z) - <g_hat, z>)^2 / sum pg(z)^2 over the run, since the terms have the means |G -
    g_hat|^2 and |G|^2.

    Args:
        adapters: the adapter with A frozen and orthonormal, attached beneath those of the method.
        backbone: theta's own weights; other layers are ignored.

    Raises:
        ConfigError: the backbone has none of the adapter's layers.
    """

    def __init__(self, adapters: PeftAdapters, backbone: Backbone) -> None:
        name = adapters.names[0]
        self._backbone = backbone
        self._layers: dict[str, Any] = {
            f"{own}.weight": layer
            for own, layer in adapters.model.named_modules()
            if hasattr(layer, "lora_A") and name in layer.lora_A and f"{own}.weight" in backbone.parameters
        }
        self._name = name
        if not self._layers:
            raise ConfigError(
                "method.control_variate knows the gradient of linear layers, and method.trainable moves none of them",
                "set method.trainable=null, or method.control_variate=null",
            )
        self.parameters: list[nn.Parameter] = [layer.lora_B[name].weight for layer in self._layers.values()]
        adapters.learn_beneath(self.parameters)
        self._gradients = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.parameters]
        self._residuals = self._slopes = 0.0  # sums of squares

    def zero_grad(self) -> None:
        """Reset the gradient, and the `.grad` of the adapter."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.grad = None
            gradient.zero_()

    def add_grad(self, weight: float = 1.0) -> None:
        """Add `.grad` to the gradient, multiplied by `weight` (for a task, its share of the mean)."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            if parameter.grad is not None:
                gradient.add_(parameter.grad, alpha=weight)
                parameter.grad = None

    @torch.no_grad()
    def corrected(self, gradient: Displacement, keys: Sequence[Key]) -> tuple[Displacement, dict[str, float]]:
        """The coefficients pg(z) / n minus <g_hat, z> / n, and the entries of the log.

        Args:
            gradient: pg(z) / n along each of n directions that all examples share.
            keys: the keys of these directions.
        """
        inner, slopes, n = self._inner(keys), dict(gradient.items()), len(keys)  # a slope of 0 is no term
        left = {key: slopes.get(key, 0.0) - inner[key] / n for key in keys}
        self._slopes += math.fsum((n * slope) ** 2 for slope in slopes.values())
        self._residuals += math.fsum((n * slope) ** 2 for slope in left.values())
        squared = math.fsum(float(g.double().square().sum()) for g in self._gradients)
        found = {"control_variate_squared": squared}
        found |= {f"control_variate_slope_{key.index}": slope for key, slope in inner.items()}
        if self._slopes:
            found["rho"] = 1.0 - self._residuals / self._slopes
        return Displacement(left), found

    def _inner(self, keys: Sequence[Key]) -> dict[Key, float]:
        """<g_hat, z> = sum over layers of <dL/dB, z A^T>, one tensor at a time."""
        directions, total = self._backbone.directions(keys), dict.fromkeys(keys, 0.0)
        for (weight, layer), gradient in zip(self._layers.items(), self._gradients, strict=True):
            shape = self._backbone.shapes[weight]
            rows = layer.lora_A[self._name].weight.float()
            for key in keys:
                z = torch.zeros(math.prod(shape), dtype=torch.float32, device=rows.device)
                directions.add_to(z, [(key, 1.0)], weight, (0, z.numel()))
                along = z.view(shape).T if layer.fan_in_fan_out else z.view(shape)
                total[key] += float((gradient * (along @ rows.T)).double().sum())
        return total

    @torch.no_grad()
    def apply(self, lr: float) -> None:
        """theta <- theta - lr g_hat."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.sub_(gradient, alpha=lr)
        self.zero_grad()

    def state_dict(self) -> StateDict:
        """B, and the sums for rho."""
        sums = StateDict({"residuals": self._residuals, "slopes": self._slopes})
        return sums.put("b", tensors_to_state(self.parameters))

    def load_state_dict(self, state: StateDict) -> None:
        """Load the state that `state_dict` returned."""
        self._residuals, self._slopes = state.values["residuals"], state.values["slopes"]
        load_tensors_state(self.parameters, state.part("b"))


def check_control_variate(config: Any, adapter: AdapterConfig) -> None:
    """Check that a bilevel configuration can use a control variate.

    Raises:
        ConfigError: it cannot; the message says which option prevents it.
    """
    fit = ", ".join(name for name in ADAPTERS if ADAPTERS[name].projects_weights)
    rule = config.rule
    for wrong, why, instead in (
        (
            not adapter.kind.projects_weights,
            f"the gradient of method.control_variate={adapter.name} is no projection of that of the weights",
            f"choose {fit}",
        ),
        (
            config.backbone_adapter is not None,
            "method.backbone_adapter moves nothing outside an adapter, whose gradient a first-order step knows whole",
            "set method.backbone_adapter=null",
        ),
        (
            config.backbone_update != "zeroth-order",
            f"method.backbone_update={config.backbone_update} makes no zeroth-order steps",
            "set method.backbone_update=zeroth-order",
        ),
        (
            config.directions != "shared",
            f"method.directions={config.directions} gives each example a slope of its own",
            "set method.directions=shared",
        ),
        (config.mask is not None, "method.mask leaves a part of each direction out", "set method.mask=null"),
        (
            not RULES[rule.name].plain or rule.decay[1] > 0,
            f"method.rule={rule.name} {'with a decay' if RULES[rule.name].plain else ''} is no plain step along "
            "the estimate".replace("  ", " "),
            "set method.rule=sgd, without weight_decay and displacement_decay",
        ),
    ):
        if wrong:
            raise ConfigError(
                f"method.control_variate takes what a gradient knows off the noise of the estimate, but {why}",
                f"{instead}, or set method.control_variate=null",
            )
