"""The charts of a report, as Plotly figures; the page gives each run its colour."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zofo.report.runs import ReportedRun
from zofo.training.run_logs import MAXIMISED, told_of_step

AXES = {"queries": "queries of training", "steps": "steps", "seconds": "seconds"}
"""What curves can be drawn over."""
_POINTS = 300  # of a curve
_BINS = 30


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        figure: Plotly JSON, whose traces have in `meta` their run and, for a curve, its other axes.
        about: how to read it.
        switchable: whether its curves can be drawn over queries, steps or seconds.
    """

    name: str
    title: str
    figure: str
    about: str
    switchable: bool = False


def charts_of(runs: Sequence[ReportedRun], colours: Mapping[str, int]) -> list[Chart]:
    """Every chart for which the runs have data.

    Args:
        colours: index of the colour of each group.
    """
    made = [
        _evaluations(runs, colours, "score"),
        _evaluations(runs, colours, "loss"),
        *(_training(runs, colours, what) for what in ("loss", *MAXIMISED)),
        _treatment(runs, colours),
        _slopes(runs, colours),
        *(_bars(runs, colours, name, title, unit) for name, title, unit in _COSTS),
    ]
    return [chart for chart in made if chart is not None]


_COSTS = (("seconds", "Seconds of training", 1.0), ("peak_bytes", "Peak memory (GiB)", 1 / 2**30))


def _evaluations(runs: Sequence[ReportedRun], colours: Mapping[str, int], what: str) -> Chart | None:
    """The score or the loss on validation along each run, for its main model."""
    traces, names = [], []
    for run in runs:
        places, points = _places(run), []
        key = run.metric if what == "score" else "loss"
        if what == "score" and key == "loss":
            continue
        for line in run.evaluations:
            if line["variant"] == run.variant and _finite(line.get(key)):
                points.append((line[key], {**places.get(line["steps"], {}), "steps": line["steps"]}))
        if points:
            names.append(key)
            traces.append(_curve(run, colours, points, "lines+markers"))
    title = "Loss on validation" if what == "loss" else f"{' / '.join(dict.fromkeys(names)).capitalize()} on validation"
    layout = {"yaxis": {"tickformat": ".0%"}} if what == "score" else {}
    return _chart(f"validation-{what}", title, traces, "Each point is an evaluation.", True, layout)


def _training(runs: Sequence[ReportedRun], colours: Mapping[str, int], what: str) -> Chart | None:
    """Block means of the training loss, or of the reward or score."""
    traces = []
    for run in runs:
        steps = [line for line in run.steps if told_of_step(line)[0] == what and _finite(line[what])]
        size = max(1, math.ceil(len(steps) / _POINTS))
        blocks = [steps[start : start + size] for start in range(0, len(steps), size)]
        points = [(math.fsum(one[what] for one in block) / len(block), _place(block[-1])) for block in blocks]
        if points:
            traces.append(_curve(run, colours, points, "lines"))
    title = f"{what.capitalize()} of the training batches"
    return _chart(f"training-{what}", title, traces, "Means over neighbouring steps.", True)


def _treatment(runs: Sequence[ReportedRun], colours: Mapping[str, int]) -> Chart | None:
    """The distance of theta from its start, if the log has it."""
    traces = []
    for run in runs:
        lines = [one for one in run.events if one["event"] in ("step", "treatment") and _finite(one.get(_DISTANCE))]
        places = _places(run)
        thin = lines[:: max(1, len(lines) // _POINTS)]
        points = [(one[_DISTANCE], _place(one) if "step" in one else places.get(one["steps"], {})) for one in thin]
        if points:
            traces.append(_curve(run, colours, points, "lines"))
    about = "As a share of the length that the moved weights had at the start."
    return _chart("distance", "How far the backbone has moved", traces, about, True)


_DISTANCE = "backbone_distance"


def _slopes(runs: Sequence[ReportedRun], colours: Mapping[str, int]) -> Chart | None:
    """Distribution of the projected gradients of all steps."""
    traces = []
    for run in runs:
        values = [v for line in run.steps for k, v in line.items() if k.startswith("projected_gradient") and _finite(v)]
        if len(values) > 1 and min(values) < max(values):
            low, high = min(values), max(values)
            width = (high - low) / _BINS
            counts = Counter(min(_BINS - 1, int((value - low) / width)) for value in values)
            x = [low + (number + 0.5) * width for number in range(_BINS)]
            y = [counts[number] / len(values) for number in range(_BINS)]
            traces.append(
                {
                    "type": "bar",
                    "x": _short(x),
                    "y": _short(y),
                    "name": run.name,
                    "meta": _meta(run, colours),
                    "opacity": 0.6,
                }
            )
    about = "The share of all slopes that zeroth-order steps found along their directions."
    return _chart("slopes", "Projected gradients", traces, about, layout={"barmode": "overlay"})


def _bars(runs: Sequence[ReportedRun], colours: Mapping[str, int], name: str, title: str, unit: float) -> Chart | None:
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [run.name],
            "x": _short([run.summary[name] * unit]),
            "name": run.name,
            "meta": _meta(run, colours),
            "showlegend": False,
        }
        for run in runs
        if run.summary.get(name)
    ]
    layout = {"yaxis": {"automargin": True, "autorange": "reversed"}}
    return _chart(name, title, traces, "Of the whole process, as the run measured it.", layout=layout)


def _curve(
    run: ReportedRun, colours: Mapping[str, int], points: Sequence[tuple[float, Mapping[str, Any]]], mode: str
) -> dict[str, Any]:
    axes = {axis: [place.get(axis) for _, place in points] for axis in AXES}
    return {
        "type": "scatter",
        "mode": mode,
        "name": run.name,
        "x": axes["queries"],
        "y": _short([value for value, _ in points]),
        "meta": _meta(run, colours) | {"axes": axes},
    }


def _meta(run: ReportedRun, colours: Mapping[str, int]) -> dict[str, Any]:
    return {"colour": colours[run.group]}


def _chart(
    name: str,
    title: str,
    traces: Sequence[dict[str, Any]],
    about: str,
    switchable: bool = False,
    layout: Mapping[str, Any] | None = None,
) -> Chart | None:
    """A chart checked by Plotly; None if there is nothing to show."""
    if not traces:
        return None
    import plotly.graph_objects as go  # takes a while

    figure = go.Figure(data=list(traces), layout=dict(layout or {}))
    return Chart(name, title, safe_json(json.loads(figure.to_json())), about, switchable)


def safe_json(content: Any) -> str:
    """JSON that is safe inside a script of a page."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _places(run: ReportedRun) -> dict[int, dict[str, Any]]:
    """Queries and seconds after each number of steps."""
    return {0: {"queries": 0, "steps": 0, "seconds": 0}} | {line["step"] + 1: _place(line) for line in run.steps}


def _place(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"queries": line.get("queries"), "steps": line["step"] + 1, "seconds": line.get("seconds")}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(values: Sequence[float]) -> list[float]:
    """Rounded to five significant digits, so that a page with many curves stays small."""
    return [float(f"{value:.5g}") for value in values]
