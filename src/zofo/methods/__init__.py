"""Training methods, each in a file that names its paper."""

from zofo.methods.base import (
    METHODS,
    Method,
    MethodConfig,
    Pass,
    ScoreFunction,
    StepLog,
    TrainingContext,
    WriteFunction,
    unscheduled,
)
from zofo.methods.bilevel.bilevel import Bilevel
from zofo.methods.bilevel.config import BilevelConfig
from zofo.methods.bilevel.meta_bilevel import MetaBilevel, MetaBilevelConfig
from zofo.methods.es import ES, ESConfig
from zofo.methods.first_order import FirstOrder, FirstOrderConfig
from zofo.methods.linear_probe import LinearProbe, LinearProbeConfig, load_probe
from zofo.methods.mezo import ForwardOnly, ForwardOnlyConfig, MeZO, MeZOConfig
from zofo.methods.select import Select, SelectConfig
from zofo.methods.svrg.svrg import SVRG, SVRGConfig
from zofo.methods.svrg.zo_svrg import ZOSVRG, ZOSVRGConfig
from zofo.methods.two_stage import TwoStage, TwoStageConfig
from zofo.methods.zero_shot import InContext, InContextConfig, ZeroShot, ZeroShotConfig
from zofo.methods.zeroth_order_step import ZerothOrder, ZerothOrderConfig

__all__ = [
    "ES",
    "METHODS",
    "SVRG",
    "ZOSVRG",
    "Bilevel",
    "BilevelConfig",
    "ESConfig",
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
    "Pass",
    "SVRGConfig",
    "ScoreFunction",
    "WriteFunction",
    "Select",
    "SelectConfig",
    "TrainingContext",
    "StepLog",
    "TwoStage",
    "TwoStageConfig",
    "ZOSVRGConfig",
    "ZeroShot",
    "ZeroShotConfig",
    "ZerothOrder",
    "ZerothOrderConfig",
    "load_probe",
    "unscheduled",
]
