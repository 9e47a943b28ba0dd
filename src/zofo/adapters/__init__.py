"""Small adapters, through peft: LoRA, DoRA, IA3, the subspace of inputs, prefix and prompt."""

from zofo.adapters.base import (
    ADAPTERS,
    AdapterConfig,
    Adapters,
    Forward,
    PeftAdapters,
    carries_adapters,
    kind_of,
    own_state_dict,
    own_weights,
)
from zofo.adapters.checkpoint import adapter_content, can_merge, load_adapter, merge_adapter
from zofo.adapters.fused_lora import FusedLora
from zofo.adapters.lora import DoraAdapters, Ia3Adapters, LoraAdapters
from zofo.adapters.peft_config import adapter_of
from zofo.adapters.prompt_learning import PrefixAdapters, PromptAdapters
from zofo.adapters.subspace import SubspaceAdapters
from zofo.adapters.switched_off import without_adapters
from zofo.adapters.untrusted import check_untrusted_adapter, load_strange_adapter

__all__ = [
    "ADAPTERS",
    "AdapterConfig",
    "Adapters",
    "DoraAdapters",
    "Forward",
    "FusedLora",
    "Ia3Adapters",
    "LoraAdapters",
    "PeftAdapters",
    "PrefixAdapters",
    "PromptAdapters",
    "SubspaceAdapters",
    "adapter_content",
    "adapter_of",
    "can_merge",
    "carries_adapters",
    "kind_of",
    "load_adapter",
    "load_strange_adapter",
    "merge_adapter",
    "own_state_dict",
    "own_weights",
    "check_untrusted_adapter",
    "without_adapters",
]
