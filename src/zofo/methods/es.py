"""Evolution strategies: a population of displaced models, whose scores determine the step.

Salimans, Ho, Chen, Sidor, Sutskever (2017), "Evolution Strategies as a Scalable Alternative to Reinforcement Learning";
Qiu et al. (2025), "Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from zofo.adapters import PeftAdapters
from zofo.config import as_group
from zofo.errors import ConfigError
from zofo.estimators import ESTIMATORS, EstimatorConfig
from zofo.methods.base import METHODS
from zofo.methods.mezo import ForwardOnly, ForwardOnlyConfig

_WHOLE = TypeAdapter(int)


class PopulationConfig(EstimatorConfig):
    """The estimator of `es`: how members' losses are weighted, such as by z-scores or ranks."""

    default = "population"


class PopulationMethodConfig(ForwardOnlyConfig):
    """Configuration of a method whose steps evaluate a population. `estimator.epsilon` is sigma."""

    estimator: PopulationConfig = Field(default_factory=lambda: PopulationConfig.model_validate({}))
    """How the losses of the members become one step: sigma, the standard deviation of a member's change of each entry,
    as `epsilon`; how members are compared, as `scores` (`z-score`, `rank` or `plain`); and whether they come in pairs,
    as `mirrored`."""
    population: int = Field(30, ge=2)
    """N: members per step; a mirrored pair counts as two. It determines `num_directions`."""

    lr_per_sigma: ClassVar[float]
    """The default learning rate of a rule that is plain SGD, as a share of sigma."""
    lr_is_length: ClassVar[bool] = False
    """Whether a learning rate is a length also where scores are plain."""

    @model_validator(mode="before")
    @classmethod
    def _of_population(cls, given: Any) -> Any:
        """Set the number of directions."""
        estimator = as_group(given.get("estimator", {})) if isinstance(given, dict) else None
        if not isinstance(estimator, dict | PopulationConfig):
            return given  # a mistake, which is named by its key
        try:  # numbers as they are meant, such as 1e-2, which is a text in YAML
            mirrored = PopulationConfig.model_validate(estimator).options.get("mirrored", True)
            members = _WHOLE.validate_python(given.get("population", cls.model_fields["population"].default))
            asked = _WHOLE.validate_python(given.get("num_directions", 0))
        except (ConfigError, ValidationError):
            return given
        if mirrored and members % 2:
            raise ConfigError(
                f"method.population is {members}, but mirrored members come in pairs",
                f"set method.population={members + 1}, or method.estimator.mirrored=false",
            )
        directions = members // 2 if mirrored else members
        if asked not in (0, directions):
            raise ConfigError(
                f"method.population={members} has {directions} directions, not method.num_directions={asked}",
                "leave method.num_directions out",
            )
        return {**given, "num_directions": directions}

    @classmethod
    def default_lr(cls, given: Mapping[str, Any], moved: type[PeftAdapters] | None) -> float:
        """A multiple of sigma if the rate is a length: scores have no scale, or `lr_is_length`."""
        estimator = given.get("estimator", {})
        if isinstance(estimator, dict | PopulationConfig):
            shape = PopulationConfig.model_validate(estimator).options
            if cls.lr_is_length or shape.get("scores") != "plain":
                return float(cls.lr_per_sigma * shape["epsilon"])
        return super().default_lr(given, moved)

    @model_validator(mode="after")
    def _compares_members(self) -> PopulationMethodConfig:
        if not ESTIMATORS[self.estimator.name].compares_members:
            raise ConfigError(
                f"method={self.name} compares the members of a population, and "
                f"method.estimator={self.estimator.name} has none",
                "leave method.estimator.name out, or set method=mezo",
            )
        return self


class ESConfig(PopulationMethodConfig):
    """Configuration of `es`. `estimator.epsilon` is sigma, and `lr` is alpha, by default half of it."""

    lr_per_sigma = 0.5

    name: Literal["es"] = "es"
    """Which method."""


@METHODS.register("es")
class ES(ForwardOnly):
    """theta <- theta - alpha mean over members i of u_i z_i: members theta + sigma z_i, u_i their shaped losses.

    All members see the same examples, in one forward whose rows have the directions of their member, so a population
    costs about as much as inference of the same number of rows. An update is N keys and coefficients: 16 bytes per
    member. With a score as its loss (`training.objective=accuracy`, or a reward) it needs no gradient and no reference
    answers. With two mirrored members and `estimator.scores=plain` it is bit-identical to `mezo`.
    """

    Config = ESConfig
    paper = "Salimans et al. 2017, Evolution Strategies; Qiu et al. 2025, Evolution Strategies at Scale"
