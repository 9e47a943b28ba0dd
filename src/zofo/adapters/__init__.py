"""Small first-order adapters, through peft."""

from zofo.adapters.lora import Adapters, LoraConfig, load_adapter

__all__ = ["Adapters", "LoraConfig", "load_adapter"]
