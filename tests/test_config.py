"""The configuration tree: its written forms, its defaults, and what it says to mistakes."""

from __future__ import annotations

import copy
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from conftest import with_soak
from zofo import trees
from zofo.config import PartConfig
from zofo.errors import ConfigError, UnknownNameError, ZofoError
from zofo.methods import METHODS, BilevelConfig, FirstOrderConfig, MeZOConfig
from zofo.models import ModelConfig
from zofo.tasks import TaskConfig, load_task, task_names
from zofo.tasks.task import parse_task
from zofo.training import RunConfig, TrainingConfig, read_config
from zofo.trees import flatten, format_yaml

PARTS = ("noise", "estimator", "rule", "evaluator")


# written forms


@pytest.mark.parametrize("folder", ["tasks", "studies", "recipes"])
def test_packaged_files_hold_what_yaml_reads_in_them(folder):
    paths = [path for path in (files("zofo") / folder / "files").iterdir() if path.suffix == ".yaml"]
    assert len(paths) > 10
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert trees.parse_yaml(text) == yaml.safe_load(text), path


def for_parts(override):
    """A method that has the parts of zeroth-order steps, where an override names one of them and no method."""
    return ["method=bilevel"] if override.startswith("method.") else []


def test_nothing_given_is_a_complete_configuration():
    config = read_config()
    assert config == RunConfig()
    assert (config.model, config.task, config.training) == (ModelConfig(), TaskConfig(), TrainingConfig())
    assert isinstance(config.method, FirstOrderConfig)


def test_a_key_of_other_methods_where_none_is_named_says_which_have_it():
    with pytest.raises(ConfigError, match=r"method\.inner_steps is no key of first-order") as refused:
        read_config(overrides=["method.inner_steps=3", "method.batch_size=4"])
    assert refused.value.hint.startswith("name one that has it: method=bilevel")
    with pytest.raises(ConfigError, match=r"method\.inner_stepps: unknown key"):
        read_config(overrides=["method.inner_stepps=3"])


@pytest.mark.parametrize(
    ("typed", "key", "choice"),
    [
        ("method.inner_steps=3", "that has it", "method=bilevel, method=meta-bilevel"),
        ("method.adapter_lr=1", "that has method.lr_adapter", "method=bilevel, method=meta-bilevel, method=two-stage"),
        (
            "method.pair=subspace",
            "that has method.control_variate",
            "method=bilevel, method=meta-bilevel, method=svrg, method=zo-svrg",
        ),
    ],
)
def test_a_key_of_other_methods_where_one_is_named_says_which_have_it(typed, key, choice):
    asked = typed.partition("=")[0]
    for method in ("mezo", "first-order"):
        with pytest.raises(ConfigError, match=rf"^{asked} is no key of {method}\n") as refused:
            read_config(overrides=[f"method={method}", typed])
        assert refused.value.hint == f"leave it out, or take a method {key}: {choice}"
    with pytest.raises(
        ConfigError, match=rf"^{asked} is no key of first-order, which is the method where none"
    ) as refused:
        read_config(overrides=[typed])
    assert refused.value.hint == f"name one {key}: {choice}"
    with pytest.raises(ConfigError) as refused:
        read_config(overrides=["method=mezo", "method.size_batch=3"])
    assert refused.value.hint == "did you mean 'batch_size'?"


@pytest.mark.parametrize("part", ["method", "method.rule", "method.noise", "method.adapter", "method.evaluator"])
def test_a_part_without_a_name_is_told_the_names(part):
    kind = part.rpartition(".")[2]
    with pytest.raises(ConfigError, match="the method has no name"):
        read_config(overrides=["method="])
    with pytest.raises(ConfigError, match=f"the {kind} has no name") as refused:
        read_config(overrides=["method=mezo", f"{part}.name="])
    assert refused.value.hint.startswith("name one of these: ")
    assert "None" not in str(refused.value)
    with pytest.raises(ConfigError, match=rf"the {kind} has the name \[1\], which is no text"):
        read_config(overrides=["method=mezo", f"{part}.name=[1]"])


def test_file_then_groups_then_overrides(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: a\ntask: {name: sst2, split_seed: 3}\ntraining: {steps: 5, seed: 1}\n", encoding="utf-8")
    config = read_config(file, ["training.steps=7", "method.rule.lr=1e-5"], method="mezo", training={"steps": 6})
    assert config.model.name == "a"
    assert (config.task.name, config.task.split_seed) == ("sst2", 3)
    assert (config.training.steps, config.training.seed) == (7, 1)
    assert config.method.rule.lr == 1e-5


def test_an_empty_file_is_the_default(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n", encoding="utf-8")
    assert read_config(file) == RunConfig()


def test_bare_names_stand_for_groups():
    given = ["model=m", "task=sst2", "method=mezo", "method.rule=momentum", "method.noise=rademacher"]
    config = read_config(overrides=given)
    assert (config.model.name, config.task.name, config.method.name) == ("m", "sst2", "mezo")
    assert (config.method.rule.name, config.method.noise.name) == ("momentum", "rademacher")
    assert read_config(model="m", task="sst2", method={"name": "mezo", "rule": "momentum", "noise": "rademacher"}) == (
        config
    )


def test_a_name_joins_options_in_any_order():
    one = read_config(overrides=["method=mezo", "method.batch_size=4", "method.rule.lr=1e-5", "method.rule=sgd"])
    two = read_config(overrides=["method.rule.lr=1e-5", "method.rule=sgd", "method.batch_size=4", "method=mezo"])
    assert one == two
    assert (one.method.batch_size, one.method.rule.lr) == (4, 1e-5)


NO_DECAY = {"displacement_decay": 0.0, "decay_interval": 1}


def test_another_name_replaces_the_options_of_the_old_one(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("method: {name: bilevel, inner_steps: 3, rule: {name: sgd, weight_decay: 0.1}}\n", encoding="utf-8")
    assert read_config(file, ["method=mezo"]).method == MeZOConfig()
    switched = read_config(file, ["method.rule=momentum"]).method
    assert switched.inner_steps == 3
    assert switched.rule.model_dump() == {"name": "momentum", "lr": 1e-4, "beta": 0.9, "tolerance": 1e-3, **NO_DECAY}


def test_a_name_alone_gives_options_their_defaults():
    rule = read_config(method={"name": "mezo", "rule": {"lr": 3e-7}}).method.rule
    assert rule.model_dump() == {"name": "sgd", "lr": 3e-7, "weight_decay": 0.0, **NO_DECAY}


VARIED = [
    {},
    {"method": "mezo"},
    {"method": "first-order"},
    {"method": {"name": "first-order", "parameters": "all", "trainable": ["*.1.*"], "optimizer": "sgd", "lr": 0.5}},
    {"method": {"name": "mezo", "rule": {"name": "dense-adam", "betas": [0.5, 0.75]}, "noise": {"name": "low-rank"}}},
    {
        "method": {"name": "bilevel", "adapter": {"rank": 2, "target_modules": ["q_proj"]}, "trainable": ["*.0.*"]},
        "output_dir": "runs/one",
    },
    {
        "task": {"data_dir": "here", "max_length": 64, "truncate": "left"},
        "training": {"seed": 2**64 - 1, "max_queries": 16},
    },
]


@pytest.mark.parametrize("groups", VARIED)
def test_the_resolved_tree_is_complete_and_reads_back_equal(tmp_path, groups):
    config = read_config(**groups)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(file) == config
    tree = yaml.safe_load(config.to_yaml())
    assert set(tree) == set(RunConfig.model_fields)
    assert set(tree["method"]) == set(METHODS[config.method.name].Config.model_fields)
    assert set(tree["training"]) == set(TrainingConfig.model_fields)
    for part in PARTS:
        if part in tree["method"]:
            built = getattr(config.method, part)
            assert "name" in tree["method"][part]
            assert tree["method"][part].keys() == built.model_dump().keys()
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")  # nothing is lost by a second writing
    assert read_config(file).to_yaml() == config.to_yaml()


def test_configurations_are_frozen():
    config = read_config()
    with pytest.raises(ValueError, match="frozen"):
        config.training.steps = 3


# mistakes in keys


def _trees() -> list[tuple[str, list[str], list[str]]]:
    """Every group of keys: its path, what must be set first, its keys."""
    found = [("", [], list(RunConfig.model_fields))]
    for group, model in (("model", ModelConfig), ("task", TaskConfig), ("training", TrainingConfig)):
        found.append((group, [], list(model.model_fields)))
    for name in METHODS:
        first = [f"method={name}"]
        fields = METHODS[name].Config.model_fields
        found.append(("method", first, list(fields)))
        for key, field in fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, PartConfig):
                for part in kind.registry:
                    options = list(kind.model_validate(part).model_dump())
                    found.append((f"method.{key}", [*first, f"method.{key}={part}"], options))
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                found.append((f"method.{key}", first, list(kind.model_fields)))
    return found


def _typos(word: str, taken: list[str]) -> list[str]:
    """The word with one letter dropped, doubled, or swapped with the next."""
    made = set()
    for i in range(len(word)):
        made |= {word[:i] + word[i + 1 :], word[: i + 1] + word[i:], word[:i] + word[i : i + 2][::-1] + word[i + 2 :]}
    return sorted(made - set(taken) - {""})


@pytest.mark.promise(20)
@pytest.mark.parametrize("apart", with_soak([1, 2], [2]))
def test_one_letter_typos_in_every_key_get_the_right_suggestion(apart):
    """All of them, or each second one; a place that several methods share is tried with the first of them."""
    right, wrong, tried = 0, [], set()
    for path, first, keys in _trees():
        for key in keys:
            for typo in _typos(key, keys)[::apart]:
                place = f"{path}.{typo}" if path else typo
                if (place, key) in tried:
                    continue
                tried.add((place, key))
                with pytest.raises(ConfigError) as refused:
                    read_config(overrides=[*first, f"{place}=1"])
                assert typo in refused.value.message
                if f"did you mean {key!r}?" == refused.value.hint:
                    right += 1
                else:
                    wrong.append((place, refused.value.hint))
    assert right + len(wrong) > 1000
    assert right >= 0.95 * (right + len(wrong)), wrong


def test_every_kind_of_group_was_tried():
    paths = {path for path, _, _ in _trees()}
    assert paths >= {"", "model", "task", "training", "method", "method.adapter", *(f"method.{part}" for part in PARTS)}


@pytest.mark.promise(20)
def test_one_letter_typos_in_task_files_get_the_right_suggestion():
    right, wrong, tried = 0, [], set()  # the suggestion depends on the typo alone, so that each is tried in one task
    for name in task_names():
        tree = load_task(name).model_dump(mode="json", by_alias=True)
        assert parse_task(tree, "mine.yaml").name == name
        for path in ((), ("source",), ("splits", "train"), ("splits", "test")):
            keys = list(_at(tree, path))
            for key in keys:
                for typo in _typos(key, keys):
                    if (path, typo) in tried:
                        continue
                    tried.add((path, typo))
                    changed = copy.deepcopy(tree)
                    below = _at(changed, path)
                    below[typo] = below[key]  # beside the right one, so that nothing else is wrong
                    with pytest.raises(ConfigError) as refused:
                        parse_task(changed, "mine.yaml")
                    assert refused.value.message == f"mine.yaml: {'.'.join((*path, typo))}: unknown key"
                    if f"did you mean {key!r}?" == refused.value.hint:
                        right += 1
                    else:
                        wrong.append((path, typo, refused.value.hint))
    assert len(tried) > 400
    assert right >= 0.95 * (right + len(wrong)), wrong


def _at(tree, path):
    for part in path:
        tree = tree[part]
    return tree


def test_an_unknown_key_of_a_file_names_the_file(tmp_path):
    for text, place in (
        ("training: {stpes: 4}\n", "training.stpes"),
        ("modle: x\n", "modle"),
        ("method: {name: mezo, batch_sise: 4}\n", "method.batch_sise"),
        ("method: {name: mezo, rule: {lrr: 4}}\n", "rule.lrr"),
        ("method: {adapter: {rnak: 4}}\n", "method.adapter.rnak"),
        ("method: {name: mezo, lrr: 4}\n", "method.lrr"),  # which stands for the rule's
    ):
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as refused:
            read_config(file)
        assert str(file) in refused.value.message
        assert place in refused.value.message
        assert refused.value.hint.startswith("did you mean")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr=1", "method.lr"),
        ("training.learning_rate=1", "method.lr"),
        ("training.batch_size=1", "method.batch_size"),
        ("max_steps=1", "training.steps"),
        ("method.epsilon=1", "method.estimator.epsilon"),
    ],
)
def test_a_key_of_another_group_or_trainer_is_named_where_it_stands(typed, meant):
    with pytest.raises(ConfigError) as refused:
        read_config(overrides=["method=mezo", typed])
    assert refused.value.hint == f"did you mean {meant!r}?"
    with pytest.raises(ConfigError) as refused:  # an option of the part that is chosen, not of the default one
        read_config(overrides=["method=mezo", "method.rule=momentum", "method.tolerance=0"])
    assert refused.value.hint == "did you mean 'method.rule.tolerance'?"


@pytest.mark.parametrize(
    ("method", "typed"),
    [
        ("mezo", "inner_steps=2"),
        ("mezo", "training.penalty=1"),
        ("zero-shot", "lr=1"),
        ("zero-shot", "training.learning_rate=1"),
        ("first-order", "training.epsilon=1"),
    ],
)
def test_no_key_is_named_that_the_chosen_method_refuses(method, typed):
    with pytest.raises(ConfigError, match="unknown key") as refused:
        read_config(overrides=[f"method={method}", typed])
    assert "'method." not in refused.value.hint
    with pytest.raises(ConfigError) as refused:
        read_config(overrides=["method=bilevel", "inner_steps=2"])
    assert refused.value.hint == "did you mean 'method.inner_steps'?"


@pytest.mark.promise(20)
@pytest.mark.parametrize(
    ("override", "guess"),
    [
        ("method=mzeo", "mezo"),
        ("method=first_order", "first-order"),
        ("method.noise=gausian", "gaussian"),
        ("method.rule=adam", "dense-adam"),
        ("method.estimator=two_sided", "two-sided"),
        ("method.evaluator=inplace", "in-place"),
    ],
)
def test_unknown_names_get_the_nearest(override, guess):
    with pytest.raises(UnknownNameError, match=f"unknown .*Did you mean '{guess}'"):
        read_config(overrides=[*for_parts(override), override])


# mistakes in values


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.steps=0", "training.steps"),
        ("training.steps=1.5", "training.steps"),
        ("training.steps=many", "training.steps"),
        ("training.steps=", "training.steps"),
        ("training.seed=-1", "training.seed"),
        (f"training.seed={2**64}", "training.seed"),
        ("training.max_queries=0", "training.max_queries"),
        ("training.eval_steps=0", "training.eval_steps"),
        ("training.eval_batch_size=0", "training.eval_batch_size"),
        ("training=[1]", "training"),
        ("task.max_length=7", "task.max_length"),
        ("task.truncate=right", "task.truncate"),
        ("task.split_seed=-1", "task.split_seed"),
        ("task=[sst2]", "task"),
        ("model.dtype=int8", "model.dtype"),
        ("model=3", "model"),
        ("method.batch_size=0", "method.batch_size"),
        ("method.inner_steps=-1", "method.inner_steps"),
        ("method.penalty=-1", "method.penalty"),
        ("method.penalty=.nan", "method.penalty"),
        ("method.lr_lower=-0.1", "method.lr_lower"),
        ("method.lr_adapter=-0.1", "method.lr_adapter"),
        ("method.optimizer=lion", "method.optimizer"),
        ("method.num_directions=0", "method.num_directions"),
        ("method.adapter.rank=0", "method.adapter.rank"),
        ("method.adapter.alpha=0", "method.adapter.alpha"),
        ("method.rule.lr=fast", "rule.lr"),
        ("method.rule.lr=", "rule.lr"),
        ("method.estimator.epsilon=[1]", "estimator.epsilon"),
        ("method.rule={name: dense-adam, betas: [0.9]}", "rule.betas"),
        ("method={name: 3}", "method"),
        ("method=", "method"),
        ("method=[mezo]", "method"),
        ("method.rule=[sgd]", "method.rule"),
        ("output_dir=3", "output_dir"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_line_that_names_the_key(override, key):
    with pytest.raises(ConfigError) as refused:
        read_config(overrides=[*for_parts(override), override])
    assert key in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("override", ["training.steps", "=3", "training.steps:3", ""])
def test_what_is_not_key_value_is_refused(override):
    with pytest.raises(ConfigError, match="is not key=value"):
        read_config(overrides=[override])


@pytest.mark.parametrize("value", ["[1", "{a: ", "*.29.*", "!!python/object/apply:os.system [true]", "2020-99-99"])
def test_values_that_are_not_plain_yaml_are_refused(value):
    with pytest.raises(ConfigError, match="method.trainable"):
        read_config(overrides=[f"method.trainable={value}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.rule.lr=true", r"^method\.rule\.lr: .*boolean True"),
        ("method.rule.lr=1e-400", r"^method\.rule\.lr: .*read as 0"),
        ("method.rule.lr=1.0e-400", "1.0e-400 is too small a number"),
        ("task.max_rows=yes", r"^task\.max_rows: .*boolean True"),
        ("task.split_sizes.train=true", r"^task\.split_sizes: .*boolean True"),
        ("task.temperature=1e-400", r"^task\.temperature: .*read as 0"),
        ("task.max_rows=010", "010 is a number in base 8"),
        ("training.steps=1:30", "1:30 is a number in base 60"),
    ],
)
def test_what_would_become_another_number_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        read_config(None, ["method=mezo", "task=movie-reviews", override])


def test_keys_below_a_value_are_refused():
    with pytest.raises(ConfigError, match="'steps' is 3 and has no keys below it"):
        read_config(overrides=["training.steps=3", "training.steps.more=1"])


@pytest.mark.parametrize(
    "content",
    [b"- a\n- b\n", b"just text\n", b"a: [1\n", b"\xff\xfe", b"run: 2020-99-99\n", b"x: !!python/name:os.system\n"],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, content):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_config(file)
    assert str(file) in refused.value.message
    assert "\n" not in refused.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read"):
            read_config(path)


@pytest.mark.promise(12)
def test_yaml_cannot_run_code(tmp_path):
    canary = tmp_path / "canary"
    file = tmp_path / "run.yaml"
    file.write_text(f"run: !!python/object/apply:os.mkdir ['{canary}']\n", encoding="utf-8")
    with pytest.raises(ZofoError):
        read_config(file)
    assert not canary.exists()


@pytest.mark.promise(13)
def test_no_key_of_a_file_can_allow_remote_code():
    for path in ("", "model.", "training.", "task.", "method."):
        with pytest.raises(ConfigError, match="unknown key"):
            read_config(overrides=[f"{path}trust_remote_code=true"])


def test_methods_have_their_own_configuration():
    for name, kind in (("mezo", MeZOConfig), ("bilevel", BilevelConfig), ("first-order", FirstOrderConfig)):
        assert type(read_config(method=name).method) is kind
    with pytest.raises(ConfigError, match="method.inner_steps"):
        read_config(method={"name": "mezo", "inner_steps": 3})
    assert Path("runs") not in (read_config().output_dir,)


# methods that read, and templates as they are


def test_in_context_has_demonstrations_unless_they_are_given():
    assert read_config(None, ["method=in-context"]).task.num_fewshot == 4
    assert read_config(method="in-context", task="sst2").task == TaskConfig(name="sst2", num_fewshot=4)
    assert read_config(None, ["method=in-context", "task.num_fewshot=9"]).task.num_fewshot == 9
    assert read_config(None, ["method.name=in-context", "task=sst2"]).task.num_fewshot == 4
    assert all(read_config(method=name).task.num_fewshot == 0 for name in METHODS if name != "in-context")


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ("{{ text }}", "{{ text }}"),
        ("{{ text }} It was", "{{ text }} It was"),
        ("A: {{ text }} # B", "A: {{ text }} # B"),
        ("  {{ text }} ", "  {{ text }} "),
        ("'{{ text }} It was'", "{{ text }} It was"),
        ('"{{ text }}\\nIt was"', "{{ text }}\nIt was"),
        ('"{{ text }}" was', '"{{ text }}" was'),
        ("a=b {{ text }}", "a=b {{ text }}"),
        ("", None),
        ("null", None),
    ],
)
def test_a_template_stands_as_it_is(text, template):
    config = read_config(None, [f"task.template={text}"])
    assert config.task.template == template
    assert read_config(task=config.task.model_dump(mode="json")).task == config.task


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.template=It was", "task.template: the template names no column"),
        ("task.template={text} It was", "task.template: columns stand in double braces"),
        ("task.template={{ text", "task.template: '{{ text' is not a template"),
        ("task.verbalizers={a: ' x'}", "task.verbalizers: a classification needs two verbalizers or more"),
        ("task.verbalizers={yes: ' x', no: ' y'}", "put them in quotes"),
        ("task.temperature=-1", "task.temperature: Input should be greater than or equal to 0"),
        ("task.temperature=.inf", "task.temperature: Input should be a finite number"),
        ("task.scoring=median", "task.scoring: "),
        ("task.fewshot_sampling=shared", "task.fewshot_sampling: "),
    ],
)
def test_options_of_the_task_with_mistakes(override, message):
    with pytest.raises(ConfigError) as refused:
        read_config(None, [override])
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("mezo", ["rule.lr"]),
        ("svrg", ["rule.lr"]),
        ("first-order", ["lr"]),
        ("bilevel", ["lr_lower", "lr_adapter"]),
        ("meta-bilevel", ["lr_lower", "lr_adapter"]),
        ("two-stage", ["lr_adapter"]),
    ],
)
def test_a_plain_lr_is_the_rate_that_the_method_is_known_by(method, keys):
    usual = read_config(None, [f"method={method}"]).method.model_dump()
    given = read_config(None, [f"method={method}", "method.lr=0.5"]).method.model_dump()
    changed = {key for key, value in flatten(given) if dict(flatten(usual))[key] != value}
    assert changed == set(keys)
    assert all(dict(flatten(given))[key] == 0.5 for key in keys)
    if keys != ["lr"]:
        with pytest.raises(ConfigError, match=f"method.lr stands for method.{keys[0]}, and both are given"):
            read_config(None, [f"method={method}", "method.lr=0.5", f"method.{keys[0]}=0.1"])


@pytest.mark.parametrize(
    ("method", "epochs", "rows", "steps"),
    [
        ("mezo", 3, [100], 38),  # 300 / 8
        ("mezo", 0.1, [240], 3),  # 24 / 8, as 0.1 is written and not as it is stored
        ("mezo", 0.001, [24], 1),
        ("mezo", 1, [20, 30], 7),  # several tasks are one set of rows
        ("first-order", 2, [24], 6),
        ("two-stage", 2, [24], 6),  # both stages together
        ("svrg", 2, [24], 6),
        ("bilevel", 1, [100], 9),  # D_p has 67 rows
        ("meta-bilevel", 1, [100, 31], 6),  # 67 + 21 rows, of which a step draws 2 x 8
    ],
)
def test_epochs_are_as_many_steps_as_draw_all_training_rows_so_often(method, epochs, rows, steps):
    config = read_config(None, [f"method={method}", "method.batch_size=8", f"training.epochs={epochs}"])
    assert config.method.steps_of_epochs(config.training.epochs, rows) == steps


@pytest.mark.parametrize("other", ["steps=7", "max_queries=70"])
def test_one_key_says_how_long_a_run_is(other):
    key, null = other.partition("=")[0], f"training.{other.partition('=')[0]}=null"
    with pytest.raises(ConfigError, match=f"training.epochs and training.{key} both say how long") as caught:
        read_config(None, ["training.epochs=2", f"training.{other}"])
    assert (
        caught.value.hint == "give one of training.steps, training.max_queries and training.epochs; null takes one back"
    )
    config = read_config(None, ["training.epochs=2", f"training.{other}", null])
    assert config == RunConfig.model_validate(yaml.safe_load(config.to_yaml()))  # as a run folder holds it
    assert config.training.length_key == "epochs"
    assert read_config(None, [f"training.{other}"]).training.length_key == key


@pytest.mark.parametrize("epochs", ["0", "-1", ".inf", ".nan", "true", "many", "1e10"])
def test_epochs_that_are_none_are_refused(epochs):
    with pytest.raises(ConfigError, match=r"training\.epochs"):
        read_config(None, [f"training.epochs={epochs}"])


def test_a_group_with_another_name_takes_the_place_of_the_one_that_is_there():
    given = {"method": {"name": "mezo", "rule": {"name": "sgd", "lr": 0.5}}}
    rule = read_config(None, ["method.rule={name: sign}"], **given).method.rule
    assert (rule.name, rule.options["lr"]) != ("sign", 0.5)
    assert rule.name == "sign"
    assert read_config(None, ["method.rule={lr: 0.25}"], **given).method.rule.options["lr"] == 0.25


@pytest.mark.parametrize("letters", [True, False])
def test_a_tree_is_written_as_the_dumper_of_python_writes_it(letters):
    texts = ["a joy", "no", "1e-3", "- x: 'y'", "é\u2028z", "\U0001f600", "\ud800", "x" * 300 + " y", "a\n\nb ", ""]
    for text in texts:
        tree = {"b": text, "a": [text, {"c": None, "d": 1e-7}], "e": {}}
        written = format_yaml(tree, letters)
        assert written == yaml.safe_dump(tree, sort_keys=False, allow_unicode=letters)
