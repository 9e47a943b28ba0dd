"""The cells of `rewards.py`, what was measured of them, and the tables of it."""

from __future__ import annotations

import functools
import json
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reward_problems import PROBLEMS

ROWS = Path(__file__).parent / "results" / "rewards.jsonl"
SEEDS, PILOT_SEED = (0, 1, 2), 100
SIGMAS = (3e-3, 1e-2, 3e-2)
NUMBERS: dict[str, Sequence[float]] = {
    "es": SIGMAS,
    "es-subspace": SIGMAS,
    "select": SIGMAS,
    "mezo": (2e-4, 1e-3, 5e-3),
    "grpo": (5e-5, 2e-4, 1e-3),
    "fo-lora": (3e-4, 1e-3, 3e-3),
}
"""The ways, and what their pilots try."""


def cells() -> list[str]:
    """PROBLEM/base, PROBLEM/WAY/pilot-NUMBER and PROBLEM/WAY/SEED, in the order of running."""
    found = []
    for name, problem in PROBLEMS.items():
        found.append(f"{name}/base")
        for way, numbers in NUMBERS.items():
            if way == "fo-lora" and not problem.answers:
                continue
            found += [f"{name}/{way}/pilot-{number:g}" for number in numbers]
            found += [f"{name}/{way}/{seed}" for seed in SEEDS]
    return found


def known() -> dict[str, dict[str, Any]]:
    """What was measured, by cell."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    return {row["cell"]: row for row in map(json.loads, filter(None, lines))}


def best_number(cell: str, rows: dict[str, dict[str, Any]]) -> float | None:
    """What the pilots of a cell's way found best; of equals the smaller one. None before they have been made."""
    name, way, _ = cell.split("/")
    pilots = [rows.get(f"{name}/{way}/pilot-{number:g}") for number in NUMBERS[way]]
    scored = [(row["score"], -row["number"]) for row in pilots if row is not None]
    return -max(scored)[1] if len(scored) == len(pilots) else None


@functools.cache
def rows_again(count: int) -> list[list[int]]:
    """So many rows, drawn from themselves 1,000 times."""
    chance = random.Random(0)
    return [[chance.randrange(count) for _ in range(count)] for _ in range(1000)]


def scores_again(score: Callable[[Any], float], rows: Sequence[Any]) -> list[float]:
    """The score of held-out rows, each time that they are drawn again."""
    return [score([rows[place] for place in drawn]) for drawn in rows_again(len(rows))]


def interval(before: Sequence[float], runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % of the mean gain of some runs, over held-out rows that are drawn again: a paired bootstrap of 1,000."""
    gains = sorted(statistics.mean(each) - base for base, *each in zip(before, *runs, strict=True))
    return gains[24], gains[974]


HEADER = (
    "way",
    "number",
    "after",
    "gain, 95 % over rows",
    "seeds above 0",
    "queries",
    "peak GiB",
    "theta moved",
    "words",
)
HEADER += ("everyday",)


def table(name: str) -> list[str]:
    """The lines of a problem's table: the untrained model, and each way over its seeds."""
    found, score = known(), PROBLEMS[name].score
    base = found[f"{name}/base"]
    before = scores_again(score, base["rows"])
    cells = [[*HEADER], ["---"] * len(HEADER)]
    cells.append(["untrained", "", f"{base['score']:.3f}", "", "", "", "", "", *_said([base])])
    for way in NUMBERS:
        runs = [row for seed in SEEDS if (row := found.get(f"{name}/{way}/{seed}"))]
        if runs:
            scores = [scores_again(score, row["rows"]) for row in runs]
            cells.append([way, *_cells(base["score"], before, runs, scores, NUMBERS[way]), *_said(runs)])
    return [f"| {' | '.join(line)} |" for line in cells]


def _cells(
    base: float,
    before: Sequence[float],
    runs: Sequence[Any],
    scores: Sequence[Sequence[float]],
    tried: Sequence[float],
) -> list[str]:
    """What a line says of some seeds; a number at the edge of those that were tried is marked."""
    gain = _mean(runs, "score") - base
    low, high = interval(before, scores)
    above = [interval(before, [one])[0] > 0 for one in scores]
    return [
        f"{runs[0]['number']:g}" + "*" * (runs[0]["number"] in (min(tried), max(tried))),
        f"{_mean(runs, 'score'):.3f}",
        f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]",
        f"{sum(above)} of {len(runs)}",
        f"{_mean(runs, 'queries'):.0f}",
        f"{_mean(runs, 'peak_bytes') / 2**30:.2f}",
        f"{_mean(runs, 'distance'):.1%}".replace("%", " %"),
    ]


def _said(runs: Sequence[Any]) -> list[str]:
    """How long answers are, and what everyday sentences have become: their accuracy and loss."""
    everyday = f"{_mean(runs, 'everyday_accuracy'):.2f}, {_mean(runs, 'everyday_loss'):.3f}"
    return [f"{_mean(runs, 'words'):.1f}", everyday]


def _mean(runs: Sequence[Any], key: str) -> float:
    return statistics.mean(row[key] for row in runs)


def show() -> None:
    """A table for each problem that was begun."""
    for name in PROBLEMS:
        if f"{name}/base" in known():
            print(f"\n### {name}\n", *table(name), sep="\n")
