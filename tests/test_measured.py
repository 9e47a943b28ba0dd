"""The tables of docs/measured-details.md are those of the archived rows, recomputed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean

import pandas as pd
import pytest

from zofo.significance import detectable, interval

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "measured-details.md").read_text(encoding="utf-8")


def rows_under(text):
    """The cells of the rows of the first table after a text of the page, by their first cell."""
    after = PAGE[PAGE.index(text) :].splitlines()
    start = next(number for number, line in enumerate(after) if line.startswith("|"))
    table = []
    for line in after[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().replace("**", "") for cell in line.strip("|").split("|")])
    return {row[0]: row[1:] for row in table}


@pytest.fixture(scope="module")
def archived():
    """The final runs of an archived study."""

    def read(name):
        frame = pd.read_csv(RESULTS / name)
        return frame[frame["trial"].astype(str) == "False"]

    return read


def cell(frame):
    """Mean over seeds and half of its 95 % interval, in percent, of the runs that did not diverge; empty for none."""
    kept = frame[frame["validation_loss"] < 10 * FIRST_LOSS]
    if kept.empty:
        return ""
    found = interval((100 * kept["test_score"]).tolist())
    lost = f" ({len(kept)} of {len(frame)}, {len(frame) - len(kept)} diverged)" if len(kept) < len(frame) else ""
    return f"{found.mean:.1f} ± {found.half:.1f}{lost}"


FIRST_LOSS = 0.695  # before training, of the encoder; the other studies have no run that diverged

BILEVEL = {
    "zero-shot": "zero-shot",
    "MeZO": "mezo",
    "first-order LoRA": "fo-lora",
    "Bilevel-ZOFO, p": "bilevel",
    "Bilevel-ZOFO, s": "bilevel, lower adapter",
    "frozen backbone, tuned for itself, p": "frozen",
    "frozen backbone, tuned for itself, s": "frozen, lower adapter",
    "frozen backbone, bilevel's settings, p": "frozen, same steps",
    "random steps of the backbone, bilevel's settings, p": "random backbone",
}
ELSEWHERE = {("frozen backbone, bilevel's settings, p", "sst2")}  # made by hand: bilevel-control.csv
TASKS = ("movie-reviews", "sst2", "copa", "rte")
SAME = "frozen, same steps"
CONTROL = {(SAME, "movie-reviews"): "frozen, same steps, tuned for itself"}  # which chose bilevel's rates there


@pytest.mark.parametrize(("label", "method"), BILEVEL.items())
def test_the_table_of_bilevel(archived, label, method):
    runs = archived("bilevel.csv")
    told = rows_under("### Does the backbone's step add anything?")[label]
    for task, shown in zip(TASKS, told, strict=False):
        if (label, task) in ELSEWHERE:
            continue
        found = cell(runs[(runs["method"] == CONTROL.get((method, task), method)) & (runs["task"] == task)])
        assert shown.replace(" (fixed test)", " ± 0.0") == found, (label, task)


def test_the_control_on_sst2_that_was_made_by_hand(archived):
    control = pd.read_csv(RESULTS / "bilevel-control.csv")
    own = control[control["task"] == "sst2"] if "task" in control else control
    shown = rows_under("### Does the backbone's step add anything?")["frozen backbone, bilevel's settings, p"][1]
    cells = {cell(part) for _, part in own.groupby("method")}
    assert shown in cells


ADAPTERS = {
    "zero-shot (majority 53.1)": "zero-shot",
    "first-order": "first-order",
    **{label: BILEVEL[label] for label in list(BILEVEL)[3:8]},
}


@pytest.mark.parametrize(("label", "method"), ADAPTERS.items())
def test_the_table_of_adapters(archived, label, method):
    runs = archived("bilevel-adapters.csv")
    told = rows_under("**Prefix and prompt** instead of LoRA")[label]
    found = [cell(runs[(runs["method"] == method) & (runs["adapter"] == kind)]) for kind in ("prefix", "prompt")]
    assert told[:2] == found


SVRG = {
    "zero-shot": "zero-shot",
    "MeZO": "mezo",
    "full-batch MeZO (q = 1)": "full-batch mezo",
    "SVRG": "svrg",
    "as released": "as released",
    "FO-SGD, half the queries": "fo-sgd",
}


@pytest.mark.parametrize(("label", "method"), SVRG.items())
def test_the_tables_of_svrg(archived, label, method):
    runs = archived("svrg-minilm.csv")
    runs = runs[runs["method"] == method]
    first, second = (rows_under(text)[label] for text in ("### A language model", "The same on CoLA (accuracy;"))
    places = [(task, kind) for task in ("sst2", "cola", "mnli") for kind in ("full", "partial")]
    found = [cell(runs[(runs["task"] == task) & (runs["tensors"] == kind)]) for task, kind in places]
    assert first[:2] == found[:2]
    assert second[:4] == found[2:]


def test_what_the_frozen_control_says_of_the_backbones_step(archived):
    """Bilevel less the same with a frozen backbone, in pairs of task and seed, as the page says it."""
    runs = archived("bilevel.csv").set_index(["method", "task", "seed"])["test_score"]
    by_hand = pd.read_csv(RESULTS / "bilevel-control.csv")
    by_hand = by_hand[by_hand["method"] == "frozen at bilevel's rates, same steps"].set_index("seed")["test_score"]
    pairs = [
        100 * (runs["bilevel", task, seed] - frozen)
        for task in TASKS
        for seed in (0, 1, 2)
        for frozen in [by_hand[seed] if task == "sst2" else runs[CONTROL.get((SAME, task), SAME), task, seed]]
    ]
    found = interval(pairs)
    assert f"{found.mean:+.1f} ± {found.half:.1f} points" in re.sub(r"\s+", " ", PAGE)
    assert f"{detectable(pairs):.1f} points would have shown" in re.sub(r"\s+", " ", PAGE)


def test_the_table_of_what_is_left_for_theta():
    rows = pd.read_json(RESULTS / "mechanism.jsonl", lines=True)
    left = set(zip(*(rows[rows["backbone_distance"] > 1][name] for name in ("task", "method")), strict=True))
    rows = rows[rows["backbone_distance"] <= 1]
    told = rows_under("### How much is left for a step on theta")

    def each(some, name, digits=0):
        return [f"{one[name]:.{digits}f} ± {one[f'{name}_error']:.{digits}f}" for one in some]

    for (task, method), group in rows.groupby(["task", "method"]):
        some = group.sort_values("steps").to_dict("records")
        known = pd.notna(some[-1]["predicted_descent"])
        diverged = f", which diverged after step {some[-1]['steps']}" if (task, method) in left else ""
        assert told[f"{task}, {method}{diverged}"] == [
            ", ".join(str(one["steps"]) for one in some),
            ", ".join(each(some, "gradient_squared")),
            ", ".join(f"{one['spread_squared']:,.0f}" for one in some),
            ", ".join(each([some[1], some[-1]], "predicted_descent", 3)) if known else "-",
            f"{100 * some[-1]['backbone_distance']:.1f} %",
        ]
    assert len(told) == rows.groupby(["task", "method"]).ngroups + 2  # and the header


def test_the_table_of_what_a_penalty_does():
    rows = pd.read_csv(RESULTS / "bilevel-slopes.csv")
    told = rows_under("### What a penalty does to theta's step")
    for (study, task, penalty), some in rows.groupby(["study", "task", "penalty"]):
        between = some["lower_p"] - some["lower_s"]
        sizes = [(one**2).mean() ** 0.5 for one in (some["upper"], some["lower_p"], some["lower_s"], between)]
        cells = [str(len(some)), *(f"{size:.1f}" for size in sizes)]
        for other in (1, 10, 100, 10_000):
            whole = some["upper"] + other * between
            length = (whole**2).mean() ** 0.5 / sizes[0] / (1 + other)
            cells.append(f"{length:.2f}, {whole.corr(some['upper']):.2f}")
        name = f"{study}, {task}, penalty {penalty}"
        assert told.get(name, told.get(f"{name}, before it diverged")) == cells


def test_the_table_of_recommendations():
    rows = pd.read_json(RESULTS / "recommend.jsonl", lines=True).to_dict("records")
    text = PAGE[PAGE.index("## Recommendations") :]
    for row in rows:
        one, other = row["proposed"], row["plain"]
        cells = [
            *(row["rows"], f"{row['expected_seconds']:.0f}", f"{row['whole_seconds']:.0f}", f"{row['ratio']:.2f}"),
            f"{one['metric']} {one['score']:.3f}",
            *("refused" if other is None else f"{other['score']:.3f}", f"{one['majority']:.3f}"),
        ]
        assert f"| {' | '.join(cells)} |" in text
    better = sum(row["plain"] is None or row["proposed"]["score"] > row["plain"]["score"] for row in rows)
    timely = sum(abs(row["ratio"] - 1) <= 0.3 for row in rows)
    found = (
        f"Better than the plain defaults: {better} of {len(rows)}; within 30 % of its time: {timely} of {len(rows)}."
    )
    assert found in text


def test_the_tables_of_rewards(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import reward_tables

    text = PAGE[PAGE.index("## Training by a reward, beside other ways") :]
    measured = {cell.split("/")[0] for cell in reward_tables.known() if cell.count("/") == 2 and "pilot" not in cell}
    assert len(measured) >= 3
    for name in measured:
        assert "\n".join(reward_tables.table(name)) in text


def test_the_contrast_of_bilevel_with_a_frozen_backbone():
    """Means over the seeds that were run, and differences in pairs of a seed."""
    runs = pd.read_csv(RESULTS / "bilevel-contrast.csv").set_index(["method", "seed"])
    told = rows_under("### Does theta's step add while theta has a gradient?")

    def said(values, digits, sign=""):
        found = interval(list(values))
        return f"{found.mean:{sign}.{digits}f} ± {found.half:.{digits}f}"

    for letter, of in (("p", ""), ("s", ", lower adapter")):
        first, second = runs.loc[f"bilevel{of}"], runs.loc[f"frozen{of}"]
        assert sorted(first.index) == sorted(second.index)
        for label, one in ((f"Bilevel-ZOFO, {letter}", first), (f"frozen backbone, {letter}", second)):
            assert told[label][:2] == [said(one["test_loss"], 3), said(100 * one["test_score"], 1)]
        losses, scores = (first[key] - second[key] for key in ("test_loss", "test_score"))
        assert told[f"difference in pairs, {letter}"][:2] == [said(losses, 3, "+"), said(100 * scores, 1, "+")]
        if letter == "p":
            shown = (
                f"{detectable(list(100 * scores)):.1f} points or {detectable(list(losses)):.3f} nats would have shown"
            )
            assert shown in re.sub(r"\s+", " ", PAGE)
    descent = said(runs.loc["bilevel"]["treatment_predicted_descent"], 3)
    assert f"predicted descent is {descent} nats" in re.sub(r"\s+", " ", PAGE)


META = {
    "zero-shot": "zero-shot",
    "in context": "in-context",
    "in context, channel": "channel-in-context",
    "MetaICL": "metaicl",
    "adapted, no meta-training": "adapted",
    "Bilevel-ZOFO, zero-shot": "bilevel-zero-shot",
    "Bilevel-ZOFO, adapted": "bilevel-adapted",
    "Bilevel-ZOFO, 5 times the queries, zero-shot": "longer-bilevel-zero-shot",
    "Bilevel-ZOFO, 5 times the queries, adapted": "longer-bilevel-adapted",
}


@pytest.mark.parametrize(("label", "method"), META.items())
def test_the_table_of_meta_training(archived, label, method):
    """Each task by itself, and the average over the four of each draw."""
    scores = 100 * archived("meta-training.csv").set_index(["method", "task", "seed"])["test_score"][method]
    columns = [scores[task] for task in ("emo", "tweet_eval-sentiment", "qasc", "superglue-copa")]
    told = rows_under("### Meta-training, and tasks that were not seen")[label]
    for shown, values in zip(told, [*columns, scores.groupby("seed").mean()], strict=True):
        found = interval(values.tolist())
        assert shown == (f"{found.mean:.1f} ± {found.half:.1f}" if len(values) > 1 else f"{found.mean:.1f}")


def test_what_meta_training_adds_to_an_adapter(archived):
    scores = 100 * archived("meta-training.csv").set_index(["method", "task", "seed"])["test_score"]
    pairs = scores["bilevel-adapted"] - scores["adapted"]
    found = interval(pairs.tolist())
    told = f"({found.mean:+.1f} ± {found.half:.1f} over the {len(pairs)} pairs of task and seed, "
    assert f"{told}{(pairs > 0).sum()} better and {(pairs < 0).sum()} worse)" in re.sub(r"\s+", " ", PAGE)


def read_lines(name):
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def directions():
    return read_lines("directions.jsonl")


@pytest.mark.parametrize("task", ["sst2", "movie-reviews"])
def test_the_tables_of_directions(directions, task):
    runs = [line for line in directions if line["kind"] == "run" and line["task"] == task]
    told = rows_under(f"**{task}**: zero-shot accuracy")
    assert {name for name in told if name not in ("directions", "---")} == {run["arm"] for run in runs}
    for arm in {run["arm"] for run in runs}:
        some = [run for run in runs if run["arm"] == arm]
        cells = [f"{some[0]['lr']:.1e}"]
        for points in zip(*(run["curve"][1:] for run in some), strict=True):
            loss, share = interval([one["loss"] for one in points]), interval([100 * one["accuracy"] for one in points])
            cells.append(f"{loss.mean:.3f} ± {loss.half:.3f}, {share.mean:.1f} ± {share.half:.1f} %")
        assert told[arm] == [*cells, str(len(some))]


def test_the_table_of_step_sizes(directions):
    told = rows_under("The largest learning rate at which 12 steps were stable")
    tried = [line for line in directions if line["kind"] == "tuning"]
    assert len(tried) == 2 * (len(told) - 2)
    for line in tried:
        row = next(cells for name, cells in told.items() if name.partition(" (8 examples)")[0] == line["arm"])
        assert float(row[("sst2", "movie-reviews").index(line["task"])]) == pytest.approx(line["largest"])


def test_the_table_of_what_a_model_knows_before_it_is_trained():
    """Over draws where there are three; else of a share of so many rows, whose errors are as of a binomial one."""
    told, lines = rows_under("## What a model knows before it is trained"), read_lines("reading.jsonl")
    for task in {line["task"] for line in lines}:
        metric, rows, majority, *cells = told[task]
        for way, cell in zip(("zero-shot", "calibrated", "4 demonstrations"), cells, strict=True):
            some = [line for line in lines if (line["task"], line["way"]) == (task, way)]
            scores = [100 * line["score"] for line in some]
            if len(some) == 3:
                found = interval(scores)
                assert cell == f"{found.mean:.1f} ± {found.half:.1f}"
            else:
                assert cell.partition(" ± ")[0] == (f"{mean(scores):.1f}" if some else "-")
        first = next(line for line in lines if (line["task"], line["way"]) == (task, "zero-shot"))
        assert (metric, rows, majority) == (first["metric"], str(first["rows"]), f"{100 * first['majority']:.1f}")


def test_the_table_of_estimates():
    rows = pd.read_csv(RESULTS / "estimate.csv")
    rows["peak"] = rows["estimated_peak_bytes"] / rows["peak_bytes"]
    rows["time"] = rows["estimated_cpu_seconds"] / rows["cpu_seconds"]
    for way, (count, peak, time) in list(rows_under("`python benchmarks/estimate.py run` measures").items())[2:]:
        own = rows[rows["way"] == way]
        spans = [f"{own[what].min():.2f} to {own[what].max():.2f}" for what in ("peak", "time")]
        assert [int(count), peak, time] == [len(own), *spans], way
    near = [int(((rows[what] - 1).abs() <= limit).sum()) for what, limit in (("peak", 0.1), ("time", 0.25))]
    assert f"Within 10 % of the peak: {near[0]} of {len(rows)};" in PAGE
    assert f"Within 25 % of the time: {near[1]} of {len(rows)}," in PAGE


def of_a_problem(frame, first):
    """As `cell`, where a run that failed, or ended over ten times the loss before training, diverged."""
    kept = frame[~frame["failed"] & (frame["validation_loss"] <= 10 * first.reindex(frame["seed"]).to_numpy())]
    if kept.empty:
        return "no rate was stable"
    found, lost = interval((100 * kept["test_score"]).tolist()), len(frame) - len(kept)
    half = "" if found.half is None else f" ± {found.half:.1f}"
    return f"{found.mean:.1f}{half}" + (f" ({len(kept)} of {len(frame)}, {lost} diverged)" if lost else "")


DIGITS = {
    "MeZO": "mezo",
    "SVRG, q = 2, full batch of 1,197": "svrg",
    "SVRG, q = 2, fresh batches of 256": "svrg-256",
    "SVRG, q = 10, full batch": "svrg-q10",
    "g reused, q = 2": "g-reused",
    "as released, q = 2": "as-released",
    "FO-SGD": "first-order",
}


def test_the_table_of_digits(archived):
    runs = archived("digits.csv")
    first = runs[runs["method"] == "zero-shot"].groupby("seed")["validation_loss"].mean()
    told = rows_under("`zofo study digits` (15 minutes)")
    for label, method in DIGITS.items():
        own = runs[runs["method"] == method]
        assert told[label] == [of_a_problem(own[own["batch"] == size], first) for size in (32, 64, 128)], label
    assert len(told) == len(DIGITS) + 2


LEAST_SQUARES = {
    "MeZO at eta2": "mezo",
    "full batch every q, nothing between": "full-batch",  # whose steps have no eta2
    "g reused (`control_variate=none`)": "g-reused",
    "SVRG, same z": "svrg",
    "true anchor, independent z": "independent",
    "as released": "as-released",
    "pair along g's z": "full-batch-direction",
    "FO-SGD at eta2": "first-order",
}


def test_the_table_of_least_squares():
    rows = pd.read_csv(RESULTS / "least-squares.csv")
    told = rows_under("`zofo study least-squares` (10 minutes on one core)")
    for label, method in LEAST_SQUARES.items():
        own = rows[(rows["method"] == method) & (rows["after"] > 0)]
        means = own.groupby(["eta2", "after"])["loss"].mean()
        cells = [" / ".join(f"{loss:#.3g}" for loss in means[eta2]) for eta2 in (1e-3, 1e-4)]
        assert told[label][0] == cells[0], label
        assert told[label][1] == {"full-batch": "the same", "first-order": ""}.get(method, cells[1]), label
        assert told[label][2] == f"{own['queries'].max() / 1e6:.2f}M"
        if method == "full-batch":
            assert cells[0] == cells[1]
    assert len(told) == len(LEAST_SQUARES) + 2


def test_the_table_of_epsilon():
    told = PAGE[PAGE.index("## Epsilon") : PAGE.index("## Learning the accuracy")].splitlines()
    rows = json.loads((RESULTS / "epsilon.json").read_text(encoding="utf-8"))
    for row in rows:
        cells = " | ".join(f"{100 * error:.1f} %" for error in row["errors"].values())
        assert f"| {row['noise']} | {row['dtype']} | {cells} |" in told
    assert len([line for line in told if line.startswith("|")]) == len(rows) + 2


def test_the_table_of_shared_prompts():
    told = rows_under("## Shared prompts")
    lines = read_lines("shared-prompts.jsonl")
    assert [line["data"] for line in lines] == list(told)[2:]
    for line in lines:
        before, after = line["before"], line["after"]
        saved = f"{100 * (1 - after / before):.0f} %" if after < before else "one row an example already"
        assert told[line["data"]] == [f"{before:,}", f"{after:,}", saved]


def test_the_table_of_an_anchors_memory():
    told = rows_under("### The memory of an anchor")
    peaks = json.loads((RESULTS / "svrg-memory.json").read_text(encoding="utf-8"))["peaks"]
    for label, cells in list(told.items())[2:]:
        name = f"svrg, {found[1]}" if (found := re.search("anchor=([a-z]+)", label)) else "mezo"
        own = [(some[name], some[name] / some["mezo"]) for some in (peaks["in-forward"], peaks["in-place"])]
        expected = [(f"{peak / 2**20:,.0f} MiB", "" if name == "mezo" else f"{over:.2f}") for peak, over in own]
        assert cells == [cell for pair in expected for cell in pair], label
    assert len(told) == len(peaks["in-place"]) + 2


def test_the_tables_of_a_step():
    sizes = json.loads((RESULTS / "step.json").read_text(encoding="utf-8"))["sizes"]
    costs = [{row["name"]: row for row in size["rows"]} for size in sizes]
    head = [f"{size['examples']} x {size['tokens']}" for size in sizes]
    time, memory = rows_under("## A step, beside inference"), rows_under("Peak memory of a process after loading")
    assert time["way, time"] == memory["way, peak memory"] == head
    assert time["inference"] == [f"{cost['inference']['median_s']:.2f} s" for cost in costs]
    assert memory["inference"] == [f"{cost['inference']['peak_bytes'] / 2**20:,.0f} MiB" for cost in costs]
    for name in set(costs[0]) - {"inference"}:
        assert time[name] == [f"{cost[name]['over_inference']:.2f}" for cost in costs]
        assert memory[name] == [f"{cost[name]['peak_over_inference']:.2f}" for cost in costs]
    usual = [f"{cost['in-forward-shared']['usual_over_this']:.1f}" for cost in costs]
    assert time["usual / in-forward-shared"] == usual
    assert {len(time), len(memory) + 1} == {len(costs[0]) + 3}


SETTINGS = {
    "nothing": "nothing",
    "epsilon 1": "epsilon 1",
    "epsilon 1e-1": "epsilon 1e-1",
    "epsilon 1e-2": "epsilon 1e-2",
    "epsilon 1e-4": "epsilon 1e-4",
    "batch 16": "batch 16",
    "batch 256": "batch 256",
    "4 directions a step": "directions 4",
    "a direction for every example": "directions per example",
    "q = 1 (full-batch MeZO)": "q 1",
    "q = 5": "q 5",
    "q = 10": "q 10",
    "anchor 256, fresh": "anchor 256",
    "anchor 128, fresh": "anchor 128",
    "anchor 128, fixed": "anchor 128 fixed",
    "full batch with a direction for every example": "anchor directions per example",
}


def test_the_table_of_one_setting_at_a_time(archived):
    runs = archived("svrg-ablations.csv")
    whole = pd.read_csv(RESULTS / "svrg-ablations.csv")
    tried = {*zip(whole["method"], whole["changed"], strict=True)}
    first = runs[runs["method"] == "zero-shot"].groupby("seed")["validation_loss"].mean()
    told = rows_under("### One setting at a time")
    assert {name for name in told if name not in ("changed", "---")} == set(SETTINGS)
    for label, changed in SETTINGS.items():
        for method, cells in (("mezo", told[label][:2]), ("svrg", told[label][2:])):
            own = runs[(runs["method"] == method) & (runs["changed"] == changed)]
            if own.empty:
                made = (method, changed) in tried
                assert cells in ([["no rate was stable", ""]] if made else [["", ""], ["not run", ""]]), label
                continue
            score = of_a_problem(own, first)
            steps = "" if score == "no rate was stable" else f"{own['steps'].max():,.0f}"
            assert cells == [score, steps], label
    chosen = whole[(whole["method"] == "svrg") & (whole["chosen"].astype(str) == "True")].drop_duplicates("changed")
    largest = chosen["setting"].str.contains("lr_full=0.01").sum()
    assert f"{largest} of the {len(chosen)} rows of SVRG" in re.sub(r"\s+", " ", PAGE)


def test_the_table_of_learning_the_accuracy():
    lines = read_lines("learning-accuracy.jsonl")
    told = rows_under("## Learning the accuracy itself")
    assert len(told) == len({line["queries"] for line in lines}) + 2
    for queries in {line["queries"] for line in lines}:
        some = sorted((line for line in lines if line["queries"] == queries), key=lambda line: line["seed"])
        found = interval([100 * line["accuracy"] for line in some])
        loss = (lambda line: f", {line['loss']:.3f}") if queries else (lambda line: "")
        average = f"{found.mean:.1f}" + (f" ± {found.half:.1f} %" if queries else " %")
        assert told[f"{queries:,}"] == [*(f"{100 * line['accuracy']:.1f} %{loss(line)}" for line in some), average]


def test_the_table_of_the_subspace_of_inputs():
    runs = pd.read_csv(RESULTS / "subspace.csv").set_index(["method", "seed"])
    told = rows_under("### In the subspace of the inputs")
    full, inside = runs.loc["full"], runs.loc["subspace 16"]
    assert sorted(full.index) == sorted(inside.index)
    assert len(told) == len(full) + 2
    for seed in full.index:
        cells = [(some.loc[seed, "test_loss"], some.loc[seed, "test_score"]) for some in (full, inside)]
        assert told[str(seed)] == [cell for loss, share in cells for cell in (f"{loss:.3f}", f"{100 * share:.1f} %")]
    loss, score = (interval((inside[key] - full[key]).tolist()) for key in ("test_loss", "test_score"))
    said = f"{loss.mean:+.3f} ± {loss.half:.3f} nats and {100 * score.mean:+.1f} ± {100 * score.half:.1f} points"
    assert said in re.sub(r"\s+", " ", PAGE)


def test_the_table_of_long_runs_in_the_subspace_of_inputs():
    runs = pd.read_csv(RESULTS / "subspace-long.csv")
    told = rows_under("Longer, at the same constant rate")
    names = list(dict.fromkeys(runs["method"]))
    rows = {number: runs[runs["method"] == name].reset_index() for number, name in enumerate(names)}
    for place in range(10):
        each = [one.loc[place] for one in rows.values()]
        assert len({round(one["queries"], -3) for one in each}) == 1
        cells = [f"{one['validation_loss']:.3f}, {100 * one['validation_score']:.1f} %" for one in each]
        assert told[f"{round(each[0]['queries'], -3):,}"] == cells
    assert len(told) == 12
    text = re.sub(r"\s+", " ", PAGE)
    for name in names:
        last = runs[(runs["method"] == name) & runs["test_loss"].notna()].iloc[0]
        assert re.search(rf"{last['test_loss']:.3f}( nats)? and {100 * last['test_score']:.1f} % of the ", text)
    random = pd.read_csv(RESULTS / "subspace.csv").set_index("method").loc["random 16"]
    assert f"ended at {random['test_loss']:.3f} nats and {100 * random['test_score']:.1f} %" in text


def test_the_other_ranks_and_lora_of_the_subspace_study():
    runs, text = pd.read_csv(RESULTS / "subspace.csv").set_index("method"), re.sub(r"\s+", " ", PAGE)
    for method in ("subspace 4", "subspace 64", "lora"):
        run = runs.loc[method]
        assert f"at {run['test_loss']:.3f} nats and {100 * run['test_score']:.1f} %" in text
