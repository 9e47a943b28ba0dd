"""Evolution strategies: a population of displaced models, whose scores say where to go.

Salimans, Ho, Chen, Sidor, Sutskever (2017), "Evolution Strategies as a Scalable Alternative to Reinforcement Learning";
Qiu et al. (2025), "Evolution Strategies at Scale: LLM Fine-Tuning Beyond Reinforcement Learning".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from zofo.config import as_group
from zofo.errors import ConfigError
from zofo.estimators import ESTIMATORS
from zofo.methods.base import METHODS
from zofo.methods.zeroth_order_defaults import default_epsilon
from zofo.methods.zeroth_order_method import ForwardOnly, ForwardOnlyConfig
from zofo.methods.zeroth_order_step import EstimatorConfig, RuleConfig, is_plain

_WHOLE = TypeAdapter(int)
_PER_SIGMA = 0.5  # the learning rate of normalised scores, as a share of sigma


class PopulationConfig(EstimatorConfig):
    """How the losses of members become a step."""

    default = "population"


class ESConfig(ForwardOnlyConfig):
    """Configuration of `es`. `estimator.epsilon` is sigma, and `lr` is alpha."""

    name: Literal["es"] = "es"
    """Which method."""
    estimator: PopulationConfig = Field(default_factory=lambda: PopulationConfig.model_validate({}))
    """How losses become a step; holds sigma, as epsilon."""
    population: int = Field(30, ge=2)
    """N: members an iteration; a mirrored pair is two. Its directions are `num_directions`, which follows from it."""

    @model_validator(mode="before")
    @classmethod
    def _of_population(cls, given: Any) -> Any:
        """The estimator, the number of directions, and alpha = sigma / 2 for scores that have no scale."""
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
        if shape.get("scores") != "plain" and is_plain(rule.get("name", RuleConfig.default)):
            filled["rule"] = {"lr": _PER_SIGMA * shape["epsilon"], **rule}
        return filled

    @model_validator(mode="after")
    def _compares_members(self) -> ESConfig:
        if not ESTIMATORS[self.estimator.name].compares_members:
            raise ConfigError(
                f"method=es compares the members of a population, which method.estimator={self.estimator.name} has not",
                "leave method.estimator.name out, or set method=mezo",
            )
        return self


@METHODS.register("es")
class ES(ForwardOnly):
    """theta <- theta - alpha mean over members i of u_i z_i: members theta + sigma z_i, u_i their shaped losses.

    All members see the same examples, in one forward whose rows carry the directions of their member, so that a
    population costs about what as many rows of inference cost. An update is N keys and coefficients: 16 bytes a member.
    With a score for its loss (`training.objective=accuracy`, or a reward) it needs no gradient and no answers.
    With two mirrored members and `estimator.scores=plain` it is `mezo`, to the bit.
    """

    Config = ESConfig
    paper = "Salimans et al. 2017, Evolution Strategies; Qiu et al. 2025, Evolution Strategies at Scale"
