"""Asking a model for losses at points, and for first-order gradients; work is counted where it happens."""

from zofo.evaluators.base import EVALUATORS, Ask, Evaluator, Objective, Point, Visit
from zofo.evaluators.counts import Counts, counting_forwards
from zofo.evaluators.gradient import Gradient
from zofo.evaluators.in_forward import InForward
from zofo.evaluators.in_place import InPlace
from zofo.evaluators.journal import Journal
from zofo.evaluators.watching import unused_by

__all__ = [
    "EVALUATORS",
    "Ask",
    "Counts",
    "Evaluator",
    "Gradient",
    "InForward",
    "InPlace",
    "Journal",
    "Objective",
    "Point",
    "Visit",
    "counting_forwards",
    "unused_by",
]
