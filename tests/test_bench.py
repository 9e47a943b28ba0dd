"""`zofo bench step`: what it writes, that its usual step is MeZO, that no way disturbs another, and wrong input."""

from __future__ import annotations

import copy
import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zofo.bench import StepOptions, bench_step, step, step_variants
from zofo.bench.step import over_the_same_tensors
from zofo.bench.step_memory import failure, measure_peak
from zofo.bench.step_variants import WAYS, AmortizedSteps, random_examples, usual_loss, usual_step
from zofo.cli import main
from zofo.errors import ConfigError, EvaluatorError, ModelError, RunError, UnknownNameError
from zofo.evaluators import InForward
from zofo.models import load_model
from zofo.objectives import classification_loss
from zofo.tasks import collate

NAMES = [
    "inference",
    "mezo-usual",
    "in-place",
    "in-forward-shared",
    "in-forward-per-example",
    "fo-lora",
    "fo-full",
]
RATIOS = ["over_inference", "usual_over_this"]


@pytest.fixture
def options(model_folder):
    return StepOptions(model=str(model_folder), examples=3, tokens=6, repeats=2)


@pytest.fixture
def model(model_folder):
    return load_model(str(model_folder)).model


@pytest.fixture
def batch(model, options):
    return collate(random_examples(model.config.vocab_size, options), 0, model.device)


@pytest.fixture
def sequences(model, options):
    """The same examples as the usual step reads them: token ids, and which candidate is right."""
    examples = random_examples(model.config.vocab_size, options)
    return torch.tensor([row for example in examples for row in example.rows]), torch.tensor([e.gold for e in examples])


@pytest.fixture
def run_step(capsys):
    """Call `zofo bench step` in this process; gives exit code, standard output and standard error."""

    def call(options, *more):
        given = ["--model", options.model, "--rows", options.examples, "--tokens", options.tokens]
        given += ["--rank", options.rank, "--repeats", options.repeats, "--dtype", options.dtype]
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["bench", "step", *map(str, [*given, *more])])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return end.value.code or 0, shown.out, shown.err

    return call


def test_the_file_has_every_way_with_its_time(run_step, options, tmp_path):
    code, out, _ = run_step(options, "--no-memory", "--json", tmp_path / "step.json")
    assert code == 0
    report = json.loads((tmp_path / "step.json").read_text())
    rows = report.pop("rows")
    assert [row["name"] for row in rows] == NAMES
    assert all(name in out for name in NAMES)
    for row in rows:
        assert 0 < row["fastest_s"] <= row["median_s"] <= row["slowest_s"]
        assert all(row[ratio] > 0 for ratio in RATIOS)
        assert (row["peak_bytes"], row["peak_over_inference"]) == (None, None)
        assert "error" not in row
    assert rows[0]["over_inference"] == 1
    assert rows[1]["usual_over_this"] == 1
    assert report == {
        "model": options.model,
        "examples": 3,
        "tokens": 6,
        "rank": 1,
        "repeats": 2,
        "dtype": "float32",
        "trainable": None,
        "device": "cpu",
        "threads": 1,
        "torch": torch.__version__,
        "parameters": report["parameters"],
    }
    assert report["parameters"] == sum(p.numel() for p in load_model(options.model).model.parameters())


def test_peaks_are_those_that_other_processes_tell(options, monkeypatch, tmp_path, children_here):
    monkeypatch.setattr(step, "WAYS", {name: WAYS[name] for name in ("inference", "fo-full")})
    report = bench_step(options, file=tmp_path / "step.json")
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["inference", "fo-full"]
    for row in rows:
        assert row["peak_bytes"] > 50 << 20  # torch alone is more
        assert 0.5 < row["peak_over_inference"] < 2
        assert row["usual_over_this"] is None
    assert rows[0]["peak_over_inference"] == 1
    assert [row.as_dict() for row in report.rows] == rows
    assert len(children_here) == 2


@pytest.mark.soak
def test_all_peaks(run_step, options, tmp_path):
    assert run_step(options, "--json", tmp_path / "step.json")[0] == 0
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [row["name"] for row in rows] == NAMES
    assert all(row["peak_bytes"] > 0 and row["peak_over_inference"] > 0 and row["median_s"] > 0 for row in rows)
    assert not any("error" in row for row in rows)


# the usual step


def test_the_usual_loss_is_the_loss_of_all_others(model, batch, sequences):
    with torch.no_grad():
        torch.testing.assert_close(usual_loss(model, *sequences), classification_loss(model, batch).mean())


def test_the_usual_step_moves_the_weights_by_minus_lr_times_the_slope_along_its_direction(model, sequences):
    before = copy.deepcopy(model)
    number, lr, epsilon = 7, 1e-2, 1e-3
    slope = usual_step(model, *sequences, number=number, lr=lr, epsilon=epsilon)
    generator = torch.Generator().manual_seed(number)
    directions = [torch.normal(0.0, 1.0, size=p.shape, generator=generator) for p in before.parameters()]
    assert abs(slope) > 1e-2
    for old, new, z in zip(before.parameters(), model.parameters(), directions, strict=True):
        torch.testing.assert_close(new, old - lr * slope * z, atol=1e-6, rtol=1e-5)
        assert new.data_ptr() != old.data_ptr()
    losses = []
    for sign in (1, -1):
        moved = copy.deepcopy(before)
        for parameter, z in zip(moved.parameters(), directions, strict=True):
            parameter.data += sign * epsilon * z
        with torch.no_grad():
            losses.append(usual_loss(moved, *sequences))
    assert slope == pytest.approx(((losses[0] - losses[1]) / (2 * epsilon)).item(), abs=2e-2)


# the ways side by side


def test_no_way_disturbs_another(options, batch, monkeypatch):
    monkeypatch.setattr(step_variants, "LR", 1e-12)  # so that only what must not happen moves the weights
    model = load_model(options.model).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    with torch.no_grad():
        loss = classification_loss(model, batch)
    module = step.own_modules(model)
    ways = {name: build(module(name), options) for name, build in WAYS.items()}
    for way in ways.values():
        way.prepare()
    for _ in range(2):
        assert all(way.seconds() > 0 for way in ways.values())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=2e-6, rtol=0)
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any("lora" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(classification_loss(model, batch), loss, atol=1e-4, rtol=0)
        assert not torch.allclose(classification_loss(module("fo-full"), batch), loss, atol=1e-6)


def test_lora_has_its_own_layers_over_the_same_tensors(model):
    other = over_the_same_tensors(model)
    pairs = list(zip(model.named_parameters(), other.named_parameters(), strict=True))
    assert all(name == twin_name for (name, _), (twin_name, _) in pairs)
    assert all(p is not twin and p.data_ptr() == twin.data_ptr() for (_, p), (_, twin) in pairs)
    assert other.lm_head.weight is other.model.embed_tokens.weight  # tied, as in the model


@pytest.mark.parametrize(
    ("directions", "examples", "rank", "cycle"),
    [
        ("shared", 3, 1, 8),
        ("shared", 3, 5, 2),
        ("per-example", 16, 1, 1),
        ("per-example", 8, 1, 2),
        ("per-example", 3, 1, 3),
        ("per-example", 8, 3, 1),
    ],
)
def test_a_step_in_the_forward_is_timed_in_the_middle_of_its_cycle(
    model, model_folder, directions, examples, rank, cycle
):
    way = WAYS[f"in-forward-{directions}"](model, StepOptions(str(model_folder), examples, 4, rank))
    assert isinstance(way, AmortizedSteps)
    evaluator = way.evaluator
    assert isinstance(evaluator, InForward)
    met, asked, keys = [], evaluator.probe, examples if directions == "per-example" else 1

    def probe(*arguments):
        met.append(len(evaluator.theta.pending) / keys)
        return asked(*arguments)

    evaluator.probe = probe
    way.prepare()
    assert way.cycle == cycle
    assert met == list(range(cycle))
    for _ in range(3):
        met.clear()
        drawn = evaluator.backbone.sweeps
        assert way.seconds() > 0
        timed = met[: 2 - cycle % 2]
        assert sum(timed) / len(timed) == (cycle - 1) / 2
        assert met[-1] >= cycle - 2  # what is folded then is nearly all that a cycle makes wait
        assert evaluator.backbone.sweeps == drawn + 1
        assert len(evaluator.theta.pending) == 0


# what goes wrong


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--rows", 0, "--rows is 0, but must be 1 or more"),
        ("--tokens", 0, "--tokens is 0, but must be 1 or more"),
        ("--tokens", 64, "reads 64 tokens"),
        ("--rank", 0, "--rank is 0, but must be 1 or more"),
        ("--rank", 17, "--rank is 17, but 'model.embed_tokens.weight' is "),
        ("--repeats", -1, "--repeats is -1, but must be 1 or more"),
        ("--dtype", "float23", "unknown dtype 'float23'. Did you mean 'float32'?"),
        ("--model", "smollm3", "unknown model 'smollm3'. Did you mean 'smollm2-135m'?"),
        ("--json", "/nowhere/at/all.json", "cannot write '/nowhere/at/all.json': No such file or directory"),
    ],
)
def test_a_mistake_is_said_before_anything_is_measured(run_step, options, monkeypatch, flag, value, message):
    monkeypatch.setattr(step, "_rounds", lambda *_: pytest.fail("measured"))
    code, out, err = run_step(options, flag, value)
    assert code == 2
    assert message in err
    assert "hint: " in err
    assert out == ""


@pytest.mark.parametrize(
    ("changed", "error"),
    [({"examples": 0}, ConfigError), ({"dtype": "int8"}, UnknownNameError), ({"rank": 99}, ConfigError)],
)
def test_the_function_raises_what_the_verb_says(options, changed, error):
    with pytest.raises(error) as caught:
        bench_step(StepOptions(**{**vars(options), **changed}))
    assert caught.value.hint


def test_a_file_that_exists_is_kept_until_it_is_replaced(options, tmp_path):
    file = tmp_path / "step.json"
    file.write_text("earlier")
    with pytest.raises(ConfigError):
        bench_step(StepOptions(options.model, rank=99), file=file)
    assert file.read_text() == "earlier"
    with pytest.raises(ConfigError):
        bench_step(StepOptions(options.model, rank=99), file=tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
    with pytest.raises(RunError, match="Is a directory"):
        bench_step(options, file=tmp_path)


def test_a_way_without_memory_is_noted_and_the_others_are_measured(options, monkeypatch, tmp_path):
    class Fails(step_variants.StepVariant):
        def prepare(self):
            pass

        def seconds(self):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    def refuses(model, options):
        raise EvaluatorError("16 examples at 2 points do not fit into memory in one forward")

    some = {
        "inference": WAYS["inference"],
        "mezo-usual": lambda model, options: Fails(print, model.device),
        "in-place": refuses,
    }
    monkeypatch.setattr(step, "WAYS", some)
    report = bench_step(options, memory=False, file=tmp_path / "step.json")
    floor, late, early = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert floor["median_s"] > 0
    assert (late["median_s"], late["error"]) == (None, "out of memory: CUDA out of memory. Tried to allocate 9 GiB")
    assert (early["median_s"], early["error"]) == (
        None,
        "16 examples at 2 points do not fit into memory in one forward",
    )
    assert report.table().caption.plain.splitlines() == [f"{row['name']}: {row['error']}" for row in (late, early)]


@pytest.mark.parametrize(
    ("code", "shown", "message"),
    [
        (-9, "", "the process that measures the memory of 'in-place' was ended by signal 9"),
        (1, "Traceback\nKeyError: 'x'\n", "the process that measures the memory of 'in-place' failed: KeyError: 'x'"),
        (0, "", "16 examples do not fit"),
    ],
)
def test_a_process_that_could_not_measure_is_noted(options, monkeypatch, code, shown, message):
    done = subprocess.CompletedProcess([], code, 'a note\n{"error": "16 examples do not fit"}\n', shown)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ModelError, match=message):
        measure_peak("in-place", options)


def test_only_a_lack_of_memory_is_noted():
    lack = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
    assert failure(lack).startswith("out of memory: ")
    assert failure(MemoryError()) == "out of memory"
    with pytest.raises(RuntimeError, match="a bug"):
        failure(RuntimeError("a bug"))


def test_the_script_shows_all_its_sizes(options, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import step

    assert step.SIZES == ((16, 64), (8, 64), (16, 32), (8, 32), (1, 32))
    monkeypatch.setattr(step, "SIZES", ((2, 5), (1, 4)))
    file = tmp_path / "all.json"
    given = ["--model", options.model, "--repeats", "1", "--no-memory", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["step.py", *given])
    step.main()
    sizes = json.loads(file.read_text())["sizes"]
    assert [(size["examples"], size["tokens"]) for size in sizes] == [(2, 5), (1, 4)]
    assert all([row["name"] for row in size["rows"]] == NAMES for size in sizes)
    assert capsys.readouterr().out.count("mezo-usual") == 2
    monkeypatch.setattr(sys, "argv", ["step.py", *given, "--rank", "99"])
    with pytest.raises(SystemExit) as end:
        step.main()
    assert end.value.code == 2
    assert "hint: " in capsys.readouterr().err


SCRIPTS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_every_script_can_be_imported_and_explains_itself(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    text = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
    if '__name__ == "__main__"' not in text:
        importlib.import_module(name)
        return
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    assert not end.value.code
    assert f"usage: {name}.py" in capsys.readouterr().out


def test_the_script_of_bilevel_times_a_step_and_its_parts(options, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    import bilevel

    file = tmp_path / "figures.json"
    given = ["time", "--model", options.model, "--rows", "2", "--tokens", "5", "--rounds", "1", "--adapters", "lora"]
    monkeypatch.setattr(sys, "argv", ["bilevel.py", *given, "--json", str(file)])
    bilevel.main()
    measured = json.loads(file.read_text())["figures"]
    assert set(measured) == {"lora, in-forward", "lora, in-place"}
    for figures in measured.values():
        parts = [figures[name] for name in ("inner steps", "adapter step", "six forwards")]
        assert min(parts) > 0
        assert figures["ratio"] == pytest.approx(figures["outer step"] / sum(parts))
