"""What a study says of differences: verdicts, what could have been seen, corrections, and edges of a grid."""

import math

import numpy
import pytest
import yaml
from scipy import stats

from zofo.errors import ConfigError
from zofo.significance import detectable, holm, paired
from zofo.studies import read_study
from zofo.studies.selection import edges_of


def test_holms_correction_is_that_of_the_definition():
    p_values = [0.01, None, 0.04, 0.03, 0.005]
    # sorted .005 .01 .03 .04: times 4 3 2 1 = .02 .03 .06 .04, and no smaller than the one before
    assert holm(p_values) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06), pytest.approx(0.02)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holms_correction_keeps_the_chance_of_any_false_finding():
    draw = numpy.random.default_rng(3)
    false = sum(min(holm(list(draw.uniform(size=6)))) < 0.05 for _ in range(4000))
    assert false / 4000 == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


def test_a_detectable_difference_is_found_four_times_of_five():
    """By simulation: 8 pairs whose true difference is what 8 pairs of that spread can show."""
    draw, n, trials = numpy.random.default_rng(4), 8, 4000
    half = detectable(list(draw.normal(size=n)))
    assert half > 0
    quantiles = stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)
    samples = draw.normal(loc=quantiles / math.sqrt(n), size=(trials, n))
    found = (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).sum()
    assert found / trials == pytest.approx(0.8, abs=0.03)  # the shifted t is an approximation


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([0.05, 0.06, 0.055], None, "better"),
        ([-0.05, -0.06, -0.055], None, "worse"),
        ([0.05, -0.06, 0.02], None, "open"),
        ([0.05, -0.06, 0.02], 0.02, "open"),
        ([0.001, -0.001, 0.0005], 0.02, "equal"),
        ([0.010, 0.011, 0.0105], 0.02, "equal"),  # surely better, and surely by less than matters
        ([0.05], 0.1, "open"),
    ],
)
def test_a_verdict_is_what_the_interval_says(differences, margin, verdict):
    found = paired(differences, [0.0] * len(differences))
    assert found.verdict(margin) == verdict


@pytest.mark.parametrize(
    ("tried", "chosen", "edges"),
    [
        ([{"method": {"rule": {"lr": lr}}} for lr in (1e-5, 1e-4, 1e-3)], 1, []),
        ([{"method": {"rule": {"lr": lr}}} for lr in (1e-5, 1e-4, 1e-3)], 2, ["method.rule.lr"]),
        ([{"method": {"rule": {"lr": lr}}} for lr in (1e-5, 1e-5)], 0, []),
        (
            [{"method": {"rule": {"lr": lr}}} for lr in ("1e-5", "1e-4", "1e-3")],
            0,
            ["method.rule.lr"],
        ),  # as YAML has it
        ([{"task": {"flag": True}}, {"task": {"flag": 1}}, {"task": {"flag": 2}}], 0, []),
        ([{"method": {"lr": 1, "noise": "a"}}, {"method": {"lr": 2, "noise": "b"}}], 0, ["method.lr"]),
    ],
)
def test_a_choice_at_the_edge_of_the_grid_is_marked(tried, chosen, edges):
    assert edges_of(tried, chosen) == edges


def test_a_seed_of_the_search_is_no_seed_of_the_final_runs(tmp_path):
    def read(seeds):
        trials = [{"method.rule.lr": 1e-3}, {"method.rule.lr": 1e-4}]
        study = {
            "defaults": {"problem": "digits"},
            "methods": {"mezo": {"method": "mezo", "trials": trials}},
            "budget": {"steps": 4},
            "seeds": [0, 1],
            "search": {"budget": {"steps": 2}, "seeds": seeds},
        }
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        return read_study(tmp_path / "study.yaml")

    with pytest.raises(ConfigError, match=r"search.seeds: 1 is a seed of final runs") as refused:
        read([1])
    assert "search: {seeds: [2]}" in refused.value.hint
    assert {run.seed for run in read([2]).grid.trials} == {2}
