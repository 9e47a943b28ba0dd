"""The results of a study as data frames, and number formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zofo.errors import RunError
from zofo.studies.config import COUNTED, CURVE_COLUMNS, RESULT_COLUMNS, StudyConfig
from zofo.studies.selection import Choices, Outcomes
from zofo.studies.trial import StudyRun

if TYPE_CHECKING:
    import pandas


def result_frame(
    config: StudyConfig, runs: Sequence[StudyRun], outcomes: Outcomes, choices: Choices
) -> pandas.DataFrame:
    """One row per finished run, including trials, followed by one for each further model of a final run.

    The method of such a row is named as in `row_name`.

    Columns: `method, model, task`, the axes, `seed, trial` (whether it is one), `setting` (of the trial, or chosen),
    `chosen` (whether that setting was), `metric`, `score` and `majority` on the compared split, loss and score on
    validation and test, `steps, forwards, backwards, queries, seconds` of training, the same of evaluation,
    `peak_bytes` of the process, `treatment_...` (see `zofo.training.treatment`; the gradient's first and last),
    `failed` (the message) and `run` (the folder).
    """
    import pandas

    rows = []
    for run in runs:
        if run.digest not in outcomes:
            continue
        outcome, choice = outcomes[run.digest], choices.get((config.searched(run.method), run.cell))
        number = run.trial if run.trial is not None or choice is None else choice.chosen
        row = {**dict.fromkeys(COUNTED, 0), **outcome.counts, "evaluation": outcome.evaluation}
        row |= {name: getattr(outcome, name) for name in ("metric", "steps", "seconds", "peak_bytes")}
        row["treatment"] = _ends(outcome.treatment)
        row["setting"] = config.settings(run.method)[number] if choice and number is not None else ""
        row["chosen"] = choice is None or number == choice.chosen
        row |= {"failed": outcome.failed["message"] if outcome.failed else "", "run": outcome.folder}
        models = {"": outcome.scores, **(outcome.variants if run.trial is None else {})}
        for variant, scores in models.items():
            rows.append({**row, **scores, **_place(config, run), "method": row_name(run.method, variant)})
    frame = pandas.json_normalize(rows, sep="_")  # such as test_loss
    for name in ("score", "majority"):
        frame[name] = frame.get(f"{config.split}_{name}", float("nan"))
    return frame.reindex(columns=[*_place_columns(config), *RESULT_COLUMNS])


def curve_frame(config: StudyConfig, runs: Sequence[StudyRun], outcomes: Outcomes) -> pandas.DataFrame:
    """One row per evaluation along a run.

    Columns: `method, model, task`, the axes, `seed, trial`, then `steps, queries, split, loss, score`.
    """
    import pandas

    found = [(run, outcomes[run.digest].curve) for run in runs if run.digest in outcomes]
    rows = [{**point, **_place(config, run)} for run, curve in found for point in curve]
    return pandas.DataFrame(rows, columns=[*_place_columns(config), *CURVE_COLUMNS])


def write_frames(results: pandas.DataFrame, curves: pandas.DataFrame, folder: Path) -> None:
    """Write `results.csv`, `results.parquet` and `curves.csv`. Raises RunError if the folder cannot be written."""
    try:
        results.to_csv(folder / "results.csv", index=False)
        results.to_parquet(folder / "results.parquet", index=False)
        curves.to_csv(folder / "curves.csv", index=False)
    except OSError as error:
        raise RunError(f"cannot write the results into {str(folder)!r}: {error.strerror or error}") from error


def _ends(treatment: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a treatment, with separate names for those at its start and end."""
    flat: dict[str, Any] = {}
    for name, value in treatment.items():
        flat |= {f"{name}_first": value[0], f"{name}_last": value[1]} if isinstance(value, list) else {name: value}
    return flat


def _place_columns(config: StudyConfig) -> list[str]:
    return ["method", "model", "task", *config.axes, "seed", "trial"]


def _place(config: StudyConfig, run: StudyRun) -> dict[str, Any]:
    values = [run.method, run.cell.model, run.cell.task, *run.cell.axes, run.seed, run.trial is not None]
    return dict(zip(_place_columns(config), values, strict=True))


def row_name(method: str, variant: str | None) -> str:
    """The name of a method's row in tables, or of another model of its runs: `bilevel, lower adapter`."""
    return method if not variant else f"{method}, {variant.replace('_', ' ')}"


def is_share(metric: str) -> bool:
    """Whether a score is written in percent; a loss is not."""
    return metric != "loss"


def as_p(value: float | None) -> str:
    """A p value with three decimals."""
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def as_time(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table with aligned columns.

    Args:
        texts: number of leading columns with texts; the others have numbers, and are right-aligned.
    """
    cells = [[text.replace("|", "\\|") for text in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        placed = enumerate(zip(row, widths, strict=True))
        return f"| {' | '.join(text.ljust(w) if i < texts else text.rjust(w) for i, (text, w) in placed)} |"

    rule = "|".join("-" * (w + 2) if i < texts else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])
