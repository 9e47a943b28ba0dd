"""MeZO: zeroth-order SGD in the memory of inference.

Malladi, Gao, Nichani, Damian, Lee, Chen, Arora (2023), "Fine-Tuning Language Models with Just Forward Passes",
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from zofo.backbone import Backbone
from zofo.methods.base import METHODS, Method, MethodConfig, Setting, StepLog
from zofo.methods.zeroth_order import ZerothOrder, ZerothOrderConfig


class MeZOConfig(MethodConfig, ZerothOrderConfig):
    """Configuration of `mezo`."""

    name: Literal["mezo"] = "mezo"
    """Which method."""


@METHODS.register("mezo")
class MeZO(Method):
    """pg = mean over the batch of [L(theta + e z) - L(theta - e z)] / 2e; theta <- theta - lr (pg z + wd theta).

    Both losses are on the same batch, with dropout off. In the forward they are one forward of 2 B rows and the weights
    are not written; in place a step is three sweeps over the weights, since going home and updating is one.

    Args:
        config: its parts and sizes.
        setting: model, objective and examples.
    """

    Config = MeZOConfig
    paper = "Malladi et al. 2023, Fine-Tuning Language Models with Just Forward Passes"
    backbone: Backbone

    def __init__(self, config: MeZOConfig, setting: Setting) -> None:
        self._config = config
        self.model = setting.model
        self._objective = setting.objective
        self._batches = setting.batches(config.batch_size, "train")
        self._two = setting.make(setting.examples[:2])
        self._zo = ZerothOrder(config, setting.model, setting.seed, config.batch_size)
        self.backbone, self.rule = self._zo.backbone, self._zo.rule
        self.counts = self._zo.evaluator.counts
        self.queries_per_step = self._zo.points * config.batch_size

    def step(self, number: int) -> StepLog:
        """See `Method.step`."""
        before = self.counts.copy()
        estimate, update = self._zo.step(number, [(self._objective, self._batches[number])])
        coefficients = {f"projected_gradient_{k.index}": pg for k, pg in estimate.projected_gradients.items()}
        return StepLog(estimate.loss, self.counts - before, coefficients, update)

    def check(self) -> None:
        """See `Method.check`."""
        self._zo.evaluator.check([(self._objective, self._two)])

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """While it is open, `model` is at theta."""
        self._zo.evaluator.settle()
        yield

    def replay_header(self) -> dict[str, Any]:
        """See `Method.replay_header`."""
        return self._config.replay_header()

    def save(self, folder: Path) -> None:
        """Nothing in float32, where the trajectory is the model; see `ZerothOrder.save`."""
        self._zo.save(folder)
