"""Training methods, each in a file that names its paper."""

from zofo.methods.base import METHODS, Method, MethodConfig, ScoreFunction, Setting, StepLog
from zofo.methods.bilevel import Bilevel, BilevelConfig
from zofo.methods.first_order import FirstOrder, FirstOrderConfig
from zofo.methods.linear_probe import LinearProbe, LinearProbeConfig, load_probe
from zofo.methods.mezo import MeZO, MeZOConfig
from zofo.methods.two_stage import TwoStage, TwoStageConfig
from zofo.methods.zero_shot import InContext, InContextConfig, ZeroShot, ZeroShotConfig
from zofo.methods.zeroth_order import ZerothOrder, ZerothOrderConfig

__all__ = [
    "METHODS",
    "Bilevel",
    "BilevelConfig",
    "FirstOrder",
    "FirstOrderConfig",
    "InContext",
    "InContextConfig",
    "LinearProbe",
    "LinearProbeConfig",
    "MeZO",
    "MeZOConfig",
    "Method",
    "MethodConfig",
    "ScoreFunction",
    "Setting",
    "StepLog",
    "TwoStage",
    "TwoStageConfig",
    "ZeroShot",
    "ZeroShotConfig",
    "ZerothOrder",
    "ZerothOrderConfig",
    "load_probe",
]
