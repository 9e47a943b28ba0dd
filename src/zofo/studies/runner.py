"""Run a study: first trials, then final runs of the chosen settings; it can be stopped and resumed at any time."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from zofo.errors import RunError
from zofo.studies.frames import as_time
from zofo.studies.grid import Grid
from zofo.studies.load import Study
from zofo.studies.process_pool import Workers
from zofo.studies.report import write_results
from zofo.studies.result import Outcome
from zofo.studies.selection import Selection, choices_of, final_runs
from zofo.studies.store import Content, Store, check_same_content
from zofo.studies.trial import StudyRun
from zofo.training.evaluation import as_score
from zofo.training.progress import log_console, say


@dataclass(frozen=True)
class StudyResult:
    """The results of a study so far.

    Args:
        folder: folder with `report.md`, `results.csv`, `results.parquet`, `curves.csv`, and a subfolder for each run.
        done: number of finished runs.
        failed: how many of these failed.
        missing: number of runs that are not done.
    """

    folder: Path
    done: int
    failed: int
    missing: int


def run_study(
    study: Study, folder: Path, console: Console | None = None, jobs: int = 1, remote_code: bool = False
) -> StudyResult:
    """Make all remaining runs of a study, and write its results.

    Trials are made first. In each cell the setting of each method with the best mean on validation is chosen for the
    final runs. A failed run is recorded, and the others continue; if a trial failed for an external reason, the final
    runs of its method wait until it is made again.

    Args:
        folder: folder of the study; its finished runs are kept.
        console: where progress is shown; by default nowhere.
        jobs: number of runs at a time, each in its own process; 1 makes them in this one.

    Returns:
        What was found.

    Raises:
        ZofoError: a mistake in the study, found before anything runs; the folder cannot be used; or every run failed.
    """
    grid = study.grid
    console, content = console or log_console(), content_of(study, folder, remote_code)
    store = Store(folder, content, lambda text: say(console, f"warning: {text}"))
    grid.check()
    with store.locked():
        changed = store.claim(study.name, study.config.model_dump(mode="json"))
        progress = _Progress(console, store, grid)
        progress.begin(study, changed, content)
        try:
            with Workers(jobs, remote_code) as workers:
                progress.make(grid.starts, workers)
                progress.make(grid.trials, workers)
                choices = choices_of(grid, progress.outcomes)
                progress.waiting(study, choices.values())
                progress.make(final_runs(grid, choices), workers)
        except KeyboardInterrupt:
            progress.interrupted()
            raise
        result = report_study(study, folder)
    if result.failed == result.done:
        failed = next(outcome.failed for outcome in progress.outcomes.values() if outcome.failed)
        hint = "; ".join(filter(None, (failed.get("hint"), f"see {folder / 'report.md'}")))
        raise RunError(f"all {result.failed} runs failed, the first with: {failed['message']}", hint)
    return result


def report_study(study: Study, folder: Path) -> StudyResult:
    """Write the results of the finished runs, and make none.

    Raises:
        RunError: there is no study, an outcome is damaged, or the folder cannot be written; or all results belong to an
            earlier version of the study, whose report is kept.
    """
    store, grid = Store(folder), study.grid
    store.check_study(study.name)
    choices = choices_of(grid, store.outcomes(grid.trials))
    runs = [*grid.trials, *final_runs(grid, choices)]
    outcomes = store.outcomes([*grid.starts, *runs])
    if not outcomes and store.count:
        raise RunError(
            f"{str(folder)!r} holds {store.count} results, and none of them is of the study as it is now",
            "put back what has changed since, such as the folder of a model; or type the command again without "
            "--report-only to make them again",
        )
    check_same_content([*grid.starts, *runs], outcomes)
    # final runs whose setting is not chosen yet are not known, but will be as many as those of any setting
    undone = {place for place, choice in choices.items() if not choice.done}
    waiting = [(name, cell) for name, cell in grid.entries if (grid.config.searched(name), cell) in undone]
    unknown = sum(len(grid.seeds(name)) for name, _ in waiting)
    settings = [(name, cell, number) for name, cell in waiting for number in range(len(grid.config.tried(name)))]
    possible = itertools.chain.from_iterable(grid.finals(*setting) for setting in settings)
    dropped = store.dropped([*grid.starts, *runs, *possible])
    write_results(study, runs, outcomes, choices, folder, store.outdated(), dropped)
    missing = len({run.digest for run in [*grid.starts, *runs]}) - len(outcomes) + unknown
    return StudyResult(folder, len(outcomes), sum(one.failed is not None for one in outcomes.values()), missing)


def content_of(study: Study, folder: Path, remote_code: bool) -> Content:
    """What the runs of a study would be made from now."""
    return Content(folder / "runs", remote_code, study.config.split == "test")


def known_runs(grid: Grid, store: Store) -> tuple[dict[str, StudyRun], dict[str, Outcome]]:
    """Starts, trials, and final runs by digest, with the first setting if none is chosen yet; and the finished
    outcomes."""
    outcomes = store.outcomes([*grid.starts, *grid.trials])
    chosen = final_runs(grid, choices_of(grid, outcomes))
    known = {(run.method, run.cell) for run in chosen}
    finals = [*chosen, *(run for run in grid.final_runs if (run.method, run.cell) not in known)]
    runs: dict[str, StudyRun] = {}
    for run in [*grid.starts, *grid.trials, *finals]:
        runs.setdefault(run.digest, run)  # the same run may stand in several places
    return runs, outcomes | store.outcomes(finals)


class _Progress:
    """Makes runs, records their outcomes, and prints a line about each."""

    def __init__(self, console: Console, store: Store, grid: Grid) -> None:
        self._console, self._store = console, store
        self._whole = {run.digest for run in grid.starts}  # which others need
        self._keeps = grid.config.keep_weights
        runs, self.outcomes = known_runs(grid, store)
        self._total, self._done = len(runs), sum(outcome.is_final for outcome in self.outcomes.values())
        self._left = sum(_work(run) for run in runs.values() if not self._is_done(run))
        self._seconds, self._made = 0.0, 0

    def begin(self, study: Study, changed: bool, content: Content) -> None:
        """Print what there is to do, and which kept results are outdated or unknown."""
        for note in study.notes:
            self._say(note)
        if changed and self._done < self._total:
            text = f"the study has changed since it was last run here: {self._done} of its {self._total} runs are kept"
            self._say(f"{text}, {self._total - self._done} are new")
        elif self._done:
            self._say(f"{self._done} of {self._total} runs are done already")
        for what, count in Counter(self._store.changed.values()).items():
            self._say(f"{count} runs are made again: {what}")
        for name, why in content.unread.items():
            self._say(f"{name} and others like it are kept, but not compared with what there is now: {why}")

    def make(self, runs: Sequence[StudyRun], workers: Workers) -> None:
        """Make those runs that are not done."""
        for run in runs:
            self.outcomes.pop(run.digest, None)  # what a run starts from may have been made again
        self.outcomes |= self._store.outcomes(runs)
        todo = [run for run in {run.digest: run for run in runs}.values() if not self._is_done(run)]
        last = time.perf_counter()
        for run in workers.make(todo, self._store):
            now = time.perf_counter()
            self._over(run, now - max(last, workers.ready))
            last = now

    def waiting(self, study: Study, choices: Iterable[Selection]) -> None:
        """Print which final runs are not made yet, and why."""
        for choice in choices:
            if choice.transient_failure is not None:
                controls = "".join(f" and those of {name}" for name in study.config.controls(choice.method))
                self._say(
                    f"{choice.method} {choice.cell}: its final runs{controls} wait for a trial that failed by accident "
                    f"({choice.transient_failure}); type the same command again to make it again"
                )

    def _over(self, run: StudyRun, seconds: float) -> None:
        """Read the outcome of a run, print it, and delete weights that are not needed."""
        outcome = self._store.outcome(run, compared=False)
        assert outcome is not None
        self.outcomes[run.digest] = outcome
        if not self._keeps and run.digest not in self._whole:
            self._store.drop_weights(run)
        self._left, self._done = self._left - _work(run), self._done + 1
        if outcome.counts.get("queries"):  # those that only read say nothing of how long training takes
            self._seconds, self._made = self._seconds + seconds, self._made + _work(run)
        left = f"; about {as_time(self._seconds / self._made * max(0, self._left))} left" if self._made else ""
        self._say(f"[{self._done}/{self._total}] {run}: {_describe(outcome)}{left}")

    def interrupted(self) -> None:
        """Print what is done, and how to resume."""
        kept = f"{self._done} of {self._total} runs are done and kept in {self._store.folder}"
        self._say(f"interrupted: {kept}; type the same command again to resume")

    def _is_done(self, run: StudyRun) -> bool:
        found = self.outcomes.get(run.digest)
        return found is not None and found.is_final

    def _say(self, text: str) -> None:
        say(self._console, text)


def _work(run: StudyRun) -> int:
    """The relative amount of work of a run, in no unit: its queries, or else its steps."""
    training = run.tree["training"]
    return int(training["max_queries"] or training["steps"])


def _describe(outcome: Outcome) -> str:
    """The outcome of a run in a few words."""
    if outcome.failed:
        hint = outcome.failed.get("hint")
        return f"failed: {outcome.failed['message']}" + (f"; hint: {hint}" if hint else "")
    score = as_score(outcome.scores["validation"]["score"], outcome.metric)
    return f"{outcome.score_title} {score} on validation, {outcome.counts['queries']} queries, {outcome.seconds:.0f} s"
