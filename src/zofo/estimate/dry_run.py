"""One step of a run, made and thrown away, beside what was estimated for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from zofo.bench.step_memory import peak_of
from zofo.bench.step_variants import timed
from zofo.errors import ConfigError
from zofo.estimate.machine import known_machine
from zofo.estimate.report import device_of
from zofo.estimate.step import Rows, StepEstimate, estimate_step
from zofo.methods import METHODS
from zofo.models import load_on_meta
from zofo.models.quantization import release_memory
from zofo.training import RunConfig, prepare_run, scorer_of, training_context


@dataclass(frozen=True)
class DryRun:
    """What a step took.

    Args:
        estimate: what was predicted for it.
        peak_bytes: the most memory from the check of the model to the step.
        seconds: of the step.
        loss: that it saw.
        examples: that it was made with, the longest of the rows.
    """

    estimate: StepEstimate
    peak_bytes: int
    seconds: float
    loss: float
    examples: int


def dry_run(
    config: RunConfig,
    remote_code: bool = False,
    reward: Any | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> DryRun:
    """Load and check all that a run would, and make one step on the longest rows, after one that is not counted.

    Nothing is written: there is no run folder, and the model that was moved is let go.

    Args:
        config: of the run.
        remote_code: allow the model's repository to run its own code.
        reward: as `zofo.train` takes it.
        on_progress: called with a line about what is being done.

    Raises:
        ZofoError: what would stop the run, too.
    """
    kind = METHODS[config.method.name]
    if kind.fixed_steps == 0:
        raise ConfigError(f"method={config.method.name} makes no step", "leave out --dry-run, or choose method=mezo")
    on_progress(f"the rows, and {config.model.name}")
    prepared = prepare_run(config, remote_code, ("train",))
    whole = training_context(config, prepared, reward)
    examples = whole.examples
    if not config.task.several:  # of which a step needs rows of each
        examples = sorted(examples, key=lambda one: -one.length)[: 3 * config.method.batch_size]
    context = replace(whole, examples=examples)
    losses, seconds = list[float](), list[float]()
    device = prepared.loaded.device
    release_memory()

    def work() -> None:
        method = kind(config.method, context)
        method.check()
        for number in range(2):
            on_progress(("a first step, in which buffers are made", "the step")[number])
            seconds.append(timed(lambda number=number: losses.append(method.step(number).loss), device))  # type: ignore[misc]

    peak = peak_of(work, device)
    on_progress("the estimate")
    loaded = load_on_meta(config.model, remote_code, len(prepared.task.label_names) or None)
    shape = replace(prepared, loaded=loaded, scorer=scorer_of(config, prepared.task, loaded))
    on_meta = training_context(config, shape, reward)
    rows = Rows(examples, examples, len(examples))
    place = device_of(config, None)
    size = config.method.batch_size
    estimate = estimate_step(config.method, loaded, on_meta, rows, known_machine(), size, 0, place)
    return DryRun(estimate, peak, seconds[-1], losses[-1], len(examples))
