"""Zeroth-order gradient estimators: losses in, an estimate out."""

from zofo.estimators.base import ESTIMATORS, Estimate, Estimator
from zofo.estimators.spsa import OneSided, PerExample, TwoSided

__all__ = ["ESTIMATORS", "Estimate", "Estimator", "OneSided", "PerExample", "TwoSided"]
