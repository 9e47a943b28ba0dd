"""A study's kept results are known by content: what no longer matches is made again and named, never averaged."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import yaml
from rich.console import Console

from conftest import build_model, build_tokenizer, review_rows, with_soak, write_rows
from test_identity import another_prompt, another_row, another_template, another_weight, in_config
from zofo.errors import RunError
from zofo.studies import process_pool, read_study, report_study, run_study
from zofo.tasks import packaged_text

CHANGES = {  # what is changed, and how the results that no longer match are named
    "weight": (lambda place: another_weight(place / "model"), "its weights"),
    "epsilon": (lambda place: in_config(rms_norm_eps=1e-3)(place / "model"), "rms_norm_eps was 1e-06, and is 0.001"),
    "chat template": (lambda place: another_template(place / "model"), "its chat template"),
    "train": (another_row("train"), "the train rows"),
    "validation": (another_row("validation"), "the validation rows"),
    "prompt": (another_prompt, "the train and validation rows"),
}


RUNS = 2  # of MeZO and of the untrained model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of a tiny model that was made."""
    place = tmp_path_factory.mktemp("study")
    build_model("llama", len(build_tokenizer())).save_pretrained(place / "model")
    build_tokenizer().save_pretrained(place / "model")
    for split, rows in (("train", review_rows(12)), ("validation", review_rows(4, 60)), ("test", review_rows(4, 80))):
        write_rows(place / "data" / f"{split}.jsonl", rows)
    (place / "task.yaml").write_text(packaged_text("movie-reviews"), encoding="utf-8")
    content = {
        "defaults": {
            "model": {"name": str(place / "model")},
            "task": {"name": str(place / "task.yaml"), "data_dir": str(place / "data")},
        },
        "budget": {"steps": 2},
        "seeds": [0],
        "split": "validation",
        "zero_shot": True,
        "methods": {"mezo": {"method": {"name": "mezo", "batch_size": 2}}},
    }
    (place / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    made_by(place)
    return place


def made_by(place):
    """Make what is not done; gives what was said."""
    shown = io.StringIO()
    run_study(read_study(place / "study.yaml"), place / "out", Console(file=shown, width=400))
    return shown.getvalue()


@pytest.fixture
def made(monkeypatch):
    """The folders of the runs that are made."""
    found, perform = [], process_pool.perform
    monkeypatch.setattr(process_pool, "perform", lambda *given: (found.append(given[1]), perform(*given)))
    return found


@pytest.fixture
def study(whole):
    """The study, whose results are put back."""
    shutil.copytree(whole / "out", whole / "kept")
    yield whole
    shutil.rmtree(whole / "out")
    (whole / "kept").rename(whole / "out")


@pytest.mark.promise(22)
@pytest.mark.parametrize("change", with_soak(CHANGES, ["weight", "train", "prompt"]))
def test_results_of_other_content_are_made_again_and_named(study, made, change):
    changed, named = CHANGES[change]
    back = changed(study)
    try:
        said = made_by(study)
    finally:
        back()
    assert len(made) == RUNS
    assert f"{RUNS} runs are made again" in said
    assert named in said
    report = (study / "out" / "report.md").read_text(encoding="utf-8")
    assert "## What was made again" in report
    assert named in report
    assert len(list((study / "out" / "outdated").iterdir())) == RUNS


def test_results_of_the_same_content_are_kept(study, made):
    assert "made again" not in made_by(study)
    assert made == []
    assert "made again" not in (study / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.promise(22)
def test_results_of_different_content_are_in_no_table_together(study, made):
    """As where rows change while a study is running."""
    first, *_ = sorted((study / "out" / "runs").glob("*/outcome.json"))
    content = json.loads(first.read_text(encoding="utf-8"))
    content["identity"]["rows"]["validation"] = "sha256:" + "0" * 64
    first.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        RunError, match="cannot be compared: the validation rows of the task .* are not those"
    ) as refused:
        report_study(read_study(study / "study.yaml"), study / "out")
    assert "without --report-only" in refused.value.hint
    made_by(study)
    assert len(made) == 1


def test_results_of_an_older_version_are_said_to_be(study, made):
    assert "older version" not in (study / "out" / "report.md").read_text(encoding="utf-8")
    for path in (study / "out" / "runs").glob("*/outcome.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        environment = path.with_name("environment.json")
        known = json.loads(environment.read_text(encoding="utf-8"))
        environment.write_text(json.dumps({key: known[key] for key in ("model_hash", "rows")}), encoding="utf-8")
        del content["identity"]
        path.write_text(json.dumps(content), encoding="utf-8")
    made_by(study)
    assert made == []
    report = (study / "out" / "report.md").read_text(encoding="utf-8")
    assert report.count("are of an older version; not compared") == 1
    back = another_row("validation")(study)
    try:
        assert "the validation rows" in made_by(study)  # which it did write down
    finally:
        back()
    assert len(made) == RUNS
