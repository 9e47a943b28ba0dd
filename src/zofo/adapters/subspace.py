"""Weight directions in the subspace of the inputs: a LoRA adapter in which only B moves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from zofo.adapters.base import ADAPTERS, Forward, PeftAdapters
from zofo.adapters.input_directions import InputDirections, orthonormal_rows
from zofo.adapters.lora import Rank, is_linear, lora_config, targets_hint
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.models.heads import is_classifier
from zofo.models.quantization import trim_memory
from zofo.noise import Gaussian

_SHOWN = 3  # kinds of tensors that do not move


@ADAPTERS.register("subspace")
class SubspaceAdapters(PeftAdapters):
    """LoRA with A frozen to the top directions of each layer's inputs: W x + B A x, where only B moves.

    The gradient G = sum over positions of delta x^T of a linear layer lies in the span of its inputs x. With the rows
    of A the top eigenvectors of the second moment of x, G A^T A is nearly G, in out x rank numbers.

    The scale is 1. A direction z of W, with entries N(0, 1) or of the form u v^T with such factors, is projected to z
    A^T A, and z A^T has the same distribution as a direction of B: so a step on B is a step on W along z A^T A. The
    slope of the loss is the same, too, so epsilon and learning rates are those of the model's own weights.

    B starts from zero, so the model's outputs do not change. The base weights are never written.

    Args:
        rank: number of input directions per layer.
        init: the directions: from each layer's inputs for some training rows, or random orthonormal.
        calibration_batches: number of batches of training rows to compute these inputs from, without a gradient, before
            the first step.
        target_modules: names of the linear layers to adapt; by default all but the output head.

    Raises:
        ConfigError: the rank is above a layer's number of inputs, a layer is not linear, or names match nothing.

    Source: A from inputs as in EVA (Paischer et al. 2024), with the second moment instead of the covariance; only B is
    trained as in LoRA-FA (Zhang et al. 2023).
    """

    lr = 3e-4
    projects_weights = True
    starts_neutral = True
    adds_low_rank = True

    def __init__(
        self,
        model: Any,
        names: Sequence[str],
        seed: int,
        rank: Rank = 16,
        init: Literal["inputs", "random"] = "inputs",
        calibration_batches: Annotated[int, Field(ge=1)] = 4,
        target_modules: list[str] | None = None,
    ) -> None:
        shape = lora_config(model, rank, rank, target_modules or linear_layers(model))
        self._attach(model, names, shape, targets_hint(model))
        self._rank, self._seed = rank, seed
        self._narrow: dict[str, int] = {}  # number of directions of layers whose inputs span fewer than `rank`
        self._layers: dict[str, Any] = {n: part for n, part in model.named_modules() if _has(part, names[0])}
        self._check_layers()
        self.calibration_batches = calibration_batches if init == "inputs" else 0
        for name, layer in self._layers.items():
            inputs = layer.lora_A[names[0]].weight.shape[1]
            self._init_parameters(layer, Gaussian().whole(Key(seed, 0), f"subspace/{name}", (rank, inputs)))

    def is_trained(self, tensor: str) -> bool:
        """All tensors except A."""
        return "lora_A" not in tensor.split(".")

    def calibrate(self, forwards: Iterable[Forward]) -> None:
        """A <- the top directions of each layer's inputs over some forwards."""
        bare = {name: layer.get_base_layer() for name, layer in self._layers.items()}
        found = InputDirections(bare, self._rank, self._seed)
        for run, mask in forwards:
            with found.watching(mask):
                run()
        for name, layer in self._layers.items():
            self._init_parameters(layer, found.directions(name))
            if found.found(name) < self._rank:
                self._narrow[name] = found.found(name)
        del found
        trim_memory(self.model)

    def notes(self) -> list[str]:
        """Which tensors of the model have no adapter, and which layers do not need such a rank."""
        name = next(iter(self._narrow), None)
        narrow = f"the inputs of {len(self._narrow)} layers have fewer directions than method.adapter.rank={self._rank}"
        staying = self._note_of_staying()
        fewer = [] if name is None else [f"{narrow}, such as {name} with {self._narrow[name]}"]
        return [*([staying] if staying else []), *fewer]

    def _note_of_staying(self) -> str | None:
        kinds: dict[str, int] = {}
        owners = tuple(f"{name}." for name in self._layers)
        for name, parameter in self.model.named_parameters():
            if not name.startswith(owners) and ".lora_" not in name and "modules_to_save" not in name.split("."):
                kind = re.sub(r"(?<![^.])\d+(?=\.)", "*", name)
                kinds[kind] = kinds.get(kind, 0) + parameter.numel()
        if not kinds:
            return None
        largest = sorted(kinds, key=lambda kind: -kinds[kind])
        shown = ", ".join(f"{kind} ({kinds[kind]:,} numbers)" for kind in largest[:_SHOWN])
        more = f" and {len(largest) - _SHOWN} more kinds" if len(largest) > _SHOWN else ""
        return f"the adapter sits beside {len(self._layers)} linear layers; all else stays as it is: {shown}{more}"

    def _check_layers(self) -> None:
        for name, layer in self._layers.items():
            own = layer.lora_A[self.names[0]].weight if self.names[0] in layer.lora_A else torch.empty(0)
            if own.dim() != 2:
                kind = type(layer.get_base_layer()).__name__
                raise ConfigError(
                    f"method.adapter=subspace sits beside linear layers, but {name!r} is a {kind}",
                    targets_hint(self.model),
                )
            if self._rank > own.shape[1]:
                raise ConfigError(
                    f"method.adapter.rank is {self._rank}, but {name!r} has {own.shape[1]} inputs",
                    f"set method.adapter.rank={own.shape[1]} or lower, or name the layers with "
                    "method.adapter.target_modules",
                )

    @torch.no_grad()
    def _init_parameters(self, layer: Any, rows: torch.Tensor) -> None:
        """A <- orthonormal rows with the same span, B <- 0, in all adapters."""
        rows = orthonormal_rows(rows)
        for adapter in self.names:
            layer.lora_A[adapter].weight.copy_(rows)
            layer.lora_B[adapter].weight.zero_()


def linear_layers(model: Any) -> list[str]:
    """The names of a model's linear layers, including quantised ones, except the output head.

    Raises:
        ConfigError: it has none.
    """
    from peft.utils.constants import SEQ_CLS_HEAD_NAMES  # which peft trains in full beside an adapter

    output = getattr(model, "get_output_embeddings", lambda: None)()
    heads = SEQ_CLS_HEAD_NAMES if is_classifier(model) else ()
    idle = {id(part.out_proj) for part in model.modules() if isinstance(part, nn.MultiheadAttention)}  # never called
    found = [
        name.removesuffix(".base_layer")  # of a layer that already has an adapter
        for name, part in model.named_modules()
        if is_linear(part) and part is not output and id(part) not in idle and name.partition(".")[0] not in heads
        if ".lora_" not in name
    ]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no linear layers", "choose method.adapter=prompt")
    return found


def _has(part: Any, adapter: str) -> bool:
    """Whether a module is a layer with an adapter of that name."""
    return hasattr(part, "lora_A") and (adapter in part.lora_A or adapter in part.lora_embedding_A)
