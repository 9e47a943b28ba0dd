"""A result is known by content: whatever of it changes on disk is named, in every command that uses the run."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, fields, replace

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from conftest import build_model, build_tokenizer, review_rows, write_rows
from test_resume import stopped_at
from zofo.errors import RunError, ZofoError
from zofo.export import apply_patch, compare_runs, export_run, replay_run
from zofo.export.save_pretrained import save_model
from zofo.models import load_model
from zofo.tasks import Example, TokenizedChoices, encode, packaged_text
from zofo.training import RunFolder, evaluate_run, predict, read_config, train
from zofo.training.identity import Identity, changes, model_identity, rows_hash, tokens_hash

MEZO = {"name": "mezo", "batch_size": 4, "rule": {"lr": 1e-3}}


def edited(path, change):
    """Change a JSON file; gives what puts it back."""
    before = path.read_bytes()
    content = json.loads(before)
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return lambda: path.write_bytes(before)


def another_weight(folder):
    path = folder / "model.safetensors"
    before, tensors = path.read_bytes(), load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    return lambda: path.write_bytes(before)


def another_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text("{{ messages[0].content }}", encoding="utf-8")
    return path.unlink


def in_config(**keys):
    return lambda folder: edited(folder / "config.json", lambda content: content.update(keys))


def no_theta(content):
    content["rope_parameters"]["rope_theta"] = 20000.0


CHANGES = {  # of a model's folder, and how each is named
    "weight": (another_weight, "its weights"),
    "epsilon": (in_config(rms_norm_eps=1e-3), "its config.json .rms_norm_eps was 1e-06, and is 0.001"),
    "theta": (
        lambda folder: edited(folder / "config.json", no_theta),
        "its config.json .rope_parameters.rope_theta was 10000.0, and is 20000.0",
    ),
    "activation": (in_config(hidden_act="gelu"), "hidden_act was 'silu', and is 'gelu'"),
    "normalizer": (
        lambda folder: edited(folder / "tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"})),
        "its tokenizer",
    ),
    "merge": (lambda folder: edited(folder / "tokenizer.json", lambda c: c["model"]["merges"].pop()), "its tokenizer"),
    "special token": (
        lambda folder: edited(folder / "tokenizer_config.json", lambda c: c.update(eos_token="<s>")),
        "its tokenizer",
    ),
    "chat template": (another_template, "its chat template"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, its rows, a run that was stopped, one that has ended, and its patch; what tests change they put back."""
    folder = tmp_path_factory.mktemp("identity")
    build_model("llama", len(build_tokenizer())).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    for split, rows in (("train", review_rows(16)), ("validation", review_rows(6, 60)), ("test", review_rows(6, 80))):
        write_rows(folder / "data" / f"{split}.jsonl", rows)
    (folder / "task.yaml").write_text(packaged_text("movie-reviews"), encoding="utf-8")
    train(configured(folder, "ended"))
    train(configured(folder, "adapted", method={"name": "first-order", "batch_size": 4}))
    stopped_at(configured(folder, "stopped"), 2)
    export_run(folder / "ended", "patch", folder / "patch.zofo")
    return folder


def configured(place, name, **groups):
    given = {
        "model": {"name": str(place / "model")},
        "task": {"name": str(place / "task.yaml"), "data_dir": str(place / "data")},
        "method": MEZO,
        "training": {"steps": 4, "eval_on_test": True},
        "output_dir": str(place / name),
    }
    return read_config(**{**given, **groups})


USES = {
    "resume": lambda place, out: train(configured(place, "stopped")),
    "eval": lambda place, out: evaluate_run(place / "ended"),
    "eval of other rows": lambda place, out: evaluate_run(place / "ended", data_dir=place / "data"),
    "predict": lambda place, out: predict(place / "ended", ["a joy"]),
    "start": lambda place, out: train(configured(place, str(out / "next"), init_from=str(place / "ended"))),
    "apply": lambda place, out: apply_patch(place / "patch.zofo", str(place / "model"), out / "applied"),
    "export": lambda place, out: export_run(place / "ended", "merged", out / "merged"),
    "export of an adapter": lambda place, out: export_run(place / "adapted", "adapter", out / "adapter"),
    "replay": lambda place, out: replay_run(place / "ended", out=out / "replayed"),
}


QUICK = {
    *zip(CHANGES, USES, strict=False),
    *((change, "eval") for change in CHANGES),
    *(("theta", use) for use in USES),
}
EVERY = [
    pytest.param(change, use, id=f"{change}-{use}", marks=[] if (change, use) in QUICK else [pytest.mark.soak])
    for change in CHANGES
    for use in USES
]


@pytest.mark.promise(22)
@pytest.mark.parametrize(("change", "use"), EVERY)
def test_a_base_model_that_has_changed_is_named_by_what_has(place, tmp_path, change, use):
    changed, named = CHANGES[change]
    back = changed(place / "model")
    try:
        with pytest.raises(ZofoError, match=f"is not the one that .*{named}|weights.*sha256") as refused:
            USES[use](place, tmp_path)
        assert refused.value.hint
        assert not any(tmp_path.iterdir())
    finally:
        back()


def another_row(split):
    def change(place):
        path = place / "data" / f"{split}.jsonl"
        before = path.read_text(encoding="utf-8")
        path.write_text(before.replace("film", "filn", 1), encoding="utf-8")
        return lambda: path.write_text(before, encoding="utf-8")

    return change


def another_prompt(place):
    path = place / "task.yaml"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("It was", "It Was", 1), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != before
    return lambda: path.write_text(before, encoding="utf-8")


@pytest.mark.promise(22)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_rows_that_have_changed_are_named(place, tmp_path, split):
    back = another_row(split)(place)
    try:
        with pytest.raises(RunError, match=f"the {split} rows of the task .* are not those that .*stopped' began with"):
            train(configured(place, "stopped"))
        with pytest.raises(RunError, match=f"the {split} rows of the task .* are not those that .*ended'") as refused:
            evaluate_run(place / "ended", split=split)
        assert "--data FILE" in refused.value.hint
        evaluate_run(place / "ended", data_dir=place / "data", split=split)  # other rows by intent
        predict(place / "ended", ["a joy"])  # which reads none of them
    finally:
        back()


@pytest.mark.promise(22)
def test_a_prompt_that_has_changed_is_named_and_a_run_that_ended_keeps_its_own(place):
    back, before = another_prompt(place), evaluate_run(place / "ended")
    try:
        with pytest.raises(RunError, match=r"the task 'movie-reviews' is not the one .*prompts"):
            train(configured(place, "stopped"))
        assert evaluate_run(place / "ended") == before
    finally:
        back()


@pytest.mark.promise(22)
def test_rows_that_are_drawn_otherwise_are_named_by_their_tokens(place, monkeypatch):
    """As by another version of the tokenizers library, which reads the same file and the same rows."""
    import zofo.training.data_module as prepared

    def encoded(*given, **options):
        first, *others = encode(*given, **options)
        return [replace(first, rows=tuple((7, *row[1:]) for row in first.rows)), *others]

    monkeypatch.setattr(prepared, "encode", encoded)
    match = "the train and validation and test tokens of the rows of the task 'movie-reviews' are not those"
    with pytest.raises(RunError, match=match):
        train(configured(place, "stopped"))
    with pytest.raises(RunError, match="the validation tokens of the rows"):
        evaluate_run(place / "ended")


@pytest.mark.promise(22)
@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.yaml", lambda c: c["method"]["rule"].update(lr=1.0), "method.rule.lr was 0.001, and is 1.0"),
        ("config.yaml", lambda c: c["task"].update(scoring="sum"), "task.scoring was 'mean', and is 'sum'"),
        ("config.yaml", lambda c: c["training"].pop("eval_on_test"), "training.eval_on_test was True, and is False"),
        ("task.yaml", lambda c: c.update(metric="macro-f1"), "it is not the task that was trained on"),
    ],
    ids=["rate", "scoring", "left out", "task"],
)
def test_a_run_whose_own_files_were_edited_is_refused(place, tmp_path, file, change, named):
    for name in ("stopped", "ended"):
        run = shutil.copytree(place / name, tmp_path / name)
        content = yaml.safe_load((run / file).read_text(encoding="utf-8"))
        change(content)
        (run / file).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    for use in (
        lambda: train(read_config(tmp_path / "stopped" / "config.yaml")),
        lambda: evaluate_run(tmp_path / "ended"),
        lambda: predict(tmp_path / "ended", ["a joy"]),
        lambda: export_run(tmp_path / "ended", "merged", tmp_path / "out"),
        lambda: export_run(tmp_path / "ended", "patch", tmp_path / "patch"),
        lambda: compare_runs(tmp_path / "ended", place / "ended"),
    ):
        with pytest.raises(RunError, match=f"{file}' was changed since the run began: {named}") as refused:
            use()
        verbs = ("eval",) if file == "task.yaml" else ("eval", "predict", "chat", "export", "train")
        assert all(verb in refused.value.hint for verb in verbs)


# a run is the folder that holds it


def bytes_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.promise(22)
@pytest.mark.parametrize("way", ["copied", "moved", "from inside", "by a relative path"])
def test_the_configuration_of_a_run_means_that_run(place, tmp_path, monkeypatch, way):
    stopped = shutil.copytree(place / "stopped", tmp_path / "stopped")
    content = yaml.safe_load((stopped / "config.yaml").read_text(encoding="utf-8"))
    assert content["output_dir"] == str(place / "stopped")  # where it was
    here = shutil.move(stopped, tmp_path / "elsewhere") if way == "moved" else stopped
    before = bytes_of(place)
    if way in ("from inside", "by a relative path"):
        monkeypatch.chdir(here if way == "from inside" else tmp_path)
    file = {"from inside": "config.yaml", "by a relative path": "stopped/config.yaml"}.get(way, here / "config.yaml")
    run = train(read_config(file))
    assert os.path.samefile(run.path, here)
    assert run.ended
    assert bytes_of(place) == before


def test_a_run_that_is_named_by_its_configuration_takes_another_folder_only_by_name(place, tmp_path):
    file = place / "ended" / "config.yaml"
    with pytest.raises(RunError, match="never overwrites another"):
        train(read_config(file))
    assert train(read_config(file, [f"output_dir={tmp_path / 'again'}"])).path == tmp_path / "again"


@pytest.mark.promise(22)
def test_a_run_goes_on_where_its_model_and_rows_were_moved(place, tmp_path):
    stopped = shutil.copytree(place / "stopped", tmp_path / "stopped")
    for name in ("model", "data"):
        shutil.copytree(place / name, tmp_path / name)
    moved = [f"model.name={tmp_path / 'model'}", f"task.data_dir={tmp_path / 'data'}"]
    another_row("train")(tmp_path)
    with pytest.raises(RunError, match="the train rows"):
        train(read_config(stopped / "config.yaml", moved))
    shutil.copytree(place / "data", tmp_path / "data", dirs_exist_ok=True)
    assert train(read_config(stopped / "config.yaml", moved)).ended


@pytest.mark.promise(22)
def test_the_run_that_a_run_starts_from_is_known_by_content_and_moves_with_it(place, tmp_path):
    first = shutil.copytree(place / "ended", tmp_path / "first")
    config = configured(place, str(tmp_path / "next"), init_from=str(first))
    train(config)
    both = tmp_path / "both"
    both.mkdir()
    for name in ("first", "next"):
        shutil.move(tmp_path / name, both / name)
    before = evaluate_run(both / "next")
    train(configured(place, str(first), training={"steps": 3, "eval_on_test": True}))  # another one takes its place
    with pytest.raises(RunError, match="the run that it starts from is not the one that"):
        evaluate_run(both / "next")
    shutil.rmtree(first)
    assert evaluate_run(both / "next") == before


# what is no change


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen2", "gemma3", "bert"])
def test_a_model_that_is_saved_again_elsewhere_is_the_same(kind, tmp_path):
    head = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    tokenizer = build_tokenizer(bos=True)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    build_model(kind, len(tokenizer), head=head).save_pretrained(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "one")
    loaded = load_model(str(tmp_path / "one"))
    began = Identity.read(json.loads(json.dumps(model_identity(loaded).as_dict())))
    save_model(loaded, tmp_path / "two")
    loaded.tokenizer(["some text", "a text"], padding=True, truncation=True, max_length=3)  # which it remembers
    assert not changes(began, model_identity(loaded))
    assert not changes(began, model_identity(load_model(str(tmp_path / "two"))))


def test_keys_that_another_version_of_transformers_adds_are_no_change(model_folder, monkeypatch):
    began = model_identity(load_model(str(model_folder)))
    now = replace(began, model_config={**began.model_config, "a_new_key": False})
    assert changes(began, now) == {"model_config": "a_new_key was None, and is False"}
    newer = replace(now, model_config={**now.model_config, "transformers_version": "99.0"})
    assert not changes(began, newer)
    other = replace(newer, model_config={**newer.model_config, "rms_norm_eps": 1.0})
    assert changes(began, other) == {"model_config": "rms_norm_eps was 1e-06, and is 1.0"}


def test_buffers_that_a_checkpoint_brings_are_part_of_the_model(model_folder):
    loaded = load_model(str(model_folder))
    loaded.model.register_buffer("scale", torch.ones(2))
    began = model_identity(loaded)
    loaded.model.scale[1] = 2
    assert list(changes(began, model_identity(loaded))) == ["buffers"]


def test_how_texts_end_is_part_of_a_model_that_generates(model_folder):
    loaded = load_model(str(model_folder))
    began, of_labels = model_identity(loaded), model_identity(loaded, generates=False)
    loaded.model.generation_config.eos_token_id = 5
    assert changes(began, model_identity(loaded)) == {"generation_config": "eos_token_id was 2, and is 5"}
    assert not changes(of_labels, model_identity(loaded))


def test_hashes_tell_rows_and_tokens_apart(tokenizer):
    rows = [Example("a joy", (" great", " bad"), (0,)), Example("dull", (" great", " bad"), (1,))]
    others = [
        rows[::-1],
        rows[:1],
        [replace(rows[0], golds=(1,)), rows[1]],
        [replace(rows[0], prompt="A joy"), rows[1]],
    ]
    assert len({rows_hash(some) for some in (rows, *others)}) == 5
    assert len({tokens_hash(encode(tokenizer, some)) for some in (rows, *others)}) == 5
    one = encode(tokenizer, rows)
    assert tokens_hash([replace(one[0], scored=(0, 1)), one[1]]) != tokens_hash(one)
    assert rows_hash([replace(one, where="elsewhere") for one in rows]) == rows_hash(rows)


def test_what_a_later_version_adds_to_an_example_in_tokens_does_not_change_its_hash(tokenizer):
    @dataclass(frozen=True)
    class Later(TokenizedChoices):
        added: str = ""

    one = encode(tokenizer, [Example("a joy", (" great", " bad"), (0,))])[0]
    later = Later(**{field.name: getattr(one, field.name) for field in fields(one)})
    assert tokens_hash([later]) == tokens_hash([one])
    assert tokens_hash([replace(later, added="x")]) != tokens_hash([one])


def test_what_an_older_version_did_not_write_down_is_said_and_not_compared(place, tmp_path, capsys, run_zofo):
    run = shutil.copytree(place / "ended", tmp_path / "run")
    path = run / "environment.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    older = {key: content[key] for key in ("zofo", "torch", "model_hash", "rows", "objective")}
    path.write_text(json.dumps(older), encoding="utf-8")
    assert evaluate_run(run) == evaluate_run(place / "ended")
    code, _, err = run_zofo("eval", run)
    assert code == 0
    assert err.count("an older version did not write it down: buffers, config.json, tokenizer") == 1
    path.write_text(json.dumps({**older, "tokenizer": 5}), encoding="utf-8")
    with pytest.raises(RunError, match=r"environment.json': its 'tokenizer' cannot be '5'"):
        evaluate_run(run)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match="lacks 'model_hash'"):
        evaluate_run(run)


@pytest.mark.promise(22)
def test_two_runs_of_other_content_are_told_apart(place, tmp_path):
    back = in_config(rms_norm_eps=1e-3)(place / "model")
    other = another_row("validation")(place)
    try:
        train(configured(place, str(tmp_path / "other")))
    finally:
        back()
        other()
    found = {str(one.where) for one in compare_runs(place / "ended", tmp_path / "other").asked}
    assert found == {"config.json: rms_norm_eps", "validation rows"}
    assert RunFolder(tmp_path / "other").identity.rows["train"] == RunFolder(place / "ended").identity.rows["train"]


@pytest.mark.promise(22)
@pytest.mark.parametrize("kind", ["adapter", "patch"])
def test_a_base_model_that_is_named_for_an_export_is_compared(place, tmp_path, kind):
    other = shutil.copytree(place / "model", tmp_path / "other")
    export_run(place / "adapted", kind, tmp_path / "same", model=str(other))
    in_config(rms_norm_eps=1e-3)(other)
    with pytest.raises(RunError, match="is not the one that .*rms_norm_eps"):
        export_run(place / "adapted", kind, tmp_path / "out", model=str(other))


@pytest.mark.promise(22)
@pytest.mark.parametrize("lost", ["task.yaml", "environment.json"])
def test_a_run_that_lost_a_file_never_means_another(place, tmp_path, lost):
    stopped = shutil.copytree(place / "stopped", tmp_path / "stopped")
    (stopped / lost).unlink()
    before = bytes_of(place)
    with pytest.raises(ZofoError, match=lost) as refused:
        train(read_config(stopped / "config.yaml"))
    assert str(stopped) in str(refused.value)
    assert bytes_of(place) == before


def test_a_run_that_does_not_know_its_weights_is_not_shipped(place, tmp_path):
    run = shutil.copytree(place / "ended", tmp_path / "run")
    (run / "environment.json").unlink()
    with pytest.raises(RunError, match="environment.json"):
        export_run(run, "patch", tmp_path / "patch.zofo")
    assert not (tmp_path / "patch.zofo").exists()


@pytest.mark.promise(22)
@pytest.mark.parametrize("key", ["configuration", "tokens", "model_config"])
def test_what_a_run_began_with_is_hashed_in_its_checkpoint(place, tmp_path, key):
    """So that a key that is edited in both files, or taken out of the record, is no other run."""
    run = shutil.copytree(place / "stopped", tmp_path / "stopped")
    path, config = run / "environment.json", run / "config.yaml"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content[key]
    path.write_text(json.dumps(content), encoding="utf-8")
    if key == "configuration":
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace("steps: 4", "steps: 8"), encoding="utf-8")
    with pytest.raises(RunError, match="environment.json' was changed since the checkpoint was written"):
        train(read_config(config))
