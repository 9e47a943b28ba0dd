"""zofo: fine-tune language models in the memory of inference, at close to the speed of inference.

The idea: a point in weight space is the base weights plus a `Displacement`, a short list of (`Key`, coefficient).
Everything else is built on it: a `Noise` gives a key its direction, an `Evaluator` asks a model for losses at points,
an `Estimator` turns losses into a gradient, a `Rule` turns a gradient into an update, a `Method` is one training step.
"""

from zofo.backbone import Backbone, Update, load_model
from zofo.displacement import Displacement, Key
from zofo.errors import NonFiniteError, ZofoError
from zofo.estimators import Estimate, Estimator, OneSided, PerExample, TwoSided
from zofo.evaluators import Counts, Evaluator, InPlace
from zofo.methods import (
    Bilevel,
    BilevelConfig,
    FirstOrder,
    FirstOrderConfig,
    Method,
    MeZO,
    MeZOConfig,
    Setting,
    StepLog,
)
from zofo.noise import Gaussian, LowRank, Noise, Rademacher
from zofo.rules import Rule
from zofo.training import RunConfig, RunFolder, read_config, train
from zofo.training.use import evaluate_run, predict

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "Bilevel",
    "BilevelConfig",
    "Counts",
    "Displacement",
    "Estimate",
    "Estimator",
    "Evaluator",
    "FirstOrder",
    "FirstOrderConfig",
    "Gaussian",
    "InPlace",
    "Key",
    "LowRank",
    "MeZO",
    "MeZOConfig",
    "Method",
    "Noise",
    "NonFiniteError",
    "OneSided",
    "PerExample",
    "Rademacher",
    "Rule",
    "RunConfig",
    "RunFolder",
    "Setting",
    "StepLog",
    "TwoSided",
    "Update",
    "ZofoError",
    "evaluate_run",
    "load_model",
    "predict",
    "read_config",
    "train",
]
