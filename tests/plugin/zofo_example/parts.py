"""A method, an adapter, a metric and a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from zofo.adapters import ADAPTERS, LoraAdapters
from zofo.methods import METHODS, ForwardOnly, ForwardOnlyConfig, StepLog
from zofo.tasks import METRICS, Metric, register_tasks


class PatientConfig(ForwardOnlyConfig):
    """Configuration of `patient-mezo`."""

    name: Literal["patient-mezo"] = "patient-mezo"
    """Which method."""
    batches: int = Field(2, ge=1)
    """Batches a step, each with a direction of its own."""


@METHODS.register("patient-mezo")
class PatientMeZO(ForwardOnly):
    """MeZO, several updates a step."""

    Config = PatientConfig
    paper = "an example of a method in another package"

    def __init__(self, config: PatientConfig, context: Any) -> None:
        super().__init__(config, context)
        self.queries_per_step *= config.batches

    def step(self, number: int) -> StepLog:
        """One update for each batch; the last one is what the log shows."""
        before, n = self.counts.copy(), self._config.batches
        for each in range(n * number, n * number + n):
            estimate, update = self._zo.step(each, [(self._objective, self._batches[each])])
        return StepLog(estimate.loss, self.counts - before, self._coefficients(estimate), update)


@ADAPTERS.register("small-lora")
class SmallLora(LoraAdapters):
    """LoRA of rank 1."""

    def __init__(self, model: Any, names: Any, seed: int, alpha: float = 2.0) -> None:
        super().__init__(model, names, seed, rank=1, alpha=alpha)


def _first_letter(examples: Any, predictions: Any) -> float:
    texts = [example.candidates[p].strip() for example, p in zip(examples, predictions, strict=True)]
    return sum(text[:1] == "g" for text in texts) / len(texts)


METRICS.register("says-g")(Metric(frozenset({"classification"}), "how many predictions begin with a g", _first_letter))
register_tasks(Path(__file__).parent / "tasks")
