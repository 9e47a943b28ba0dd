"""The tensors that move, and the models they belong to."""

from zofo.backbone.backbone import Backbone, Elementwise, Update, selected
from zofo.backbone.loading import LoadedModel, ModelConfig, load_model, save_tensors

__all__ = [
    "Backbone",
    "Elementwise",
    "LoadedModel",
    "ModelConfig",
    "Update",
    "load_model",
    "save_tensors",
    "selected",
]
