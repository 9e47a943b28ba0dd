"""Compute losses at points around theta, and first-order gradients. Work is counted where it is done."""

from zofo.evaluators.backward import Gradient, run_again
from zofo.evaluators.base import EVALUATORS, Evaluator, EvaluatorConfig, LossRequest, Objective, Point, Probe
from zofo.evaluators.counts import Counts, counting_forwards
from zofo.evaluators.in_forward import InForward
from zofo.evaluators.in_place import FromCopy, InPlace
from zofo.evaluators.layers_below import sharing_on_meta
from zofo.evaluators.parameter_use import unused_by
from zofo.evaluators.shared import OwnExamples, SharedExamples

__all__ = [
    "EVALUATORS",
    "LossRequest",
    "Counts",
    "Evaluator",
    "EvaluatorConfig",
    "FromCopy",
    "Gradient",
    "InForward",
    "InPlace",
    "Objective",
    "OwnExamples",
    "Point",
    "Probe",
    "SharedExamples",
    "counting_forwards",
    "run_again",
    "sharing_on_meta",
    "unused_by",
]
