"""Virtual tokens before the tokens of every row: prefix and prompt tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from zofo.adapters.base import ADAPTERS, PeftAdapters, cannot_be_attached, task_type
from zofo.adapters.virtual_token_hooks import inject
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.models.heads import is_encoder
from zofo.noise import Gaussian, random_words

Tokens = Annotated[int, Field(ge=1)]

_SPREAD = 0.02  # of a random prefix


@ADAPTERS.register("prefix")
class PrefixAdapters(PeftAdapters):
    """Prefix tuning: trained keys and values of virtual tokens in every layer, without reparametrisation.

    With `init: activations` they start as those of seeded random words of the vocabulary, as if the model read these
    words before every row; a random start on another scale than activations disturbs the model.

    Args:
        num_virtual_tokens: how many virtual tokens.
        init: start from the activations of random words, or from N(0, 0.02**2).

    Raises:
        ConfigError: the model is an encoder, or its layers have no keys and values, or in a form that peft does not
            support.

    Source: Li and Liang (2021), "Prefix-Tuning"; the start from activations as in MeZO (Malladi et al. 2023).
    """

    lr = 1e-2
    zo_lr = 1e-2
    zo_epsilon = 1e-1
    fills_cache = True

    def __init__(
        self,
        model: Any,
        names: Sequence[str],
        seed: int,
        num_virtual_tokens: Tokens = 5,
        init: Literal["activations", "random"] = "activations",
    ) -> None:
        import peft

        _check_causal(model, "prefix")
        first = _activations(
            model, num_virtual_tokens, seed
        )  # which also shows the shape of the model's keys and values
        if init == "random":
            first = Gaussian().whole(Key(seed, 0), "prefix/start", tuple(first.shape)) * _SPREAD
        shape = peft.PrefixTuningConfig(num_virtual_tokens=num_virtual_tokens, task_type=task_type(model))
        self._attach(model, names, shape, "choose method.adapter=lora")
        _init_parameters(self, first)
        inject(model, self._peft)


@ADAPTERS.register("prompt")
class PromptAdapters(PeftAdapters):
    """Prompt tuning: trained embeddings of virtual tokens, initialised from seeded random words of the vocabulary.

    Args:
        num_virtual_tokens: how many virtual tokens.

    Raises:
        ConfigError: the model is an encoder.

    Source: Lester, Al-Rfou and Constant (2021), "The Power of Scale for Parameter-Efficient Prompt Tuning".
    """

    lr = 1e-2
    zo_lr = 1e-2
    zo_epsilon = 1e-1

    def __init__(self, model: Any, names: Sequence[str], seed: int, num_virtual_tokens: Tokens = 10) -> None:
        import peft

        _check_causal(model, "prompt")
        with torch.no_grad():
            first = model.get_input_embeddings()(_random_words(model, num_virtual_tokens, seed))[0]
        shape = peft.PromptTuningConfig(
            num_virtual_tokens=num_virtual_tokens, task_type=task_type(model), prompt_tuning_init="RANDOM"
        )
        self._attach(model, names, shape, "choose method.adapter=lora")
        _init_parameters(self, first)
        inject(model, self._peft)


def _check_causal(model: Any, adapter: str) -> None:
    config = model.config.to_dict()
    if is_encoder(config) or config.get("is_encoder_decoder") or getattr(model, "_is_stateful", False):
        raise ConfigError(
            f"method.adapter is {adapter!r}, but {type(model).__name__} is not a causal transformer, which reads "
            "virtual tokens before all others",
            "choose method.adapter=lora",
        )


def _random_words(model: Any, count: int, seed: int) -> torch.Tensor:
    """Ids of seeded random words, without special tokens if the vocabulary has others: int64, [1, count]."""
    config = model.config.get_text_config()
    special: set[Any] = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        ids = getattr(config, name, None)
        special.update(ids if isinstance(ids, list) else [ids])
    known = range(config.vocab_size)
    plain = torch.tensor([token for token in known if token not in special] or list(known))
    drawn = random_words(Key(seed, 0), "virtual tokens/words", 0, count, torch.device("cpu"))
    return plain[drawn % len(plain)].unsqueeze(0).to(model.get_input_embeddings().weight.device)


@torch.no_grad()
def _activations(model: Any, count: int, seed: int) -> torch.Tensor:
    """Keys and values of each layer for random words, in peft's layout: float32, [count, everything else]."""
    try:
        cache = model(input_ids=_random_words(model, count, seed), use_cache=True).past_key_values
    except Exception as error:  # a model's forward can raise anything
        raise cannot_be_attached("prefix tuning", error, "choose method.adapter=lora") from error
    layers = getattr(cache, "layers", None)
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise ConfigError(
            f"the layers of {type(model).__name__} keep no keys and values that a prefix could stand for",
            "choose method.adapter=lora",
        )
    # of one row: [layers, heads, tokens, size of a head] each
    pairs = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in layers])
    return pairs.permute(3, 0, 1, 2, 4).reshape(count, -1).float()


@torch.no_grad()
def _init_parameters(adapters: PeftAdapters, first: torch.Tensor) -> None:
    """Initialise all adapters alike; a classification head with them starts as the model's."""
    for adapter in adapters.names:
        (parameter,) = (p for name, p in adapters.tensors(adapter).items() if name.startswith("prompt_encoder."))
        if first.shape != parameter.shape:
            raise ConfigError(
                f"peft holds virtual tokens of {type(adapters.model).__name__} in the shape {list(parameter.shape)}, "
                f"but the model needs {list(first.shape)}",
                "choose method.adapter=prompt or method.adapter=lora",
            )
        parameter.copy_(first)
