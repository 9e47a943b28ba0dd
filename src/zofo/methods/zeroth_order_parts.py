"""The parts of a zeroth-order step, as a configuration names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zofo.config import PartConfig
from zofo.estimators import ESTIMATORS
from zofo.evaluators import EVALUATORS
from zofo.noise import MASKS, NOISES
from zofo.rules import RULES


class NoiseConfig(PartConfig):
    """The distribution of directions."""

    registry = NOISES
    default = "low-rank"


class MaskConfig(PartConfig):
    """The part of every direction that is kept."""

    registry = MASKS
    default = "magnitude"


class EstimatorConfig(PartConfig):
    """How losses become a gradient estimate."""

    registry = ESTIMATORS
    default = "two-sided"


class RuleConfig(PartConfig):
    """How an estimate becomes an update."""

    registry = RULES
    default = "sgd"

    @classmethod
    def is_plain(cls, given: Mapping[str, Any]) -> bool:
        """Whether the default learning rate of a rule, by its options, is the method's to decide."""
        return (name := given.get("name", cls.default)) in RULES and RULES[name].plain

    @property
    def decay(self) -> tuple[str, float]:
        """What each update takes off beside its displacement: the option that says so, and its value; 0 for nothing."""
        weight = float(self.options.get("weight_decay") or 0.0)
        return ("weight_decay", weight) if weight else ("displacement_decay", self.build().displacement_decay)


class EvaluatorConfig(PartConfig):
    """How losses at points are found."""

    registry = EVALUATORS
    default = "in-forward"
