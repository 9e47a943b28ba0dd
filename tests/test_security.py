"""Files that mean harm are refused at once, and run nothing; names stay inside their folders.

What holds elsewhere: hostile trajectories (test_trajectory.py), patches (test_patch.py), what no module may call
(test_architecture.py), YAML and templates that would run code (test_config.py, test_tasks.py, test_bad_input.py).
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import time
from contextlib import contextmanager
from pathlib import Path

import peft
import pytest
import yaml
from safetensors.torch import load_file, save_file

import zofo
from test_checkpoint_state import restore
from test_resume import METHOD, stopped_at
from zofo.adapters import LoraAdapters, load_adapter
from zofo.config import is_name
from zofo.errors import CheckpointError, ConfigError, DataError, ModelError, RunError, ZofoError
from zofo.export import export_run
from zofo.methods import FirstOrder
from zofo.models import load_model
from zofo.recipes import recipe_names, recipe_text
from zofo.studies import read_study
from zofo.tasks import load_task
from zofo.training import RunFolder, predict, read_config, train
from zofo.training.checkpoint import Checkpoints, damage_of
from zofo.training.restore import check_run_adapter
from zofo.training.resume import create_run_folder

SOURCE = Path(zofo.__file__).parent
SECONDS = 1.0


class Payload:
    """A pickle of it makes a folder where it is loaded."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path):
    """What exists as soon as a file has run something."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@contextmanager
def refused(kind=ZofoError, match=None):
    start = time.process_time()
    with pytest.raises(kind, match=match):
        yield
    assert time.process_time() - start < SECONDS


# the source


FOREIGN_CODE = {"__import__", "importlib.import_module", "runpy.run_path", "runpy.run_module"}
FOREIGN_CODE |= {"importlib.util.spec_from_file_location", "importlib.util.module_from_spec"}
FOREIGN_FILES = {"torch.hub.load", "torch.jit.load", "pandas.read_pickle", "pd.read_pickle", "load_state_dict_from_url"}
SHELLS = {"subprocess.getoutput", "subprocess.getstatusoutput", "os.execv", "os.execvp", "os.spawnv", "os.startfile"}
LOADERS = {"Loader", "UnsafeLoader", "FullLoader", "CLoader", "CFullLoader", "CUnsafeLoader"}
ALLOWED = {  # the package's own modules, by its own list; plugins are installed packages that say that they are ones
    ("zofo/__init__.py", "importlib.import_module"),
    ("zofo/plugins.py", "importlib.import_module"),
    ("zofo/demo/side_by_side.py", "runpy.run_module"),  # zofo itself, as `python -m zofo`
    ("zofo/models/quantization.py", "importlib.import_module"),  # two packages, by names that it holds itself
    ("zofo/objectives/packaged_rewards.py", "importlib.import_module"),  # libraries of rewards, by names that it holds
    ("zofo/objectives/reward_files.py", "importlib.util.spec_from_file_location"),  # a file that --reward names
    ("zofo/objectives/reward_files.py", "importlib.util.module_from_spec"),
}


def faults(text, file):
    """What a module has that could run foreign code, beyond what test_architecture.py looks for."""
    tree, found, full = ast.parse(text), [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            full |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        name = full.get(name, name)
        if name in FOREIGN_CODE | FOREIGN_FILES | SHELLS and (file, name) not in ALLOWED:
            found.append(name)
        if isinstance(node, ast.Attribute) and node.attr in LOADERS and ast.unparse(node.value) == "yaml":
            found.append(name)
        if isinstance(node, ast.keyword):
            value = getattr(node.value, "value", None)
            if node.arg == "trust_remote_code" and not (isinstance(node.value, ast.Name) or value is False):
                found.append(node.arg)
            if (node.arg, value) in (("allow_pickle", True), ("weights_only", False)):
                found.append(node.arg)
    return found


@pytest.mark.promise(12)
def test_no_module_reaches_for_code_by_another_way():
    for path in sorted(SOURCE.rglob("*.py")):
        assert faults(path.read_text(encoding="utf-8"), path.relative_to(SOURCE.parent).as_posix()) == [], path


@pytest.mark.promise(12)
@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "from importlib import import_module\nimport_module(name)",
        "yaml.load_all(text, Loader=yaml.FullLoader)",
        "model = load(name, trust_remote_code=True)",
        "numpy.load(path, allow_pickle=True)",
        "torch.jit.load(path)",
        "run = __import__",
    ],
)
def test_that_check_reports_a_made_up_fault(text):
    assert faults(text, "zofo/made_up.py")


# tensors


def framed(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


TENSORS = {
    "a pickle": None,
    "nothing": b"",
    "a header longer than the file": framed({}, length=1 << 40),
    "a header of all that fits": framed({}, length=(1 << 64) - 1),
    "a header that is no JSON": framed(b"{" * 64),
    "a header nested deeply": framed(b'{"a":' + b"[" * 200_000),
    "tensors that overlap": framed({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "a tensor outside the file": framed({"a": entry(0, 1 << 40, (1 << 38,))}, bytes(8)),
    "a shape that overflows": framed({"a": entry(0, 8, (1 << 62, 1 << 62))}, bytes(8)),
    "a negative offset": framed({"a": entry(-8, 0)}, bytes(8)),
    "bytes that nobody describes": framed({"a": entry(0, 8)}, bytes(4096)),
    "an unknown dtype": framed({"a": entry(0, 8, dtype="OBJECT")}, bytes(8)),
}


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    """A run of an adapter, one of all weights, and one that was stopped."""
    from conftest import review_rows, write_rows

    folder = tmp_path_factory.mktemp("made")
    write_rows(folder / "data" / "train.jsonl", review_rows(40))
    write_rows(folder / "data" / "validation.jsonl", review_rows(8, 40))

    def config(name, method, steps):
        task = {"data_dir": str(folder / "data")}
        model, training = str(model_folder), {"steps": steps, "eval_steps": 4}
        return read_config(model=model, task=task, method=method, training=training, output_dir=str(folder / name))

    train(config("adapter", METHOD["first-order"], 1))
    train(config("weights", METHOD["first-order, all"], 1))
    stopped_at(config("stopped", METHOD["mezo"], 12), 3)
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """A copy of one of these runs, for harm to be done to."""

    def copy(name):
        shutil.copytree(made / name, tmp_path / name)
        return RunFolder(tmp_path / name)

    return copy


def hashed_anew(run):
    """As someone would who wants a changed part to be taken for the run's own."""
    content = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
    for name in content["parts"]:
        content["parts"][name] = f"sha256:{hashlib.sha256((run.path / name).read_bytes()).hexdigest()}"
    (run.path / "summary.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.promise(12)
@pytest.mark.parametrize("kind", TENSORS)
def test_hostile_tensors_are_refused_by_every_reader(copied, model_folder, tmp_path, canary, kind):
    data = pickle.dumps(Payload(canary)) if TENSORS[kind] is None else TENSORS[kind]
    adapter, weights, stopped = (copied(name) for name in ("adapter", "weights", "stopped"))

    (adapter.path / "adapter" / "adapter_model.safetensors").write_bytes(data)
    hashed_anew(adapter)
    model = load_model(str(model_folder)).model
    with refused(RunError):
        load_adapter(model, adapter.path / "adapter")

    (weights.path / "weights.safetensors").write_bytes(data)
    hashed_anew(weights)
    loaded = load_model(str(model_folder))
    with refused(RunError, "weights.safetensors"):
        weights.restore(loaded)

    checkpoint = Checkpoints(stopped.checkpoints).latest()
    (checkpoint.path / "state.safetensors").write_bytes(data)
    with refused(CheckpointError):
        restore(stopped.config, stopped, checkpoint)

    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(data)
    with refused(ModelError):
        load_model(str(tmp_path / "model"))


@pytest.mark.promise(12)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_of_no_numbers_are_refused(copied, model_folder, value):
    for name, file in (("adapter", "adapter/adapter_model.safetensors"), ("weights", "weights.safetensors")):
        run = copied(name)
        tensors = load_file(run.path / file)
        first = next(iter(tensors))
        tensors[first].view(-1)[-1] = value
        save_file(tensors, run.path / file)
        hashed_anew(run)
        loaded = load_model(str(model_folder))
        with refused(RunError, "not finite"):
            run.restore(loaded)


@pytest.mark.promise(12)
def test_a_pickle_beside_an_adapter_is_not_looked_at(copied, model_folder, canary):
    run = copied("adapter")
    (run.path / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Payload(canary)))
    load_adapter(load_model(str(model_folder)).model, run.path / "adapter")
    (run.path / "adapter" / "adapter_model.safetensors").unlink()
    with refused(RunError, "has no adapter_model.safetensors"):
        load_adapter(load_model(str(model_folder)).model, run.path / "adapter")


@pytest.mark.promise(12)
@pytest.mark.parametrize("use", ["load", "start", "merge", "adapter"])
def test_the_adapter_of_a_run_cannot_name_a_module_to_import(copied, tmp_path, monkeypatch, canary, use):
    """Some versions of peft import what `megatron_core` says, in a file of a run folder that someone hands on."""
    run = copied("adapter")
    (tmp_path / "strange_core.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    adapter_with(run, megatron_config={"a": 1}, megatron_core="strange_core")
    ways = {
        "adapter": lambda: export_run(run.path, "adapter", tmp_path / "out"),
        "load": lambda: run.load(),
        "start": lambda: train(run.config.model_copy(update={"init_from": run.path, "output_dir": tmp_path / "next"})),
        "merge": lambda: export_run(run.path, "merged", tmp_path / "out"),
    }
    with refused(RunError, "adapter': the adapter sets 'megatron_config' to .*, which zofo's adapters never do"):
        ways[use]()
    assert not canary.exists()


def adapter_with(run, **changed):
    """Set options of a run's adapter, and the hashes that go with them."""
    file = run.path / "adapter" / "adapter_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, **changed}), encoding="utf-8")
    hashed_anew(run)


@pytest.mark.promise(12)
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"r": 1048575}, "the adapter's rank is 1048575, but its tensors have"),
        ({"target_modules": "(a+)+$"}, "sets 'target_modules' to"),
        ({"peft_type": "VERA"}, "'VERA', which zofo does not make"),
    ],
)
def test_the_adapter_of_a_run_is_looked_at_like_that_of_a_patch(copied, changed, text):
    run = copied("adapter")
    adapter_with(run, **changed)
    with refused(RunError, text):
        run.load()


def test_what_peft_itself_sets_for_some_models_is_no_strange_adapter(copied):
    """A pattern instead of names, as for Gemma 4; and a base model in a folder deep down."""
    by_model = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    pattern = next((value for value in by_model.values() if isinstance(value, str)), None)
    run = copied("adapter")
    adapter_with(run, base_model_name_or_path="/deep" * 100, **({} if pattern is None else {"target_modules": pattern}))
    check_run_adapter(run.path / "adapter", run.config.method)


@pytest.mark.parametrize("whose", [FirstOrder, LoraAdapters])
def test_an_adapter_of_the_users_own_code_is_not_looked_at(copied, monkeypatch, whose):
    run = copied("adapter")
    adapter_with(run, peft_type="VERA")
    with pytest.raises(RunError, match="VERA"):
        check_run_adapter(run.path / "adapter", run.config.method)
    monkeypatch.setattr(whose, "__module__", "mine")
    check_run_adapter(run.path / "adapter", run.config.method)


def test_an_adapter_with_options_of_a_newer_peft_is_one_message(copied, model_folder):
    folder = copied("adapter").path / "adapter"
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for changed, text in (
        ({"new_trick": 7}, f"sets 'new_trick' to 7, which is no option in peft {peft.__version__}"),
        ({"\x1b[2J" + "x" * 999: 7}, r"sets '\x1b[2Jxxx"),
        ({"peft_type": "NEWER"}, f"is of the kind 'NEWER', which peft {peft.__version__} does not know"),
        ({"peft_type": None}, "is of the kind None"),
        ({"target_modules": 5}, "not an adapter of this model"),
    ):
        file.write_text(json.dumps({**content, **changed}), encoding="utf-8")
        with pytest.raises(RunError, match=re.escape(str(folder))) as error:
            load_adapter(load_model(str(model_folder)).model, folder)
        assert text in error.value.message
        assert error.value.message.isprintable()
    file.write_text(json.dumps({**content, "new_trick": None, "another": []}), encoding="utf-8")
    load_adapter(load_model(str(model_folder)).model, folder)


@pytest.mark.promise(12)
def test_an_adapter_that_lacks_tensors_is_no_other_adapter(copied):
    """peft warns, and takes those that it has drawn."""
    run = copied("adapter")
    adapter_with(run, use_dora=True)
    with pytest.raises(RunError, match="missing adapter keys"):
        run.load()


@pytest.mark.promise(12)
@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", 5])
def test_a_model_has_no_shards_outside_its_folder(model_folder, tmp_path, name):
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": name}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match="lies in another folder"):
        load_model(str(tmp_path / "model"))


@pytest.mark.promise(12)
def test_a_model_of_pickles_is_refused(model_folder, tmp_path, canary):
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(canary)))
    with refused(ModelError):
        load_model(str(tmp_path / "model"))


# YAML


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
YAMLS = {
    "an object": "{key}: !!python/object/apply:os.mkdir ['{canary}']\n",
    "a module": "{key}: !!python/module:os\n",
    "a bomb": BOMB + "{key}: *a9\n",
    "itself": "{key}: &a [*a]\n",
    "itself as keys": "{key}: &a {{b: *a}}\n",
    "nested deeply": "{key}: " + "[" * 50_000 + "\n",
    "nested deeply, beside values": "{key}: " + "[a, " * 20_000 + "\n",
    "nested deeply, line by line": "{key}:\n" + " - " * 5_000 + "a\n",
    "merges of merges": "a0: &a0 {{x: 1}}\n"
    + "".join(f"a{n}: &a{n} {{{{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}}}\n" for n in range(1, 12))
    + "{key}: *a11\n",
    "a long number": "{key}: 0x" + "f" * 100_000 + "\n",
    "a long number of parts": "{key}: 1" + ":1" * 100_000 + "\n",
    "a bomb of merges": "a0: &a0 {{x: 1}}\n"
    + "".join(f"a{n}: &a{n} {{{{b: *a{n - 1}, c: *a{n - 1}, d: *a{n - 1}, e: *a{n - 1}}}}}\n" for n in range(1, 30))
    + "{key}: *a29\n",
}
READERS = {
    "a configuration": (read_config, "model"),
    "its options": (read_config, "method"),
    "a task": (lambda path: load_task(str(path)), "prompts"),
    "a study": (lambda path: read_study(str(path)), "base"),
    "a run": (lambda path: RunFolder(path.parent).config, "training"),
}


@pytest.mark.promise(12)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", YAMLS)
def test_hostile_yaml_is_refused_by_every_reader(tmp_path, canary, kind, reader):
    read, key = READERS[reader]
    path = tmp_path / "config.yaml"
    path.write_text(YAMLS[kind].format(key=key, canary=canary), encoding="utf-8")
    with refused():
        read(path)


@pytest.mark.promise(12)
def test_yaml_is_read_in_one_way():
    for path in SOURCE.rglob("*.py"):
        assert "safe_load" not in path.read_text(encoding="utf-8"), path


@pytest.mark.promise(12)
@pytest.mark.parametrize("kind", YAMLS)
def test_hostile_yaml_is_refused_on_the_command_line(canary, kind):
    with refused():
        read_config(None, ["method.lr=" + YAMLS[kind].format(key="k", canary=canary)])


def test_anchors_that_save_typing_are_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("task: {split_sizes: &few {validation: 4}, tasks: []}\ntraining: {steps: &n 7, eval_steps: *n}\n")
    assert read_config(path).training.eval_steps == 7


# JSON


JSONS = {"nested deeply": "[" * 200_000, "a long number": "1" * 100_000, "not text": "\udcff", "an array": "[1]"}


def put(path, kind):
    path.write_bytes(JSONS[kind].encode("utf-8", "surrogateescape"))


@pytest.mark.promise(12)
@pytest.mark.parametrize("kind", JSONS)
def test_hostile_json_is_refused_by_every_reader(copied, made, model_folder, tmp_path, kind):
    run = copied("adapter")
    put(run.path / "environment.json", kind)
    with refused(RunError, "environment.json"):
        run.restore(load_model(str(model_folder)))
    put(run.path / "summary.json", kind)
    with refused(RunError, "summary.json"):
        run.verify()

    shutil.copytree(made / "data", tmp_path / "data")
    put(tmp_path / "data" / "train.jsonl", kind)
    data = [f"task.data_dir={tmp_path / 'data'}"]
    with refused(DataError, "train.jsonl"):
        train(read_config(made / "adapter" / "config.yaml", [*data, f"output_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()

    put(tmp_path / "setting.json", kind)
    meta = {"name": "meta-bilevel", "adapter": "lora"}
    with refused(DataError, "setting.json"):
        train(
            read_config(model=str(model_folder), method=meta, task={"metaicl_setting": str(tmp_path / "setting.json")})
        )

    shutil.copytree(model_folder, tmp_path / "model")
    put(tmp_path / "model" / "config.json", kind)
    with refused(ModelError):
        load_model(str(tmp_path / "model"))

    checkpoint = Checkpoints(copied("stopped").checkpoints).latest()
    for name in ("state.json", "progress.json"):
        put(checkpoint.path / name, kind)
        with refused(CheckpointError, name):
            checkpoint.json(name)
    put(checkpoint.path / "manifest.json", kind)
    start = time.process_time()
    assert "manifest.json" in damage_of(checkpoint.path)
    assert time.process_time() - start < SECONDS


@pytest.mark.promise(12)
def test_a_text_that_looks_like_endless_json_is_a_text(made):
    for text in ("[" * 20_000, "1" * 5_000):
        with refused(DataError, "tokens with its candidate"):
            predict(made / "adapter", [text])


# manifests and links


def with_manifest(checkpoint, files):
    content = json.dumps({"version": 1, "step": checkpoint.step, "files": files})
    (checkpoint.path / "manifest.json").write_text(content, encoding="utf-8")
    digest = hashlib.sha256(content.encode()).hexdigest()
    (checkpoint.path / "complete").write_text(f"sha256:{digest}\n", encoding="utf-8")


@pytest.mark.promise(12)
@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "{path}", "state.json\0", "", "."])
def test_a_manifest_names_only_what_lies_in_its_folder(copied, tmp_path, name):
    checkpoint = Checkpoints(copied("stopped").checkpoints).latest()
    (checkpoint.path.parent / "secret").write_text("secret", encoding="utf-8")
    files = json.loads((checkpoint.path / "manifest.json").read_text(encoding="utf-8"))["files"]
    digest = f"sha256:{hashlib.sha256(b'secret').hexdigest()}"
    with_manifest(checkpoint, files)
    assert damage_of(checkpoint.path) is None
    with_manifest(checkpoint, {**files, name.format(path=checkpoint.path.parent / "secret"): digest})
    assert "is missing" in damage_of(checkpoint.path)


@pytest.mark.promise(12)
def test_a_link_out_of_a_checkpoint_is_refused(copied, tmp_path):
    checkpoint = Checkpoints(copied("stopped").checkpoints).latest()
    state = checkpoint.path / "state.json"
    (tmp_path / "elsewhere.json").write_bytes(state.read_bytes())
    state.unlink()
    state.symlink_to(tmp_path / "elsewhere.json")
    assert f"{str(state)!r} is a link" in damage_of(checkpoint.path)


@pytest.mark.promise(12)
def test_a_checkpoint_that_is_a_link_is_refused_and_what_it_leads_to_is_left_alone(copied, tmp_path):
    run = copied("stopped")
    checkpoint = Checkpoints(run.checkpoints).latest()
    checkpoint.path.rename(tmp_path / "elsewhere")
    checkpoint.path.symlink_to(tmp_path / "elsewhere")
    with refused(CheckpointError, "is a link"):
        Checkpoints(run.checkpoints).latest()
    Checkpoints(run.checkpoints, keep=1).save(checkpoint.step, lambda folder: (folder / "a").write_text("a"))
    assert (tmp_path / "elsewhere" / "complete").is_file()


# names


NAMES = [
    "../x",
    "/tmp/x",
    "a/../../x",
    "..",
    ".",
    "",
    "a\0b",
    "CON",
    "nul.txt",
    "a/b",
    "a\\b",
    "x\ny",
    "~",
    "a.",
    "é" * 9,
]


@pytest.mark.promise(14)
@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_no_names(name):
    assert not is_name(name)


@pytest.mark.parametrize("name", ["adapter", "glue-mrpc", "lower_adapter", "a.b", "1", "console"])
def test_names_are_names(name):
    assert is_name(name)


@pytest.mark.promise(14)
@pytest.mark.parametrize("name", NAMES)
def test_no_variant_and_no_task_of_several_has_a_hostile_name(copied, model_folder, name):
    run = copied("adapter")
    content = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
    content["variants"] = {name: content["variants"]["adapter"]}
    (run.path / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    for asked in (None, name):
        with refused(RunError, "the run has no model"):
            run.restore(load_model(str(model_folder)), asked)
    with refused(ConfigError, "is no name of a task|no task"):
        train(read_config(model=str(model_folder), method="meta-bilevel", task={"tasks": [name, "boolq"]}))


@pytest.mark.promise(14)
@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_a_packaged_one_or_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(ConfigError):
        load_task(name)


@pytest.mark.promise(14)
@pytest.mark.parametrize("name", ["a\0b", "CON", "nul.txt", "x\ny", "con/a/AUX", "a\x1b[2J", "x" * 300])
def test_a_run_folder_has_a_name_that_every_system_has(made, tmp_path, name):
    with refused(RunError):
        create_run_folder(
            read_config(made / "adapter" / "config.yaml").model_copy(update={"output_dir": tmp_path / name})
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise(14)
@pytest.mark.parametrize("kind", ["link to nothing", "link to a run", "file", "here", "above"])
def test_a_run_folder_is_a_new_one(made, tmp_path, kind):
    path = {"here": tmp_path / ".", "above": tmp_path / "x" / ".."}.get(kind, tmp_path / "run")
    (tmp_path / "x").mkdir()
    if kind == "link to nothing":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "link to a run":
        path.symlink_to(made / "adapter")
    elif kind == "file":
        path.write_text("precious", encoding="utf-8")
    with refused(RunError):
        create_run_folder(read_config(made / "adapter" / "config.yaml").model_copy(update={"output_dir": path}))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.promise(14)
def test_a_part_outside_the_run_is_no_part(copied, model_folder, tmp_path):
    run = copied("adapter")
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    content = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
    for name in ("../secret", str(tmp_path / "secret"), "a\0b"):
        content["parts"][name] = f"sha256:{hashlib.sha256(b'secret').hexdigest()}"
        (run.path / "summary.json").write_text(json.dumps(content), encoding="utf-8")
        with refused(RunError, "is no part of a run"):
            run.verify()
        del content["parts"][name]


# code of models


@pytest.fixture
def hostile_model(model_folder, tmp_path, canary):
    """A model folder whose config.json maps its classes to a file of its own."""
    folder = tmp_path / "hostile"
    shutil.copytree(model_folder, folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "AutoModel")
    content |= {"model_type": "hostile", "auto_map": dict.fromkeys(names, "code.Hostile")}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    about["auto_map"] = {"AutoTokenizer": ["code.Hostile", "code.Hostile"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nclass Hostile: pass\n", encoding="utf-8")
    return folder


@pytest.mark.promise(13)
def test_the_code_of_a_model_does_not_run_unless_that_is_typed(hostile_model, made, run_zofo, tmp_path, canary):
    given = [
        f"model={hostile_model}",
        f"task.data_dir={made / 'data'}",
        f"output_dir={tmp_path / 'run'}",
        "training.steps=1",
    ]
    code, _, err = run_zofo("train", *given)
    assert code == 2
    assert "cannot load the model" in err
    content = json.loads((hostile_model / "config.json").read_text(encoding="utf-8"))
    content["trust_remote_code"] = True  # where a model says so itself
    (hostile_model / "config.json").write_text(json.dumps(content), encoding="utf-8")
    assert run_zofo("train", *given)[0] == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.promise(13)
def test_with_the_flag_it_would_have_run(hostile_model, made, run_zofo, tmp_path, canary):
    given = [
        f"model={hostile_model}",
        f"task.data_dir={made / 'data'}",
        f"output_dir={tmp_path / 'run'}",
        "training.steps=1",
    ]
    run_zofo("train", *given, "--trust-remote-code")
    assert canary.is_dir()
    canary.rmdir()


@pytest.mark.promise(13)
def test_no_file_can_give_the_flag(tmp_path):
    for at in ([], ["model"], ["training"], ["task"], ["method"], ["method", "adapter"]):
        content = {"trust_remote_code": True}
        for key in reversed(at):
            content = {key: content}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        with refused(ConfigError, "trust_remote_code"):
            read_config(path)


@pytest.mark.promise(13)
def test_no_recipe_gives_it():
    assert recipe_names()
    for name in recipe_names():
        assert "remote" not in recipe_text(name).lower()


@pytest.mark.promise(12, 13)
def test_the_floors_of_what_reads_files():
    """Before these versions files could run code, leave a sandbox or their folder, or be written through a link."""
    text = (SOURCE.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    floors = {
        "transformers": "5.6",  # CVE-2026-4372, below 5.3: a configuration could bypass the flag
        "torch": "2.10",  # CVE-2026-24747: of torch.load, also where it reads weights only
        "peft": "0.20",  # an adapter's megatron_core named any module to import
        "jinja2": "3.1.6",  # CVE-2025-27516: out of the sandbox by a filter
        "filelock": "3.20.3",  # CVE-2025-68146 and CVE-2026-22701: locks that follow links
        "pyarrow": "23.0.1",  # CVE-2026-25087: memory that was freed, in files of arrow
        "pip": "26.1",  # CVE-2025-8869, CVE-2026-1703 and CVE-2026-3219: archives that leave their folder
    }
    for name, floor in floors.items():
        assert f'"{name}>={floor}"' in text
