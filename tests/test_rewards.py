"""A user's own rewards: both signatures, several at once, from files; and what they do wrong."""

from __future__ import annotations

import itertools
import json
import sys
from io import StringIO

import numpy
import pytest
import torch
from rich.console import Console

from test_resume import Stopping, contents
from test_treatment import configured, lines_of  # noqa: F401  # a fixture
from zofo.cli import main
from zofo.errors import ConfigError, DataError, Interrupted
from zofo.objectives import WeightedReward, as_rewards, build_objective, load_reward
from zofo.tasks import Example
from zofo.training import RunFolder, read_config, train

CHOICE = Example("It was", (" bad", " good"), (1,), where="rows.csv:2")
TEXT = Example("2 + 2 =", (" 4",), (0,), answers=("4", "four"), where="sums.jsonl:1")
CHAT = Example("", ("hi",), (0,), answers=("hi",), messages=(("user", "hello"),), where="chats.jsonl:7")

FILE = '''
import math

def brief(prompts, completions, **columns):
    """Few letters."""
    return [1 / (1 + len(text)) for text in completions]

def positive(example, prediction):
    return float(prediction == 1)

def broken(example, prediction):
    return 1 / (prediction - prediction)
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my rewards.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_function_of_an_example_and_of_a_batch_are_both_taken():
    seen = {}

    def of_batch(prompts, completions, answer, **columns):
        seen.update(columns, prompts=prompts, completions=completions, answer=answer)
        return [0.5, None, 2]

    assert as_rewards(lambda example, prediction: prediction)([CHOICE], [1]) == [1.0]
    with pytest.raises(ConfigError, match="TypeError"):
        as_rewards(max)([CHOICE], [1])  # a builtin that does not tell what it takes
    rewards = as_rewards([of_batch, WeightedReward(lambda example, prediction: 1.0, 10.0)])
    assert rewards([CHOICE, TEXT, CHAT], [0, "5", "hey"]) == [10.5, 10.0, 12.0]
    assert seen["prompts"] == ["It was", "2 + 2 =", [{"role": "user", "content": "hello"}]]
    assert seen["completions"] == ["bad", "5", [{"role": "assistant", "content": "hey"}]]
    assert seen["answer"] == ["good", "4", "hi"]
    assert seen["answers"] == [["good"], ["4", "four"], ["hi"]]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            lambda example, prediction: 1 / 0,
            r"failed for sums.jsonl:1: test_rewards.py, line \d+: .*1 / 0.*ZeroDivisionError",
        ),
        (lambda example, prediction: "much", "sums.jsonl:1: the reward .* is 'much', not a finite number"),
        (lambda example, prediction: float("nan"), "is nan, not a finite number"),
        (lambda example, prediction: None, "no reward gives a number"),
        (lambda a, b, c: 1.0, r"takes \(a, b, c\)"),
        (lambda prompts, completions: [1.0, 2.0], "gave 2 values for 1 completions"),
        (lambda prompts, completions: 1.0, "float 1.0"),
        (lambda prompts, completions: torch.tensor(1.0), r"Tensor tensor\(1.\)"),
        (lambda prompts, completions: numpy.array(1.0), r"ndarray array\(1.\)"),
        (lambda prompts, completions, ground_truth: [1.0], "wants ground_truth, which is no column"),
        (lambda prompts, completions, **columns: [float("inf")], "is inf, not a finite number"),
    ],
)
def test_what_a_reward_does_wrong_is_said_with_the_row(reward, message):
    if "1." in message:  # which is a list of one, and of no more
        assert as_rewards(reward)([TEXT], ["4"]) == [1.0]
        with pytest.raises(ConfigError, match=f"gave {message}, and no list, for 2 completions"):
            as_rewards(reward)([TEXT, TEXT], ["4", "5"])
        return
    with pytest.raises(ConfigError, match=message):
        as_rewards(reward)([TEXT], ["4"])


def test_a_file_names_a_function(file):
    one = load_reward(f"{file}:positive*0.5")
    assert as_rewards(one)([CHOICE], [1]) == [0.5]
    assert one.name.startswith("my rewards.py sha256:")
    assert one.name.endswith(":positive*0.5")
    before = one.name
    file.write_text(FILE + "\n# changed\n", encoding="utf-8")
    assert load_reward(f"{file}:positive*0.5").name != before
    with pytest.raises(
        ConfigError, match=r"failed for rows.csv:2: my rewards.py, line 12: return 1 / .*ZeroDivisionError"
    ):
        as_rewards(load_reward(f"{file}:broken"))([CHOICE], [1])


def test_what_a_file_imports_from_its_folder_is_part_of_it(tmp_path, monkeypatch):
    """Also what an imported file imports, in packages, by other forms, and only when a function is called."""
    files = {
        "scores.py": "import math\nfrom words import few\ndef one(example, prediction):\n    from own.deep import x\n",
        "words.py": "import own\nfew = 1\n",
        "own/__init__.py": "",
        "own/deep.py": "from . import other\nx = 1\n",
        "own/other.py": "",
        "math.pyc": "",
        "stranger.py": "",
    }
    (tmp_path / "own").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr("sys.path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    first = load_reward("scores.py:one").name
    assert first.startswith("scores.py and own/__init__.py, own/deep.py, own/other.py, words.py sha256:")
    assert load_reward(f"{tmp_path}/scores.py:one").name == first
    for name, content in files.items():
        (tmp_path / name).write_text(content + "\n# changed\n", encoding="utf-8")
        assert (load_reward("scores.py:one").name == first) == (name in ("math.pyc", "stranger.py"))
        (tmp_path / name).write_text(content, encoding="utf-8")


def test_a_file_that_is_none_or_fails_is_said(file, tmp_path):
    (tmp_path / "failing.py").write_text("import os\nx = os.no_such_thing\n", encoding="utf-8")
    for spec, message, hint in (
        ("zzzzzz", "names no function of a file", "FILE.py:NAME"),
        (f"{file}", "names no function", "FILE.py:NAME"),
        (f"{tmp_path}/none.py:brief", "cannot read the rewards", ""),
        (f"{file}:breif", "has no function 'breif'", "did you mean 'brief'"),
        (f"{file}:zzzzzz", "has no function", "it has: brief, positive, broken"),
        (f"{file}:brief*much", "the weight 'much' is no number", "*0.5"),
        (f"{file}:brief*", "the weight '' is no number", "*0.5"),
        (f"{tmp_path}/failing.py:brief", "failing.py, line 2: x = os.no_such_thing: AttributeError", ""),
    ):
        with pytest.raises(ConfigError, match=message.replace("(", "\\(")) as caught:
            load_reward(spec)
        assert hint in (caught.value.hint or "")


def typed(*arguments):
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    return left.value.code


def test_the_command_line_trains_by_a_file(configured, file, tmp_path, capsys):  # noqa: F811
    config = configured("run", {"name": "es", "population": 4}, treatment_steps=None)
    (tmp_path / "run.yaml").write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    given = ("train", tmp_path / "run.yaml", "--reward", f"{file}:positive", "--reward", f"{file}:brief*0.1")
    assert typed(*given) == 0, capsys.readouterr().err
    assert "the reward of the first 5 rows, untrained:" in capsys.readouterr().err
    run = RunFolder.open(tmp_path / "run")
    assert "positive" in run.identity.objective
    assert "brief*0.1" in run.identity.objective
    assert all(0 <= line["reward"] <= 1.1 for line in lines_of(run, "step"))
    (tmp_path / "run.yaml").write_text(
        (tmp_path / "run.yaml").read_text().replace('/run"', '/other"'), encoding="utf-8"
    )
    assert typed("train", tmp_path / "run.yaml", "--reward", f"{file}:broken") == 2
    shown = capsys.readouterr().err
    assert "my rewards.py, line 12" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "other").exists()


def test_a_reward_of_a_whole_batch_is_asked_once_for_each_point(configured):  # noqa: F811
    slopes = {}
    for evaluator in ("in-forward", "in-place"):
        sizes = []

        def f1(prompts, completions, answer, sizes=sizes, **columns):
            sizes.append(len(completions))
            right = sum(one == other for one, other in zip(completions, answer, strict=True))
            return [right / len(answer)] * len(answer)

        method = {"name": "mezo", "batch_size": 12, "evaluator": evaluator, "estimator": {"epsilon": 0.3}}
        config = configured(evaluator, method, steps=4, treatment_steps=None)
        run = train(config, reward=f1)
        assert sizes.count(12) >= 8
        assert max(sizes) <= 32  # of validation
        slopes[evaluator] = [line["projected_gradient_0"] for line in lines_of(run, "step")]
    assert slopes["in-forward"] == pytest.approx(slopes["in-place"])
    assert any(slopes["in-forward"])


def test_a_reward_and_an_objective_are_not_both_taken(configured):  # noqa: F811
    config = configured("run", {"name": "mezo"}, objective="accuracy", treatment_steps=None)
    with pytest.raises(ConfigError, match="one would not count"):
        train(config, reward=lambda example, prediction: 1.0)


def test_a_reward_is_tried_on_five_rows_before_anything_is_trained(configured):  # noqa: F811
    console = Console(file=StringIO(), width=300)
    config = configured("run", {"name": "mezo"}, steps=1, treatment_steps=None)
    train(config, console, reward=lambda example, prediction: 0.25)
    shown = console.file.getvalue()
    assert "the reward of the first 5 rows, untrained: 0.25, 0.25, 0.25, 0.25, 0.25;" in shown
    assert "min for the 8 queries of this run" in shown
    assert "it is the same for all of them" in shown


@pytest.mark.parametrize("name", ["exact-match", "number-match", "brevity"])
def test_packaged_rewards_are_of_texts(name):
    class Generates:
        kind, name = "generation", "sums"

    class Chooses:
        kind, name = "classification", "reviews"

    made = build_objective(name, Generates, None, causal=True)
    assert not made.differentiable
    with pytest.raises(ConfigError, match=f"'{name}' has no meaning for the classification task"):
        build_objective(name, Chooses, None, causal=True)


# packaged rewards, by what is typed


def given(spec, *texts, example=TEXT):
    """What a reward gives for texts as answers of an example."""
    return as_rewards(spec)([example] * len(texts), list(texts))


def test_packaged_rewards_of_the_library_alone():
    assert given(r"regex:^\d+$", "12", "12 apples", "") == [1.0, 0.0, 0.0]
    assert given(r"regex*0.5:\d*x", "1x", "y") == [0.5, 0.0]
    assert given(r"regex:^\d*3", "13", "1") == [1.0, 0.0]  # no weight: it is of the pattern
    assert given("json", '{"a": 1}', "```json\n[1]\n```", "{a}", "[" * 10_000) == [1.0, 1.0, 0.0, 0.0]
    assert given("exact-match", "Four.", "five") == [1.0, 0.0]
    assert given(["number-match", "brevity*0.5"], "4", "5 ?") == [1 + 0.5 / 2, 0.5 / 3]
    assert as_rewards(["brevity*0.5", r"regex:\d"]).name == r"brevity*0.5 + regex:\d"


def test_what_rewards_gave_takes_no_room_while_nobody_asks():
    rewards = as_rewards([lambda example, prediction: prediction, lambda prompts, completions: [None] * len(prompts)])
    for value in (1, 2, 3):
        rewards([CHOICE, CHOICE], [value % 2, value % 2])
    assert rewards._given == [(6, 4.0), (0, 0.0)]
    assert rewards.means() == {"reward_<lambda>": pytest.approx(4 / 6)}
    assert rewards.means() == {}


def test_json_that_meets_a_schema(tmp_path):
    pytest.importorskip("jsonschema")
    file = tmp_path / "person.json"
    file.write_text('{"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}')
    assert given(f"json:{file}", '{"age": 3}', '{"age": "3"}', "3", "age") == [1.0, 0.5, 0.5, 0.0]
    file.write_text('{"$ref": "http://localhost:9/other.json"}')
    with pytest.raises(ConfigError, match="which is not in it"):  # nothing is fetched
        given(f"json:{file}", "3")
    file.write_text('{"$ref": "#"}')
    with pytest.raises(ConfigError, match=r"person.json' refers to itself without end"):
        given(f"json:{file}", "3")
    file.write_text('{"type": "nothing"}')
    for spec, message in ((f"json:{file}", "is no JSON Schema"), (f"json:{tmp_path}/none", "cannot read the schema")):
        with pytest.raises(ConfigError, match=message):
            as_rewards(spec)


def test_likeness_to_an_answer_is_that_of_the_libraries():
    rouge, sacrebleu = pytest.importorskip("rouge_score.rouge_scorer"), pytest.importorskip("sacrebleu")
    one = Example("Say", (" the cat sat on the mat",), (0,), answers=("the cat sat on the mat", "a cat sat"))
    expected = rouge.RougeScorer(["rougeL"], use_stemmer=True).score(one.answers[1], "a cat sits")["rougeL"].fmeasure
    assert given("rouge-l", one.answers[0], "a cat sits", "dog", example=one) == pytest.approx([1.0, expected, 0.0])
    expected = sacrebleu.sentence_bleu("the cat sat on a mat", list(one.answers)).score / 100
    assert given("bleu", one.answers[0], "the cat sat on a mat", example=one) == pytest.approx([1.0, expected])
    with pytest.raises(ConfigError, match="the row has none"):
        given("rouge-l", "a", example=Example("Say", ("",), where="rows.csv:3"))


def test_the_instructions_of_ifeval_are_checked_by_its_own_registry():
    pytest.importorskip("lm_eval")
    pytest.importorskip("langdetect")
    row = {
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": 3, "num_highlights": None}],
    }
    one = Example("Write", ("x",), (0,), answers=("x",), where="rows.jsonl:1", columns=json.dumps(row))
    assert given("ifeval", "one two three", "one, two three", "one, two", "", example=one) == [1.0, 0.5, 0.0, 0.0]
    with pytest.raises(ConfigError, match="reads the columns instruction_id_list and kwargs"):
        given("ifeval", "one")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("regex", "has no pattern"),
        ("regex:(", "is no regular expression"),
        ("brevity:3", "takes nothing after its name"),
        ("regex*:a", r"the weight '' is no number"),
        (r"regex:\d+$*0.2", "is no regular expression"),
        ("brevity*nan", "the weight 'nan' is no number"),
        ("brevty", "names no function of a file, and none of"),
    ],
)
def test_a_packaged_reward_that_is_typed_wrong(spec, message):
    with pytest.raises(ConfigError, match=message) as refused:
        as_rewards(spec)
    assert spec != "brevty" or refused.value.hint == "did you mean 'brevity'?"


def test_columns_of_rows_reach_a_reward_and_each_reward_is_logged(tmp_path, model_folder):
    """The log has the mean of each reward over all members, before its weight."""
    rows = [{"prompt": f"{n} ?", "completion": "no", "most": n, "x": 1} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    seen = set()

    def short(prompts, completions, most, **columns):
        seen.update(most)
        assert "x" not in columns
        return [n / 10 for n in most]

    def named(**more):
        return read_config(
            model=str(model_folder),
            task={"data": str(tmp_path / "rows.jsonl"), "max_new_tokens": 2, "split_sizes": {"validation": 2}, **more},
            method={"name": "es", "population": 2, "batch_size": 4, "lr": 0.0},
            training={"steps": 2},
            output_dir=str(tmp_path / f"run-{len(more)}"),
        )

    with pytest.raises(ConfigError, match="wants most, which is no column") as refused:
        train(named(), reward=[short, "brevity"])
    assert "task.reward_columns=[most]" in refused.value.hint
    run = train(named(reward_columns=["most"]), reward=[short, WeightedReward(short, 2.0), "brevity*0.5"])
    assert seen <= set(range(12))
    for line in lines_of(run, "step"):
        short_mean = line["reward_short"]
        assert short_mean == line["reward_short_2"] > 0
        assert line["reward"] == pytest.approx(3 * short_mean + 0.5 * line["reward_brevity"], rel=1e-5)
    with pytest.raises(DataError, match="the column 'mst'"):
        train(named(reward_columns=["mst"], truncate="never"), reward=short)


@pytest.mark.parametrize("method", ["mezo", "select"])
def test_each_step_draws_texts_anew_and_alike_for_all_of_its_points(tmp_path, model_folder, method):
    """The model stays where it is: what differs is the draw. `select`, which compares members of all steps, has one."""
    rows = [{"prompt": f"{n} ?", "completion": "no"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = []

    def kept(prompts, completions, **columns):
        said.append(dict(zip(prompts, completions, strict=True)))
        return [float(len(text)) for text in completions]

    config = read_config(
        model=str(model_folder),
        task={"data": str(tmp_path / "rows.jsonl"), "max_new_tokens": 6, "temperature": 1.0}
        | {"split_sizes": {"validation": 2, "test": 2}},
        method={"name": method, "batch_size": 4 if method == "mezo" else 2, "estimator": {"epsilon": 1e-9}, "lr": 1e-9}
        | ({"population": 2, "gate_examples": 2} if method == "select" else {}),
        training={"steps": 3, "eval_steps": 1},
        output_dir=str(tmp_path / "run"),
    )
    train(config, reward=kept)
    texts = {}
    for one in said:
        for prompt, text in one.items():
            texts.setdefault(prompt, []).append(text)
    counts = [(len(found), len(set(found))) for found in texts.values()]
    trained = [(asked, drawn) for asked, drawn in counts if asked > 4]  # the others are evaluated alone
    assert all(drawn == 1 for asked, drawn in counts if asked <= 2)
    if method == "mezo":  # two points of each of three steps, and draw 0 of what is evaluated
        assert len(trained) == 4
        assert all(3 <= drawn <= 4 and asked >= 6 for asked, drawn in trained)
    else:
        assert len(trained) == 2
        assert all(drawn <= 2 for _, drawn in counts)


SAMPLED = {
    "es": {"name": "es", "population": 4},
    "svrg": {"name": "svrg", "anchor_interval": 3, "anchor_batch_size": 4},
    "bilevel": {"name": "bilevel", "upper_objective": "reward", "inner_steps": 1},
}


@pytest.fixture
def sampled(tmp_path, model_folder):
    """A configuration whose texts are drawn, and a reward that holds on to what was said."""
    rows = [{"prompt": f"{n} ?", "completion": "no"} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = []

    def kept(prompts, completions, **columns):
        said.append(tuple(zip(prompts, completions, strict=True)))
        return [float(len(text)) for text in completions]

    def made(name, folder, size=1e-2, steps=6):
        return read_config(
            model=str(model_folder),
            task={"data": str(tmp_path / "rows.jsonl"), "max_new_tokens": 4, "temperature": 1.0}
            | {"split_sizes": {"validation": 2, "test": 2}},
            method={"batch_size": 2, "estimator": {"epsilon": size}, "rule": {"lr": size * 1e-2}} | SAMPLED[name],
            training={"steps": steps, "before_after_examples": 0},
            output_dir=str(tmp_path / folder),
        )

    return made, kept, said


@pytest.mark.parametrize("name", SAMPLED)
def test_points_that_are_compared_share_a_draw(sampled, name):
    """Members of a population, both ends of a slope, and a batch at theta and at the anchor; steps have other draws."""
    made, kept, said = sampled
    train(made(name, "run", size=1e-9), reward=kept)
    points = [list(group) for _, group in itertools.groupby(said, key=lambda texts: [prompt for prompt, _ in texts])]
    assert any(len(group) >= (2 if name == "bilevel" else 4) for group in points)
    assert all(len(set(group)) == 1 for group in points)
    drawn = {}
    for prompt, text in itertools.chain(*said):
        drawn.setdefault(prompt, set()).add(text)
    assert max(map(len, drawn.values())) > 1


@pytest.mark.parametrize("name", SAMPLED)
def test_a_run_at_a_temperature_that_was_stopped_ends_with_the_same_bits(sampled, name):
    """The draw of a step is its number, which a checkpoint knows; of SVRG, the anchor that a later step asks, too."""
    made, kept, said = sampled
    whole = contents(train(made(name, "whole", steps=4), reward=kept).path)
    texts, config = list(said), made(name, "stopped", steps=4)
    said.clear()
    with pytest.raises(Interrupted):
        train(config, Console(file=Stopping(2)), reward=kept)
    assert len(said) < len(texts)
    again = contents(train(config, reward=kept).path)
    assert again.keys() == whole.keys()
    assert [name for name in again if again[name] != whole[name]] == []
