"""The configuration of a bilevel run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from zofo.adapters import ADAPTERS, AdapterConfig, PeftAdapters
from zofo.config import NonNegative
from zofo.errors import ConfigError
from zofo.methods.base import MethodConfig, Pass
from zofo.methods.bilevel.control_variate import check_control_variate
from zofo.methods.bilevel.penalty_schedule import Penalty, as_penalty, largest
from zofo.methods.epoch import Epoch
from zofo.methods.first_order_step import FirstOrderStepConfig
from zofo.methods.zeroth_order_step import ZerothOrderConfig
from zofo.objectives import REWARD

BackboneStepKind = Literal["zeroth-order", "frozen", "random"]
"""The method, and two controls: theta as it is, or moved elsewhere as far."""


class BilevelConfig(MethodConfig, ZerothOrderConfig, FirstOrderStepConfig):
    """Configuration of `bilevel`. A plain `lr` is the rate of both adapters; `rule.lr` is the backbone's."""

    lr_means = adapter_rates = ("lr_lower", "lr_adapter")
    moved_adapter = "backbone_adapter"

    name: Literal["bilevel"] = "bilevel"
    """Which method."""
    inner_steps: int = Field(10, ge=0)
    """T: first-order steps on the lower adapter in each outer step; with 0 it does not move."""
    penalty: Penalty = 1.0
    """lambda: how strongly the adapter is tied to the solution of the inner problem; or a schedule. The default
    `rule.lr` is that of `mezo` divided by 1 + its largest value, since it multiplies slopes."""
    backbone_update: BackboneStepKind = "zeroth-order"
    """How the backbone moves. The controls do not move it (`frozen`), or move it by the same amount in other directions
    (`random`)."""
    upper_objective: str | None = None
    """The objective on D_f, if it differs from `training.objective`, which is that on D_p: one of `zofo list
    objectives`, or `reward` for the run's reward. One without a gradient moves theta only."""
    upper_surrogate: bool = False
    """Whether the step on p also follows `training.objective` on D_f, if `upper_objective` has no gradient."""
    backbone_adapter: AdapterConfig | None = None
    """An adapter as theta, such as `subspace`: its tensors move instead of the model's weights, which are only read, so
    that they may be quantised or offloaded. It determines epsilon and `rule.lr` as for `mezo`."""
    control_variate: AdapterConfig | None = None
    """An adapter, `subspace`, whose first-order gradient reduces the variance of theta's step without bias. It takes
    one more backward pass, and a part of theta that is saved with p and s."""
    lr_lower: NonNegative = PeftAdapters.lr
    """Learning rate of the lower adapter s; by default 1e-3, 1e-2 for a prefix or prompt, 3e-4 for `subspace`."""
    lr_adapter: NonNegative = PeftAdapters.lr
    """Learning rate of the adapter p; by default 1e-3, 1e-2 for a prefix or prompt, 3e-4 for `subspace`."""

    @classmethod
    def default_lr(cls, given: Mapping[str, Any], moved: type[PeftAdapters] | None) -> float:
        """The default of `mezo` divided by 1 + the largest penalty, since the step adds up that many slopes."""
        return super().default_lr(given, moved) / (1 + largest(as_penalty(given.get("penalty", 1.0))))

    @model_validator(mode="after")
    def _adapters_add_up(self) -> BilevelConfig:
        beneath = {"backbone_adapter": self.backbone_adapter, "control_variate": self.control_variate}
        given = {key: one for key, one in beneath.items() if one is not None}
        for key in given:
            for name, one in {**given, "adapter": self.adapter}.items():
                if not one.kind.adds_low_rank:
                    fit = ", ".join(name for name in ADAPTERS if ADAPTERS[name].adds_low_rank)
                    raise ConfigError(
                        f"with method.{key} two adapters act at once and are saved as one, but method.{name}="
                        f"{one.name} is no low-rank term",
                        f"choose among {fit}, or set method.{key}=null",
                    )
        if self.control_variate is not None:
            check_control_variate(self, self.control_variate)
        return self

    @property
    def reward_has_a_place(self) -> bool:
        return self.upper_objective == REWARD

    @property
    def score_beside(self) -> str | None:
        return self.upper_objective

    def passes(self, rows: int) -> Sequence[Pass]:
        """Inner steps, the two losses that the step on p follows, and three losses at each point for the step on theta.

        A control variate takes one more.
        """
        first = self.backward(self.batch_size, self.inner_steps + 2 + (self.control_variate is not None))
        still = self.backbone_update != "zeroth-order"  # a control without forwards
        return [first] if still else [first, self.forwards(self.batch_size, 3)]

    def epoch(self, rows: Sequence[int]) -> Epoch:
        """A pass over D_p, two thirds of the rows, by the B_p of the outer steps; D_f is passed over twice in that
        time."""
        return Epoch(split_sizes(sum(rows))[1], self.batch_size)


def split_sizes(rows: int) -> tuple[int, int]:
    """The sizes of D_f and D_p for a number of training rows."""
    return rows // 3, rows - rows // 3
