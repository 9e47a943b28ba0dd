"""The tensors that training moves (theta), and the model they belong to."""

from zofo.backbone.backbone import Backbone, Rounding, fingerprint, without_decay
from zofo.backbone.base_copy import BaseCopy
from zofo.backbone.distance import BackboneDistance, distance, length_of
from zofo.backbone.selection import (
    check_plain_weights,
    leaving_out,
    matching,
    memory_of,
    movable,
    moving_tensors,
    selected,
)
from zofo.backbone.stochastic_rounding import at_least_float32, write_rounded_
from zofo.backbone.theta import Theta, UpdateLog
from zofo.backbone.update import Elementwise, Update

__all__ = [
    "Theta",
    "UpdateLog",
    "Backbone",
    "BaseCopy",
    "BackboneDistance",
    "Elementwise",
    "Rounding",
    "Update",
    "at_least_float32",
    "check_plain_weights",
    "distance",
    "fingerprint",
    "length_of",
    "leaving_out",
    "matching",
    "memory_of",
    "movable",
    "moving_tensors",
    "selected",
    "without_decay",
    "write_rounded_",
]
