"""Training methods, each in a file that names its paper."""

from zofo.methods.base import METHODS, Method, MethodConfig, ScoreFunction, Setting, StepLog
from zofo.methods.bilevel import Bilevel, BilevelConfig
from zofo.methods.first_order import FirstOrder, FirstOrderConfig
from zofo.methods.forward_only import ForwardOnly, ForwardOnlyConfig
from zofo.methods.linear_probe import LinearProbe, LinearProbeConfig, load_probe
from zofo.methods.meta import MetaBilevel, MetaBilevelConfig
from zofo.methods.mezo import MeZO, MeZOConfig
from zofo.methods.svrg import SVRG, SVRGConfig
from zofo.methods.two_stage import TwoStage, TwoStageConfig
from zofo.methods.zero_shot import InContext, InContextConfig, ZeroShot, ZeroShotConfig
from zofo.methods.zeroth_order import ZerothOrder, ZerothOrderConfig
from zofo.methods.zo_svrg import ZOSVRG, ZOSVRGConfig

__all__ = [
    "METHODS",
    "SVRG",
    "ZOSVRG",
    "Bilevel",
    "BilevelConfig",
    "FirstOrder",
    "FirstOrderConfig",
    "ForwardOnly",
    "ForwardOnlyConfig",
    "InContext",
    "InContextConfig",
    "LinearProbe",
    "LinearProbeConfig",
    "MeZO",
    "MeZOConfig",
    "MetaBilevel",
    "MetaBilevelConfig",
    "Method",
    "MethodConfig",
    "SVRGConfig",
    "ScoreFunction",
    "Setting",
    "StepLog",
    "TwoStage",
    "TwoStageConfig",
    "ZOSVRGConfig",
    "ZeroShot",
    "ZeroShotConfig",
    "ZerothOrder",
    "ZerothOrderConfig",
    "load_probe",
]
