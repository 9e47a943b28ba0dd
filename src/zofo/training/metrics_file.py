"""Reading `metrics.jsonl`, the lines that a run wrote of its steps and evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zofo.errors import RunError
from zofo.filesystem import check_not_special


def metrics_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the file; the last one is left out where a kill has cut it.

    Raises:
        RunError: the file cannot be read, or a line is not one that a run writes; names it.
    """
    try:
        check_not_special(path)
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines[:-1], start=1):  # the last one ends without a line break: it is empty, or cut
        try:
            content = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise RunError(f"{str(path)!r}, line {number}, is no JSON: {reason}; the run is damaged") from error
        if not isinstance(content, dict) or not isinstance(content.get("event"), str):
            raise RunError(f"{str(path)!r}, line {number}, is no object with an event: the run is damaged")
        place = content.get("step", content.get("steps", 0))
        if not isinstance(place, int) or isinstance(place, bool):
            raise RunError(f"{str(path)!r}, line {number}: the step cannot be {place!r}; the run is damaged")
        found.append(content)
    return found
