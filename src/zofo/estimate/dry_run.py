"""One step of a run, made and discarded, compared with its estimate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zofo.bench.step_memory import peak_of
from zofo.bench.step_variants import timed
from zofo.errors import ConfigError
from zofo.estimate.budget import clock
from zofo.estimate.machine import known_machine
from zofo.estimate.report import device_of
from zofo.estimate.step import Rows, StepEstimate, estimate_step, fillings, heaviest, known_passes
from zofo.methods import METHODS, TrainingContext
from zofo.models import load_on_meta
from zofo.models.quantization import release_memory
from zofo.objectives import as_rewards
from zofo.training import RunConfig, checked_steps, prepare_run, scorer_of, training_context, try_parts


@dataclass(frozen=True)
class DryRun:
    """What a step took.

    Args:
        peak_bytes: peak memory from the check of the model to the step.
        seconds: time of the step; on the CPU, without time the processor worked for others.
        examples: number of training examples; batches had the longest one and the one with the most logits.
        machine: the machine of the estimate's constants, in words.
    """

    estimate: StepEstimate
    peak_bytes: int
    seconds: float
    loss: float
    examples: int
    machine: str


def dry_run(
    config: RunConfig,
    remote_code: bool = False,
    reward: Any | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> DryRun:
    """Load and check everything that a run would, and make one step on the rows that need the most memory.

    A first step is not counted. Nothing is written: there is no run folder, and the model is discarded.

    Args:
        reward: as `zofo.train` takes it.

    Raises:
        ZofoError: the run would fail, too.
    """
    kind = METHODS[config.method.name]
    if kind.fixed_steps == 0:
        raise ConfigError(f"method={config.method.name} makes no step", "leave out --dry-run, or choose method=mezo")
    known_passes(config.method, 1)
    on_progress(f"the rows, and {config.model.name}")
    prepared = prepare_run(config, remote_code, ("train", *config.training.scored_splits))
    rewards = None if reward is None else as_rewards(reward)
    context = training_context(config, prepared, rewards)
    examples, step = heaviest(context.examples, len(context.examples)), _Step()
    if not config.task.several:  # of which a step needs rows of each
        context = _of_heaviest(context, examples, step)
    losses, seconds = list[float](), list[float]()
    device = prepared.loaded.device
    release_memory()

    def work() -> None:
        method = kind(config.method, context)
        steps = checked_steps(config, method, prepared)
        try_parts(config, context, method, steps, rewards, on_progress)
        for number in range(2):
            on_progress(("a first step, in which buffers are made", "the step")[number])
            step.number = number
            since, made = clock(), functools.partial(method.step, number)
            wall = timed(lambda made=made: losses.append(made().loss), device)  # type: ignore[misc]
            seconds.append(since() if device.type == "cpu" else wall)

    peak = peak_of(work, device)
    on_progress("the estimate")
    loaded = load_on_meta(config.model, remote_code, len(prepared.task.label_names) or None)
    shape = replace(prepared, loaded=loaded, scorer=scorer_of(config, prepared.task, loaded))
    on_meta = training_context(config, shape, rewards)
    rows = Rows(examples, examples, len(examples))
    place, machine = device_of(config, None), known_machine()
    size = config.method.batch_size
    estimate = estimate_step(
        config.method, loaded, on_meta, rows, machine, size, 0, place, bool(config.training.kl_beta)
    )
    return DryRun(estimate, peak, seconds[-1], losses[-1], len(examples), machine.described)


@dataclass
class _Step:
    """Which of two steps is made."""

    number: int = 0


def _of_heaviest(context: TrainingContext, heavy: Sequence[Any], step: _Step) -> TrainingContext:
    """A context of all rows, in which each batch has the first of `heavy` instead of the drawn rows.

    A batch of one has the example with the most logits in the first step, and the longest one in the second, timed
    step.
    """
    collate, by_objective = context.collate, context.by_objective

    def filled(drawn: Sequence[Any]) -> Any:
        some = fillings(heavy, len(drawn))
        return collate((some[0] if step.number else some[-1])[: len(drawn)])

    return replace(
        context,
        collate=filled,
        by_objective=None if by_objective is None else lambda name: _of_heaviest(by_objective(name), heavy, step),
    )
