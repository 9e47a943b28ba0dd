"""Figures of a study: loss and score along the runs, over their true number of queries."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zofo.significance import t_quantile
from zofo.studies.config import FigureConfig
from zofo.studies.result import INNER

if TYPE_CHECKING:  # both take long to import, and a study without a figure needs neither
    import pandas as pd
    from matplotlib.axes import Axes

    from zofo.studies.config import StudyConfig

# Okabe and Ito's colours, which can be told apart by everyone; yellow is left out, since it is too light for a line
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", ":", "-.")
_ACROSS = 3  # panels per row
_WIDE, _HIGH = 4.2, 3.2  # of a panel, in inches
_TALLEST = 3  # times the largest initial loss: higher values are cut off, or they would hide everything else
_LOG_FROM = 30  # ratio of the largest to the smallest number above 0 from which an axis is logarithmic
_STYLE: Any = {"svg.hashsalt": "zofo", "svg.fonttype": "none", "font.size": 9}  # the salt: the same names in every file


@dataclass(frozen=True)
class Line:
    """One method in one panel.

    Args:
        mean: over the seeds, at each x.
        seeds: how many runs it is the mean of.
        ended: how many runs ended early, so that the line stops.
    """

    method: str
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int
    ended: int


def draw(curves: pd.DataFrame, results: pd.DataFrame, config: StudyConfig, folder: Path) -> list[Path]:
    """Draw the curves of the final runs.

    For each model one file of losses, one of scores unless these are losses, and one of the losses of the inner problem
    if methods have one. A file has a panel for each task and each value of further axes, with a line for each method:
    the mean over seeds, with a band. A method that is evaluated only once, such as the untrained model, is a horizontal
    line. A line ends where the first of its runs does. The same data give the same bytes.

    Args:
        curves: one row per evaluation: method, model, task, a column per axis, seed, trial, steps, queries, split,
            loss, score.
        results: one row per run, with the name of its `metric`.
        config: the study, for the names of its axes and methods and the options of the figure.

    Returns:
        The files, SVG.
    """
    options = config.figure or FigureConfig()
    final = curves[~curves["trial"].astype(bool)].copy()
    for column in ("model", "task", *config.axes):
        final[column] = final[column].fillna("").astype(str)
    methods = list(dict.fromkeys(name for name in (*config.methods, *final["method"]) if name in set(final["method"])))
    metrics = dict(results[results["metric"] != ""][["task", "metric"]].values) if "metric" in results else {}
    paths = []
    for model, own in final.groupby("model", sort=False):
        scored, inner = own[own["split"] != INNER], own[own["split"] == INNER]
        for what, where in (("loss", scored), ("score", scored), ("loss", inner)):
            if where.empty:
                continue
            shown = _of_one_split(where, what, None if where is inner else options.split)
            if what == "score" and (shown["score"] == shown["loss"]).all():
                continue
            names = {metrics.get(task, what) for task in shown["task"].unique()}
            label = names.pop() if what == "score" and len(names) == 1 else what
            panels = {title: _lines(part, what, methods, options) for title, part in _panels(shown, list(config.axes))}
            panels = {title: lines for title, lines in panels.items() if lines}
            if panels:
                kind = f"{INNER}-{what}" if where is inner else what
                name = "-".join(filter(None, [kind, re.sub(r"[^A-Za-z0-9._]+", "-", model).strip("-.")]))
                paths.append(folder / f"{name}.svg")
                _draw_file(panels, methods, f"{shown['split'].iloc[0]} {label}", options, paths[-1])
    return paths


def _of_one_split(curves: pd.DataFrame, what: str, split: str | None) -> pd.DataFrame:
    """The evaluations for a figure."""
    there = list(curves["split"].unique())
    wanted = [split] if split else ["train", "validation"] if what == "loss" else ["validation", "train"]
    return curves[curves["split"] == next((name for name in wanted if name in there), there[0])]


def _panels(curves: pd.DataFrame, axes: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each panel's title and evaluations, in order of appearance."""
    columns = ["task", *axes]
    for values, part in curves.groupby(columns, sort=False, dropna=False):
        yield ", ".join(filter(None, [values[0], *map(" ".join, zip(axes, values[1:], strict=True))])), part


def _lines(curves: pd.DataFrame, what: str, methods: Sequence[str], options: FigureConfig) -> list[Line]:
    """A line for each method with a finite value."""
    lines = []
    finite = curves[curves[what].map(math.isfinite)]
    for method in methods:
        own = finite[finite["method"] == method]
        if own.empty:
            continue
        columns = {"n": ("seed", "nunique"), "x": (options.x, "mean"), "low": (what, "min"), "high": (what, "max")}
        steps = own.groupby("steps").agg(**columns, mean=(what, "mean"), sem=(what, "sem"))
        seeds = own["seed"].nunique()
        whole = steps[steps["n"] == seeds]
        if options.band == "interval" and seeds > 1:
            half = whole["sem"] * t_quantile(seeds)
            whole = whole.assign(low=whole["mean"] - half, high=whole["mean"] + half)
        shown = {name: whole[name].tolist() for name in ("x", "mean", "low", "high")}
        lines.append(Line(method, **shown, seeds=seeds, ended=int(seeds - steps["n"].iloc[-1])))
    return lines


def _draw_file(
    panels: dict[str, list[Line]], methods: Sequence[str], label: str, options: FigureConfig, path: Path
) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    across = min(len(panels), _ACROSS)
    down = math.ceil(len(panels) / across)
    with mpl.rc_context():  # without pyplot, so that no figure of the caller's is touched
        mpl.rcdefaults()  # independent of the user's style
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=(max(across * _WIDE, 5.5), down * _HIGH + 1), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False).flatten()
        handles: dict[str, Any] = {}
        for axes, (title, lines) in zip(grid, panels.items(), strict=False):
            for line in lines:
                handles.setdefault(line.method, _draw_line(axes, line, methods.index(line.method)))
            _scale(axes, lines, label)
            axes.set_title(title)
            axes.set_xlabel(f"{options.x} of training")
            axes.set_ylabel(label)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        shown = [method for method in methods if method in handles]
        figure.legend([handles[m] for m in shown], shown, loc="outside upper center", ncols=min(len(shown), 4))
        figure.supxlabel(_caption(panels, label, options), fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _draw_line(axes: Axes, line: Line, place: int) -> Any:
    """Draw a line in its method's colour, the same in all panels; returns its legend handle."""
    colour, dash = _COLOURS[place % len(_COLOURS)], _DASHES[place // len(_COLOURS) % len(_DASHES)]
    if len(line.x) < 2:
        return axes.axhline(line.mean[0] if line.mean else math.nan, color=colour, linestyle=dash, linewidth=0.9)
    axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    (drawn,) = axes.plot(line.x, line.mean, color=colour, linestyle=dash, linewidth=1.4)
    if line.ended:
        axes.plot(line.x[-1:], line.mean[-1:], color=colour, marker="x", linestyle="none")
    return drawn


def _scale(axes: Axes, lines: Sequence[Line], label: str) -> None:
    """Logarithmic axes if values span more than a decade and a half; the start, at 0, stays visible."""
    x = [value for line in lines for value in line.x if value > 0]
    if x and max(x) > _LOG_FROM * min(x):
        first, last = math.floor(math.log10(min(x))), math.floor(math.log10(max(x)))
        axes.set_xscale("symlog", linthresh=10**first, linscale=0.6)
        axes.set_xticks([0, *(10**decade for decade in range(first, last + 1))])
    if not label.endswith("loss"):
        return
    top = _top(lines)
    y = [value for line in lines for value in line.mean if value <= top]
    logarithmic = bool(y) and min(y) > 0 and max(y) > _LOG_FROM * min(y)
    if logarithmic:
        axes.set_yscale("log")
    if any(_leaves(line, top) for line in lines):
        least = min(y)
        axes.set_ylim(least / 1.5 if logarithmic else least - 0.05 * (top - least), top)


def _top(lines: Sequence[Line]) -> float:
    """The largest loss to show in a panel."""
    starts = [line.mean[0] for line in lines if line.mean]
    return _TALLEST * max(starts) if starts and max(starts) > 0 else math.inf


def _leaves(line: Line, top: float) -> bool:
    return any(value > top for value in line.mean)


def _caption(panels: dict[str, list[Line]], label: str, options: FigureConfig) -> str:
    """The explanation of lines and bands."""
    lines = [line for panel in panels.values() for line in panel]
    seeds = sorted({line.seeds for line in lines})
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    band = "smallest to largest" if options.band == "range" else "95 % interval of the mean (Student's t)"
    parts = ["One seed: no band."] if seeds == [1] else [f"Mean over {over} seeds; band: {band}."]
    if any(line.ended for line in lines):
        parts.append("x: a run ended there, and with it the line.")
    if label.endswith("loss") and any(_leaves(line, _top(panel)) for panel in panels.values() for line in panel):
        parts.append(f"What leaves a panel at the top went above {_TALLEST} times the largest loss at the start.")
    return " ".join(parts)
