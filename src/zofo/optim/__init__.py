"""Zeroth-order optimizers for your own scripts: `loss = optimizer.step(closure)`, without a gradient."""

from zofo.optim.mezo import MeZO
from zofo.optim.svrg import SVRG

__all__ = ["SVRG", "MeZO"]
