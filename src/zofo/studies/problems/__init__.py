"""Toy problems: small models with their own data, on which methods can be compared in minutes on one core."""

from zofo.studies.problems.base import PROBLEMS, Problem, ProblemConfig, Rows
from zofo.studies.problems.digits import Digits
from zofo.studies.problems.least_squares import LeastSquares

__all__ = ["PROBLEMS", "Digits", "LeastSquares", "Problem", "ProblemConfig", "Rows"]
