"""The tensors that move, and the models they belong to."""

from zofo.backbone.backbone import Backbone, Elementwise, Update, fingerprint
from zofo.backbone.heads import Head, refuse_other_labels
from zofo.backbone.loading import (
    LoadedModel,
    ModelConfig,
    head_of,
    load_model,
    load_tensors,
    load_tokenizer,
    refuse_unknown_model,
    save_tensors,
)
from zofo.backbone.probing import refuse_mixed_lengths
from zofo.backbone.rounding import at_least_float32
from zofo.backbone.selection import leaving_out, matching, memory_of, movable, named_by, selected
from zofo.backbone.tokenizer_loading import embeddings_of

__all__ = [
    "Backbone",
    "Elementwise",
    "Head",
    "LoadedModel",
    "ModelConfig",
    "Update",
    "at_least_float32",
    "embeddings_of",
    "fingerprint",
    "head_of",
    "leaving_out",
    "load_model",
    "load_tensors",
    "load_tokenizer",
    "matching",
    "memory_of",
    "movable",
    "named_by",
    "refuse_mixed_lengths",
    "refuse_other_labels",
    "refuse_unknown_model",
    "save_tensors",
    "selected",
]
