"""What came of one run of a study, in the same form for tasks and problems."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from zofo.errors import NonFiniteError, RunError

FILE = "outcome.json"

INNER = "inner"
"""What the curves call the loss of a bilevel method's inner problem, which is no loss of a split."""


@dataclass(frozen=True)
class Outcome:
    """What came of one run. It is written when the run is over, and nothing else says that it is.

    Args:
        config: the whole configuration of the run; entered when the outcome is written.
        metric: name of the score.
        higher_is_better: whether more of it is better.
        scores: of each split that was scored after the last step: "score", "loss", and "majority" where there is one.
        steps: made.
        counts: forwards, backwards and queries of training.
        evaluation: the same of all scoring, where it was counted.
        seconds: of training alone.
        curve: an evaluation each, in order: steps, queries, split, loss, score; then, without a score, the loss of the
            inner problem along the run, where there is one.
        failed: kind and message of the error that ended the run, or None.
        folder: name of the folder that it was read from.
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
    folder: str = ""

    @property
    def final(self) -> bool:
        """Whether the same run would end in the same way: other failures than divergence may have been mended."""
        return self.failed is None or self.failed["error"] == NonFiniteError.__name__

    def better_key(self, by: str) -> float:
        """A number that is lower for the better trial: its loss, or minus its score, on validation."""
        value = self.scores["validation"][by]
        return -value if by == "score" and self.higher_is_better else value

    def write(self, folder: Path) -> None:
        """Write it into the folder of the run, whole or not at all."""
        whole, part = folder / FILE, folder / f"{FILE}.part"
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(part, whole)

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """The outcome in a folder; None where the run has not ended.

        Raises:
            RunError: the file was changed by something else.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            content = {**json.loads(path.read_text(encoding="utf-8")), "folder": folder.name}
            found = TypeAdapter(cls).validate_python(content)
            if not found.config or (found.failed is None and not found.scores):
                raise ValueError("it lacks the configuration or the scores")
            for part in (*found.scores.values(), *found.curve):
                _ = part["loss"], part.get("score")
            _ = found.failed is None or (found.failed["error"], found.failed["message"])
            return found
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{str(path)!r} is damaged: {error}", f"remove the folder {str(folder)!r}: its run is then made again"
            ) from error
