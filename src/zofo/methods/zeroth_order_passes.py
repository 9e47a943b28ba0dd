"""The forwards of a zeroth-order step, by its configuration alone."""

from __future__ import annotations

from typing import Any, Literal

from zofo.displacement import Key
from zofo.evaluators import EVALUATORS
from zofo.methods.base import Pass
from zofo.rules import RULES


def forwards_of(config: Any, examples: int, times: float) -> Pass:
    """What it takes to ask for the losses of some examples at all points of a step.

    Args:
        config: of the step, a `ZerothOrderConfig`.
        examples: that are asked for.
        times: how often a step asks, on average.
    """
    points = len(config.estimator.build().ask([Key(0, 0, number) for number in range(config.num_directions)]))
    evaluator, options = EVALUATORS[config.evaluator.name], config.evaluator.options
    copies = RULES[config.rule.name].dense_buffers + evaluator.copies
    own = config.moved_adapter is None or getattr(config, config.moved_adapter) is None
    theta: Literal["weights", "adapter"] = "weights" if own else "adapter"
    if not evaluator.repeats_batch:
        return Pass(examples, 1, points * times, theta=theta, sweeps=(points + 1) / points, copies=copies)
    chunk = min(options.get("micro_batch") or examples, examples)
    swept = chunk / examples / options.get("flush_every", 1)
    return Pass(chunk, points, examples / chunk * times, None, False, 0, theta, own, swept, copies)
