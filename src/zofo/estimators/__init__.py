"""Zeroth-order gradient estimators: losses in, an estimate out."""

from zofo.estimators.base import ESTIMATORS, Direction, Estimate, Estimator
from zofo.estimators.population import Population
from zofo.estimators.spsa import OneSided, TwoSided

__all__ = ["ESTIMATORS", "Direction", "Estimate", "Estimator", "OneSided", "Population", "TwoSided"]
