"""A vote in a patch: 16 bytes a member, asked on another machine as at home, and refused where it means harm."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from conftest import build_model, build_tokenizer, review_rows, write_rows
from test_before_after import generating, spaces  # noqa: F401  # a fixture
from test_treatment import configured  # noqa: F401  # a fixture
from test_vote import SELECT
from zofo.errors import ConfigError, PatchError, RunError, ZofoError
from zofo.export import Patch, apply_patch, export_run
from zofo.export.model_card import model_card
from zofo.export.patch import packed, unpacked
from zofo.export.vote_patch import vote_parts
from zofo.methods.vote import VOTE, read_members
from zofo.tasks import parse_task
from zofo.training import evaluate_run, predict, read_config, train
from zofo.training.identity import task_hash
from zofo.trajectory import Trajectory
from zofo.trees import parse_yaml


def reward(example, told):
    return 0.01 * len(example.prompt) * (-1 if told else 1)


VOTING = SELECT | {"batch_size": 4, "estimator": {"epsilon": 0.5}}


@pytest.fixture(scope="module")
def voted(model_folder, tmp_path_factory):
    """A run of three members that vote, on rows instead of those of its task, and its patch; both are only read."""
    folder = tmp_path_factory.mktemp("voted")
    for split, rows in (("train", review_rows(40)), ("validation", review_rows(6, 60))):
        write_rows(folder / "data" / f"{split}.jsonl", rows)
    task = {"name": "sst2", "data_dir": str(folder / "data"), "split_sizes": {"train": 24, "validation": 4}}
    given = {"model": str(model_folder), "task": task, "method": VOTING, "training": {"steps": 2}}
    run = train(read_config(**given, output_dir=str(folder / "vote")), reward=reward)
    export_run(run.path, "patch", folder / "vote.zofo")
    return run, folder / "vote.zofo"


def test_it_answers_as_the_run_does(voted, model_folder, tmp_path, run_zofo):
    """To the bit, in any folder; and what comes out can be sent on as it came."""
    run, file = voted
    assert "zofo predict DIR TEXT" in model_card(run, "patch")
    asked, rows = ["the film is good", "it drags on"], run.config.task.data_dir
    expected, scored = predict(run.path, asked), evaluate_run(run.path)
    base, out = tmp_path / "elsewhere" / "base", tmp_path / "applied"
    shutil.copytree(model_folder, base)
    code, told, _ = run_zofo("apply", file, "--base", base, "--out", out)
    assert code == 0
    assert f"wrote {out}, a run folder of 3 models that vote: zofo predict {out} TEXT" in told
    assert predict(out, asked) == expected
    again = evaluate_run(out, data_dir=rows)
    assert (again.loss, again.predictions) == (scored.loss, scored.predictions)
    assert (out / VOTE).read_bytes() == (run.path / VOTE).read_bytes()
    with pytest.raises(ZofoError) as refused:
        evaluate_run(out)
    assert "--data-dir" in refused.value.hint
    moved = tmp_path / "moved"
    out.rename(moved)
    assert predict(moved, asked) == expected
    renamed = tmp_path / "tiny-llama"
    shutil.copytree(model_folder, renamed, dirs_exist_ok=True)
    apply_patch(file, str(renamed), tmp_path / "named")
    export_run(tmp_path / "named", "patch", tmp_path / "again.zofo")
    assert unpacked(tmp_path / "again.zofo")[1] == unpacked(file)[1]
    headers = [Patch.read(one).header for one in (tmp_path / "again.zofo", file)]
    assert headers[0] == headers[1]
    assert run_zofo("report", moved, "--out", tmp_path / "page.html")[0] == 0
    assert run_zofo("replay", moved)[0] == 0
    assert run_zofo("diff", moved, run.path)[0] == 1


def test_texts_of_rows_of_ones_own(generating, model_folder, tmp_path):  # noqa: F811
    """The task of rows that no task file describes goes with it."""
    given = generating("texts", steps=2).model_dump(mode="json", exclude_unset=True)
    run = train(read_config(**{**given, "method": VOTING | {"estimator": {"epsilon": 0.05}}}), reward=spaces)
    export_run(run.path, "patch", tmp_path / "p.zofo")
    apply_patch(tmp_path / "p.zofo", str(model_folder), tmp_path / "applied")
    asked = [f"{n} is" for n in range(6)]
    assert predict(tmp_path / "applied", asked) == predict(run.path, asked)
    rows = str(tmp_path / "rows.jsonl")
    whole = [evaluate_run(folder, data=rows).predictions for folder in (run.path, tmp_path / "applied")]
    assert whole[0] == whole[1]
    assert len(whole[0]) == 20
    assert evaluate_run(tmp_path / "applied", data=rows).on.endswith(", which may be those that it was trained on")
    with pytest.raises(ZofoError) as refused:
        evaluate_run(tmp_path / "applied")
    assert "data" in refused.value.hint
    assert str(tmp_path).encode() not in (tmp_path / "p.zofo").read_bytes()


def test_it_takes_sixteen_bytes_a_member(voted, configured, tmp_path):  # noqa: F811
    run, file = voted
    wide = VOTING | {"population": 40, "keep": 35}
    more = train(configured("wide", wide, steps=1, treatment_steps=None), reward=reward)
    export_run(more.path, "patch", tmp_path / "wide.zofo")
    assert [len(unpacked(one)[1]["members.bin"]) for one in (file, tmp_path / "wide.zofo")] == [16 * 3, 16 * 35]
    rest = [one.stat().st_size - 16 * members for one, members in ((file, 3), (tmp_path / "wide.zofo", 35))]
    assert abs(rest[0] - rest[1]) < 256  # of numbers with more digits
    assert rest[0] < 8192
    patch = Patch.read(tmp_path / "wide.zofo")
    assert (patch.header.vote, patch.vote.members) == (35, read_members(more.path / VOTE))
    assert str(file.parent).encode() not in file.read_bytes()


def test_another_base_is_refused_by_hash(voted, tmp_path):
    run, file = voted
    other = tmp_path / "other"
    build_model("llama", len(build_tokenizer()), seed=1).save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    with pytest.raises(PatchError, match=run.base_hash):
        apply_patch(file, str(other), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_flipped_byte_and_every_truncation_is_found(voted, tmp_path):
    whole = voted[1].read_bytes()
    for place in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / "bad.zofo").write_bytes(changed)
        with pytest.raises(PatchError):
            Patch.read(tmp_path / "bad.zofo")
        (tmp_path / "bad.zofo").write_bytes(whole[:place])
        with pytest.raises(PatchError):
            Patch.read(tmp_path / "bad.zofo")


def _task(**changes):
    return lambda asked: asked["config"]["task"].update(changes)


def _text(old, new):
    """The hash of the task, too, where it is one."""

    def change(asked):
        asked["task"] = asked["task"].replace(old, new, 1)
        with contextlib.suppress(ConfigError):
            asked["identity"]["task"] = task_hash(parse_task(parse_yaml(asked["task"]), "task.yaml"))

    return change


def _older(**changes):
    """Keys by their older names."""
    return lambda asked: asked["config"].update(changes)


def _metric(**changes):
    return lambda header: header["metrics"].update(changes)


ASKED = {
    "a model": (lambda asked: asked["config"].update(model={"name": "/etc"}), "'model', which is of the machine"),
    "a start": (lambda asked: asked["config"].update(init_from="/etc"), "'init_from', which is of the machine"),
    "rows": (_task(data="/etc/passwd"), "'task.data', which is of the machine"),
    "rows of none": (_task(data_dir=None), "'task.data_dir', which is of the machine"),
    "a setting": (_task(metaicl_setting="/etc/passwd"), "'task.metaicl_setting', which is of"),
    "several tasks": (_task(tasks=["/etc"]), "'task.tasks', which is of the machine"),
    "a task file": (_task(name="/etc/task.yaml"), "names a task file"),
    "a name that is none": (_task(name=["sst2"]), "names a task file"),
    "a start by its older name": (_older(start="/etc"), "'init_from', which is of the machine"),
    "a folder by its older name": (_older(run="/etc"), "'output_dir', which is of the machine"),
    "a setting by its older name": (_task(setting="/etc/passwd"), "'task.metaicl_setting', which is of"),
    "tasks by an older name": (_task(unseen=["/etc"]), "'task.held_out_tasks', which is of the machine"),
    "another task": (lambda asked: asked.update(task=asked["task"].replace("great", "grand")), "is not the one that"),
    "a revision that is a path": (_text("  config:", "  revision: ../../x\n  config:"), "the revision of a data set"),
    "a configuration that is one": (_text("config: sst2", "config: ../x"), "the configuration of a data set"),
    "a method of another": (lambda asked: asked["config"].update(method={"name": "mezo"}), "the method was 'select'"),
    "an unknown key": (lambda asked: asked["config"].update(code="import os"), "unknown key"),
    "an unknown method": (lambda asked: asked["config"]["method"].update(name="evil"), "evil"),
    "a task that is none": (lambda asked: asked.update(task="- 1"), "expected keys with values"),
    "no YAML": (lambda asked: asked.update(task="{"), "run.json"),
    "an alias bomb": (lambda asked: asked.update(task="a: &a [1]\nb: [" + "*a," * 2_000_000 + "]"), ""),
    "a constructor": (lambda asked: asked.update(task="name: !!python/object/apply:os.getcwd []"), "run.json"),
    "a template that reaches out": (_text("{{", "{{ ''.__class__ }}{{"), "run.json"),
    "a split elsewhere": (_text("from: train", "from: ../../train"), "cannot be the split"),
    "a folder for a data set": (_text("hub: ", "hub: ../"), "cannot be a data set of the Hub"),
    "a hash that is none": (lambda asked: asked["identity"].update(rows=3), "'rows' cannot be"),
    "more": (lambda asked: asked.update(more=1), "unknown key"),
}
HEADER = {
    "a member more": (lambda header: header.update(vote=4), "has 48 bytes, and 4 members take 16 each"),
    "one member": (lambda header: header.update(vote=1), "vote"),
    "a million": (lambda header: header.update(vote=1 << 20), "vote"),
    "no vote": (lambda header: header.pop("vote"), "nothing says what the part"),
    "an adapter": (lambda header: header.update(adapter=True), "is missing"),
    "a model that is no name": (lambda header: header.update(variant="../x"), "cannot be the name of a model"),
    "scores of a test": (_metric(test=1.0), "says test=1.0, which no evaluation has found"),
    "conclusions": (_metric(conclusions="x"), "says conclusions='x', which no"),
    "a loss in words": (_metric(loss="low"), "says loss='low', which no"),
    "steps in words": (_metric(steps="many"), "says steps='many', which no"),
    "a metric that is none": (_metric(metric="test"), "says metric='test', which no"),
    "no metric": (lambda header: header["metrics"].pop("metric"), "says metric=None, which no"),
}


@pytest.mark.parametrize("case", ASKED)
def test_what_no_run_can_have_said_is_refused(voted, tmp_path, case):
    """Also where the hashes are right, and before a base model is loaded."""
    change, message = ASKED[case]
    header, parts = unpacked(voted[1])
    asked = json.loads(parts["run.json"])
    before = json.dumps(asked)
    change(asked)
    assert json.dumps(asked) != before
    (tmp_path / "bad.zofo").write_bytes(packed(header, parts | {"run.json": json.dumps(asked).encode()}))
    with pytest.raises(RunError) as refused:
        apply_patch(tmp_path / "bad.zofo", "no-such-model", tmp_path / "out")
    assert message in str(refused.value)
    assert len(str(refused.value)) < 1000
    assert str(refused.value).replace("\n", "").isprintable()


@pytest.mark.parametrize("case", HEADER)
def test_a_header_of_something_else_is_refused(voted, tmp_path, case):
    change, message = HEADER[case]
    header, parts = unpacked(voted[1])
    change(header)
    (tmp_path / "bad.zofo").write_bytes(packed(header, parts))
    with pytest.raises(RunError, match=message):
        apply_patch(tmp_path / "bad.zofo", "no-such-model", tmp_path / "out")


def test_members_that_no_forward_can_carry_are_refused(voted, model_folder, tmp_path):
    """Before a folder is written that could not be asked."""
    header, parts = unpacked(voted[1])
    name = header["stages"][0]["trajectory"]
    way = Trajectory.parse(parts[name], name)
    other = replace(way, header={**way.header, "noise": {"name": "gaussian"}}).to_bytes()
    (tmp_path / "bad.zofo").write_bytes(packed(header, parts | {name: other}))
    with pytest.raises(PatchError, match="cannot be applied to .* a forward pass cannot carry"):
        apply_patch(tmp_path / "bad.zofo", str(model_folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("coefficient", [float("nan"), float("inf"), 0.0])
def test_members_are_somewhere(voted, tmp_path, coefficient):
    header, parts = unpacked(voted[1])
    terms = np.frombuffer(parts["members.bin"], dtype=[("step", "<u4"), ("index", "<u4"), ("c", "<f8")]).copy()
    assert [abs(c) for c in terms["c"]] == [0.5, 0.5, 0.5]
    terms["c"][1] = coefficient
    (tmp_path / "bad.zofo").write_bytes(packed(header, parts | {"members.bin": terms.tobytes()}))
    with pytest.raises(PatchError, match="a member that is nowhere"):
        Patch.read(tmp_path / "bad.zofo")
    for content in (b"[]", b'{"a": NaN}', b"{" * 100_000, b"\xff"):
        (tmp_path / "bad.zofo").write_bytes(packed(header, parts | {"run.json": content}))
        with pytest.raises(PatchError, match=r"the part 'run\.json'"):
            Patch.read(tmp_path / "bad.zofo")


def test_nothing_of_another_run_stays_beside_it(voted, model_folder, tmp_path):
    """With `force` it takes the place of an applied vote, and of no run with logs, answers or adapters of its own."""
    run, file = voted
    apply_patch(file, str(model_folder), tmp_path / "applied")
    apply_patch(file, str(model_folder), tmp_path / "applied", force=True)
    other = tmp_path / "other"
    shutil.copytree(run.path, other)
    before = {one: one.read_bytes() for one in other.rglob("*") if one.is_file()}
    with pytest.raises(RunError, match="holds 'answers.jsonl', which would be taken for a part") as refused:
        apply_patch(file, str(model_folder), other, force=True)
    assert refused.value.hint == "choose another one"
    assert {one: one.read_bytes() for one in other.rglob("*") if one.is_file()} == before


def test_what_has_no_place_in_a_patch_is_said(configured, tmp_path):  # noqa: F811
    first = train(configured("first", {"name": "mezo"}, steps=1, treatment_steps=None))
    given = configured("second", VOTING, steps=1, treatment_steps=None)
    second = train(given.model_copy(update={"init_from": first.path}), reward=reward)
    with pytest.raises(RunError, match="which the patch of a vote has no place for") as refused:
        export_run(second.path, "patch", tmp_path / "p.zofo")
    assert "--merged DIR" in refused.value.hint
    task = given.task.model_copy(update={"num_fewshot": 1})
    shown = given.model_copy(update={"task": task, "output_dir": tmp_path / "shown"})
    with pytest.raises(RunError, match="prompts with solved rows of your own"):
        export_run(train(shown, reward=reward).path, "patch", tmp_path / "p.zofo")
    kept = configured("kept", VOTING, steps=2, treatment_steps=None, eval_steps=1)
    run = train(kept, reward=reward)
    if (run.best / VOTE).is_file():
        export_run(run.path, "patch", tmp_path / "best.zofo", best=True)
        assert Patch.read(tmp_path / "best.zofo").header.best
        (run.best / VOTE).unlink()
    with pytest.raises(RunError, match="before it was a vote"):
        _ = vote_parts(run, best=True)


def test_a_patch_in_place_of_a_run_says_what_to_type(voted, run_zofo):
    file = voted[1]
    for verb in (("predict", file, "a text"), ("eval", file), ("replay", file), ("diff", file, file)):
        code, _, said = run_zofo(*verb)
        assert code == 2
        assert f"zofo apply {file} --base MODEL --out DIR" in " ".join(said.split())
