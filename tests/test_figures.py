"""Figures: the numbers that are drawn, and files whose bytes depend on the data alone."""

import math
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from zofo.studies import figures
from zofo.studies.figures import FigureConfig, draw

LOSSES = {"mezo": 1.0, "svrg": 0.5, "first-order": 0.25}


def table(methods=LOSSES, tasks=("digits",), sizes=("32", "64"), seeds=(0, 1, 2), splits=("train", "validation")):
    """Curves: the loss falls as scale / (1 + queries / 100), plus 0.01 a seed and 0.1 on validation."""
    rows = []
    for method, scale in dict(methods).items():
        for task in tasks:
            for size in sizes:
                for seed in seeds:
                    for steps in range(0, 50, 10):
                        queries = steps * int(size)
                        for split in splits:
                            loss = scale / (1 + queries / 100) + 0.01 * seed + 0.1 * (split == "validation")
                            rows.append(
                                {
                                    "method": method,
                                    "model": "",
                                    "task": task,
                                    "batch": size,
                                    "seed": seed,
                                    "trial": False,
                                    "steps": steps,
                                    "queries": queries,
                                    "split": split,
                                    "loss": loss,
                                    "score": 1 - loss,
                                }
                            )
    return pd.DataFrame(rows)


def losses_alone(methods=LOSSES, **shape):
    """Curves of one panel whose score is the loss, so that one file is drawn."""
    curves = table(methods, sizes=("32",), **shape)
    return curves.assign(score=curves["loss"])


RESULTS = pd.DataFrame([{"task": "digits", "metric": "accuracy"}, {"task": "digits", "metric": ""}])  # one failed


def study(axes=("batch",), methods=LOSSES, **figure):
    return SimpleNamespace(axes=dict.fromkeys(axes), methods=methods, figure=FigureConfig(**figure))


@pytest.fixture
def drawn(monkeypatch):
    """What is handed to the file: path name -> panels."""
    seen = {}

    def keep(panels, methods, label, options, path):
        seen[path.name] = SimpleNamespace(panels=panels, label=label)

    monkeypatch.setattr(figures, "_draw_file", keep)
    return seen


def test_each_axis_value_has_a_panel_and_each_method_a_line_of_the_mean_over_seeds(drawn, tmp_path):
    paths = draw(table(), RESULTS, study(), tmp_path)
    assert [path.name for path in paths] == ["loss.svg", "score.svg"] == list(drawn)
    assert drawn["loss.svg"].label == "train loss"
    assert drawn["score.svg"].label == "validation accuracy"
    assert list(drawn["loss.svg"].panels) == ["digits, batch 32", "digits, batch 64"]
    lines = drawn["loss.svg"].panels["digits, batch 64"]
    assert [line.method for line in lines] == list(LOSSES)
    assert lines[0].x == [0, 640, 1280, 1920, 2560]
    expected = [1 / (1 + q / 100) for q in lines[0].x]
    np.testing.assert_allclose(lines[0].mean, np.array(expected) + 0.01)
    np.testing.assert_allclose(lines[0].low, expected)
    np.testing.assert_allclose(lines[0].high, np.array(expected) + 0.02)
    score = drawn["score.svg"].panels["digits, batch 64"][0]
    np.testing.assert_allclose(score.mean, 1 - np.array(expected) - 0.11)


def test_the_interval_is_that_of_student(drawn, tmp_path):
    draw(table(), RESULTS, study(band="interval", x="steps", split="validation"), tmp_path)
    line = drawn["loss.svg"].panels["digits, batch 32"][1]
    values = [0.5 / (1 + 640 / 100) + 0.01 * seed + 0.1 for seed in range(3)]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert line.x == [0, 10, 20, 30, 40]
    assert (line.low[2], line.high[2]) == (pytest.approx(low), pytest.approx(high))
    assert drawn["loss.svg"].label == "validation loss"


def test_trials_are_not_drawn_and_a_score_that_is_the_loss_has_no_file_of_its_own(drawn, tmp_path):
    curves = table(sizes=("32",))
    curves["score"] = curves["loss"]
    trials = curves.copy()
    trials["trial"], trials["loss"] = True, 100.0
    (path,) = draw(pd.concat([trials, curves]), RESULTS, study(), tmp_path)
    assert path.name == "loss.svg"
    assert max(drawn["loss.svg"].panels["digits, batch 32"][0].high) < 2


def test_a_line_ends_with_the_first_of_its_runs(drawn, tmp_path):
    curves = table(sizes=("32",))
    broken = (curves["method"] == "svrg") & (curves["seed"] == 1)
    curves = curves[~(broken & (curves["steps"] > 20))]
    curves.loc[broken & (curves["steps"] == 20), "loss"] = math.inf
    draw(curves, RESULTS, study(), tmp_path)
    mezo, svrg, _ = drawn["loss.svg"].panels["digits, batch 32"]
    assert (len(mezo.x), mezo.ended) == (5, 0)
    assert (svrg.x, svrg.seeds, svrg.ended) == ([0, 320], 3, 1)
    assert svrg.mean[1] == pytest.approx(0.5 / 4.2 + 0.01)


def test_each_model_has_a_file_and_nothing_is_drawn_without_a_final_run(drawn, tmp_path):
    one, other = table(sizes=("32",)), table(sizes=("32",))
    one["model"], other["model"] = "a/b c", "plain"
    assert [path.name for path in draw(pd.concat([one, other]), RESULTS, study(), tmp_path)] == [
        "loss-a-b-c.svg",
        "score-a-b-c.svg",
        "loss-plain.svg",
        "score-plain.svg",
    ]
    one["trial"] = True
    assert draw(one, RESULTS, study(), tmp_path) == []


def texts(path):
    return [
        "".join(node.itertext())
        for node in ET.fromstring(path.read_text(encoding="utf-8")).iter()
        if "text" in node.tag
    ]


def test_the_file_names_its_panels_methods_seeds_and_band(tmp_path):
    loss, score = draw(table(), RESULTS, study(), tmp_path)
    for path, label in ((loss, "train loss"), (score, "validation accuracy")):
        shown = texts(path)
        assert {"digits, batch 32", "digits, batch 64", label, "queries of training", *LOSSES} <= set(shown)
        assert "Mean over 3 seeds; band: smallest to largest." in shown
    (one_seed,) = draw(losses_alone(seeds=(4,)), RESULTS, study(), tmp_path)
    assert "One seed: no band." in texts(one_seed)
    (interval,) = draw(losses_alone(seeds=(4, 5)), RESULTS, study(band="interval"), tmp_path)
    assert "Mean over 2 seeds; band: 95 % interval of the mean (Student's t)." in texts(interval)


def test_the_same_data_give_the_same_bytes_whatever_style_the_user_has(tmp_path):
    config = {key: mpl.rcParams[key] for key in mpl.rcParams if key != "backend"}
    curves, changed = losses_alone(), losses_alone({**LOSSES, "mezo": 1.1})
    (first,) = draw(curves, RESULTS, study(), tmp_path / "a")
    assert {key: mpl.rcParams[key] for key in config} == config
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 20, "svg.hashsalt": None}):
        (again,) = draw(curves, RESULTS, study(), tmp_path / "b")
    assert first.read_bytes() == again.read_bytes()
    (other,) = draw(changed, RESULTS, study(), tmp_path / "c")
    assert first.read_bytes() != other.read_bytes()
    assert not re.search(rb"\d{4}-\d\d-\d\d|<dc:date|matplotlib v", first.read_bytes())


def test_wide_ranges_have_logarithmic_axes_and_narrow_ones_do_not():
    from matplotlib.figure import Figure

    def scales(x, y, label="train loss"):
        axes = Figure().subplots()
        figures._scale(axes, [figures.Line("mezo", x, y, y, y, 1, 0)], label)
        return axes.get_xscale(), axes.get_yscale()

    assert scales([0, 10, 1000], [100, 1, 0.01]) == ("symlog", "log")
    assert scales([0, 10, 100], [3, 2, 1]) == ("linear", "linear")
    assert scales([0, 10, 1000], [0.01, 0.5, 0.9], "validation accuracy") == ("symlog", "linear")
    assert scales([0, 10, 1000], [100, 1, -0.01]) == ("symlog", "linear")
    assert scales([0], [100]) == ("linear", "linear")
    axes = Figure().subplots()
    figures._scale(axes, [figures.Line("mezo", [0, 20, 30000], [1, 1, 1], [], [], 1, 0)], "train loss")
    assert list(axes.get_xticks()) == [0, 10, 100, 1000, 10_000]


def test_a_line_that_diverges_leaves_its_panel_and_the_others_are_still_seen(tmp_path):
    curves = table(sizes=("32",))
    curves.loc[(curves["method"] == "svrg") & (curves["steps"] > 20), "loss"] = 1e30
    loss, score = draw(curves, RESULTS, study(), tmp_path)
    assert any(text.endswith("went above 3 times the largest loss at the start.") for text in texts(loss))
    assert not any("leaves a panel" in text for text in texts(score))
    from matplotlib.figure import Figure

    for y, scale, low in (([2, 1, 1e30], "linear", 0.75), ([2, 0.01, 1e30], "log", 0.01 / 1.5)):
        axes = Figure().subplots()
        figures._scale(axes, [figures.Line("svrg", [0, 1, 2], y, y, y, 1, 0)], "train loss")
        assert axes.get_yscale() == scale
        assert axes.get_ylim() == (pytest.approx(low), 6)


def test_the_untrained_model_is_a_horizontal_line_and_a_method_has_one_colour_in_all_panels(tmp_path):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    flat = figures._draw_line(axes, figures.Line("zero-shot", [0.0], [0.7], [0.7], [0.7], 3, 0), 0)
    assert list(flat.get_ydata()) == [0.7, 0.7]
    full = figures._draw_line(axes, figures.Line("mezo", [0.0, 1.0], [1, 0.5], [1, 0.4], [1, 0.6], 3, 1), 0)
    assert full.get_color() == flat.get_color()
    styles = set()
    for place in range(20):
        line = figures._draw_line(axes, figures.Line("m", [0.0, 1.0], [1, 1], [1, 1], [1, 1], 1, 0), place)
        styles.add((line.get_color(), line.get_linestyle()))
    assert len(styles) == 20


def test_a_figure_of_many_panels_and_one_without_axes_or_metric_is_drawn(tmp_path, monkeypatch):
    draw_file = figures._draw_file
    monkeypatch.setattr(figures, "_draw_file", lambda *given: given[-1].stem == "score" and draw_file(*given))
    curves = table(tasks=[f"task{i}" for i in range(5)], sizes=("32",)).drop(columns="batch")
    curves["model"] = None
    path = draw(curves, RESULTS.drop(columns="metric"), study(axes=()), tmp_path)[1]
    assert {f"task{i}" for i in range(5)} | {"validation score"} <= set(texts(path))


def test_the_defaults_are_those_of_true():
    assert FigureConfig() == FigureConfig(x="queries", split=None, band="range")
