"""The parts of a zeroth-order step, as methods configure and build them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from zofo.backbone import Backbone, save_tensors
from zofo.config import Config, PartConfig
from zofo.displacement import Key
from zofo.errors import ConfigError, EvaluatorError
from zofo.estimators import ESTIMATORS, Estimator
from zofo.evaluators import EVALUATORS, Evaluator
from zofo.noise import NOISES, Noise
from zofo.rules import RULES, Rule, State


class NoiseConfig(PartConfig):
    """The distribution of directions."""

    registry = NOISES
    default = "gaussian"


class EstimatorConfig(PartConfig):
    """How losses become a gradient estimate."""

    registry = ESTIMATORS
    default = "two-sided"


class RuleConfig(PartConfig):
    """How an estimate becomes an update."""

    registry = RULES
    default = "sgd"


class EvaluatorConfig(PartConfig):
    """How losses at points are found."""

    registry = EVALUATORS
    default = "in-place"


def _part(kind: type[PartConfig]) -> Any:
    return Field(default_factory=lambda: kind.model_validate({}))


class ZerothOrderConfig(Config):
    """The zeroth-order step on the backbone."""

    noise: NoiseConfig = _part(NoiseConfig)
    """The distribution of directions."""
    estimator: EstimatorConfig = _part(EstimatorConfig)
    """How losses become a gradient estimate; holds epsilon."""
    num_directions: int = Field(1, ge=1)
    """Directions a step; their estimates are averaged."""
    rule: RuleConfig = _part(RuleConfig)
    """How an estimate becomes an update; holds the learning rate."""
    evaluator: EvaluatorConfig = _part(EvaluatorConfig)
    """How losses at points are found."""
    select: list[str] | None = None
    """Glob patterns of the parameters that move; by default all."""

    def replay_header(self) -> dict[str, Any]:
        """See `Method.replay_header`."""
        return self.model_dump(mode="json", include={"noise", "rule", "estimator", "evaluator", "select"})


class ZerothOrder:
    """Backbone, evaluator, estimator and rule, built to work together.

    Args:
        config: which parts.
        model: whose weights move.
        seed: of the run.
        batch_size: examples a batch, for estimators that want a direction for each.
    """

    def __init__(self, config: ZerothOrderConfig, model: nn.Module, seed: int, batch_size: int) -> None:
        noise: Noise = config.noise.build()
        if config.select is None and any(".base_layer." in name for name, _ in model.named_parameters()):
            raise ConfigError(
                "the model carries adapters, so that its parameters have other names and other directions",
                "load it again for another method, or name what moves with method.select",
            )
        self.backbone = Backbone(model, noise, config.select)
        self.estimator: Estimator = config.estimator.build()
        self.rule: Rule = config.rule.build()
        self.evaluator: Evaluator = config.evaluator.build(model, self.backbone)
        self.state: State = self.rule.init()
        self._seed = seed
        if self.estimator.per_example and config.num_directions != 1:
            raise ConfigError(
                "num_directions counts directions that all examples share, but this estimator has one for each example",
                "leave num_directions=1, or set estimator=two-sided",
            )
        if self.estimator.per_example and not self.evaluator.per_example:
            raise EvaluatorError(
                f"the evaluator {config.evaluator.name!r} gives all examples of a batch the same direction, "
                f"but the estimator {config.estimator.name!r} asks for one each",
                "set method.estimator=two-sided",
            )
        self._directions = batch_size if self.estimator.per_example else config.num_directions
        self.points = len(self.estimator.ask(self.keys(0)))

    def save(self, folder: Path) -> None:
        """For half precision, the moved tensors: their rounding in every step is not in the trajectory."""
        if any(dtype.itemsize < 4 for dtype in self.backbone.dtypes):
            save_tensors(self.backbone.tensors, folder / "weights.safetensors")

    def keys(self, step: int) -> list[Key]:
        """The directions of one step."""
        return [Key(self._seed, step, index) for index in range(self._directions)]
