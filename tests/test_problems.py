"""Toy problems against closed forms and numpy; MNIST's files as the test writes them."""

import gzip
import math
import struct

import numpy as np
import pytest
import torch

from zofo.config import parse_model
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, DataError, UnknownNameError
from zofo.methods import METHODS
from zofo.studies import read_study
from zofo.studies.problems import PROBLEMS, Digits, LeastSquares, ProblemConfig


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def squares():
    return LeastSquares()


def method_of(tree, context):
    kind = METHODS[tree["name"]]
    return kind(parse_model(kind.Config, tree), context)


def trained(problem, tree, seed, steps):
    """The model that a method leaves behind."""
    context = problem.training_context(seed)
    method = method_of(tree, context)
    for number in range(steps):
        method.step(number)
    with method.using(method.variants[0]):
        return context.model, method


# what every problem promises


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_a_problem_gives_the_same_data_and_the_same_start_whatever_the_global_generators_hold(name):
    before = torch.get_rng_state()
    one, other = PROBLEMS[name](), PROBLEMS[name]()
    a, b, c = one.training_context(3), other.training_context(3), one.training_context(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(one.splits) == {"train", "validation", "test"}
    for split in one.splits:
        assert all(map(torch.equal, one.splits[split], other.splits[split]))
    assert a.model is not b.model
    starts = [torch.cat([p.detach().flatten() for p in s.model.parameters()]) for s in (a, b, c)]
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2]) == (name == "least-squares")
    assert not torch.equal(PROBLEMS[name](data_seed=1).splits["train"].y, one.splits["train"].y)


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_the_objective_gives_one_loss_an_example_whose_mean_is_the_score(name):
    problem = PROBLEMS[name]()
    context = problem.training_context(0)
    batch = context.collate([5, 0, 7])
    losses = context.objective(context.model, batch)
    assert losses.shape == (3,)
    assert losses.dtype == torch.float32
    assert torch.equal(batch.x[1], problem.splits["train"].x[0])
    torch.testing.assert_close(losses[1:2], context.objective(context.model, context.collate([0])))
    whole = context.objective(context.model, context.collate(context.examples)).double().mean().item()
    scores = problem.evaluate(context.model, "train")
    assert scores["loss"] == pytest.approx(whole, rel=1e-6)
    assert problem.metric in scores
    with pytest.raises(UnknownNameError, match="validaton"):
        problem.evaluate(context.model, "validaton")


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_both_evaluators_give_the_same_losses_at_the_same_points(name):
    problem, key = PROBLEMS[name](), Key(0, 0)
    points = [Displacement({key: 1e-2}), Displacement({key: -1e-2}), Displacement({Key(0, 1): 0.1})]
    found = []
    for evaluator in ("in-place", "in-forward"):
        context = problem.training_context(0)
        tree = {"name": "mezo", "noise": "low-rank", "evaluator": evaluator}
        method = method_of(tree, context)
        found.append(method._zo.evaluator.losses(context.objective, context.collate(range(16)), points))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0][0], found[0][1], rtol=1e-3)


# least squares


def test_the_rows_are_standard_normal_and_the_labels_are_those_of_the_best_weights(squares):
    train, test = squares.splits["train"], squares.splits["test"]
    assert train.x.shape == test.x.shape == (1000, 100)
    assert not torch.equal(train.x, test.x)
    for x in (train.x, test.x):
        assert x.mean().abs() < 4 / math.sqrt(x.numel())
        assert (x.var() - 1).abs() < 4 * math.sqrt(2 / x.numel())
    for rows in (train, test):
        noise = rows.y - rows.x @ squares.best
        assert noise.std().item() == pytest.approx(0.1, rel=4 / math.sqrt(2000))
        assert (noise @ rows.x).abs().max() < 0.1 * math.sqrt(1000) * 4.5


def test_the_loss_at_the_start_at_the_best_weights_and_at_the_exact_solution(squares):
    model, train = squares.model(0), squares.splits["train"]
    x, y = (t.double().numpy() for t in train)
    assert squares.evaluate(model, "train")["loss"] == pytest.approx(np.mean(y**2), rel=1e-6)
    assert np.mean(y**2) == pytest.approx(squares.best.square().sum().item(), rel=0.15)  # E (x . w)^2 = |w|^2
    solution, residual, *_ = np.linalg.lstsq(x, y)
    assert squares.least == pytest.approx(residual[0] / 1000, rel=1e-9)
    assert squares.least == pytest.approx(0.01 * 0.9, rel=4 * math.sqrt(2 / 900))  # sigma^2 (n - d) / n
    for w, least in ((solution, squares.least), (squares.best.numpy(), np.mean((y - x @ squares.best.numpy()) ** 2))):
        with torch.no_grad():
            model.w.copy_(torch.tensor(w))
        assert squares.evaluate(model, "train")["loss"] == pytest.approx(least, rel=1e-4)
    assert squares.evaluate(model, "test")["loss"] == pytest.approx(0.01, rel=4 * math.sqrt(2 / 1000))


def test_the_options_reach_the_data():
    small = LeastSquares(examples=40, dimensions=5, label_noise=0.0)
    assert small.splits["validation"].x.shape == (40, 5)
    assert small.least < 1e-9
    with pytest.raises(ConfigError, match="examples is 4, fewer than the 5 dimensions"):
        LeastSquares(examples=4, dimensions=5)


def test_mezo_converges_at_the_rate_that_theory_gives():
    """E |w - w*|^2 shrinks by 1 - 4 lr + 4 lr^2 (d + 2) (1 + (d + 1) / b) a step, for Gaussian rows and directions."""
    d, b, lr, steps = 20, 8, 4e-3, 100
    problem = LeastSquares(examples=2000, dimensions=d)
    tree = {"name": "mezo", "batch_size": b, "noise": "gaussian", "rule": {"name": "sgd", "lr": lr}}
    left = []
    for seed in range(8):
        model, method = trained(problem, tree, seed, steps)
        left.append((model.w.detach() - problem.best).square().sum().item())
    assert method.counts.queries == 2 * b * steps
    shrinks = 1 - 4 * lr + 4 * lr**2 * (d + 2) * (1 + (d + 1) / b)
    expected = problem.best.square().sum().item() * shrinks**steps
    assert np.mean(left) == pytest.approx(expected, rel=4 * np.std(left, ddof=1) / math.sqrt(8) / np.mean(left))
    assert np.mean(left) == pytest.approx(expected, rel=0.4)
    assert max(left) < 0.75 * problem.best.square().sum().item()


# digits


def test_the_splits_share_no_image_and_hold_all_of_them(digits):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    assert {name: len(rows.y) for name, rows in digits.splits.items()} == {
        "train": 1197,
        "validation": 300,
        "test": 300,
    }
    together = np.concatenate([np.column_stack([rows.x.numpy() * 16, rows.y]) for rows in digits.splits.values()])
    given = np.column_stack([images, labels])
    assert sorted(map(tuple, together)) == sorted(map(tuple, given))
    assert all(rows.x.min() >= 0 and rows.x.max() == 1 for rows in digits.splits.values())
    share = np.bincount(digits.splits["test"].y).max() / 300
    assert digits.majority == pytest.approx(share)


def test_fewer_training_images_are_the_first_of_them_and_leave_the_other_splits(digits):
    few = Digits(rows=100)
    assert torch.equal(few.splits["train"].x, digits.splits["train"].x[:100])
    assert torch.equal(few.splits["test"].x, digits.splits["test"].x)
    with pytest.raises(ConfigError, match="held_out is 900"):
        Digits(held_out=900)
    with pytest.raises(ConfigError, match="rows is 1200"):
        Digits(rows=1200)


def test_the_network_is_that_of_the_paper_and_its_weights_start_with_variance_2_over_inputs(digits):
    model = digits.model(0)
    assert [tuple(p.shape) for p in model.parameters()] == [(32, 64), (32,), (16, 32), (16,), (10, 16), (10,)]
    assert [type(part).__name__ for part in model] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    first = model[0].weight
    assert first.var().item() == pytest.approx(2 / 64, rel=4 * math.sqrt(2 / first.numel()))
    assert all((layer.bias == 0).all() for layer in (model[0], model[2], model[4]))
    assert not torch.equal(model[2].weight[:10, :16], model[4].weight)
    scores = digits.evaluate(model, "test")
    assert scores["accuracy"] < 0.35
    assert 2 < scores["loss"] < 3.5


def test_the_scores_are_those_of_numpy(digits):
    model, rows = digits.model(1), digits.splits["validation"]
    logits = model(rows.x).detach().double().numpy()
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    right = rows.y.numpy()
    scores = digits.evaluate(model, "validation")
    assert scores["loss"] == pytest.approx(-log[range(300), right].mean(), rel=1e-5)
    assert scores["accuracy"] == np.mean(logits.argmax(1) == right)


def test_gradients_teach_the_network_the_digits_and_forward_passes_lower_its_loss(digits):
    tree = {"name": "first-order", "parameters": "all", "optimizer": "sgd", "lr": 0.1, "batch_size": 64}
    model, _ = trained(digits, tree, 0, 300)
    assert digits.evaluate(model, "test")["accuracy"] > 0.85
    start = digits.evaluate(digits.model(0), "train")["loss"]
    model, _ = trained(digits, {"name": "mezo", "batch_size": 64, "rule": {"name": "sgd", "lr": 1e-3}}, 0, 300)
    assert digits.evaluate(model, "train")["loss"] < start - 0.2


# MNIST's files


def idx(numbers, magic=None):
    numbers = np.asarray(numbers, dtype=np.uint8)
    sizes = struct.pack(f">{numbers.ndim}I", *numbers.shape)
    return struct.pack(">I", magic if magic is not None else 0x0800 | numbers.ndim) + sizes + numbers.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A folder as MNIST's, with images of 3 x 2; the first training image is all 255, its label 7."""
    numbers = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 8)):
        images, labels = numbers.integers(0, 256, (count, 3, 2)), numbers.integers(0, 10, count)
        images[0], labels[0] = 255, 7
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_mnist_is_read_from_its_own_files_and_keeps_its_own_test_split(mnist):
    problem = Digits(folder=str(mnist), held_out=10)
    assert [len(problem.splits[s].y) for s in ("train", "validation", "test")] == [20, 10, 8]
    test = problem.splits["test"]
    raw = np.frombuffer((mnist / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(8, 6)
    np.testing.assert_allclose(test.x.numpy(), raw / 255, rtol=1e-6)
    assert test.x[0].tolist() == [1.0] * 6
    assert test.y[0] == 7
    held = torch.cat([problem.splits[s].x for s in ("train", "validation")])
    raw = np.frombuffer((mnist / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(30, 6)
    assert sorted(map(tuple, (held * 255).round().int().tolist())) == sorted(map(tuple, raw.tolist()))
    assert problem.model(0)[0].weight.shape == (32, 6)


def test_a_network_on_images_of_mnists_size_has_the_25_thousand_weights_of_the_paper(mnist):
    for part, count in (("train", 30), ("t10k", 8)):
        (mnist / f"{part}-images-idx3-ubyte").write_bytes(idx(np.zeros((count, 28, 28))))
    model = Digits(folder=str(mnist), held_out=10).model(0)
    assert sum(p.numel() for p in model.parameters()) == 25_818


@pytest.mark.parametrize("rename", ["{}.gz", "dotted"])
def test_compressed_files_and_those_with_a_dot_in_their_names_are_found(mnist, rename):
    plain = Digits(folder=str(mnist), held_out=10)
    for path in list(mnist.iterdir()):
        if rename == "dotted":
            path.rename(mnist / path.name.replace("-idx", ".idx"))
        else:
            (mnist / rename.format(path.name)).write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    assert torch.equal(Digits(folder=str(mnist), held_out=10).splits["train"].x, plain.splits["train"].x)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", None, "no file 'train-images-idx3-ubyte'"),
        ("t10k-labels-idx1-ubyte", None, "no file 't10k-labels-idx1-ubyte'"),
        ("train-images-idx3-ubyte", b"", "0 bytes, shorter than the header"),
        ("train-images-idx3-ubyte", b"\x00" * 15, "15 bytes, shorter than the header"),
        ("train-images-idx3-ubyte", idx([0] * 30), "its magic number is 2049, but .* is 2051"),
        ("train-labels-idx1-ubyte", idx(np.zeros((30, 3, 2))), "its magic number is 2051, but .* is 2049"),
        ("train-labels-idx1-ubyte", idx([0] * 30, magic=0x0D01), "its magic number is 3329"),
        ("train-images-idx3-ubyte", idx(np.zeros((30, 3, 2)))[:-1], "30 x 3 x 2 bytes, but it holds 179"),
        ("train-images-idx3-ubyte", idx(np.zeros((30, 3, 2))) + b"\0", "30 x 3 x 2 bytes, but it holds more"),
        ("train-images-idx3-ubyte", struct.pack(">4I", 2051, *[2**32 - 1] * 3), "4294967295 bytes, but it holds 0"),
        ("train-labels-idx1-ubyte", idx([0] * 29), "30 images of 'train', but 29 labels"),
        ("train-labels-idx1-ubyte", idx([10] * 30), "a label of 'train' is 10"),
        ("train-images-idx3-ubyte", gzip.compress(idx(np.zeros((30, 3, 2)))), "its magic number is"),
    ],
    ids=[
        "no-images",
        "no-labels",
        "empty",
        "no-header",
        "labels-for-images",
        "images-for-labels",
        "floats",
        "cut-off",
        "too-long",
        "enormous",
        "other-count",
        "other-label",
        "compressed-but-not-named-so",
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named(mnist, name, content, message):
    (mnist / name).unlink()
    if content is not None:
        (mnist / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        Digits(folder=str(mnist), held_out=10)
    assert str(mnist) in error.value.message


@pytest.mark.parametrize("content", [b"plain", gzip.compress(idx(np.zeros((30, 3, 2))))[:-12]], ids=["not", "cut-off"])
def test_a_damaged_compressed_file_is_named(mnist, content):
    (mnist / "train-images-idx3-ubyte").unlink()
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: ") as error:
        Digits(folder=str(mnist), held_out=10)
    assert error.value.hint


# the configuration


def test_a_problem_is_configured_by_its_name_and_options():
    config = ProblemConfig.model_validate({"name": "least-squares", "dimensions": 5})
    assert config.options == {"examples": 1000, "dimensions": 5, "label_noise": 0.1, "data_seed": 0}
    assert config.build().splits["train"].x.shape == (1000, 5)
    assert ProblemConfig.model_validate("digits").options["folder"] is None


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "digit"}, "unknown problem 'digit'. Did you mean 'digits'"),
        ({"name": "digits", "row": 5}, "^problem.row: not an option of the problem 'digits'"),
        ({"name": "digits", "rows": 0}, "^problem.rows: .*greater than or equal to 1, got 0"),
        ({"name": "least-squares", "label_noise": -1}, "^problem.label_noise: "),
    ],
    ids=["name", "key", "rows", "noise"],
)
def test_a_wrong_problem_is_refused_with_the_path_of_the_key(tree, message):
    with pytest.raises(ConfigError, match=message):
        ProblemConfig.model_validate(tree)


# the packaged studies


@pytest.mark.parametrize("name", ["digits", "least-squares"])
def test_every_run_of_a_packaged_study_can_be_made(name):
    grid = read_study(name, ["seeds=[0]"]).grid
    for run in [*grid.trials, *grid.final_runs]:
        assert not list(run.execution.faults(run.config))


def test_the_rows_of_least_squares_have_the_rates_and_pairs_that_their_names_say():
    grid = read_study("least-squares", ["seeds=[0]"]).grid
    runs = {(run.method, run.cell.axes[0]): run.tree["method"] for run in grid.final_runs}
    pairs = {"g-reused": "none", "svrg": "same", "full-batch-direction": "full-batch"}
    for (name, eta2), method in runs.items():
        rate = method["lr"] if name == "first-order" else method["rule"]["lr"]
        assert rate == (1e-3 if name == "first-order" else float(eta2))
        if method["name"] == "svrg":
            assert method["lr_full"] == 1e-3
            assert method["control_variate"] == pairs.get(name, "same" if name == "full-batch" else name)
            assert method["anchor_interval"] == (1 if name == "full-batch" else 2)
    assert set(runs) == {(name, eta2) for name in grid.config.methods for eta2 in ("1e-4", "1e-3")} - {
        ("zo-svrg", "1e-4")
    }


def test_the_digits_study_takes_mnists_files_and_gives_every_method_as_many_trials_and_queries(mnist):
    study = read_study("digits", [f"defaults.problem.folder={mnist}", "defaults.problem.rows=20"])
    run = study.grid.trials[0]
    assert (run.tree["problem"]["folder"], run.tree["problem"]["rows"]) == (str(mnist), 20)
    assert {len(contender.trials) for contender in study.config.methods.values()} == {4}
    assert {
        run.tree["training"]["max_queries"] for run in [*study.grid.trials, *study.grid.finals("mezo", run.cell, 0)]
    } == {500_000}
    assert not {0, 1, 2} & set(study.config.search.seeds)
