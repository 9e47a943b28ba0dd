"""Models of transformers: loading them, their heads, their tokenizers, and checks of their padding."""

from zofo.models.heads import Head, refuse_other_labels, takes
from zofo.models.loading import (
    LoadedModel,
    ModelConfig,
    head_of,
    load_model,
    load_tensors,
    load_tokenizer,
    quiet_transformers,
    refuse_unknown_model,
    save_tensors,
)
from zofo.models.padding_check import refuse_mixed_lengths
from zofo.models.tokenizer_loading import embeddings_of

__all__ = [
    "Head",
    "LoadedModel",
    "ModelConfig",
    "embeddings_of",
    "head_of",
    "load_model",
    "load_tensors",
    "load_tokenizer",
    "quiet_transformers",
    "refuse_mixed_lengths",
    "refuse_other_labels",
    "refuse_unknown_model",
    "save_tensors",
    "takes",
]
