"""A report as a single self-contained HTML page that needs no network."""

from __future__ import annotations

import base64
import functools
import gzip
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from zofo.errors import RunError
from zofo.filesystem import atomic_write_text
from zofo.objectives import OBJECTIVES, REWARDS
from zofo.report.charts import AXES, charts_of
from zofo.report.comparison import compare_runs
from zofo.report.runs import ReportedRun
from zofo.training.before_after import NUMBERS, read_samples
from zofo.training.evaluation import as_number, as_score
from zofo.training.run_logs import ScoredExample
from zofo.training.run_record import SAMPLES

_FILES = Path(__file__).parent / "files"
_WORST = 5
_SAMPLES = 12  # answers before and after
_MOST_LABELS = 12  # of a confusion matrix


def write_report(runs: Sequence[ReportedRun], file: Path, refresh: int | None = None) -> None:
    """Write the page.

    Args:
        refresh: seconds after which an open page reloads, while runs are active; None for never.

    Raises:
        RunError: the file cannot be written.
    """
    tasks: dict[str, list[ReportedRun]] = {}
    for run in runs:
        metrics = {one.score_name for one in runs if one.task == run.task}
        tasks.setdefault(f"{run.task}, by {run.score_name}" if len(metrics) > 1 else run.task, []).append(run)
    sections = [_section(number, task, own) for number, (task, own) in enumerate(tasks.items())]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((_FILES / "report.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        several=len(tasks) > 1,
        sections=sections,
        refresh=refresh,
        axes=AXES,
        style=(_FILES / "report.css").read_text(encoding="utf-8"),
        script=(_FILES / "report.js").read_text(encoding="utf-8"),
        plotly=_packed_plotly(),
    )
    try:
        atomic_write_text(file, page)
    except OSError as error:
        raise RunError(
            f"cannot write the report {str(file)!r}: {error.strerror}", "name another file with -o"
        ) from error


@functools.cache
def _packed_plotly() -> str:
    """Plotly for the browser, gzipped and in Base64: 2 MB of the page instead of 4.8."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _section(number: int, task: str, runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """The part of the page about the runs of one task."""
    colours = {group: place for place, group in enumerate(dict.fromkeys(run.group for run in runs))}
    compared = compare_runs(runs) if len(runs) > 1 else None
    split = compared.split if compared else "test" if runs[0].scores("test") else "validation"
    return {
        "number": number,
        "task": task,
        "split": split,
        "rows": [_row(run, split, colours) for run in runs],
        "means": compared.means if compared else [],
        "metric": runs[0].score_name,
        "compared": compared,
        "charts": charts_of(runs, colours),
        "runs": [_details(run, split) for run in runs],
        "names": [run.name for run in runs],
    }


def _row(run: ReportedRun, split: str, colours: Mapping[str, int]) -> dict[str, Any]:
    """The cells of a run in the table of results."""
    scores, summary = run.scores(split), run.summary
    interval = _interval(run, split)
    return {
        "name": run.name,
        "colour": colours[run.group],
        "state": run.state,
        "score": as_score(scores.get(run.metric), run.metric) + interval,
        "majority": as_score(scores.get("majority"), run.metric),
        "loss": as_number(scores.get("loss")),
        "steps": f"{len(run.steps):,}",
        "queries": f"{run.steps[-1]['queries']:,}" if run.steps else "0",
        "seconds": as_number(summary.get("seconds")),
        "memory": as_number(summary["peak_bytes"] / 2**30) if summary.get("peak_bytes") else "-",
        "distance": as_number(_distance(run)),
    }


def _interval(run: ReportedRun, split: str) -> str:
    """The 95 % Wilson interval of accuracy over examples; empty for other scores."""
    own = run.answered(split)
    if run.metric != "accuracy" or not own:
        return ""
    from scipy import stats

    right = sum(one.predicted[run.variant] in one.golds for one in own)
    found = stats.binomtest(right, len(own)).proportion_ci(method="wilson")
    return f" ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _distance(run: ReportedRun) -> float | None:
    """The last distance of the backbone from its start in the log."""
    found = [line["backbone_distance"] for line in run.events if line.get("backbone_distance") is not None]
    return found[-1] if found else None


def _details(run: ReportedRun, split: str) -> dict[str, Any]:
    """A single run: how to reproduce it, what it confused, and where it was most wrong."""
    own, variant = run.answered(split), run.variant
    known = [one for one in own if one.losses.get(variant) is not None]
    worst = sorted(known, key=lambda one: -float(one.losses[variant] or 0))[:_WORST]
    return {
        "name": run.name,
        "state": run.state,
        "command": command_of(run),
        "settings": [(key, value) for key, value in run.settings.items() if value not in (None, {}, [])],
        "confusion": _confusion(own, variant),
        "concluded": run.conclusions,
        "changed": _changed(run),
        "samples": read_samples(run.folder.path / SAMPLES)[:_SAMPLES] if run.summary else [],
        "worst": [
            {
                "where": one.where.rsplit("/", 1)[-1],
                "text": one.text,
                "right": one.right,
                "said": one.said(variant),
                "loss": as_number(one.losses[variant]),
            }
            for one in worst
        ],
    }


def _changed(run: ReportedRun) -> list[tuple[str, str, str]]:
    """The effect of a reward, before and after; empty for other runs."""
    both = run.summary.get("before_after", {})
    known = [(NUMBERS[name], *values) for name, values in both.items() if name in NUMBERS and None not in values]
    return [(name, as_number(before), as_number(after)) for name, before, after in known]


def command_of(run: ReportedRun) -> str:
    """The command that reproduces the run, including its reward, as far as known, which no configuration contains."""
    objective = str(run.folder.identity.objective or "")
    own = objective == run.settings.get("training.objective") or (objective in OBJECTIVES and objective not in REWARDS)
    parts = [] if own or not objective else objective.split(" + ")
    packaged = all(part.partition(":")[0].partition("*")[0] in REWARDS for part in parts)
    reward = "".join(f" --reward {shlex.quote(part)}" for part in parts) if packaged else ""
    reward += "" if packaged else f" --reward FILE.py:NAME  # the reward {objective}"
    return f"zofo train {shlex.quote(str(run.folder.path / 'config.yaml'))} output_dir=runs/again{reward}"


def _confusion(examples: Sequence[ScoredExample], variant: str) -> dict[str, Any] | None:
    """The confusion matrix of labels; None if the examples do not share a few labels."""
    labels = [label.strip() for label in examples[0].candidates] if examples and not examples[0].answers else []
    same = all([label.strip() for label in one.candidates] == labels for one in examples)
    if not same or not 1 < len(labels) <= _MOST_LABELS:
        return None
    counts = [[0] * len(labels) for _ in labels]
    for one in examples:
        for gold in one.golds[:1]:
            counts[gold][int(one.predicted[variant])] += 1
    rows = [
        (label, [(count, count / sum(row) if sum(row) else 0.0) for count in row])
        for label, row in zip(labels, counts, strict=True)
    ]
    return {"labels": labels, "rows": rows}
