"""The tensors that move, and the models they belong to."""

from zofo.backbone.backbone import Backbone, Elementwise, Update, selected
from zofo.backbone.heads import Head
from zofo.backbone.loading import LoadedModel, ModelConfig, head_of, load_model, save_tensors

__all__ = [
    "Backbone",
    "Elementwise",
    "Head",
    "LoadedModel",
    "ModelConfig",
    "Update",
    "head_of",
    "load_model",
    "save_tensors",
    "selected",
]
