"""The outcome of one run of a study, in one form for tasks and problems."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from zofo.config import validator_of
from zofo.errors import NonFiniteError, RunError, advice
from zofo.filesystem import atomic_write_text
from zofo.tasks import score_name
from zofo.training.config import ENVIRONMENT
from zofo.training.identity import Identity
from zofo.trees import get_by_path

FILE = "outcome.json"

BLOWN_UP = 10
"""A run diverged if its loss on validation is more than this many times the loss before training."""

INNER = "inner"
"""Name of the loss of a bilevel method's inner problem in the curves."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run, written when the run ends.

    Args:
        config: the complete configuration of the run; set when the outcome is written.
        scores: for each split scored after the last step: "score", "loss", and "majority" if there is one.
        counts: forwards, backwards and queries of training.
        evaluation: the same for all scoring, if counted.
        seconds: time of training alone.
        curve: evaluations in order: steps, queries, split, loss, score; then, without a score, the loss of the inner
            problem along the run, if there is one.
        failed: kind, message and possibly hint of the error that ended the run, or None.
        variants: as `scores`, for each further model of the run, such as the lower adapter of a bilevel run; also empty
            in outcomes of older versions.
        folder: name of the folder that it was read from.
        identity: what the run was made from, by content, as in `Identity`; for an older version, from environment.json;
            empty for a problem.
        peak_bytes: peak memory, including measurements of the treatment; 0 if unknown.
        treatment: strength of the treatment, if measured, as in summary.json.
        conclusions: messages of the run at its end, such as that it diverged.
        positive_label: the label that the metric is for, if it is for a single one; empty in outcomes of older
            versions.
    """

    config: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    higher_is_better: bool = True
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    steps: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] | None = None
    variants: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    folder: str = ""
    identity: dict[str, Any] = field(default_factory=dict)
    peak_bytes: int = 0
    treatment: dict[str, Any] = field(default_factory=dict)
    conclusions: list[str] = field(default_factory=list)
    positive_label: str = ""

    @property
    def score_title(self) -> str:
        """The metric for people, with its label, as far as that is known."""
        return score_name(self.metric, self.positive_label or get_by_path(self.config, "task.positive_label") or "")

    @property
    def made_from(self) -> Identity:
        """The recorded content of model and data."""
        return replace(Identity.read(self.identity), configuration=None)

    @property
    def diverged_nonfinite(self) -> bool:
        """Whether a non-finite loss ended the run."""
        return self.failed is not None and self.failed["error"] == NonFiniteError.__name__

    @property
    def is_final(self) -> bool:
        """Whether it would end the same way again: it succeeded or diverged; the causes of other failures may be
        gone."""
        return self.failed is None or self.diverged_nonfinite

    @property
    def loss_before(self) -> float | None:
        """Its loss on validation before the first step; None if its curve has no such point."""
        points = (point for point in self.curve if point["steps"] == 0 and point["split"] == "validation")
        return next((point["loss"] for point in points), None)

    def diverged(self, before: float | None) -> bool:
        """Whether it diverged: a loss was not finite, or the last one is over `BLOWN_UP` times the loss before
        training.

        Both count alike: which one happens depends on the dtype.

        Args:
            before: loss on validation of the untrained model; None if unknown, so that only a non-finite loss counts.
                Losses of 0 or less, such as minus a score, are not tested for the factor.
        """
        after = self.scores.get("validation", {}).get("loss")
        if self.failed is not None or after is None:
            return self.diverged_nonfinite
        return not math.isfinite(after) or (before is not None and 0 < BLOWN_UP * before < after)

    def better_key(self, by: str) -> float:
        """A number that is lower for the better trial: its loss, or minus its score, on validation."""
        value = self.scores["validation"][by]
        return -value if by == "score" and self.higher_is_better else value

    def write(self, folder: Path) -> None:
        """Write it to the folder of the run, atomically."""
        atomic_write_text(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """Read the outcome in a folder; None if the run has not ended.

        Raises:
            RunError: something else has changed the file.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            content = {**json.loads(path.read_text(encoding="utf-8")), "folder": folder.name}
            content.setdefault("identity", made_from(folder))
            found: Outcome = validator_of(cls).validate_python(content)  # type: ignore[arg-type]  # classes are hashable
            _ = found.made_from
            if not found.config or (found.failed is None and not found.scores):
                raise ValueError("it lacks the configuration or the scores")
            others = (part for scores in found.variants.values() for part in scores.values())
            for part in (*found.scores.values(), *others, *found.curve):
                loss, score = part["loss"], part.get("score")
                if score is not None and math.isfinite(loss) and not math.isfinite(score):
                    raise ValueError(f"a score cannot be {score} where the loss is {loss}")
            _ = found.failed is None or (found.failed["error"], found.failed["message"])
            return found
        except OSError as error:  # nothing is known of what it holds
            raise RunError(f"cannot read {str(path)!r}: {error.strerror}", advice(error.errno)) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunError(
                f"{str(path)!r} is damaged: {error}", f"remove the folder {str(folder)!r}: its run is then made again"
            ) from error


def made_from(folder: Path) -> dict[str, Any]:
    """The content of model and data of the run in a folder; empty if there is no record.

    Raises:
        RunError: the record is damaged.
    """
    file = folder / ENVIRONMENT
    return replace(Identity.load(file), configuration=None).as_dict() if file.is_file() else {}
