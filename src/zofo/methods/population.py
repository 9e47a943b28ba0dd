"""What methods have in common that ask a population of displaced models for its scores."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from zofo.config import as_group
from zofo.errors import ConfigError
from zofo.estimators import ESTIMATORS
from zofo.methods.zeroth_order_defaults import default_epsilon
from zofo.methods.zeroth_order_method import ForwardOnlyConfig
from zofo.methods.zeroth_order_parts import EstimatorConfig, RuleConfig

_WHOLE = TypeAdapter(int)


class PopulationConfig(EstimatorConfig):
    """The estimator of `es`: how members' losses are weighed into a step, such as by z-scores or ranks."""

    default = "population"


class PopulationMethodConfig(ForwardOnlyConfig):
    """Configuration of a method whose steps ask the members of a population. `estimator.epsilon` is sigma."""

    estimator: PopulationConfig = Field(default_factory=lambda: PopulationConfig.model_validate({}))
    """How losses become a step; holds sigma, as epsilon."""
    population: int = Field(30, ge=2)
    """N: members a step; a mirrored pair is two. Its directions are `num_directions`, which follows from it."""

    lr_per_sigma: ClassVar[float]
    """The default learning rate of a rule that is plain SGD, as a share of sigma."""
    lr_is_length: ClassVar[bool] = False
    """Whether a learning rate is a length also where scores are plain."""

    @model_validator(mode="before")
    @classmethod
    def _of_population(cls, given: Any) -> Any:
        """The estimator, the number of directions, and the rate of scores that have no scale."""
        if not isinstance(given, dict):
            return given
        estimator, rule = as_group(given.get("estimator", {})), as_group(given.get("rule", {}))
        if not isinstance(estimator, dict) or not isinstance(rule, dict):
            return given  # a mistake, which is named by its key
        sigma = default_epsilon(cls._moved(given), half=False)
        own = {} if sigma is None else {"epsilon": sigma}
        try:  # numbers as they are meant, such as 1e-2, which is a text in YAML
            shape = PopulationConfig.model_validate({**own, **estimator}).options
            members = _WHOLE.validate_python(given.get("population", cls.model_fields["population"].default))
            asked = _WHOLE.validate_python(given.get("num_directions", 0))
        except (ConfigError, ValidationError):
            return given
        mirrored = shape.get("mirrored", True)
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
        filled = {**given, "num_directions": directions}
        length = cls.lr_is_length or shape.get("scores") != "plain"
        if length and RuleConfig.is_plain(rule):
            filled["rule"] = {"lr": cls.lr_per_sigma * shape["epsilon"], **rule}
        return filled

    @model_validator(mode="after")
    def _compares_members(self) -> PopulationMethodConfig:
        if not ESTIMATORS[self.estimator.name].compares_members:
            raise ConfigError(
                f"method={self.name} compares the members of a population, which "
                f"method.estimator={self.estimator.name} has not",
                "leave method.estimator.name out, or set method=mezo",
            )
        return self
