"""Adapters on the model's layers: LoRA, DoRA and IA3."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from zofo.adapters.base import ADAPTERS, PeftAdapters, task_type
from zofo.config import Positive
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise import random_words

_SHOWN = 12  # number of names in a hint

_QUERY_AND_VALUE = (  # names in known architectures, separate or fused with the keys; the first match counts
    *(["q_proj", "v_proj"], ["query", "value"], ["q_lin", "v_lin"], ["query_proj", "value_proj"], ["q", "v"]),
    *(["qkv_proj"], ["query_key_value"], ["Wqkv"], ["c_attn"], ["qkv"], ["qkv_linear"], ["att_proj"], ["in_proj"]),
)

Rank = Annotated[int, Field(ge=1)]


class LowRankAdapters(PeftAdapters):
    """Base class of LoRA and DoRA: how they are attached, and how A and B are initialised.

    A starts from a seeded uniform draw and B from zero, so that the model's outputs do not change. Dropout is off.

    Args:
        model: a transformers model; the adapters are attached to it in place, and its parameters keep their identity.
        names: names of the adapters; the first one is active.
        seed: seed of the run.
        rank: the rank of each adapter matrix.
        alpha: scale; the adapter's output is multiplied by alpha / rank.
        target_modules: names of the linear layers to adapt; by default the query and value projections of the
            architecture.

    Raises:
        ConfigError: the architecture has no default target modules, or none of the given names match.
    """

    starts_neutral = True
    use_dora: ClassVar[bool] = False

    def __init__(
        self,
        model: Any,
        names: Sequence[str],
        seed: int,
        rank: Rank = 8,
        alpha: Positive = 16.0,
        target_modules: list[str] | None = None,
    ) -> None:
        shape = lora_config(model, rank, alpha, target_modules or _found_targets(model), use_dora=self.use_dora)
        self._begin(model, names, seed, shape)

    @classmethod
    def of_shape(cls, model: Any, names: Sequence[str], seed: int, shape: Any) -> LowRankAdapters:
        """Build from a `peft.LoraConfig`; target modules and task are filled in if it has none."""
        made, own = cls.__new__(cls), copy.deepcopy(shape)
        own.target_modules = own.target_modules or _found_targets(model)
        own.task_type = own.task_type or task_type(model)
        made._begin(model, names, seed, own)
        return made

    def _begin(self, model: Any, names: Sequence[str], seed: int, shape: Any) -> None:
        if shape.use_dora and getattr(model, "is_loaded_in_8bit", False):
            raise ConfigError(  # of bitsandbytes; peft loses the scales when it takes norms
                "DoRA takes the norms of weights in each forward, which bitsandbytes' 8-bit weights do not allow",
                "set method.adapter=lora, or model.quantization=nf4 or int8-weight-only",
            )
        self._attach(model, names, shape, targets_hint(model))
        _start_low_rank(self, seed)


@ADAPTERS.register("lora")
class LoraAdapters(LowRankAdapters):
    """LoRA: W x + (alpha / rank) B A x beside chosen linear layers.

    Source: Hu et al. (2022), "LoRA: Low-Rank Adaptation of Large Language Models".
    """

    adds_low_rank = True


@ADAPTERS.register("dora")
class DoraAdapters(LowRankAdapters):
    """DoRA: m (W + (alpha / rank) B A) / |W + (alpha / rank) B A|, the norms over each output's weights.

    As LoRA, with a magnitude m for each output, which starts at the norm of its weights. Each forward recomputes the
    norms from all weights, so the evaluator `in-forward` can perturb neither the adapter nor the weights.

    Source: Liu et al. (2024), "DoRA: Weight-Decomposed Low-Rank Adaptation".
    """

    zo_in_forward = False
    theta_in_forward = False
    use_dora = True


@ADAPTERS.register("ia3")
class Ia3Adapters(PeftAdapters):
    """IA3: a learned factor for each key, value and inner activation of the feed-forward layers, initially one.

    Raises:
        ConfigError: peft does not know which layers of the architecture to scale.

    Source: Liu et al. (2022), "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
    Learning".
    """

    decays = False  # initially one

    starts_neutral = True
    zo_lr = 5e-3
    zo_in_forward = False

    def __init__(self, model: Any, names: Sequence[str], seed: int) -> None:
        import peft
        from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        if model.config.model_type not in KNOWN:
            raise ConfigError(
                f"peft does not know which layers of a {model.config.model_type!r} model IA3 scales",
                "choose method.adapter=lora",
            )
        self._attach(model, names, peft.IA3Config(task_type=task_type(model)), "choose method.adapter=lora")


def lora_config(model: Any, rank: int, alpha: float, targets: list[str] | None, use_dora: bool = False) -> Any:
    """A `peft.LoraConfig` for some layers of a model, without dropout."""
    import peft

    return peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=targets,
        task_type=task_type(model),
        use_dora=use_dora,
    )


def _found_targets(model: Any) -> list[str] | None:
    """The query and value projections of an architecture unknown to peft, by the names of its layers."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    if model.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        return None
    own = set(_matrices(model))
    return next((names for names in _QUERY_AND_VALUE if own.issuperset(names)), None)


def _matrices(model: nn.Module) -> list[str]:
    """The names of the model's linear layers, packed or not, each name once."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name, part in model.named_modules() if is_linear(part)))


def is_linear(part: nn.Module) -> bool:
    """Whether a module is a linear layer, by its class or, for quantisation packages, by the name of its class."""
    name = type(part).__name__
    return isinstance(part, nn.Linear) or name == "Conv1D" or ("Linear" in name and hasattr(part, "in_features"))


def targets_hint(model: nn.Module) -> str:
    """What to type to choose the layers of a model."""
    own = [name for name in _matrices(model) if not name.isdigit()]
    known = f" among {', '.join(own[:_SHOWN])}" if own else ""
    example = ",".join(own[:2]) or "NAME"
    return f"name the linear layers{known}, for example method.adapter.target_modules=[{example}]"


@torch.no_grad()
def _start_low_rank(adapters: PeftAdapters, seed: int) -> None:
    """Initialise A from seeded words, the same for all adapters, and B with zeros."""
    for adapter in adapters.names:
        for name, parameter in adapters.tensors(adapter).items():
            if "lora_A" in name.split("."):
                bound = 1 / math.sqrt(parameter[0].numel())  # Kaiming uniform with a = sqrt(5), as in the LoRA paper
                stream = f"lora/base_model.model.{name}"
                uniform = random_words(Key(seed, 0), stream, 0, parameter.numel(), torch.device("cpu")).double()
                parameter.copy_((uniform * (bound / 2**63)).view_as(parameter))
            elif "lora_B" in name.split("."):
                parameter.zero_()
