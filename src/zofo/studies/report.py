"""`report.md`: what a study found, how its settings were chosen, and what failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from zofo.errors import RunError
from zofo.filesystem import atomic_write_text
from zofo.overrides import format_overrides
from zofo.studies.config import MethodSpec, StudyConfig
from zofo.studies.frames import as_score, as_time, curve_frame, markdown, result_frame, write_frames
from zofo.studies.grid import Grid
from zofo.studies.load import Study
from zofo.studies.report_tables import Scores, contrast_table, difference_table, score_table
from zofo.studies.result import BLOWN_UP
from zofo.studies.selection import Choices, Outcomes, Selection
from zofo.studies.trial import Run
from zofo.training import environment


def write_results(
    study: Study,
    runs: Sequence[Run],
    outcomes: Outcomes,
    choices: Choices,
    folder: Path,
    outdated: Mapping[str, str] | None = None,
) -> None:
    """Write the tables, the figures that the study asks for, and the report.

    Args:
        study: as it was read.
        runs: trials, and the final runs that are known.
        outcomes: of those runs that are done.
        choices: the setting of each method in each cell.
        folder: of the study.
        outdated: results that were made again, by folder: what has changed; None for none.

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
    finals = [run for run in runs if run.trial is None]
    parts = [
        *_head(study, runs, outcomes, choices.values()),
        *_tables(config, Scores(study.grid, finals, outcomes, choices)),
        *(f"![{path.stem}]({path.relative_to(folder).as_posix()})" for path in figures if path.suffix != ".pdf"),
        *_choosing(study.grid, choices),
        *_started(study.grid.starts, outcomes),
        *_failures([*study.grid.starts, *runs], outcomes),
        *_made_again(outdated or {}),
        *_versions(),
    ]
    try:
        atomic_write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    except OSError as error:
        raise RunError(f"cannot write the report into {str(folder)!r}: {error.strerror}") from error


def _head(study: Study, runs: Sequence[Run], outcomes: Outcomes, choices: Iterable[Selection]) -> Iterator[str]:
    config = study.config
    yield f"# {study.name}"
    if config.about:
        yield config.about
    distinct = {run.digest: run for run in runs}
    done = [outcomes[digest] for digest in distinct if digest in outcomes]
    missing = len(distinct) - len(done)
    seconds = sum(outcome.seconds + outcome.evaluation.get("seconds", 0) for outcome in done)
    seeds = ", ".join(map(str, config.seeds))
    own = any(contender.budget is not None for contender in config.methods.values())
    same = "Every final run has the same budget" if not own else "Final runs have the same budget, but for those below"
    lines = [f"- {same}: {config.budget}. Seeds: {seeds}."]
    if config.budget.steps is not None:
        lines.append("- A step costs some methods more queries than others: the tables say how many.")
    lines.append(f"- {len(done)} runs, {as_time(seconds)} of training and evaluation.")
    for name, contender in config.methods.items():
        if contender.budget is not None:
            lines.append(f"- **{name} has a budget of its own: {contender.budget}.**")
    older = {outcome.made_from.note: outcome for outcome in done if outcome.config.get("model")}
    lines += [f"- Some of the runs are of an older version; {note}." for note in older if note]
    if missing or any(not choice.done for choice in choices):
        lines.append("- **Not all runs are done: the tables below are of those that are.**")
    lines += [f"- {note}" for note in study.notes]
    lines += ["- Scores are those after the last step of a run, not the best along it."]
    yield "\n".join(lines)
    rows = [[name, format_overrides(one.tree) + _whose_setting(one)] for name, one in config.methods.items()]
    rows += [["(all)", format_overrides(config.base.tree)]] if config.base.tree else []
    yield markdown(["method", "what it is"], rows, texts=2)


def _whose_setting(contender: MethodSpec) -> str:
    return "" if contender.setting_of is None else f", with the setting of {contender.setting_of}"


def _tables(config: StudyConfig, scores: Scores) -> Iterator[str]:
    """A table of scores for each model and each value of the axes, and below it the tests in pairs."""
    yield f"## Scores on {config.measure}"
    n = len(config.seeds)
    several = (
        f"Mean over {n} seeds, or over as many runs as a cell says, ± half of its 95 % interval (Student's t, one "
        "degree of freedom fewer than runs)."
    )
    yield (
        f"{several if n > 1 else 'One seed: no interval can be given, and a difference may be chance.'} Accuracy, F1, "
        f"Matthews correlation and the like are in percent. Queries, forwards, backwards and seconds are of training"
        f"{', the mean of one run' if n > 1 else ''}; a query is one forward pass of one example, whoever asks."
    )
    for title, cells in scores.groups():
        if title:
            yield f"### {title}"
        yield score_table(scores, cells)
        if scores.any_ended(cells):
            yield _DIVERGED
        if config.reference is not None:
            table, notes = difference_table(scores, cells, config.reference)
            yield f"Differences from {config.reference} in pairs of the same task and seed; + is better:"
            yield table
            yield notes
    if config.contrast is not None:
        yield f"## What {config.contrast} changes"
        yield from contrast_table(scores, config.contrast)


_DIVERGED = (
    "*Not all runs have a score.* A run diverged if a loss was not finite, or if its loss on validation after the last "
    f"step is more than {BLOWN_UP} times that before training (where that is known: of a problem, or of the untrained "
    "model as a row). Both kinds are counted alike and are in no mean, interval or pair: the mean is of the runs that "
    "did not diverge, and says less for a method the more of them did. A run that anything else ended says nothing of "
    "its method and is made again."
)


def _choosing(grid: Grid, choices: Choices) -> Iterator[str]:
    yield "## How the settings were chosen"
    config = grid.config
    if config.search is None:
        yield "Every method has one setting, that of the study's file. Nothing was searched."
        return
    by = "lowest loss" if config.search.by == "loss" else "best score"
    seeds = ", ".join(map(str, config.search.seeds))
    count = len(next(iter(choices.values())).trials) if choices else 0
    yield (
        f"Each method that is searched tried {count} settings in each cell, {_budgets(grid)}, with seed {seeds}. The "
        f"one with the {by} on validation after the last step was chosen (of several seeds, the mean). A setting with "
        "a trial whose loss was not finite is the worst. No trial was scored on the test split."
    )
    single = [name for name in config.methods if not config.tried(name)]
    if single:
        yield f"One setting only, and no search: {_listed(single)}."
    for searched in config.methods:
        if controls := config.controls(searched):
            yield f"With the setting chosen for `{searched}` in the same cell, and no search: {_listed(controls)}."
    rows, waiting = [], []
    for choice in choices.values():
        rows += [_trial_row(choice, number) for number in range(len(choice.trials))]
        if choice.done and choice.chosen is None:
            rows.append([choice.method, str(choice.cell), "every trial diverged: no final run", "", "", ""])
        if choice.accident is not None:
            names = ", ".join([choice.method, *config.controls(choice.method)])
            waiting.append(f"- **{names} {choice.cell}: no final runs yet.** A trial failed: {choice.accident}")
    if rows:
        yield markdown(["method", "where", "setting", "validation loss", "validation score", ""], rows, texts=3)
    if waiting:
        yield "Trials that failed by accident are made again the next time, and only then is a setting chosen:"
        yield "\n".join(waiting)


def _listed(names: Sequence[str]) -> str:
    """Names of methods, which may hold commas themselves."""
    return ", ".join(f"`{name}`" for name in names)


def _budgets(grid: Grid) -> str:
    """The length of a trial; where methods have one of their own, with theirs."""
    assert grid.config.search is not None
    common = grid.config.search.budget
    searched = [name for name, contender in grid.config.methods.items() if contender.trials]
    own = [f"{name} {grid.trial_budget(name)}" for name in searched if grid.trial_budget(name) != common]
    return f"{common} each" + (f" ({', '.join(own)})" if own else "")


def _trial_row(choice: Selection, number: int) -> list[str]:
    trial = choice.trials[number]
    loss = f"{trial.loss:.4g}" if trial.loss is not None else trial.state
    score = "" if trial.score is None or trial.metric == "loss" else as_score(trial.score, trial.metric)
    return [choice.method, str(choice.cell), trial.setting, loss, score, "chosen" if number == choice.chosen else ""]


def _started(starts: Sequence[Run], outcomes: Outcomes) -> Iterator[str]:
    """The runs that methods start from, and what they took, which no table of scores counts."""
    if not starts:
        return
    yield "## What methods start from"
    rows = []
    for run in starts:
        outcome = outcomes.get(run.digest)
        what = [run.method.removeprefix("start "), str(run.cell)]
        if outcome is None or outcome.failed:
            rows.append([*what, "failed" if outcome else "not done", "", "", ""])
            continue
        score = as_score(outcome.scores["validation"]["score"], outcome.metric)
        counts = [f"{outcome.counts[name]:,}" for name in ("queries", "backwards")]
        rows.append([*what, f"{outcome.metric} {score}", *counts, as_time(outcome.seconds)])
    yield markdown(["start", "where", "on validation rows of its tasks", "queries", "backwards", "seconds"], rows, 3)
    yield (
        "What a start took is not in the queries and seconds of the methods that start from it. Each was made once: "
        "the intervals of these methods leave out how much another seed of the start would change."
    )


def _failures(runs: Sequence[Run], outcomes: Outcomes) -> Iterator[str]:
    failed = [(run, outcome) for run in runs if (outcome := outcomes.get(run.digest)) and outcome.failed]
    if not failed:
        return
    yield "## What failed"
    rows = [[str(run), outcome.failed["error"], outcome.failed["message"]] for run, outcome in failed if outcome.failed]
    yield markdown(["run", "error", "message"], rows, texts=3)


def _made_again(outdated: Mapping[str, str]) -> Iterator[str]:
    if outdated:
        yield "## What was made again"
        yield "Results of other content than there is now are in no table. They are in `outdated/`."
        yield markdown(["run", "what has changed"], [[name, what] for name, what in outdated.items()], texts=2)


def _versions() -> Iterator[str]:
    found = environment()
    yield "## Versions"
    yield ", ".join(f"{name} {version}" for name, version in found.items())
