"""MeZO: zeroth-order SGD in the memory of inference, on all weights or on an adapter.

Malladi, Gao, Nichani, Damian, Lee, Chen, Arora (2023), "Fine-Tuning Language Models with Just Forward Passes",
algorithm 1.
"""

from __future__ import annotations

from typing import Literal

from zofo.methods.base import METHODS
from zofo.methods.zeroth_order_method import ForwardOnly, ForwardOnlyConfig


class MeZOConfig(ForwardOnlyConfig):
    """Configuration of `mezo`."""

    name: Literal["mezo"] = "mezo"
    """Which method."""


@METHODS.register("mezo")
class MeZO(ForwardOnly):
    """pg = mean over the batch of [L(theta + e z) - L(theta - e z)] / 2e; theta <- theta - lr (pg z + wd theta).

    Both losses are on the same batch, with dropout off. In the forward they are one forward of 2 B rows and the weights
    are not written; in place a step is three sweeps over the weights, since going home and updating is one. With an
    adapter, theta is its tensors, and the model is frozen.
    """

    Config = MeZOConfig
    paper = "Malladi et al. 2023, Fine-Tuning Language Models with Just Forward Passes"
