"""MeZO: zeroth-order SGD in the memory of inference.

Malladi, Gao, Nichani, Damian, Lee, Chen, Arora (2023), "Fine-Tuning Language Models with Just Forward Passes",
algorithm 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from zofo.methods.base import METHODS, Method, MethodConfig, Setting, StepLog
from zofo.methods.zeroth_order import ZerothOrder, ZerothOrderConfig


class MeZOConfig(MethodConfig, ZerothOrderConfig):
    """Configuration of `mezo`."""

    name: Literal["mezo"] = "mezo"
    """Which method."""


@METHODS.register("mezo")
class MeZO(Method):
    """pg = mean over the batch of [L(theta + e z) - L(theta - e z)] / 2e; theta <- theta - lr (pg z + wd theta).

    Both losses are on the same batch, with dropout off. In place a step is three sweeps over the weights, since going
    home and updating is one.

    Args:
        config: its parts and sizes.
        setting: model, objective and examples.
    """

    Config = MeZOConfig
    paper = "Malladi et al. 2023, Fine-Tuning Language Models with Just Forward Passes"

    def __init__(self, config: MeZOConfig, setting: Setting) -> None:
        self._config = config
        self.model = setting.model
        self._objective = setting.objective
        self._batches = setting.batches(config.batch_size, "train")
        self._zo = ZerothOrder(config, setting.model, setting.seed, config.batch_size)
        self.backbone, self.rule = self._zo.backbone, self._zo.rule
        self.counts = self._zo.evaluator.counts
        self.queries_per_step = self._zo.points * config.batch_size

    def step(self, number: int) -> StepLog:
        """See `Method.step`."""
        zo, before = self._zo, self.counts.copy()
        batch = self._batches[number]
        keys = zo.keys(number)
        with zo.evaluator.visit(self._objective, batch, zo.estimator.ask(keys)) as visit:
            estimate = zo.estimator.tell(keys, visit.losses)
            update, state = zo.rule.update(estimate, zo.state)
            visit.update(update)
        zo.state = state
        coefficients = {f"projected_gradient_{k.index}": pg for k, pg in estimate.projected_gradients.items()}
        return StepLog(estimate.loss, self.counts - before, coefficients, update)

    def replay_header(self) -> dict[str, Any]:
        """See `Method.replay_header`."""
        return self._config.replay_header()

    def save(self, folder: Path) -> None:
        """Nothing in float32, where the trajectory is the model; see `ZerothOrder.save`."""
        self._zo.save(folder)
