"""zofo: fine-tune language models by forward passes, in the memory of inference; by small adapters; or by both.

The idea: a point in weight space is the base weights plus a `Displacement`, a short list of (`Key`, coefficient).
Everything else is built on it: a `Noise` gives a key its direction, an `Evaluator` asks a model for losses at points,
an `Estimator` turns losses into a gradient, a `Rule` turns a gradient into an update, a `Method` is one training step.
"""

from __future__ import annotations

import functools
import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zofo.backbone import Backbone, Update
    from zofo.displacement import Displacement, Key
    from zofo.errors import NonFiniteError, ZofoError
    from zofo.estimators import Estimate, Estimator, OneSided, TwoSided
    from zofo.evaluators import Counts, Evaluator, InForward, InPlace
    from zofo.methods import (
        Bilevel,
        BilevelConfig,
        FirstOrder,
        FirstOrderConfig,
        Method,
        MeZO,
        MeZOConfig,
        StepLog,
        TrainingContext,
    )
    from zofo.models import LoadedModel, ModelConfig, load_model
    from zofo.noise import Gaussian, LowRank, Noise, Rademacher
    from zofo.rules import Rule
    from zofo.training import Predictor, RunConfig, RunFolder, evaluate_run, predict, predict_file, read_config, train

__version__ = "0.1.0"

_HOMES = {
    "backbone": ("Backbone", "Update"),
    "displacement": ("Displacement", "Key"),
    "errors": ("NonFiniteError", "ZofoError"),
    "estimators": ("Estimate", "Estimator", "OneSided", "TwoSided"),
    "evaluators": ("Counts", "Evaluator", "InForward", "InPlace"),
    "methods": (
        "Bilevel",
        "BilevelConfig",
        "FirstOrder",
        "FirstOrderConfig",
        "MeZO",
        "MeZOConfig",
        "Method",
        "StepLog",
        "TrainingContext",
    ),
    "models": ("LoadedModel", "ModelConfig", "load_model"),
    "noise": ("Gaussian", "LowRank", "Noise", "Rademacher"),
    "rules": ("Rule",),
    "training": (
        *("Predictor", "RunConfig", "RunFolder", "evaluate_run", "predict", "predict_file", "read_config", "train"),
    ),
}
_OF_OTHER_MACHINES = {  # warnings about kernels of other machines, and about the libraries' own code
    "torchao": "Could not load this library",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "torch.utils._pytree": "Calling register_constant() on Enum subclasses is deprecated",
}


def _concerns_the_user(about: str, record: logging.LogRecord) -> bool:
    return about not in record.getMessage()


for _logger, _about in _OF_OTHER_MACHINES.items():
    logging.getLogger(_logger).addFilter(functools.partial(_concerns_the_user, _about))
_ROOMS = ("integrations", "optim")  # modules imported by their own names
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

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
    "InForward",
    "InPlace",
    "Key",
    "LoadedModel",
    "LowRank",
    "MeZO",
    "MeZOConfig",
    "Method",
    "ModelConfig",
    "Noise",
    "NonFiniteError",
    "OneSided",
    "Predictor",
    "Rademacher",
    "Rule",
    "RunConfig",
    "RunFolder",
    "StepLog",
    "TrainingContext",
    "TwoSided",
    "Update",
    "ZofoError",
    "evaluate_run",
    "load_model",
    "predict",
    "predict_file",
    "read_config",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: torch takes a second, and `zofo --help` needs none of it."""
    if name in _ROOMS:
        return import_module(f"zofo.{name}")
    if name not in _HOME_OF:
        instead = "; the rule is zofo.rules.SGD, an optimizer is zofo.optim.MeZO" if name == "SGD" else ""
        raise AttributeError(f"module 'zofo' has no attribute {name!r}{instead}")
    value = getattr(import_module(f"zofo.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_ROOMS])
