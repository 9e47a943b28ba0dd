"""Small first-order adapters, through peft."""

from zofo.adapters.base import Adapters
from zofo.adapters.lora import LoraAdapters, LoraConfig, load_adapter

__all__ = ["Adapters", "LoraAdapters", "LoraConfig", "load_adapter"]
