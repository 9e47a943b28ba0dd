"""Patches: what a run adds to its base model, on another machine, and from somebody who means harm."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import struct
import time
import zlib
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load, save, save_file

from conftest import build_model, build_tokenizer
from shipped_runs import contents, loaded, logits, maker, with_adapter
from zofo.errors import PatchError, RunError, ZofoError
from zofo.export import Patch, apply_patch, export_run
from zofo.export.patch import VERSION, packed, unpacked
from zofo.models import load_model
from zofo.trajectory import Trajectory

CASES = ("mezo", "bilevel", "in place", "weight decay", "adapter", "first-order", "dora", "ia3", "head", "two-stage")


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    return maker(model_folder, tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="module")
def patches(made, tmp_path_factory):
    """The patch of a case, written once."""
    folder = tmp_path_factory.mktemp("patches")

    def patch(case="bilevel", **options):
        file = folder / f"{case}-{'-'.join(options)}.zofo"
        if not file.exists():
            export_run(made(case).path, "patch", file, **options)
        return file

    return patch


# what it is for


@pytest.mark.promise(17)
@pytest.mark.parametrize("case", CASES)
def test_an_applied_patch_has_the_logits_of_training(made, patches, model_folder, tmp_path, case):
    run = made(case)
    found = apply_patch(patches(case), str(model_folder), tmp_path / "out")
    moved = run.trajectory.is_file() and case != "adapter"
    assert (found.merged, found.same_bits) == (True, True if moved else None)
    apart = (logits(loaded(tmp_path / "out")) - logits(run.load().model)).abs().max()
    assert apart == 0 if run.adapter_of() is None and case != "in place" else apart < 1e-5


def test_a_stop_is_answered_and_leaves_nothing(patches, model_folder, tmp_path, run_zofo, monkeypatch):
    words = ("apply", patches(), "--base", model_folder, "--out", tmp_path / "new" / "out")
    for place in ("_replay", "save_model"):
        with monkeypatch.context() as patched:
            patched.setattr(f"zofo.export.apply.{place}", lambda *_: signal.raise_signal(signal.SIGTERM))
            code, out, err = run_zofo(*words)
        assert (code, out) == (143, "")
        assert err.startswith("stopped by SIGTERM before its end; what it was at is not saved")
        assert not (tmp_path / "new").exists() or not [*(tmp_path / "new").iterdir()]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run_zofo(*words)[0] == 0


def test_a_run_in_place_of_its_patch_is_refused_with_what_to_type(made, model_folder, tmp_path, run_zofo):
    run = made("bilevel")
    code, _, err = run_zofo("apply", run.path, "--base", model_folder, "--out", tmp_path / "out")
    assert code == 2
    assert f"zofo export {run.path} --patch FILE" in " ".join(err.split())


def test_an_adapter_that_cannot_be_merged_lies_beside_the_model(made, patches, model_folder, tmp_path):
    run = made("prefix")
    found = apply_patch(patches("prefix"), str(model_folder), tmp_path / "out")
    assert not found.merged
    model = with_adapter(loaded(tmp_path / "out" / "model"), tmp_path / "out" / "adapter")
    ids = torch.tensor([[5, 17, 42, 8]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.testing.assert_close(model(**given).logits, run.load().model(**given).logits, rtol=1e-5, atol=1e-5)


def test_variant_and_best_are_those_of_the_run(made, patches, model_folder, tmp_path):
    for variant, best in (("lower_adapter", False), ("adapter", True)):
        file = tmp_path / f"{variant}.zofo"
        export_run(made("bilevel").path, "patch", file, variant=variant, best=best)
        header = Patch.read(file).header
        assert (header.variant, header.best) == (variant, best)
        apply_patch(file, str(model_folder), tmp_path / variant)
        theirs = made("bilevel").load(variant, best).model
        assert (logits(loaded(tmp_path / variant)) - logits(theirs)).abs().max() < 1e-5
    assert Patch.read(file).stages[0].header.steps == made("bilevel").summary["best"]["step"]


def test_a_folded_patch_is_smaller_and_agrees_up_to_rounding(made, patches, model_folder, tmp_path):
    whole, summed = patches("in place"), patches("in place", summed=True)
    assert summed.stat().st_size < whole.stat().st_size
    assert len(Patch.read(summed).stages[0].trajectory.updates) == 1
    apply_patch(summed, str(model_folder), tmp_path / "summed")
    apply_patch(whole, str(model_folder), tmp_path / "added", summed=True)
    theirs = logits(made("in place").load().model)  # which adds them up, too
    assert torch.equal(logits(loaded(tmp_path / "summed")), logits(loaded(tmp_path / "added")))
    assert torch.equal(logits(loaded(tmp_path / "summed")), theirs)


@pytest.mark.promise(17)
def test_runs_that_start_from_runs_are_one_patch(made, model_folder, tmp_path):
    first = made("mezo")
    second = made("in place", "second", start=first.path)
    export_run(second.path, "patch", tmp_path / "p.zofo")
    patch = Patch.read(tmp_path / "p.zofo")
    assert [stage.header.steps for stage in patch.stages] == [5, 5]
    found = apply_patch(tmp_path / "p.zofo", str(model_folder), tmp_path / "out")
    assert found.same_bits
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), logits(second.load().model), rtol=1e-5, atol=1e-5)


@pytest.mark.promise(17)
def test_half_precision_keeps_its_bits_without_its_weights(made, model_folder, tmp_path):
    run = made("mezo", "half", model={"dtype": "bfloat16"})
    export_run(run.path, "patch", tmp_path / "p.zofo")
    assert (tmp_path / "p.zofo").stat().st_size < 4096
    assert apply_patch(tmp_path / "p.zofo", str(model_folder), tmp_path / "out").same_bits
    assert torch.equal(logits(loaded(tmp_path / "out", torch.bfloat16)), logits(run.load().model))
    with pytest.raises(RunError, match="rounded one by one"):
        export_run(run.path, "patch", tmp_path / "f.zofo", summed=True)


def test_a_patch_is_some_bytes_a_step_and_its_adapter(made, patches):
    run = made("bilevel")
    adapter = (run.path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert patches().stat().st_size < adapter + 34 * 5 + 4096


def test_the_header_says_what_it_holds(made, patches):
    header = Patch.read(patches()).header
    run = made("bilevel")
    assert header.base.sha256 == run.base_hash
    assert header.base.name == "tiny-llama"
    assert header.noise["name"] == "low-rank"
    assert header.metrics["accuracy"] == run.summary["accuracy"]
    assert header.backbone == run.summary["backbone"]


@pytest.mark.promise(8)
def test_a_wrong_base_is_refused_by_hash(patches, made, tmp_path):
    other = tmp_path / "other"
    build_model("llama", len(build_tokenizer()), seed=1).save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    with pytest.raises(PatchError, match=made("bilevel").base_hash) as refused:
        apply_patch(patches(), str(other), tmp_path / "out")
    assert "--base tiny-llama" in refused.value.hint
    assert not (tmp_path / "out").exists()
    assert refused.value.message.count("sha256:") == 2


@pytest.fixture
def asked_for(monkeypatch, model_folder):
    """What models are asked for; each is the tiny one, as if the Hub had it."""
    asked = []

    def load(config, *others):
        asked.append((config.name, config.revision))
        return load_model(config.model_copy(update={"name": str(model_folder)}), *others)

    monkeypatch.setattr("zofo.export.apply.load_model", load)
    return asked


def test_the_revision_of_the_base_is_that_of_training(made, model_folder, tmp_path, asked_for, run_zofo):
    run = made("bilevel", "revised", model={"revision": "v1.2"})
    file = tmp_path / "p.zofo"
    assert "revision `v1.2`" in export_run(run.path, "patch", file).card
    patch = Patch.read(file)
    assert patch.header.base.revision == "v1.2"
    export_run(run.path, "adapter", tmp_path / "adapter")
    for content in (patch.adapter["adapter_config.json"], (tmp_path / "adapter" / "adapter_config.json").read_bytes()):
        assert json.loads(content)["revision"] == "v1.2"
    apply_patch(file, "tiny-llama", tmp_path / "own")
    apply_patch(file, str(model_folder), tmp_path / "folder")
    code, _, _ = run_zofo("apply", file, "--base", "tiny-llama", "--revision", "v2", "--out", tmp_path / "given")
    assert code == 0
    assert asked_for == [("tiny-llama", "v1.2"), (str(model_folder), None), ("tiny-llama", "v2")]


def test_a_base_of_another_revision_is_refused_with_both(patches, tmp_path, asked_for):
    def change(header, parts):
        header["base"] |= {"revision": "v1", "sha256": "sha256:" + "0" * 64}

    file = rewritten(patches, tmp_path, change)
    with pytest.raises(
        PatchError, match=r"'tiny-llama' at the revision 'v1' with .* at the revision 'v2' has"
    ) as error:
        apply_patch(file, "tiny-llama", tmp_path / "out", revision="v2")
    assert error.value.hint.endswith("--base tiny-llama --revision v1")


def test_a_run_that_trained_nothing_has_no_patch(made, model_folder, tmp_path):
    with pytest.raises(RunError, match="left nothing"):
        export_run(made("zero-shot").path, "patch", tmp_path / "p.zofo")


# what is refused


def rewritten(patches, tmp_path, change, case="bilevel"):
    """A patch whose hashes are right, with something else in it."""
    header, parts = unpacked(patches(case))
    change(header, parts)
    (tmp_path / "hostile.zofo").write_bytes(packed(header, parts))
    return tmp_path / "hostile.zofo"


def refused(file, base, tmp_path):
    """What is said of it, within seconds, and nothing is written."""
    before, start = sorted(tmp_path.iterdir()), time.process_time()
    with pytest.raises(ZofoError) as error:
        apply_patch(file, str(base), tmp_path / "out")
    assert time.process_time() - start < 5
    assert sorted(tmp_path.iterdir()) == before
    return error.value.message


@pytest.mark.promise(8)
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.soak)])
def test_every_flipped_byte_is_found(patches, tmp_path, tries, every):
    data = patches("mezo").read_bytes()
    file = tmp_path / "flipped.zofo"
    for place in tries([*range(48), *range(48, len(data), every)]):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(PatchError):
            Patch.read(file)


@pytest.mark.promise(8)
def test_every_truncation_is_found(patches, tmp_path, tries):
    data = patches("mezo").read_bytes()
    file = tmp_path / "cut.zofo"
    for length in tries(range(0, len(data), 7)):
        file.write_bytes(data[:length])
        with pytest.raises(PatchError, match="is not a patch, or it was cut short"):
            Patch.read(file)
    file.write_bytes(data + b"\0")
    with pytest.raises(PatchError, match="is not a patch, or it was cut short or changed"):
        Patch.read(file)


def test_a_newer_version_is_named(tmp_path):
    save_file({}, tmp_path / "newer.zofo", {"version": str(VERSION + 1)})
    with pytest.raises(
        PatchError, match=f"version {VERSION + 1}, and this zofo reads up to version {VERSION}"
    ) as error:
        Patch.read(tmp_path / "newer.zofo")
    assert "upgrade" in error.value.hint


def test_a_file_that_is_no_patch_is_one_message(tmp_path):
    (tmp_path / "text").write_text("hello, I am no patch at all, and long enough to be one")
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    for path, text in (
        (tmp_path / "text", "is not a patch"),
        (tmp_path / "model.safetensors", "is not a patch"),
        (tmp_path / "nothing", "cannot read"),
        (tmp_path, "read"),
    ):
        with pytest.raises(PatchError, match=text):
            Patch.read(path)


def trajectory_with(header, parts, records=None, **changed):
    """Write other records, or another header, into the trajectory of a patch."""
    old = Trajectory.parse(parts["trajectory_0.bin"], "")
    content = json.dumps({**old.header, **changed}, sort_keys=True).encode()
    data = b"ZOFOTRJ2" + struct.pack("<II", len(content), zlib.crc32(content)) + content
    if records is None:
        length = struct.unpack_from("<I", parts["trajectory_0.bin"], 8)[0]
        records = parts["trajectory_0.bin"][16 + length :]
    parts["trajectory_0.bin"] = data + records


def record(kind, number, payload=b""):
    checksum = zlib.crc32(payload, zlib.crc32(struct.pack("<BI", kind, number)))
    return struct.pack("<BII", kind, number, checksum) + payload


def update(coefficient, step=0):
    return record(1, 1, struct.pack("<IId", step, 0, coefficient))


ENDED = record(4, 4)
LARGE = b"".join(update(2e38, step) for step in range(40)) + ENDED
HOSTILE = {
    "NaN coefficient": (lambda h, p: trajectory_with(h, p, update(float("nan")) + ENDED), "not finite"),
    "infinite coefficient": (lambda h, p: trajectory_with(h, p, update(float("inf")) + ENDED), "not finite"),
    "too large for float32": (lambda h, p: trajectory_with(h, p, update(1e300) + ENDED), "non-finite update"),
    "weights that overflow": (lambda h, p: trajectory_with(h, p, LARGE), "not finite|non-finite"),
    "huge count of terms": (lambda h, p: trajectory_with(h, p, record(1, 2**32 - 1) + ENDED), "inside a record"),
    "unknown record": (lambda h, p: trajectory_with(h, p, record(9, 0) + ENDED), "damaged"),
    "record cut": (lambda h, p: trajectory_with(h, p, update(1.0)[:-1]), "inside a record"),
    "shrinks below nothing": (
        lambda h, p: trajectory_with(h, p, record(17, 0, struct.pack("<d", 7.0)) + ENDED),
        "shrinks the weights by 7",
    ),
    "steps that are not there": (lambda h, p: h["stages"][0].update(steps=2**31), "but the header says"),
    "a score beyond floats": (lambda h, p: h["metrics"].update(accuracy=10**400), "it holds the number 1000"),
    "more steps than can be": (lambda h, p: h["stages"][0].update(steps=10**30), "stages.0.steps"),
    "negative steps": (lambda h, p: h["stages"][0].update(steps=-1), "stages.0.steps"),
    "many stages": (lambda h, p: h.update(stages=h["stages"] * 1000), "stages"),
    "rank": (lambda h, p: trajectory_with(h, p, noise={"name": "low-rank", "rank": 10**9}), "rank 1000000000"),
    "rank of no number": (lambda h, p: trajectory_with(h, p, noise={"name": "low-rank", "rank": "4"}), "rank 4"),
    "rank above its model": (
        lambda h, p: trajectory_with(h, p, noise={"name": "low-rank", "rank": 60}),
        "is 60, but",
    ),
    "unknown noise": (lambda h, p: trajectory_with(h, p, noise={"name": "os.system"}), "unknown noise"),
    "noise of no kind": (lambda h, p: trajectory_with(h, p, noise=[1, 2]), "noise"),
    "noise that a terminal obeys": (
        lambda h, p: trajectory_with(h, p, noise={"name": "\x1b[2J" * 9999}),
        "unknown noise",
    ),
    "option that a terminal obeys": (
        lambda h, p: trajectory_with(h, p, noise={"name": "gaussian", "\x1b[2J" * 9999: 1}),
        "the header of the trajectory: method.noise",
    ),
    "unknown rule": (lambda h, p: trajectory_with(h, p, rule={"name": "sgd", "lr": "high"}), "lr"),
    "rule option": (lambda h, p: trajectory_with(h, p, rule={"name": "sgd", "path": "/etc"}), "not an option"),
    "no evaluator": (lambda h, p: trajectory_with(h, p, evaluator=None), "evaluator"),
    "selects what is not there": (lambda h, p: trajectory_with(h, p, trainable=["no.such.*"]), "matches none"),
    "selects no names": (lambda h, p: trajectory_with(h, p, trainable=5), "trainable"),
    "seed": (lambda h, p: trajectory_with(h, p, seed=2**64), "seed"),
    "stream in the trajectory": (lambda h, p: trajectory_with(h, p, stream=99), "noise stream"),
    "noise stream": (lambda h, p: h.update(stream=99), "version 99 of the noise stream"),
    "unknown key": (lambda h, p: h.update(run="rm"), "unknown key"),
    "texts that a terminal obeys": (lambda h, p: h.update(task="\x1b]0;x\x07"), "cannot be shown"),
    "long texts": (lambda h, p: h["base"].update(name="x" * 10**5), "cannot be shown"),
    "seed without end": (lambda h, p: trajectory_with(h, p, seed=float("inf")), "header of the trajectory is damaged"),
    "no base": (lambda h, p: h.pop("base"), "base"),
    "dtype": (lambda h, p: h["base"].update(dtype="float4"), "dtype"),
    "labels": (lambda h, p: h["base"].update(labels=10**12), "labels"),
    "revision that is a path": (lambda h, p: h["base"].update(revision="a/../../x"), "cannot be the revision"),
    "revision from the root": (lambda h, p: h["base"].update(revision="/etc/passwd"), "cannot be the revision"),
    "hash of no form": (lambda h, p: h["base"].update(sha256="../../x"), "base.sha256: String should match pattern"),
    "part without a use": (lambda h, p: p.update(extra=b"x"), "nothing says what the part 'extra' is for"),
    "path as a name": (lambda h, p: p.update({"../x": b"x"}), r"nothing says what the part '\.\./x' is for"),
    "path as the adapter": (
        lambda h, p: p.update({"/etc/passwd": b"x"}),
        "nothing says what the part '/etc/passwd' is for",
    ),
    "stage of another part": (lambda h, p: h["stages"][0].update(trajectory="../../x"), "'../../x' is missing"),
    "many parts": (lambda h, p: p.update({f"p{i}": b"" for i in range(100)}), "nothing says what the part 'p"),
    "adapter is missing": (lambda h, p: p.pop("adapter_model.safetensors"), "is missing"),
    "adapter of no form": (lambda h, p: p.update({"adapter_model.safetensors": b"\xff" * 64}), "cannot be read"),
}


def adapter_config(**changed):
    def change(header, parts):
        content = json.loads(parts["adapter_config.json"])
        parts["adapter_config.json"] = json.dumps({**content, **changed}).encode()

    return change


def adapter_tensors(change):
    def rewrite(header, parts):
        tensors = load(parts["adapter_model.safetensors"])
        parts["adapter_model.safetensors"] = save(change(tensors))

    return rewrite


def _first(tensors, value):
    name = next(iter(tensors))
    return {**tensors, name: torch.full_like(tensors[name], value)}


HOSTILE |= {
    "adapter imports a module": (adapter_config(megatron_config={"a": 1}, megatron_core="os"), "megatron"),
    "adapter maps to a library": (adapter_config(auto_mapping={"parent_library": "os"}), "auto_mapping"),
    "adapter of a kind of its own": (adapter_config(peft_type="VERA"), "'VERA', which zofo does not make"),
    "adapter starts by a decomposition": (adapter_config(init_lora_weights="pissa"), "init_lora_weights"),
    "adapter of a huge rank": (adapter_config(r=2**40), "sets 'r'"),
    "adapter of another rank": (adapter_config(r=1000), "rank is 1000"),
    "adapter's alpha": (adapter_config(lora_alpha=float("nan")), "lora_alpha"),
    "adapter's pattern": (adapter_config(target_modules="(a+)+$"), "target_modules"),
    "adapter copies layers": (adapter_config(layer_replication=[[0, 10**6]]), "layer_replication"),
    "adapter of a newer peft": (adapter_config(new_trick=7), f"'new_trick' to 7, .* peft {peft.__version__}"),
    "adapter of a kind that peft lacks": (adapter_config(peft_type="\x1b[2J" + "x" * 999), r"the kind '\\x1b\[2J"),
    "adapter whose option a terminal obeys": (adapter_config(**{"\x1b]0;x\x07": 1}), r"sets '\\x1b\]0;x\\x07' to 1"),
    "adapter with a long option": (
        adapter_config(**{"x" * 10**5: "y" * 10**5}),
        r"sets 'x+ \[\.\.\.\] x+' to 'y+ \[\.\.\.\] y+',",
    ),
    "adapter of other layers": (adapter_config(target_modules=["no_proj"]), "not an adapter of this model"),
    "adapter's task": (adapter_config(task_type="../x"), "task_type"),
    "adapter holds NaN": (adapter_tensors(lambda t: _first(t, float("nan"))), "not finite"),
    "adapter overflows": (adapter_tensors(lambda t: {n: torch.full_like(x, 1e30) for n, x in t.items()}), "not finite"),
    "adapter has more tensors": (adapter_tensors(lambda t: {**t, "model.x": torch.ones(2)}), "no place for"),
    "adapter's tensor of a name": (adapter_tensors(lambda t: {**t, "\x1b[2J": torch.ones(2)}), "cannot be the name"),
    "adapter's tensor without numbers": (adapter_tensors(lambda t: {**t, "a": torch.ones(0, 9)}), "has the shape"),
    "adapter of whole numbers": (adapter_tensors(lambda t: {**t, "a": torch.ones(2).int()}), "not finite"),
    "adapter without tensors": (adapter_tensors(lambda t: {}), "holds no tensors"),
    "adapter lacks an A": (
        adapter_tensors(lambda t: {n: t[n] for n in t if n != min(m for m in t if ".lora_A." in m)}),
        "it lacks the tensor '.*lora_A",
    ),
    "adapter lacks a B": (
        adapter_tensors(lambda t: {n: t[n] for n in t if n != min(m for m in t if ".lora_B." in m)}),
        "it lacks the tensor '.*lora_B",
    ),
    "adapter of another shape": (
        adapter_tensors(lambda t: {n: (x if ".lora_A." in n else torch.ones(3, 8)) for n, x in t.items()}),
        "not an adapter of this model",
    ),
}


@pytest.mark.promise(12, 14)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_patch_is_refused(patches, model_folder, tmp_path, case):
    change, text = HOSTILE[case]
    message = refused(rewritten(patches, tmp_path, change), model_folder, tmp_path)
    assert re.search(text, message), message
    assert message.isprintable()
    assert len(message) < 1000


OF_THE_HEADER = {
    "rank",
    "rank of no number",
    "unknown noise",
    "noise of no kind",
    "noise that a terminal obeys",
    "option that a terminal obeys",
    "selects no names",
    "unknown rule",
    "rule option",
    "no evaluator",
    "stream in the trajectory",
}
OF_THE_MODEL = {"adapter overflows", "adapter of other layers", "adapter has more tensors", "adapter of another shape"}


OF_THE_ADAPTER = {case for case in HOSTILE if case.startswith("adapter")} - OF_THE_MODEL


@pytest.mark.parametrize("case", sorted(OF_THE_ADAPTER | OF_THE_HEADER))
def test_adapter_and_header_are_looked_at_before_their_base_is_loaded(patches, tmp_path, monkeypatch, case):
    monkeypatch.setattr("zofo.export.apply.load_model", pytest.fail)
    file = rewritten(patches, tmp_path, HOSTILE[case][0])
    assert repr(str(file)) in refused(file, tmp_path / "no-model", tmp_path)


def test_options_that_this_peft_lacks_are_allowed_where_they_are_empty(patches, model_folder, tmp_path):
    change = adapter_config(new_trick=None, another=[], third={}, fourth=False)
    apply_patch(rewritten(patches, tmp_path, change), str(model_folder), tmp_path / "out")
    apply_patch(patches(), str(model_folder), tmp_path / "usual")
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(loaded(tmp_path / "usual")))


@pytest.mark.promise(12)
@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"\x1b[2J": torch.zeros(3)}, r"'\\x1b\[2J' cannot be the name"),
        ({"a": torch.tensor([float("nan")])}, "'a' has values that are not finite"),
        ({"a": torch.tensor([1])}, "no weights"),
        ({"a": torch.zeros(0)}, "no weights"),
        ({"a": torch.zeros(4).to(torch.float8_e4m3fn)}, "no weights"),
        ({}, "it is empty"),
        (None, "holds no tensors: '"),
    ],
)
def test_weights_are_looked_at_before_their_base_is_loaded(patches, tmp_path, monkeypatch, tensors, text):
    monkeypatch.setattr("zofo.export.apply.load_model", pytest.fail)
    content = b"\x1b" * 99 if tensors is None else save(tensors)
    file = rewritten(patches, tmp_path, lambda _, parts: parts.update({"weights_0.safetensors": content}), "head")
    message = refused(file, tmp_path / "no-model", tmp_path)
    assert re.search(text, message), message
    assert message.isprintable()


@pytest.mark.promise(12)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_the_model_lacks_are_refused(patches, model_folder, tmp_path):
    def change(header, parts):
        parts["weights_0.safetensors"] = save({"model.no.such.weight": torch.zeros(3)})

    file = rewritten(patches, tmp_path, change, "head")
    assert "does not fit the model" in refused(file, model_folder, tmp_path)


@pytest.mark.promise(12)
def test_sizes_of_virtual_tokens_are_those_of_their_tensor(patches, model_folder, tmp_path, tries):
    for changed in tries([{"num_virtual_tokens": 10**5}, {"num_layers": 10**5}, {"token_dim": 10**5}]):
        file = rewritten(patches, tmp_path, adapter_config(**changed), "prefix")
        assert "the adapter's sizes are" in refused(file, model_folder, tmp_path)


@pytest.mark.promise(12)
def test_a_header_of_gigabytes_is_not_read(tmp_path):
    for start in (struct.pack("<Q", 2**40), b"ZOFOPTCH" + struct.pack("<II", 2, 2**32 - 1) + b"\0" * 32):
        (tmp_path / "p").write_bytes(start + b"{}")
        with pytest.raises(PatchError, match="is not a patch, or it was cut short or changed"):
            Patch.read(tmp_path / "p")


@pytest.mark.promise(12)
@pytest.mark.parametrize("size", [10**15, -1, 1.5, True, "9"])
def test_a_part_of_any_size_allocates_nothing(tmp_path, size):
    """Of a patch in the form of version 2, which lists the sizes of its parts."""
    listed = [{"name": "trajectory_0.bin", "bytes": size, "sha256": "0" * 64}]
    text = json.dumps({"parts": listed}).encode()
    frame = b"ZOFOPTCH" + struct.pack("<II", 2, len(text)) + hashlib.sha256(text).digest()
    (tmp_path / "p").write_bytes(frame + text)
    with pytest.raises(PatchError, match="is not a patch, or it was cut short or changed"):
        Patch.read(tmp_path / "p")


@pytest.mark.promise(8)
def test_every_flipped_byte_of_an_old_patch_is_found(tmp_path, tries):
    data = (Path(__file__).parent / "formats" / "patch-2.zofo").read_bytes()
    file = tmp_path / "flipped.zofo"
    for place in tries([*range(48), *range(48, len(data), 7)]):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(PatchError):
            Patch.read(file)
    for content in (data[:-1], data + b"\0"):
        file.write_bytes(content)
        with pytest.raises(PatchError):
            Patch.read(file)


@pytest.mark.promise(14)
def test_a_patch_changes_neither_the_run_nor_its_base(made, patches, model_folder, tmp_path):
    before = contents(made("bilevel").path), contents(model_folder)
    export_run(made("bilevel").path, "patch", tmp_path / "p.zofo")
    apply_patch(tmp_path / "p.zofo", str(model_folder), tmp_path / "out")
    for place in (model_folder, model_folder / "in"):
        with pytest.raises(RunError, match="only read"):
            apply_patch(tmp_path / "p.zofo", str(model_folder), place, force=True)
    with pytest.raises(RunError, match="only read"):
        export_run(made("bilevel").path, "patch", made("bilevel").path / "p.zofo")
    assert (contents(made("bilevel").path), contents(model_folder)) == before


def test_no_patch_is_written_that_could_not_be_read():
    with pytest.raises(PatchError, match="a header of at most 1,048,576 bytes"):
        packed({"label_names": ["a" * 1000] * 1100}, {})
