"""ZO-SVRG: every example has its own direction, and one learning rate serves all steps. For small problems.

Liu, Kailkhura, Chen, Ting, Chang, Amini (2018), "Zeroth-Order Stochastic Variance Reduction for Nonconvex
Optimization"; algorithm 2 of Gautam et al. (2024).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from zofo.errors import ConfigError
from zofo.methods.base import METHODS
from zofo.methods.svrg.svrg import SVRG, SVRGConfig


class ZOSVRGConfig(SVRGConfig):
    """Configuration of `zo-svrg`: as `svrg`, with one learning rate and directions per example."""

    name: Literal["zo-svrg"] = "zo-svrg"  # type: ignore[assignment]
    """Which method."""

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_paper(cls, given: Any) -> Any:
        return {"directions": "per-example", **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _one_rate(self) -> ZOSVRGConfig:
        for option, value, only in (("lr_full", self.lr_full, None), ("control_variate", self.control_variate, "same")):
            if value != only:
                raise ConfigError(
                    f"method=zo-svrg has one learning rate and one kind of pair, but method.{option} is {value!r}",
                    "choose method=svrg, which has both options",
                )
        if "shared" in (self.directions, self.anchor_directions):
            raise ConfigError(
                "method=zo-svrg has a direction for every example, but they are shared",
                "choose method=svrg, which shares them",
            )
        return self


@METHODS.register("zo-svrg")
class ZOSVRG(SVRG):
    """theta <- theta - lr (mean over I of (pg_i(theta) - pg_i(anchor)) z_i + g), g the mean over all n examples.

    Example i has its own direction z_i, drawn anew in every step and the same at theta and at the anchor; g is a sum of
    n terms. In a step that sets the anchor the pair is zero, since theta is the anchor, and is not computed.
    """

    Config = ZOSVRGConfig
    paper = "Liu et al. 2018, Zeroth-Order Stochastic Variance Reduction for Nonconvex Optimization"
