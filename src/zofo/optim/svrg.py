"""MeZO-SVRG as a torch optimizer.

Gautam, Park, Zhou, Raman, Ha (2024), "Variance-reduced Zeroth-Order Methods for Fine-Tuning Language Models".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

from zofo.errors import ConfigError
from zofo.methods import SVRGConfig
from zofo.methods.svrg.anchored_step import AnchoredStep
from zofo.optim.base import Ask, Part, ZerothOrderOptimizer, examples_of, options_of_step
from zofo.optim.closures import Closure
from zofo.optim.parameters import Movable
from zofo.state_dict import StateDict


class SVRG(ZerothOrderOptimizer):
    """Every `anchor_interval`-th step estimates the gradient g over the anchor batch; the others correct g by a
    minibatch.

    theta <- theta - lr (pg_I(theta) z - pg_I(anchor) z + g), where the anchor is theta at the last step of the first
    kind. A step of the first kind calls `anchor_closure` instead of the closure, at two points; any other step calls
    the closure at four.

    Args:
        model: the module whose parameters move; see `MeZO`.
        anchor_closure: returns the losses of the anchor batch, one per example or their mean, and always the same at
            the same point; with `anchor_batches`, those of the batch it gets.
        anchor_batches: the anchor batch in pieces, each passed to `anchor_closure`; `evaluator="in-forward"` needs
            them. They should be of equal size, or the closure should return one loss per example.
        lr: the learning rate of steps with the closure.
        epsilon: distance of the points from theta.
        anchor_interval: q; every q-th step uses the anchor batch.
        lr_full: learning rate of steps with the anchor batch; by default `lr`. A schedule scales both.
        anchor: "displacement" (the updates since, no memory), "copy" (beside the weights), or "offload" (on the CPU).
        weight_decay: as in `MeZO`; needs an anchor that is a copy.
        momentum: momentum of the estimates.
        num_directions: number of directions whose estimates are averaged.
        noise: the distribution of directions.
        estimator: how losses become a gradient.
        rule: how an estimate becomes an update.
        evaluator: how losses at points are computed; all of these as in `MeZO`.
        trainable: glob patterns of the parameters that move.
        seed: seed of the directions.

    Raises:
        ConfigError: options that do not fit together.

    Example:
        >>> import torch
        >>> from zofo.optim import SVRG
        >>> model, x = torch.nn.Linear(4, 1), torch.ones(8, 4)
        >>> loss = lambda rows=x: (model(rows) - 3).square().mean()
        >>> optimizer = SVRG(model, anchor_closure=loss, lr=1e-2)
        >>> losses = [optimizer.step(lambda: loss(x[:2])) for _ in range(200)]
        >>> bool(losses[-1] < losses[0])
        True
    """

    Config = SVRGConfig

    def __init__(
        self,
        model: Movable,
        anchor_closure: Closure,
        anchor_batches: Iterable[Any] | None = None,
        lr: float | None = None,
        epsilon: float | None = None,
        *,
        anchor_interval: int = 2,
        lr_full: float | None = None,
        anchor: Literal["displacement", "copy", "offload"] = "displacement",
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        num_directions: int = 1,
        noise: Part = "low-rank",
        estimator: Part = "two-sided",
        rule: Part = "sgd",
        evaluator: Part = "from-copy",
        trainable: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        options = options_of_step(epsilon, momentum, noise, estimator, rule, evaluator, trainable)
        options |= {"num_directions": num_directions, "anchor_interval": anchor_interval, "lr_full": lr_full}
        super().__init__(model, options | {"anchor": anchor}, lr, weight_decay, seed)
        self._anchor_closure = anchor_closure
        self._anchor_batches = [None] if anchor_batches is None else list(anchor_batches)
        self._anchor_checked = False

    def _build(self, unused: frozenset[str]) -> None:
        super()._build(unused)
        self._options = cast(SVRGConfig, self.config)
        if self._options.lr_full is not None and not self._options.rule.options.get("lr"):
            raise ConfigError("lr is 0, so that a schedule could not change lr_full with it", "give an lr above 0")
        self._anchored = AnchoredStep(self._zo, self._options)

    def _make_step(self, asks: Sequence[Ask], rate: float) -> tuple[float, dict[str, float]]:
        options, step = self._options, self._anchored
        if self.steps % options.anchor_interval == 0 or step.full is None:
            anchor = [self.ask(self._anchor_closure, batch) for batch in self._anchor_batches]
            if not self._anchor_checked:
                self._zo.evaluator.check(anchor[:1])
                self._anchor_checked = True
            if options.lr_full is not None:
                rate *= options.lr_full / float(options.rule.options["lr"])
            full, _ = step.full_step(self.steps, anchor, rate, examples_of(anchor))
            return full.loss, full.slopes("projected_gradient_full")
        here, there, _ = step.mini_step(self.steps, asks, rate, examples_of(asks))
        anchored = {} if there is None else there.slopes("projected_gradient_anchor")
        return here.loss, here.slopes() | anchored

    def _state(self) -> StateDict:
        return self._anchored.put_state(super()._state())

    def _load_state(self, state: StateDict) -> None:
        super()._load_state(state)
        self._anchored.load_state(state)
