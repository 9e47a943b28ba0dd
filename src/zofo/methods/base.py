"""The interface of methods: one training step, written so that it reads like its paper's algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from zofo.adapters import AdapterConfig
from zofo.backbone import Backbone, Update
from zofo.config import Config
from zofo.evaluators import Counts, Evaluator, Objective, unused_by
from zofo.methods.epoch import Epoch
from zofo.objectives import AsBase, Generation, Rewards, generate, scores
from zofo.processes import ALONE, Processes
from zofo.registry import Registry
from zofo.rules import Rule
from zofo.state_dict import StateDict
from zofo.tasks import EpochSampler, TaskConfig
from zofo.tasks.metrics import Answer

ScoreFunction = Callable[[nn.Module, Any, str], torch.Tensor]
"""(model, batch, "mean" or "sum") -> a score for each candidate, [E, C]."""

WriteFunction = Callable[[nn.Module, Sequence[Any], Generation], list[str]]
"""(model, examples in tokens, how) -> a text after the prompt of each."""


@dataclass(frozen=True)
class TrainingContext:
    """Everything a method needs to train.

    Args:
        model: any torch module.
        objective: turns (model, batch) into one float32 loss for each example.
        examples: the training examples.
        collate: turns a list of examples into the batch that `objective` takes.
        seed: seed of the run; every draw of the method depends on it alone.
        length: returns the length of an example, to batch examples of similar length; None does not group.
        objective_name: name of the objective, for the run's summary.
        check_objective: the objective for checks of the model before the first step; None for `objective`.
        log_ties: log how often a direction did not change the loss, which is common for objectives without a gradient.
        by_objective: returns this context with another objective, by name; `reward` is the function passed to training.
        rewards: the rewards, if the objective is one; None for a loss.
        answers: returns the answer of each example of a batch that such an objective rewards.
        lower_examples: the examples of D_p, for a method with two sets; `examples` are then D_f. By default the method
            splits `examples`.
        processes: the processes that train together. Each has all examples; they split each batch.
        start_adapter: folder of a saved adapter to start from; None for a new one.
    """

    model: nn.Module
    objective: Objective
    examples: Sequence[Any]
    collate: Callable[[Sequence[Any]], Any]
    seed: int = 0
    length: Callable[[Any], int] | None = None
    log_ties: bool = False
    objective_name: str = "given"
    check_objective: Objective | None = None
    by_objective: Callable[[str], TrainingContext] | None = None
    rewards: Rewards | None = None
    answers: Callable[[nn.Module, Any], Sequence[Answer]] | None = None
    lower_examples: Sequence[Any] | None = None
    processes: Processes = ALONE
    start_adapter: Path | None = None

    def batches(self, size: int, name: str, examples: Sequence[Any] | None = None) -> EpochSampler[Any, Any]:
        """A seeded sequence of batches of `examples`, or of all examples."""
        chosen = self.examples if examples is None else examples
        return EpochSampler(chosen, size, self.collate, self.seed, name, self.length)

    @property
    def called(self) -> str:
        """What to call the objective in messages: its `loss`, or the `reward` or `score` of which it is minus the
        value."""
        return "loss" if not self.log_ties else "reward" if self.rewards else "score"

    def unused_by(self, batch: Any) -> frozenset[str]:
        """Names of the model's parameters that no forward uses, judging by this batch."""
        objective = self.check_objective or self.objective
        return unused_by(self.model, lambda: objective(self.model, batch))


@dataclass(frozen=True)
class StepLog:
    """The record of one step.

    Args:
        loss: the training loss, before the update.
        counts: forwards, backwards and queries of the step.
        coefficients: all coefficients of the step by name: projected gradients, parts of the loss, the penalty.
        update: the update of the backbone; None if the step does not move it.
        rate: the learning rate, if the step moves the backbone by -rate times its estimate; otherwise None.
    """

    loss: float
    counts: Counts
    coefficients: Mapping[str, float] = field(default_factory=dict)
    update: Update | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Pass:
    """Forwards of one size in a method's step, from which its memory and time are estimated.

    Args:
        examples: examples per forward.
        points: points per example in the same forward.
        times: average number of such forwards per step.
        gradient: what a following backward pass differentiates by: an adapter, all weights or the head; None for no
            backward.
        again: whether that pass recomputes each layer.
        moments: float32 tensors that the optimizer keeps per tensor with a gradient.
        theta: what a zeroth-order step moves: the model's own weights, or an adapter's tensors.
        carries: whether products carry directions of the model's own weights.
        sweeps: sweeps over theta, each time; a fraction if several updates are written together.
        copies: number of copies of theta, and float32 buffers of its size, kept beside it.
    """

    examples: int
    points: int = 1
    times: float = 1.0
    gradient: Literal["adapter", "all", "head"] | None = None
    again: bool = False
    moments: int = 0
    theta: Literal["weights", "adapter"] | None = None
    carries: bool = False
    sweeps: float = 0.0
    copies: int = 0


@dataclass(frozen=True)
class AdapterStart:
    """How the adapters of a method were initialised.

    Args:
        notes: messages to the user, one sentence each.
        counts: the work of their calibration, included in the method's counts.
        calibration: the entry of a run's summary: number of examples, a hash of the rows, the seed and the counts.
        begun_from: the context's `start_adapter`, if they start from its tensors.
    """

    notes: tuple[str, ...] = ()
    counts: Counts = field(default_factory=Counts)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    begun_from: Path | None = None

    def and_then(self, other: AdapterStart) -> AdapterStart:
        """Both combined; a calibration on the same rows is mentioned once."""
        notes, begun = dict.fromkeys((*self.notes, *other.notes)), self.begun_from or other.begun_from
        counts, read = self.counts + other.counts, {**other.calibration, **self.calibration}
        return AdapterStart(tuple(notes), counts, {**read, **counts.as_dict()} if read else {}, begun)


def unscheduled(step: int) -> float:
    """The learning-rate factor of a run without a schedule: 1 at every step."""
    return 1.0


class MethodConfig(Config):
    """Options of every method."""

    lr_means: ClassVar[tuple[str, ...]] = ()
    """The keys that a plain `lr` stands for; none for a method that has an `lr` of its own, or no rate at all."""
    task_defaults: ClassVar[Mapping[str, Any]] = {}
    """Options of the task that are others by default with this method."""

    name: str
    """Which method."""
    batch_size: int = Field(16, ge=1)
    """Number of examples per batch."""

    @classmethod
    def known_keys(cls) -> list[str]:
        """The keys as written in a file, including `lr` if it stands for others."""
        return [*super().known_keys(), *(["lr"] if cls.lr_means and "lr" not in cls.model_fields else [])]

    @property
    def reward_has_a_place(self) -> bool:
        """Whether a reward passed to training is one of several objectives, according to the configuration."""
        return False

    @property
    def base_of(self) -> Callable[[nn.Module], AsBase] | None:
        """Captures a model before training, so that it can still answer as before; None if that is impossible."""
        return None

    @property
    def copies_base(self) -> bool:
        """Whether that requires a copy of the weights."""
        return False

    @property
    def score_beside(self) -> str | None:
        """The name of the objective that is minimised in addition to `training.objective`, if any."""
        return None

    @property
    def least_queries(self) -> int:
        """The minimum number of queries of a run, as far as the configuration tells."""
        return 1

    @property
    def keys_without_effect(self) -> Sequence[str]:
        """Keys that have no effect given the others, such as an adapter's options if all weights are trained."""
        return ()

    @property
    def adapter_configs(self) -> list[AdapterConfig]:
        """All adapters that the method attaches to the model."""
        return [one for key, one in self if isinstance(one, AdapterConfig) and key not in self.keys_without_effect]

    def steps_of_epochs(self, epochs: float, rows: Sequence[int]) -> int:
        """The number of steps that draw `epochs` times as many examples as all tasks have `rows`; see `epoch`."""
        return self.epoch(rows).steps(epochs)

    def epoch(self, rows: Sequence[int]) -> Epoch:
        """What a pass over the training rows of each task draws; by default one batch per step."""
        return Epoch(sum(rows), self.batch_size)

    def passes(self, rows: int) -> Sequence[Pass]:
        """The average forwards of a step for so many training rows; none if they cannot be estimated."""
        return ()

    def check_task(self, task: TaskConfig) -> None:
        """Check that the method fits the options of the task, before a model is loaded.

        Raises:
            ConfigError: it does not.
        """

    def check_steps(self, steps: int) -> None:
        """Check that the configured number of steps is enough, before a model is loaded.

        Raises:
            ConfigError: they cannot.
        """


class Method(ABC):
    """A training algorithm: built from its configuration and a training context, then stepped.

    Attributes:
        Config: its configuration class.
        paper: the paper it implements.
        needs_gradient: whether it takes first-order steps, so that its objective must be differentiable.
        fixed_steps: its number of steps, if that is not configurable; otherwise None.
        shares_examples: whether several processes can split its batches. Its steps must then use only `ZerothOrder` and
            `Gradient`, with the context's processes.
        model: the context's model, to evaluate in one of the variants; adapters are attached to it in place.
        variants: names of the trained models, the main one first; most methods have one.
        backbone: the tensors that zeroth-order steps move, or None.
        backbone_is_theta: whether these are all of theta; otherwise a part of theta is elsewhere.
        adapter_is_theta: whether the adapter of its first variant is a part of theta; a run that starts from it merges
            the adapter.
        rule: how estimates become updates of the backbone, or None.
        evaluator: computes losses around theta, or None.
        counts: work done so far.
        queries_per_step: queries of one step; of the first one, if they differ.
        trained_names: names of the tensors that steps move, if the configuration selects them.
        adapter_start: how its adapters were initialised.
        score: how candidates are scored in evaluation; for most methods by their likelihood, or by a head.
        write: how texts are generated in evaluation; for most methods by the model.
        members: number of models that evaluation runs per example; more than one for a vote.
        lr_factor: the factor of all learning rates at a given step; see `training.lr_schedule`.
        needs_all_steps: whether a run that ends before its last planned step is incomplete.
        planned_steps: the number of steps of the run; None if unknown.
    """

    Config: ClassVar[type[MethodConfig]]
    paper: ClassVar[str]
    needs_gradient: ClassVar[bool] = True
    fixed_steps: ClassVar[int | None] = None
    needs_all_steps: ClassVar[bool] = False
    adapter_is_theta: ClassVar[bool] = False
    shares_examples: ClassVar[bool] = False

    model: nn.Module
    variants: tuple[str, ...] = ("model",)
    backbone: Backbone | None = None
    backbone_is_theta: bool = True
    rule: Rule | None = None
    evaluator: Evaluator | None = None
    counts: Counts
    queries_per_step: int
    trained_names: tuple[str, ...] = ()
    adapter_start: AdapterStart = AdapterStart()
    score: ScoreFunction = staticmethod(scores)
    write: WriteFunction = staticmethod(generate)
    members: int = 1
    lr_factor: Callable[[int], float] = staticmethod(unscheduled)
    planned_steps: int | None = None

    @abstractmethod
    def __init__(self, config: Any, context: TrainingContext) -> None: ...

    @abstractmethod
    def step(self, number: int) -> StepLog:
        """Make training step `number`, counted from 0. Updates may still be pending on return; see `using`.

        Raises:
            NonFiniteError: a loss was not finite. Nothing was updated.
        """

    def steps_within(self, queries: int) -> int:
        """The number of whole steps within a budget of queries."""
        return queries // self.queries_per_step

    def queries_of(self, steps: int) -> int:
        """The queries of a number of steps."""
        first = self.adapter_start.counts.queries
        if self.fixed_steps is not None:
            return first + self.fixed_steps * self.queries_per_step
        high = max(1, self.queries_per_step) * steps
        while self.steps_within(high) < steps:
            high *= 2
        return first + bisect_left(range(high), steps, key=self.steps_within)

    def check(self) -> None:  # noqa: B027  # most methods can train any model
        """Check, before anything is written, that the model can be trained. The work is not counted.

        Raises:
            EvaluatorError: it cannot.
        """

    def check_steps(self, steps: int) -> None:  # noqa: B027  # most methods can make any number
        """Check, before anything is written, that the configured number of steps is enough.

        Raises:
            ConfigError: they cannot.
        """

    def notes(self) -> list[str]:
        """Messages to the user before the first step, one sentence each."""
        return []

    def conclusions(self) -> list[str]:
        """Messages to the user after the last step, one sentence each."""
        return []

    def summary(self) -> dict[str, Any]:
        """The method's own entries of a run's summary."""
        return {}

    def replay_header(self) -> dict[str, Any]:
        """What a replay of the trajectory needs: noise, rule and selection, as configured."""
        return {}

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """Context in which `model` is the given variant, with every update written."""
        assert variant in self.variants
        yield

    def state_dict(self, weights: bool) -> StateDict:
        """The state between two steps, to resume a run.

        Args:
            weights: include theta and pending updates; otherwise a replay of the trajectory restores them. Weights
                trained by first-order steps are always included.
        """
        return StateDict()

    def load_state_dict(self, state: StateDict) -> None:  # noqa: B027  # some methods keep nothing
        """Load the state that `state_dict` returned, into a method built in the same way.

        Raises:
            CheckpointError: the state belongs to another method or model.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Save what the trajectory does not contain: adapters or trained weights, as safetensors."""


METHODS: Registry[type[Method]] = Registry("method")
