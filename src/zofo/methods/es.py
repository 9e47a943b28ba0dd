"""Evolution strategies: a population of displaced models, whose scores say where to go.

Salimans, Ho, Chen, Sidor, Sutskever (2017), "Evolution Strategies as a Scalable Alternative to Reinforcement Learning";
Qiu et al. (2025), "Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning".
"""

from __future__ import annotations

from typing import Literal

from zofo.methods.base import METHODS
from zofo.methods.population import PopulationMethodConfig
from zofo.methods.zeroth_order_method import ForwardOnly


class ESConfig(PopulationMethodConfig):
    """Configuration of `es`. `estimator.epsilon` is sigma, and `lr` is alpha, by default half of it."""

    lr_per_sigma = 0.5

    name: Literal["es"] = "es"
    """Which method."""


@METHODS.register("es")
class ES(ForwardOnly):
    """theta <- theta - alpha mean over members i of u_i z_i: members theta + sigma z_i, u_i their shaped losses.

    All members see the same examples, in one forward whose rows carry the directions of their member, so that a
    population costs about what as many rows of inference cost. An update is N keys and coefficients: 16 bytes a member.
    With a score for its loss (`training.objective=accuracy`, or a reward) it needs no gradient and no answers.
    With two mirrored members and `estimator.scores=plain` it is `mezo`, to the bit.
    """

    Config = ESConfig
    paper = "Salimans et al. 2017, Evolution Strategies; Qiu et al. 2025, Evolution Strategies at Scale"
