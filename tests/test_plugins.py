"""Parts of another distribution: found by name everywhere, and its faults harm nobody else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zofo import plugins
from zofo.errors import UnknownNameError
from zofo.methods import METHODS
from zofo.registry import Registry
from zofo.rules import RULES
from zofo.studies import read_study, run_study
from zofo.tasks import METRICS, Example
from zofo.testing import check_adapter, check_method, check_metric, check_noise, check_rule, tiny_model, tiny_rows
from zofo.training import RunFolder, evaluate_run, read_config, train

SOURCE = Path(__file__).parent / "plugin"
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n"
METHOD = {"name": "patient-mezo", "batch_size": 2}


def install(folder, name, entries, module=None):
    """Lay a distribution out as an installer does; `entries` are its entry points of the group."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA.format(name=name), encoding="utf-8")
    lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
    (info / "entry_points.txt").write_text(f"[zofo.plugins]\n{lines}", encoding="utf-8")
    if module is not None:
        (folder / f"{next(iter(entries.values()))}.py").write_text(module, encoding="utf-8")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of distributions that Python looks into; what plugins registered is forgotten at the end."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    plugins.forget_plugins()
    yield folder
    plugins.forget_plugins()
    for name in [name for name in sys.modules if name.startswith(("zofo_example", "other_"))]:
        del sys.modules[name]


@pytest.fixture
def example(site):
    shutil.copytree(SOURCE / "zofo_example", site / "zofo_example")
    install(site, "zofo-example", {"example": "zofo_example.parts"})
    return site


def given(tmp_path, **groups):
    """The configuration of a run of four steps that uses every part of the example."""
    return {
        "model": str(tiny_model(tmp_path / "model")),
        "task": {"name": "example-reviews", "data_dir": str(tiny_rows(tmp_path / "data"))},
        "method": METHOD | {"adapter": "small-lora"},
        "training": {"steps": 4},
        **groups,
    }


def test_nothing_is_imported_that_nobody_asks_for(example):
    assert "mezo" in METHODS
    assert "some/path" not in METHODS
    assert "zofo_example.parts" not in sys.modules
    assert "patient-mezo" in METHODS
    assert "zofo_example.parts" in sys.modules


def test_its_parts_are_listed(example, run_zofo):
    code, out, _ = run_zofo("list", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["plugins"] == {"zofo-example: example": "version 1.2"}
    assert "patient-mezo" in found["methods"]
    assert "small-lora" in found["adapters"]
    assert "says-g" in found["metrics"]
    assert "example-reviews" in found["tasks"]


def test_a_run_with_its_parts_is_scored_and_replayed_and_exported(example, run_zofo, tmp_path):
    config = tmp_path / "run.json"
    config.write_text(json.dumps(given(tmp_path, method=METHOD)), encoding="utf-8")
    run = tmp_path / "run"
    code, _, err = run_zofo("train", config.rename(tmp_path / "run.yaml"), f"output_dir={run}")
    assert code == 0, err
    assert RunFolder.open(run).summary["metric"] == "says-g"
    assert RunFolder.open(run).environment["plugin zofo-example"] == "1.2"
    for verb in (
        ("eval", run),
        ("predict", run, "a joy"),
        ("replay", run),
        ("export", run, "--merged", tmp_path / "out"),
    ):
        code, _, err = run_zofo(*verb)
        assert code == 0, err


def test_its_method_and_adapter_hold_what_zofo_promises(example, tmp_path):
    run = check_method("patient-mezo", tmp_path / "method", batch_size=2, adapter="small-lora")
    assert run.summary["queries"] == 4 * 2 * 2 * 2
    check_adapter("small-lora", tmp_path / "adapter")
    examples = [Example("q", (" bad", " good"), 1), Example("r", (" bad", " good"), 1)]
    check_metric("says-g", examples, [1, 1], [0, 0])


@pytest.mark.soak
def test_a_study_makes_its_runs_in_several_processes(example, tmp_path):
    tree = given(tmp_path)
    study = {
        "about": "Does a method of another package run in a study?",
        "defaults": {"model": tree["model"]},
        "tasks": {"example-reviews": {"task.data_dir": tree["task"]["data_dir"]}},
        "methods": {"guest": {"method": tree["method"]}, "mezo": {"method": {"name": "mezo", "batch_size": 2}}},
        "budget": {"steps": 4},
        "seeds": [0, 1],
    }
    (tmp_path / "study.json").write_text(json.dumps(study), encoding="utf-8")
    result = run_study(read_study((tmp_path / "study.json").rename(tmp_path / "study.yaml")), tmp_path / "out", jobs=2)
    assert (result.done, result.missing) == (4, 0)


def test_a_plugin_that_cannot_be_imported_is_named_where_a_name_is_missing_and_harms_nobody(
    example, run_zofo, tmp_path
):
    install(example, "other-package", {"aside": "other_aside"}, "import nothing_of_the_kind\n")
    assert train(read_config(**given(tmp_path), output_dir=str(tmp_path / "run"))).summary["queries"]
    with pytest.raises(UnknownNameError) as unknown:
        METHODS["patientmezo"]
    assert "Did you mean 'patient-mezo'?" in unknown.value.message
    assert "the plugin 'aside' of other-package 1.2 could not be imported: ModuleNotFoundError" in unknown.value.hint
    code, out, _ = run_zofo("list", "plugins", "--json")
    assert code == 0
    assert "No module named 'nothing_of_the_kind'" in json.loads(out)["plugins"]["other-package: aside"]


@pytest.mark.parametrize("taken", ["mezo", "patient-mezo"])
def test_a_plugin_that_registers_a_taken_name_registers_nothing(example, taken):
    module = f"""
from zofo.methods import METHODS, MeZO
from zofo.rules import RULES, SGD
RULES.register("other-rule")(SGD)
METHODS.register({taken!r})(MeZO)
"""
    install(example, "other-package", {"other": "other_parts"}, module)
    (broken,) = [plugin for plugin in plugins.load_plugins() if plugin.error]
    assert str(broken) == "the plugin 'other' of other-package 1.2"
    assert broken.error == f"ValueError: the method {taken!r} is registered twice"
    assert "other-rule" not in RULES
    assert "patient-mezo" in METHODS


def test_in_a_process_of_its_own_a_plugin_works_and_one_that_fails_takes_none_of_zofos_own_parts_with_it(example):
    module = "import zofo.training\nraise RuntimeError('not today')\n"
    install(example, "other-package", {"other": "other_parts"}, module)
    code = (
        "from zofo.noise import NOISES; 'nope' in NOISES; import zofo; "
        "print(zofo.read_config(None, ['method=mezo']).method.name); "
        "from zofo.tasks import METRICS; print('says-g' in METRICS)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("mezo\nTrue\n", "")


def test_a_module_that_two_plugins_have_is_imported_again_after_the_first_of_them_failed(example):
    install(example, "another-package", {"earlier": "zofo_example.broken"})
    (example / "zofo_example" / "broken.py").write_text("import zofo_example.parts\nraise RuntimeError\n")
    assert [bool(plugin.error) for plugin in plugins.load_plugins()] == [True, False]
    assert "patient-mezo" in METHODS


def test_faulty_parts_of_a_plugin_are_named_in_lists_and_harm_no_other_list(example, run_zofo):
    (example / "zofo_example" / "tasks" / "faulty.yaml").write_text("name: [", encoding="utf-8")
    module = "from zofo.rules import RULES, SGD\nRULES.register('bare')(type('Bare', (SGD,), {'__doc__': None}))\n"
    install(example, "other-package", {"other": "other_parts"}, module)
    code, out, _ = run_zofo("list", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["tasks"]["faulty"].startswith("cannot be used: the task 'faulty' is not YAML")
    assert "bare" in found["rules"]
    code, _, err = run_zofo("preview", "task=faulty")
    assert (code, "the task 'faulty' is not YAML" in err) == (2, True)


def test_only_the_packages_whose_parts_a_run_uses_are_written_down(example, tmp_path):
    install(example, "other-package", {"other": "other_parts"}, "")
    with pytest.raises(UnknownNameError):
        METHODS["nothing-of-the-kind"]
    tree = given(tmp_path, method={"name": "mezo", "batch_size": 2})
    tree["task"] = {"name": "movie-reviews", "data_dir": tree["task"]["data_dir"]}
    run = train(read_config(**tree, output_dir=str(tmp_path / "run")))
    assert not [key for key in run.environment if key.startswith("plugin ")]


def test_updates_that_a_guests_evaluator_lets_wait_are_kept_and_replayed(tmp_path, monkeypatch):
    from zofo.backbone import Theta
    from zofo.evaluators import EVALUATORS, InPlace

    class Patient(InPlace):
        """In place, with updates that wait."""

        writes_points = False

        def __init__(self, model, backbone, every: int = 4) -> None:
            super().__init__(model, backbone)
            self.theta = Theta(backbone, every)

        def probe(self, asks, points):
            self.theta.flush()
            return super().probe(asks, points)

    monkeypatch.setitem(EVALUATORS._parts, "patient", Patient)
    run = check_method("mezo", tmp_path, batch_size=2, evaluator={"name": "patient"}, noise="gaussian")
    assert run.path.joinpath("trajectory.bin").read_bytes().count(b'"flush_every": 4') == 1


def test_a_run_whose_plugin_is_gone_says_which_package_to_install(example, run_zofo, tmp_path):
    run = train(read_config(**given(tmp_path), output_dir=str(tmp_path / "run")))
    shutil.rmtree(example / "zofo_example-1.2.dist-info")
    plugins.forget_plugins()
    for arguments in (("eval", run.path), ("train", run.path / "config.yaml"), ("predict", run.path, "a")):
        code, _, err = run_zofo(*arguments)
        assert code == 2
        assert "unknown metric 'says-g'" in err or "unknown method 'patient-mezo'" in err
        assert "pip install 'zofo-example==1.2'" in " ".join(err.split())
    install(example, "zofo-example", {"example": "zofo_example.parts"})
    sys.modules.pop("zofo_example.parts")
    plugins.forget_plugins()
    assert evaluate_run(run.path).loss == pytest.approx(run.summary["loss"], rel=1e-5)


def test_a_name_with_a_slash_is_refused():
    with pytest.raises(ValueError, match="slash"):
        Registry[int]("number").register("a/b")(1)


# the checks of zofo.testing themselves


def test_zofos_own_parts_hold_it_too():
    check_noise("low-rank")
    check_noise("gaussian", draws=2000)
    for name in RULES:
        check_rule(name, lr=0.01)


@pytest.mark.parametrize("name", ["mezo", "linear-probe", pytest.param("bilevel", marks=pytest.mark.soak)])
def test_zofos_own_methods_hold_it_too(name, tmp_path):
    check_method(name, tmp_path, batch_size=2)


def test_a_metric_that_is_lower_for_better_answers_is_found():
    registry = METRICS._parts
    from zofo.tasks import Metric

    registry["upside-down"] = Metric(frozenset({"generation"}), "wrong", lambda e, p: -float(p == ["a", "b"]))
    try:
        with pytest.raises(AssertionError, match="good answers score -1.0, bad ones"):
            check_metric("upside-down", [None, None], ["a", "b"], ["x", "y"])
    finally:
        del registry["upside-down"]
