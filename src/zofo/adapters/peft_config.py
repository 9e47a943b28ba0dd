"""Convert a peft configuration to an adapter of zofo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import PrivateAttr

from zofo.adapters.base import AdapterConfig
from zofo.adapters.lora import LowRankAdapters
from zofo.errors import ConfigError

_OF_NO_MATTER = {
    *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("task_type", "megatron_core", "runtime_config", "encoder_hidden_size"),
}
_OF_LORA = {
    *("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "use_rslora", "use_dora", "modules_to_save", "fan_in_fan_out"),
}
_OF_TOKENS = {"num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"}
_INSTEAD = {
    "lora_dropout": "set lora_dropout=0: with dropout two points of one step would be two models",
    "bias": 'set bias="none": biases belong to the model, which has steps of its own',
    "init_lora_weights": "leave it out: adapters start from the seed, all alike, and the model is as it was",
}
_KINDS = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}


class GivenLora(AdapterConfig):
    """LoRA or DoRA from a `peft.LoraConfig` with settings that zofo has no option for, such as rank patterns."""

    _shape: Any = PrivateAttr(None)

    def build(self, *parts: Any) -> Any:
        """Build the adapters from the given configuration."""
        kind: Any = self.kind
        assert issubclass(kind, LowRankAdapters)
        return kind.of_shape(*parts, self._shape)


def adapter_of(given: Any) -> AdapterConfig:
    """The adapter for a peft configuration.

    Args:
        given: a `peft.PeftConfig` for LoRA, DoRA, IA3, prompt or prefix tuning; or an adapter of zofo as a name or a
            dict with options, such as {"name": "lora", "rank": 8}.

    Raises:
        ConfigError: another kind, or an option that zeroth-order steps do not support; the message names it.
    """
    if isinstance(given, str | Mapping):
        return AdapterConfig.model_validate(given if isinstance(given, str) else dict(given))
    kind = str(getattr(getattr(given, "peft_type", None), "value", ""))
    if kind not in _KINDS:
        says = f"an adapter of {kind}, which first-order steps of zofo cannot train" if kind else "not one of peft's"
        raise ConfigError(
            "there is no configuration of an adapter" if given is None else f"the adapter's configuration is {says}",
            "give a LoraConfig, IA3Config, PromptTuningConfig or PrefixTuningConfig of peft",
        )
    known = {"LORA": _OF_LORA, "IA3": set()}.get(kind, _OF_TOKENS)
    _check_options(given, _OF_NO_MATTER | known)
    if kind != "LORA":
        tokens = {"num_virtual_tokens": given.num_virtual_tokens} if known is _OF_TOKENS else {}
        return AdapterConfig.model_validate({"name": _KINDS[kind], **tokens})
    targets = given.target_modules
    shown = {"target_modules": sorted(targets)} if isinstance(targets, set | list) else {}
    name = "dora" if given.use_dora else "lora"
    made = GivenLora.model_validate({"name": name, "rank": given.r, "alpha": given.lora_alpha, **shown})
    made._shape = given
    return made


def _check_options(given: Any, known: set[str]) -> None:
    """Raise ConfigError if an option other than these is not at its default."""
    usual = type(given)(**({"num_virtual_tokens": 1} if hasattr(given, "num_virtual_tokens") else {}))
    for name, value in vars(given).items():
        if name not in known and value != getattr(usual, name, value):
            raise ConfigError(
                f"{type(given).__name__}({name}={value!r}) cannot be used with zeroth-order steps beside it",
                _INSTEAD.get(name, "leave it out"),
            )
