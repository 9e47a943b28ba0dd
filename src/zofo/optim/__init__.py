"""Zeroth-order optimizers for scripts of your own: `loss = optimizer.step(closure)`, and no gradient."""

from zofo.optim.mezo import MeZO
from zofo.optim.svrg import SVRG

__all__ = ["SVRG", "MeZO"]
