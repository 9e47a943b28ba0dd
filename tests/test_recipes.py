"""The packaged recipes: every preset is a configuration and takes two steps on a tiny model of its architecture."""

import copy
import json
import re
from pathlib import Path

import pytest
import transformers
import yaml

from conftest import build_model, review_rows, tiny_config, with_soak, write_rows
from zofo.errors import ConfigError, UnknownNameError
from zofo.methods import METHODS
from zofo.recipes import OVER, load_recipe, parse_recipe, recipe_names, recipe_text
from zofo.tasks import task_names
from zofo.training import names as listed
from zofo.training import read_config, train
from zofo.trees import get_by_path, read_yaml

RECIPES = {name: load_recipe(name) for name in recipe_names()}
PRESETS = [(name, preset) for name, recipe in RECIPES.items() for preset in recipe.presets]
ARCHITECTURE = {
    "distilbert": "distilbert",
    "gpt2-large": "gpt2",
    "gpt2-xl": "gpt2",
    "llama2-7b": "llama-untied",
    "opt-1.3b": "opt",
    "opt-13b": "opt",
    "opt-2.7b": "opt",
    "opt-6.7b": "opt",
    "qwen2.5-3b": "qwen2",
    "qwen3-4b": "qwen3",
    "roberta-large": "roberta",
}
"""What a recipe's name begins with, and the tiny model that stands for it."""

LAYERS = {"distilbert": 6, "roberta": 24}
"""As many as the real ones have, since recipes name some of them."""


def kind_of(name: str) -> str:
    return next(kind for start, kind in ARCHITECTURE.items() if name.startswith(f"{start}-"))


def few_presets() -> list[tuple[str, str]]:
    """Enough of them that every architecture, every method and every name of a preset is among them."""
    chosen: list[tuple[str, str]] = []
    seen: set[str] = set()
    for name, preset in PRESETS:
        own = {kind_of(name), preset, RECIPES[name].keys(preset)["method.name"]}
        if own - seen:
            seen |= own
            chosen.append((name, preset))
    return chosen


QUICK = few_presets()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """A folder for each architecture, as the Hub has it: encoders with a masked-lm head."""
    found = {}
    for kind in sorted(set(ARCHITECTURE.values())):
        folder = tmp_path_factory.mktemp("models") / kind
        own = tokenizer
        if kind in LAYERS:
            own = copy.deepcopy(tokenizer)
            own.add_special_tokens({"mask_token": "<mask>"})
            config = tiny_config(kind, len(own), 128)
            layers = "n_layers" if kind == "distilbert" else "num_hidden_layers"
            setattr(config, layers, LAYERS[kind])
            model = transformers.AutoModelForMaskedLM.from_config(config)
        else:
            model = build_model(kind, len(own), positions=128)
        model.save_pretrained(folder)
        own.save_pretrained(folder)
        found[kind] = folder
    return found


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Made-up rows of each task that the recipes need: reviews, COPA, and three tasks of MetaICL's format."""
    folder = tmp_path_factory.mktemp("rows")
    for split, count, start in (("train", 24, 0), ("validation", 4, 24), ("test", 4, 30)):
        write_rows(folder / "reviews" / f"{split}.jsonl", review_rows(count, start))
    for split, count in (("train", 24), ("validation", 6)):
        choices = {"choice1": "It drags.", "choice2": "It was a joy."}
        copa = [{"premise": f"Film {i}.", **choices, "question": "cause", "label": i % 2} for i in range(count)]
        write_rows(folder / "copa" / f"{split}.jsonl", copa)
    for task in ("one", "two", "unseen"):
        for split, count, start in (("train", 24, 0), ("test", 4, 30)):
            kept = [
                {
                    "task": task,
                    "input": f"{task} {row['sentence']}",
                    "output": "yes" if row["label"] else "no",
                    "options": ["yes", "no"],
                }
                for row in review_rows(count, start)
            ]
            write_rows(folder / "metaicl" / task / f"{split}.jsonl", kept)
    for split, count, start in (("train", 24, 0), ("validation", 4, 24)):
        sums = [{"question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(start, start + count)]
        write_rows(folder / "sums" / f"{split}.jsonl", sums)
    return folder


def needed(name: str) -> list[str]:
    """What a recipe leaves to its user, as its examples have it."""
    return [part for keys in RECIPES[name].requires for part in next(iter(keys.values())).split()]


@pytest.fixture(scope="module")
def started(folders, rows, tmp_path_factory):
    """A run that others start from."""
    run = tmp_path_factory.mktemp("started") / "run"
    train(read_config("gpt2-large-meta", two_steps("gpt2-large-meta", "ours", folders, rows, run)))
    return run


def two_steps(name: str, preset: str, folders, rows, run) -> list[str]:
    """What is put over a recipe for two steps on a tiny model: its place, rows, and smaller numbers."""
    config = read_config(name, [f"preset={preset}", *needed(name)])
    given = [f"model.name={folders[kind_of(name)]}", "model.device=cpu", "training.num_evals=null", f"output_dir={run}"]
    given += ["training.eval_steps=null"]
    if config.training.objective == "number-match":
        given += [f"task.data={rows / 'sums'}", "task.max_new_tokens=3", "method.population=4"]
    elif config.task.several:
        given += ["task.metaicl_setting=null", "task.tasks=[one, two]", f"task.data={rows / 'metaicl'}"]
        given += ["task.split_sizes={validation: 4}"]
    elif RECIPES[name].requires:
        given += [f"task.data={rows / 'metaicl' / 'unseen'}", "task.split_sizes={validation: 4}"]
    elif config.task.split_sizes:
        given += ["task.split_sizes={train: 24, validation: 4, test: 4}"]
    if config.task.train_examples_per_label:
        given += ["task.train_examples_per_label=8"]
    if RECIPES[name].requires:
        given += ["task.num_fewshot=2"] if config.task.num_fewshot else []
        given += ["method.gate_examples=4", "method.keep=1"] if config.method.name == "select" else []
    elif config.task.name == "copa":
        given += [f"task.data_dir={rows / 'copa'}", "task.split_sizes={train: 18, validation: 6, test: 6}"]
    else:
        given += [f"task.data_dir={rows / 'reviews'}"]
    given += {
        "two-stage": ["method.adapter_steps=1"],
        "bilevel": ["method.inner_steps=1"],
        "meta-bilevel": ["method.inner_steps=1", "method.tasks_per_step=2"],
        "svrg": ["method.anneal=false", "method.anchor_batch_size=8"],
        "in-context": ["task.num_fewshot=2"],
    }.get(config.method.name, [])
    steps = [] if METHODS[config.method.name].fixed_steps is not None else ["training.steps=2"]
    return [*given, "method.batch_size=4", *steps, f"preset={preset}"]


def test_there_is_a_recipe_for_each_model_and_row():
    zofo = {f"{kind}-{a}" for kind in ("mezo", "fo", "bilevel") for a in ("lora", "prefix", "prompt")} | {"mezo"}
    svrg = {"mezo", "svrg", "fo-sgd"}
    wanted = {
        "opt-1.3b": zofo | {"two-stage"},
        "llama2-7b": zofo,
        "opt-13b": {"zero-shot", "in-context", "linear-probe", "mezo", "mezo-lora", "mezo-prefix"},
        **dict.fromkeys(("distilbert", "roberta-large", "gpt2-xl", "opt-2.7b", "opt-6.7b"), svrg),
        "gpt2-large": {"zero-shot", "in-context", "metaicl", "channel-metaicl", "meta", "tuned"},
        "qwen2.5-3b": {"es", "select"},
        "qwen3-4b": {"eggroll"},
    }
    assert set(RECIPES) == {f"{model}-{method}" for model, methods in wanted.items() for method in methods}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_both_presets_names_its_row_and_could_not_be_meant_for_something_else(name):
    recipe = RECIPES[name]
    assert list(recipe.presets)[:2] == ["ours", "paper"]
    assert "table" in recipe.table_row
    assert len(recipe.about) < 90
    assert name not in task_names()
    assert "trust_remote_code" not in recipe_text(name)
    assert max(map(len, recipe_text(name).splitlines())) <= 150


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_of_a_grid_fits_every_preset(name):
    for preset in RECIPES[name].presets:
        given = [f"preset={preset}", *needed(name)]
        assert read_config(name, given).model.name.count("/") == 1
        for key, values in RECIPES[name].search_space.items():
            for value in values:
                tree = read_config(name, [*given, f"{key}={value}"]).model_dump()
                assert get_by_path(tree, key) == value, (preset, key)


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.search_space and n != "opt-1.3b-two-stage"])
def test_the_papers_preset_lies_on_the_papers_grid(name):
    tree = read_config(name, ["preset=paper"]).model_dump()
    for key, values in RECIPES[name].search_space.items():
        assert get_by_path(tree, key) in values, key


@pytest.mark.parametrize(("name", "preset"), with_soak(PRESETS, QUICK))
def test_every_preset_takes_two_steps(name, preset, folders, rows, tmp_path, request):
    given = two_steps(name, preset, folders, rows, tmp_path / "run")
    if "init_from=runs/meta" in needed(name):
        given.append(f"init_from={request.getfixturevalue('started')}")
    config = read_config(name, given)
    summary = train(config).summary
    fixed = METHODS[config.method.name].fixed_steps
    assert summary["steps"] == (2 if fixed is None else fixed)
    assert 0 <= summary[summary["metric"]] <= 1
    wanted = RECIPES[name].keys(preset)  # what it says about the method is what ran
    ran = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))["method"]
    assert ran["name"] == wanted["method.name"]
    if "method.rule.lr" in wanted:
        assert ran["rule"]["lr"] == wanted["method.rule.lr"]
    if "method.noise" in wanted:
        known = {"gaussian": ("gaussian", "in-place"), "low-rank": ("low-rank", "in-forward")}
        asked = wanted["method.noise"]
        kind = asked if isinstance(asked, str) else asked["name"]
        assert (ran["noise"]["name"], ran["evaluator"]["name"]) == known[kind]


def test_the_settings_of_the_papers_are_those_that_are_published():
    bilevel = read_config("opt-1.3b-bilevel-lora", ["preset=paper"])
    assert (bilevel.method.penalty, bilevel.method.inner_steps, bilevel.method.batch_size) == (1e4, 10, 16)
    assert bilevel.method.rule.name == "dense-adam"
    assert bilevel.method.rule.options["lr"] == bilevel.method.lr_adapter  # one rate of the upper level
    assert bilevel.method.estimator.options["epsilon"] == 1e-3  # not the default of half precision
    assert bilevel.model.dtype == "bfloat16"
    two_stage = read_config("opt-1.3b-two-stage", ["preset=paper"])
    assert two_stage.method.adapter_steps == bilevel.method.inner_steps * bilevel.training.steps
    assert two_stage.training.steps - two_stage.method.adapter_steps == bilevel.training.steps
    steps = {"distilbert": (200_000, 50_000), "roberta-large": (96_000, 24_000), "gpt2-xl": (32_000, 8_000)}
    for model, (mezo, svrg) in steps.items():
        assert read_config(f"{model}-mezo", ["preset=paper"]).training.steps == mezo
        found = read_config(f"{model}-svrg", ["preset=paper"])
        assert (found.training.steps, found.method.anchor_interval, found.method.anneal) == (svrg, 2, True)
        assert found.model.head == "classification"
        assert found.task.split_sizes == {"train": 512, "validation": 256, "test": 256}


def test_the_settings_of_populations_are_those_that_are_published():
    es = read_config("qwen2.5-3b-es", ["preset=paper", "task.data=x.jsonl"]).method
    assert (es.population, es.num_directions, es.batch_size) == (30, 30, 200)
    assert (es.estimator.options["epsilon"], es.rule.options["lr"]) == (1e-3, 5e-4)
    assert (es.estimator.options["scores"], es.noise.name) == ("z-score", "gaussian")
    ours = read_config("qwen2.5-3b-es", ["task.data=x.jsonl"]).method
    assert ours.rule.options["lr"] == ours.estimator.options["epsilon"] / 2
    for preset, members, keep in (("paper", 5000, 50), ("paper-corp", 500, 500)):
        found = read_config("qwen2.5-3b-select", [f"preset={preset}", "task.data=x.jsonl"])
        assert (found.method.population * found.training.steps, found.method.keep) == (members, keep)
    eggroll = read_config("qwen3-4b-eggroll", ["preset=paper", "task.data=x.jsonl"]).method
    assert (eggroll.population, eggroll.num_directions, eggroll.noise.options["rank"]) == (2048, 1024, 1)


def test_a_recipe_without_the_task_that_it_needs_is_refused(run_zofo):
    for verb in ("validate", "train"):
        code, out, err = run_zofo(verb, "gpt2-large-meta")
        assert (code, out) == (2, "")
        assert (
            "gpt2-large-meta: this recipe leaves task.metaicl_setting or task.tasks to you, and it is not given" in err
        )
        assert "add for example task.metaicl_setting=class_to_class.json task.data=FOLDER" in err
        assert "movie-reviews" not in err
    with pytest.raises(ConfigError, match=r"gpt2-large-tuned: this recipe leaves init_from to you"):
        read_config("gpt2-large-tuned", ["task=sst2"])
    assert read_config("gpt2-large-zero-shot", ["task=sst2"]).task.name == "sst2"
    wanted = {name for name in RECIPES if name.startswith(("gpt2-large", "qwen"))}
    assert {name for name, recipe in RECIPES.items() if recipe.requires} == wanted
    assert all(part.partition("=")[1] for name in wanted for part in needed(name))


def test_the_rows_of_table_4_are_as_the_paper_has_them():
    found = {n: read_config(n, ["preset=paper", *needed(n)]) for n in RECIPES if n.startswith("gpt2-large")}
    meta, metaicl = found["gpt2-large-meta"], found["gpt2-large-metaicl"]
    assert (meta.training.steps, meta.method.tasks_per_step, meta.method.inner_steps) == (50000, 5, 10)
    assert (metaicl.training.steps, metaicl.method.parameters, metaicl.method.lr) == (30000, "all", 1e-5)
    assert meta.task.max_rows == metaicl.task.max_rows == 768
    assert (meta.task.num_fewshot, found["gpt2-large-in-context"].task.num_fewshot) == (0, 4)
    channel = found["gpt2-large-channel-metaicl"]
    assert (metaicl.task.scoring, channel.task.scoring) == ("mean", "channel")
    assert channel.method == metaicl.method
    tuned = found["gpt2-large-tuned"]
    assert (tuned.training.steps, tuned.task.train_examples_per_label, tuned.method.parameters) == (10, 4, "adapter")
    assert str(tuned.init_from) == "runs/meta"


def test_a_preset_may_be_laid_over_another():
    keys = RECIPES["distilbert-svrg"].keys("paper-large-batch")
    assert OVER not in keys
    assert keys["method.trainable"] == ["*.layer.5.*", "classifier.*"]  # of paper-partial
    assert keys["model.dtype"] == "bfloat16"  # of paper-bf16
    assert keys["method.lr_full"] == 1e-3  # of paper
    assert keys["training.steps"] == 8000  # its own
    looped = parse_recipe({"about": "a loop", "presets": {"a": {OVER: "b"}, "b": {OVER: "a"}}})
    with pytest.raises(ConfigError, match=r"presets\.a: it extends itself, by way of a, b"):
        looped.keys("a")


# reading


def test_the_first_preset_is_taken_and_overrides_win_wherever_the_preset_stands():
    assert read_config("opt-1.3b-mezo") == read_config("opt-1.3b-mezo", ["preset=ours"])
    paper = read_config("opt-1.3b-mezo", ["preset=paper"])
    assert paper.training.objective == "answer"
    for order in (["method.rule.lr=3", "preset=paper"], ["preset=paper", "method.rule.lr=3"]):
        changed = read_config("opt-1.3b-mezo", order)
        assert changed.method.rule.options["lr"] == 3
        assert changed.training == paper.training
    assert read_config("opt-1.3b-mezo", ["task=rte"]).task.name == "rte"


def test_a_file_of_the_same_name_is_meant_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_config("opt-1.3b-mezo").method.name == "mezo"
    (tmp_path / "opt-1.3b-mezo").write_text("method: first-order", encoding="utf-8")
    assert read_config("opt-1.3b-mezo").method.name == "first-order"


def test_recipes_that_are_not_there(run_zofo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for verb in (["train"], ["preview"], ["validate"], ["tune", "lr"]):
        code, out, err = run_zofo(*verb, "opt-1.3b-mezzo")
        assert (code, out) == (2, "")
        assert "error: unknown recipe 'opt-1.3b-mezzo'. Did you mean 'opt-1.3b-mezo'?" in err
        assert "zofo list recipes" in err
    _, _, err = run_zofo("train", "opt-1.3b-mezo", "preset=papr")
    assert "error: opt-1.3b-mezo: unknown preset 'papr'. Did you mean 'paper'?" in err
    (tmp_path / "mine.yaml").write_text("method: mezo", encoding="utf-8")
    for arguments in (["opt-1.3b-mezo", "mine.yaml"], ["mine.yaml", "opt-1.3b-mezo"]):
        code, _, err = run_zofo("train", *arguments)
        assert code == 2
        assert f"error: {arguments[1]!r} is not key=value" in err
        assert "a file or a recipe stands first, and there is only one" in err
    for arguments in (["mine.yaml", "preset=paper"], ["preset=paper"]):
        code, _, err = run_zofo("train", *arguments)
        assert code == 2
        assert "error: preset=paper chooses among the presets of a recipe, but there is no recipe" in err
    assert "cannot read" in run_zofo("train", "nowhere/opt-1.3b-mezo")[2]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"presets": {}}, "about: "),
        ({"about": "x", "presets": {}}, "presets: "),
        ({"about": "x", "presets": {"a": {}}, "bass": {}}, "bass: unknown key"),
        ({"about": "x", "presets": {"a": {"method.rul": 1}}}, r"method\.rul: unknown key"),
        ({"about": "x", "presets": {"a": 3}}, r"presets\.a: "),
        ({"about": "x", "presets": {"a": {"extends": "b"}}}, "unknown preset 'b'"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_by_the_name_of_its_file(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refused:
        read_config(file)
    assert refused.value.message.startswith(f"{file}: ")


# the command line


def test_recipes_are_listed(run_zofo):
    code, out, _ = run_zofo("list", "recipes", "--json")
    assert code == 0
    found = json.loads(out)["recipes"]
    assert list(found) == recipe_names()
    assert found["opt-1.3b-mezo"] == (
        "MeZO on all weights of OPT-1.3B (Bilevel-ZOFO tables 2 and 5, MeZO (ft); B.1.3, B.1.4)"
    )
    assert listed("recipes") == {"recipes": found}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_copied_and_is_then_the_same(run_zofo, tmp_path, name):
    file = tmp_path / "mine.yaml"
    code, out, _ = run_zofo("copy", name, file)
    assert (code, out) == (0, f"wrote {file}; edit it, then: zofo train {file}\n")
    assert parse_recipe(read_yaml(file)) == RECIPES[name]
    assert file.read_text(encoding="utf-8") == recipe_text(name)  # with its comments
    for preset in RECIPES[name].presets:
        given = [f"preset={preset}", *needed(name)]
        assert read_config(file, given) == read_config(name, given)


def test_copies_that_cannot_be_made(run_zofo, tmp_path):
    assert "is no name for a recipe file" in run_zofo("copy", "opt-1.3b-mezo", tmp_path / "mine.txt")[2]
    (tmp_path / "there.yaml").write_text("precious", encoding="utf-8")
    assert "exists" in run_zofo("copy", "opt-1.3b-mezo", tmp_path / "there.yaml")[2]
    assert (tmp_path / "there.yaml").read_text(encoding="utf-8") == "precious"


def test_a_recipe_trains_from_the_command_line_and_so_does_an_edited_copy(run_zofo, folders, rows, tmp_path):
    name = "opt-1.3b-mezo"
    given = two_steps(name, "paper", folders, rows, tmp_path / "one")
    code, out, err = run_zofo("train", name, *given)
    assert code == 0, err
    assert f"run: {tmp_path / 'one'}" in out
    assert run_zofo("copy", name, tmp_path / "mine.yaml")[0] == 0
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("1.0e-6", "2.0e-6"), encoding="utf-8")
    code, _, err = run_zofo("train", tmp_path / "mine.yaml", *given, f"output_dir={tmp_path / 'two'}")
    assert code == 0, err
    ran = [read_yaml(tmp_path / run / "config.yaml")["method"]["rule"]["lr"] for run in ("one", "two")]
    assert ran == [1e-6, 2e-6]


def test_a_missing_recipe_is_an_error_of_the_library_too():
    with pytest.raises(UnknownNameError, match="Did you mean 'distilbert-svrg'"):
        load_recipe("distilbert-svgr")


# the documentation

DOCS = Path(__file__).parent.parent / "docs" / "recipes.md"


def test_the_table_of_recipes_is_right():
    found, model = set(), []
    for line in DOCS.read_text(encoding="utf-8").split("## Which there are")[1].splitlines():
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:3]]
        if not line.startswith("|") or not any(cells):
            continue
        model = cells[0] or model
        methods = [name for name in cells[1] if name]
        found |= {f"{one}-{method}" for one in model for method in methods}
    zofo = {name.removeprefix("opt-1.3b-") for name in RECIPES if name.startswith("opt-1.3b-")} - {"two-stage"}
    assert found | {f"llama2-7b-{method}" for method in zofo} == set(RECIPES)


def test_the_recipe_of_the_documentation_can_be_read(tmp_path):
    text = DOCS.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    slow, quick = (read_config(tmp_path / "my.yaml", overrides) for overrides in ([], ["preset=quick"]))
    assert (slow.training.steps, quick.training.steps) == (10000, 100)
    assert slow.method == quick.method
    assert slow.method.rule.options["lr"] == 1e-6
