"""MeZO as a torch optimizer.

Malladi et al. (2023), "Fine-Tuning Language Models with Just Forward Passes".
"""

from __future__ import annotations

from collections.abc import Sequence

from zofo.optim.base import Ask, Part, ZerothOrderOptimizer, examples_of, options_of_step
from zofo.optim.parameters import Movable


class MeZO(ZerothOrderOptimizer):
    """pg = [L(theta + e z) - L(theta - e z)] / 2e; theta <- theta - lr (pg z + weight_decay theta).

    It is used as any torch optimizer, but takes no gradient: the closure returns losses, for any module, including
    non-differentiable and half-precision ones.

    Args:
        model: the module whose parameters move. Pass the module rather than its parameters if you can: it has the names
            that determine the directions (so that the bits are those of `zofo train`), and shows which tensors are
            biases and norms, and whether dropout is on. Parameters, or groups that differ in weight_decay, work as
            well.
        lr: the learning rate; the default is for low-rank noise on a language model (see docs/methods.md).
        epsilon: distance of the two points from theta; by default 1e-3, and 3e-3 for half precision.
        weight_decay: as in `torch.optim.SGD`, but not for biases and norms.
        momentum: momentum of the estimates, stored as a few numbers instead of a buffer; 0 for none.
        num_directions: number of directions per step, whose estimates are averaged; each costs two forwards.
        noise: the distribution of directions, a name or a dict with its options; see `zofo list noises`.
        estimator: how losses become a gradient: "two-sided", or "one-sided".
        rule: how an estimate becomes an update; see `zofo list rules`. "sgd" needs no memory.
        evaluator: "from-copy" keeps a copy of the moving parameters, so that theta is restored bit for bit, even after
            an error; "in-place" keeps none, and leaves rounding errors of float32; "in-forward" evaluates all points in
            one forward without writing weights, and needs `step(closure, batch)`.
        directions: which examples share a direction: "shared" (the whole batch); or "per-example" and "per-group(n)"
            with "in-forward".
        normalize_by_std: divide each estimate by the standard deviation of the examples' slopes.
        trainable: glob patterns of the parameters that move; `!pattern` excludes. By default those that require a
            gradient and that a forward uses.
        seed: seed of the directions; nothing else is random.

    Raises:
        ConfigError: options do not fit together. EvaluatorError: the evaluator does not support the model.

    Example:
        >>> import torch
        >>> from zofo.optim import MeZO
        >>> model, x = torch.nn.Linear(4, 1), torch.ones(8, 4)
        >>> optimizer = MeZO(model, lr=1e-2)
        >>> losses = [optimizer.step(lambda: (model(x) - 3).square().mean()) for _ in range(200)]
        >>> bool(losses[-1] < losses[0])
        True
    """

    def __init__(
        self,
        model: Movable,
        lr: float | None = None,
        epsilon: float | None = None,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        num_directions: int = 1,
        noise: Part = "low-rank",
        estimator: Part = "two-sided",
        rule: Part = "sgd",
        evaluator: Part = "from-copy",
        directions: str = "shared",
        normalize_by_std: bool = False,
        trainable: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        options = options_of_step(epsilon, momentum, noise, estimator, rule, evaluator, trainable)
        options |= {"num_directions": num_directions, "directions": directions, "normalize_by_std": normalize_by_std}
        super().__init__(model, options, lr, weight_decay, seed)

    def _make_step(self, asks: Sequence[Ask], rate: float) -> tuple[float, dict[str, float]]:
        estimate, _ = self._zo.step(self.steps, asks, rate, examples_of(asks))
        return estimate.loss, estimate.slopes()
