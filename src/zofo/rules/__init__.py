"""How an estimate becomes an update."""

from zofo.rules.base import RULES, Rule, State
from zofo.rules.dense import DenseAdam, DenseMomentum, Sign
from zofo.rules.linear import SGD, Momentum, RmsSGD

__all__ = ["RULES", "SGD", "DenseAdam", "DenseMomentum", "Momentum", "RmsSGD", "Rule", "Sign", "State"]
