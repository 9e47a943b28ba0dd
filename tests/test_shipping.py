"""Replays, comparisons and exports of runs: what is rebuilt is what was trained."""

from __future__ import annotations

import json
import pkgutil
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from conftest import ARCHITECTURES, MORE_ARCHITECTURES, build_model
from shipped_runs import IDS, MERGED, STEPS, contents, loaded, logits, maker, with_adapter
from test_resume import stopped_at
from zofo.adapters import AdapterConfig, merge_adapter
from zofo.backbone import Update
from zofo.displacement import Displacement, Key
from zofo.errors import RunError
from zofo.export import Patch, apply_patch, compare_runs, export_run, push, replay_run
from zofo.export.run_metrics import metrics_of
from zofo.filesystem import atomic_folder
from zofo.training import RunFolder, train
from zofo.trajectory import Trajectory, TrajectoryWriter
from zofo.trajectory.format import Stepped


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    return maker(model_folder, tmp_path_factory.mktemp("shipped"))


# replay


@pytest.mark.promise(17)
@pytest.mark.parametrize("case", ["mezo", "bilevel", "in place", "weight decay", "two-stage"])
def test_a_replay_has_the_bits_of_training_and_leaves_the_run_as_it_is(made, case):
    run = made(case)
    before = contents(run.path)
    found = replay_run(run.path)
    assert (found.verdict, found.steps, found.of) == ("same bits", STEPS, STEPS)
    assert found.adapters == (case in ("bilevel", "two-stage"))
    assert contents(run.path) == before


@pytest.mark.promise(17)
def test_a_replay_of_some_steps_is_the_run_that_had_so_many(made, tmp_path):
    short = made("mezo", "short", steps=3)
    found = replay_run(made("mezo").path, 3, tmp_path / "out")
    assert found.fingerprint == short.summary["backbone"]
    assert (found.verdict, found.detail.split()[0]) == ("same loss", "on")
    theirs = short.load().model
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(theirs))


def test_a_replay_to_step_zero_is_the_base_model(made, model_folder, tmp_path):
    replay_run(made("bilevel").path, 0, tmp_path / "out")
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(loaded(model_folder)))


def test_a_folded_replay_agrees_up_to_rounding(made, tmp_path):
    run = made("in place")
    found = replay_run(run.path, out=tmp_path / "out", summed=True)
    assert (found.summed, found.verdict) == (True, "same loss")
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), logits(run.load().model), rtol=1e-5, atol=1e-5)


@pytest.mark.promise(8)
def test_a_run_whose_weights_were_changed_is_found_out(made, tmp_path, model_folder):
    folder = shutil.copytree(made("mezo").path, tmp_path / "copy")
    summary = json.loads((folder / "summary.json").read_text())
    summary["backbone"] = "sha256:" + "0" * 64
    (folder / "summary.json").write_text(json.dumps(summary))
    assert replay_run(folder).verdict == "other bits"
    assert replay_run(folder).failed


@pytest.mark.promise(17)
def test_a_trajectory_that_was_cut_is_replayed_to_its_last_whole_step(made, tmp_path):
    folder = shutil.copytree(made("mezo").path, tmp_path / "copy")
    data = (folder / "trajectory.bin").read_bytes()
    (folder / "trajectory.bin").write_bytes(data[: len(data) - 24])
    found = replay_run(folder)
    assert (found.steps, found.cut, found.failed) == (4, True, True)
    assert any("ends inside a record" in line for line in found.lines())
    assert found.fingerprint == replay_run(made("mezo").path, 4).fingerprint


@pytest.mark.parametrize(
    ("case", "options", "text"),
    [
        ("mezo", {"step": 6}, "has 5 steps, not 6"),
        ("mezo", {"step": -1}, "has 5 steps, not -1"),
        ("first-order", {}, "its backbone did not move"),
        ("adapter", {}, "moves an adapter"),
        ("weight decay", {"summed": True}, "weight decay shrinks the weights"),
    ],
)
def test_what_cannot_be_replayed_is_said(made, case, options, text):
    with pytest.raises(RunError, match=text) as refused:
        replay_run(made(case).path, **options)
    assert refused.value.hint


@pytest.mark.promise(14)
def test_no_model_is_written_into_a_run(made, run_zofo, model_folder, tmp_path):
    run = made("mezo")
    other = shutil.copytree(run.path, tmp_path / "other run")
    before = contents(other)
    export_run(run.path, "patch", tmp_path / "patch")
    for words in (
        ("export", run.path, "--merged", other, "--force"),
        ("export", made("adapter").path, "--adapter", other, "--force"),
        ("replay", run.path, "--out", other, "--force"),
        ("apply", tmp_path / "patch", "--base", model_folder, "--out", other, "--force"),
    ):
        code, _, err = run_zofo(*words)
        assert code == 2, words
        assert "is a run, whose files would lie among" in " ".join(err.split())
        assert f"choose another folder, such as '{other}-model'" in " ".join(err.split())
    assert contents(other) == before


@pytest.mark.promise(14)
def test_an_output_folder_is_not_taken_from_others(made, model_folder, tmp_path):
    run = made("mezo")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "full" / "adapter_config.json").write_text("{}")  # transformers would look for the adapter
    with pytest.raises(RunError, match="is not empty"):
        replay_run(run.path, out=tmp_path / "full")
    for place in (run.path / "inside", run.path.parent, model_folder):
        with pytest.raises(RunError, match="only read"):
            replay_run(run.path, out=place, force=True)
    replay_run(run.path, out=tmp_path / "full", force=True)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert torch.equal(logits(loaded(tmp_path / "full")), logits(run.load().model))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.fixture
def taken(tmp_path):
    """A folder that another model and something of the user's lie in."""
    folder = tmp_path / "full"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "mine.txt").write_text("mine")
    (folder / "notes" / "link").symlink_to("nowhere")
    (folder / "config.json").write_text("old")
    (folder / "old.safetensors").write_text("old weights")
    folder.chmod(0o700)
    return folder


def left_of(folder):
    return contents(folder), sorted(path.name for path in folder.parent.iterdir()), folder.stat().st_mode


def test_a_folder_is_replaced_with_what_nothing_took_the_place_of(taken):
    mode = taken.stat().st_mode
    with atomic_folder(taken, force=True) as folder:
        (folder / "config.json").write_text("new")
        (folder / "model.safetensors").write_text("new weights")
        assert (taken / "config.json").read_text() == "old"  # until the new one is complete
    texts = {str(p.relative_to(taken)): p.read_text() for p in taken.rglob("*") if p.is_file()}
    assert texts == {"config.json": "new", "model.safetensors": "new weights", "notes/mine.txt": "mine"}
    assert (taken / "notes" / "link").is_symlink()
    assert [path.name for path in taken.parent.iterdir()] == ["full"]
    assert taken.stat().st_mode == mode


class Full:
    """What fails in its place, as on a full disk, in one of its calls."""

    def __init__(self, real, fails_at, error):
        self.real, self.left, self.error = real, fails_at, error

    def __call__(self, *given, **options):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.real(*given, **options)


FAILURES = [
    ("os.rename", 1),
    ("os.rename", 2),
    ("shutil.copymode", 1),
    ("shutil.copytree", 1),
    ("pathlib.Path.mkdir", 1),
    ("pathlib.Path.write_text", 1),
    ("pathlib.Path.write_text", 2),
]


@pytest.mark.promise(15)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(("what", "at"), FAILURES)
def test_a_folder_stays_as_it_is_where_its_replacement_cannot_be_written(taken, monkeypatch, what, at, error):
    before = left_of(taken)
    place, _, name = what.rpartition(".")
    failing = Full(getattr(pkgutil.resolve_name(place), name), at, error)

    def write():
        with atomic_folder(taken, force=True) as folder:
            Path.write_text(folder / "config.json", "new")
            Path.write_text(folder / "model.safetensors", "new weights")

    with monkeypatch.context() as patched:
        patched.setattr(what, failing)
        with pytest.raises(RunError if isinstance(error, OSError) else KeyboardInterrupt):
            write()
    assert failing.left <= 0
    assert left_of(taken) == before
    write()
    assert (taken / "model.safetensors").is_file()


@pytest.mark.promise(15)
def test_a_process_killed_while_two_folders_change_places_costs_neither(taken):
    before = left_of(taken)
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom zofo.filesystem import atomic_folder\n"
        "rename, calls = os.rename, []\n"
        "def dying(*given):\n"
        "    calls.append(given)\n"
        "    if len(calls) == 2: os._exit(9)\n"
        "    rename(*given)\n"
        "os.rename = dying\n"
        "with atomic_folder(Path(sys.argv[1]), True) as folder: (folder / 'config.json').write_text('new')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(taken)], check=False)
    assert done.returncode == 9
    assert not taken.exists()  # the one moment at which neither is there
    with pytest.raises(RunError, match="is not empty"), atomic_folder(taken, force=False):
        pass
    assert left_of(taken) == before


def test_an_old_folder_whose_place_was_taken_meanwhile_is_named_and_kept(taken):
    before = left_of(taken)[0]
    old = taken.with_name(f".{taken.name}.zofo-old")
    taken.rename(old)
    taken.mkdir()
    (taken / "another.txt").touch()
    with pytest.raises(RunError, match="when a process was killed") as error, atomic_folder(taken, force=True):
        pass
    assert repr(str(old)) in error.value.message
    assert left_of(old)[0] == before
    (taken / "another.txt").unlink()  # empty: nobody's
    with atomic_folder(taken, force=True):
        pass
    assert not old.exists()


# scores


def test_a_run_that_was_stopped_is_shipped_without_the_scores_of_another_step(made, model_folder, tmp_path):
    config = made("bilevel").config.model_copy(update={"output_dir": tmp_path / "run"})
    stopped_at(config, 4)
    summary = RunFolder(tmp_path / "run").summary
    assert (summary["steps"], summary["evaluated_after"]) == (4, 3)
    card = export_run(tmp_path / "run", "patch", tmp_path / "p.zofo").card
    metrics = Patch.read(tmp_path / "p.zofo").header.metrics
    assert metrics == {"metric": "accuracy", "steps": 4, "queries": summary["queries"], "evaluated_after": 3}
    said = "not evaluated as it is here, after 4 steps: the last evaluation was after 3"
    assert said in card
    assert "\n| accuracy |" not in card
    assert said in "\n".join(apply_patch(tmp_path / "p.zofo", str(model_folder), tmp_path / "out").lines())
    train(config)
    card = export_run(tmp_path / "run", "patch", tmp_path / "p.zofo", force=True).card
    assert Patch.read(tmp_path / "p.zofo").header.metrics["accuracy"] == RunFolder(tmp_path / "run").summary["accuracy"]
    assert "not evaluated" not in card


def test_the_best_model_is_shipped_with_its_own_scores(made, tmp_path):
    run = made("bilevel")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for variant in ("adapter", "lower_adapter"):
        scores = {
            (line["steps"], line["variant"]): (line["accuracy"], line["loss"])
            for line in lines
            if line["event"] == "evaluation"
        }
        metrics = metrics_of(run, variant, best=True)
        step = run.summary["best"]["step"]
        assert metrics["steps"] == step
        assert (metrics["accuracy"], metrics["loss"]) == scores[step, variant]
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    copy.metrics.unlink()
    assert metrics_of(copy, "adapter", best=True)["accuracy"] == run.summary["best"]["score"]
    assert "accuracy" not in metrics_of(copy, "lower_adapter", best=True)


# export


@pytest.mark.parametrize("case", MERGED)
def test_merged_folders_have_the_logits_of_training(made, tmp_path, case):
    run = made(case)
    export_run(run.path, "merged", tmp_path / "out")
    model, trained = loaded(tmp_path / "out"), run.load()
    assert type(model).__name__ == "LlamaForCausalLM"
    apart = (logits(model) - logits(trained.model)).abs().max()
    assert apart == 0 if run.adapter_of() is None else apart < 1e-5
    base = loaded(run.config.model.name)
    assert (logits(model) - logits(base)).abs().max() > 1e-4  # the training is in it
    assert model.config.use_cache
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # whoever may read one file may read all
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a joy").input_ids


def test_variants_and_the_best_model_are_exported_as_they_are_evaluated(made, tmp_path):
    run = made("bilevel")
    for number, (variant, best) in enumerate([("lower_adapter", False), ("adapter", True)]):
        export_run(run.path, "merged", tmp_path / str(number), variant=variant, best=best)
        found = logits(loaded(tmp_path / str(number)))
        assert (found - logits(run.load(variant, best).model)).abs().max() < 1e-5
        if not best or run.summary["best"]["step"] < STEPS:
            assert (found - logits(run.load().model)).abs().max() > 1e-5


def test_a_classifier_and_its_new_head_are_merged_and_patched(made, model_folder, tmp_path):
    run = made("bilevel", "classifier", model={"head": "classification"})
    export_run(run.path, "merged", tmp_path / "merged")
    export_run(run.path, "patch", tmp_path / "p.zofo")
    assert apply_patch(tmp_path / "p.zofo", str(model_folder), tmp_path / "applied").same_bits
    for name in ("merged", "applied"):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        assert (logits(model) - logits(run.load().model)).abs().max() < 1e-5
    assert "AutoModelForSequenceClassification" in (tmp_path / "merged" / "README.md").read_text()


def test_a_run_that_broke_off_in_the_middle_of_a_step_is_replayed_to_its_end(made, model_folder, tmp_path):
    """In place, the weights went away and home again before the loss was seen to be no number."""
    run = made("in place", "broken")
    summary = run.summary
    shutil.copytree(run.path, tmp_path / "run")
    file = tmp_path / "run" / "trajectory.bin"
    trajectory = Trajectory.read(file)
    writer = TrajectoryWriter(file, trajectory.header["seed"], {}, file.stat().st_size)
    writer.on_move(Displacement({Key(trajectory.header["seed"], STEPS, 0): 1e-3}))
    writer.on_move(Displacement())
    writer.close()
    found = replay_run(tmp_path / "run")
    assert (found.steps, found.verdict) == (STEPS, "other bits")  # the moves leave a rounding, which is replayed
    assert found.fingerprint != summary["backbone"]


def test_a_probe_has_no_place_in_a_folder(made, tmp_path):
    run = made("probe")
    for kind in ("merged", "patch"):
        with pytest.raises(RunError, match="trained a probe"):
            export_run(run.path, kind, tmp_path / "out")


def test_an_adapter_is_what_peft_loads(made, tmp_path):
    run = made("first-order")
    export_run(run.path, "adapter", tmp_path / "out")
    model = with_adapter(loaded(run.config.model.name), tmp_path / "out")
    assert torch.equal(logits(model), logits(run.load().model))


def test_virtual_tokens_cannot_be_merged_and_the_hint_says_what_can_be_done(made, tmp_path):
    run = made("prefix")
    with pytest.raises(RunError, match="prefix tuning puts tokens before each row") as refused:
        export_run(run.path, "merged", tmp_path / "out")
    assert "--adapter" in refused.value.hint
    assert not (tmp_path / "out").exists()
    export_run(run.path, "adapter", tmp_path / "out")
    replay_run(run.path, out=tmp_path / "base")
    model = with_adapter(loaded(tmp_path / "base"), tmp_path / "out")
    theirs = run.load().model
    torch.testing.assert_close(
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits,
        theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits,
        rtol=1e-5,
        atol=1e-5,
    )


def test_nothing_that_is_exported_holds_a_path_of_this_machine(made, tmp_path):
    run = made("bilevel")
    export_run(run.path, "merged", tmp_path / "merged")
    export_run(run.path, "adapter", tmp_path / "adapter")
    export_run(run.path, "patch", tmp_path / "one.zofo")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert str(tmp_path.parent).encode() not in data, path
            assert str(Path.home()).encode() + b"/" not in data, path


def test_a_run_without_an_adapter_exports_none(made, tmp_path):
    with pytest.raises(RunError, match="has no adapter"):
        export_run(made("mezo").path, "adapter", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_the_layers_that_a_model_uses_twice_are_not_merged_into(made, tmp_path):
    model = loaded(made("mezo").config.model.name)
    AdapterConfig(name="lora", target_modules=["lm_head"]).build(model, ["adapter"], 0).save("adapter", tmp_path / "a")
    with pytest.raises(RunError, match="second place"):
        merge_adapter(loaded(made("mezo").config.model.name), tmp_path / "a")


@pytest.mark.soak
@pytest.mark.parametrize("kind", [*ARCHITECTURES, *MORE_ARCHITECTURES])
def test_every_architecture_is_merged_and_patched(made, tokenizer, tmp_path, kind):
    build_model(kind, len(tokenizer)).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    run = made("bilevel", f"of {kind}", model={"name": str(tmp_path / kind)})
    export_run(run.path, "merged", tmp_path / "merged")
    export_run(run.path, "patch", tmp_path / "p.zofo")
    assert apply_patch(tmp_path / "p.zofo", str(tmp_path / kind), tmp_path / "applied").same_bits
    for name in ("merged", "applied"):
        assert (logits(loaded(tmp_path / name)) - logits(run.load().model)).abs().max() < 2e-5


# push


class FakeHub:
    """What the Hub is asked for."""

    def __init__(self, fails=None):
        self.made, self.commits, self.fails = [], [], fails

    def create_repo(self, repo, *, private, exist_ok):
        if self.fails:
            raise self.fails
        self.made.append((repo, private, exist_ok))
        return SimpleNamespace(repo_id=repo, __str__=lambda _: repo)

    def create_commit(self, repo, operations, *, commit_message):
        self.commits.append({operation.path_in_repo: operation.path_or_fileobj for operation in operations})


@pytest.mark.parametrize("kind", ["merged", "adapter", "patch"])
def test_what_is_uploaded_is_what_was_exported_with_a_card(made, tmp_path, kind):
    hub = FakeHub()
    if kind != "patch":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("of nobody's business")
    exported = export_run(made("bilevel").path, kind, tmp_path / "out", force=True)
    push(exported, "me/model", api=hub)
    assert kind == "patch" or (tmp_path / "out" / "mine.txt").is_file()
    assert "mine.txt" not in hub.commits[0]
    assert hub.made == [("me/model", True, True)]
    (commit,) = hub.commits
    weights = {"merged": "model.safetensors", "adapter": "adapter_model.safetensors", "patch": "model.zofo"}[kind]
    assert {weights, "README.md"} <= set(commit)
    card = commit["README.md"].decode()
    assert ModelCard(card).data.tags == ["zofo", "bilevel"]
    assert "\n\n\n" not in card.split("```")[0]
    assert "fine-tuned on movie-reviews" in card
    assert str(tmp_path) not in card
    assert ("me/model" in card) == (kind != "patch")


def test_an_upload_that_fails_leaves_what_was_exported(made, tmp_path):
    exported = export_run(made("bilevel").path, "adapter", tmp_path / "out")
    with pytest.raises(RunError, match="cannot upload to 'me/model': no token") as refused:
        push(exported, "me/model", api=FakeHub(OSError("no token")))
    assert "hf auth login" in refused.value.hint
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


# diff


def test_equal_runs_are_equal(made):
    found = compare_runs(made("bilevel").path, made("bilevel", "again").path)
    assert found.equal
    assert found.lines()[-1] == "equal"


def test_the_first_step_that_differs_is_found(made, tmp_path):
    found = compare_runs(made("mezo").path, made("mezo", "short", steps=3).path)
    assert [difference.where for difference in found.asked] == ["training.steps"]
    assert (found.step, found.steps) == (3, (5, 3))
    other = made("mezo", "seeded", seed=1)
    found = compare_runs(made("mezo").path, other.path)
    assert found.step == 0
    assert [difference.where for difference in found.asked] == ["training.seed"]


def test_a_changed_update_and_a_changed_loss_are_named(made, tmp_path):
    run = made("mezo")
    changed = shutil.copytree(run.path, tmp_path / "changed")
    trajectory = Trajectory.read(run.trajectory)
    header = {name: value for name, value in trajectory.header.items() if name != "seed"}
    (changed / "trajectory.bin").unlink()
    writer, number = TrajectoryWriter(changed / "trajectory.bin", trajectory.header["seed"], header), 0
    for record in trajectory.records:
        if isinstance(record, Update):
            writer.on_update(replace(record, displacement=record.displacement * (2.0 if number == 2 else 1.0)))
        elif isinstance(record, Stepped):
            writer.stepped(record.number)
            number += 1
        else:
            writer.on_flush()
    writer.close()
    found = compare_runs(run.path, changed)
    assert (found.step, found.equal) == (2, False)
    (difference,) = found.at_step
    assert difference.where.startswith("update along (")
    assert difference.second == 2 * difference.first
    shutil.copy(run.trajectory, changed / "trajectory.bin")
    lines = run.metrics.read_text().splitlines()
    line = json.loads(lines[1])
    (changed / "metrics.jsonl").write_text("\n".join([lines[0], json.dumps(line | {"loss": 9.0}), *lines[2:]]) + "\n")
    found = compare_runs(run.path, changed)
    assert (found.step, [d.where for d in found.at_step]) == (1, ["loss"])


def test_what_processes_told_each_other_is_no_difference(made, tmp_path):
    run = made("mezo")
    other = shutil.copytree(run.path, tmp_path / "by two")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    lines = [line | ({"exchanged_bytes": 384} if line["event"] == "step" else {}) for line in lines]
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = json.loads((other / "environment.json").read_text())
    (other / "environment.json").write_text(json.dumps(environment | {"processes": "2"}))
    found = compare_runs(run.path, other)
    assert (found.equal, [difference.where for difference in found.versions]) == (True, ["processes"])


@pytest.mark.parametrize("reward", [0.0, 0.25])
def test_a_reward_that_an_older_version_logged_as_minus_a_loss_is_no_difference(made, tmp_path, reward):
    run = made("mezo")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    runs = []
    for name, told in (("old", {"loss": -reward}), ("new", {"reward": reward}), ("other", {"reward": reward + 1})):
        runs.append(shutil.copytree(run.path, tmp_path / name))
        kept = [
            {k: v for k, v in line.items() if k != "loss"} | told if line["event"] == "step" else line for line in lines
        ]
        (runs[-1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    old, new, other = runs
    assert compare_runs(old, new).equal
    (difference,) = compare_runs(other, old).at_step
    assert (difference.where, difference.first, difference.second) == ("loss", -reward - 1, -reward)


def test_adapters_that_differ_are_named(made, tmp_path):
    run = made("first-order")
    changed = shutil.copytree(run.path, tmp_path / "changed")
    file = changed / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    found = compare_runs(run.path, changed)
    assert [d.where for d in found.left] == ["adapter/adapter_model.safetensors"]
    assert found.step is None


# the command line


def test_the_verbs(run_zofo, made, tmp_path, model_folder):
    run = made("bilevel")
    code, out, _ = run_zofo("replay", run.path)
    assert code == 0
    assert "same bits (the hash of training's weights)" in out
    assert "adapters exist as of its last step" in out
    code, out, _ = run_zofo("replay", run.path, "--json", "--step", 2, "--summed")
    assert json.loads(out)["verdict"] == "nothing to compare with"
    assert run_zofo("diff", run.path, made("bilevel", "again").path)[0] == 0
    code, out, _ = run_zofo("diff", run.path, made("mezo").path)
    assert code == 1
    assert "method.name: bilevel | mezo" in out
    assert json.loads(run_zofo("diff", run.path, made("mezo").path, "--json")[1])["equal"] is False
    code, out, _ = run_zofo("export", run.path, "--patch", tmp_path / "p.zofo")
    assert code == 0
    assert f"wrote {tmp_path / 'p.zofo'}" in out
    code, out, _ = run_zofo("apply", tmp_path / "p.zofo", "--base", model_folder, "--out", tmp_path / "applied")
    assert code == 0
    assert "the backbone has the bits that training left" in out
    code, _, err = run_zofo("export", run.path, "--patch", tmp_path / "p.zofo")
    assert code == 2
    assert "--force" in err
    code, _, err = run_zofo("export", run.path, "--patch", tmp_path / "q.zofo", "--push", "me/model")
    assert code == 2  # the Hub is not there
    assert "cannot upload to 'me/model'" in err
    for forms in ([], ["--merged", tmp_path / "a", "--adapter", tmp_path / "b"]):
        code, _, err = run_zofo("export", run.path, *forms)
        assert code == 2
        assert "give one of --merged DIR" in err
