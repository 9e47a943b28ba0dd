"""transformers models: loading them, their heads and tokenizers, and checks of their padding."""

from zofo.models.heads import Head, check_head_labels, takes
from zofo.models.loading import (
    LoadedModel,
    ModelConfig,
    check_known_model,
    head_of,
    load_model,
    load_on_meta,
    load_tensors,
    load_tokenizer,
    quiet_transformers,
    save_tensors,
)
from zofo.models.offload import is_offloaded, offload_note
from zofo.models.packed_shapes import packed_numbers, weight_bytes
from zofo.models.padding_check import check_mixed_lengths
from zofo.models.quantization import is_packed, packing_note, plain_tensors, quantized_as, trim_memory
from zofo.models.tokenizer_loading import embeddings_of
from zofo.models.wrappers import bare_model, unwrapped

__all__ = [
    "Head",
    "LoadedModel",
    "ModelConfig",
    "bare_model",
    "embeddings_of",
    "head_of",
    "is_offloaded",
    "is_packed",
    "offload_note",
    "load_model",
    "load_on_meta",
    "load_tensors",
    "load_tokenizer",
    "packed_numbers",
    "packing_note",
    "plain_tensors",
    "quantized_as",
    "quiet_transformers",
    "check_mixed_lengths",
    "check_head_labels",
    "check_known_model",
    "save_tensors",
    "takes",
    "trim_memory",
    "unwrapped",
    "weight_bytes",
]
