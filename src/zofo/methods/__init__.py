"""Training methods, each in a file that names its paper."""

from zofo.methods.base import METHODS, Method, MethodConfig, Setting, StepLog
from zofo.methods.bilevel import Bilevel, BilevelConfig
from zofo.methods.first_order import FirstOrder, FirstOrderConfig
from zofo.methods.mezo import MeZO, MeZOConfig
from zofo.methods.zeroth_order import ZerothOrder, ZerothOrderConfig

__all__ = [
    "METHODS",
    "Bilevel",
    "BilevelConfig",
    "FirstOrder",
    "FirstOrderConfig",
    "MeZO",
    "MeZOConfig",
    "Method",
    "MethodConfig",
    "Setting",
    "StepLog",
    "ZerothOrder",
    "ZerothOrderConfig",
]
