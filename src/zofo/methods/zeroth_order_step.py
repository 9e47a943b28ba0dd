"""The zeroth-order step: its configuration, and its parts, built to work together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from torch import nn

from zofo.adapters import AdapterConfig, PeftAdapters, carries_adapters, kind_of
from zofo.backbone import Backbone, Rounding, Update, moving_tensors
from zofo.config import Config, PartConfig, as_group
from zofo.displacement import Key
from zofo.errors import CheckpointError, ConfigError
from zofo.estimators import Direction, Estimate, Estimator, EstimatorConfig
from zofo.evaluators import (
    EVALUATORS,
    Counts,
    Evaluator,
    EvaluatorConfig,
    LossRequest,
    OwnExamples,
    SharedExamples,
)
from zofo.methods.base import Pass
from zofo.methods.zeroth_order_defaults import HALF, default_epsilon, default_evaluator, default_lr
from zofo.models import save_tensors
from zofo.noise import Mask, MaskConfig, Noise, NoiseConfig
from zofo.processes import ALONE, Processes
from zofo.rules import RULES, Rule, RuleConfig, State
from zofo.state_dict import StateDict, load_tensors_state, of_displacement, tensors_to_state, to_displacement

_REPLAYED = {"noise", "mask", "rule", "estimator", "evaluator", "rounding", "trainable"}
_EACH = 1 << 16  # keys of one step: index = number of the direction * _EACH + number of the group


def _parse_sharing(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"shared|per-example|per-group\([1-9]\d*\)", value):
        raise ConfigError(
            f"method.{info.field_name} is {value!r}, but must be shared, per-example or per-group(n)",
            f"for groups of 4 examples, quote it: 'method.{info.field_name}=per-group(4)'",
        )
    return value


DirectionSharing = Annotated[str, BeforeValidator(_parse_sharing)]


def _part(kind: type[PartConfig]) -> Any:
    return Field(default_factory=lambda: kind.model_validate({}))


class ZerothOrderConfig(Config):
    """The zeroth-order step on the backbone."""

    noise: NoiseConfig = _part(NoiseConfig)
    """The distribution of directions."""
    mask: MaskConfig | None = None
    """Which part of every direction is kept; by default all of it."""
    estimator: EstimatorConfig = _part(EstimatorConfig)
    """How losses become a gradient estimate; has epsilon."""
    num_directions: int = Field(1, ge=1, lt=_EACH)
    """Number of directions per step; their estimates are averaged."""
    directions: DirectionSharing = "shared"
    """Which examples share a direction: the whole batch (`shared`), none (`per-example`), or n each
    (`per-group(n)`)."""
    normalize_by_std: bool = False
    """Divide each estimate by the standard deviation of the examples' slopes."""
    rule: RuleConfig = _part(RuleConfig)
    """How an estimate becomes an update; has the learning rate."""
    evaluator: EvaluatorConfig = _part(EvaluatorConfig)
    """How losses at points are computed; by default `in-forward` for low-rank noise, else `in-place`."""
    rounding: Rounding = "stochastic"
    """How updates of half-precision weights are rounded: to `nearest`, as in other code, loses what is less than half
    the distance of two numbers, which is most of a step."""
    trainable: list[str] | None = Field(None, min_length=1)
    """Glob patterns of the parameters that move, of the adapter if one moves; `!pattern` excludes. By default all that
    a forward uses and that require a gradient."""

    moved_adapter: ClassVar[str | None] = None
    """The key of the adapter whose tensors the steps move where there is one, and not the model's weights."""
    adapter_rates: ClassVar[tuple[str, ...]] = ()
    """The keys of the learning rates of first-order steps on `adapter`."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any, info: ValidationInfo) -> Any:
        """Set the defaults that depend on other options and the model's dtype; see
        `zofo.methods.zeroth_order_defaults`.

        The dtype is in the validation context as `dtype`; without it, the model is assumed not to be in half precision.
        """
        if not isinstance(given, dict):
            return given
        noise, evaluator, rule, estimator = (
            as_group(given.get(part, {})) for part in ("noise", "evaluator", "rule", "estimator")
        )
        moved = None if cls.moved_adapter is None else kind_of(given.get(cls.moved_adapter))
        beside = kind_of(given.get("adapter", {})) if cls.adapter_rates else None
        filled = {**(dict.fromkeys(cls.adapter_rates, beside.lr) if beside is not None else {}), **given}
        if isinstance(noise, dict) and isinstance(evaluator, dict):
            chosen = default_evaluator(noise.get("name", NoiseConfig.default), moved, beside)
            filled["evaluator"] = {"name": chosen, **evaluator}
        epsilon = default_epsilon(moved, (info.context or {}).get("dtype") in HALF)
        if isinstance(estimator, dict) and epsilon is not None:
            filled["estimator"] = {"epsilon": epsilon, **estimator}
        if isinstance(rule, dict) and RuleConfig.is_plain(rule):
            filled["rule"] = {"lr": cls.default_lr(filled, moved), **rule}
        return filled

    @classmethod
    def default_lr(cls, given: Mapping[str, Any], moved: type[PeftAdapters] | None) -> float:
        """The default rate of plain SGD."""
        return default_lr(given, moved)

    @property
    def moved(self) -> AdapterConfig | None:
        """The adapter whose tensors the steps move; None if they move the model's own weights."""
        return None if self.moved_adapter is None else getattr(self, self.moved_adapter)

    @property
    def points(self) -> int:
        """The number of points at which a step computes losses."""
        return len(self.estimator.build().ask([Key(0, 0, number) for number in range(self.num_directions)]))

    def forwards(self, examples: int, times: float = 1.0) -> Pass:
        """The pass that computes the losses of some examples at all points of a step, `times` times on average."""
        points = self.points
        evaluator, options = EVALUATORS[self.evaluator.name], self.evaluator.options
        copies = RULES[self.rule.name].dense_buffers + evaluator.copies
        own = self.moved is None
        theta: Literal["weights", "adapter"] = "weights" if own else "adapter"
        if not evaluator.repeats_batch:
            return Pass(examples, 1, points * times, theta=theta, sweeps=(points + 1) / points, copies=copies)
        chunk = min(options.get("micro_batch") or examples, examples)
        swept = chunk / examples / options.get("flush_every", 1)
        return Pass(chunk, points, examples / chunk * times, None, False, 0, theta, own, swept, copies)

    @model_validator(mode="after")
    def _mask_fits(self) -> ZerothOrderConfig:
        if self.mask is not None and self.rule.options.get("weight_decay", 0):
            raise ConfigError(
                "method.rule.weight_decay shrinks all weights, those too that method.mask keeps where they are",
                "set method.rule.weight_decay=0, or method.mask=null",
            )
        return self

    def replay_header(self) -> dict[str, Any]:
        """The configured parts that a replay needs."""
        return self.model_dump(mode="json", include=_REPLAYED)


class ZerothOrder:
    """Backbone, evaluator, estimator and rule, built to work together.

    Args:
        config: selects the parts.
        model: the model whose weights move.
        seed: seed of the run.
        batch_size: examples per batch.
        among: the parameters that may move, such as an adapter's; by default all.
        unused: names of parameters that no forward uses; they do not move unless a pattern names them.
        processes: the processes that make the step together.
        own_examples: whether each process brings its own examples; otherwise they split each batch.
    """

    def __init__(
        self,
        config: ZerothOrderConfig,
        model: nn.Module,
        seed: int,
        batch_size: int,
        among: Sequence[nn.Parameter] | None = None,
        unused: frozenset[str] = frozenset(),
        processes: Processes = ALONE,
        own_examples: bool = False,
    ) -> None:
        noise: Noise = config.noise.build()
        if among is None and config.trainable is None and carries_adapters(model):
            raise ConfigError(
                "the model carries adapters, so that its parameters have other names and other directions",
                "give the method.adapter that they are of, to go on with it; or merge them first (of a run: zofo "
                "export RUN --merged DIR, then model=DIR without init_from); or name what moves with method.trainable",
            )
        names, self._notes = moving_tensors(config.trainable, model, among, unused)
        self._trainable = config.trainable if names is None or among is not None else names
        mask: Mask | None = None if config.mask is None else config.mask.build()
        select = config.trainable if names is None else names
        self.backbone = Backbone(model, noise, select, mask=mask, rounding=config.rounding)
        self.estimator: Estimator = config.estimator.build()
        self.rule: Rule = config.rule.build()
        self._lr = config.rule.options.get("lr")
        self.evaluator: Evaluator = config.evaluator.build(model, self.backbone)
        if not processes.alone:
            self.evaluator = (OwnExamples if own_examples else SharedExamples)(self.evaluator, model, processes)
        self.theta = self.evaluator.theta
        self.state: State = self.rule.init()
        self._seed = seed
        self._batch_size = batch_size
        self._num_directions = config.num_directions
        self._normalize_by_std, self._masked = config.normalize_by_std, config.mask is not None
        self._group = _group_size(config.directions)
        self.check_direction_sharing("directions", config.directions, config.evaluator.name)
        if config.normalize_by_std and batch_size * config.num_directions < 2:
            raise ConfigError(
                "method.normalize_by_std divides by how much the examples' slopes differ, but a step has only one",
                "set method.batch_size=2 or more, or method.normalize_by_std=false",
            )
        if self.estimator.compares_members and (self._group or config.normalize_by_std):
            raise ConfigError(
                "a member of a population has one score, of the whole batch: its examples share their direction, and "
                "nothing is divided by the spread of their slopes",
                "set method.directions=shared and method.normalize_by_std=false, or method.estimator=two-sided",
            )
        self.points = len(self.estimator.ask(self.directions(0)))

    @property
    def notes(self) -> list[str]:
        """Which tensors do not move, though a user may expect it."""
        return [*self._notes, *self.evaluator.notes]

    def replay_header(self, header: Mapping[str, Any]) -> dict[str, Any]:
        """The header of a trajectory, with the names of the tensors that move, which a replay cannot find out itself.

        Also `flush_every`, if the evaluator uses another than the configured one.
        """
        together, said = self.theta.flush_every, header["evaluator"].get("flush_every", 1)
        trainable = list(self.backbone.parameters) if self.evaluator.left_out else self._trainable
        return {**header, "trainable": trainable, **({} if together == said else {"flush_every": together})}

    def directions(
        self,
        step: int,
        first: int = 0,
        after: int = 0,
        examples: int | None = None,
        sharing: DirectionSharing | None = None,
    ) -> list[Direction]:
        """The directions of one step.

        Args:
            step: number of the step.
            first: number of the first example of the batch; for a second batch in the same step, the size of the first.
            after: how many sets of directions this step has used already; returns the next set.
            examples: size of the batch, if it is not the configured one.
            sharing: which examples share a direction, instead of the configured value.

        Raises:
            ConfigError: there are more groups of examples than keys in a step.
        """
        group = self._group if sharing is None else _group_size(sharing)
        start = after * self._num_directions
        each = range(start, start + self._num_directions)
        keys = [Key(self._seed, step, number * (_EACH if group else 1)) for number in each]
        if not group:
            return list(keys)
        groups = [(first + example) // group for example in range(examples or self._batch_size)]
        if groups[-1] >= _EACH:
            raise ConfigError(
                f"{groups[-1] + 1} groups of examples, each with a direction of its own, are more than the {_EACH} a "
                "step can have",
                f"let more examples share a direction: 'per-group({-(-len(groups) // _EACH)})'",
            )
        return [[key._replace(index=key.index + group) for group in groups] for key in keys]

    def check_addable(self, method: str) -> None:
        """Raise ConfigError if the estimates of several losses do not add up to the estimate of their sum."""
        if not self.estimator.linear:
            raise ConfigError(
                f"{method} adds the estimates of several losses, and those of method.estimator do not follow the size "
                "of these",
                "set method.estimator.scores=plain, or method.estimator=two-sided",
            )

    def check_direction_sharing(self, option: str, directions: DirectionSharing, evaluator: str) -> None:
        """Raise ConfigError if examples have their own directions and the evaluator does not support that."""
        if _group_size(directions) and not self.evaluator.per_example:
            raise ConfigError(
                f"method.{option} is {directions!r}, but the evaluator {evaluator!r} gives all examples of a batch the "
                "same direction",
                f"set method.{option}=shared, or method.noise=low-rank and method.evaluator=in-forward",
            )

    def rate(self, lr_factor: float) -> float | None:
        """The learning rate of a step, as a rule takes it; None for the rule's own.

        Raises:
            ConfigError: a schedule is set, but the rule has no learning rate.
        """
        if lr_factor == 1:
            return None
        if self._lr is None:
            raise ConfigError(
                "training.lr_scheduler_type changes the rule's learning rate, and this rule has none",
                "set training.lr_scheduler_type=constant",
            )
        return float(self._lr) * lr_factor

    def sgd_rate(self, lr_factor: float) -> float | None:
        """The learning rate, if a step moves theta by -rate times an unbiased estimate; otherwise None.

        None, for example, if a mask keeps only a part of the directions.
        """
        unbiased = self.estimator.linear and not self._normalize_by_std and not self._masked
        plain = unbiased and self.rule.plain and not self.rule.displacement_decay
        return float(self._lr) * lr_factor if plain and self._lr is not None else None

    def step(
        self, number: int, asks: Sequence[LossRequest], rate: float | None = None, examples: int | None = None
    ) -> tuple[Estimate, Update]:
        """Compute losses along the directions of step `number`, estimate the gradient, and update the backbone.

        Args:
            number: number of the step.
            asks: the objective, and its batches.
            rate: the learning rate instead of the rule's own; see `rate`.
            examples: size of the batches, if it is not the configured one.
        """
        directions = self.directions(number, examples=examples)
        with self.evaluator.probe(asks, self.estimator.ask(directions)) as probe:
            estimate = self.estimator.tell(directions, probe.losses)
            update, state = self.rule.update(
                estimate.normalized_by_std() if self._normalize_by_std else estimate, self.state, rate
            )
            probe.update(update)
        self.state = state
        return estimate, update

    def state_dict(self, weights: bool) -> StateDict:
        """The state of the rule; with `weights` also theta and pending updates."""
        state = self.state
        rule = StateDict({"steps": state.steps, "momentum": of_displacement(state.momentum)})
        if state.mean_square is not None:
            rule.values["mean_square"] = state.mean_square
        for buffer, tensors in state.buffers.items():
            rule.tensors |= {f"{buffer}/{name}": tensor for name, tensor in tensors.items()}
        whole = StateDict({"counts": self.evaluator.counts.as_dict()}).put("rule", rule)
        kept = self.theta.flush_every > 1 or self.rule.displacement_decay
        waiting = self.theta.state_dict().values if kept else {}
        whole.put("evaluator", StateDict({**waiting, **self.evaluator.state_dict().values}))
        return whole.put("theta", StateDict({}, dict(self.backbone.tensors))) if weights else whole

    def load_state_dict(self, state: StateDict) -> None:
        """Load the state that `state_dict` returned."""
        rule = state.part("rule")
        buffers: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in rule.tensors.items():
            buffer, of = name.split("/", 1)
            buffers.setdefault(buffer, {})[of] = tensor.to(self.backbone.device)
        momentum, mean_square = to_displacement(rule.values["momentum"]), rule.values.get("mean_square")
        self.state = State(rule.values["steps"], momentum, mean_square, buffers)
        self.evaluator.counts.become(Counts(**state.values["counts"]))
        self.theta.load_state_dict(state.part("evaluator"))
        self.evaluator.load_state_dict(state.part("evaluator"))
        if "theta" in state.values:
            own, theta = self.backbone.tensors, state.part("theta").tensors
            if own.keys() != theta.keys():
                raise CheckpointError("the checkpoint holds other tensors than those that move")
            load_tensors_state(list(own.values()), tensors_to_state([theta[name] for name in own]))

    def save(self, folder: Path) -> None:
        """Save the moved tensors in half precision: their rounding is not in the trajectory."""
        if self.backbone.is_corrupt:  # after an interrupt inside a sweep the tensors are invalid
            return
        self.theta.flush()
        if any(dtype.itemsize < 4 for dtype in self.backbone.dtypes):
            save_tensors(self.backbone.tensors, folder / "weights.safetensors")


def _group_size(directions: str) -> int:
    """How many examples share a direction; 0 for the whole batch."""
    if directions == "shared":
        return 0
    return 1 if directions == "per-example" else int(directions.removeprefix("per-group(").removesuffix(")"))
