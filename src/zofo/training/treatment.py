"""The strength of a run's treatment: the gradient in theta, and how much descent the steps can be expected to make."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from zofo.adapters import own_weights
from zofo.backbone import Backbone, Update, at_least_float32, distance, length_of
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.estimators import TwoSided
from zofo.evaluators import Counts, Evaluator
from zofo.methods import Method, StepLog, TrainingContext
from zofo.noise import permutation
from zofo.objectives.rewards import aside
from zofo.training.callbacks import Measuring, MetricsLogger
from zofo.training.training_config import TrainingConfig


@dataclass(frozen=True)
class Treatment:
    """The gradient g of the mean training loss in theta.

    Args:
        gradient_squared: unbiased estimate of |g|^2: over n examples, (n |mean|^2 - mean |g_i|^2) / (n - 1).
        spread_squared: s^2, the variance of one example's gradient: mean |g_i - mean|^2 n / (n - 1).
        update_slope: g . D along the last update D: the slope where it ends; nan if it is not a displacement.
        counts: work of the measurement.
        error: standard error of `gradient_squared`, by the jackknife over the examples, or over the directions; nan for
            two examples.
    """

    gradient_squared: float
    spread_squared: float
    update_slope: float
    counts: Counts
    error: float


def measure(
    theta: Backbone | Mapping[str, torch.Tensor],
    context: TrainingContext,
    examples: Sequence[Any],
    update: Update | None = None,
) -> Treatment:
    """Measure with two forwards and backwards per example, and memory for two gradients of theta's size.

    The first pass sums the gradients g_i of n examples to S. The second one computes g_i . S, which gives |g|^2 without
    each example in turn, and so its standard error (jackknife). If a few examples have most of the gradient, |g|^2 from
    n of them is unreliable, and the error shows it.

    Args:
        theta: the tensors, or a backbone with no update pending.
        context: has the objective.
        examples: at least two of the training examples.
        update: an update of the backbone, for `update_slope`.
    """
    backbone, tensors, counts = theta if isinstance(theta, Backbone) else None, _tensors(theta), Counts()
    mean = {name: torch.zeros_like(tensor, dtype=_wide(tensor)) for name, tensor in tensors.items()}
    n, squares = len(examples), []

    def gradient_of(example: Any) -> dict[str, torch.Tensor]:
        with torch.enable_grad():
            loss = at_least_float32(context.objective(context.model, context.collate([example]))).mean()
        found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
        counts.include(Counts(1, 1, 1))
        return {name: one for name, one in zip(tensors, found, strict=True) if one is not None}

    with _differentiable(tensors):
        for example in examples:
            own = gradient_of(example)
            squares.append(math.fsum(map(_square, own.values())))
            for name, gradient in own.items():
                mean[name] += gradient / n
        along = [n * _dot(gradient_of(example), mean) for example in examples]
    of_mean, of_each = math.fsum(map(_square, mean.values())), math.fsum(squares) / n
    spread = (of_each - of_mean) * n / (n - 1)
    error = _jackknife(n * n * of_mean, squares, along)
    return Treatment(of_mean - spread / n, spread, _slope(backbone, mean, update), counts, error)


def _jackknife(of_sum: float, squares: Sequence[float], along: Sequence[float]) -> float:
    """The standard error of (|S|^2 - sum |g_i|^2) / (n (n - 1)), from |S|^2, all |g_i|^2 and all g_i . S."""
    n, total = len(squares), math.fsum(squares)
    if n < 3:
        return math.nan
    without = [
        (of_sum - 2 * dot + square - (total - square)) / ((n - 1) * (n - 2))
        for square, dot in zip(squares, along, strict=True)
    ]
    middle = math.fsum(without) / n
    return math.sqrt((n - 1) / n * math.fsum((one - middle) ** 2 for one in without))


def _dot(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    return math.fsum(torch.sum(own * other[name], dtype=torch.float64).item() for name, own in one.items())


def measure_along(
    evaluator: Evaluator, context: TrainingContext, examples: Sequence[Any], keys: Sequence[Key], epsilon: float
) -> Treatment:
    """Measure without a gradient: from the slopes of n examples along random directions, two queries each.

    A direction z has E[z z^T] = I, so that E (g . z)^2 = |g|^2 and E ((g_i - g) . z)^2 = |g_i - g|^2. With the slopes
    b_i of the examples along z, their variance has the mean s^2, and (n mean(b)^2 - mean(b^2)) / (n - 1) the mean
    (g . z)^2 over draws of examples. Both are averaged over the directions. For a piecewise constant objective, such as
    accuracy, g is the gradient of the objective smoothed by differences of length epsilon.

    Args:
        evaluator: the evaluator of theta, with no update pending. Its counts, log and weights do not change; the
            weights are restored from a copy if it writes points into them.
        context: has the objective.
        examples: n of the training examples, at least two.
        keys: keys of the directions, at least two.
        epsilon: half the length of a difference.
    """
    estimator, before, n = TwoSided(epsilon), evaluator.counts.copy(), len(examples)
    batch, squares, spreads = context.collate(examples), [], []
    with _as_they_were(evaluator), aside():
        for key in keys:
            losses = evaluator.losses(context.objective, batch, estimator.ask([key]))
            slopes = estimator.slopes(losses.double().cpu())[0]
            spreads.append(slopes.var().item())
            squares.append(slopes.mean().item() ** 2 - spreads[-1] / n)
    counts = evaluator.counts - before
    evaluator.counts.become(before)
    found = torch.tensor(squares, dtype=torch.float64)
    error = found.std().item() / math.sqrt(len(keys))
    return Treatment(found.mean().item(), math.fsum(spreads) / len(spreads), math.nan, counts, error)


@contextmanager
def _as_they_were(evaluator: Evaluator) -> Iterator[None]:
    """Context in which nothing is logged, and after which the weights have their previous bits."""
    tensors = evaluator.backbone.parameters.values() if evaluator.writes_points else ()
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        with evaluator.theta.log_paused():
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


def _slope(backbone: Backbone | None, gradient: Mapping[str, torch.Tensor], update: Update | None) -> float:
    """g . D, a tensor at a time, including the effect of weight decay."""
    if backbone is None or update is None or update.dense_update_fn is not None or update.displacement_decay:
        return math.nan
    directions, total = backbone.directions(update.displacement), 0.0
    for name, along in gradient.items():
        if update.decay_factor and name in backbone.decays:
            theta = backbone.parameters[name].detach().reshape(-1).double()
            total -= update.decay_factor * torch.dot(theta, along.reshape(-1).double()).item()
        written = torch.zeros(along.numel(), dtype=torch.float32, device=along.device)
        directions.add_to(written, update.displacement.items(), name, (0, along.numel()))
        total += torch.dot(written.double(), along.reshape(-1).double()).item()
    return total


def check_treatment(method: Method, context: TrainingContext, epsilon: float | None) -> None:
    """Check, before anything is written, that the treatment can be measured.

    Raises:
        ConfigError: there are no steps; the objective has no gradient, and the method makes no differences of it; or
            there are fewer than two examples.
    """
    off = "set training.treatment_steps=null"
    if method.fixed_steps == 0:
        raise ConfigError("training.treatment_steps measures between the steps, and this method makes none", off)
    if context.log_ties and (method.evaluator is None or epsilon is None):
        what = f"the objective's gradient, and {context.objective_name!r} has none"
        raise ConfigError(f"training.treatment_steps measures {what}", f"{off}, or training.objective=classification")
    if len(context.examples) < 2:
        raise ConfigError("training.treatment_steps compares training examples, and there is only one", off)


class TreatmentLogger(Measuring):
    """A line `treatment` in `metrics.jsonl`, before the first step and every few steps, with the results of `measure`.

    `backbone_distance` is |theta - theta_0| / |theta_0|, computed from a copy of theta_0. It is null if a part of theta
    is not in the backbone. `predicted_descent` is the sum over the steps so far of lr |g|^2, the first-order decrease
    of the loss by SGD along unbiased estimates of g, with |g|^2 of a step as the mean of the measurements before and
    after it. Its error is the sum of lr times that of |g|^2, since all measurements use the same examples. Both are
    null after a step of another kind: with another rule, a mask, or divided by a standard deviation. They are also null
    for a method without zeroth-order steps; then the gradient in all of the model's own weights is measured. The line
    has the work and time of the measurement, which do not count towards those of the run. Pending updates are written
    before a measurement.

    An objective without a gradient is measured by `measure_along`, with directions that the run's steps do not use.

    Args:
        method: measured as its first variant, with theta at the start of the run.
        context: context of the method.
        config: `treatment_steps` between measurements, and the number of examples and directions.
        epsilon: epsilon of the method's differences; None if it makes none.

    Attributes:
        seconds: time of all measurements of the run.
        lines: the first and the last measurement, as in the log.
    """

    def __init__(self, method: Method, context: TrainingContext, config: TrainingConfig, epsilon: float | None):
        check_treatment(method, context, epsilon)
        chosen = permutation(Key(context.seed, 0), "treatment", len(context.examples))[: config.treatment_examples]
        self._method, self._context, self._every = method, context, config.treatment_steps or 1
        self._directions, self._epsilon = config.treatment_directions, epsilon
        self._examples = [context.examples[i] for i in chosen]
        self._theta = own_weights(context.model) if method.backbone is None else method.backbone
        self._start = {name: tensor.detach().clone() for name, tensor in _tensors(self._theta).items()}
        self._rates: list[float | None] = []
        self._descent = self._error = math.nan if method.backbone is None else 0.0
        self.seconds = 0.0
        self.lines: list[Mapping[str, Any]] = []

    def begin(self, metrics: MetricsLogger, lines: Sequence[Mapping[str, Any]]) -> TreatmentLogger:
        """Continue with the log of earlier steps and measurements."""
        self._metrics, metrics.with_rates = metrics, True
        before = [line for line in lines if line["event"] == "treatment"]
        if not before:
            return self
        self.lines = [before[0], before[-1]]
        self.seconds = math.fsum(line["measured_seconds"] for line in before)
        self._descent, self._error = (_number(before[-1].get(name)) for name in _PREDICTED)
        since = (line for line in lines if line["event"] == "step" and line["step"] >= before[-1]["steps"])
        self._rates = [line["rate"] for line in since if "rate" in line]
        return self

    def before_run(self) -> None:
        if not self.lines:
            self._measure(0, None)

    def after_step(self, number: int, log: StepLog) -> None:
        if log.update is not None or log.rate is not None:
            self._rates.append(log.rate)
        if (number + 1) % self._every == 0:
            self._measure(number + 1, log.update)

    def _measure(self, steps: int, update: Update | None) -> None:
        start = time.perf_counter()
        with self._method.using(self._method.variants[0]):
            found = self._found(steps, update)
            whole = self._method.backbone_is_theta
            length = length_of(self._start) if whole else 0.0
            moved = distance(self._start, _tensors(self._theta)) / length if length else math.nan
        rates = [math.nan if rate is None else rate for rate in self._rates]
        if rates:  # so that there is a measurement before
            before = self.lines[-1]
            self._descent += math.fsum(rates) * (_number(before["gradient_squared"]) + found.gradient_squared) / 2
            self._error += math.fsum(rates) * (_number(before.get("gradient_squared_error")) + found.error) / 2
        self._rates, seconds = [], time.perf_counter() - start
        self.seconds += seconds
        line = {
            "steps": steps,
            "gradient_squared": _known(found.gradient_squared),
            "gradient_squared_error": _known(found.error),
            "spread_squared": _known(found.spread_squared),
            "update_slope": _known(found.update_slope),
            "predicted_descent": _known(self._descent),
            "predicted_descent_error": _known(self._error),
            "backbone_distance": _known(moved),
            **{f"measured_{name}": value for name, value in found.counts.as_dict().items()},
            "measured_seconds": round(seconds, 3),
        }
        self.lines = [*self.lines[:1], line]
        self._metrics.write("treatment", line)

    def _found(self, steps: int, update: Update | None) -> Treatment:
        evaluator = self._method.evaluator
        if not self._context.log_ties or evaluator is None or self._epsilon is None:
            return measure(self._theta, self._context, self._examples, update)
        keys = [Key(self._context.seed, steps, _FIRST_KEY + number) for number in range(self._directions)]
        return measure_along(evaluator, self._context, self._examples, keys, self._epsilon)

    def summary(self) -> dict[str, Any]:
        """|g|^2 and s^2 at the start and end of the run, the predicted descent, and how far theta has moved."""
        first, last = self.lines[0], self.lines[-1]
        both = {name: [first.get(name), last.get(name)] for name in _GRADIENT}
        return {"treatment": {**both, **{name: last.get(name) for name in (*_PREDICTED, "backbone_distance")}}}


_GRADIENT = ("gradient_squared", "gradient_squared_error", "spread_squared")
_PREDICTED = ("predicted_descent", "predicted_descent_error")

_FIRST_KEY = 2**31
"""Index of the first direction of a measurement: steps take those from 0 on."""


def _tensors(theta: Backbone | Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return theta.parameters if isinstance(theta, Backbone) else theta


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _square(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=_wide(tensor)).item() ** 2)


@contextmanager
def _differentiable(tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Context in which the tensors require a gradient."""
    before = {name: tensor.requires_grad for name, tensor in tensors.items()}
    try:
        for tensor in tensors.values():
            tensor.requires_grad_(True)
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.requires_grad_(before[name])
