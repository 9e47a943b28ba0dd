"""Find the largest stable learning rate of zeroth-order steps, with short trials from the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from zofo.backbone import distance, length_of
from zofo.errors import ConfigError, NonFiniteError
from zofo.evaluators import Counts
from zofo.methods import METHODS, ForwardOnlyConfig
from zofo.objectives import drawing
from zofo.training.config import RunConfig
from zofo.training.data_module import PreparedRun, prepare_run, training_context

_RISE = 1.02  # of the loss, that a stable trial may end with: steps of almost nothing move it a little, too
_FAR = 0.5  # as a share of their length, that weights have moved when the step was certainly too large
_MOST_TRIALS = 16
_EXAMPLES = 64  # of the training split, that tell whether a trial was stable


@dataclass(frozen=True)
class LrTrial:
    """A few steps at one learning rate.

    Args:
        loss: mean loss on the evaluation examples afterwards; inf if a loss was not finite.
        distance: how far the weights have moved, as a share of their length.
        stable: whether the loss has risen by at most 2 %, and the weights are still close: norms and losses saturate,
            so weights far away need not have a higher loss.
    """

    lr: float
    loss: float
    distance: float
    stable: bool


@dataclass(frozen=True)
class LrSearchResult:
    """The trials and the result of a search.

    Args:
        lr: the learning rate to train with, a quarter of the largest stable one.
        largest: the largest rate with a stable trial; at twice that, a trial was not stable.
        loss: mean loss on the evaluation examples before any step.
        steps: steps per trial.
        counts: total work.
    """

    lr: float
    largest: float
    loss: float
    trials: tuple[LrTrial, ...]
    steps: int
    counts: Counts

    def as_dict(self) -> dict[str, Any]:
        """The fields by name; None for a non-finite loss, which JSON cannot express."""
        trials = [
            {name: value if math.isfinite(value) else None for name, value in asdict(trial).items()}
            for trial in self.trials
        ]
        return {**asdict(self), "trials": trials}


def tune_lr(
    config: RunConfig,
    steps: int = 12,
    on_progress: Callable[[LrTrial], None] = lambda trial: None,
    remote_code: bool = False,
    prepared: PreparedRun | None = None,
) -> LrSearchResult:
    """Find the largest stable learning rate of a zeroth-order method, to a factor of two.

    From the configured learning rate, trials of `steps` steps double the rate until one is unstable, or halve it until
    one is stable. All trials start from the same weights, with the same batches and directions. A trial is stable if
    the mean loss of 64 training examples rises by at most 2 %, and the weights move by less than half of their length.
    Longer runs become unstable at lower rates than short ones (at half of the largest, losses rose again after 40
    steps; see docs/measured-details.md), so the result is a quarter of the largest.

    Args:
        config: configuration of the run; the search begins at its learning rate.
        steps: steps per trial.
        on_progress: called with each finished trial.
        remote_code: allow the model's repository to run its own code.
        prepared: the loaded configuration, if available; its weights are restored.

    Raises:
        ConfigError: the method has no zeroth-order step of its own, or no learning rate was stable, or all were.
    """
    method = config.method
    if not isinstance(method, ForwardOnlyConfig) or not method.one_rate:
        smaller = "; a penalty above 1 wants smaller steps" if hasattr(method, "penalty") else ""
        raise ConfigError(
            f"tune lr finds the learning rate of zeroth-order steps by themselves, not that of {method.name!r}",
            f"tune it with method=mezo and the same noise{smaller}"
            if getattr(method, "estimator", None)
            else "add method=mezo, whose steps these are; of another method try some rates in a study",
        )
    prepared = prepared or prepare_run(config, remote_code, ("train",))
    search = _Search(config, method, prepared, steps, remote_code)
    trials: list[LrTrial] = []

    def tried(lr: float) -> bool:
        trials.append(search.trial(lr))
        on_progress(trials[-1])
        return trials[-1].stable

    lr = float(method.rule.options["lr"]) or 1e-6
    factor = 2.0 if tried(lr) else 0.5
    while len(trials) < _MOST_TRIALS:
        lr *= factor
        if tried(lr) != (factor > 1):
            largest = lr if factor < 1 else lr / 2
            return LrSearchResult(largest / 4, largest, search.loss, tuple(trials), steps, search.counts)
    low, high = min(trial.lr for trial in trials), max(trial.lr for trial in trials)
    raise ConfigError(
        f"every learning rate from {low:.1e} to {high:.1e} was {'stable' if factor > 1 else 'unstable'}",
        f"begin {'higher' if factor > 1 else 'lower'}: method.rule.lr={high if factor > 1 else low:.1e}",
    )


class _Search:
    """Trials that start from the same weights."""

    def __init__(
        self, config: RunConfig, method: ForwardOnlyConfig, prepared: PreparedRun, steps: int, remote_code: bool
    ) -> None:
        self._config = config
        self._method = method
        self._prepared = prepared
        self._steps = steps
        self._remote_code = remote_code
        self._judges = prepared.encoded["train"][:_EXAMPLES]
        self.counts = Counts()
        METHODS[method.name](method, training_context(config, prepared)).check()
        self.loss = self._loss()
        if not math.isfinite(self.loss):
            raise NonFiniteError("loss of the untrained model", consequence="nothing was tried")

    def _loss(self) -> float:
        return self._prepared.scorer.evaluate(self._prepared.loaded.model, self._judges, self.counts).loss

    def trial(self, lr: float) -> LrTrial:
        """Make the steps, evaluate, and restore the weights."""
        if self._method.adapter is not None:  # which a model carries only once
            self._prepared = prepare_run(self._config, self._remote_code, ("train",))
        tried = self._method.model_copy(update={"rule": self._method.rule.with_options(lr=lr)})
        method = METHODS[tried.name](tried, training_context(self._config, self._prepared))
        assert method.backbone is not None
        tensors = method.backbone.tensors
        before = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        try:
            for number in range(self._steps):
                with drawing(number + 1):
                    method.step(number)
            with method.using(method.variants[0]):
                loss = self._loss()
        except NonFiniteError:
            loss = math.inf
        finally:
            self.counts += method.counts
            now = {name: tensor.cpu() for name, tensor in tensors.items()}
            moved = distance(before, now) / (length_of(before) or 1.0)
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(before[name])
        return LrTrial(lr, loss, moved, loss <= _RISE * self.loss and moved < _FAR)
