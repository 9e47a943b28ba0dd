"""The contract of methods: one training step, written so that it reads like its paper's algorithm."""

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
    """What a method is given to train with.

    Args:
        model: any torch module.
        objective: turns (model, batch) into one float32 loss for each example.
        examples: the training examples.
        collate: turns a list of examples into the batch that `objective` takes.
        seed: of the run; every draw of the method depends on it alone.
        length: of an example, so that those of similar length share a batch; None does not group.
        objective_name: what the objective is called, for the run's summary.
        check_objective: by which the model is checked before the first step; None for `objective`.
        log_ties: log how often a direction told nothing, which objectives without a gradient make likely.
        by_objective: the same with another objective, by its name; `reward` is the function that training was given.
        rewards: of an objective that is one; None for a loss.
        answers: what such an objective rewards, of each example of a batch.
        lower_examples: of a method that has two sets, those of D_p; then `examples` are D_f. By default it splits them.
        processes: that train together, each with all examples; they share out those of each batch.
        start_adapter: the folder of a saved adapter, whose tensors those of the method start from; None for new ones.
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
        """A seeded sequence of batches of `examples`, by default of all."""
        chosen = self.examples if examples is None else examples
        return EpochSampler(chosen, size, self.collate, self.seed, name, self.length)

    @property
    def called(self) -> str:
        """What people are told of the objective: its `loss`, or the `reward` or `score` that minus it is."""
        return "loss" if not self.log_ties else "reward" if self.rewards else "score"

    def unused_by(self, batch: Any) -> frozenset[str]:
        """The names of the model's parameters that no forward uses, as far as this batch tells."""
        objective = self.check_objective or self.objective
        return unused_by(self.model, lambda: objective(self.model, batch))


@dataclass(frozen=True)
class StepLog:
    """What one step did.

    Args:
        loss: the training loss it saw, before its update.
        counts: forwards, backwards and queries it took.
        coefficients: every coefficient it used, by name: projected gradients, parts of the loss, the penalty.
        update: what happened to the backbone; None for a step that does not move it.
        rate: the learning rate of a step that moves the backbone by so many times its estimate; None for any other.
    """

    loss: float
    counts: Counts
    coefficients: Mapping[str, float] = field(default_factory=dict)
    update: Update | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Pass:
    """Forwards of one size that a method makes, by which its memory and time are estimated.

    Args:
        examples: in one forward.
        points: at which each of these is asked for, in the same forward.
        times: how many of them a step makes, on average.
        gradient: of what, in a backward pass that follows: an adapter, all weights or the head; None for none.
        again: whether each layer is run again in that pass.
        moments: tensors that the optimiser keeps of each that has a gradient, in float32.
        theta: what moves by it where no gradient follows: the model's own weights, or an adapter's tensors.
        carries: whether products carry directions of the model's own weights.
        sweeps: over theta, each time; a share where several updates are written together.
        copies: of theta, and float32 buffers of its size, that are kept beside it.
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
    """How the adapters of a method started.

    Args:
        notes: what a user should know of it, a sentence each.
        counts: what their calibration took; it is part of the method's counts.
        calibration: what a run's summary holds of it: how many examples, a hash of the rows, the seed and the counts.
        begun_from: the context's `start_adapter`, if they have its tensors.
    """

    notes: tuple[str, ...] = ()
    counts: Counts = field(default_factory=Counts)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    begun_from: Path | None = None

    def and_then(self, other: AdapterStart) -> AdapterStart:
        """Both, one after the other; those that looked at the same rows say so once."""
        notes, begun = dict.fromkeys((*self.notes, *other.notes)), self.begun_from or other.begun_from
        counts, read = self.counts + other.counts, {**other.calibration, **self.calibration}
        return AdapterStart(tuple(notes), counts, {**read, **counts.as_dict()} if read else {}, begun)


def unscheduled(step: int) -> float:
    """The factor of the learning rates in each step of a run without a schedule."""
    return 1.0


class MethodConfig(Config):
    """Options that every method has."""

    lr_means: ClassVar[tuple[str, ...]] = ()
    """The keys that a plain `lr` stands for; none for a method that has an `lr` of its own, or no rate at all."""
    task_defaults: ClassVar[Mapping[str, Any]] = {}
    """Options of the task that are others by default with this method."""

    name: str
    """Which method."""
    batch_size: int = Field(16, ge=1)
    """Examples a batch."""

    @classmethod
    def known_keys(cls) -> list[str]:
        """The keys, as a file writes them; `lr` among them where it stands for others."""
        return [*super().known_keys(), *(["lr"] if cls.lr_means and "lr" not in cls.model_fields else [])]

    @property
    def reward_has_a_place(self) -> bool:
        """Whether a function that is given to train with is one of several objectives, by the configuration."""
        return False

    @property
    def base_of(self) -> Callable[[nn.Module], AsBase] | None:
        """Makes of a model, before anything moves, what lets it answer as it does then; None for no way to."""
        return None

    @property
    def copies_base(self) -> bool:
        """Whether that way is a copy of weights."""
        return False

    @property
    def score_beside(self) -> str | None:
        """The name of the objective that is minimised beside `training.objective`, if there is one."""
        return None

    @property
    def least_queries(self) -> int:
        """What a run takes at least, as far as the configuration alone tells."""
        return 1

    @property
    def keys_without_effect(self) -> Sequence[str]:
        """Those that change nothing, as the others are, such as an adapter's where all weights are trained."""
        return ()

    @property
    def adapter_configs(self) -> list[AdapterConfig]:
        """The adapters that the method attaches to the model, whatever their keys are called."""
        return [one for key, one in self if isinstance(one, AdapterConfig) and key not in self.keys_without_effect]

    def steps_of_epochs(self, epochs: float, rows: Sequence[int]) -> int:
        """How many steps draw `epochs` times as many examples as there are `rows` of all tasks: see `epoch`."""
        return self.epoch(rows).steps(epochs)

    def epoch(self, rows: Sequence[int]) -> Epoch:
        """What a pass over so many training rows of each task draws; by default a batch of them in each step."""
        return Epoch(sum(rows), self.batch_size)

    def passes(self, rows: int) -> Sequence[Pass]:
        """The forwards of a step on so many training rows, on average; none where an estimate cannot know them."""
        return ()

    def check_task(self, task: TaskConfig) -> None:
        """Find out, before a model is loaded, whether the method suits the options of the task.

        Raises:
            ConfigError: it does not.
        """

    def check_steps(self, steps: int) -> None:
        """Find out, before a model is loaded, whether so many steps can do what is configured.

        Raises:
            ConfigError: they cannot.
        """


class Method(ABC):
    """A way to train: built from its configuration and a training context, then stepped.

    Attributes:
        Config: the class of its configuration.
        paper: where it comes from.
        needs_gradient: whether it takes first-order steps, so that its objective must have a gradient.
        fixed_steps: how many steps it makes, whatever is configured; None for as many as are.
        shares_examples: whether several processes can share out its examples; its steps then ask by `ZerothOrder` and
            `Gradient` alone, with the context's processes.
        model: the context's model, to evaluate in one of the variants; adapters are attached to it in place.
        variants: the models that training leaves behind, the one to report first; one for most methods.
        backbone: the tensors that zeroth-order steps move, or None.
        backbone_is_theta: whether these are all of theta; else a method keeps a part of it elsewhere.
        adapter_is_theta: whether an adapter of its first variant is a part of theta; what starts from it merges it.
        rule: how estimates become updates of the backbone, or None.
        evaluator: what looks around theta, or None.
        counts: work done so far.
        queries_per_step: what one step costs in queries; the first one, where they differ.
        trained_names: of the tensors that steps move, where they are a choice of the configuration.
        adapter_start: how its adapters started.
        score: how candidates are scored in evaluation; by their likelihood, or by a head, for most methods.
        write: how texts are written there; by the model, for most methods.
        members: how many models are asked there for each example, more than one of a vote.
        lr_factor: by the number of a step, what all learning rates are multiplied by in it; see `training.lr_schedule`.
        needs_all_steps: whether a run that ends before its last planned step leaves it undone.
        planned_steps: how many steps the run makes; None where nobody has said so.
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
        """Training step `number`, counted from 0. Updates may still be pending when it returns: see `using`.

        Raises:
            NonFiniteError: a loss was not finite; nothing was updated.
        """

    def steps_within(self, queries: int) -> int:
        """How many whole steps a budget of queries pays for."""
        return queries // self.queries_per_step

    def queries_of(self, steps: int) -> int:
        """What a number of steps costs: the smallest budget that pays for them."""
        first = self.adapter_start.counts.queries
        if self.fixed_steps is not None:
            return first + self.fixed_steps * self.queries_per_step
        high = max(1, self.queries_per_step) * steps
        while self.steps_within(high) < steps:
            high *= 2
        return first + bisect_left(range(high), steps, key=self.steps_within)

    def check(self) -> None:  # noqa: B027  # most methods can train any model
        """Find out, before anything is written, whether the model can be trained; what it takes is not counted.

        Raises:
            EvaluatorError: it cannot.
        """

    def check_steps(self, steps: int) -> None:  # noqa: B027  # most methods can make any number
        """Find out, before anything is written, whether so many steps can do what was configured.

        Raises:
            ConfigError: they cannot.
        """

    def notes(self) -> list[str]:
        """What a user should know before the first step, a sentence each."""
        return []

    def conclusions(self) -> list[str]:
        """What a user should know after the last step, a sentence each."""
        return []

    def summary(self) -> dict[str, Any]:
        """What a run's summary holds of this method, beside what it holds of all."""
        return {}

    def replay_header(self) -> dict[str, Any]:
        """What a replay of the trajectory has to know: the noise, the rule and the selection, as configured."""
        return {}

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """While it is open, `model` is the given variant, with every update written."""
        assert variant in self.variants
        yield

    def state_dict(self, weights: bool) -> StateDict:
        """What the method keeps from step to step, for a run that goes on later.

        Args:
            weights: also theta itself, and what waits to be written into it; otherwise a replay of the trajectory gives
                them back. Weights that first-order steps train are there in any case.
        """
        return StateDict()

    def load_state_dict(self, state: StateDict) -> None:  # noqa: B027  # some methods keep nothing
        """Take back what `state_dict` gave, in a method built in the same way.

        Raises:
            CheckpointError: it is of another method or model.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what training left beside the trajectory: adapters or trained weights, as safetensors."""


METHODS: Registry[type[Method]] = Registry("method")
