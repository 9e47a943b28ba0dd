"""`report.md`: the results of a study, how settings were chosen, and what failed."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from zofo.errors import RunError
from zofo.filesystem import atomic_write_text
from zofo.studies.config import MethodSpec, StudyConfig
from zofo.studies.frames import as_time, curve_frame, markdown, result_frame, write_frames
from zofo.studies.grid import Grid
from zofo.studies.load import Study
from zofo.studies.report_tables import Scores, contrast_table, difference_tables, score_table, treatment_table
from zofo.studies.result import BLOWN_UP
from zofo.studies.selection import Choices, Outcomes, Selection, edges_of
from zofo.studies.trial import StudyRun
from zofo.training import environment
from zofo.training.evaluation import as_score
from zofo.trees import format_overrides

_TEMPLATE = Path(__file__).parent / "files" / "report.md.jinja"


def write_results(
    study: Study,
    runs: Sequence[StudyRun],
    outcomes: Outcomes,
    choices: Choices,
    folder: Path,
    outdated: Mapping[str, str] | None = None,
    dropped: Sequence[str] = (),
) -> None:
    """Write the tables, the configured figures, and the report.

    Args:
        runs: trials, and the known final runs.
        outdated: results that were made again, by folder: what has changed; None for none.
        dropped: results of runs that are no longer in the study, by folder.

    Raises:
        RunError: the folder cannot be written.
    """
    config = study.config
    results, curves = result_frame(config, runs, outcomes, choices), curve_frame(config, runs, outcomes)
    write_frames(results, curves, folder)
    figures: list[Path] = []
    if config.figure is not None and len(curves):
        from zofo.studies.figures import draw  # matplotlib takes a second

        figures = draw(curves, results, config, folder)
    text = _template().render(
        _about(study, runs, outcomes, choices),
        study=study,
        config=config,
        scores=Scores(study.grid, [run for run in runs if run.trial is None], outcomes, choices),
        figures=figures,
        folder=folder,
        starts=_starts(study.grid.starts, outcomes),
        said=_warnings([*study.grid.starts, *runs], outcomes),
        failed=_failures([*study.grid.starts, *runs], outcomes),
        outdated=markdown(["run", "what has changed"], list((outdated or {}).items()), texts=2) if outdated else "",
        dropped=[f"- `{name}`" for name in dropped],
        versions=", ".join(f"{name} {version}" for name, version in environment().items()),
    )
    try:
        atomic_write_text(folder / "report.md", re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    except OSError as error:
        raise RunError(f"cannot write the report into {str(folder)!r}: {error.strerror}") from error


def _about(study: Study, runs: Sequence[StudyRun], outcomes: Outcomes, choices: Choices) -> dict[str, Any]:
    """The template's variables about methods, finished runs, and the choice of settings."""
    config, digests = study.config, dict.fromkeys(run.digest for run in runs)
    done = [outcomes[digest] for digest in digests if digest in outcomes]
    methods = [[name, format_overrides(one.tree) + _whose_setting(one)] for name, one in config.methods.items()]
    methods += [["(all)", format_overrides(config.defaults.tree)]] if config.defaults.tree else []
    of_tasks = [outcome for outcome in done if outcome.config.get("model") and not outcome.failed]
    notes = dict.fromkeys(replace(one.made_from, configuration=one.config).note for one in of_tasks)
    return {
        "done": done,
        "seconds": sum(outcome.seconds + outcome.evaluation.get("seconds", 0) for outcome in done),
        "older": [note for note in notes if note],
        "complete": len(done) == len(digests) and all(choice.done for choice in choices.values()),
        "methods": markdown(["method", "what it is"], methods, texts=2),
        "tried": len(next(iter(choices.values())).trials) if choices else 0,
        "single": [name for name in config.methods if not config.tried(name)],
        "trial_budgets": _trial_budgets(study.grid),
        "trials": _trials(config, choices),
        "waiting": [
            _waiting(study.grid, choice) for choice in choices.values() if choice.transient_failure is not None
        ],
    }


@functools.cache
def _template() -> jinja2.Template:
    made = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701
    )
    tables = (score_table, treatment_table, difference_tables, contrast_table)
    made.globals |= {table.__name__: table for table in tables}
    made.globals["blown_up"] = BLOWN_UP
    made.filters["as_time"] = as_time
    made.filters["paragraph"] = lambda text: " ".join(text.split()) + "\n"
    made.filters["listed"] = lambda names: ", ".join(f"`{name}`" for name in names)  # which may hold commas
    return made.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _whose_setting(method: MethodSpec) -> str:
    return "" if method.tuned_by is None else f", with the setting of {method.tuned_by}"


def _trial_budgets(grid: Grid) -> list[str]:
    """The length of trials of methods for which it differs from the others."""
    config = grid.config
    searched = [name for name, method in config.methods.items() if method.trials and config.search]
    budgets = {name: grid.trial_budget(name) for name in searched}
    return [f"{name} {budget}" for name, budget in budgets.items() if config.search and budget != config.search.budget]


def _trials(config: StudyConfig, choices: Choices) -> str:
    """A row for each setting of each method in each cell; for the chosen one, which keys are at an edge of the grid."""
    rows = []
    for choice in choices.values():
        place = [choice.method, str(choice.cell)]
        for number, trial in enumerate(choice.trials):
            loss = f"{trial.loss:.4g}" if trial.loss is not None else trial.state
            score = "" if trial.score is None or trial.metric == "loss" else as_score(trial.score, trial.metric)
            edges = edges_of(config.tried(choice.method), number) if number == choice.chosen else []
            mark = "chosen" + (f", at the edge of {', '.join(edges)}" if edges else "")
            rows.append([*place, trial.setting, loss, score, mark if number == choice.chosen else ""])
        if choice.done and choice.chosen is None:
            rows.append([*place, "every trial diverged: no final run", "", "", ""])
    header = ["method", "where", "setting", "validation loss", "validation score", ""]
    return markdown(header, rows, texts=3) if rows else ""


def _waiting(grid: Grid, choice: Selection) -> str:
    names = ", ".join([choice.method, *grid.config.controls(choice.method)])
    return f"- **{names} {choice.cell}: no final runs yet.** A trial failed: {choice.transient_failure}"


def _starts(starts: Sequence[StudyRun], outcomes: Outcomes) -> str:
    """The runs that methods start from, and their cost, which no table of scores includes."""
    rows = []
    for run in starts:
        outcome = outcomes.get(run.digest)
        what = [run.method.removeprefix("start "), str(run.cell)]
        if outcome is None or outcome.failed:
            rows.append([*what, "failed" if outcome else "not done", "", "", ""])
            continue
        score = as_score(outcome.scores["validation"]["score"], outcome.metric)
        counts = [f"{outcome.counts[name]:,}" for name in ("queries", "backwards")]
        rows.append([*what, f"{outcome.score_title} {score}", *counts, as_time(outcome.seconds)])
    header = ["start", "where", "on validation rows of its tasks", "queries", "backwards", "seconds"]
    return markdown(header, rows, texts=3) if rows else ""


def _failures(runs: Sequence[StudyRun], outcomes: Outcomes) -> str:
    found = [(run, outcomes[run.digest].failed) for run in runs if run.digest in outcomes]
    rows = [
        [str(run), failed["error"], "; ".join(filter(None, (failed["message"], failed.get("hint"))))]
        for run, failed in found
        if failed
    ]
    return markdown(["run", "error", "message"], rows, texts=3) if rows else ""


def _warnings(runs: Sequence[StudyRun], outcomes: Outcomes) -> str:
    """Warnings of finished runs, such as that training diverged though there is a score."""
    told = [(run, outcomes[run.digest].conclusions) for run in runs if run.digest in outcomes]
    mark = "warning: "
    rows = [[str(run), line.removeprefix(mark)] for run, lines in told for line in lines if line.startswith(mark)]
    return markdown(["run", "what it says"], rows, texts=2) if rows else ""
