"""Runs side by side: paired tests against numbers worked out by hand, and the page."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from scipy import stats

from conftest import write_reviews
from test_treatment import configured, configuring  # noqa: F401  # a fixture
from zofo.cli import main
from zofo.errors import ConfigError, RunError
from zofo.report import compare_runs, comparison, read_runs, watch_run, write_report
from zofo.report.charts import safe_json
from zofo.report.page import command_of
from zofo.report.runs import grouped
from zofo.training import train
from zofo.training.run_logs import ScoredExample

EVIL = "</script><script>window.broken = 1</script><img src=x onerror=broken()>"


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    """Two runs of one task, by other methods."""
    folder = tmp_path_factory.mktemp("runs")
    make = configuring(model_folder, write_reviews(folder / "data"), folder)
    train(make("first", {"name": "mezo", "lr": 1e-3}, steps=4, treatment_steps=None, eval_steps=2))
    train(make("other", {"name": "first-order", "lr": 1e-2}, steps=4, treatment_steps=2, eval_steps=2))
    return folder


@pytest.fixture
def two(made, tmp_path):
    """A copy of the two runs, which a test may change."""
    return tuple(shutil.copytree(made / name, tmp_path / name) for name in ("first", "other"))


def answered(run, right, losses=None, groups=None):
    """The run, as if it had been right on some of as many examples as there are marks: `+` for right."""
    texts, losses = range(len(right)), losses or [0.5] * len(right)
    examples = [
        ScoredExample(
            *("validation", f"rows.csv:{i}", f"text {i}", ("no", "yes"), (1,), ()),
            groups[i] if groups else "",
            "",
            {run.variant: int(right[i] == "+")},
            {run.variant: losses[i]},
        )
        for i in texts
    ]
    return replace(run, examples=examples)


def test_two_runs_are_compared_example_by_example(two):
    first, other = read_runs(two)
    marks = ["++++----++" * 10, "+++++++-+-" * 10]
    losses = [[0.1 * (i % 7) for i in range(100)], [0.1 * (i % 5) for i in range(100)]]
    pair = compare_runs([answered(first, marks[0], losses[0]), answered(other, marks[1], losses[1])]).pairs[0]
    assert (pair.examples, pair.only_first, pair.only_second) == (100, 10, 30)
    assert pair.mcnemar == pytest.approx(stats.binomtest(10, 40).pvalue)
    assert pair.score.value == pytest.approx(0.2)
    apart = np.array([b == "+" for b in marks[1]], float) - np.array([a == "+" for a in marks[0]], float)
    error = apart.std() / 10
    assert pair.score.low == pytest.approx(0.2 - 1.96 * error, abs=0.02)
    assert pair.score.high == pytest.approx(0.2 + 1.96 * error, abs=0.02)
    assert pair.score.detectable == pytest.approx(2.8 * error, rel=0.1)
    assert pair.loss.value == pytest.approx(np.mean(losses[1]) - np.mean(losses[0]))
    assert pair.verdict.startswith("other is better than first by 20.0 points of accuracy (95 %: +")
    back = compare_runs([answered(other, marks[1]), answered(first, marks[0])]).pairs[0]
    assert back.score.high < 0
    assert back.verdict.startswith("other is better than first by 20.0 points of accuracy (95 %: +")  # not minus
    same = compare_runs([answered(first, marks[0]), answered(other, marks[0])]).pairs[0]
    assert (same.mcnemar, same.score.low, same.score.high) == (1.0, 0.0, 0.0)
    few = compare_runs([answered(first, "---+"), answered(other, "++++")]).pairs[0]
    assert few.score.is_clear  # a bootstrap of four examples is too sure
    assert few.verdict.startswith("no difference")
    assert same.verdict.startswith("no difference between other and first that 100 examples can show")


def test_another_score_than_accuracy_is_judged_by_its_own_interval(two, monkeypatch):
    """A model that never says the rare label, and one that does, with as many right answers: F1 differs alone."""
    monkeypatch.setattr(comparison, "RESAMPLES", 100)
    first, other = read_runs(two)
    examples = []
    for i in range(200):
        gold = int(i < 40)
        one, two_ = 0, int(i < 30 or 40 <= i < 70)  # 30 of the rare found, and 30 false alarms
        examples.append((gold, one, two_))

    def made(run, place):
        scored = [
            ScoredExample(
                *("validation", f"{i}", f"text {i}", ("no", "yes"), (row[0],), (), "", ""),
                *({run.variant: row[place]}, {run.variant: 0.5}),
            )
            for i, row in enumerate(examples)
        ]
        return replace(run, examples=scored, summary={**run.summary, "metric": "f1"})

    pair = compare_runs([made(first, 1), made(other, 2)]).pairs[0]
    assert pair.mcnemar > 0.9
    assert pair.score.value > 0.5
    assert pair.verdict.startswith("other is better than first")


def test_rows_of_a_group_are_drawn_together(two):
    """Ten groups of ten rows that are right together say as little as ten rows."""
    first, other = read_runs(two)
    marks = ["+" * 50 + "-" * 50, "+" * 70 + "-" * 30]
    groups = [str(i // 10) for i in range(100)]
    wide = compare_runs([answered(run, marks[i], groups=groups) for i, run in enumerate((first, other))]).pairs[0]
    narrow = compare_runs([answered(run, marks[i]) for i, run in enumerate((first, other))]).pairs[0]
    assert wide.score.value == narrow.score.value == pytest.approx(0.2)
    assert wide.score.high - wide.score.low > 2 * (narrow.score.high - narrow.score.low)


def test_what_cannot_be_compared_is_said(two, tmp_path):
    first, other = read_runs(two)
    found = compare_runs([answered(first, "+-"), replace(answered(other, "+-"), examples=[])])
    assert not found.pairs
    assert "other has no answers on validation" in found.notes[0]
    elsewhere = [replace(one, text="another", where=f"b/{one.where}") for one in answered(other, "+-").examples]
    found = compare_runs([answered(first, "+-"), replace(other, examples=elsewhere)])
    assert "none of their 2 and 2 is the same; first begins with rows.csv:0, other with b/rows.csv:0" in found.notes[0]
    changed = [replace(one, text="another", golds=(0,)) for one in answered(other, "+-").examples]
    found = compare_runs([answered(first, "+-"), replace(other, examples=changed)])
    assert not found.pairs
    assert "rows.csv:0 has another right answer in each" in found.notes[0]
    with pytest.raises(ConfigError, match="two runs or more"):
        compare_runs(two[:1])
    with pytest.raises(ConfigError, match="not on 'train'"):
        compare_runs(two, "train")
    with pytest.raises(RunError, match="given twice"):
        compare_runs([two[0], two[0]])
    with pytest.raises(RunError, match="not a run folder"):
        read_runs([tmp_path])


def test_the_same_rows_in_other_prompts_are_paired(two):
    first, other = (answered(run, marks) for run, marks in zip(read_runs(two), ("+--", "++-"), strict=True))
    asked = [replace(one, text=f"<user> {one.text}", candidates=(" No", " Yes")) for one in reversed(other.examples)]
    found = compare_runs([first, replace(other, examples=asked)])
    assert (found.pairs[0].examples, found.pairs[0].only_first, found.pairs[0].only_second) == (3, 0, 1)
    assert "the same 3 rows by other prompts, such as 'text 0' and '<user> text 0'" in found.notes[0]


def test_an_adapter_that_nothing_attaches_is_no_difference(two):
    assert "method.adapter.name" in read_runs([two[1]])[0].settings
    for file, here, there in (("config.yaml", ": adapter", ": all"), ("environment.json", '": "adapter', '": "all')):
        text = (two[1] / file).read_text(encoding="utf-8")
        (two[1] / file).write_text(text.replace(f"parameters{here}", f"parameters{there}"), encoding="utf-8")
    settings = read_runs([two[1]])[0].settings
    assert settings["method.parameters"] == "all"
    assert not [key for key in settings if key.startswith("method.adapter") or key == "output_dir"]


def test_what_follows_from_other_keys_is_no_difference_of_its_own(configured):  # noqa: F811
    """The number of directions and the rate follow from a population and its sigma, which were set."""
    methods = [
        {"name": "es", "population": 4, "estimator": {"epsilon": 1e-3}},
        {"name": "es", "population": 8, "estimator": {"epsilon": 2e-3}},
        {"name": "es", "population": 8, "estimator": {"epsilon": 2e-3}, "lr": 5e-4},
    ]
    one, two, three = (
        train(configured(str(number), method, steps=1, treatment_steps=None)).path
        for number, method in enumerate(methods)
    )
    settings = [("method.population", [4, 8]), ("method.estimator.epsilon", [1e-3, 2e-3])]
    assert sorted(compare_runs([one, two]).settings) == sorted(settings)
    assert compare_runs([two, three]).settings == [("method.rule.lr", [1e-3, 5e-4])]


def test_an_adapter_that_one_run_has_follows_from_nothing(configured):  # noqa: F811
    methods = [{"name": "es", "population": 4, "adapter": adapter} for adapter in (None, "lora")]
    runs = [
        train(configured(str(number), method, steps=1, treatment_steps=None)).path
        for number, method in enumerate(methods)
    ]
    assert ("method.adapter.name", [None, "lora"]) in compare_runs(runs).settings


def test_runs_that_differ_in_their_seeds_are_a_group(two, tmp_path):
    def seeds(run, scores):
        for seed, score in enumerate(scores):
            own = {run.variant: {**run.scores("validation"), "accuracy": score}}
            settings = {**run.settings, "training.seed": seed}
            name = f"{run.name} {seed}"
            yield replace(run, name=name, settings=settings, summary={**run.summary, "variants": own}, group="")

    first, other = read_runs(two)
    runs = grouped([*seeds(first, [0.6, 0.7, 0.65]), *seeds(other, [0.9, 0.95, 0.94])])
    assert [run.group for run in runs] == ["first 0"] * 3 + ["other 0"] * 3
    again = replace(runs[0], name="again")  # the same seed twice is one sample
    assert compare_runs([runs[0], again, *runs[1:]]).groups == compare_runs(runs).groups
    found = compare_runs(runs)
    assert [pair.name for pair in found.pairs] == ["other 0"]  # the seed of the first alone
    differences = [0.3, 0.25, 0.29]
    half = 100 * stats.t.ppf(0.975, 2) * stats.sem(differences)
    interval = f"95 % over 3 pairs of seeds: {28 - half:+.1f} to {28 + half:+.1f}"
    better = "other (3 seeds) is better than first (3 seeds) by 28.0 points of accuracy"
    assert found.groups[0].verdict == f"{better} ({interval})"
    assert [row["name"] for row in found.means] == ["first (3 seeds)", "other (3 seeds)"]
    open_ = compare_runs(grouped([*seeds(first, [0.6, 0.7, 0.65]), *seeds(other, [0.9, 0.6, 0.8])])).groups[0].verdict
    assert open_.startswith(
        "no difference between other (3 seeds) and first (3 seeds) that 3 seeds can show (95 % over 3 pairs"
    )
    write_report(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"<td>65.0 ± {100 * stats.t.ppf(0.975, 2) * stats.sem([0.6, 0.7, 0.65]):.1f}</td>" in page
    assert found.groups[0].verdict in page


@pytest.mark.parametrize(
    ("objective", "asked", "reward"),
    [
        ("classification", None, ""),
        ("brevity", "brevity", ""),
        ("brevity", None, " --reward brevity"),
        ("brevity*2 + regex:^a b$", None, " --reward 'brevity*2' --reward 'regex:^a b$'"),
        ("rewards.py:mine", None, " --reward FILE.py:NAME  # the reward rewards.py:mine"),
    ],
)
def test_the_command_that_makes_a_run_again_has_its_reward(two, objective, asked, reward):
    run = read_runs(two)[0]
    path = run.folder.path / "environment.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "objective": objective}), encoding="utf-8")
    run = replace(run, settings={**run.settings, "training.objective": asked}, folder=type(run.folder)(two[0]))
    assert command_of(run).endswith(f"config.yaml output_dir=runs/again{reward}")


def test_the_command_line_compares(two, capsys):
    typed("compare", *two)
    shown = capsys.readouterr().out
    assert re.search(r"method\.name +mezo +first-order", shown)
    assert "between other and first" in shown or "is better than" in shown
    typed("compare", *two, "--json")
    told = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in told["runs"]] == ["first", "other"]
    assert told["settings"]["method.name"] == ["mezo", "first-order"]
    assert told["pairs"][0]["examples"] == 4


def test_the_page_holds_everything_and_runs_no_text(two, tmp_path, capsys):
    lines = (two[0] / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    changed = [json.dumps({**json.loads(line), "text": EVIL}) for line in lines]
    (two[0] / "answers.jsonl").write_text("\n".join(changed) + "\n", encoding="utf-8")
    page = tmp_path / "page.html"
    typed("report", *two, "-o", page)
    assert str(page) in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 2.2e6
    packed = re.search(r'<script type="text/plain" id="plotly">(.*?)</script>', text)[1]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    write_report([replace(run, name=str(i)) for i in range(5) for run in read_runs(two)], page)  # ten of them
    assert page.stat().st_size < 2.6e6
    assert EVIL not in text
    assert "&lt;/script&gt;&lt;script&gt;window.broken" in text
    own = re.sub(
        r"<script>.*?</script>", "", text, flags=re.DOTALL
    )  # Plotly's source names addresses that it never asks
    assert not re.search(r"(src|href)=[\"']?(http|//)", own)
    assert "default-src 'none'" in text
    found = dict(re.findall(r'<script type="application/json" id="plot-0-([\w-]+)-data">(.*?)</script>', text))
    assert {"validation-score", "validation-loss", "training-loss", "slopes", "seconds", "peak_bytes"} <= found.keys()
    curve = json.loads(found["validation-score"])["data"]
    assert [trace["name"] for trace in curve] == ["first", "other"]
    assert curve[0]["meta"]["axes"]["steps"] == [2, 4]
    assert curve[0]["meta"]["axes"]["queries"] == [2 * 4 * 2, 4 * 4 * 2]
    assert json.loads(found["distance"])["data"][0]["y"][-1] == 0.0  # of the run that measured its treatment


def test_json_in_a_page_ends_no_script():
    assert "<" not in safe_json({"a": EVIL})
    assert json.loads(safe_json({"a": EVIL})) == {"a": EVIL}


def test_runs_that_go_on_or_were_stopped_or_are_of_other_tasks_are_said(two, tmp_path):
    (two[1] / "summary.json").unlink()  # as while it runs
    going = read_runs(two)
    assert going[1].state.startswith("has not ended")
    assert going[1].examples == []
    assert going[1].scores("validation")["accuracy"] == going[1].events[-1]["accuracy"]
    assert "other has not ended: it is going on, or was killed" in compare_runs(going).notes
    stopped = replace(going[0], summary={**going[0].summary, "stopped": "SIGTERM"}, task="another")
    write_report([stopped, going[1]], tmp_path / "page.html", refresh=10)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "was stopped: SIGTERM" in text
    assert "The runs are of different tasks" in text
    assert '<meta http-equiv="refresh" content="10">' in text
    with pytest.raises(RunError, match="cannot write the report"):
        write_report(going, tmp_path / "no" / "such" / "folder.html")


def test_a_run_is_followed_until_it_ends(two):
    """Its process is this one, which has its lock until it is done."""
    path, summary = two[0], (two[0] / "summary.json").read_bytes()
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "summary.json").unlink()
    (path / "metrics.jsonl").write_bytes(b"")
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        (path / "metrics.jsonl").write_bytes(b"".join(lines[: len(waits)]))
        if len(waits) == len(lines):
            (path / "summary.json").write_bytes(summary)

    with read_runs([path])[0].folder.locked():
        shown = list(watch_run(path, sleep))
    assert shown[0] == "no step is made yet"
    assert shown[1].startswith("step 1 of 4, loss ")
    assert "accuracy" in shown[-2]
    assert shown[-1] == "the run has ended"
    (path / "summary.json").unlink()
    assert list(watch_run(path, sleep))[-1].startswith("no process is at the run")


def typed(*arguments):
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    assert left.value.code == 0


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.soak
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_draws_every_chart_without_an_error(two, tmp_path):
    page = tmp_path / "page.html"
    write_report(read_runs(two), page)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    plots = done.stdout.count("data-switchable=")
    assert plots >= 7
    drawn = re.findall(r'class="plot js-plotly-plot"', done.stdout)
    assert len(drawn) == plots
    assert "CONSOLE" not in done.stderr
