"""The statistics and the tables of a study, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from zofo.errors import RunError
from zofo.significance import detectable, holm, interval, paired
from zofo.studies import read_study
from zofo.studies.frames import as_p, as_time, markdown
from zofo.studies.report import write_results
from zofo.studies.result import Outcome
from zofo.studies.selection import choices_of, final_runs
from zofo.training.evaluation import as_score

# statistics


def test_an_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.302652729749464 / math.sqrt(3), rel=1e-12)  # t(0.975, 2), and s = 1
    values = [0.3, 0.7, 0.2, 0.9, 0.55]
    low, high = stats.t.interval(0.95, 4, np.mean(values), np.std(values, ddof=1) / np.sqrt(5))
    assert interval(values).half == pytest.approx((high - low) / 2, rel=1e-12)


def test_one_value_has_no_interval_and_none_has_no_mean():
    assert (interval([4.0]).mean, interval([4.0]).half) == (4.0, None)
    assert math.isnan(interval([]).mean)


def test_a_95_percent_interval_holds_the_mean_in_95_percent_of_samples():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 4))
    held = sum(abs(found.mean - 3.0) <= found.half for found in map(interval, draws.tolist()))
    assert abs(held / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_pairs_are_tested_by_their_differences():
    first, second = [0.5, 0.8, 0.6, 0.9, 0.7], [0.4, 0.6, 0.3, 0.5, 0.2]
    differences = np.subtract(first, second)
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(5))
    found = paired(first, second)
    assert found.difference.mean == pytest.approx(0.3)
    assert found.t_test == pytest.approx(2 * stats.t.sf(t, 4), rel=1e-9)
    assert found.wilcoxon == pytest.approx(2 / 2**5)  # all five positive: two of 32 patterns of signs are so extreme
    assert (found.wins, found.losses) == (5, 0)
    other = paired(second, first)
    assert (other.t_test, other.wins, other.losses) == (pytest.approx(found.t_test), 0, 5)


@pytest.mark.parametrize(
    ("first", "second", "t_test", "wilcoxon"),
    [
        ([1.0], [0.5], None, None),
        ([], [], None, None),
        ([1.0, 2.0], [1.0, 2.0], None, None),
        ([1.5, 2.5], [1.0, 2.0], None, 0.5),
    ],
)
def test_pairs_without_a_spread_have_no_t_test(first, second, t_test, wilcoxon):
    found = paired(first, second)
    assert (found.t_test, found.wilcoxon) == (t_test, wilcoxon)


# numbers as they are read


def test_equal_differences_are_equal_however_they_are_rounded():
    """28 - 25, 31 - 28 and 100 - 97 of 300 differ in their last bits."""
    found = paired([28 / 300, 31 / 300, 100 / 300], [25 / 300, 28 / 300, 97 / 300])
    assert found.t_test is None
    assert (found.wins, found.losses) == (3, 0)
    same = paired([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert (same.wins, same.losses, same.t_test, same.wilcoxon) == (0, 0, None, None)


def test_shares_are_in_percent_and_losses_have_four_digits():
    assert as_score(0.85249, "accuracy") == "85.2"
    assert as_score(-0.031, "matthews") == "-3.1"
    assert as_score(0.000123456, "loss") == "0.0001235"
    assert [as_p(value) for value in (None, 0.0004, 0.05)] == ["-", "< 0.001", "0.050"]
    assert [as_time(value) for value in (0.1, 45, 600, 9000)] == ["0.1 s", "45 s", "10 min", "2.5 h"]


def test_a_table_is_aligned_and_a_bar_inside_it_is_a_text():
    assert markdown(["", "x"], [["a|b", "1"], ["c", "10.5"]]).splitlines() == [
        "|      |    x |",
        "|------|-----:|",
        "| a\\|b |    1 |",
        "| c    | 10.5 |",
    ]


# the report

TASKS = {"sst2": None, "rte": None}
STUDY = {
    "about": "Which is better?",
    "defaults": {"model": "somewhere/tiny"},
    "budget": {"queries": 320},
    "seeds": [0, 1, 2],
    "tasks": TASKS,
    "methods": {
        "mezo": {"method": {"name": "mezo"}, "trials": [{"method.rule.lr": 1e-3}, {"method.rule.lr": 1e-4}]},
        "lora": {"method": {"name": "first-order"}, "trials": [{"method.lr": 1e-3}, {"method.lr": 1e-2}]},
    },
    "search": {"budget": {"queries": 32}},
    "zero_shot": True,
    "baseline": "mezo",
}
SCORES = {  # by method and task, of seeds 0, 1, 2
    ("zero-shot", "sst2"): [0.50, 0.50, 0.50],
    ("zero-shot", "rte"): [0.55, 0.55, 0.55],
    ("mezo", "sst2"): [0.80, 0.82, 0.84],
    ("mezo", "rte"): [0.60, 0.61, 0.65],
    ("lora", "sst2"): [0.90, 0.91, 0.95],
    ("lora", "rte"): [0.58, 0.70, 0.71],
    ("control", "sst2"): [0.90, 0.92, 0.96],
    ("control", "rte"): [0.58, 0.70, 0.71],
}
FAILED = {"error": "NonFiniteError", "message": "the loss was not finite"}


ACCIDENT = {"error": "MemoryError", "message": "MemoryError: no room"}


def outcome(run, failed=(), blown=(), accidents=(), first=(), metric="accuracy", positive_label=""):
    """`failed`, `blown` and `accidents` are final runs by (method, task, seed), or trials by (method, task), as are
    `first` those of which the first is the best, and not the last."""
    place = (run.method, run.cell.task, run.seed)[: 3 if run.trial is None else 2]
    if place in failed or place in accidents:
        return Outcome(config=run.tree, failed=FAILED if place in failed else ACCIDENT)
    splits = {
        "validation": {
            "score": 0.5,
            "loss": 0.7 + (0.1 if place in first else -0.1) * (run.trial or 0),
            "majority": 0.5,
        }
    }
    if place in blown:
        splits["validation"]["loss"] = 7.1
    if run.trial is None:
        score = SCORES[run.method, run.cell.task][run.seed]
        splits["test"] = {"score": score, "loss": 1.4 - 1.5 * score, "majority": 0.52 + 0.01 * run.seed}
    queries = 0 if run.method == "zero-shot" else run.tree["training"]["max_queries"]
    counts = {"forwards": queries // 16, "backwards": 0 if run.method == "mezo" else queries // 16, "queries": queries}
    curve = [{"steps": 1, "queries": queries, "split": "validation", "loss": 0.6, "score": 0.5}]
    made = Outcome(run.tree, metric, True, splits, 1, counts, {"seconds": 1.0}, 12.0, curve)
    return replace(made, positive_label=positive_label)


def outcome_of_a_run(scores):
    return Outcome({"method": {"name": "bilevel"}}, "accuracy", True, scores, 1, {"queries": 1})


@pytest.fixture
def report(tmp_path):
    """The lines of the report of a study whose outcomes are given."""

    def make(content=STUDY, without=(), **how):
        path = tmp_path / "made-up.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        study = read_study(path)
        trials = {run.digest: outcome(run, **how) for run in study.grid.trials}
        choices = choices_of(study.grid, trials)
        finals = final_runs(study.grid, choices)
        made = {
            run.digest: outcome(run, **how) for run in finals if (run.method, run.cell.task, run.seed) not in without
        }
        write_results(study, [*study.grid.trials, *finals], {**trials, **made}, choices, tmp_path)
        return (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()

    return make


def row(lines, *starts):
    """The cells of the first row that begins so."""
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if tuple(cells[: len(starts)]) == starts and len(cells) > 2:
            return cells
    raise AssertionError(f"no row {starts}")


def test_the_table_has_a_row_for_each_method_and_a_column_for_each_task(report):
    lines = report()
    assert row(lines, "", "sst2 (accuracy)")[1:] == [
        "sst2 (accuracy)",
        "rte (accuracy)",
        "average",
        "queries",
        "forwards",
        "backwards",
        "seconds",
        "peak GiB",
    ]
    half = 100 * interval([0.80, 0.82, 0.84]).half
    average = interval([0.70, 0.715, 0.745])
    cells = row(lines, "mezo", f"82.0 ± {half:.1f}")
    assert cells[3:] == [f"{100 * average.mean:.1f} ± {100 * average.half:.1f}", "320", "20", "0", "12 s", "-"]
    assert row(lines, "majority")[1:4] == ["53.0", "53.0", "53.0"]
    assert row(lines, "zero-shot")[1] == "50.0 ± 0.0"


def test_an_f1_says_of_which_label_it_is(report):
    lines = report(metric="f1", positive_label="spam")
    assert row(lines, "", "sst2 (f1 of 'spam')")
    asked = STUDY | {"defaults": {**STUDY["defaults"], "task.positive_label": "negative"}}
    assert row(report(asked, metric="f1"), "", "sst2 (f1 of 'negative')")  # an outcome of an older version
    assert row(report(metric="f1"), "", "sst2 (f1)")


def test_a_further_model_of_the_runs_of_a_method_has_rows_of_its_own(tmp_path):
    """Some outcomes are of an older version that did not write it; trials have one row each."""
    path = tmp_path / "made-up.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    study = read_study(path)
    trials = {run.digest: outcome(run) for run in study.grid.trials}
    choices = choices_of(study.grid, trials)
    finals, made = final_runs(study.grid, choices), {}
    for run in finals:
        one = made[run.digest] = outcome(run)
        if run.method == "lora" and (run.cell.task, run.seed) != ("rte", 2):
            other = {split: {**scores, "score": scores["score"] - 0.25} for split, scores in one.scores.items()}
            made[run.digest] = replace(one, variants={"lower_adapter": other}, folder=run.id)
    write_results(study, [*study.grid.trials, *finals], {**trials, **made}, choices, tmp_path)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    cells = row(lines, "lora, lower adapter")
    assert cells[1].startswith("67.0 ± ")
    assert cells[2].startswith("39.0 ± ")
    assert cells[2].endswith("(n = 2)")
    assert cells[3:] == ["-", "", "", "", "", ""]
    assert sum("lora, lower adapter" in line for line in lines) == 1  # no test of it
    results = pd.read_csv(tmp_path / "results.csv")
    own = results[results["method"] == "lora, lower adapter"]
    assert len(own) == 5
    assert not own["trial"].any()
    assert list(own["score"]) == pytest.approx([0.65, 0.66, 0.70, 0.33, 0.45])
    assert set(own["run"]) < set(results["run"])


def test_an_outcome_without_further_models_can_be_read(tmp_path):
    one = outcome_of_a_run({"validation": {"score": 0.5, "loss": 0.7}})
    both = replace(one, variants={"lower_adapter": one.scores})
    for written in (one, both):
        written.write(tmp_path)
        assert Outcome.read(tmp_path).variants == written.variants
    content = json.loads((tmp_path / "outcome.json").read_text(encoding="utf-8"))
    del content["variants"]
    (tmp_path / "outcome.json").write_text(json.dumps(content), encoding="utf-8")
    assert Outcome.read(tmp_path).variants == {}
    (tmp_path / "outcome.json").write_text(json.dumps({**content, "variants": {"s": {"test": {}}}}), encoding="utf-8")
    with pytest.raises(RunError, match="damaged"):
        Outcome.read(tmp_path)


def test_the_treatment_and_the_memory_of_runs_stand_beside_their_scores(tmp_path):
    path = tmp_path / "made-up.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    study = read_study(path)
    trials = {run.digest: outcome(run) for run in study.grid.trials}
    choices = choices_of(study.grid, trials)
    finals, made = final_runs(study.grid, choices), {}
    for run in finals:
        told = {"gradient_squared": [4.0 + run.seed, 1.0], "spread_squared": [8.0, 0.125], "backbone_distance": 0.001}
        told["predicted_descent"] = 0.02 if run.method == "mezo" else None
        measured = told if run.method != "zero-shot" else {}
        said = ["a note", f"warning: training diverged: {run.seed}"] if run.method == "lora" else []
        own = {"treatment": measured, "peak_bytes": 2**29 * (1 + run.seed), "conclusions": said}
        made[run.digest] = replace(outcome(run), **own)
    write_results(study, [*study.grid.trials, *finals], {**trials, **made}, choices, tmp_path)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert row(lines, "mezo", "sst2", "3")[3:] == ["5 to 1", "8 to 0.125", "0.02", "0.001"]
    assert row(lines, "lora", "rte", "3")[3:] == ["5 to 1", "8 to 0.125", "-", "0.001"]
    assert row(lines, "zero-shot")[-1] == "1.00"
    warned = "\n".join(lines[lines.index("## What runs warned of") :])
    for run in finals:
        assert bool(re.search(rf"\| {re.escape(str(run))} +\| training diverged: {run.seed} ", warned)) == (
            run.method == "lora"
        )
    assert "a note" not in warned
    results = pd.read_csv(tmp_path / "results.csv").set_index(["method", "task", "seed"])
    one = results[results["trial"] == False].loc[("mezo", "rte", 2)]  # noqa: E712
    assert (one["treatment_gradient_squared_first"], one["treatment_backbone_distance"]) == (6.0, 0.001)
    assert one["peak_bytes"] == 1.5 * 2**30


def p_values_of_all_pairs():
    """Of the t-tests of single tasks in both tables: the losses of `outcome` are linear in the scores."""
    methods = [(method, task) for method in ("zero-shot", "lora") for task in TASKS]
    return 2 * [paired(SCORES[method, task], SCORES["mezo", task]).t_test for method, task in methods]


def test_differences_are_in_pairs_of_the_same_task_and_seed(report):
    lines = report()
    one = paired(SCORES["lora", "rte"], SCORES["mezo", "rte"])
    cells = row(lines, "lora", "rte", "3")
    assert cells[3:] == [
        f"+{100 * one.difference.mean:.1f} ± {100 * one.difference.half:.1f}",
        one.verdict(None),
        f"{100 * one.detectable:.1f}",
        "2 / 1",
        as_p(one.t_test),
        as_p(holm(p_values_of_all_pairs())[3]),
        "-",
    ]
    every = [SCORES[method, "sst2"] + SCORES[method, "rte"] for method in ("lora", "mezo")]
    both = paired(*every)
    cells = row(lines, "lora", "all tasks", "6")
    assert cells[6:] == ["5 / 1", as_p(both.t_test), "-", as_p(both.wilcoxon)]
    assert both.t_test == pytest.approx(stats.ttest_rel(*every).pvalue)
    assert both.wilcoxon == pytest.approx(stats.wilcoxon(np.subtract(*every)).pvalue)
    text = "Tests: 12; p (Holm) is corrected for the number of t-tests of single tasks in both tables."
    assert any(text in line for line in lines)


def test_losses_are_compared_in_pairs_too_where_they_are_another_number(report, tmp_path):
    lines = report()
    place = lines.index("Differences of loss from mezo in pairs of the same task and seed; + is better, a lower loss:")
    results = pd.read_csv(tmp_path / "results.csv").query("not trial").set_index(["method", "task", "seed"])
    losses = [[-results.test_loss[method, "rte", seed] for seed in range(3)] for method in ("lora", "mezo")]
    found = paired(*losses)
    cells = row(lines[place:], "lora", "rte", "3")
    assert cells[3].startswith(f"{found.difference.mean:+.4g} ± ")
    assert cells[4:7:2] == [found.verdict(None), f"{found.wins} / {found.losses}"]


def test_scores_and_losses_have_margins_of_their_own(report):
    """The interval of the scores lies within 0.2; that of the losses, 1.5 times as large, within 0.3."""

    def verdicts(**margins):
        lines = report({**STUDY, **margins})
        place = next(number for number, line in enumerate(lines) if line.startswith("Differences of loss"))
        told = next(line for line in lines if line.startswith("Differences are means"))
        parts = (lines[:place], lines[place:])
        return [row(part, "lora", "rte", "3")[4] for part in parts], told.partition("; ")[2].partition(". ")[0]

    assert verdicts() == (["open", "open"], "`open` where it holds 0")
    score, loss = "within ±0.2 of the score", "within ±0.3 nats of the loss"
    said = "`equal` where it is {}, else `open` where it holds 0"
    assert verdicts(margin=0.2) == (["equal", "open"], said.format(score))
    assert verdicts(margin_loss=0.3) == (["open", "equal"], said.format(loss))
    both = f"{score}, or {loss.removeprefix('within ')}"
    assert verdicts(margin=0.2, margin_loss=0.3) == (["equal", "equal"], said.format(both))


@pytest.mark.parametrize("other", [["lora"], ["lora", "zero-shot"]])
def test_losses_by_another_scoring_are_not_compared(report, monkeypatch, other):
    plain = outcome

    def scored(run, **how):
        made = plain(run, **how)
        scoring = "channel" if run.method in other else "mean"
        return replace(made, config={**made.config, "task": {"scoring": scoring}})

    monkeypatch.setitem(globals(), "outcome", scored)
    lines = report()
    title = "Differences of loss from mezo in pairs of the same task and seed; + is better, a lower loss:"
    assert (title in lines) == (len(other) == 1)
    if title in lines:
        losses = lines[lines.index(title) :]
        assert row(losses, "lora", "rte")[2:6] == ["0", "-", "-", "-"]
        assert row(losses, "zero-shot", "rte")[2] == "3"
    said = "Losses by another `task.scoring` than that of mezo are another quantity, and are not compared."
    assert any(said in line for line in lines)
    assert row(lines, "lora", "rte", "3")


def test_of_a_loss_less_is_better(tmp_path):
    content = {
        "defaults": {"problem": {"name": "least-squares", "examples": 40, "dimensions": 4}},
        "budget": {"steps": 1},
        "seeds": [0, 1],
        "methods": {"good": {"method": {"name": "mezo"}}, "bad": {"method": {"name": "mezo", "batch_size": 8}}},
        "baseline": "bad",
    }
    path = tmp_path / "loss.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    study = read_study(path)
    losses = {"good": [1.0, 2.0], "bad": [4.0, 4.0]}
    made = {}
    for run in study.grid.final_runs:
        score = {"score": losses[run.method][run.seed], "loss": 0.0}
        counts = {"forwards": 1, "backwards": 0, "queries": 1}
        made[run.digest] = Outcome(run.tree, "loss", False, {"test": score, "validation": score}, 1, counts)
    write_results(study, study.grid.final_runs, made, {}, tmp_path)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    smallest = as_score(detectable([3.0, 2.0]), "loss")
    assert row(lines, "good", "least-squares", "2")[3:7] == ["+2.5 ± 6.353", "open", smallest, "2 / 0"]
    assert "Nothing was searched" in " ".join(lines)
    assert any("A step costs some methods more queries" in line for line in lines)


@pytest.mark.parametrize("how", ["failed", "blown"])
def test_a_run_that_diverged_is_counted_alike_however_it_ended(report, how):
    """With a loss that was not finite, or with more than ten times the untrained model's 0.7: the score is no other."""
    lines = report(**{how: [("lora", "rte", 1)]})
    two = interval([0.58, 0.71])
    cells = row(lines, "lora", f"92.0 ± {100 * interval(SCORES['lora', 'sst2']).half:.1f}")
    assert cells[2] == f"{100 * two.mean:.1f} ± {100 * two.half:.1f} (2 of 3, 1 diverged)"
    assert cells[3] == "-"  # no average over tasks
    assert row(lines, "lora", "rte", "2")
    text = " ".join(lines)
    assert "more than 10 times that before training" in text
    if how == "failed":
        assert row(lines, "lora tiny rte seed 1")[1:] == ["NonFiniteError", "the loss was not finite"]


def test_without_an_untrained_model_only_a_loss_that_is_not_finite_tells(report):
    content = {**STUDY, "zero_shot": False}
    assert "diverged)" not in " ".join(report(content, blown=[("lora", "rte", 1)]))
    assert "(2 of 3, 1 diverged)" in " ".join(report(content, failed=[("lora", "rte", 1)]))


@pytest.mark.parametrize(
    ("after", "before", "diverged"),
    [(7.0, 0.7, False), (7.01, 0.7, True), (1e30, None, False), (math.inf, None, True), (-0.4, -0.5, False)],
)
def test_a_loss_of_more_than_ten_times_the_first_is_divergence(after, before, diverged):
    """A loss below 0 is minus a score, and grows by no factor."""
    assert Outcome(scores={"validation": {"loss": after, "score": 0.5}}).diverged(before) is diverged


def test_what_a_problem_knows_of_its_start_is_in_its_curve():
    point = {"queries": 0, "split": "validation", "loss": 2.5, "score": 0.1}
    assert Outcome(curve=[{**point, "split": "train", "steps": 0}, {**point, "steps": 0}]).loss_before == 2.5
    assert Outcome(curve=[{**point, "steps": 8}]).loss_before is None


def test_every_cell_says_over_how_many_runs_it_is(report):
    lines = report(failed=[("lora", "rte", seed) for seed in range(3)], accidents=[("mezo", "sst2", 2)])
    assert row(lines, "lora", "92.0 ± 6.6")[2] == "- (0 of 3, 3 diverged)"
    assert row(lines, "mezo", f"81.0 ± {100 * interval([0.80, 0.82]).half:.1f} (2 of 3, 1 failed)")
    one = {**STUDY["methods"], "lora": {**STUDY["methods"]["lora"], "seeds": [1]}}
    assert row(report({**STUDY, "methods": one}), "lora", "91.0 (n = 1)")[3] == "80.5 (n = 1)"


def test_final_runs_wait_for_a_trial_that_failed_by_accident_but_not_for_one_that_diverged(report):
    lines = report(accidents=[("mezo", "sst2")])
    assert row(lines, "mezo", "tiny sst2", "method.rule.lr=0.001")[3] == "failed"
    assert "- **mezo tiny sst2: no final runs yet.** A trial failed: MemoryError: no room" in lines
    assert row(lines, "mezo", "-")[2].startswith("62.0")
    assert any("Not all runs are done" in line for line in lines)
    lines = report(failed=[("mezo", "sst2")])
    assert row(lines, "mezo", "tiny sst2", "method.rule.lr=0.001")[3] == "diverged"
    assert row(lines, "mezo", "tiny sst2", "every trial diverged: no final run")
    assert row(lines, "mezo", "every trial diverged")[2].startswith("62.0")
    assert not any("no final runs yet" in line or "Not all runs are done" in line for line in lines)


def test_a_run_that_is_not_done_is_missing_and_said_so(report):
    lines = report(without=[("mezo", "sst2", seed) for seed in range(3)])
    assert any("Not all runs are done" in line for line in lines)
    assert row(lines, "mezo", "-")[2].startswith("62.0")
    assert row(lines, "lora", "sst2", "0")[3:] == ["-"] * 7


def test_one_seed_has_no_interval_and_that_is_said(report):
    lines = report({**STUDY, "seeds": [1]})
    assert row(lines, "mezo", "82.0")[2:4] == ["61.0", "71.5"]
    assert any(line.startswith("One seed: no interval can be given") for line in lines)
    assert row(lines, "lora", "sst2", "1")[3:] == ["+9.0", "open", "-", "1 / 0", "-", "-", "-"]
    assert any("Tests: 4; p (Holm)" in line for line in lines)  # the pairs of both tasks, scores and losses


def test_every_trial_is_listed_with_the_one_that_was_chosen(report):
    lines = report()
    first = row(lines, "mezo", "tiny sst2", "method.rule.lr=0.001")
    second = row(lines, "mezo", "tiny sst2", "method.rule.lr=0.0001")
    assert (first[3:], second[3:]) == (["0.7", "50.0", ""], ["0.6", "50.0", "chosen, at the edge of method.rule.lr"])
    text = " ".join(lines)
    assert "Each method that is searched tried 2 settings in each cell, 32 queries each, with seed 1000." in text
    assert "No trial was scored on the test split." in text


def test_a_control_has_the_chosen_setting_of_its_method_in_the_report_and_the_results(report, tmp_path):
    """In each task that which was chosen there; where every trial diverged, the control has no final run either."""
    methods = {**STUDY["methods"], "control": {"method": {"name": "mezo", "batch_size": 4}, "tuned_by": "mezo"}}
    content = {**STUDY, "methods": methods}
    lines = report(content, first=[("mezo", "rte")])
    assert "With the setting chosen for `mezo` in the same cell, and no search: `control`." in lines
    assert any("method.name=mezo method.batch_size=4, with the setting of mezo" in line for line in lines)
    frame = pd.read_csv(tmp_path / "results.csv").query("not trial").set_index(["method", "task"])
    for task, rate in (("sst2", 0.0001), ("rte", 0.001)):
        for method in ("mezo", "control"):
            assert set(frame.loc[method, task].setting) == {f"method.rule.lr={rate}"}, (method, task)
    lines = report(content, failed=[("mezo", "rte")])
    assert row(lines, "control", "92.7 ± 7.6")[2] == "every trial diverged"
    assert not any(line.startswith("One setting only") for line in lines)
    frame = pd.read_csv(tmp_path / "results.csv").set_index("method")
    (control,) = {(row.setting, row.chosen, row.trial) for row in frame.loc["control"].itertuples()}
    assert control == ("method.rule.lr=0.0001", True, False)
    assert frame.loc["control"].seed.tolist() == [0, 1, 2]
    lines = report(content, accidents=[("mezo", "sst2")])
    assert row(lines, "control", "-")[2].startswith("66.3")
    assert "- **mezo, control tiny sst2: no final runs yet.** A trial failed: MemoryError: no room" in lines


def test_a_budget_of_its_own_is_marked(report):
    methods = {**STUDY["methods"], "lora": {**STUDY["methods"]["lora"], "budget": {"queries": 640}}}
    assert "- **lora has a budget of its own: 640 queries.**" in report({**STUDY, "methods": methods})


def test_a_search_says_the_budget_of_each_method(report):
    """A trial is no longer than a final run of its method."""
    methods = {**STUDY["methods"], "lora": {**STUDY["methods"]["lora"], "budget": {"queries": 16}}}
    text = " ".join(report({**STUDY, "methods": methods}))
    assert (
        "Each method that is searched tried 2 settings in each cell, 32 queries each (lora 16 queries), with seed 1000."
        in text
    )
    assert "Every final run has the same budget" not in text
